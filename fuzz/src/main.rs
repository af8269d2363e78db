//! `signal-fuzz [--seconds N] [ENTRY]...`: mutates the corpus for so long per entry, 60 seconds if nothing is said.

#![expect(
    clippy::print_stdout,
    reason = "a command line tool speaks to its terminal"
)]

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use signal_fuzz::{ENTRIES, run};

fn main() -> Result<ExitCode> {
    let mut seconds = 60;
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let value = arguments.next().context("--seconds takes a number")?;
            seconds = value.parse().context("--seconds takes a number")?;
        } else {
            ensure!(
                ENTRIES.iter().any(|(name, _)| *name == argument),
                "there is no entry {argument:?}"
            );
            wanted.push(argument);
        }
    }
    // Other inputs on each run; a crash is kept as its input.
    let seed = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_nanos() as u64);
    let mut crashed = false;
    for (name, entry) in ENTRIES {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let outcome = run(name, entry, Duration::from_secs(seconds), seed)?;
        println!("{name}: {} inputs", outcome.inputs);
        if let Some(file) = outcome.crash {
            println!("{name}: a panic; its input is in {}", file.display());
            crashed = true;
        }
    }
    Ok(if crashed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

//! Fuzzing: guided by coverage where a nightly toolchain and cargo-fuzz are installed, by mutation alone elsewhere.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, root, setup};

/// `[--seconds N] [ENTRY]...`: each entry, or those named, for a minute or so long.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    setup::build()?;
    if !has_cargo_fuzz() {
        println!(
            "xtask: no nightly toolchain with cargo-fuzz is installed: inputs are mutated without a view of coverage"
        );
        let status = cargo()
            .args(["run", "--quiet", "-p", "signal-fuzz", "--"])
            .args(arguments)
            .status()?;
        return Ok(code(status.success()));
    }
    let mut seconds = "60".to_owned();
    let mut names = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--seconds" {
            seconds = rest.next().context("--seconds takes a number")?.clone();
        } else {
            names.push(argument.clone());
        }
    }
    let corpus = root().join("fuzz/corpus");
    if names.is_empty() {
        for entry in std::fs::read_dir(&corpus)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
    }
    let mut good = true;
    for name in names {
        if !corpus.join(&name).is_dir() {
            bail!("there is no entry {name:?}");
        }
        println!("xtask: fuzzing {name} for {seconds} s");
        good &= guided(&name, &seconds)?;
    }
    Ok(code(good))
}

/// One entry under libFuzzer. What it finds goes to a folder of the build, so that the corpus in the repository stays small.
fn guided(name: &str, seconds: &str) -> Result<bool> {
    let found = root().join("target/fuzz-corpus").join(name);
    let crashes = root().join("fuzz/crashes").join(name);
    std::fs::create_dir_all(&found)?;
    std::fs::create_dir_all(&crashes)?;
    let mut fuzz = Command::new("cargo");
    fuzz.current_dir(root())
        // Those of the stable cargo that runs this program.
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("SIGNAL_FUZZ_ENTRY", name)
        .args(["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz/coverage"])
        .arg("entry")
        .arg(found)
        .arg(format!("fuzz/corpus/{name}"))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()));
    Ok(fuzz.status().context("cannot run cargo fuzz")?.success())
}

fn has_cargo_fuzz() -> bool {
    let status = Command::new("cargo")
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        .args(["+nightly", "fuzz", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

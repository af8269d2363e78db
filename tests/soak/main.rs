//! `signal-soak --minutes N [--seed S] [--rate R]`: gateways under load through faults that are drawn at random from a seed, which it prints.
//!
//! Two gateways, a third that joins and leaves, and one server each of Kafka, PostgreSQL and Redis behind proxies. The harness knows every record that it
//! produced and every row that must exist. It checks that nothing is lost, doubled or out of order; that a client that keeps to the documented rule ends
//! with what the database holds, so that every push that it missed was told to it; that memory is bounded; and that `/readyz`, `/status` and the metrics
//! say what the harness knows. `cargo xtask soak` builds and runs it.
//!
//! | module | does |
//! |---|---|
//! | [`schedule`] | draws the faults |
//! | [`stage`] | starts everything, does and undoes each fault |
//! | [`ledger`], [`load`] | what is produced and what it must become; the producers |
//! | [`devices`] | the clients |
//! | [`watch`] | readiness and memory, all the time |
//! | [`quiet`] | rows, order, clients and counts, at quiet points |
//! | [`run_state`], [`report`] | what the harness knows; the totals |

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks to its terminal"
)]

mod devices;
mod ledger;
mod load;
mod quiet;
mod report;
mod run_state;
mod schedule;
mod stage;
mod watch;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use devices::{Counts, Device};
use ledger::CONNECTED;
use load::Load;
use quiet::{Findings, Quiet, Views};
use report::Totals;
use run_state::RunState;
use schedule::Schedule;
use stage::Stage;
use watch::Watch;

/// Connections of one user.
const DEVICES: usize = 2;
/// Steps between two quiet points.
const STEPS: u32 = 4;

struct Arguments {
    minutes: f64,
    seed: u64,
    /// Records a second.
    rate: f64,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self {
            minutes: 60.0,
            seed: u64::from(rand::random::<u32>()),
            rate: 40.0,
        };
        while let Some(name) = words.next() {
            let value = words.next().unwrap_or_default();
            let wrong = || format!("{name} {value:?} is no number");
            match name.as_str() {
                "--minutes" => arguments.minutes = value.parse().with_context(wrong)?,
                "--seed" => arguments.seed = value.parse().with_context(wrong)?,
                "--rate" => arguments.rate = value.parse().with_context(wrong)?,
                _ => bail!("usage: signal-soak [--minutes N] [--seed S] [--rate RECORDS_A_SECOND]"),
            }
        }
        if !(arguments.minutes > 0.0 && arguments.rate > 0.0) {
            bail!("minutes and rate are more than 0");
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    let run = || {
        let arguments = Arguments::read(std::env::args().skip(1))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(soak(&arguments))
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything was as it must be.
async fn soak(arguments: &Arguments) -> Result<bool> {
    println!("soak: seed {}", arguments.seed);
    let run = RunState::new();
    let Some(mut stage) = Stage::start(&run).await? else {
        println!("soak: nothing was run");
        return Ok(true);
    };
    let load = Load::new(run.clone(), &stage.brokers(), &stage.topic)?;
    let (counts, seen) = (Arc::default(), Arc::default());
    let views = connect(&run, &stage, &counts);
    tokio::spawn(Watch::new(run.clone(), Arc::clone(&seen)).run());
    tokio::spawn(Arc::clone(&load).run(arguments.seed, arguments.rate));
    let mut quiet = Quiet {
        run: run.clone(),
        load: Arc::clone(&load),
        views,
        findings: Findings::default(),
    };
    let mut story = String::new();
    let faults = course(arguments, &mut stage, &mut quiet, &mut story).await;
    run.end();
    let mut skipped = Vec::new();
    if !stage.has_clock() {
        skipped.push("clock step: libfaketime is not installed".to_owned());
    }
    let totals = Totals {
        seed: arguments.seed,
        run: &run,
        load: &load,
        counts: Mutex::lock(&counts).clone(),
        seen: Mutex::lock(&seen).clone(),
        findings: quiet.findings,
        faults: faults?,
        skipped,
    };
    finish(&stage, &totals, &story)
}

fn connect(run: &RunState, stage: &Stage, counts: &Arc<Mutex<Counts>>) -> Views {
    let mut views = Views::new();
    for user in 1..=CONNECTED {
        for _ in 0..DEVICES {
            let view = Arc::default();
            views.push((user, Arc::clone(&view)));
            let device = Device {
                run: run.clone(),
                issuer: Arc::clone(&stage.issuer),
                user,
                view,
                counts: Arc::clone(counts),
            };
            tokio::spawn(device.run());
        }
    }
    views
}

/// Faults and quiet points until the time is over, then the last point. Returns the faults that were, by name.
async fn course(
    arguments: &Arguments,
    stage: &mut Stage,
    quiet: &mut Quiet,
    story: &mut String,
) -> Result<BTreeMap<String, u64>> {
    let run = quiet.run.clone();
    let mut schedule = Schedule::new(arguments.seed, arguments.minutes, stage.has_clock());
    let mut faults: BTreeMap<String, u64> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    run.say("everything runs");
    sleep(Duration::from_secs(3)).await;
    for number in 1_u32.. {
        if Instant::now() >= end {
            break;
        }
        let step = schedule.next().context("steps without end")?;
        let names: Vec<String> = step.faults.iter().map(ToString::to_string).collect();
        let names = names.join(" and ");
        let seconds = step.lasts.as_secs_f64();
        run.say(&format!("{number}. {names} for {seconds:.1} s"));
        let _ = writeln!(
            story,
            "{number}. at {:.1} s: {names} for {seconds:.1} s",
            run.elapsed().as_secs_f64()
        );
        for fault in &step.faults {
            *faults.entry(fault.name()).or_default() += 1;
            stage.begin(*fault).await?;
        }
        sleep(step.lasts).await;
        stage.end(&step.faults).await?;
        sleep(step.calm).await;
        if number % STEPS == 0 {
            quiet.point(stage, false).await?;
        }
    }
    quiet.point(stage, true).await?;
    Ok(faults)
}

/// Prints the totals, keeps them, and with a failure the logs.
fn finish(stage: &Stage, totals: &Totals<'_>, story: &str) -> Result<bool> {
    let folder = folder(totals.seed)?;
    std::fs::write(folder.join("schedule.txt"), story)?;
    let json = totals.json();
    std::fs::write(folder.join("totals.json"), format!("{json:#}"))?;
    println!("\n{}", totals.table());
    println!("{json}");
    if json["passed"] == true {
        println!("soak: passed with seed {}", totals.seed);
        return Ok(true);
    }
    stage.keep_logs(&folder)?;
    println!("\nsoak: the schedule was\n{story}");
    println!(
        "soak: FAILED with seed {}; schedule, totals and logs are in {}",
        totals.seed,
        folder.display()
    );
    Ok(false)
}

/// `target/soak/SEED`, beside the folder of this program.
fn folder(seed: u64) -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("a folder of programs")?;
    let folder = target.join("soak").join(seed.to_string());
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

//! Gateways under load through faults that are drawn from a seed: builds `signal-soak` and runs it.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, setup, target_folder};

/// How long the part of a test run lasts. Every kind of fault comes in it.
const MINUTES: &str = "5";

/// Builds what it needs and runs it with these arguments, in this process's place.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    setup::build()?;
    setup::services()?;
    // As `cargo xtask test` builds, so that nothing is compiled a second time.
    let mut build = cargo();
    build.args(["build", "--workspace", "--bins", "--tests"]);
    if !build.status().context("cargo runs")?.success() {
        bail!("the build failed");
    }
    let status = command().args(arguments).status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The part of a test run, with what that has built.
pub(crate) fn part() -> Result<()> {
    let mut soak = command();
    soak.args(["--minutes", MINUTES]).stdin(Stdio::null());
    let status = soak.status().context("cannot run signal-soak")?;
    if !status.success() {
        bail!("signal-soak ended with {status}; its seed, schedule and logs are named above");
    }
    Ok(())
}

fn command() -> Command {
    let folder = target_folder().join("debug");
    let mut command = Command::new(folder.join("signal-soak"));
    command.env("SIGNAL_TEST_GATEWAY", folder.join("signal-gateway"));
    command
}

//! The packages in `clients/`: installed by the lock file, checked and tested with Node, also against the gateway that was built.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use signal_services::find_program;

use crate::outcome::Outcome;
use crate::setup::browser;
use crate::timing::Timing;
use crate::{root, target_folder};

/// Where a machine without Node is named.
const PART: &str = "clients";
/// Vite and Vitest need it.
const NODE: (u32, u32) = (20, 19);

/// What a run does, each a script of `clients/package.json`.
const CHECK: &str = "check";
const TESTS: [&str; 2] = ["test", "conformance"];

/// Checks (unless `quick`) and tests the packages. `servers` names Kafka, PostgreSQL and Redis in the environment. What fails is noted in `failed`, a machine without Node in `outcome`.
pub(crate) fn part(
    quick: bool,
    servers: &[(&'static str, String)],
    timing: &mut Timing,
    outcome: &mut Outcome,
    failed: &mut Vec<String>,
) {
    let npm = match npm() {
        Ok(npm) => npm,
        Err(reason) => {
            println!("skipped: {PART}: {reason:#}");
            return outcome.skip(&format!("{PART}: {reason:#}"));
        }
    };
    if browser().is_none() {
        println!("skipped: {PART}: browser: Chromium is not installed");
        outcome.skip(&format!("{PART}: browser: Chromium is not installed"));
    }
    let result = timing.part("clients: install", || run(&npm, &["ci"], servers));
    let scripts = std::iter::once(CHECK).filter(|_| !quick).chain(TESTS);
    // Without its packages nothing runs; of the scripts each runs, whichever fail.
    let results: Vec<Result<()>> = match result {
        Ok(()) => scripts
            .map(|script| {
                timing.part(&format!("clients: {script}"), || {
                    run(&npm, &["run", script], servers)
                })
            })
            .collect(),
        Err(error) => vec![Err(error)],
    };
    for error in results.into_iter().filter_map(Result::err) {
        println!("xtask: {error:#}");
        failed.push(format!("{error:#}"));
    }
}

/// npm, beside a Node that is new enough.
fn npm() -> Result<PathBuf> {
    let node = find_program(&["node"]).context("Node is not installed")?;
    let npm = find_program(&["npm"]).context("npm is not installed")?;
    let output = Command::new(node).arg("--version").output();
    let output = output.context("node does not run")?;
    let version = String::from_utf8_lossy(&output.stdout);
    let version = version.trim();
    if !is_new_enough(version) {
        let (major, minor) = NODE;
        bail!("Node {major}.{minor} or newer is needed, here is {version:?}");
    }
    Ok(npm)
}

/// Whether `v20.19.0` and the like is at least [`NODE`].
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version
        .trim_start_matches('v')
        .split('.')
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(NODE.0), Some(NODE.1))
}

fn run(npm: &Path, arguments: &[&str], servers: &[(&'static str, String)]) -> Result<()> {
    let mut command = Command::new(npm);
    command
        .args(arguments)
        .current_dir(root().join("clients"))
        .stdin(Stdio::null())
        .envs(servers.iter().map(|(name, value)| (name, value)))
        .env("SIGNAL_TEST_GATEWAY", gateway()?)
        .envs(browser().map(|program| ("SIGNAL_TEST_CHROMIUM", program)));
    let status = command.status().context("cannot run npm")?;
    if !status.success() {
        bail!("npm {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// Absolute: scripts run in the folder of their package.
fn gateway() -> Result<PathBuf> {
    let folder = target_folder();
    let folder = folder.canonicalize();
    Ok(folder
        .context("nothing was built")?
        .join("debug/signal-gateway"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_too_old_is_told_from_one_that_is_new_enough() {
        for version in ["v20.19.0", "v20.20.2\n", "v22.1.0", "v100.0.0"] {
            assert!(is_new_enough(version.trim()), "{version}");
        }
        for version in ["v20.18.3", "v18.20.0", "v9.0.0", "", "no version"] {
            assert!(!is_new_enough(version), "{version}");
        }
    }
}

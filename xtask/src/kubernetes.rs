//! `cargo xtask kubernetes`: what depends on the API server, against another release of it. Building one takes minutes and 130 MB, so `cargo xtask test`
//! keeps to one release.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use signal_services::{Kubernetes, KubernetesInstallation, KubernetesRelease, Level};

use crate::timing::Timing;
use crate::{cargo, setup, target_folder, test};

/// The tests of the operator and of the charts. With the whole workspace, so that features are those of `cargo xtask test` and nothing is compiled twice.
const SUITES: [&str; 5] = ["--workspace", "--test", "api_server", "--test", "charts"];

/// `VERSION [ARGUMENTS]`: arguments go to `cargo test` in place of those two suites.
pub(crate) fn run(mut arguments: Vec<String>) -> Result<ExitCode> {
    if arguments.is_empty() {
        let known = KubernetesRelease::ALL.map(|release| release.version);
        bail!(
            "cargo xtask kubernetes VERSION [ARGUMENTS]: one of {}",
            known.join(", ")
        );
    }
    let release = KubernetesRelease::named(&arguments.remove(0))?;
    setup::build()?;
    setup::services()?;
    setup::clusters(release)?.context("Kubernetes runs on Linux alone")?;
    let mut build = cargo();
    build.args(["build", "--workspace", "--bins"]);
    test::succeed(&mut build)?;

    Kubernetes::end_left_behind()?;
    let dir = test::ScratchDir::new()?;
    // The same that tests without a server of their own start.
    let installation = KubernetesInstallation::find_release(release, Level::B)?;
    let cluster = Kubernetes::start(&installation, &dir.0.join("kubernetes"), Level::B)?;
    let mut tests = cargo();
    tests.args(["test", "--no-fail-fast"]);
    match arguments.is_empty() {
        true => tests.args(SUITES),
        false => tests.args(arguments),
    };
    tests
        .env(KubernetesRelease::VARIABLE, release.version)
        .env("SIGNAL_TEST_KUBECONFIG", cluster.kubeconfig())
        .env(
            "SIGNAL_TEST_GATEWAY",
            target_folder().join("debug/signal-gateway"),
        )
        .env("TMPDIR", dir.0.join("tests"))
        .envs(test::tools())
        // It is of one release, whatever the version says.
        .env_remove("KUBEBUILDER_ASSETS");
    let outcome = test::watch(tests, &mut Timing::default())?;
    drop(cluster);
    let mut stdout = std::io::stdout().lock();
    outcome.write(&mut stdout)?;
    stdout.flush()?;
    Ok(match outcome.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

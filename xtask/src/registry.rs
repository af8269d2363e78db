//! `cargo xtask registry`: the tests that need a real registry of schemas, against Apicurio. It is large and needs a newer Java than Kafka, so
//! `cargo xtask test` leaves them out.

use std::process::ExitCode;

use anyhow::Result;
use signal_services::Apicurio;

use crate::{cargo, setup};

/// Downloads and starts the registry, and runs the tests.
pub(crate) fn run() -> Result<ExitCode> {
    setup::build()?;
    let apicurio = Apicurio::ensure(|what| println!("xtask: {what}"))?;
    let dir = std::env::temp_dir().join(format!("signal-registry.{}", std::process::id()));
    let (mut server, url) = apicurio.start(&dir)?;
    let status = cargo()
        .args(["test", "-p", "signal-gateway", "--lib", "a_real_registry"])
        .env("SIGNAL_TEST_REGISTRY", url)
        .status();
    server.stop();
    let _ = std::fs::remove_dir_all(&dir);
    Ok(if status?.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

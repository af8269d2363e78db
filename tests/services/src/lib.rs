//! Real servers for tests: Redis, PostgreSQL, Apache Kafka and Kubernetes, on loopback or at a cluster's switch.
//!
//! `xtask` starts one of each for a whole run, and the harness (`signal-tests`) starts further ones for tests that kill,
//! pause or restart them. A crate of its own, because `xtask` has to build before rdkafka's C dependencies are installed.
//!
//! Every server keeps its data in a folder and its port for life, so that a restart is the same server again. No server
//! outlives this process: each is killed on drop, and by the kernel (`setpriv --pdeathsig`) if this process dies without one.

mod apicurio;
mod certificates;
mod image;
mod kafka;
mod kubernetes;
mod network;
mod packages;
mod pgbouncer;
mod postgres;
mod process;
mod redis;
mod tool;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};

pub use apicurio::Apicurio;
pub use certificates::{Authority, PrivateKey, certificates};
pub use image::Image;
pub use kafka::{Kafka, KafkaInstallation};
pub use kubernetes::{Component, Kubernetes, KubernetesInstallation, KubernetesRelease, Level};
pub use network::Network;
pub use packages::Packages;
pub use pgbouncer::PgBouncer;
pub use postgres::{Frozen, Postgres};
pub use process::{Server, bound_command, signal, spawn};
pub use redis::{Guarded, REDIS_PROGRAM, Redis, Sentinels};
pub use tool::Tool;

/// Where downloads are kept across runs: `$SIGNAL_CACHE`, else `~/.cache/signal`.
///
/// # Errors
/// When neither `SIGNAL_CACHE` nor `HOME` is set.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("SIGNAL_CACHE").filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    let user_folder = std::env::var_os("HOME").context("neither SIGNAL_CACHE nor HOME is set")?;
    Ok(PathBuf::from(user_folder).join(".cache/signal"))
}

/// A loopback port that nobody listens on. Another process may take it before it is used; starting the server then fails.
///
/// # Errors
/// When no port can be bound.
pub fn free_port() -> Result<u16> {
    Network::loopback().free_port()
}

/// The first of `names` that is an executable file in a folder of `PATH`.
pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
}

/// libfaketime, which gives a program another clock when it is loaded before it; `None` where it is not installed.
pub fn fake_clock() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let candidates = folders
        .map(|entry| entry.path().join("faketime"))
        .chain(["/usr/lib/faketime".into(), "/usr/lib64/faketime".into()]);
    candidates
        .map(|folder| folder.join("libfaketimeMT.so.1"))
        .find(|library| library.is_file())
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests;

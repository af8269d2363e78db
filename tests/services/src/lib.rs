//! Real servers for tests: Redis, PostgreSQL and Apache Kafka as child processes on loopback.
//!
//! `xtask` starts one of each for a whole run, and the harness (`signal-tests`) starts further ones for tests that kill,
//! pause or restart them. A crate of its own, because `xtask` has to build before rdkafka's C dependencies are installed.
//!
//! Every server keeps its data in a folder and its port for life, so that a restart is the same server again. No server
//! outlives this process: each is killed on drop, and by the kernel (`setpriv --pdeathsig`) if this process dies without one.

mod kafka;
mod postgres;
mod process;
mod redis;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context as _, Result};

pub use kafka::{Kafka, KafkaHome};
pub use postgres::Postgres;
pub use process::{Server, bound_command, signal, spawn};
pub use redis::{Redis, Sentinels};

/// Where downloads are kept across runs: `$SIGNAL_CACHE`, else `~/.cache/signal`.
///
/// # Errors
/// When neither `SIGNAL_CACHE` nor `HOME` is set.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("SIGNAL_CACHE").filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("neither SIGNAL_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/signal"))
}

/// A loopback port that nobody listens on. Another process may take it before it is used; starting the server then fails.
///
/// # Errors
/// When no port can be bound.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free loopback port")?;
    Ok(listener.local_addr()?.port())
}

/// The first of `names` that is an executable file in a folder of `PATH`.
pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests;

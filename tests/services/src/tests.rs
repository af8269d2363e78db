//! The servers start, die, pause and come back as themselves.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A folder that goes with the test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "signal-services.{}.{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Says why a test did nothing; written past the test runner's capture, so that it is seen when the test passes.
pub(crate) fn skip(name: &str, reason: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "skipped: {name}: {reason}");
}

#[test]
fn a_killed_redis_restarts_on_its_port_and_a_paused_one_answers_again() {
    if !Redis::is_installed() {
        return skip(
            "a_killed_redis_restarts_on_its_port_and_a_paused_one_answers_again",
            "redis-server is not installed",
        );
    }
    let scratch = Scratch::new();
    let mut server = Redis::start(&scratch.0, &[]).unwrap();
    let address = server.address();
    server.kill();
    assert!(std::net::TcpStream::connect(address).is_err(), "it is gone");
    server.restart().unwrap();
    assert_eq!(server.address(), address);
    server.pause();
    assert!(!redis::answers(address), "a paused server answers nothing");
    server.resume();
    assert!(redis::answers(address));
}

#[test]
fn a_durable_postgres_keeps_what_was_committed_before_a_kill() {
    let Some(bin) = Postgres::programs() else {
        return skip(
            "a_durable_postgres_keeps_what_was_committed_before_a_kill",
            "PostgreSQL's server programs are not installed",
        );
    };
    let scratch = Scratch::new();
    let mut server = Postgres::start(&scratch.0, true).unwrap();
    let url = Postgres::url(&server, "postgres");
    let sql = |text: &str| {
        let output = Command::new(bin.join("psql"))
            .args([&url, "-qtAc", text])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    sql("create table kept as select generate_series(1, 1000) as n");
    server.kill();
    server.restart().unwrap();
    assert_eq!(sql("select count(*) from kept"), "1000");
}

#[test]
fn a_killed_broker_restarts_on_its_data_and_port() {
    let Some(installation) = KafkaInstallation::find() else {
        return skip(
            "a_killed_broker_restarts_on_its_data_and_port",
            "Kafka is not in the cache folder: run `cargo xtask setup`",
        );
    };
    let scratch = Scratch::new();
    let mut server = Kafka::start(&installation, &scratch.0).unwrap();
    let address = server.address();
    server.kill();
    server.restart().unwrap();
    assert_eq!(server.address(), address);
}

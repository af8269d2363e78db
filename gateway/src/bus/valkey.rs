//! Every test of the bus once more, with Valkey in the place of Redis.

use std::process::Command;

use signal_services::{REDIS_PROGRAM, Redis};

/// Fewer would mean that the tests have other names.
const LEAST: usize = 60;

#[test]
fn the_bus_does_the_same_on_valkey() {
    let server = match Redis::valkey() {
        Ok(_) if !Redis::is_installed() => {
            eprintln!("skipped: the_bus_does_the_same_on_valkey: there is no redis-cli");
            return;
        }
        Ok(server) => server,
        Err(error) => {
            eprintln!("skipped: the_bus_does_the_same_on_valkey: {error:#}");
            return;
        }
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["bus::pubsub::", "bus::bridge::", "--test-threads", "2"])
        // The server of the package is built without TLS.
        .args(["--skip", "tls_is_verified"])
        .args(["--skip", "a_certificate_is_presented"])
        .env(REDIS_PROGRAM, server)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let passed: usize = text
        .split(" passed;")
        .next()
        .and_then(|before| before.rsplit(' ').next()?.parse().ok())
        .unwrap_or_default();
    assert!(passed >= LEAST, "{passed} tests ran:\n{text}");
}

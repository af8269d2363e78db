//! Everybody behind one address comes back at once: a balancer that is not listed was cut. A short form by default; `SIGNAL_CROWD=5000` is the form in
//! which the times count, for a quiet machine.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use signal_tests::Raw;
use signal_tests::raw::{Frame, opcode, upgrade_request};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Stage;

/// The address of the balancer.
const BALANCER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 8, 1));

/// How many come, and whether the machine is quiet enough for times to count.
fn size() -> (usize, bool) {
    match std::env::var("SIGNAL_CROWD") {
        Ok(size) => (size.parse().expect("a number of clients"), true),
        Err(_) => (400, false),
    }
}

/// Opens a WebSocket, coming again as the gateway asks; returns how often that was.
async fn come(address: SocketAddr) -> (Raw, u32) {
    let request = upgrade_request(&format!("Host: {address}"));
    let mut refused = 0;
    loop {
        let mut raw = Raw::connect_from(BALANCER, address).await;
        raw.send(request.as_bytes()).await;
        let head = raw.read_head().await.expect("an answer, not a reset");
        match head.status {
            101 => return (raw, refused),
            503 => {
                let wait = head.header("retry-after").parse().expect("seconds");
                tokio::time::sleep(Duration::from_secs(wait)).await;
                refused += 1;
            }
            other => panic!("{other}: {head:?}"),
        }
    }
}

async fn crowd(address: SocketAddr, size: usize) -> (Vec<Raw>, u32) {
    let mut coming = JoinSet::new();
    for _ in 0..size {
        coming.spawn(come(address));
    }
    let mut most = 0;
    let mut here = Vec::new();
    while let Some(come) = coming.join_next().await {
        let (raw, refused) = come.expect("an answer");
        most = most.max(refused);
        here.push(raw);
    }
    (here, most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_behind_one_address_that_is_cut_is_back_soon_and_others_notice_nothing() {
    let (size, is_quiet) = size();
    let stage = Stage::with(|settings| {
        settings
            .live("limits.accepts_per_second", size as i64 * 2 / 5)
            .live("observability.log_filter", "info")
            .set("auth.connect_timeout_ms", 600_000)
    })
    .await;
    let address = stage.gateway.address();
    let mut other = Raw::connect(address).await;
    other.send_upgrade(address).await;
    let (mut here, _) = crowd(address, size).await;
    for round in 1..=2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for raw in here {
            raw.reset();
        }
        let begun = Instant::now();
        let returning = tokio::spawn(crowd(address, size));
        let mut longest = Duration::ZERO;
        while !returning.is_finished() {
            let asked = Instant::now();
            other.send_frame(&Frame::new(opcode::PING, "x")).await;
            // The gateway pings as well.
            while other.read_frame().await.expect("a pong").opcode != opcode::PONG {}
            longest = longest.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (back, most) = returning.await.expect("everybody is back");
        assert_eq!(back.len(), size);
        let took = begun.elapsed();
        eprintln!(
            "round {round}: {size} back in {took:?}, refused {most} times at most; longest ping {longest:?}"
        );
        if is_quiet {
            assert!(took < Duration::from_secs(6), "{took:?}");
            assert!(longest < Duration::from_millis(100), "{longest:?}");
        }
        here = back;
    }
}

//! From a socket to a connection: heads in pieces, what comes behind them, other requests before, places that are given back.

use std::time::Duration;

use signal_tests::Raw;
use signal_tests::raw::{Frame, opcode, upgrade_request};
use tokio::time::Instant;

use crate::Stage;

/// Long enough for what was sent to be read alone.
const PAUSE: Duration = Duration::from_millis(3);

async fn expect_open(raw: &mut Raw, what: &str) {
    let head = raw
        .read_head()
        .await
        .unwrap_or_else(|| panic!("{what}: no answer"));
    assert_eq!(
        (head.status, head.header("sec-websocket-accept")),
        (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "{what}"
    );
}

async fn expect_pong(raw: &mut Raw, what: &str) {
    let pong = raw
        .read_frame()
        .await
        .unwrap_or_else(|| panic!("{what}: no pong"));
    assert_eq!(
        (pong.opcode, pong.payload.as_slice()),
        (opcode::PONG, &b"behind"[..]),
        "{what}"
    );
}

fn ping() -> Vec<u8> {
    Frame::new(opcode::PING, "behind").encode()
}

#[tokio::test]
async fn a_handshake_cut_anywhere_is_the_same_handshake() {
    let stage = Stage::with(|settings| settings.live("limits.accept_burst", 10_000)).await;
    let address = stage.gateway.address();
    let bytes = [
        upgrade_request(&format!("Host: {address}")).into_bytes(),
        ping(),
    ]
    .concat();
    let whole = async |cuts: &[usize]| {
        let mut raw = Raw::connect(address).await;
        let mut from = 0;
        for cut in cuts.iter().copied().chain([bytes.len()]) {
            raw.send(&bytes[from..cut]).await;
            tokio::time::sleep(PAUSE).await;
            from = cut;
        }
        let what = format!("cut at {cuts:?}");
        expect_open(&mut raw, &what).await;
        expect_pong(&mut raw, &what).await;
    };
    whole(&[]).await;
    for cut in 1..bytes.len() {
        whole(&[cut]).await;
    }
    whole(&(1..bytes.len()).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_connection_that_had_other_requests_becomes_a_websocket_too() {
    let stage = Stage::new().await;
    let address = stage.gateway.address();
    let good = upgrade_request(&format!("Host: {address}"));
    let rest = format!("GET /nothing/here HTTP/1.1\r\nHost: {address}\r\n\r\n");
    // One after the other ...
    let mut raw = Raw::connect(address).await;
    raw.send(rest.as_bytes()).await;
    let head = raw.read_head().await.unwrap();
    assert_eq!(head.status, 404);
    let length = head.header("content-length").parse().unwrap();
    raw.skip(length).await;
    raw.send(&[good.as_bytes(), &ping()].concat()).await;
    expect_open(&mut raw, "after another request").await;
    expect_pong(&mut raw, "after another request").await;
    // ... all at once, the last frame in two halves ...
    let frame = ping();
    let mut raw = Raw::connect(address).await;
    raw.send(&[rest.as_bytes(), good.as_bytes(), &frame[..3]].concat())
        .await;
    tokio::time::sleep(PAUSE).await;
    raw.send(&frame[3..]).await;
    let head = raw.read_head().await.unwrap();
    assert_eq!(head.status, 404);
    raw.skip(head.header("content-length").parse().unwrap())
        .await;
    expect_open(&mut raw, "with another request").await;
    expect_pong(&mut raw, "with another request").await;
    // ... and with a head that only hyper takes.
    let mut raw = Raw::connect(address).await;
    raw.send(
        &[
            good.replacen("\r\n", "\r\nContent-Length: 0\r\n", 1)
                .as_bytes(),
            &ping(),
        ]
        .concat(),
    )
    .await;
    expect_open(&mut raw, "with a length").await;
    expect_pong(&mut raw, "with a length").await;
}

#[tokio::test]
async fn after_a_refusal_the_connection_goes_on() {
    let stage = Stage::new().await;
    let address = stage.gateway.address();
    let good = upgrade_request(&format!("Host: {address}"));
    let mut raw = Raw::connect(address).await;
    for (bad, status) in [
        (good.replace("Version: 13", "Version: 8"), 426),
        (
            good.replacen("\r\n", "\r\nOrigin: https://evil.example\r\n", 1),
            403,
        ),
    ] {
        raw.send(bad.as_bytes()).await;
        let head = raw.read_head().await.unwrap();
        assert_eq!(head.status, status);
        raw.skip(head.header("content-length").parse().unwrap())
            .await;
    }
    raw.send(&[good.as_bytes(), &ping()].concat()).await;
    expect_open(&mut raw, "after refusals").await;
    expect_pong(&mut raw, "after refusals").await;
    assert_eq!(
        stage
            .gateway
            .metric("signal_connections_refused_total", r#"kind="origin""#)
            .await,
        Some(1.0),
        "each is counted once"
    );
}

#[tokio::test]
async fn sockets_that_say_nothing_have_places_until_they_go_and_end_with_the_process() {
    let mut stage = Stage::with(|settings| {
        settings
            .live("limits.http_connections_per_network", 512)
            .set("drain.endpoint_propagation_ms", 0)
            .set("drain.window_ms", 100)
    })
    .await;
    let address = stage.gateway.address();
    // As many as one network may have: half say nothing, half something.
    let mut idle = Vec::new();
    for n in 0..512 {
        let mut raw = Raw::connect(address).await;
        if n % 2 == 0 {
            raw.send(b"GET /stream HTTP/1.1\r\nHost").await;
        }
        idle.push(raw);
    }
    // One more has a place at once, and the oldest is told that it has none.
    let mut one_more = Raw::upgrade(address).await;
    let head = idle[0].read_head().await.expect("an answer");
    assert_eq!(head.status, 503);
    assert!(head.header("retry-after").parse::<u32>().is_ok());
    one_more.send(&ping()).await;
    expect_pong(&mut one_more, "the newcomer").await;
    drop(one_more);
    let begun = Instant::now();
    stage.gateway.signal("TERM");
    for mut raw in idle {
        raw.expect_end(Duration::from_secs(5)).await;
    }
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "long before their heads would have been late: {:?}",
        begun.elapsed()
    );
    assert!(stage.gateway.expect_exit().await.success());
}

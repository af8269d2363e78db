//! Sockets that are no WebSockets: who has a place, for how long, and for whom a proxy asks.

use std::net::IpAddr;
use std::time::Duration;

use signal_tests::Raw;
use signal_tests::raw::{Frame, opcode, upgrade_request};
use signal_tests::wait::until;
use tokio::time::Instant;

use crate::Stage;

/// The header of PROXY protocol version 2 without its rest.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn stranger(n: u8) -> IpAddr {
    [127, 0, 9, n].into()
}

async fn answered(raw: &mut Raw, request: &str) -> u16 {
    raw.send(request.as_bytes()).await;
    let head = raw.read_head().await.expect("an answer");
    raw.skip(head.header("content-length").parse().unwrap_or(0))
        .await;
    head.status
}

#[tokio::test]
async fn strangers_crowd_out_each_other_and_nobody_else() {
    let stage = Stage::with(|settings| {
        settings
            .live("limits.http_connections_per_pod", 40)
            .live("limits.http_connections_per_network", 30)
    })
    .await;
    let address = stage.gateway.address();
    let rest = format!("GET /nothing HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut slow = Raw::connect(address).await;
    let (first, second) = rest.split_at(10);
    slow.send(first.as_bytes()).await;
    let mut crowd = Vec::new();
    for n in 0..120 {
        let mut raw = Raw::connect_from(stranger(n % 2), address).await;
        raw.send(b"GET /stream HTTP/1.1\r\n").await;
        crowd.push(raw);
    }
    // Their oldest are told to come again, and people go on as before: those who were slow and those who are new.
    for raw in &mut crowd[..60] {
        let head = raw.read_head().await.expect("an answer");
        assert_eq!(head.status, 503);
        assert!(
            head.header("retry-after").parse::<u32>().is_ok(),
            "{head:?}"
        );
    }
    assert_eq!(answered(&mut slow, second).await, 404);
    let mut people = Vec::new();
    for n in 10..30 {
        let mut raw = Raw::connect_from(stranger(n), address).await;
        raw.send_upgrade(address).await;
        people.push(raw);
    }
    let evicted = stage
        .gateway
        .metric("signal_http_connections_closed_total", "evicted")
        .await;
    assert!(evicted >= Some(60.0), "{evicted:?}");
}

#[tokio::test]
async fn an_idle_connection_outlives_the_time_for_a_head_and_goes_first_when_places_run_out() {
    let stage = Stage::with(|settings| {
        settings
            .set("server.header_read_timeout_secs", 1)
            .set("server.keep_alive_timeout_secs", 5)
            .live("limits.http_connections_per_network", 3)
    })
    .await;
    let address = stage.gateway.address();
    let rest = format!("GET /nothing HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut idle = Raw::connect(address).await;
    assert_eq!(answered(&mut idle, &rest).await, 404);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(answered(&mut idle, &rest).await, 404, "no request is lost");
    // A head that has begun has its own time, and is told when it is over.
    let begun = Instant::now();
    idle.send(b"GET /nothing HT").await;
    let late = idle.read_head().await.expect("an answer");
    assert_eq!(late.status, 408);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // The end of the idle time.
    let mut idle = Raw::connect(address).await;
    assert_eq!(answered(&mut idle, &rest).await, 404);
    let begun = Instant::now();
    idle.expect_end(Duration::from_secs(20)).await;
    assert!(begun.elapsed() >= Duration::from_secs(4));

    let mut idle = Raw::connect(address).await;
    assert_eq!(answered(&mut idle, &rest).await, 404);
    let mut unfinished = Raw::connect(address).await;
    unfinished.send(b"GET ").await;
    // Newcomers until it goes: each has one second for its head, and the connection is idle only a moment after its answer was read.
    let fill = async {
        let mut held = Vec::new();
        loop {
            held.push(Raw::connect(address).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let begun = Instant::now();
    tokio::select! {
        () = idle.expect_end(Duration::from_secs(20)) => {}
        () = fill => {}
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "before its time");
}

#[tokio::test]
async fn requests_at_the_edge_of_the_time_for_a_head_are_not_lost() {
    let stage = Stage::with(|settings| settings.set("server.header_read_timeout_secs", 1)).await;
    let address = stage.gateway.address();
    let rest = format!("GET /nothing HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100u64 {
        let rest = rest.clone();
        tasks.spawn(async move {
            let mut raw = Raw::connect(address).await;
            for _ in 0..3 {
                assert_eq!(answered(&mut raw, &rest).await, 404);
                tokio::time::sleep(Duration::from_millis(950 + n)).await;
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn probes_get_through_to_the_admin_listener_whoever_holds_its_places() {
    let stage = Stage::new().await;
    let address = stage.gateway.admin_address();
    let mut strangers = Vec::new();
    for n in 0..300 {
        let mut raw = Raw::connect(address).await;
        if n % 3 == 0 {
            raw.send(b"GET /met").await;
        }
        strangers.push(raw);
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        for from in [stranger(1), [127, 0, 0, 1].into()] {
            let mut probe = Raw::connect_from(from, address).await;
            let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
            assert_eq!(answered(&mut probe, &request).await, 200, "{path}");
        }
    }
    drop(strangers);
}

fn proxied(client: [u8; 4]) -> Vec<u8> {
    let address = [&client[..], &[127, 0, 0, 1], &[1, 2], &[3, 4]].concat();
    // Behind the address a TLV that nobody knows.
    let tlv = [0xe0, 0, 2, 7, 7];
    [SIGNATURE, &[0x21, 0x11, 0, 17], &address, &tlv].concat()
}

/// protocol.md 1.9.
#[tokio::test]
async fn a_listed_proxy_must_say_for_whom_it_asks_and_others_may_not() {
    let stage = Stage::with(|settings| {
        settings
            .set("server.header_read_timeout_secs", 1)
            .live("proxy_protocol_from", vec!["127.0.9.1/32"])
    })
    .await;
    let address = stage.gateway.address();
    let upgrade = upgrade_request(&format!("Host: {address}"));
    // From the proxy, in one piece and in many.
    for pieces in [1, 3, 100] {
        let mut raw = Raw::connect_from(stranger(1), address).await;
        let bytes = [proxied([192, 0, 2, 7]), upgrade.clone().into_bytes()].concat();
        for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
            raw.send(piece).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(raw.read_head().await.expect("an answer").status, 101);
        raw.send_frame(&Frame::new(opcode::PING, "x")).await;
        assert_eq!(raw.read_frame().await.unwrap().opcode, opcode::PONG);
    }
    // REST as well, and the check of the balancer itself.
    let rest = format!("GET /nothing HTTP/1.1\r\nHost: {address}\r\n\r\n");
    for header in [
        proxied([192, 0, 2, 7]),
        [SIGNATURE, &[0x20, 0, 0, 0]].concat(),
    ] {
        let mut raw = Raw::connect_from(stranger(1), address).await;
        raw.send(&header).await;
        assert_eq!(answered(&mut raw, &rest).await, 404);
    }
    // Without one, with the text form, with a broken one, with half of one.
    for wrong in [
        upgrade.as_bytes(),
        b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n",
        &[SIGNATURE, &[0x31, 0x11, 0, 12]].concat(),
        &proxied([192, 0, 2, 7])[..20],
    ] {
        let mut raw = Raw::connect_from(stranger(1), address).await;
        raw.send(wrong).await;
        raw.expect_end(Duration::from_secs(10)).await;
    }
    let log = stage.gateway.log();
    assert!(
        log.contains("version 1 of the PROXY protocol is not read"),
        "{log}"
    );
    // Elsewhere the header is no HTTP, and its address counts for nothing.
    let mut raw = Raw::connect(address).await;
    raw.send(&[&proxied([192, 0, 2, 7])[..], upgrade.as_bytes()].concat())
        .await;
    let head = raw.read_head().await;
    assert!(head.is_none_or(|head| head.status == 400));
}

/// protocol.md 1.9: a peer that ends its socket within the header loses that socket, and holds nobody up.
#[tokio::test]
async fn a_header_that_ends_early_closes_its_socket_and_nothing_else() {
    let stage = Stage::with(|settings| {
        settings
            .set("workers.shards", 1)
            .live("proxy_protocol_from", vec!["127.0.9.1/32"])
    })
    .await;
    let address = stage.gateway.address();
    let header = proxied([192, 0, 2, 7]);
    for cut in [1, 6, 12, 16, 20, header.len() - 1] {
        let mut raw = Raw::connect_from(stranger(1), address).await;
        raw.send(&header[..cut]).await;
        // So that the gateway waits for the rest before it learns that there is none.
        tokio::time::sleep(Duration::from_millis(20)).await;
        raw.end_sending().await;
        // Long before the time for a head.
        raw.expect_end(Duration::from_secs(5)).await;
    }
    Raw::connect(address).await.send_upgrade(address).await;
}

/// protocol.md 1.9.
#[tokio::test]
async fn what_one_network_may_have_is_counted_for_the_client_that_the_proxy_names() {
    let stage = Stage::with(|settings| {
        settings
            .live("proxy_protocol_from", vec!["127.0.9.1/32"])
            .live("limits.http_connections_per_network", 4)
    })
    .await;
    let address = stage.gateway.address();
    let mut opened = Vec::new();
    for n in 0..10 {
        let mut raw = Raw::connect_from(stranger(1), address).await;
        raw.send(&proxied([192, 0, 2, if n < 2 { 1 } else { 2 }]))
            .await;
        raw.send(b"GET /stream HTTP/1.1\r\n").await;
        opened.push(raw);
    }
    until("the second client has four", || async {
        let evicted = stage
            .gateway
            .metric("signal_http_connections_closed_total", "evicted")
            .await?;
        (evicted == 4.0).then_some(())
    })
    .await;
    // The first client still has both of its own.
    for raw in &mut opened[..2] {
        let rest = format!("Host: {address}\r\nSec-WebSocket-Version: 8\r\n\r\n");
        raw.send(rest.as_bytes()).await;
        assert_eq!(raw.read_head().await.expect("an answer").status, 426);
    }
}

//! The held drain: an instance is emptied for a scale-in and stays, until it is taken back or told to end.

use std::time::Duration;

use serde_json::{Value, json};
use signal_tests::client::Incoming;
use signal_tests::gateway::{ADMIN_TOKEN, Builder};
use signal_tests::producer::payment;
use signal_tests::raw::{Head, upgrade_request};
use signal_tests::services::{self, unique};
use signal_tests::wait::until;
use signal_tests::{Client, Gateway, Issuer, Producer, Raw};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Stage;

/// Longer than a busy machine takes for what is done within it.
const PROPAGATION: Duration = Duration::from_millis(3000);
const WINDOW: Duration = Duration::from_millis(2000);

fn paced(settings: Builder) -> Builder {
    let ms = |time: Duration| i64::try_from(time.as_millis()).expect("a small time");
    settings
        .set("drain.endpoint_propagation_ms", ms(PROPAGATION))
        .set("drain.window_ms", ms(WINDOW))
        .set("drain.batch_interval_ms", 200)
        .set("drain.min_batch", 1)
        .live("limits.connections_per_user", 0)
}

async fn hold(gateway: &Gateway) -> Value {
    gateway
        .admin_with("POST", "/drain", ADMIN_TOKEN, Some(json!({"hold": true})))
        .await
        .expect(202)
        .json()
}

async fn drain_of(gateway: &Gateway) -> Value {
    gateway.admin("GET", "/status").await.expect(200).json()["drain"].clone()
}

async fn try_upgrade(gateway: &Gateway) -> Head {
    let mut raw = Raw::connect(gateway.address()).await;
    raw.send(upgrade_request(&format!("Host: {}", gateway.address())).as_bytes())
        .await;
    raw.read_head().await.expect("an answer")
}

/// Waits until the instance refuses connections and has none.
async fn expect_empty(gateway: &Gateway) {
    until("the held drain is through", || async {
        let refused = gateway
            .metric("signal_connections_refused_total", "closed")
            .await
            .unwrap_or_default();
        if refused == 0.0 {
            try_upgrade(gateway).await;
            return None;
        }
        (drain_of(gateway).await["remaining"] == 0).then_some(())
    })
    .await;
}

async fn clients(stage: &Stage, count: usize) -> Vec<Client> {
    let token = stage.issuer.token("17");
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::open(stage.gateway.address(), &token).await);
    }
    clients
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn a_held_drain_closes_in_batches_refuses_who_comes_back_and_is_taken_back() {
    let stage = Stage::with(paced).await;
    let mut clients = clients(&stage, 15).await;
    let begun = Instant::now();
    let status = hold(&stage.gateway).await;
    assert_eq!(
        status,
        json!({"draining": true, "held": true, "atStart": 0, "remaining": 15})
    );
    stage.gateway.admin("GET", "/readyz").await.expect(503);
    // Endpoints do not know yet: a client that still connects is served, and closed with the others.
    clients.push(stage.client("18").await);
    clients.push(stage.connect().await);
    stage.send_to_client(clients[0].id(), "still here").await;
    clients[0].expect("still here").await;
    assert!(
        begun.elapsed() < PROPAGATION,
        "this machine is too slow for the test: {:?}",
        begun.elapsed()
    );

    let closing = clients.iter_mut().map(|client| async move {
        assert_eq!(
            client.expect_closed().await,
            (1001, "Server shutting down".into())
        );
        begun.elapsed()
    });
    let mut times = futures_util::future::join_all(closing).await;
    times.sort_unstable();
    assert!(
        times[0] >= PROPAGATION.mul_f64(0.9),
        "endpoints had time to notice: {times:?}"
    );
    assert!(
        times[16] - times[0] >= WINDOW / 2,
        "spread over the window: {times:?}"
    );
    assert!(
        times[16] <= PROPAGATION + 2 * WINDOW,
        "within the window: {times:?}"
    );

    let head = try_upgrade(&stage.gateway).await;
    assert_eq!(head.status, 503, "{head:?}");
    let again_in: u32 = head.header("retry-after").parse().expect("seconds");
    assert!(
        (1..=5).contains(&again_in) && head.header("connection") == "close",
        "{head:?}"
    );
    until("nobody is left", || async {
        (drain_of(&stage.gateway).await["remaining"] == 0).then_some(())
    })
    .await;
    // Another request after it has finished changes nothing: it goes on refusing.
    assert_eq!(
        hold(&stage.gateway).await,
        json!({"draining": true, "held": true, "atStart": 17, "remaining": 0})
    );
    assert_eq!(try_upgrade(&stage.gateway).await.status, 503);
    assert_eq!(
        stage.gateway.metric("signal_connections", "").await,
        Some(0.0)
    );
    assert_eq!(stage.gateway.metric("signal_draining", "").await, Some(1.0));
    let status = stage
        .gateway
        .admin("GET", "/status")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&status["ready"], &status["unready"]),
        (&json!(false), &json!([{"part": "drain", "reason": "held"}]))
    );

    let back = stage
        .gateway
        .admin("DELETE", "/drain")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&back["draining"], &back["held"]),
        (&json!(false), &json!(false))
    );
    stage.gateway.admin("GET", "/readyz").await.expect(200);
    let mut client = stage.client("17").await;
    stage.send_to_client(client.id(), "welcome back").await;
    client.expect("welcome back").await;
    until("nothing drains", || async {
        (stage.gateway.metric("signal_draining", "").await == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(
        drain_of(&stage.gateway).await,
        json!({"draining": false, "held": false, "atStart": 0, "remaining": 1})
    );

    // The next hold is one of its own, with its whole pause.
    let begun = Instant::now();
    hold(&stage.gateway).await;
    assert_eq!(
        client.expect_closed().await,
        (1001, "Server shutting down".into())
    );
    assert!(
        begun.elapsed() >= PROPAGATION.mul_f64(0.9),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_hold_taken_back_in_the_middle_of_its_window_keeps_who_is_left() {
    let long = |settings| {
        paced(settings)
            .set("drain.endpoint_propagation_ms", 0)
            .set("drain.window_ms", 20_000)
    };
    let stage = Stage::with(long).await;
    // They are read, so that each that is closed is gone at once, and not when its time to answer is over.
    let mut reading = JoinSet::new();
    for client in clients(&stage, 30).await {
        reading.spawn(is_told(client));
    }
    hold(&stage.gateway).await;
    until("some are closed", || async {
        let remaining = drain_of(&stage.gateway).await["remaining"].as_u64()?;
        (remaining < 28).then_some(())
    })
    .await;
    assert_eq!(try_upgrade(&stage.gateway).await.status, 503);
    stage.gateway.admin("DELETE", "/drain").await.expect(200);
    stage.gateway.admin("GET", "/readyz").await.expect(200);
    reading.spawn(is_told(stage.client("17").await));
    // Longer than the interval of batches: nobody is closed any more.
    let left = until("the closed ones are gone", || async {
        let before = drain_of(&stage.gateway).await["remaining"].as_u64()?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let after = drain_of(&stage.gateway).await["remaining"].as_u64()?;
        (before == after).then_some(after)
    })
    .await;
    assert!((15..30).contains(&left), "{left} of 31 are left");
    let path = "/socket/websocket/users/17/messages";
    let body = json!({"event": "still here", "data": null});
    let sent = stage
        .gateway
        .rest("POST", path, &crate::admin(&stage.issuer), Some(body))
        .await
        .expect(202)
        .json();
    assert_eq!(sent["local"], left);
    let told = reading.join_all().await.into_iter().filter(|told| *told);
    assert_eq!(told.count() as u64, left);
}

/// Reads a connection until it is told that it is still here; `false` where it is closed.
async fn is_told(mut client: Client) -> bool {
    loop {
        match client.next_within(Duration::from_secs(60)).await {
            Some(Incoming::Envelope(envelope)) if envelope.event == "still here" => return true,
            Some(Incoming::Envelope(_)) => {}
            Some(Incoming::Closed(..) | Incoming::Lost) => return false,
            None => panic!("nothing came"),
        }
    }
}

#[tokio::test]
async fn after_a_held_drain_that_is_through_sigterm_waits_for_nothing() {
    let slow = |settings| paced(settings).set("drain.window_ms", 3000);
    let mut stage = Stage::with(slow).await;
    let mut clients = clients(&stage, 3).await;
    hold(&stage.gateway).await;
    for client in &mut clients {
        client.expect_closed().await;
    }
    expect_empty(&stage.gateway).await;
    let begun = Instant::now();
    stage.gateway.signal("TERM");
    assert!(stage.gateway.expect_exit().await.success());
    assert!(begun.elapsed() < PROPAGATION, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn sigterm_in_the_middle_of_a_hold_goes_on_from_there_and_cannot_be_taken_back() {
    let (pause, noticed) = (Duration::from_secs(6), Duration::from_millis(4500));
    let slow = |settings| paced(settings).set("drain.endpoint_propagation_ms", 6000);
    let mut stage = Stage::with(slow).await;
    let mut clients = clients(&stage, 5).await;
    let begun = Instant::now();
    hold(&stage.gateway).await;
    until("most of the pause is over", || async {
        (begun.elapsed() >= noticed).then_some(())
    })
    .await;
    stage.gateway.signal("TERM");
    until("it ends", || async {
        (drain_of(&stage.gateway).await["held"] == false).then_some(())
    })
    .await;
    let refused = stage
        .gateway
        .admin("DELETE", "/drain")
        .await
        .expect(409)
        .json();
    assert_eq!(refused["code"], "ending");
    stage
        .gateway
        .admin_with("POST", "/drain", ADMIN_TOKEN, Some(json!({"hold": true})))
        .await
        .expect(409);
    let closing = clients.iter_mut().map(|client| async move {
        assert_eq!(
            client.expect_closed().await,
            (1001, "Server shutting down".into())
        );
        begun.elapsed()
    });
    let times = futures_util::future::join_all(closing).await;
    let first = times.iter().min().expect("five of them");
    assert!(
        *first >= pause.mul_f64(0.97) && *first < noticed + pause,
        "the pause is whole, and is not made twice: {times:?}"
    );
    assert!(stage.gateway.expect_exit().await.success());
}

#[tokio::test]
async fn the_pipeline_and_the_inbox_go_on_while_held() {
    let Some(brokers) = services::kafka().await else {
        return;
    };
    let (issuer, topic) = (Issuer::start().await, unique("activity"));
    let producer = Producer::new(&brokers).expect("a producer");
    producer.create_topic(&topic, 2).await.expect("a topic");
    let settings = Gateway::build().trust(&issuer).kafka(&brokers, &topic);
    settings
        .policies()
        .await
        .join("17", "Merchant_42")
        .await
        .expect("a row");
    let gateway = settings.start().await;
    let mut client = Client::open(gateway.address(), &issuer.token("17")).await;
    hold(&gateway).await;
    client.expect_closed().await;
    expect_empty(&gateway).await;
    producer
        .send(&topic, "42", &payment("evt-1", "42", 150_000))
        .await
        .expect("acknowledged");
    until("the notification is stored", || async {
        let inbox = gateway
            .rest("GET", "/notifications", &issuer.token("17"), None)
            .await
            .expect(200)
            .json();
        (inbox["unreadCount"] == 1).then_some(())
    })
    .await;
    assert_eq!(
        drain_of(&gateway).await,
        json!({"draining": true, "held": true, "atStart": 1, "remaining": 0})
    );
}

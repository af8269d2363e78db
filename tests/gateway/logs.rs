//! What the log says of people: nothing above `debug`, but for the lines of its own target that say who did what (SECURITY.md).

use serde_json::{Value, json};
use signal_tests::gateway::Builder;
use signal_tests::services::{self, unique};
use signal_tests::wait::until;
use signal_tests::{Client, Gateway, Producer};

use crate::{Stage, admin};

const AUDIT: &str = "signal_gateway::audit";
/// What clients, callers and producers send here; in a log above `debug` each is a fault.
const PLANTED: [&str; 11] = [
    "planted-subject",
    "planted-victim",
    "planted-caller",
    "planted-jti",
    "planted-room",
    "planted-event",
    "planted-data",
    "planted-basic-name",
    "planted-path",
    "planted-query",
    "planted-record",
];

/// The lines above `debug`: those of the audit target, and all others.
fn loud(log: &str) -> (Vec<Value>, Vec<Value>) {
    let lines = log.lines().filter_map(|l| serde_json::from_str(l).ok());
    lines
        .filter(|line: &Value| !matches!(line["level"].as_str(), Some("DEBUG" | "TRACE")))
        .partition(|line| line["target"] == AUDIT)
}

fn expect_none_named(log: &str) {
    let (_, others) = loud(log);
    assert!(others.len() > 3, "{log}");
    for line in others {
        let text = line.to_string();
        for planted in PLANTED {
            assert!(!text.contains(planted), "{planted} in {text}");
        }
    }
}

fn with_basic_users(settings: Builder) -> Builder {
    let file = settings.dir().join("users.json");
    let users = json!([{"name": "planted-basic-name", "hash": signal_tests::rest::argon2id("right"), "subject": "planted-caller"}]);
    std::fs::write(&file, users.to_string()).expect("a writable folder");
    settings.set("auth.basic_users_file", file.display().to_string())
}

/// Everything a client can send, well and badly.
async fn talk(stage: &Stage) -> Client {
    let mut claims = stage.issuer.claims("planted-subject");
    claims["jti"] = json!("planted-jti");
    let token = stage.issuer.sign("key-1", &claims);
    let mut client = Client::open_encrypted(stage.gateway.address(), &token).await;
    client.send_text("planted-data").await;
    client.expect_error().await;
    client.send_text(r#"{"no":"planted-event"}"#).await;
    client
        .send(
            "join",
            json!({"rooms": ["planted-room", 5, "ws:planted-room"]}),
        )
        .await;
    client.send("join", json!("planted-room")).await;
    client.send("planted-event", json!("planted-data")).await;
    client
        .send("notifications:read", json!({"ids": ["planted-data"]}))
        .await;
    claims["exp"] = json!(1);
    let mut refused = stage.connect().await;
    let expired = stage.issuer.sign("key-1", &claims);
    refused
        .send("authenticate", json!({"type": "Bearer", "token": expired}))
        .await;
    assert_eq!(refused.expect_closed().await.0, 4003);
    client
}

/// Everything a caller can ask for, well and badly.
async fn manage(stage: &Stage, client: &Client) {
    let root = stage.issuer.token_with_roles(
        "planted-caller",
        json!([{"id": "r1", "identifier": "super-admin", "priority": 0}]),
    );
    let clients = "/socket/websocket/clients";
    let one = format!("{clients}/{}", client.id());
    let message = json!({"event": "planted-event", "data": "planted-data"});
    let rooms = json!({"rooms": ["planted-room"]});
    let user = "/socket/websocket/users/planted-victim";
    let broadcast = "/socket/websocket/broadcast";
    for (method, path, token, body, status) in [
        (
            "POST",
            format!("{one}/rooms"),
            &root,
            Some(rooms.clone()),
            200,
        ),
        ("DELETE", format!("{one}/rooms"), &root, Some(rooms), 200),
        (
            "POST",
            format!("{user}/messages"),
            &root,
            Some(message.clone()),
            202,
        ),
        ("POST", broadcast.into(), &root, Some(message), 202),
        (
            "POST",
            broadcast.into(),
            &root,
            Some(json!("planted-data")),
            400,
        ),
        ("GET", format!("{clients}/planted-path"), &root, None, 404),
        (
            "GET",
            format!("{clients}?userId=planted-query&planted-query=1"),
            &root,
            None,
            400,
        ),
        (
            "GET",
            clients.into(),
            &stage.issuer.token("planted-subject"),
            None,
            403,
        ),
        (
            "GET",
            "/notifications/planted-path".into(),
            &root,
            None,
            404,
        ),
        ("DELETE", format!("{user}/clients"), &root, None, 200),
        ("DELETE", one, &root, None, 200),
        (
            "POST",
            "/socket/websocket/revocations".into(),
            &root,
            Some(json!({"userId": "planted-victim"})),
            200,
        ),
        (
            "POST",
            "/socket/websocket/revocations".into(),
            &root,
            Some(json!({"jti": "planted-jti"})),
            200,
        ),
    ] {
        let answer = stage.gateway.rest(method, &path, token, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
}

async fn log_in_by_name(stage: &Stage) {
    let clients = "/socket/websocket/clients";
    let url = format!("http://{}{clients}", stage.gateway.address());
    for (password, status) in [("wrong", 401), ("right", 403)] {
        let request = signal_tests::rest::http().get(&url);
        let request = request.basic_auth("planted-basic-name", Some(password));
        signal_tests::rest::ask(request).await.expect(status);
    }
}

#[tokio::test]
async fn no_line_above_debug_names_a_person_but_for_the_audit() {
    let stage = Stage::with(with_basic_users).await;
    let client = talk(&stage).await;
    manage(&stage, &client).await;
    log_in_by_name(&stage).await;
    // A users file that is wrong is logged, without the names in it.
    let broken =
        r#"[{"name": "planted-basic-name", "hash": "planted-data", "subject": "planted-caller"}]"#;
    std::fs::write(stage.gateway.file("users.json"), broken).unwrap();
    until("the fault of the users file", || async {
        let fault = "the changed users file is not valid";
        stage.gateway.log().contains(fault).then_some(())
    })
    .await;

    let log = stage.gateway.log();
    expect_none_named(&log);
    let (audit, _) = loud(&log);
    let said = |message: &str, field: &str, value: &str| {
        let found = audit.iter().any(|line| {
            line["message"] == message && line["by"] == "planted-caller" && line[field] == value
        });
        assert!(found, "{message} {field}={value} in {audit:#?}");
    };
    said("client put into rooms", "client.id", client.id());
    said("client taken out of rooms", "client.id", client.id());
    said("client disconnected", "client.id", client.id());
    said(
        "clients of a user disconnected",
        "user.id",
        "planted-victim",
    );
    said("broadcast", "event", "planted-event");
    said("tokens revoked", "user.id", "planted-victim");
    said("tokens revoked", "jti", "planted-jti");
    said("permission denied", "permission", "WebSocketClient.find");
}

#[tokio::test]
async fn the_audit_is_switched_off_by_the_log_filter() {
    let stage = Stage::with(|settings| {
        settings.live("observability.log_filter", "info,signal_gateway::audit=off")
    })
    .await;
    let path = "/socket/websocket/users/planted-victim/clients";
    let root = admin(&stage.issuer);
    stage
        .gateway
        .rest("DELETE", path, &root, None)
        .await
        .expect(200);
    let (audit, others) = loud(&stage.gateway.log());
    assert!(audit.is_empty() && !others.is_empty(), "{audit:?}");
}

#[tokio::test]
async fn a_record_that_is_dead_lettered_is_not_quoted() {
    let Some(brokers) = services::kafka().await else {
        return;
    };
    let topic = unique("activity");
    let producer = Producer::new(&brokers).expect("a producer");
    producer.create_topic(&topic, 1).await.expect("a topic");
    let gateway = Gateway::build().kafka(&brokers, &topic).start().await;
    let mut count = 0.0;
    for record in [
        json!("planted-record"),
        json!({"planted-record": 1}),
        json!({"type": "PAYMENT_SUCCESS", "recipientType": "users", "recipientIds": "planted-record"}),
        json!({"type": "PAYMENT_SUCCESS", "recipientType": "users", "recipientIds": ["planted-record", ""]}),
        json!({"type": "PAYMENT_SUCCESS", "recipientType": "merchant", "merchantId": {"planted-record": 1}}),
        json!({"type": "PAYMENT_SUCCESS", "actorId": "planted-record", "occurredAt": "planted-record"}),
    ] {
        producer
            .send(&topic, "planted-record", &record)
            .await
            .expect("acknowledged");
        count += 1.0;
    }
    until("the dead letters", || async {
        let sent = gateway.metric("signal_kafka_dead_letters_total", "").await;
        (sent == Some(count)).then_some(())
    })
    .await;
    expect_none_named(&gateway.log());
}

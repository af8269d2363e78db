//! One event for many users: encoded once, and between gateways one message; each device gets the row and the counts of its user.

use std::time::Duration;

use serde_json::{Value, json};
use signal_tests::{Client, wait::until};

use crate::pipeline::Pipeline;

/// Users, each of whom has a device in the clear and an encrypted one, on different gateways.
const USERS: usize = 30;
const EVENTS: usize = 3;

fn event(number: usize, users: &[String]) -> Value {
    json!({
        "id": format!("evt-{number}"), "type": "PAYMENT_SUCCESS", "actorId": "17", "recipientType": "users", "recipientIds": users,
        "data": { "amount": 150_000, "currency": "VND", "orderId": format!("DH-{number}") },
    })
}

/// protocol.md 8.1, 9.1 and 10.16.
#[tokio::test]
async fn one_event_for_many_reaches_every_device_with_what_is_its_users_own() {
    let Some(all) = Pipeline::start(2).await else {
        return;
    };
    let mut users: Vec<String> = (0..USERS).map(|n| format!("many-{n}")).collect();
    let mut devices: Vec<(String, Client)> = Vec::new();
    for (n, user) in users.iter().enumerate() {
        let token = all.issuer.token(user);
        let clear = Client::open(all.gateways[n % 2].address(), &token).await;
        let sealed = Client::open_encrypted(all.gateways[(n + 1) % 2].address(), &token).await;
        devices.extend([(user.clone(), clear), (user.clone(), sealed)]);
    }
    // Who is away counts, too.
    users.push("many-away".into());
    // The first user has one notification more than the others.
    all.produce("k", event(0, &users[..1])).await;
    for (_, device) in &mut devices[..2] {
        device.expect("notification:created").await;
    }
    // The gateways look at each other every five seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    for number in 1..=EVENTS {
        all.produce("k", event(number, &users)).await;
    }
    for (user, device) in &mut devices {
        let before = i64::from(*user == "many-0");
        for number in 1..=EVENTS as i64 {
            let envelope = device.next_envelope().await;
            assert_eq!(envelope.event, "notification:created");
            assert_eq!(envelope.sealed, device.is_encrypted());
            let (data, row) = (&envelope.data, &envelope.data["notification"]);
            assert_eq!(row["data"]["orderId"], format!("DH-{number}"));
            assert_eq!(row["recipientId"], **user);
            let numbers = ["previousSeq", "unreadCount", "version"].map(|name| &data[name]);
            let seq = before + number;
            assert_eq!(row["seq"], seq);
            assert_eq!(numbers, [&json!(seq - 1), &json!(seq), &json!(seq)]);
        }
    }
    let inbox = all.inbox("many-away").await;
    assert_eq!(inbox["unreadCount"], EVENTS);
    until("the other gateway received each as one message", || async {
        let mut received = 0.0;
        for gateway in &all.gateways {
            let kind = gateway.metric("signal_bus_received_total", "kind=\"audience\"");
            received += kind.await.unwrap_or_default();
        }
        (received == EVENTS as f64).then_some(())
    })
    .await;
}

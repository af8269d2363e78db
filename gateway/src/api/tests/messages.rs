use std::sync::atomic::Ordering;

use http::Method;
use serde_json::{Value, json};

use super::fixture::TestGateway;
use crate::bus::{Answers, Ask, Reply};
use crate::id::{AnyId, Id};
use crate::protocol::event::{RESERVED, name};

fn nested(depth: usize) -> Value {
    serde_json::from_str(&format!("{}{}", "[".repeat(depth), "]".repeat(depth))).unwrap()
}

#[tokio::test]
async fn a_message_is_sent_as_it_was_given() {
    let gateway = TestGateway::new().await;
    gateway.others.answer(|ask| match ask {
        Ask::Holds { .. } => Answers {
            replies: vec![("gateway-1".into(), Reply::Count { count: 1 })],
            missing: vec!["gateway-3".into()],
        },
        _ => Answers::default(),
    });
    let data = json!({"orderId": "DH-1001", "text": "đã giao", "deep": nested(90)});
    for (path, destination) in [
        ("clients/abc/messages", "Client(abc)"),
        ("users/17/messages", "User(\"17\")"),
        ("rooms/merchant:42/messages", "Room(\"merchant:42\")"),
        ("broadcast", "Broadcast"),
    ] {
        let call = gateway
            .call(Method::POST, &format!("/socket/websocket/{path}"))
            .json(&json!({"event": "order:updated", "data": data}));
        assert_eq!(
            gateway.send(call).await.ok(202),
            json!({"local": 0, "published": true})
        );
        assert_eq!(
            gateway.published(),
            [("order:updated".into(), destination.into(), data.clone())]
        );
    }
    let call = gateway
        .call(Method::POST, "/socket/websocket/users/17/messages")
        .json(&json!({"event": "ping me"}));
    gateway.send(call).await.ok(202);
    assert_eq!(gateway.others.published.lock()[0].data_text(), None);
}

/// protocol.md 11.6.
#[tokio::test]
async fn an_id_of_another_server_is_held_by_nobody_here() {
    let gateway = TestGateway::new().await;
    let uuid = "7f0e2a52-6c1b-4c0e-9c5e-0d1f2a3b4c5d";
    let client = format!("/socket/websocket/clients/{uuid}");
    for (method, path, body) in [
        (Method::GET, client.clone(), None),
        (Method::DELETE, client.clone(), None),
        (
            Method::POST,
            format!("{client}/messages"),
            Some(json!({"event": "e"})),
        ),
        (
            Method::POST,
            format!("{client}/rooms"),
            Some(json!({"rooms": ["a"]})),
        ),
        (Method::GET, format!("/notifications/{uuid}"), None),
        (Method::DELETE, format!("/notifications/{uuid}"), None),
    ] {
        let mut call = gateway.call(method, &path);
        if let Some(body) = body {
            call = call.json(&body);
        }
        gateway.send(call).await.problem(404, "not_found");
    }
}

/// protocol.md 10.10.
#[tokio::test]
async fn a_broadcast_leaves_out_the_excluded_clients() {
    let gateway = TestGateway::new().await;
    let path = "/socket/websocket/broadcast";
    gateway
        .send(
            gateway
                .call(Method::POST, path)
                .json(&json!({"event": "e", "exclude": ["abc", "xyz", "a-uuid"]})),
        )
        .await
        .ok(202);
    let dispatch = gateway.others.published.lock().remove(0);
    let excluded: Vec<&str> = dispatch.exclude.iter().map(Id::as_str).collect();
    assert_eq!(excluded, ["abc", "xyz"]);
    let foreign = dispatch.exclude_foreign.iter().map(AnyId::as_str);
    assert_eq!(foreign.collect::<Vec<_>>(), ["a-uuid"]);
    let nobody = gateway
        .call(Method::POST, path)
        .json(&json!({"event": "e", "exclude": null}));
    gateway.send(nobody).await.ok(202);
    for exclude in [
        json!("abc"),
        json!(["a b"]),
        json!(["x".repeat(65)]),
        json!([1]),
        json!(vec!["a"; 1001]),
    ] {
        gateway
            .send(
                gateway
                    .call(Method::POST, path)
                    .json(&json!({"event": "e", "exclude": exclude})),
            )
            .await
            .problem(400, "invalid_body");
    }
    let only_broadcasts = gateway
        .call(Method::POST, "/socket/websocket/rooms/a/messages")
        .json(&json!({"event": "e", "exclude": ["abc"]}));
    let answer = gateway
        .send(only_broadcasts)
        .await
        .problem(400, "invalid_body");
    assert!(
        answer.body["detail"].as_str().unwrap().contains("exclude"),
        "{}",
        answer.text
    );
}

/// protocol.md 3.8 and 3.19.
#[tokio::test]
async fn event_names_of_the_gateway_are_refused() {
    let gateway = TestGateway::new().await;
    let ours = [
        name::NOTIFICATION_CREATED,
        name::NOTIFICATION_READ,
        name::NOTIFICATION_DELETED,
        name::NOTIFICATION_SYNCED,
        name::NOTIFICATION_SKIPPED,
        name::RESYNC,
        name::EXPIRING,
        name::REFRESHED,
    ];
    for event in RESERVED.into_iter().chain(ours) {
        for path in [
            "clients/abc/messages",
            "users/17/messages",
            "rooms/a/messages",
            "broadcast",
        ] {
            let call = gateway
                .call(Method::POST, &format!("/socket/websocket/{path}"))
                .json(&json!({"event": event}));
            gateway.send(call).await.problem(400, "reserved_event");
        }
    }
    assert!(gateway.published().is_empty());
    assert!(gateway.others.asked.lock().is_empty());
}

#[tokio::test]
async fn events_and_data_are_bounded() {
    let gateway = TestGateway::new().await;
    let post = |body: Value| {
        gateway.send(
            gateway
                .call(Method::POST, "/socket/websocket/users/17/messages")
                .json(&body),
        )
    };
    post(json!({"event": "e".repeat(128), "data": nested(100)}))
        .await
        .ok(202);
    post(json!({"event": "e".repeat(129)}))
        .await
        .problem(400, "invalid_body");
    post(json!({"event": "e", "data": nested(101)}))
        .await
        .problem(400, "invalid_body");
}

#[tokio::test]
async fn a_client_that_no_instance_holds_is_a_404_and_nothing_is_sent() {
    let gateway = TestGateway::new().await;
    gateway.others.answer(|_| Answers {
        replies: vec![("gateway-1".into(), Reply::Count { count: 0 })],
        missing: vec![],
    });
    let call = gateway
        .call(Method::POST, "/socket/websocket/clients/abc/messages")
        .json(&json!({"event": "e"}));
    gateway.send(call).await.problem(404, "not_found");
    assert!(gateway.published().is_empty());
}

#[tokio::test]
async fn a_message_that_cannot_reach_anyone_is_a_503() {
    let gateway = TestGateway::new().await;
    gateway
        .others
        .publishing_fails
        .store(true, Ordering::SeqCst);
    for path in ["users/17/messages", "rooms/a/messages", "broadcast"] {
        let call = gateway
            .call(Method::POST, &format!("/socket/websocket/{path}"))
            .json(&json!({"event": "e"}));
        gateway.send(call).await.problem(503, "bus_unavailable");
    }
}

//! The clients of the framework whose protocol this is, as it publishes them, against a gateway.

use serde_json::{Value, json};
use signal_tests::services;
use signal_tests::{Client, Gateway, Issuer};

use crate::dev::producers::run_node;

/// protocol.md 10.
#[tokio::test]
async fn the_emitter_of_the_framework_reaches_clients_users_rooms_and_everyone() {
    let Some(redis) = services::redis().await else {
        return;
    };
    let issuer = Issuer::start().await;
    let settings = Gateway::build().trust(&issuer).redis(redis.address());
    let gateway = settings.set("rooms.unmatched", "allow").start().await;
    let mut one = Client::open_encrypted(gateway.address(), &issuer.token("17")).await;
    let mut other = Client::open(gateway.address(), &issuer.token("17")).await;
    let mut stranger = Client::open(gateway.address(), &issuer.token("18")).await;
    let path = |client: &Client| format!("/socket/websocket/clients/{}/rooms", client.id());
    for client in [&one, &stranger] {
        let rooms = Some(json!({"rooms": ["room-1"]}));
        let root = crate::admin(&issuer);
        let answer = gateway.rest("POST", &path(client), &root, rooms).await;
        answer.expect(200);
    }
    let arguments = [
        redis.address().port().to_string(),
        one.id().to_owned(),
        "17".into(),
        "room-1".into(),
        one.id().to_owned(),
    ];
    let text = include_str!("programs/emitter.mjs");
    let Some(()) = run_node("emitter.mjs", text, arguments.into()).await else {
        return;
    };
    let expected = [
        (
            &mut one,
            vec![("to:client", json!({"n": 1})), ("to:user", json!([2]))],
        ),
        (&mut other, vec![("to:user", json!([2]))]),
        (&mut stranger, vec![("to:room", json!("three"))]),
    ];
    for (client, mut messages) in expected {
        messages.extend([("to:all", Value::Null), ("without:data", Value::Null)]);
        for (event, data) in messages {
            let envelope = client.next_envelope().await;
            assert_eq!((envelope.event.as_str(), envelope.data), (event, data));
        }
    }
}

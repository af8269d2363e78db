//! The clauses of `docs/protocol.md` over a real socket; tokens have a module of their own.

use std::time::Duration;

use base64_simd::STANDARD;
use serde_json::{Value, json};
use signal_tests::client::{made_at, worker_of};
use signal_tests::raw::{Frame, opcode};
use signal_tests::wait::{LIMIT, now_secs, until};
use signal_tests::{Client, KeyMember, Raw};
use tokio::time::Instant;

use crate::Stage;

fn closed(code: u16, reason: &str) -> (u16, String) {
    (code, reason.into())
}

/// Shows that the connection is open and that nothing came before: what this sends to the client must come next.
async fn expect_quiet(stage: &Stage, client: &mut Client) {
    stage.send_to_client(client.id(), "marker").await;
    let before = client.all_before("marker").await;
    assert!(before.is_empty(), "{before:?}");
}

/// protocol.md 2.3.
#[tokio::test]
async fn text_that_is_not_json_is_answered_and_the_connection_stays_open() {
    let stage = Stage::new().await;
    let mut client = stage.connect().await;
    for text in ["", "hello", "{", "[1,2", "{\"event\":}"] {
        client.send_text(text).await;
        assert_eq!(
            client.expect_error().await,
            "Invalid message format",
            "{text:?}"
        );
    }
    client
        .authenticate(&stage.issuer.token("17"), KeyMember::None)
        .await;
    client.send_text("not json").await;
    assert_eq!(client.expect_error().await, "Invalid message format");
    expect_quiet(&stage, &mut client).await;
}

/// protocol.md 2.4.
#[tokio::test]
async fn json_without_an_event_is_dropped_without_an_answer() {
    let stage = Stage::new().await;
    let mut client = stage.client("17").await;
    for text in [
        "{}",
        r#"{"event":""}"#,
        r#"{"data":1}"#,
        r#"{"event":null}"#,
        r#"{"event":5}"#,
        "[]",
        "7",
        "null",
    ] {
        client.send_text(text).await;
    }
    expect_quiet(&stage, &mut client).await;
}

/// protocol.md 2.5.
#[tokio::test]
async fn any_event_but_authenticate_and_heartbeat_needs_authentication() {
    let stage = Stage::new().await;
    let mut client = stage.connect().await;
    for event in [
        "join",
        "leave",
        "chat",
        "notification:sync",
        "encrypted",
        "disconnect",
        "connected",
    ] {
        client.send(event, json!({"rooms": ["ws-default"]})).await;
        assert_eq!(client.expect_error().await, "Not authenticated", "{event}");
    }
    client.send("heartbeat", Value::Null).await;
    client
        .authenticate(&stage.issuer.token("17"), KeyMember::None)
        .await;
    expect_quiet(&stage, &mut client).await;
}

/// protocol.md 2.6.
#[tokio::test]
async fn authenticate_is_taken_once() {
    let stage = Stage::new().await;
    let mut client = stage.client("17").await;
    client
        .send_authenticate(&stage.issuer.token("17"), KeyMember::None)
        .await;
    assert_eq!(client.expect_error().await, "Already authenticated");

    let mut hasty = stage.connect().await;
    hasty
        .send_authenticate(&stage.issuer.token("17"), KeyMember::None)
        .await;
    hasty
        .send_authenticate(&stage.issuer.token("18"), KeyMember::None)
        .await;
    hasty
        .expect_where("the error", |envelope| {
            envelope.data["message"] == "Already authenticated"
        })
        .await;
    assert_eq!(hasty.expect("connected").await.data["userId"], "17");
}

/// protocol.md 1.5.
#[tokio::test]
async fn a_binary_frame_is_read_as_text() {
    let stage = Stage::new().await;
    let mut client = stage.connect().await;
    let authenticate = json!({"event": "authenticate", "data": {"type": "Bearer", "token": stage.issuer.token("17")}});
    client
        .send_binary(authenticate.to_string().as_bytes())
        .await;
    assert_eq!(client.expect("connected").await.data["userId"], "17");
    client.send_binary(b"hello").await;
    assert_eq!(client.expect_error().await, "Invalid message format");
}

/// protocol.md 1.4 and 7.5.
#[tokio::test]
async fn a_message_longer_than_the_limit_closes_with_1009() {
    let stage = Stage::with(|settings| settings.live("limits.frame_bytes", 2000)).await;
    let mut client = stage.client("17").await;
    client.send("chat", json!("x".repeat(1900))).await;
    expect_quiet(&stage, &mut client).await;
    client.send("chat", json!("x".repeat(2000))).await;
    assert_eq!(client.expect_closed().await.0, 1009);
}

/// protocol.md 3.2 and 4.6.
#[tokio::test]
async fn connected_names_the_connection_its_user_and_the_time() {
    let stage = Stage::new().await;
    let mut client = stage.connect().await;
    let connected = client
        .authenticate(&stage.issuer.token("17"), KeyMember::None)
        .await;
    assert_eq!(connected.user_id, "17");
    assert!(
        (1..=12).contains(&connected.id.len())
            && connected.id.bytes().all(|b| b.is_ascii_alphanumeric()),
        "{}",
        connected.id
    );
    let time = connected.data["time"].as_str().unwrap();
    assert!(
        time.len() >= 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
        "{time}"
    );
    assert!(
        connected
            .data
            .get("serverPublicKey")
            .is_none_or(Value::is_null),
        "no key was asked for"
    );
    assert!(connected.data.get("salt").is_none_or(Value::is_null));
    let other = stage.client("17").await;
    assert_ne!(other.id(), connected.id);
}

/// protocol.md 11.1 and 11.5.
#[tokio::test]
async fn ids_are_snowflakes_of_the_first_worker() {
    let stage = Stage::new().await;
    let client = stage.client("17").await;
    assert_eq!(worker_of(client.id()), 9);
    assert!(
        (made_at(client.id()) - now_secs()).abs() < 60,
        "{}",
        client.id()
    );
}

/// protocol.md 3.1 and 6.5.
#[tokio::test]
async fn both_names_of_the_client_key_lead_to_sealed_events() {
    let stage = Stage::new().await;
    for key in [KeyMember::ClientPublicKey, KeyMember::PublicKey] {
        let mut client = stage.connect().await;
        let connected = client.authenticate(&stage.issuer.token("17"), key).await;
        assert!(client.is_encrypted(), "{:?}", connected.data);
        stage.send_to_client(client.id(), "hello").await;
        let hello = client.next_envelope().await;
        assert!(hello.sealed);
        assert_eq!(
            (hello.event.as_str(), &hello.data),
            ("hello", &json!({"of": "hello"}))
        );
        client.send_text("not json").await;
        let error = client.next_envelope().await;
        assert!(
            error.sealed && error.event == "error",
            "errors are sealed too: {error:?}"
        );
    }
}

/// protocol.md 6.2.
#[tokio::test]
async fn every_connection_has_its_own_server_key_and_salt() {
    let stage = Stage::new().await;
    let (mut one, mut two) = (stage.connect().await, stage.connect().await);
    let one = one
        .authenticate(&stage.issuer.token("17"), KeyMember::ClientPublicKey)
        .await
        .data;
    let two = two
        .authenticate(&stage.issuer.token("17"), KeyMember::ClientPublicKey)
        .await
        .data;
    assert_ne!(one["serverPublicKey"], two["serverPublicKey"]);
    assert_ne!(one["salt"], two["salt"]);
}

/// protocol.md 6.6.
#[tokio::test]
async fn an_encrypted_connection_takes_clear_and_sealed_frames_by_default() {
    let stage = Stage::new().await;
    stage.policies.join("17", "Merchant_42").await.unwrap();
    stage.policies.join("17", "Merchant_43").await.unwrap();
    let mut client = stage.encrypted("17").await;
    client.send("join", json!({"rooms": ["merchant:42"]})).await;
    client
        .send_sealed("join", json!({"rooms": ["merchant:43"]}))
        .await;
    for room in ["merchant:42", "merchant:43"] {
        expect_member(&stage, &client, room, true).await;
        stage.send_to_room(room, room).await;
        assert!(client.expect(room).await.sealed);
    }
}

/// protocol.md 6.6.
#[tokio::test]
async fn where_sealed_frames_are_demanded_clear_ones_are_refused_and_heartbeat_is_not() {
    let stage = Stage::with(|settings| settings.set("encryption.client_frames", "encrypted")).await;
    stage.policies.join("17", "Merchant_42").await.unwrap();
    let mut client = stage.encrypted("17").await;
    client.send("heartbeat", Value::Null).await;
    client.send("join", json!({"rooms": ["merchant:42"]})).await;
    assert_eq!(client.expect_error().await, "Encryption required");
    expect_member(&stage, &client, "merchant:42", false).await;
    client
        .send_sealed("join", json!({"rooms": ["merchant:42"]}))
        .await;
    expect_member(&stage, &client, "merchant:42", true).await;
}

/// protocol.md 6.9.
#[tokio::test]
async fn a_sealed_frame_that_was_tampered_with_changes_nothing_and_harms_nobody() {
    let stage = Stage::new().await;
    stage.policies.join("17", "Merchant_42").await.unwrap();
    let mut client = stage.encrypted("17").await;
    let inner = json!({"event": "join", "data": {"rooms": ["merchant:42"]}}).to_string();
    let mut sealed = client.seal(inner.as_bytes());
    let mut ct = STANDARD
        .decode_to_vec(sealed["ct"].as_str().unwrap())
        .unwrap();
    ct[0] ^= 1;
    sealed["ct"] = STANDARD.encode_to_string(ct).into();
    for bad in [
        sealed,
        json!({}),
        json!({"iv": "AAAA", "ct": "AAAA"}),
        json!({"iv": 1, "ct": 2}),
        json!("x"),
    ] {
        client.send("encrypted", bad).await;
    }
    client
        .send_sealed("leave", json!({"rooms": ["ws-default"]}))
        .await;
    expect_member(&stage, &client, "ws-default", false).await;
    expect_member(&stage, &client, "merchant:42", false).await;
}

/// protocol.md 6.8 and 7.10.
#[tokio::test]
async fn required_encryption_refuses_a_client_without_a_key() {
    let stage = Stage::with(|settings| settings.set("encryption.mode", "required")).await;
    let mut client = stage.connect().await;
    client
        .send_authenticate(&stage.issuer.token("17"), KeyMember::None)
        .await;
    assert_eq!(client.expect_error().await, "Encryption handshake failed");
    assert_eq!(
        client.expect_closed().await,
        closed(4004, "Encryption required")
    );
    assert!(stage.encrypted("17").await.is_encrypted());
}

/// protocol.md 6.8.
#[tokio::test]
async fn a_key_that_is_present_but_unusable_never_leads_to_an_open_session() {
    let stage = Stage::new().await;
    let not_on_the_curve = STANDARD.encode_to_string([[4].as_slice(), &[1; 64]].concat());
    let compressed = STANDARD.encode_to_string([[2].as_slice(), &[1; 32]].concat());
    for key in [
        json!(""),
        json!("%%%"),
        json!("AAAA"),
        json!(7),
        json!({}),
        json!(not_on_the_curve),
        json!(compressed),
    ] {
        for member in ["clientPublicKey", "publicKey"] {
            let mut client = stage.connect().await;
            let mut data = json!({"type": "Bearer", "token": stage.issuer.token("17")});
            data[member] = key.clone();
            client.send("authenticate", data).await;
            let error = client.next_envelope().await;
            assert_eq!(
                error.data["message"], "Encryption handshake failed",
                "{member} = {key}: {error:?}"
            );
            assert_eq!(
                client.expect_closed().await,
                closed(4004, "Encryption required"),
                "{member} = {key}"
            );
        }
    }
}

/// protocol.md 6.7.
#[tokio::test]
async fn disabled_encryption_ignores_the_key() {
    let stage = Stage::with(|settings| settings.set("encryption.mode", "disabled")).await;
    let mut client = stage.connect().await;
    let connected = client
        .authenticate(&stage.issuer.token("17"), KeyMember::ClientPublicKey)
        .await;
    assert!(!client.is_encrypted(), "{:?}", connected.data);
    stage.send_to_client(client.id(), "hello").await;
    assert!(!client.expect("hello").await.sealed);
}

/// protocol.md 4.6.
#[tokio::test]
async fn a_connection_is_in_its_own_room_and_the_default_rooms() {
    let stage = Stage::new().await;
    let mut client = stage.client("17").await;
    let own = client.id().to_owned();
    for room in ["ws-default", "ws-notification", &own] {
        stage.send_to_room(room, "hello").await;
        assert_eq!(client.next_envelope().await.event, "hello", "{room}");
    }
}

/// protocol.md 5.1 and 5.2.
#[tokio::test]
async fn join_drops_names_that_are_not_for_joining_and_asks_the_rules_for_the_rest() {
    let stage = Stage::new().await;
    stage.policies.join("17", "Merchant_42").await.unwrap();
    stage.policies.join("17", "Organizer_7").await.unwrap();
    let mut client = stage.client("17").await;
    let other = stage.client("18").await;
    let long = "x".repeat(257);
    let rooms = json!([
        "merchant:42",
        "merchant:43",
        "organizer:7",
        "organizer:8",
        "user:17",
        "user:18",
        "ws:room:x",
        "ws:",
        "",
        5,
        null,
        {},
        long,
        "lobby",
        other.id()
    ]);
    client.send("join", json!({"rooms": rooms})).await;
    for room in ["merchant:42", "organizer:7", "user:17"] {
        expect_member(&stage, &client, room, true).await;
    }
    let mut listed = rooms_of(&stage, &client).await;
    listed.sort();
    assert_eq!(
        listed,
        [
            "merchant:42",
            "organizer:7",
            "user:17",
            "ws-default",
            "ws-notification"
        ]
    );

    for malformed in [
        json!(null),
        json!({}),
        json!({"rooms": "merchant:42"}),
        json!({"rooms": {}}),
        json!([]),
    ] {
        client.send("join", malformed.clone()).await;
        client.send("leave", malformed).await;
    }
    client
        .send(
            "leave",
            json!({"rooms": ["merchant:42", "ws-default", "organizer:8"]}),
        )
        .await;
    expect_member(&stage, &client, "merchant:42", false).await;
    expect_member(&stage, &client, "ws-default", false).await;
    client.send("join", json!({"rooms": ["ws-default"]})).await;
    expect_member(&stage, &client, "ws-default", true).await;
}

/// authorization.md 5.6.
#[tokio::test]
async fn rooms_that_no_rule_knows_are_joined_where_the_deployment_says_so() {
    let stage = Stage::with(|settings| settings.set("rooms.unmatched", "allow")).await;
    let mut client = stage.client("17").await;
    client
        .send("join", json!({"rooms": ["lobby", "merchant:42"]}))
        .await;
    expect_member(&stage, &client, "lobby", true).await;
    expect_member(&stage, &client, "merchant:42", false).await;
}

/// protocol.md 5.5.
#[tokio::test]
async fn a_lost_right_takes_the_connection_out_of_the_room_in_time_and_one_gained_lets_it_in_again()
{
    const CACHE_SECS: i64 = 6;
    let stage = Stage::with(|settings| settings.set("policy.cache_secs", CACHE_SECS)).await;
    for domain in ["Merchant_42", "Organizer_7"] {
        stage.policies.join("17", domain).await.unwrap();
    }
    let mut client = stage.client("17").await;
    client
        .send("join", json!({"rooms": ["merchant:42", "organizer:7"]}))
        .await;
    expect_member(&stage, &client, "merchant:42", true).await;
    stage.policies.leave("17", "Merchant_42").await.unwrap();
    let begun = Instant::now();
    loop {
        // A list that still has it was asked for in time: however long its answer takes, the room was there then.
        let asked = begun.elapsed();
        let rooms = rooms_of(&stage, &client).await;
        if !rooms.iter().any(|room| room == "merchant:42") {
            break;
        }
        let limit = Duration::from_secs(CACHE_SECS as u64 + 1);
        assert!(asked < limit, "{asked:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    expect_member(&stage, &client, "organizer:7", true).await;
    stage.send_to_room("merchant:42", "not for it").await;
    stage.send_to_room("organizer:7", "for it").await;
    assert_eq!(client.next_envelope().await.event, "for it");
    client.send("join", json!({"rooms": ["merchant:42"]})).await;
    stage.send_to_client(client.id(), "after the join").await;
    client.expect("after the join").await;
    expect_member(&stage, &client, "merchant:42", false).await;

    stage.policies.join("17", "Merchant_42").await.unwrap();
    let begun = Instant::now();
    while !rooms_of(&stage, &client)
        .await
        .iter()
        .any(|room| room == "merchant:42")
    {
        assert!(
            begun.elapsed() < LIMIT,
            "the right is there again, and the connection is not let in"
        );
        client.send("join", json!({"rooms": ["merchant:42"]})).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// protocol.md 4.1 and 7.7.
#[tokio::test]
async fn without_authenticate_the_connection_is_closed_with_4001() {
    let stage = Stage::with(|settings| settings.set("auth.connect_timeout_ms", 3000)).await;
    let begun = Instant::now();
    let mut client = stage.connect().await;
    client.send("heartbeat", Value::Null).await;
    assert_eq!(
        client.expect_closed().await,
        closed(4001, "Authentication timeout")
    );
    assert!(
        begun.elapsed() >= Duration::from_millis(2950),
        "{:?}",
        begun.elapsed()
    );
    let mut prompt = stage.client("17").await;
    tokio::time::sleep(Duration::from_millis(3200)).await;
    expect_quiet(&stage, &mut prompt).await;
}

/// protocol.md 4.12 and 7.8.
#[tokio::test]
async fn a_silent_peer_is_closed_with_4002_and_a_pong_is_a_sign_of_life() {
    let quick = |settings: signal_tests::gateway::Builder| {
        settings
            .set("heartbeat.ping_interval_ms", 200)
            .set("heartbeat.timeout_ms", 3000)
            .set("heartbeat.sweep_interval_ms", 200)
    };
    let stage = Stage::with(quick).await;
    let mut living = stage.client("17").await;

    let mut dead = Raw::upgrade(stage.gateway.address()).await;
    let authenticate = json!({"event": "authenticate", "data": {"type": "Bearer", "token": stage.issuer.token("18")}}).to_string();
    dead.send_frame(&Frame::new(opcode::TEXT, authenticate))
        .await;
    let reading = tokio::spawn(async move {
        let mut pings = 0;
        loop {
            let frame = dead
                .read_frame()
                .await
                .expect("a Close frame before the end");
            match frame.opcode {
                opcode::PING => pings += 1,
                opcode::CLOSE => return (pings, frame.payload),
                _ => {}
            }
        }
    });
    // Reading answers pings; nothing is sent to this client, so that the wait runs out while it lives.
    let until_dead = async {
        let idle = tokio::time::timeout(Duration::from_millis(4500), living.next()).await;
        assert!(idle.is_err(), "{idle:?}");
    };
    let (reading, ()) = tokio::join!(reading, until_dead);
    let (pings, payload) = reading.unwrap();
    assert!(pings >= 2, "{pings} pings");
    assert_eq!(
        payload,
        [&4002u16.to_be_bytes()[..], b"Heartbeat timeout"].concat()
    );
    expect_quiet(&stage, &mut living).await;
}

/// protocol.md 3.5.
#[tokio::test]
async fn the_heartbeat_event_keeps_a_connection_alive_and_has_no_answer() {
    let quick = |settings: signal_tests::gateway::Builder| {
        settings
            .set("heartbeat.ping_interval_ms", 0)
            .set("heartbeat.timeout_ms", 3000)
            .set("heartbeat.sweep_interval_ms", 100)
    };
    let stage = Stage::with(quick).await;
    let (mut beating, mut silent) = (stage.client("17").await, stage.client("18").await);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(4500) {
        beating.send("heartbeat", Value::Null).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(
        silent.expect_closed().await,
        closed(4002, "Heartbeat timeout")
    );
    expect_quiet(&stage, &mut beating).await;
}

/// protocol.md 7.1 and 7.17.
#[tokio::test]
async fn a_close_of_the_client_is_answered_with_its_code_and_reason() {
    let stage = Stage::new().await;
    let mut raw = Raw::upgrade(stage.gateway.address()).await;
    raw.send_frame(&Frame::close(4321, "bye")).await;
    assert_eq!(raw.read_close().await, Some((4321, "bye".into())));
    raw.expect_end(Duration::from_secs(5)).await;
}

/// protocol.md 2.8.
#[tokio::test]
async fn events_of_the_application_are_taken_without_an_answer() {
    let stage = Stage::new().await;
    let mut client = stage.client("17").await;
    client
        .send("chat:message", json!({"text": "xin chào"}))
        .await;
    client
        .send_text(r#"{"event":"with-id","id":"m1","data":null,"more":1}"#)
        .await;
    expect_quiet(&stage, &mut client).await;
}

/// protocol.md 8.1.
#[tokio::test]
async fn messages_to_one_connection_arrive_in_the_order_they_were_sent() {
    let stage = Stage::new().await;
    let mut client = stage.encrypted("17").await;
    let path = format!("/socket/websocket/clients/{}/messages", client.id());
    let token = crate::admin(&stage.issuer);
    for n in 0..50 {
        stage
            .gateway
            .rest(
                "POST",
                &path,
                &token,
                Some(json!({"event": "n", "data": n})),
            )
            .await
            .expect(202);
    }
    for n in 0..50 {
        assert_eq!(client.next_envelope().await.data, json!(n));
    }
}

#[tokio::test]
async fn a_client_that_goes_without_a_word_is_forgotten() {
    let stage = Stage::new().await;
    let client = stage.client("17").await;
    let id = client.id().to_owned();
    drop(client);
    until("the client is forgotten", || async {
        let answer = stage
            .gateway
            .rest(
                "GET",
                &format!("/socket/websocket/clients/{id}"),
                &crate::admin(&stage.issuer),
                None,
            )
            .await;
        (answer.status == 404).then_some(())
    })
    .await;
    let mut other = stage.client("17").await;
    other.send("heartbeat", Value::Null).await;
    expect_quiet(&stage, &mut other).await;
}

async fn rooms_of(stage: &Stage, client: &Client) -> Vec<String> {
    let path = format!("/socket/websocket/clients/{}", client.id());
    let answer = stage
        .gateway
        .rest("GET", &path, &crate::admin(&stage.issuer), None)
        .await
        .expect(200)
        .json();
    let rooms = answer["rooms"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"));
    rooms
        .iter()
        .filter_map(Value::as_str)
        .filter(|room| *room != client.id())
        .map(str::to_owned)
        .collect()
}

async fn expect_member(stage: &Stage, client: &Client, room: &str, member: bool) {
    let what = format!(
        "{} is {}in {room}",
        client.id(),
        if member { "" } else { "not " }
    );
    until(&what, || async {
        (rooms_of(stage, client)
            .await
            .iter()
            .any(|name| name == room)
            == member)
            .then_some(())
    })
    .await;
}

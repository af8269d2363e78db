//! Two gateways and one Redis: a message reaches its clients on either gateway, whichever publishes it.

use serde_json::{Value, json};
use signal_services::{REDIS_PROGRAM, Redis};
use signal_tests::services::{self, Own};
use signal_tests::wait::until;
use signal_tests::{Client, Emitter, Gateway, Issuer, Proxy};

use crate::admin;

struct Pair {
    issuer: Issuer,
    redis: Own,
    gateways: Vec<Gateway>,
    emitter: Emitter,
}

impl Pair {
    async fn start() -> Option<Self> {
        let redis = services::redis().await?;
        let issuer = Issuer::start().await;
        let settings = Gateway::build()
            .trust(&issuer)
            .redis(redis.address())
            .set("rooms.unmatched", "allow");
        // Each instance has its own inbox file: nothing but Redis is between them.
        let gateways = settings.start_many(2).await;
        let emitter = Emitter::connect(redis.address())
            .await
            .expect("Redis answers");
        Some(Self {
            issuer,
            redis,
            gateways,
            emitter,
        })
    }

    async fn client(&self, gateway: usize, user: &str) -> Client {
        Client::open_encrypted(self.gateways[gateway].address(), &self.issuer.token(user)).await
    }

    async fn rest(
        &self,
        gateway: usize,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> signal_tests::rest::Answer {
        self.gateways[gateway]
            .rest(method, path, &admin(&self.issuer), body)
            .await
    }

    /// Shows that nothing came to these clients before: a marker to everyone must be next.
    async fn expect_quiet(&mut self, clients: &mut [&mut Client]) {
        self.emitter
            .broadcast("marker", json!({}), &[])
            .await
            .expect("Redis answers");
        for client in clients {
            let before = client.all_before("marker").await;
            assert!(before.is_empty(), "{before:?}");
        }
    }
}

async fn join(client: &mut Client, room: &str) {
    client.send_sealed("join", json!({"rooms": [room]})).await;
}

/// Waits until a room has so many members over all instances.
async fn expect_members(pair: &Pair, room: &str, count: usize) {
    until(&format!("{count} members of {room}"), || async {
        let list = pair
            .rest(
                0,
                "GET",
                &format!("/socket/websocket/clients?room={room}"),
                None,
            )
            .await
            .expect(200)
            .json();
        (list["data"].as_array()?.len() == count).then_some(())
    })
    .await;
}

/// protocol.md 10.2, 10.3, 10.4, 10.5 and 10.6.
#[tokio::test]
async fn an_emitter_reaches_a_client_a_user_a_room_and_everyone_on_either_gateway() {
    let Some(mut pair) = Pair::start().await else {
        return;
    };
    let (mut a, mut b, mut c) = (
        pair.client(0, "17").await,
        pair.client(1, "17").await,
        pair.client(1, "18").await,
    );
    // Published the moment `connected` has come: the subscriptions are there already.
    assert_eq!(
        pair.emitter
            .to_client(b.id(), "to-client", json!({"n": 1}))
            .await
            .unwrap(),
        1,
        "the owner alone subscribes"
    );
    let got = b.next_envelope().await;
    assert_eq!(
        (got.event.as_str(), &got.data, got.sealed),
        ("to-client", &json!({"n": 1}), true)
    );

    assert_eq!(
        pair.emitter
            .to_user("17", "to-user", json!(null))
            .await
            .unwrap(),
        2,
        "both hold a connection of 17"
    );
    assert_eq!(
        (a.next_envelope().await.event, b.next_envelope().await.event),
        ("to-user".into(), "to-user".into())
    );

    join(&mut a, "lobby").await;
    join(&mut c, "lobby").await;
    expect_members(&pair, "lobby", 2).await;
    pair.emitter
        .to_room("lobby", "to-room", json!([1, 2]), &[c.id()])
        .await
        .unwrap();
    assert_eq!(a.next_envelope().await.event, "to-room");
    pair.emitter
        .broadcast("to-all", json!("x"), &[b.id()])
        .await
        .unwrap();
    assert_eq!(
        (a.next_envelope().await.event, c.next_envelope().await.event),
        ("to-all".into(), "to-all".into())
    );
    pair.expect_quiet(&mut [&mut a, &mut b, &mut c]).await;
}

#[tokio::test]
async fn a_thousand_messages_at_once_are_all_opened_in_the_order_they_were_sent() {
    const COUNT: usize = 1000;
    let Some(pair) = Pair::start().await else {
        return;
    };
    let mut client = pair.client(1, "17").await;
    let (id, mut emitter) = (client.id().to_owned(), pair.emitter);
    let sending = async {
        for n in 0..COUNT {
            // One connection of one user: every way leads to it, and all ways keep one order.
            let sent = match n % 4 {
                0 => emitter.to_client(&id, "n", json!(n)).await,
                1 => emitter.to_user("17", "n", json!(n)).await,
                2 => emitter.to_room("ws-default", "n", json!(n), &[]).await,
                _ => emitter.broadcast("n", json!(n), &[]).await,
            };
            sent.expect("Redis answers");
        }
    };
    let reading = async {
        for n in 0..COUNT {
            let envelope = client.next_envelope().await;
            assert!(envelope.sealed, "{envelope:?}");
            assert_eq!(envelope.data, json!(n));
        }
    };
    tokio::join!(sending, reading);
}

/// protocol.md 10.11.
#[tokio::test]
async fn the_default_rooms_and_the_own_id_are_rooms_for_an_emitter_too() {
    let Some(mut pair) = Pair::start().await else {
        return;
    };
    let (mut a, mut b) = (pair.client(0, "17").await, pair.client(1, "18").await);
    for room in ["ws-default", "ws-notification"] {
        pair.emitter
            .to_room(room, room, json!({}), &[])
            .await
            .unwrap();
        assert_eq!(
            (a.next_envelope().await.event, b.next_envelope().await.event),
            (room.into(), room.into())
        );
    }
    pair.emitter
        .to_room(b.id(), "own-id", json!({}), &[])
        .await
        .unwrap();
    assert_eq!(b.next_envelope().await.event, "own-id");
    pair.expect_quiet(&mut [&mut a, &mut b]).await;
}

/// protocol.md 10.8.
#[tokio::test]
async fn payloads_that_are_not_messages_are_dropped() {
    let Some(mut pair) = Pair::start().await else {
        return;
    };
    let mut client = pair.client(0, "17").await;
    for bad in [
        "",
        "not json",
        "[]",
        "7",
        "{}",
        r#"{"type":"broadcast","event":"no-server","data":1}"#,
        r#"{"serverId":"emitter","type":"broadcast","data":1}"#,
        r#"{"serverId":7,"type":"broadcast","event":"bad","data":1}"#,
        r#"{"serverId":"emitter","type":"broadcast","event":{},"data":1}"#,
        r#"{"serverId":"emitter","event":"no-type","data":1}"#,
        r#"{"serverId":"emitter","type":"everyone","event":"unknown-type","data":1}"#,
        r#"{"serverId":"emitter","type":"room","event":"no-target","data":1}"#,
    ] {
        pair.emitter.raw("ws:broadcast", bad).await.unwrap();
    }
    pair.expect_quiet(&mut [&mut client]).await;
    let text = r#"{"data":{"deep":[1,{"x":null}]},"event":"no-exclude","type":"broadcast","serverId":"emitter","more":true}"#;
    pair.emitter.raw("ws:broadcast", text).await.unwrap();
    assert_eq!(
        client.next_envelope().await.data,
        json!({"deep": [1, {"x": null}]})
    );
}

/// protocol.md 7.13.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn rest_on_one_gateway_lists_reaches_and_disconnects_clients_of_the_other() {
    let Some(pair) = Pair::start().await else {
        return;
    };
    let (mut a, mut b) = (pair.client(0, "17").await, pair.client(1, "18").await);
    let list = pair
        .rest(0, "GET", "/socket/websocket/clients", None)
        .await
        .expect(200)
        .json();
    let mut holders: Vec<(&str, &str)> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["id"].as_str().unwrap(), c["instance"].as_str().unwrap()))
        .collect();
    holders.sort_unstable();
    let mut want = [(a.id(), "gateway-0"), (b.id(), "gateway-1")];
    want.sort_unstable();
    assert_eq!(holders, want, "{list}");
    let of_user = pair
        .rest(0, "GET", "/socket/websocket/clients?userId=18", None)
        .await
        .expect(200)
        .json();
    assert_eq!(of_user["data"][0]["id"], b.id());
    let one = pair
        .rest(
            0,
            "GET",
            &format!("/socket/websocket/clients/{}", b.id()),
            None,
        )
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&one["userId"], &one["encrypted"]),
        (&json!("18"), &json!(true))
    );

    let message = |event: &str| Some(json!({"event": event, "data": {"n": 1}}));
    let path = format!("/socket/websocket/clients/{}", b.id());
    pair.rest(0, "POST", &format!("{path}/messages"), message("direct"))
        .await
        .expect(202);
    assert_eq!(b.next_envelope().await.event, "direct");
    pair.rest(
        0,
        "POST",
        &format!("{path}/rooms"),
        Some(json!({"rooms": ["vip"]})),
    )
    .await
    .expect(200);
    pair.rest(
        0,
        "POST",
        "/socket/websocket/rooms/vip/messages",
        message("to-room"),
    )
    .await
    .expect(202);
    assert_eq!(b.next_envelope().await.event, "to-room");
    pair.rest(
        0,
        "DELETE",
        &format!("{path}/rooms"),
        Some(json!({"rooms": ["vip"]})),
    )
    .await
    .expect(200);
    let exclude = Some(json!({"event": "to-all", "data": null, "exclude": [b.id()]}));
    pair.rest(1, "POST", "/socket/websocket/broadcast", exclude)
        .await
        .expect(202);
    assert_eq!(a.next_envelope().await.event, "to-all");
    pair.rest(
        0,
        "POST",
        "/socket/websocket/users/18/messages",
        message("to-user"),
    )
    .await
    .expect(202);
    assert_eq!(
        b.next_envelope().await.event,
        "to-user",
        "neither the broadcast nor the room it left came before"
    );

    pair.rest(0, "DELETE", &path, None).await.expect(200);
    assert_eq!(
        b.expect_closed().await,
        (4007, "Disconnected by administrator".into())
    );
    until("nobody holds it", || async {
        (pair.rest(0, "GET", &path, None).await.status == 404).then_some(())
    })
    .await;
    pair.rest(0, "POST", &format!("{path}/messages"), message("late"))
        .await
        .expect(404);

    let mut c = pair.client(1, "17").await;
    pair.rest(1, "DELETE", "/socket/websocket/users/17/clients", None)
        .await
        .expect(200);
    assert_eq!(a.expect_closed().await.0, 4007);
    assert_eq!(c.expect_closed().await.0, 4007);
}

#[tokio::test]
async fn an_instance_that_does_not_answer_is_named() {
    let Some(pair) = Pair::start().await else {
        return;
    };
    let client = pair.client(0, "17").await;
    pair.gateways[1].signal("STOP");
    let list = pair
        .rest(0, "GET", "/socket/websocket/clients", None)
        .await
        .expect(200)
        .json();
    pair.gateways[1].signal("CONT");
    assert_eq!(list["data"][0]["id"], client.id());
    assert_eq!(list["missing"], json!(["gateway-1"]), "{list}");
}

/// protocol.md 3.12 and 8.4.
#[tokio::test]
async fn after_a_restart_of_redis_everyone_is_told_to_resync_and_messages_flow_again() {
    let Some(pair) = Pair::start().await else {
        return;
    };
    let (mut a, mut b) = (pair.client(0, "17").await, pair.client(1, "18").await);
    join(&mut a, "lobby").await;
    join(&mut b, "lobby").await;
    expect_members(&pair, "lobby", 2).await;
    pair.redis.kill().await;
    for gateway in &pair.gateways {
        gateway.expect_readiness(503).await;
    }
    // Local delivery goes on, and so does the process.
    let path = format!("/socket/websocket/clients/{}/messages", a.id());
    pair.rest(
        0,
        "POST",
        &path,
        Some(json!({"event": "local", "data": null})),
    )
    .await
    .expect(202);
    assert_eq!(a.next_envelope().await.event, "local");
    pair.gateways[0].admin("GET", "/livez").await.expect(200);
    pair.redis.restart().await;
    assert!(a.expect("resync").await.data["reason"].is_string());
    b.expect("resync").await;
    for gateway in &pair.gateways {
        gateway.expect_ready().await;
    }
    let mut emitter = Emitter::connect(pair.redis.address()).await.unwrap();
    emitter
        .to_room("lobby", "after", json!({}), &[])
        .await
        .unwrap();
    a.expect("after").await;
    b.expect("after").await;
    emitter
        .to_client(b.id(), "to-client", json!({}))
        .await
        .unwrap();
    b.expect("to-client").await;
}

#[tokio::test]
async fn a_gateway_with_a_stalled_subscriber_notices_and_repairs_itself() {
    let Some(redis) = services::redis().await else {
        return;
    };
    let proxy = Proxy::to(redis.address()).await;
    let issuer = Issuer::start().await;
    let settings = Gateway::build().trust(&issuer).redis(proxy.address());
    let gateway = settings.start().await;
    let mut client = Client::open(gateway.address(), &issuer.token("17")).await;
    // The connection stays up and no byte comes: only a message of one's own that does not return shows it.
    proxy.stall();
    gateway.expect_readiness(503).await;
    gateway.admin("GET", "/livez").await.expect(200);
    proxy.restore();
    gateway.expect_ready().await;
    client.expect("resync").await;
    let mut emitter = Emitter::connect(redis.address()).await.unwrap();
    emitter
        .to_client(client.id(), "after", json!({}))
        .await
        .unwrap();
    client.expect("after").await;
}

/// protocol.md 9.11.
#[tokio::test]
async fn a_client_is_told_to_sync_when_redis_confirms_its_subscriptions_late() {
    let Some(redis) = services::redis().await else {
        return;
    };
    let proxy = Proxy::to(redis.address()).await;
    let issuer = Issuer::start().await;
    let settings = Gateway::build()
        .trust(&issuer)
        .redis(proxy.address())
        // What is stalled below is late, and nothing else: no connection is given up.
        .set("redis.stalled_after_ms", 60_000)
        .set("redis.command_timeout_ms", 20_000)
        .set("session.subscribe_timeout_ms", 2000);
    let gateway = settings.start().await;
    let mut early = Client::open(gateway.address(), &issuer.token("17")).await;
    proxy.stall();
    let mut late = Client::open(gateway.address(), &issuer.token("18")).await;
    proxy.restore();
    let told = late.expect("resync").await;
    assert_eq!(told.data["reason"], "subscribed_late");
    let mut emitter = Emitter::connect(redis.address()).await.unwrap();
    for client in [&mut early, &mut late] {
        emitter
            .to_client(client.id(), "after", json!({}))
            .await
            .unwrap();
    }
    late.expect("after").await;
    let before = early.all_before("after").await;
    assert!(
        before.iter().all(|envelope| envelope.event != "resync"),
        "nobody else is told to sync: {before:?}"
    );
}

/// protocol.md 4.7.
#[tokio::test]
async fn without_redis_a_gateway_connects_clients_at_once_and_tells_them_later() {
    let Some(redis) = services::redis().await else {
        return;
    };
    let issuer = Issuer::start().await;
    let settings = Gateway::build().trust(&issuer).redis(redis.address());
    let gateway = settings.start().await;
    redis.kill().await;
    let mut client = Client::open(gateway.address(), &issuer.token("17")).await;
    redis.restart().await;
    client.expect("resync").await;
    gateway.expect_ready().await;
    let mut emitter = Emitter::connect(redis.address()).await.unwrap();
    emitter
        .to_client(client.id(), "after", json!({}))
        .await
        .unwrap();
    client.expect("after").await;
}

/// protocol.md 11.5.
#[tokio::test]
async fn many_gateways_at_once_never_share_a_worker_number() {
    let Some(redis) = services::redis().await else {
        return;
    };
    let issuer = Issuer::start().await;
    let settings = Gateway::build()
        .trust(&issuer)
        .redis(redis.address())
        .set("workers.shards", 1)
        .set("workers.control_threads", 1);
    let gateways = settings.start_many(6).await;
    let mut workers = Vec::new();
    for gateway in &gateways {
        let client = Client::open(gateway.address(), &issuer.token("17")).await;
        workers.push(signal_tests::client::worker_of(client.id()));
    }
    let distinct: std::collections::BTreeSet<u16> = workers.iter().copied().collect();
    assert_eq!(distinct.len(), workers.len(), "{workers:?}");
    // The first instance has the first number, the others any free one of `ids.worker_count`.
    assert_eq!(distinct.first(), Some(&9), "{workers:?}");
    assert!(distinct.last() < Some(&1009), "{workers:?}");
}

/// A few of these tests, and those of a cluster that loses a master, once more with Valkey in the place of Redis.
#[test]
fn messages_find_their_way_on_valkey_as_well() {
    let server = match Redis::valkey() {
        Ok(server) => server,
        Err(error) => return services::skip(&format!("{error:#}")),
    };
    let tests = [
        "routing::an_emitter_reaches_a_client_a_user_a_room_and_everyone_on_either_gateway",
        "routing::rest_on_one_gateway_lists_reaches_and_disconnects_clients_of_the_other",
        "routing::after_a_restart_of_redis_everyone_is_told_to_resync_and_messages_flow_again",
        "failover::when_the_subscribed_node_of_a_cluster_is_lost_gateways_subscribe_through_another",
    ];
    let output = std::process::Command::new(std::env::current_exe().expect("its path"))
        .args(tests)
        .args(["--exact", "--test-threads", "1"])
        .env(REDIS_PROGRAM, server)
        .output()
        .expect("it runs once more");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains(&format!("{} passed", tests.len())),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

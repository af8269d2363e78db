//! Gateways switch from one Redis to another while they run: no connection is closed, and every message comes once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use signal_tests::services::{self, Own};
use signal_tests::wait::{until, within};
use signal_tests::{Client, Emitter, Gateway, Issuer};
use tokio::task::JoinHandle;
use toml::{Table, Value as Setting};

use crate::admin;

fn redis_settings(address: SocketAddr) -> Setting {
    let mut settings = Table::new();
    settings.insert("mode".into(), "standalone".into());
    settings.insert("nodes".into(), vec![address.to_string()].into());
    Setting::Table(settings)
}

/// Writes `[redis]` and `[redis_previous]` into the live file of one gateway.
async fn name(gateway: &mut Gateway, bus: SocketAddr, previous: Option<SocketAddr>) {
    gateway
        .reload(|live| {
            live.insert("redis".into(), redis_settings(bus));
            match previous {
                Some(previous) => live.insert("redis_previous".into(), redis_settings(previous)),
                None => live.remove("redis_previous"),
            };
        })
        .await;
}

async fn status(gateway: &Gateway) -> Value {
    gateway.admin("GET", "/status").await.expect(200).json()["redis"].clone()
}

/// Waits until a gateway uses a server, and is still subscribed to the previous one or has left it.
async fn expect_on(gateway: &Gateway, bus: SocketAddr, previous: Option<SocketAddr>) {
    until("the move is acknowledged", || async {
        let bus_status = status(gateway).await;
        let in_place = bus_status["nodes"] == json!([bus.to_string()])
            && bus_status["subscribed"] == true
            && bus_status["switching"] == false;
        let before = match previous {
            Some(previous) => {
                bus_status["previous"]
                    == json!({"nodes": [previous.to_string()], "subscribed": true})
            }
            None => bus_status["previous"].is_null(),
        };
        (in_place && before && bus_status["error"].is_null()).then_some(())
    })
    .await;
}

/// Three gateways with a client each, all in one room; each gateway sends numbers to the room by REST.
struct Three {
    issuer: Issuer,
    old: Own,
    new: Own,
    gateways: Vec<Gateway>,
    clients: Vec<Client>,
}

impl Three {
    async fn start() -> Option<Self> {
        let (old, new) = (services::redis().await?, services::redis().await?);
        let issuer = Issuer::start().await;
        let settings = Gateway::build()
            .trust(&issuer)
            .redis(old.address())
            .set("rooms.unmatched", "allow");
        let gateways = settings.start_many(3).await;
        let mut clients = Vec::new();
        for (number, gateway) in gateways.iter().enumerate() {
            let mut client = Client::open_encrypted(
                gateway.address(),
                &issuer.token(&format!("{}", 17 + number)),
            )
            .await;
            client
                .send_sealed("join", json!({"rooms": ["lobby"]}))
                .await;
            clients.push(client);
        }
        let three = Self {
            issuer,
            old,
            new,
            gateways,
            clients,
        };
        until("all are in the room", || async {
            let list = three.gateways[0]
                .rest(
                    "GET",
                    "/socket/websocket/clients?room=lobby",
                    &admin(&three.issuer),
                    None,
                )
                .await
                .expect(200)
                .json();
            (list["data"].as_array()?.len() == 3).then_some(())
        })
        .await;
        Some(three)
    }

    /// Sends numbers through every gateway until it is told to stop; gives how many each sent.
    fn flow(&self, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<u64>> {
        let send = |gateway: &Gateway| {
            let (url, token) = (
                format!(
                    "http://{}/socket/websocket/rooms/lobby/messages",
                    gateway.address()
                ),
                admin(&self.issuer),
            );
            let (from, stop) = (gateway.instance(), Arc::clone(stop));
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::SeqCst) {
                    let body = json!({"event": from, "data": n});
                    let answer = signal_tests::rest::ask(signal_tests::rest::request(
                        "POST",
                        &url,
                        &token,
                        Some(&body),
                    ))
                    .await;
                    answer.expect(202);
                    n += 1;
                }
                n
            })
        };
        self.gateways.iter().map(send).collect()
    }

    /// Ends the flow, and sees that every client got every number once and in order, and nothing else.
    async fn expect_all(
        &mut self,
        stop: &AtomicBool,
        flow: Vec<JoinHandle<u64>>,
        emitter: &mut Emitter,
    ) {
        stop.store(true, Ordering::SeqCst);
        let mut sent = Vec::new();
        for task in flow {
            sent.push(
                within("the end of a flow", task)
                    .await
                    .expect("every message is taken"),
            );
        }
        assert!(sent.iter().all(|sent| *sent > 20), "{sent:?}");
        // By then every gateway has sent what it took, so this message comes last.
        for gateway in &self.gateways {
            let body = json!({"event": "end", "data": gateway.instance()});
            gateway
                .rest(
                    "POST",
                    "/socket/websocket/rooms/lobby/messages",
                    &admin(&self.issuer),
                    Some(body),
                )
                .await
                .expect(202);
        }
        for client in &mut self.clients {
            let mut counts = [0, 0, 0];
            let mut ends = 0;
            while ends < 3 {
                let envelope = client.next_envelope().await;
                match envelope
                    .event
                    .strip_prefix("gateway-")
                    .and_then(|number| number.parse::<usize>().ok())
                {
                    Some(from) => {
                        assert_eq!(
                            envelope.data,
                            json!(counts[from]),
                            "from gateway-{from}, of {sent:?}"
                        );
                        counts[from] += 1;
                    }
                    None => {
                        assert_eq!(envelope.event, "end", "{envelope:?}");
                        ends += 1;
                    }
                }
            }
            assert_eq!(counts.to_vec(), sent);
        }
        emitter
            .broadcast("marker", json!({}), &[])
            .await
            .expect("Redis answers");
        for client in &mut self.clients {
            let before = client.all_before("marker").await;
            assert!(before.is_empty(), "{before:?}");
        }
    }
}

#[tokio::test]
async fn three_gateways_switch_redis_one_after_the_other_and_every_message_comes_once() {
    let Some(mut three) = Three::start().await else {
        return;
    };
    let (old, new) = (three.old.address(), three.new.address());
    let stop = Arc::new(AtomicBool::new(false));
    let flow = three.flow(&stop);
    for number in 0..3 {
        name(&mut three.gateways[number], new, Some(old)).await;
        expect_on(&three.gateways[number], new, Some(old)).await;
        // Gateways that have switched and those that have not reach each other's clients, each once.
        let list = three.gateways[0]
            .rest(
                "GET",
                "/socket/websocket/clients",
                &admin(&three.issuer),
                None,
            )
            .await
            .expect(200)
            .json();
        assert_eq!(
            (list["data"].as_array().map(Vec::len), &list["missing"]),
            (Some(3), &json!([])),
            "{list}"
        );
    }
    for number in 0..3 {
        name(&mut three.gateways[number], new, None).await;
        expect_on(&three.gateways[number], new, None).await;
    }
    // No gateway needs it from here on.
    three.old.kill().await;
    let mut emitter = Emitter::connect(new).await.unwrap();
    three.expect_all(&stop, flow, &mut emitter).await;
    for gateway in &three.gateways {
        gateway.expect_ready().await;
        assert_eq!(
            gateway.metric("signal_bus_resyncs_total", "").await,
            Some(0.0),
            "no client had to sync"
        );
    }
}

#[tokio::test]
async fn an_unreachable_new_redis_changes_nothing_and_a_dead_previous_one_does_no_harm() {
    let Some(mut three) = Three::start().await else {
        return;
    };
    let (old, new) = (three.old.address(), three.new.address());
    three.new.kill().await;
    let stop = Arc::new(AtomicBool::new(false));
    let flow = three.flow(&stop);
    for number in 0..3 {
        name(&mut three.gateways[number], new, Some(old)).await;
        until("it reports why it has not switched", || async {
            let bus = status(&three.gateways[number]).await;
            (bus["error"].is_string()
                && bus["nodes"] == json!([old.to_string()])
                && bus["subscribed"] == true)
                .then_some(())
        })
        .await;
        three.gateways[number].expect_ready().await;
    }
    three.new.restart().await;
    for gateway in &three.gateways {
        expect_on(gateway, new, Some(old)).await;
    }
    // Outside services reach everyone once by either.
    let mut emitters = [
        Emitter::connect(old).await.unwrap(),
        Emitter::connect(new).await.unwrap(),
    ];
    let mut emitter = Emitter::connect(new).await.unwrap();
    three.expect_all(&stop, flow, &mut emitter).await;
    for (number, emitter) in emitters.iter_mut().enumerate() {
        emitter
            .broadcast("outside", json!(number), &[])
            .await
            .unwrap();
        for client in &mut three.clients {
            let got = client.next_envelope().await;
            assert_eq!((got.event.as_str(), got.data), ("outside", json!(number)));
        }
    }

    three.old.kill().await;
    for gateway in &three.gateways {
        until("it is known to be gone", || async {
            (status(gateway).await["previous"]["subscribed"] == false).then_some(())
        })
        .await;
        gateway.expect_ready().await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut before = Vec::new();
    for gateway in &three.gateways {
        before.push(
            gateway
                .metric("signal_bus_published_total", "ok")
                .await
                .unwrap_or_default(),
        );
    }
    let flow = three.flow(&stop);
    for (gateway, before) in three.gateways.iter().zip(before) {
        until("messages flow", || async {
            (gateway.metric("signal_bus_published_total", "ok").await? > before + 30.0)
                .then_some(())
        })
        .await;
    }
    three.expect_all(&stop, flow, &mut emitter).await;
    for gateway in &mut three.gateways {
        name(gateway, new, None).await;
        expect_on(gateway, new, None).await;
        gateway.expect_ready().await;
    }
}

#[tokio::test]
async fn a_gateway_without_redis_does_not_start_to_use_one_while_it_runs() {
    let issuer = Issuer::start().await;
    let mut gateway = Gateway::trusting(&issuer).await;
    gateway.write_live("[redis]\nmode = \"standalone\"\nnodes = [\"127.0.0.1:6379\"]\n");
    until("the error is reported", || async {
        let status = gateway.admin("GET", "/status").await.expect(200).json();
        (status["liveError"].as_str()?.contains("redis.mode") && status["redis"]["mode"] == "none")
            .then_some(())
    })
    .await;
    gateway.expect_ready().await;
    gateway.kill();
}

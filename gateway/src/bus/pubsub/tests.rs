//! The bus against real servers: what goes across, what happens when servers fail, and what is left behind.

mod access;
pub(super) mod audiences;
mod failures;
mod instances;
mod segments;
mod slow;

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use signal_services::{Authority, PrivateKey, certificates};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::lab::{self, LIMIT, Server};
use super::*;
use crate::bus::conformance::{count, numbered};
use crate::bus::{BusEvent, Reply};
use crate::clock::SystemClock;
use crate::config::{Config, RedisMode, SecretFile};
use crate::dispatch::Destination;
use crate::id::Id;

const EMITTED: &str = r#"{"serverId":"emitter","type":"room","target":"r","event":"e","data":1}"#;

fn settings(mode: RedisMode, nodes: Vec<String>) -> config::Redis {
    let mut bus = Config::for_tests().redis;
    (bus.mode, bus.nodes) = (mode, nodes);
    lab::be_patient(&mut bus);
    bus
}

fn standalone(server: &Server) -> config::Redis {
    settings(RedisMode::Standalone, vec![server.address()])
}

fn quick(config: &config::Redis) -> Timing {
    let mut timing = Timing::of(config);
    (timing.linger, timing.beat, timing.watch) = (
        Duration::from_millis(200),
        Duration::from_millis(200),
        Duration::from_millis(20),
    );
    timing
}

/// An open bus as a test sees it.
struct Opening {
    bus: Arc<dyn Bus>,
    events: Events,
    worker: u16,
    metrics: Arc<Metrics>,
}

fn setup(name: &str, metrics: Arc<Metrics>, shutdown: CancellationToken) -> Setup {
    let ids = Config::for_tests().ids;
    Setup {
        instance: new_instance(),
        name: name.into(),
        ids,
        clock: Arc::new(SystemClock),
        metrics,
        shutdown,
    }
}

async fn open_with(config: &config::Redis, name: &str, timing: Timing) -> Opening {
    let metrics = Metrics::new();
    let setup = setup(name, metrics.clone(), CancellationToken::new());
    let opening = async {
        let mut connecting = connect_timed(config, &setup, timing).unwrap();
        connecting.connected().await.unwrap();
        let worker = connecting
            .bus
            .lease_worker(None, &setup.ids, setup.ids.worker_base)
            .await;
        connecting.bus.announce().await;
        (connecting, worker)
    };
    let (Connecting { bus, events, .. }, worker) =
        timeout(LIMIT, opening).await.expect("opens in time");
    Opening {
        bus,
        events,
        worker,
        metrics,
    }
}

async fn opened(config: &config::Redis) -> Opening {
    open_with(config, "one", quick(config)).await
}

impl Opening {
    async fn event(&mut self) -> BusEvent {
        timeout(LIMIT, self.events.recv())
            .await
            .expect("an event in time")
            .expect("the bus is open")
            .event
    }

    async fn dispatch(&mut self) -> Dispatch {
        match self.event().await {
            BusEvent::Dispatch(dispatch) => dispatch,
            other => panic!("not a dispatch: {other:?}"),
        }
    }

    async fn number(&mut self) -> usize {
        self.dispatch().await.data_text().unwrap().parse().unwrap()
    }

    /// The reason of the next resync; dispatches before it are passed over.
    async fn resync(&mut self) -> ResyncReason {
        loop {
            match self.event().await {
                BusEvent::Resync(reason) => return reason,
                BusEvent::Dispatch(_) | BusEvent::ResyncFor(..) => {}
                other => panic!("not a resync: {other:?}"),
            }
        }
    }

    async fn subscribe(&self, interests: &[Interest]) {
        timeout(LIMIT, self.bus.subscribe(interests.to_vec()))
            .await
            .unwrap()
            .unwrap();
    }

    async fn publish(&self, destination: Destination, n: usize) {
        self.bus.publish(&numbered(destination, n)).await.unwrap();
    }

    /// Publishes the same until it is taken.
    async fn publish_when_possible(&self, destination: Destination, n: usize) {
        eventually("a publish that is taken", async || {
            self.bus
                .publish(&numbered(destination.clone(), n))
                .await
                .is_ok()
        })
        .await;
    }

    fn nothing_waits(&mut self) {
        let event = self.events.try_recv();
        assert!(event.is_none(), "{event:?}");
    }

    fn received(&self, kind: &str) -> u64 {
        self.metrics
            .bus_received
            .get_or_create(&Metrics::kind(kind))
            .get()
    }
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < LIMIT, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn room(name: &str) -> Destination {
    Destination::Room(name.into())
}

fn client(id: &str) -> Destination {
    Destination::Client(id.parse().unwrap())
}

fn channels(server: &Server, pattern: &str) -> BTreeSet<String> {
    server
        .cli(&["PUBSUB", "CHANNELS", pattern])
        .lines()
        .map(str::to_owned)
        .filter(|l| !l.is_empty())
        .collect()
}

/// protocol.md 8.1 and 10.6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_publishes_the_other_receives_in_order_and_itself_never() {
    if !lab::available("what_one_instance_publishes_the_other_receives_in_order_and_itself_never") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let (mut a, mut b) = (opened(&config).await, opened(&config).await);
    let destinations = [
        client("4bC"),
        Destination::User("17".into()),
        room("r"),
        Destination::Broadcast,
    ];
    a.subscribe(&destinations).await;
    b.subscribe(&destinations).await;
    for destination in &destinations {
        let mut dispatch = numbered(destination.clone(), 5);
        dispatch.exclude = Arc::from(["9".parse::<Id>().unwrap()]);
        b.bus.publish(&dispatch).await.unwrap();
        let got = a.dispatch().await;
        assert_eq!(
            (&got.destination, &*got.event, got.data_text().unwrap()),
            (destination, "e", "5")
        );
        let may_exclude = matches!(destination, Destination::Room(_) | Destination::Broadcast);
        assert_eq!(!got.exclude.is_empty(), may_exclude, "{destination:?}");
    }
    let dispatches: Vec<Dispatch> = (0..2000).map(|n| numbered(room("r"), n)).collect();
    let published =
        futures_util::future::join_all(dispatches.iter().map(|d| b.bus.publish(d))).await;
    assert!(published.iter().all(Result::is_ok));
    for n in 0..2000 {
        assert_eq!(a.number().await, n);
    }
    eventually("own messages are seen and ignored", async || {
        b.received("own") == 2004
    })
    .await;
    b.nothing_waits();
    eventually("a self-ping comes back soon", async || {
        a.bus.lag().is_some_and(|lag| lag < Duration::from_secs(1))
    })
    .await;
}

/// protocol.md 10.2, 10.3, 10.4, 10.5 and 10.6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outside_emitter_reaches_every_kind_of_destination() {
    if !lab::available("an_outside_emitter_reaches_every_kind_of_destination") {
        return;
    }
    let server = Server::start(&[]);
    let mut a = opened(&standalone(&server)).await;
    let destinations = [
        client("4bC"),
        Destination::User("17".into()),
        room("lobby:1"),
        Destination::Broadcast,
    ];
    a.subscribe(&destinations).await;
    for (channel, payload) in [
        (
            "ws:client:4bC",
            r#"{"serverId":"emitter","type":"client","target":"4bC","event":"e","data":{"a":[1, 2]}}"#,
        ),
        (
            "ws:user:17",
            r#"{"serverId":"emitter","type":"user","target":"17","event":"e","data":{"a":[1, 2]}}"#,
        ),
        (
            "ws:room:lobby:1",
            r#"{"serverId":"emitter","type":"room","target":"lobby:1","event":"e","data":{"a":[1, 2]}}"#,
        ),
        (
            "ws:broadcast",
            r#"{"serverId":"emitter","type":"broadcast","event":"e","data":{"a":[1, 2]}}"#,
        ),
    ] {
        server.cli(&["PUBLISH", channel, payload]);
    }
    for destination in destinations {
        let got = a.dispatch().await;
        assert_eq!(
            (&got.destination, &*got.event, got.data_text().unwrap()),
            (&destination, "e", r#"{"a":[1, 2]}"#)
        );
    }
    // The type and the target decide the destination, and not the channel.
    server.cli(&[
        "PUBLISH",
        "ws:user:17",
        r#"{"serverId":"emitter","type":"room","target":"r","event":"e"}"#,
    ]);
    let got = a.dispatch().await;
    assert_eq!((&got.destination, got.data_text()), (&room("r"), None));
}

/// protocol.md 10.8.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_counted_and_dropped_and_the_next_payload_arrives() {
    if !lab::available("garbage_is_counted_and_dropped_and_the_next_payload_arrives") {
        return;
    }
    let server = Server::start(&[]);
    let mut a = opened(&standalone(&server)).await;
    a.subscribe(&[room("r")]).await;
    for garbage in [
        "",
        "{",
        "null",
        r#"{"event":"e"}"#,
        r#"{"serverId":"emitter","type":"broadcast"}"#,
        r#"{"serverId":"emitter","event":"e"}"#,
        r#"{"serverId":"emitter","type":"room","event":"e"}"#,
        "\u{1F980}",
    ] {
        server.cli(&["PUBLISH", "ws:room:r", garbage]);
    }
    let deep = format!(
        "{{\"serverId\":\"emitter\",\"event\":\"e\",\"exclude\":{}",
        "[".repeat(100_000)
    );
    for garbage in [deep.as_str(), "nonsense"] {
        for channel in channels(&server, "*") {
            server.cli(&["PUBLISH", &channel, garbage]);
        }
    }
    server.cli(&["PUBLISH", "ws:room:r", EMITTED]);
    assert_eq!(a.number().await, 1);
    assert!(
        a.received("malformed") >= 8 + 2 * 3,
        "{}",
        a.received("malformed")
    );
}

/// protocol.md 10.13.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_owners_subscribe_and_channels_of_ours_do_not_match_the_patterns_of_emitters() {
    if !lab::available(
        "only_owners_subscribe_and_channels_of_ours_do_not_match_the_patterns_of_emitters",
    ) {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let (mut a, mut b) = (opened(&config).await, opened(&config).await);
    a.subscribe(&[room("a"), client("A")]).await;
    b.subscribe(&[room("b"), room("both")]).await;
    a.subscribe(&[room("both"), room("both")]).await;
    // A client's id is the name of a room as well.
    let held = [
        "ws:broadcast",
        "ws:client:A",
        "ws:room:A",
        "ws:room:a",
        "ws:room:b",
        "ws:room:both",
    ];
    assert_eq!(channels(&server, "ws:*"), held.map(str::to_owned).into());
    assert_eq!(
        server.cli(&["PUBSUB", "NUMSUB", "ws:room:a", "ws:room:both"]),
        "ws:room:a\n1\nws:room:both\n2"
    );
    assert!(
        channels(&server, "*")
            .iter()
            .all(|c| c.starts_with("ws:") || c.starts_with("signal:"))
    );
    b.publish(room("a"), 1).await;
    b.publish(room("empty"), 2).await;
    b.publish(room("both"), 3).await;
    assert_eq!((a.number().await, a.number().await), (1, 3));
    b.nothing_waits();

    // An interest that comes back in time stays subscribed; otherwise it is unsubscribed once its last holder is gone.
    a.bus.unsubscribe(vec![room("a"), room("both")]);
    a.subscribe(&[room("a")]).await;
    a.bus.unsubscribe(vec![client("A")]);
    eventually("a client that left is unsubscribed", async || {
        let held = channels(&server, "ws:*");
        !held.contains("ws:client:A") && !held.contains("ws:room:A")
    })
    .await;
    assert_eq!(
        server.cli(&["PUBSUB", "NUMSUB", "ws:room:a", "ws:room:both"]),
        "ws:room:a\n1\nws:room:both\n2"
    );
    a.bus.unsubscribe(vec![room("both")]);
    eventually("one owner is left", async || {
        server.cli(&["PUBSUB", "NUMSUB", "ws:room:both"]) == "ws:room:both\n1"
    })
    .await;
    assert_eq!(
        server
            .cli(&["KEYS", "*"])
            .lines()
            .filter(|k| !k.starts_with("signal:"))
            .count(),
        0
    );

    // A client and a room of its id share a channel, which stays subscribed as long as either is there.
    a.subscribe(&[client("A"), room("A")]).await;
    a.bus.unsubscribe(vec![client("A")]);
    eventually("the client is left", async || {
        !channels(&server, "ws:*").contains("ws:client:A")
    })
    .await;
    b.publish(room("A"), 4).await;
    assert_eq!(a.number().await, 4);
    a.bus.unsubscribe(vec![room("A")]);
    eventually("the room is left", async || {
        !channels(&server, "ws:*").contains("ws:room:A")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_interests_are_confirmed_in_few_commands() {
    if !lab::available("ten_thousand_interests_are_confirmed_in_few_commands") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    let before = subscribes(&server);
    let subscribed =
        (0..10_000).map(|n| a.bus.subscribe(vec![client(&format!("{n}")), room("all")]));
    let subscribed = futures_util::future::join_all(subscribed.collect::<Vec<_>>()).await;
    assert!(subscribed.iter().all(Result::is_ok));
    // What comes while a command is on its way shares the next one: 20,001 channels would be as many commands one by one.
    let commands = subscribes(&server) - before;
    assert!(commands < 2000, "{commands} commands");
    assert_eq!(channels(&server, "ws:*").len(), 20_002);
    assert_eq!(a.metrics.bus_subscriptions.get(), 10_001);
    let before = subscribes(&server);
    server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    a.resync().await;
    // All is wanted at once on the new connection, so the commands are full; either bus has its own channels and a few tries besides.
    let commands = subscribes(&server) - before;
    assert!((40..100).contains(&commands), "{commands} commands");
    b.publish(client("9999"), 3).await;
    assert_eq!(a.number().await, 3);
    // A client is subscribed to as a room too.
    b.publish(room("9999"), 4).await;
    assert_eq!(a.number().await, 4);
    a.bus
        .unsubscribe((0..10_000).map(|n| client(&format!("{n}"))).collect());
    a.bus.unsubscribe(vec![room("all"); 10_000]);
    eventually("all are left", async || {
        channels(&server, "ws:*").len() == 1 && a.metrics.bus_subscriptions.get() == 0
    })
    .await;
}

/// How many `SUBSCRIBE` commands the server has run.
fn subscribes(server: &Server) -> u64 {
    let statistics = server.cli(&["INFO", "commandstats"]);
    let line = statistics
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_subscribe:calls="));
    line.and_then(|line| line.split(',').next())
        .and_then(|calls| calls.parse().ok())
        .expect("a count of calls")
}

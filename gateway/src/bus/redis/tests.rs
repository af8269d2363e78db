//! The bus against real servers: what goes across, what happens when servers fail, and what is left behind.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use signal_services::certificates;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::lab::{self, LIMIT, Server};
use super::*;
use crate::bus::conformance::numbered;
use crate::bus::{BusEvent, Reply};
use crate::clock::SystemClock;
use crate::config::{BusMode, Config, SecretFile};
use crate::id::Id;

const EMITTED: &str = r#"{"serverId":"emitter","type":"room","target":"r","event":"e","data":1}"#;

fn settings(mode: BusMode, nodes: Vec<String>) -> config::Bus {
    let mut bus = Config::for_tests().bus;
    (bus.mode, bus.nodes) = (mode, nodes);
    (bus.command_timeout_ms, bus.request_timeout_ms) = (2000, 1000);
    bus
}

fn standalone(server: &Server) -> config::Bus {
    settings(BusMode::Standalone, vec![server.address()])
}

fn quick(config: &config::Bus) -> Timing {
    let mut timing = Timing::of(config);
    (timing.linger, timing.beat, timing.watch) = (Duration::from_millis(200), Duration::from_millis(200), Duration::from_millis(20));
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
    Setup { instance: new_instance(), name: name.into(), ids, clock: Arc::new(SystemClock), metrics, shutdown }
}

async fn open_with(config: &config::Bus, name: &str, timing: Timing) -> Opening {
    let metrics = Metrics::new();
    let setup = setup(name, metrics.clone(), CancellationToken::new());
    let opening = async {
        let mut begun = begin_timed(config, &setup, timing).unwrap();
        begun.connected().await.unwrap();
        let worker = begun.bus.acquire(None, &setup.ids, setup.ids.worker_base).await;
        begun.bus.beat().await;
        (begun, worker)
    };
    let (Begun { bus, events, .. }, worker) = timeout(LIMIT, opening).await.expect("opens in time");
    Opening { bus, events, worker, metrics }
}

async fn opened(config: &config::Bus) -> Opening {
    open_with(config, "one", quick(config)).await
}

impl Opening {
    async fn event(&mut self) -> BusEvent {
        timeout(LIMIT, self.events.recv()).await.expect("an event in time").expect("the bus is open").event
    }

    async fn dispatch(&mut self) -> Dispatch {
        match self.event().await {
            BusEvent::Dispatch(dispatch) => dispatch,
            other => panic!("not a dispatch: {other:?}"),
        }
    }

    async fn number(&mut self) -> usize {
        self.dispatch().await.data.get().parse().unwrap()
    }

    /// The reason of the next resync; dispatches before it are passed over.
    async fn resync(&mut self) -> &'static str {
        loop {
            match self.event().await {
                BusEvent::Resync(reason) => return reason,
                BusEvent::Dispatch(_) => {}
                other => panic!("not a resync: {other:?}"),
            }
        }
    }

    async fn hear(&self, interests: &[Interest]) {
        timeout(LIMIT, self.bus.hear(interests.to_vec())).await.unwrap().unwrap();
    }

    async fn publish(&self, destination: Destination, n: usize) {
        self.bus.publish(&numbered(destination, n)).await.unwrap();
    }

    /// Publishes the same until it is taken.
    async fn publish_when_possible(&self, destination: Destination, n: usize) {
        eventually("a publish that is taken", async || self.bus.publish(&numbered(destination.clone(), n)).await.is_ok()).await;
    }

    fn nothing_waits(&mut self) {
        let event = self.events.try_recv();
        assert!(event.is_none(), "{event:?}");
    }

    fn received(&self, kind: &str) -> u64 {
        self.metrics.bus_received.get_or_create(&Metrics::kind(kind)).get()
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
    server.cli(&["PUBSUB", "CHANNELS", pattern]).lines().map(str::to_owned).filter(|l| !l.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_publishes_the_other_hears_in_order_and_itself_never() {
    if !lab::available("what_one_instance_publishes_the_other_hears_in_order_and_itself_never") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let (mut a, mut b) = (opened(&config).await, opened(&config).await);
    let destinations = [client("4bC"), Destination::User("17".into()), room("r"), Destination::Broadcast];
    a.hear(&destinations).await;
    b.hear(&destinations).await;
    for destination in &destinations {
        let mut dispatch = numbered(destination.clone(), 5);
        dispatch.exclude = Arc::from(["9".parse::<Id>().unwrap()]);
        b.bus.publish(&dispatch).await.unwrap();
        let got = a.dispatch().await;
        assert_eq!((&got.destination, &*got.event, got.data.get()), (destination, "e", "5"));
        assert_eq!(got.exclude, dispatch.exclude);
    }
    let dispatches: Vec<Dispatch> = (0..2000).map(|n| numbered(room("r"), n)).collect();
    let published = futures_util::future::join_all(dispatches.iter().map(|d| b.bus.publish(d))).await;
    assert!(published.iter().all(Result::is_ok));
    for n in 0..2000 {
        assert_eq!(a.number().await, n);
    }
    eventually("own messages are seen and ignored", async || b.received("own") == 2004).await;
    b.nothing_waits();
    eventually("a self-ping", async || a.bus.lag().is_some()).await;
    assert!(a.bus.lag().unwrap() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outside_emitter_reaches_every_kind_of_destination() {
    if !lab::available("an_outside_emitter_reaches_every_kind_of_destination") {
        return;
    }
    let server = Server::start(&[]);
    let mut a = opened(&standalone(&server)).await;
    let destinations = [client("4bC"), Destination::User("17".into()), room("lobby:1"), Destination::Broadcast];
    a.hear(&destinations).await;
    for (channel, payload) in [
        ("ws:client:4bC", r#"{"serverId":"emitter","type":"client","target":"4bC","event":"e","data":{"a":[1, 2]}}"#),
        ("ws:user:17", r#"{"serverId":"emitter","type":"user","target":"17","event":"e","data":{"a":[1, 2]}}"#),
        ("ws:room:lobby:1", r#"{"serverId":"emitter","type":"room","event":"e","data":{"a":[1, 2]}}"#),
        ("ws:broadcast", r#"{"serverId":"emitter","type":"broadcast","event":"e","data":{"a":[1, 2]}}"#),
    ] {
        server.cli(&["PUBLISH", channel, payload]);
    }
    for destination in destinations {
        let got = a.dispatch().await;
        assert_eq!((got.destination, &*got.event, got.data.get()), (destination, "e", r#"{"a":[1, 2]}"#));
    }
    // The channel says whom it is for.
    server.cli(&["PUBLISH", "ws:user:17", r#"{"serverId":"emitter","type":"room","target":"r","event":"e"}"#]);
    let got = a.dispatch().await;
    assert_eq!((got.destination, got.data.get()), (Destination::User("17".into()), "null"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_counted_and_dropped_and_the_next_payload_arrives() {
    if !lab::available("garbage_is_counted_and_dropped_and_the_next_payload_arrives") {
        return;
    }
    let server = Server::start(&[]);
    let mut a = opened(&standalone(&server)).await;
    a.hear(&[room("r")]).await;
    for garbage in ["", "{", "null", r#"{"event":"e"}"#, r#"{"serverId":"emitter"}"#, "\u{1F980}"] {
        server.cli(&["PUBLISH", "ws:room:r", garbage]);
    }
    let deep = format!("{{\"serverId\":\"emitter\",\"event\":\"e\",\"exclude\":{}", "[".repeat(100_000));
    for garbage in [deep.as_str(), "nonsense"] {
        for channel in channels(&server, "*") {
            server.cli(&["PUBLISH", &channel, garbage]);
        }
    }
    server.cli(&["PUBLISH", "ws:room:r", EMITTED]);
    assert_eq!(a.number().await, 1);
    assert!(a.received("malformed") >= 6 + 2 * 3, "{}", a.received("malformed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_owners_are_subscribed_and_what_is_ours_hides_from_the_reference_patterns() {
    if !lab::available("only_owners_are_subscribed_and_what_is_ours_hides_from_the_reference_patterns") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let (mut a, mut b) = (opened(&config).await, opened(&config).await);
    a.hear(&[room("a"), client("A")]).await;
    b.hear(&[room("b"), room("both")]).await;
    a.hear(&[room("both"), room("both")]).await;
    // A client's id is the name of a room as well.
    let held = ["ws:broadcast", "ws:client:A", "ws:room:A", "ws:room:a", "ws:room:b", "ws:room:both"];
    assert_eq!(channels(&server, "ws:*"), held.map(str::to_owned).into());
    assert_eq!(server.cli(&["PUBSUB", "NUMSUB", "ws:room:a", "ws:room:both"]), "ws:room:a\n1\nws:room:both\n2");
    assert!(channels(&server, "*").iter().all(|c| c.starts_with("ws:") || c.starts_with("signal:")));
    b.publish(room("a"), 1).await;
    b.publish(room("nobody"), 2).await;
    b.publish(room("both"), 3).await;
    assert_eq!((a.number().await, a.number().await), (1, 3));
    b.nothing_waits();

    // Who leaves and comes back within the lag never left; who stays away is unsubscribed once the last holder is gone.
    a.bus.unhear(vec![room("a"), room("both")]);
    a.hear(&[room("a")]).await;
    a.bus.unhear(vec![client("A")]);
    eventually("a client that left is unsubscribed", async || {
        let held = channels(&server, "ws:*");
        !held.contains("ws:client:A") && !held.contains("ws:room:A")
    })
    .await;
    assert_eq!(server.cli(&["PUBSUB", "NUMSUB", "ws:room:a", "ws:room:both"]), "ws:room:a\n1\nws:room:both\n2");
    a.bus.unhear(vec![room("both")]);
    eventually("one owner is left", async || server.cli(&["PUBSUB", "NUMSUB", "ws:room:both"]) == "ws:room:both\n1").await;
    assert_eq!(server.cli(&["KEYS", "*"]).lines().filter(|k| !k.starts_with("signal:")).count(), 0);

    // A client and a room of its id share a channel, which is heard for as long as either is there.
    a.hear(&[client("A"), room("A")]).await;
    a.bus.unhear(vec![client("A")]);
    eventually("the client is left", async || !channels(&server, "ws:*").contains("ws:client:A")).await;
    b.publish(room("A"), 4).await;
    assert_eq!(a.number().await, 4);
    a.bus.unhear(vec![room("A")]);
    eventually("the room is left", async || !channels(&server, "ws:*").contains("ws:room:A")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_of_the_server_everything_is_subscribed_again_then_clients_are_told_once() {
    if !lab::available("after_a_kill_of_the_server_everything_is_subscribed_again_then_clients_are_told_once") {
        return;
    }
    let mut server = Server::start(&[]);
    let config = standalone(&server);
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.hear(&[room("before"), room("left")]).await;
    server.kill();
    eventually("publishing fails", async || b.bus.publish(&numbered(room("before"), 0)).await.is_err()).await;
    let began = Instant::now();
    assert!(matches!(b.bus.publish(&numbered(room("before"), 0)).await, Err(BusError::Unavailable(_))));
    eventually("hearing fails", async || a.bus.hear(vec![room("during")]).await.is_err()).await;
    assert!(matches!(a.bus.ask(&Ask::Holds { client: "A".parse().unwrap() }).await, Err(BusError::Unavailable(_))));
    a.bus.unhear(vec![room("left")]);
    assert!(began.elapsed() < Duration::from_secs(2), "nothing waits for a server that is away");
    eventually("no ping comes back", async || a.bus.hearing() == Hearing::Deaf).await;

    server.run();
    assert_eq!(a.resync().await, "bus_reconnected");
    assert!(channels(&server, "ws:room:*").is_superset(&["ws:room:before".to_owned(), "ws:room:during".to_owned()].into()));
    assert!(!channels(&server, "ws:room:*").contains("ws:room:left"));
    b.publish_when_possible(room("before"), 1).await;
    b.publish(room("during"), 2).await;
    let mut numbers = Vec::new();
    while numbers.len() < 2 {
        match a.event().await {
            BusEvent::Dispatch(dispatch) => numbers.push(dispatch.data.get().to_owned()),
            // What b lost is told as well, if it could publish again later than this one could hear.
            BusEvent::Resync("bus_peer_lost") => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(numbers, ["1", "2"]);
    eventually("pings come back", async || a.bus.hearing() == Hearing::Good).await;
    eventually("leases are put back", async || {
        [a.worker, b.worker].iter().all(|w| !server.cli(&["GET", &format!("signal:worker:{w}")]).is_empty())
    })
    .await;
    assert!(!a.bus.lease_lapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_subscriber_connection_is_replaced() {
    if !lab::available("a_killed_subscriber_connection_is_replaced") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.hear(&[room("r")]).await;
    for round in 0..3 {
        assert_ne!(server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]), "0");
        assert_eq!(a.resync().await, "bus_reconnected");
        b.publish(room("r"), round).await;
        assert_eq!(a.number().await, round);
    }
    assert_eq!(a.metrics.bus_resyncs.get(), 3);
    assert_eq!(a.bus.hearing(), Hearing::Good, "a short gap is not deafness");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losses_of_a_publisher_are_told_to_the_others() {
    if !lab::available("losses_of_a_publisher_are_told_to_the_others") {
        return;
    }
    let server = Server::start(&[]);
    let mut config = standalone(&server);
    // So seldom that the next to be published is the dispatch.
    (config.self_ping_interval_ms, config.deaf_after_ms) = (60_000, 120_000);
    let mut timing = quick(&config);
    timing.beat = Duration::from_secs(60);
    let (mut a, b) = (opened(&config).await, open_with(&config, "b", timing).await);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert!(matches!(b.bus.publish(&numbered(room("r"), 1)).await, Err(BusError::Unavailable(_))));
    assert_eq!(a.resync().await, "bus_peer_lost");
    b.publish_when_possible(Destination::Broadcast, 2).await;
    assert_eq!(a.number().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_makes_the_bus_deaf_and_is_repaired() {
    if !lab::available("a_server_that_stands_still_makes_the_bus_deaf_and_is_repaired") {
        return;
    }
    let server = Server::start(&[]);
    let mut config = standalone(&server);
    (config.command_timeout_ms, config.deaf_after_ms) = (500, 700);
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.hear(&[room("r")]).await;
    assert_eq!(a.bus.hearing(), Hearing::Good);
    server.signal("STOP");
    let began = Instant::now();
    assert!(b.bus.publish(&numbered(room("r"), 1)).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(2), "an answer that does not come is given up");
    eventually("deafness is noticed", async || a.bus.hearing() == Hearing::Deaf && a.metrics.bus_deaf.get() == 1).await;
    server.signal("CONT");
    let reason = a.resync().await;
    assert!(matches!(reason, "bus_deaf" | "bus_reconnected"), "{reason}");
    eventually("it hears again", async || a.bus.hearing() == Hearing::Good && a.metrics.bus_deaf.get() == 0).await;
    b.publish_when_possible(room("r"), 2).await;
    while !matches!(a.event().await, BusEvent::Dispatch(d) if d.data.get() == "2") {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_holds_publishing_back_makes_the_bus_deaf_and_is_repaired() {
    if !lab::available("a_server_that_holds_publishing_back_makes_the_bus_deaf_and_is_repaired") {
        return;
    }
    let server = Server::start(&[]);
    let mut config = standalone(&server);
    config.deaf_after_ms = 700;
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.hear(&[room("r")]).await;
    // Connections stay and nothing is heard.
    server.cli(&["CLIENT", "PAUSE", "3000", "WRITE"]);
    eventually("deafness is noticed", async || a.bus.hearing() == Hearing::Deaf).await;
    assert_eq!(a.resync().await, "bus_deaf");
    eventually("it hears again", async || a.bus.hearing() == Hearing::Good).await;
    b.publish_when_possible(room("r"), 1).await;
    while !matches!(a.event().await, BusEvent::Dispatch(d) if d.data.get() == "1") {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_whose_connection_went_silent_is_deaf_and_repaired_while_publishing_goes_on() {
    if !lab::available("a_subscriber_whose_connection_went_silent_is_deaf_and_repaired_while_publishing_goes_on") {
        return;
    }
    let server = Server::start(&[]);
    let proxy = lab::Proxy::start(server.port).await;
    let mut config = settings(BusMode::Standalone, vec![proxy.address()]);
    config.deaf_after_ms = 700;
    let (mut a, mut b) = (opened(&config).await, opened(&standalone(&server)).await);
    a.hear(&[room("r")]).await;
    b.hear(&[room("r")]).await;
    proxy.mute_subscribers();
    b.publish(room("r"), 1).await;
    eventually("deafness is noticed", async || a.bus.hearing() == Hearing::Deaf).await;
    a.publish(room("r"), 2).await;
    assert_eq!(b.number().await, 2);
    assert_eq!(a.resync().await, "bus_deaf", "and the message in the gap is lost");
    b.publish(room("r"), 3).await;
    assert_eq!(a.number().await, 3);
    eventually("it hears again", async || a.bus.hearing() == Hearing::Good).await;
    b.nothing_waits();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_sentinels_is_followed() {
    if !lab::available("a_failover_by_sentinels_is_followed") {
        return;
    }
    let (mut master, replica, sentinels) = tokio::task::spawn_blocking(lab::sentinels).await.unwrap();
    let mut nodes: Vec<String> = sentinels.iter().map(Server::address).collect();
    nodes.insert(0, format!("127.0.0.1:{}", lab::free_port()));
    let config = settings(BusMode::Sentinel, nodes);
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.hear(&[room("r")]).await;
    b.publish(room("r"), 1).await;
    assert_eq!(a.number().await, 1);
    assert_eq!(channels(&master, "ws:room:*").len(), 1);
    master.kill();
    a.resync().await;
    assert_eq!(channels(&replica, "ws:room:*").len(), 1, "on the new master");
    b.publish_when_possible(room("r"), 2).await;
    while !matches!(a.event().await, BusEvent::Dispatch(d) if d.data.get() == "2") {}
    eventually("the lease is there", async || !replica.cli(&["GET", &format!("signal:worker:{}", a.worker)]).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_hands_messages_from_any_node_to_any_and_survives_a_node() {
    if !lab::available("a_cluster_hands_messages_from_any_node_to_any_and_survives_a_node") {
        return;
    }
    let mut servers = tokio::task::spawn_blocking(lab::cluster).await.unwrap();
    let config = settings(BusMode::Cluster, servers.iter().map(Server::address).collect());
    let (mut a, mut b) = (open_with(&config, "a", quick(&config)).await, open_with(&config, "b", quick(&config)).await);
    assert!(a.worker == 9 && b.worker != 9);
    a.hear(&[room("r"), client("A")]).await;
    for (n, server) in servers.iter().enumerate() {
        server.cli(&["PUBLISH", "ws:room:r", &EMITTED.replace(":1}", &format!(":{n}}}"))]);
        assert_eq!(a.number().await, n);
    }
    for n in 0..100 {
        b.publish(client("A"), n).await;
        assert_eq!(a.number().await, n);
    }
    let revocation = Revocation { user_id: Some("1".into()), jti: None, issued_before_ms: 1, until_ms: SystemClock.now_ms() + 60_000 };
    b.bus.store_revocation(&revocation).await.unwrap();
    assert_eq!(a.bus.revocations().await.unwrap(), [revocation]);
    let question = Ask::Holds { client: "A".parse().unwrap() };
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        let BusEvent::Asked(_, reply) = b.event().await else { panic!("not asked") };
        reply.send(Reply::Count { count: 0 }).unwrap();
    });
    assert_eq!(answers.unwrap().replies.len(), 1);

    // A slot moves, with the key in it: leases, questions and revocations follow.
    move_key(&servers, "signal:revocations");
    eventually("the key is found where it went", async || a.bus.revocations().await.is_ok_and(|all| all.len() == 1)).await;
    b.publish(room("r"), 8).await;
    assert_eq!(a.number().await, 8);
    assert_eq!(a.metrics.bus_resyncs.get(), 0, "classic Pub/Sub does not depend on slots");

    let holder = servers.iter().position(|s| channels(s, "ws:room:r").len() == 1).unwrap();
    servers[holder].kill();
    // A cluster without replicas is not whole with one node gone; the node comes back under its name.
    servers[holder].run();
    a.resync().await;
    b.publish_when_possible(room("r"), 7).await;
    while !matches!(a.event().await, BusEvent::Dispatch(d) if d.data.get() == "7") {}
}

/// Moves the slot of a key from the node that has it to another, as a resharding does.
fn move_key(servers: &[Server], key: &str) {
    let slot = servers[0].cli(&["CLUSTER", "KEYSLOT", key]);
    let from = servers.iter().find(|s| s.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]) == key).unwrap();
    let to = servers.iter().find(|s| s.port != from.port).unwrap();
    let (from_id, to_id) = (from.cli(&["CLUSTER", "MYID"]), to.cli(&["CLUSTER", "MYID"]));
    to.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    from.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    from.cli(&["MIGRATE", "127.0.0.1", &to.port.to_string(), key, "0", "5000"]);
    for server in [to, from] {
        server.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_instances_that_start_together_have_distinct_workers_from_the_base_on() {
    if !lab::available("many_instances_that_start_together_have_distinct_workers_from_the_base_on") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let buses = futures_util::future::join_all((0..12).map(|_| opened(&config))).await;
    let workers: HashSet<u16> = buses.iter().map(|b| b.worker).collect();
    assert_eq!(workers.len(), 12);
    assert!(workers.contains(&9) && workers.iter().all(|w| *w >= 9));
    let ttl: i64 = server.cli(&["TTL", "signal:worker:9"]).parse().unwrap();
    assert!((3500..=3600).contains(&ttl), "{ttl}");
    for bus in &buses {
        bus.bus.close().await;
    }
    assert_eq!(server.cli(&["KEYS", "*"]), "");
    assert_eq!(opened(&config).await.worker, 9, "the first is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_instance_keeps_its_worker_until_the_lease_ends() {
    if !lab::available("a_crashed_instance_keeps_its_worker_until_the_lease_ends") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let mut timing = quick(&config);
    (timing.lease, timing.renew) = (Duration::from_secs(2), Duration::from_millis(200));
    // Its tasks are dropped as a crash would: nothing is given up.
    let crashing = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let crashed = {
        let (config, timing) = (config.clone(), timing.clone());
        crashing.spawn(async move { open_with(&config, "crashed", timing).await }).await.unwrap()
    };
    assert_eq!(crashed.worker, 9);
    crashing.shutdown_background();
    let held = open_with(&config, "held", timing.clone()).await;
    assert_ne!(held.worker, 9);
    eventually("the lease of the crashed one ends", async || server.cli(&["EXISTS", "signal:worker:9"]) == "0").await;
    assert!(crashed.bus.lease_lapsed(), "what cannot be renewed has lapsed");
    assert!(!held.bus.lease_lapsed(), "what is renewed has not");
    assert_eq!(open_with(&config, "next", timing).await.worker, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_number_that_another_took_is_told_and_taken_back_when_it_is_free() {
    if !lab::available("a_worker_number_that_another_took_is_told_and_taken_back_when_it_is_free") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let mut timing = quick(&config);
    timing.renew = Duration::from_millis(100);
    let a = open_with(&config, "a", timing).await;
    assert!(!a.bus.lease_lapsed());
    server.cli(&["SET", "signal:worker:9", "somebody else"]);
    eventually("it is noticed", async || a.bus.lease_lapsed()).await;
    assert_eq!(server.cli(&["GET", "signal:worker:9"]), "somebody else", "and theirs it stays");
    server.cli(&["DEL", "signal:worker:9"]);
    eventually("it is ours again", async || !a.bus.lease_lapsed()).await;
    server.cli(&["SET", "signal:worker:9", "somebody else"]);
    a.bus.close().await;
    assert_eq!(server.cli(&["GET", "signal:worker:9"]), "somebody else", "closing gives up only what is ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_reach_all_live_instances_and_the_silent_are_named() {
    if !lab::available("questions_reach_all_live_instances_and_the_silent_are_named") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let a = open_with(&config, "a", quick(&config)).await;
    let (mut b, mut c) = (open_with(&config, "b", quick(&config)).await, open_with(&config, "c", quick(&config)).await);
    let question = Ask::Join { client: "4bC".parse().unwrap(), rooms: vec!["x".into()] };
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        for bus in [&mut b, &mut c] {
            let BusEvent::Asked(asked, reply) = bus.event().await else { panic!("not asked") };
            assert_eq!(asked, question);
            reply.send(Reply::Rooms { rooms: Some(vec!["x".into()]) }).unwrap();
        }
    });
    let answers = answers.unwrap();
    let mut names: Vec<_> = answers.replies.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!((names, answers.missing.len()), (vec!["b", "c"], 0));
    assert!(answers.replies.iter().all(|(_, reply)| matches!(reply, Reply::Rooms { rooms: Some(rooms) } if rooms == &["x"])));

    // c drops the question, and one that crashed is still listed.
    let id = "f".repeat(32);
    server.cli(&["ZADD", "signal:instances", "9999999999999", &format!("{id} gone")]);
    let began = Instant::now();
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        let BusEvent::Asked(_, reply) = b.event().await else { panic!("not asked") };
        reply.send(Reply::Rooms { rooms: None }).unwrap();
        let BusEvent::Asked(_, dropped) = c.event().await else { panic!("not asked") };
        drop(dropped);
    });
    let answers = answers.unwrap();
    assert!(matches!(&answers.replies[..], [(name, Reply::Rooms { rooms: None })] if name == "b"));
    assert_eq!(answers.missing, ["c", "gone"]);
    assert!(began.elapsed() >= Duration::from_millis(900) && began.elapsed() < Duration::from_secs(3));

    c.bus.close().await;
    server.cli(&["ZREM", "signal:instances", &format!("{id} gone")]);
    let questions = vec![Ask::Holds { client: "A".parse().unwrap() }; 2 * ask::MAX_OPEN];
    let answers = futures_util::future::join_all(questions.iter().map(|q| a.bus.ask(q))).await;
    assert!(answers.iter().any(|answer| matches!(answer, Err(BusError::Full))), "open questions are bounded");
    assert!(answers.iter().flatten().all(|answers| answers.missing == ["b"]), "who closed is not asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_interests_are_confirmed_in_few_commands() {
    if !lab::available("ten_thousand_interests_are_confirmed_in_few_commands") {
        return;
    }
    let server = Server::start(&[]);
    let (mut a, b) = (opened(&standalone(&server)).await, opened(&standalone(&server)).await);
    let before = subscribes(&server);
    let heard = (0..10_000).map(|n| a.bus.hear(vec![client(&format!("{n}")), room("all")]));
    let heard = futures_util::future::join_all(heard.collect::<Vec<_>>()).await;
    assert!(heard.iter().all(Result::is_ok));
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
    // A client is heard as a room too.
    b.publish(room("9999"), 4).await;
    assert_eq!(a.number().await, 4);
    a.bus.unhear((0..10_000).map(|n| client(&format!("{n}"))).collect());
    a.bus.unhear(vec![room("all"); 10_000]);
    eventually("all are left", async || channels(&server, "ws:*").len() == 1).await;
    assert_eq!(a.metrics.bus_subscriptions.get(), 0);
}

/// How many `SUBSCRIBE` commands the server has run.
fn subscribes(server: &Server) -> u64 {
    let statistics = server.cli(&["INFO", "commandstats"]);
    let line = statistics.lines().find_map(|line| line.strip_prefix("cmdstat_subscribe:calls="));
    line.and_then(|line| line.split(',').next()).and_then(|calls| calls.parse().ok()).expect("a count of calls")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_opens_when_its_server_comes_and_gives_up_when_it_is_told_to() {
    if !lab::available("a_bus_opens_when_its_server_comes_and_gives_up_when_it_is_told_to") {
        return;
    }
    let mut server = Server::start(&[]);
    let config = standalone(&server);
    server.kill();
    let shutdown = CancellationToken::new();
    let mut begun = begin(&config, &setup("one", Metrics::new(), shutdown.clone())).unwrap();
    let (result, ()) = tokio::join!(begun.connected(), async { shutdown.cancel() });
    assert!(matches!(result, Err(BusError::Unavailable(_))));

    let waiting = tokio::spawn(async move { opened(&config).await });
    server.run();
    let bus = waiting.await.unwrap();
    bus.hear(&[room("r")]).await;

    let wrong = settings(BusMode::Standalone, vec!["no port".into()]);
    let result = begin(&wrong, &setup("one", Metrics::new(), CancellationToken::new()));
    assert!(matches!(result, Err(BusError::Misconfigured(_))));
}

/// The commands of one recipe in `docs/redis.md`, with `{prefix}` filled in.
fn recipe(name: &str, prefix: &str) -> Vec<Vec<String>> {
    let page = include_str!("../../../../docs/redis.md");
    let begin = format!("<!-- recipe: {name} -->");
    let text = page.split(&begin).nth(1).unwrap_or_else(|| panic!("docs/redis.md has no recipe {name}"));
    let block = text.split("```").nth(1).unwrap();
    let joined = block.replace("\\\n", " ");
    let lines = joined.lines().skip(1).filter(|line| !line.trim().is_empty());
    lines.map(|line| line.split_whitespace().map(|word| word.replace("{prefix}", prefix)).collect()).collect()
}

fn apply(server: &Server, commands: &[Vec<String>]) {
    for command in commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        assert_eq!(server.cli(&words), "OK", "{words:?}");
    }
}

fn secret(dir: &std::path::Path, name: &str, text: &str) -> SecretFile {
    std::fs::write(dir.join(name), text).unwrap();
    SecretFile::new(dir.join(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_acl_recipes_are_enough_and_no_more() {
    if !lab::available("the_documented_acl_recipes_are_enough_and_no_more") {
        return;
    }
    let server = Server::start(&[]);
    let prefix = "shop1:";
    for name in ["gateway", "emitter", "person"] {
        apply(&server, &recipe(name, prefix));
    }
    let mut config = standalone(&server);
    config.prefix = prefix.into();
    config.username = "signal-gateway".into();
    config.password_file = secret(server.dir.path(), "password", "change-me-gateway\n");
    let (mut a, mut b) = (open_with(&config, "a", quick(&config)).await, open_with(&config, "b", quick(&config)).await);
    // Everything that a gateway does.
    a.hear(&[client("4bC"), Destination::User("17".into()), room("r")]).await;
    b.publish(room("r"), 1).await;
    assert_eq!(a.number().await, 1);
    let revocation = Revocation { user_id: None, jti: Some("t".into()), issued_before_ms: 1, until_ms: SystemClock.now_ms() + 60_000 };
    a.bus.store_revocation(&revocation).await.unwrap();
    assert_eq!(b.bus.revocations().await.unwrap(), [revocation]);
    let question = Ask::Holds { client: "A".parse().unwrap() };
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        let BusEvent::Asked(_, reply) = b.event().await else { panic!("not asked") };
        reply.send(Reply::Count { count: 0 }).unwrap();
    });
    assert_eq!(answers.unwrap().replies.len(), 1);
    a.bus.unhear(vec![room("r")]);
    eventually("it is unsubscribed", async || !channels(&server, "shop1:ws:room:*").contains("shop1:ws:room:r")).await;
    assert!(server.cli(&["KEYS", "*"]).lines().all(|key| key.starts_with("shop1:signal:")));
    assert!(channels(&server, "*").iter().all(|c| c.starts_with("shop1:")));

    // Who may do what beside it; `-e` makes redis-cli fail on an error.
    let as_user = |user: &str, password: &str, command: &[&str]| {
        let login = ["--user", user, "--pass", password, "--no-auth-warning"];
        server.try_cli(&[&login[..], command].concat())
    };
    let emitted = EMITTED.replace(":1}", ":2}");
    assert!(as_user("signal-emitter", "change-me-emitter", &["PUBLISH", "shop1:ws:user:17", &emitted]).is_some());
    assert_eq!(a.number().await, 2);
    for (user, password, denied) in [
        ("signal-emitter", "change-me-emitter", vec!["PUBLISH", "shop1:signal:ask:x", "{}"]),
        ("signal-emitter", "change-me-emitter", vec!["SUBSCRIBE", "shop1:ws:broadcast"]),
        ("signal-emitter", "change-me-emitter", vec!["GET", "shop1:signal:worker:9"]),
        ("signal-person", "change-me-person", vec!["PUBLISH", "shop1:ws:broadcast", "{}"]),
        ("signal-person", "change-me-person", vec!["DEL", "shop1:signal:worker:9"]),
        ("signal-gateway", "change-me-gateway", vec!["PUBLISH", "ws:broadcast", "{}"]),
        ("signal-gateway", "change-me-gateway", vec!["GET", "other"]),
        ("signal-gateway", "change-me-gateway", vec!["KEYS", "*"]),
        ("signal-gateway", "change-me-gateway", vec!["EVAL", "return redis.call('GET', 'other')", "0"]),
    ] {
        assert_eq!(as_user(user, password, &denied), None, "{user} {denied:?}");
    }
    for looking in
        [vec!["PUBSUB", "NUMSUB", "shop1:ws:broadcast"], vec!["GET", "shop1:signal:worker:9"], vec!["TTL", "shop1:signal:worker:9"]]
    {
        assert!(as_user("signal-person", "change-me-person", &looking).is_some(), "{looking:?}");
    }
    server.cli(&["ACL", "SETUSER", "open", "on", "nopass", "+@all", "&*"]);
    (config.username, config.password_file) = ("open".into(), SecretFile::default());
    connect(&config).await.unwrap();
    config.username = "signal-gateway".into();
    config.password_file = secret(server.dir.path(), "wrong", "change-me-emitter");
    assert!(connect(&config).await.is_err(), "a wrong password is refused");
}

async fn connect(config: &config::Bus) -> redis::RedisResult<()> {
    let connector = Connector::new(config).unwrap();
    connector.link(&connect::Prefer::Any, None::<fn(redis::PushInfo) -> Result<(), ()>>).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_is_a_new_connection_beside_the_old_one_and_nothing_is_missed() {
    if !lab::available("a_changed_password_is_a_new_connection_beside_the_old_one_and_nothing_is_missed") {
        return;
    }
    let server = Server::start(&[]);
    server.cli(&["ACL", "SETUSER", "signal", "on", ">first", "+@all", "~*", "&*"]);
    let mut config = standalone(&server);
    config.username = "signal".into();
    config.password_file = secret(server.dir.path(), "password", "first");
    let b = opened(&standalone(&server)).await;
    let mut a = opened(&config).await;
    a.hear(&[room("r")]).await;
    let stop = CancellationToken::new();
    let sending = tokio::spawn({
        let (bus, stop) = (b.bus.clone(), stop.clone());
        async move {
            let mut n = 0;
            while !stop.is_cancelled() {
                bus.publish(&numbered(room("r"), n)).await.unwrap();
                n += 1;
            }
            n
        }
    });
    let ids = || -> HashSet<String> {
        let clients = server.cli(&["CLIENT", "LIST"]);
        let ours = clients.lines().filter(|line| line.contains("user=signal "));
        ours.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let mut before = ids();
    assert_eq!(before.len(), 2);
    for (old, new) in [("first", "second"), ("second", "third")] {
        // A wrong one first: the old connections stay.
        secret(server.dir.path(), "password", "wrong");
        eventually("a refused attempt", async || server.cli(&["ACL", "LOG", "100"]).contains("auth")).await;
        assert_eq!(ids(), before);
        server.cli(&["ACL", "LOG", "RESET"]);
        server.cli(&["ACL", "SETUSER", "signal", &format!(">{new}"), &format!("<{old}")]);
        secret(server.dir.path(), "password", new);
        eventually("both connections are new ones", async || {
            let now = ids();
            now.len() == 2 && now.is_disjoint(&before)
        })
        .await;
        before = ids();
        a.hear(&[room(new)]).await;
    }
    stop.cancel();
    let sent = sending.await.unwrap();
    assert!(sent > 0);
    for n in 0..sent {
        assert_eq!(a.number().await, n, "of {sent}");
    }
    a.nothing_waits();
    assert_eq!(a.metrics.bus_resyncs.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified_against_the_given_authority() {
    if !lab::available("tls_is_verified_against_the_given_authority") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path(), Ipv4Addr::LOCALHOST).unwrap();
    let other = tempfile::tempdir().unwrap();
    certificates(other.path(), Ipv4Addr::LOCALHOST).unwrap();
    let files = ["--tls-cert-file", "{dir}/cert.pem", "--tls-key-file", "{dir}/key.pem", "--tls-ca-cert-file", "{dir}/ca.pem"];
    let listen = ["--port", "0", "--tls-port", "{port}"].map(str::to_owned);
    let server =
        Server::start_in(dir, &listen, &[&files[..], &["--tls-auth-clients", "no"]].concat(), &["--tls", "--cacert", "{dir}/ca.pem"]);
    let mut config = standalone(&server);
    (config.tls, config.tls_ca_file) = (true, server.dir.path().join("ca.pem"));
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.hear(&[room("r")]).await;
    b.publish(room("r"), 1).await;
    assert_eq!(a.number().await, 1);

    connect(&config).await.unwrap();
    config.tls_ca_file = other.path().join("ca.pem");
    assert!(connect(&config).await.is_err(), "another authority is not trusted");
    config.tls = false;
    assert!(connect(&config).await.is_err(), "the server speaks TLS alone");
    config.tls = true;
    for wrong in ["missing.pem", "key.pem"] {
        config.tls_ca_file = server.dir.path().join(wrong);
        assert!(matches!(Connector::new(&config), Err(BusError::Misconfigured(_))), "{wrong}");
    }
}

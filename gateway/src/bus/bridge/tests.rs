//! The bridge against real servers: the contract of every bus, and a running instance that switches from one server to another.

mod failures;
mod instances;
mod numbers;
mod switching;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::bus::conformance::{self, count, numbered};
use crate::bus::pubsub::lab::{self, LIMIT, Server};
use crate::bus::{
    Ask, Bus, BusEvent, BusOptions, BusStatus, Interest, Opened, Reply, SubscriberState, open,
};
use crate::clock::{Clock, FixedClock, SystemClock};
use crate::config::{Config, Live, RedisAuth, RedisLocation, RedisMode, SecretFile};
use crate::dispatch::{Destination, Dispatch};
use crate::metrics::Metrics;
use crate::revocation::Revocation;

fn location(server: &Server) -> RedisLocation {
    let mut bus = Config::for_tests().redis;
    (bus.mode, bus.nodes) = (RedisMode::Standalone, vec![server.address()]);
    RedisLocation::of(&bus)
}

fn live(bus: Option<RedisLocation>, previous: Option<RedisLocation>) -> Arc<Live> {
    Arc::new(Live {
        redis: bus,
        redis_previous: previous,
        ..Live::defaults()
    })
}

fn options(
    server: &Server,
    name: &str,
    live: watch::Receiver<Arc<Live>>,
    clock: Arc<dyn Clock>,
) -> BusOptions {
    let mut config = Config::for_tests();
    lab::be_patient(&mut config.redis);
    config.redis = location(server).with_timings_of(&config.redis);
    let metrics = Metrics::new();
    BusOptions {
        config: config.redis,
        ids: config.ids,
        instance_name: name.into(),
        live,
        clock,
        metrics,
        shutdown: CancellationToken::new(),
    }
}

/// An instance as a test sees it.
struct Instance {
    bus: Arc<dyn Bus>,
    events: UnboundedReceiver<BusEvent>,
    worker: Arc<std::sync::atomic::AtomicU16>,
    live: watch::Sender<Arc<Live>>,
}

impl Instance {
    /// One whose live file names these.
    async fn start(fixed: &Server, name: &str, at_first: Arc<Live>) -> Self {
        let (live, following) = watch::channel(at_first);
        let options = options(fixed, name, following, Arc::new(SystemClock));
        let Opened {
            bus,
            mut events,
            worker,
        } = timeout(LIMIT, open(options))
            .await
            .expect("opens in time")
            .unwrap();
        // Taken as an instance does, whenever the test looks.
        let (taken, waiting) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut received = Vec::new();
            while events.next(&mut received).await
                && received.drain(..).all(|event| taken.send(event).is_ok())
            {}
        });
        Self {
            bus,
            events: waiting,
            worker,
            live,
        }
    }

    fn set(&self, bus: &RedisLocation, previous: Option<&RedisLocation>) {
        self.live
            .send_replace(live(Some(bus.clone()), previous.cloned()));
    }

    /// Has it switch and waits until it has.
    async fn switch(&self, bus: &RedisLocation, previous: Option<&RedisLocation>) {
        self.set(bus, previous);
        eventually("it is in place", async || {
            let facts = self.bus.status();
            let seen = facts
                .previous
                .as_ref()
                .map(|seen| (seen.nodes.as_slice(), seen.subscribed));
            facts.nodes == bus.nodes
                && !facts.switching
                && seen == previous.map(|location| (location.nodes.as_slice(), true))
        })
        .await;
    }

    async fn subscribe(&self, interests: &[Interest]) {
        timeout(LIMIT, self.bus.subscribe(interests.to_vec()))
            .await
            .unwrap()
            .unwrap();
    }

    async fn publish(&self, n: usize) {
        self.bus.publish(&numbered(room(), n)).await.unwrap();
    }

    async fn event(&mut self) -> BusEvent {
        timeout(LIMIT, self.events.recv())
            .await
            .expect("an event in time")
            .expect("the bus is open")
    }

    async fn number(&mut self) -> usize {
        match self.event().await {
            BusEvent::Dispatch(dispatch) => dispatch.data_text().unwrap().parse().unwrap(),
            other => panic!("not a dispatch: {other:?}"),
        }
    }

    fn nothing_waits(&mut self) {
        let event = self.events.try_recv();
        assert!(event.is_err(), "{event:?}");
    }

    fn worker(&self) -> u16 {
        self.worker.load(Ordering::Acquire)
    }

    fn status(&self) -> BusStatus {
        self.bus.status()
    }
}

fn room() -> Destination {
    Destination::Room("r".into())
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < LIMIT, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What an outside service publishes.
fn emit(server: &Server, n: usize) {
    server.cli(&[
        "PUBLISH",
        "ws:room:r",
        &format!("{{\"serverId\":\"emitter\",\"type\":\"room\",\"target\":\"r\",\"event\":\"e\",\"data\":{n}}}"),
    ]);
}

fn subscribers(server: &Server) -> String {
    server
        .cli(&["PUBSUB", "NUMSUB", "ws:room:r"])
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bridge_keeps_the_contract_of_every_bus_with_one_server_and_with_two() {
    if !lab::available("the_bridge_keeps_the_contract_of_every_bus_with_one_server_and_with_two") {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    for at_first in [
        live(None, None),
        live(Some(location(&new)), Some(location(&old))),
    ] {
        let clock = FixedClock::new(SystemClock.now());
        let (_live, following) = watch::channel(at_first.clone());
        let opened = open(options(&old, "one", following, Arc::new(clock.clone())))
            .await
            .unwrap();
        assert_eq!(
            opened
                .bus
                .status()
                .previous
                .is_some_and(|previous| previous.subscribed),
            at_first.redis_previous.is_some()
        );
        assert!(at_first.redis.is_some() || opened.worker.load(Ordering::Acquire) == 9);
        conformance::shared_revocations(&*opened.bus, &clock).await;
        conformance::alone(opened).await;
        for server in [&old, &new] {
            let keys = server.cli(&["KEYS", "*"]);
            assert!(
                matches!(keys.as_str(), "" | "signal:revocations"),
                "leases and entries among the live are given up: {keys}"
            );
            server.cli(&["FLUSHALL"]);
        }
    }
}

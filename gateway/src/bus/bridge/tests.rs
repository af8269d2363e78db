//! The switch against real servers: the contract of every bus, and a running instance that goes from one server to another.

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

fn place(server: &Server) -> RedisLocation {
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
    config.redis = place(server).with_timings_of(&config.redis);
    (
        config.redis.command_timeout_ms,
        config.redis.request_timeout_ms,
    ) = (2000, 1000);
    let (known_revocations, metrics) = (Arc::new(Vec::new), Metrics::new());
    BusOptions {
        config: config.redis,
        ids: config.ids,
        instance_name: name.into(),
        live,
        known_revocations,
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
        Self::knowing(fixed, name, at_first, Vec::new()).await
    }

    async fn knowing(
        fixed: &Server,
        name: &str,
        at_first: Arc<Live>,
        known: Vec<Revocation>,
    ) -> Self {
        let (tell, told) = watch::channel(at_first);
        let options = BusOptions {
            known_revocations: Arc::new(move || known.clone()),
            ..options(fixed, name, told, Arc::new(SystemClock))
        };
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
            let mut heard = Vec::new();
            while events.next(&mut heard).await
                && heard.drain(..).all(|event| taken.send(event).is_ok())
            {}
        });
        Self {
            bus,
            events: waiting,
            worker,
            live: tell,
        }
    }

    fn set(&self, bus: &RedisLocation, previous: Option<&RedisLocation>) {
        self.live
            .send_replace(live(Some(bus.clone()), previous.cloned()));
    }

    /// Has it go over and waits until it has.
    async fn go(&self, bus: &RedisLocation, previous: Option<&RedisLocation>) {
        self.set(bus, previous);
        eventually("it is in place", async || {
            let facts = self.bus.status();
            let told = facts
                .previous
                .as_ref()
                .map(|told| (told.nodes.as_slice(), told.subscribed));
            facts.nodes == bus.nodes
                && !facts.moving
                && told == previous.map(|place| (place.nodes.as_slice(), true))
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
            BusEvent::Dispatch(dispatch) => dispatch.data.get().parse().unwrap(),
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
        &format!("{{\"serverId\":\"emitter\",\"event\":\"e\",\"data\":{n}}}"),
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
async fn the_switch_keeps_the_contract_of_every_bus_with_one_server_and_with_two() {
    if !lab::available("the_switch_keeps_the_contract_of_every_bus_with_one_server_and_with_two") {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    for at_first in [live(None, None), live(Some(place(&new)), Some(place(&old)))] {
        let clock = FixedClock::new(SystemClock.now());
        let (_tell, told) = watch::channel(at_first.clone());
        let opened = open(options(&old, "one", told, Arc::new(clock.clone())))
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
        conformance::alone(opened, &clock).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_go_over_one_after_the_other_while_messages_flow_and_none_is_lost_doubled_or_late()
 {
    if !lab::available(
        "instances_go_over_one_after_the_other_while_messages_flow_and_none_is_lost_doubled_or_late",
    ) {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let (here, there) = (place(&old), place(&new));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let mut b = Instance::start(&old, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    b.subscribe(&[room()]).await;
    let workers = (a.worker(), b.worker());
    // Taken as they come.
    let taking = |instance: &mut Instance| {
        let mut events = std::mem::replace(
            &mut instance.events,
            tokio::sync::mpsc::unbounded_channel().1,
        );
        tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Some(event) = events.recv().await {
                match event {
                    BusEvent::Dispatch(dispatch) if &*dispatch.event == "end" => break,
                    BusEvent::Dispatch(dispatch) => {
                        taken.push(dispatch.data.get().parse::<usize>().unwrap())
                    }
                    other => panic!("not a dispatch: {other:?}"),
                }
            }
            taken
        })
    };
    let (taken_by_a, taken_by_b) = (taking(&mut a), taking(&mut b));
    let stop = CancellationToken::new();
    let sending = [&a, &b].map(|instance| count(&instance.bus, room(), &stop));
    // There, back at once, and there again; then without the one before.
    for (bus, previous) in [
        (&there, Some(&here)),
        (&here, Some(&there)),
        (&there, Some(&here)),
    ] {
        a.go(bus, previous).await;
        b.go(bus, previous).await;
    }
    assert_eq!(
        (a.worker(), b.worker()),
        workers,
        "the numbers were free there"
    );
    a.go(&there, None).await;
    b.go(&there, None).await;
    // Everything goes by the new one alone.
    eventually("the old one is left", async || subscribers(&old) == "0").await;
    a.subscribe(&[Interest::User("late".into())]).await;
    stop.cancel();
    let mut sent = Vec::new();
    for task in sending {
        sent.push(task.await.unwrap());
    }
    assert!(sent.iter().all(|sent| *sent > 100), "{sent:?}");
    let end = Dispatch {
        event: "end".into(),
        ..numbered(room(), 0)
    };
    for (sender, taken, sent) in [(&a, taken_by_b, sent[0]), (&b, taken_by_a, sent[1])] {
        sender.bus.publish(&end).await.unwrap();
        let taken = timeout(LIMIT, taken).await.unwrap().unwrap();
        let first_wrong = taken
            .iter()
            .copied()
            .zip(0..)
            .find(|(got, want)| got != want);
        assert_eq!((first_wrong, taken.len()), (None, sent));
    }
    assert_eq!(
        old.cli(&["KEYS", "*"]),
        "",
        "what is held there is given up"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emitter_is_heard_once_on_either_server_while_there_are_two() {
    if !lab::available("an_emitter_is_heard_once_on_either_server_while_there_are_two") {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let mut b = Instance::start(&old, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    b.subscribe(&[room()]).await;
    a.go(&place(&new), Some(&place(&old))).await;
    // Wanted from here on, on both.
    b.go(&place(&new), Some(&place(&old))).await;
    for (n, server) in [&old, &new, &old, &new].into_iter().enumerate() {
        emit(server, n);
        assert_eq!((a.number().await, b.number().await), (n, n));
    }
    a.bus.unsubscribe(vec![room()]);
    eventually("b alone hears", async || {
        subscribers(&old) == "1" && subscribers(&new) == "1"
    })
    .await;
    emit(&old, 7);
    assert_eq!(b.number().await, 7);
    a.nothing_waits();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_reached_leaves_the_one_in_use_until_it_can() {
    if !lab::available("a_server_that_cannot_be_reached_leaves_the_one_in_use_until_it_can") {
        return;
    }
    let (old, mut new) = (Server::start(&[]), Server::start(&[]));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let b = Instance::start(&old, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    new.kill();
    a.set(&place(&new), Some(&place(&old)));
    eventually("it says why", async || a.status().error.is_some()).await;
    let facts = a.status();
    assert!(facts.moving && facts.nodes == [old.address()], "{facts:?}");
    b.publish(1).await;
    assert_eq!(
        (a.number().await, a.bus.subscriber()),
        (1, SubscriberState::Live)
    );
    new.run();
    eventually("it has gone over", async || {
        a.status().nodes == [new.address()]
    })
    .await;
    eventually("nothing is wrong any more", async || {
        a.status().error.is_none()
    })
    .await;
    b.publish(2).await;
    assert_eq!(a.number().await, 2);
    // Taken back before it could be done: nothing is left of it.
    new.kill();
    a.go(&place(&old), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_previous_server_that_dies_harms_nothing_and_is_left_when_the_file_says_so() {
    if !lab::available(
        "a_previous_server_that_dies_harms_nothing_and_is_left_when_the_file_says_so",
    ) {
        return;
    }
    let (mut old, new) = (Server::start(&[]), Server::start(&[]));
    let mut a = Instance::start(&old, "a", live(None, None)).await;
    let b = Instance::start(&old, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    for instance in [&a, &b] {
        instance.go(&place(&new), Some(&place(&old))).await;
    }
    old.kill();
    eventually("it is known", async || {
        a.status()
            .previous
            .is_some_and(|previous| !previous.subscribed)
    })
    .await;
    for n in 0..100 {
        let began = Instant::now();
        b.publish(n).await;
        assert_eq!(a.number().await, n);
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    assert_eq!(
        (a.bus.subscriber(), a.bus.lease_lapsed()),
        (SubscriberState::Live, false)
    );
    a.subscribe(&[Interest::User("late".into())]).await;
    let question = Ask::Holds {
        client: "A".parse().unwrap(),
    };
    let (answers, ()) = tokio::join!(b.bus.ask(&question), async {
        let BusEvent::Asked(_, reply) = a.event().await else {
            panic!("not asked")
        };
        reply.send(Reply::Count { count: 0 }).unwrap();
    });
    assert_eq!(answers.unwrap().replies.len(), 1);
    b.go(&place(&new), None).await;
    assert_eq!(b.status().previous, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_on_the_old_server_alone_is_asked_there_and_who_is_on_both_once() {
    if !lab::available("who_is_on_the_old_server_alone_is_asked_there_and_who_is_on_both_once") {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let a = Instance::start(&old, "a", live(None, None)).await;
    let mut b = Instance::start(&old, "b", live(None, None)).await;
    let mut c = Instance::start(&old, "c", live(None, None)).await;
    for instance in [&a, &b] {
        instance.go(&place(&new), Some(&place(&old))).await;
    }
    let question = Ask::Holds {
        client: "4bC".parse().unwrap(),
    };
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        for instance in [&mut b, &mut c] {
            let BusEvent::Asked(_, reply) = instance.event().await else {
                panic!("not asked")
            };
            reply.send(Reply::Count { count: 1 }).unwrap();
        }
    });
    let answers = answers.unwrap();
    let mut names: Vec<&str> = answers
        .replies
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!((names, answers.missing.len()), (vec!["b", "c"], 0));
    b.nothing_waits();
    c.nothing_waits();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_numbers_are_never_shared_while_instances_are_on_different_servers() {
    if !lab::available("worker_numbers_are_never_shared_while_instances_are_on_different_servers") {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let a = Instance::start(&old, "a", live(None, None)).await;
    let b = Instance::start(&old, "b", live(None, None)).await;
    assert_eq!(a.worker(), 9);
    // Somebody has a's number there.
    let taken = |server: &Server, number: u16| {
        server.cli(&["SET", &format!("signal:worker:{number}"), "somebody else"])
    };
    taken(&new, 9);
    let fresh = Instance::start(&old, "fresh", live(Some(place(&new)), Some(place(&old)))).await;
    a.go(&place(&new), Some(&place(&old))).await;
    let numbers = [a.worker(), b.worker(), fresh.worker()];
    assert!(
        a.worker() != 9
            && numbers[0] != numbers[1]
            && numbers[1] != numbers[2]
            && numbers[0] != numbers[2],
        "{numbers:?}"
    );
    for server in [&old, &new] {
        for instance in [&a, &fresh] {
            let holder = server.cli(&["GET", &format!("signal:worker:{}", instance.worker())]);
            assert!(holder.len() == 32, "both servers know: {holder}");
        }
    }
    assert_eq!(
        old.cli(&["EXISTS", "signal:worker:9"]),
        "0",
        "the number before is given up"
    );
    // The old one says late that a number is another's.
    taken(&old, fresh.worker());
    let before = fresh.worker();
    fresh.go(&place(&new), None).await;
    fresh.go(&place(&new), Some(&place(&old))).await;
    assert_ne!(fresh.worker(), before);
    assert_eq!(
        old.cli(&["GET", &format!("signal:worker:{}", fresh.worker())])
            .len(),
        32
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_come_along_and_those_that_are_there_are_told() {
    if !lab::available("revocations_come_along_and_those_that_are_there_are_told") {
        return;
    }
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let until_ms = SystemClock.now_ms() + 60_000;
    let of = |user: &str| Revocation {
        user_id: Some(user.into()),
        jti: None,
        issued_before_ms: 1,
        until_ms,
    };
    let there = Instance::start(&new, "there", live(None, None)).await;
    there
        .bus
        .store_revocation(&of("stored there"))
        .await
        .unwrap();
    let mut a = Instance::knowing(&old, "a", live(None, None), vec![of("known")]).await;
    a.go(&place(&new), Some(&place(&old))).await;
    let BusEvent::Revocations(mut told) = a.event().await else {
        panic!("no revocations")
    };
    told.sort_by_key(|revocation| revocation.user_id.clone());
    assert_eq!(told, [of("known"), of("stored there")]);
    assert_eq!(there.bus.revocations().await.unwrap().len(), 2);
    a.bus.store_revocation(&of("made between")).await.unwrap();
    let late = Instance::start(&old, "late", live(None, None)).await;
    assert_eq!(
        late.bus.revocations().await.unwrap(),
        [of("made between")],
        "both have it"
    );
    late.bus.store_revocation(&of("old alone")).await.unwrap();
    assert_eq!(a.bus.revocations().await.unwrap().len(), 4, "both are read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_login_or_another_name_of_the_same_server_is_taken_up_without_a_gap() {
    if !lab::available("another_login_or_another_name_of_the_same_server_is_taken_up_without_a_gap")
    {
        return;
    }
    let server = Server::start(&[]);
    for (user, password) in [("one", "first"), ("two", "second")] {
        server.cli(&[
            "ACL",
            "SETUSER",
            user,
            "on",
            &format!(">{password}"),
            "+@all",
            "~*",
            "&*",
        ]);
        std::fs::write(server.dir.path().join(password), password).unwrap();
    }
    let by = |user: &str, password: &str| RedisLocation {
        auth: RedisAuth {
            username: user.into(),
            password_file: SecretFile::new(server.dir.path().join(password)),
        },
        ..place(&server)
    };
    let mut a = Instance::start(&server, "a", live(Some(by("one", "first")), None)).await;
    let b = Instance::start(&server, "b", live(None, None)).await;
    a.subscribe(&[room()]).await;
    let users = || {
        let clients = server.cli(&["CLIENT", "LIST"]);
        ["user=one ", "user=two "]
            .map(|user| clients.lines().filter(|line| line.contains(user)).count())
    };
    assert_eq!(users(), [2, 0]);
    let stop = CancellationToken::new();
    let sending = count(&b.bus, room(), &stop);
    a.set(&by("two", "first"), None);
    eventually("a wrong password is told", async || {
        a.status().error.is_some()
    })
    .await;
    assert_eq!(users(), [2, 0], "and changes nothing");
    a.set(&by("two", "second"), None);
    eventually("all connections are the other user's", async || {
        users() == [0, 2]
    })
    .await;
    assert!(a.status().error.is_none() && !a.status().moving);
    stop.cancel();
    let sent = sending.await.unwrap();
    for n in 0..sent {
        assert_eq!(a.number().await, n, "of {sent}");
    }
    a.nothing_waits();
    // By another name: nothing is heard twice.
    let named = RedisLocation {
        nodes: vec![format!("localhost:{}", server.port)],
        ..by("two", "second")
    };
    a.set(&named, Some(&place(&server)));
    eventually("the name is used", async || a.status().nodes == named.nodes).await;
    emit(&server, 1);
    emit(&server, 2);
    let mut numbers = Vec::new();
    while numbers.last() != Some(&2) {
        if let BusEvent::Dispatch(dispatch) = a.event().await {
            numbers.push(dispatch.data.get().parse::<usize>().unwrap());
        }
    }
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_follows_the_file_to_a_server_that_answers() {
    if !lab::available("a_start_follows_the_file_to_a_server_that_answers") {
        return;
    }
    let (mut dead, new) = (Server::start(&[]), Server::start(&[]));
    dead.kill();
    let (tell, told) = watch::channel(live(None, None));
    let opening = tokio::spawn(open(options(&dead, "one", told, Arc::new(SystemClock))));
    tell.send_replace(live(Some(place(&new)), Some(place(&dead))));
    let opened = timeout(LIMIT, opening).await.unwrap().unwrap().unwrap();
    let facts = opened.bus.status();
    assert_eq!(
        (
            facts.nodes,
            facts.previous.map(|previous| previous.subscribed)
        ),
        (vec![new.address()], Some(false))
    );
    opened.bus.close().await;
}

//! Messages of ours on segments of a real cluster: who uses them, and what happens when a slot or a master goes elsewhere.

use std::ops::RangeInclusive;

use super::audiences::audience;
use super::*;
use crate::bus::wire::Segment;

fn sharded(nodes: Vec<String>) -> config::Redis {
    let mut config = settings(RedisMode::Cluster, nodes);
    config.sharded_pubsub = true;
    config
}

async fn cluster() -> Vec<Server> {
    tokio::task::spawn_blocking(lab::cluster).await.unwrap()
}

fn addresses(servers: &[Server]) -> Vec<String> {
    servers.iter().map(Server::address).collect()
}

fn user(name: &str) -> Destination {
    Destination::User(name.into())
}

/// How often nodes ran a command.
fn calls(servers: &[Server], command: &str) -> usize {
    let prefix = format!("cmdstat_{command}:calls=");
    let of = |server: &Server| -> usize {
        let stats = server.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|rest| rest.split(',').next()?.parse().ok())
            .unwrap_or(0)
    };
    servers.iter().map(of).sum()
}

/// The slots of a node, as it reports them.
fn slots_of(server: &Server) -> Vec<RangeInclusive<u16>> {
    let nodes = server.cli(&["CLUSTER", "NODES"]);
    let own = nodes.lines().find(|line| line.contains("myself")).unwrap();
    own.split(' ')
        .skip(8)
        .filter_map(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            Some(from.parse().ok()?..=to.parse().ok()?)
        })
        .collect()
}

fn owner_of(servers: &[Server], slot: u16) -> usize {
    servers
        .iter()
        .position(|server| slots_of(server).iter().any(|range| range.contains(&slot)))
        .expect("a node has the slot")
}

/// Moves a slot without keys, as a resharding does.
fn move_slot(servers: &[Server], slot: u16) {
    let from = owner_of(servers, slot);
    let (from, to) = (&servers[from], &servers[(from + 1) % servers.len()]);
    let (from_id, to_id) = (from.cli(&["CLUSTER", "MYID"]), to.cli(&["CLUSTER", "MYID"]));
    let slot = slot.to_string();
    to.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    from.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    for server in [to, from] {
        server.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
}

async fn until_sharded(opening: &Opening, wanted: bool) {
    eventually("the others are listed", async || {
        opening.metrics.bus_sharded.get() == i64::from(wanted)
    })
    .await;
}

/// Two instances that use segments for each other.
async fn pair(servers: &[Server]) -> (Opening, Opening) {
    let config = sharded(addresses(servers));
    let a = open_with(&config, "a", quick(&config)).await;
    let b = open_with(&config, "b", quick(&config)).await;
    until_sharded(&a, true).await;
    until_sharded(&b, true).await;
    (a, b)
}

impl Opening {
    /// Waits until clients of this destination are told to sync, and returns whether it was a resync of everybody.
    async fn resync_of(&mut self, destination: &Destination) -> bool {
        loop {
            match self.event().await {
                BusEvent::ResyncFor(_, all) if all.contains(destination) => return false,
                BusEvent::Resync(_) => return true,
                BusEvent::ResyncFor(..) | BusEvent::Dispatch(_) => {}
                other => panic!("not a resync: {other:?}"),
            }
        }
    }

    /// Waits for a number; what comes before it is passed over.
    async fn until_number(&mut self, wanted: &str) {
        while !matches!(self.event().await, BusEvent::Dispatch(d) if d.data_text() == Some(wanted))
        {
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_that_come_up_at_the_same_time_are_all_counted() {
    // Nobody is there, so no task of the bus changes anything meanwhile.
    let config = sharded(vec!["127.0.0.1:1".into()]);
    let metrics = Metrics::new();
    let setup = setup("a", metrics.clone(), CancellationToken::new());
    let connecting = connect_timed(&config, &setup, quick(&config)).unwrap();
    let core = &connecting.bus.core;
    for round in 0..1000 {
        for feed in &core.segments {
            feed.interests.lock().down();
        }
        std::thread::scope(|scope| {
            for feed in &core.segments {
                scope.spawn(|| {
                    feed.interests.lock().up();
                    core.count_segments();
                });
            }
        });
        assert_eq!(metrics.bus_segments.get(), 16, "round {round}");
    }
}

/// protocol.md 10.17.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_ours_go_over_segments_in_order_and_those_of_emitters_as_ever() {
    if !lab::available("messages_of_ours_go_over_segments_in_order_and_those_of_emitters_as_ever") {
        return;
    }
    let servers = cluster().await;
    let (mut a, b) = pair(&servers).await;
    let destinations = [room("r"), client("A"), user("17"), Destination::Broadcast];
    a.subscribe(&destinations).await;
    assert_eq!(a.metrics.bus_segments.get(), 16);
    let before = calls(&servers, "spublish");
    for n in 0..50 {
        for destination in &destinations[..3] {
            b.publish(destination.clone(), n).await;
            let dispatch = a.dispatch().await;
            assert_eq!(dispatch.destination, *destination);
            assert_eq!(dispatch.data_text().unwrap(), n.to_string());
        }
    }
    let sent = calls(&servers, "spublish") - before;
    assert!(sent >= 150, "{sent} sharded publishes for 150 messages");
    b.publish(Destination::Broadcast, 50).await;
    assert_eq!(a.number().await, 50);
    // Queued at once, they arrive in order.
    for n in 0..2000 {
        drop(b.bus.publish(&numbered(room("r"), n)));
    }
    for n in 0..2000 {
        assert_eq!(a.number().await, n);
    }
    servers[0].cli(&["PUBLISH", "ws:room:r", EMITTED]);
    assert_eq!(a.number().await, 1);
    // A name that may be a client or a room reaches the client.
    b.publish(room("A"), 7).await;
    assert_eq!(a.dispatch().await.destination, room("A"));
    // What is left is unsubscribed from, and that is no gap.
    a.bus.unsubscribe(destinations.to_vec());
    let channels = || -> usize {
        let all = servers.iter().map(|s| s.cli(&["PUBSUB", "SHARDCHANNELS"]));
        all.map(|list| list.lines().filter(|l| l.contains("user:17")).count())
            .sum()
    };
    eventually("the channel is gone", async || channels() == 0).await;
    assert_eq!(a.metrics.bus_segments.get(), 16);
    a.nothing_waits();
}

/// protocol.md 10.16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audience_goes_to_the_segments_of_its_users_in_order_with_their_other_messages() {
    if !lab::available(
        "an_audience_goes_to_the_segments_of_its_users_in_order_with_their_other_messages",
    ) {
        return;
    }
    let servers = cluster().await;
    let (mut a, b) = pair(&servers).await;
    let users: Vec<String> = (0..200).map(|n| format!("user-{n}")).collect();
    a.subscribe(&[user("user-17")]).await;
    for n in 0..20 {
        b.bus.publish_audience(&audience(&users, n));
        b.publish(user("user-17"), n as usize).await;
    }
    let mut seqs = vec![0; users.len()];
    let mut own = 0;
    while own < 20 || seqs.iter().any(|seq| *seq < 20) {
        match a.event().await {
            BusEvent::Audience(encoded) => {
                for addressee in encoded.read().unwrap().addressees {
                    let at: usize = addressee.user["user-".len()..].parse().unwrap();
                    assert_eq!(addressee.seq, seqs[at], "{}", addressee.user);
                    seqs[at] += 1;
                }
            }
            BusEvent::Dispatch(dispatch) => {
                assert_eq!(dispatch.data_text().unwrap(), own.to_string());
                own += 1;
                assert_eq!(seqs[17], own, "the audience came before");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// protocol.md 10.17.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_without_segments_misses_nothing_and_ends_their_use_while_it_is_live() {
    if !lab::available(
        "an_instance_without_segments_misses_nothing_and_ends_their_use_while_it_is_live",
    ) {
        return;
    }
    let servers = cluster().await;
    let config = settings(RedisMode::Cluster, addresses(&servers));
    // As in a rolling upgrade: the old one first.
    let mut old = open_with(&config, "old", quick(&config)).await;
    old.subscribe(&[room("r")]).await;
    let new = sharded(addresses(&servers));
    let mut a = open_with(&new, "a", quick(&new)).await;
    let b = open_with(&new, "b", quick(&new)).await;
    a.subscribe(&[room("r")]).await;
    eventually("the others are listed", async || {
        b.bus.last_seen().len() == 2
    })
    .await;
    for n in 0..20 {
        b.publish(room("r"), n).await;
        assert_eq!((a.number().await, old.number().await), (n, n));
    }
    old.bus.close().await;
    until_sharded(&b, true).await;
    for n in 20..40 {
        b.publish(room("r"), n).await;
        assert_eq!(a.number().await, n);
    }
    // One that comes back has missed what was published until the others see it, and says so to nobody: they tell everybody.
    let mut old = open_with(&config, "old", quick(&config)).await;
    old.subscribe(&[room("r")]).await;
    until_sharded(&b, false).await;
    assert_eq!(old.resync().await, ResyncReason::BusPeerLost);
    b.publish(room("r"), 40).await;
    old.until_number("40").await;
    a.until_number("40").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_is_followed_and_its_clients_alone_are_told() {
    if !lab::available("a_slot_that_moves_is_followed_and_its_clients_alone_are_told") {
        return;
    }
    let servers = cluster().await;
    let (mut a, b) = pair(&servers).await;
    let segment = Segment::of(&room("r")).unwrap();
    let other = (0..)
        .map(|n| format!("other-{n}"))
        .find(|name| Segment::of_name(name) != segment)
        .unwrap();
    a.subscribe(&[room("r"), room(&other)]).await;
    b.publish(room("r"), 1).await;
    assert_eq!(a.number().await, 1);
    for round in 0..3 {
        move_slot(&servers, segment.slot());
        loop {
            let event = a.event().await;
            let BusEvent::ResyncFor(reason, told) = event else {
                panic!("not a resync of some: {event:?}")
            };
            assert_eq!(told, [room("r")], "round {round}");
            // What b gave up in the round before may be reported as late as this.
            if reason == ResyncReason::BusReconnected {
                break;
            }
        }
        b.publish_when_possible(room("r"), 100 + round).await;
        a.until_number(&(100 + round).to_string()).await;
        b.publish(room(&other), 200 + round).await;
        a.until_number(&(200 + round).to_string()).await;
        // What b gave up meanwhile is reported, too.
        tokio::time::sleep(Duration::from_millis(300)).await;
        while let Some(received) = a.events.try_recv() {
            let event = received.event;
            assert!(
                matches!(&event, BusEvent::ResyncFor(_, told) if *told == [room("r")]),
                "{event:?}"
            );
        }
    }
}

/// protocol.md 9.12.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_gives_its_segments_to_its_replica_and_their_clients_are_told() {
    if !lab::available(
        "a_master_that_dies_gives_its_segments_to_its_replica_and_their_clients_are_told",
    ) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let started = move || signal_services::Redis::start_cluster(&path).unwrap();
    let mut nodes = tokio::task::spawn_blocking(started).await.unwrap();
    let config = sharded(
        nodes
            .iter()
            .map(|node| node.address().to_string())
            .collect(),
    );
    let mut a = open_with(&config, "a", quick(&config)).await;
    let b = open_with(&config, "b", quick(&config)).await;
    until_sharded(&b, true).await;
    // A name of each segment, so that every master has some.
    let names: Vec<String> = Segment::all()
        .map(|segment| {
            let mut names = (0..).map(|n| format!("room-{n}"));
            names
                .find(|name| Segment::of_name(name) == segment)
                .unwrap()
        })
        .collect();
    let rooms: Vec<Destination> = names.iter().map(|name| room(name)).collect();
    a.subscribe(&rooms).await;
    for (n, room) in rooms.iter().enumerate() {
        b.publish(room.clone(), n).await;
        assert_eq!(a.number().await, n);
    }
    // The first three are the masters, and the first has the first slots.
    nodes[0].kill();
    b.publish_when_possible(rooms[0].clone(), 77).await;
    a.resync_of(&rooms[0]).await;
    for (n, room) in rooms.iter().enumerate() {
        b.publish_when_possible(room.clone(), 100 + n).await;
        eventually("the subscriber is back", async || {
            a.metrics.bus_segments.get() == 16
        })
        .await;
    }
    for (n, room) in rooms.iter().enumerate() {
        b.publish_when_possible(room.clone(), 200 + n).await;
        a.until_number(&(200 + n).to_string()).await;
    }
}

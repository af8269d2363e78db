//! Servers that die, stand still or change roles, and connections that go silent.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_of_the_server_everything_is_subscribed_again_then_one_resync_follows() {
    if !lab::available(
        "after_a_kill_of_the_server_everything_is_subscribed_again_then_one_resync_follows",
    ) {
        return;
    }
    let mut server = Server::start(&[]);
    let mut config = standalone(&server);
    config.stalled_after_ms = 3000;
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.subscribe(&[room("before"), room("left")]).await;
    server.kill();
    eventually("publishing fails", async || {
        b.bus.publish(&numbered(room("before"), 0)).await.is_err()
    })
    .await;
    let began = Instant::now();
    assert!(matches!(
        b.bus.publish(&numbered(room("before"), 0)).await,
        Err(BusError::Unavailable(_))
    ));
    eventually("subscribing fails", async || {
        a.bus.subscribe(vec![room("during")]).await.is_err()
    })
    .await;
    assert!(matches!(
        a.bus
            .ask(&Ask::Holds {
                client: "A".parse().unwrap()
            })
            .await,
        Err(BusError::Unavailable(_))
    ));
    a.bus.unsubscribe(vec![room("left")]);
    assert!(
        began.elapsed() < Duration::from_millis(config.command_timeout_ms / 2),
        "nothing waits for a server that is away"
    );
    eventually("no ping comes back", async || {
        a.bus.subscriber() == SubscriberState::Stalled
    })
    .await;

    server.run();
    assert_eq!(a.resync().await, ResyncReason::BusReconnected);
    assert!(
        channels(&server, "ws:room:*")
            .is_superset(&["ws:room:before".to_owned(), "ws:room:during".to_owned()].into())
    );
    assert!(!channels(&server, "ws:room:*").contains("ws:room:left"));
    b.publish_when_possible(room("before"), 1).await;
    b.publish(room("during"), 2).await;
    let mut numbers = Vec::new();
    while numbers.len() < 2 {
        match a.event().await {
            BusEvent::Dispatch(dispatch) => numbers.push(dispatch.data_text().unwrap().to_owned()),
            // What b lost is reported as well, if it could publish again later than this one could receive.
            BusEvent::Resync(ResyncReason::BusPeerLost) | BusEvent::ResyncFor(..) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(numbers, ["1", "2"]);
    eventually("pings come back", async || {
        a.bus.subscriber() == SubscriberState::Live
    })
    .await;
    eventually("leases are put back", async || {
        [a.worker, b.worker].iter().all(|w| {
            !server
                .cli(&["GET", &format!("signal:worker:{w}")])
                .is_empty()
        })
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
    a.subscribe(&[room("r")]).await;
    for round in 0..3 {
        assert_ne!(server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]), "0");
        assert_eq!(a.resync().await, ResyncReason::BusReconnected);
        b.publish(room("r"), round).await;
        assert_eq!(a.number().await, round);
    }
    a.nothing_waits();
    assert_eq!(
        a.bus.subscriber(),
        SubscriberState::Live,
        "a short gap is not a stall"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_connection_the_lease_is_renewed_until_it_has_succeeded() {
    if !lab::available("after_a_lost_connection_the_lease_is_renewed_until_it_has_succeeded") {
        return;
    }
    let server = Server::start(&[]);
    let a = opened(&standalone(&server)).await;
    // The first connection asks for a renewal as well.
    eventually("it is leased", async || !a.bus.lease_doubtful()).await;
    // Connections can be made, and scripts cannot be run.
    server.cli(&["ACL", "SETUSER", "default", "-eval"]);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually("the renewal fails", async || a.bus.lease_doubtful()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(a.bus.lease_doubtful() && !a.bus.lease_lapsed());
    server.cli(&["ACL", "SETUSER", "default", "+eval"]);
    eventually("it is renewed", async || !a.bus.lease_doubtful()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_losses_of_a_publisher_become_a_resync_for_the_others() {
    if !lab::available("the_losses_of_a_publisher_become_a_resync_for_the_others") {
        return;
    }
    let server = Server::start(&[]);
    let mut config = standalone(&server);
    // So seldom that the next to be published is the dispatch.
    (config.self_ping_interval_ms, config.stalled_after_ms) = (60_000, 120_000);
    let mut timing = quick(&config);
    timing.beat = Duration::from_secs(60);
    let (mut a, b) = (opened(&config).await, open_with(&config, "b", timing).await);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert!(matches!(
        b.bus.publish(&numbered(room("r"), 1)).await,
        Err(BusError::Unavailable(_))
    ));
    match a.event().await {
        BusEvent::ResyncFor(_, destinations) => assert_eq!(destinations, [room("r")]),
        other => panic!("only those it was for are told: {other:?}"),
    }
    b.publish_when_possible(Destination::Broadcast, 2).await;
    assert_eq!(a.number().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_stalls_the_subscriber_which_repairs_itself() {
    if !lab::available("a_server_that_stands_still_stalls_the_subscriber_which_repairs_itself") {
        return;
    }
    let server = Server::start(&[]);
    let mut config = standalone(&server);
    (config.command_timeout_ms, config.stalled_after_ms) = (500, 700);
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.subscribe(&[room("r")]).await;
    eventually("it is live", async || {
        a.bus.subscriber() == SubscriberState::Live
    })
    .await;
    server.signal("STOP");
    let published = timeout(LIMIT, b.bus.publish(&numbered(room("r"), 1))).await;
    assert!(
        published
            .expect("an answer that does not come is given up")
            .is_err()
    );
    eventually("the stall is noticed", async || {
        a.bus.subscriber() == SubscriberState::Stalled && a.metrics.bus_stalled.get() == 1
    })
    .await;
    server.signal("CONT");
    let reason = a.resync().await;
    assert!(
        matches!(
            reason,
            ResyncReason::BusStalled | ResyncReason::BusReconnected
        ),
        "{reason:?}"
    );
    eventually("it is live again", async || {
        a.bus.subscriber() == SubscriberState::Live && a.metrics.bus_stalled.get() == 0
    })
    .await;
    b.publish_when_possible(room("r"), 2).await;
    while !matches!(a.event().await, BusEvent::Dispatch(d) if d.data_text() == Some("2")) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_holds_publishing_back_stalls_the_subscriber_which_repairs_itself() {
    if !lab::available(
        "a_server_that_holds_publishing_back_stalls_the_subscriber_which_repairs_itself",
    ) {
        return;
    }
    let server = Server::start(&[]);
    let mut config = standalone(&server);
    config.stalled_after_ms = 700;
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.subscribe(&[room("r")]).await;
    // Connections stay and nothing is received, until the stall was seen.
    server.cli(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    eventually("the stall is noticed", async || {
        a.bus.subscriber() == SubscriberState::Stalled
    })
    .await;
    server.cli(&["CLIENT", "UNPAUSE"]);
    assert_eq!(a.resync().await, ResyncReason::BusStalled);
    eventually("it is live again", async || {
        a.bus.subscriber() == SubscriberState::Live
    })
    .await;
    b.publish_when_possible(room("r"), 1).await;
    while !matches!(a.event().await, BusEvent::Dispatch(d) if d.data_text() == Some("1")) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_whose_connection_goes_silent_is_stalled_and_repaired_while_publishing_goes_on()
 {
    if !lab::available(
        "a_subscriber_whose_connection_goes_silent_is_stalled_and_repaired_while_publishing_goes_on",
    ) {
        return;
    }
    let server = Server::start(&[]);
    let proxy = lab::Proxy::start(server.port).await;
    let mut config = settings(RedisMode::Standalone, vec![proxy.address()]);
    // Longer than this machine takes for the two messages below.
    config.stalled_after_ms = 3000;
    let (mut a, mut b) = (opened(&config).await, opened(&standalone(&server)).await);
    a.subscribe(&[room("r")]).await;
    b.subscribe(&[room("r")]).await;
    proxy.mute_subscribers();
    b.publish(room("r"), 1).await;
    a.publish(room("r"), 2).await;
    assert_eq!(b.number().await, 2);
    assert_eq!(
        a.resync().await,
        ResyncReason::BusStalled,
        "and the message in the gap is lost"
    );
    b.publish(room("r"), 3).await;
    assert_eq!(a.number().await, 3);
    eventually("it is live again", async || {
        a.bus.subscriber() == SubscriberState::Live
    })
    .await;
    b.nothing_waits();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_sentinels_is_followed() {
    if !lab::available("a_failover_by_sentinels_is_followed") {
        return;
    }
    let (mut master, replica, sentinels) =
        tokio::task::spawn_blocking(lab::sentinels).await.unwrap();
    let mut nodes: Vec<String> = sentinels.iter().map(Server::address).collect();
    nodes.insert(
        0,
        format!("127.0.0.1:{}", signal_services::free_port().unwrap()),
    );
    let config = settings(RedisMode::Sentinel, nodes);
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.subscribe(&[room("r")]).await;
    b.publish(room("r"), 1).await;
    assert_eq!(a.number().await, 1);
    assert_eq!(channels(&master, "ws:room:*").len(), 1);
    master.kill();
    a.resync().await;
    assert_eq!(
        channels(&replica, "ws:room:*").len(),
        1,
        "on the new master"
    );
    b.publish_when_possible(room("r"), 2).await;
    while !matches!(a.event().await, BusEvent::Dispatch(d) if d.data_text() == Some("2")) {}
    eventually("the lease is there", async || {
        !replica
            .cli(&["GET", &format!("signal:worker:{}", a.worker)])
            .is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_hands_messages_from_any_node_to_any_and_survives_a_node() {
    if !lab::available("a_cluster_hands_messages_from_any_node_to_any_and_survives_a_node") {
        return;
    }
    let mut servers = tokio::task::spawn_blocking(lab::cluster).await.unwrap();
    let config = settings(
        RedisMode::Cluster,
        servers.iter().map(Server::address).collect(),
    );
    let (mut a, mut b) = (
        open_with(&config, "a", quick(&config)).await,
        open_with(&config, "b", quick(&config)).await,
    );
    assert!(a.worker == 9 && b.worker != 9);
    a.subscribe(&[room("r"), client("A")]).await;
    for (n, server) in servers.iter().enumerate() {
        server.cli(&[
            "PUBLISH",
            "ws:room:r",
            &EMITTED.replace(":1}", &format!(":{n}}}")),
        ]);
        assert_eq!(a.number().await, n);
    }
    for n in 0..100 {
        b.publish(client("A"), n).await;
        assert_eq!(a.number().await, n);
    }
    let revocation = Revocation {
        user_id: Some("1".into()),
        jti: None,
        issued_before_ms: 1,
        until_ms: SystemClock.now_ms() + 60_000,
    };
    b.bus.share_revocation(&revocation).await.unwrap();
    assert_eq!(a.bus.shared_revocations().await.unwrap(), [revocation]);
    let question = Ask::Holds {
        client: "A".parse().unwrap(),
    };
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        let BusEvent::Asked(_, reply) = b.event().await else {
            panic!("not asked")
        };
        reply.send(Reply::Count { count: 0 }).unwrap();
    });
    assert_eq!(answers.unwrap().replies.len(), 1);

    // A slot moves, with the key in it: leases, questions and revocations follow.
    move_key(&servers, "signal:revocations");
    eventually("the key is found where it went", async || {
        a.bus
            .shared_revocations()
            .await
            .is_ok_and(|all| all.len() == 1)
    })
    .await;
    b.publish(room("r"), 8).await;
    // Without a resync before it: classic Pub/Sub does not depend on slots.
    assert_eq!(a.number().await, 8);

    let holder = servers
        .iter()
        .position(|s| channels(s, "ws:room:r").len() == 1)
        .unwrap();
    servers[holder].kill();
    // A cluster without replicas is not whole with one node gone; the node comes back under its name.
    servers[holder].run();
    a.resync().await;
    b.publish_when_possible(room("r"), 7).await;
    while !matches!(a.event().await, BusEvent::Dispatch(d) if d.data_text() == Some("7")) {}
}

/// Moves the slot of a key from the node that has it to another, as a resharding does.
fn move_key(servers: &[Server], key: &str) {
    let slot = servers[0].cli(&["CLUSTER", "KEYSLOT", key]);
    let from = servers
        .iter()
        .find(|s| s.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]) == key)
        .unwrap();
    let to = servers.iter().find(|s| s.port != from.port).unwrap();
    let (from_id, to_id) = (from.cli(&["CLUSTER", "MYID"]), to.cli(&["CLUSTER", "MYID"]));
    to.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    from.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    from.cli(&[
        "MIGRATE",
        "127.0.0.1",
        &to.port.to_string(),
        key,
        "0",
        "5000",
    ]);
    for server in [to, from] {
        server.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
}

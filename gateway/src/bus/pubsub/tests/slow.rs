//! A Redis that answers, but late.

use super::*;

async fn behind(server: &Server) -> (lab::Proxy, config::Redis) {
    let proxy = lab::Proxy::start(server.port).await;
    let config = settings(RedisMode::Standalone, vec![proxy.address()]);
    (proxy, config)
}

/// protocol.md 8.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_takes_many_pipelines_at_a_time_and_keeps_their_order() {
    if !lab::available("a_slow_server_takes_many_pipelines_at_a_time_and_keeps_their_order") {
        return;
    }
    let server = Server::start(&[]);
    let (proxy, config) = behind(&server).await;
    let (mut a, b) = (opened(&standalone(&server)).await, opened(&config).await);
    a.subscribe(&[room("r")]).await;
    let round_trip = Duration::from_secs(1);
    proxy.set_round_trip(round_trip);
    let began = Instant::now();
    for n in 0..8000 {
        // Whoever does not need the outcome does not wait for it.
        drop(b.bus.publish(&numbered(room("r"), n)));
    }
    for n in 0..8000 {
        assert_eq!(a.number().await, n);
    }
    assert!(
        began.elapsed() < 12 * round_trip,
        "one pipeline at a time takes 16 round trips: {:?}",
        began.elapsed()
    );
}

/// protocol.md 9.12.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_finds_no_room_behind_a_slow_server_is_given_up_and_those_it_was_for_are_told() {
    if !lab::available(
        "what_finds_no_room_behind_a_slow_server_is_given_up_and_those_it_was_for_are_told",
    ) {
        return;
    }
    let server = Server::start(&[]);
    let (proxy, mut config) = behind(&server).await;
    config.publish_queue = 100;
    let (mut a, b) = (opened(&standalone(&server)).await, opened(&config).await);
    a.subscribe(&[room("kept"), room("r")]).await;
    b.publish(room("kept"), 0).await;
    assert_eq!(a.number().await, 0);
    proxy.set_round_trip(Duration::from_millis(400));
    // Far more at once than the queue holds, without a moment for the publisher: a runtime of its own would be needed to take them.
    let mut given_up = 0;
    for n in 0..200_000 {
        match b.bus.publish(&numbered(room("r"), n)).now_or_never() {
            Some(Err(BusError::Full)) => given_up += 1,
            Some(Err(other)) => panic!("{other:?}"),
            // It waits, or the machine took longer than a round trip between the two steps.
            Some(Ok(())) | None => {}
        }
        if given_up > 10 {
            break;
        }
    }
    assert!(given_up > 10);
    let told = loop {
        match a.event().await {
            BusEvent::Dispatch(_) => {}
            BusEvent::ResyncFor(_, destinations) => break destinations,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told, [room("r")], "nobody else");
    let full = b
        .metrics
        .bus_published
        .get_or_create(&Metrics::kind("full"));
    assert_eq!(full.get(), given_up);
}

/// protocol.md 9.11.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_confirmed_however_late_and_everything_from_then_on_comes() {
    if !lab::available("a_subscription_is_confirmed_however_late_and_everything_from_then_on_comes")
    {
        return;
    }
    let server = Server::start(&[]);
    let (proxy, config) = behind(&server).await;
    let (mut a, b) = (opened(&config).await, opened(&standalone(&server)).await);
    let round_trip = Duration::from_secs(1);
    proxy.set_round_trip(round_trip);
    let began = Instant::now();
    let confirmed = a.bus.subscribe(vec![room("r")]);
    timeout(LIMIT, confirmed).await.unwrap().unwrap();
    assert!(
        began.elapsed() >= round_trip,
        "the server has confirmed it: {:?}",
        began.elapsed()
    );
    proxy.set_round_trip(Duration::ZERO);
    b.publish(room("r"), 1).await;
    assert_eq!(a.number().await, 1);
}

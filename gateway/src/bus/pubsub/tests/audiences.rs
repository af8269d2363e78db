//! One event for many users, as one message.

use super::*;
use crate::dispatch::{Addressee, SharedText};

/// A notification for each of these users.
pub(in crate::bus::pubsub) fn audience<U: AsRef<str>>(users: &[U], seq: i64) -> Audience<'_> {
    let addressee = |user| Addressee {
        user,
        id: "4bC".parse().unwrap(),
        seq,
        unread_count: 2,
        version: 3,
    };
    Audience {
        text: Arc::new(SharedText {
            event: "notification:created".into(),
            pieces: [
                r#"{"notification":{"id":"#.into(),
                r#","recipientId":"#.into(),
                r#"},"previousSeq":"#.into(),
            ],
        }),
        addressees: users.iter().map(AsRef::as_ref).map(addressee).collect(),
        span: tracing::Span::none(),
    }
}

fn user(name: &str) -> Interest {
    Interest::User(name.into())
}

fn user_17(event: &BusEvent) -> serde_json::Value {
    let dispatch = match event {
        BusEvent::Dispatch(dispatch) => dispatch.clone(),
        BusEvent::Audience(encoded) => encoded.read().unwrap().dispatches().next().unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(dispatch.destination, user("17"));
    serde_json::from_str(dispatch.data_text().unwrap()).unwrap()
}

/// Publishes until an audience comes as one message; those before it come as messages to the user.
async fn until_one_message(a: &mut Opening, b: &Opening) {
    timeout(LIMIT, async {
        loop {
            b.bus.publish_audience(&audience(&["17", "18"], 1));
            if matches!(a.event().await, BusEvent::Audience(_)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("both take audiences");
}

/// protocol.md 8.1 and 10.16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audience_is_one_message_in_its_place_among_the_others() {
    if !lab::available("an_audience_is_one_message_in_its_place_among_the_others") {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let mut a = open_with(&config, "a", quick(&config)).await;
    let b = open_with(&config, "b", quick(&config)).await;
    a.subscribe(&[user("17")]).await;
    until_one_message(&mut a, &b).await;
    for n in 0..100 {
        drop(b.bus.publish(&numbered(user("17"), 2 * n)));
        b.bus
            .publish_audience(&audience(&["17", "18"], 2 * n as i64 + 1));
    }
    for n in 0..100 {
        assert_eq!(a.number().await, 2 * n);
        let event = a.event().await;
        assert!(matches!(event, BusEvent::Audience(_)), "{event:?}");
        let expected = serde_json::json!({
            "notification": {"id": "4bC", "seq": 2 * n + 1, "recipientId": "17"},
            "previousSeq": 2 * n, "unreadCount": 2, "version": 3,
        });
        assert_eq!(user_17(&event), expected);
    }
    eventually("it ignores its own", async || b.received("own") >= 100).await;
}

/// protocol.md 9.12 and 10.16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_gets_a_message_while_an_older_instance_is_live_and_all_are_told_what_it_missed()
{
    if !lab::available(
        "each_user_gets_a_message_while_an_older_instance_is_live_and_all_are_told_what_it_missed",
    ) {
        return;
    }
    let server = Server::start(&[]);
    let config = standalone(&server);
    let mut a = open_with(&config, "a", quick(&config)).await;
    let b = open_with(&config, "b", quick(&config)).await;
    a.subscribe(&[user("17")]).await;
    until_one_message(&mut a, &b).await;
    // It is live as of a minute from here, and does not say that it takes audiences.
    let now: u64 = server
        .cli(&["TIME"])
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let at = format!("{}000", now + 60);
    let member = format!("{} older", new_instance());
    server.cli(&["ZADD", "signal:instances", &at, &member]);
    assert_eq!(
        a.resync().await,
        ResyncReason::BusPeerLost,
        "the older instance reads this report as well"
    );
    b.bus.publish_audience(&audience(&["17", "18"], 7));
    let event = loop {
        match a.event().await {
            BusEvent::Resync(_) => {}
            event => break event,
        }
    };
    assert!(matches!(event, BusEvent::Dispatch(_)), "{event:?}");
    assert_eq!(user_17(&event)["notification"]["seq"], 7);
    server.cli(&["ZREM", "signal:instances", &member]);
    until_one_message(&mut a, &b).await;
}

/// protocol.md 9.12.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_whose_audience_finds_no_room_are_told() {
    if !lab::available("those_whose_audience_finds_no_room_are_told") {
        return;
    }
    let server = Server::start(&[]);
    let mut config = standalone(&server);
    let mut a = open_with(&config, "a", quick(&config)).await;
    config.publish_queue = 100;
    let b = open_with(&config, "b", quick(&config)).await;
    a.subscribe(&[user("17")]).await;
    until_one_message(&mut a, &b).await;
    let published = &b.metrics.bus_published;
    let full = published.get_or_create_owned(&Metrics::kind("full"));
    while full.get() == 0 {
        b.bus.publish_audience(&audience(&["17", "18"], 7));
    }
    let mut told = loop {
        match a.event().await {
            BusEvent::Audience(_) => {}
            BusEvent::ResyncFor(_, destinations) => break destinations,
            other => panic!("{other:?}"),
        }
    };
    told.sort_by_key(|destination| format!("{destination:?}"));
    assert_eq!(told, [user("17"), user("18")], "nobody else");
}

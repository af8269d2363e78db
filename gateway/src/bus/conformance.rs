//! What every [`Bus`] keeps, run against each implementation.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Ask, Bus, Interest, Opened, SubscriberState};
use crate::clock::{Clock, FixedClock};
use crate::dispatch::{Destination, Dispatch};
use crate::id::Id;
use crate::revocation::Revocation;

/// A dispatch with a number as data.
pub(super) fn numbered(destination: Destination, n: usize) -> Dispatch {
    Dispatch::new(
        destination,
        "e",
        Arc::from(RawValue::from_string(n.to_string()).unwrap()),
    )
}

/// Publishes numbers from 0 on, one after the other, until `stop`; then returns how many they were.
pub(super) fn count(
    bus: &Arc<dyn Bus>,
    destination: Destination,
    stop: &CancellationToken,
) -> JoinHandle<usize> {
    let (bus, stop) = (Arc::clone(bus), stop.clone());
    tokio::spawn(async move {
        let mut n = 0;
        while !stop.is_cancelled() {
            bus.publish(&numbered(destination.clone(), n))
                .await
                .unwrap();
            n += 1;
        }
        n
    })
}

/// The contract as far as one instance alone can see it. Ends with the bus closed.
pub(super) async fn alone(opened: Opened) {
    let Opened {
        bus, mut events, ..
    } = opened;
    let id: Id = "4bC".parse().unwrap();
    let interests = vec![
        Interest::Client(id),
        Interest::User("17".into()),
        Interest::Room("r".into()),
        Interest::Broadcast,
    ];
    bus.subscribe(interests.clone()).await.unwrap();
    bus.subscribe(interests.clone()).await.unwrap();
    bus.subscribe(Vec::new()).await.unwrap();
    assert_eq!(bus.subscriber(), SubscriberState::Live);
    assert!(!bus.lease_lapsed());

    for destination in interests.clone() {
        bus.publish(&numbered(destination, 1)).await.unwrap();
    }
    let answers = bus.ask(&Ask::Holds { client: id }).await.unwrap();
    assert!(
        answers.replies.is_empty() && answers.missing.is_empty(),
        "there is no other instance"
    );

    assert!(bus.last_seen().is_empty());
    let first = bus.reception().unwrap();
    let reception = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            let reception = bus.reception().unwrap();
            if reception.until > first.until {
                return reception;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(
        reception.await.expect("it goes on").gaps,
        first.gaps,
        "without a gap"
    );
    let revocation = Revocation {
        user_id: Some("17".into()),
        jti: None,
        issued_before_ms: 1,
        until_ms: 4_000_000_000_000,
    };
    bus.share_revocation(&revocation).await.unwrap();

    bus.unsubscribe(interests.clone());
    bus.unsubscribe(interests);
    bus.unsubscribe(vec![Interest::Room("never subscribed to".into())]);
    bus.close().await;
    bus.close().await;
    let mut received = Vec::new();
    let goes_on = tokio::time::timeout(Duration::from_secs(5), events.next(&mut received))
        .await
        .unwrap();
    assert!(
        !goes_on && received.is_empty(),
        "an instance does not receive what it published itself, and events end: {received:?}"
    );
}

/// Where instances of the release before keep revocations.
pub(super) async fn shared_revocations(bus: &dyn Bus, clock: &FixedClock) {
    let now = clock.now_ms();
    let of = |user: &str, until_ms| Revocation {
        user_id: Some(user.into()),
        jti: None,
        issued_before_ms: now,
        until_ms,
    };
    let token = Revocation {
        user_id: None,
        jti: Some("t\"1".into()),
        issued_before_ms: now,
        until_ms: now + 60_000,
    };
    assert!(bus.shared_revocations().await.unwrap().is_empty());
    for revocation in [
        &of("a", now + 1_000),
        &of("b", now + 60_000),
        &token,
        &token,
    ] {
        bus.share_revocation(revocation).await.unwrap();
    }
    let mut stored = bus.shared_revocations().await.unwrap();
    stored.sort_by_key(|r| (r.until_ms, r.jti.clone()));
    assert_eq!(
        stored,
        [of("a", now + 1_000), of("b", now + 60_000), token.clone()],
        "each once"
    );
    clock.advance_ms(1_000);
    let stored = bus.shared_revocations().await.unwrap();
    assert_eq!(
        stored.len(),
        2,
        "a revocation that has ended is forgotten: {stored:?}"
    );
    bus.share_revocation(&of("c", now + 70_000)).await.unwrap();
    assert_eq!(bus.shared_revocations().await.unwrap().len(), 3);
}

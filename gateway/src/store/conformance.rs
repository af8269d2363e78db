//! One suite for every implementation of the storage traits: it says what their docs mean.
//!
//! Each function below runs against SQLite and against a real PostgreSQL, on a database of its own.

mod inbox;
mod outage;
mod policies;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::task::JoinSet;

use self::inbox::*;
use self::policies::*;
use super::testing::{TestDatabase, activity, ids};
use super::*;
use crate::config::{Config, Secret, SecretFile};
use crate::notification::NewActivity;
use platform::{Platform, PolicyDefinition};
use tokio_util::sync::CancellationToken;

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&super::TestDatabase::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(database) = super::TestDatabase::postgres(stringify!($name)).await {
                    super::$name(&database).await;
                }
            })*
        }
    };
}

conformance! {
    what_is_stored_reads_back_as_it_was_answered,
    an_empty_batch_and_an_empty_inbox_are_nothing,
    a_repeated_event_changes_nothing,
    concurrent_duplicates_make_exactly_one_row,
    overlapping_recipients_in_opposite_orders_never_deadlock,
    a_deleted_notification_does_not_come_back,
    reading_sets_the_time_once_and_counts_once,
    marking_a_large_inbox_tells_the_newest_ids_and_the_whole_count,
    pages_are_stable_while_rows_arrive,
    lists_are_filtered_by_state_and_type,
    what_was_missed_comes_in_order_and_says_whether_there_is_more,
    another_recipients_id_is_like_none,
    one_activity_may_have_a_hundred_thousand_recipients,
    a_refused_value_leaves_nothing_behind,
    a_page_and_its_counters_are_one_snapshot,
    purging_keeps_counters_right_and_numbers_unused,
    counters_agree_with_the_rows_after_everything_at_once,
    an_abandoned_insert_holds_nothing,
    instances_migrate_together_and_a_later_schema_is_accepted,
    missing_and_changed_migrations_are_named,
    policies_are_read_with_text_ids,
    policies_are_read_with_number_ids,
    policies_may_live_in_another_database,
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 123_456_789).unwrap()
}

fn millis(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at.timestamp_millis()).unwrap()
}

fn json(notification: &Notification) -> String {
    serde_json::to_string(notification).unwrap()
}

async fn all(store: &dyn NotificationStore, recipient: &str) -> Vec<Notification> {
    store
        .list(recipient, &Filter::default(), None, 100_000)
        .await
        .unwrap()
        .rows
}

fn seqs(rows: &[Notification]) -> Vec<i64> {
    rows.iter().map(|n| n.seq).collect()
}

/// The state row says what the rows say.
async fn assert_counters(store: &dyn NotificationStore, recipient: &str) {
    let page = store
        .list(recipient, &Filter::default(), None, 100_000)
        .await
        .unwrap();
    assert_eq!(
        page.rows.iter().filter(|n| !n.is_read).count() as i64,
        page.inbox.unread_count,
        "{recipient}"
    );
}

async fn what_is_stored_reads_back_as_it_was_answered(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let mut second = activity("e2", &["ánh", "zoe"]);
    (second.actor_id, second.organizer_id, second.merchant_id) = (None, Some("7".into()), None);
    let stored = store
        .insert(&[activity("e1", &["zoe"]), second], at(0))
        .await
        .unwrap();
    let seen: Vec<_> = stored
        .iter()
        .map(|s| {
            (
                s.activity,
                &*s.notification.recipient_id,
                s.notification.seq,
                s.inbox.unread_count,
                s.inbox.version,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (0, "zoe", 1, 1, 1),
            (1, "ánh", 1, 1, 1),
            (1, "zoe", 2, 2, 2)
        ]
    );
    for one in &stored {
        let back = store
            .get(&one.notification.recipient_id, one.notification.id)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(json(&back), json(&one.notification));
        assert_eq!(back.created_at, millis(at(0)));
        // The producer's own text, white space, escapes and digits included.
        assert_eq!(back.data.get(), r#"{"z": 1.50, "a":[null, "\u00e9"] }"#);
    }
    let later = store
        .insert(&[activity("e3", &["zoe"])], at(1))
        .await
        .unwrap();
    assert_eq!((later[0].notification.seq, later[0].inbox.version), (3, 3));
    assert_eq!(seqs(&all(&*store, "zoe").await), [3, 2, 1]);
    assert_eq!(
        store.inbox("zoe").await.unwrap(),
        InboxState {
            unread_count: 3,
            version: 3
        }
    );
    store.ping().await.unwrap();
}

async fn an_empty_batch_and_an_empty_inbox_are_nothing(database: &TestDatabase) {
    let stores = database.open().await;
    let store = &stores.notifications;
    assert!(store.insert(&[], at(0)).await.unwrap().is_empty());
    assert_eq!(store.inbox("nobody").await.unwrap(), InboxState::default());
    let page = store
        .list("nobody", &Filter::default(), None, 50)
        .await
        .unwrap();
    assert!(page.rows.is_empty() && page.next.is_none() && page.inbox == InboxState::default());
    let missed = store.missed("nobody", 0, 50).await.unwrap();
    assert!(missed.rows.is_empty() && !missed.more && missed.inbox == InboxState::default());
    for which in [
        NotificationSelector::All,
        NotificationSelector::UpTo(9),
        NotificationSelector::Ids(Vec::new()),
        NotificationSelector::Ids(vec!["1".parse().unwrap()]),
    ] {
        let read = store.mark_read("nobody", &which, at(0)).await.unwrap();
        assert!(read.ids.is_empty() && read.total == 0 && read.inbox == InboxState::default());
    }
    assert!(
        store
            .delete("nobody", "1".parse().unwrap(), at(0))
            .await
            .unwrap()
            .is_none()
    );
    stores.close().await;
    assert!(matches!(
        store.ping().await,
        Err(StoreError::Unavailable { .. })
    ));
    assert!(matches!(
        store.version().await,
        Err(StoreError::Unavailable { .. })
    ));
}

async fn a_repeated_event_changes_nothing(database: &TestDatabase) {
    let store = database.open().await.notifications;
    store
        .insert(&[activity("e1", &["x", "y"])], at(0))
        .await
        .unwrap();
    let before = all(&*store, "x").await;
    assert!(
        store
            .insert(&[activity("e1", &["y", "x"])], at(5))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        store.inbox("x").await.unwrap(),
        InboxState {
            unread_count: 1,
            version: 1
        }
    );
    assert_eq!(json(&all(&*store, "x").await[0]), json(&before[0]));

    // Partly known, and repeated within the batch with other words: the first stays.
    let mut again = activity("e2", &["x"]);
    again.title = "another title".into();
    let batch = [
        activity("e1", &["x", "z"]),
        activity("e2", &["y", "x"]),
        again,
        activity("e3", &["x"]),
    ];
    let stored = store.insert(&batch, at(6)).await.unwrap();
    let seen: Vec<_> = stored
        .iter()
        .map(|s| {
            (
                s.activity,
                &*s.notification.recipient_id,
                s.notification.seq,
                s.inbox.version,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (0, "z", 1, 1),
            (1, "y", 2, 2),
            (1, "x", 2, 2),
            (3, "x", 3, 3)
        ]
    );
    assert_eq!(&*all(&*store, "x").await[1].title, "title of e2");

    // The same id of another source is another event.
    let mut other = activity("e1", &["x"]);
    other.source = "bank".into();
    assert_eq!(
        store.insert(&[other], at(7)).await.unwrap()[0]
            .notification
            .seq,
        4
    );
    assert_counters(&*store, "x").await;
}

async fn concurrent_duplicates_make_exactly_one_row(database: &TestDatabase) {
    let recipients = ["a", "b", "c", "d", "e"];
    let instances = [
        database.open().await.notifications,
        database.open().await.notifications,
    ];
    let batch: Vec<NewActivity> = (0..20)
        .map(|n| activity(&format!("e{n}"), &recipients))
        .collect();
    let mut tasks = JoinSet::new();
    for task in 0..10 {
        let store = instances[task % 2].clone();
        let mut batch = batch.clone();
        batch.rotate_left(task * 2);
        tasks.spawn(async move {
            let mut answered = Vec::new();
            for part in batch.chunks(1 + task % 7) {
                answered.extend(store.insert(part, at(0)).await.unwrap());
            }
            answered
        });
    }
    let answered: Vec<Stored> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(
        answered.len(),
        100,
        "each row was answered to exactly one of the callers"
    );
    assert_eq!(
        answered
            .iter()
            .map(|s| s.notification.id)
            .collect::<HashSet<_>>()
            .len(),
        100
    );
    for recipient in recipients {
        let rows = all(&*instances[0], recipient).await;
        assert_eq!(
            seqs(&rows),
            (1..=20).rev().collect::<Vec<_>>(),
            "{recipient}"
        );
        assert_eq!(
            rows.iter()
                .map(|n| n.title.clone())
                .collect::<HashSet<_>>()
                .len(),
            20
        );
        assert_eq!(
            instances[0].inbox(recipient).await.unwrap(),
            InboxState {
                unread_count: 20,
                version: 20
            }
        );
    }
    // What was answered is what is stored.
    for one in &answered {
        let back = instances[1]
            .get(&one.notification.recipient_id, one.notification.id)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(back.seq, one.notification.seq);
        assert_eq!(
            one.inbox,
            InboxState {
                unread_count: back.seq,
                version: back.seq
            }
        );
    }
}

async fn overlapping_recipients_in_opposite_orders_never_deadlock(database: &TestDatabase) {
    let people: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
    let instances = [
        database.open().await.notifications,
        database.open().await.notifications,
    ];
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let store = instances[task % 2].clone();
        let mut recipients: Vec<String> = people.iter().skip(task % 3).cloned().collect();
        if task % 2 == 1 {
            recipients.reverse();
        }
        tasks.spawn(async move {
            for round in 0..10 {
                let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
                let batch: Vec<NewActivity> = recipients
                    .chunks(7)
                    .enumerate()
                    .map(|(n, some)| activity(&format!("{task}/{round}/{n}"), some))
                    .collect();
                store.insert(&batch, at(0)).await.unwrap();
                store
                    .mark_read(recipients[round], &NotificationSelector::All, at(1))
                    .await
                    .unwrap();
            }
        });
    }
    tasks.join_all().await;
    for person in &people[2..] {
        assert_eq!(
            seqs(&all(&*instances[0], person).await),
            (1..=80).rev().collect::<Vec<_>>(),
            "{person}"
        );
        assert_counters(&*instances[0], person).await;
    }
    if database.is_postgres() {
        assert_eq!(
            database
                .number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
                .await,
            0
        );
    }
}

async fn a_deleted_notification_does_not_come_back(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let stored = store
        .insert(
            &[activity("e1", &["x", "y"]), activity("e2", &["x"])],
            at(0),
        )
        .await
        .unwrap();
    let (first, second) = (stored[0].notification.id, stored[2].notification.id);
    store
        .mark_read("x", &NotificationSelector::Ids(vec![first]), at(1))
        .await
        .unwrap();
    // A read one leaves the count, an unread one takes from it; the version grows either way.
    assert_eq!(
        store.delete("x", first, at(2)).await.unwrap(),
        Some(InboxState {
            unread_count: 1,
            version: 4
        })
    );
    assert_eq!(
        store.delete("x", second, at(2)).await.unwrap(),
        Some(InboxState {
            unread_count: 0,
            version: 5
        })
    );
    assert_eq!(store.delete("x", second, at(2)).await.unwrap(), None);
    assert_eq!(store.inbox("x").await.unwrap().version, 5);
    assert!(store.get("x", first).await.unwrap().is_none());

    let again = store
        .insert(
            &[activity("e1", &["x", "y"]), activity("e2", &["x", "z"])],
            at(3),
        )
        .await
        .unwrap();
    assert_eq!(
        again
            .iter()
            .map(|s| &*s.notification.recipient_id)
            .collect::<Vec<_>>(),
        ["z"]
    );
    assert!(all(&*store, "x").await.is_empty());
    assert_eq!(all(&*store, "y").await.len(), 1);
    // Numbers are not used again.
    assert_eq!(
        store
            .insert(&[activity("e3", &["x"])], at(4))
            .await
            .unwrap()[0]
            .notification
            .seq,
        3
    );
}

async fn one_activity_may_have_a_hundred_thousand_recipients(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let people: Vec<String> = (0..100_000).map(|n| format!("person-{n}")).collect();
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    store
        .insert(&[activity("e0", &["person-77"])], at(0))
        .await
        .unwrap();
    let started = Instant::now();
    let stored = store
        .insert(
            &[activity("e1", &people), activity("e2", &["person-1"])],
            at(1),
        )
        .await
        .unwrap();
    println!(
        "100,001 rows in {:.1} s ({})",
        started.elapsed().as_secs_f64(),
        if database.is_postgres() {
            "PostgreSQL"
        } else {
            "SQLite"
        }
    );
    assert_eq!(stored.len(), 100_001);
    let in_order = stored
        .iter()
        .zip(&people)
        .all(|(s, person)| *s.notification.recipient_id == **person);
    assert!(in_order);
    assert_eq!(
        (
            stored[77].notification.seq,
            stored[100_000].notification.seq
        ),
        (2, 2)
    );
    assert_eq!(
        database
            .number("SELECT count(*) FROM signal_notification")
            .await,
        100_002
    );
    assert_eq!(database.number("SELECT count(*) FROM signal_inbox WHERE last_seq = unread_count AND version = last_seq").await, 100_000);
    assert!(
        store
            .insert(&[activity("e1", &people)], at(2))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        database
            .number("SELECT count(*) FROM signal_inbox WHERE version <> last_seq OR last_seq > 2")
            .await,
        0
    );
}

async fn a_refused_value_leaves_nothing_behind(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let with = |change: fn(&mut NewActivity)| {
        let mut bad = activity("bad", &["x"]);
        change(&mut bad);
        bad
    };
    let raw = |json: &str| serde_json::value::RawValue::from_string(json.to_owned()).unwrap();
    let mut bad = vec![
        with(|a| a.title.push('\0')),
        with(|a| a.content.push('\0')),
        with(|a| a.event_id.push('\0')),
        with(|a| a.source.push('\0')),
        with(|a| a.kind.push('\0')),
        with(|a| a.locale.push('\0')),
        with(|a| a.actor_id = Some("\0".into())),
        with(|a| a.organizer_id = Some("\0".into())),
        with(|a| a.merchant_id = Some("\0".into())),
        with(|a| a.recipients = Arc::from(["y".to_owned(), "\0".to_owned()])),
        NewActivity {
            data: raw(r#"{"a":"\u0000"}"#),
            ..activity("bad", &["x"])
        },
    ];
    if database.is_postgres() {
        // Longer than an index can hold, and not to be compressed below it.
        let mut long = String::new();
        let mut state = 1_u64;
        while long.len() < 20_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            long.push_str(&format!("{:x}", state >> 20));
        }
        bad.push(NewActivity {
            event_id: long,
            ..activity("", &["x"])
        });
    }
    for bad in bad {
        let batch = [activity("good", &["x", "y"]), bad];
        let refused = store.insert(&batch, at(0)).await;
        assert!(
            matches!(refused, Err(StoreError::Refused { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(store.inbox("x").await.unwrap(), InboxState::default());
    assert_eq!(
        database.number("SELECT count(*) FROM signal_inbox").await,
        0
    );
    // Text that only looks odd is kept.
    let mut odd = activity("good", &["x", ""]);
    odd.title = "\u{1}\u{feff}'; DROP TABLE signal_inbox; -- 🛒\u{10ffff}".into();
    odd.data = raw(r#"["\\u0000", "\ud83d\ude00", 1e400]"#);
    let stored = store.insert(&[odd], at(0)).await.unwrap();
    let back = store
        .get("x", stored[0].notification.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((json(&back), back.seq), (json(&stored[0].notification), 1));

    for refused in [
        store
            .list("x\0", &Filter::default(), None, 1)
            .await
            .map(drop),
        store
            .list(
                "x",
                &Filter {
                    kind: Some("\0".into()),
                    is_read: None,
                },
                None,
                1,
            )
            .await
            .map(drop),
        store.get("\0", back.id).await.map(drop),
        store.delete("\0", back.id, at(0)).await.map(drop),
        store
            .mark_read("\0", &NotificationSelector::All, at(0))
            .await
            .map(drop),
        store.inbox("\0").await.map(drop),
        store.missed("\0", 0, 1).await.map(drop),
    ] {
        assert!(
            matches!(refused, Err(StoreError::Refused { .. })),
            "{refused:?}"
        );
    }
}

async fn a_page_and_its_counters_are_one_snapshot(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..60 {
                store
                    .insert(
                        &[
                            activity(&format!("a{n}"), &["x"]),
                            activity(&format!("b{n}"), &["x"]),
                        ],
                        at(0),
                    )
                    .await
                    .unwrap();
            }
        })
    };
    let mut seen = BTreeSet::new();
    while !writer.is_finished() {
        let page = store.list("x", &Filter::default(), None, 3).await.unwrap();
        let newest = page.rows.first().map_or(0, |n| n.seq);
        assert_eq!(
            (page.inbox.unread_count, page.inbox.version),
            (newest, newest)
        );
        let missed = store.missed("x", newest, 100).await.unwrap();
        assert_eq!(missed.inbox.version, newest + missed.rows.len() as i64);
        assert_eq!(newest % 2, 0, "a batch is seen whole");
        seen.insert(newest);
    }
    writer.await.unwrap();
    assert!(seen.len() > 2, "reads fell between writes: {seen:?}");
}

async fn purging_keeps_counters_right_and_numbers_unused(database: &TestDatabase) {
    let stores = [
        database.open().await.notifications,
        database.open().await.notifications,
    ];
    let store = &stores[0];
    for n in 0..30 {
        store
            .insert(&[activity(&format!("e{n}"), &["x", "y"])], at(n * 100))
            .await
            .unwrap();
    }
    store
        .mark_read("x", &NotificationSelector::UpTo(5), at(3000))
        .await
        .unwrap();
    let removed = all(&**store, "y").await[29].id;
    store.delete("y", removed, at(3000)).await.unwrap();

    // Notifications off: only tombstones, and only old ones.
    assert_eq!(store.purge(None, at(2999), 100).await.unwrap(), 0);
    // The first ten of each, of which the deleted one is gone already; several instances at once, by sevens.
    let mut purgers = JoinSet::new();
    for store in stores.clone() {
        purgers.spawn(async move {
            let mut total = 0;
            for _ in 0..20 {
                total += store.purge(Some(at(1000)), at(500), 7).await.unwrap();
            }
            total
        });
    }
    assert_eq!(purgers.join_all().await.into_iter().sum::<u64>(), 19);
    assert_eq!(
        seqs(&all(&**store, "x").await),
        (11..=30).rev().collect::<Vec<_>>()
    );
    for person in ["x", "y"] {
        assert_counters(&**store, person).await;
        assert_eq!(store.inbox(person).await.unwrap().unread_count, 20);
    }
    assert!(store.inbox("x").await.unwrap().version > 31);

    // What a redelivery may still bring stays away (created since 500); what is older than that would be new.
    assert_eq!(
        database
            .number("SELECT count(*) FROM signal_tombstone")
            .await,
        11
    );
    let back = store
        .insert(
            &[
                activity("e4", &["x"]),
                activity("e5", &["x"]),
                activity("e0", &["y"]),
            ],
            at(4000),
        )
        .await
        .unwrap();
    assert_eq!(
        back.iter()
            .map(|s| (s.activity, s.notification.seq))
            .collect::<Vec<_>>(),
        [(0, 31)]
    );
    // The tombstones of the purged go by their own age, that of the deleted by its deletion.
    assert_eq!(store.purge(None, at(3000), 100).await.unwrap(), 10);
    assert_eq!(store.purge(None, at(3001), 100).await.unwrap(), 1);
    assert_eq!(
        store
            .insert(&[activity("e0", &["y"])], at(4001))
            .await
            .unwrap()[0]
            .notification
            .seq,
        31
    );
}

async fn counters_agree_with_the_rows_after_everything_at_once(database: &TestDatabase) {
    let people = ["a", "b", "c"];
    let mut tasks = JoinSet::new();
    let stores = [
        database.open().await.notifications,
        database.open().await.notifications,
    ];
    for task in 0..6_usize {
        let store = stores[task % 2].clone();
        tasks.spawn(async move {
            for round in 0..15_usize {
                let person = people[(task + round) % 3];
                let now = at(round as i64);
                match (task + round) % 5 {
                    0 => drop(
                        store
                            .mark_read(person, &NotificationSelector::UpTo(round as i64), now)
                            .await
                            .unwrap(),
                    ),
                    1 => {
                        let page = store
                            .list(person, &Filter::default(), None, 3)
                            .await
                            .unwrap();
                        for n in page.rows {
                            store.delete(person, n.id, now).await.unwrap();
                        }
                    }
                    2 => drop(
                        store
                            .purge(Some(at(round as i64 - 3)), at(-10), 5)
                            .await
                            .unwrap(),
                    ),
                    _ => {
                        let batch = [
                            activity(&format!("{task}/{round}"), &people),
                            activity(&format!("{round}"), &["c", "a"]),
                        ];
                        store.insert(&batch, now).await.unwrap();
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    for person in people {
        assert_counters(&*stores[0], person).await;
        let rows = all(&*stores[0], person).await;
        assert!(rows.windows(2).all(|w| w[0].seq > w[1].seq));
    }
    let twice = "SELECT count(*) FROM (SELECT 1 FROM signal_notification GROUP BY source, event_id, recipient_id HAVING count(*) > 1) d";
    assert_eq!(database.number(twice).await, 0);
}

async fn an_abandoned_insert_holds_nothing(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let people: Vec<String> = (0..3000).map(|n| format!("p{n}")).collect();
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    for round in 0..10 {
        let batch = [activity(&format!("cut{round}"), &people)];
        // Cut at some point on the way, each time another.
        let _ = tokio::time::timeout(
            Duration::from_millis(round * 9),
            store.insert(&batch, at(0)),
        )
        .await;
    }
    let stored = store
        .insert(&[activity("after", &people)], at(1))
        .await
        .unwrap();
    assert_eq!(stored.len(), people.len());
    let rows = database
        .number("SELECT count(*) FROM signal_notification")
        .await;
    assert_eq!(
        rows % people.len() as i64,
        0,
        "each batch is there whole or not at all"
    );
    assert_eq!(
        database
            .number("SELECT CAST(sum(unread_count) AS bigint) FROM signal_inbox")
            .await,
        rows
    );
}

async fn instances_migrate_together_and_a_later_schema_is_accepted(database: &TestDatabase) {
    let mut starts = JoinSet::new();
    for _ in 0..5 {
        let settings = database.settings.clone();
        starts.spawn(async move { migrate(&settings).await.unwrap() });
    }
    let done = starts.join_all().await;
    assert_eq!(
        done.iter().filter(|m| !m.applied.is_empty()).count(),
        1,
        "{done:?}"
    );
    assert!(
        done.iter()
            .all(|m| m.version == done[0].version && m.version >= 1)
    );

    let store = database.open().await.notifications;
    assert_eq!(store.version().await.unwrap(), Some(done[0].version));

    // What the next release will have applied.
    database
        .execute(
            "ALTER TABLE signal_notification ADD COLUMN later text;
             INSERT INTO signal_migration (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '', 0)",
        )
        .await;
    assert_eq!(
        store.version().await.unwrap(),
        Some(9999),
        "a store that was open before is told as well"
    );
    database
        .execute("UPDATE signal_migration SET success = false WHERE version = 9999")
        .await;
    assert_eq!(
        store.version().await.unwrap(),
        Some(done[0].version),
        "what failed half-way does not count"
    );
    database
        .execute("UPDATE signal_migration SET success = true WHERE version = 9999")
        .await;
    let store = database.open().await.notifications;
    store
        .insert(&[activity("e1", &["x"])], at(0))
        .await
        .unwrap();
    assert_eq!(all(&*store, "x").await.len(), 1);
    assert_eq!(
        migrate(&database.settings).await.unwrap(),
        Migrated {
            applied: vec![],
            version: 9999
        }
    );
    let settings = config_without_migrations(database);
    open(
        &settings,
        &Config::for_tests().policy,
        ids(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
}

fn config_without_migrations(database: &TestDatabase) -> crate::config::Database {
    let mut settings = database.settings.clone();
    settings.migrate = false;
    settings
}

async fn missing_and_changed_migrations_are_named(database: &TestDatabase) {
    let settings = config_without_migrations(database);
    let open = async |settings| {
        super::open(
            &settings,
            &Config::for_tests().policy,
            ids(),
            CancellationToken::new(),
        )
        .await
        .map(drop)
    };
    let behind = open(settings.clone()).await;
    assert!(
        matches!(&behind, Err(OpenError::Behind(missing)) if missing.contains(&1)),
        "{behind:?}"
    );
    migrate(&database.settings).await.unwrap();
    open(settings.clone()).await.unwrap();
    database
        .execute("UPDATE signal_migration SET checksum = '' WHERE version = 1")
        .await;
    for settings in [settings, database.settings.clone()] {
        let changed = open(settings).await;
        assert!(matches!(changed, Err(OpenError::Changed(1))), "{changed:?}");
    }
    let wrong = crate::config::Database {
        url: Secret::new("mysql://u:hunter2@h/d"),
        ..database.settings.clone()
    };
    let wrong = open(wrong).await.unwrap_err();
    assert!(
        matches!(wrong, OpenError::Setting { .. }) && !wrong.to_string().contains("hunter2"),
        "{wrong}"
    );
}

#[tokio::test]
async fn the_purge_loop_removes_what_is_past_its_age_and_ends_at_shutdown() {
    let database = TestDatabase::sqlite();
    let store = database.open().await.notifications;
    let days = |n: i64| at(86_400 * n);
    store
        .insert(&[activity("old", &["x"])], days(0))
        .await
        .unwrap();
    store
        .insert(&[activity("new", &["x"])], days(5))
        .await
        .unwrap();
    let clock = crate::clock::FixedClock::new(days(7));
    let shutdown = CancellationToken::new();
    let purge = |retention_days| {
        let settings = crate::config::Database {
            retention_days,
            ..database.settings.clone()
        };
        let (clock, interval) = (Arc::new(clock.clone()), Duration::from_millis(5));
        tokio::spawn(retention::purge_every(
            interval,
            store.clone(),
            settings,
            clock,
            shutdown.clone(),
        ))
    };
    let (off, on) = (purge(0), purge(3));
    let deadline = Instant::now() + Duration::from_secs(30);
    while seqs(&all(&*store, "x").await) != [2] {
        assert!(Instant::now() < deadline, "the old one goes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    clock.advance_ms(TimeDelta::days(2).num_milliseconds());
    while !all(&*store, "x").await.is_empty() {
        assert!(Instant::now() < deadline, "the new one goes once it is old");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shutdown.cancel();
    on.await.unwrap();
    off.await.unwrap();
}

#[tokio::test]
async fn nothing_is_purged_without_a_retention() {
    let database = TestDatabase::sqlite();
    let store = database.open().await.notifications;
    let stored = store
        .insert(&[activity("e1", &["x", "y"])], at(0))
        .await
        .unwrap();
    store
        .delete("y", stored[1].notification.id, at(0))
        .await
        .unwrap();
    let clock = crate::clock::FixedClock::new(at(86_400 * 400));
    let shutdown = CancellationToken::new();
    let (settings, interval) = (database.settings.clone(), Duration::from_millis(5));
    let purging = tokio::spawn(retention::purge_every(
        interval,
        store.clone(),
        settings,
        Arc::new(clock),
        shutdown.clone(),
    ));
    let deadline = Instant::now() + Duration::from_secs(30);
    while database
        .number("SELECT count(*) FROM signal_tombstone")
        .await
        > 0
    {
        assert!(Instant::now() < deadline, "tombstones go in any case");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shutdown.cancel();
    purging.await.unwrap();
    assert_eq!(all(&*store, "x").await.len(), 1);
}

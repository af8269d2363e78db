//! Storing: what an answer holds, repeats, deadlocks, refusals, many recipients.

use super::*;

pub(super) async fn what_is_stored_reads_back_as_it_was_answered(database: &TestDatabase) {
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

pub(super) async fn an_empty_batch_and_an_empty_inbox_are_nothing(database: &TestDatabase) {
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

pub(super) async fn a_repeated_event_changes_nothing(database: &TestDatabase) {
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

pub(super) async fn concurrent_duplicates_make_exactly_one_row(database: &TestDatabase) {
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

pub(super) async fn overlapping_recipients_in_opposite_orders_never_deadlock(
    database: &TestDatabase,
) {
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

pub(super) async fn a_deleted_notification_does_not_come_back(database: &TestDatabase) {
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

pub(super) async fn one_activity_may_have_a_hundred_thousand_recipients(database: &TestDatabase) {
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

pub(super) async fn a_refused_value_leaves_nothing_behind(database: &TestDatabase) {
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

pub(super) async fn an_abandoned_insert_holds_nothing(database: &TestDatabase) {
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

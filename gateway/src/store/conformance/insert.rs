//! Storing: what an answer holds, repeated events, tombstones, refusals.

use super::*;

pub(super) async fn what_is_stored_reads_back_as_it_was_answered(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let mut second = activity("e2", &["ánh", "zoe"]);
    (second.actor_id, second.organizer_id, second.merchant_id) = (None, Some("7".into()), None);
    second.occurred_at = None;
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
        assert_eq!(back.occurred_at, one.notification.occurred_at);
        assert_eq!(back.occurred_at.is_some(), one.activity == 0);
        // The producer's own text, white space, escapes and digits included.
        assert_eq!(back.data.get(), r#"{"z": 1.50, "a":[null, "\u00e9"] }"#);
    }
    let later = store
        .insert(&[activity("e3", &["zoe"])], at(1))
        .await
        .unwrap();
    assert_eq!((later[0].notification.seq, later[0].inbox.version), (3, 3));
    assert_eq!(seqs(&all(&*store, "zoe").await), [3, 2, 1]);
    assert_eq!(store.inbox("zoe").await.unwrap().inbox, counters(3, 3));
    store.ping().await.unwrap();
}

/// protocol.md 11.7.
pub(super) async fn rows_of_two_instances_at_one_time_have_ids_of_their_own(
    database: &TestDatabase,
) {
    let first = database.open().await.notifications;
    let second = database.open().await.notifications;
    let many: Vec<String> = (0..300).map(|n| format!("user {n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut ids = HashSet::new();
    for (event, recipients) in [
        ("new inbox", &many[..1]),
        ("one", &many[..1]),
        ("all", &many),
    ] {
        for (store, name) in [(&first, "first"), (&second, "second")] {
            let stored = store
                .insert(&[activity(&format!("{event} {name}"), recipients)], at(0))
                .await
                .unwrap();
            assert_eq!(stored.len(), recipients.len());
            ids.extend(stored.iter().map(|row| row.notification.id));
        }
    }
    assert_eq!(ids.len(), 604);
    assert_eq!(seqs(&all(&*first, "user 0").await), [6, 5, 4, 3, 2, 1]);
    assert_eq!(seqs(&all(&*first, "user 9").await), [2, 1]);
}

pub(super) async fn an_empty_batch_and_an_empty_inbox_are_nothing(database: &TestDatabase) {
    let stores = database.open().await;
    let store = &stores.notifications;
    assert!(store.insert(&[], at(0)).await.unwrap().is_empty());
    assert_eq!(
        store.inbox("nobody").await.unwrap().inbox,
        InboxState::default()
    );
    let page = store
        .list("nobody", &Filter::default(), None, 50)
        .await
        .unwrap();
    assert!(
        page.rows.is_empty() && page.next.is_none() && page.counts.inbox == InboxState::default()
    );
    let missed = store.missed("nobody", 0, 50).await.unwrap();
    assert!(missed.rows.is_empty() && !missed.more && missed.counts.inbox == InboxState::default());
    for selector in [
        NotificationSelector::All,
        NotificationSelector::UpTo(9),
        NotificationSelector::Ids(Vec::new()),
        NotificationSelector::Ids(vec!["1".parse().unwrap()]),
    ] {
        let read = store.mark_read("nobody", &selector, at(0)).await.unwrap();
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
    assert_eq!(store.inbox("x").await.unwrap().inbox, counters(1, 1));
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
        Some(counters(1, 4))
    );
    assert_eq!(
        store.delete("x", second, at(2)).await.unwrap(),
        Some(counters(0, 5))
    );
    assert_eq!(store.delete("x", second, at(2)).await.unwrap(), None);
    assert_eq!(store.inbox("x").await.unwrap().inbox.version, 5);
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

pub(super) async fn a_refused_value_leaves_nothing_behind(database: &TestDatabase) {
    let store = database.open().await.notifications;
    for bad in refused_activities(database.is_postgres()) {
        let batch = [activity("good", &["x", "y"]), bad];
        let refused = store.insert(&batch, at(0)).await;
        assert!(
            matches!(refused, Err(StoreError::Refused { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(store.inbox("x").await.unwrap().inbox, InboxState::default());
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
    assert_questions_with_nul_are_refused(&*store, back.id).await;
}

fn raw(json: &str) -> Box<serde_json::value::RawValue> {
    serde_json::value::RawValue::from_string(json.to_owned()).unwrap()
}

/// Activities that are refused, each for one text.
fn refused_activities(is_postgres: bool) -> Vec<NewActivity> {
    let with = |change: fn(&mut NewActivity)| {
        let mut bad = activity("bad", &["x"]);
        change(&mut bad);
        bad
    };
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
    if is_postgres {
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
    bad
}

async fn assert_questions_with_nul_are_refused(store: &dyn NotificationStore, id: Id) {
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
        store.get("\0", id).await.map(drop),
        store.delete("\0", id, at(0)).await.map(drop),
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

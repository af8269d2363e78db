//! Removing what is old, and that the counters agree with the rows after everything.

use super::*;

pub(super) async fn purging_keeps_counters_right_and_reuses_no_number(database: &TestDatabase) {
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
        assert_eq!(store.inbox(person).await.unwrap().inbox.unread_count, 20);
    }
    assert!(store.inbox("x").await.unwrap().inbox.version > 31);

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

pub(super) async fn counters_agree_with_the_rows_after_everything_at_once(database: &TestDatabase) {
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
    let twice = "SELECT count(*) FROM (SELECT 1 FROM signal_notification GROUP BY event, inbox HAVING count(*) > 1) d";
    assert_eq!(database.number(twice).await, 0);
}

#[tokio::test]
async fn the_purge_loop_removes_what_is_past_its_age_and_ends_at_shutdown() {
    let database = TestDatabase::sqlite();
    let stores = database.open().await;
    let (store, revocations) = (stores.notifications, stores.revocations);
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
            (store.clone(), revocations.clone()),
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
    let stores = database.open().await;
    let (store, revocations) = (stores.notifications, stores.revocations);
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
        (store.clone(), revocations),
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

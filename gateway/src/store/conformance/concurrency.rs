//! Storing at the same time, at scale, and storing that is cut off.

use super::*;

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
            instances[0].inbox(recipient).await.unwrap().inbox,
            counters(20, 20)
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

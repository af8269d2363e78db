//! Databases, brokers and Redis that are away, and shutdowns meanwhile.

use super::*;
use crate::dispatch::Destination;

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_pauses_keeps_the_order_and_commits_nothing_past_it() {
    let stage = Stage::new(Broker::any(), 2).await;
    let running = stage.run();
    stage.produce_many(0, "a", "17", 5).await;
    stage.until_committed(0, 5).await;
    stage.rows.set_away(true);
    stage.produce_many(0, "b", "17", 50).await;
    stage.produce_many(1, "c", "18", 50).await;
    until("the database was asked again and again", || {
        stage.rows.pings() >= 8 && stage.status.facts().retrying == 2
    })
    .await;
    assert_eq!(
        (
            stage.committed(0).await,
            stage.committed(1).await,
            stage.rows.count()
        ),
        (5, 0, 5)
    );
    stage.rows.set_away(false);
    stage.until_committed(0, 55).await;
    stage.until_committed(1, 50).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), [ids("a", 5), ids("b", 50)].concat());
    assert_eq!(stage.rows.of("18"), ids("c", 50));
    assert_eq!(
        (stage.rows.failures(), stage.metrics.pipeline_retries.get()),
        (2, 2),
        "each partition tried once; then one question was asked for both"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_gets_fewer_rows_at_once_until_it_takes_more() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.rows.set_most(Some(3));
    // All of them are there before the first is read, so that more than three come at once.
    stage.produce_many(0, "a", "17", 50).await;
    let running = stage.run();
    stage.until_committed(0, 50).await;
    assert_eq!(stage.rows.of("17"), ids("a", 50), "each once, in order");
    assert!(stage.rows.failures() > 0 && stage.rows.failures() < 25);
    assert_eq!(
        stage.rows.pings(),
        0,
        "it answers; nobody waits for its return"
    );
    stage.rows.set_most(None);
    let began = stage.rows.calls().len();
    for round in 1..10 {
        stage.produce_many(0, &format!("b{round}-"), "18", 20).await;
        stage.until_committed(0, 50 + round * 20).await;
    }
    let calls = stage.rows.calls();
    assert!(calls[began..].iter().any(|rows| *rows > 6), "{calls:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_go_on_soon_after_the_database_returns_however_long_they_waited() {
    let mut stage = Stage::new(Broker::any(), 20).await;
    // Without the return of the database they would wait for an hour.
    (stage.config.retry_initial_ms, stage.config.retry_max_ms) = (3_600_000, 3_600_000);
    stage.rows.set_away(true);
    let running = stage.run();
    for partition in 0..20 {
        stage.produce_many(partition, "a", "17", 5).await;
    }
    until("all partitions wait", || {
        stage.status.facts().retrying == 20
    })
    .await;
    stage.rows.set_away(false);
    let returned = Instant::now();
    until("all rows are stored", || stage.rows.count() == 5).await;
    until("no partition waits", || stage.status.facts().retrying == 0).await;
    assert!(
        returned.elapsed() < Duration::from_secs(5),
        "{:?}",
        returned.elapsed()
    );
    for partition in 0..20 {
        stage.until_committed(partition, 5).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_behind_a_database_that_is_away_hold_no_more_than_the_budget() {
    let mut stage = Stage::new(Broker::any(), 20).await;
    stage.config.memory_bytes = 16 << 20;
    stage.config.partition_queue = 1_000_000;
    let text = "c".repeat(20_000);
    let record = |n: usize| {
        format!(r#"{{"id":"{n}","type":"T","title":"t","content":"{text}","actorId":"17"}}"#)
    };
    stage.rows.set_away(true);
    // 60 MB.
    for n in 0..150 {
        let values: Vec<String> = (0..20)
            .map(|partition| record(n * 20 + partition))
            .collect();
        join_all(
            values
                .iter()
                .zip(0..)
                .map(|(value, partition)| stage.produce(partition, value)),
        )
        .await;
    }
    let running = stage.run();
    until("all partitions wait", || {
        stage.status.facts().retrying == 20
    })
    .await;
    let held = || stage.metrics.pipeline_memory.get();
    until("they hold much", || held() >= 3 << 20).await;
    // What comes meanwhile, a partition that is paused leaves at the broker.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        held() <= 13 << 20,
        "10 MiB, and what was made of the batches that each had in hand already: {}",
        held()
    );
    stage.rows.set_away(false);
    for partition in 0..20 {
        stage.until_committed(partition, 150).await;
    }
    until("nothing is held", || {
        stage.metrics.pipeline_memory.get() == 0
    })
    .await;
    assert_eq!((stage.rows.count(), stage.counted("duplicate")), (3000, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_whose_row_may_come_from_an_unanswered_try_gets_resync() {
    let stage = Stage::new(Broker::any(), 1).await;
    let running = stage.run();
    // In the first transactions what is stored already may be another owner's.
    for n in 1..=3 {
        stage.produce_many(0, &format!("a{n}-"), "17", 1).await;
        stage.until_committed(0, n).await;
    }
    stage.rows.lose_answer();
    stage.produce_many(0, "b", "18", 1).await;
    stage.until_committed(0, 4).await;
    // The same event once more is no reason to sync.
    stage.produce_many(0, "a3-", "17", 1).await;
    stage.until_committed(0, 5).await;
    running.stop().await;
    assert_eq!(
        (stage.rows.failures(), stage.rows.of("18")),
        (1, ids("b", 1))
    );
    let pushed: Vec<_> = stage
        .bus
        .dispatches
        .lock()
        .iter()
        .map(|sent| (sent.destination.clone(), sent.event.to_string()))
        .collect();
    let user = |id: &str| Destination::User(id.into());
    assert_eq!(
        pushed,
        [
            (user("17"), "notification:created".to_owned()),
            (user("17"), "notification:created".to_owned()),
            (user("17"), "notification:created".to_owned()),
            (user("18"), "resync".to_owned())
        ]
    );
}

/// protocol.md 9.5.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_tells_whoever_the_last_one_stored_for_and_perhaps_did_not_push_to() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.produce_many(0, "a", "17", 2).await;
    // The last owner stored them and died.
    for event in ids("a", 2) {
        let stored = NewActivity {
            source: stage.topic().to_owned(),
            ..store::testing::activity(&event, &["17"])
        };
        stage
            .rows
            .insert(&[stored], SystemClock.now())
            .await
            .unwrap();
    }
    let running = stage.run();
    stage.until_committed(0, 2).await;
    // Once for each batch that they came in.
    let told = stage.sent(name::RESYNC);
    assert!(
        !told.is_empty() && told.iter().all(|user| user == "17"),
        "{told:?}"
    );
    for n in 3..=5 {
        stage.produce_many(0, &format!("b{n}-"), "18", 1).await;
        stage.until_committed(0, n).await;
    }
    // All was new three times: an event that comes once more is its producer's repetition.
    stage.produce_many(0, "a", "17", 2).await;
    stage.until_committed(0, 7).await;
    running.stop().await;
    assert_eq!(stage.sent(name::RESYNC), told);
    assert_eq!(stage.sent(name::NOTIFICATION_CREATED), ["18"; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_in_an_outage_is_quick_and_loses_nothing() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.rows.set_away(true);
    let running = stage.run();
    stage.produce_many(0, "a", "17", 10).await;
    until("the partition waits", || stage.status.facts().retrying == 1).await;
    let started = Instant::now();
    running.stop().await;
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(stage.committed(0).await, 0);
    stage.rows.set_away(false);
    let running = stage.run();
    stage.until_committed(0, 10).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), ids("a", 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_and_commits_what_is_being_stored() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.rows.set_stuck(true);
    let running = stage.run();
    stage.produce_many(0, "a", "17", 3).await;
    until("rows are being stored", || stage.rows.count() > 0).await;
    let stopping = tokio::spawn(running.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!stopping.is_finished(), "it waits for the transaction");
    stage.rows.set_stuck(false);
    stopping.await.unwrap();
    assert_eq!(stage.committed(0).await, stage.rows.count() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_without_a_broker_is_bounded_and_loses_nothing() {
    let mock = MockCluster::new(1).unwrap();
    let stage = Stage::new(
        Broker {
            address: mock.bootstrap_servers(),
            mock: Some(mock),
        },
        1,
    )
    .await;
    stage.rows.set_stuck(true);
    stage.produce_many(0, "a", "17", 3).await;
    let running = stage.run();
    until("rows are being stored", || stage.rows.count() > 0).await;
    stage.broker.mock.as_ref().unwrap().broker_down(1).unwrap();
    stage.rows.set_stuck(false);
    let started = Instant::now();
    running.stop().await;
    assert!(
        started.elapsed() < Duration::from_secs(21),
        "{:?}",
        started.elapsed()
    );
    stage.broker.mock.as_ref().unwrap().broker_up(1).unwrap();
    let running = stage.run();
    stage.until_committed(0, 3).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), ids("a", 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_changes_nothing_but_the_pushes() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.bus.is_away.store(true, Ordering::SeqCst);
    stage.produce_many(0, "a", "17", 100).await;
    stage.produce(0, PAYMENT).await;
    let running = stage.run();
    stage.until_committed(0, 101).await;
    running.stop().await;
    assert_eq!(stage.rows.count(), 102);
    assert_eq!(
        stage.bus.tries.load(Ordering::SeqCst),
        102,
        "the bus learns whose pushes are lost"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_answer_holds_no_lane() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.bus.never_answers.store(true, Ordering::SeqCst);
    stage.produce_many(0, "a", "17", 2500).await;
    let running = stage.run();
    stage.until_committed(0, 2500).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), ids("a", 2500));
    assert_eq!(
        stage.bus.dispatches.lock().len(),
        2500,
        "each is given to the bus"
    );
}

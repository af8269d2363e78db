//! Several members of a group, partitions that come and go, and members that are killed.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_of_two_members_loses_and_repeats_no_row() {
    let Some(broker) = Broker::real_or_skip("a_rebalance_of_two_members_loses_and_repeats_no_row")
    else {
        return;
    };
    let mut stage = Stage::new(broker, 6).await;
    stage.config.batch_records = 10;
    let first = stage.run();
    let producing = async {
        for round in 0..30 {
            join_all((0..6).map(|p| stage_produce(&stage, p, round))).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let second_status = Arc::new(PipelineStatus::default());
    let joining = async {
        until("the first owns all", || {
            stage.status.facts().partitions == 6
        })
        .await;
        let shutdown = CancellationToken::new();
        let options = PipelineOptions {
            status: second_status.clone(),
            ..stage.options()
        };
        let second = Running {
            task: tokio::spawn(run(options, shutdown.clone())),
            shutdown,
        };
        until("they share", || {
            stage.status.facts().partitions == 3 && second_status.facts().partitions == 3
        })
        .await;
        first.stop().await;
        until("the second owns all", || {
            second_status.facts().partitions == 6
        })
        .await;
        let third = stage.run();
        until("they share again", || {
            stage.status.facts().partitions == 3 && second_status.facts().partitions == 3
        })
        .await;
        (second, third)
    };
    let ((), (second, third)) = tokio::join!(producing, joining);
    for partition in 0..6 {
        stage.until_committed(partition, 30 * 20).await;
    }
    second.stop().await;
    third.stop().await;
    for partition in 0..6 {
        let want: Vec<String> = (0..30)
            .flat_map(|round| ids(&format!("{partition}-{round}-"), 20))
            .collect();
        assert_eq!(
            stage.rows.of(&format!("user{partition}")),
            want,
            "partition {partition}: each once, in order"
        );
    }
}

async fn stage_produce(stage: &Stage, partition: i32, round: usize) {
    stage
        .produce_many(
            partition,
            &format!("{partition}-{round}-"),
            &format!("user{partition}"),
            20,
        )
        .await;
}

/// Stores, prints it on standard output, and never answers: the process can be killed between store and commit.
struct Hung(Arc<dyn NotificationStore>);

impl NotificationStore for Hung {
    fn insert<'a>(
        &'a self,
        batch: &'a [NewActivity],
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<Vec<Stored>, StoreError>> {
        Box::pin(async move {
            let stored = self.0.insert(batch, now).await?;
            println!("STORED {}", stored.len());
            std::future::pending().await
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.ping()
    }

    unused_reads!();
}

/// The variable in which a test gives its child process the topic and the database.
const CHILD: &str = "SIGNAL_TEST_ACTIVITY_CHILD";

/// The other process of [`killed_between_store_and_commit`]; in any other run there is nothing for it to do.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_is_killed() {
    let Ok(target) = std::env::var(CHILD) else {
        return;
    };
    let [broker, group, topic, database] = target.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{target}")
    };
    let database = Database {
        url: Secret::new(database),
        ..Config::for_tests().database
    };
    let stores = store::open(
        &database,
        &Config::for_tests().policy,
        CancellationToken::new(),
    )
    .await
    .unwrap();
    let config = Kafka {
        enabled: true,
        brokers: vec![broker.into()],
        group_id: group.into(),
        topics: vec![topic.into()],
        session_timeout_ms: 6000,
        ..Config::for_tests().kafka
    };
    let options = PipelineOptions {
        config,
        cache_secs: 0,
        inbox: inbox(Arc::new(Hung(stores.notifications)), Arc::default()),
        policies: stores.policies,
        catalogs: Arc::new(Catalogs::load(std::path::Path::new(""), "vi").unwrap()),
        clock: Arc::new(SystemClock),
        metrics: Metrics::new(),
        status: Arc::default(),
        around: Surroundings::alone(),
    };
    run(options, CancellationToken::new()).await.unwrap();
}

/// protocol.md 9.5.
async fn killed_between_store_and_commit(database: &Database) {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.produce_many(0, "a", "17", 30).await;
    stage.produce_many(0, "b", "18", 30).await;
    let target = format!(
        "{} {} {} {}",
        stage.broker.address,
        stage.config.group_id,
        stage.topic(),
        database.url.expose()
    );
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "activity::tests::members::child_that_is_killed",
            "--nocapture",
        ])
        .env(CHILD, target)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let stored = tokio::time::timeout(PATIENCE, async {
        loop {
            let line = lines
                .next_line()
                .await
                .unwrap()
                .expect("the process goes on until it is killed");
            if let Some(count) = line.split("STORED ").nth(1) {
                return count.parse::<usize>().unwrap();
            }
        }
    });
    let stored = stored.await.unwrap();
    assert!(stored > 0);
    child.kill().await.unwrap();
    assert_eq!(
        stage.committed(0).await,
        0,
        "rows are durable, and their offset is not committed"
    );

    let stores = store::open(
        database,
        &Config::for_tests().policy,
        CancellationToken::new(),
    )
    .await
    .unwrap();
    let shutdown = CancellationToken::new();
    let options = stage.options_with(stores.notifications.clone());
    let running = Running {
        task: tokio::spawn(run(options, shutdown.clone())),
        shutdown,
    };
    stage.until_committed(0, 60).await;
    running.stop().await;
    for (recipient, want) in [("17", 30), ("18", 30)] {
        let page = stores
            .notifications
            .list(recipient, &store::Filter::default(), None, 100)
            .await
            .unwrap();
        let seqs: Vec<i64> = page.rows.iter().rev().map(|row| row.seq).collect();
        assert_eq!(seqs, (1..=want).collect::<Vec<_>>());
        assert_eq!(page.counts.inbox.unread_count, want);
    }
    assert_eq!(
        stage.sent(name::NOTIFICATION_CREATED).len(),
        60 - stored,
        "what was stored already is not pushed again"
    );
    let untold = &["17", "18"][..if stored > 30 { 2 } else { 1 }];
    let mut told = stage.sent(name::RESYNC);
    told.sort_unstable();
    assert_eq!(told, untold, "told once each");
    stores.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_store_and_commit_changes_nothing_on_sqlite() {
    let database = TestDatabase::sqlite();
    killed_between_store_and_commit(&database.settings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_store_and_commit_changes_nothing_on_postgres() {
    if let Some(database) =
        TestDatabase::postgres("a_kill_between_store_and_commit_changes_nothing_on_postgres").await
    {
        killed_between_store_and_commit(&database.settings).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_store_side_by_side_into_postgres_for_the_same_people() {
    let test = "two_members_store_side_by_side_into_postgres_for_the_same_people";
    let Some(broker) = Broker::real_or_skip(test) else {
        return;
    };
    let Some(database) = TestDatabase::postgres(test).await else {
        return;
    };
    let stores = store::open(
        &database.settings,
        &Config::for_tests().policy,
        CancellationToken::new(),
    )
    .await
    .unwrap();
    let mut stage = Stage::new(broker, 4).await;
    stage.config.batch_records = 25;
    for round in 0..4 {
        for partition in 0..4 {
            stage
                .produce_many(
                    partition,
                    &format!("{partition}-{round}-"),
                    &format!("user{}", (partition + round) % 3),
                    50,
                )
                .await;
        }
    }
    let running: Vec<Running> = (0..2)
        .map(|_| {
            let shutdown = CancellationToken::new();
            let options = stage.options_with(stores.notifications.clone());
            Running {
                task: tokio::spawn(run(options, shutdown.clone())),
                shutdown,
            }
        })
        .collect();
    for partition in 0..4 {
        stage.until_committed(partition, 200).await;
    }
    for running in running {
        running.stop().await;
    }
    let mut total = 0;
    for user in ["user0", "user1", "user2"] {
        let missed = stores.notifications.missed(user, 0, 1000).await.unwrap();
        assert_eq!(
            missed.rows.iter().map(|row| row.seq).collect::<Vec<_>>(),
            (1..=missed.rows.len() as i64).collect::<Vec<_>>()
        );
        total += missed.rows.len();
    }
    assert_eq!(total, 800);
    stores.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_partitions_of_a_topic_are_found() {
    let Some(broker) = Broker::real_or_skip("new_partitions_of_a_topic_are_found") else {
        return;
    };
    let mut stage = Stage::new(broker, 1).await;
    stage
        .config
        .properties
        .insert("topic.metadata.refresh.interval.ms".into(), "500".into());
    let running = stage.run();
    until("the only one is assigned", || {
        stage.status.facts().partitions == 1
    })
    .await;
    let topic = stage.topic().to_owned();
    stage
        .broker
        .admin()
        .create_partitions([&NewPartitions::new(&topic, 2)], &AdminOptions::new())
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    until("the new one is assigned", || {
        stage.status.facts().partitions == 2
    })
    .await;
    let started = Instant::now();
    while stage
        .broker
        .client()
        .create::<BaseConsumer>()
        .unwrap()
        .fetch_metadata(Some(&topic), PATIENCE)
        .unwrap()
        .topics()[0]
        .partitions()
        .len()
        < 2
    {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.produce(1, PAYMENT).await;
    stage.until_committed(1, 1).await;
    running.stop().await;
}

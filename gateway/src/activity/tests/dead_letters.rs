//! Dead letters, and how they are replayed.

use super::*;

/// The dead letter of the record that was at `offset`.
fn at_offset<'r>(letters: &'r [Record], offset: &str) -> &'r Record {
    letters
        .iter()
        .find(|letter| letter.header(dead_letter::OFFSET) == Some(offset))
        .unwrap()
}

/// The event ids of all records that are activities.
fn event_ids(records: &[Record]) -> HashSet<String> {
    records
        .iter()
        .filter_map(|record| decode::decode(record).ok())
        .map(|activity| activity.event_id)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_go_back_once_with_their_identity() {
    let stage = Stage::new(Broker::any(), 2).await;
    let running = stage.run();
    // Neither has an id; the first has no template yet, the second never will be JSON.
    let first = r#"{"type":"NEW_TYPE","actorId":"17"}"#;
    stage.produce(1, first).await;
    stage.produce(1, "not json").await;
    stage.until_committed(1, 2).await;
    running.stop().await;
    let letters = stage.dead_letters(2).await;
    let timestamp = at_offset(&letters, "0")
        .header(dead_letter::TIMESTAMP)
        .unwrap()
        .to_owned();

    let only_templates = ReplayOptions {
        topic: stage.topic().into(),
        reasons: vec![DeadLetterReason::NoTemplate],
        limit: None,
        dry_run: true,
    };
    let dry = replay(&stage.config, only_templates.clone()).await.unwrap();
    assert_eq!(
        dry.replayed,
        BTreeMap::from([("no_template".to_owned(), 1)])
    );
    stage.read(stage.topic(), 2).await;
    let wet = ReplayOptions {
        dry_run: false,
        ..only_templates
    };
    assert_eq!(replay(&stage.config, wet.clone()).await.unwrap(), dry);
    assert_eq!(
        replay(&stage.config, wet.clone()).await.unwrap().total(),
        0,
        "a second run repeats nothing"
    );

    let back = stage.read(stage.topic(), 3).await.remove(2);
    assert_eq!(
        (back.partition, back.value.as_deref(), back.key.as_deref()),
        (1, Some(first.as_bytes()), Some(b"42".as_slice()))
    );
    assert!(
        !back
            .headers
            .iter()
            .any(|(name, _)| name.starts_with(dead_letter::PREFIX)),
        "{:?}",
        back.headers
    );
    assert_eq!(
        decode::decode(&back).unwrap().event_id,
        format!("{}/1/0/{timestamp}", stage.topic())
    );

    // It becomes a dead letter again, and is replayed as the same event; the letters left out the first time come along.
    let running = stage.run();
    stage.until_committed(1, 3).await;
    running.stop().await;
    stage.dead_letters(3).await;
    let all = ReplayOptions {
        reasons: Vec::new(),
        limit: Some(1),
        ..wet
    };
    let one = replay(&stage.config, all.clone()).await.unwrap();
    assert_eq!((one.total(), one.is_cut_short), (1, true));
    let rest = replay(
        &stage.config,
        ReplayOptions {
            limit: None,
            ..all.clone()
        },
    )
    .await
    .unwrap();
    assert_eq!((rest.total(), rest.is_cut_short), (1, false));
    assert_eq!(replay(&stage.config, all.clone()).await.unwrap().total(), 0);
    let forgotten = replay(&forgotten(&stage, 1), all).await.unwrap();
    assert_eq!(forgotten, Default::default(), "nothing is put back again");
    let records = stage.read(stage.topic(), 5).await;
    let ids = event_ids(&records);
    assert_eq!(ids.len(), 1, "{ids:?}");
}

/// Settings whose groups have no offsets, as when the broker has forgotten them.
fn forgotten(stage: &Stage, time: u32) -> Kafka {
    Kafka {
        group_id: format!("{}-forgotten-{time}", stage.config.group_id),
        ..stage.config.clone()
    }
}

/// Puts dead letters of every reason back, without a limit.
fn all_letters(stage: &Stage) -> ReplayOptions {
    ReplayOptions {
        topic: stage.topic().into(),
        reasons: Vec::new(),
        limit: None,
        dry_run: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_remembers_each_reason_by_itself_when_the_broker_has_forgotten() {
    let stage = Stage::new(Broker::any(), 1).await;
    let running = stage.run();
    stage.produce(0, "not json").await;
    stage
        .produce(0, r#"{"type":"NEW_TYPE","actorId":"17"}"#)
        .await;
    stage.until_committed(0, 2).await;
    running.stop().await;
    stage.dead_letters(2).await;
    let all = all_letters(&stage);
    let only_json = ReplayOptions {
        reasons: vec![DeadLetterReason::NotJson],
        ..all.clone()
    };
    let first = replay(&stage.config, only_json).await.unwrap();
    assert_eq!(first.total(), 1);
    let second = replay(&forgotten(&stage, 1), all.clone()).await.unwrap();
    assert_eq!(
        second.replayed,
        BTreeMap::from([("no_template".to_owned(), 1)])
    );
    // A later letter is put back, whatever the marks say of those before it.
    let running = stage.run();
    stage.until_committed(0, 4).await;
    running.stop().await;
    stage.dead_letters(4).await;
    let third = replay(&forgotten(&stage, 2), all).await.unwrap();
    assert_eq!(third.total(), 2, "{third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_are_not_confirmed_hold_the_partition_until_they_are() {
    let mock = MockCluster::new(1).unwrap();
    let stage = Stage::new(
        Broker {
            address: mock.bootstrap_servers(),
            mock: Some(mock),
        },
        1,
    )
    .await;
    let mock = stage.broker.mock.as_ref().unwrap();
    let letters = format!("{}.dlq", stage.topic());
    mock.topic_error(
        &letters,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    )
    .unwrap();
    stage.produce_many(0, "a", "17", 1).await;
    stage.produce(0, "poison").await;
    stage.produce_many(0, "b", "17", 1).await;
    let running = stage.run();
    until("the partition has tried again and again", || {
        stage.metrics.pipeline_retries.get() >= 3
    })
    .await;
    assert!(stage.committed(0).await <= 1);
    assert_eq!(
        stage
            .metrics
            .dead_letters
            .get_or_create(&Metrics::kind("not_json"))
            .get(),
        0
    );
    mock.topic_error(&letters, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR)
        .unwrap();
    stage.until_committed(0, 3).await;
    running.stop().await;
    stage.dead_letters(1).await;
    assert_eq!(stage.rows.of("17"), ["a0", "b0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_file_moves_the_work_to_a_second_member() {
    let Some(broker) =
        Broker::real_or_skip("a_changed_password_file_moves_the_work_to_a_second_member")
    else {
        return;
    };
    let mut stage = Stage::new(broker, 2).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one").unwrap();
    // The listener is in the clear, so any password is taken: what is seen here is the change of members.
    stage.config.security.auth.password_file = crate::config::SecretFile::new(file.path());
    let running = stage.run();
    stage.produce_many(0, "a", "17", 10).await;
    stage.until_committed(0, 10).await;
    let before = stage.members().await;
    std::fs::write(file.path(), "two").unwrap();
    let started = Instant::now();
    let mut produced = 10;
    loop {
        stage
            .produce_many(0, &format!("b{produced}-"), "17", 1)
            .await;
        produced += 1;
        let members = stage.members().await;
        if members.len() == 1 && members != before {
            break;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "still {members:?}, as {before:?}"
        );
    }
    stage.until_committed(0, produced).await;
    until("the second member owns all", || {
        stage.status.facts().partitions == 2
    })
    .await;
    running.stop().await;
    assert_eq!(stage.rows.count() as i64, produced);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_the_dead_letter_topic_leaves_its_headers_there() {
    let Some(broker) = Broker::real_or_skip(
        "a_record_too_large_for_the_dead_letter_topic_leaves_its_headers_there",
    ) else {
        return;
    };
    let mut stage = Stage::new(broker, 1).await;
    let letters = with_small_letters(&mut stage, "2000").await;
    stage.produce(0, &"x".repeat(10_000)).await;
    let running = stage.run();
    stage.until_committed(0, 1).await;
    running.stop().await;
    let letter = stage.read(&letters, 1).await.remove(0);
    assert_eq!(
        (letter.value.as_deref(), letter.header(dead_letter::VALUE)),
        (None, Some("omitted"))
    );
    let all = ReplayOptions {
        topic: stage.topic().into(),
        reasons: Vec::new(),
        limit: None,
        dry_run: false,
    };
    let report = replay(&stage.config, all.clone()).await.unwrap();
    assert_eq!((report.total(), report.without_value), (0, 1));
}

/// Makes a topic for dead letters that takes records, and batches of them, of at most `max_bytes`.
async fn with_small_letters(stage: &mut Stage, max_bytes: &str) -> String {
    stage.config.dead_letter_suffix = ".small".into();
    let letters = format!("{}.small", stage.topic());
    let small =
        NewTopic::new(&letters, 1, TopicReplication::Fixed(1)).set("max.message.bytes", max_bytes);
    stage
        .broker
        .admin()
        .create_topics([&small], &AdminOptions::new())
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    letters
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_are_too_large_together_keep_their_values() {
    let Some(broker) =
        Broker::real_or_skip("letters_that_are_too_large_together_keep_their_values")
    else {
        return;
    };
    let mut stage = Stage::new(broker, 1).await;
    let letters = with_small_letters(&mut stage, "4000").await;
    let value = "x".repeat(1000);
    join_all((0..300).map(|_| stage.produce(0, &value))).await;
    let running = stage.run();
    stage.until_committed(0, 300).await;
    running.stop().await;
    let letters = stage.read(&letters, 300).await;
    let whole = letters
        .iter()
        .filter(|letter| letter.value.as_deref() == Some(value.as_bytes()));
    assert_eq!(whole.count(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_too_large_for_the_dead_letter_topic_leave_the_position_there() {
    let Some(broker) = Broker::real_or_skip(
        "headers_too_large_for_the_dead_letter_topic_leave_the_position_there",
    ) else {
        return;
    };
    let mut stage = Stage::new(broker, 1).await;
    let letters = with_small_letters(&mut stage, "2000").await;
    let large = "h".repeat(10_000);
    let headers = OwnedHeaders::new().insert(rdkafka::message::Header {
        key: "large",
        value: Some(&large),
    });
    stage.produce_with(0, b"not json", headers).await;
    let running = stage.run();
    stage.until_committed(0, 1).await;
    running.stop().await;
    let letter = stage.read(&letters, 1).await.remove(0);
    let found = [
        dead_letter::VALUE,
        dead_letter::HEADERS,
        dead_letter::OFFSET,
        "large",
    ]
    .map(|name| letter.header(name));
    assert_eq!(found, [Some("omitted"), Some("omitted"), Some("0"), None]);
    assert_eq!((letter.value, letter.key), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_the_source_topic_refuses_keeps_no_other_back() {
    let Some(broker) =
        Broker::real_or_skip("a_letter_that_the_source_topic_refuses_keeps_no_other_back")
    else {
        return;
    };
    let stage = Stage::new(broker, 1).await;
    let running = stage.run();
    stage.produce(0, &"x".repeat(5000)).await;
    stage.produce(0, "not json").await;
    stage.until_committed(0, 2).await;
    running.stop().await;
    stage.dead_letters(2).await;
    let smaller =
        AlterConfig::new(ResourceSpecifier::Topic(stage.topic())).set("max.message.bytes", "2000");
    stage
        .broker
        .admin()
        .alter_configs([&smaller], &AdminOptions::new())
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let report = replay(&stage.config, all_letters(&stage)).await.unwrap();
    assert_eq!((report.total(), report.refused), (1, 1), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_without_any_dead_letter_topic_does_nothing() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    if stage.broker.mock.is_none() {
        stage.config.dead_letter_suffix = ".none".into();
    }
    let all = ReplayOptions {
        topic: stage.topic().into(),
        reasons: Vec::new(),
        limit: None,
        dry_run: false,
    };
    assert_eq!(
        replay(&stage.config, all).await.unwrap(),
        Default::default()
    );
}

//! Partitions that stand still: they are seen, by topic, partition, offset and reason, and other partitions go on.

use std::io::{Read, Write};
use std::net::TcpStream;

use futures_util::FutureExt;
use rdkafka::producer::{FutureProducer, FutureRecord};
use signal_contract::StuckPartition;

use super::*;

/// So that a test need not wait for long.
const STUCK_AFTER: Duration = Duration::from_secs(3);

fn mock() -> Broker {
    let mock = MockCluster::new(1).unwrap();
    Broker {
        address: mock.bootstrap_servers(),
        mock: Some(mock),
    }
}

async fn stage(broker: Broker, partitions: i32) -> Stage {
    let mut stage = Stage::new(broker, partitions).await;
    stage.status = Arc::new(PipelineStatus::new(STUCK_AFTER));
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_every_codec_are_read() {
    let stage = Stage::new(Broker::any(), 1).await;
    let running = stage.run();
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for codec in codecs {
        let mut client = stage.broker.client();
        let producer: FutureProducer = client.set("compression.codec", codec).create().unwrap();
        let long = "c".repeat(4000);
        let value = format!(
            r#"{{"id":"{codec}","type":"T","title":"t","content":"{long}","actorId":"17"}}"#
        );
        let record = FutureRecord::<(), _>::to(stage.topic())
            .partition(0)
            .payload(&value);
        producer.send(record, PATIENCE).await.unwrap();
    }
    stage.until_committed(0, 5).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), codecs);
}

/// Produces a batch whose compressed records are no zstd. Only a mock broker takes it; what a broken disk or a producer of one's own leaves looks like it.
fn produce_undecodable(address: &str, topic: &str, partition: i32) {
    let mut batch = Vec::new();
    batch.extend(0_i64.to_be_bytes());
    let mut rest = Vec::new();
    rest.extend(0_i32.to_be_bytes());
    rest.push(2);
    rest.extend(0_u32.to_be_bytes());
    rest.extend(4_i16.to_be_bytes());
    rest.extend(0_i32.to_be_bytes());
    rest.extend(0_i64.to_be_bytes());
    rest.extend(0_i64.to_be_bytes());
    rest.extend((-1_i64).to_be_bytes());
    rest.extend((-1_i16).to_be_bytes());
    rest.extend((-1_i32).to_be_bytes());
    rest.extend(1_i32.to_be_bytes());
    rest.extend(b"this is no zstd frame at all");
    batch.extend(i32::try_from(rest.len()).unwrap().to_be_bytes());
    batch.extend(rest);

    let mut request = Vec::new();
    // Produce, version 7, correlation 1, no client id, no transaction, acks of the leader.
    request.extend(0_i16.to_be_bytes());
    request.extend(7_i16.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend((-1_i16).to_be_bytes());
    request.extend((-1_i16).to_be_bytes());
    request.extend(1_i16.to_be_bytes());
    request.extend(5000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(i16::try_from(topic.len()).unwrap().to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(partition.to_be_bytes());
    request.extend(i32::try_from(batch.len()).unwrap().to_be_bytes());
    request.extend(batch);

    let mut socket = TcpStream::connect(address).unwrap();
    socket
        .write_all(&i32::try_from(request.len()).unwrap().to_be_bytes())
        .unwrap();
    socket.write_all(&request).unwrap();
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
    socket.read_exact(&mut answer).unwrap();
    // Correlation, topics, name, partitions, index, error.
    let error = &answer[4 + 4 + 2 + topic.len() + 4 + 4..][..2];
    assert_eq!(error, [0, 0], "the mock broker takes it");
}

/// Waits until that partition is stuck for a reason. On a busy machine another one may stand still for a while as well.
async fn until_stuck(stage: &Stage, partition: i32) -> StuckPartition {
    let started = Instant::now();
    loop {
        let mut stuck = stage.status.facts().stuck.into_iter();
        if let Some(found) =
            stuck.find(|stuck| stuck.partition == partition && stuck.error.is_some())
        {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "it is not stuck");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_decoded_is_named_and_stops_no_other_partition() {
    let stage = stage(mock(), 2).await;
    let running = stage.run();
    stage.produce_many(1, "a", "17", 4).await;
    stage.until_committed(1, 4).await;
    produce_undecodable(&stage.broker.address, stage.topic(), 1);
    stage.produce_many(0, "b", "18", 3).await;
    stage.until_committed(0, 3).await;
    let stuck = until_stuck(&stage, 1).await;
    assert_eq!(
        (&*stuck.topic, stuck.partition, stuck.offset, stuck.lag),
        (stage.topic(), 1, 4, Some(1))
    );
    assert_eq!(stuck.reason, "fetch");
    let error = stuck.error.unwrap();
    assert!(
        error.starts_with("Decompression (codec 0x4) of message at 4 of "),
        "{error}"
    );
    let text = stage.status.standstill().unwrap();
    assert!(
        text.contains(&format!("{}/1 has stood at offset 4 for ", stage.topic())),
        "{text}"
    );
    let label = format!("{{topic=\"{}\",partition=\"1\"}}", stage.topic());
    let value = |name: &str| {
        let metrics = stage.metrics.render();
        let line = format!("signal_{name}{label} ");
        let found = metrics.lines().find_map(|l| l.strip_prefix(&line));
        found.map_or(0, |value| value.parse::<u64>().unwrap())
    };
    until("the metric says it", || value("kafka_stuck_seconds") >= 3).await;
    assert!(value("kafka_fetch_errors_total") >= 1);
    stage.produce_many(0, "c", "18", 3).await;
    stage.until_committed(0, 6).await;
    running.stop().await;
    assert_eq!(stage.committed(1).await, 4, "nothing is passed over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_waits_for_the_database_is_named_until_it_advances() {
    let stage = stage(Broker::any(), 1).await;
    stage.rows.set_away(true);
    let running = stage.run();
    stage.produce_many(0, "a", "17", 3).await;
    let stuck = until_stuck(&stage, 0).await;
    assert_eq!(
        (stuck.offset, stuck.lag, &*stuck.reason),
        (0, Some(3), "database")
    );
    assert_eq!(
        stuck.error.unwrap(),
        "notifications cannot be stored: no connection"
    );
    stage.rows.set_away(false);
    stage.until_committed(0, 3).await;
    until("nothing stands still", || {
        stage.status.standstill().is_none()
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_away_are_named() {
    let stage = stage(mock(), 1).await;
    let running = stage.run();
    stage.produce_many(0, "a", "17", 1).await;
    stage.until_committed(0, 1).await;
    stage.broker.mock.as_ref().unwrap().broker_down(1).unwrap();
    until("it is said", || {
        stage
            .status
            .facts()
            .notices
            .iter()
            .any(|notice| notice.starts_with("no Kafka broker is connected (last error: "))
    })
    .await;
    assert!(!stage.status.is_working());
    stage.broker.mock.as_ref().unwrap().broker_up(1).unwrap();
    until("it is over", || stage.status.standstill().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_dead_letter_topic_is_named_at_once() {
    let broker = mock();
    let mut stage = stage(broker, 1).await;
    stage.config.dead_letter_suffix = ".none".into();
    let running = stage.run();
    let missing = format!(
        "dead-letter topic {}.none cannot be used: it does not exist, and it cannot be created: ",
        stage.topic()
    );
    until("it is named", || {
        stage
            .status
            .standstill()
            .is_some_and(|text| text.starts_with(&missing))
    })
    .await;
    assert_eq!(stage.metrics.missing_topics.get(), 1);
    let looked = look_at_topics(&stage.config).await.unwrap();
    assert_eq!(
        looked.iter().map(|t| t.state.clone()).collect::<Vec<_>>(),
        [TopicState::Exists(1), TopicState::Missing]
    );
    stage
        .broker
        .create(&format!("{}.none", stage.topic()), 1)
        .await;
    until("it is there", || stage.status.standstill().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_dead_letter_topic_is_created_with_the_partitions_of_its_topic() {
    let test = "a_missing_dead_letter_topic_is_created_with_the_partitions_of_its_topic";
    let Some(broker) = Broker::real_or_skip(test) else {
        return;
    };
    let mut stage = stage(broker, 3).await;
    stage.config.dead_letter_suffix = ".letters".into();
    let before = look_at_topics(&stage.config).await.unwrap();
    assert_eq!(before[1].state, TopicState::Missing);
    let running = stage.run();
    stage.produce(0, "not json").await;
    stage.until_committed(0, 1).await;
    let letters = format!("{}.letters", stage.topic());
    stage.read(&letters, 1).await;
    running.stop().await;
    let after = look_at_topics(&stage.config).await.unwrap();
    assert_eq!(
        (after[1].name.as_str(), &after[1].state),
        (letters.as_str(), &TopicState::Exists(3))
    );
    assert_eq!(stage.metrics.missing_topics.get(), 0);
}

/// A second instance, with a database of its own that can be away alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_store_gives_its_partitions_to_one_that_can() {
    let test = "a_member_that_cannot_store_gives_its_partitions_to_one_that_can";
    let Some(broker) = Broker::real_or_skip(test) else {
        return;
    };
    let stage = stage(broker, 2).await;
    let well = stage.run();
    until("the first owns all", || {
        stage.status.facts().partitions == 2
    })
    .await;
    let (rows, status) = (
        crate::activity::testing::Rows::new(),
        Arc::new(PipelineStatus::new(STUCK_AFTER)),
    );
    let (able, others) = (rows.clone(), stage.status.clone());
    let around = Surroundings {
        able: Arc::new(move || {
            let is_away = able.is_away();
            async move { (!is_away).then_some(()).ok_or_else(String::new) }.boxed()
        }),
        others_work: Arc::new(move || std::future::ready(others.is_working()).boxed()),
    };
    let shutdown = CancellationToken::new();
    let options = PipelineOptions {
        status: status.clone(),
        around,
        ..stage.options_with(rows.clone())
    };
    let ill = Running {
        task: tokio::spawn(run(options, shutdown.clone())),
        shutdown,
    };
    until("they share", || {
        stage.status.facts().partitions == 1 && status.facts().partitions == 1
    })
    .await;
    rows.set_away(true);
    stage.produce_many(0, "a", "17", 20).await;
    stage.produce_many(1, "b", "18", 20).await;
    stage.until_committed(0, 20).await;
    stage.until_committed(1, 20).await;
    assert_eq!((rows.count(), stage.rows.count()), (0, 40));
    let text = status.standstill().unwrap();
    assert!(
        text.starts_with("this instance left the Kafka group"),
        "{text}"
    );
    assert!(!status.is_working() && stage.status.is_working());
    rows.set_away(false);
    until("they share again", || {
        stage.status.facts().partitions == 1 && status.facts().partitions == 1
    })
    .await;
    until("nothing stands still", || status.standstill().is_none()).await;
    ill.stop().await;
    well.stop().await;
}

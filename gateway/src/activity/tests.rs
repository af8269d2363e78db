//! The whole pipeline against a broker: a real one named by `SIGNAL_TEST_KAFKA`, else librdkafka's mock cluster where that is enough.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures_util::future::{BoxFuture, join_all};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::io::AsyncBufReadExt;

use super::decode::Record;
use super::replay::{ReplayOptions, replay};
use super::testing::{Policies, Published, Rows, unused_reads};
use super::*;
use crate::clock::SystemClock;
use crate::config::{Config, Database, Kafka, Secret};
use crate::hub::Hub;
use crate::notification::NewActivity;
use crate::store::testing::TestDatabase;
use crate::store::{self, StoreError, Stored};

/// How long a test waits for anything before it says what it waited for.
const PATIENCE: Duration = Duration::from_secs(60);

struct Broker {
    address: String,
    mock: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl Broker {
    fn any() -> Self {
        Self::real().unwrap_or_else(|| {
            let mock = MockCluster::new(1).unwrap();
            Self { address: mock.bootstrap_servers(), mock: Some(mock) }
        })
    }

    fn real() -> Option<Self> {
        std::env::var("SIGNAL_TEST_KAFKA").ok().filter(|address| !address.is_empty()).map(|address| Self { address, mock: None })
    }

    /// `None`, with a word why, where there is no real broker.
    fn real_or_skip(test: &str) -> Option<Self> {
        let broker = Self::real();
        if broker.is_none() {
            eprintln!("skipped: {test}: needs Apache Kafka, and SIGNAL_TEST_KAFKA names none");
        }
        broker
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.address);
        client
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    async fn create(&self, topic: &str, partitions: i32) {
        if let Some(mock) = &self.mock {
            mock.create_topic(topic, partitions, 1).unwrap();
            return;
        }
        let created =
            self.admin().create_topics([&NewTopic::new(topic, partitions, TopicReplication::Fixed(1))], &AdminOptions::new()).await;
        created.unwrap().remove(0).unwrap();
    }
}

/// A topic, its dead letters and everything around the pipeline.
struct Stage {
    broker: Broker,
    config: Kafka,
    producer: FutureProducer,
    rows: Arc<Rows>,
    policies: Arc<Policies>,
    bus: Arc<Published>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
}

struct Running {
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), PipelineError>>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl Stage {
    async fn new(broker: Broker, partitions: i32) -> Self {
        static STAGES: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}-{}", std::process::id(), SystemClock.now_ms(), STAGES.fetch_add(1, Ordering::SeqCst));
        let config = Kafka {
            enabled: true,
            brokers: vec![broker.address.clone()],
            group_id: format!("group-{unique}"),
            topics: vec![format!("topic-{unique}")],
            session_timeout_ms: 6000,
            ..Config::for_tests().kafka
        };
        broker.create(&config.topics[0], partitions).await;
        broker.create(&format!("{}.dlq", config.topics[0]), 2).await;
        let producer = broker.client().set("message.timeout.ms", "30000").create().unwrap();
        let policies = Policies::new(&[("Merchant_42", &["17", "18"]), ("Organizer_7", &["19"])]);
        Self { broker, config, producer, rows: Rows::new(), policies, bus: Arc::default(), metrics: Metrics::new(), status: Arc::default() }
    }

    fn topic(&self) -> &str {
        &self.config.topics[0]
    }

    fn parts(&self) -> Parts {
        Parts {
            config: self.config.clone(),
            cache_secs: 30,
            notifications: self.rows.clone(),
            policies: self.policies.clone(),
            delivery: Delivery::new(Hub::none(), self.bus.clone()),
            catalogs: Arc::new(Catalogs::load(std::path::Path::new(""), "vi").unwrap()),
            clock: Arc::new(SystemClock),
            metrics: self.metrics.clone(),
            status: self.status.clone(),
        }
    }

    fn run(&self) -> Running {
        let shutdown = CancellationToken::new();
        Running { task: tokio::spawn(run(self.parts(), shutdown.clone())), shutdown }
    }

    async fn produce(&self, partition: i32, value: &str) -> i64 {
        self.produce_with(partition, value.as_bytes(), OwnedHeaders::new()).await
    }

    async fn produce_with(&self, partition: i32, value: &[u8], headers: OwnedHeaders) -> i64 {
        let record = FutureRecord::to(self.topic()).partition(partition).key("42").payload(value).headers(headers);
        self.producer.send(record, PATIENCE).await.unwrap().offset
    }

    /// Produces to one partition `count` records for `recipient` whose ids are `{prefix}0`, `{prefix}1` and so on.
    async fn produce_many(&self, partition: i32, prefix: &str, recipient: &str, count: usize) {
        let values: Vec<String> =
            (0..count).map(|n| format!(r#"{{"id":"{prefix}{n}","type":"T","title":"t","content":"c","actorId":"{recipient}"}}"#)).collect();
        let sent = values
            .iter()
            .map(|value| self.producer.send_result(FutureRecord::<(), _>::to(self.topic()).partition(partition).payload(value)).unwrap());
        for sent in join_all(sent).await {
            sent.unwrap().unwrap();
        }
    }

    /// The group's offset of a partition; 0 for none.
    async fn committed(&self, partition: i32) -> i64 {
        let (client, group, topic) = (self.broker.client(), self.config.group_id.clone(), self.topic().to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.clone().set("group.id", group).create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, partition);
            consumer.committed_offsets(list, PATIENCE).unwrap().elements()[0].offset()
        });
        match asked.await.unwrap() {
            Offset::Offset(offset) => offset,
            _ => 0,
        }
    }

    /// Ids of the group's members, in order.
    async fn members(&self) -> Vec<String> {
        let (client, group) = (self.broker.client(), self.config.group_id.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.create().unwrap();
            let groups = consumer.fetch_group_list(Some(&group), PATIENCE).unwrap();
            let mut ids: Vec<String> = groups.groups().iter().flat_map(|g| g.members().iter().map(|m| m.id().to_owned())).collect();
            ids.sort();
            ids
        });
        asked.await.unwrap()
    }

    async fn until_committed(&self, partition: i32, offset: i64) {
        let started = Instant::now();
        loop {
            let committed = self.committed(partition).await;
            if committed >= offset {
                assert_eq!(committed, offset);
                return;
            }
            assert!(started.elapsed() < PATIENCE, "partition {partition} is committed up to {committed}, not {offset}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Every record of a topic, by partition and offset.
    async fn read(&self, topic: &str, count: usize) -> Vec<Record> {
        let (client, topic) = (self.broker.client(), topic.to_owned());
        let read = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.clone().set("group.id", "reader").set("enable.auto.commit", "false").create().unwrap();
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
            let mut list = TopicPartitionList::new();
            for partition in metadata.topics()[0].partitions() {
                list.add_partition_offset(&topic, partition.id(), Offset::Beginning).unwrap();
            }
            consumer.assign(&list).unwrap();
            let (started, mut records) = (Instant::now(), Vec::new());
            // A little longer than needed, to see that there are no more.
            let mut enough = None;
            while started.elapsed() < PATIENCE && enough.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(500)) {
                if let Some(message) = consumer.poll(Duration::from_millis(50)) {
                    records.push(consumer::record(topic.as_str().into(), &message.unwrap()));
                }
                if records.len() >= count && enough.is_none() {
                    enough = Some(Instant::now());
                }
            }
            records.sort_by_key(|record| (record.partition, record.offset));
            records
        });
        let records = read.await.unwrap();
        assert_eq!(records.len(), count, "{records:?}");
        records
    }

    async fn dead_letters(&self, count: usize) -> Vec<Record> {
        self.read(&format!("{}.dlq", self.topic()), count).await
    }

    fn counted(&self, outcome: &str) -> u64 {
        self.metrics.records.get_or_create(&Metrics::kind(outcome)).get()
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

const PAYMENT: &str = r#"{"id":"evt-81","type":"PAYMENT_SUCCESS","actorId":"17","recipientType":"merchant","merchantId":"42",
 "data":{"amount":150000,"currency":"VND","orderId":"DH-1001"},"occurredAt":"2026-11-23T08:00:00Z"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_record_becomes_rows_then_pushes_then_a_committed_offset() {
    let stage = Stage::new(Broker::any(), 1).await;
    let running = stage.run();
    stage.produce(0, PAYMENT).await;
    stage.until_committed(0, 1).await;
    let rows = stage.rows.all();
    assert_eq!(rows.iter().map(|row| &*row.recipient_id).collect::<Vec<_>>(), ["17", "18"]);
    assert_eq!(&*rows[0].content, "Đơn hàng DH-1001 đã được thanh toán 150.000 VND.");
    let pushes = stage.bus.dispatches.lock().clone();
    assert_eq!(pushes.len(), 2);
    for push in &pushes {
        assert_eq!(&*push.event, CREATED_EVENT);
        let data: serde_json::Value = serde_json::from_str(push.data.get()).unwrap();
        assert_eq!((&data["unreadCount"], &data["version"]), (&1.into(), &1.into()));
        assert_eq!(data["notification"]["type"], "PAYMENT_SUCCESS");
        assert_eq!(data["notification"]["data"]["amount"], 150_000);
        assert_eq!(push.destination, crate::delivery::Destination::User(data["notification"]["recipientId"].as_str().unwrap().into()));
    }
    until("the lag is known", || stage.status.facts() == Facts { partitions: 1, max_lag: Some(0), retrying: 0 }).await;
    assert!(stage.metrics.render().contains("signal_kafka_lag_records{"));
    running.stop().await;
    assert_eq!(stage.status.facts().partitions, 0);
    assert!(!stage.metrics.render().contains("signal_kafka_lag_records{"), "the lag of a partition of another's is not told");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_twice_and_a_redelivery_of_everything_change_nothing() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    let running = stage.run();
    stage.produce(0, PAYMENT).await;
    stage.produce(0, PAYMENT).await;
    stage.produce(0, r#"{"type":"T","title":"without id","content":"c","actorId":"17"}"#).await;
    stage.until_committed(0, 3).await;
    running.stop().await;
    assert_eq!((stage.rows.count(), stage.counted("stored"), stage.counted("duplicate")), (3, 2, 1));
    // Another group has no offsets: it reads everything again.
    stage.config.group_id += "-again";
    let running = stage.run();
    stage.until_committed(0, 3).await;
    running.stop().await;
    assert_eq!((stage.rows.count(), stage.bus.dispatches.lock().len()), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_of_every_kind_is_a_dead_letter_and_the_partition_goes_on() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage.config.max_recipients = 2;
    let poison: [(&str, Reason); 10] = [
        ("not json", Reason::NotJson),
        (r#"{"type":"T","actorId":{}}"#, Reason::InvalidField),
        (r#"{"actorId":"17"}"#, Reason::MissingField),
        (r#"{"type":"T","recipientType":"everyone"}"#, Reason::UnknownRecipientType),
        (r#"{"type":"T","recipientType":"merchant"}"#, Reason::MissingAudience),
        (r#"{"type":"T","title":"t","content":"c","recipientType":"users","recipientIds":[1,2,3]}"#, Reason::TooManyRecipients),
        (r#"{"type":"T","title":"t","content":"c","recipientType":"merchant","merchantId":"0"}"#, Reason::Nobody),
        (r#"{"type":"UNHEARD_OF","actorId":"17"}"#, Reason::NoTemplate),
        (r#"{"type":"PAYMENT_SUCCESS","actorId":"17","data":{"amount":1}}"#, Reason::NoTemplate),
        (r#"{"type":"T","title":"REFUSED","content":"c","actorId":"17"}"#, Reason::Refused),
    ];
    for (at, (value, _)) in poison.iter().enumerate() {
        let headers = OwnedHeaders::new().insert(Header { key: "h", value: Some(&[0xff_u8, 0][..]) });
        stage.produce_with(0, value.as_bytes(), headers).await;
        stage.produce_many(0, &format!("good{at}-"), "17", 1).await;
    }
    let running = stage.run();
    stage.until_committed(0, 20).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), (0..10).map(|at| format!("good{at}-0")).collect::<Vec<_>>());
    let letters = stage.dead_letters(poison.len()).await;
    for (at, (value, reason)) in poison.iter().enumerate() {
        let letter = letters.iter().find(|letter| letter.header(dead_letter::OFFSET) == Some(&(2 * at).to_string())).unwrap();
        assert_eq!(letter.value.as_deref(), Some(value.as_bytes()));
        assert_eq!(letter.key.as_deref(), Some(b"42".as_slice()));
        assert_eq!(letter.headers[0], ("h".into(), Some(vec![0xff, 0])));
        assert_eq!(letter.header(dead_letter::REASON), Some(reason.as_str()), "{value}");
        assert_eq!(letter.header(dead_letter::TOPIC), Some(stage.topic()));
        assert_eq!(letter.header(dead_letter::PARTITION), Some("0"));
        assert!(!letter.header(dead_letter::DETAIL).unwrap().is_empty());
        chrono::DateTime::parse_from_rfc3339(letter.header(dead_letter::TIME).unwrap()).unwrap();
    }
    assert_eq!((stage.counted("stored"), stage.counted("dead_letter")), (10, 10));
    assert_eq!(stage.metrics.dead_letters.get_or_create(&Metrics::kind("no_template")).get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_is_found_by_halving_and_the_others_keep_their_order() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.produce_many(0, "a", "17", 21).await;
    stage.produce(0, r#"{"id":"bad","type":"T","title":"REFUSED","content":"c","actorId":"17"}"#).await;
    stage.produce_many(0, "b", "17", 42).await;
    let running = stage.run();
    stage.until_committed(0, 64).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), [ids("a", 21), ids("b", 42)].concat());
    assert_eq!(stage.dead_letters(1).await[0].header(dead_letter::OFFSET), Some("21"));
    assert!(stage.rows.calls().len() <= 24, "halving is logarithmic: {:?}", stage.rows.calls());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_pauses_keeps_the_order_and_commits_nothing_past_it() {
    let stage = Stage::new(Broker::any(), 2).await;
    let running = stage.run();
    stage.produce_many(0, "a", "17", 5).await;
    stage.until_committed(0, 5).await;
    stage.rows.set_away(true);
    stage.produce_many(0, "b", "17", 50).await;
    stage.produce_many(1, "c", "18", 50).await;
    until("both partitions have failed again and again", || stage.rows.failures() >= 8 && stage.status.facts().retrying == 2).await;
    assert_eq!((stage.committed(0).await, stage.committed(1).await, stage.rows.count()), (5, 0, 5));
    stage.rows.set_away(false);
    stage.until_committed(0, 55).await;
    stage.until_committed(1, 50).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), [ids("a", 5), ids("b", 50)].concat());
    assert_eq!(stage.rows.of("18"), ids("c", 50));
    assert!(stage.metrics.pipeline_retries.get() >= 8);
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
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
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
    let stage = Stage::new(Broker { address: mock.bootstrap_servers(), mock: Some(mock) }, 1).await;
    stage.rows.set_stuck(true);
    stage.produce_many(0, "a", "17", 3).await;
    let running = stage.run();
    until("rows are being stored", || stage.rows.count() > 0).await;
    stage.broker.mock.as_ref().unwrap().broker_down(1).unwrap();
    stage.rows.set_stuck(false);
    let started = Instant::now();
    running.stop().await;
    assert!(started.elapsed() < Duration::from_secs(21), "{:?}", started.elapsed());
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
    assert!(stage.bus.tries.load(Ordering::SeqCst) < 102, "a batch does not ask an absent bus row by row");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_one_recipient_keep_the_order_of_its_inbox() {
    let stage = Stage::new(Broker::any(), 1).await;
    for n in 0..20 {
        stage.produce_many(0, &format!("{n}-"), &format!("u{}", n % 3), 20).await;
    }
    let running = stage.run();
    stage.until_committed(0, 400).await;
    running.stop().await;
    let mut versions: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for push in stage.bus.dispatches.lock().iter() {
        let data: serde_json::Value = serde_json::from_str(push.data.get()).unwrap();
        versions.entry(data["notification"]["recipientId"].to_string()).or_default().push(data["version"].as_i64().unwrap());
    }
    assert_eq!(versions.values().map(Vec::len).sum::<usize>(), 400);
    for seen in versions.values() {
        assert!(seen.is_sorted(), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_for_many_is_stored_in_slices() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage.config.batch_rows = 100;
    let recipients: Vec<String> = (0..1050).map(|n| n.to_string()).collect();
    stage.produce_many(0, "a", "x", 3).await;
    let many =
        serde_json::json!({"id": "many", "type": "T", "title": "t", "content": "c", "recipientType": "users", "recipientIds": recipients});
    stage.produce(0, &many.to_string()).await;
    stage.produce_many(0, "b", "x", 3).await;
    let running = stage.run();
    stage.until_committed(0, 7).await;
    running.stop().await;
    assert_eq!(stage.rows.of("x"), [ids("a", 3), ids("b", 3)].concat());
    let got: HashSet<String> = stage.rows.all().iter().filter(|r| &*r.recipient_id != "x").map(|r| r.recipient_id.to_string()).collect();
    assert_eq!(got.len(), 1050);
    assert_eq!((stage.rows.count(), stage.counted("stored")), (1056, 7));
    assert!(stage.rows.calls().len() >= 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_pauses_the_partition_and_every_record_still_comes_once_in_order() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    (stage.config.partition_queue, stage.config.batch_records) = (300, 20);
    stage.produce_many(0, "a", "17", 3000).await;
    let running = stage.run();
    stage.until_committed(0, 3000).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), ids("a", 3000));
    assert_eq!(stage.counted("duplicate"), 0);
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
    let by_offset = |records: &[Record], offset: &str| {
        records.iter().find(|record| record.header(dead_letter::OFFSET) == Some(offset)).unwrap().clone()
    };
    let letters = stage.dead_letters(2).await;
    let timestamp = by_offset(&letters, "0").header(dead_letter::TIMESTAMP).unwrap().to_owned();

    let only_templates = ReplayOptions { topic: stage.topic().into(), reasons: vec![Reason::NoTemplate], limit: None, dry_run: true };
    let dry = replay(&stage.config, only_templates.clone()).await.unwrap();
    assert_eq!(dry.replayed, BTreeMap::from([("no_template".to_owned(), 1)]));
    stage.read(stage.topic(), 2).await;
    let wet = ReplayOptions { dry_run: false, ..only_templates };
    assert_eq!(replay(&stage.config, wet.clone()).await.unwrap(), dry);
    assert_eq!(replay(&stage.config, wet.clone()).await.unwrap().total(), 0, "a second run repeats nothing");

    let back = stage.read(stage.topic(), 3).await.remove(2);
    assert_eq!((back.partition, back.value.as_deref(), back.key.as_deref()), (1, Some(first.as_bytes()), Some(b"42".as_slice())));
    assert!(!back.headers.iter().any(|(name, _)| name.starts_with(dead_letter::PREFIX)), "{:?}", back.headers);
    assert_eq!(decode::decode(&back).unwrap().event_id, format!("{}/1/0/{timestamp}", stage.topic()));

    // It comes to nothing again, and goes back again as the same event; what was left out the first time comes along.
    let running = stage.run();
    stage.until_committed(1, 3).await;
    running.stop().await;
    stage.dead_letters(3).await;
    let all = ReplayOptions { reasons: Vec::new(), limit: Some(1), ..wet };
    let one = replay(&stage.config, all.clone()).await.unwrap();
    assert_eq!((one.total(), one.is_cut_short), (1, true));
    let rest = replay(&stage.config, ReplayOptions { limit: None, ..all.clone() }).await.unwrap();
    assert_eq!((rest.total(), rest.is_cut_short), (1, false));
    assert_eq!(replay(&stage.config, all).await.unwrap().total(), 0);
    let records = stage.read(stage.topic(), 5).await;
    let ids: HashSet<String> = records.iter().filter_map(|record| decode::decode(record).ok()).map(|activity| activity.event_id).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_are_not_confirmed_hold_the_partition_until_they_are() {
    let mock = MockCluster::new(1).unwrap();
    let stage = Stage::new(Broker { address: mock.bootstrap_servers(), mock: Some(mock) }, 1).await;
    let mock = stage.broker.mock.as_ref().unwrap();
    let letters = format!("{}.dlq", stage.topic());
    mock.topic_error(&letters, RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    stage.produce_many(0, "a", "17", 1).await;
    stage.produce(0, "poison").await;
    stage.produce_many(0, "b", "17", 1).await;
    let running = stage.run();
    until("the partition has tried again and again", || stage.metrics.pipeline_retries.get() >= 3).await;
    assert!(stage.committed(0).await <= 1);
    assert_eq!(stage.metrics.dead_letters.get_or_create(&Metrics::kind("not_json")).get(), 0);
    mock.topic_error(&letters, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    stage.until_committed(0, 3).await;
    running.stop().await;
    stage.dead_letters(1).await;
    assert_eq!(stage.rows.of("17"), ["a0", "b0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_file_moves_the_work_to_a_second_member() {
    let Some(broker) = Broker::real_or_skip("a_changed_password_file_moves_the_work_to_a_second_member") else { return };
    let mut stage = Stage::new(broker, 2).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one").unwrap();
    // The listener is in the clear, so any password is taken: what is seen here is the change of members.
    stage.config.password_file = crate::config::SecretFile::new(file.path());
    let running = stage.run();
    stage.produce_many(0, "a", "17", 10).await;
    stage.until_committed(0, 10).await;
    let before = stage.members().await;
    std::fs::write(file.path(), "two").unwrap();
    let started = Instant::now();
    let mut produced = 10;
    loop {
        stage.produce_many(0, &format!("b{produced}-"), "17", 1).await;
        produced += 1;
        let members = stage.members().await;
        if members.len() == 1 && members != before {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "still {members:?}, as {before:?}");
    }
    stage.until_committed(0, produced).await;
    until("the second member owns all", || stage.status.facts().partitions == 2).await;
    running.stop().await;
    assert_eq!(stage.rows.count() as i64, produced);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_the_dead_letter_topic_leaves_its_headers_there() {
    let Some(broker) = Broker::real_or_skip("a_record_too_large_for_the_dead_letter_topic_leaves_its_headers_there") else { return };
    let mut stage = Stage::new(broker, 1).await;
    stage.config.dead_letter_suffix = ".small".into();
    let letters = format!("{}.small", stage.topic());
    let small = NewTopic::new(&letters, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "2000");
    stage.broker.admin().create_topics([&small], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    stage.produce(0, &"x".repeat(10_000)).await;
    let running = stage.run();
    stage.until_committed(0, 1).await;
    running.stop().await;
    let letter = stage.read(&letters, 1).await.remove(0);
    assert_eq!((letter.value.as_deref(), letter.header(dead_letter::VALUE)), (None, Some("omitted")));
    let all = ReplayOptions { topic: stage.topic().into(), reasons: Vec::new(), limit: None, dry_run: false };
    let report = replay(&stage.config, all.clone()).await.unwrap();
    assert_eq!((report.total(), report.without_value), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_without_any_dead_letter_topic_does_nothing() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    if stage.broker.mock.is_none() {
        stage.config.dead_letter_suffix = ".none".into();
    }
    let all = ReplayOptions { topic: stage.topic().into(), reasons: Vec::new(), limit: None, dry_run: false };
    assert_eq!(replay(&stage.config, all).await.unwrap(), Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_refused_end_the_start_at_once() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage.config.properties.insert("enable.auto.commit".into(), "true".into());
    let refused = run(stage.parts(), CancellationToken::new()).await;
    assert!(matches!(refused, Err(PipelineError::Settings(_))), "{refused:?}");
    stage.config.properties = [("no.such.property".to_owned(), "1".to_owned())].into();
    let refused = run(stage.parts(), CancellationToken::new()).await;
    assert!(matches!(refused, Err(PipelineError::Client(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_yet_is_waited_for_and_a_shutdown_is_not() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage.config.brokers = vec![listener.local_addr().unwrap().to_string()];
    drop(listener);
    let running = stage.run();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!running.task.is_finished());
    let started = Instant::now();
    running.stop().await;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_of_two_members_loses_and_repeats_no_row() {
    let Some(broker) = Broker::real_or_skip("a_rebalance_of_two_members_loses_and_repeats_no_row") else { return };
    let mut stage = Stage::new(broker, 6).await;
    stage.config.batch_records = 10;
    let first = stage.run();
    let producing = async {
        for round in 0..30 {
            join_all((0..6).map(|p| stage_produce(&stage, p, round))).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let second_status = Arc::new(Status::default());
    let joining = async {
        until("the first owns all", || stage.status.facts().partitions == 6).await;
        let shutdown = CancellationToken::new();
        let parts = Parts { status: second_status.clone(), ..stage.parts() };
        let second = Running { task: tokio::spawn(run(parts, shutdown.clone())), shutdown };
        until("they share", || stage.status.facts().partitions == 3 && second_status.facts().partitions == 3).await;
        first.stop().await;
        until("the second owns all", || second_status.facts().partitions == 6).await;
        let third = stage.run();
        until("they share again", || stage.status.facts().partitions == 3 && second_status.facts().partitions == 3).await;
        (second, third)
    };
    let ((), (second, third)) = tokio::join!(producing, joining);
    for partition in 0..6 {
        stage.until_committed(partition, 30 * 20).await;
    }
    second.stop().await;
    third.stop().await;
    for partition in 0..6 {
        let want: Vec<String> = (0..30).flat_map(|round| ids(&format!("{partition}-{round}-"), 20)).collect();
        assert_eq!(stage.rows.of(&format!("user{partition}")), want, "partition {partition}: each once, in order");
    }
}

async fn stage_produce(stage: &Stage, partition: i32, round: usize) {
    stage.produce_many(partition, &format!("{partition}-{round}-"), &format!("user{partition}"), 20).await;
}

/// Stores, says so on standard output, and never answers: the process can be killed between store and commit.
struct Hung(Arc<dyn NotificationStore>);

impl NotificationStore for Hung {
    fn insert<'a>(&'a self, batch: &'a [NewActivity], now: DateTime<Utc>) -> BoxFuture<'a, Result<Vec<Stored>, StoreError>> {
        Box::pin(async move {
            let stored = self.0.insert(batch, now).await?;
            println!("STORED {}", stored.len());
            std::future::pending().await
        })
    }

    unused_reads!();
}

/// Where a test tells the process it starts what to consume and where to store.
const CHILD: &str = "SIGNAL_TEST_ACTIVITY_CHILD";

/// The other process of [`killed_between_store_and_commit`]; in any other run there is nothing for it to do.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_is_killed() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let [broker, group, topic, database] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let database = Database { url: Secret::new(database), ..Config::for_tests().database };
    let stores = store::open(&database, &Config::for_tests().policy, store::testing::ids(), CancellationToken::new()).await.unwrap();
    let config = Kafka {
        enabled: true,
        brokers: vec![broker.into()],
        group_id: group.into(),
        topics: vec![topic.into()],
        session_timeout_ms: 6000,
        ..Config::for_tests().kafka
    };
    let parts = Parts {
        config,
        cache_secs: 0,
        notifications: Arc::new(Hung(stores.notifications)),
        policies: stores.policies,
        delivery: Delivery::new(Hub::none(), Arc::new(Published::default())),
        catalogs: Arc::new(Catalogs::load(std::path::Path::new(""), "vi").unwrap()),
        clock: Arc::new(SystemClock),
        metrics: Metrics::new(),
        status: Arc::default(),
    };
    run(parts, CancellationToken::new()).await.unwrap();
}

async fn killed_between_store_and_commit(database: &Database) {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.produce_many(0, "a", "17", 30).await;
    stage.produce_many(0, "b", "18", 30).await;
    let told = format!("{} {} {} {}", stage.broker.address, stage.config.group_id, stage.topic(), database.url.expose());
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "activity::tests::child_that_is_killed", "--nocapture"])
        .env(CHILD, told)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let stored = tokio::time::timeout(PATIENCE, async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the process goes on until it is killed");
            if let Some(count) = line.split("STORED ").nth(1) {
                return count.parse::<usize>().unwrap();
            }
        }
    });
    let stored = stored.await.unwrap();
    assert!(stored > 0);
    child.kill().await.unwrap();
    assert_eq!(stage.committed(0).await, 0, "rows are durable, and their offset is not committed");

    let stores = store::open(database, &Config::for_tests().policy, store::testing::ids(), CancellationToken::new()).await.unwrap();
    let shutdown = CancellationToken::new();
    let parts = Parts { notifications: stores.notifications.clone(), ..stage.parts() };
    let running = Running { task: tokio::spawn(run(parts, shutdown.clone())), shutdown };
    stage.until_committed(0, 60).await;
    running.stop().await;
    for (recipient, want) in [("17", 30), ("18", 30)] {
        let page = stores.notifications.list(recipient, &store::Filter::default(), None, 100).await.unwrap();
        let seqs: Vec<i64> = page.rows.iter().rev().map(|row| row.seq).collect();
        assert_eq!(seqs, (1..=want).collect::<Vec<_>>());
        assert_eq!(page.inbox.unread_count, want);
    }
    assert_eq!(stage.bus.dispatches.lock().len(), 60 - stored, "what was stored already is not pushed again");
    stores.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_store_and_commit_changes_nothing_on_sqlite() {
    let database = TestDatabase::sqlite();
    killed_between_store_and_commit(&database.settings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_store_and_commit_changes_nothing_on_postgres() {
    if let Some(database) = TestDatabase::postgres("a_kill_between_store_and_commit_changes_nothing_on_postgres").await {
        killed_between_store_and_commit(&database.settings).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_store_side_by_side_into_postgres_for_the_same_people() {
    let test = "two_members_store_side_by_side_into_postgres_for_the_same_people";
    let Some(broker) = Broker::real_or_skip(test) else { return };
    let Some(database) = TestDatabase::postgres(test).await else { return };
    let stores =
        store::open(&database.settings, &Config::for_tests().policy, store::testing::ids(), CancellationToken::new()).await.unwrap();
    let mut stage = Stage::new(broker, 4).await;
    stage.config.batch_records = 25;
    for round in 0..4 {
        for partition in 0..4 {
            stage.produce_many(partition, &format!("{partition}-{round}-"), &format!("user{}", (partition + round) % 3), 50).await;
        }
    }
    let running: Vec<Running> = (0..2)
        .map(|_| {
            let shutdown = CancellationToken::new();
            let parts = Parts { notifications: stores.notifications.clone(), ..stage.parts() };
            Running { task: tokio::spawn(run(parts, shutdown.clone())), shutdown }
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
        assert_eq!(missed.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), (1..=missed.rows.len() as i64).collect::<Vec<_>>());
        total += missed.rows.len();
    }
    assert_eq!(total, 800);
    stores.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_partitions_of_a_topic_are_found() {
    let Some(broker) = Broker::real_or_skip("new_partitions_of_a_topic_are_found") else { return };
    let mut stage = Stage::new(broker, 1).await;
    stage.config.properties.insert("topic.metadata.refresh.interval.ms".into(), "500".into());
    let running = stage.run();
    until("the only one is assigned", || stage.status.facts().partitions == 1).await;
    let topic = stage.topic().to_owned();
    stage.broker.admin().create_partitions([&NewPartitions::new(&topic, 2)], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    until("the new one is assigned", || stage.status.facts().partitions == 2).await;
    let started = Instant::now();
    while stage.broker.client().create::<BaseConsumer>().unwrap().fetch_metadata(Some(&topic), PATIENCE).unwrap().topics()[0]
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

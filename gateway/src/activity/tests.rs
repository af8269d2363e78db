//! The whole pipeline against a broker: a real one named by `SIGNAL_TEST_KAFKA`, else librdkafka's mock cluster where that is enough.

mod dead_letters;
mod members;
mod outages;

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
use signal_contract::KafkaReport;
use tokio::io::AsyncBufReadExt;

use super::decode::Record;
use super::replay::{ReplayOptions, replay};
use super::testing::{Policies, Published, Rows, unused_reads};
use super::*;
use crate::clock::SystemClock;
use crate::config::{Config, Database, Kafka, Secret};
use crate::delivery::Delivery;
use crate::hub::Hub;
use crate::notification::NewActivity;
use crate::store::testing::TestDatabase;
use crate::store::{self, NotificationStore, StoreError, Stored};

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
            Self {
                address: mock.bootstrap_servers(),
                mock: Some(mock),
            }
        })
    }

    fn real() -> Option<Self> {
        std::env::var("SIGNAL_TEST_KAFKA")
            .ok()
            .filter(|address| !address.is_empty())
            .map(|address| Self {
                address,
                mock: None,
            })
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
        let created = self
            .admin()
            .create_topics(
                [&NewTopic::new(
                    topic,
                    partitions,
                    TopicReplication::Fixed(1),
                )],
                &AdminOptions::new(),
            )
            .await;
        created.unwrap().remove(0).unwrap();
    }
}

/// An inbox without local connections.
fn inbox(notifications: Arc<dyn NotificationStore>, bus: Arc<Published>) -> Inbox {
    let delivery = Delivery::new(Hub::none(), bus);
    Inbox::new(notifications, delivery, Arc::new(SystemClock))
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
    status: Arc<PipelineStatus>,
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
        let unique = format!(
            "{}-{}-{}",
            std::process::id(),
            SystemClock.now_ms(),
            STAGES.fetch_add(1, Ordering::SeqCst)
        );
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
        let producer = broker
            .client()
            .set("message.timeout.ms", "30000")
            .create()
            .unwrap();
        let policies = Policies::new(&[("Merchant_42", &["17", "18"]), ("Organizer_7", &["19"])]);
        Self {
            broker,
            config,
            producer,
            rows: Rows::new(),
            policies,
            bus: Arc::default(),
            metrics: Metrics::new(),
            status: Arc::default(),
        }
    }

    fn topic(&self) -> &str {
        &self.config.topics[0]
    }

    fn options(&self) -> PipelineOptions {
        self.options_with(self.rows.clone())
    }

    /// Stores in `notifications`.
    fn options_with(&self, notifications: Arc<dyn NotificationStore>) -> PipelineOptions {
        PipelineOptions {
            config: self.config.clone(),
            cache_secs: 30,
            inbox: inbox(notifications, self.bus.clone()),
            policies: self.policies.clone(),
            catalogs: Arc::new(Catalogs::load(std::path::Path::new(""), "vi").unwrap()),
            clock: Arc::new(SystemClock),
            metrics: self.metrics.clone(),
            status: self.status.clone(),
        }
    }

    fn run(&self) -> Running {
        let shutdown = CancellationToken::new();
        Running {
            task: tokio::spawn(run(self.options(), shutdown.clone())),
            shutdown,
        }
    }

    async fn produce(&self, partition: i32, value: &str) -> i64 {
        self.produce_with(partition, value.as_bytes(), OwnedHeaders::new())
            .await
    }

    async fn produce_with(&self, partition: i32, value: &[u8], headers: OwnedHeaders) -> i64 {
        let record = FutureRecord::to(self.topic())
            .partition(partition)
            .key("42")
            .payload(value)
            .headers(headers);
        self.producer.send(record, PATIENCE).await.unwrap().offset
    }

    /// Produces to one partition `count` records for `recipient` whose ids are `{prefix}0`, `{prefix}1` and so on.
    async fn produce_many(&self, partition: i32, prefix: &str, recipient: &str, count: usize) {
        let values: Vec<String> =
            (0..count).map(|n| format!(r#"{{"id":"{prefix}{n}","type":"T","title":"t","content":"c","actorId":"{recipient}"}}"#)).collect();
        let sent = values.iter().map(|value| {
            self.producer
                .send_result(
                    FutureRecord::<(), _>::to(self.topic())
                        .partition(partition)
                        .payload(value),
                )
                .unwrap()
        });
        for sent in join_all(sent).await {
            sent.unwrap().unwrap();
        }
    }

    /// The group's offset of a partition; 0 for none.
    async fn committed(&self, partition: i32) -> i64 {
        let (client, group, topic) = (
            self.broker.client(),
            self.config.group_id.clone(),
            self.topic().to_owned(),
        );
        let asked = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.clone().set("group.id", group).create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, partition);
            consumer
                .committed_offsets(list, PATIENCE)
                .unwrap()
                .elements()[0]
                .offset()
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
            let mut ids: Vec<String> = groups
                .groups()
                .iter()
                .flat_map(|g| g.members().iter().map(|m| m.id().to_owned()))
                .collect();
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
            assert!(
                started.elapsed() < PATIENCE,
                "partition {partition} is committed up to {committed}, not {offset}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Every record of a topic, by partition and offset.
    async fn read(&self, topic: &str, count: usize) -> Vec<Record> {
        let (client, topic) = (self.broker.client(), topic.to_owned());
        let read = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client
                .clone()
                .set("group.id", "reader")
                .set("enable.auto.commit", "false")
                .create()
                .unwrap();
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
            let mut list = TopicPartitionList::new();
            for partition in metadata.topics()[0].partitions() {
                list.add_partition_offset(&topic, partition.id(), Offset::Beginning)
                    .unwrap();
            }
            consumer.assign(&list).unwrap();
            let (started, mut records) = (Instant::now(), Vec::new());
            // A little longer than needed, to see that there are no more.
            let mut enough = None;
            while started.elapsed() < PATIENCE
                && enough.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(500))
            {
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
        self.metrics
            .records
            .get_or_create(&Metrics::kind(outcome))
            .get()
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
    assert_eq!(
        rows.iter()
            .map(|row| &*row.recipient_id)
            .collect::<Vec<_>>(),
        ["17", "18"]
    );
    assert_eq!(
        &*rows[0].content,
        "Đơn hàng DH-1001 đã được thanh toán 150.000 VND."
    );
    let pushes = stage.bus.dispatches.lock().clone();
    assert_eq!(pushes.len(), 2);
    for push in &pushes {
        assert_eq!(
            &*push.event,
            crate::protocol::event::name::NOTIFICATION_CREATED
        );
        let data: serde_json::Value = serde_json::from_str(push.data.get()).unwrap();
        assert_eq!(
            (&data["unreadCount"], &data["version"]),
            (&1.into(), &1.into())
        );
        assert_eq!(data["notification"]["type"], "PAYMENT_SUCCESS");
        assert_eq!(data["notification"]["data"]["amount"], 150_000);
        assert_eq!(
            push.destination,
            crate::dispatch::Destination::User(
                data["notification"]["recipientId"].as_str().unwrap().into()
            )
        );
    }
    until("the lag is known", || {
        stage.status.facts()
            == KafkaReport {
                partitions: 1,
                max_lag: Some(0),
                retrying: 0,
            }
    })
    .await;
    assert!(stage.metrics.render().contains("signal_kafka_lag_records{"));
    running.stop().await;
    assert_eq!(stage.status.facts().partitions, 0);
    assert!(
        !stage.metrics.render().contains("signal_kafka_lag_records{"),
        "the lag of a partition of another's is not told"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_twice_and_a_redelivery_of_everything_change_nothing() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    let running = stage.run();
    stage.produce(0, PAYMENT).await;
    stage.produce(0, PAYMENT).await;
    stage
        .produce(
            0,
            r#"{"type":"T","title":"without id","content":"c","actorId":"17"}"#,
        )
        .await;
    stage.until_committed(0, 3).await;
    running.stop().await;
    assert_eq!(
        (
            stage.rows.count(),
            stage.counted("stored"),
            stage.counted("duplicate")
        ),
        (3, 2, 1)
    );
    // Another group has no offsets: it reads everything again.
    stage.config.group_id += "-again";
    let running = stage.run();
    stage.until_committed(0, 3).await;
    running.stop().await;
    assert_eq!(
        (stage.rows.count(), stage.bus.dispatches.lock().len()),
        (3, 3)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_of_every_kind_is_a_dead_letter_and_the_partition_goes_on() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage.config.max_recipients = 2;
    let poison: [(&str, DeadLetterReason); 10] = [
        ("not json", DeadLetterReason::NotJson),
        (
            r#"{"type":"T","actorId":{}}"#,
            DeadLetterReason::InvalidField,
        ),
        (r#"{"actorId":"17"}"#, DeadLetterReason::MissingField),
        (
            r#"{"type":"T","recipientType":"everyone"}"#,
            DeadLetterReason::UnknownRecipientType,
        ),
        (
            r#"{"type":"T","recipientType":"merchant"}"#,
            DeadLetterReason::MissingAudience,
        ),
        (
            r#"{"type":"T","title":"t","content":"c","recipientType":"users","recipientIds":[1,2,3]}"#,
            DeadLetterReason::TooManyRecipients,
        ),
        (
            r#"{"type":"T","title":"t","content":"c","recipientType":"merchant","merchantId":"0"}"#,
            DeadLetterReason::Nobody,
        ),
        (
            r#"{"type":"UNHEARD_OF","actorId":"17"}"#,
            DeadLetterReason::NoTemplate,
        ),
        (
            r#"{"type":"PAYMENT_SUCCESS","actorId":"17","data":{"amount":1}}"#,
            DeadLetterReason::NoTemplate,
        ),
        (
            r#"{"type":"T","title":"REFUSED","content":"c","actorId":"17"}"#,
            DeadLetterReason::Refused,
        ),
    ];
    for (at, (value, _)) in poison.iter().enumerate() {
        let headers = OwnedHeaders::new().insert(Header {
            key: "h",
            value: Some(&[0xff_u8, 0][..]),
        });
        stage.produce_with(0, value.as_bytes(), headers).await;
        stage.produce_many(0, &format!("good{at}-"), "17", 1).await;
    }
    let running = stage.run();
    stage.until_committed(0, 20).await;
    running.stop().await;
    assert_eq!(
        stage.rows.of("17"),
        (0..10).map(|at| format!("good{at}-0")).collect::<Vec<_>>()
    );
    let letters = stage.dead_letters(poison.len()).await;
    for (at, (value, reason)) in poison.iter().enumerate() {
        let letter = letters
            .iter()
            .find(|letter| letter.header(dead_letter::OFFSET) == Some(&(2 * at).to_string()))
            .unwrap();
        assert_eq!(letter.value.as_deref(), Some(value.as_bytes()));
        assert_eq!(letter.key.as_deref(), Some(b"42".as_slice()));
        assert_eq!(letter.headers[0], ("h".into(), Some(vec![0xff, 0])));
        assert_eq!(
            letter.header(dead_letter::REASON),
            Some(reason.as_str()),
            "{value}"
        );
        assert_eq!(letter.header(dead_letter::TOPIC), Some(stage.topic()));
        assert_eq!(letter.header(dead_letter::PARTITION), Some("0"));
        assert!(!letter.header(dead_letter::DETAIL).unwrap().is_empty());
        chrono::DateTime::parse_from_rfc3339(letter.header(dead_letter::TIME).unwrap()).unwrap();
    }
    assert_eq!(
        (stage.counted("stored"), stage.counted("dead_letter")),
        (10, 10)
    );
    assert_eq!(
        stage
            .metrics
            .dead_letters
            .get_or_create(&Metrics::kind("no_template"))
            .get(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_is_found_by_halving_and_the_others_keep_their_order() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.produce_many(0, "a", "17", 21).await;
    stage
        .produce(
            0,
            r#"{"id":"bad","type":"T","title":"REFUSED","content":"c","actorId":"17"}"#,
        )
        .await;
    stage.produce_many(0, "b", "17", 42).await;
    let running = stage.run();
    stage.until_committed(0, 64).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), [ids("a", 21), ids("b", 42)].concat());
    assert_eq!(
        stage.dead_letters(1).await[0].header(dead_letter::OFFSET),
        Some("21")
    );
    assert!(
        stage.rows.calls().len() <= 24,
        "halving is logarithmic: {:?}",
        stage.rows.calls()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_one_recipient_keep_the_order_of_its_inbox() {
    let stage = Stage::new(Broker::any(), 1).await;
    for n in 0..20 {
        stage
            .produce_many(0, &format!("{n}-"), &format!("u{}", n % 3), 20)
            .await;
    }
    let running = stage.run();
    stage.until_committed(0, 400).await;
    running.stop().await;
    let mut versions: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for push in stage.bus.dispatches.lock().iter() {
        let data: serde_json::Value = serde_json::from_str(push.data.get()).unwrap();
        versions
            .entry(data["notification"]["recipientId"].to_string())
            .or_default()
            .push(data["version"].as_i64().unwrap());
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
    let many = serde_json::json!({"id": "many", "type": "T", "title": "t", "content": "c", "recipientType": "users", "recipientIds": recipients});
    stage.produce(0, &many.to_string()).await;
    stage.produce_many(0, "b", "x", 3).await;
    let running = stage.run();
    stage.until_committed(0, 7).await;
    running.stop().await;
    assert_eq!(stage.rows.of("x"), [ids("a", 3), ids("b", 3)].concat());
    let got: HashSet<String> = stage
        .rows
        .all()
        .iter()
        .filter(|r| &*r.recipient_id != "x")
        .map(|r| r.recipient_id.to_string())
        .collect();
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
async fn settings_that_are_refused_end_the_start_at_once() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage
        .config
        .properties
        .insert("enable.auto.commit".into(), "true".into());
    let refused = run(stage.options(), CancellationToken::new()).await;
    assert!(
        matches!(refused, Err(PipelineError::Settings(_))),
        "{refused:?}"
    );
    stage.config.properties = [("no.such.property".to_owned(), "1".to_owned())].into();
    let refused = run(stage.options(), CancellationToken::new()).await;
    assert!(
        matches!(refused, Err(PipelineError::Client(_))),
        "{refused:?}"
    );
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
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

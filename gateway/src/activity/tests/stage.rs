//! What the pipeline's tests run against: a broker, a topic of its own for each test, and everything around the pipeline.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::OwnedHeaders;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::activity::decode::Record;
use crate::activity::testing::{Policies, Rows};
use crate::activity::*;
use crate::clock::SystemClock;
use crate::config::{Config, Kafka};
use crate::dispatch::Destination;
use crate::inbox::testing::{Published, inbox};
use crate::store::NotificationStore;

/// How long a test waits for anything before it fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Broker {
    pub(super) address: String,
    pub(super) mock: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl Broker {
    pub(super) fn any() -> Self {
        Self::real().unwrap_or_else(|| {
            let mock = MockCluster::new(1).unwrap();
            Self {
                address: mock.bootstrap_servers(),
                mock: Some(mock),
            }
        })
    }

    pub(super) fn real() -> Option<Self> {
        std::env::var("SIGNAL_TEST_KAFKA")
            .ok()
            .filter(|address| !address.is_empty())
            .map(|address| Self {
                address,
                mock: None,
            })
    }

    /// `None`, with a word why, where there is no real broker.
    pub(super) fn real_or_skip(test: &str) -> Option<Self> {
        let broker = Self::real();
        if broker.is_none() {
            eprintln!("skipped: {test}: needs Apache Kafka, and SIGNAL_TEST_KAFKA names none");
        }
        broker
    }

    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.address);
        client
    }

    pub(super) fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    pub(super) async fn create(&self, topic: &str, partitions: i32) {
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

/// A topic, its dead letters and everything around the pipeline.
pub(super) struct Stage {
    pub(super) broker: Broker,
    pub(super) config: Kafka,
    pub(super) producer: FutureProducer,
    pub(super) rows: Arc<Rows>,
    pub(super) policies: Arc<Policies>,
    pub(super) bus: Arc<Published>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: Arc<PipelineStatus>,
}

pub(super) struct Running {
    pub(super) shutdown: CancellationToken,
    pub(super) task: tokio::task::JoinHandle<Result<(), PipelineError>>,
}

impl Running {
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl Stage {
    pub(super) async fn new(broker: Broker, partitions: i32) -> Self {
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

    pub(super) fn topic(&self) -> &str {
        &self.config.topics[0]
    }

    pub(super) fn options(&self) -> PipelineOptions {
        self.options_with(self.rows.clone())
    }

    /// Stores in `notifications`.
    pub(super) fn options_with(
        &self,
        notifications: Arc<dyn NotificationStore>,
    ) -> PipelineOptions {
        PipelineOptions {
            config: self.config.clone(),
            cache_secs: 30,
            inbox: inbox(notifications, self.bus.clone()),
            policies: self.policies.clone(),
            catalogs: Arc::new(Catalogs::load(std::path::Path::new(""), "vi").unwrap()),
            clock: Arc::new(SystemClock),
            metrics: self.metrics.clone(),
            status: self.status.clone(),
            around: Surroundings::alone(),
        }
    }

    pub(super) fn run(&self) -> Running {
        let shutdown = CancellationToken::new();
        Running {
            task: tokio::spawn(run(self.options(), shutdown.clone())),
            shutdown,
        }
    }

    pub(super) async fn produce(&self, partition: i32, value: &str) -> i64 {
        self.produce_with(partition, value.as_bytes(), OwnedHeaders::new())
            .await
    }

    pub(super) async fn produce_with(
        &self,
        partition: i32,
        value: &[u8],
        headers: OwnedHeaders,
    ) -> i64 {
        let record = FutureRecord::to(self.topic())
            .partition(partition)
            .key("42")
            .payload(value)
            .headers(headers);
        self.producer.send(record, PATIENCE).await.unwrap().offset
    }

    /// Produces to one partition `count` records for `recipient` whose ids are `{prefix}0`, `{prefix}1` and so on.
    pub(super) async fn produce_many(
        &self,
        partition: i32,
        prefix: &str,
        recipient: &str,
        count: usize,
    ) {
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
    pub(super) async fn committed(&self, partition: i32) -> i64 {
        let (client, group, topic) = (
            self.broker.client(),
            self.config.group_id.clone(),
            self.topic().to_owned(),
        );
        let asked = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.clone().set("group.id", group).create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, partition);
            let started = Instant::now();
            loop {
                match consumer.committed_offsets(list.clone(), PATIENCE) {
                    Ok(known) => return known.elements()[0].offset(),
                    // A broker that has just started, or has just lost a member.
                    Err(error)
                        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::NotCoordinator)
                            && started.elapsed() < PATIENCE => {}
                    Err(error) => panic!("{error}"),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        match asked.await.unwrap() {
            Offset::Offset(offset) => offset,
            _ => 0,
        }
    }

    /// Ids of the group's members, in order.
    pub(super) async fn members(&self) -> Vec<String> {
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

    pub(super) async fn until_committed(&self, partition: i32, offset: i64) {
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
    pub(super) async fn read(&self, topic: &str, count: usize) -> Vec<Record> {
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
                    let record = consumer::record(topic.as_str().into(), &message.unwrap());
                    // A mark of a replay is no letter.
                    if record.header(dead_letter::REPLAYED).is_none() {
                        records.push(record);
                    }
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

    pub(super) async fn dead_letters(&self, count: usize) -> Vec<Record> {
        self.read(&format!("{}.dlq", self.topic()), count).await
    }

    /// The users who were sent an event, in order.
    pub(super) fn sent(&self, event: &str) -> Vec<String> {
        let dispatches = self.bus.dispatches.lock();
        dispatches
            .iter()
            .filter(|dispatch| &*dispatch.event == event)
            .map(|dispatch| match &dispatch.destination {
                Destination::User(user) => user.to_string(),
                other => panic!("{event} to {other:?}"),
            })
            .collect()
    }

    pub(super) fn counted(&self, outcome: &str) -> u64 {
        self.metrics
            .records
            .get_or_create(&Metrics::kind(outcome))
            .get()
    }
}

pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

//! A service that produces activity records to Kafka, and a look at what lies in a topic.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use crate::wait::LIMIT;

/// An idempotent producer: a record it acknowledges is stored once by the broker.
pub struct Producer {
    brokers: String,
    inner: FutureProducer,
}

/// A record read back from a topic.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Header names and values.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Stored {
    /// The value of the first header of this name, as text; empty where it is absent.
    pub fn header(&self, name: &str) -> String {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .unwrap_or_default()
    }
}

impl Producer {
    /// A producer for these brokers; it connects when it is used.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn new(brokers: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("linger.ms", "2");
        // Outlives a restart of the broker in a test.
        config
            .set("message.timeout.ms", "60000")
            .set("reconnect.backoff.max.ms", "500");
        Ok(Self {
            brokers: brokers.to_owned(),
            inner: config.create()?,
        })
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// When the broker refuses or cannot be reached.
    pub async fn create_topic(&self, topic: &str, partitions: i32) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()?;
        let options = AdminOptions::new()
            .operation_timeout(Some(LIMIT))
            .request_timeout(Some(LIMIT));
        let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for result in admin.create_topics([&topic], &options).await? {
            if let Err((name, error)) = result {
                bail!("topic {name} was not made: {error}");
            }
        }
        Ok(())
    }

    /// Produces JSON and waits for the acknowledgement.
    ///
    /// # Errors
    /// When the broker does not acknowledge it within a minute.
    pub async fn send(&self, topic: &str, key: &str, record: &Value) -> Result<()> {
        self.send_raw(topic, key, record.to_string().as_bytes(), &[])
            .await
    }

    /// Produces any bytes with headers and waits for the acknowledgement.
    ///
    /// # Errors
    /// When the broker does not acknowledge it within a minute.
    pub async fn send_raw(
        &self,
        topic: &str,
        key: &str,
        value: &[u8],
        headers: &[(&str, &str)],
    ) -> Result<()> {
        let mut owned = OwnedHeaders::new();
        for &(name, value) in headers {
            owned = owned.insert(Header {
                key: name,
                value: Some(value),
            });
        }
        let record = FutureRecord::to(topic)
            .key(key)
            .payload(value)
            .headers(owned);
        self.inner
            .send(record, Duration::from_secs(60))
            .await
            .map_err(|(error, _)| error)
            .context("the record was not acknowledged")?;
        Ok(())
    }

    /// Reads the first `count` records of partition 0 of a topic, from its beginning.
    ///
    /// # Errors
    /// When there are fewer within the usual limit.
    pub async fn read(&self, topic: &str, count: usize) -> Result<Vec<Stored>> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("reader-{topic}"));
        config
            .set("enable.auto.commit", "false")
            .set("allow.auto.create.topics", "true")
            .set("topic.metadata.refresh.interval.ms", "500");
        let consumer: StreamConsumer = config.create()?;
        let mut start = rdkafka::TopicPartitionList::new();
        start.add_partition_offset(topic, 0, rdkafka::Offset::Beginning)?;
        consumer.assign(&start)?;
        let mut records = Vec::new();
        let all = async {
            while records.len() < count {
                // A topic that is not there yet is an error that passes.
                if let Ok(message) = consumer.recv().await {
                    let headers = message.headers().map(|headers| {
                        headers
                            .iter()
                            .map(|header| {
                                (
                                    header.key.to_owned(),
                                    header.value.unwrap_or_default().to_vec(),
                                )
                            })
                            .collect()
                    });
                    records.push(Stored {
                        key: message.key().unwrap_or_default().to_vec(),
                        value: message.payload().unwrap_or_default().to_vec(),
                        headers: headers.unwrap_or_default(),
                    });
                }
            }
        };
        if tokio::time::timeout(LIMIT, all).await.is_err() {
            bail!("{topic} has {} records, want {count}", records.len());
        }
        Ok(records)
    }
}

/// A `PAYMENT_SUCCESS` for a merchant, with an amount that tells it from others.
pub fn payment(id: &str, merchant: &str, amount: u64) -> Value {
    json!({
        "id": id, "type": "PAYMENT_SUCCESS", "actorId": "17", "recipientType": "merchant", "merchantId": merchant,
        "data": {"amount": amount, "currency": "VND", "orderId": format!("DH-{id}")}, "occurredAt": "2026-11-23T08:00:00Z"
    })
}

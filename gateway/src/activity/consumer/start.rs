//! Where a partition begins when it is assigned, and what librdkafka reports as an error.
//!
//! Input: the offsets of the group, and errors. Output: the group's offsets.
//!
//! librdkafka always begins at the oldest record where it has no offset, or where the offset does not exist any more: what can be had is read.
//! `kafka.offset_reset = "latest"` is about a group that reads a topic for the first time, so it is decided here, once: the ends of all partitions are
//! committed. A partition that is added later has no offset while others have one, and begins at its first record.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::assignment::{Assignment, Key, commit_now, list};
use crate::config::OffsetReset;

/// How long offsets are asked for when partitions are assigned. Well below the group's session timeout.
const LIMIT: Duration = Duration::from_secs(3);
/// How often they are asked for where the start depends on them.
const TRIES: usize = 3;

impl Assignment {
    /// Returns the group's offsets of newly assigned partitions; empty if they cannot be had, which delays nothing.
    pub(super) fn start(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> TopicPartitionList {
        if self.pipeline.config.offset_reset == OffsetReset::Latest {
            let status = &self.pipeline.status;
            for topic in self.topics_of(partitions) {
                // Made again, it has no offsets, and all of it is new.
                if status.knows_topic(&topic) {
                    continue;
                }
                status.learn_topic(&topic);
                for tried in 1..=TRIES {
                    match self.begin_at_the_end(consumer, &topic) {
                        Ok(()) => break,
                        Err(error) if tried < TRIES => {
                            tracing::debug!(%error, kafka.topic = &*topic, "offsets cannot be read yet");
                        }
                        Err(error) => tracing::warn!(
                            %error,
                            kafka.topic = &*topic,
                            "it cannot be found out whether the group is new to the topic; partitions without an offset are read from their beginning"
                        ),
                    }
                }
            }
        }
        let keys = self.keys(partitions);
        consumer
            .committed_offsets(list(keys.iter().map(|key| (key, None))), LIMIT)
            .unwrap_or_else(|error| {
                tracing::debug!(%error, "the group's offsets are not known at the assignment");
                TopicPartitionList::new()
            })
    }

    /// Commits the end of every partition of a topic that the group has never read.
    fn begin_at_the_end(
        &self,
        consumer: &BaseConsumer<Self>,
        topic: &std::sync::Arc<str>,
    ) -> KafkaResult<()> {
        let metadata = consumer.fetch_metadata(Some(topic), LIMIT)?;
        let keys: Vec<Key> = metadata
            .topics()
            .iter()
            .flat_map(|found| found.partitions())
            .map(|partition| (topic.clone(), partition.id()))
            .collect();
        let known = consumer.committed_offsets(list(keys.iter().map(|key| (key, None))), LIMIT)?;
        let is_known = known
            .elements()
            .iter()
            .any(|partition| partition.offset().to_raw().is_some_and(|raw| raw >= 0));
        if is_known {
            return Ok(());
        }
        let mut ends = Vec::with_capacity(keys.len());
        for key in &keys {
            let (_, end) = consumer.fetch_watermarks(topic, key.1, LIMIT)?;
            ends.push((key, Some(end)));
        }
        tracing::info!(
            kafka.topic = &**topic,
            "the group reads the topic for the first time and begins with the next record, as kafka.offset_reset says"
        );
        commit_now(consumer, &ends);
        Ok(())
    }

    /// Takes an error of librdkafka: of a connection, of the group, or of one partition.
    pub(super) fn take_error(&self, error: &KafkaError, reason: &str) {
        let code = error
            .rdkafka_error_code()
            .unwrap_or(RDKafkaErrorCode::Unknown);
        self.pipeline
            .metrics
            .kafka_errors
            .get_or_create(&crate::metrics::Metrics::kind(format!("{code:?}")))
            .inc();
        *self.last_error.lock() = Some(reason.to_owned());
        if self.faults.lock().add(Instant::now(), code, reason) {
            tracing::warn!(%error, reason, "the Kafka consumer reports an error");
        }
        if code == RDKafkaErrorCode::UnknownTopicOrPartition {
            self.say_what_a_deleted_topic_had(reason);
        }
    }

    /// Says which records of a topic that does not exist were unread.
    fn say_what_a_deleted_topic_had(&self, reason: &str) {
        let topics = self.pipeline.config.topics.iter();
        for topic in topics.filter(|topic| reason.contains(topic.as_str())) {
            for (partition, from, to) in self.pipeline.status.take_unread(topic) {
                self.missed(topic, partition, from, to, "the topic was deleted");
            }
        }
    }
}

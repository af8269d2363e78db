//! The partitions that are assigned to this member, and the lane of each: fills, pauses, resumes, commits, gives up.
//!
//! Input: messages, rebalances and statistics of librdkafka. Output: records in the queues of lanes, and committed offsets. Everything here runs
//! on the consumer's thread.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::faults::Faults;
use super::position::Position;
use super::{POLL, record};
use crate::activity::budget::Share;
use crate::activity::decode::Record;
use crate::activity::lane::{Lane, Takeover};
use crate::activity::progress::Progress;
use crate::activity::{Pipeline, PipelineError};
use crate::memory;
use crate::metrics::Partition;

/// Longest time that giving up partitions waits for what is being stored. Well below the group's session timeout.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How often a commit on the way out is tried, and how long each waits for the broker's answer.
const LAST_COMMITS: usize = 3;
pub(super) const COMMIT_LIMIT: Duration = Duration::from_secs(2);
pub(super) type Key = (Arc<str>, i32);

/// What is assigned to this member, and the lanes at work on it.
pub(super) struct Assignment {
    pub(super) pipeline: Arc<Pipeline>,
    topics: Vec<Arc<str>>,
    runtime: Handle,
    pub(super) lanes: Mutex<HashMap<Key, Assigned>>,
    pub(super) faults: Mutex<Faults>,
    /// The last error that concerns all partitions.
    pub(super) last_error: Mutex<Option<String>>,
}

/// The consumer's end of a lane.
pub(super) struct Assigned {
    queue: mpsc::UnboundedSender<Record>,
    share: Arc<Share>,
    pub(super) progress: Arc<Progress>,
    pub(super) position: Position,
    pub(super) committed: Option<i64>,
    pub(super) is_paused: bool,
    /// Where the next fetch began at the last report of the statistics.
    pub(super) next_fetch: Option<i64>,
    /// The last error of fetching that was logged.
    pub(super) said_fault: Option<String>,
    drain: CancellationToken,
    task: JoinHandle<()>,
    /// Disconnected when the task has ended, however it did.
    done: blocking::Receiver<()>,
}

impl Assignment {
    /// Nothing is assigned yet. Lanes run on the runtime of the caller.
    pub(super) fn new(pipeline: Arc<Pipeline>) -> Self {
        let topics = pipeline.config.topics.iter();
        Self {
            topics: topics.map(|topic| Arc::from(topic.as_str())).collect(),
            pipeline,
            runtime: Handle::current(),
            lanes: Mutex::default(),
            faults: Mutex::default(),
            last_error: Mutex::default(),
        }
    }

    fn key(&self, topic: &str, partition: i32) -> Key {
        let topic = self
            .topics
            .iter()
            .find(|known| known.as_ref() == topic)
            .cloned()
            .unwrap_or_else(|| topic.into());
        (topic, partition)
    }

    pub(super) fn keys(&self, partitions: &TopicPartitionList) -> Vec<Key> {
        let elements = partitions.elements();
        elements
            .iter()
            .map(|partition| self.key(partition.topic(), partition.partition()))
            .collect()
    }

    /// The topics of these partitions, each once.
    pub(super) fn topics_of(&self, partitions: &TopicPartitionList) -> Vec<Arc<str>> {
        let mut topics: Vec<Arc<str>> = self.keys(partitions).into_iter().map(|(t, _)| t).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    fn open(&self, key: &Key, committed: Option<i64>) -> Assigned {
        let (queue, records) = mpsc::unbounded_channel();
        let (ending, done) = blocking::sync_channel(1);
        let (share, progress, drain) = (
            self.pipeline.budget.share(),
            Arc::new(Progress::none()),
            CancellationToken::new(),
        );
        let lane = Lane {
            pipeline: self.pipeline.clone(),
            topic: key.0.clone(),
            partition: key.1,
            queue: records,
            left: VecDeque::new(),
            share: share.clone(),
            progress: progress.clone(),
            drain: drain.clone(),
            permit: None,
            takeover: Takeover::default(),
            rows: self.pipeline.config.batch_rows,
        };
        let task = self.runtime.spawn(async move {
            let _until_the_end: blocking::SyncSender<()> = ending;
            lane.run().await;
        });
        Assigned {
            queue,
            share,
            progress,
            position: Position::starting(committed),
            committed: None,
            is_paused: false,
            next_fetch: None,
            said_fault: None,
            drain,
            task,
            done,
        }
    }

    pub(super) fn accept(&self, consumer: &BaseConsumer<Self>, message: &BorrowedMessage<'_>) {
        let key = self.key(message.topic(), message.partition());
        let record = record(key.0.clone(), message);
        let mut lanes = self.lanes.lock();
        let Some(lane) = lanes.get_mut(&key) else {
            drop(lanes);
            tracing::debug!(
                kafka.topic = &*key.0,
                kafka.partition = key.1,
                kafka.offset = record.offset,
                "record of a partition that is not assigned any more; its owner reads it"
            );
            return;
        };
        if let Some(expected) = lane.position.received(record.offset) {
            tracing::warn!(
                kafka.topic = &*key.0,
                kafka.partition = key.1,
                kafka.offset = record.offset,
                expected,
                "the partition begins again before the offset that was expected: its topic was made again or its log was cut; it is read from here"
            );
        }
        lane.said_fault = None;
        lane.share.queue(&record);
        // The next tick notices a lane that ended; the record is not committed.
        let _ = lane.queue.send(record);
        if !lane.is_paused && lane.share.is_full(self.pipeline.config.partition_queue) {
            match consumer.pause(&list([(&key, None)])) {
                Ok(()) => lane.is_paused = true,
                Err(error) => {
                    tracing::warn!(%error, kafka.topic = &*key.0, kafka.partition = key.1, "partition cannot be paused; its queue grows")
                }
            }
        }
    }

    /// Resumes lanes that caught up, and returns whether any lane is still paused.
    pub(super) fn resume_those_that_caught_up(&self, consumer: &BaseConsumer<Self>) -> bool {
        let mut is_any_paused = false;
        for (key, lane) in self
            .lanes
            .lock()
            .iter_mut()
            .filter(|(_, lane)| lane.is_paused)
        {
            if lane.share.has_room(self.pipeline.config.partition_queue) {
                match consumer.resume(&list([(key, None)])) {
                    Ok(()) => lane.is_paused = false,
                    Err(error) => {
                        tracing::warn!(%error, kafka.topic = &*key.0, kafka.partition = key.1, "partition cannot be resumed; the next poll tries again")
                    }
                }
            }
            is_any_paused |= lane.is_paused;
        }
        is_any_paused
    }

    /// Commits what was done, and looks for lanes that ended.
    pub(super) fn tick(&self, consumer: &BaseConsumer<Self>) -> Result<(), PipelineError> {
        let in_use = self.pipeline.budget.in_use();
        self.pipeline
            .metrics
            .pipeline_memory
            .set(i64::try_from(in_use).unwrap_or(i64::MAX));
        let mut done = Vec::new();
        {
            let mut lanes = self.lanes.lock();
            for (key, lane) in lanes.iter_mut() {
                if lane.task.is_finished() {
                    tracing::error!(
                        kafka.topic = &*key.0,
                        kafka.partition = key.1,
                        "the work on a partition ended unexpectedly; the process ends"
                    );
                    return Err(PipelineError::Panicked);
                }
                let next = lane.progress.next();
                if next.is_some() && next != lane.committed {
                    lane.committed = next;
                    done.push((key.clone(), next));
                }
            }
        }
        if !done.is_empty() {
            let offsets = list(done.iter().map(|(key, next)| (key, *next)));
            if let Err(error) = consumer.commit(&offsets, CommitMode::Async) {
                tracing::warn!(%error, "offsets were not committed; the next commit includes them");
            }
        }
        Ok(())
    }

    /// Gives back memory that was kept and is not used any more: lists of recipients, and what librdkafka has fetched.
    pub(super) fn give_back(&self) {
        self.pipeline.resolver.forget_old();
        memory::give_back_of_c();
    }

    /// Drains and commits these partitions, or all of them; nothing of theirs is committed later.
    pub(super) fn give_up(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: Option<&TopicPartitionList>,
    ) {
        let mut leaving: Vec<(Key, Assigned)> = match partitions {
            None => self.lanes.lock().drain().collect(),
            Some(partitions) => {
                let keys = self.keys(partitions);
                let mut lanes = self.lanes.lock();
                keys.iter()
                    .filter_map(|key| lanes.remove_entry(key))
                    .collect()
            }
        };
        if leaving.is_empty() {
            return;
        }
        let is_lost = consumer.assignment_lost();
        for (_, lane) in &leaving {
            lane.drain.cancel();
        }
        // The new owner of a lost partition works on it already.
        let deadline = Instant::now() + if is_lost { Duration::ZERO } else { DRAIN_LIMIT };
        for (key, lane) in &mut leaving {
            if let Err(blocking::RecvTimeoutError::Timeout) = lane
                .done
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                tracing::warn!(
                    kafka.topic = &*key.0,
                    kafka.partition = key.1,
                    is_lost,
                    "partition revoked before its records were stored; its next owner reads them again"
                );
                lane.task.abort();
            }
        }
        if !is_lost {
            let done: Vec<_> = leaving
                .iter()
                .filter_map(|(key, lane)| Some((key, Some(lane.progress.next()?))))
                .collect();
            commit_now(consumer, &done);
        }
        for ((topic, partition), _) in leaving {
            let label = Partition {
                topic: topic.to_string(),
                partition,
            };
            self.pipeline.metrics.lag.remove(&label);
            self.pipeline.metrics.stuck.remove(&label);
            self.pipeline.status.remove(&topic, partition);
        }
    }
}

/// Commits, and asks for the offsets until they are the ones committed. A synchronous commit would wait for a coordinator that is away for
/// minutes. The next owner reads again what cannot be committed, which changes nothing.
pub(super) fn commit_now(consumer: &BaseConsumer<Assignment>, done: &[(&Key, Option<i64>)]) {
    if done.is_empty() {
        return;
    }
    let offsets = list(done.iter().copied());
    let mut why = "another generation of the group began".to_owned();
    for _ in 0..LAST_COMMITS {
        let known = consumer.commit(&offsets, CommitMode::Async).and_then(|()| {
            consumer.committed_offsets(list(done.iter().map(|(key, _)| (*key, None))), COMMIT_LIMIT)
        });
        match known {
            Ok(known)
                if done.iter().all(|((topic, partition), next)| {
                    known
                        .find_partition(topic, *partition)
                        .and_then(|p| p.offset().to_raw())
                        == *next
                }) =>
            {
                return;
            }
            Ok(_) => std::thread::sleep(POLL),
            Err(error) => {
                why = error.to_string();
                break;
            }
        }
    }
    tracing::warn!(
        error = why,
        "offsets cannot be committed while partitions are given up; some records will be read again"
    );
}

impl ClientContext for Assignment {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.pipeline.login.token()
    }

    fn stats(&self, statistics: Statistics) {
        self.take_statistics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.take_error(&error, reason);
    }
}

impl ConsumerContext for Assignment {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                let start = self.start(consumer, partitions);
                for partition in partitions.elements() {
                    let key = self.key(partition.topic(), partition.partition());
                    tracing::info!(
                        kafka.topic = &*key.0,
                        kafka.partition = key.1,
                        "partition assigned"
                    );
                    self.pipeline.status.add(&key.0, key.1);
                    let committed = start
                        .find_partition(&key.0, key.1)
                        .and_then(|known| known.offset().to_raw())
                        .filter(|offset| *offset >= 0);
                    let lane = self.open(&key, committed);
                    if let Some(old) = self.lanes.lock().insert(key, lane) {
                        old.drain.cancel();
                    }
                }
            }
            Rebalance::Revoke(partitions) => {
                self.give_up(consumer, Some(partitions));
                for partition in partitions.elements() {
                    tracing::info!(
                        kafka.topic = partition.topic(),
                        kafka.partition = partition.partition(),
                        "partition given up"
                    );
                }
            }
            Rebalance::Error(error) => tracing::warn!(%error, "consumer group rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = rebalance {
            // A partition that comes back may have been paused when it left.
            if let Err(error) = consumer.resume(partitions) {
                tracing::warn!(%error, "assigned partitions cannot be resumed");
            }
        }
    }
}

pub(super) fn list<'k>(
    partitions: impl IntoIterator<Item = (&'k Key, Option<i64>)>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset) in partitions {
        let offset = offset.map_or(Offset::Invalid, Offset::Offset);
        list.add_partition_offset(topic, *partition, offset)
            .expect("an offset of Kafka's is one");
    }
    list
}

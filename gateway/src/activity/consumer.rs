//! The group member: polls Kafka, gives each partition's records to its lane, and commits what the lanes have done.
//!
//! Input: `[kafka]`. Output: offsets, committed only when what lies before them is durable.
//!
//! One thread of its own does all of it, and nothing in it waits for a database: it polls while lanes wait, so an outage of hours never
//! costs the group membership, and callbacks of a rebalance run on the same thread, so that no offset of a partition that is not owned can be
//! committed. A lane whose queue is full is paused. A partition that is taken away is drained first: what is being stored is finished
//! and committed, within a limit.

mod assignment;
mod faults;
mod position;
mod start;
mod statistics;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::assignment::Assignment;
use super::decode::Record;
use super::{Pipeline, PipelineError, client};
use crate::memory;

/// How long one poll waits for a record.
const POLL: Duration = Duration::from_millis(50);
/// The same while a lane is paused, so that it is resumed soon after it caught up.
const PAUSED_POLL: Duration = Duration::from_millis(5);
/// How often offsets are committed.
const TICK: Duration = Duration::from_millis(100);
/// How often what was kept and is not used any more is given back.
const GIVE_BACK: Duration = Duration::from_secs(30);
/// Longest time that stopping a member takes; a broker that is away is not waited for any longer.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running member of the group.
pub(super) struct Member {
    stop: CancellationToken,
    ended: oneshot::Receiver<Result<(), PipelineError>>,
}

impl Member {
    /// Joins the group.
    ///
    /// # Errors
    /// The settings are refused; an unreachable broker is no error.
    pub(super) fn start(pipeline: Arc<Pipeline>) -> Result<Self, PipelineError> {
        let topics = pipeline.config.topics.clone();
        let consumer = connect(pipeline)?;
        consumer
            .subscribe(&topics.iter().map(String::as_str).collect::<Vec<_>>())
            .map_err(PipelineError::Client)?;
        let stop = CancellationToken::new();
        let (ending, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("kafka-consumer".into());
        thread
            .spawn({
                let stop = stop.clone();
                move || {
                    let outcome = poll_until(&consumer, &stop);
                    consumer.context().give_up(&consumer, None);
                    // Dropping leaves the group, which takes a round trip.
                    drop(consumer);
                    let _ = ending.send(outcome);
                }
            })
            .map_err(PipelineError::Thread)?;
        Ok(Self { stop, ended })
    }

    /// Ends when the member does. A member that ends before it is stopped does not come back.
    pub(super) async fn ended(&mut self) -> Result<(), PipelineError> {
        (&mut self.ended)
            .await
            .unwrap_or(Err(PipelineError::Panicked))
    }

    /// Finishes and commits what is being stored, and leaves the group; at most [`STOP_LIMIT`].
    pub(super) async fn stop(mut self) -> Result<(), PipelineError> {
        self.stop.cancel();
        match tokio::time::timeout(STOP_LIMIT, self.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!(
                    "the Kafka consumer did not stop in time and is abandoned; its last records may be read again"
                );
                Ok(())
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Asks a broker for the topics' metadata with the settings as they are now; blocks at most `limit`.
pub(super) fn probe(pipeline: Arc<Pipeline>, limit: Duration) -> Result<(), PipelineError> {
    let topic = pipeline.config.topics.first().cloned();
    let consumer = connect(pipeline.clone())?;
    pipeline.login.serve(&consumer);
    consumer
        .fetch_metadata(topic.as_deref(), limit)
        .map(|_| ())
        .map_err(PipelineError::Client)
}

fn connect(pipeline: Arc<Pipeline>) -> Result<BaseConsumer<Assignment>, PipelineError> {
    let settings = client::consumer(&pipeline.config)?;
    settings
        .create_with_context(Assignment::new(pipeline))
        .map_err(PipelineError::Client)
}

fn poll_until(
    consumer: &BaseConsumer<Assignment>,
    stop: &CancellationToken,
) -> Result<(), PipelineError> {
    let assignment = consumer.context();
    let (mut ticked, mut gave_back) = (Instant::now(), Instant::now());
    while !stop.is_cancelled() {
        let is_any_paused = assignment.resume_those_that_caught_up(consumer);
        match consumer.poll(if is_any_paused { PAUSED_POLL } else { POLL }) {
            None => {}
            Some(Ok(message)) => assignment.accept(consumer, &message),
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                return Err(PipelineError::Fatal(code));
            }
            // It was taken, with its text, by the context's `error`.
            Some(Err(_)) => {}
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            assignment.tick(consumer)?;
            // Lanes free what this thread has copied.
            memory::give_back();
        }
        if gave_back.elapsed() >= GIVE_BACK {
            gave_back = Instant::now();
            assignment.give_back();
        }
    }
    Ok(())
}

/// Copies a message out of librdkafka's memory.
pub(super) fn record(topic: Arc<str>, message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers
            .iter()
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect()
    });
    Record {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}

//! One assigned partition: its records, in order, from the queue to the database and to live connections.
//!
//! Input: the queue that [`super::consumer`] fills. Output: rows, pushes, dead letters, and the offset up to which all of that is durable,
//! which the consumer commits. A lane never commits anything itself, and never goes past a record that is not done.
//!
//! The lane waits, asks and tries again; [`super::batch`] decides what happens to each record, and [`super::budget`] how much it has in hand.

mod dependencies;
mod prepare;
mod takeover;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

pub(super) use self::dependencies::Dependencies;
pub(super) use self::takeover::Takeover;

use self::dependencies::Need;
use super::Pipeline;
use super::batch::{Batch, BatchRecord, Limits, Outcome, Step};
use super::budget::{RecordsInHand, Share};
use super::decode::Record;
use super::poison::{DeadLetterReason, Poison};
use super::progress::Progress;
use crate::backoff::Backoff;
use crate::inbox::{StoreError, Stored};
use crate::metrics::Metrics;
use crate::telemetry::SPANS;

/// The work of one partition, for as long as it is assigned.
pub(super) struct Lane {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) queue: mpsc::UnboundedReceiver<Record>,
    /// Records that were taken from the queue and did not fit into the batch in hand; they come first.
    pub(super) left: VecDeque<Record>,
    pub(super) share: Arc<Share>,
    pub(super) progress: Arc<Progress>,
    /// Cancelled when the partition is to be given up: what is being stored is finished, nothing else is begun.
    pub(super) drain: CancellationToken,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) takeover: Takeover,
    /// Most rows of a transaction: fewer than the settings say after one was too much for the database, and more again with each batch that was not.
    pub(super) rows: usize,
}

/// The lane must stop; what is not done stays uncommitted.
struct Stopped;

fn backoff(pipeline: &Pipeline) -> Backoff {
    let ms = Duration::from_millis;
    Backoff::between(
        ms(pipeline.config.retry_initial_ms),
        ms(pipeline.config.retry_max_ms),
    )
}

impl Lane {
    /// Works until the lane is drained or its queue is closed.
    pub(super) async fn run(mut self) {
        while let Some((hand, records)) = self.gather().await {
            if self.process(hand, records).await.is_err() {
                return;
            }
            self.permit = None;
        }
    }

    /// Waits for a record, then for more until the batch is full or has waited long enough; `None` when the lane must stop.
    async fn gather(&mut self) -> Option<(RecordsInHand, Vec<Record>)> {
        let first = match self.left.pop_front() {
            Some(record) => record,
            None => tokio::select! {
                biased;
                () = self.drain.cancelled() => return None,
                record = self.queue.recv() => record?,
            },
        };
        let config = &self.pipeline.config;
        let deadline = Instant::now() + Duration::from_millis(config.batch_wait_ms);
        let most_bytes = self.share.batch_bytes();
        let mut hand = RecordsInHand::new(self.share.clone());
        hand.take(&first);
        let mut batch = vec![first];
        while batch.len() < config.batch_records && hand.bytes() < most_bytes {
            let waiting = self
                .left
                .pop_front()
                .map_or_else(|| self.queue.try_recv(), Ok);
            let record = match waiting {
                Ok(record) => record,
                Err(_) => tokio::select! {
                    biased;
                    () = self.drain.cancelled() => return None,
                    () = tokio::time::sleep_until(deadline) => break,
                    record = self.queue.recv() => match record {
                        Some(record) => record,
                        None => break,
                    },
                },
            };
            hand.take(&record);
            batch.push(record);
        }
        self.acquire().await.ok()?;
        Some((hand, batch))
    }

    /// Waits until fewer than `kafka.concurrency` lanes are at work.
    async fn acquire(&mut self) -> Result<(), Stopped> {
        let permit = tokio::select! {
            biased;
            () = self.drain.cancelled() => return Err(Stopped),
            permit = self.pipeline.lanes_at_work.clone().acquire_owned() => permit,
        };
        self.permit = permit.ok();
        Ok(())
    }

    /// Takes records through every step. On `Err` the offset stands where the last finished part ended.
    async fn process(
        &mut self,
        mut hand: RecordsInHand,
        records: Vec<Record>,
    ) -> Result<(), Stopped> {
        let span = tracing::debug_span!(
            "activity_batch",
            kafka.topic = &*self.topic,
            kafka.partition = self.partition,
            kafka.offset = records[0].offset,
            records = records.len()
        );
        async {
            let prepared = self.prepare(&mut hand, records).await?;
            let limits = Limits {
                rows: self.rows,
                bytes: self.pipeline.budget.transaction_bytes(),
            };
            let mut batch = Batch::new(prepared, limits);
            let performed = self.perform(&mut batch).await;
            self.rows = if batch.most_rows() < limits.rows {
                batch.most_rows()
            } else {
                let most = self.pipeline.config.batch_rows;
                limits.rows.saturating_mul(2).min(most)
            };
            performed
        }
        .instrument(span)
        .await
    }

    /// Performs what the batch asks for, until every record is done or the lane must stop.
    async fn perform(&mut self, batch: &mut Batch) -> Result<(), Stopped> {
        loop {
            match batch.step() {
                Step::Store => self.store(batch).await?,
                Step::Finish => self.finish(batch).await?,
                Step::End => return Ok(()),
            }
            // What is stored is finished and committed first.
            if self.drain.is_cancelled() && !batch.is_finishing() {
                return Err(Stopped);
            }
        }
    }

    /// Stores the current transaction, tried until the database answers, and pushes what is new.
    async fn store(&mut self, batch: &mut Batch) -> Result<(), Stopped> {
        let pipeline = self.pipeline.clone();
        let mut backoff = backoff(&pipeline);
        let storing: Vec<Span> = batch
            .storing()
            .map(|record| tracing::info_span!(target: SPANS, parent: &record.span, "store"))
            .collect();
        let (stored, _work) = loop {
            let work = pipeline.budget.work(batch.transaction_bytes());
            let started = Instant::now();
            match pipeline.inbox.insert(batch.transaction()).await {
                Ok(stored) => {
                    pipeline.status.stored(&self.topic, self.partition);
                    let metrics = &pipeline.metrics;
                    metrics.store_time.observe(started.elapsed().as_secs_f64());
                    metrics.batch.observe(batch.transaction().len() as f64);
                    metrics.rows.inc_by(stored.len() as u64);
                    break (stored, work);
                }
                Err(StoreError::Refused { code, .. }) => {
                    batch.refused(refusal(code.as_deref()));
                    return Ok(());
                }
                Err(StoreError::TooMuch { source }) => {
                    drop(work);
                    let offset = batch.offset();
                    if batch.too_much() {
                        self.say_too_much(offset, batch.most_rows(), &source);
                        return Ok(());
                    }
                    self.wait(Need::Database, &mut backoff, offset, &source)
                        .await?;
                }
                Err(StoreError::Unavailable { source }) => {
                    drop(work);
                    batch.unanswered();
                    self.wait(Need::Database, &mut backoff, batch.offset(), &source)
                        .await?;
                }
            }
        };
        let mut unpushed = batch.unpushed(&stored);
        if self.takeover.is_open() {
            unpushed.extend(self.takeover.tell(batch.stored_already(&stored)));
        }
        if !unpushed.is_empty() {
            pipeline.inbox.push_resync(unpushed);
        }
        drop(storing);
        let spans = push_spans(batch, &stored);
        batch.stored(&stored);
        pipeline.inbox.push_created(&stored, &spans).await;
        Ok(())
    }

    fn say_too_much(&self, offset: i64, rows: usize, error: &dyn std::error::Error) {
        self.pipeline.metrics.pipeline_retries.inc();
        tracing::warn!(
            kafka.topic = &*self.topic,
            kafka.partition = self.partition,
            kafka.offset = offset,
            rows,
            error = %error,
            "a transaction was too much for the database; trying again with fewer rows"
        );
    }

    /// Sends the dead letters among the records that are finishing, and moves the offset behind them.
    async fn finish(&mut self, batch: &mut Batch) -> Result<(), Stopped> {
        self.send_dead_letters(batch.finishing()).await?;
        for record in batch.finishing() {
            let outcome = record.label();
            self.pipeline
                .metrics
                .records
                .get_or_create(&Metrics::kind(outcome))
                .inc();
            record.span.in_scope(|| {
                tracing::trace!(
                    kafka.topic = &*self.topic,
                    kafka.partition = self.partition,
                    kafka.offset = record.record.offset,
                    outcome,
                    "record done"
                );
            });
        }
        if let Some(next) = batch.finish() {
            self.progress.set(next);
        }
        Ok(())
    }

    /// Sends every dead letter among the records, each until it is confirmed.
    async fn send_dead_letters(&mut self, records: &[BatchRecord]) -> Result<(), Stopped> {
        let pipeline = self.pipeline.clone();
        let mut left: Vec<(&Record, &Poison)> = records
            .iter()
            .filter_map(|record| match &record.outcome {
                Outcome::DeadLetter(poison) => Some((&record.record, poison)),
                _ => None,
            })
            .collect();
        let mut backoff = backoff(&pipeline);
        while !left.is_empty() {
            // The producer copies what it sends.
            let (at_once, bytes) = fitting(&left, pipeline.budget.transaction_bytes());
            let later = left.split_off(at_once);
            let work = pipeline.budget.work(bytes);
            let now = pipeline.clock.now();
            let sent = join_all(
                left.iter()
                    .map(|(record, poison)| pipeline.dead_letters.send(record, poison, now)),
            )
            .await;
            drop(work);
            let mut failure = None;
            let mut unconfirmed = Vec::new();
            for ((record, poison), sent) in left.into_iter().zip(sent) {
                match sent {
                    Ok(()) => self.dead_letter_sent(record, poison),
                    Err(error) => {
                        failure = Some((record.offset, error));
                        unconfirmed.push((record, poison));
                    }
                }
            }
            left = unconfirmed;
            left.extend(later);
            if let Some((offset, error)) = failure {
                self.wait(Need::DeadLetters, &mut backoff, offset, &error)
                    .await?;
            }
        }
        Ok(())
    }

    fn dead_letter_sent(&self, record: &Record, poison: &Poison) {
        self.pipeline
            .metrics
            .dead_letters
            .get_or_create(&Metrics::kind(poison.reason.as_str()))
            .inc();
        tracing::warn!(
            kafka.topic = &*self.topic,
            kafka.partition = self.partition,
            kafka.offset = record.offset,
            reason = %poison.reason,
            detail = %poison.detail,
            "record went to the dead-letter topic"
        );
    }
}

/// How many of the first letters have at most so many bytes, at least one, and how many bytes they have.
fn fitting(letters: &[(&Record, &Poison)], most_bytes: usize) -> (usize, usize) {
    let mut bytes = 0;
    for (at, (record, _)) in letters.iter().enumerate() {
        let more = record.size();
        if at > 0 && bytes + more > most_bytes {
            return (at, bytes);
        }
        bytes += more;
    }
    (letters.len(), bytes)
}

/// A span for each activity of the current transaction that has a row to push.
fn push_spans(batch: &Batch, stored: &[Stored]) -> Vec<Span> {
    let mut spans: Vec<Span> = batch.storing().map(|_| Span::none()).collect();
    let records: Vec<&BatchRecord> = batch.storing().collect();
    for row in stored {
        let span = &mut spans[row.activity];
        if span.is_none() {
            let parent = &records[row.activity].span;
            *span = tracing::info_span!(target: SPANS, parent: parent, "push");
        }
    }
    spans
}

/// The message of a data exception may quote the value: only its code is given.
fn refusal(code: Option<&str>) -> Poison {
    let detail = code.map_or_else(
        || "the database refuses a value".into(),
        |code| format!("the database refuses a value (SQLSTATE {code})"),
    );
    Poison::new(DeadLetterReason::Refused, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::testing;

    #[test]
    fn dead_letters_are_sent_a_few_megabytes_at_a_time_and_one_of_any_size_alone() {
        let sizes = [1000, 1000, 5000, 300];
        let records = sizes.map(|size| {
            let mut record = testing::record("");
            record.value = Some(vec![0; size - record.size()]);
            record
        });
        let poison = Poison::new(DeadLetterReason::NotJson, "");
        let mut letters: Vec<_> = records.iter().map(|record| (record, &poison)).collect();
        let mut seen = Vec::new();
        while !letters.is_empty() {
            let (count, bytes) = fitting(&letters, 2000);
            seen.push((count, bytes));
            letters.drain(..count);
        }
        assert_eq!(seen, [(2, 2000), (1, 5000), (1, 300)]);
    }
}

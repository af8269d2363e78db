//! One assigned partition: its records, in order, from the queue to the database and to live connections.
//!
//! Input: the queue that [`super::consumer`] fills. Output: rows, pushes, dead letters, and the offset up to which all of that is durable,
//! which the consumer commits. A lane never commits anything itself, and never goes past a record that is not done.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::Pipeline;
use super::decode::{Activity, Record, TRACEPARENT_HEADER, decode};
use super::poison::{DeadLetterReason, Poison};
use crate::backoff::Backoff;
use crate::inbox::{StoreError, Stored};
use crate::metrics::Metrics;
use crate::notification::NewActivity;
use crate::telemetry::SPANS;

/// Most bytes of records in one batch.
const BATCH_BYTES: usize = 8 << 20;

/// What waits in a lane's queue.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

impl Backlog {
    pub(super) fn add(&self, record: &Record) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(record.size(), Ordering::Relaxed);
    }

    fn take(&self, record: &Record) {
        self.records.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(record.size(), Ordering::Relaxed);
    }

    /// Whether more waits than these limits allow.
    pub(super) fn exceeds(&self, records: usize, bytes: usize) -> bool {
        self.records.load(Ordering::Relaxed) >= records
            || self.bytes.load(Ordering::Relaxed) >= bytes
    }
}

/// The offset from which on nothing is done yet; none before the first record is.
#[derive(Debug)]
pub(super) struct Progress(AtomicI64);

impl Progress {
    pub(super) fn none() -> Self {
        Self(AtomicI64::new(-1))
    }

    pub(super) fn next(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Acquire)).filter(|offset| *offset >= 0)
    }

    fn set(&self, next: i64) {
        self.0.store(next, Ordering::Release);
    }
}

/// The work of one partition, for as long as it is assigned.
pub(super) struct Lane {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) queue: mpsc::UnboundedReceiver<Record>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) progress: Arc<Progress>,
    /// Cancelled when the partition is to be given up: what is being stored is finished, nothing else is begun.
    pub(super) drain: CancellationToken,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// The lane was told to stop; what is not done stays uncommitted.
struct Stopped;

/// A record on its way through a batch.
struct Item {
    record: Record,
    /// Continues the producer's trace; closed when the record is done.
    span: Span,
    fate: Fate,
}

enum Fate {
    Store(Box<NewActivity>),
    Dead(Poison),
    /// Its rows are stored: whether any of them was new.
    Done {
        is_new: bool,
    },
}

struct HeadersOf<'r>(&'r Record);

impl Extractor for HeadersOf<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.header(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

fn backoff(pipeline: &Pipeline) -> Backoff {
    let ms = Duration::from_millis;
    Backoff::new(
        ms(pipeline.config.retry_initial_ms),
        ms(pipeline.config.retry_max_ms),
    )
}

impl Lane {
    /// Works until the lane is drained or its queue is closed.
    pub(super) async fn run(mut self) {
        while let Some(batch) = self.gather().await {
            if self.process(batch).await.is_err() {
                return;
            }
            self.permit = None;
        }
    }

    /// Waits for a record, then for more until the batch is full or has waited long enough; `None` when the lane is to stop.
    async fn gather(&mut self) -> Option<Vec<Record>> {
        let config = &self.pipeline.config;
        let first = tokio::select! {
            biased;
            () = self.drain.cancelled() => return None,
            record = self.queue.recv() => record?,
        };
        self.backlog.take(&first);
        let deadline = Instant::now() + Duration::from_millis(config.batch_wait_ms);
        let mut bytes = first.size();
        let mut batch = vec![first];
        while batch.len() < config.batch_records && bytes < BATCH_BYTES {
            let record = match self.queue.try_recv() {
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
            self.backlog.take(&record);
            bytes += record.size();
            batch.push(record);
        }
        self.acquire().await.ok()?;
        Some(batch)
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

    /// Takes a batch through every step. On `Err` the offset stands where the last finished part ended.
    async fn process(&mut self, batch: Vec<Record>) -> Result<(), Stopped> {
        let span = tracing::debug_span!(
            "activity_batch",
            kafka.topic = &*self.topic,
            kafka.partition = self.partition,
            kafka.offset = batch[0].offset,
            records = batch.len()
        );
        async {
            let mut items = self.prepare(batch).await?;
            self.store_in_order(&mut items).await
        }
        .instrument(span)
        .await
    }

    /// Decodes, resolves and renders.
    async fn prepare(&mut self, batch: Vec<Record>) -> Result<Vec<Item>, Stopped> {
        let mut decoded: Vec<(Record, Span, Result<Activity, Poison>)> =
            Vec::with_capacity(batch.len());
        for record in batch {
            let span = trace(&record);
            let activity = span.in_scope(|| decode(&record));
            decoded.push((record, span, activity));
        }
        let good: Vec<&Activity> = decoded
            .iter()
            .filter_map(|(_, _, activity)| activity.as_ref().ok())
            .collect();
        let first = decoded
            .iter()
            .find(|(_, _, activity)| activity.is_ok())
            .map_or(0, |(record, _, _)| record.offset);
        let mut resolved: VecDeque<_> = self.resolve(&good, first).await?.into();
        let items = decoded.into_iter().map(|(record, span, activity)| {
            let ready = activity.and_then(|activity| {
                let recipients = resolved
                    .pop_front()
                    .expect("there is an answer for each activity")?;
                let text = span.in_scope(|| self.pipeline.catalogs.render(&activity))?;
                Ok(Box::new(NewActivity {
                    source: activity.source,
                    event_id: activity.event_id,
                    kind: activity.kind,
                    title: text.title,
                    content: text.content,
                    locale: text.locale,
                    data: activity.data,
                    actor_id: activity.actor_id,
                    organizer_id: activity.organizer_id,
                    merchant_id: activity.merchant_id,
                    recipients,
                }))
            });
            Item {
                record,
                span,
                fate: ready.map_or_else(Fate::Dead, Fate::Store),
            }
        });
        Ok(items.collect())
    }

    /// Finds recipients with one query; where the database refuses an id in it, each activity is asked for alone.
    async fn resolve(
        &mut self,
        activities: &[&Activity],
        offset: i64,
    ) -> Result<Vec<super::resolve::Resolved>, Stopped> {
        let pipeline = self.pipeline.clone();
        let mut backoff = backoff(&pipeline);
        let refused = loop {
            match pipeline.resolver.resolve(activities).await {
                Ok(resolved) => return Ok(resolved),
                Err(StoreError::Unavailable { source: error }) => {
                    self.wait(
                        &mut backoff,
                        offset,
                        "recipients cannot be looked up",
                        &error,
                    )
                    .await?
                }
                Err(StoreError::Refused { code, .. }) => break refusal(code.as_deref()),
            }
        };
        if let [_] = activities {
            return Ok(vec![Err(refused)]);
        }
        let mut resolved = Vec::with_capacity(activities.len());
        for activity in activities {
            resolved.extend(Box::pin(self.resolve(&[activity], offset)).await?);
        }
        Ok(resolved)
    }

    /// Stores the batch in transactions of at most `kafka.batch_rows` rows, and moves the offset on after each.
    async fn store_in_order(&mut self, items: &mut [Item]) -> Result<(), Stopped> {
        let max_rows = self.pipeline.config.batch_rows.max(1);
        let mut chunk: Vec<(usize, NewActivity)> = Vec::new();
        let (mut rows, mut done) = (0, 0);
        for at in 0..items.len() {
            let Fate::Store(_) = &items[at].fate else {
                continue;
            };
            let Fate::Store(activity) =
                std::mem::replace(&mut items[at].fate, Fate::Done { is_new: false })
            else {
                continue;
            };
            let recipients = activity.recipients.clone();
            if rows > 0 && rows + recipients.len() > max_rows {
                self.flush(items, &mut chunk, done..at).await?;
                (rows, done) = (0, at);
            }
            if recipients.len() <= max_rows {
                rows += recipients.len();
                chunk.push((at, *activity));
                continue;
            }
            // One activity for many: its rows go in slices, so that it is never in memory as a whole. A slice stored twice changes nothing.
            for slice in recipients.chunks(max_rows) {
                if !matches!(items[at].fate, Fate::Dead(_)) {
                    chunk.push((
                        at,
                        NewActivity {
                            recipients: slice.into(),
                            ..(*activity).clone()
                        },
                    ));
                    self.flush(items, &mut chunk, done..at).await?;
                    done = at;
                }
            }
        }
        let end = items.len();
        self.flush(items, &mut chunk, done..end).await
    }

    /// Stores and pushes a chunk, sends off the dead letters of `finished`, and then moves the offset to the end of `finished`.
    async fn flush(
        &mut self,
        items: &mut [Item],
        chunk: &mut Vec<(usize, NewActivity)>,
        finished: std::ops::Range<usize>,
    ) -> Result<(), Stopped> {
        let (places, activities): (Vec<usize>, Vec<NewActivity>) =
            std::mem::take(chunk).into_iter().unzip();
        let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
        if !activities.is_empty() {
            parts.push(0..activities.len());
        }
        while let Some(part) = parts.pop() {
            let offset = items[places[part.start]].record.offset;
            let storing: Vec<Span> = places[part.clone()]
                .iter()
                .map(|at| tracing::info_span!(target: SPANS, parent: &items[*at].span, "store"))
                .collect();
            let stored = self.insert(&activities[part.clone()], offset).await?;
            drop(storing);
            match stored {
                Ok(stored) => {
                    let mut pushing = vec![Span::none(); part.len()];
                    for row in &stored {
                        let item = &mut items[places[part.start + row.activity]];
                        item.fate = Fate::Done { is_new: true };
                        let span = &mut pushing[row.activity];
                        if span.is_none() {
                            *span = tracing::info_span!(target: SPANS, parent: &item.span, "push");
                        }
                    }
                    self.pipeline.inbox.push_created(&stored, &pushing).await;
                }
                Err(refused) if part.len() == 1 => {
                    items[places[part.start]].fate = Fate::Dead(refused)
                }
                Err(_) => {
                    // The left half is stored first, so that order is kept.
                    let middle = part.start + part.len() / 2;
                    parts.push(middle..part.end);
                    parts.push(part.start..middle);
                }
            }
            if self.drain.is_cancelled() && !parts.is_empty() {
                return Err(Stopped);
            }
        }
        let Some(last) = items[finished.clone()]
            .last()
            .map(|item| item.record.offset)
        else {
            return self.go_on();
        };
        self.bury(&items[finished.clone()]).await?;
        self.progress.set(last + 1);
        for item in &items[finished] {
            let outcome = match item.fate {
                Fate::Done { is_new: true } => "stored",
                Fate::Dead(_) => "dead_letter",
                Fate::Done { is_new: false } | Fate::Store(_) => "duplicate",
            };
            self.pipeline
                .metrics
                .records
                .get_or_create(&Metrics::kind(outcome))
                .inc();
            item.span.in_scope(|| {
                tracing::trace!(
                    kafka.topic = &*self.topic,
                    kafka.partition = self.partition,
                    kafka.offset = item.record.offset,
                    outcome,
                    "record done"
                );
            });
        }
        self.go_on()
    }

    fn go_on(&self) -> Result<(), Stopped> {
        if self.drain.is_cancelled() {
            Err(Stopped)
        } else {
            Ok(())
        }
    }

    /// One transaction, tried until the database answers; the inner `Err` is what it refuses. Where a try was not answered, those are told to sync
    /// whose rows it may have stored.
    async fn insert(
        &mut self,
        activities: &[NewActivity],
        offset: i64,
    ) -> Result<Result<Vec<Stored>, Poison>, Stopped> {
        let pipeline = self.pipeline.clone();
        let mut backoff = backoff(&pipeline);
        let mut unanswered = false;
        loop {
            let started = Instant::now();
            match pipeline.inbox.insert(activities).await {
                Ok(stored) => {
                    pipeline
                        .metrics
                        .store_time
                        .observe(started.elapsed().as_secs_f64());
                    pipeline.metrics.batch.observe(activities.len() as f64);
                    pipeline.metrics.rows.inc_by(stored.len() as u64);
                    if unanswered {
                        self.tell_to_sync(activities, &stored).await;
                    }
                    return Ok(Ok(stored));
                }
                Err(StoreError::Refused { code, .. }) => {
                    return Ok(Err(refusal(code.as_deref())));
                }
                Err(StoreError::Unavailable { source: error }) => {
                    unanswered = true;
                    self.wait(
                        &mut backoff,
                        offset,
                        "notifications cannot be stored",
                        &error,
                    )
                    .await?;
                }
            }
        }
    }

    /// What is not among `stored` was there already, perhaps by a try whose answer was lost: it was not pushed then and will not be now.
    async fn tell_to_sync(&self, activities: &[NewActivity], stored: &[Stored]) {
        let stored: HashSet<(usize, &str)> = stored
            .iter()
            .map(|row| (row.activity, &*row.notification.recipient_id))
            .collect();
        let missed: BTreeSet<&str> = activities
            .iter()
            .enumerate()
            .flat_map(|(at, activity)| {
                activity
                    .recipients
                    .iter()
                    .map(move |recipient| (at, recipient.as_str()))
            })
            .filter(|row| !stored.contains(row))
            .map(|(_, recipient)| recipient)
            .collect();
        self.pipeline.inbox.push_resync(missed).await;
    }

    /// Sends every dead letter among the items, each until it is confirmed.
    async fn bury(&mut self, items: &[Item]) -> Result<(), Stopped> {
        let pipeline = self.pipeline.clone();
        let mut left: Vec<(&Item, &Poison)> = items
            .iter()
            .filter_map(|item| match &item.fate {
                Fate::Dead(poison) => Some((item, poison)),
                _ => None,
            })
            .collect();
        let mut backoff = backoff(&pipeline);
        while !left.is_empty() {
            let now = pipeline.clock.now();
            let sent = join_all(
                left.iter()
                    .map(|(item, poison)| pipeline.dead_letters.send(&item.record, poison, now)),
            )
            .await;
            let mut failed = None;
            let mut again = Vec::new();
            for ((item, poison), sent) in left.into_iter().zip(sent) {
                match sent {
                    Ok(()) => {
                        pipeline
                            .metrics
                            .dead_letters
                            .get_or_create(&Metrics::kind(poison.reason.as_str()))
                            .inc();
                        tracing::warn!(
                            kafka.topic = &*self.topic, kafka.partition = self.partition, kafka.offset = item.record.offset,
                            reason = %poison.reason, detail = %poison.detail, "record went to the dead-letter topic"
                        );
                    }
                    Err(error) => {
                        failed = Some((item.record.offset, error));
                        again.push((item, poison));
                    }
                }
            }
            left = again;
            if let Some((offset, error)) = failed {
                self.wait(
                    &mut backoff,
                    offset,
                    "dead letters are not confirmed",
                    &error,
                )
                .await?;
            }
        }
        Ok(())
    }

    /// Waits before another try of what a dependency failed; others may work meanwhile.
    async fn wait(
        &mut self,
        backoff: &mut Backoff,
        offset: i64,
        what: &str,
        error: &(dyn std::error::Error + Send + Sync),
    ) -> Result<(), Stopped> {
        let delay = backoff.next_delay();
        self.pipeline.metrics.pipeline_retries.inc();
        tracing::warn!(
            kafka.topic = &*self.topic, kafka.partition = self.partition, kafka.offset = offset, error = %error,
            attempt = backoff.failures(), retry_in_ms = delay.as_millis() as u64, "{what}; the partition waits"
        );
        self.permit = None;
        let _retrying = self.pipeline.status.retrying();
        tokio::select! {
            biased;
            () = self.drain.cancelled() => return Err(Stopped),
            () = tokio::time::sleep(delay) => {}
        }
        self.acquire().await
    }
}

/// The message of a data exception may quote the value: only its code is given.
fn refusal(code: Option<&str>) -> Poison {
    let detail = code.map_or_else(
        || "the database refuses a value".into(),
        |code| format!("the database refuses a value (SQLSTATE {code})"),
    );
    Poison::new(DeadLetterReason::Refused, detail)
}

fn trace(record: &Record) -> Span {
    let span = tracing::info_span!(
        target: SPANS,
        "activity",
        otel.kind = "consumer",
        kafka.topic = &*record.topic,
        kafka.partition = record.partition,
        kafka.offset = record.offset
    );
    if record.header(TRACEPARENT_HEADER).is_some() {
        // Without an OpenTelemetry layer there is nothing to continue.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&HeadersOf(record)));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::testing;
    use opentelemetry::trace::{TraceContextExt, TracerProvider};
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn the_trace_of_the_producer_is_continued() {
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let id = |header: Option<&str>| {
                let mut record = testing::record("{}");
                record.headers = header
                    .map(|text| {
                        (
                            TRACEPARENT_HEADER.to_owned(),
                            Some(text.as_bytes().to_vec()),
                        )
                    })
                    .into_iter()
                    .collect();
                trace(&record)
                    .context()
                    .span()
                    .span_context()
                    .trace_id()
                    .to_string()
            };
            let parent = "0af7651916cd43dd8448eb211c80319c";
            assert_eq!(
                id(Some(&format!("00-{parent}-b7ad6b7169203331-01"))),
                parent
            );
            for other in [None, Some("not a trace"), Some("00-0-0-01")] {
                assert_ne!(id(other), parent, "{other:?}");
            }
        });
    }
}

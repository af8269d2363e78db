//! The one task that publishes: takes what waits, sends it as one pipeline, and returns the outcome to each sender.
//!
//! One connection and one pipeline at a time keep the order of calls. While there is no connection everything is refused at once; nothing is ever
//! sent twice. Input: [`Publisher`]. Output: Redis, and the connection in [`PubSubCore`] that key commands go through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::AsyncPushSender;
use redis::{PushInfo, RedisResult};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connect::{Keys, Link, unavailable};
use super::nodes::Prefer;
use super::{PubSubCore, reconnect_backoff};
use crate::backoff::until_done;
use crate::bus::BusError;
use crate::metrics::Metrics;

/// Most publishes in one pipeline.
const MAX_BATCH: usize = 512;
/// Most bytes in one pipeline, unless one payload alone is longer.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Shortest time between two reports of losses to the other instances.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Most bytes that wait to be published.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// The outcome of a publish: how many subscribers received it on the node that took it.
pub(super) type Published = oneshot::Receiver<Result<i64, BusError>>;

struct Outgoing {
    channel: String,
    payload: Vec<u8>,
    /// Whether clients miss something when it is lost.
    is_dispatch: bool,
    done: oneshot::Sender<Result<i64, BusError>>,
}

/// The sending end of the queue.
pub(super) struct Publisher {
    queue: mpsc::Sender<Outgoing>,
    bytes: Arc<AtomicUsize>,
    lost: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// The queue and the task that empties it.
    pub(super) fn new(length: usize, metrics: Arc<Metrics>) -> (Self, Writer) {
        let (queue, waiting) = mpsc::channel(length.max(1));
        let (bytes, lost) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let writer = Writer {
            waiting,
            bytes: bytes.clone(),
            lost: lost.clone(),
            metrics: metrics.clone(),
        };
        (
            Self {
                queue,
                bytes,
                lost,
                metrics,
            },
            writer,
        )
    }

    /// Queues a dispatch. When it is lost, the other instances are notified later.
    pub(super) fn dispatch(
        &self,
        channel: String,
        payload: Vec<u8>,
    ) -> Result<Published, BusError> {
        let offered = self.queue(channel, payload, true);
        if offered.is_err() {
            self.lost.store(true, Ordering::Release);
            self.metrics
                .bus_published
                .get_or_create(&Metrics::kind("full"))
                .inc();
        }
        offered
    }

    /// Whether dispatches were lost and the other instances have not been notified yet.
    pub(super) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Has the other instances notified that dispatches of this one were lost.
    pub(super) fn note_loss(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Queues a message between instances.
    pub(super) fn signal(&self, channel: String, payload: Vec<u8>) -> Result<Published, BusError> {
        self.queue(channel, payload, false)
    }

    fn queue(
        &self,
        channel: String,
        payload: Vec<u8>,
        is_dispatch: bool,
    ) -> Result<Published, BusError> {
        let length = payload.len();
        if self.bytes.fetch_add(length, Ordering::AcqRel) + length > MAX_WAITING_BYTES {
            self.bytes.fetch_sub(length, Ordering::AcqRel);
            return Err(BusError::Full);
        }
        let (done, published) = oneshot::channel();
        self.queue
            .try_send(Outgoing {
                channel,
                payload,
                is_dispatch,
                done,
            })
            .map_err(|error| {
                self.bytes.fetch_sub(length, Ordering::AcqRel);
                match error {
                    mpsc::error::TrySendError::Full(_) => BusError::Full,
                    mpsc::error::TrySendError::Closed(_) => closed(),
                }
            })?;
        Ok(published)
    }
}

/// Returns the error after [`crate::bus::Bus::close`].
pub(super) fn closed() -> BusError {
    BusError::Unavailable("the bus is closed".into())
}

/// The end of the queue that the task takes from.
pub(super) struct Writer {
    waiting: mpsc::Receiver<Outgoing>,
    bytes: Arc<AtomicUsize>,
    lost: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Publishes until `closing`. `login` changes when new connections are to be made.
    pub(super) async fn run(
        mut self,
        core: Arc<PubSubCore>,
        mut login: watch::Receiver<u64>,
        closing: CancellationToken,
    ) {
        let mut link: Option<Link> = None;
        let mut connecting = Some(connect(core.clone()));
        let mut batch = Vec::with_capacity(MAX_BATCH);
        let mut reported = None;
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                (new, keys) = async { connecting.as_mut().expect("the branch is off otherwise").await }, if connecting.is_some() => {
                    connecting = None;
                    core.set_publisher(Some((keys, new.address.clone())));
                    link = Some(new);
                }
                // The old connection serves until the new one is there.
                Ok(()) = login.changed() => connecting = Some(connect(core.clone())),
                _ = self.waiting.recv_many(&mut batch, MAX_BATCH) => {
                    if batch.is_empty() {
                        break;
                    }
                    self.bytes.fetch_sub(batch.iter().map(|o| o.payload.len()).sum(), Ordering::AcqRel);
                    let result = match &mut link {
                        Some(link) => self.send(link, &mut batch).await,
                        None => Err(BusError::Unavailable("there is no connection to Redis".into())),
                    };
                    if let Err(error) = result {
                        self.refuse(&mut batch, &error);
                        if link.take().is_some() {
                            tracing::warn!(%error, "publishing to Redis failed; reconnecting");
                            core.set_publisher(None);
                            connecting = Some(connect(core.clone()));
                        }
                    }
                }
            }
            if let Some(open) = &mut link
                && self.waiting.is_empty()
            {
                self.report_losses(open, &core, &mut reported).await;
            }
        }
        // What was queued before the end is still sent, as far as the server takes it.
        self.waiting.close();
        loop {
            self.waiting.recv_many(&mut batch, MAX_BATCH).await;
            if batch.is_empty() {
                return;
            }
            let sent = match &mut link {
                Some(link) => self.send(link, &mut batch).await,
                None => Err(closed()),
            };
            if let Err(error) = sent {
                self.refuse(&mut batch, &error);
                link = None;
            }
        }
    }

    /// Sends the batch. At an error, what is still in it was not sent, or may not have been taken.
    async fn send(&self, link: &mut Link, batch: &mut Vec<Outgoing>) -> Result<(), BusError> {
        while !batch.is_empty() {
            let mut bytes = 0;
            let fits = batch.iter().take_while(|o| {
                bytes += o.payload.len();
                bytes <= MAX_BATCH_BYTES
            });
            let count = fits.count().max(1);
            let mut pipeline = redis::Pipeline::with_capacity(count);
            for outgoing in &batch[..count] {
                pipeline
                    .cmd("PUBLISH")
                    .arg(&outgoing.channel)
                    .arg(&outgoing.payload);
            }
            pipeline.ignore_errors();
            let results: Vec<RedisResult<i64>> = pipeline
                .query_async(&mut link.connection)
                .await
                .map_err(|error| unavailable(&error))?;
            for (outgoing, result) in batch.drain(..count).zip(results) {
                let result = result.map_err(|error| {
                    tracing::debug!(%error, "Redis refused a dispatch");
                    unavailable(&error)
                });
                if outgoing.is_dispatch {
                    self.lost.fetch_or(result.is_err(), Ordering::AcqRel);
                    self.metrics
                        .bus_published
                        .get_or_create(&Metrics::kind(if result.is_ok() {
                            "ok"
                        } else {
                            "refused"
                        }))
                        .inc();
                }
                let _ = outgoing.done.send(result);
            }
        }
        Ok(())
    }

    fn refuse(&self, batch: &mut Vec<Outgoing>, error: &BusError) {
        for outgoing in batch.drain(..) {
            if outgoing.is_dispatch {
                self.lost.store(true, Ordering::Release);
                self.metrics
                    .bus_published
                    .get_or_create(&Metrics::kind("unavailable"))
                    .inc();
            }
            let _ = outgoing.done.send(Err(error.clone()));
        }
    }

    /// Reports to the other instances that dispatches of this one were lost, so that their clients sync: when it can publish again, and at most once
    /// every [`REPORT_INTERVAL`].
    async fn report_losses(
        &self,
        link: &mut Link,
        core: &PubSubCore,
        reported: &mut Option<Instant>,
    ) {
        let due = reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL);
        if !due || !self.lost.swap(false, Ordering::AcqRel) {
            return;
        }
        *reported = Some(Instant::now());
        let result: RedisResult<i64> = redis::cmd("PUBLISH")
            .arg(&core.names.lost)
            .arg(&core.instance)
            .query_async(&mut link.connection)
            .await;
        if let Err(error) = result {
            tracing::warn!(%error, "reporting lost dispatches to the other instances failed; trying again");
            self.lost.store(true, Ordering::Release);
        }
    }
}

/// Connects; tries for as long as it takes.
fn connect(core: Arc<PubSubCore>) -> BoxFuture<'static, (Link, Keys)> {
    let attempt = move || {
        let core = Arc::clone(&core);
        async move {
            let connector = core.connector();
            let prefer = core.subscriber_address().map_or(Prefer::Any, Prefer::Other);
            let link = connector.link(&prefer, NO_PUSH).await?;
            let keys = connector.keys(&link)?;
            RedisResult::Ok((link, keys))
        }
    };
    let what = "connecting to Redis for publishing";
    Box::pin(until_done(reconnect_backoff(), what, attempt))
}

struct NoPush;

impl AsyncPushSender for NoPush {
    fn send(&self, _info: PushInfo) -> Result<(), redis::aio::SendError> {
        Ok(())
    }
}

const NO_PUSH: Option<NoPush> = None;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_bounded_in_number_and_in_bytes() {
        let (publisher, writer) = Publisher::new(2, Metrics::new());
        assert!(publisher.dispatch("c".into(), vec![0; 8]).is_ok());
        assert!(matches!(
            publisher.dispatch("c".into(), vec![0; MAX_WAITING_BYTES]),
            Err(BusError::Full)
        ));
        assert!(publisher.signal("c".into(), Vec::new()).is_ok());
        assert!(matches!(
            publisher.dispatch("c".into(), Vec::new()),
            Err(BusError::Full)
        ));
        assert_eq!(publisher.bytes.load(Ordering::Acquire), 8);
        assert!(
            publisher.lost.load(Ordering::Acquire),
            "the other instances have to be notified"
        );
        drop(writer);
        assert!(matches!(
            publisher.signal("c".into(), Vec::new()),
            Err(BusError::Unavailable(_))
        ));
    }
}

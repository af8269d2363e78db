//! The one task that publishes: takes what waits, sends it as one pipeline, tells each sender what became of it.
//!
//! One connection and one pipeline at a time keep the order of calls. While there is no connection everything is refused at once; nothing is ever
//! sent twice. Input: [`Publisher`]. Output: Redis, and the connection in [`Shared`] that key commands go
//! through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::AsyncPushSender;
use redis::{PushInfo, RedisResult};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::connect::{Keys, Link, Prefer, unavailable};
use crate::bus::BusError;
use crate::metrics::Metrics;

/// Most publishes in one pipeline.
const MAX_BATCH: usize = 512;
/// Most bytes in one pipeline, unless one payload alone is longer.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// How often other instances are told of losses at most.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Most bytes that wait to be published.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// What a publish comes to: how many heard it on the node that took it.
pub(super) type Published = oneshot::Receiver<Result<i64, BusError>>;

struct Outgoing {
    channel: String,
    payload: Vec<u8>,
    /// Whether clients miss something when it is lost.
    dispatch: bool,
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

    /// Queues a dispatch; losing it is told to the other instances later.
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

    /// Whether dispatches were lost of which the others have not been told.
    pub(super) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Has the others told that dispatches of this instance were lost.
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
        dispatch: bool,
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
                dispatch,
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

/// What is said after [`crate::bus::Bus::close`].
pub(super) fn closed() -> BusError {
    BusError::Unavailable("the bus is closed".into())
}

/// The task's end of the queue.
pub(super) struct Writer {
    waiting: mpsc::Receiver<Outgoing>,
    bytes: Arc<AtomicUsize>,
    lost: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Publishes until `closing`. `credentials` changes when new connections are to be made.
    pub(super) async fn run(
        mut self,
        shared: Arc<Shared>,
        mut credentials: watch::Receiver<u64>,
        closing: CancellationToken,
    ) {
        let mut link: Option<Link> = None;
        let mut connecting = Some(connect(shared.clone()));
        let mut batch = Vec::with_capacity(MAX_BATCH);
        let mut told = None;
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                (new, keys) = async { connecting.as_mut().expect("the branch is off otherwise").await }, if connecting.is_some() => {
                    connecting = None;
                    shared.set_publisher(Some((keys, new.address.clone())));
                    link = Some(new);
                }
                // The old connection serves until the new one is there.
                Ok(()) = credentials.changed() => connecting = Some(connect(shared.clone())),
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
                            tracing::warn!(%error, "publishing to Redis failed; connecting again");
                            shared.set_publisher(None);
                            connecting = Some(connect(shared.clone()));
                        }
                    }
                }
            }
            if let Some(open) = &mut link
                && self.waiting.is_empty()
            {
                self.tell_of_losses(open, &shared, &mut told).await;
            }
        }
        // What was queued before the end still goes out, as far as the server takes it.
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

    /// Sends what is in the batch; what is still in it at an error was not sent or may not have been taken.
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
                    tracing::debug!(%error, "Redis refused to publish");
                    unavailable(&error)
                });
                if outgoing.dispatch {
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
            if outgoing.dispatch {
                self.lost.store(true, Ordering::Release);
                self.metrics
                    .bus_published
                    .get_or_create(&Metrics::kind("unavailable"))
                    .inc();
            }
            let _ = outgoing.done.send(Err(error.clone()));
        }
    }

    /// Tells the other instances that dispatches of this one were lost, so that their clients sync: when it can publish again, and not more often
    /// than every [`TELL_INTERVAL`].
    async fn tell_of_losses(&self, link: &mut Link, shared: &Shared, told: &mut Option<Instant>) {
        let due = told.is_none_or(|at| at.elapsed() >= TELL_INTERVAL);
        if !due || !self.lost.swap(false, Ordering::AcqRel) {
            return;
        }
        *told = Some(Instant::now());
        let result: RedisResult<i64> = redis::cmd("PUBLISH")
            .arg(&shared.names.lost)
            .arg(&shared.instance)
            .query_async(&mut link.connection)
            .await;
        if let Err(error) = result {
            tracing::warn!(%error, "other instances could not be told that dispatches were lost");
            self.lost.store(true, Ordering::Release);
        }
    }
}

/// Connects, however long it takes.
fn connect(shared: Arc<Shared>) -> BoxFuture<'static, (Link, Keys)> {
    Box::pin(async move {
        let mut backoff = Backoff::default();
        loop {
            let made: RedisResult<(Link, Keys)> = async {
                let connector = shared.connector();
                let prefer = shared
                    .subscriber_address()
                    .map_or(Prefer::Any, Prefer::Other);
                let link = connector.link(&prefer, NO_PUSH).await?;
                let keys = connector.keys(&link)?;
                Ok((link, keys))
            }
            .await;
            match made {
                Ok(made) => return made,
                Err(error) => {
                    let wait = backoff.next();
                    tracing::warn!(%error, retry_ms = wait.as_millis() as u64, "Redis cannot be reached for publishing");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    })
}

struct NoPush;

impl AsyncPushSender for NoPush {
    fn send(&self, _info: PushInfo) -> Result<(), redis::aio::SendError> {
        Ok(())
    }
}

const NO_PUSH: Option<NoPush> = None;

/// Growing delays with jitter, so that instances do not come back in step.
#[derive(Debug, Default)]
pub(in crate::bus) struct Backoff {
    tries: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LAST: Duration = Duration::from_secs(5);

    /// The next delay: half of it fixed, half random.
    pub(in crate::bus) fn next(&mut self) -> Duration {
        let full = Self::FIRST
            .saturating_mul(1 << self.tries.min(10))
            .min(Self::LAST);
        self.tries = self.tries.saturating_add(1);
        full.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

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
            "others have to be told"
        );
        drop(writer);
        assert!(matches!(
            publisher.signal("c".into(), Vec::new()),
            Err(BusError::Unavailable(_))
        ));
    }

    #[test]
    fn delays_grow_to_a_limit_and_never_vanish() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(delays[0] <= Backoff::FIRST && delays[0] >= Backoff::FIRST / 2);
        assert!(
            delays
                .iter()
                .skip(10)
                .all(|d| *d >= Backoff::LAST / 2 && *d <= Backoff::LAST)
        );
    }
}

//! The task of each [`Feed`] that publishes: takes what waits, sends it in pipelines, and returns the outcome to each sender.
//!
//! For a segment it publishes to the master of its slot, and looks for another one when that refuses because the slot is not its own.
//! One connection keeps the order of calls. While the server answers in time there is one pipeline at a time; behind a slow server further ones follow
//! before the first is answered, up to [`MAX_IN_FLIGHT`]. What finds no room is given up, and [`Losses`] has those it was for told to sync. While there
//! is no connection everything is refused at once; nothing is ever sent twice. Input: [`Publisher`]. Output: Redis, and the connection in [`PubSubCore`]
//! that key commands go through.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use redis::{RedisError, RedisResult};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connect::{Keys, Link, unavailable};
use super::feed::Feed;
use super::losses::{Losses, Lost};
use super::nodes::Prefer;
use super::{PubSubCore, reconnect_backoff};
use crate::backoff::until_done;
use crate::bus::BusError;
use crate::bus::wire::{self, Names};
use crate::dispatch::Destination;
use crate::metrics::Metrics;

/// Most publishes in one pipeline.
const MAX_BATCH: usize = 512;
/// Most bytes in one pipeline, unless one payload alone is longer.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Most pipelines that are not answered yet.
const MAX_IN_FLIGHT: usize = 64;
/// How long an answer may take before the next pipeline is sent without it.
const PATIENCE: Duration = Duration::from_millis(5);
/// Most bytes that wait to be published, or for the answer of the server.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// The outcome of a publish: how many subscribers received it on the node that took it.
pub(super) type Published = oneshot::Receiver<Result<i64, BusError>>;

enum Content {
    /// Clients miss something when it is lost.
    Dispatch,
    /// The same, for many users, who are named in the payload: it is kept until it is answered.
    Audience,
    /// A message between instances.
    Signal,
    /// What was lost before.
    Report(Lost),
}

struct Outgoing {
    channel: String,
    /// Empty once it is sent, but for an audience.
    payload: Vec<u8>,
    /// The bytes that it counts as until it is answered.
    counted: usize,
    content: Content,
    done: Option<oneshot::Sender<Result<i64, BusError>>>,
}

impl Content {
    /// How often the payload is in memory while it is sent.
    fn copies(&self) -> usize {
        match self {
            Self::Audience => 2,
            _ => 1,
        }
    }
}

impl Outgoing {
    /// Notes whom a dispatch was for that is given up.
    fn note_loss(&self, losses: &Losses, names: &Names) {
        match self.content {
            Content::Dispatch => losses.note([names.reported(&self.channel)]),
            Content::Audience => losses.note(
                wire::users_of_audience(&self.payload)
                    .map(|user| names.classic_channel(&Destination::User(user.into()))),
            ),
            Content::Signal | Content::Report(_) => {}
        }
    }
}

/// What the publishers of all feeds share.
#[derive(Clone, Default)]
pub(super) struct Outbound {
    /// Bytes that wait, or whose answer is awaited.
    bytes: Arc<AtomicUsize>,
    losses: Arc<Losses>,
}

/// The sending end of the queue.
pub(super) struct Publisher {
    queue: mpsc::Sender<Outgoing>,
    bytes: Arc<AtomicUsize>,
    losses: Arc<Losses>,
    names: Names,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// The queue and the task that empties it.
    pub(super) fn new(
        length: usize,
        names: Names,
        outbound: &Outbound,
        metrics: Arc<Metrics>,
    ) -> (Self, Writer) {
        let (queue, waiting) = mpsc::channel(length.max(1));
        let Outbound { bytes, losses } = outbound.clone();
        let writer = Writer {
            waiting,
            bytes: bytes.clone(),
            losses: losses.clone(),
            names: names.clone(),
            metrics: metrics.clone(),
            batch: Vec::with_capacity(MAX_BATCH),
            in_flight: FuturesOrdered::new(),
            sent: VecDeque::new(),
            sent_at: Instant::now(),
        };
        (
            Self {
                queue,
                bytes,
                losses,
                names,
                metrics,
            },
            writer,
        )
    }

    /// Queues a dispatch. When it is lost, those it was for are told to sync.
    pub(super) fn dispatch(
        &self,
        channel: String,
        payload: Vec<u8>,
    ) -> Result<Published, BusError> {
        self.queue(channel, payload, Content::Dispatch)
            .map_err(|(error, refused)| {
                self.refuse(&refused);
                error
            })
    }

    /// Queues one event for many users. When it is lost, they are told to sync.
    pub(super) fn audience(&self, payload: Vec<u8>) {
        let channel = self.names.audience.clone();
        if let Err((_, refused)) = self.queue(channel, payload, Content::Audience) {
            self.refuse(&refused);
        }
    }

    fn refuse(&self, refused: &Outgoing) {
        refused.note_loss(&self.losses, &self.names);
        self.metrics
            .bus_published
            .get_or_create(&Metrics::kind("full"))
            .inc();
    }

    /// Whether dispatches were lost and the other instances have not been notified yet.
    pub(super) fn has_lost(&self) -> bool {
        !self.losses.is_empty()
    }

    /// Has the other instances notified that dispatches of this one were lost.
    pub(super) fn note_loss(&self) {
        self.losses.note_all();
    }

    /// Queues a message between instances.
    pub(super) fn signal(&self, channel: String, payload: Vec<u8>) -> Result<Published, BusError> {
        self.queue(channel, payload, Content::Signal)
            .map_err(|(error, _)| error)
    }

    fn queue(
        &self,
        channel: String,
        payload: Vec<u8>,
        content: Content,
    ) -> Result<Published, (BusError, Box<Outgoing>)> {
        let (done, published) = oneshot::channel();
        let outgoing = Outgoing {
            counted: payload.len() * content.copies(),
            channel,
            payload,
            content,
            done: Some(done),
        };
        let length = outgoing.counted;
        if self.bytes.fetch_add(length, Ordering::AcqRel) + length > MAX_WAITING_BYTES {
            self.bytes.fetch_sub(length, Ordering::AcqRel);
            return Err((BusError::Full, Box::new(outgoing)));
        }
        match self.queue.try_send(outgoing) {
            Ok(()) => Ok(published),
            Err(error) => {
                self.bytes.fetch_sub(length, Ordering::AcqRel);
                Err(match error {
                    mpsc::error::TrySendError::Full(outgoing) => {
                        (BusError::Full, Box::new(outgoing))
                    }
                    mpsc::error::TrySendError::Closed(outgoing) => (closed(), Box::new(outgoing)),
                })
            }
        }
    }
}

/// Returns the error after [`crate::bus::Bus::close`].
pub(super) fn closed() -> BusError {
    BusError::Unavailable("the bus is closed".into())
}

/// What the server said to each command of one pipeline.
type Outcomes = RedisResult<Vec<RedisResult<i64>>>;

/// The end of the queue that the task takes from.
pub(super) struct Writer {
    waiting: mpsc::Receiver<Outgoing>,
    bytes: Arc<AtomicUsize>,
    losses: Arc<Losses>,
    names: Names,
    metrics: Arc<Metrics>,
    /// Taken from the queue, and to be sent next.
    batch: Vec<Outgoing>,
    in_flight: FuturesOrdered<BoxFuture<'static, Outcomes>>,
    /// What each of the pipelines in flight holds.
    sent: VecDeque<Vec<Outgoing>>,
    /// When the last pipeline was sent.
    sent_at: Instant,
}

impl Writer {
    /// Publishes until `closing`. `login` changes when new connections are to be made.
    pub(super) async fn run(
        mut self,
        core: Arc<PubSubCore>,
        feed: Arc<Feed>,
        mut login: watch::Receiver<u64>,
        closing: CancellationToken,
    ) {
        let is_sharded = feed.segment.is_some();
        let command = if is_sharded { "SPUBLISH" } else { "PUBLISH" };
        let mut link: Option<Link> = None;
        let mut next: Option<Link> = None;
        let mut connecting = Some(connect(core.clone(), feed.clone()));
        let losses = Arc::clone(&self.losses);
        loop {
            let room = MAX_BATCH.saturating_sub(self.batch.len());
            let is_held = link.is_some() && !self.batch.is_empty() && self.may_send_more(&next);
            let reports = !is_sharded && link.is_some() && room > 0;
            let report_at = self.losses.due_at().filter(|_| reports);
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                (new, keys) = async { connecting.as_mut().expect("the branch is off otherwise").await }, if connecting.is_some() => {
                    connecting = None;
                    if let Some(keys) = keys {
                        core.set_publisher(Some((keys, new.address.clone())));
                    }
                    next = Some(new);
                }
                // The old connection serves until the new one is there.
                Ok(()) = login.changed() => connecting = Some(connect(core.clone(), feed.clone())),
                Some(outcomes) = self.in_flight.next() => {
                    let result = self.answered(outcomes, is_sharded);
                    if let Err(error) = result
                        && link.take().is_some()
                    {
                        let segment = feed.segment.map(|segment| segment.number() as u64);
                        tracing::warn!(%error, segment, "publishing to Redis failed; reconnecting");
                        if next.is_none() {
                            if !is_sharded {
                                core.set_publisher(None);
                            }
                            connecting = Some(connect(core.clone(), feed.clone()));
                        }
                    }
                }
                count = self.waiting.recv_many(&mut self.batch, room), if room > 0 => {
                    if count == 0 {
                        break;
                    }
                }
                () = tokio::time::sleep_until(self.sent_at + PATIENCE), if is_held => {}
                () = tokio::time::sleep_until(report_at.unwrap_or(self.sent_at)), if report_at.is_some() => {}
                // Others note theirs, and this one reports them.
                () = losses.noted(), if reports && report_at.is_none() => {}
            }
            // What the old connection has not answered may not be overtaken.
            if next.is_some() && self.in_flight.is_empty() {
                link = next.take();
            }
            match &link {
                Some(link) => {
                    if !is_sharded {
                        self.add_report(&core);
                    }
                    self.send_due(command, link, &next);
                }
                None => self.refuse_batch(&no_connection()),
            }
        }
        self.finish(command, link).await;
    }

    /// Sends what was queued before the end, as far as the server takes it.
    async fn finish(&mut self, command: &'static str, mut link: Option<Link>) {
        self.waiting.close();
        loop {
            while let Some(outcomes) = self.in_flight.next().await {
                if let Err(error) = self.answered(outcomes, false) {
                    tracing::debug!(%error, "publishing to Redis failed while the bus closed");
                    link = None;
                }
            }
            if self.batch.is_empty() {
                self.waiting.recv_many(&mut self.batch, MAX_BATCH).await;
            }
            if self.batch.is_empty() {
                return;
            }
            match &link {
                Some(link) => self.send(command, link),
                None => self.refuse_batch(&closed()),
            }
        }
    }

    /// Whether a further pipeline may be sent before the last ones are answered.
    fn may_send_more(&self, next: &Option<Link>) -> bool {
        next.is_none() && self.in_flight.len() < MAX_IN_FLIGHT
    }

    /// Sends what waits: at once where nothing is in flight, else when there is enough for a pipeline or the answers are late.
    fn send_due(&mut self, command: &'static str, link: &Link, next: &Option<Link>) {
        while !self.batch.is_empty()
            && (self.in_flight.is_empty()
                || (self.may_send_more(next)
                    && (self.batch.len() >= MAX_BATCH || self.sent_at.elapsed() >= PATIENCE)))
        {
            self.send(command, link);
        }
    }

    /// Sends one pipeline.
    fn send(&mut self, command: &'static str, link: &Link) {
        let mut bytes = 0;
        let fits = self.batch.iter().take_while(|o| {
            bytes += o.payload.len();
            bytes <= MAX_BATCH_BYTES
        });
        let count = fits.count().max(1);
        let mut pipeline = redis::Pipeline::with_capacity(count);
        for outgoing in &mut self.batch[..count] {
            let command = pipeline.cmd(command).arg(&outgoing.channel);
            match outgoing.content {
                Content::Audience => command.arg(&outgoing.payload),
                _ => command.arg(std::mem::take(&mut outgoing.payload)),
            };
        }
        pipeline.ignore_errors();
        let rest = self.batch.split_off(count);
        self.sent
            .push_back(std::mem::replace(&mut self.batch, rest));
        self.sent_at = Instant::now();
        let mut connection = link.connection.clone();
        self.in_flight.push_back(Box::pin(async move {
            pipeline.query_async(&mut connection).await
        }));
    }

    /// Returns the outcome of the oldest pipeline to its senders. At an error, that of all in flight: they were not taken, or nobody knows.
    ///
    /// # Errors
    /// That error; for a segment also when the node refused because it does not have the slot, or cannot serve it.
    fn answered(&mut self, outcomes: Outcomes, is_sharded: bool) -> Result<(), BusError> {
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let error = unavailable(&error);
                self.in_flight = FuturesOrdered::new();
                for batch in std::mem::take(&mut self.sent) {
                    self.refuse(batch, &error);
                }
                return Err(error);
            }
        };
        let batch = self.sent.pop_front().unwrap_or_default();
        let mut elsewhere = None;
        for (outgoing, result) in batch.into_iter().zip(outcomes) {
            let result = result.map_err(|error| {
                tracing::debug!(%error, "Redis refused a dispatch");
                if is_sharded && is_of_slot(&error) {
                    elsewhere.get_or_insert(unavailable(&error));
                }
                unavailable(&error)
            });
            let kind = if result.is_ok() { "ok" } else { "refused" };
            self.done(outgoing, result, kind);
        }
        elsewhere.map_or(Ok(()), Err)
    }

    fn refuse_batch(&mut self, error: &BusError) {
        let batch = std::mem::take(&mut self.batch);
        self.refuse(batch, error);
    }

    fn refuse(&self, batch: Vec<Outgoing>, error: &BusError) {
        for outgoing in batch {
            self.done(outgoing, Err(error.clone()), "unavailable");
        }
    }

    fn done(&self, outgoing: Outgoing, result: Result<i64, BusError>, kind: &'static str) {
        self.bytes.fetch_sub(outgoing.counted, Ordering::AcqRel);
        match &outgoing.content {
            Content::Dispatch | Content::Audience => {
                if result.is_err() {
                    outgoing.note_loss(&self.losses, &self.names);
                }
                self.metrics
                    .bus_published
                    .get_or_create(&Metrics::kind(kind))
                    .inc();
            }
            Content::Report(lost) => {
                if result.is_err() {
                    self.losses.put_back(lost);
                }
            }
            Content::Signal => {}
        }
        if let Some(done) = outgoing.done {
            let _ = done.send(result);
        }
    }

    /// Adds a report to the other instances that dispatches of this one were lost, if one is due.
    fn add_report(&mut self, core: &PubSubCore) {
        if let Some(lost) = self.losses.take_due(Instant::now()) {
            self.batch.push(Outgoing {
                channel: core.names.lost.clone(),
                payload: lost.payload(&core.instance),
                counted: 0,
                content: Content::Report(lost),
                done: None,
            });
        }
    }
}

fn no_connection() -> BusError {
    BusError::Unavailable("there is no connection to Redis".into())
}

/// Whether a node refuses because the slot of a segment is another's, or because it cannot serve it.
fn is_of_slot(error: &RedisError) -> bool {
    matches!(
        error.code(),
        Some("MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "READONLY" | "MASTERDOWN" | "LOADING")
    )
}

/// Connects; tries for as long as it takes. Key commands go through the connection of the classic feed.
fn connect(core: Arc<PubSubCore>, feed: Arc<Feed>) -> BoxFuture<'static, (Link, Option<Keys>)> {
    let attempt = move || {
        let (core, feed) = (Arc::clone(&core), Arc::clone(&feed));
        async move {
            let connector = core.connector();
            let other = feed.subscriber_address().map_or(Prefer::Any, Prefer::Other);
            let mut link = connector.link(&feed.node(other)).await?;
            if feed.segment.is_none() {
                let keys = connector.keys(&link)?;
                return RedisResult::Ok((link, Some(keys)));
            }
            // A node that reported another's slot as its own is found out here, and not by messages.
            redis::cmd("SPUBLISH")
                .arg(&feed.names.ping)
                .arg("")
                .query_async::<i64>(&mut link.connection)
                .await?;
            Ok((link, None))
        }
    };
    let what = "connecting to Redis for publishing";
    Box::pin(until_done(reconnect_backoff(), what, attempt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::pubsub::tests::audiences::audience;

    #[test]
    fn the_queue_is_bounded_in_number_and_in_bytes() {
        let names = Names::new("", "i");
        let (publisher, writer) = Publisher::new(2, names, &Outbound::default(), Metrics::new());
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
        assert!(publisher.has_lost(), "those it was for have to be notified");
        drop(writer);
        assert!(matches!(
            publisher.signal("c".into(), Vec::new()),
            Err(BusError::Unavailable(_))
        ));
    }
    #[test]
    fn the_users_of_one_audience_are_reported_together() {
        let users: Vec<String> = (0..1000).map(|user| format!("user-{user}")).collect();
        let instance = crate::bus::pubsub::new_instance();
        let payload = wire::encode_audience(&instance, &audience(&users, 1));
        for _ in 0..50 {
            let outbound = Outbound::default();
            let (publisher, _writer) =
                Publisher::new(1, Names::new("", "i"), &outbound, Metrics::new());
            assert!(publisher.signal("c".into(), Vec::new()).is_ok());
            // The report is taken at the first moment that there is one.
            let reported = std::thread::spawn(move || {
                loop {
                    match outbound.losses.take_due(Instant::now()) {
                        Some(lost) => return lost.payload("i"),
                        None => std::hint::spin_loop(),
                    }
                }
            });
            publisher.audience(payload.clone());
            let reported = String::from_utf8(reported.join().unwrap()).unwrap();
            let channels: Vec<String> = serde_json::from_str(&reported["i ".len()..]).unwrap();
            assert_eq!(channels.len(), users.len());
        }
    }
}

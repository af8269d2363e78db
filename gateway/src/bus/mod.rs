//! Between instances: dispatches over Redis Pub/Sub (`docs/protocol.md`, section 10), or within the process for a single instance.
//!
//! Input: dispatches from [`crate::delivery`], interests from [`crate::hub`]. Output: [`BusEvent`]s, which `app` hands to the hub.
//! An instance subscribes only to what it holds, so Redis hands a message to the owning instances alone.
//!
//! [`open`] chooses: `local` for one instance alone, Redis (standalone, Sentinel or Cluster) for several. `pubsub` is the bus over one Redis; `bridge`
//! switches a running instance from one Redis to another. [`Announcer`] tells the other instances of revocations until all know of them.

mod announcer;
mod bridge;
#[cfg(test)]
mod conformance;
pub(crate) mod fuzzing;
mod interests;
mod local;
mod pubsub;
#[cfg(test)]
mod valkey;
mod wire;

pub use announcer::Announcer;
pub use wire::EncodedAudience;

use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use signal_contract::{object, objects};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{ClientInfo, ClientQuery};
use crate::clock::Clock;
use crate::config::{self, Live};
use crate::dispatch::{Audience, Destination, Dispatch, ResyncReason};
use crate::id::Id;
use crate::metrics::Metrics;
use crate::revocation::Revocation;

/// What this instance wants to receive: messages for one of its clients, their users, its rooms. Broadcast is always subscribed to.
///
/// An interest is one channel, but a client's is two: senders that do not know whether a name is a client or a room publish to the room, so
/// `Client(id)` receives what is published to a room of that name as well.
pub type Interest = Destination;

/// Why something could not be published or asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BusError {
    /// Redis cannot be reached, refused, or did not answer in time.
    #[error("the bus is unavailable: {0}")]
    Unavailable(String),
    /// Too much waits already: dispatches to be published, questions to be answered, or shared revocations.
    #[error("too much waits on the bus already")]
    Full,
    /// The settings name something that cannot work, such as an authority file that is no PEM.
    #[error("the bus cannot be opened: {0}")]
    Misconfigured(String),
}

/// What comes in.
#[derive(Debug)]
pub enum BusEvent {
    /// Another instance, or an outside emitter, sent this; never what this instance published itself.
    Dispatch(Dispatch),
    /// The same for one event to many users, of whom this instance may hold some.
    Audience(EncodedAudience),
    /// Pushes may have been missed, for this reason. The receiver tells every local client and reads the revocations again, since an
    /// [`Ask::Revoke`] may be among what was missed. Comes after subscriptions are confirmed again, once per gap.
    Resync(ResyncReason),
    /// Local clients of these destinations may have missed messages, for this reason: another instance gave some up, or this one lost the connection on
    /// which it receives theirs.
    ResyncFor(ResyncReason, Vec<Destination>),
    /// Another instance asks. The answer goes back through the channel; dropping the channel answers nothing.
    Asked(Ask, oneshot::Sender<Reply>),
}

/// A question for other instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum Ask {
    /// Which connections do you hold?
    List {
        /// Which of them.
        #[serde(deserialize_with = "object")]
        query: ClientQuery,
    },
    /// Describe this connection, if you hold it.
    Describe {
        /// Which.
        client: Id,
    },
    /// Close these with that code.
    Close {
        /// One connection, or ...
        client: Option<Id>,
        /// ... all of a user.
        user: Option<String>,
    },
    /// Put this connection into rooms, past the ACL.
    Join {
        /// Which.
        client: Id,
        /// Into which.
        rooms: Vec<String>,
    },
    /// Take it out of them.
    Leave {
        /// Which.
        client: Id,
        /// Out of which.
        rooms: Vec<String>,
    },
    /// Do you hold this connection?
    Holds {
        /// Which.
        client: Id,
    },
    /// Does your pipeline of this group work?
    Pipeline {
        /// `kafka.group_id`
        group: String,
    },
    /// This revocation was made, and is stored.
    Revoke {
        /// What is refused from here on.
        #[serde(deserialize_with = "object")]
        revocation: Revocation,
        /// Whether the database holds it. An instance of the release before stores it in Redis alone, where [`Bus::shared_revocations`] finds it.
        #[serde(default, rename = "inDatabase")]
        in_database: bool,
    },
}

/// An answer to an [`Ask`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "camelCase")]
pub enum Reply {
    /// To `List` and `Describe`.
    Clients {
        /// Those held; at most [`crate::client::MAX_LISTED`].
        #[serde(deserialize_with = "objects")]
        clients: Vec<ClientInfo>,
    },
    /// To `Close` and `Revoke`: how many. To `Holds` and `Pipeline`: 0 or 1.
    Count {
        /// How many.
        count: usize,
    },
    /// To `Join` and `Leave`: the rooms that changed; `None` when the client is not held here.
    Rooms {
        /// Which.
        rooms: Option<Vec<String>>,
    },
}

/// What all live instances answered.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// By instance name.
    pub replies: Vec<(String, Reply)>,
    /// Names of live instances that did not answer in time.
    pub missing: Vec<String>,
}

/// Whether the subscriber receives what other instances publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriberState {
    /// A self-ping came back within `redis.stalled_after_ms`, or there is no other instance.
    Live,
    /// No self-ping came back for that long, whatever the cause: pushes from other instances are being missed. The bus repairs itself
    /// meanwhile. A connection that breaks and is made again sooner is a [`BusEvent::Resync`] and never `Stalled`.
    Stalled,
}

/// What the subscriber has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reception {
    /// Changes with every gap: what was published between two receptions of different gap numbers may have been missed.
    pub gaps: u64,
    /// When a self-ping came back last: what was published before has come in. It lies a ping interval back at most while Redis answers.
    pub until: Instant,
}

/// The bus as `/status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusStatus {
    /// Which kind is in use.
    pub mode: config::RedisMode,
    /// `host:port` of the servers, sentinels or cluster nodes in use.
    pub nodes: Vec<String>,
    /// Whether the live settings name another Redis or login than the one in use, and the bus is switching to it.
    pub switching: bool,
    /// Why the switch has failed so far.
    pub error: Option<String>,
    /// The previous Redis, while the live settings name one.
    pub previous: Option<PreviousServer>,
}

impl Default for BusStatus {
    fn default() -> Self {
        Self {
            mode: config::RedisMode::None,
            nodes: Vec::new(),
            switching: false,
            error: None,
            previous: None,
        }
    }
}

/// The Redis that the instance used before the current one, and publishes to and subscribes on as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousServer {
    /// `host:port` of its servers, sentinels or cluster nodes.
    pub nodes: Vec<String>,
    /// Whether all subscriptions are confirmed there and its subscriber is live; readiness does not depend on it.
    pub subscribed: bool,
}

/// What carries dispatches between instances.
///
/// At most once and, per publishing instance and destination, in order. Methods never wait for an unreachable server longer than the configured
/// timeouts. Events come out of the [`Events`] that [`open`] returns. They end when the bus is closed; if they end before that, the bus has failed for
/// good and the process has to end.
pub trait Bus: Send + Sync + 'static {
    /// Publishes to every other instance that holds the destination; batched with what waits. Returns when the server took it.
    ///
    /// Queued when called, in the order of calls, whether or not the future is polled: who does not need the outcome drops it. Never tried twice: after
    /// a time-out the server may have taken it. While the server is away it fails at once. When an instance that failed to publish can do so again, all
    /// others get a [`BusEvent::ResyncFor`] the destinations, or a [`BusEvent::Resync`] where those are too many.
    ///
    /// # Errors
    /// [`BusError::Unavailable`], and [`BusError::Full`] beyond `redis.publish_queue`.
    fn publish<'a>(&'a self, dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>>;

    /// Publishes one event to many users, each of whom gets another message. Queued when called, in its order with [`Bus::publish`]; nobody learns the outcome
    /// but those whose messages are given up, as there.
    fn publish_audience(&self, audience: &Audience<'_>) {
        for dispatch in audience.dispatches() {
            drop(self.publish(&dispatch));
        }
    }

    /// Adds interests, counted: each needs its own `unsubscribe`. The future completes when the server has confirmed all of them, however late: a caller
    /// that does not wait for so long tells its client to sync then. It returns `Err` when the connection breaks before: they are kept, subscribed as
    /// soon as possible, and a [`BusEvent::Resync`] follows.
    ///
    /// Counted when called: dropping the future changes nothing. While subscriptions are down it fails at once.
    fn subscribe(&self, interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>>;

    /// Takes interests back. The server is asked to unsubscribe a little later and in a batch, so that a client that comes right back costs nothing.
    /// Until then messages may still come in. An interest that was never added is ignored.
    fn unsubscribe(&self, interests: Vec<Interest>);

    /// Asks every other live instance and waits for replies at most the configured time. An instance that is live (or was a few seconds ago) and does
    /// not reply is in [`Answers::missing`].
    ///
    /// # Errors
    /// [`BusError::Unavailable`] when the live instances cannot be listed; [`BusError::Full`] when too many questions are open.
    fn ask<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>>;

    /// The same of those live instances alone that have one of these names.
    ///
    /// # Errors
    /// Those of [`Bus::ask`].
    fn ask_named<'a>(
        &'a self,
        ask: &'a Ask,
        names: &'a [String],
    ) -> BoxFuture<'a, Result<Answers, BusError>> {
        async move {
            let mut answers = self.ask(ask).await?;
            answers.replies.retain(|(name, _)| names.contains(name));
            answers.missing.retain(|name| names.contains(name));
            Ok(answers)
        }
        .boxed()
    }

    /// Names the instances that were live when they could last be listed, this one left out: whom a question that cannot be asked concerns.
    fn last_seen(&self) -> Vec<String>;

    /// Writes a revocation to where instances of the release before read them, until its `until_ms`. Writing it again changes nothing.
    ///
    /// # Errors
    /// [`BusError::Unavailable`], and [`BusError::Full`] when there is no room.
    fn share_revocation<'a>(
        &'a self,
        revocation: &'a Revocation,
    ) -> BoxFuture<'a, Result<(), BusError>>;

    /// Returns every revocation that has not ended from where instances of the release before keep them, in no order.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    fn shared_revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>>;

    /// Whether the subscriber receives right now.
    fn subscriber(&self) -> SubscriberState;

    /// Until when everything that other instances published has come in; `None` while subscriptions are down.
    fn reception(&self) -> Option<Reception>;

    /// Returns how long the last self-ping took from publishing to receiving.
    fn lag(&self) -> Option<Duration>;

    /// Whether the worker number may belong to another instance: its lease could not be renewed for as long as it lasts, or another instance owns the
    /// number. The instance then takes no new connections and is not ready. It becomes false again once the lease is renewed.
    fn lease_lapsed(&self) -> bool;

    /// Whether the server may have forgotten the lease, because a connection was lost, and no renewal has succeeded since: the instance is not ready.
    fn lease_doubtful(&self) -> bool {
        false
    }

    /// Has another worker number leased, because the clock stepped back by so much and ids of the present could repeat those made with this one. The
    /// number stays leased until the clock is past them, so that no other instance repeats them either. Asking again changes nothing.
    fn replace_worker(&self, _stepped_back: Duration) {}

    /// Which servers are in use, and how a switch to another one stands.
    fn status(&self) -> BusStatus;

    /// Gives up the worker lease and closes; nothing is received or published afterwards. Closing twice changes nothing.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A bus and what comes out of it.
pub struct Opened {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// What comes in, bounded: when it is not taken for long, dispatches are dropped and a [`BusEvent::Resync`] follows.
    pub events: Events,
    /// The worker number leased for this instance's ids. Another one takes its place when this one is not free on the Redis that the bus switches to.
    pub worker: Arc<AtomicU16>,
}

/// What a bus receives, in order. A bus whose events are dropped closes.
pub struct Events(Source);

enum Source {
    Local(mpsc::Receiver<BusEvent>),
    Redis(Box<bridge::EventStream>),
}

impl Events {
    /// Adds what comes next to `out`, which must be empty; returns `false` when the events have ended. Cancel safe.
    pub async fn next(&mut self, out: &mut Vec<BusEvent>) -> bool {
        match &mut self.0 {
            Source::Local(events) => match events.recv().await {
                Some(event) => {
                    out.push(event);
                    true
                }
                None => false,
            },
            Source::Redis(stream) => stream.next(out).await,
        }
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}

/// What a bus is opened with.
pub struct BusOptions {
    /// `[redis]` of the static settings.
    pub config: config::Redis,
    /// Which worker numbers may be leased.
    pub ids: config::Ids,
    /// What people call this instance.
    pub instance_name: String,
    /// The live settings: the current Redis where it is not that of the static settings, and the previous one.
    pub live: watch::Receiver<Arc<Live>>,
    /// Ends of shared revocations.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Ends the opening, and afterwards closes the bus as [`Bus::close`] does.
    pub shutdown: CancellationToken,
}

/// Opens the bus that the settings name.
///
/// With Redis it returns once connected, subscribed to broadcast, and in possession of a worker lease; until then it keeps trying and logs why,
/// so that Redis may start later than the gateway. From then on it follows the live settings from one Redis to another.
/// Must be called inside a tokio runtime, whose tasks the bus uses.
///
/// # Errors
/// [`BusError::Misconfigured`] for settings that can never work; [`BusError::Unavailable`] when `shutdown` came first.
pub async fn open(options: BusOptions) -> Result<Opened, BusError> {
    match options.config.mode {
        config::RedisMode::None => Ok(local::open(&options.ids)),
        _ => bridge::open(options).await,
    }
}

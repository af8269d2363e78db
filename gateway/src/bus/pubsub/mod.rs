//! One Redis over Pub/Sub: standalone, Sentinel or Cluster.
//!
//! | module | does |
//! |---|---|
//! | `connect`, `nodes`, `tls` | makes connections to whatever the mode names |
//! | `feed` | the classic channels, and each segment of our own messages in a cluster: what belongs to one subscriber and one publisher |
//! | `publisher` | one task, one connection for each feed: what goes out, in order; key commands share the connection of the classic one |
//! | `losses` | whose messages were given up, until they are told |
//! | `segments` | which feed a message and an interest belong to |
//! | `subscriber` | one task, one connection for each feed: keeps every wanted channel confirmed, repairs itself |
//! | `subscription` | such a connection: what is confirmed, and what comes in |
//! | `intake`, `queue` | what is received: sorted, bounded, handed out |
//! | `self_ping` | notices a subscriber that receives nothing |
//! | `worker_lease`, `lease` | the worker number: the decisions, and the commands |
//! | `presence` | which instances are live |
//! | `peers` | whether all of them take one message for many users, and messages on segments |
//! | `ask` | questions between instances |
//! | `revocations` | the set of revocations of the release before |
//! | `login` | other credentials, without a gap |
//! | `bridging` | what [`super::bridge`] needs besides the calls of every bus |
//! | `tasks` | one supervisor for all tasks: should one end by itself, all end and with them the events |

mod ask;
mod bridging;
mod connect;
mod feed;
mod intake;
mod lease;
mod login;
mod losses;
mod nodes;
mod peers;
mod presence;
mod publisher;
mod queue;
mod revocations;
mod segments;
mod self_ping;
mod subscriber;
mod subscription;
mod tasks;
mod tls;
mod worker_lease;

#[cfg(test)]
pub(super) mod lab;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::connect::{Connector, Keys, unavailable};
use self::nodes::Address;

pub(super) use self::bridging::{is_same_server, only_here};
pub(super) use self::queue::{Events, Origin, Received};

use self::feed::Feed;
use self::intake::Intake;
use self::peers::Peers;
use self::publisher::{Outbound, Publisher};
use self::segments::segments_of;
use self::tasks::Tasks;
use self::worker_lease::WorkerLease;
use super::wire::Names;
use super::{Answers, Ask, Bus, BusError, BusStatus, Interest, Reception, SubscriberState};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config;
use crate::dispatch::{Audience, Dispatch, ResyncReason};
use crate::metrics::Metrics;
use crate::revocation::Revocation;

/// Returns the delays between attempts to reach a server.
pub(super) fn reconnect_backoff() -> Backoff {
    Backoff::between(Duration::from_millis(50), Duration::from_secs(2))
}

/// Every interval of the bus.
#[derive(Debug, Clone)]
struct Timing {
    self_ping: Duration,
    stalled_after: Duration,
    request: Duration,
    /// From the last holder's leaving to unsubscribing.
    linger: Duration,
    /// How long a worker lease lasts, and how often it is renewed (protocol.md 11.5).
    lease: Duration,
    renew: Duration,
    /// How often an instance announces that it is live, and for how long that counts.
    beat: Duration,
    live: Duration,
    /// How often the files of the login are compared.
    watch: Duration,
}

impl Timing {
    fn of(config: &config::Redis) -> Self {
        Self {
            self_ping: Duration::from_millis(config.self_ping_interval_ms.max(1)),
            stalled_after: Duration::from_millis(config.stalled_after_ms),
            request: Duration::from_millis(config.request_timeout_ms),
            linger: Duration::from_secs(2),
            lease: Duration::from_secs(3600),
            renew: Duration::from_secs(300),
            beat: Duration::from_secs(5),
            live: Duration::from_secs(15),
            watch: crate::files::INTERVAL,
        }
    }
}

/// What the tasks and the callers of one bus share.
struct PubSubCore {
    /// 128 random bits in hexadecimal: the `serverId`.
    instance: String,
    /// What people call it.
    name: String,
    names: Names,
    timing: Timing,
    /// Replaced when the login changes.
    connector: Mutex<Arc<Connector>>,
    /// Grows when new connections are to take the place of the old ones.
    login: watch::Sender<u64>,
    /// The channels that emitters know, and our own questions.
    classic: Arc<Feed>,
    /// One for each [`Segment`](super::wire::Segment), in their order; none without `redis.sharded_pubsub`.
    segments: Vec<Arc<Feed>>,
    ping_at_once: Notify,
    /// How many connections the publisher has had.
    connected: watch::Sender<u64>,
    /// How many subscriber connections were lost.
    gaps: AtomicU64,
    /// Names of the other instances that were live when they were last listed.
    last_seen: Mutex<Vec<String>>,
    /// Whether they take one message for many users.
    audience_peers: Peers,
    /// Whether they receive what is published on segments.
    sharded_peers: Peers,
    keys: Mutex<Option<(Keys, Address)>>,
    lease: WorkerLease,
    /// Another bus is the current one: the gauges show its figures.
    hidden: AtomicBool,
    /// Held while segments are counted: of several tasks that count, the last one sets the gauges.
    counting: Mutex<()>,
    asking: Semaphore,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl PubSubCore {
    fn set_publisher(&self, keys: Option<(Keys, Address)>) {
        let connected = keys.is_some();
        *self.keys.lock() = keys;
        if connected {
            self.connected.send_modify(|count| *count += 1);
        }
    }

    fn connector(&self) -> Arc<Connector> {
        Arc::clone(&self.connector.lock())
    }

    /// Whether the gauges show the figures of this bus.
    fn is_shown(&self) -> bool {
        !self.hidden.load(Ordering::Acquire)
    }

    /// Runs a key command.
    async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, BusError> {
        let keys = self.keys.lock().as_ref().map(|(keys, _)| keys.clone());
        let mut keys =
            keys.ok_or_else(|| BusError::Unavailable("there is no connection to Redis".into()))?;
        keys.query(cmd).await.map_err(|error| unavailable(&error))
    }

    /// The entry of this instance among the live ones.
    fn member(&self) -> String {
        format!("{} {}", self.instance, self.name)
    }

    fn subscriber_state(&self) -> SubscriberState {
        if self.classic.intake.last_ping().0.elapsed() <= self.timing.stalled_after {
            SubscriberState::Live
        } else {
            SubscriberState::Stalled
        }
    }

    /// Queues a resync when another instance has lost what it published; several losses within a second are one.
    async fn pass_on_losses(&self) {
        loop {
            self.classic.intake.peer_lost().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.classic.intake.resync(ResyncReason::BusPeerLost);
        }
    }
}

/// A bus over one Redis.
pub(super) struct PubSubBus {
    core: Arc<PubSubCore>,
    closing: CancellationToken,
    closed: watch::Receiver<bool>,
}

/// What is the same for every bus of a process.
#[derive(Clone)]
pub(super) struct Setup {
    /// 128 random bits in hexadecimal: the `serverId`, one for all buses of a process.
    pub(super) instance: String,
    /// What people call it.
    pub(super) name: String,
    pub(super) ids: config::Ids,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: CancellationToken,
}

/// Returns a new `serverId`.
pub(super) fn new_instance() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A bus that connects. Dropping the bus closes its connections.
pub(super) struct Connecting {
    pub(super) bus: Arc<PubSubBus>,
    pub(super) events: Events,
    /// Each completes when all that was wanted of a feed is subscribed and confirmed for the first time.
    subscribed: Vec<oneshot::Receiver<()>>,
}

/// Begins to connect; interests may be added from here on.
///
/// # Errors
/// [`BusError::Misconfigured`].
pub(super) fn connect(config: &config::Redis, setup: &Setup) -> Result<Connecting, BusError> {
    connect_timed(config, setup, Timing::of(config))
}

fn connect_timed(
    config: &config::Redis,
    setup: &Setup,
    timing: Timing,
) -> Result<Connecting, BusError> {
    let connector = Connector::new(config)?;
    let Setup {
        instance,
        name,
        clock,
        metrics,
        ..
    } = setup.clone();
    let names = Names::new(&config.channel_prefix, &instance);
    let (intake, events, questions) = Intake::new(names.clone(), instance.clone(), metrics.clone());
    let outbound = Outbound::default();
    let mut writers = Vec::new();
    let mut feed = |segment, names: Names, intake: Arc<Intake>| {
        let length = config.publish_queue;
        let (publisher, writer) = Publisher::new(length, names.clone(), &outbound, metrics.clone());
        writers.push(writer);
        Arc::new(Feed::new(segment, names, intake, publisher))
    };
    let classic = feed(None, names.clone(), intake.clone());
    let segments: Vec<Arc<Feed>> = segments_of(config)?
        .map(|segment| {
            let names = names.of_segment(&instance, segment);
            feed(Some(segment), names.clone(), intake.of_segment(names))
        })
        .collect();
    let core = Arc::new(PubSubCore {
        instance,
        name,
        names,
        connector: Mutex::new(Arc::new(connector)),
        login: watch::channel(0).0,
        classic,
        segments,
        ping_at_once: Notify::new(),
        connected: watch::channel(0).0,
        gaps: AtomicU64::new(0),
        last_seen: Mutex::default(),
        audience_peers: Peers::default(),
        sharded_peers: Peers::default(),
        keys: Mutex::default(),
        lease: WorkerLease::new(timing.lease, timing.renew),
        timing,
        hidden: AtomicBool::new(false),
        counting: Mutex::default(),
        asking: Semaphore::new(ask::MAX_OPEN),
        clock,
        metrics,
    });
    let closing = setup.shutdown.child_token();
    let (ready, subscribed) = core.feeds().map(|_| oneshot::channel()).unzip();
    let (closed_sender, closed) = watch::channel(false);
    let tasks = Tasks {
        writers,
        questions,
        ready,
    };
    tokio::spawn(tasks.supervise(core.clone(), closing.clone(), closed_sender));
    Ok(Connecting {
        bus: Arc::new(PubSubBus {
            core,
            closing,
            closed,
        }),
        events,
        subscribed,
    })
}

impl Connecting {
    /// Completes when keys can be asked and everything wanted is confirmed, however long it takes. Cancel safe.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] when the bus is closed meanwhile.
    pub(super) async fn connected(&mut self) -> Result<(), BusError> {
        let mut count = self.bus.core.connected.subscribe();
        let connected = async {
            let _ = count.wait_for(|count| *count > 0).await;
            for subscribed in &mut self.subscribed {
                if !subscribed.is_terminated() {
                    let _ = subscribed.await;
                }
            }
        };
        tokio::select! {
            () = connected => {}
            () = self.bus.closing.cancelled() => {}
        }
        if self.bus.closing.is_cancelled() {
            return Err(BusError::Unavailable(
                "shut down before Redis was reached".into(),
            ));
        }
        Ok(())
    }
}

impl Bus for PubSubBus {
    fn publish<'a>(&'a self, dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        self.publish_numbered(dispatch, None)
    }

    fn publish_audience(&self, audience: &Audience<'_>) {
        self.publish_to_feeds(audience);
    }

    fn subscribe(&self, interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        let interests = interests
            .into_iter()
            .filter(|interest| *interest != Interest::Broadcast)
            .collect();
        self.core.add(interests)
    }

    fn unsubscribe(&self, interests: Vec<Interest>) {
        self.core.remove(interests);
    }

    fn ask<'a>(&'a self, question: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        async {
            let others = presence::others(&self.core).await?;
            ask::ask(&self.core, question, others).await
        }
        .boxed()
    }

    fn ask_named<'a>(
        &'a self,
        question: &'a Ask,
        names: &'a [String],
    ) -> BoxFuture<'a, Result<Answers, BusError>> {
        async move {
            let mut others = presence::others(&self.core).await?;
            others.retain(|other| names.contains(&other.name));
            ask::ask(&self.core, question, others).await
        }
        .boxed()
    }

    fn last_seen(&self) -> Vec<String> {
        self.core.last_seen.lock().clone()
    }

    fn share_revocation<'a>(
        &'a self,
        revocation: &'a Revocation,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        revocations::share(&self.core, revocation).boxed()
    }

    fn shared_revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        revocations::shared(&self.core).boxed()
    }

    fn subscriber(&self) -> SubscriberState {
        self.core.subscriber_state()
    }

    fn reception(&self) -> Option<Reception> {
        let core = &self.core;
        // In this order, because a gap begins with subscriptions that are down, and is counted before they are up: one in between is seen now or at the
        // next call, and never hidden by a ping that came after it.
        let until = core.classic.intake.last_ping().0;
        let gaps = core.gaps.load(Ordering::Acquire);
        core.classic
            .interests
            .lock()
            .is_up()
            .then_some(Reception { gaps, until })
    }

    fn lag(&self) -> Option<Duration> {
        self.core.classic.intake.last_ping().1
    }

    fn lease_lapsed(&self) -> bool {
        self.core.lease.has_lapsed(Instant::now())
    }

    fn lease_doubtful(&self) -> bool {
        self.core.lease.is_doubtful()
    }

    fn status(&self) -> BusStatus {
        let connector = self.core.connector();
        BusStatus {
            mode: connector.mode(),
            nodes: connector.nodes(),
            ..BusStatus::default()
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.closing.cancel();
        let mut closed = self.closed.clone();
        async move { drop(closed.wait_for(|closed| *closed).await) }.boxed()
    }
}

impl Drop for PubSubBus {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

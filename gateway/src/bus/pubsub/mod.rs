//! The bus over Redis Pub/Sub: standalone, Sentinel or Cluster.
//!
//! | module | does |
//! |---|---|
//! | `connect` | makes connections to whatever the mode names |
//! | `publisher` | one task, one connection: what goes out, in order; key commands share its connection |
//! | `subscriber` | one task, one connection: keeps every wanted channel confirmed, repairs itself |
//! | `intake` | what is heard: sorted, bounded, handed out |
//! | `lease` | the worker number and being listed as alive; the self-ping |
//! | `ask`, `revocations` | questions between instances; what outlives them |
//! | `handle` | what [`super::bridge`] does beside the calls of every bus |
//!
//! All tasks belong to one supervisor: should one end unasked, all end and with them the events.

mod ask;
mod connect;
mod handle;
mod intake;
mod lease;
mod publisher;
mod revocations;
mod subscriber;

#[cfg(test)]
pub(super) mod lab;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::connect::{Address, Connector, Keys, unavailable};
pub(super) use self::handle::{only_here, probe};
pub(super) use self::intake::{Events, Heard, Stamp};
pub(super) use self::publisher::Backoff;

use self::intake::{Asked, Intake};
use self::lease::Lease;
use self::publisher::{Publisher, Writer};
use self::subscriber::Subscriber;
use super::interests::{Added, Interests};
use super::wire::Names;
use super::{Answers, Ask, Bus, BusError, BusStatus, Interest, SubscriberState};
use crate::clock::Clock;
use crate::config;
use crate::dispatch::{Destination, Dispatch, ResyncReason};
use crate::metrics::Metrics;
use crate::revocation::Revocation;

/// Every interval of the bus.
#[derive(Debug, Clone)]
struct Timing {
    self_ping: Duration,
    deaf_after: Duration,
    request: Duration,
    /// From the last holder's leaving to unsubscribing.
    linger: Duration,
    /// How long a worker lease lasts, and how often it is renewed (protocol.md 11.5).
    lease: Duration,
    renew: Duration,
    /// How often an instance says that it is alive, and for how long it is believed.
    beat: Duration,
    live: Duration,
    /// How often the password file is compared.
    watch: Duration,
}

impl Timing {
    fn of(config: &config::Redis) -> Self {
        Self {
            self_ping: Duration::from_millis(config.self_ping_interval_ms.max(1)),
            deaf_after: Duration::from_millis(config.stalled_after_ms),
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

/// What the tasks and the callers share.
struct Shared {
    /// 128 random bits in hexadecimal: the `serverId`.
    instance: String,
    /// What people call it.
    name: String,
    names: Names,
    timing: Timing,
    /// Replaced when one logs in otherwise.
    connector: Mutex<Arc<Connector>>,
    /// Grows when new connections are to be made beside the old ones.
    login: watch::Sender<u64>,
    intake: Arc<Intake>,
    publisher: Publisher,
    interests: Mutex<Interests>,
    interests_changed: Notify,
    ping_at_once: Notify,
    /// How many connections the publisher has had.
    connected: watch::Sender<u64>,
    keys: Mutex<Option<(Keys, Address)>>,
    subscriber: Mutex<Option<Address>>,
    lease: Mutex<Option<Arc<Lease>>>,
    /// Another bus is the one in use: its figures are those that are shown.
    aside: AtomicBool,
    asking: Semaphore,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn set_publisher(&self, keys: Option<(Keys, Address)>) {
        let connected = keys.is_some();
        *self.keys.lock() = keys;
        if connected {
            self.connected.send_modify(|count| *count += 1);
        }
    }

    fn set_subscriber(&self, address: Option<Address>) {
        *self.subscriber.lock() = address;
    }

    fn subscriber_address(&self) -> Option<Address> {
        self.subscriber.lock().clone()
    }

    fn connector(&self) -> Arc<Connector> {
        Arc::clone(&self.connector.lock())
    }

    fn lease(&self) -> Option<Arc<Lease>> {
        self.lease.lock().clone()
    }

    /// Whether gauges are of this bus.
    fn is_shown(&self) -> bool {
        !self.aside.load(Ordering::Acquire)
    }

    /// Runs a key command.
    async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, BusError> {
        let keys = self.keys.lock().as_ref().map(|(keys, _)| keys.clone());
        let mut keys =
            keys.ok_or_else(|| BusError::Unavailable("there is no connection to Redis".into()))?;
        keys.query(cmd).await.map_err(|error| unavailable(&error))
    }

    /// The channels that every instance hears.
    fn own_channels(&self) -> Vec<String> {
        let names = &self.names;
        vec![
            names.channel(&Destination::Broadcast),
            names.ping.clone(),
            names.ask.clone(),
            names.reply.clone(),
            names.lost.clone(),
        ]
    }

    /// This instance among the live ones.
    fn member(&self) -> String {
        format!("{} {}", self.instance, self.name)
    }

    fn subscriber(&self) -> SubscriberState {
        if self.intake.pinged().0.elapsed() <= self.timing.deaf_after {
            SubscriberState::Live
        } else {
            SubscriberState::Stalled
        }
    }

    /// Tells local clients to sync when another instance lost what it published; several in a row are one.
    async fn pass_on_losses(&self) {
        loop {
            self.intake.peer_lost().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.intake.resync(ResyncReason::BusPeerLost);
        }
    }
}

/// The bus that callers hold.
pub(super) struct RedisBus {
    shared: Arc<Shared>,
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

/// A new `serverId`.
pub(super) fn new_instance() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A bus that has begun to connect. Dropping the bus closes what was begun.
pub(super) struct Begun {
    pub(super) bus: Arc<RedisBus>,
    pub(super) events: Events,
    /// Told when all that was wanted is subscribed and confirmed for the first time.
    heard: oneshot::Receiver<()>,
}

/// Begins to connect; interests may be added from here on.
///
/// # Errors
/// [`BusError::Misconfigured`].
pub(super) fn begin(config: &config::Redis, setup: &Setup) -> Result<Begun, BusError> {
    begin_timed(config, setup, Timing::of(config))
}

fn begin_timed(config: &config::Redis, setup: &Setup, timing: Timing) -> Result<Begun, BusError> {
    let connector = connector(config)?;
    let Setup {
        instance,
        name,
        clock,
        metrics,
        ..
    } = setup.clone();
    let names = Names::new(&config.channel_prefix, &instance);
    let (intake, events, asked) = Intake::new(names.clone(), instance.clone(), metrics.clone());
    let (publisher, writer) = Publisher::new(config.publish_queue, metrics.clone());
    let shared = Arc::new(Shared {
        instance,
        name,
        names,
        timing,
        connector: Mutex::new(Arc::new(connector)),
        login: watch::channel(0).0,
        intake,
        publisher,
        interests: Mutex::default(),
        interests_changed: Notify::new(),
        ping_at_once: Notify::new(),
        connected: watch::channel(0).0,
        keys: Mutex::default(),
        subscriber: Mutex::default(),
        lease: Mutex::default(),
        aside: AtomicBool::new(false),
        asking: Semaphore::new(ask::MAX_OPEN),
        clock,
        metrics,
    });
    let closing = setup.shutdown.child_token();
    let (ready_in, heard) = oneshot::channel();
    let (closed_in, closed) = watch::channel(false);
    let tasks = Tasks {
        writer,
        asked,
        ready: ready_in,
    };
    tokio::spawn(tasks.supervise(shared.clone(), closing.clone(), closed_in));
    Ok(Begun {
        bus: Arc::new(RedisBus {
            shared,
            closing,
            closed,
        }),
        events,
        heard,
    })
}

/// Reads the settings of connections.
fn connector(config: &config::Redis) -> Result<Connector, BusError> {
    if config.tls.enabled {
        // Whoever was first has installed the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    Connector::new(config)
}

impl Begun {
    /// Ends when keys can be asked and everything wanted is confirmed, however long it takes. Cancel safe.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] when the bus is closed meanwhile.
    pub(super) async fn connected(&mut self) -> Result<(), BusError> {
        let mut count = self.bus.shared.connected.subscribe();
        let connected = async {
            let _ = count.wait_for(|count| *count > 0).await;
            if !self.heard.is_terminated() {
                let _ = (&mut self.heard).await;
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

/// What the tasks start with.
struct Tasks {
    writer: Writer,
    asked: mpsc::Receiver<Asked>,
    ready: oneshot::Sender<()>,
}

impl Tasks {
    /// Runs everything until the bus is closed, then gives up what is held.
    async fn supervise(
        self,
        shared: Arc<Shared>,
        closing: CancellationToken,
        closed: watch::Sender<bool>,
    ) {
        let ends = shared.intake.ends();
        let writing = CancellationToken::new();
        let mut writer = tokio::spawn(self.writer.run(
            shared.clone(),
            shared.login.subscribe(),
            writing.clone(),
        ));
        let mut set = JoinSet::new();
        set.spawn(Subscriber::new(shared.clone(), shared.login.subscribe(), self.ready).run());
        set.spawn(handle::follow_password(shared.clone(), closing.clone()));
        let intake = shared.intake.clone();
        set.spawn(async move { intake.abandoned().await });
        let (asker, keeper, pinger, teller) = (
            shared.clone(),
            shared.clone(),
            shared.clone(),
            shared.clone(),
        );
        set.spawn(async move { ask::answer(&asker, self.asked).await });
        set.spawn(async move { lease::keep(&keeper, keeper.connected.subscribe()).await });
        set.spawn(async move { lease::ping(&pinger).await });
        set.spawn(async move { teller.pass_on_losses().await });
        tokio::select! {
            () = closing.cancelled() => {}
            ended = set.join_next() => match ended {
                Some(Err(error)) => tracing::error!(%error, "a task of the bus failed: the bus closes"),
                _ => tracing::info!("events of the bus are no longer taken: it closes"),
            },
            ended = &mut writer => tracing::error!(failed = ended.is_err(), "the publisher of the bus ended: the bus closes"),
        }
        closing.cancel();
        set.shutdown().await;
        drop(ends);
        shared.interests.lock().down();
        let goodbye = async {
            lease::release(&shared).await;
            writing.cancel();
            if !writer.is_finished() {
                let _ = (&mut writer).await;
            }
        };
        let limit = 2 * shared.connector().timeout();
        if tokio::time::timeout(limit, goodbye).await.is_err() {
            tracing::warn!("Redis did not answer while the bus was closed");
        }
        writing.cancel();
        writer.abort();
        shared.set_publisher(None);
        closed.send_replace(true);
    }
}

impl Bus for RedisBus {
    fn publish<'a>(&'a self, dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        self.publish_numbered(dispatch, None)
    }

    fn subscribe(&self, interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        let interests = interests
            .into_iter()
            .filter(|interest| *interest != Interest::Broadcast)
            .collect();
        let added = self.shared.interests.lock().add(interests);
        match added {
            Added::Confirmed => ready(Ok(())).boxed(),
            Added::Down => {
                ready(Err(BusError::Unavailable("subscriptions are down".into()))).boxed()
            }
            Added::Waiting(told) => {
                self.shared.interests_changed.notify_one();
                let limit = self.shared.connector().timeout();
                async move {
                    match tokio::time::timeout(limit, told).await {
                        Ok(Ok(result)) => result,
                        Ok(Err(_)) => Err(BusError::Unavailable(
                            "the subscriber connection is replaced".into(),
                        )),
                        Err(_) => Err(BusError::Unavailable(
                            "Redis did not confirm in time".into(),
                        )),
                    }
                }
                .boxed()
            }
        }
    }

    fn unsubscribe(&self, interests: Vec<Interest>) {
        self.shared
            .interests
            .lock()
            .remove(interests, Instant::now());
        self.shared.interests_changed.notify_one();
    }

    fn ask<'a>(&'a self, question: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        async {
            let others = lease::others(&self.shared).await?;
            ask::ask(&self.shared, question, others).await
        }
        .boxed()
    }

    fn store_revocation<'a>(
        &'a self,
        revocation: &'a Revocation,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        revocations::store(&self.shared, revocation).boxed()
    }

    fn revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        revocations::load(&self.shared).boxed()
    }

    fn subscriber(&self) -> SubscriberState {
        self.shared.subscriber()
    }

    fn lag(&self) -> Option<Duration> {
        self.shared.intake.pinged().1
    }

    fn lease_lapsed(&self) -> bool {
        self.shared
            .lease()
            .is_none_or(|lease| lease.lapsed(self.shared.timing.lease))
    }

    fn status(&self) -> BusStatus {
        BusStatus {
            mode: self.shared.connector().mode(),
            nodes: self.shared.connector().nodes(),
            ..BusStatus::default()
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.closing.cancel();
        let mut closed = self.closed.clone();
        async move { drop(closed.wait_for(|closed| *closed).await) }.boxed()
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

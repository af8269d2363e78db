//! Live connections of this instance, in shards: each thread owns its connections, with its own lists of users and members.
//!
//! Input: sockets from [`crate::ws`], messages from [`crate::delivery`], commands from [`crate::api`]. Output: bytes on sockets. A message to
//! many is encoded once, queued to each connection by reference and then written with one call per connection, directly by the fan-out. Only what a
//! socket does not take waits. The hub never calls a session: it wakes the task of the connection.

mod batch;
mod counts;
mod directory;
mod limits;
mod link;
mod mailbox;
mod outbox;
mod shard;
mod threads;
mod turns;
mod wheel;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusError, Interest};
use crate::client::{ClientCounts, ClientInfo, ClientQuery, ClientSelector, MAX_LISTED};
use crate::clock::Clock;
use crate::config::{Live, MIN_MESSAGE_BYTES};
use crate::dispatch::{Audience, Destination, Dispatch, ResyncReason};
use crate::id::Id;
use crate::metrics::Metrics;
use crate::principal::Principal;
use crate::protocol::close::Close;
use crate::protocol::envelope;
use crate::protocol::event::{self, name};
use crate::protocol::{Message, SharedMessages};
use crate::revocation::Revocation;

use counts::ShardCounts;
use directory::{Directory, Holders};
use mailbox::Mailbox;
use shard::{Command, Control};
use turns::Turn;

pub use counts::Claim;
pub use limits::ConnectionLimits;
pub use link::{Link, Stage};
pub use outbox::{Bounds, Flushed};
pub use shard::{Joined, Shard, TooManyConnections};
pub use threads::Threads;
pub use turns::Turns;

/// How often a silent connection is looked for when the one that was found is silent no more.
const SILENT_TRIES: usize = 3;

/// How long the confirmation of a room may take before the client that joined it is told to sync afterwards.
const ROOM_WAIT: Duration = Duration::from_millis(250);

/// The state that all shards and handles share.
pub(crate) struct HubCore {
    directory: Directory,
    counts: Box<[ShardCounts]>,
    outbox_bytes: Arc<AtomicUsize>,
    live: watch::Receiver<Arc<Live>>,
    bus: Arc<dyn Bus>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    control: Handle,
    inlets: OnceLock<Arc<[Arc<Inlet>]>>,
}

impl HubCore {
    /// Subscribes to rooms that a client joined. No caller waits: until the server confirms it, messages to the room reach earlier members only, and a client
    /// for which that took long is told.
    fn subscribe(self: &Arc<Self>, client: Id, interests: Vec<Interest>) {
        let mut confirmed = self.bus.subscribe(interests);
        if let Some(Ok(())) = (&mut confirmed).now_or_never() {
            return;
        }
        let hub = Hub::of(self);
        self.control.spawn(async move {
            match tokio::time::timeout(ROOM_WAIT, &mut confirmed).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "rooms not subscribed: bus unavailable; subscribed when it is back");
                }
                Err(_) => hub.resync_after(client, confirmed).await,
            }
        });
    }

    fn unsubscribe(&self, interests: Vec<Interest>) {
        self.bus.unsubscribe(interests);
    }
}

/// How other threads reach a shard.
struct Inlet {
    mailbox: Mailbox<Command>,
    turn: Turn,
    /// A message found the mailbox full: every connection of the shard may have missed something.
    overflowed: AtomicBool,
}

impl Inlet {
    /// Gives the shard an encoded message. Never blocks.
    fn deliver(&self, dispatch: &Dispatch, message: Message) {
        let bytes = message.frame().len();
        let command = Command::Deliver {
            destination: dispatch.destination.clone(),
            message,
            exclude: Arc::clone(&dispatch.exclude),
            span: dispatch.span.clone(),
        };
        if !self.mailbox.push_message(command, bytes) {
            self.overflowed.store(true, Ordering::Release);
        }
    }
}

/// The handle to every shard's connections; cheap to clone, callable from any thread.
#[derive(Clone)]
pub struct Hub {
    core: Option<Arc<HubCore>>,
    inlets: Arc<[Arc<Inlet>]>,
}

/// What a hub is built from.
pub struct HubOptions {
    /// Limits, as they change.
    pub live: watch::Receiver<Arc<Live>>,
    /// Subscribes to what is held here.
    pub bus: Arc<dyn Bus>,
    /// Gives the times in lists of connections.
    pub clock: Arc<dyn Clock>,
    /// Counts connections and frames.
    pub metrics: Arc<Metrics>,
    /// Stops the shards.
    pub shutdown: CancellationToken,
}

impl Hub {
    fn of(core: &Arc<HubCore>) -> Self {
        Self {
            core: Some(Arc::clone(core)),
            inlets: core.inlets.get().cloned().unwrap_or_default(),
        }
    }

    /// Sends `resync` to a client once the bus has confirmed its subscriptions, for which nobody waited any longer: what was published before was missed
    /// (protocol.md 9.11).
    pub fn resync_when_confirmed(
        &self,
        client: Id,
        confirmed: BoxFuture<'static, Result<(), BusError>>,
    ) {
        if let Some(core) = &self.core {
            let hub = self.clone();
            core.control
                .spawn(async move { hub.resync_after(client, confirmed).await });
        }
    }

    async fn resync_after(&self, client: Id, confirmed: BoxFuture<'static, Result<(), BusError>>) {
        // Where the connection breaks first, everybody is told when it is there again.
        if confirmed.await.is_ok()
            && let Some(core) = &self.core
        {
            core.metrics.bus_late_subscriptions.inc();
            self.deliver(&Dispatch::new(
                Destination::Client(client),
                name::RESYNC,
                event::resync_data(ResyncReason::SubscribedLate),
            ));
        }
    }

    /// Returns what asks each shard, once in the interval, whether it turns.
    pub fn turns(&self, interval: Duration) -> Turns {
        Turns::new(&self.inlets, interval)
    }

    /// Creates a hub without shards, which holds nothing.
    pub fn none() -> Self {
        Self {
            core: None,
            inlets: Arc::new([]),
        }
    }

    /// Starts a shard on each of the threads. Must be called inside the control runtime.
    pub fn start(options: HubOptions, threads: &mut Threads) -> Self {
        let core = Arc::new(HubCore {
            directory: Directory::new(),
            counts: (0..threads.count())
                .map(|_| ShardCounts::default())
                .collect(),
            outbox_bytes: Arc::default(),
            live: options.live,
            bus: options.bus,
            clock: options.clock,
            metrics: options.metrics,
            control: Handle::current(),
            inlets: OnceLock::new(),
        });
        let inlets = threads.begin(&core, &options.shutdown);
        let _ = core.inlets.set(Arc::clone(&inlets));
        Self {
            core: Some(core),
            inlets,
        }
    }

    /// Gives a message to every local connection that it is for, and returns how many those are. An excluded client that is held here is not
    /// counted, whether or not it is in the room. Never blocks: a shard whose mailbox is full sends `resync` to its clients instead.
    pub fn deliver(&self, dispatch: &Dispatch) -> usize {
        let Some(core) = &self.core else { return 0 };
        let holders = self.holders(&dispatch.destination);
        let mut count: usize = holders.iter().map(|h| h.1 as usize).sum();
        if count == 0 {
            return 0;
        }
        let excluded = |id: &&Id| core.directory.holder_of_client(**id).is_some();
        count = count.saturating_sub(dispatch.exclude.iter().filter(excluded).count());
        let message = envelope::encode(&dispatch.event, dispatch.data_text());
        // Each shard gets its own copy, which it shares without atomic operations.
        let messages = std::iter::repeat_n(message, holders.len());
        for ((shard, _), message) in holders.into_iter().zip(messages) {
            self.inlets[usize::from(shard)].deliver(dispatch, message);
        }
        count
    }

    /// Does the same with a message of another instance, which came because somebody here subscribed to it. With one shard nobody asks the directory: the
    /// shard looks up the receivers in any case.
    pub fn receive(&self, dispatch: &Dispatch) {
        match &*self.inlets {
            [only] => only.deliver(
                dispatch,
                envelope::encode(&dispatch.event, dispatch.data_text()),
            ),
            _ => {
                self.deliver(dispatch);
            }
        }
    }

    /// Gives each user of an audience its message, as [`Hub::deliver`] does, and returns how many connections those are. Users that are not held here cost
    /// a look-up each.
    pub fn deliver_audience(&self, audience: &Audience<'_>) -> usize {
        let Some(core) = &self.core else { return 0 };
        let mut by_shard: SmallVec<[Option<Box<SharedMessages>>; 4]> =
            self.inlets.iter().map(|_| None).collect();
        let mut count = 0;
        for addressee in &audience.addressees {
            for (shard, connections) in core.directory.holders_of_user(addressee.user) {
                count += connections as usize;
                by_shard[usize::from(shard)]
                    .get_or_insert_with(|| {
                        Box::new(SharedMessages::new(Arc::clone(&audience.text)))
                    })
                    .push(addressee);
            }
        }
        for (inlet, messages) in self.inlets.iter().zip(by_shard) {
            let Some(messages) = messages else { continue };
            let bytes = messages.bytes();
            let command = Command::DeliverShared {
                messages,
                span: audience.span.clone(),
            };
            if !inlet.mailbox.push_message(command, bytes) {
                inlet.overflowed.store(true, Ordering::Release);
            }
        }
        count
    }

    /// Returns whether no message of an audience is longer than clients may get. Where one may be, each is to be checked by itself.
    pub fn fits(&self, audience: &Audience<'_>) -> bool {
        let longest = audience.longest();
        longest <= MIN_MESSAGE_BYTES
            || self
                .core
                .as_ref()
                .is_none_or(|core| longest <= core.live.borrow().limits.message_bytes)
    }

    /// Checks that a message is not longer than clients may get (`limits.message_bytes`). `from` says where it entered, for the metric.
    ///
    /// # Errors
    /// It is longer than this many bytes; it was counted and logged.
    pub fn check_length(&self, dispatch: &Dispatch, from: &'static str) -> Result<(), usize> {
        let bytes = envelope::encoded_length(&dispatch.event, dispatch.data_text());
        // The setting is never below this, and reading it takes a lock.
        if bytes <= MIN_MESSAGE_BYTES {
            return Ok(());
        }
        let Some(core) = &self.core else {
            return Ok(());
        };
        let most = core.live.borrow().limits.message_bytes;
        if bytes <= most {
            return Ok(());
        }
        core.metrics
            .messages_refused
            .get_or_create(&Metrics::kind(from))
            .inc();
        tracing::warn!(
            from,
            kind = dispatch.destination.kind(),
            bytes,
            "message refused: longer than limits.message_bytes"
        );
        Err(most)
    }

    fn holders(&self, destination: &Destination) -> Holders {
        let Some(core) = &self.core else {
            return Holders::new();
        };
        match destination {
            Destination::Broadcast => {
                let counts = core.counts.iter().enumerate();
                counts
                    .map(|(n, c)| (n as u16, c.authenticated.load(Ordering::Relaxed) as u32))
                    .filter(|h| h.1 > 0)
                    .collect()
            }
            Destination::Room(name) => {
                let mut holders = core.directory.holders_of_room(name);
                // A client id is the room of that client alone (protocol.md 5.7).
                let shard = name
                    .parse()
                    .ok()
                    .and_then(|id| core.directory.holder_of_client(id));
                holders.extend(shard.map(|shard| (shard, 1)));
                holders
            }
            Destination::Client(id) => {
                let shard = core.directory.holder_of_client(*id);
                shard.map(|shard| (shard, 1)).into_iter().collect()
            }
            Destination::User(user) => core.directory.holders_of_user(user),
        }
    }

    /// Returns whether a destination has a local connection.
    pub fn holds(&self, destination: &Destination) -> bool {
        !self.holders(destination).is_empty()
    }

    /// Counts the connections.
    pub fn counts(&self) -> ClientCounts {
        let Some(core) = &self.core else {
            return ClientCounts::default();
        };
        core.counts
            .iter()
            .fold(ClientCounts::default(), |sum, c| ClientCounts {
                total: sum.total + c.total.load(Ordering::Relaxed),
                authenticated: sum.authenticated + c.authenticated.load(Ordering::Relaxed),
                encrypted: sum.encrypted + c.encrypted.load(Ordering::Relaxed),
            })
    }

    /// Returns the bytes that wait to be written on the whole instance.
    pub fn outbox_bytes(&self) -> usize {
        self.core
            .as_ref()
            .map_or(0, |s| s.outbox_bytes.load(Ordering::Relaxed))
    }

    /// Gives a new socket, which `begin` owns, to the shard with the fewest connections, pending ones included. `begin` keeps the claim until the
    /// socket is a connection or gone. When the mailbox of the shard is full, the socket is dropped.
    pub fn place(&self, begin: impl FnOnce(&Rc<Shard>, Claim) + Send + 'static) {
        let Some(core) = &self.core else { return };
        let alive = core
            .counts
            .iter()
            .enumerate()
            .filter(|(index, _)| !self.inlets[*index].mailbox.is_closed());
        let fewest = alive.min_by_key(|(_, c)| {
            c.total.load(Ordering::Relaxed) + c.pending.load(Ordering::Relaxed)
        });
        if let Some((index, _)) = fewest {
            self.inlets[index]
                .mailbox
                .push_message(Command::Begin(Box::new(begin), Claim::new(core, index)), 0);
        }
    }

    async fn ask<T>(
        &self,
        shard: u16,
        control: impl FnOnce(oneshot::Sender<T>) -> Control,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        if !self.inlets[usize::from(shard)]
            .mailbox
            .push_command(Command::Control(control(reply)))
        {
            return None;
        }
        answer.await.ok()
    }

    async fn ask_all<T>(&self, mut control: impl FnMut(oneshot::Sender<T>) -> Control) -> Vec<T> {
        let mut answers = Vec::new();
        for inlet in self.inlets.iter() {
            let (reply, answer) = oneshot::channel();
            if inlet.mailbox.push_command(Command::Control(control(reply))) {
                answers.push(answer);
            }
        }
        futures_util::future::join_all(answers)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    fn shard_of(&self, client: Id) -> Option<u16> {
        self.core.as_ref()?.directory.holder_of_client(client)
    }

    /// Lists local connections in the order of the text of their ids.
    pub async fn list(&self, query: &ClientQuery) -> Vec<ClientInfo> {
        let mut clients: Vec<ClientInfo> = self
            .ask_all(|reply| Control::List(query.clone(), reply))
            .await
            .into_iter()
            .flatten()
            .collect();
        clients.sort_unstable_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
        clients.truncate(query.limit.clamp(1, MAX_LISTED));
        clients
    }

    /// Describes a local connection.
    pub async fn describe(&self, client: Id) -> Option<ClientInfo> {
        self.ask_all(|reply| Control::Describe(client, reply))
            .await
            .into_iter()
            .flatten()
            .next()
    }

    /// Closes local connections, and returns how many.
    pub async fn close(&self, selector: &ClientSelector, close: Close) -> usize {
        match selector {
            ClientSelector::Client(id) => self
                .ask_all(|reply| Control::CloseClient(*id, close, reply))
                .await
                .into_iter()
                .sum(),
            ClientSelector::User(user) => self
                .ask_all(|reply| Control::CloseUser(user.as_str().into(), close, reply))
                .await
                .into_iter()
                .sum(),
        }
    }

    /// Closes (4002) the oldest of a user's local connections from which nothing came for `silence`. Its place is free at once. Returns false if there is
    /// none.
    pub async fn replace_silent(&self, user: &Arc<str>, silence: Duration) -> bool {
        for _ in 0..SILENT_TRIES {
            let oldest = self
                .ask_all(|reply| Control::FindSilent(Arc::clone(user), silence, reply))
                .await
                .into_iter()
                .flatten()
                .min();
            let Some((_, shard, client)) = oldest else {
                return false;
            };
            // It may have ended or sent something since it was found.
            let closed = self.ask(shard, |reply| Control::CloseSilent(client, silence, reply));
            if closed.await == Some(true) {
                return true;
            }
        }
        false
    }

    /// Closes every local connection whose principal matches, and returns how many.
    pub async fn close_where(
        &self,
        matches: impl Fn(&Principal) -> bool + Clone + Send + 'static,
        close: Close,
    ) -> usize {
        self.ask_all(|reply| Control::CloseWhere(Box::new(matches.clone()), close, reply))
            .await
            .into_iter()
            .sum()
    }

    /// Closes every local connection whose token a revocation matches (4006), and returns how many.
    pub async fn revoke(&self, revocation: &Revocation) -> usize {
        self.close_where(revocation.matcher(), Close::Revoked).await
    }

    /// Withdraws trust in the tokens of the matching local connections, and returns how many: each gets `expiring`, and ends unless it refreshes.
    pub async fn withdraw_trust(
        &self,
        matches: impl Fn(&Principal) -> bool + Clone + Send + 'static,
    ) -> usize {
        self.ask_all(|reply| Control::WithdrawTrust(Box::new(matches.clone()), reply))
            .await
            .into_iter()
            .sum()
    }

    /// Closes `count` random authenticated connections with 4009, and returns how many.
    pub async fn shed(&self, count: usize) -> usize {
        self.close_some(count, true, Close::Rebalanced).await
    }

    /// Closes `count` random connections with 1001, and returns how many.
    pub async fn close_for_shutdown(&self, count: usize) -> usize {
        self.close_some(count, false, Close::ShuttingDown).await
    }

    /// Each shard closes its share of `count`, in proportion to its connections.
    async fn close_some(&self, count: usize, authenticated_only: bool, close: Close) -> usize {
        let Some(core) = &self.core else { return 0 };
        let held: Vec<usize> = core
            .counts
            .iter()
            .map(|c| c.total.load(Ordering::Relaxed))
            .collect();
        let total: usize = held.iter().sum();
        let mut left = count.min(total);
        let shares = held.iter().map(|held| {
            let share = (count.min(total) * held).div_ceil(total.max(1)).min(left);
            left -= share;
            share
        });
        let asked = shares
            .collect::<Vec<_>>()
            .into_iter()
            .enumerate()
            .map(|(shard, count)| {
                self.ask(shard as u16, move |reply| Control::CloseSome {
                    count,
                    authenticated_only,
                    close,
                    reply,
                })
            });
        futures_util::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .sum()
    }

    /// Joins rooms for a local connection, whatever the rules say. Returns the new rooms, or `None` if the client is not held here.
    pub async fn join(&self, client: Id, rooms: &[String]) -> Option<Vec<String>> {
        self.ask(self.shard_of(client)?, |reply| {
            Control::Join(client, rooms.to_vec(), reply)
        })
        .await?
    }

    /// Leaves rooms for a local connection. Returns the rooms it was in, or `None` if the client is not held here.
    pub async fn leave(&self, client: Id, rooms: &[String]) -> Option<Vec<String>> {
        self.ask(self.shard_of(client)?, |reply| {
            Control::Leave(client, rooms.to_vec(), reply)
        })
        .await?
    }
}

/// A bus that reaches no other instance.
#[cfg(test)]
async fn bus_for_tests(live: &watch::Receiver<Arc<Live>>, metrics: &Arc<Metrics>) -> Arc<dyn Bus> {
    let config = crate::config::Config::for_tests();
    let opened = crate::bus::open(crate::bus::BusOptions {
        config: config.redis,
        ids: config.ids,
        instance_name: String::new(),
        live: live.clone(),
        clock: Arc::new(crate::clock::SystemClock),
        metrics: Arc::clone(metrics),
        shutdown: CancellationToken::new(),
    });
    opened.await.unwrap().bus
}

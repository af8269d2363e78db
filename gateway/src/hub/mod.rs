//! Live connections of this instance, sharded: each thread owns its own, with its own lists of users and members.
//!
//! Input: sockets from [`crate::ws`], messages from [`crate::delivery`], commands from [`crate::api`]. Output: bytes on sockets. A message to N
//! people is encoded once, queued to each connection by reference and then written with one call per connection, straight from the fan-out; only what
//! a socket does not take waits. The hub never calls a session: it wakes the connection's task.

mod directory;
mod link;
mod mailbox;
mod outbox;
mod parcel;
mod shard;
mod wheel;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::runtime::{Handle, LocalOptions};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Interest};
use crate::client::{ClientCounts, ClientInfo, ClientQuery, ClientSelector, MAX_LISTED};
use crate::clock::Clock;
use crate::config::Live;
use crate::dispatch::{Destination, Dispatch, ResyncReason};
use crate::id::Id;
use crate::metrics::Metrics;
use crate::principal::Principal;
use crate::protocol::close::Close;
use crate::protocol::envelope;
use crate::revocation::Revocation;

use directory::{Directory, Holders};
use mailbox::Mailbox;
use shard::{Command, ShardCounts};

pub use link::{Link, Stage, read_now};
pub use outbox::{Bounds, Flushed};
pub use shard::{Caps, Claim, Shard, TooMany};

/// What all shards and handles share.
pub(crate) struct Shared {
    directory: Directory,
    counts: Box<[ShardCounts]>,
    outbox_bytes: Arc<AtomicUsize>,
    live: watch::Receiver<Arc<Live>>,
    bus: Arc<dyn Bus>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    control: Handle,
}

impl Shared {
    fn hear(&self, interests: Vec<Interest>) {
        // Nobody waits for a room's subscription: what is sent to it before the server has confirmed reaches those who joined before.
        let heard = self.bus.subscribe(interests);
        self.control.spawn(async move {
            if let Err(error) = heard.await {
                tracing::debug!(%error, "rooms will be heard when the bus is back");
            }
        });
    }

    fn unhear(&self, interests: Vec<Interest>) {
        self.bus.unsubscribe(interests);
    }
}

/// A shard's way in from other threads.
struct Inlet {
    mailbox: Mailbox<Command>,
    /// A delivery found the mailbox full: everyone of this shard may have missed something.
    overflowed: AtomicBool,
}

/// The handle to every shard's connections; cheap to clone, callable from any thread.
#[derive(Clone)]
pub struct Hub {
    shared: Option<Arc<Shared>>,
    inlets: Arc<[Arc<Inlet>]>,
}

/// What a hub is built from.
pub struct Parts {
    /// Limits, as they change.
    pub live: watch::Receiver<Arc<Live>>,
    /// Hears for what is held here.
    pub bus: Arc<dyn Bus>,
    /// Times in lists of connections.
    pub clock: Arc<dyn Clock>,
    /// ClientCounts.
    pub metrics: Arc<Metrics>,
    /// Stops the shards.
    pub shutdown: CancellationToken,
}

/// The threads that shards run on, each with a runtime of its own.
pub struct Threads(Vec<Thread>);

struct Thread {
    runtime: Handle,
    work: Option<oneshot::Sender<Work>>,
    ended: oneshot::Receiver<()>,
    thread: std::thread::JoinHandle<()>,
}

/// What a thread does once there is a hub.
struct Work {
    index: u16,
    shared: Arc<Shared>,
    inlet: Arc<Inlet>,
    shutdown: CancellationToken,
}

impl Drop for Work {
    /// Whatever way the thread ends, nobody waits for its answers.
    fn drop(&mut self) {
        self.inlet.mailbox.close();
    }
}

impl Threads {
    /// Starts so many threads, which wait for [`Hub::start`]. Dropped before that, they end.
    ///
    /// # Errors
    /// A thread or its runtime cannot be made.
    pub fn start(shards: usize) -> std::io::Result<Self> {
        (0..shards)
            .map(Thread::start)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The runtime of the one thread, where there is just one.
    pub fn only(&self) -> Option<Handle> {
        match &*self.0 {
            [only] => Some(only.runtime.clone()),
            _ => None,
        }
    }

    /// Ends when any thread has ended, asked or not.
    pub async fn any_ended(&mut self) {
        futures_util::future::select_all(self.0.iter_mut().map(|thread| &mut thread.ended))
            .await
            .0
            .ok();
    }

    /// Waits for all of them; says whether none panicked.
    pub fn join(self) -> bool {
        let panicked = self
            .0
            .into_iter()
            .filter_map(|thread| thread.thread.join().err())
            .count();
        panicked == 0
    }
}

impl Thread {
    fn start(index: usize) -> std::io::Result<Self> {
        let (work, begins) = oneshot::channel::<Work>();
        let (ends, ended) = oneshot::channel();
        // A runtime for what never leaves its thread is made on that thread.
        let (made, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(move || {
                // Whatever way this thread ends, the supervisor is told.
                let _ends: oneshot::Sender<()> = ends;
                match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default())
                {
                    Ok(runtime) => {
                        let _ = made.send(Ok(runtime.handle().clone()));
                        runtime.block_on(async {
                            let Ok(work) = begins.await else { return };
                            // A task like those of connections: to wake what `block_on` itself waits for costs a look at all sockets.
                            if let Err(error) = tokio::task::spawn_local(run(work)).await
                                && error.is_panic()
                            {
                                std::panic::resume_unwind(error.into_panic());
                            }
                        });
                        // What is left ends here, without waiting for the look-up of a name.
                        runtime.shutdown_background();
                    }
                    Err(error) => drop(made.send(Err(error))),
                }
            })?;
        let runtime = outcome
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread of a shard ended")))?;
        Ok(Self {
            runtime,
            work: Some(work),
            ended,
            thread,
        })
    }
}

impl Hub {
    /// A hub without shards: it holds nothing.
    pub fn none() -> Self {
        Self {
            shared: None,
            inlets: Arc::new([]),
        }
    }

    /// Has each of the threads run a shard. Must be called inside the control runtime.
    pub fn start(parts: Parts, threads: &mut Threads) -> Self {
        let shared = Arc::new(Shared {
            directory: Directory::new(),
            counts: threads.0.iter().map(|_| ShardCounts::default()).collect(),
            outbox_bytes: Arc::default(),
            live: parts.live,
            bus: parts.bus,
            clock: parts.clock,
            metrics: parts.metrics,
            control: Handle::current(),
        });
        let begin = |(index, thread): (usize, &mut Thread)| {
            let inlet = Arc::new(Inlet {
                mailbox: Mailbox::new(),
                overflowed: AtomicBool::new(false),
            });
            let work = Work {
                index: index as u16,
                shared: Arc::clone(&shared),
                inlet: Arc::clone(&inlet),
                shutdown: parts.shutdown.clone(),
            };
            if let Some(thread) = thread.work.take() {
                // A thread that is gone drops it, and with it closes its mailbox.
                let _ = thread.send(work);
            }
            inlet
        };
        let inlets = threads.0.iter_mut().enumerate().map(begin).collect();
        Self {
            shared: Some(shared),
            inlets,
        }
    }

    /// Hands a message to every local connection it is for; says how many those are, counted before exclusions of members that are not in the room.
    /// Never blocks: a shard that is too far behind tells its clients to resync instead.
    pub fn deliver(&self, dispatch: &Dispatch) -> usize {
        let Some(shared) = &self.shared else { return 0 };
        let holders = self.holders(&dispatch.destination);
        let mut count: usize = holders.iter().map(|h| h.1 as usize).sum();
        if count == 0 {
            return 0;
        }
        let excluded = |id: &&Id| {
            !shared
                .directory
                .holders(&Destination::Client(**id))
                .is_empty()
        };
        count = count.saturating_sub(dispatch.exclude.iter().filter(excluded).count());
        let message = envelope::encode(&dispatch.event, dispatch.data.get());
        let bytes = message.frame().len();
        // Each shard has bytes of its own, which it shares without atomic operations.
        let messages = std::iter::repeat_n(message, holders.len());
        for ((shard, _), message) in holders.into_iter().zip(messages) {
            let inlet = &self.inlets[usize::from(shard)];
            let (destination, exclude, span) = (
                dispatch.destination.clone(),
                Arc::clone(&dispatch.exclude),
                dispatch.span.clone(),
            );
            if !inlet.mailbox.push_message(
                Command::Deliver {
                    destination,
                    message,
                    exclude,
                    span,
                },
                bytes,
            ) {
                inlet.overflowed.store(true, Ordering::Release);
            }
        }
        count
    }

    fn holders(&self, destination: &Destination) -> Holders {
        let Some(shared) = &self.shared else {
            return Holders::new();
        };
        match destination {
            Destination::Broadcast => {
                let counts = shared.counts.iter().enumerate();
                counts
                    .map(|(n, c)| (n as u16, c.authenticated.load(Ordering::Relaxed) as u32))
                    .filter(|h| h.1 > 0)
                    .collect()
            }
            Destination::Room(name) => {
                let mut holders = shared.directory.holders(destination);
                // A client id is a room of its own, which nobody else may join.
                if let Ok(id) = name.parse() {
                    holders.extend(shared.directory.holders(&Destination::Client(id)));
                }
                holders
            }
            Destination::Client(_) | Destination::User(_) => shared.directory.holders(destination),
        }
    }

    /// Whether a destination has a local connection.
    pub fn holds(&self, destination: &Destination) -> bool {
        !self.holders(destination).is_empty()
    }

    /// How many connections there are.
    pub fn counts(&self) -> ClientCounts {
        let Some(shared) = &self.shared else {
            return ClientCounts::default();
        };
        shared
            .counts
            .iter()
            .fold(ClientCounts::default(), |sum, c| ClientCounts {
                total: sum.total + c.total.load(Ordering::Relaxed),
                authenticated: sum.authenticated + c.authenticated.load(Ordering::Relaxed),
                encrypted: sum.encrypted + c.encrypted.load(Ordering::Relaxed),
            })
    }

    /// Bytes that wait to be written on the whole instance.
    pub fn outbox_bytes(&self) -> usize {
        self.shared
            .as_ref()
            .map_or(0, |s| s.outbox_bytes.load(Ordering::Relaxed))
    }

    /// Chooses the shard with the fewest connections, those that are coming included, and has it begin with a socket that `begin` owns. The claim is
    /// kept for as long as the socket is neither a connection there nor gone. Under a flood of messages the socket is dropped.
    pub fn place(&self, begin: impl FnOnce(&Rc<Shard>, Claim) + Send + 'static) {
        let Some(shared) = &self.shared else { return };
        let alive = shared
            .counts
            .iter()
            .enumerate()
            .filter(|(index, _)| !self.inlets[*index].mailbox.is_closed());
        let fewest = alive.min_by_key(|(_, c)| {
            c.total.load(Ordering::Relaxed) + c.coming.load(Ordering::Relaxed)
        });
        if let Some((index, _)) = fewest {
            self.inlets[index].mailbox.push_message(
                Command::Begin(Box::new(begin), Claim::new(shared, index)),
                0,
            );
        }
    }

    async fn ask<T>(
        &self,
        shard: u16,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        if !self.inlets[usize::from(shard)]
            .mailbox
            .push_command(command(reply))
        {
            return None;
        }
        answer.await.ok()
    }

    async fn ask_all<T>(&self, mut command: impl FnMut(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let mut answers = Vec::new();
        for inlet in self.inlets.iter() {
            let (reply, answer) = oneshot::channel();
            if inlet.mailbox.push_command(command(reply)) {
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
        self.shared
            .as_ref()?
            .directory
            .holders(&Destination::Client(client))
            .first()
            .map(|h| h.0)
    }

    /// Local connections in the order of their ids' text.
    pub async fn list(&self, query: &ClientQuery) -> Vec<ClientInfo> {
        let mut clients: Vec<ClientInfo> = self
            .ask_all(|reply| Command::List(query.clone(), reply))
            .await
            .into_iter()
            .flatten()
            .collect();
        clients.sort_unstable_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
        clients.truncate(query.limit.clamp(1, MAX_LISTED));
        clients
    }

    /// One local connection.
    pub async fn describe(&self, client: Id) -> Option<ClientInfo> {
        self.ask_all(|reply| Command::Describe(client, reply))
            .await
            .into_iter()
            .flatten()
            .next()
    }

    /// Closes local connections; says how many.
    pub async fn close(&self, selector: &ClientSelector, close: Close) -> usize {
        match selector {
            ClientSelector::Client(id) => self
                .ask_all(|reply| Command::CloseClient(*id, close, reply))
                .await
                .into_iter()
                .sum(),
            ClientSelector::User(user) => self
                .ask_all(|reply| Command::CloseUser(user.as_str().into(), close, reply))
                .await
                .into_iter()
                .sum(),
        }
    }

    /// Closes every local connection whose principal matches; says how many.
    pub async fn close_where(
        &self,
        matches: impl Fn(&Principal) -> bool + Clone + Send + 'static,
        close: Close,
    ) -> usize {
        self.ask_all(|reply| Command::CloseWhere(Box::new(matches.clone()), close, reply))
            .await
            .into_iter()
            .sum()
    }

    /// Closes every local connection whose token a revocation matches (4006); says how many.
    pub async fn revoke(&self, revocation: &Revocation) -> usize {
        let revocation = revocation.clone();
        self.close_where(
            move |principal| revocation.matches(principal),
            Close::Revoked,
        )
        .await
    }

    /// Tells every local connection whose principal matches that its token ends soon; says how many.
    pub async fn announce_end(
        &self,
        matches: impl Fn(&Principal) -> bool + Clone + Send + 'static,
    ) -> usize {
        self.ask_all(|reply| Command::Fallen(Box::new(matches.clone()), reply))
            .await
            .into_iter()
            .sum()
    }

    /// Closes `count` random authenticated connections with 4009; says how many.
    pub async fn shed(&self, count: usize) -> usize {
        self.close_some(count, true, Close::Rebalanced).await
    }

    /// Closes `count` random connections with 1001; says how many.
    pub async fn close_for_shutdown(&self, count: usize) -> usize {
        self.close_some(count, false, Close::ShuttingDown).await
    }

    /// Each shard closes its part of `count`, in proportion to what it holds.
    async fn close_some(&self, count: usize, authenticated_only: bool, close: Close) -> usize {
        let Some(shared) = &self.shared else { return 0 };
        let held: Vec<usize> = shared
            .counts
            .iter()
            .map(|c| c.total.load(Ordering::Relaxed))
            .collect();
        let total: usize = held.iter().sum();
        let mut left = count.min(total);
        let parts = held.iter().map(|held| {
            let part = (count.min(total) * held).div_ceil(total.max(1)).min(left);
            left -= part;
            part
        });
        let asked = parts
            .collect::<Vec<_>>()
            .into_iter()
            .enumerate()
            .map(|(shard, count)| {
                self.ask(shard as u16, move |reply| Command::CloseSome {
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

    /// Puts a local connection into rooms, past the ACL; `None` if it is not held here, else the rooms that are new to it.
    pub async fn join(&self, client: Id, rooms: &[String]) -> Option<Vec<String>> {
        self.ask(self.shard_of(client)?, |reply| {
            Command::Join(client, rooms.to_vec(), reply)
        })
        .await?
    }

    /// Takes a local connection out of rooms; `None` if it is not held here, else the rooms it was in.
    pub async fn leave(&self, client: Id, rooms: &[String]) -> Option<Vec<String>> {
        self.ask(self.shard_of(client)?, |reply| {
            Command::Leave(client, rooms.to_vec(), reply)
        })
        .await?
    }
}

/// Room for so many commands is kept between batches.
const KEPT_BATCH: usize = 4096;

async fn run(work: Work) {
    let Work {
        index,
        shared,
        inlet,
        shutdown,
    } = &work;
    let shard = Shard::new(*index, Arc::clone(shared));
    let mut live = shared.live.clone();
    let mut turning = tokio::task::spawn_local(Rc::clone(&shard).turn());
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            () = inlet.mailbox.take(&mut batch) => {
                shard.perform(&mut batch).await;
                // A mailbox that is never empty leaves time for everybody else.
                tokio::task::coop::consume_budget().await;
                if batch.capacity() > KEPT_BATCH {
                    batch = Vec::new();
                }
                if inlet.overflowed.swap(false, Ordering::Acquire) {
                    shard.resync(ResyncReason::Overloaded).await;
                }
            }
            Ok(()) = live.changed() => shard.reload(),
            ended = &mut turning => match ended {
                Ok(never) => match never {},
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => return,
            },
            () = shutdown.cancelled() => return,
        }
    }
}

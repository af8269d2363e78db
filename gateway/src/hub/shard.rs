//! The connections of one thread: by slot, by client, by user, by room. Everything here is reached from that thread alone, so nothing is locked.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker, ready};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rand::Rng;
use rustc_hash::FxBuildHasher;
use slab::Slab;
use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tracing::Span;

use super::Shared;
use super::link::{Link, Seat, Stage};
use super::outbox::{Bounds, Flushed};
use super::parcel::{Burst, Parcel};
use super::wheel::Wheel;
use crate::client::{ClientInfo, ClientQuery, MAX_LISTED};
use crate::config::Live;
use crate::dispatch::{Destination, ResyncReason};
use crate::id::Id;
use crate::principal::Principal;
use crate::protocol::Message;
use crate::protocol::close::Close;
use crate::protocol::event;
use crate::protocol::room::DEFAULT_ROOMS;

/// How many connections are written to before the shard lets others run.
const FLUSHES_PER_TURN: usize = 512;
/// How many messages, or bytes of them, are queued before they are written: a burst leaves together, and a reader that keeps up is never taken for slow.
const MESSAGES_PER_FLUSH: usize = 64;
const BYTES_PER_FLUSH: usize = 128 * 1024;

/// How many sockets are begun before the shard lets others run.
const BEGUN_PER_TURN: usize = 64;

/// What to do with a socket on the shard that it was placed on.
pub(super) type Begin = Box<dyn FnOnce(&Rc<Shard>, Claim) + Send>;

/// A socket that was placed on a shard and is not a connection yet, for as long as it is kept: counted when the next one is placed.
pub struct Claim {
    shared: Arc<Shared>,
    shard: usize,
}

impl Claim {
    pub(super) fn new(shared: &Arc<Shared>, shard: usize) -> Self {
        shared.counts[shard].coming.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(shared),
            shard,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.counts[self.shard]
            .coming
            .fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which connections a command is about.
pub(super) type Predicate = Box<dyn Fn(&Principal) -> bool + Send>;

/// What other threads ask of a shard.
pub(super) enum Command {
    Begin(Begin, Claim),
    Deliver {
        destination: Destination,
        message: Message,
        exclude: Arc<[Id]>,
        span: Span,
    },
    CloseClient(Id, Close, oneshot::Sender<usize>),
    CloseUser(Arc<str>, Close, oneshot::Sender<usize>),
    CloseWhere(Predicate, Close, oneshot::Sender<usize>),
    /// Tells those whose token rests on a source or key that is gone.
    Fallen(Predicate, oneshot::Sender<usize>),
    /// Closes so many at random; only authenticated ones, or any.
    CloseSome {
        count: usize,
        authenticated_only: bool,
        close: Close,
        reply: oneshot::Sender<usize>,
    },
    List(ClientQuery, oneshot::Sender<Vec<ClientInfo>>),
    Describe(Id, oneshot::Sender<Option<ClientInfo>>),
    Join(Id, Vec<String>, oneshot::Sender<Option<Vec<String>>>),
    Leave(Id, Vec<String>, oneshot::Sender<Option<Vec<String>>>),
}

#[derive(Debug)]
struct Room {
    name: Arc<str>,
    members: Vec<u32>,
}

/// The user has as many connections as one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

type Slots = SmallVec<[u32; 2]>;

/// The connections of one thread.
pub struct Shard {
    index: u16,
    shared: Arc<Shared>,
    links: RefCell<Slab<Rc<Link>>>,
    by_client: RefCell<HashMap<Id, u32, FxBuildHasher>>,
    by_user: RefCell<HashMap<Arc<str>, Slots, FxBuildHasher>>,
    rooms: RefCell<Slab<Room>>,
    by_room: RefCell<HashMap<Arc<str>, u32, FxBuildHasher>>,
    wheel: RefCell<Wheel>,
    /// The tick that the wheel's timer is set for, and whom to wake for an earlier one.
    timed: Cell<u32>,
    timer: RefCell<Option<Waker>>,
    touched: RefCell<Vec<Rc<Link>>>,
    caps: Cell<Caps>,
}

impl Shard {
    pub(super) fn new(index: u16, shared: Arc<Shared>) -> Rc<Self> {
        let caps = Caps::of(&shared.live.borrow());
        Rc::new(Self {
            index,
            shared,
            links: RefCell::default(),
            by_client: RefCell::default(),
            by_user: RefCell::default(),
            rooms: RefCell::default(),
            by_room: RefCell::default(),
            wheel: RefCell::new(Wheel::new(Instant::now())),
            timed: Cell::new(u32::MAX),
            timer: RefCell::default(),
            touched: RefCell::default(),
            caps: Cell::new(caps),
        })
    }

    /// The live limits as of their last change.
    pub fn caps(&self) -> Caps {
        self.caps.get()
    }

    pub(super) fn reload(&self) {
        self.caps.set(Caps::of(&self.shared.live.borrow()));
    }

    /// Takes in a WebSocket, until [`Shard::forget`]. The socket is registered with this shard's runtime.
    pub fn adopt(&self, stream: TcpStream, peer: IpAddr, id: Id) -> Rc<Link> {
        let mut links = self.links.borrow_mut();
        let entry = links.vacant_entry();
        let slot = entry.key() as u32;
        let connected_at = self.shared.clock.now_ms();
        let link = Rc::new(Link::new(
            id,
            slot,
            peer,
            connected_at,
            stream,
            Arc::clone(&self.shared.outbox_bytes),
        ));
        entry.insert(Rc::clone(&link));
        self.by_client.borrow_mut().insert(id, slot);
        self.shared.counts[usize::from(self.index)]
            .total
            .fetch_add(1, Ordering::Relaxed);
        self.shared.metrics.connections.inc();
        link
    }

    /// Enters an authenticated connection under its client id, its user and the default rooms.
    pub fn admit(
        &self,
        link: &Rc<Link>,
        principal: Arc<Principal>,
        encrypted: bool,
    ) -> Result<(), TooMany> {
        let user = Arc::clone(&principal.subject);
        if !self.shared.directory.add(
            &Destination::User(Arc::clone(&user)),
            self.index,
            self.caps().per_user,
        ) {
            return Err(TooMany);
        }
        self.shared
            .directory
            .add(&Destination::Client(link.id), self.index, u32::MAX);
        self.by_user
            .borrow_mut()
            .entry(user)
            .or_default()
            .push(link.slot);
        *link.principal.borrow_mut() = Some(principal);
        for name in DEFAULT_ROOMS {
            self.enter(link, name, false);
        }
        self.shared.counts[usize::from(self.index)]
            .authenticated
            .fetch_add(1, Ordering::Relaxed);
        self.shared.metrics.authenticated.inc();
        if encrypted {
            self.shared.counts[usize::from(self.index)]
                .encrypted
                .fetch_add(1, Ordering::Relaxed);
            self.shared.metrics.encrypted.inc();
        }
        Ok(())
    }

    /// Another token of the same subject speaks for the connection.
    pub fn renew(&self, link: &Link, principal: Arc<Principal>) {
        *link.principal.borrow_mut() = Some(principal);
    }

    /// What the bus is to hear for an admitted connection.
    pub fn interests(&self, link: &Link) -> Vec<Destination> {
        let mut interests = vec![Destination::Client(link.id)];
        interests.extend(
            link.principal
                .borrow()
                .as_ref()
                .map(|p| Destination::User(Arc::clone(&p.subject))),
        );
        let rooms = self.rooms.borrow();
        interests.extend(
            link.seats
                .borrow()
                .iter()
                .map(|seat| Destination::Room(Arc::clone(&rooms[seat.room as usize].name))),
        );
        interests
    }

    /// Names of the rooms a connection is in.
    pub fn rooms_of(&self, link: &Link) -> Vec<String> {
        let rooms = self.rooms.borrow();
        link.seats
            .borrow()
            .iter()
            .map(|seat| rooms[seat.room as usize].name.to_string())
            .collect()
    }

    /// Names of the rooms it is in by right, the default ones excepted: they are left when the right ends.
    pub fn rooms_by_right(&self, link: &Link) -> Vec<String> {
        let rooms = self.rooms.borrow();
        let seats = link.seats.borrow();
        let names = seats
            .iter()
            .filter(|seat| !seat.granted)
            .map(|seat| &*rooms[seat.room as usize].name);
        names
            .filter(|name| !DEFAULT_ROOMS.contains(name))
            .map(str::to_owned)
            .collect()
    }

    /// Joins rooms, up to the limit per connection; says which are new. `granted` by an administrator, they are kept whatever the rules say.
    pub fn join(&self, link: &Rc<Link>, names: &[String], granted: bool) -> Vec<String> {
        let limit = self.caps().rooms;
        let may = |name: &str| match name.parse::<Id>() {
            // A client id is a room of its own: the client is in it from the start, and nobody else ever is.
            Ok(id) => {
                id != link.id
                    && self
                        .shared
                        .directory
                        .holders(&Destination::Client(id))
                        .is_empty()
            }
            Err(_) => true,
        };
        let enter = |name: &&String| {
            may(name) && link.seats.borrow().len() < limit && self.enter(link, name, granted)
        };
        let joined: Vec<String> = names.iter().filter(enter).cloned().collect();
        if !joined.is_empty() {
            self.shared.hear(
                joined
                    .iter()
                    .map(|name| Destination::Room(name.as_str().into()))
                    .collect(),
            );
        }
        joined
    }

    /// Leaves rooms; says which it was in.
    pub fn leave(&self, link: &Link, names: &[String]) -> Vec<String> {
        let left: Vec<String> = names
            .iter()
            .filter(|name| self.exit(link, name))
            .cloned()
            .collect();
        if !left.is_empty() {
            self.shared.unhear(
                left.iter()
                    .map(|name| Destination::Room(name.as_str().into()))
                    .collect(),
            );
        }
        left
    }

    fn enter(&self, link: &Link, name: &str, granted: bool) -> bool {
        let mut rooms = self.rooms.borrow_mut();
        let known = self.by_room.borrow().get(name).copied();
        let room = known.unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            let room = rooms.insert(Room {
                name: Arc::clone(&name),
                members: Vec::new(),
            }) as u32;
            self.by_room.borrow_mut().insert(name, room);
            room
        });
        let mut seats = link.seats.borrow_mut();
        if let Some(seat) = seats.iter_mut().find(|seat| seat.room == room) {
            seat.granted |= granted;
            return false;
        }
        let entered = &mut rooms[room as usize];
        seats.push(Seat {
            room,
            at: entered.members.len() as u32,
            granted,
        });
        entered.members.push(link.slot);
        self.shared.directory.add(
            &Destination::Room(Arc::clone(&entered.name)),
            self.index,
            u32::MAX,
        );
        true
    }

    fn exit(&self, link: &Link, name: &str) -> bool {
        let Some(room) = self.by_room.borrow().get(name).copied() else {
            return false;
        };
        let seat = {
            let mut seats = link.seats.borrow_mut();
            let Some(at) = seats.iter().position(|seat| seat.room == room) else {
                return false;
            };
            seats.swap_remove(at)
        };
        self.vacate(seat);
        true
    }

    /// Takes a seat out of its room; the last member moves into it.
    fn vacate(&self, seat: Seat) {
        let mut rooms = self.rooms.borrow_mut();
        let room = &mut rooms[seat.room as usize];
        room.members.swap_remove(seat.at as usize);
        if let Some(moved) = room.members.get(seat.at as usize) {
            let links = self.links.borrow();
            let mut seats = links[*moved as usize].seats.borrow_mut();
            if let Some(theirs) = seats.iter_mut().find(|s| s.room == seat.room) {
                theirs.at = seat.at;
            }
        }
        self.shared
            .directory
            .remove(&Destination::Room(Arc::clone(&room.name)), self.index);
        if room.members.is_empty() {
            let room = rooms.remove(seat.room as usize);
            self.by_room.borrow_mut().remove(&room.name);
        } else if room.members.capacity() > 64 && room.members.len() < room.members.capacity() / 4 {
            room.members.shrink_to_fit();
        }
    }

    /// Takes a connection out of everything it was entered in: nothing is delivered to it any more.
    pub fn withdraw(&self, link: &Link, encrypted: bool) {
        if link.principal.borrow().is_none() {
            return;
        }
        self.shared.unhear(self.interests(link));
        let seats = std::mem::take(&mut *link.seats.borrow_mut());
        for seat in seats {
            self.vacate(seat);
        }
        if let Some(principal) = link.principal.borrow_mut().take() {
            let mut users = self.by_user.borrow_mut();
            if let Some(slots) = users.get_mut(&principal.subject) {
                slots.retain(|slot| *slot != link.slot);
                if slots.is_empty() {
                    users.remove(&principal.subject);
                }
            }
            self.shared.directory.remove(
                &Destination::User(Arc::clone(&principal.subject)),
                self.index,
            );
        }
        self.shared
            .directory
            .remove(&Destination::Client(link.id), self.index);
        self.shared.counts[usize::from(self.index)]
            .authenticated
            .fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.authenticated.dec();
        if encrypted {
            self.shared.counts[usize::from(self.index)]
                .encrypted
                .fetch_sub(1, Ordering::Relaxed);
            self.shared.metrics.encrypted.dec();
        }
    }

    /// Forgets a connection whose task ends. [`Shard::withdraw`] came before.
    pub fn forget(&self, link: &Link) {
        self.links.borrow_mut().try_remove(link.slot as usize);
        self.by_client.borrow_mut().remove(&link.id);
        self.shared.counts[usize::from(self.index)]
            .total
            .fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.connections.dec();
    }

    /// Wakes the connection at or shortly after `at`, and not for what was asked before.
    pub fn wake_at(&self, link: &Link, at: Option<Instant>) {
        let mut wheel = self.wheel.borrow_mut();
        let due = at.map_or(u32::MAX, |at| wheel.tick_of(at));
        link.due.set(due);
        if due < link.looked_at.get() {
            let tick = wheel.schedule(link.slot, due);
            link.looked_at.set(tick);
            if tick < self.timed.get()
                && let Some(timer) = &*self.timer.borrow()
            {
                self.timed.set(tick);
                timer.wake_by_ref();
            }
        }
    }

    /// Turns the wheel for ever.
    pub(super) async fn turn(self: Rc<Self>) -> Infallible {
        let mut due = Vec::new();
        let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        poll_fn(|cx| {
            self.timer
                .borrow_mut()
                .get_or_insert_with(|| cx.waker().clone())
                .clone_from(cx.waker());
            loop {
                let Some((tick, at)) = self.wheel.borrow().next() else {
                    self.timed.set(u32::MAX);
                    return Poll::Pending;
                };
                self.timed.set(tick);
                if sleep.deadline() != at.into() {
                    sleep.as_mut().reset(at.into());
                }
                ready!(sleep.as_mut().poll(cx));
                self.wake_due(Instant::now(), &mut due);
            }
        })
        .await
    }

    /// Wakes every connection whose deadline has come.
    fn wake_due(&self, now: Instant, looks: &mut Vec<(u32, u32)>) {
        looks.clear();
        let mut wheel = self.wheel.borrow_mut();
        wheel.turn(now, looks);
        let links = self.links.borrow();
        for (slot, tick) in looks.drain(..) {
            let Some(link) = links.get(slot as usize) else {
                continue;
            };
            if link.looked_at.get() != tick {
                // A look before this one was asked for meanwhile, or another connection has the slot.
                continue;
            }
            link.looked_at.set(u32::MAX);
            let due = link.due.get();
            if wheel.has_passed(due) {
                link.wake();
            } else if due < u32::MAX {
                link.looked_at.set(wheel.schedule(slot, due));
            }
        }
    }

    /// Performs what other threads asked; messages are queued first and then written, one call per connection.
    pub(super) async fn perform(self: &Rc<Self>, batch: &mut Vec<Command>) {
        let started = Instant::now();
        // Each ends when what it stands for is written.
        let mut traced = Vec::new();
        let (mut delivered, mut messages, mut bytes, mut begun) = (0, 0, 0, 0);
        let mut commands = batch.drain(..).peekable();
        while let Some(command) = commands.next() {
            // What was asked before is done before: a message sent before a close arrives before it.
            let full = match &command {
                Command::Deliver { message, .. } => {
                    messages += 1;
                    bytes += message.frame().len();
                    messages > MESSAGES_PER_FLUSH || bytes > BYTES_PER_FLUSH
                }
                _ => messages > 0,
            };
            if full {
                self.flush_touched().await;
                (messages, bytes) = (0, 0);
            }
            match command {
                Command::Begin(begin, claim) => {
                    begin(self, claim);
                    begun += 1;
                    if begun % BEGUN_PER_TURN == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Command::Deliver {
                    destination,
                    message,
                    exclude,
                    span,
                } => {
                    traced.extend(Some(span).filter(|span| !span.is_disabled()));
                    let mut burst = Burst::new(message);
                    while messages < MESSAGES_PER_FLUSH
                        && let Some(next) = commands.next_if(|next| {
                            matches!(next, Command::Deliver { destination: to, message, exclude: but, .. }
                                if *to == destination && *but == exclude && burst.takes(message, BYTES_PER_FLUSH.saturating_sub(bytes)))
                        })
                    {
                        if let Command::Deliver { message, span, .. } = next {
                            messages += 1;
                            bytes += message.frame().len();
                            burst.push(message);
                            traced.extend(Some(span).filter(|span| !span.is_disabled()));
                        }
                    }
                    delivered += self.deliver(&destination, &burst.end(), &exclude);
                }
                Command::CloseClient(id, close, reply) => {
                    answer(reply, self.find(id).map_or(0, |link| order(&link, close)))
                }
                Command::CloseUser(user, close, reply) => {
                    let links = self.links.borrow();
                    let users = self.by_user.borrow();
                    let closed = users.get(&user).map_or(0, |slots| {
                        slots
                            .iter()
                            .map(|slot| order(&links[*slot as usize], close))
                            .sum()
                    });
                    answer(reply, closed);
                }
                Command::CloseWhere(matches, close, reply) => {
                    let links = self.links.borrow();
                    let matching = links.iter().filter(|(_, link)| {
                        link.principal.borrow().as_ref().is_some_and(|p| matches(p))
                    });
                    answer(reply, matching.map(|(_, link)| order(link, close)).sum());
                }
                Command::Fallen(matches, reply) => {
                    let links = self.links.borrow();
                    let matching = links.iter().filter(|(_, link)| {
                        link.principal.borrow().as_ref().is_some_and(|p| matches(p))
                    });
                    answer(reply, matching.map(|(_, link)| link.tell_fallen()).count());
                }
                Command::CloseSome {
                    count,
                    authenticated_only,
                    close,
                    reply,
                } => {
                    answer(reply, self.close_some(count, authenticated_only, close));
                }
                Command::List(query, reply) => answer(reply, self.list(&query)),
                Command::Describe(id, reply) => {
                    answer(reply, self.find(id).map(|link| self.info(&link)))
                }
                Command::Join(id, rooms, reply) => answer(
                    reply,
                    self.member(id).map(|link| self.join(&link, &rooms, true)),
                ),
                Command::Leave(id, rooms, reply) => {
                    answer(reply, self.member(id).map(|link| self.leave(&link, &rooms)))
                }
            }
        }
        self.flush_touched().await;
        drop(traced);
        if delivered > 0 {
            self.shared.metrics.frames_out.inc_by(delivered as u64);
            self.shared
                .metrics
                .fan_out_time
                .observe(started.elapsed().as_secs_f64());
        }
    }

    fn find(&self, id: Id) -> Option<Rc<Link>> {
        let slot = *self.by_client.borrow().get(&id)?;
        self.links.borrow().get(slot as usize).cloned()
    }

    fn member(&self, id: Id) -> Option<Rc<Link>> {
        self.find(id)
            .filter(|link| link.principal.borrow().is_some())
    }

    /// Queues messages to every connection they are for; says how many messages were queued.
    fn deliver(&self, destination: &Destination, parcel: &Parcel, exclude: &[Id]) -> usize {
        let links = self.links.borrow();
        let mut touched = self.touched.borrow_mut();
        let bounds = self.caps().outbox;
        let mut count = 0;
        let mut hand = |link: &Rc<Link>| {
            if link.principal.borrow().is_none()
                || (!exclude.is_empty() && exclude.contains(&link.id))
            {
                return;
            }
            match parcel {
                Parcel::One(message) => link.deliver(message, bounds),
                Parcel::Run(run) => link.deliver_run(run, bounds),
            }
            count += 1;
            if !link.touched.replace(true) {
                touched.push(Rc::clone(link));
            }
        };
        match destination {
            Destination::Client(id) => self
                .by_client
                .borrow()
                .get(id)
                .into_iter()
                .for_each(|slot| hand(&links[*slot as usize])),
            Destination::User(user) => {
                self.by_user
                    .borrow()
                    .get(user)
                    .into_iter()
                    .flatten()
                    .for_each(|slot| hand(&links[*slot as usize]));
            }
            Destination::Room(name) => {
                let room = self.by_room.borrow().get(name).copied();
                if let Some(room) = room {
                    self.rooms.borrow()[room as usize]
                        .members
                        .iter()
                        .for_each(|slot| hand(&links[*slot as usize]));
                }
                // A client id is a room of its own.
                let slot = name
                    .parse()
                    .ok()
                    .and_then(|id: Id| self.by_client.borrow().get(&id).copied());
                slot.into_iter()
                    .for_each(|slot| hand(&links[slot as usize]));
            }
            Destination::Broadcast => links.iter().for_each(|(_, link)| hand(link)),
        }
        for _ in 0..parcel.messages() {
            self.shared
                .metrics
                .fan_out
                .observe(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        }
        count * parcel.messages()
    }

    async fn flush_touched(&self) {
        let mut bytes = 0;
        let mut touched = std::mem::take(&mut *self.touched.borrow_mut());
        for (n, link) in touched.drain(..).enumerate() {
            if n > 0 && n % FLUSHES_PER_TURN == 0 {
                tokio::task::yield_now().await;
            }
            link.touched.set(false);
            // While the socket is blocked its own task goes on as soon as it takes more.
            if link.blocked_since().is_some() {
                link.account();
                continue;
            }
            match link.flush() {
                Ok((Flushed::All, written)) => bytes += written,
                Ok((Flushed::Blocked, written)) => {
                    bytes += written;
                    link.wake();
                }
                // The task finds the same error, and ends the connection.
                Err(_) => link.wake(),
            }
        }
        let mut kept = self.touched.borrow_mut();
        if kept.capacity() == 0 {
            *kept = touched;
        }
        if bytes > 0 {
            self.shared.metrics.bytes_out.inc_by(bytes as u64);
        }
    }

    fn close_some(&self, count: usize, authenticated_only: bool, close: Close) -> usize {
        let links = self.links.borrow();
        let mut candidates: Vec<&Rc<Link>> = links
            .iter()
            .map(|(_, link)| link)
            .filter(|link| {
                link.ordered().is_none()
                    && (!authenticated_only || link.principal.borrow().is_some())
            })
            .collect();
        let count = count.min(candidates.len());
        let mut random = rand::rng();
        for at in 0..count {
            let with = random.random_range(at..candidates.len());
            candidates.swap(at, with);
        }
        candidates[..count]
            .iter()
            .map(|link| order(link, close))
            .sum()
    }

    fn list(&self, query: &ClientQuery) -> Vec<ClientInfo> {
        let links = self.links.borrow();
        let room = query
            .room
            .as_deref()
            .map(|name| self.by_room.borrow().get(name).copied());
        if room == Some(None)
            && query
                .room
                .as_deref()
                .and_then(|name| name.parse().ok())
                .and_then(|id| self.member(id))
                .is_none()
        {
            return Vec::new();
        }
        let mut matching: Vec<&Rc<Link>> = links
            .iter()
            .map(|(_, link)| link)
            .filter(|link| {
                query
                    .after
                    .is_none_or(|after| link.id.as_str() > after.as_str())
            })
            .filter(|link| {
                query.user_id.as_deref().is_none_or(|user| {
                    link.principal
                        .borrow()
                        .as_ref()
                        .is_some_and(|p| &*p.subject == user)
                })
            })
            .filter(|link| match room {
                None => true,
                Some(Some(room)) => link.seats.borrow().iter().any(|seat| seat.room == room),
                Some(None) => query.room.as_deref() == Some(link.id.as_str()),
            })
            .collect();
        let limit = query.limit.clamp(1, MAX_LISTED);
        if matching.len() > limit {
            matching.select_nth_unstable_by(limit - 1, |a, b| a.id.as_str().cmp(b.id.as_str()));
            matching.truncate(limit);
        }
        matching.sort_unstable_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
        matching.into_iter().map(|link| self.info(link)).collect()
    }

    fn info(&self, link: &Link) -> ClientInfo {
        let now = self.shared.clock.now_ms();
        let stage = link.stage.get();
        let seen = now - i64::try_from(link.last_seen.get().elapsed().as_millis()).unwrap_or(0);
        ClientInfo {
            id: link.id,
            user_id: link
                .principal
                .borrow()
                .as_ref()
                .map(|p| p.subject.to_string()),
            state: stage.as_str().to_owned(),
            encrypted: stage == Stage::Encrypted,
            rooms: self.rooms_of(link),
            connected_at: rfc3339(link.connected_at_ms),
            last_seen_at: rfc3339(seen),
            address: Some(link.peer),
        }
    }

    /// Tells everyone here that messages may have been missed.
    pub(super) async fn resync(&self, reason: ResyncReason) {
        self.deliver(
            &Destination::Broadcast,
            &Parcel::One(Rc::new(event::resync(reason))),
            &[],
        );
        self.flush_touched().await;
    }
}

/// Whoever asked may have stopped waiting.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _ = reply.send(value);
}

fn order(link: &Rc<Link>, close: Close) -> usize {
    let first = link.ordered().is_none();
    link.order(close);
    usize::from(first)
}

fn rfc3339(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .unwrap_or_default()
        .to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// The live limits that connections go by, at hand without a lock.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Bounds of each outbox.
    pub outbox: Bounds,
    /// Longest message of a client in bytes.
    pub frame_bytes: usize,
    /// Frames per second of one connection; 0 for no limit.
    pub frames_per_second: u32,
    /// How many more may come at once.
    pub frame_burst: u32,
    /// Longest time a socket may take nothing.
    pub write_timeout: Duration,
    /// Rooms of one connection, the default ones included.
    pub rooms: usize,
    /// Connections of one user on this instance.
    pub per_user: u32,
}

impl Caps {
    fn of(live: &Live) -> Self {
        let (limits, rooms) = (&live.limits, &live.rooms);
        Self {
            outbox: Bounds {
                bytes: limits.send_queue.bytes,
                frames: limits.send_queue.frames,
            },
            frame_bytes: limits.frame_bytes,
            frames_per_second: limits.inbound_frames_per_second,
            frame_burst: limits.inbound_burst,
            write_timeout: Duration::from_millis(limits.send_queue.write_timeout_ms),
            rooms: rooms.max_per_connection,
            per_user: match u32::try_from(limits.connections_per_user) {
                Ok(0) | Err(_) => u32::MAX,
                Ok(limit) => limit,
            },
        }
    }
}

/// Connections of one shard, for everyone to read.
#[derive(Debug, Default)]
pub(super) struct ShardCounts {
    /// Sockets that are not connections yet.
    pub(super) coming: AtomicUsize,
    pub(super) total: AtomicUsize,
    pub(super) authenticated: AtomicUsize,
    pub(super) encrypted: AtomicUsize,
}

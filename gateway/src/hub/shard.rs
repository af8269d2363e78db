//! The connections of one thread: by slot, by client, by user, by room. No other thread reaches them, so nothing is locked.
//!
//! Input: sockets and commands of other threads, calls of the connections' own tasks. Output: queued and written messages. This file holds the index;
//! its folder holds what is done with it.

mod command;
mod fan_out;
mod index;
mod listing;
mod rooms;
mod timer;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Instant;

use slab::Slab;

use super::HubCore;
use super::counts::ShardCounts;
use super::limits::ConnectionLimits;
use super::link::Link;
use super::wheel::Wheel;
use crate::dispatch::Destination;
use crate::hash::HashMap;
use crate::id::Id;
use crate::principal::Principal;
use crate::protocol::room::DEFAULT_ROOMS;
use crate::stream::Stream;

pub(super) use command::{Command, Control};
use index::{ClientIndex, Links, UserIndex};
pub use rooms::Joined;
use rooms::Room;

/// The user has as many connections as the limits allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyConnections;

/// The connections of one thread.
pub struct Shard {
    index: u16,
    core: Arc<HubCore>,
    links: RefCell<Links>,
    by_client: RefCell<ClientIndex>,
    by_user: RefCell<UserIndex>,
    rooms: RefCell<Slab<Room>>,
    by_room: RefCell<HashMap<Arc<str>, u32>>,
    wheel: RefCell<Wheel>,
    /// The tick that the timer of the wheel is set for, and the task to wake for an earlier one.
    timed: Cell<u32>,
    timer: RefCell<Option<Waker>>,
    /// Connections with queued messages that are not written yet.
    touched: RefCell<Vec<Rc<Link>>>,
    limits: Cell<ConnectionLimits>,
}

impl Shard {
    pub(super) fn new(index: u16, core: Arc<HubCore>) -> Rc<Self> {
        let limits = ConnectionLimits::of(&core.live.borrow());
        Rc::new(Self {
            index,
            core,
            links: RefCell::default(),
            by_client: RefCell::default(),
            by_user: RefCell::default(),
            rooms: RefCell::default(),
            by_room: RefCell::default(),
            wheel: RefCell::new(Wheel::new(Instant::now())),
            timed: Cell::new(u32::MAX),
            timer: RefCell::default(),
            touched: RefCell::default(),
            limits: Cell::new(limits),
        })
    }

    /// Returns the live limits.
    pub fn limits(&self) -> ConnectionLimits {
        self.limits.get()
    }

    pub(super) fn reload(&self) {
        self.limits
            .set(ConnectionLimits::of(&self.core.live.borrow()));
    }

    /// Adds a WebSocket, until [`Shard::forget`]. The socket is registered with the runtime of this shard.
    pub fn adopt(&self, stream: Stream, peer: IpAddr, id: Id) -> Rc<Link> {
        let mut links = self.links.borrow_mut();
        let entry = links.vacant_entry();
        let slot = entry.key() as u32;
        let link = Rc::new(Link::new(
            id,
            slot,
            peer,
            stream,
            Arc::clone(&self.core.outbox_bytes),
        ));
        entry.insert(Rc::clone(&link));
        self.by_client.borrow_mut().insert(id, slot);
        self.counts().total.fetch_add(1, Ordering::Relaxed);
        self.core.metrics.connections.inc();
        link
    }

    /// Adds an authenticated connection to its client id, its user and the default rooms.
    ///
    /// # Errors
    /// The user has too many connections; nothing changed.
    pub fn admit(
        &self,
        link: &Rc<Link>,
        principal: Arc<Principal>,
        encrypted: bool,
    ) -> Result<(), TooManyConnections> {
        let user = Arc::clone(&principal.subject);
        let limit = self.limits().connections_per_user;
        if !self.core.directory.add_user(&user, self.index, limit) {
            return Err(TooManyConnections);
        }
        self.core.directory.add_client(link.id, self.index);
        link.membership.borrow_mut().principal = Some(principal);
        self.by_user
            .borrow_mut()
            .insert(&user, link.slot, &self.links.borrow());
        for name in DEFAULT_ROOMS {
            self.enter(link, name, false);
        }
        self.counts().authenticated.fetch_add(1, Ordering::Relaxed);
        self.core.metrics.authenticated.inc();
        if encrypted {
            self.counts().encrypted.fetch_add(1, Ordering::Relaxed);
            self.core.metrics.encrypted.inc();
        }
        Ok(())
    }

    /// Replaces the principal after a refresh.
    pub fn renew(&self, link: &Link, principal: Arc<Principal>) {
        link.membership.borrow_mut().principal = Some(principal);
    }

    /// Returns what the bus is to subscribe to for an admitted connection.
    pub fn interests(&self, link: &Link) -> Vec<Destination> {
        let (rooms, membership) = (self.rooms.borrow(), link.membership.borrow());
        let user = membership.principal.as_ref();
        let user = user.map(|p| Destination::User(Arc::clone(&p.subject)));
        let rooms = membership
            .seats
            .iter()
            .map(|seat| Destination::Room(Arc::clone(&rooms[seat.room as usize].name)));
        std::iter::once(Destination::Client(link.id))
            .chain(user)
            .chain(rooms)
            .collect()
    }

    /// Removes a connection from its client id, its user and its rooms. Nothing is delivered to it any more.
    pub fn withdraw(&self, link: &Link, encrypted: bool) {
        if !link.is_member() {
            return;
        }
        self.core.unsubscribe(self.interests(link));
        let seats = std::mem::take(&mut link.membership.borrow_mut().seats);
        for seat in seats {
            self.vacate(seat);
        }
        let principal = link.membership.borrow().principal.clone();
        if let Some(principal) = principal {
            let user = &*principal.subject;
            self.by_user
                .borrow_mut()
                .remove(user, link.slot, &self.links.borrow());
            link.membership.borrow_mut().principal = None;
            self.core.directory.remove_user(user, self.index);
        }
        self.core.directory.remove_client(link.id);
        self.counts().authenticated.fetch_sub(1, Ordering::Relaxed);
        self.core.metrics.authenticated.dec();
        if encrypted {
            self.counts().encrypted.fetch_sub(1, Ordering::Relaxed);
            self.core.metrics.encrypted.dec();
        }
    }

    /// Forgets a connection whose task ends, after [`Shard::withdraw`].
    pub fn forget(&self, link: &Link) {
        self.links.borrow_mut().try_remove(link.slot as usize);
        self.by_client.borrow_mut().remove(link.id, link.slot);
        self.counts().total.fetch_sub(1, Ordering::Relaxed);
        self.core.metrics.connections.dec();
    }

    fn counts(&self) -> &ShardCounts {
        &self.core.counts[usize::from(self.index)]
    }

    fn find(&self, id: Id) -> Option<Rc<Link>> {
        let links = self.links.borrow();
        let slot = self.by_client.borrow().get(id, &links)?;
        links.get(slot as usize).cloned()
    }

    fn member(&self, id: Id) -> Option<Rc<Link>> {
        self.find(id).filter(|link| link.is_member())
    }
}

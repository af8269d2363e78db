//! The bounded table of sockets on which HTTP is spoken: requests that have not come whole, requests that are answered, idle connections.
//!
//! Input: each socket as it is accepted, and what it does then. Output: a place, or none; and the order to give a place up. A full table makes room for a
//! newcomer where that costs least: the oldest idle connection goes first, then the oldest unfinished request, at last the oldest answer, each of the
//! network that holds most, so that those who crowd push out themselves.
//!
//! Every step takes constant time, except that making room looks at each network once.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use slab::Slab;

use crate::peer::Network;

/// How many places there are.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// In all.
    pub total: usize,
    /// Of one network that is not a trusted proxy.
    pub per_network: usize,
    /// Whether a request that is being answered goes for every newcomer, when nothing else is left to give up. Without it one goes only for a network that
    /// holds fewer places, so that answers that nobody reads cannot take all of them, and an overload of one network does not undo its own work.
    pub evicts_serving: bool,
}

/// What a socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits for another request.
    Idle,
    /// A request has not come whole.
    Unfinished,
    /// A request is being answered.
    Serving,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// Every place is taken, and none can go.
    Full,
    /// Those of the network are.
    NetworkFull,
}

/// The order in which places go.
const ORDER: [Phase; 3] = [Phase::Idle, Phase::Unfinished, Phase::Serving];
/// Most sockets that are closed while their peers read why.
const LINGERING: usize = 1024;

/// The table.
#[derive(Debug, Default)]
pub struct Places {
    table: Mutex<Table>,
    lingering: AtomicUsize,
}

/// Counts a socket that was refused and lingers until its peer has read why.
#[derive(Debug)]
pub struct Lingering {
    places: Arc<Places>,
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.places.lingering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in the table, until it is dropped.
#[derive(Debug)]
pub struct ClaimedPlace {
    places: Arc<Places>,
    index: usize,
}

#[derive(Debug, Default)]
struct Table {
    entries: Slab<Entry>,
    holders: HashMap<Network, Holder>,
    /// Entries that are not evicted.
    held: usize,
}

#[derive(Debug)]
struct Entry {
    network: Network,
    phase: Phase,
    evicted: bool,
    /// Neighbours in the list of its network and phase.
    before: Option<usize>,
    after: Option<usize>,
    waker: Option<Waker>,
}

/// The places of one network.
#[derive(Debug)]
struct Holder {
    is_trusted: bool,
    held: usize,
    /// By phase, the oldest first.
    lists: [List; 3],
}

#[derive(Debug, Clone, Copy, Default)]
struct List {
    first: Option<usize>,
    last: Option<usize>,
}

impl Places {
    /// Takes a place for a socket of this network, whose request is unfinished. A trusted proxy speaks for many, so it has no bound of its own, and gives
    /// up its places last.
    ///
    /// # Errors
    /// Why there is none: nothing can be given up.
    pub fn claim(
        self: &Arc<Self>,
        network: Network,
        is_trusted: bool,
        bounds: Bounds,
    ) -> Result<ClaimedPlace, NoPlace> {
        let mut table = self.table.lock();
        let woken = table.make_room(network, is_trusted, bounds)?;
        let index = table.enter(network, is_trusted);
        drop(table);
        wake(woken);
        Ok(ClaimedPlace {
            places: Arc::clone(self),
            index,
        })
    }

    /// Permits a refused socket to linger; `None` when so many do that the next is closed at once.
    pub fn linger(self: &Arc<Self>) -> Option<Lingering> {
        let lingering = Lingering {
            places: Arc::clone(self),
        };
        (self.lingering.fetch_add(1, Ordering::Relaxed) < LINGERING).then_some(lingering)
    }

    /// Counts the places that are taken.
    pub fn held(&self) -> usize {
        self.table.lock().held
    }
}

impl ClaimedPlace {
    /// Says what the socket does; a change makes it the youngest of those that do the same.
    pub fn set(&self, phase: Phase) {
        self.places.table.lock().set(self.index, phase);
    }

    /// Moves the place to the network for which a proxy opened the socket.
    ///
    /// # Errors
    /// The network has as many places as it may have; the place stays where it was.
    pub fn move_to(
        &self,
        network: Network,
        is_trusted: bool,
        bounds: Bounds,
    ) -> Result<(), NoPlace> {
        let mut table = self.places.table.lock();
        let entry = &table.entries[self.index];
        if entry.evicted || entry.network == network {
            return Ok(());
        }
        // The place itself stays, so only the bound of the network can be reached.
        let woken = table.make_room(
            network,
            is_trusted,
            Bounds {
                total: usize::MAX,
                ..bounds
            },
        )?;
        table.leave(self.index);
        table.entries[self.index].network = network;
        table.join(self.index, is_trusted);
        drop(table);
        wake(woken);
        Ok(())
    }

    /// As [`Places::linger`].
    pub fn linger(&self) -> Option<Lingering> {
        self.places.linger()
    }

    /// Waits until the place has to be given up. Cancel safe; one task at a time.
    pub async fn evicted(&self) {
        poll_fn(|cx| self.poll_evicted(cx)).await;
    }

    /// As [`Self::evicted`].
    pub fn poll_evicted(&self, cx: &mut Context<'_>) -> Poll<()> {
        let entry = &mut self.places.table.lock().entries[self.index];
        if entry.evicted {
            return Poll::Ready(());
        }
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for ClaimedPlace {
    fn drop(&mut self) {
        let mut table = self.places.table.lock();
        if !table.entries[self.index].evicted {
            table.leave(self.index);
        }
        let entry = table.entries.remove(self.index);
        drop(table);
        drop(entry);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Table {
    /// Gives up a place if the bounds demand it, and returns who is to be told.
    fn make_room(
        &mut self,
        network: Network,
        is_trusted: bool,
        bounds: Bounds,
    ) -> Result<Option<Waker>, NoPlace> {
        let of_network = self.holders.get(&network).map_or(0, |holder| holder.held);
        let (victim, none) = if !is_trusted && of_network >= bounds.per_network {
            let own = self.holders.get(&network);
            let oldest = |phase: &Phase| own?.oldest(*phase);
            let victim = if bounds.evicts_serving {
                ORDER.iter().find_map(oldest)
            } else {
                ORDER[..2].iter().find_map(oldest)
            };
            (victim, NoPlace::NetworkFull)
        } else if self.held >= bounds.total {
            let oldest = |phase: &Phase| {
                let most = self.holds_most(*phase)?;
                let goes = *phase != Phase::Serving
                    || bounds.evicts_serving
                    || (!most.is_trusted && most.held > of_network + 1);
                most.oldest(*phase).filter(|_| goes)
            };
            (ORDER.iter().find_map(oldest), NoPlace::Full)
        } else {
            return Ok(None);
        };
        let victim = victim.ok_or(none)?;
        self.leave(victim);
        let entry = &mut self.entries[victim];
        entry.evicted = true;
        Ok(entry.waker.take())
    }

    /// Returns the network that holds most places, of those with one in this phase.
    fn holds_most(&self, phase: Phase) -> Option<&Holder> {
        let of_phase = |holder: &&Holder| holder.oldest(phase).is_some();
        let holders = self.holders.values().filter(of_phase);
        holders.max_by_key(|holder| (!holder.is_trusted, holder.held))
    }

    fn enter(&mut self, network: Network, is_trusted: bool) -> usize {
        let index = self.entries.insert(Entry {
            network,
            phase: Phase::Unfinished,
            evicted: false,
            before: None,
            after: None,
            waker: None,
        });
        self.join(index, is_trusted);
        index
    }

    /// Counts an entry for its network, as the youngest of its phase.
    fn join(&mut self, index: usize, is_trusted: bool) {
        let entry = &self.entries[index];
        let holder = self
            .holders
            .entry(entry.network)
            .or_insert_with(|| Holder::new(is_trusted));
        holder.is_trusted = is_trusted;
        holder.held += 1;
        self.held += 1;
        self.push(index);
    }

    /// The reverse of [`Self::join`].
    fn leave(&mut self, index: usize) {
        self.unlink(index);
        let network = self.entries[index].network;
        let holder = self.holders.get_mut(&network).expect("it counts the entry");
        holder.held -= 1;
        self.held -= 1;
        if holder.held == 0 {
            self.holders.remove(&network);
        }
    }

    fn set(&mut self, index: usize, phase: Phase) {
        let entry = &self.entries[index];
        if entry.evicted || entry.phase == phase {
            return;
        }
        self.unlink(index);
        self.entries[index].phase = phase;
        self.push(index);
    }

    fn list(&mut self, index: usize) -> &mut List {
        let entry = &self.entries[index];
        let holder = self.holders.get_mut(&entry.network);
        &mut holder.expect("it counts the entry").lists[entry.phase as usize]
    }

    fn push(&mut self, index: usize) {
        let list = self.list(index);
        let last = list.last.replace(index);
        list.first.get_or_insert(index);
        if let Some(last) = last {
            self.entries[last].after = Some(index);
        }
        self.entries[index].before = last;
        self.entries[index].after = None;
    }

    fn unlink(&mut self, index: usize) {
        let (before, after) = (self.entries[index].before, self.entries[index].after);
        match before {
            Some(before) => self.entries[before].after = after,
            None => self.list(index).first = after,
        }
        match after {
            Some(after) => self.entries[after].before = before,
            None => self.list(index).last = before,
        }
    }
}

impl Holder {
    fn new(is_trusted: bool) -> Self {
        Self {
            is_trusted,
            held: 0,
            lists: Default::default(),
        }
    }

    fn oldest(&self, phase: Phase) -> Option<usize> {
        self.lists[phase as usize].first
    }
}

#[cfg(test)]
mod tests;

//! One stream out of two servers: each message of an instance once, and in the order in which it was published. No IO, no clock.
//!
//! An instance that publishes to two servers gives each dispatch a number, the same on both and greater than the one before, and marks the copy on the
//! **complete** server: the one on which everything before these numbers came as well. Of two copies the first is taken; a number that is not greater
//! than the last one taken is a repeat. That alone would let the first dispatch on the new server overtake what the instance had published to the old
//! one alone. So the other stream of an instance is **held** until the complete server has brought the same number: by then it has brought everything
//! before it. A server that is down is not waited for, and no other longer than [`HOLD`].
//!
//! Input: what the two servers delivered. Output: what the hub receives.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::super::BusEvent;
use super::super::pubsub::{Origin, Received};
use super::super::wire::Bridged;
use crate::dispatch::ResyncReason;

/// Longest time a message is held. Tests against real servers are about what is not late: on a busy machine a second is no time.
pub(super) const HOLD: Duration = Duration::from_secs(if cfg!(test) { 20 } else { 1 });
/// Most messages held of one instance.
const MAX_HELD: usize = 16_384;
/// Most instances that are remembered: more than are ever alive at a time.
const MAX_INSTANCES: usize = 4096;

/// One server, by the order in which they were opened.
pub(super) type ServerId = u64;

/// Whether messages are waited for that a server may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerState {
    /// Its subscriber receives nothing.
    Down,
    /// Its subscriber is live, and everything it received was looked at.
    Up,
    /// It received something that was not looked at yet.
    Behind,
}

#[derive(Default)]
struct Publisher {
    /// The greatest number taken.
    last: u64,
    /// The server on which everything before `since` came, where that is known.
    complete: Option<ServerId>,
    /// The first number of the pair of servers in use.
    since: u64,
    /// Both streams have brought everything before `since`.
    caught_up: bool,
    held: VecDeque<(Option<u64>, BusEvent)>,
    /// When what is held is taken without waiting any longer.
    until: Option<Instant>,
}

/// The merge of two servers. It remembers each instance that publishes.
#[derive(Default)]
pub(super) struct Merge {
    servers: Vec<ServerId>,
    publishers: HashMap<Box<str>, Publisher>,
    /// How many publishers have something held.
    holding: usize,
    /// Repeats that were dropped.
    pub(super) repeats: u64,
}

impl Merge {
    /// Merges what this server delivers from here on.
    pub(super) fn attach(&mut self, server: ServerId) {
        self.servers.push(server);
    }

    /// Forgets a server that delivers no longer; what waited for it is taken.
    pub(super) fn detach(&mut self, server: ServerId, out: &mut Vec<BusEvent>) {
        self.servers.retain(|l| *l != server);
        for publisher in self.publishers.values_mut() {
            publisher.release(out);
            (publisher.complete, publisher.caught_up) = (None, false);
        }
        self.holding = 0;
    }

    /// Whether something is held.
    pub(super) fn is_holding(&self) -> bool {
        self.holding > 0
    }

    /// Takes what a server delivered.
    pub(super) fn take(
        &mut self,
        server: ServerId,
        received: Received,
        now: Instant,
        state: impl Fn(ServerId) -> ServerState,
        out: &mut Vec<BusEvent>,
    ) {
        let Received { event, origin } = received;
        let other = self.servers.iter().copied().find(|l| *l != server);
        let Some(Origin { instance, bridged }) =
            origin.filter(|origin| other.is_some() || origin.bridged.is_some())
        else {
            return out.push(event);
        };
        self.make_room(&instance);
        let publisher = self.publishers.entry(instance).or_default();
        let was_holding = publisher.until.is_some();
        match bridged {
            None => publisher.plain(event, server, out),
            Some(Bridged {
                number,
                since,
                is_complete,
            }) => {
                let complete = if is_complete { Some(server) } else { other };
                let settled = publisher.settle(complete, since);
                let repeat = number <= publisher.last;
                let waits = !settled
                    || complete.is_some_and(|complete| {
                        complete != server && state(complete) != ServerState::Down
                    });
                self.repeats += u64::from(repeat);
                match (repeat, waits && !publisher.caught_up) {
                    (true, _) => publisher.repeat(since, server),
                    (false, true) => publisher.hold(number, event, now),
                    (false, false) => publisher.take(number, event, server, out),
                }
            }
        }
        match (was_holding, publisher.until.is_some()) {
            (false, true) => self.holding += 1,
            (true, false) => self.holding -= 1,
            _ => {}
        }
    }

    /// Takes what was held for too long, and what waits for a server that is down.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        state: impl Fn(ServerId) -> ServerState,
        out: &mut Vec<BusEvent>,
    ) {
        let mut late = 0;
        for publisher in self.publishers.values_mut() {
            let Some(until) = publisher.until else {
                continue;
            };
            let goes_on = match publisher.complete.map_or(ServerState::Down, &state) {
                ServerState::Down => false,
                ServerState::Up => until > now,
                ServerState::Behind => publisher.held.len() < MAX_HELD,
            };
            if !goes_on {
                publisher.release(out);
                self.holding -= 1;
                late += 1;
            }
        }
        if late > 0 {
            tracing::warn!(
                instances = late,
                "messages of the other Redis are late: some may be missed, and clients are told to sync"
            );
            out.push(BusEvent::Resync(ResyncReason::BusMoved));
        }
    }

    fn make_room(&mut self, instance: &str) {
        if self.publishers.len() >= MAX_INSTANCES && !self.publishers.contains_key(instance) {
            self.publishers
                .retain(|_, publisher| publisher.until.is_some());
        }
    }
}

impl Publisher {
    /// A dispatch that was published to one server alone.
    fn plain(&mut self, event: BusEvent, server: ServerId, out: &mut Vec<BusEvent>) {
        if self.until.is_some() && self.complete != Some(server) {
            // It was published after what is held.
            return self.held.push_back((None, event));
        }
        (self.complete, self.caught_up) = (Some(server), false);
        out.push(event);
    }

    /// Notes the complete server. Where it is another one than before, the streams have to catch up once more. `false` while something from before is
    /// held.
    fn settle(&mut self, complete: Option<ServerId>, since: u64) -> bool {
        let is_new = since > self.since
            || (since == self.since && complete.is_some() && self.complete != complete);
        if is_new && self.until.is_none() {
            (self.complete, self.since, self.caught_up) = (complete, since, false);
        }
        !(is_new && self.until.is_some())
    }

    fn repeat(&mut self, since: u64, server: ServerId) {
        // The complete server is ahead of this stream, so everything before it has come.
        self.caught_up |= self.complete != Some(server) && since == self.since;
    }

    fn hold(&mut self, number: u64, event: BusEvent, now: Instant) {
        self.until.get_or_insert(now + HOLD);
        self.held.push_back((Some(number), event));
        if self.held.len() >= MAX_HELD {
            self.until = Some(now);
        }
    }

    fn take(&mut self, number: u64, event: BusEvent, server: ServerId, out: &mut Vec<BusEvent>) {
        self.last = number;
        out.push(event);
        if self.complete == Some(server) {
            let has_caught_up = self
                .held
                .front()
                .is_some_and(|(held, _)| held.is_some_and(|held| held <= number));
            if has_caught_up {
                self.release(out);
            }
        } else {
            self.caught_up = true;
        }
    }

    /// Takes what is held, without repeats: both streams have caught up.
    fn release(&mut self, out: &mut Vec<BusEvent>) {
        self.caught_up = true;
        self.until = None;
        for (number, event) in self.held.drain(..) {
            if number.is_none_or(|number| number > self.last) {
                self.last = number.unwrap_or(self.last);
                out.push(event);
            }
        }
    }
}

#[cfg(test)]
mod tests;

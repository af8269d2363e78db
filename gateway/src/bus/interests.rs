//! Which channels this instance wants: counted, and kept as state, so that every subscription can be made again on any connection. No IO.
//!
//! The hub calls [`Interests::add`] and [`Interests::remove`]. The task that talks to the server gets its next work from [`Interests::take`],
//! [`Interests::take_left`] and [`Interests::take_all`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{BusError, Interest};
use crate::hash::HashMap;
use crate::id::Id;

/// Waits until everything that was wanted at the time is confirmed, or cannot be.
pub(super) type Waiter = oneshot::Sender<Result<(), BusError>>;

/// What is known of an interest. Every connection has two of them.
struct Entry {
    count: u32,
    /// The number of its entry in [`Interests::leaving`] when the count fell to 0; an earlier entry there means nothing.
    departure: u16,
    confirmed: bool,
}

/// Interests by their kind. A key that is a name or an id alone makes an entry a quarter shorter.
#[derive(Default)]
struct Wanted {
    clients: HashMap<Id, Entry>,
    users: HashMap<Arc<str>, Entry>,
    rooms: HashMap<Arc<str>, Entry>,
    broadcast: Option<Entry>,
}

impl Wanted {
    fn get(&self, interest: &Interest) -> Option<&Entry> {
        match interest {
            Interest::Client(id) => self.clients.get(id),
            Interest::User(name) => self.users.get(name),
            Interest::Room(name) => self.rooms.get(name),
            Interest::Broadcast => self.broadcast.as_ref(),
        }
    }

    fn get_mut(&mut self, interest: &Interest) -> Option<&mut Entry> {
        match interest {
            Interest::Client(id) => self.clients.get_mut(id),
            Interest::User(name) => self.users.get_mut(name),
            Interest::Room(name) => self.rooms.get_mut(name),
            Interest::Broadcast => self.broadcast.as_mut(),
        }
    }

    fn insert(&mut self, interest: Interest, entry: Entry) {
        match interest {
            Interest::Client(id) => drop(self.clients.insert(id, entry)),
            Interest::User(name) => drop(self.users.insert(name, entry)),
            Interest::Room(name) => drop(self.rooms.insert(name, entry)),
            Interest::Broadcast => self.broadcast = Some(entry),
        }
    }

    fn remove(&mut self, interest: &Interest) -> Option<Entry> {
        match interest {
            Interest::Client(id) => self.clients.remove(id),
            Interest::User(name) => self.users.remove(name),
            Interest::Room(name) => self.rooms.remove(name),
            Interest::Broadcast => self.broadcast.take(),
        }
    }

    /// Forgets what nobody holds.
    fn forget_unwanted(&mut self) {
        self.clients.retain(|_, entry| entry.count > 0);
        self.users.retain(|_, entry| entry.count > 0);
        self.rooms.retain(|_, entry| entry.count > 0);
        self.broadcast.take_if(|entry| entry.count == 0);
    }

    /// Returns all, with how often each is wanted.
    fn iter(&self) -> impl Iterator<Item = (Interest, u32)> {
        let clients = self.clients.iter();
        let clients = clients.map(|(id, entry)| (Interest::Client(*id), entry.count));
        let users = self.users.iter();
        let users = users.map(|(name, entry)| (Interest::User(Arc::clone(name)), entry.count));
        let rooms = self.rooms.iter();
        let rooms = rooms.map(|(name, entry)| (Interest::Room(Arc::clone(name)), entry.count));
        let broadcast = self.broadcast.iter();
        let broadcast = broadcast.map(|entry| (Interest::Broadcast, entry.count));
        clients.chain(users).chain(rooms).chain(broadcast)
    }

    /// The server has forgotten all of them.
    fn unconfirm(&mut self) {
        let named = self.users.values_mut().chain(self.rooms.values_mut());
        let all = named.chain(self.clients.values_mut());
        all.chain(&mut self.broadcast)
            .for_each(|entry| entry.confirmed = false);
    }

    fn len(&self) -> usize {
        let named = self.users.len() + self.rooms.len();
        named + self.clients.len() + usize::from(self.broadcast.is_some())
    }
}

/// The state; the subscriber's task and the hub's threads share it behind a lock.
#[derive(Default)]
pub(super) struct Interests {
    wanted: Wanted,
    fresh: Vec<Interest>,
    leaving: VecDeque<(Instant, u16, Interest)>,
    /// How often any count fell to 0, counted around: within the lag nothing leaves so often that it would be taken for an earlier time.
    departures: u16,
    waiters: Vec<Waiter>,
    up: bool,
}

/// The outcome of [`Interests::add`].
pub(super) enum Added {
    /// The server has confirmed all of them already.
    Confirmed,
    /// The server will be asked; completes with its confirmation.
    Waiting(oneshot::Receiver<Result<(), BusError>>),
    /// There is no subscriber connection; they are kept.
    Down,
}

impl Interests {
    /// Counts interests.
    pub(super) fn add(&mut self, interests: Vec<Interest>) -> Added {
        let mut confirmed = true;
        for interest in interests {
            if let Some(entry) = self.wanted.get_mut(&interest) {
                entry.count += 1;
                confirmed &= entry.confirmed;
                continue;
            }
            let entry = Entry {
                count: 1,
                departure: 0,
                confirmed: false,
            };
            self.wanted.insert(interest.clone(), entry);
            self.fresh.push(interest);
            confirmed = false;
        }
        if !self.up {
            return Added::Down;
        }
        if confirmed {
            return Added::Confirmed;
        }
        let (waiter, confirmed) = oneshot::channel();
        self.waiters.push(waiter);
        Added::Waiting(confirmed)
    }

    /// Counts interests down.
    pub(super) fn remove(&mut self, interests: Vec<Interest>, now: Instant) {
        for interest in interests {
            let Some(entry) = self.wanted.get_mut(&interest) else {
                continue;
            };
            if entry.count == 0 {
                continue;
            }
            entry.count -= 1;
            if entry.count == 0 {
                self.departures = self.departures.wrapping_add(1);
                entry.departure = self.departures;
                self.leaving.push_back((now, self.departures, interest));
            }
        }
    }

    /// Takes what is to be subscribed next, and the callers that wait for it.
    pub(super) fn take(&mut self) -> (Vec<Interest>, Vec<Waiter>) {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|interest| match self.wanted.get(interest) {
            Some(entry) if entry.count == 0 && !entry.confirmed => {
                self.wanted.remove(interest);
                false
            }
            Some(entry) => !entry.confirmed,
            None => false,
        });
        (fresh, std::mem::take(&mut self.waiters))
    }

    /// Takes what has been unwanted for longer than `lag` and is to be unsubscribed.
    pub(super) fn take_left(&mut self, now: Instant, lag: Duration) -> Vec<Interest> {
        let mut left = Vec::new();
        while let Some((at, ..)) = self.leaving.front() {
            if *at + lag > now {
                break;
            }
            let Some((_, departure, interest)) = self.leaving.pop_front() else {
                break;
            };
            if self
                .wanted
                .get(&interest)
                .is_some_and(|entry| entry.count == 0 && entry.departure == departure)
            {
                let entry = self.wanted.remove(&interest);
                if entry.is_some_and(|entry| entry.confirmed) {
                    left.push(interest);
                }
            }
        }
        left
    }

    /// Returns when [`Interests::take_left`] has something next.
    pub(super) fn next_leave(&self, lag: Duration) -> Option<Instant> {
        self.leaving.front().map(|(at, ..)| *at + lag)
    }

    /// Takes all that a new connection has to subscribe, and the callers that wait for some of it. Forgets what is not wanted any more.
    pub(super) fn take_all(&mut self) -> (Vec<Interest>, Vec<Waiter>) {
        self.fresh.clear();
        self.leaving.clear();
        self.wanted.forget_unwanted();
        (
            self.wanted.iter().map(|(interest, _)| interest).collect(),
            std::mem::take(&mut self.waiters),
        )
    }

    /// Marks what the server has confirmed.
    pub(super) fn confirm(&mut self, interests: &[Interest]) {
        for interest in interests {
            if let Some(entry) = self.wanted.get_mut(interest) {
                entry.confirmed = true;
            }
        }
    }

    /// The connection has subscribed to everything: from here on `add` waits for confirmation.
    pub(super) fn up(&mut self) {
        self.up = true;
    }

    /// The connection is gone: nothing is confirmed, and those who wait get an error.
    pub(super) fn down(&mut self) {
        self.up = false;
        self.wanted.unconfirm();
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Err(BusError::Unavailable("subscriptions are down".into())));
        }
    }

    /// Returns everything that is wanted, as often as it is.
    pub(super) fn wanted(&self) -> Vec<Interest> {
        self.wanted
            .iter()
            .flat_map(|(interest, count)| std::iter::repeat_n(interest, count as usize))
            .collect()
    }

    /// Returns everything that is wanted, each once.
    pub(super) fn destinations(&self) -> Vec<Interest> {
        let wanted = self.wanted.iter().filter(|(_, count)| *count > 0);
        wanted.map(|(interest, _)| interest).collect()
    }

    /// Whether subscriptions are confirmed as they come.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Whether this is wanted or not yet unsubscribed.
    pub(super) fn is_wanted(&self, interest: &Interest) -> bool {
        self.wanted.get(interest).is_some()
    }

    /// Returns how many are wanted or not yet unsubscribed.
    pub(super) fn len(&self) -> usize {
        self.wanted.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAG: Duration = Duration::from_secs(2);

    fn room(name: &str) -> Interest {
        Interest::Room(name.into())
    }

    #[test]
    fn an_interest_and_what_is_known_of_it_take_24_bytes() {
        assert_eq!(size_of::<(Id, Entry)>(), 24);
        assert_eq!(size_of::<(Arc<str>, Entry)>(), 24);
    }

    fn up() -> Interests {
        let mut interests = Interests::default();
        interests.up();
        interests
    }

    #[test]
    fn an_interest_is_subscribed_once_and_unsubscribed_when_the_last_holder_left() {
        let (mut interests, now) = (up(), Instant::now());
        assert!(matches!(interests.add(vec![room("a")]), Added::Waiting(_)));
        assert!(matches!(
            interests.add(vec![room("a"), room("b")]),
            Added::Waiting(_)
        ));
        let (fresh, waiters) = interests.take();
        assert_eq!((fresh.len(), waiters.len()), (2, 2));
        interests.confirm(&fresh);
        assert!(matches!(interests.add(vec![room("b")]), Added::Confirmed));
        interests.remove(vec![room("a"), room("b"), room("never")], now);
        assert!(
            interests.take_left(now + LAG, LAG).is_empty(),
            "each is held once more"
        );
        interests.remove(vec![room("a")], now);
        assert!(interests.take_left(now, LAG).is_empty(), "it lags");
        assert_eq!(interests.next_leave(LAG), Some(now + LAG));
        assert_eq!(interests.take_left(now + LAG, LAG), [room("a")]);
        assert_eq!(interests.len(), 1);
    }

    #[test]
    fn an_interest_that_comes_right_back_stays_subscribed() {
        let (mut interests, now) = (up(), Instant::now());
        let _ = interests.add(vec![room("a")]);
        let (fresh, _) = interests.take();
        interests.confirm(&fresh);
        interests.remove(vec![room("a")], now);
        assert!(matches!(interests.add(vec![room("a")]), Added::Confirmed));
        assert!(interests.take_left(now + LAG, LAG).is_empty());
        let later = now + Duration::from_secs(1);
        interests.remove(vec![room("a")], later);
        assert!(
            interests.take_left(now + LAG, LAG).is_empty(),
            "the lag starts again"
        );
        assert_eq!(interests.take_left(later + LAG, LAG), [room("a")]);
    }

    #[test]
    fn an_interest_that_came_and_went_is_never_subscribed() {
        let (mut interests, now) = (up(), Instant::now());
        let _ = interests.add(vec![room("a")]);
        interests.remove(vec![room("a")], now);
        assert!(interests.take().0.is_empty());
        assert!(interests.take_left(now + LAG, LAG).is_empty());
        assert_eq!(interests.len(), 0);
    }

    #[test]
    fn a_new_connection_subscribes_all_that_is_wanted_and_waiters_of_the_old_one_get_an_error() {
        let (mut interests, now) = (up(), Instant::now());
        let Added::Waiting(mut confirmed) = interests.add(vec![room("a"), room("b")]) else {
            panic!("not waiting")
        };
        interests.down();
        assert!(matches!(
            confirmed.try_recv(),
            Ok(Err(BusError::Unavailable(_)))
        ));
        assert!(matches!(interests.add(vec![room("c")]), Added::Down));
        interests.remove(vec![room("b")], now);
        let (mut all, _) = interests.take_all();
        all.sort_by_key(|i| format!("{i:?}"));
        assert_eq!(all, [room("a"), room("c")]);
        interests.confirm(&all);
        interests.up();
        assert!(matches!(interests.add(all), Added::Confirmed));
        assert!(matches!(interests.add(vec![room("b")]), Added::Waiting(_)));
        assert_eq!(interests.take().0, [room("b")]);
    }
}

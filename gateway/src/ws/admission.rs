//! How fast WebSockets are opened: so many per second in all, and a fair share of them for each network.
//!
//! Input: the network of each opening handshake, the limits, the time. Output: whether it is completed now, when its turn comes, or not at all, and then
//! in how many seconds the client should come again. One network may have the whole rate while nobody else comes, because it may be a balancer behind
//! which everybody is. But a part of the burst is left to networks that have opened less than their share, so that a storm from one does not lock the
//! others out.
//!
//! As many as are opened in a second wait in a queue: most clients, browsers among them, never see an answer of 503. The others get times to come again
//! that together keep the rate. `Retry-After` knows whole seconds only, so those of one second come all at once; the queue takes them then.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

use crate::config::{Limits, Live};
use crate::peer::Network;
use crate::rate::{Rate, TokenBucket};

/// How many networks have shares of their own. More of them share one; which ones, nobody outside can tell.
const SHARES: usize = 1024;
/// The share of one network: this part of the rate and of the burst.
const SHARE: u32 = 8;
/// The part of the burst that is left to networks within their share.
const RESERVE: u32 = 4;
/// The longest time to come again, in seconds.
const HORIZON: usize = 32;
/// How long a handshake waits in the queue at most: twice as long as the queue holds, since networks within their share pass it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the first of the queue sleeps at least. What comes in meanwhile lets the next ones through as well.
const TURN: Duration = Duration::from_millis(1);

/// What was opened, who waits, and who was told to come again.
#[derive(Debug)]
pub(super) struct Admission {
    state: Mutex<State>,
    /// One permit: whoever holds it is the first of the queue. Those who wait for it get it in the order in which they came.
    first: Semaphore,
    /// Shows how many wait.
    waiting: Gauge,
}

#[derive(Debug)]
struct State {
    total: TokenBucket,
    shares: Box<[TokenBucket]>,
    hashes: RandomState,
    queued: usize,
    appointments: Appointments,
}

/// The answer to a handshake.
#[derive(Debug)]
pub(super) enum Admitted {
    /// It is completed.
    Now,
    /// It is completed when its turn comes.
    Queued(Queued),
}

/// A handshake in the queue, until it is dropped.
#[derive(Debug)]
pub(super) struct Queued {
    admission: Arc<Admission>,
    since: Instant,
}

impl Admission {
    pub(super) fn new(limits: &Limits, waiting: Gauge, now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                total: TokenBucket::full(total(limits), now),
                shares: vec![TokenBucket::full(share(limits), now); SHARES].into(),
                hashes: RandomState::new(),
                queued: 0,
                appointments: Appointments::new(now),
            }),
            first: Semaphore::new(1),
            waiting,
        }
    }

    /// Counts a handshake of this network.
    ///
    /// # Errors
    /// The queue is full: in how many seconds the client should come again.
    pub(super) fn admit(
        self: &Arc<Self>,
        network: Network,
        limits: &Limits,
        now: Instant,
    ) -> Result<Admitted, u32> {
        let mut state = self.state.lock();
        if state.admits(network, limits, now) {
            return Ok(Admitted::Now);
        }
        if state.queued >= room(limits) {
            return Err(state.appointments.next(limits.accepts_per_second, now));
        }
        state.queued += 1;
        self.waiting.inc();
        Ok(Admitted::Queued(Queued {
            admission: Arc::clone(self),
            since: now,
        }))
    }
}

impl State {
    fn admits(&mut self, network: Network, limits: &Limits, now: Instant) -> bool {
        let slot = self.hashes.hash_one(network) as usize % SHARES;
        let own = &mut self.shares[slot];
        if own.try_take(share(limits), now) {
            if self.total.try_take(total(limits), now) {
                return true;
            }
            own.give_back(share(limits));
        }
        // Nobody passes those who wait with more than their share.
        self.queued == 0
            && self
                .total
                .try_take_above(reserve(limits), total(limits), now)
    }

    /// Counts the first of the queue.
    ///
    /// # Errors
    /// It has to wait: for so long.
    fn admit_first(&mut self, limits: &Limits, now: Instant) -> Result<(), Duration> {
        let (rate, reserve) = (total(limits), reserve(limits));
        if self.total.try_take_above(reserve, rate, now) {
            Ok(())
        } else {
            Err(self.total.wait_above(reserve, rate, now))
        }
    }
}

impl Queued {
    /// Waits for the turn of this handshake. `live` gives the settings of the moment. Cancel safe: whoever is dropped leaves the queue.
    ///
    /// # Errors
    /// The turn did not come in time: in how many seconds the client should come again.
    pub(super) async fn turn(self, live: impl Fn() -> Arc<Live>) -> Result<(), u32> {
        let until = tokio::time::Instant::from_std(self.since + PATIENCE);
        if let Ok(()) = tokio::time::timeout_at(until, self.first(&live)).await {
            return Ok(());
        }
        let per_second = live().limits.accepts_per_second;
        let appointments = &mut self.admission.state.lock().appointments;
        Err(appointments.next(per_second, now()))
    }

    async fn first(&self, live: &impl Fn() -> Arc<Live>) {
        let admission = &self.admission;
        let _first = admission.first.acquire().await.expect("it is never closed");
        loop {
            let live = live();
            let admitted = admission.state.lock().admit_first(&live.limits, now());
            match admitted {
                Ok(()) => return,
                Err(wait) => tokio::time::sleep(wait.max(TURN)).await,
            }
        }
    }
}

/// Returns the time of the runtime, which is the time that it sleeps by.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.admission.state.lock().queued -= 1;
        self.admission.waiting.dec();
    }
}

/// Returns how many may wait: as many as are opened in a second, but no more than there are sockets for HTTP.
fn room(limits: &Limits) -> usize {
    (limits.accepts_per_second as usize).min(limits.http_connections_per_pod)
}

fn reserve(limits: &Limits) -> u32 {
    limits.accept_burst / RESERVE
}

fn total(limits: &Limits) -> Rate {
    Rate {
        per_second: f64::from(limits.accepts_per_second),
        burst: limits.accept_burst,
    }
}

fn share(limits: &Limits) -> Rate {
    Rate {
        per_second: f64::from(limits.accepts_per_second) / f64::from(SHARE),
        burst: limits.accept_burst / SHARE,
    }
}

/// For each of the next seconds, how many were told to come in it.
#[derive(Debug)]
struct Appointments {
    begun: Instant,
    /// The second up to which passed ones are forgotten.
    second: u64,
    counts: [u32; HORIZON],
}

impl Appointments {
    fn new(now: Instant) -> Self {
        Self {
            begun: now,
            second: 0,
            counts: [0; HORIZON],
        }
    }

    /// Returns the number of seconds, at least 1, after which fewer than `per_second` were told to come; a random one when there is none.
    fn next(&mut self, per_second: u32, now: Instant) -> u32 {
        let second = now.duration_since(self.begun).as_secs();
        let passed = second.saturating_sub(self.second).min(HORIZON as u64);
        for before in 0..passed {
            self.counts[slot(second - 1 - before)] = 0;
        }
        self.second = second;
        let free = (1..HORIZON as u64).find(|wait| self.counts[slot(second + wait)] < per_second);
        let wait = free.unwrap_or_else(|| rand::random_range(1..HORIZON as u64));
        let count = &mut self.counts[slot(second + wait)];
        *count = count.saturating_add(1);
        wait as u32
    }
}

fn slot(second: u64) -> usize {
    second as usize % HORIZON
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Live {
        let mut live = Live::defaults();
        let limits = &mut live.limits;
        (limits.accepts_per_second, limits.accept_burst) = (2000, 400);
        live
    }

    fn limits() -> Limits {
        live().limits
    }

    fn admission(limits: &Limits, now: Instant) -> Arc<Admission> {
        Arc::new(Admission::new(limits, Gauge::default(), now))
    }

    fn network(n: u8) -> Network {
        Network::of([192, 0, 2, n].into())
    }

    /// Whether a handshake is completed at once; one that is not leaves the queue again.
    fn is_now(admitted: Result<Admitted, u32>) -> bool {
        matches!(admitted, Ok(Admitted::Now))
    }

    fn queued(admitted: Result<Admitted, u32>) -> Option<Queued> {
        match admitted {
            Ok(Admitted::Queued(queued)) => Some(queued),
            _ => None,
        }
    }

    /// A crowd of one network that finds an empty queue: those who wait, and how many were told each number of seconds.
    fn crowd(
        admission: &Arc<Admission>,
        size: usize,
        limits: &Limits,
        now: Instant,
    ) -> (Vec<Queued>, usize, [u32; HORIZON]) {
        let (mut waiting, mut at_once, mut told) = (Vec::new(), 0, [0; HORIZON]);
        for _ in 0..size {
            match admission.admit(network(1), limits, now) {
                Ok(Admitted::Now) => at_once += 1,
                Ok(Admitted::Queued(queued)) => waiting.push(queued),
                Err(seconds) => told[seconds as usize] += 1,
            }
        }
        (waiting, at_once, told)
    }

    #[test]
    fn one_network_alone_gets_the_whole_rate() {
        let (limits, start) = (limits(), Instant::now());
        let admission = admission(&limits, start);
        let mut admitted = 0;
        for millis in 0..5000 {
            let now = start + Duration::from_millis(millis);
            admitted += (0..5)
                .filter(|_| is_now(admission.admit(network(1), &limits, now)))
                .count();
        }
        assert!((10_000..=10_400).contains(&admitted), "{admitted} in 5 s");
    }

    #[test]
    fn a_storm_of_one_network_leaves_the_others_their_share() {
        let (limits, start) = (limits(), Instant::now());
        let admission = admission(&limits, start);
        let mut waiting = Vec::new();
        for millis in 0..1000 {
            let now = start + Duration::from_millis(millis);
            waiting
                .extend((0..100).filter_map(|_| queued(admission.admit(network(1), &limits, now))));
            // Ten others, ten times a second each.
            if millis % 100 == 99 {
                for n in 2..12 {
                    let admitted = is_now(admission.admit(network(n), &limits, now));
                    // Two of eleven networks share a place with a chance of 5 in 100.
                    let state = admission.state.lock();
                    let slot = |n| state.hashes.hash_one(network(n)) as usize % SHARES;
                    assert!(admitted || slot(n) == slot(1), "{n} at {millis} ms");
                }
            }
        }
        assert_eq!(waiting.len(), 2000);
    }

    #[test]
    fn those_who_are_refused_come_again_at_the_rate() {
        let (limits, start) = (limits(), Instant::now());
        let admission = admission(&limits, start);
        let (waiting, at_once, told) = crowd(&admission, 5000, &limits, start);
        // A quarter of the burst is not for a crowd.
        assert_eq!((at_once, waiting.len()), (300, 2000));
        assert_eq!(told[..4], [0, 2000, 700, 0]);
        // Who comes later is told the same seconds, counted from then.
        let later = start + Duration::from_secs(1);
        let appointments = &mut admission.state.lock().appointments;
        assert_eq!(appointments.next(2000, later), 1);
        assert_eq!(appointments.counts[slot(2)], 701);
        let much_later = start + Duration::from_secs(1000);
        assert_eq!(appointments.next(2000, much_later), 1);
        assert_eq!(appointments.counts.iter().sum::<u32>(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_of_a_crowd_is_refused_twice_although_seconds_are_all_that_it_is_told() {
        let live = Arc::new(live());
        let admission = admission(&live.limits, now());
        let begun = now();
        let mut crowds = vec![(0, 5000)];
        let (mut opened, mut coming) = (0, tokio::task::JoinSet::new());
        while let Some((wait, size)) = crowds.pop() {
            // Everybody who was told a second comes at its beginning.
            tokio::time::sleep_until((begun + Duration::from_secs(wait)).into()).await;
            let (waiting, at_once, told) = crowd(&admission, size, &live.limits, now());
            assert!(
                wait == 0 || told.iter().sum::<u32>() == 0,
                "{told:?} after {wait} s"
            );
            opened += at_once;
            for queued in waiting {
                let live = Arc::clone(&live);
                coming.spawn(async move { queued.turn(|| Arc::clone(&live)).await });
            }
            let told = told.iter().enumerate().filter(|(_, told)| **told > 0);
            crowds.extend(
                told.rev()
                    .map(|(seconds, told)| (seconds as u64, *told as usize)),
            );
        }
        while let Some(turn) = coming.join_next().await {
            turn.unwrap().unwrap();
            opened += 1;
        }
        assert_eq!(opened, 5000);
        let took = now() - begun;
        assert!((2.3..2.8).contains(&took.as_secs_f64()), "{took:?}");
        assert_eq!(admission.waiting.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_keeps_its_order_and_the_rate_and_whoever_leaves_makes_room() {
        let mut live = live();
        (live.limits.accepts_per_second, live.limits.accept_burst) = (10, 1);
        let live = Arc::new(live);
        let admission = admission(&live.limits, now());
        assert!(is_now(admission.admit(network(1), &live.limits, now())));
        let (mut waiting, _, told) = crowd(&admission, 12, &live.limits, now());
        assert_eq!((waiting.len(), told[1]), (10, 2));
        drop(waiting.remove(3));
        assert_eq!(admission.waiting.get(), 9);
        waiting.extend(queued(admission.admit(network(2), &live.limits, now())));
        let begun = now();
        let (said, mut turns) = tokio::sync::mpsc::unbounded_channel();
        for (n, queued) in waiting.into_iter().enumerate() {
            let (live, said) = (Arc::clone(&live), said.clone());
            tokio::spawn(async move {
                queued.turn(|| Arc::clone(&live)).await.unwrap();
                said.send((n, now() - begun)).unwrap();
            });
        }
        for n in 0..10 {
            let (turn, after) = turns.recv().await.unwrap();
            assert_eq!(turn, n);
            let due = Duration::from_millis(100 * (n as u64 + 1));
            assert!(
                after >= due && after < due + Duration::from_millis(20),
                "{n}: {after:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_come_is_refused_with_a_time() {
        let mut live = live();
        (live.limits.accepts_per_second, live.limits.accept_burst) = (10, 1);
        let admission = admission(&live.limits, now());
        assert!(is_now(admission.admit(network(1), &live.limits, now())));
        let (waiting, _, _) = crowd(&admission, 10, &live.limits, now());
        // The rate falls meanwhile.
        live.limits.accepts_per_second = 1;
        let live = Arc::new(live);
        let mut coming = tokio::task::JoinSet::new();
        for queued in waiting {
            let live = Arc::clone(&live);
            coming.spawn(async move { queued.turn(|| Arc::clone(&live)).await });
        }
        let mut turns: Vec<_> = coming.join_all().await;
        turns.sort_unstable();
        assert_eq!(turns[..2], [Ok(()), Ok(())]);
        assert_eq!(turns[2..], (1..9).map(Err).collect::<Vec<_>>());
    }

    #[test]
    fn an_endless_crowd_gets_times_within_the_horizon() {
        let start = Instant::now();
        let mut appointments = Appointments::new(start);
        for _ in 0..1000 {
            let wait = appointments.next(10, start);
            assert!((1..HORIZON as u32).contains(&wait), "{wait}");
        }
    }

    #[test]
    fn small_limits_have_a_share_of_one() {
        let mut limits = limits();
        (limits.accepts_per_second, limits.accept_burst) = (1, 3);
        let start = Instant::now();
        let admission = admission(&limits, start);
        let admitted = (0..10).filter(|_| is_now(admission.admit(network(1), &limits, start)));
        assert_eq!(admitted.count(), 3);
    }
}

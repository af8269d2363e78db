//! How fast WebSockets are opened: so many per second in all, and a fair share of them for each network.
//!
//! Input: the network of each opening handshake, the limits, the time. Output: whether it may go on, or in how many seconds it should come again. One
//! network may have the whole rate while nobody else comes, because it may be a balancer behind which everybody is. But a part of the burst is left to
//! networks that have opened less than their share, so that a storm from one does not lock the others out. Those who are refused get times to come again
//! that together keep the rate.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use crate::config::Limits;
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

/// What was opened, and who was told to come again.
#[derive(Debug)]
pub(super) struct Admission {
    total: TokenBucket,
    shares: Box<[TokenBucket]>,
    hashes: RandomState,
    appointments: Appointments,
}

impl Admission {
    pub(super) fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            total: TokenBucket::full(total(limits), now),
            shares: vec![TokenBucket::full(share(limits), now); SHARES].into(),
            hashes: RandomState::new(),
            appointments: Appointments::new(now),
        }
    }

    /// Counts a WebSocket of this network.
    ///
    /// # Errors
    /// It has to wait: in how many seconds it should come again.
    pub(super) fn admit(
        &mut self,
        network: Network,
        limits: &Limits,
        now: Instant,
    ) -> Result<(), u32> {
        let rate = total(limits);
        let slot = self.hashes.hash_one(network) as usize % SHARES;
        let own = &mut self.shares[slot];
        let within_share = own.try_take(share(limits), now);
        let reserve = if within_share {
            0
        } else {
            limits.accept_burst / RESERVE
        };
        if self.total.try_take_above(reserve, rate, now) {
            return Ok(());
        }
        if within_share {
            own.give_back(share(limits));
        }
        Err(self.appointments.next(limits.accepts_per_second, now))
    }
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
    use std::time::Duration;

    use super::*;
    use crate::config::Live;

    fn limits() -> Limits {
        let mut limits = Live::defaults().limits;
        (limits.accepts_per_second, limits.accept_burst) = (2000, 400);
        limits
    }

    fn network(n: u8) -> Network {
        Network::of([192, 0, 2, n].into())
    }

    #[test]
    fn one_network_alone_gets_the_whole_rate() {
        let (limits, start) = (limits(), Instant::now());
        let mut admission = Admission::new(&limits, start);
        let mut admitted = 0;
        for millis in 0..5000 {
            let now = start + Duration::from_millis(millis);
            admitted += (0..5)
                .filter(|_| admission.admit(network(1), &limits, now).is_ok())
                .count();
        }
        assert!((10_000..=10_400).contains(&admitted), "{admitted} in 5 s");
    }

    #[test]
    fn a_storm_of_one_network_leaves_the_others_their_share() {
        let (limits, start) = (limits(), Instant::now());
        let mut admission = Admission::new(&limits, start);
        for millis in 0..1000 {
            let now = start + Duration::from_millis(millis);
            for _ in 0..100 {
                let _ = admission.admit(network(1), &limits, now);
            }
            // Ten others, ten times a second each.
            if millis % 100 == 99 {
                for n in 2..12 {
                    let admitted = admission.admit(network(n), &limits, now);
                    // Two of eleven networks share a place with a chance of 5 in 100.
                    let shared = admission.hashes.hash_one(network(n)) as usize % SHARES
                        == admission.hashes.hash_one(network(1)) as usize % SHARES;
                    assert!(admitted.is_ok() || shared, "{n} at {millis} ms");
                }
            }
        }
    }

    #[test]
    fn those_who_are_refused_come_again_at_the_rate() {
        let (limits, start) = (limits(), Instant::now());
        let mut admission = Admission::new(&limits, start);
        let mut told = [0; HORIZON];
        for _ in 0..5000 {
            if let Err(seconds) = admission.admit(network(1), &limits, start) {
                told[seconds as usize] += 1;
            }
        }
        assert_eq!(told[..4], [0, 2000, 2000, 700]);
        // Who comes later is told the same seconds, counted from then.
        let later = start + Duration::from_secs(2);
        let mut appointments = admission.appointments;
        assert_eq!(appointments.next(2000, later), 1);
        assert_eq!(appointments.counts[slot(3)], 701);
        let much_later = start + Duration::from_secs(1000);
        assert_eq!(appointments.next(2000, much_later), 1);
        assert_eq!(appointments.counts.iter().sum::<u32>(), 1);
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
        let mut admission = Admission::new(&limits, start);
        let admitted = (0..10).filter(|_| admission.admit(network(1), &limits, start).is_ok());
        assert_eq!(admitted.count(), 3);
    }
}

//! One token bucket for every rate limit: accepted connections of an instance, frames of a connection, failed attempts of an address.
//!
//! Input: the limit, which may differ from call to call because limits are live settings, and the monotonic time. Output: whether one more may
//! pass. No clock of its own, so tests pass any time; two words per bucket, because every connection has one.

use std::time::{Duration, Instant};

use crate::clock::Moment;

/// How fast a bucket fills, and how many tokens it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Tokens that come back per second.
    pub per_second: f64,
    /// Tokens of a full bucket; 0 counts as 1.
    pub burst: u32,
}

/// Tokens of which each event takes one.
#[derive(Debug, Clone, Copy)]
pub struct TokenBucket {
    tokens: f64,
    filled_at: Moment,
}

impl TokenBucket {
    /// Makes a full bucket.
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self {
            tokens: rate.capacity(),
            filled_at: now.into(),
        }
    }

    /// Takes a token and returns true, or returns false when there is none.
    pub fn try_take(&mut self, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    /// As [`Self::try_take`], but leaves at least `reserve` tokens.
    pub fn try_take_above(&mut self, reserve: u32, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now);
        let enough = self.tokens >= 1.0 + f64::from(reserve);
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    /// Returns how long it takes until there is a token; zero when there is one.
    pub fn wait(&mut self, rate: Rate, now: Instant) -> Duration {
        self.wait_above(0, rate, now)
    }

    /// Returns how long it takes until there is a token above the reserve; zero when there is one.
    pub fn wait_above(&mut self, reserve: u32, rate: Rate, now: Instant) -> Duration {
        self.fill(rate, now);
        let missing = (1.0 + f64::from(reserve) - self.tokens).max(0.0);
        Duration::try_from_secs_f64(missing / rate.per_second).unwrap_or(Duration::MAX)
    }

    /// Puts back a token that was taken for an event that does not count.
    pub fn give_back(&mut self, rate: Rate) {
        self.tokens = (self.tokens + 1.0).min(rate.capacity());
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let earned = now.duration_since(self.filled_at.instant()).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + earned).min(rate.capacity());
        self.filled_at = now.into();
    }
}

impl Rate {
    fn capacity(self) -> f64 {
        f64::from(self.burst.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 2.0,
        burst: 3,
    };

    #[test]
    fn a_burst_passes_and_then_only_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(RATE, start);
        for _ in 0..3 {
            assert!(bucket.try_take(RATE, start));
        }
        assert!(!bucket.try_take(RATE, start));
        let later = start + Duration::from_millis(500);
        assert!(bucket.try_take(RATE, later) && !bucket.try_take(RATE, later));
        let much_later = later + Duration::from_secs(3600);
        let passed = (0..10).filter(|_| bucket.try_take(RATE, much_later));
        assert_eq!(
            passed.count(),
            3,
            "a bucket never holds more than its burst"
        );
    }

    #[test]
    fn a_reserve_is_left_to_others() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(RATE, start);
        assert!(bucket.try_take_above(2, RATE, start));
        assert!(!bucket.try_take_above(2, RATE, start));
        assert!(bucket.try_take(RATE, start) && bucket.try_take(RATE, start));
    }

    #[test]
    fn a_refused_event_takes_nothing_and_a_token_can_be_given_back() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(RATE, start);
        while bucket.try_take(RATE, start) {}
        assert_eq!(bucket.wait(RATE, start), Duration::from_millis(500));
        bucket.give_back(RATE);
        assert_eq!(bucket.wait(RATE, start), Duration::ZERO);
        assert!(bucket.try_take(RATE, start) && !bucket.try_take(RATE, start));
    }

    #[test]
    fn a_changed_rate_holds_from_the_next_call() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(RATE, start);
        let smaller = Rate { burst: 1, ..RATE };
        assert!(bucket.try_take(smaller, start) && !bucket.try_take(smaller, start));
        let never = Rate {
            per_second: 0.0,
            burst: 0,
        };
        assert_eq!(bucket.wait(never, start), Duration::MAX);
    }
}

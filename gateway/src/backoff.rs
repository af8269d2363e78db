//! Growing delays between attempts: the one rule for everything in the gateway that tries again.
//!
//! Input: the first delay, and what failed. Output: how long to wait after each failure. What has to be done
//! again after a loss goes through [`until_done`]: a single attempt may meet a dependency that is back only a moment later. Where many wait for the same
//! dependency, they share a [`Dependency`].

mod dependency;

use std::fmt::Display;
use std::time::Duration;

use rand::Rng;

pub(crate) use dependency::Dependency;

/// The longest delay, unless a setting says otherwise. However long a dependency was away, what waits for it goes on within five seconds of its return.
const LONGEST: Duration = Duration::from_secs(4);

/// Delays that double from the first to the longest.
///
/// Each is spread at random between half of its length and all of it, so that instances that failed together do not come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Returns a backoff that has seen no failure. Its delays grow to four seconds.
    pub(crate) const fn new(first: Duration) -> Self {
        Self::between(first, LONGEST)
    }

    /// The same with another longest delay.
    pub(crate) const fn between(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// Counts a failure and returns how long to wait before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.next_delay_within(Duration::MAX)
    }

    /// Counts a failure and returns how long to wait, as if `limit` were the longest delay where it is shorter.
    pub(crate) fn next_delay_within(&mut self, limit: Duration) -> Duration {
        self.next_delay_by(limit, &mut rand::rng())
    }

    fn next_delay_by(&mut self, limit: Duration, random: &mut impl Rng) -> Duration {
        let doubled = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let longest = self.longest.min(limit);
        let whole = self.first.saturating_mul(doubled).min(longest);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(random.random_range(0.5..=1.0))
    }

    /// Logs that this work failed, and waits until the next attempt.
    pub(crate) fn pause_after(
        &mut self,
        what: &'static str,
        error: &impl Display,
    ) -> tokio::time::Sleep {
        let wait = self.next_delay();
        tracing::warn!(%error, retry_ms = wait.as_millis() as u64, "{what} failed; trying again");
        tokio::time::sleep(wait)
    }

    /// Returns how many failures were counted since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Begins with the first delay again, after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Makes attempts until one succeeds, however long it takes, and returns its value. Each failure is logged; `what` names the work, as in "reading
/// revocations". Dropping the future ends it.
pub(crate) async fn until_done<T, E: Display, F: Future<Output = Result<T, E>>>(
    mut backoff: Backoff,
    what: &'static str,
    mut attempt: impl FnMut() -> F,
) -> T {
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => backoff.pause_after(what, &error).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn delays_double_to_the_longest_and_are_spread_over_their_upper_half() {
        let ms = Duration::from_millis;
        for seed in 0..100 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::between(ms(200), ms(1000));
            for whole in [200, 400, 800, 1000, 1000] {
                let delay = backoff.next_delay_by(Duration::MAX, &mut random);
                assert!(
                    delay >= ms(whole) / 2 && delay <= ms(whole),
                    "{delay:?} of {whole}"
                );
            }
            assert_eq!(backoff.failures(), 5);
            backoff.reset();
            assert!(backoff.next_delay_by(Duration::MAX, &mut random) <= ms(200));
            assert!(backoff.next_delay_by(ms(50), &mut random) <= ms(50));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_be_done_is_tried_until_it_is() {
        let began = tokio::time::Instant::now();
        let backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(1));
        let mut attempts = 0;
        let value = until_done(backoff, "counting", || {
            attempts += 1;
            std::future::ready(if attempts < 20 {
                Err("not yet")
            } else {
                Ok(attempts)
            })
        });
        assert_eq!(value.await, 20);
        assert!(
            began.elapsed() >= Duration::from_secs(8),
            "with growing delays"
        );
    }

    #[test]
    fn no_delay_is_longer_than_four_seconds_however_often_it_fails() {
        let mut backoff = Backoff::new(Duration::from_millis(1));
        for _ in 0..100 {
            let delay = backoff.next_delay();
            assert!(!delay.is_zero() && delay <= Duration::from_secs(4));
        }
        assert!(backoff.next_delay() >= Duration::from_secs(2));
    }
}

//! The only reader of wall time. Everything that stores, signs or compares a time of day takes a [`Clock`];
//! deadlines and intervals use the monotonic clock instead, and where many are kept, its [`Moment`]s.

use std::fmt;
use std::num::NonZeroI64;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Datelike, Utc};

/// Tells the time of day.
pub trait Clock: Send + Sync + 'static {
    /// Returns the current time in UTC.
    fn now(&self) -> DateTime<Utc>;

    /// Returns milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64 {
        self.now().timestamp_millis()
    }
}

/// Returns whether RFC 3339 can write a time: its year has four digits and no sign. What comes from outside is checked where it enters, because
/// everything that prints a time later takes it for granted.
pub fn has_four_digit_year(at: &DateTime<Utc>) -> bool {
    (0..=9999).contains(&at.year())
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the wall clock"
    )]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// A clock that stands still until it is told otherwise.
#[derive(Debug, Clone)]
pub struct FixedClock(Arc<AtomicI64>);

impl FixedClock {
    /// Starts at `at`, to the millisecond.
    pub fn new(at: DateTime<Utc>) -> Self {
        Self(Arc::new(AtomicI64::new(at.timestamp_millis())))
    }

    /// Moves the clock by `ms` milliseconds; negative moves it back.
    pub fn advance_ms(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for FixedClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0.load(Ordering::SeqCst)).unwrap_or_default()
    }
}

/// A time of the monotonic clock in 8 bytes. An [`Instant`] takes 16, and each connection keeps a dozen times.
///
/// It is exact to the nanosecond, and reaches 292 years from the start of the process; a time beyond that is the last one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(NonZeroI64);

/// Moments count from here.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Moment {
    /// Returns the time as the standard library has it.
    pub fn instant(self) -> Instant {
        let nanos = self.0.get();
        if nanos > 0 {
            *ORIGIN + Duration::from_nanos(nanos.unsigned_abs() - 1)
        } else {
            *ORIGIN - Duration::from_nanos(nanos.unsigned_abs())
        }
    }
}

impl From<Instant> for Moment {
    fn from(at: Instant) -> Self {
        let nanos = |time: Duration| {
            let whole = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
            whole
                .saturating_mul(1_000_000_000)
                .saturating_add(i64::from(time.subsec_nanos()))
        };
        // Never 0, so that an optional moment takes no more: from the origin on it is one more than the distance.
        let count = match at.checked_duration_since(*ORIGIN) {
            Some(after) => nanos(after).saturating_add(1),
            None => -nanos(ORIGIN.duration_since(at)),
        };
        Self(NonZeroI64::new(count).unwrap_or(NonZeroI64::MIN))
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.instant().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_instant_it_came_from_and_has_its_order() {
        let now = Instant::now();
        let _ = Moment::from(now);
        let nano = Duration::from_nanos(1);
        let times = [
            *ORIGIN - Duration::from_secs(1000),
            *ORIGIN - nano,
            *ORIGIN,
            *ORIGIN + nano,
            *ORIGIN + Duration::new(5, 999_999_999),
            *ORIGIN + Duration::from_secs(100 * 365 * 24 * 3600),
        ];
        for pair in times.windows(2) {
            assert!(Moment::from(pair[0]) < Moment::from(pair[1]), "{pair:?}");
        }
        for at in times.into_iter().chain([now]) {
            assert_eq!(Moment::from(at).instant(), at);
        }
        assert_eq!(size_of::<Option<Moment>>(), 8);
    }

    #[test]
    fn a_time_beyond_the_range_is_the_last_moment() {
        let beyond = *ORIGIN + Duration::from_secs(400 * 365 * 24 * 3600);
        let last = Moment::from(beyond).instant();
        assert!(last > *ORIGIN + Duration::from_secs(292 * 365 * 24 * 3600) && last < beyond);
    }
}

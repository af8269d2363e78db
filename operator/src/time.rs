//! Between the clock of the plans (chrono) and that of Kubernetes' types (jiff).

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use rand::Rng as _;

/// As Kubernetes writes it: whole seconds (metav1.Time has no fraction).
pub fn to_k8s(at: DateTime<Utc>) -> Time {
    Time(Timestamp::from_second(at.timestamp()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// As the plans calculate with it.
pub fn from_k8s(at: &Time) -> DateTime<Utc> {
    DateTime::from_timestamp(at.0.as_second(), 0).unwrap_or(DateTime::UNIX_EPOCH)
}

/// The wall time. Nothing else reads it: `reconcile` passes it to the plans. Deadlines of the process use the monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the wall clock"
)]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// The pause after so many times in a row; 1 is the first. It doubles each time up to `longest`; `chance` in 0..1 picks a pause between half of it and all
/// of it, so that what failed together is not tried again together.
pub fn growing(first: Duration, longest: Duration, times: u32, chance: f64) -> Duration {
    let doubled = first
        .saturating_mul(1 << times.saturating_sub(1).min(16))
        .min(longest);
    doubled.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
}

/// About this long: up to a fifth more or less, so that many processes spread out.
pub fn about(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

//! Waiting for a condition, with a limit: the only way a test waits.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep, timeout};

/// How long anything that should happen may take before a test fails. Generous, because the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Asks `condition` until it answers `Some`, for at most `limit`.
///
/// # Panics
/// When the limit passes; the message says `what` was waited for.
pub async fn until_within<T, F>(limit: Duration, what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        if let Ok(Some(answer)) = timeout(left, condition()).await {
            return answer;
        }
        assert!(begun.elapsed() < limit, "waited {limit:?} in vain: {what}");
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// [`until_within`] the usual [`LIMIT`].
///
/// # Panics
/// When the limit passes.
pub async fn until<T, F>(what: &str, condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    until_within(LIMIT, what, condition).await
}

/// Awaits `future` for at most [`LIMIT`].
///
/// # Panics
/// When the limit passes; the message says `what` was waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("waited {LIMIT:?} in vain: {what}"))
}

/// Seconds since the Unix epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "tokens are checked against the wall clock of another process"
)]
pub fn now_secs() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}

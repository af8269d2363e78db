//! Removes notifications past their age, tombstones past their use, and revocations that have ended.
//!
//! Input: `database.retention_days` and `tombstone_days`. Output: fewer rows, in small transactions with pauses between rounds.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use super::{NotificationStore, RevocationStore, StoreError};
use crate::clock::Clock;
use crate::config;

/// How long a purge waits between two rounds.
pub const PURGE_INTERVAL: Duration = Duration::from_secs(600);
/// Most rows of either kind in one transaction: their inboxes are locked while it lasts.
const CHUNK: u32 = 500;

/// How long a revocation stays past its end, because the clocks of instances differ.
const ENDED_FOR: TimeDelta = TimeDelta::minutes(5);

/// Purges every [`PURGE_INTERVAL`] until `shutdown`, beginning one interval after the start. Notifications go only where `retention_days` is set,
/// tombstones and ended revocations always. Any number of instances may run it.
pub async fn purge_loop(
    store: Arc<dyn NotificationStore>,
    revocations: Arc<dyn RevocationStore>,
    database: config::Database,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let stores = (store, revocations);
    purge_every(PURGE_INTERVAL, stores, database, clock, shutdown).await;
}

pub(super) async fn purge_every(
    interval: Duration,
    (store, revocations): (Arc<dyn NotificationStore>, Arc<dyn RevocationStore>),
    database: config::Database,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = shutdown.cancelled() => return,
        }
        match purge_all(store.as_ref(), &database, clock.now(), &shutdown).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "removed old notifications and tombstones"),
            Err(error) => {
                tracing::warn!(%error, "old notifications cannot be removed; the next round tries again")
            }
        }
        match purge_ended(revocations.as_ref(), clock.now(), &shutdown).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "removed revocations that have ended"),
            Err(error) => {
                tracing::warn!(%error, "ended revocations cannot be removed; the next round tries again")
            }
        }
    }
}

async fn purge_ended(
    store: &dyn RevocationStore,
    now: DateTime<Utc>,
    shutdown: &CancellationToken,
) -> Result<u64, StoreError> {
    let before = now
        .checked_sub_signed(ENDED_FOR)
        .unwrap_or(DateTime::UNIX_EPOCH);
    let mut total = 0;
    while !shutdown.is_cancelled() {
        match store.purge_ended(before, CHUNK).await? {
            0 => break,
            rows => total += rows,
        }
    }
    Ok(total)
}

/// One round: chunk after chunk until nothing is left or `shutdown`. Returns how many rows were removed.
async fn purge_all(
    store: &dyn NotificationStore,
    database: &config::Database,
    now: DateTime<Utc>,
    shutdown: &CancellationToken,
) -> Result<u64, StoreError> {
    let days_ago = |days: u32| {
        now.checked_sub_signed(TimeDelta::days(i64::from(days)))
            .unwrap_or(DateTime::UNIX_EPOCH)
    };
    let before = (database.retention_days > 0).then(|| days_ago(database.retention_days));
    let mut total = 0;
    while !shutdown.is_cancelled() {
        match store
            .purge(before, days_ago(database.tombstone_days), CHUNK)
            .await?
        {
            0 => break,
            rows => total += rows,
        }
    }
    Ok(total)
}

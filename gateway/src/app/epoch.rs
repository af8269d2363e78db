//! Looks again and again whether the database went back in time, and tells the clients (protocol.md 9.10).
//!
//! Input: the looks of [`crate::store`]. Output: `resync` to every client of this instance when the epoch is another one, whoever noticed it first: what they
//! sync then carries the new one.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::inbound::resync;
use crate::dispatch::ResyncReason;
use crate::hub::Hub;
use crate::notification::Epoch;
use crate::store::NotificationStore;

/// How often an instance looks. So long clients may be answered from a database that went back as if it had not.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks once; `None` where the database does not answer.
pub(super) async fn look(store: &dyn NotificationStore) -> Option<Epoch> {
    match store.look().await {
        Ok(epoch) => Some(epoch),
        Err(error) => {
            tracing::debug!(%error, "the epoch of the inboxes cannot be read; trying again");
            None
        }
    }
}

/// Looks until `stop`. `known` is what clients were answered with before; where nobody knows it, they are told once.
pub(super) async fn follow(
    store: Arc<dyn NotificationStore>,
    hub: Hub,
    mut known: Option<Epoch>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        if let Some(epoch) = look(&*store).await
            && known.replace(epoch) != Some(epoch)
        {
            tracing::info!(%epoch, "the inboxes have another epoch; clients are told to sync");
            resync(&hub, ResyncReason::EpochChanged);
        }
    }
}

//! The way down: everyone is closed in random batches over a window, and nothing on the way waits for ever.

use std::future::Future;
use std::time::Duration;

use crate::config::Config;
use crate::hub::Hub;
use crate::lifecycle::Lifecycle;

/// How long an exit at once still takes for its Close frames.
const LAST_MOMENT: Duration = Duration::from_millis(50);

/// The way down of the connections.
pub(super) struct Drain<'a> {
    pub(super) config: &'a Config,
    pub(super) hub: &'a Hub,
    pub(super) lifecycle: &'a Lifecycle,
}

impl Drain<'_> {
    /// Waits, or not when an exit at once is asked for.
    pub(super) async fn wait(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.lifecycle.exit_requested().cancelled() => {}
        }
    }

    /// Waits for work to end, at most so long, and not at all once an exit at once is asked for.
    pub(super) async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = tokio::time::timeout(limit, work) => done.ok(),
            () = self.lifecycle.exit_requested().cancelled() => None,
        }
    }

    /// Closes everyone in random batches over the window, then lets queues flush.
    pub(super) async fn close_connections(&self) {
        let settings = &self.config.drain;
        let total = self.hub.counts().total;
        self.lifecycle.note_connections(total);
        let batches = (settings.window_ms / settings.batch_interval_ms).max(1);
        let batch = settings.min_batch.max(total.div_ceil(usize::try_from(batches).unwrap_or(usize::MAX)));
        for _ in 0..total.div_ceil(batch) {
            if self.hub.counts().total == 0 || self.lifecycle.exit_requested().is_cancelled() {
                break;
            }
            self.hub.close_for_shutdown(batch).await;
            self.wait(Duration::from_millis(settings.batch_interval_ms)).await;
        }
        // Whoever is left, and whoever's handshake was under way when accepting stopped.
        let flushed = async {
            while self.hub.counts().total > 0 {
                self.hub.close_for_shutdown(usize::MAX).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let limit = Duration::from_millis(settings.flush_ms);
        tokio::select! {
            flushed = tokio::time::timeout(limit, flushed) => {
                if flushed.is_err() {
                    tracing::warn!(connections = self.hub.counts().total, "some connections did not answer the close in time");
                }
            }
            () = self.lifecycle.exit_requested().cancelled() => {
                // A moment for the Close frames to leave.
                let _ = tokio::time::timeout(LAST_MOMENT, self.hub.close_for_shutdown(usize::MAX)).await;
                tokio::time::sleep(LAST_MOMENT).await;
            }
        }
    }
}

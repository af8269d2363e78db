//! The way down: everyone is closed in random batches over a window, and nothing on the way waits for ever. A held drain goes the same way, and stays.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::hub::Hub;
use crate::lifecycle::{Hold, Lifecycle};
use crate::metrics::Metrics;

/// How long an exit at once still takes for its Close frames.
const LAST_MOMENT: Duration = Duration::from_millis(50);
/// How often whoever is left is closed, and whoever's handshake was under way when accepting stopped.
const FLUSH_INTERVAL: Duration = Duration::from_millis(20);
/// How often a held drain that is through looks for somebody whose handshake took that long.
const HELD_INTERVAL: Duration = Duration::from_millis(250);

/// The way down of the connections.
#[derive(Clone, Copy)]
pub(super) struct Drain<'a> {
    pub(super) config: &'a Config,
    pub(super) hub: &'a Hub,
    pub(super) lifecycle: &'a Lifecycle,
    pub(super) metrics: &'a Metrics,
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
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            done = tokio::time::timeout(limit, work) => done.ok(),
            () = self.lifecycle.exit_requested().cancelled() => None,
        }
    }

    /// Performs held drains as they are asked for and taken back; never ends. Dropping it leaves a held drain where it stands: a drain that ends
    /// the process goes on from there.
    pub(super) async fn follow_holds(&self) -> std::convert::Infallible {
        let mut holds = self.lifecycle.holds();
        loop {
            let hold = *holds.borrow_and_update();
            self.metrics.draining.set(i64::from(hold.is_some()));
            let Some(hold) = hold else {
                self.lifecycle.note_connections(0);
                // The sender lives in the lifecycle, which outlives this.
                let _ = holds.wait_for(Option::is_some).await;
                tracing::info!(connections = self.hub.counts().total, "a held drain begins");
                continue;
            };
            let is_another = |now: &Option<Hold>| now.is_none_or(|now| now.since != hold.since);
            tokio::select! {
                _ = holds.wait_for(is_another) => tracing::info!(connections = self.hub.counts().total, "the held drain is taken back"),
                never = self.empty(hold) => match never {},
            }
        }
    }

    /// Lets endpoints notice, closes everyone, and keeps it that way.
    async fn empty(&self, hold: Hold) -> std::convert::Infallible {
        tokio::time::sleep(self.propagation_left(Some(hold))).await;
        if self.lifecycle.begin_closing(hold) {
            self.close_connections(None).await;
            tracing::info!("held: the process stays without connections");
        }
        loop {
            if self.lifecycle.refuses_connections() && self.hub.counts().total > 0 {
                self.hub.close_for_shutdown(usize::MAX).await;
            }
            tokio::time::sleep(HELD_INTERVAL).await;
        }
    }

    /// What is left of the pause for endpoints to notice: a held drain may have used it up.
    pub(super) fn propagation_left(&self, hold: Option<Hold>) -> Duration {
        let whole = Duration::from_millis(self.config.drain.endpoint_propagation_ms);
        hold.map_or(whole, |hold| whole.saturating_sub(hold.since.elapsed()))
    }

    /// Closes everyone in random batches over the window, or over what is left of it where a held drain began `earlier`, then lets queues flush.
    pub(super) async fn close_connections(&self, earlier: Option<Instant>) {
        let settings = &self.config.drain;
        let total = self.hub.counts().total;
        if earlier.is_none() {
            self.lifecycle.note_connections(total);
        }
        let window = Duration::from_millis(settings.window_ms)
            .saturating_sub(earlier.map_or(Duration::ZERO, |begun| begun.elapsed()));
        let batches = (window.as_millis() / u128::from(settings.batch_interval_ms)).max(1);
        let batch = settings
            .min_batch
            .max(total.div_ceil(usize::try_from(batches).unwrap_or(usize::MAX)));
        for _ in 0..total.div_ceil(batch) {
            if self.hub.counts().total == 0 || self.lifecycle.exit_requested().is_cancelled() {
                break;
            }
            self.hub.close_for_shutdown(batch).await;
            self.wait(Duration::from_millis(settings.batch_interval_ms))
                .await;
        }
        // Whoever is left, and whoever's handshake was under way when accepting stopped.
        let flushed = async {
            while self.hub.counts().total > 0 {
                self.hub.close_for_shutdown(usize::MAX).await;
                tokio::time::sleep(FLUSH_INTERVAL).await;
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

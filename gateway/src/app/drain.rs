//! Closing connections in a drain: in random batches over a window, with a limit on every wait. A held drain does the same, and the process stays.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::hub::Hub;
use crate::lifecycle::{Hold, Lifecycle};
use crate::metrics::Metrics;

/// How long an exit at once waits for its Close frames to leave.
const LAST_MOMENT: Duration = Duration::from_millis(50);
/// How often connections are closed that are left, or whose handshake was under way when accepting stopped.
const FLUSH_INTERVAL: Duration = Duration::from_millis(20);
/// How often a held drain that has closed all connections closes one whose handshake ended later.
const HELD_INTERVAL: Duration = Duration::from_millis(250);

/// What closing connections needs.
#[derive(Clone, Copy)]
pub(super) struct Drain<'a> {
    pub(super) config: &'a Config,
    pub(super) hub: &'a Hub,
    pub(super) lifecycle: &'a Lifecycle,
    pub(super) metrics: &'a Metrics,
}

impl Drain<'_> {
    /// Waits, but not longer than until an exit at once is requested.
    pub(super) async fn wait(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.lifecycle.exit_requested().cancelled() => {}
        }
    }

    /// Waits for work to end, within a limit, and not longer than until an exit at once is requested.
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

    /// Performs held drains as they are requested and taken back; never ends. Dropping it leaves a held drain at its current step, and a drain that
    /// ends the process continues from there.
    pub(super) async fn follow_holds(&self) -> std::convert::Infallible {
        let mut holds = self.lifecycle.holds();
        loop {
            let hold = *holds.borrow_and_update();
            self.metrics.draining.set(i64::from(hold.is_some()));
            let Some(hold) = hold else {
                self.lifecycle.note_connections(0);
                // The sender is in the lifecycle, which lives longer.
                let _ = holds.wait_for(Option::is_some).await;
                tracing::info!(connections = self.hub.counts().total, "held drain started");
                continue;
            };
            let differs = |now: &Option<Hold>| now.is_none_or(|now| now.since != hold.since);
            tokio::select! {
                () = self.expire(hold) => tracing::warn!("held drain taken back: nobody has ordered it again in time"),
                _ = holds.wait_for(differs) => tracing::info!(connections = self.hub.counts().total, "held drain taken back; the process accepts connections again"),
                never = self.close_and_keep_closed(hold) => match never {},
            }
        }
    }

    /// Waits the pause for endpoints, closes all connections, and keeps them closed.
    async fn close_and_keep_closed(&self, hold: Hold) -> std::convert::Infallible {
        let pause = hold.pause.unwrap_or(self.propagation());
        tokio::time::sleep(pause.saturating_sub(hold.since.elapsed())).await;
        if self.lifecycle.begin_closing(hold) {
            self.close_connections(None).await;
            tracing::info!("held drain finished; the process stays without connections");
        }
        loop {
            if self.lifecycle.refuses_connections() && self.hub.counts().total > 0 {
                self.hub.close_for_shutdown(usize::MAX).await;
            }
            tokio::time::sleep(HELD_INTERVAL).await;
        }
    }

    /// Takes this held drain back when its time has passed; never ends while it has none.
    async fn expire(&self, hold: Hold) {
        let mut holds = self.lifecycle.holds();
        loop {
            let now = *holds.borrow_and_update();
            let Some(now) = now.filter(|now| now.since == hold.since) else {
                return std::future::pending().await;
            };
            let over = async {
                match now.until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => {
                    self.lifecycle.release_expired();
                    if self.lifecycle.hold().is_none() {
                        return;
                    }
                }
                changed = holds.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
        }
    }

    /// How long endpoints take to notice.
    fn propagation(&self) -> Duration {
        Duration::from_millis(self.config.drain.endpoint_propagation_ms)
    }

    /// Returns the pause in which endpoints notice that the process ends: what is left of that of a held drain, or that of a pod that Kubernetes ends,
    /// whichever is over first.
    pub(super) fn propagation_left(&self, hold: Option<Hold>) -> Duration {
        let whole = self.propagation();
        hold.map_or(whole, |hold| {
            let pause = hold.pause.unwrap_or(whole);
            pause.saturating_sub(hold.since.elapsed()).min(whole)
        })
    }

    /// Closes all connections in random batches over the window, or over the rest of it if a held drain started `earlier`, then waits for the queues.
    pub(super) async fn close_connections(&self, earlier: Option<Instant>) {
        let settings = &self.config.drain;
        let total = self.hub.counts().total;
        if earlier.is_none() {
            self.lifecycle.note_connections(total);
        }
        let window = Duration::from_millis(settings.window_ms)
            .saturating_sub(earlier.map_or(Duration::ZERO, |start| start.elapsed()));
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
        // Connections that are left, and those whose handshake was under way when accepting stopped.
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
                    tracing::warn!(connections = self.hub.counts().total, "connections dropped: they did not answer the Close frame in time");
                }
            }
            () = self.lifecycle.exit_requested().cancelled() => {
                // Time for the Close frames to leave.
                let _ = tokio::time::timeout(LAST_MOMENT, self.hub.close_for_shutdown(usize::MAX)).await;
                tokio::time::sleep(LAST_MOMENT).await;
            }
        }
    }
}

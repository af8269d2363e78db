//! Checks what readiness depends on after the start: key sets, the subscriber of the bus, the worker lease, the clock that ids are made by, and whether shards
//! turn.
//!
//! Input: the authenticator and the bus. Output: the parts of [`Lifecycle`], and whether new connections and ids are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::pipeline::PipelineState;
use crate::auth::Authenticator;
use crate::bus::{Bus, SubscriberState};
use crate::hub::{Hub, Turns};
use crate::id::{IdError, IdGenerator};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;

/// How often readiness is checked; it is checked whenever key sets change as well. A worker lease counts as lapsed long before another instance may own
/// its number.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How often shards are asked whether they turn: a question wakes a thread that may have nothing else to do.
const TURN_INTERVAL: Duration = Duration::from_secs(5);
/// How long a shard may not turn before the process is not ready, and before only a restart helps. The longest turn writes one message to every connection.
const SHARD_UNREADY: Duration = Duration::from_secs(10);
const SHARD_STUCK: Duration = Duration::from_secs(60);

/// The parts that readiness depends on, and those that follow it.
pub(super) struct Probe {
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) authenticator: Authenticator,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) hub: Hub,
    pub(super) metrics: Arc<Metrics>,
    pub(super) closed: Arc<AtomicBool>,
    pub(super) ids: IdGenerator,
    pub(super) pipeline: Option<PipelineState>,
}

impl Probe {
    /// Checks whether ids of connections can be made; asks for another worker number where the clock stepped back.
    fn check_clock(&self) -> Result<(), IdError> {
        let checked = self.ids.check_clock();
        let Err(IdError::ClockStepped { by_ms }) = checked else {
            return checked;
        };
        let by = Duration::from_millis(by_ms.unsigned_abs());
        self.bus.replace_worker(by);
        // Without Redis it is there at once.
        self.ids.check_clock()
    }

    fn report_shards(&self, turns: &mut Turns) {
        let waiting = turns.check().filter(|(_, time)| *time >= SHARD_UNREADY);
        let is_stuck = waiting.is_some_and(|(_, time)| time >= SHARD_STUCK);
        if is_stuck && !self.lifecycle.is_stuck() {
            tracing::error!(
                "a shard is stuck: its connections are not served; /livez answers 503 until it turns"
            );
        }
        self.lifecycle.set_stuck(is_stuck);
        let why = waiting
            .map(|(shard, time)| format!("shard {shard} has not turned for {} s", time.as_secs()));
        self.lifecycle.set("shards", why);
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let mut keys = self.authenticator.changes();
        let mut turns = self.hub.turns(TURN_INTERVAL);
        loop {
            self.report_shards(&mut turns);
            self.lifecycle
                .set("keys", self.authenticator.unready_reason());
            let stalled = self.bus.subscriber() == SubscriberState::Stalled;
            let lapsed = self.bus.lease_lapsed();
            self.closed.store(lapsed, Ordering::Release);
            self.ids.suspend(lapsed);
            let clock = self.check_clock();
            let why = if lapsed {
                Some("the worker lease has lapsed".to_owned())
            } else if let Err(error) = clock {
                Some(error.to_string())
            } else if stalled {
                Some("subscriber stalled: pushes from other instances are missed".to_owned())
            } else {
                let doubtful = self.bus.lease_doubtful();
                doubtful.then(|| {
                    "the worker lease is not renewed since a connection was lost".to_owned()
                })
            };
            self.lifecycle.set("redis", why);
            if let Some(pipeline) = &self.pipeline {
                pipeline.report(&self.lifecycle);
            }
            self.lifecycle.write_unready(&self.metrics);
            self.metrics
                .outbox_bytes
                .set(i64::try_from(self.hub.outbox_bytes()).unwrap_or(i64::MAX));
            tokio::select! {
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
                Ok(()) = keys.changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

//! Checks what readiness depends on after the start: key sets, the subscriber of the bus, the worker lease, and the clock that ids are made by.
//!
//! Input: the authenticator and the bus. Output: the parts of [`Lifecycle`], and whether new connections and ids are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::pipeline::PipelineState;
use crate::auth::Authenticator;
use crate::bus::{Bus, SubscriberState};
use crate::hub::Hub;
use crate::id::{IdError, IdGenerator};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;

/// How often readiness is checked; it is checked whenever key sets change as well. A worker lease counts as lapsed long before another instance may own
/// its number.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

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

    pub(super) async fn run(self, stop: CancellationToken) {
        let mut keys = self.authenticator.changes();
        loop {
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

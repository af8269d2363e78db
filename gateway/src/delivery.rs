//! Sends every message: to the hub if its destination is held here, and to the bus where it may be held elsewhere.
//!
//! Input: [`crate::ws`], [`crate::api`] and [`crate::activity`]. Output: [`crate::hub`] and [`crate::bus`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream;

use crate::bus::{Bus, BusError};
use crate::dispatch::{Destination, Dispatch};
use crate::hub::Hub;

/// How many destinations of one batch are published to at the same time.
const BATCH_CONCURRENCY: usize = 256;

/// What happened to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// How many connections of this instance it was given to.
    pub local: usize,
    /// Whether the bus published it to other instances.
    pub published: bool,
}

/// Sends messages; cheap to clone.
#[derive(Clone)]
pub struct Delivery {
    hub: Hub,
    bus: Arc<dyn Bus>,
}

impl Delivery {
    /// Creates a delivery through `hub` and `bus`.
    pub fn new(hub: Hub, bus: Arc<dyn Bus>) -> Self {
        Self { hub, bus }
    }

    /// Checks the length of a message where it enters; see [`Hub::check_length`].
    ///
    /// # Errors
    /// It is longer than this many bytes; it was counted and logged.
    pub fn check_length(&self, dispatch: &Dispatch, from: &'static str) -> Result<(), usize> {
        self.hub.check_length(dispatch, from)
    }

    /// Delivers here and publishes. A message to a client that is held here is not published.
    ///
    /// Best effort: when the bus cannot publish, it is logged and [`Sent::published`] is false. The message was delivered here before.
    pub async fn send(&self, dispatch: &Dispatch) -> Sent {
        let local = self.hub.deliver(dispatch);
        if local > 0 && matches!(dispatch.destination, Destination::Client(_)) {
            return Sent {
                local,
                published: false,
            };
        }
        let published = match self.bus.publish(dispatch).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "message not published: bus failed; delivered to local connections only");
                false
            }
        };
        Sent { local, published }
    }

    /// Delivers a batch here and publishes it, and returns how many messages the bus published. Messages to one destination keep their order; different
    /// destinations are published to at the same time.
    ///
    /// Best effort as [`Delivery::send`]. Once the bus is unavailable the rest is not tried, so that a batch waits for an unreachable server once at
    /// most. When the server is back, every client gets `resync`.
    pub async fn send_all(&self, batch: &[Dispatch]) -> usize {
        let mut by_destination: HashMap<&Destination, Vec<&Dispatch>> =
            HashMap::with_capacity(batch.len());
        for dispatch in batch {
            let local = self.hub.deliver(dispatch);
            if local == 0 || !matches!(dispatch.destination, Destination::Client(_)) {
                by_destination
                    .entry(&dispatch.destination)
                    .or_default()
                    .push(dispatch);
            }
        }
        let (published, unavailable) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (published, unavailable) = (&published, &unavailable);
        stream::iter(by_destination.into_values())
            .for_each_concurrent(BATCH_CONCURRENCY, |dispatches| async move {
                for dispatch in dispatches {
                    if unavailable.load(Ordering::Relaxed) {
                        return;
                    }
                    match self.bus.publish(dispatch).await {
                        Ok(()) => {
                            published.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(BusError::Full) => {}
                        Err(error @ (BusError::Unavailable(_) | BusError::Misconfigured(_))) => {
                            if !unavailable.swap(true, Ordering::Relaxed) {
                                tracing::debug!(%error, "rest of a batch not published: bus failed; delivered to local connections only");
                            }
                        }
                    }
                }
            })
            .await;
        published.load(Ordering::Relaxed)
    }
}

//! A message on its way out: to the hub if its destination is here, to the bus where it may be elsewhere.
//!
//! Input: [`crate::ws`], [`crate::api`] and [`crate::activity`]. Output: [`crate::hub`] and [`crate::bus`].

use std::sync::Arc;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream;

use crate::bus::{Bus, BusError};
use crate::dispatch::{Destination, Dispatch};
use crate::hub::Hub;

/// How many destinations of one batch are published to at the same time.
const BATCH_CONCURRENCY: usize = 256;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// How many connections of this instance it was handed to.
    pub local: usize,
    /// Whether the bus took it for other instances.
    pub published: bool,
}

/// The way out of every message.
#[derive(Clone)]
pub struct Delivery {
    hub: Hub,
    bus: Arc<dyn Bus>,
}

impl Delivery {
    /// Sends through `hub` and `bus`.
    pub fn new(hub: Hub, bus: Arc<dyn Bus>) -> Self {
        Self { hub, bus }
    }

    /// Delivers here and publishes. A client that is held here is not published.
    ///
    /// Best effort: a bus that cannot publish is logged and told in [`Sent::published`], and local delivery has happened by then.
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
                tracing::debug!(%error, "dispatch was delivered here only");
                false
            }
        };
        Sent { local, published }
    }

    /// Delivers a batch here and publishes it: in order for each destination, side by side for different ones. Says how many the bus took.
    ///
    /// Best effort as [`Delivery::send`]. Once the bus turns out to be unavailable the rest is not tried, so that a batch waits for an
    /// unreachable server once at most: when it is back, every client is told to sync.
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
        let (published, away) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (published, away) = (&published, &away);
        stream::iter(by_destination.into_values())
            .for_each_concurrent(BATCH_CONCURRENCY, |dispatches| async move {
                for dispatch in dispatches {
                    if away.load(Ordering::Relaxed) {
                        return;
                    }
                    match self.bus.publish(dispatch).await {
                        Ok(()) => {
                            published.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(BusError::Full) => {}
                        Err(error @ (BusError::Unavailable(_) | BusError::Misconfigured(_))) => {
                            if !away.swap(true, Ordering::Relaxed) {
                                tracing::debug!(%error, "the rest of a batch was delivered here only");
                            }
                        }
                    }
                }
            })
            .await;
        published.load(Ordering::Relaxed)
    }
}

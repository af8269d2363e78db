//! Sends every message: to the hub if its destination is held here, and to the bus where it may be held elsewhere.
//!
//! Input: [`crate::ws`], [`crate::api`] and [`crate::activity`]. Output: [`crate::hub`] and [`crate::bus`].

use std::sync::Arc;

use crate::bus::Bus;
use crate::dispatch::{Audience, Destination, Dispatch};
use crate::hub::Hub;

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

    /// Delivers a batch here and gives it to the bus, in its order, without waiting for the server: storing does not wait for Redis.
    ///
    /// Best effort as [`Delivery::send`]. What the bus has no room for, or cannot publish, it gives up, and those it was for get `resync`.
    pub fn post(&self, batch: &[Dispatch]) {
        for dispatch in batch {
            let local = self.hub.deliver(dispatch);
            if local == 0 || !matches!(dispatch.destination, Destination::Client(_)) {
                // Queued when called; the bus counts the outcome.
                drop(self.bus.publish(dispatch));
            }
        }
    }

    /// Returns whether no message of an audience is longer than clients may get; see [`Hub::fits`].
    pub fn fits(&self, audience: &Audience<'_>) -> bool {
        self.hub.fits(audience)
    }

    /// Delivers each user of an audience its message, here and elsewhere, as [`Delivery::post`] does.
    pub fn post_audience(&self, audience: &Audience<'_>) {
        self.hub.deliver_audience(audience);
        self.bus.publish_audience(audience);
    }
}

//! Whether this process may write, answered without a request: the lease (`control::lease`) moves the deadline, every write checks it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Whether the lease is held, by the monotonic clock of this process.
#[derive(Clone, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// Whether a write may be sent now.
    pub fn is_held(&self) -> bool {
        self.remaining().is_some()
    }

    /// How long writes may still be sent if the lease is not renewed.
    pub fn remaining(&self) -> Option<Duration> {
        (*self.0.lock())?
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// Allows writes until then.
    pub fn hold_until(&self, until: Instant) {
        *self.0.lock() = Some(until);
    }

    /// Forbids writes from now on.
    pub fn drop_now(&self) {
        *self.0.lock() = None;
    }
}

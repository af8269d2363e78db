//! Whether this process may write, answered without a request: the lease (`control::lease`) moves the deadline, every write checks it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Says whether the lease is held, without asking anyone.
#[derive(Clone, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// Whether a write may be sent now.
    pub fn is_held(&self) -> bool {
        self.remaining().is_some()
    }

    /// For how long it may be, if nothing is renewed.
    pub fn remaining(&self) -> Option<Duration> {
        (*self.0.lock())?
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// Holds it until then.
    pub fn hold_until(&self, until: Instant) {
        *self.0.lock() = Some(until);
    }

    /// Gives it up.
    pub fn drop_now(&self) {
        *self.0.lock() = None;
    }
}

//! Where the process stands between start and exit: what probes, `/status` and the drain share.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

/// Start, serving, draining, gone.
#[derive(Debug, Default)]
pub struct Lifecycle {
    drain: CancellationToken,
    now: CancellationToken,
    unready: RwLock<Vec<(&'static str, String)>>,
    at_drain: AtomicUsize,
}

impl Lifecycle {
    /// Asks for a drain: not ready at once, connections closed in batches, then exit. Asking twice changes nothing.
    pub fn request_drain(&self) {
        self.drain.cancel();
    }

    /// Asks to exit at once.
    pub fn request_exit(&self) {
        self.drain.cancel();
        self.now.cancel();
    }

    /// Ends when a drain was asked for.
    pub fn drain_requested(&self) -> &CancellationToken {
        &self.drain
    }

    /// Ends when an exit at once was asked for.
    pub fn exit_requested(&self) -> &CancellationToken {
        &self.now
    }

    /// Whether a drain was asked for.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Says why one part is not ready, or with `None` that it is. Every part that must be ready first names itself before it starts.
    pub fn set(&self, part: &'static str, unready_because: Option<String>) {
        let mut parts = self.unready.write();
        parts.retain(|(name, _)| *name != part);
        parts.extend(unready_because.map(|why| (part, why)));
    }

    /// The parts that are not ready, and why; empty when the process is ready.
    pub fn unready(&self) -> Vec<(&'static str, String)> {
        let mut parts = self.unready.read().clone();
        if self.is_draining() {
            parts.push(("drain", "draining".into()));
        }
        parts
    }

    /// How many connections there were when the drain began.
    pub fn connections_at_drain(&self) -> usize {
        self.at_drain.load(Ordering::Relaxed)
    }

    /// Notes how many connections there are as the drain begins.
    pub fn note_connections(&self, count: usize) {
        self.at_drain.store(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_unready_until_it_says_otherwise_and_a_drain_is_for_good() {
        let lifecycle = Lifecycle::default();
        lifecycle.set("keys", Some("not fetched".into()));
        lifecycle.set("keys", Some("fetch failed".into()));
        assert_eq!(lifecycle.unready(), [("keys", "fetch failed".into())]);
        lifecycle.set("keys", None);
        assert!(lifecycle.unready().is_empty());
        lifecycle.request_drain();
        assert_eq!(lifecycle.unready(), [("drain", "draining".into())]);
        assert!(!lifecycle.exit_requested().is_cancelled());
    }
}

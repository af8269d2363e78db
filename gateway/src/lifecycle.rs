//! Where the process stands between start and exit: what probes, `/status` and the drain share.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The parts that may be unready, the drain included.
pub const PARTS: [&str; 5] = ["settings", "bus", "database", "keys", "drain"];

/// Start, serving, held, draining, gone.
#[derive(Debug)]
pub struct Lifecycle {
    drain: CancellationToken,
    now: CancellationToken,
    hold: watch::Sender<Option<Hold>>,
    unready: RwLock<Vec<(&'static str, String)>>,
    at_drain: AtomicUsize,
}

/// A held drain: everyone is asked to leave and the process stays, until it is taken back or the process is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// When it was asked for; tells one hold from the next.
    pub since: Instant,
    /// When connections began to be closed; `None` while endpoints are to notice, and everybody is still served and accepted.
    pub closing_since: Option<Instant>,
}

/// The process is on its way out: that is not held, and not taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process drains in order to end")]
pub struct Ending;

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            drain: CancellationToken::new(),
            now: CancellationToken::new(),
            hold: watch::Sender::new(None),
            unready: RwLock::default(),
            at_drain: AtomicUsize::new(0),
        }
    }
}

impl Lifecycle {
    /// Asks for a drain: not ready at once, connections closed in batches, then exit. Asking twice changes nothing; a held drain becomes this one.
    pub fn request_drain(&self) {
        self.drain.cancel();
    }

    /// Asks for a held drain: not ready at once, connections closed in batches, then nothing more until [`Lifecycle::release`] or
    /// [`Lifecycle::request_drain`]. Asking twice changes nothing.
    ///
    /// # Errors
    /// The process is on its way out.
    pub fn request_hold(&self) -> Result<(), Ending> {
        self.unless_ending(|hold| {
            hold.is_none()
                .then(|| {
                    *hold = Some(Hold {
                        since: Instant::now(),
                        closing_since: None,
                    })
                })
                .is_some()
        })
    }

    /// Takes a held drain back: ready and accepting again, both at once. Without one nothing changes.
    ///
    /// # Errors
    /// The process is on its way out.
    pub fn release(&self) -> Result<(), Ending> {
        self.unless_ending(|hold| hold.take().is_some())
    }

    fn unless_ending(&self, change: impl FnOnce(&mut Option<Hold>) -> bool) -> Result<(), Ending> {
        let mut result = Err(Ending);
        self.hold.send_if_modified(|hold| {
            if self.drain.is_cancelled() {
                return false;
            }
            result = Ok(());
            change(hold)
        });
        result
    }

    /// From here on this hold takes no new connections and closes the open ones; false if it was taken back meanwhile.
    pub fn begin_closing(&self, begun: Hold) -> bool {
        self.hold.send_if_modified(|hold| match hold {
            Some(hold) if hold.since == begun.since => {
                hold.closing_since.get_or_insert_with(Instant::now);
                true
            }
            _ => false,
        })
    }

    /// The held drain there is, or that there was when the process was told to end.
    pub fn hold(&self) -> Option<Hold> {
        *self.hold.borrow()
    }

    /// Is marked changed whenever [`Lifecycle::hold`] is another.
    pub fn holds(&self) -> watch::Receiver<Option<Hold>> {
        self.hold.subscribe()
    }

    /// Whether new connections are to be refused: a held drain closes, or has closed, the open ones.
    pub fn refuses_connections(&self) -> bool {
        self.hold
            .borrow()
            .is_some_and(|hold| hold.closing_since.is_some())
    }

    /// Asks to exit at once.
    pub fn request_exit(&self) {
        self.drain.cancel();
        self.now.cancel();
    }

    /// Ends when a drain was asked for that ends the process.
    pub fn drain_requested(&self) -> &CancellationToken {
        &self.drain
    }

    /// Ends when an exit at once was asked for.
    pub fn exit_requested(&self) -> &CancellationToken {
        &self.now
    }

    /// Whether a drain is under way that ends the process.
    pub fn is_ending(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether the drain under way is a held one.
    pub fn is_held(&self) -> bool {
        !self.is_ending() && self.hold.borrow().is_some()
    }

    /// Whether any drain is under way.
    pub fn is_draining(&self) -> bool {
        self.is_ending() || self.hold.borrow().is_some()
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
        if self.is_ending() {
            parts.push(("drain", "draining".into()));
        } else if self.is_held() {
            parts.push(("drain", "held".into()));
        }
        parts
    }

    /// Writes into the metrics which parts are not ready.
    pub fn write_unready(&self, metrics: &Metrics) {
        let unready = self.unready();
        for part in PARTS {
            let is_unready = unready.iter().any(|(name, _)| *name == part);
            metrics
                .unready
                .get_or_create(&Metrics::kind(part))
                .set(i64::from(is_unready));
        }
    }

    /// How many connections there were when the drain began to close them; 0 before that and after a held one was taken back.
    pub fn connections_at_drain(&self) -> usize {
        self.at_drain.load(Ordering::Relaxed)
    }

    /// Notes how many connections there are as the drain begins to close them.
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
        let metrics = Metrics::new();
        lifecycle.write_unready(&metrics);
        let text = metrics.render();
        assert!(
            text.contains("signal_unready{kind=\"drain\"} 1")
                && text.contains("signal_unready{kind=\"keys\"} 0"),
            "{text}"
        );
        assert!(!lifecycle.exit_requested().is_cancelled());
        assert_eq!(
            (lifecycle.request_hold(), lifecycle.release()),
            (Err(Ending), Err(Ending))
        );
        assert!(lifecycle.is_draining() && !lifecycle.is_held());
    }

    #[test]
    fn a_hold_is_unready_at_once_refuses_from_its_closing_on_and_is_taken_back_whole() {
        let lifecycle = Lifecycle::default();
        assert_eq!(
            lifecycle.release(),
            Ok(()),
            "there is nothing to take back, which is what was asked for"
        );
        lifecycle.request_hold().unwrap();
        let first = lifecycle.hold().unwrap();
        assert_eq!(lifecycle.unready(), [("drain", "held".into())]);
        assert!(
            lifecycle.is_held() && !lifecycle.refuses_connections(),
            "endpoints are to notice first"
        );
        lifecycle.request_hold().unwrap();
        assert_eq!(
            lifecycle.hold(),
            Some(first),
            "asking twice changes nothing"
        );
        assert!(lifecycle.begin_closing(first) && lifecycle.refuses_connections());
        let closing = lifecycle.hold();
        assert!(lifecycle.begin_closing(first));
        assert_eq!(lifecycle.hold(), closing, "closing begins once");
        lifecycle.release().unwrap();
        assert!(lifecycle.unready().is_empty() && !lifecycle.refuses_connections());
        assert!(
            !lifecycle.begin_closing(first),
            "a hold that was taken back closes nobody"
        );
        lifecycle.request_hold().unwrap();
        assert!(!lifecycle.begin_closing(first), "and is not the next one");
    }

    #[test]
    fn a_hold_becomes_the_drain_that_ends_the_process() {
        let lifecycle = Lifecycle::default();
        lifecycle.request_hold().unwrap();
        let hold = lifecycle.hold();
        lifecycle.request_drain();
        assert!(lifecycle.is_ending() && !lifecycle.is_held());
        assert_eq!(lifecycle.unready(), [("drain", "draining".into())]);
        assert_eq!(
            (lifecycle.release(), lifecycle.hold()),
            (Err(Ending), hold),
            "what is done of it is not done again"
        );
    }
}

//! The state of the process between start and exit, which probes, `/status` and the drain share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The parts that may be unready, the drain included.
pub const PARTS: [&str; 8] = [
    "settings",
    "redis",
    "database",
    "keys",
    "revocations",
    "pipeline",
    "shards",
    "drain",
];

/// The state of the process: starting, serving, held drain, draining, exiting.
#[derive(Debug)]
pub struct Lifecycle {
    drain: CancellationToken,
    now: CancellationToken,
    hold: watch::Sender<Option<Hold>>,
    unready: RwLock<Vec<(&'static str, String)>>,
    notices: RwLock<Vec<(&'static str, String)>>,
    at_drain: AtomicUsize,
    stuck: AtomicBool,
}

/// A held drain: all connections are closed and the process stays, until the drain is taken back or the process is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// When it was requested; also identifies it.
    pub since: Instant,
    /// How long connections are still accepted; `None`: as long as the settings say.
    pub pause: Option<Duration>,
    /// When it is taken back by itself, unless it is requested again before.
    pub until: Option<Instant>,
    /// When it started to close connections. `None` during the pause for endpoints, in which connections are still served and accepted.
    pub closing_since: Option<Instant>,
}

/// The process drains in order to end; that drain cannot be held or taken back.
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
            notices: RwLock::default(),
            at_drain: AtomicUsize::new(0),
            stuck: AtomicBool::new(false),
        }
    }
}

impl Lifecycle {
    /// Requests a drain: not ready at once, connections closed in batches, then exit. A second request changes nothing; a held drain becomes this one.
    pub fn request_drain(&self) {
        self.drain.cancel();
    }

    /// Requests a held drain: not ready at once, connections accepted for the `pause`, then closed in batches, then nothing until
    /// [`Lifecycle::release`], [`Lifecycle::request_drain`], or the time `expires` after the last request. A second request changes only that time.
    ///
    /// # Errors
    /// The process drains in order to end.
    pub fn request_hold(
        &self,
        pause: Option<Duration>,
        expires: Option<Duration>,
    ) -> Result<(), Ending> {
        let now = Instant::now();
        let until = expires.and_then(|expires| now.checked_add(expires));
        self.unless_ending(|hold| match hold {
            Some(hold) => std::mem::replace(&mut hold.until, until) != until,
            None => {
                *hold = Some(Hold {
                    since: now,
                    pause,
                    until,
                    closing_since: None,
                });
                true
            }
        })
    }

    /// Takes a held drain back: the process is ready and accepts connections at once. Without one nothing changes.
    ///
    /// # Errors
    /// The process drains in order to end.
    pub fn release(&self) -> Result<(), Ending> {
        self.unless_ending(|hold| hold.take().is_some())
    }

    /// Takes a held drain back if nobody requested it again in time.
    pub fn release_expired(&self) {
        let _ = self.unless_ending(|hold| {
            let is_over = |hold: &mut Hold| hold.until.is_some_and(|until| until <= Instant::now());
            hold.take_if(is_over).is_some()
        });
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

    /// Makes a held drain refuse new connections and close the open ones. Returns false if it was taken back.
    pub fn begin_closing(&self, begun: Hold) -> bool {
        self.hold.send_if_modified(|hold| match hold {
            Some(hold) if hold.since == begun.since => {
                hold.closing_since.get_or_insert_with(Instant::now);
                true
            }
            _ => false,
        })
    }

    /// Returns the held drain, also after the process was asked to end.
    pub fn hold(&self) -> Option<Hold> {
        *self.hold.borrow()
    }

    /// Returns a channel that follows [`Lifecycle::hold`].
    pub fn holds(&self) -> watch::Receiver<Option<Hold>> {
        self.hold.subscribe()
    }

    /// Returns whether new connections are refused, because a held drain closes or has closed the open ones.
    pub fn refuses_connections(&self) -> bool {
        self.hold
            .borrow()
            .is_some_and(|hold| hold.closing_since.is_some())
    }

    /// Requests an exit at once.
    pub fn request_exit(&self) {
        self.drain.cancel();
        self.now.cancel();
    }

    /// Returns the token that is cancelled when a drain that ends the process is requested.
    pub fn drain_requested(&self) -> &CancellationToken {
        &self.drain
    }

    /// Returns the token that is cancelled when an exit at once is requested.
    pub fn exit_requested(&self) -> &CancellationToken {
        &self.now
    }

    /// Returns whether a drain that ends the process is under way.
    pub fn is_ending(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Returns whether a held drain is under way.
    pub fn is_held(&self) -> bool {
        !self.is_ending() && self.hold.borrow().is_some()
    }

    /// Returns whether any drain is under way.
    pub fn is_draining(&self) -> bool {
        self.is_ending() || self.hold.borrow().is_some()
    }

    /// Sets why a part is not ready; `None` makes it ready. A part that must become ready is set before it starts.
    pub fn set(&self, part: &'static str, unready_because: Option<String>) {
        let mut parts = self.unready.write();
        parts.retain(|(name, _)| *name != part);
        parts.extend(unready_because.map(|why| (part, why)));
    }

    /// Returns the parts that are not ready, and why; empty when the process is ready.
    pub fn unready(&self) -> Vec<(&'static str, String)> {
        let mut parts = self.unready.read().clone();
        if self.is_ending() {
            parts.push(("drain", "draining".into()));
        } else if self.is_held() {
            parts.push(("drain", "held".into()));
        }
        parts
    }

    /// Sets whether only a restart helps.
    pub fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Relaxed);
    }

    /// Returns whether only a restart helps.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Sets what a part cannot do although the process is ready; `None` when it can do everything.
    pub fn set_notice(&self, part: &'static str, notice: Option<String>) {
        let mut notices = self.notices.write();
        notices.retain(|(name, _)| *name != part);
        notices.extend(notice.map(|text| (part, text)));
    }

    /// Returns the parts that cannot do everything although the process is ready, and why.
    pub fn notices(&self) -> Vec<(&'static str, String)> {
        self.notices.read().clone()
    }

    /// Sets the metrics of the parts that are not ready.
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

    /// Returns how many connections were open when the drain started to close them; 0 before that, and after a held drain was taken back.
    pub fn connections_at_drain(&self) -> usize {
        self.at_drain.load(Ordering::Relaxed)
    }

    /// Sets how many connections are open as the drain starts to close them.
    pub fn note_connections(&self, count: usize) {
        self.at_drain.store(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_unready_until_it_is_set_ready_and_a_drain_is_final() {
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
            (lifecycle.request_hold(None, None), lifecycle.release()),
            (Err(Ending), Err(Ending))
        );
        assert!(lifecycle.is_draining() && !lifecycle.is_held());
    }

    #[test]
    fn a_held_drain_is_unready_at_once_refuses_when_it_closes_and_can_be_taken_back() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.release(), Ok(()), "taking back nothing succeeds");
        lifecycle.request_hold(None, None).unwrap();
        let first = lifecycle.hold().unwrap();
        assert_eq!(lifecycle.unready(), [("drain", "held".into())]);
        assert!(
            lifecycle.is_held() && !lifecycle.refuses_connections(),
            "connections are accepted during the pause for endpoints"
        );
        lifecycle.request_hold(None, None).unwrap();
        assert_eq!(
            lifecycle.hold(),
            Some(first),
            "a second request changes nothing"
        );
        assert!(lifecycle.begin_closing(first) && lifecycle.refuses_connections());
        let closing = lifecycle.hold();
        assert!(lifecycle.begin_closing(first));
        assert_eq!(lifecycle.hold(), closing, "closing starts once");
        lifecycle.release().unwrap();
        assert!(lifecycle.unready().is_empty() && !lifecycle.refuses_connections());
        assert!(
            !lifecycle.begin_closing(first),
            "a held drain that was taken back closes nothing"
        );
        lifecycle.request_hold(None, None).unwrap();
        assert!(
            !lifecycle.begin_closing(first),
            "nor does it act for the next one"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_drain_that_nobody_renews_is_taken_back_and_one_that_is_renewed_stays() {
        let lifecycle = Lifecycle::default();
        let expires = Some(Duration::from_secs(60));
        lifecycle.request_hold(None, expires).unwrap();
        let first = lifecycle.hold().unwrap();
        tokio::time::advance(Duration::from_secs(50)).await;
        lifecycle.request_hold(None, expires).unwrap();
        tokio::time::advance(Duration::from_secs(50)).await;
        lifecycle.release_expired();
        assert_eq!(
            lifecycle.hold().unwrap().since,
            first.since,
            "it is the same"
        );
        tokio::time::advance(Duration::from_secs(10)).await;
        lifecycle.release_expired();
        assert!(!lifecycle.is_draining());
        lifecycle.request_hold(None, None).unwrap();
        tokio::time::advance(Duration::from_secs(100_000)).await;
        lifecycle.release_expired();
        assert!(lifecycle.is_held(), "one without a time stays");
    }

    #[test]
    fn a_held_drain_becomes_the_drain_that_ends_the_process() {
        let lifecycle = Lifecycle::default();
        lifecycle.request_hold(None, None).unwrap();
        let hold = lifecycle.hold();
        lifecycle.request_drain();
        assert!(lifecycle.is_ending() && !lifecycle.is_held());
        assert_eq!(lifecycle.unready(), [("drain", "draining".into())]);
        assert_eq!(
            (lifecycle.release(), lifecycle.hold()),
            (Err(Ending), hold),
            "its finished steps are kept"
        );
    }
}

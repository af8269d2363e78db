//! The lease of this instance's worker number on one server, as a value: it decides, [`lease`](super::lease) talks to the server.
//!
//! No two instances may make ids with one number. An instance leases a number for a lifetime and renews it long before its end. The server forgets a
//! lease that is not renewed, and another instance may lease the number from then on, so an instance that cannot renew its lease in time relies on it
//! no longer. Input: what the server answered, and when. Output: the number, whether to renew it, and how far to rely on it. No IO, no clock.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How far the number can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseState {
    /// No number is leased yet, or it was given up.
    GivenUp,
    /// The number is this instance's.
    Leased,
    /// A renewal is due and has not succeeded yet; the number is still this instance's.
    Renewing,
    /// It could not be renewed for as long as it lasts: the number may be another instance's.
    Lapsed,
    /// Another instance owns the number. It is this instance's again if a renewal succeeds.
    OwnedByOther,
}

/// What an answer to a renewal changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewed {
    /// Nothing: the lease is owned as before, or it is no longer the lease that was asked about.
    Unchanged,
    /// Another instance has taken the number.
    Lost,
    /// The number is this instance's again.
    Regained,
}

/// The lease of one number at a time.
pub(super) struct WorkerLease {
    lifetime: Duration,
    renew_interval: Duration,
    held: Mutex<Option<Held>>,
}

struct Held {
    number: u16,
    /// When the last renewal that succeeded was sent.
    renewed_at: Instant,
    renew_due: Instant,
    owned_by_other: bool,
    /// The server may have forgotten the lease, and no renewal has succeeded since.
    is_doubtful: bool,
}

impl WorkerLease {
    /// Returns a lease of no number.
    pub(super) fn new(lifetime: Duration, renew_interval: Duration) -> Self {
        Self {
            lifetime,
            renew_interval,
            held: Mutex::new(None),
        }
    }

    /// Notes that the server leased this number, in answer to what was sent at that time. It takes the place of the number before.
    pub(super) fn leased(&self, number: u16, sent_at: Instant) {
        *self.held.lock() = Some(Held {
            number,
            renewed_at: sent_at,
            renew_due: sent_at + self.renew_interval,
            owned_by_other: false,
            is_doubtful: false,
        });
    }

    /// Notes the answer to a renewal: whether the number is this instance's.
    pub(super) fn renewed(&self, number: u16, sent_at: Instant, is_ours: bool) -> Renewed {
        let mut held = self.held.lock();
        let Some(held) = held.as_mut().filter(|held| held.number == number) else {
            return Renewed::Unchanged;
        };
        if is_ours {
            held.renewed_at = sent_at;
            held.renew_due = sent_at + self.renew_interval;
            held.is_doubtful = false;
        }
        match (
            std::mem::replace(&mut held.owned_by_other, !is_ours),
            is_ours,
        ) {
            (false, false) => Renewed::Lost,
            (true, true) => Renewed::Regained,
            _ => Renewed::Unchanged,
        }
    }

    /// Makes a renewal due at once: the server may have forgotten the lease.
    pub(super) fn renew_now(&self, now: Instant) {
        if let Some(held) = self.held.lock().as_mut() {
            held.renew_due = now;
            held.is_doubtful = true;
        }
    }

    /// Whether the server may have forgotten the lease, and no renewal has succeeded since.
    pub(super) fn is_doubtful(&self) -> bool {
        self.held
            .lock()
            .as_ref()
            .is_some_and(|held| held.is_doubtful)
    }

    /// Returns the number whose renewal is due.
    pub(super) fn due(&self, now: Instant) -> Option<u16> {
        let held = self.held.lock();
        held.as_ref()
            .filter(|held| held.renew_due <= now)
            .map(|held| held.number)
    }

    /// Returns the number, although another instance may own it by now; `None` where none is held.
    pub(super) fn number(&self) -> Option<u16> {
        self.held.lock().as_ref().map(|held| held.number)
    }

    /// Returns how far the number can be relied on.
    pub(super) fn state(&self, now: Instant) -> LeaseState {
        let held = self.held.lock();
        let Some(held) = held.as_ref() else {
            return LeaseState::GivenUp;
        };
        // The server counts from when it handled the renewal, a little after it was sent; its clock may run a little faster.
        let relied_on_for = self.lifetime - self.lifetime / 100;
        if held.owned_by_other {
            LeaseState::OwnedByOther
        } else if now.duration_since(held.renewed_at) >= relied_on_for {
            LeaseState::Lapsed
        } else if held.renew_due <= now {
            LeaseState::Renewing
        } else {
            LeaseState::Leased
        }
    }

    /// Whether the number may be another instance's, so that no id may be made with it.
    pub(super) fn has_lapsed(&self, now: Instant) -> bool {
        !matches!(self.state(now), LeaseState::Leased | LeaseState::Renewing)
    }

    /// Forgets the number and returns it: the caller gives it up on the server.
    pub(super) fn give_up(&self) -> Option<u16> {
        self.held.lock().take().map(|held| held.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(100);
    const RENEW: Duration = Duration::from_secs(10);

    fn leased(number: u16, at: Instant) -> WorkerLease {
        let lease = WorkerLease::new(LIFETIME, RENEW);
        lease.leased(number, at);
        lease
    }

    #[test]
    fn a_lease_is_renewed_in_time_and_lapses_a_little_before_the_server_forgets_it() {
        let start = Instant::now();
        let lease = leased(9, start);
        assert_eq!((lease.due(start), lease.number()), (None, Some(9)));
        assert_eq!(lease.state(start), LeaseState::Leased);
        let due = start + RENEW;
        assert_eq!(
            (lease.due(due), lease.state(due)),
            (Some(9), LeaseState::Renewing)
        );
        assert_eq!(lease.renewed(9, due, true), Renewed::Unchanged);
        assert_eq!(
            (lease.due(due), lease.state(due)),
            (None, LeaseState::Leased)
        );
        let end = due + LIFETIME;
        assert!(!lease.has_lapsed(end - Duration::from_secs(2)));
        assert_eq!(
            lease.state(end - Duration::from_secs(1)),
            LeaseState::Lapsed
        );
        assert_eq!(lease.renewed(9, end, true), Renewed::Unchanged);
        assert!(!lease.has_lapsed(end), "a late renewal brings it back");
    }

    #[test]
    fn a_number_that_another_instance_owns_is_not_relied_on_until_it_is_free_again() {
        let start = Instant::now();
        let lease = leased(9, start);
        assert!(!lease.is_doubtful());
        lease.renew_now(start);
        assert!(lease.is_doubtful() && !lease.has_lapsed(start));
        assert_eq!(lease.due(start), Some(9));
        assert_eq!(lease.renewed(9, start, false), Renewed::Lost);
        assert_eq!(lease.renewed(9, start, false), Renewed::Unchanged);
        assert_eq!(lease.state(start), LeaseState::OwnedByOther);
        assert!(lease.has_lapsed(start));
        assert_eq!(lease.due(start), Some(9), "it is asked for again");
        assert!(lease.is_doubtful());
        assert_eq!(lease.renewed(9, start, true), Renewed::Regained);
        assert!(!lease.is_doubtful());
        assert_eq!(lease.state(start), LeaseState::Leased);
    }

    #[test]
    fn an_answer_about_a_number_that_was_replaced_changes_nothing() {
        let start = Instant::now();
        let lease = leased(9, start);
        lease.leased(12, start);
        assert_eq!(lease.renewed(9, start, false), Renewed::Unchanged);
        assert_eq!(
            (lease.number(), lease.state(start)),
            (Some(12), LeaseState::Leased)
        );
        assert_eq!(lease.give_up(), Some(12));
        assert_eq!(lease.renewed(12, start, true), Renewed::Unchanged);
        assert_eq!(
            (lease.number(), lease.state(start), lease.due(start)),
            (None, LeaseState::GivenUp, None)
        );
        assert!(lease.has_lapsed(start));
    }
}

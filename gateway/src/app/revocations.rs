//! Keeps what this instance knows of revocations whole, whatever happens to Redis and the database (authorization.md 3.4, 3.5).
//!
//! Input: the table of revocations, and what the bus says about its reception. Output: [`Revocations`] with its state, connections closed with 4006,
//! readiness.
//!
//! A revocation is in the table before it is announced. So after a read that began while announcements came in, everything comes in by itself until the
//! next gap. At a gap the table is read again, until it has succeeded; while announcements do not come in, every [`POLL`]; and every [`SLOW_POLL`] in any
//! case, because an announcer may die between storing and announcing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inbound::Inbound;
use crate::auth::Revocations;
use crate::backoff::Backoff;
use crate::bus::{Bus, BusError, Reception};
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::store::{Added, MAX_REVOCATIONS, RevocationStore, StoreError};

/// How often the reception is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often the table is read while announcements do not come in.
const POLL: Duration = Duration::from_secs(2);
/// How often the whole table is read in any case.
const SLOW_POLL: Duration = Duration::from_secs(30);
/// The first delay after a failure; the longest is [`POLL`].
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait for one page, or for what is taken over from Redis.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Rows of one statement: a page is taken over under one short lock.
const PAGE: u32 = 1_000;
/// Revocations that are taken over from Redis in one transaction.
const ADOPT_AT_ONCE: usize = 500;
/// Pings that are this late say that Redis may be away, long before the subscriber counts as stalled.
const PING_GRACE: Duration = Duration::from_secs(1);

/// The part of [`Lifecycle`].
const PART: &str = "revocations";

/// What others ask of the reader.
#[derive(Default)]
pub(super) struct Prompt {
    losses: AtomicU64,
    adopts: AtomicBool,
    wake: Notify,
}

impl Prompt {
    /// Announcements may have been missed.
    pub(super) fn lost(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// An instance of the release before has made a revocation: it is in Redis and not in the table.
    pub(super) fn adopt(&self) {
        self.adopts.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no answer within {0:?}")]
    TooSlow(Duration),
    #[error("those of the release before cannot be taken over: {0}")]
    Shared(#[from] BusError),
}

/// What the reader reads from and writes to.
pub(super) struct ReaderParts {
    pub(super) store: Arc<dyn RevocationStore>,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) prompt: Arc<Prompt>,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Arc<dyn Clock>,
    /// How often the bus pings itself.
    pub(super) ping_interval: Duration,
}

/// The state of the task.
pub(super) struct RevocationReader {
    parts: ReaderParts,
    /// Since a read that began in this stretch everything is known; `None` from a gap until the table was read.
    synced: Option<Stretch>,
    /// The stretch in which the table was last tried to be read.
    tried: Option<Stretch>,
    /// Until when everything is known.
    whole_until: Instant,
    /// When the last read that succeeded began.
    read_at: Instant,
    /// The highest version read.
    version: i64,
    /// When the whole table is read next.
    whole_due: Instant,
    /// When it is read next, the whole or what is new.
    due: Instant,
    /// What the release before keeps in Redis is to be taken over.
    adopts: bool,
    /// Pings are in time, without a gap: announcements come in.
    follows: bool,
    /// Something was learnt by reading since connections were last looked at.
    has_learnt: bool,
    backoff: Backoff,
}

/// A time without a gap: as long as both numbers stay the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    gaps: u64,
    losses: u64,
}

impl RevocationReader {
    fn new(parts: ReaderParts) -> Self {
        let now = Instant::now();
        Self {
            parts,
            synced: None,
            tried: None,
            whole_until: now,
            read_at: now,
            version: 0,
            whole_due: now,
            due: now,
            adopts: true,
            follows: false,
            has_learnt: false,
            backoff: Backoff::between(FIRST_RETRY, POLL),
        }
    }

    /// Reads everything for the first time, however long it takes. No token is accepted before.
    pub(super) async fn start(parts: ReaderParts) -> Self {
        let mut reader = Self::new(parts);
        let mut backoff = Backoff::between(FIRST_RETRY, POLL);
        while let Err(error) = reader.read().await {
            reader.set_unready(Some(error.to_string()));
            backoff.pause_after("reading revocations", &error).await;
        }
        reader.set_unready(None);
        reader.publish();
        reader
    }

    /// Returns what others prompt it with.
    pub(super) fn prompt(&self) -> Arc<Prompt> {
        Arc::clone(&self.parts.prompt)
    }

    /// Follows the reception until `stop`, and closes the connections whose token a new revocation refuses.
    pub(super) async fn run(mut self, inbound: Inbound, stop: CancellationToken) {
        let prompt = self.prompt();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = prompt.wake.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            if self.step().await {
                inbound.close_withdrawn().await;
            }
        }
    }

    /// Looks at the reception, reads what is due, and publishes how far what is known reaches. Returns whether anything was learnt, also by a read that
    /// failed half-way.
    async fn step(&mut self) -> bool {
        self.look();
        if self.due <= Instant::now() {
            match self.read().await {
                Ok(()) => self.set_unready(None),
                Err(error) => self.note_failure(&error),
            }
        }
        self.publish();
        std::mem::take(&mut self.has_learnt)
    }

    /// Decides by the reception whether a read is due: at a gap, when announcements come in again, and when pings are late.
    fn look(&mut self) {
        let now = Instant::now();
        let reception = self.parts.bus.reception();
        let stretch = self.stretch(reception);
        if self.synced.is_some() && stretch != self.synced {
            self.synced = None;
            self.set_unready(Some("announcements may have been missed".into()));
        }
        if self.synced.is_none() && stretch != self.tried {
            self.tried = stretch;
            self.backoff.reset();
            (self.due, self.whole_due, self.adopts) = (now, now, true);
        }
        if self.parts.prompt.adopts.swap(false, Ordering::AcqRel) {
            (self.due, self.adopts) = (now, true);
        }
        let follows = self.is_following(reception);
        if self.follows && !follows {
            self.due = now;
        }
        self.follows = follows;
    }

    /// Publishes how far what is known reaches.
    fn publish(&mut self) {
        let reception = self.parts.bus.reception();
        if let Some(reception) = reception.filter(|_| self.synced == self.stretch(reception)) {
            self.whole_until = self.whole_until.max(reception.until);
        }
        self.follows = self.is_following(reception);
        if self.follows {
            self.parts.revocations.follow();
        } else {
            self.parts.revocations.set_whole_until(self.whole_until);
        }
        let age = self.read_at.elapsed().as_secs_f64();
        self.parts.metrics.revocations_age.set(age);
    }

    /// Whether everything is known and announcements come in.
    fn is_following(&self, reception: Option<Reception>) -> bool {
        let late = self.parts.ping_interval + PING_GRACE;
        self.synced.is_some()
            && self.synced == self.stretch(reception)
            && reception.is_some_and(|reception| reception.until.elapsed() <= late)
    }

    fn stretch(&self, reception: Option<Reception>) -> Option<Stretch> {
        let losses = self.parts.prompt.losses.load(Ordering::Acquire);
        reception.map(|reception| Stretch {
            gaps: reception.gaps,
            losses,
        })
    }

    fn set_unready(&self, because: Option<String>) {
        self.parts.lifecycle.set(PART, because);
    }

    /// Reads what is new, or everything where that is due.
    async fn read(&mut self) -> Result<(), ReadError> {
        let began = Instant::now();
        let stretch = self.stretch(self.parts.bus.reception());
        self.tried = stretch;
        let read_all = self.whole_due <= began;
        self.read_pages(read_all).await?;
        if read_all {
            self.parts.revocations.drop_ended();
            // Spread, so that instances that started together do not read together.
            self.whole_due = began + SLOW_POLL.mul_f64(rand::random_range(0.8..=1.2));
        }
        self.whole_until = self.whole_until.max(began);
        self.read_at = began;
        // While Redis is away nothing can be taken over from it.
        if self.adopts && stretch.is_some() {
            limited(self.adopt()).await?;
            self.adopts = false;
        }
        self.backoff.reset();
        let reception = self.parts.bus.reception();
        if stretch == self.stretch(reception) {
            self.synced = stretch;
        }
        self.due = if self.is_following(reception) {
            self.whole_due
        } else {
            began + POLL
        };
        Ok(())
    }

    async fn read_pages(&mut self, read_all: bool) -> Result<(), ReadError> {
        let now = self.parts.clock.now();
        let mut after = if read_all { 0 } else { self.version };
        loop {
            let page = self.parts.store.changed(after, PAGE, now);
            let page = limited(async { Ok(page.await?) }).await?;
            let is_last = page.len() < PAGE as usize;
            after = page.last().map_or(after, |last| last.version);
            let read = page.into_iter().map(|changed| changed.revocation);
            self.has_learnt |= self.parts.revocations.extend(read);
            if is_last {
                // Also downwards: a database that was replaced by an older copy counts from there.
                self.version = after;
                return Ok(());
            }
        }
    }

    /// Takes over what instances of the release before keep in Redis: into the table, so that it stays when that is gone.
    async fn adopt(&mut self) -> Result<(), ReadError> {
        let mut shared = self.parts.bus.shared_revocations().await?;
        shared.retain(|revocation| !self.parts.revocations.covers(revocation));
        if shared.is_empty() {
            return Ok(());
        }
        for some in shared.chunks(ADOPT_AT_ONCE) {
            let now = self.parts.clock.now();
            match self.parts.store.add(some, MAX_REVOCATIONS, now).await {
                Ok(Added::Stored) => {
                    tracing::info!(
                        count = some.len(),
                        "took over revocations of the release before from Redis"
                    );
                }
                Ok(Added::Full) | Err(StoreError::Refused { .. }) => tracing::error!(
                    count = some.len(),
                    "the database does not take revocations of the release before; they hold while Redis keeps them"
                ),
                Err(error @ (StoreError::Unavailable { .. } | StoreError::TooMuch { .. })) => {
                    return Err(error.into());
                }
            }
            self.has_learnt |= self.parts.revocations.extend(some.iter().cloned());
        }
        Ok(())
    }

    fn note_failure(&mut self, error: &ReadError) {
        let wait = self.backoff.next_delay();
        self.due = Instant::now() + wait;
        let retry_ms = wait.as_millis() as u64;
        let is_ready = self.synced.is_some();
        if self.backoff.failures() == 1 {
            tracing::warn!(%error, retry_ms, ready = is_ready, "reading revocations failed; trying again until it succeeds");
        } else {
            tracing::debug!(%error, retry_ms, "reading revocations failed again");
        }
        if !is_ready {
            self.set_unready(Some(error.to_string()));
        }
    }
}

/// Bounds one answer: while it is waited for, nobody looks at the reception.
async fn limited<T>(answer: impl Future<Output = Result<T, ReadError>>) -> Result<T, ReadError> {
    tokio::time::timeout(READ_LIMIT, answer)
        .await
        .unwrap_or(Err(ReadError::TooSlow(READ_LIMIT)))
}

#[cfg(test)]
mod tests;

//! Tells the other instances of a revocation until each that is live has answered.
//!
//! Input: revocations that the database holds already. Output: what the others answered at first. Whoever did not answer then is asked again, as long as
//! it takes: an instance whose Redis is away reads the database instead, but one that was only slow has no reason to.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Answers, Ask, Bus, BusError};
use crate::backoff::{Backoff, until_done};
use crate::revocation::Revocation;

/// Most revocations that wait to be announced again. Beyond, the oldest is left to the other instances' own reading.
const MAX_WAITING: usize = 10_000;
/// How many are announced at the same time.
const AT_ONCE: usize = 8;

/// Announces revocations. One task runs [`Announcer::run`].
pub struct Announcer {
    bus: Arc<dyn Bus>,
    waiting: Mutex<Vec<Revocation>>,
    more: Notify,
}

/// What one announcement did.
struct Told {
    answers: Answers,
    /// Every live instance has answered, and those that come later find it.
    by_all: bool,
}

/// Not every live instance has answered.
#[derive(Debug, thiserror::Error)]
enum Unannounced {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("without an answer: {0:?}")]
    Silent(Vec<String>),
}

impl Announcer {
    /// Returns one that announces over this bus.
    pub fn new(bus: Arc<dyn Bus>) -> Arc<Self> {
        Arc::new(Self {
            bus,
            waiting: Mutex::default(),
            more: Notify::new(),
        })
    }

    /// Announces a revocation that the database holds, and returns the answers. Whoever is missing among them is told again later; while the others
    /// cannot be asked at all, those are missing that were live before.
    pub async fn announce(&self, revocation: &Revocation) -> Answers {
        match self.tell(revocation).await {
            Ok(Told { answers, by_all }) => {
                if !by_all {
                    self.keep(revocation);
                }
                answers
            }
            Err(error) => {
                tracing::warn!(%error, "the other instances could not be told of a revocation; trying again, and they read it from the database");
                self.keep(revocation);
                Answers {
                    replies: Vec::new(),
                    missing: self.bus.last_seen(),
                }
            }
        }
    }

    /// Announces what waits, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            never = self.announce_all() => match never {},
            () = stop.cancelled() => {}
        }
    }

    async fn announce_all(&self) -> Infallible {
        loop {
            self.more.notified().await;
            let backoff = Backoff::new(Duration::from_millis(200));
            until_done(backoff, "announcing revocations", || {
                self.announce_waiting()
            })
            .await;
        }
    }

    fn keep(&self, revocation: &Revocation) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MAX_WAITING {
            waiting.remove(0);
        }
        waiting.push(revocation.clone());
        drop(waiting);
        self.more.notify_one();
    }

    async fn announce_waiting(&self) -> Result<(), Unannounced> {
        let waiting = self.waiting.lock().clone();
        let mut told = stream::iter(waiting)
            .map(|revocation| async move {
                let Told { answers, by_all } = self.tell(&revocation).await?;
                if !by_all {
                    return Err(Unannounced::Silent(answers.missing));
                }
                self.waiting.lock().retain(|one| *one != revocation);
                Ok(())
            })
            .buffer_unordered(AT_ONCE);
        let mut outcome = Ok(());
        while let Some(one) = told.next().await {
            match one {
                Ok(()) => {}
                // The rest would meet the same.
                Err(Unannounced::Bus(error)) => return Err(error.into()),
                Err(silent) => outcome = Err(silent),
            }
        }
        outcome
    }

    /// Announces once, and writes it for instances of the release before.
    async fn tell(&self, revocation: &Revocation) -> Result<Told, BusError> {
        let ask = Ask::Revoke {
            revocation: revocation.clone(),
            in_database: true,
        };
        let (shared, answers) =
            join(self.bus.share_revocation(revocation), self.bus.ask(&ask)).await;
        let answers = answers?;
        // Where there is no room, those instances are told all the same.
        let is_shared = matches!(shared, Ok(()) | Err(BusError::Full));
        Ok(Told {
            by_all: is_shared && answers.missing.is_empty(),
            answers,
        })
    }
}

#[cfg(test)]
mod tests;

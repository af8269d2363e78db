//! What was asked for by somebody who has gone meanwhile: it is carried out all the same.
//!
//! Input: operations of connections that have ended from [`crate::ws`], requests from [`crate::api`]. Output: the process waits for them, within a limit,
//! before it closes the database.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most at a time. Each is bounded by what it asks of the database.
const MOST: u32 = 4096;

/// Counts what is left to do. Clones share everything.
#[derive(Debug, Clone)]
pub struct Leftovers(Arc<Semaphore>);

/// One of them; it is done when this is dropped.
#[derive(Debug)]
pub struct Leftover {
    _permit: OwnedSemaphorePermit,
}

impl Default for Leftovers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST as usize)))
    }
}

impl Leftovers {
    /// Counts one more; `None` when there are too many.
    pub fn begin(&self) -> Option<Leftover> {
        let permit = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(Leftover { _permit: permit })
    }

    /// Waits until nothing is left.
    pub async fn done(&self) {
        // Nobody closes it.
        let _all = self.0.acquire_many(MOST).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_left_is_waited_for_and_bounded() {
        let leftovers = Leftovers::default();
        leftovers.done().await;
        let mut held: Vec<Leftover> = (0..MOST).map(|_| leftovers.begin().unwrap()).collect();
        assert!(leftovers.begin().is_none());
        let waiting = tokio::spawn({
            let leftovers = leftovers.clone();
            async move { leftovers.done().await }
        });
        held.truncate(1);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.clear();
        waiting.await.unwrap();
    }
}

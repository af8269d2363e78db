//! How far the lane of one partition is, which it shares with the consumer. How much waits is in [`super::budget`].
//!
//! Input: the lane moves the offset. Output: what to commit.

use std::sync::atomic::{AtomicI64, Ordering};

/// The offset before which everything is durable; none until the first record is.
#[derive(Debug)]
pub(super) struct Progress(AtomicI64);

impl Progress {
    pub(super) fn none() -> Self {
        Self(AtomicI64::new(-1))
    }

    /// The offset to commit: of the first record that is not done.
    pub(super) fn next(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Acquire)).filter(|offset| *offset >= 0)
    }

    pub(super) fn set(&self, next: i64) {
        self.0.store(next, Ordering::Release);
    }
}

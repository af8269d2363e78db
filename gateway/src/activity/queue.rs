//! What the consumer and the lane of one partition share: how much waits in the lane's queue, and how far the lane is.
//!
//! Input: the consumer adds records, the lane takes them and moves the offset. Output: whether the partition must pause, and what to commit.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use super::decode::Record;

/// What waits in a lane's queue.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

impl Backlog {
    pub(super) fn add(&self, record: &Record) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(record.size(), Ordering::Relaxed);
    }

    pub(super) fn take(&self, record: &Record) {
        self.records.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(record.size(), Ordering::Relaxed);
    }

    /// Whether more waits than these limits allow.
    pub(super) fn exceeds(&self, records: usize, bytes: usize) -> bool {
        self.records.load(Ordering::Relaxed) >= records
            || self.bytes.load(Ordering::Relaxed) >= bytes
    }
}

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

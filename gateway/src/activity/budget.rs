//! The memory of the pipeline: one budget of bytes for all partitions, shared fairly.
//!
//! Input: what the consumer queues, and what lanes have in hand. Output: which partition pauses, how large a batch and a transaction may be.
//!
//! `kafka.memory_bytes` has three parts. An eighth is for what librdkafka fetches ahead. A quarter is for transactions and pushes: at most
//! `kafka.concurrency` lanes are at work, and each has the same part of it. The rest is for records that wait or are in hand, decoded and rendered.
//!
//! Of that rest a partition may hold as much as is still free (A. K. Choudhury and E. L. Hahne, "Dynamic Queue Length Thresholds for
//! Shared-Memory Packet Switches", 1998). One that is behind alone takes half of it; of a hundred that are behind each takes one part of a hundred and
//! one; and a partition that is new finds as much free as any other holds. Whatever the others hold, each has a small share, and one that holds nothing
//! takes a record of any size.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::decode::Record;

/// What each partition may hold in any case, unless all of these together were more than a quarter of what there is for partitions.
const LEAST_SHARE: usize = 64 << 10;
/// Most bytes of one batch: more at once stores no faster.
const BATCH_BYTES: usize = 8 << 20;
/// Most bytes that librdkafka fetches ahead.
const MOST_PREFETCH: usize = 16 << 20;

/// How much of `kafka.memory_bytes` librdkafka may hold.
pub(super) fn prefetch_bytes(memory_bytes: usize) -> usize {
    (memory_bytes / 8).min(MOST_PREFETCH)
}

/// The bytes of all lanes of this process.
#[derive(Debug)]
pub(super) struct Budget {
    /// What partitions may hold together.
    for_lanes: usize,
    /// What one transaction may need.
    transaction: usize,
    held: AtomicUsize,
    at_work: AtomicUsize,
    shares: AtomicUsize,
}

impl Budget {
    /// `memory_bytes` in all, with so many lanes at work at the same time.
    pub(super) fn new(memory_bytes: usize, concurrency: usize) -> Arc<Self> {
        let for_work = memory_bytes / 4;
        Arc::new(Self {
            for_lanes: memory_bytes - for_work - prefetch_bytes(memory_bytes),
            transaction: for_work / concurrency.max(1),
            held: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            shares: AtomicUsize::new(0),
        })
    }

    /// The share of a partition that was assigned.
    pub(super) fn share(self: &Arc<Self>) -> Arc<Share> {
        self.shares.fetch_add(1, Ordering::Relaxed);
        Arc::new(Share {
            budget: self.clone(),
            waiting: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
        })
    }

    /// How many bytes one transaction may need.
    pub(super) fn transaction_bytes(&self) -> usize {
        self.transaction
    }

    /// Counts what a transaction and its pushes need, until the answer is dropped.
    pub(super) fn work(self: &Arc<Self>, bytes: usize) -> Work {
        self.at_work.fetch_add(bytes, Ordering::Relaxed);
        Work {
            budget: self.clone(),
            bytes,
        }
    }

    /// How many bytes are held.
    pub(super) fn in_use(&self) -> usize {
        self.held.load(Ordering::Relaxed) + self.at_work.load(Ordering::Relaxed)
    }

    /// How many bytes any one partition may hold at this moment.
    fn limit(&self) -> usize {
        let free = self
            .for_lanes
            .saturating_sub(self.held.load(Ordering::Relaxed));
        let shares = self.shares.load(Ordering::Relaxed).max(1);
        free.max(LEAST_SHARE.min(self.for_lanes / 4 / shares))
            .max(1)
    }
}

/// What a transaction and its pushes need.
#[derive(Debug)]
pub(super) struct Work {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.budget.at_work.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the records of one partition hold, from the queue until they are done. The consumer adds to it, the lane takes from it.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    /// Records that are not in hand.
    waiting: AtomicUsize,
    held: AtomicUsize,
}

impl Share {
    /// A record waits.
    pub(super) fn queue(&self, record: &Record) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.grow(record.size());
    }

    /// Whether the partition must pause: as many records as this wait, or it holds all that it may.
    pub(super) fn is_full(&self, most_waiting: usize) -> bool {
        self.waiting.load(Ordering::Relaxed) >= most_waiting
            || self.held.load(Ordering::Relaxed) >= self.budget.limit()
    }

    /// Whether a partition that paused goes on: it holds less than half of what it may, so that it does not pause for every record.
    pub(super) fn has_room(&self, most_waiting: usize) -> bool {
        self.waiting.load(Ordering::Relaxed) < most_waiting.div_ceil(2)
            && self.held.load(Ordering::Relaxed) <= self.budget.limit() / 2
    }

    /// How many bytes a batch of this partition may hold.
    pub(super) fn batch_bytes(&self) -> usize {
        (self.budget.limit() / 2).clamp(1, BATCH_BYTES)
    }

    fn grow(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.budget.held.fetch_add(bytes, Ordering::Relaxed);
    }

    fn shrink(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What waits when the partition is given up is freed with its queue.
impl Drop for Share {
    fn drop(&mut self) {
        let held = self.held.load(Ordering::Relaxed);
        self.budget.held.fetch_sub(held, Ordering::Relaxed);
        self.budget.shares.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The records that a lane has in hand, and what was made of them. Dropping it frees what they held.
#[derive(Debug)]
pub(super) struct RecordsInHand {
    share: Arc<Share>,
    records: usize,
    made: usize,
}

impl RecordsInHand {
    pub(super) fn new(share: Arc<Share>) -> Self {
        Self {
            share,
            records: 0,
            made: 0,
        }
    }

    /// Takes a record that waited. What is made of it counts from here on, as about the same again.
    pub(super) fn take(&mut self, record: &Record) {
        let size = record.size();
        self.share.waiting.fetch_sub(1, Ordering::Relaxed);
        self.records += size;
        self.set_made(self.made + size);
    }

    /// The record waits again.
    pub(super) fn put_back(&mut self, record: &Record) {
        self.share.waiting.fetch_add(1, Ordering::Relaxed);
        self.records -= record.size();
    }

    /// Counts what was made of the records as this many bytes.
    pub(super) fn set_made(&mut self, bytes: usize) {
        self.share.grow(bytes);
        self.share.shrink(self.made);
        self.made = bytes;
    }

    /// How many bytes it holds.
    pub(super) fn bytes(&self) -> usize {
        self.records + self.made
    }
}

impl Drop for RecordsInHand {
    fn drop(&mut self) {
        self.share.shrink(self.bytes());
    }
}

#[cfg(test)]
mod tests;

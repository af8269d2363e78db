//! What other threads ask of a shard: one bounded queue, taken in whole batches, so that a busy shard is woken once per batch.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most commands that wait for a shard.
pub(super) const CAPACITY: usize = 65_536;

/// A queue with one reader.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    queue: Mutex<Vec<T>>,
    filled: Notify,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Self {
        Self { queue: Mutex::new(Vec::new()), filled: Notify::new() }
    }

    /// Queues an item; gives it back when [`CAPACITY`] are waiting.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let first = {
            let mut queue = self.queue.lock();
            if queue.len() >= CAPACITY {
                return Err(item);
            }
            queue.push(item);
            queue.len() == 1
        };
        if first {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Waits until something is queued and takes all of it. Cancel safe: what is taken is returned at once.
    pub(super) async fn take(&self) -> Vec<T> {
        loop {
            let batch = std::mem::take(&mut *self.queue.lock());
            if !batch.is_empty() {
                return batch;
            }
            self.filled.notified().await;
        }
    }
}

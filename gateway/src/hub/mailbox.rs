//! The queue of a shard: bounded, and taken in whole batches, so that a busy shard wakes once per batch.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most messages that wait for a shard ...
const MESSAGES: usize = 65_536;
/// ... and most of their bytes.
const BYTES: usize = 64 << 20;

/// A queue with one reader.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    queue: Mutex<Queue<T>>,
    filled: Notify,
}

#[derive(Debug)]
struct Queue<T> {
    items: Vec<T>,
    bytes: usize,
    closed: bool,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Self {
        Self {
            queue: Mutex::new(Queue {
                items: Vec::new(),
                bytes: 0,
                closed: false,
            }),
            filled: Notify::new(),
        }
    }

    /// Queues a message of `bytes` bytes. Returns false when too much waits or the reader is gone.
    pub(super) fn push_message(&self, item: T, bytes: usize) -> bool {
        self.push(item, bytes, true)
    }

    /// Queues a command, which a flood of messages must not push out. Its sender waits for an answer, so their number is bounded. Returns false when
    /// the reader is gone.
    pub(super) fn push_command(&self, item: T) -> bool {
        self.push(item, 0, false)
    }

    fn push(&self, item: T, bytes: usize, bounded: bool) -> bool {
        let first = {
            let mut queue = self.queue.lock();
            if queue.closed
                || (bounded && (queue.items.len() >= MESSAGES || queue.bytes + bytes > BYTES))
            {
                return false;
            }
            queue.items.push(item);
            queue.bytes += bytes;
            queue.items.len() == 1
        };
        if first {
            self.filled.notify_one();
        }
        true
    }

    /// Waits until something is queued, and swaps all of it into `batch`, which must be empty. Cancel safe.
    pub(super) async fn take(&self, batch: &mut Vec<T>) {
        loop {
            {
                let mut queue = self.queue.lock();
                if !queue.items.is_empty() {
                    std::mem::swap(&mut queue.items, batch);
                    queue.bytes = 0;
                    return;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Drops what waits and refuses everything else. Callers that wait for an answer get none.
    pub(super) fn close(&self) {
        let dropped = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.items)
        };
        drop(dropped);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_of_messages_is_refused_and_commands_still_pass() {
        let mailbox = Mailbox::new();
        assert!(mailbox.push_message(0, BYTES));
        assert!(!mailbox.push_message(1, 1));
        assert!(mailbox.push_command(2));
        let mut batch = Vec::new();
        mailbox.take(&mut batch).await;
        assert_eq!(batch, [0, 2]);
        assert!(mailbox.push_message(3, 1), "a taken batch makes room");
    }

    #[tokio::test]
    async fn a_closed_mailbox_drops_what_waits_and_refuses_the_rest() {
        let mailbox = Mailbox::new();
        let (answer, waiting) = tokio::sync::oneshot::channel::<()>();
        assert!(mailbox.push_command(answer));
        mailbox.close();
        assert!(waiting.await.is_err());
        assert!(!mailbox.push_command(tokio::sync::oneshot::channel().0) && mailbox.is_closed());
    }
}

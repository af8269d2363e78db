//! What other threads ask of a shard: one bounded queue, taken in whole batches, so that a busy shard is woken once per batch.

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

    /// Queues a message of so many bytes; false when too much waits, or the reader is gone.
    pub(super) fn push_message(&self, item: T, bytes: usize) -> bool {
        self.push(item, bytes, true)
    }

    /// Queues what must not be lost to a flood of messages; whoever sends it waits for an answer, which bounds it. False when the reader is gone.
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

    /// Waits until something is queued and swaps all of it into `batch`, which must be empty. Cancel safe: it waits before it takes.
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

    /// Drops what waits and takes nothing more: whoever waits for an answer learns that none comes.
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
        assert!(mailbox.push_message(3, 1), "what was taken makes room");
    }

    #[tokio::test]
    async fn a_closed_mailbox_drops_what_waits_and_takes_nothing() {
        let mailbox = Mailbox::new();
        let (answer, waiting) = tokio::sync::oneshot::channel::<()>();
        assert!(mailbox.push_command(answer));
        mailbox.close();
        assert!(waiting.await.is_err());
        assert!(!mailbox.push_command(tokio::sync::oneshot::channel().0) && mailbox.is_closed());
    }
}

//! The queue of a shard: bounded, and taken in whole batches, so that a busy shard wakes once per batch.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most messages that wait for a shard ...
const MESSAGES: usize = 65_536;
/// ... and most of their bytes.
const BYTES: usize = 64 << 20;

/// What was queued, in order, each with its bytes.
pub(super) type Batch<T> = VecDeque<(T, usize)>;

/// A queue with one reader.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    queue: Mutex<Queue<T>>,
    filled: Notify,
}

#[derive(Debug)]
struct Queue<T> {
    items: Batch<T>,
    bytes: usize,
    closed: bool,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Self {
        Self {
            queue: Mutex::new(Queue {
                items: Batch::new(),
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
            queue.items.push_back((item, bytes));
            queue.bytes += bytes;
            queue.items.len() == 1
        };
        if first {
            self.filled.notify_one();
        }
        true
    }

    /// Waits until something is queued, and swaps all of it into `batch`, which must be empty. Cancel safe.
    pub(super) async fn take(&self, batch: &mut Batch<T>) {
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

    /// Takes from the front as long as `wanted` returns true of an item and its bytes.
    pub(super) fn take_while(&self, mut wanted: impl FnMut(&T, usize) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        let mut queue = self.queue.lock();
        while let Some((item, bytes)) = queue
            .items
            .pop_front_if(|(item, bytes)| wanted(item, *bytes))
        {
            queue.bytes -= bytes;
            taken.push(item);
        }
        taken
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
        let mut batch = Batch::new();
        mailbox.take(&mut batch).await;
        assert_eq!(batch, [(0, BYTES), (2, 0)]);
        assert!(mailbox.push_message(3, 1), "a taken batch makes room");
    }

    #[test]
    fn what_is_taken_from_the_front_makes_room_and_the_rest_keeps_its_order() {
        let mailbox = Mailbox::new();
        for n in 0..4 {
            assert!(mailbox.push_message(n, BYTES / 4));
        }
        assert_eq!(mailbox.take_while(|n, _| *n < 2), [0, 1]);
        assert!(mailbox.push_message(4, BYTES / 2));
        assert!(!mailbox.push_message(5, 1), "only what was taken made room");
        assert_eq!(mailbox.take_while(|n, _| *n != 3), [2]);
        assert_eq!(mailbox.take_while(|_, bytes| bytes <= BYTES / 2), [3, 4]);
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

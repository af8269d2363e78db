//! What was received and waits to be handed out, in order.
//!
//! A connection's driver must not wait, so the queue is bounded by dropping: once half of it is free again, a [`BusEvent::Resync`] follows.
//! Input: [`Intake`](super::intake::Intake). Output: [`Events`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;

use crate::bus::BusEvent;
use crate::bus::wire::Bridged;
use crate::dispatch::ResyncReason;

/// Most bytes that wait.
pub(super) const MAX_WAITING_BYTES: usize = 64 << 20;
/// Most events that wait.
pub(super) const MAX_WAITING: usize = 65_536;

/// Which instance published a dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bus) struct Origin {
    /// Its `serverId`.
    pub(in crate::bus) instance: Box<str>,
    /// The numbers of a dispatch that was published to two servers.
    pub(in crate::bus) bridged: Option<Bridged>,
}

/// An event, and the instance that published it where it was an instance.
#[derive(Debug)]
pub(in crate::bus) struct Received {
    pub(in crate::bus) event: BusEvent,
    pub(in crate::bus) origin: Option<Origin>,
}

impl Received {
    /// Whether it was published to two servers.
    pub(in crate::bus) fn is_numbered(&self) -> bool {
        self.origin
            .as_ref()
            .is_some_and(|origin| origin.bridged.is_some())
    }
}

impl From<BusEvent> for Received {
    fn from(event: BusEvent) -> Self {
        Self {
            event,
            origin: None,
        }
    }
}

enum Queued {
    /// With the bytes that it counts as.
    Received(Received, usize),
    /// Nothing follows.
    End,
}

/// The queue as those who fill it see it.
pub(super) struct Queue {
    sender: mpsc::UnboundedSender<Queued>,
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// Something was dropped, and no resync has followed yet.
    overflowed: AtomicBool,
}

impl Queue {
    /// Returns both ends.
    pub(super) fn new() -> (Arc<Self>, Events) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queue = Arc::new(Self {
            sender,
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            overflowed: AtomicBool::new(false),
        });
        let events = Events {
            receiver,
            queue: Arc::clone(&queue),
            taken: Vec::new(),
        };
        (queue, events)
    }

    /// Queues an event that counts as so many bytes; `false` where there is no room.
    pub(super) fn push(&self, received: Received, bytes: usize) -> bool {
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel) + 1;
        let waiting_bytes = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if waiting > MAX_WAITING
            || waiting_bytes > MAX_WAITING_BYTES
            || self.sender.send(Queued::Received(received, bytes)).is_err()
        {
            self.forget(bytes);
            return false;
        }
        true
    }

    fn forget(&self, bytes: usize) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Queues a resync behind everything that waits, although the queue may be full.
    pub(super) fn push_resync(&self, reason: ResyncReason) {
        self.push_always(BusEvent::Resync(reason));
    }

    /// Queues this behind everything that waits, although the queue may be full.
    pub(super) fn push_always(&self, event: BusEvent) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _ = self.sender.send(Queued::Received(event.into(), 0));
    }

    /// Notes that something was dropped; `true` for the first since the last resync.
    pub(super) fn note_drop(&self) -> bool {
        !self.overflowed.swap(true, Ordering::AcqRel)
    }

    /// Returns how many events wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Ends when events are no longer taken.
    pub(super) async fn abandoned(&self) {
        self.sender.closed().await;
    }

    /// Returns a guard: the events end behind what was received before it is dropped.
    pub(super) fn end_when_dropped(self: &Arc<Self>) -> EndOfEvents {
        EndOfEvents(Arc::clone(self))
    }

    /// Whether a resync is due for what was dropped: once half of the queue is free again.
    fn overflow_is_over(&self) -> bool {
        self.waiting.load(Ordering::Acquire) <= MAX_WAITING / 2
            && self.waiting_bytes.load(Ordering::Acquire) <= MAX_WAITING_BYTES / 2
            && self.overflowed.swap(false, Ordering::AcqRel)
    }
}

/// Ends the events when it is dropped.
pub(super) struct EndOfEvents(Arc<Queue>);

impl Drop for EndOfEvents {
    fn drop(&mut self) {
        let _ = self.0.sender.send(Queued::End);
    }
}

/// What was received, in order. Once it is dropped the bus closes.
pub(in crate::bus) struct Events {
    receiver: mpsc::UnboundedReceiver<Queued>,
    queue: Arc<Queue>,
    /// Scratch.
    taken: Vec<Queued>,
}

impl Events {
    /// Takes at most `limit` of what waits; an empty batch means that the events have ended.
    pub(in crate::bus) fn poll_many(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<()> {
        if self.receiver.is_closed() {
            return Poll::Ready(());
        }
        ready!(
            self.receiver
                .poll_recv_many(context, &mut self.taken, limit)
        );
        for queued in self.taken.drain(..) {
            let Queued::Received(received, bytes) = queued else {
                self.receiver.close();
                break;
            };
            self.queue.forget(bytes);
            batch.push(received);
        }
        if !self.receiver.is_closed() && self.queue.overflow_is_over() {
            self.queue.push_resync(ResyncReason::BusOverflow);
        }
        Poll::Ready(())
    }

    /// Whether nothing waits.
    pub(in crate::bus) fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }
}

#[cfg(test)]
impl Events {
    /// Takes the next; `None` at their end.
    pub(super) async fn recv(&mut self) -> Option<Received> {
        let mut batch = Vec::new();
        std::future::poll_fn(|context| self.poll_many(context, &mut batch, 1)).await;
        batch.pop()
    }

    /// Takes the next if it waits.
    pub(super) fn try_recv(&mut self) -> Option<Received> {
        let mut batch = Vec::new();
        let _ = self.poll_many(
            &mut Context::from_waker(std::task::Waker::noop()),
            &mut batch,
            1,
        );
        batch.pop()
    }
}

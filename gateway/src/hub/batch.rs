//! What the shard queues to connections at once: one message, or a batch of messages that follow each other to the same destination.

use std::rc::Rc;

use smallvec::SmallVec;

use super::outbox::WRITE_BYTES;
use crate::protocol::Message;

/// Messages to the same connections, and their frames joined once for every connection that is not encrypted.
#[derive(Debug)]
pub(super) struct MessageBatch {
    pub(super) messages: Vec<Rc<Message>>,
    /// All frames, one after the other.
    pub(super) joined: Vec<u8>,
}

impl MessageBatch {
    /// Most bytes of frames in one batch.
    pub(super) const MAX_BYTES: usize = WRITE_BYTES;

    pub(super) fn new(messages: Vec<Rc<Message>>) -> Self {
        let mut joined =
            Vec::with_capacity(messages.iter().map(|message| message.frame().len()).sum());
        messages
            .iter()
            .for_each(|message| joined.extend_from_slice(message.frame()));
        Self { messages, joined }
    }
}

/// What is queued to connections at once.
pub(super) enum Outgoing {
    Single(Rc<Message>),
    Batch(Rc<MessageBatch>),
}

impl Outgoing {
    /// Returns how many messages it holds.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Single(_) => 1,
            Self::Batch(batch) => batch.messages.len(),
        }
    }
}

/// Collects messages that follow each other to the same destination.
pub(super) struct BatchBuilder {
    messages: SmallVec<[Rc<Message>; 1]>,
    bytes: usize,
}

impl BatchBuilder {
    pub(super) fn new(message: Message) -> Self {
        let bytes = message.frame().len();
        Self {
            messages: SmallVec::from([Rc::new(message)]),
            bytes,
        }
    }

    /// Returns whether the message fits into the batch, and into `room` bytes.
    pub(super) fn has_room(&self, message: &Message, room: usize) -> bool {
        let length = message.frame().len();
        length <= room && self.bytes + length <= MessageBatch::MAX_BYTES
    }

    pub(super) fn push(&mut self, message: Message) {
        self.bytes += message.frame().len();
        self.messages.push(Rc::new(message));
    }

    pub(super) fn build(self) -> Outgoing {
        match self.messages.into_inner() {
            Ok([message]) => Outgoing::Single(message),
            Err(messages) => Outgoing::Batch(Rc::new(MessageBatch::new(messages.into_vec()))),
        }
    }
}

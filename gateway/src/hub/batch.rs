//! What the shard queues to connections at once: one message, or a batch of messages that follow each other to the same destination.

use std::rc::Rc;

use smallvec::SmallVec;

use super::outbox::WRITE_BYTES;
use crate::protocol::Message;
use crate::protocol::cipher::Cipher;

/// Messages to the same connections, and their frames joined once for every connection that is not encrypted.
#[derive(Debug)]
pub(super) struct MessageBatch {
    pub(super) messages: Vec<Rc<Message>>,
    /// All frames, one after the other.
    pub(super) joined: Vec<u8>,
    /// Bytes of all frames where they are sealed.
    pub(super) sealed_length: usize,
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
        let sealed = messages
            .iter()
            .map(|message| Cipher::sealed_length(message.payload().len()));
        Self {
            sealed_length: sealed.sum(),
            messages,
            joined,
        }
    }
}

/// What is queued to connections at once.
#[derive(Debug)]
pub(super) enum Outgoing {
    Single(Rc<Message>),
    Batch(Rc<MessageBatch>),
}

impl Outgoing {
    /// Returns how many messages it holds.
    pub(super) fn count(&self) -> usize {
        self.messages().len()
    }

    /// Returns its messages.
    fn messages(&self) -> &[Rc<Message>] {
        match self {
            Self::Single(message) => std::slice::from_ref(message),
            Self::Batch(batch) => &batch.messages,
        }
    }

    /// Returns whether both are the same, not only equal.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Single(one), Self::Single(other)) => Rc::ptr_eq(one, other),
            (Self::Batch(one), Self::Batch(other)) => Rc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// What is queued to many connections, and the same joined to what most of them have waiting: the messages before it to the same receivers.
pub(super) struct Joining<'a> {
    pub(super) outgoing: &'a Outgoing,
    /// How many more times it may be joined to something.
    left: usize,
    last: Option<(Outgoing, Rc<MessageBatch>)>,
}

impl<'a> Joining<'a> {
    /// Joins at most so often: each time copies all frames.
    pub(super) fn new(outgoing: &'a Outgoing, times: usize) -> Self {
        Self {
            outgoing,
            left: times,
            last: None,
        }
    }

    /// Returns what waits with this behind it; `None` if that would be too long, or joined too often.
    pub(super) fn behind(&mut self, waiting: Outgoing) -> Option<Rc<MessageBatch>> {
        if let Some((known, joined)) = &self.last
            && known.is(&waiting)
        {
            return Some(Rc::clone(joined));
        }
        self.left = self.left.checked_sub(1)?;
        let both = [waiting.messages(), self.outgoing.messages()].concat();
        let bytes: usize = both.iter().map(|message| message.frame().len()).sum();
        if bytes > MessageBatch::MAX_BYTES {
            return None;
        }
        let joined = Rc::new(MessageBatch::new(both));
        self.last = Some((waiting, Rc::clone(&joined)));
        Some(joined)
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

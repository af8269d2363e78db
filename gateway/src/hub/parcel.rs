//! What is queued to connections at once: a message, or several that follow each other to the same destination, joined once for all of it.

use std::rc::Rc;

use smallvec::SmallVec;

use super::outbox::Run;
use crate::protocol::Message;

/// What is queued to connections at once.
pub(super) enum Parcel {
    One(Rc<Message>),
    Run(Rc<Run>),
}

impl Parcel {
    pub(super) fn messages(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Run(run) => run.messages().len(),
        }
    }
}

/// Messages that follow each other to the same destination.
pub(super) struct Burst {
    messages: SmallVec<[Rc<Message>; 1]>,
    bytes: usize,
}

impl Burst {
    pub(super) fn new(message: Message) -> Self {
        let bytes = message.frame().len();
        Self {
            messages: SmallVec::from([Rc::new(message)]),
            bytes,
        }
    }

    /// Whether a message goes into it, and into so many bytes.
    pub(super) fn takes(&self, message: &Message, room: usize) -> bool {
        let length = message.frame().len();
        length <= room && self.bytes + length <= Run::BYTES
    }

    pub(super) fn push(&mut self, message: Message) {
        self.bytes += message.frame().len();
        self.messages.push(Rc::new(message));
    }

    pub(super) fn end(self) -> Parcel {
        match self.messages.into_inner() {
            Ok([message]) => Parcel::One(message),
            Err(messages) => Parcel::Run(Rc::new(Run::new(messages.into_vec()))),
        }
    }
}

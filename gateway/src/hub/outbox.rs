//! What waits to be written to one connection: shared bytes, bounded, flushed in one call.
//!
//! A burst leaves in one write; a single message is written without a copy. Messages are sealed while they are flushed, straight into the write
//! buffer, so their order is kept and a waiting message costs one reference.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use rand::RngCore;
use smallvec::SmallVec;

use super::batch::{Joining, MessageBatch, Outgoing};
use crate::clock::Moment;
use crate::protocol::cipher::{Cipher, IV_BYTES};
use crate::protocol::{Message, SharedMessages};

/// Most bytes that are copied together for one write.
pub(super) const WRITE_BYTES: usize = 64 * 1024;

/// Buffers that all connections of a thread share.
#[derive(Debug)]
pub(super) struct Scratch {
    write: Vec<u8>,
    seal: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch { write: Vec::with_capacity(WRITE_BYTES), seal: Vec::new() });
}

/// What an outbox writes to.
pub(super) trait Sink {
    /// Writes without waiting. What it returns is not given again: it is with the peer, or held.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Returns how many bytes it took and has yet to write: those of a TLS record that the socket took in part.
    fn held(&self) -> usize {
        0
    }

    /// Writes what it holds. Nothing else is given to it before that has gone.
    fn write_held(&self) -> io::Result<usize> {
        Ok(0)
    }
}

/// One entry of the queue. All connections of a shard share the messages, so queueing counts a reference without an atomic operation.
#[derive(Debug)]
enum Entry {
    /// A frame as it is.
    Clear(Rc<Message>),
    /// A message that is encrypted while it is written.
    Sealed(Rc<Message>),
    /// Frames as they are. Nothing is queued before them, and what is not written at once becomes single frames.
    Batch(Rc<MessageBatch>),
    /// The same, each to be encrypted.
    SealedBatch(Rc<MessageBatch>),
    /// One of several messages that share their text, put together while it is written. What is not written at once becomes a message of its own, so that
    /// nobody who waits keeps what is for others.
    Shared(Rc<SharedMessages>, u32),
    /// The same, to be encrypted.
    SharedSealed(Rc<SharedMessages>, u32),
    /// The rest of a sealed frame whose beginning is on the wire. It is rare and boxed, so that it does not make every entry longer.
    Rest(Box<SealedRest>),
}

#[derive(Debug)]
struct SealedRest {
    bytes: Vec<u8>,
}

impl Entry {
    /// Returns the bytes to write, or `None` for a message that has yet to be sealed or put together.
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Clear(message) => Some(message.frame()),
            Self::Batch(batch) => Some(&batch.joined),
            Self::Rest(rest) => Some(&rest.bytes),
            Self::Sealed(_) | Self::SealedBatch(_) | Self::Shared(..) | Self::SharedSealed(..) => {
                None
            }
        }
    }

    /// Returns how many bytes it takes on the wire.
    fn length(&self) -> usize {
        match self {
            Self::Sealed(message) => Cipher::sealed_length(message.payload().len()),
            Self::SealedBatch(batch) => batch.sealed_length,
            Self::Shared(messages, n) => messages.frame_length(*n as usize),
            Self::SharedSealed(messages, n) => {
                Cipher::sealed_length(messages.payload_length(*n as usize))
            }
            entry => entry.bytes().map_or(0, <[u8]>::len),
        }
    }
}

fn without_longest(lengths: impl Iterator<Item = usize>) -> usize {
    let (sum, longest) = lengths.fold((0, 0), |(sum, longest), length| {
        (sum + length, length.max(longest))
    });
    sum - longest
}

/// More would wait than the bounds allow: the reader is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overflow;

/// How far a flush got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing waits.
    All,
    /// The socket takes no more for now.
    Blocked,
}

/// Bounds of one outbox.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes that may wait.
    pub bytes: usize,
    /// Frames that may wait.
    pub frames: usize,
}

#[derive(Debug, Default)]
struct Held {
    messages: Vec<Rc<Message>>,
    bytes: usize,
}

/// Why nothing is written. Boxed, because few outboxes have a reason at any time.
#[derive(Debug, Default)]
struct Standstill {
    /// Messages that are held back.
    held: Option<Held>,
    /// Since when the socket has taken nothing while something waits.
    blocked_since: Option<Moment>,
}

/// What waits to be written to one connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    entries: SmallVec<[Entry; 1]>,
    /// How much of the first entry has been written.
    written: usize,
    /// Whether the first entry is a frame whose beginning is on the wire.
    begun: bool,
    bytes: usize,
    seal: Option<Cipher>,
    standstill: Option<Box<Standstill>>,
    closing: bool,
    /// Bytes that the sink holds. They count as waiting, and nothing overtakes them.
    held_by_sink: u32,
}

impl Outbox {
    /// Seals every message that is queued from here on.
    pub(super) fn seal_with(&mut self, cipher: Cipher) {
        self.seal = Some(cipher);
    }

    /// Holds messages back until [`Outbox::release`].
    pub(super) fn hold(&mut self) {
        self.standstill
            .get_or_insert_default()
            .held
            .get_or_insert_default();
    }

    /// Queues the held messages that `keep` returns true for. They were within the bounds when they came, and the socket was not asked yet.
    pub(super) fn release(&mut self, mut keep: impl FnMut(&Message) -> bool) {
        let Some(held) = self.take_held() else {
            return;
        };
        for message in held.messages.iter().filter(|m| keep(m)) {
            let entry = self.entry(message);
            self.append(entry);
        }
    }

    /// Queues a message, or holds it back.
    pub(super) fn push(&mut self, message: &Rc<Message>, bounds: Bounds) -> Result<(), Overflow> {
        let standstill = self.standstill.as_mut();
        if let Some(held) = standstill.and_then(|standstill| standstill.held.as_mut()) {
            let length = message.frame().len();
            let lengths = held.messages.iter().map(|message| message.frame().len());
            if !held.messages.is_empty()
                && (held.messages.len() >= bounds.frames
                    || (held.bytes + length > bounds.bytes
                        && without_longest(lengths.chain([length])) > bounds.bytes))
            {
                return Err(Overflow);
            }
            held.bytes += length;
            held.messages.push(Rc::clone(message));
            return Ok(());
        }
        self.push_now(message, bounds)
    }

    /// Queues what goes to many, or holds it back.
    pub(super) fn push_outgoing(
        &mut self,
        joining: &mut Joining<'_>,
        bounds: Bounds,
    ) -> Result<(), Overflow> {
        if self.join(joining, bounds) {
            return Ok(());
        }
        match joining.outgoing {
            Outgoing::Single(message) => self.push(message, bounds),
            Outgoing::Batch(batch) => self.push_batch(batch, bounds),
        }
    }

    /// Replaces the messages that wait by these and the new ones in one batch, which is joined once for all who have the same waiting. Returns false, and
    /// changes nothing, if something else waits or the bounds do not allow it.
    fn join(&mut self, joining: &mut Joining<'_>, bounds: Bounds) -> bool {
        let untouched =
            self.written == 0 && !self.begun && !self.closing && self.standstill.is_none();
        let waiting = match (self.entries.as_slice(), &self.seal) {
            ([Entry::Clear(message)], None) | ([Entry::Sealed(message)], Some(_)) => {
                Outgoing::Single(Rc::clone(message))
            }
            ([Entry::Batch(batch)], None) | ([Entry::SealedBatch(batch)], Some(_)) => {
                Outgoing::Batch(Rc::clone(batch))
            }
            _ => return false,
        };
        let Some(batch) = Some(waiting)
            .filter(|_| untouched)
            .and_then(|waiting| joining.behind(waiting))
        else {
            return false;
        };
        let entry = self.batch(&batch);
        let fits = batch.messages.len() <= bounds.frames && entry.length() <= bounds.bytes;
        if fits {
            self.bytes = entry.length();
            self.entries[0] = entry;
        }
        fits
    }

    fn batch(&self, batch: &Rc<MessageBatch>) -> Entry {
        match self.seal {
            None => Entry::Batch(Rc::clone(batch)),
            Some(_) => Entry::SealedBatch(Rc::clone(batch)),
        }
    }

    /// Queues a batch, or holds its messages back.
    fn push_batch(&mut self, batch: &Rc<MessageBatch>, bounds: Bounds) -> Result<(), Overflow> {
        let as_one = self.held().is_none()
            && self.entries.is_empty()
            && batch.messages.len() <= bounds.frames
            && (self.seal.is_none() || batch.sealed_length <= bounds.bytes);
        if as_one {
            return self.queue(self.batch(batch), bounds);
        }
        if self.held().is_none() {
            self.entries.reserve(batch.messages.len());
        }
        batch
            .messages
            .iter()
            .try_for_each(|message| self.push(message, bounds))
    }

    /// Queues message `n` of those that share their text, or holds it back. Where it may wait for long it is queued as a message of its own.
    pub(super) fn push_shared(
        &mut self,
        messages: &Rc<SharedMessages>,
        n: usize,
        bounds: Bounds,
    ) -> Result<(), Overflow> {
        if self.standstill.is_some() {
            return self.push(&Rc::new(messages.message(n)), bounds);
        }
        let (messages, n) = (Rc::clone(messages), n as u32);
        let entry = match self.seal {
            None => Entry::Shared(messages, n),
            Some(_) => Entry::SharedSealed(messages, n),
        };
        self.queue(entry, bounds)
    }

    /// Gives what waits a text of its own.
    fn separate(&mut self) {
        self.split_batch();
        for entry in &mut self.entries {
            *entry = match entry {
                Entry::Shared(messages, n) => Entry::Clear(Rc::new(messages.message(*n as usize))),
                Entry::SharedSealed(messages, n) => {
                    Entry::Sealed(Rc::new(messages.message(*n as usize)))
                }
                _ => continue,
            };
        }
    }

    /// Queues a message ahead of the held ones.
    pub(super) fn push_now(
        &mut self,
        message: &Rc<Message>,
        bounds: Bounds,
    ) -> Result<(), Overflow> {
        let entry = self.entry(message);
        self.queue(entry, bounds)
    }

    fn entry(&self, message: &Rc<Message>) -> Entry {
        match self.seal {
            None => Entry::Clear(Rc::clone(message)),
            Some(_) => Entry::Sealed(Rc::clone(message)),
        }
    }

    /// Queues a frame as it is: control frames, and messages that are never encrypted.
    pub(super) fn push_clear(
        &mut self,
        message: &Rc<Message>,
        bounds: Bounds,
    ) -> Result<(), Overflow> {
        self.queue(Entry::Clear(Rc::clone(message)), bounds)
    }

    fn queue(&mut self, entry: Entry, bounds: Bounds) -> Result<(), Overflow> {
        if !self.closing && !self.entries.is_empty() && self.overflows(entry.length(), bounds) {
            return Err(Overflow);
        }
        self.append(entry);
        Ok(())
    }

    fn append(&mut self, entry: Entry) {
        if !self.closing {
            self.bytes += entry.length();
            self.entries.push(entry);
        }
    }

    /// Returns whether one more entry would be too much. The bounds are for what adds up, so neither the message that is being written counts nor the
    /// longest of the others: one message of any length closes nobody (protocol.md 8.2).
    fn overflows(&self, length: usize, bounds: Bounds) -> bool {
        let behind = self.entries[1..].iter().map(Entry::length);
        self.entries.len() >= bounds.frames
            || (self.bytes + length > bounds.bytes
                && without_longest(behind.chain([length])) > bounds.bytes)
    }

    /// Returns whether half of what may wait does, and the sink was not found full.
    pub(super) fn is_half_full(&self, bounds: Bounds) -> bool {
        (self.entries.len() > bounds.frames / 2 || self.bytes > bounds.bytes / 2)
            && !self.is_blocked()
    }

    /// Drops what waits, except the rest of a half-written frame, and queues the Close frame as the last one.
    pub(super) fn finish(&mut self, close: Message) {
        self.discard();
        self.push_last(close);
    }

    /// Queues the Close frame behind what waits, so a reader that keeps up loses nothing.
    pub(super) fn finish_after_queued(&mut self, close: Message) {
        self.take_held();
        if !self.closing {
            self.push_last(close);
        }
    }

    fn push_last(&mut self, close: Message) {
        self.bytes += close.frame().len();
        self.entries.push(Entry::Clear(Rc::new(close)));
        self.closing = true;
    }

    fn discard(&mut self) {
        self.take_held();
        self.entries.truncate(usize::from(self.begun));
        self.bytes = self
            .entries
            .first()
            .and_then(Entry::bytes)
            .map_or(0, |rest| rest.len() - self.written);
    }

    /// Returns whether nothing waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.held_by_sink == 0
    }

    /// Returns the bytes that wait, held messages included.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.bytes + self.held_by_sink as usize + self.held().map_or(0, |held| held.bytes)
    }

    /// Notes how many bytes the sink holds, after it got some from elsewhere.
    pub(super) fn note_held(&mut self, sink: &impl Sink) {
        self.held_by_sink = u32::try_from(sink.held()).unwrap_or(u32::MAX);
    }

    /// Returns since when the socket has taken nothing while something waits.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        let since = self.standstill.as_ref()?.blocked_since;
        since.map(Moment::instant)
    }

    fn held(&self) -> Option<&Held> {
        self.standstill.as_ref()?.held.as_ref()
    }

    fn take_held(&mut self) -> Option<Held> {
        let standstill = self.standstill.as_mut()?;
        let held = standstill.held.take();
        self.standstill
            .take_if(|standstill| standstill.blocked_since.is_none());
        held
    }

    fn is_blocked(&self) -> bool {
        self.standstill
            .as_ref()
            .is_some_and(|standstill| standstill.blocked_since.is_some())
    }

    fn block(&mut self, since: Instant) {
        self.standstill.get_or_insert_default().blocked_since = Some(since.into());
    }

    fn unblock(&mut self) {
        if let Some(standstill) = &mut self.standstill {
            standstill.blocked_since = None;
            self.standstill
                .take_if(|standstill| standstill.held.is_none());
        }
    }

    /// Reads what [`Outbox::flush`] needs, and returns something that depends on it.
    pub(super) fn look_at(&self) -> (usize, bool, Option<usize>) {
        let waits = (self.waiting_bytes() + self.written, self.is_blocked());
        let length = self.seal.as_ref().map(|cipher| cipher.key_length());
        (waits.0 + self.entries.len(), waits.1, length)
    }

    /// Writes what waits, as far as the sink takes it. Returns how far it got and the bytes written.
    pub(super) fn flush(
        &mut self,
        sink: &impl Sink,
        now: impl Fn() -> Instant,
    ) -> io::Result<(Flushed, usize)> {
        let mut total = 0;
        if sink.held() > 0 && !self.flush_held(sink, &now)? {
            self.separate();
            return Ok((Flushed::Blocked, 0));
        }
        while !self.entries.is_empty() {
            let (wanted, result) = match self.entries.as_slice() {
                [Entry::Clear(_) | Entry::Batch(_) | Entry::Rest(_)] => self.write_alone(sink),
                _ => self.write_together(sink),
            };
            let written = match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            total += written;
            self.bytes = self.bytes.saturating_sub(written);
            self.note_held(sink);
            if written < wanted || self.held_by_sink > 0 {
                // A single byte starts the clock again: slow is not stuck.
                if written > 0 || !self.is_blocked() {
                    self.block(now());
                }
                self.separate();
                return Ok((Flushed::Blocked, total));
            }
        }
        self.unblock();
        if self.entries.spilled() {
            self.entries = SmallVec::new();
        }
        Ok((Flushed::All, total))
    }

    /// Has the sink write what it holds. Returns whether all of it has gone.
    fn flush_held(&mut self, sink: &impl Sink, now: impl Fn() -> Instant) -> io::Result<bool> {
        while sink.held() > 0 {
            match sink.write_held() {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => self.block(now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.note_held(sink);
                    if !self.is_blocked() {
                        self.block(now());
                    }
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.held_by_sink = 0;
        Ok(true)
    }

    /// Writes the only entry without copying it.
    fn write_alone(&mut self, sink: &impl Sink) -> (usize, io::Result<usize>) {
        let Some(bytes) = self.entries.first().and_then(Entry::bytes) else {
            return (0, Ok(0));
        };
        let wanted = bytes.len() - self.written;
        let result = sink.write(&bytes[self.written..]);
        let written = *result.as_ref().unwrap_or(&0);
        if written == wanted {
            self.entries.clear();
            (self.written, self.begun) = (0, false);
        } else {
            self.written += written;
            self.begun |= written > 0;
            self.split_batch();
        }
        (wanted, result)
    }

    /// Replaces a batch at the front by its frames that are not yet written.
    fn split_batch(&mut self) {
        let (batch, single): (_, fn(_) -> _) = match self.entries.first() {
            Some(Entry::Batch(batch)) => (Rc::clone(batch), Entry::Clear),
            Some(Entry::SealedBatch(batch)) => (Rc::clone(batch), Entry::Sealed),
            _ => return,
        };
        let mut left = batch.messages.as_slice();
        while let [first, rest @ ..] = left
            && first.frame().len() <= self.written
        {
            self.written -= first.frame().len();
            left = rest;
        }
        self.begun = self.written > 0;
        self.entries.remove(0);
        self.entries
            .insert_many(0, left.iter().cloned().map(single));
    }

    /// Appends the envelope that `envelope` writes as a sealed frame.
    fn seal_into(
        &self,
        write: &mut Vec<u8>,
        seal: &mut Vec<u8>,
        envelope: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut iv = [0u8; IV_BYTES];
        rand::rng().fill_bytes(&mut iv);
        let cipher = self.seal.as_ref();
        cipher
            .expect("a message is only queued for sealing with a cipher")
            .seal_written(envelope, iv, seal, write);
    }

    /// Copies as many entries as fit together and writes them at once. Of what the socket does not take, only the frame that was begun stays as bytes,
    /// because no message is sealed twice; all others wait on as they are.
    fn write_together(&mut self, sink: &impl Sink) -> (usize, io::Result<usize>) {
        if self.entries.len() > 1 {
            self.split_batch();
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let ends = self.put_together(scratch);
            let Scratch { write, seal } = scratch;
            let wanted = write.len();
            let result = sink.write(write);
            let written = *result.as_ref().unwrap_or(&0);
            if let [Entry::SealedBatch(batch)] = self.entries.as_slice()
                && written == wanted
                && ends.len() == batch.messages.len()
            {
                self.entries.clear();
            } else {
                self.split_batch();
                self.advance(written, write, &ends);
            }
            if write.capacity() > 4 * WRITE_BYTES {
                *write = Vec::with_capacity(WRITE_BYTES);
            }
            if seal.capacity() > 4 * WRITE_BYTES {
                *seal = Vec::new();
            }
            (wanted, result)
        })
    }

    /// Puts as many entries as fit together into the write buffer, and returns where each message ends.
    fn put_together(&self, Scratch { write, seal }: &mut Scratch) -> SmallVec<[usize; 64]> {
        write.clear();
        let mut ends: SmallVec<[usize; 64]> = SmallVec::new();
        let fits = |ends: &[usize], written: usize, length: usize| {
            ends.is_empty() || written + length <= WRITE_BYTES
        };
        if let [Entry::SealedBatch(batch)] = self.entries.as_slice() {
            for message in &batch.messages {
                let payload = message.payload();
                if !fits(&ends, write.len(), Cipher::sealed_length(payload.len())) {
                    break;
                }
                self.seal_into(write, seal, |text| text.extend_from_slice(payload));
                ends.push(write.len());
            }
            return ends;
        }
        for entry in &self.entries {
            let from = if ends.is_empty() { self.written } else { 0 };
            if !fits(&ends, write.len(), entry.length() - from) {
                break;
            }
            match entry {
                Entry::Sealed(message) => {
                    let payload = message.payload();
                    self.seal_into(write, seal, |text| text.extend_from_slice(payload));
                }
                Entry::SharedSealed(messages, n) => {
                    self.seal_into(write, seal, |text| {
                        messages.write_payload(*n as usize, text);
                    });
                }
                // No part of it is written: the rest of a frame has a text of its own.
                Entry::Shared(messages, n) => messages.write_frame(*n as usize, write),
                entry => write.extend_from_slice(entry.bytes().map_or(&[], |bytes| &bytes[from..])),
            }
            ends.push(write.len());
        }
        ends
    }

    /// Takes off what the sink took of the write buffer.
    fn advance(&mut self, written: usize, write: &[u8], ends: &[usize]) {
        if written == 0 {
            return;
        }
        let done = ends.partition_point(|end| *end <= written);
        let start = if done == 0 { 0 } else { ends[done - 1] };
        if done > 0 {
            self.entries.drain(..done);
            (self.written, self.begun) = (0, false);
        }
        if written > start {
            self.begun = true;
            if let Entry::Sealed(_) | Entry::SharedSealed(..) = &self.entries[0] {
                self.entries[0] = Entry::Rest(Box::new(SealedRest {
                    bytes: write[written..ends[done]].to_vec(),
                }));
                self.written = 0;
            } else {
                self.written += written - start;
            }
        }
    }
}

#[cfg(test)]
mod tests;

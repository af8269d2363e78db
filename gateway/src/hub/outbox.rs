//! What waits to be written to one connection: shared bytes, bounded, flushed in one call.
//!
//! A burst leaves in one write; a message alone is written without being copied. Sealing happens while flushing, straight into the write buffer,
//! so order is kept and a message that waits costs a reference.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use rand::RngCore;
use smallvec::SmallVec;

use crate::protocol::Message;
use crate::protocol::cipher::{Cipher, IV_BYTES};

/// How much is put together for one write.
const WRITE_BYTES: usize = 64 * 1024;

/// Buffers that all connections of a thread share.
#[derive(Debug)]
pub(super) struct Scratch {
    write: Vec<u8>,
    seal: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch { write: Vec::with_capacity(WRITE_BYTES), seal: Vec::new() });
}

/// Where an outbox writes.
pub(super) trait Sink {
    /// Writes without waiting.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
}

/// Messages for the same connections that came together: whoever gets them in the clear gets the same bytes, put together once.
#[derive(Debug)]
pub(super) struct Run {
    messages: Vec<Rc<Message>>,
    joined: Vec<u8>,
}

impl Run {
    /// How many bytes of frames are best joined.
    pub(super) const BYTES: usize = WRITE_BYTES;

    pub(super) fn new(messages: Vec<Rc<Message>>) -> Self {
        let mut joined =
            Vec::with_capacity(messages.iter().map(|message| message.frame().len()).sum());
        messages
            .iter()
            .for_each(|message| joined.extend_from_slice(message.frame()));
        Self { messages, joined }
    }

    pub(super) fn messages(&self) -> &[Rc<Message>] {
        &self.messages
    }
}

/// What is queued is shared by all connections of a shard that it is queued to, so that queueing counts a reference without an atomic operation.
#[derive(Debug)]
enum Item {
    /// A frame as it is.
    Raw(Rc<Message>),
    /// To be sealed.
    Sealed(Rc<Message>),
    /// Frames as they are. Nothing is queued before them, and what is not written at once becomes single frames.
    Run(Rc<Run>),
    /// The rest of a sealed frame whose beginning is on the wire. It is rare, and what is rare does not make all items longer.
    Rest(Box<Rest>),
}

#[derive(Debug)]
struct Rest {
    bytes: Vec<u8>,
}

impl Item {
    /// The bytes to write, of what is written as it is.
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Raw(message) => Some(message.frame()),
            Self::Run(run) => Some(&run.joined),
            Self::Rest(rest) => Some(&rest.bytes),
            Self::Sealed(_) => None,
        }
    }
}

/// Too much waits: the reader is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overflow;

/// How far a flush came.
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

/// What waits to be written to one connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    items: SmallVec<[Item; 1]>,
    /// How much of the first item has been written.
    written: usize,
    /// Whether the first item goes on with a frame whose beginning is on the wire.
    begun: bool,
    bytes: usize,
    seal: Option<Rc<Cipher>>,
    held: Option<Box<Held>>,
    blocked_since: Option<Instant>,
    closing: bool,
}

impl Outbox {
    /// Seals every message from here on.
    pub(super) fn seal_with(&mut self, cipher: Rc<Cipher>) {
        self.seal = Some(cipher);
    }

    /// Holds messages back until [`Outbox::release`].
    pub(super) fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Queues what was held back, as far as `keep` says so.
    pub(super) fn release(
        &mut self,
        bounds: Bounds,
        mut keep: impl FnMut(&Message) -> bool,
    ) -> Result<(), Overflow> {
        let Some(held) = self.held.take() else {
            return Ok(());
        };
        held.messages
            .iter()
            .filter(|m| keep(m))
            .try_for_each(|message| self.push(message, bounds))
    }

    /// Queues a message, or holds it back.
    pub(super) fn push(&mut self, message: &Rc<Message>, bounds: Bounds) -> Result<(), Overflow> {
        if let Some(held) = &mut self.held {
            if held.bytes + message.frame().len() > bounds.bytes
                || held.messages.len() >= bounds.frames
            {
                return Err(Overflow);
            }
            held.bytes += message.frame().len();
            held.messages.push(Rc::clone(message));
            return Ok(());
        }
        self.push_now(message, bounds)
    }

    /// Queues messages that came together, or holds them back.
    pub(super) fn push_run(&mut self, run: &Rc<Run>, bounds: Bounds) -> Result<(), Overflow> {
        let as_one = self.held.is_none()
            && self.seal.is_none()
            && self.items.is_empty()
            && run.messages.len() <= bounds.frames;
        if as_one {
            return self.queue(Item::Run(Rc::clone(run)), run.joined.len(), bounds);
        }
        run.messages
            .iter()
            .try_for_each(|message| self.push(message, bounds))
    }

    /// Queues a message ahead of what is held back.
    pub(super) fn push_now(
        &mut self,
        message: &Rc<Message>,
        bounds: Bounds,
    ) -> Result<(), Overflow> {
        match self.seal {
            None => self.push_clear(message, bounds),
            Some(_) => self.queue(
                Item::Sealed(Rc::clone(message)),
                Cipher::sealed_length(message.payload().len()),
                bounds,
            ),
        }
    }

    /// Queues a frame as it is: control frames, and what is always in the clear.
    pub(super) fn push_clear(
        &mut self,
        message: &Rc<Message>,
        bounds: Bounds,
    ) -> Result<(), Overflow> {
        self.queue(Item::Raw(Rc::clone(message)), message.frame().len(), bounds)
    }

    fn queue(&mut self, item: Item, length: usize, bounds: Bounds) -> Result<(), Overflow> {
        if self.closing {
            return Ok(());
        }
        if self.bytes + length > bounds.bytes || self.items.len() >= bounds.frames {
            return Err(Overflow);
        }
        self.items.push(item);
        self.bytes += length;
        Ok(())
    }

    /// Drops what waits, but for the rest of a frame that is half written, and queues this as the last frame ever.
    pub(super) fn finish(&mut self, close: Message) {
        self.discard();
        self.push_last(close);
    }

    /// Queues the Close frame behind what waits: nothing is lost on a connection that keeps up.
    pub(super) fn finish_after_queued(&mut self, close: Message) {
        self.held = None;
        if !self.closing {
            self.push_last(close);
        }
    }

    fn push_last(&mut self, close: Message) {
        self.bytes += close.frame().len();
        self.items.push(Item::Raw(Rc::new(close)));
        self.closing = true;
    }

    fn discard(&mut self) {
        self.held = None;
        self.items.truncate(usize::from(self.begun));
        self.bytes = self
            .items
            .first()
            .and_then(Item::bytes)
            .map_or(0, |rest| rest.len() - self.written);
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes that wait, those held back included.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.bytes + self.held.as_ref().map_or(0, |h| h.bytes)
    }

    /// Since when the socket has taken nothing while something waits.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since
    }

    /// Writes what waits, as far as the sink takes it; says how many bytes that were.
    pub(super) fn flush(
        &mut self,
        sink: &impl Sink,
        now: impl Fn() -> Instant,
    ) -> io::Result<(Flushed, usize)> {
        let mut total = 0;
        while !self.items.is_empty() {
            let (wanted, result) = match self.items.as_slice() {
                [Item::Raw(_) | Item::Run(_) | Item::Rest(_)] => self.write_alone(sink),
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
            if written < wanted {
                // Whatever moved, the clock starts again: slow is not stuck.
                if written > 0 || self.blocked_since.is_none() {
                    self.blocked_since = Some(now());
                }
                return Ok((Flushed::Blocked, total));
            }
        }
        self.blocked_since = None;
        if self.items.spilled() {
            self.items = SmallVec::new();
        }
        Ok((Flushed::All, total))
    }

    /// Writes the one item that waits, without copying it.
    fn write_alone(&mut self, sink: &impl Sink) -> (usize, io::Result<usize>) {
        let Some(bytes) = self.items.first().and_then(Item::bytes) else {
            return (0, Ok(0));
        };
        let wanted = bytes.len() - self.written;
        let result = sink.write(&bytes[self.written..]);
        let written = *result.as_ref().unwrap_or(&0);
        if written == wanted {
            self.items.clear();
            (self.written, self.begun) = (0, false);
        } else {
            self.written += written;
            self.begun |= written > 0;
            self.split_run();
        }
        (wanted, result)
    }

    /// A run at the front becomes its frames, but for those that were written.
    fn split_run(&mut self) {
        let Some(Item::Run(run)) = self.items.first() else {
            return;
        };
        let run = Rc::clone(run);
        let mut left = run.messages.as_slice();
        while let [first, rest @ ..] = left
            && first.frame().len() <= self.written
        {
            self.written -= first.frame().len();
            left = rest;
        }
        self.begun = self.written > 0;
        self.items.remove(0);
        self.items
            .insert_many(0, left.iter().cloned().map(Item::Raw));
    }

    /// Puts as many items as fit together for one write. Of what was not written only the frame that was begun stays as bytes, since a sealed frame
    /// is never sealed twice; all others wait on as they are.
    fn write_together(&mut self, sink: &impl Sink) -> (usize, io::Result<usize>) {
        self.split_run();
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { write, seal } = scratch;
            write.clear();
            let mut ends: SmallVec<[usize; 64]> = SmallVec::new();
            for item in &self.items {
                let from = if ends.is_empty() { self.written } else { 0 };
                let length = match item {
                    Item::Sealed(message) => Cipher::sealed_length(message.payload().len()),
                    item => item.bytes().map_or(0, <[u8]>::len) - from,
                };
                if !ends.is_empty() && write.len() + length > WRITE_BYTES {
                    break;
                }
                match item {
                    Item::Sealed(message) => {
                        let mut iv = [0u8; IV_BYTES];
                        rand::rng().fill_bytes(&mut iv);
                        let cipher = self
                            .seal
                            .as_ref()
                            .expect("a message is only queued for sealing with a cipher");
                        cipher.seal(message.payload(), iv, seal, write);
                    }
                    item => {
                        write.extend_from_slice(item.bytes().map_or(&[], |bytes| &bytes[from..]))
                    }
                }
                ends.push(write.len());
            }
            let wanted = write.len();
            let result = sink.write(write);
            let written = *result.as_ref().unwrap_or(&0);
            if written > 0 {
                let done = ends.partition_point(|end| *end <= written);
                let start = if done == 0 { 0 } else { ends[done - 1] };
                if done > 0 {
                    self.items.drain(..done);
                    (self.written, self.begun) = (0, false);
                }
                if written > start {
                    self.begun = true;
                    if let Item::Sealed(_) = &self.items[0] {
                        self.items[0] = Item::Rest(Box::new(Rest {
                            bytes: write[written..ends[done]].to_vec(),
                        }));
                        self.written = 0;
                    } else {
                        self.written += written - start;
                    }
                }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const WIDE: Bounds = Bounds {
        bytes: 1 << 20,
        frames: 1000,
    };

    /// Takes `room` bytes, then blocks.
    #[derive(Default)]
    struct Pipe {
        room: Cell<usize>,
        got: RefCell<Vec<u8>>,
        calls: Cell<usize>,
    }

    impl Sink for Pipe {
        fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            self.calls.set(self.calls.get() + 1);
            let n = bytes.len().min(self.room.get());
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room.set(self.room.get() - n);
            self.got.borrow_mut().extend_from_slice(&bytes[..n]);
            Ok(n)
        }
    }

    fn message(n: usize) -> Rc<Message> {
        Rc::new(Message::text(format!("message {n}").as_bytes()))
    }

    fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut at, mut frames) = (0, Vec::new());
        while at < bytes.len() {
            let (header, length) = match bytes[at + 1] {
                126 => (
                    4,
                    usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]])),
                ),
                short => (2, usize::from(short)),
            };
            frames.push(bytes[at + header..at + header + length].to_vec());
            at += header + length;
        }
        frames
    }

    #[test]
    fn a_burst_leaves_in_one_write() {
        let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
        pipe.room.set(usize::MAX);
        for n in 0..10 {
            outbox.push(&message(n), WIDE).unwrap();
        }
        assert_eq!(outbox.flush(&pipe, Instant::now).unwrap().0, Flushed::All);
        assert_eq!(pipe.calls.get(), 1);
        assert_eq!(frames(&pipe.got.borrow()).len(), 10);
        assert_eq!(outbox.waiting_bytes(), 0);
        assert!(!outbox.items.spilled(), "a burst leaves no memory behind");
    }

    #[test]
    fn whatever_the_socket_takes_at_a_time_the_bytes_are_the_same_and_in_order() {
        for sealed in [false, true] {
            for room in [1, 3, 50, 1000] {
                let cipher = Rc::new(Cipher::new(&[1; 32]));
                let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
                if sealed {
                    outbox.seal_with(cipher.clone());
                }
                for n in 0..40 {
                    outbox.push(&message(n), WIDE).unwrap();
                    pipe.room.set(room);
                    outbox.flush(&pipe, Instant::now).unwrap();
                }
                while !outbox.is_empty() {
                    pipe.room.set(room);
                    outbox.flush(&pipe, Instant::now).unwrap();
                }
                assert_eq!(outbox.waiting_bytes(), 0);
                for (n, frame) in frames(&pipe.got.borrow()).iter().enumerate() {
                    let text = std::str::from_utf8(frame).unwrap();
                    let clear = if sealed {
                        let envelope = crate::protocol::Envelope::parse(text).unwrap();
                        cipher.open(&envelope.read().unwrap()).unwrap()
                    } else {
                        text.to_owned()
                    };
                    assert_eq!(clear, format!("message {n}"), "room {room}");
                }
            }
        }
    }

    #[test]
    fn a_run_leaves_as_it_is_and_what_the_socket_does_not_take_becomes_frames() {
        for sealed in [false, true] {
            for before in [0, 1] {
                for room in [0, 1, 11, 15, 22, 109, 110, 1000] {
                    let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
                    if sealed {
                        outbox.seal_with(Rc::new(Cipher::new(&[1; 32])));
                    }
                    let run = Rc::new(Run::new((before..10).map(message).collect()));
                    (0..before).for_each(|n| outbox.push(&message(n), WIDE).unwrap());
                    outbox.push_run(&run, WIDE).unwrap();
                    pipe.room.set(room);
                    outbox.flush(&pipe, Instant::now).unwrap();
                    outbox
                        .push_run(&Rc::new(Run::new(vec![message(1), message(2)])), WIDE)
                        .unwrap();
                    outbox.push(&message(3), WIDE).unwrap();
                    assert!(room < 1000 || outbox.items.len() <= 3);
                    let narrow = Bounds {
                        bytes: 1 << 20,
                        frames: 3,
                    };
                    assert_eq!(
                        outbox.push_run(&run, narrow),
                        Err(Overflow),
                        "frames are counted"
                    );
                    pipe.room.set(usize::MAX);
                    outbox.flush(&pipe, Instant::now).unwrap();
                    let got = frames(&pipe.got.borrow());
                    if !sealed {
                        let said: Vec<_> = got
                            .iter()
                            .map(|frame| String::from_utf8_lossy(frame).into_owned())
                            .collect();
                        let first: Vec<_> = (0..10)
                            .chain([1, 2, 3])
                            .map(|n| format!("message {n}"))
                            .collect();
                        assert_eq!(said[..13], first, "room {room}");
                    }
                    assert!(got.len() >= 13 && outbox.waiting_bytes() == 0);
                }
            }
        }
    }

    #[test]
    fn too_many_frames_or_bytes_are_an_overflow() {
        let mut outbox = Outbox::default();
        let frames = Bounds {
            bytes: 1 << 20,
            frames: 3,
        };
        let pushed: Vec<_> = (0..4).map(|n| outbox.push(&message(n), frames)).collect();
        assert_eq!(pushed, [Ok(()), Ok(()), Ok(()), Err(Overflow)]);
        let mut outbox = Outbox::default();
        outbox.hold();
        let bytes = Bounds {
            bytes: 25,
            frames: 1000,
        };
        let pushed: Vec<_> = (0..3).map(|n| outbox.push(&message(n), bytes)).collect();
        assert_eq!(
            pushed,
            [Ok(()), Ok(()), Err(Overflow)],
            "what is held back counts as well"
        );
    }

    #[test]
    fn finishing_keeps_the_rest_of_a_half_written_frame_and_nothing_else() {
        for sealed in [false, true] {
            for (room, whole) in [(0, 0), (4, 1), (15, 2)] {
                let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
                if sealed {
                    outbox.seal_with(Rc::new(Cipher::new(&[1; 32])));
                }
                for n in 0..3 {
                    outbox.push(&message(n), WIDE).unwrap();
                }
                // In the clear a frame has 11 bytes.
                pipe.room.set(if sealed {
                    room * Cipher::sealed_length(9) / 11
                } else {
                    room
                });
                outbox.flush(&pipe, Instant::now).unwrap();
                assert!(outbox.blocked_since().is_some());
                outbox.finish(Message::close(4008, "Slow consumer"));
                outbox.push(&message(9), WIDE).unwrap();
                pipe.room.set(usize::MAX);
                outbox.flush(&pipe, Instant::now).unwrap();
                let got = frames(&pipe.got.borrow());
                assert_eq!(got.len(), whole + 1, "sealed {sealed}, room {room}");
                assert_eq!(got.last().unwrap()[..2], 4008u16.to_be_bytes());
                assert_eq!(outbox.waiting_bytes(), 0);
            }
        }
    }

    #[test]
    fn what_is_held_back_comes_after_what_is_pushed_ahead_of_it() {
        let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
        pipe.room.set(usize::MAX);
        outbox.hold();
        outbox.push(&message(2), WIDE).unwrap();
        outbox.push(&message(3), WIDE).unwrap();
        outbox.push_now(&message(1), WIDE).unwrap();
        outbox
            .release(WIDE, |m| m.payload() != b"message 3")
            .unwrap();
        outbox.push(&message(4), WIDE).unwrap();
        outbox.flush(&pipe, Instant::now).unwrap();
        assert_eq!(
            frames(&pipe.got.borrow()),
            [b"message 1", b"message 2", b"message 4"]
        );
    }
}

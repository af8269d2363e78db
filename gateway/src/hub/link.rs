//! What a shard and a connection share: the socket, the outbox, and who is on the other end. Lives on one thread.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::batch::Joining;
use super::outbox::{Bounds, Flushed, Outbox, Overflow, Sink};
use crate::clock::Moment;
use crate::id::Id;
use crate::principal::Principal;
use crate::protocol::cipher::Cipher;
use crate::protocol::close::Close;
use crate::protocol::{Message, SharedMessages};
use crate::stream::{Stream, TlsStream, write_now};

impl Sink for TcpStream {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        write_now(self, bytes)
    }
}

impl Sink for TlsStream {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Self::write(self, bytes)
    }

    fn held(&self) -> usize {
        self.held_output()
    }

    fn write_held(&self) -> io::Result<usize> {
        Self::write_held(self)
    }
}

/// A room that a connection is in, and its index in the list of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) room: u32,
    /// The index, and [`GRANTED`].
    place: u32,
}

/// Marks a seat in a room that an administrator joined for the connection.
const GRANTED: u32 = 1 << 31;

impl Seat {
    pub(super) fn new(room: u32, at: u32, granted: bool) -> Self {
        let mut seat = Self { room, place: at };
        if granted {
            seat.grant();
        }
        seat
    }

    /// Returns the index in the list of members.
    pub(super) fn at(self) -> u32 {
        self.place & !GRANTED
    }

    /// Notes another index.
    pub(super) fn move_to(&mut self, at: u32) {
        self.place = at | (self.place & GRANTED);
    }

    /// Returns whether an administrator joined the room for it: the rules do not take it away (protocol.md 5.6).
    pub(super) fn is_granted(self) -> bool {
        self.place & GRANTED != 0
    }

    pub(super) fn grant(&mut self) {
        self.place |= GRANTED;
    }
}

/// Who is on the other end, and which rooms it is in.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// `None` until it is admitted, and from its end on.
    pub(super) principal: Option<Arc<Principal>>,
    pub(super) seats: SmallVec<[Seat; 2]>,
}

/// How far a connection is, as lists of connections show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has not sent `authenticate`.
    Connecting,
    /// Its token is being verified, or the bus subscribes.
    Authenticating,
    /// Authenticated, without encryption.
    Authenticated,
    /// Authenticated and encrypted.
    Encrypted,
    /// Closing.
    Closed,
}

impl Stage {
    /// Returns its name in lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Authenticating => "authenticating",
            Self::Authenticated => "authenticated",
            Self::Encrypted => "encrypted",
            Self::Closed => "closed",
        }
    }
}

/// A connection as its shard sees it. Every connection has one, so each byte counts: the allocator rounds up to 256 bytes, and then to 320.
pub struct Link {
    pub(super) id: Id,
    pub(super) slot: u32,
    pub(super) peer: IpAddr,
    stream: Stream,
    /// Taken out for as long as it is looked at.
    waker: Cell<Option<Waker>>,
    out: RefCell<Outbox>,
    budget: Arc<AtomicUsize>,
    /// Bytes that are counted against the budget.
    accounted: Cell<u32>,
    /// Bytes of input that is not finished.
    held_input: Cell<u32>,
    pub(super) touched: Cell<bool>,
    pub(super) membership: RefCell<Membership>,
    pub(super) stage: Cell<Stage>,
    pub(super) last_seen: Cell<Moment>,
    /// Why the hub asks the connection to close.
    close_request: Cell<Option<Close>>,
    trust_withdrawn: Cell<bool>,
    /// Ticks: of its next deadline, and of its entry in the wheel, which is never the later one.
    pub(super) due: Cell<u32>,
    pub(super) scheduled: Cell<u32>,
}

impl Link {
    pub(super) fn new(
        id: Id,
        slot: u32,
        peer: IpAddr,
        stream: Stream,
        budget: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            id,
            slot,
            peer,
            stream,
            waker: Cell::new(None),
            out: RefCell::default(),
            budget,
            accounted: Cell::new(0),
            held_input: Cell::new(0),
            touched: Cell::new(false),
            membership: RefCell::default(),
            stage: Cell::new(Stage::Connecting),
            last_seen: Cell::new(Instant::now().into()),
            close_request: Cell::new(None),
            trust_withdrawn: Cell::new(false),
            due: Cell::new(u32::MAX),
            scheduled: Cell::new(u32::MAX),
        }
    }

    /// Returns the client id.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Returns when it connected, in milliseconds since the Unix epoch: its id was made then.
    pub(super) fn connected_at_ms(&self) -> i64 {
        self.id.made_at_ms()
    }

    /// Returns whether it is admitted: only then something is delivered to it.
    pub(super) fn is_member(&self) -> bool {
        self.membership.borrow().principal.is_some()
    }

    /// Returns the address that it connected from.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Notes the stage and the time of the last frame, for lists of connections.
    pub fn note(&self, stage: Stage, last_seen: Instant) {
        self.stage.set(stage);
        self.last_seen.set(last_seen.into());
    }

    /// Wakes the task of the connection.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake_by_ref();
            self.waker.set(Some(waker));
        }
    }

    /// Remembers the task to wake.
    pub fn register(&self, cx: &Context<'_>) {
        let known = self
            .waker
            .take()
            .filter(|waker| waker.will_wake(cx.waker()));
        self.waker
            .set(Some(known.unwrap_or_else(|| cx.waker().clone())));
    }

    /// Asks the connection to close; the first reason stands.
    pub(super) fn request_close(&self, close: Close) {
        if self.close_request.get().is_none() {
            self.close_request.set(Some(close));
            self.wake();
        }
    }

    /// Returns why the hub asks the connection to close, if it does.
    pub fn requested_close(&self) -> Option<Close> {
        self.close_request.get()
    }

    /// Notes that trust in the source or the key of its token is withdrawn.
    pub(super) fn withdraw_trust(&self) {
        self.trust_withdrawn.set(true);
        self.wake();
    }

    /// Returns whether trust was withdrawn since the last call.
    pub fn take_trust_withdrawn(&self) -> bool {
        self.trust_withdrawn.take()
    }

    /// Seals every message that is queued from here on.
    pub fn seal_with(&self, cipher: Cipher) {
        self.out.borrow_mut().seal_with(cipher);
    }

    /// Holds deliveries back until [`Link::release`].
    pub fn hold(&self) {
        self.out.borrow_mut().hold();
    }

    /// Queues the held messages that `keep` returns true for.
    pub fn release(&self, keep: impl FnMut(&Message) -> bool) {
        self.out.borrow_mut().release(keep);
    }

    /// Queues what is delivered; a reader that is too slow is closed.
    pub(super) fn deliver(&self, joining: &mut Joining<'_>, bounds: Bounds) {
        let result = self.out.borrow_mut().push_outgoing(joining, bounds);
        self.after_push(result);
    }

    /// Queues message `n` of those that share their text.
    pub(super) fn deliver_shared(&self, messages: &Rc<SharedMessages>, n: usize, bounds: Bounds) {
        let result = self.out.borrow_mut().push_shared(messages, n, bounds);
        self.after_push(result);
    }

    /// Queues a message of the session itself, ahead of the held ones.
    pub fn send(&self, message: Message, bounds: Bounds) {
        let result = self.out.borrow_mut().push_now(&Rc::new(message), bounds);
        self.after_push(result);
    }

    /// Queues a frame that is never sealed.
    pub fn send_clear(&self, message: Message, bounds: Bounds) {
        let result = self.out.borrow_mut().push_clear(&Rc::new(message), bounds);
        self.after_push(result);
    }

    fn after_push(&self, result: Result<(), Overflow>) {
        if let Err(Overflow) = result {
            self.request_close(Close::SlowConsumer);
        }
    }

    /// Queues the last frame: instead of what waits with `drop_queue`, else behind it.
    pub fn finish(&self, message: Message, drop_queue: bool) {
        let mut out = self.out.borrow_mut();
        if drop_queue {
            out.finish(message);
        } else {
            out.finish_after_queued(message);
        }
    }

    /// Reads what [`Link::flush`] is about to need, and nothing else: several links are fetched from memory at the same time, and one after the other at the
    /// time of their writes.
    pub(super) fn look_at(self: &Rc<Self>) {
        let flags = (self.stream.is_tls(), self.touched.get());
        let counts = (Rc::strong_count(self), self.accounted.get());
        black_box((flags, counts, self.out.borrow().look_at()));
    }

    /// Writes what waits. Returns how far it got and the bytes written.
    pub fn flush(&self) -> io::Result<(Flushed, usize)> {
        let result = match &self.stream {
            Stream::Clear(socket) => self.out.borrow_mut().flush(socket, Instant::now),
            Stream::Tls(tls) => self.out.borrow_mut().flush(&**tls, Instant::now),
        };
        self.account();
        result
    }

    /// Notes how many bytes of unfinished input are held for the connection.
    pub fn hold_input(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if self.held_input.replace(bytes) != bytes {
            self.account();
        }
    }

    /// Counts the bytes that wait to be written, and those of unfinished input, against the budget of the instance.
    pub(super) fn account(&self) {
        let waiting = self.out.borrow().waiting_bytes()
            + self.held_input.get() as usize
            + self.stream.held_input();
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let before = self.accounted.replace(waiting);
        let difference = waiting.abs_diff(before) as usize;
        if waiting > before {
            self.budget.fetch_add(difference, Ordering::Relaxed);
        } else if before > waiting {
            self.budget.fetch_sub(difference, Ordering::Relaxed);
        }
    }

    /// Returns whether nothing waits to be written.
    pub fn is_flushed(&self) -> bool {
        self.out.borrow().is_empty()
    }

    /// Returns whether half of what may wait does, and the socket was not found full.
    pub fn is_half_full(&self, bounds: Bounds) -> bool {
        self.out.borrow().is_half_full(bounds)
    }

    /// Returns since when the socket has taken nothing while something waits.
    pub fn blocked_since(&self) -> Option<Instant> {
        self.out.borrow().blocked_since()
    }

    /// Ready when there may be something to read.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_readable(cx)
    }

    /// Ready when the socket may take more bytes.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_writable(cx)
    }

    /// Reads without waiting; see [`Stream::read`].
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer);
        if let Stream::Tls(tls) = &self.stream {
            // A record may be incomplete, and some are answered.
            self.out.borrow_mut().note_held(&**tls);
            self.account();
        }
        read
    }

    /// Writes to a new stream, before anything is queued; see [`Stream::write_first`].
    pub fn write_first(&self, bytes: &[u8]) -> bool {
        self.stream.write_first(bytes)
    }

    /// Ends the sending side.
    pub fn shutdown_write(&self) {
        self.stream.shutdown_write();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.budget
            .fetch_sub(self.accounted.get() as usize, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_and_its_reference_counts_fit_into_256_bytes() {
        assert!(
            size_of::<Link>() + 2 * size_of::<usize>() <= 256,
            "{}",
            size_of::<Link>()
        );
    }

    #[test]
    fn a_seat_keeps_what_was_granted_when_it_moves() {
        let mut seat = Seat::new(3, 7, false);
        assert_eq!((seat.at(), seat.is_granted()), (7, false));
        seat.grant();
        seat.move_to(5);
        assert_eq!((seat.at(), seat.is_granted()), (5, true));
        assert_eq!(seat, Seat::new(3, 5, true));
    }
}

//! What a shard and a connection share: the socket, the outbox, and who is on the other end. Lives on one thread.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::outbox::{Bounds, Flushed, Outbox, Overflow, Run, Sink};
use crate::id::Id;
use crate::principal::Principal;
use crate::protocol::Message;
use crate::protocol::cipher::Cipher;
use crate::protocol::close::Close;

impl Sink for TcpStream {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }
}

/// A room a connection is in, and where in the room's list of members.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) room: u32,
    pub(super) at: u32,
    /// Given by an administrator, past the ACL: no look at the rules takes it away.
    pub(super) granted: bool,
}

/// How far a connection is, as lists of connections tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was asked yet.
    Connecting,
    /// Its token is looked at.
    Authenticating,
    /// In the clear.
    Authenticated,
    /// Sealed.
    Encrypted,
    /// On its way out.
    Closed,
}

impl Stage {
    /// Its name.
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

/// A connection as its shard sees it. There are as many as connections, so each of its bytes counts: the allocator has a size of 320 bytes, and the next is 384.
pub struct Link {
    pub(super) id: Id,
    pub(super) slot: u32,
    pub(super) peer: IpAddr,
    pub(super) connected_at_ms: i64,
    stream: TcpStream,
    waker: RefCell<Option<Waker>>,
    out: RefCell<Outbox>,
    budget: Arc<AtomicUsize>,
    accounted: Cell<usize>,
    /// Bytes of input that is not finished.
    held_input: Cell<u32>,
    pub(super) touched: Cell<bool>,
    pub(super) principal: RefCell<Option<Arc<Principal>>>,
    pub(super) seats: RefCell<SmallVec<[Seat; 2]>>,
    pub(super) stage: Cell<Stage>,
    pub(super) last_seen: Cell<Instant>,
    /// What the hub wants of the connection.
    order: Cell<Option<Close>>,
    fallen: Cell<bool>,
    /// Tick of its next deadline, and the one at which the wheel looks at it: the second is never the later one.
    pub(super) due: Cell<u32>,
    pub(super) looked_at: Cell<u32>,
}

impl Link {
    pub(super) fn new(
        id: Id,
        slot: u32,
        peer: IpAddr,
        connected_at_ms: i64,
        stream: TcpStream,
        budget: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            id,
            slot,
            peer,
            connected_at_ms,
            stream,
            waker: RefCell::new(None),
            out: RefCell::default(),
            budget,
            accounted: Cell::new(0),
            held_input: Cell::new(0),
            touched: Cell::new(false),
            principal: RefCell::new(None),
            seats: RefCell::default(),
            stage: Cell::new(Stage::Connecting),
            last_seen: Cell::new(Instant::now()),
            order: Cell::new(None),
            fallen: Cell::new(false),
            due: Cell::new(u32::MAX),
            looked_at: Cell::new(u32::MAX),
        }
    }

    /// Client id.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Where it connected from.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Notes how far it is and the last frame, as lists of connections show them.
    pub fn note(&self, stage: Stage, last_seen: Instant) {
        self.stage.set(stage);
        self.last_seen.set(last_seen);
    }

    /// Has the connection's task run soon.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Remembers whom to wake.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Asks the connection to close; the first reason stands.
    pub(super) fn order(&self, close: Close) {
        if self.order.get().is_none() {
            self.order.set(Some(close));
            self.wake();
        }
    }

    /// What the hub has asked for.
    pub fn ordered(&self) -> Option<Close> {
        self.order.get()
    }

    /// Tells the connection that what its token rests on is gone.
    pub(super) fn tell_fallen(&self) {
        self.fallen.set(true);
        self.wake();
    }

    /// Whether the connection was told so since the last call.
    pub fn take_fallen(&self) -> bool {
        self.fallen.take()
    }

    /// Seals every message from here on.
    pub fn seal_with(&self, cipher: Rc<Cipher>) {
        self.out.borrow_mut().seal_with(cipher);
    }

    /// Holds deliveries back until [`Link::release`].
    pub fn hold(&self) {
        self.out.borrow_mut().hold();
    }

    /// Queues what was held back, as far as `keep` says so.
    pub fn release(&self, bounds: Bounds, keep: impl FnMut(&Message) -> bool) {
        let result = self.out.borrow_mut().release(bounds, keep);
        self.after_push(result);
    }

    /// Queues a delivery; a reader that is too slow is closed.
    pub(super) fn deliver(&self, message: &Rc<Message>, bounds: Bounds) {
        let result = self.out.borrow_mut().push(message, bounds);
        self.after_push(result);
    }

    /// Queues deliveries that came together.
    pub(super) fn deliver_run(&self, run: &Rc<Run>, bounds: Bounds) {
        let result = self.out.borrow_mut().push_run(run, bounds);
        self.after_push(result);
    }

    /// Queues the session's own message, ahead of what is held back.
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
            self.order(Close::SlowConsumer);
        }
    }

    /// Queues the last frame. A slow reader's queue is dropped; everyone else gets what was queued before it.
    pub fn finish(&self, message: Message, drop_queue: bool) {
        let mut out = self.out.borrow_mut();
        if drop_queue {
            out.finish(message);
        } else {
            out.finish_after_queued(message);
        }
    }

    /// Writes what waits; says how far it came and how many bytes were written.
    pub fn flush(&self) -> io::Result<(Flushed, usize)> {
        let result = self.out.borrow_mut().flush(&self.stream, Instant::now);
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

    /// Counts what waits to be written and what has not wholly come in against the instance's budget.
    pub(super) fn account(&self) {
        let waiting = self.out.borrow().waiting_bytes() + self.held_input.get() as usize;
        let before = self.accounted.replace(waiting);
        if waiting > before {
            self.budget.fetch_add(waiting - before, Ordering::Relaxed);
        } else if before > waiting {
            self.budget.fetch_sub(before - waiting, Ordering::Relaxed);
        }
    }

    /// Whether nothing waits to be written.
    pub fn is_flushed(&self) -> bool {
        self.out.borrow().is_empty()
    }

    /// Since when the socket has taken nothing while something waits.
    pub fn blocked_since(&self) -> Option<Instant> {
        self.out.borrow().blocked_since()
    }

    /// Ready when the socket may have something to read.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx)
    }

    /// Ready when the socket may take more.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    /// Reads without waiting; see [`read_now`].
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        read_now(&self.stream, buffer)
    }

    /// Writes before anything is queued, and before the runtime has said that the socket takes it; says whether it took all.
    pub fn write_first(&self, bytes: &[u8]) -> bool {
        (&*SockRef::from(&self.stream))
            .write(bytes)
            .is_ok_and(|written| written == bytes.len())
    }

    /// Tells the peer that nothing more comes.
    pub fn shutdown_write(&self) {
        let _ = SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
    }
}

/// Reads without waiting.
///
/// A read that does not fill the buffer has emptied the socket, which is told to the runtime: the next read is not tried before there is more.
pub fn read_now(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let result = stream.try_io(Interest::READABLE, || {
        let n = (&*SockRef::from(stream)).read(buffer)?;
        if n > 0 && n < buffer.len() {
            short = Some(n);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    short.map_or(result, Ok)
}

impl Drop for Link {
    fn drop(&mut self) {
        self.budget
            .fetch_sub(self.accounted.get(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_and_its_counts_of_references_are_320_bytes() {
        assert!(
            size_of::<Link>() + 2 * size_of::<usize>() <= 320,
            "{}",
            size_of::<Link>()
        );
    }
}

//! The task of one connection: a hand-written future of a few hundred bytes that holds no buffer while it waits.
//!
//! It wakes for five things, in this order on every turn: a close that the hub requested, an operation that has finished, bytes to read,
//! deadlines, and room to write what is queued. However it ends, its `drop` removes it from the hub.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use rand::Rng;

use super::Context;
use super::operation::{Begun, Operation, Operations, Outcome, begin};
use super::session::{Action, Actions, Authentication, Input, Session};
use crate::clock::Moment;
use crate::hub::{ConnectionLimits, Flushed, Link, Shard, Stage};
use crate::inbox::Missed;
use crate::metrics::Metrics;
use crate::protocol::Message;
use crate::protocol::close::Close;
use crate::protocol::event::{self, message};
use crate::protocol::frame::{Decoder, Opcode, Received};
use crate::protocol::room::Join;
use crate::rate::{Rate, TokenBucket};
use crate::stream::READ_BYTES;

/// Reads of one turn before others get theirs.
const READS_PER_TURN: usize = 8;
/// How long the peer may take to end the stream after both Close frames.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    /// What one read takes; shared by all connections of a thread.
    pub(super) static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// How long a close waits for a peer that was never authenticated: strangers do not keep their places for longer (protocol.md 7.17).
const STRANGER_CLOSE: Duration = Duration::from_secs(1);

/// How far a connection is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Frames are exchanged.
    Open,
    /// A Close frame is queued. `close_received` once the peer's has come, or after the peer broke the protocol.
    Closing { until: Moment, close_received: bool },
    /// Nothing more is written; what still comes is discarded until the stream ends, so that no reset overtakes the Close frame.
    Lingering { until: Moment },
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy)]
enum ClosedBy {
    /// It ended without a Close frame.
    Nobody,
    /// The client, with 1000, ...
    ClientNormally,
    /// ... with 1001, ...
    ClientGoingAway,
    /// ... or with another code.
    Client,
    Gateway(Close),
}

impl ClosedBy {
    /// Returns the label of the metric.
    fn label(self) -> &'static str {
        match self {
            Self::Nobody => "1006",
            Self::ClientNormally => "1000",
            Self::ClientGoingAway => "1001",
            Self::Client => "client",
            Self::Gateway(close) => close.label(),
        }
    }
}

/// One connection.
pub struct Connection {
    shard: Rc<Shard>,
    link: Rc<Link>,
    context: Arc<Context>,
    session: Session,
    /// What of a message has come while it is not whole.
    decoder: Option<Box<Decoder>>,
    operations: Option<Box<Operations>>,
    phase: Phase,
    /// Whether what came behind the request has yet to be looked at.
    fresh: bool,
    /// Whether it was ever admitted.
    known: bool,
    admitted: bool,
    encrypted: bool,
    closed_by: ClosedBy,
    began: Moment,
    recheck_at: Option<Moment>,
    frames: TokenBucket,
}

impl Connection {
    /// A connection that was just taken in; `read` is what came behind the request.
    pub fn new(shard: Rc<Shard>, link: Rc<Link>, context: Arc<Context>, read: &[u8]) -> Self {
        let now = Instant::now();
        let session = Session::new(now, &context.rules, rand::rng().random());
        context.metrics.opened.inc();
        let frames = TokenBucket::full(frame_rate(&shard.limits()), now);
        Self {
            shard,
            link,
            context,
            session,
            decoder: (!read.is_empty()).then(|| Box::new(Decoder::with_pending(read.to_vec()))),
            operations: None,
            phase: Phase::Open,
            fresh: true,
            known: false,
            admitted: false,
            encrypted: false,
            closed_by: ClosedBy::Nobody,
            began: now.into(),
            recheck_at: None,
            frames,
        }
    }

    fn turn(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        let now = Instant::now();
        if let Some(close) = self.link.requested_close() {
            // The client may have sent something before it could know.
            if invites_back(close) && self.phase == Phase::Open && self.read(cx, now).is_err() {
                return Poll::Ready(());
            }
            self.close(close, now);
        }
        if self.link.take_trust_withdrawn() {
            self.step(now, Input::TrustWithdrawn);
        }
        self.operate(cx, now);
        if std::mem::take(&mut self.fresh) {
            self.take(&mut [], now);
        }
        if self.read(cx, now).is_err() {
            return Poll::Ready(());
        }
        if self.deadlines(now).is_err() {
            return Poll::Ready(());
        }
        // Actions of this turn may have queued operations.
        self.operate(cx, now);
        if self.write(cx, now).is_err() {
            return Poll::Ready(());
        }
        self.plan();
        Poll::Pending
    }

    /// Runs finished and waiting operations as far as they go.
    fn operate(&mut self, cx: &mut TaskContext<'_>, now: Instant) {
        while let Some(operations) = &mut self.operations {
            if let Some(running) = operations.running() {
                let Poll::Ready(outcome) = Pin::new(running).poll(cx) else {
                    return;
                };
                operations.finished();
                match outcome {
                    Ok(outcome) => self.outcome(outcome, now),
                    Err(_) => self.close(Close::InternalError, now),
                }
                continue;
            }
            match operations.next() {
                Some(operation) => {
                    if matches!(operation, Operation::Sync { .. }) {
                        self.link.hold();
                    }
                    match begin(&self.context, self.link.id(), operation) {
                        Begun::Done(outcome) => self.outcome(outcome, now),
                        Begun::Running(running) => operations.started(running),
                    }
                }
                None => {
                    if operations.is_idle() {
                        self.operations = None;
                    }
                    return;
                }
            }
        }
    }

    fn ask(&mut self, operation: Operation) {
        let mark = operation.mark().cloned();
        if !self.operations.get_or_insert_default().push(operation) {
            self.link.send(
                event::error_about(mark.as_deref(), message::TOO_MANY_REQUESTS),
                self.shard.limits().outbox,
            );
        }
    }

    fn outcome(&mut self, outcome: Outcome, now: Instant) {
        if self.phase != Phase::Open {
            return;
        }
        match outcome {
            Outcome::Authentication(outcome) => self.step(now, Input::Authentication(outcome)),
            Outcome::Refreshed(outcome) => {
                let before = self.session.principal().cloned();
                self.step(now, Input::Refreshed(outcome));
                let renewed = self
                    .session
                    .principal()
                    .filter(|now| before.is_none_or(|before| !Arc::ptr_eq(now, &before)));
                if let Some(principal) = renewed.cloned() {
                    self.shard.renew(&self.link, Arc::clone(&principal));
                    // As at admission: a revocation may have come since the verification.
                    if !self.context.authenticator.trusts(&principal) {
                        self.close(Close::Revoked, now);
                    }
                }
            }
            Outcome::Subscribed => self.step(now, Input::Subscribed),
            Outcome::Replaced(true) => self.admit(now),
            Outcome::Replaced(false) => self.close(Close::LimitExceeded, now),
            Outcome::Allowed { join, refused } => self.join(&join, &refused, now),
            Outcome::NotJoined(mark) => {
                let again = event::error_about(mark.as_deref(), message::TRY_AGAIN);
                self.link.send(again, self.shard.limits().outbox);
            }
            Outcome::Lost(rooms) | Outcome::Leave(rooms) => {
                self.shard.leave(&self.link, &rooms);
            }
            Outcome::Missed { after, missed } => self.missed(after, &missed),
            Outcome::Done => {}
            Outcome::Unavailable => {
                let bounds = self.shard.limits().outbox;
                self.link.send(event::error(message::TRY_AGAIN), bounds);
                self.link.release(|_| true);
            }
        }
    }

    /// Joins rooms that the rules allow, and answers if the client wants to know.
    fn join(&mut self, join: &Join, refused: &[String], now: Instant) {
        let outbox = self.shard.limits().outbox;
        let joined = self.shard.join(&self.link, &join.rooms, false);
        if joined.limited {
            self.link
                .send(event::error(message::TOO_MANY_ROOMS), outbox);
        }
        if !joined.rooms.is_empty() && self.recheck_at.is_none() {
            self.recheck_at = Some((now + self.context.recheck_interval).into());
        }
        if let Some(mark) = &join.mark {
            let (rooms, left_out): (Vec<&str>, Vec<&str>) = join
                .rooms
                .iter()
                .map(String::as_str)
                .partition(|name| self.shard.is_in(&self.link, name));
            let refused = refused.iter().map(String::as_str).chain(left_out).collect();
            let answer = event::joined(mark, &event::RoomsJoined { rooms, refused });
            self.link.send(answer, outbox);
        }
    }

    /// Answers `notification:sync`.
    fn missed(&mut self, after: i64, missed: &Missed) {
        let limits = self.shard.limits();
        // A page ends before it could fill the outbox of a reader that keeps up.
        let (mut bytes, mut count, mut cursor) = (0, 0, after);
        for row in &missed.rows {
            // What lies between the two is deleted.
            let previous = cursor;
            let mut message = event::created(row, previous, missed.counts.inbox);
            if message.payload().len() > limits.message_bytes {
                message = event::skipped(row, previous, missed.counts.inbox);
            }
            bytes += message.frame().len();
            if count > 0 && bytes > limits.outbox.bytes / 4 {
                break;
            }
            self.link.send(message, limits.outbox);
            (count, cursor) = (count + 1, row.seq);
        }
        let more = missed.more || count < missed.rows.len();
        let synced = event::synced(count, cursor, missed.counts, more);
        self.link.send(synced, limits.outbox);
        // What was pushed meanwhile and is in the answer is not repeated; what lies beyond a page comes with the next sync.
        self.link
            .release(|held| event::created_seq(held).is_none_or(|seq| seq > cursor && !more));
    }

    /// Reads what is there. `Err` ends the connection.
    fn read(&mut self, cx: &mut TaskContext<'_>, now: Instant) -> Result<(), Ended> {
        for _ in 0..READS_PER_TURN {
            match self.link.poll_readable(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Err(Ended),
            }
            let read = READ.with_borrow_mut(|buffer| {
                let n = self.link.read(buffer)?;
                if n > 0 {
                    self.take(&mut buffer[..n], now);
                }
                Ok::<_, io::Error>(n)
            });
            match read {
                Ok(0) => return Err(Ended),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => return Err(Ended),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn take(&mut self, bytes: &mut [u8], now: Instant) {
        if matches!(
            self.phase,
            Phase::Lingering { .. }
                | Phase::Closing {
                    close_received: true,
                    ..
                }
        ) {
            return;
        }
        let limit = self.shard.limits().frame_bytes;
        let mut held = self.decoder.take();
        let mut fresh = Decoder::default();
        let decoder = held.as_deref_mut().unwrap_or(&mut fresh);
        let result = decoder.read(bytes, limit, |item| self.item(item, now));
        let mut held_bytes = 0;
        if !decoder.is_idle() {
            held_bytes = decoder.held_bytes();
            self.decoder = Some(held.unwrap_or_else(|| Box::new(fresh)));
        }
        if let Err(error) = result {
            tracing::debug!(client.id = %self.link.id(), %error, "the peer broke the protocol");
            self.close(error.into(), now);
            self.close_received();
        }
        self.link.hold_input(held_bytes);
        self.link.note(self.session.stage(), now);
    }

    /// Handles one message or control frame. Returns false once the peer is not read any more.
    fn item(&mut self, item: Received<'_>, now: Instant) -> bool {
        if self.phase != Phase::Open {
            if matches!(item, Received::Close(_)) {
                self.close_received();
                return false;
            }
            return true;
        }
        self.make_room();
        let bounds = self.shard.limits().outbox;
        if !matches!(item, Received::Close(_)) && !self.within_rate(now) {
            self.link
                .send(event::error(message::TOO_MANY_REQUESTS), bounds);
            self.close(Close::LimitExceeded, now);
            return true;
        }
        match item {
            Received::Text(text) if self.context.echo => {
                self.link.send(Message::text(text.as_bytes()), bounds)
            }
            Received::Binary(data) if self.context.echo => {
                self.link.send(Message::new(Opcode::Binary, data), bounds)
            }
            Received::Text(text) => self.text(text, now),
            // A binary message is read as text; what is not UTF-8 is replaced (protocol.md 1.5).
            Received::Binary(data) => self.text(&String::from_utf8_lossy(data), now),
            Received::Ping(payload) => {
                self.link
                    .send_clear(Message::new(Opcode::Pong, payload), bounds);
                self.step(now, Input::Alive);
            }
            Received::Pong | Received::Empty => self.step(now, Input::Alive),
            Received::Close(with) => {
                self.closed_by = match with {
                    Some((1000, _)) => ClosedBy::ClientNormally,
                    Some((1001, _)) => ClosedBy::ClientGoingAway,
                    _ => ClosedBy::Client,
                };
                let reply = with.map_or_else(
                    || Message::new(Opcode::Close, &[]),
                    |(code, reason)| Message::close(code, reason),
                );
                self.end(reply, false, now);
                self.close_received();
                return false;
            }
        }
        true
    }

    fn text(&mut self, text: &str, now: Instant) {
        self.context.metrics.frames_in.inc();
        self.step(now, Input::Text(text));
    }

    /// Returns whether the connection may send one more frame.
    fn within_rate(&mut self, now: Instant) -> bool {
        let limits = self.shard.limits();
        limits.frames_per_second == 0
            || self.context.echo
            || self.frames.try_take(frame_rate(&limits), now)
    }

    fn step(&mut self, now: Instant, input: Input<'_>) {
        // The wall clock is read only where an input needs it.
        let wall = match input {
            Input::Text(_) | Input::Alive => chrono::DateTime::UNIX_EPOCH,
            Input::Authentication(_)
            | Input::Subscribed
            | Input::Refreshed(_)
            | Input::TrustWithdrawn
            | Input::Tick => self.context.clock.now(),
        };
        let refused = matches!(
            input,
            Input::Authentication(Authentication::Refused | Authentication::Failed)
        );
        let actions = self
            .session
            .on(self.link.id(), now, wall, &self.context.rules, input);
        if refused {
            self.context
                .metrics
                .handshake
                .observe(now.duration_since(self.began.instant()).as_secs_f64());
        }
        self.perform(actions, now);
    }

    fn perform(&mut self, actions: Actions, now: Instant) {
        let bounds = self.shard.limits().outbox;
        for action in actions {
            match action {
                Action::Send(message) => self.link.send(message, bounds),
                Action::SendClear(message) => self.link.send_clear(message, bounds),
                Action::Ping => self
                    .link
                    .send_clear(Message::new(Opcode::Ping, &[]), bounds),
                Action::Verify { token, key } => {
                    self.began = now.into();
                    self.ask(Operation::Verify { token, key });
                }
                Action::Admit => self.admit(now),
                Action::Release => self.release(now),
                Action::Join(join) => {
                    if let Some(who) = self.session.principal().cloned() {
                        self.ask(Operation::Join { who, join });
                    }
                }
                Action::Leave(rooms) => self.ask(Operation::Leave(rooms)),
                Action::Refresh(token) => self.ask(Operation::Refresh { token }),
                Action::MarkRead(selector) => {
                    if let Some(who) = self.session.principal().cloned() {
                        self.ask(Operation::MarkRead { who, selector });
                    }
                }
                Action::Sync { after, limit } => {
                    if let Some(who) = self.session.principal().cloned() {
                        self.ask(Operation::Sync { who, after, limit });
                    }
                }
                Action::Close(close) => self.close(close, now),
            }
        }
    }

    fn admit(&mut self, now: Instant) {
        let Some(principal) = self.session.principal().cloned() else {
            return;
        };
        let encrypted = self.session.will_encrypt();
        self.link.hold();
        if self
            .shard
            .admit(&self.link, Arc::clone(&principal), encrypted)
            .is_err()
        {
            let user = Arc::clone(&principal.subject);
            return self
                .operations
                .get_or_insert_default()
                .push_own(Operation::Replace { user });
        }
        (self.known, self.admitted, self.encrypted) = (true, true, encrypted);
        // Counted here and now, so that whatever way the connection ends, the interests are taken back after they were given.
        let confirmed = self.context.bus.subscribe(self.shard.interests(&self.link));
        // A revocation, or a source's removal, that came between the outcome and the entry in the hub found nobody to close: it is refused as whoever
        // comes later with such a token.
        if !self.context.authenticator.trusts(&principal) {
            self.link.send_clear(
                event::error(message::AUTHENTICATION_FAILED),
                self.shard.limits().outbox,
            );
            return self.close(Close::AuthenticationFailed, now);
        }
        self.operations
            .get_or_insert_default()
            .push_own(Operation::Subscribe(confirmed));
    }

    fn release(&mut self, now: Instant) {
        if let Some(cipher) = self.session.cipher() {
            self.link.seal_with(cipher.clone());
        }
        self.link.note(self.session.stage(), now);
        self.link.release(|_| true);
        self.context
            .metrics
            .handshake
            .observe(now.duration_since(self.began.instant()).as_secs_f64());
    }

    /// Looks at every deadline. `Err` ends the connection.
    fn deadlines(&mut self, now: Instant) -> Result<(), Ended> {
        match self.phase {
            Phase::Open => {
                if !self.context.echo && self.session.next_deadline().is_some_and(|at| at <= now) {
                    self.step(now, Input::Tick);
                }
                if self.write_deadline().is_some_and(|at| at <= now) {
                    self.close(Close::SlowConsumer, now);
                }
                if self.recheck_at.is_some_and(|at| at <= now.into()) {
                    self.recheck(now);
                }
                Ok(())
            }
            Phase::Closing { until, .. } | Phase::Lingering { until } if until <= now.into() => {
                Err(Ended)
            }
            Phase::Closing { .. } | Phase::Lingering { .. } => Ok(()),
        }
    }

    fn write_deadline(&self) -> Option<Instant> {
        self.link
            .blocked_since()
            .map(|since| since + self.shard.limits().write_timeout)
    }

    fn recheck(&mut self, now: Instant) {
        let rooms = self.shard.rooms_by_right(&self.link);
        match self.session.principal().cloned() {
            Some(who) if !rooms.is_empty() => {
                self.recheck_at = Some((now + self.context.recheck_interval).into());
                self.operations
                    .get_or_insert_default()
                    .push_own(Operation::Recheck { who, rooms });
            }
            _ => self.recheck_at = None,
        }
    }

    /// Writes what is queued. `Err` ends the connection.
    fn write(&mut self, cx: &mut TaskContext<'_>, now: Instant) -> Result<(), Ended> {
        if let Some(close) = self.link.requested_close() {
            self.close(close, now);
        }
        while !self.link.is_flushed() {
            // A socket that was full is asked before bytes are put together for it.
            if self.link.blocked_since().is_some() {
                match self.link.poll_writable(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Err(Ended),
                    Poll::Pending => return Ok(()),
                }
            }
            let flushed = self.flush().map_err(|_| Ended)?;
            debug_assert!(flushed == Flushed::All || self.link.blocked_since().is_some());
        }
        if let Phase::Closing {
            close_received: true,
            ..
        } = self.phase
        {
            self.link.shutdown_write();
            self.phase = Phase::Lingering {
                until: (now + LINGER.min(self.close_timeout())).into(),
            };
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<Flushed> {
        let (flushed, written) = self.link.flush()?;
        self.context.metrics.bytes_out.inc_by(written as u64);
        self.context.metrics.writes_out.inc();
        Ok(flushed)
    }

    /// Writes answers before they fill the outbox. A client may send more at once than that holds answers, and it is slow only where its socket takes
    /// nothing (protocol.md 8.2).
    fn make_room(&self) {
        if self.link.is_half_full(self.shard.limits().outbox) {
            // The write at the end of the turn finds the same error, and ends the connection.
            let _ = self.flush();
        }
    }

    /// Has the wheel wake this task for its next deadline.
    fn plan(&self) {
        let next = match self.phase {
            Phase::Open => {
                let session = if self.context.echo {
                    None
                } else {
                    self.session.next_deadline()
                };
                let recheck_at = self.recheck_at.map(Moment::instant);
                [session, self.write_deadline(), recheck_at]
                    .into_iter()
                    .flatten()
                    .min()
            }
            Phase::Closing { until, .. } | Phase::Lingering { until } => Some(until.instant()),
        };
        self.shard.wake_at(&self.link, next);
    }

    fn close(&mut self, close: Close, now: Instant) {
        if self.phase != Phase::Open {
            return;
        }
        self.closed_by = ClosedBy::Gateway(close);
        // A slow reader, or somebody whose right has ended, gets nothing more than the Close frame.
        let drop_queue = matches!(
            close,
            Close::SlowConsumer | Close::TokenExpired | Close::Revoked
        );
        if close == Close::Revoked
            && let Some(operations) = &mut self.operations
        {
            // It came with a right that has ended.
            operations.drop_waiting();
        }
        self.end(
            Message::close(close.code(), close.reason()),
            drop_queue,
            now,
        );
    }

    fn end(&mut self, frame: Message, drop_queue: bool, now: Instant) {
        self.session.end();
        self.withdraw();
        self.carry_out();
        self.link.finish(frame, drop_queue);
        self.link.note(Stage::Closed, now);
        self.phase = Phase::Closing {
            until: (now + self.close_timeout()).into(),
            close_received: false,
        };
    }

    /// Carries out what was taken from the socket and lasts (protocol.md 2.13).
    fn carry_out(&mut self) {
        if let Some(operations) = self.operations.take() {
            operations.carry_out(&self.context);
        }
    }

    fn close_timeout(&self) -> Duration {
        let most = self.context.close_timeout;
        if self.known {
            most
        } else {
            most.min(STRANGER_CLOSE)
        }
    }

    fn close_received(&mut self) {
        if let Phase::Closing { close_received, .. } = &mut self.phase {
            *close_received = true;
        }
    }

    fn withdraw(&mut self) {
        if std::mem::take(&mut self.admitted) {
            self.shard.withdraw(&self.link, self.encrypted);
        }
    }
}

/// The connection is over.
struct Ended;

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.link.register(cx);
        ready!(this.turn(cx));
        Poll::Ready(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.withdraw();
        self.carry_out();
        self.shard.forget(&self.link);
        self.context
            .metrics
            .closed
            .get_or_create(&Metrics::kind(self.closed_by.label()))
            .inc();
    }
}

/// Whether the client did nothing wrong, and is to come again.
fn invites_back(close: Close) -> bool {
    matches!(close, Close::ShuttingDown | Close::Rebalanced)
}

fn frame_rate(limits: &ConnectionLimits) -> Rate {
    Rate {
        per_second: f64::from(limits.frames_per_second),
        burst: limits.frame_burst,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every connection has one task, to which tokio adds 96 bytes and an alignment of 128. The allocator has a class of 256 bytes with that alignment; of
    /// what is longer, it gives 512 to a good part.
    #[test]
    fn a_connection_and_what_a_task_adds_fit_into_256_bytes() {
        assert!(
            size_of::<Connection>() + 96 <= 256,
            "{}",
            size_of::<Connection>()
        );
    }
}

//! What every subscriber connection hears ends here: read, sorted, and queued for the hub.
//!
//! [`Intake::heard`] is called by a connection's driver and must not wait, so the queue of [`Events`] is bounded by dropping: a
//! [`BusEvent::Resync`] follows a drop. Two connections overlap while a password changes; [`Intake::begin_hand_over`] makes one continuous stream of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use redis::{PushInfo, PushKind, Value};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::bus::wire::{self, Bridged, Names};
use crate::bus::{Ask, BusEvent, Reply};
use crate::dispatch::ResyncReason;
use crate::metrics::Metrics;

/// Most bytes heard and not yet handed out.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// Most events heard and not yet handed out.
const MAX_WAITING: usize = 65_536;
/// What an event costs beside its data.
const EVENT_BYTES: usize = 128;
/// Most questions of others that wait for this instance's answer.
const MAX_ASKED: usize = 256;

/// A question, as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) id: u64,
    pub(super) from: String,
    #[serde(flatten)]
    pub(super) ask: Ask,
}

/// An answer, as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) id: u64,
    pub(super) from: String,
    #[serde(flatten)]
    pub(super) reply: Reply,
}

/// A question that waits for this instance's answer.
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) from: String,
    pub(super) reply: oneshot::Receiver<Reply>,
}

/// Which instance published a dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bus) struct Stamp {
    /// Its `serverId`.
    pub(in crate::bus) instance: Box<str>,
    /// What it carries where it was published to two servers.
    pub(in crate::bus) bridged: Option<Bridged>,
}

/// An event, and who published it where that was an instance.
#[derive(Debug)]
pub(in crate::bus) struct Heard {
    pub(in crate::bus) event: BusEvent,
    pub(in crate::bus) stamp: Option<Stamp>,
}

enum Queued {
    Heard(Heard, usize),
    /// Nothing follows.
    End,
}

impl From<BusEvent> for Heard {
    fn from(event: BusEvent) -> Self {
        Self { event, stamp: None }
    }
}

/// Which connection is listened to.
enum Speaking {
    One(u64),
    /// Until the marker came through both: what `to` hears after it is held until `from` has heard all before it.
    Handing {
        from: u64,
        to: u64,
        marker: Vec<u8>,
        from_done: bool,
        to_started: bool,
        held: Vec<(Vec<u8>, Vec<u8>)>,
        held_bytes: usize,
    },
}

/// The state that connections, tasks and callers share.
pub(super) struct Intake {
    names: Names,
    instance: String,
    metrics: Arc<Metrics>,
    /// Of them, how many dispatches were received.
    dispatches: Counter,
    started: Instant,
    queue: mpsc::UnboundedSender<Queued>,
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// Something was dropped.
    overflowed: AtomicBool,
    speaking: Mutex<Speaking>,
    handed_over: Notify,
    pinged: Mutex<(Instant, Option<Duration>)>,
    /// Another instance says that dispatches of it were lost.
    peer_lost: Notify,
    asked: mpsc::Sender<Asked>,
    open: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
}

impl Intake {
    /// With it, what is heard, and the questions that wait for an answer.
    pub(super) fn new(
        names: Names,
        instance: String,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, Events, mpsc::Receiver<Asked>) {
        let (queue, queued) = mpsc::unbounded_channel();
        let (ask, asked) = mpsc::channel(MAX_ASKED);
        let now = Instant::now();
        let intake = Arc::new(Self {
            names,
            instance,
            dispatches: metrics
                .bus_received
                .get_or_create_owned(&Metrics::kind("dispatch")),
            metrics,
            started: now,
            queue,
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            overflowed: AtomicBool::new(false),
            speaking: Mutex::new(Speaking::One(0)),
            handed_over: Notify::new(),
            pinged: Mutex::new((now, None)),
            peer_lost: Notify::new(),
            asked: ask,
            open: Mutex::default(),
        });
        let events = Events {
            queue: queued,
            intake: Arc::clone(&intake),
            taken: Vec::new(),
        };
        (intake, events, asked)
    }

    /// Takes a push of connection `generation`.
    pub(super) fn heard(&self, generation: u64, push: PushInfo) {
        if push.kind != PushKind::Message {
            return;
        }
        let mut data = push.data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) =
            (data.next(), data.next())
        else {
            return;
        };
        // Held over `take`, so that what was held during a hand-over and what comes after it cannot overtake each other.
        let mut speaking = self.speaking.lock();
        match &mut *speaking {
            Speaking::One(current) if *current == generation => self.take(&channel, &payload),
            Speaking::One(_) => {}
            Speaking::Handing {
                from,
                to,
                marker,
                from_done,
                to_started,
                held,
                held_bytes,
            } => {
                let is_marker = channel == self.names.ping.as_bytes() && payload == *marker;
                if generation == *from {
                    if is_marker {
                        *from_done = true;
                    } else if !*from_done {
                        self.take(&channel, &payload);
                    }
                } else if generation == *to {
                    if is_marker {
                        *to_started = true;
                    } else if *to_started && *from_done {
                        self.take(&channel, &payload);
                    } else if *to_started {
                        *held_bytes += channel.len() + payload.len();
                        if *held_bytes > MAX_WAITING_BYTES {
                            self.drop_one();
                        } else {
                            held.push((channel, payload));
                        }
                    }
                }
                if *from_done && *to_started {
                    self.end_hand_over(&mut speaking);
                }
            }
        }
    }

    /// Listens to this connection alone, whatever was before.
    pub(super) fn listen_to(&self, generation: u64) {
        *self.speaking.lock() = Speaking::One(generation);
    }

    /// Goes from one connection to another without a gap or a repeat, at `marker`: a ping that both hear.
    pub(super) fn begin_hand_over(&self, from: u64, to: u64, marker: Vec<u8>) {
        *self.speaking.lock() = Speaking::Handing {
            from,
            to,
            marker,
            from_done: false,
            to_started: false,
            held: Vec::new(),
            held_bytes: 0,
        };
    }

    /// Ends when the marker came through both. Only one task may wait.
    pub(super) async fn handed_over(&self) {
        loop {
            let notified = self.handed_over.notified();
            if matches!(&*self.speaking.lock(), Speaking::One(_)) {
                return;
            }
            notified.await;
        }
    }

    /// Goes over without waiting for the marker: something may be missed.
    pub(super) fn force_hand_over(&self) {
        let mut speaking = self.speaking.lock();
        self.end_hand_over(&mut speaking);
    }

    fn end_hand_over(&self, speaking: &mut Speaking) {
        let Speaking::Handing { to, held, .. } = speaking else {
            return;
        };
        for (channel, payload) in std::mem::take(held) {
            self.take(&channel, &payload);
        }
        *speaking = Speaking::One(*to);
        self.handed_over.notify_waiters();
    }

    fn take(&self, channel: &[u8], payload: &[u8]) {
        let Ok(channel) = std::str::from_utf8(channel) else {
            return self.count("malformed");
        };
        if let Some(destination) = self.names.destination(channel) {
            match wire::decode(&self.instance, destination, payload) {
                Ok(Some((dispatch, from, bridged))) => {
                    let bytes = dispatch.data.get().len() + EVENT_BYTES;
                    let stamp = is_instance(&from).then(|| Stamp {
                        instance: from.into(),
                        bridged,
                    });
                    if self.enqueue(
                        Heard {
                            event: BusEvent::Dispatch(dispatch),
                            stamp,
                        },
                        bytes,
                    ) {
                        self.dispatches.inc();
                    }
                }
                Ok(None) => self.count("own"),
                Err(why) => {
                    // Not the channel: it may hold a user's id.
                    tracing::debug!(reason = %why, bytes = payload.len(), "a payload on the bus was dropped");
                    self.count("malformed");
                }
            }
        } else if channel == self.names.ping {
            self.take_ping(payload);
        } else if channel == self.names.ask {
            self.take_question(payload);
        } else if channel == self.names.reply {
            self.take_answer(payload);
        } else if channel == self.names.lost && payload != self.instance.as_bytes() {
            self.count("lost");
            self.peer_lost.notify_one();
        }
    }

    /// The payload of a ping sent now.
    pub(super) fn ping(&self) -> Vec<u8> {
        self.started.elapsed().as_micros().to_string().into_bytes()
    }

    fn take_ping(&self, payload: &[u8]) {
        let sent = std::str::from_utf8(payload)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
            .map(Duration::from_micros);
        let Some(lag) = sent.and_then(|sent| self.started.elapsed().checked_sub(sent)) else {
            return;
        };
        *self.pinged.lock() = (Instant::now(), Some(lag));
    }

    /// When a ping last came back, and how long it took.
    pub(super) fn pinged(&self) -> (Instant, Option<Duration>) {
        *self.pinged.lock()
    }

    /// Counts as a ping heard now: a new subscriber connection has been confirmed for the first time.
    pub(super) fn start_hearing(&self) {
        self.pinged.lock().0 = Instant::now();
    }

    fn take_question(&self, payload: &[u8]) {
        let question: Question = match serde_json::from_slice(payload) {
            Ok(question) => question,
            Err(error) => {
                // A newer instance may ask what this one does not know: it is named as silent there.
                tracing::debug!(%error, "a question of another instance was not understood");
                return self.count("malformed");
            }
        };
        if !is_instance(&question.from) {
            return self.count("malformed");
        }
        let (answer, reply) = oneshot::channel();
        let asked = Asked {
            id: question.id,
            from: question.from,
            reply,
        };
        if self.asked.try_send(asked).is_ok()
            && self.enqueue(
                Heard::from(BusEvent::Asked(question.ask, answer)),
                payload.len() + EVENT_BYTES,
            )
        {
            self.count("ask");
        }
    }

    fn take_answer(&self, payload: &[u8]) {
        let Ok(answer) = serde_json::from_slice::<Answer>(payload) else {
            return self.count("malformed");
        };
        self.count("reply");
        let asker = self.open.lock().get(&answer.id).cloned();
        if let Some(asker) = asker {
            // Room for one answer of each that was asked: a further one is nobody's.
            let _ = asker.try_send(answer);
        }
    }

    /// Expects answers to a question; drop the guard to stop.
    pub(super) fn expect(self: &Arc<Self>, id: u64, most: usize) -> Expected {
        let (tell, answers) = mpsc::channel(most.max(1));
        self.open.lock().insert(id, tell);
        Expected {
            intake: self.clone(),
            id,
            answers,
        }
    }

    /// Queues a resync behind all that was heard before.
    pub(super) fn resync(&self, reason: ResyncReason) {
        tracing::info!(
            reason = reason.as_str(),
            "pushes may have been missed: local clients are told to sync"
        );
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _ = self
            .queue
            .send(Queued::Heard(BusEvent::Resync(reason).into(), 0));
    }

    /// Nothing is heard after the guard is dropped: events end behind what was heard before.
    pub(super) fn ends(self: &Arc<Self>) -> Ends {
        Ends(Arc::clone(self))
    }

    /// Ends when nobody takes events any more.
    pub(super) async fn abandoned(&self) {
        self.queue.closed().await;
    }

    /// How much was heard and is not taken.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Ends when another instance has said that dispatches of it were lost.
    pub(super) async fn peer_lost(&self) {
        self.peer_lost.notified().await;
    }

    fn enqueue(&self, heard: Heard, bytes: usize) -> bool {
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel) + 1;
        let waiting_bytes = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if waiting > MAX_WAITING
            || waiting_bytes > MAX_WAITING_BYTES
            || self.queue.send(Queued::Heard(heard, bytes)).is_err()
        {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.drop_one();
            return false;
        }
        true
    }

    fn drop_one(&self) {
        if !self.overflowed.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                "dispatches come in faster than they are handed out; some are dropped and clients will be told to sync"
            );
        }
        self.count("overflow");
    }

    fn count(&self, kind: &'static str) {
        self.metrics
            .bus_received
            .get_or_create(&Metrics::kind(kind))
            .inc();
    }

    /// Whether a drop is to be told: not before half of the queue is free again.
    fn overflow_is_over(&self) -> bool {
        self.waiting.load(Ordering::Acquire) <= MAX_WAITING / 2
            && self.waiting_bytes.load(Ordering::Acquire) <= MAX_WAITING_BYTES / 2
            && self.overflowed.swap(false, Ordering::AcqRel)
    }
}

/// Ends the events when it is dropped.
pub(super) struct Ends(Arc<Intake>);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.queue.send(Queued::End);
    }
}

/// What was heard, in order. Once it is dropped the bus closes.
pub(in crate::bus) struct Events {
    queue: mpsc::UnboundedReceiver<Queued>,
    intake: Arc<Intake>,
    /// Scratch.
    taken: Vec<Queued>,
}

impl Events {
    /// Takes at most `limit` of what waits; nothing at all says that the events have ended.
    pub(in crate::bus) fn poll_many(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Vec<Heard>,
        limit: usize,
    ) -> Poll<()> {
        if self.queue.is_closed() {
            return Poll::Ready(());
        }
        ready!(self.queue.poll_recv_many(context, &mut self.taken, limit));
        let intake = &self.intake;
        for queued in self.taken.drain(..) {
            let Queued::Heard(heard, bytes) = queued else {
                self.queue.close();
                break;
            };
            intake.waiting.fetch_sub(1, Ordering::AcqRel);
            intake.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            batch.push(heard);
        }
        if !self.queue.is_closed() && intake.overflow_is_over() {
            intake.resync(ResyncReason::BusOverflow);
        }
        Poll::Ready(())
    }

    /// Whether nothing waits.
    pub(in crate::bus) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
impl Events {
    /// The next; `None` at their end.
    pub(super) async fn recv(&mut self) -> Option<Heard> {
        let mut batch = Vec::new();
        std::future::poll_fn(|context| self.poll_many(context, &mut batch, 1)).await;
        batch.pop()
    }

    /// The next if it waits.
    pub(super) fn try_recv(&mut self) -> Option<Heard> {
        let mut batch = Vec::new();
        let _ = self.poll_many(
            &mut Context::from_waker(std::task::Waker::noop()),
            &mut batch,
            1,
        );
        batch.pop()
    }
}

/// Answers to one question.
pub(super) struct Expected {
    intake: Arc<Intake>,
    id: u64,
    pub(super) answers: mpsc::Receiver<Answer>,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.intake.open.lock().remove(&self.id);
    }
}

/// Whether a text is an instance's id: 32 hexadecimal digits.
pub(super) fn is_instance(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Destination;

    const ME: &str = "0123456789abcdef0123456789abcdef";

    fn intake() -> (Arc<Intake>, Events, mpsc::Receiver<Asked>) {
        Intake::new(Names::new("", ME), ME.into(), Metrics::new())
    }

    fn message(channel: &str, payload: &str) -> PushInfo {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        PushInfo {
            kind: PushKind::Message,
            data: vec![bulk(channel), bulk(payload)],
        }
    }

    fn said(n: usize) -> PushInfo {
        message(
            "ws:room:r",
            &format!("{{\"serverId\":\"emitter\",\"event\":\"e\",\"data\":{n}}}"),
        )
    }

    fn drain(events: &mut Events) -> Vec<String> {
        std::iter::from_fn(|| events.try_recv())
            .map(|heard| match heard.event {
                BusEvent::Dispatch(dispatch) => {
                    assert_eq!(dispatch.destination, Destination::Room("r".into()));
                    dispatch.data.get().to_owned()
                }
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_hand_over_is_one_stream_without_gap_or_repeat_whichever_connection_is_faster() {
        let marker = || message(&format!("signal:ping:{ME}"), "handover-1");
        // What each connection hears, in order, and all ways to mix the two that the bits of a number can say.
        for mix in 0..1u32 << 12 {
            let (intake, mut events, _asked) = intake();
            intake.listen_to(1);
            intake.begin_hand_over(1, 2, b"handover-1".to_vec());
            let stream = || [said(1), said(2), marker(), said(3), said(4), said(5)];
            let (mut old, mut new) = (stream().into_iter(), stream().into_iter());
            for bit in 0..12 {
                if mix >> bit & 1 == 0 {
                    old.next()
                        .into_iter()
                        .for_each(|push| intake.heard(1, push));
                } else {
                    new.next()
                        .into_iter()
                        .for_each(|push| intake.heard(2, push));
                }
            }
            old.for_each(|push| intake.heard(1, push));
            new.for_each(|push| intake.heard(2, push));
            assert_eq!(drain(&mut events), ["1", "2", "3", "4", "5"], "{mix:b}");
        }
    }

    #[test]
    fn a_connection_that_is_not_listened_to_is_not_heard() {
        let (intake, mut events, _asked) = intake();
        intake.listen_to(2);
        intake.heard(1, said(1));
        intake.heard(2, said(2));
        assert_eq!(drain(&mut events), ["2"]);
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_a_resync_follows_once_it_is_half_empty() {
        let (intake, mut events, _asked) = intake();
        intake.listen_to(1);
        for n in 0..MAX_WAITING + 10 {
            intake.heard(1, said(n));
        }
        for n in 0..MAX_WAITING {
            let Some(Heard {
                event: BusEvent::Dispatch(dispatch),
                ..
            }) = events.recv().await
            else {
                panic!("{n} is missing")
            };
            assert_eq!(dispatch.data.get(), n.to_string());
        }
        assert!(matches!(
            events.recv().await,
            Some(Heard {
                event: BusEvent::Resync(ResyncReason::BusOverflow),
                ..
            })
        ));
        intake.heard(1, said(7));
        assert!(matches!(
            events.recv().await,
            Some(Heard {
                event: BusEvent::Dispatch(_),
                ..
            })
        ));
    }

    #[tokio::test]
    async fn events_end_behind_what_was_heard_and_their_taker_is_missed() {
        let (intake, mut events, _asked) = intake();
        intake.listen_to(1);
        intake.heard(1, said(1));
        drop(intake.ends());
        intake.heard(1, said(2));
        assert_eq!(drain(&mut events), ["1"]);
        assert!(events.recv().await.is_none() && events.recv().await.is_none());
        drop(events);
        intake.abandoned().await;
    }

    #[test]
    fn questions_are_bounded_and_garbage_among_them_is_dropped() {
        let (intake, mut events, mut asked) = intake();
        intake.listen_to(1);
        let channel = format!("signal:ask:{ME}");
        for bad in [
            "",
            "{}",
            r#"{"id":1,"from":"x","ask":"holds","client":"4bC"}"#,
            r#"{"id":1,"from":"00","ask":"unheard-of"}"#,
        ] {
            intake.heard(1, message(&channel, bad));
        }
        assert!(asked.try_recv().is_err());
        let question = Question {
            id: 7,
            from: ME.into(),
            ask: Ask::Holds {
                client: "4bC".parse().unwrap(),
            },
        };
        let payload = serde_json::to_string(&question).unwrap();
        for _ in 0..MAX_ASKED + 1 {
            intake.heard(1, message(&channel, &payload));
        }
        assert_eq!(
            std::iter::from_fn(|| asked.try_recv().ok()).count(),
            MAX_ASKED
        );
        let mut events = std::iter::from_fn(|| events.try_recv());
        assert!(matches!(
            events.next().unwrap().event,
            BusEvent::Asked(Ask::Holds { .. }, _)
        ));
        assert_eq!(events.count(), MAX_ASKED - 1);
    }
}

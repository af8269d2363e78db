//! What every subscriber connection receives ends here: it is read, sorted, and queued for the hub.
//!
//! [`Intake::receive`] is called by a connection's driver and must not wait; see [`queue`](super::queue). Two connections overlap while a login changes:
//! [`Intake::begin_handover`] makes one continuous stream of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use signal_contract::Object;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::queue::{EndOfEvents, Events, MAX_WAITING_BYTES, Origin, Queue, Received};
use crate::bus::wire::{self, EncodedAudience, Malformed, Names};
use crate::bus::{Ask, BusEvent, Reply};
use crate::dispatch::{Destination, ResyncReason};
use crate::metrics::Metrics;

/// What an event costs besides its data.
const EVENT_BYTES: usize = 128;
/// Most questions of other instances that wait for this instance's answer.
const MAX_QUESTIONS: usize = 256;

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
pub(super) struct OpenQuestion {
    pub(super) id: u64,
    pub(super) from: String,
    pub(super) reply: oneshot::Receiver<Reply>,
}

/// Which connection is received from.
enum Current {
    One(u64),
    Handover(Handover),
}

/// Two connections, until the marker came through both: what `to` receives after the marker is held until `from` has received everything before it.
struct Handover {
    from: u64,
    to: u64,
    marker: Vec<u8>,
    from_done: bool,
    to_started: bool,
    held: Vec<(Vec<u8>, Vec<u8>)>,
    held_bytes: usize,
}

/// The state that connections, tasks and callers share.
pub(super) struct Intake {
    names: Names,
    instance: String,
    metrics: Arc<Metrics>,
    /// How many of the payloads received were dispatches.
    dispatches: Counter,
    started: Instant,
    queue: Arc<Queue>,
    current: Mutex<Current>,
    handed_over: Notify,
    /// When a ping last came back, and how long it took.
    last_ping: Mutex<(Instant, Option<Duration>)>,
    /// Another instance reports that dispatches of it were lost.
    peer_lost: Notify,
    questions: mpsc::Sender<OpenQuestion>,
    asked: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
}

impl Intake {
    /// Returns it with the events that come out of it, and the questions that wait for an answer.
    pub(super) fn new(
        names: Names,
        instance: String,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, Events, mpsc::Receiver<OpenQuestion>) {
        let (queue, events) = Queue::new();
        let (questions, waiting) = mpsc::channel(MAX_QUESTIONS);
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
            current: Mutex::new(Current::One(0)),
            handed_over: Notify::new(),
            last_ping: Mutex::new((now, None)),
            peer_lost: Notify::new(),
            questions,
            asked: Mutex::default(),
        });
        (intake, events, waiting)
    }

    /// Returns the intake of a segment, whose events go into the same queue.
    pub(super) fn of_segment(&self, names: Names) -> Arc<Self> {
        Arc::new(Self {
            names,
            instance: self.instance.clone(),
            dispatches: self.dispatches.clone(),
            metrics: self.metrics.clone(),
            started: self.started,
            queue: self.queue.clone(),
            current: Mutex::new(Current::One(0)),
            handed_over: Notify::new(),
            last_ping: Mutex::new((self.started, None)),
            peer_lost: Notify::new(),
            questions: self.questions.clone(),
            asked: Mutex::default(),
        })
    }

    /// Takes a message of connection `generation`.
    pub(super) fn receive(&self, generation: u64, channel: &[u8], payload: &[u8]) {
        // Held over `take`, so that what was held during a handover and what comes after it cannot overtake each other.
        let mut current = self.current.lock();
        match &mut *current {
            Current::One(one) if *one == generation => self.take(channel, payload),
            Current::One(_) => {}
            Current::Handover(handover) => {
                if self.receive_in_handover(handover, generation, channel, payload) {
                    self.end_handover(&mut current);
                }
            }
        }
    }

    /// Takes, holds or drops a message during a handover; `true` when the marker has come through both connections.
    fn receive_in_handover(
        &self,
        handover: &mut Handover,
        generation: u64,
        channel: &[u8],
        payload: &[u8],
    ) -> bool {
        let is_marker = channel == self.names.ping.as_bytes() && payload == handover.marker;
        if generation == handover.from {
            if is_marker {
                handover.from_done = true;
            } else if !handover.from_done {
                self.take(channel, payload);
            }
        } else if generation == handover.to {
            if is_marker {
                handover.to_started = true;
            } else if handover.to_started && handover.from_done {
                self.take(channel, payload);
            } else if handover.to_started {
                handover.held_bytes += channel.len() + payload.len();
                if handover.held_bytes > MAX_WAITING_BYTES {
                    self.drop_one();
                } else {
                    handover.held.push((channel.to_vec(), payload.to_vec()));
                }
            }
        }
        handover.from_done && handover.to_started
    }

    /// Receives from this connection alone from here on.
    pub(super) fn switch_to(&self, generation: u64) {
        *self.current.lock() = Current::One(generation);
    }

    /// Goes from one connection to another without a gap or a repeat, at `marker`: a ping that both receive.
    pub(super) fn begin_handover(&self, from: u64, to: u64, marker: Vec<u8>) {
        *self.current.lock() = Current::Handover(Handover {
            from,
            to,
            marker,
            from_done: false,
            to_started: false,
            held: Vec::new(),
            held_bytes: 0,
        });
    }

    /// Ends when the marker came through both. Only one task may wait.
    pub(super) async fn handed_over(&self) {
        loop {
            let notified = self.handed_over.notified();
            if matches!(&*self.current.lock(), Current::One(_)) {
                return;
            }
            notified.await;
        }
    }

    /// Ends the handover without waiting for the marker: something may be missed.
    pub(super) fn force_handover(&self) {
        let mut current = self.current.lock();
        self.end_handover(&mut current);
    }

    fn end_handover(&self, current: &mut Current) {
        let Current::Handover(Handover { to, held, .. }) = current else {
            return;
        };
        for (channel, payload) in std::mem::take(held) {
            self.take(&channel, &payload);
        }
        *current = Current::One(*to);
        self.handed_over.notify_waiters();
    }

    fn take(&self, channel: &[u8], payload: &[u8]) {
        let Ok(channel) = std::str::from_utf8(channel) else {
            return self.count("malformed");
        };
        if self.names.is_of_messages(channel) {
            match wire::decode(&self.instance, payload) {
                Ok(Some((dispatch, from, bridged))) => {
                    let bytes = dispatch.data_text().map_or(0, str::len) + EVENT_BYTES;
                    let origin = is_instance(&from).then(|| Origin {
                        instance: from.into(),
                        bridged,
                    });
                    let event = BusEvent::Dispatch(dispatch);
                    if self.enqueue(Received { event, origin }, bytes) {
                        self.dispatches.inc();
                    }
                }
                Ok(None) => self.count("own"),
                Err(Malformed::TooLong) => {
                    let kind = self.names.destination(channel);
                    let kind = kind.map_or("unknown", |destination| destination.kind());
                    tracing::warn!(
                        from = "redis",
                        kind,
                        bytes = payload.len(),
                        "message refused: longer than any may be"
                    );
                    let refused = &self.metrics.messages_refused;
                    refused.get_or_create(&Metrics::kind("redis")).inc();
                }
                Err(why) => {
                    // Without the channel, which may hold a user's id.
                    tracing::debug!(reason = %why, bytes = payload.len(), "malformed payload dropped");
                    self.count("malformed");
                }
            }
        } else if channel == self.names.ping {
            self.take_ping(payload);
        } else if channel == self.names.ask {
            self.take_question(payload);
        } else if channel == self.names.reply {
            self.take_answer(payload);
        } else if channel == self.names.lost {
            self.take_losses(payload);
        } else if channel == self.names.audience {
            self.take_audience(payload);
        }
    }

    fn take_audience(&self, payload: &[u8]) {
        let from = wire::publisher_of_audience(payload).filter(|from| is_instance(from));
        match from {
            None => self.count("malformed"),
            Some(from) if from == self.instance => self.count("own"),
            Some(from) => {
                let origin = Some(Origin {
                    instance: from.into(),
                    bridged: None,
                });
                let event = BusEvent::Audience(EncodedAudience::new(payload));
                if self.enqueue(Received { event, origin }, payload.len() + EVENT_BYTES) {
                    self.count("audience");
                }
            }
        }
    }

    /// Takes the report of another instance: its `serverId`, and behind it the channels on which messages were lost, where they are few.
    fn take_losses(&self, payload: &[u8]) {
        let text = std::str::from_utf8(payload).unwrap_or_default();
        let (from, channels) = text.split_once(' ').unwrap_or((text, "[]"));
        if from == self.instance {
            return;
        }
        let Ok(channels) = serde_json::from_str::<Vec<String>>(channels) else {
            return self.count("malformed");
        };
        if !is_instance(from) {
            return self.count("malformed");
        }
        self.count("lost");
        if channels.is_empty() {
            return self.peer_lost.notify_one();
        }
        let destinations = channels
            .iter()
            .filter_map(|channel| self.names.destination(channel))
            .collect();
        let received = Received::from(BusEvent::ResyncFor(ResyncReason::BusPeerLost, destinations));
        self.enqueue(received, payload.len() + EVENT_BYTES);
    }

    /// Returns the payload of a ping that is sent at once.
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
        *self.last_ping.lock() = (Instant::now(), Some(lag));
    }

    /// Returns when a ping last came back, and how long it took.
    pub(super) fn last_ping(&self) -> (Instant, Option<Duration>) {
        *self.last_ping.lock()
    }

    /// Counts as a ping that came back: the first subscriber connection has been confirmed.
    pub(super) fn start_receiving(&self) {
        self.last_ping.lock().0 = Instant::now();
    }

    fn take_question(&self, payload: &[u8]) {
        let question: Question = match serde_json::from_slice(payload) {
            Ok(Object(question)) => question,
            Err(error) => {
                // A newer instance may ask what this one does not know; it counts this one as missing.
                tracing::debug!(%error, "question of another instance not understood");
                return self.count("malformed");
            }
        };
        if !is_instance(&question.from) {
            return self.count("malformed");
        }
        let (answer, reply) = oneshot::channel();
        let open = OpenQuestion {
            id: question.id,
            from: question.from,
            reply,
        };
        if self.questions.try_send(open).is_ok()
            && self.enqueue(
                Received::from(BusEvent::Asked(question.ask, answer)),
                payload.len() + EVENT_BYTES,
            )
        {
            self.count("ask");
        }
    }

    fn take_answer(&self, payload: &[u8]) {
        let Ok(Object(answer)) = serde_json::from_slice::<Object<Answer>>(payload) else {
            return self.count("malformed");
        };
        self.count("reply");
        let asker = self.asked.lock().get(&answer.id).cloned();
        if let Some(asker) = asker {
            // It has room for one answer of each instance that was asked; more are dropped.
            let _ = asker.try_send(answer);
        }
    }

    /// Expects answers to a question; drop the guard to stop.
    pub(super) fn expect(self: &Arc<Self>, id: u64, most: usize) -> Expected {
        let (sender, answers) = mpsc::channel(most.max(1));
        self.asked.lock().insert(id, sender);
        Expected {
            intake: self.clone(),
            id,
            answers,
        }
    }

    /// Queues a resync behind everything that was received before.
    pub(super) fn resync(&self, reason: ResyncReason) {
        self.queue.push_resync(reason);
    }

    /// Queues a resync of some behind everything that was received before.
    pub(super) fn resync_for(&self, reason: ResyncReason, destinations: Vec<Destination>) {
        self.queue
            .push_always(BusEvent::ResyncFor(reason, destinations));
    }

    /// Returns a guard: the events end behind what was received before it is dropped.
    pub(super) fn end_when_dropped(&self) -> EndOfEvents {
        self.queue.end_when_dropped()
    }

    /// Ends when events are no longer taken.
    pub(super) async fn abandoned(&self) {
        self.queue.abandoned().await;
    }

    /// Returns how many events were received and are not taken.
    pub(super) fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// Ends when another instance has reported that dispatches of it were lost.
    pub(super) async fn peer_lost(&self) {
        self.peer_lost.notified().await;
    }

    fn enqueue(&self, received: Received, bytes: usize) -> bool {
        let is_queued = self.queue.push(received, bytes);
        if !is_queued {
            self.drop_one();
        }
        is_queued
    }

    fn drop_one(&self) {
        if self.queue.note_drop() {
            tracing::warn!(
                "dispatches come in faster than they are handed out: some are dropped, and a resync will follow"
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
}

/// Answers to one question.
pub(super) struct Expected {
    intake: Arc<Intake>,
    id: u64,
    pub(super) answers: mpsc::Receiver<Answer>,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.intake.asked.lock().remove(&self.id);
    }
}

/// Whether a text is an instance's id: 32 hexadecimal digits.
pub(super) fn is_instance(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;

//! Hands out what is received: the events of the bus.
//!
//! Input: the events of each server, as the switcher attaches them, and the switcher's own. Output: the events that [`super::super::open`] returns; they
//! end with those of the current server. The taker does the work: there is no task and no queue in between.
//!
//! With one server its events are handed out as they come; [`Merging`] decides when a merge stands in between.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::merge::{ServerId, ServerState};
use super::merging::Merging;
use super::{BridgeCore, Bus as _, BusEvent, SubscriberState};
use crate::bus::pubsub::{Events, Received};
use crate::metrics::Metrics;

/// How often messages that are held are looked at.
const HOLD_CHECK: Duration = Duration::from_millis(50);
/// Most events that are taken from one server at a time.
const BATCH: usize = 256;

/// What the switcher sends.
pub(super) enum StreamCommand {
    /// Receive from a server, until its events end.
    Attach(ServerId, Events),
    /// Hand this event out.
    HandOut(BusEvent),
}

/// The events of all servers, as one stream. Once it is dropped the bus closes.
pub(in crate::bus) struct EventStream {
    core: Arc<BridgeCore>,
    commands: mpsc::UnboundedReceiver<StreamCommand>,
    servers: VecDeque<(ServerId, Events)>,
    merging: Merging,
    /// Scratch.
    batch: Vec<Received>,
}

impl EventStream {
    pub(super) fn new(
        core: Arc<BridgeCore>,
        commands: mpsc::UnboundedReceiver<StreamCommand>,
    ) -> Self {
        Self {
            core,
            commands,
            servers: VecDeque::new(),
            merging: Merging::default(),
            batch: Vec::with_capacity(BATCH),
        }
    }

    /// Adds what comes next to `out`; `false` when the current server's events have ended. Cancel safe.
    pub(in crate::bus) async fn next(&mut self, out: &mut Vec<BusEvent>) -> bool {
        while out.is_empty() {
            let is_holding = self.merging.is_holding();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(StreamCommand::Attach(server, events)) => self.attach(server, events),
                    Some(StreamCommand::HandOut(event)) => out.push(event),
                    None => return false,
                },
                server = next_batch(&mut self.servers, &mut self.batch) => {
                    if self.batch.is_empty() {
                        self.detach(server, out);
                        if has_ended(&self.core, server) {
                            return false;
                        }
                    } else {
                        self.take(server, out);
                    }
                }
                () = tokio::time::sleep(HOLD_CHECK), if is_holding => {}
            }
            self.release_held(out);
        }
        true
    }

    fn attach(&mut self, server: ServerId, events: Events) {
        self.servers.push_back((server, events));
        self.merging.attach_server(server, Instant::now());
    }

    fn detach(&mut self, server: ServerId, out: &mut Vec<BusEvent>) {
        self.servers.retain(|(other, _)| *other != server);
        self.merging.detach_server(server, Instant::now(), out);
    }

    /// Takes the batch of a server.
    fn take(&mut self, server: ServerId, out: &mut Vec<BusEvent>) {
        if self.merging.take_plain(&mut self.batch, out) {
            return;
        }
        let now = Instant::now();
        let states = server_states(&self.core, &self.servers);
        let state = |server| state_of(&states, server);
        self.merging.take(server, &mut self.batch, now, state, out);
        let repeats = self.merging.settle(now);
        if repeats > 0 {
            self.core
                .setup
                .metrics
                .bus_received
                .get_or_create(&Metrics::kind("repeat"))
                .inc_by(repeats);
        }
    }

    /// Hands out what was held for too long.
    fn release_held(&mut self, out: &mut Vec<BusEvent>) {
        if self.merging.is_holding() {
            let states = server_states(&self.core, &self.servers);
            let state = |server| state_of(&states, server);
            self.merging.expire(Instant::now(), state, out);
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.core.closing.cancel();
    }
}

/// Takes what one server has, each in its turn; an empty batch means that its events have ended. Pending for ever where there is no server. Cancel safe.
async fn next_batch(
    servers: &mut VecDeque<(ServerId, Events)>,
    batch: &mut Vec<Received>,
) -> ServerId {
    poll_fn(|context| {
        for _ in 0..servers.len() {
            servers.rotate_left(1);
            let Some((server, events)) = servers.back_mut() else {
                break;
            };
            if events.poll_many(context, batch, BATCH).is_ready() {
                return Poll::Ready(*server);
            }
        }
        Poll::Pending
    })
    .await
}

/// Returns the state of each server where there are two: a message waits for the other one. A server that is being left counts as up until its events
/// end, which is soon.
fn server_states(
    core: &BridgeCore,
    servers: &VecDeque<(ServerId, Events)>,
) -> Vec<(ServerId, ServerState)> {
    if servers.len() < 2 {
        return Vec::new();
    }
    let route = core.route.lock();
    let is_down = |id: ServerId| {
        let server = route.servers().find(|server| server.id == id);
        server.is_some_and(|server| {
            !server.bus.is_subscribed() || server.bus.subscriber() == SubscriberState::Stalled
        })
    };
    let state = |(id, events): &(ServerId, Events)| match (events.is_empty(), is_down(*id)) {
        (false, _) => ServerState::Behind,
        (true, true) => ServerState::Down,
        (true, false) => ServerState::Up,
    };
    servers
        .iter()
        .map(|entry| (entry.0, state(entry)))
        .collect()
}

fn state_of(states: &[(ServerId, ServerState)], server: ServerId) -> ServerState {
    states
        .iter()
        .find(|(id, _)| *id == server)
        .map_or(ServerState::Down, |(_, state)| *state)
}

/// Whether the end of this server's events is that of all.
fn has_ended(core: &BridgeCore, server: ServerId) -> bool {
    let mut route = core.route.lock();
    if route.current.id == server {
        return true;
    }
    if route
        .previous()
        .is_some_and(|previous| previous.id == server)
    {
        // It ended by itself: the switcher opens it again.
        route.detach_bridge();
        core.previous_lost.notify_one();
    }
    false
}

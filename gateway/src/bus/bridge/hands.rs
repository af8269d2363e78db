//! What the servers hear, as one stream.
//!
//! Input: the events of each bus, as the mover names them, and the mover's own. Output: the events of the switch; they end with those of the bus in use.
//! Whoever takes them does the work: there is no task and no queue in between.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::merge::{Line, Merge, Standing};
use super::{Bus as _, BusEvent, Shared, SubscriberState};
use crate::bus::pubsub::{Events, Heard};
use crate::metrics::Metrics;

/// How often what is held is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Most events that are taken from one server at a time.
const BATCH: usize = 256;

/// What the mover hands over.
pub(super) enum Hand {
    /// A server to be heard; it ends with its events.
    Line(Line, Events),
    /// Something to be told in the stream.
    Event(BusEvent),
}

/// What all servers hear, as one stream. Once it is dropped the switch closes.
pub(in crate::bus) struct Joined {
    shared: Arc<Shared>,
    handed: mpsc::UnboundedReceiver<Hand>,
    lines: VecDeque<(Line, Events)>,
    merge: Merge,
    /// Scratch.
    batch: Vec<Heard>,
}

impl Joined {
    pub(super) fn new(shared: Arc<Shared>, handed: mpsc::UnboundedReceiver<Hand>) -> Self {
        Self {
            shared,
            handed,
            lines: VecDeque::new(),
            merge: Merge::default(),
            batch: Vec::with_capacity(BATCH),
        }
    }

    /// Adds what comes next to `out`; `false` when the bus in use has ended. Cancel safe.
    pub(in crate::bus) async fn next(&mut self, out: &mut Vec<BusEvent>) -> bool {
        let Self {
            shared,
            handed,
            lines,
            merge,
            batch,
        } = self;
        while out.is_empty() {
            tokio::select! {
                biased;
                hand = handed.recv() => match hand {
                    Some(Hand::Line(line, heard)) => {
                        merge.attach(line);
                        lines.push_back((line, heard));
                    }
                    Some(Hand::Event(event)) => out.push(event),
                    None => return false,
                },
                line = next(lines, batch) => {
                    let now = Instant::now();
                    if batch.is_empty() {
                        lines.retain(|(other, _)| *other != line);
                        merge.detach(line, out);
                        if has_ended(shared, line) {
                            return false;
                        }
                    }
                    let standings = standings(shared, lines);
                    for heard in batch.drain(..) {
                        merge.on(line, heard, now, |line| standing(&standings, line), out);
                    }
                }
                () = async { tokio::time::sleep(LOOK).await }, if merge.is_holding() => {}
            }
            if merge.is_holding() {
                let standings = standings(shared, lines);
                merge.expire(Instant::now(), |line| standing(&standings, line), out);
            }
            let repeats = std::mem::take(&mut merge.repeats);
            if repeats > 0 {
                shared
                    .setup
                    .metrics
                    .bus_received
                    .get_or_create(&Metrics::kind("repeat"))
                    .inc_by(repeats);
            }
        }
        true
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

/// Takes what one server has, each in its turn; an empty batch says that it has ended. Never ends where there is none. Cancel safe.
async fn next(lines: &mut VecDeque<(Line, Events)>, batch: &mut Vec<Heard>) -> Line {
    poll_fn(|context| {
        for _ in 0..lines.len() {
            lines.rotate_left(1);
            let Some((line, heard)) = lines.back_mut() else {
                break;
            };
            if heard.poll_many(context, batch, BATCH).is_ready() {
                return Poll::Ready(*line);
            }
        }
        Poll::Pending
    })
    .await
}

/// How each server stands, where there is more than one: nobody is waited for beside the only one. One that is being left is up until its events end,
/// which is soon.
fn standings(shared: &Shared, lines: &VecDeque<(Line, Events)>) -> Vec<(Line, Standing)> {
    if lines.len() < 2 {
        return Vec::new();
    }
    let route = shared.route.lock();
    let is_down = |line: Line| {
        let side = std::iter::once(&route.current)
            .chain(&route.previous)
            .find(|side| side.line == line);
        side.is_some_and(|side| {
            !side.bus.is_up() || side.bus.subscriber() == SubscriberState::Stalled
        })
    };
    let standing = |(line, heard): &(Line, Events)| match (heard.is_empty(), is_down(*line)) {
        (false, _) => Standing::Behind,
        (true, true) => Standing::Down,
        (true, false) => Standing::Up,
    };
    lines
        .iter()
        .map(|entry| (entry.0, standing(entry)))
        .collect()
}

fn standing(standings: &[(Line, Standing)], line: Line) -> Standing {
    standings
        .iter()
        .find(|(l, _)| *l == line)
        .map_or(Standing::Down, |(_, standing)| *standing)
}

/// Whether the end of this server's events is that of all.
fn has_ended(shared: &Shared, line: Line) -> bool {
    let mut route = shared.route.lock();
    if route.current.line == line {
        return true;
    }
    if route
        .previous
        .as_ref()
        .is_some_and(|side| side.line == line)
    {
        // Nobody asked for it: the mover opens it again.
        route.previous = None;
        shared.lost.notify_one();
    }
    false
}

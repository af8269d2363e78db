//! The task that hands out what the servers heard, as one stream.
//!
//! Input: the events of each bus, as the mover names them, and the mover's own. Output: the events of the switch; they end with those of the bus in use.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::merge::{Line, Merge, Standing};
use super::{Bus as _, BusEvent, Hearing, Shared};
use crate::bus::redis::Heard;
use crate::metrics::Metrics;

/// How often what is held is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Most events that are taken from one server at a time.
const BATCH: usize = 256;

/// What the mover hands to this task.
pub(super) enum Hand {
    /// A server to be heard; it ends with its events.
    Line(Line, mpsc::Receiver<Heard>),
    /// Something to be told in the stream.
    Event(BusEvent),
}

/// Hands out until the bus in use ends, or nobody takes any more.
pub(super) async fn hand_out(shared: &Shared, mut handed: mpsc::UnboundedReceiver<Hand>, events: mpsc::Sender<BusEvent>) {
    let mut lines: VecDeque<(Line, mpsc::Receiver<Heard>)> = VecDeque::new();
    let (mut merge, mut batch, mut out) = (Merge::default(), Vec::with_capacity(BATCH), Vec::new());
    loop {
        tokio::select! {
            hand = handed.recv() => match hand {
                Some(Hand::Line(line, heard)) => {
                    merge.attach(line);
                    lines.push_back((line, heard));
                }
                Some(Hand::Event(event)) => out.push(event),
                None => return,
            },
            line = next(&mut lines, &mut batch) => {
                let now = Instant::now();
                if batch.is_empty() {
                    lines.retain(|(other, _)| *other != line);
                    merge.detach(line, &mut out);
                    if has_ended(shared, line) {
                        return;
                    }
                }
                let standings = standings(shared, &lines);
                for heard in batch.drain(..) {
                    merge.on(line, heard, now, |line| standing(&standings, line), &mut out);
                }
            }
            () = tokio::time::sleep(LOOK), if merge.is_holding() => {}
        }
        if merge.is_holding() {
            let standings = standings(shared, &lines);
            merge.expire(Instant::now(), |line| standing(&standings, line), &mut out);
        }
        let repeats = std::mem::take(&mut merge.repeats);
        if repeats > 0 {
            shared.setup.metrics.bus_received.get_or_create(&Metrics::kind("repeat")).inc_by(repeats);
        }
        for event in out.drain(..) {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// Takes what one server has, each in its turn; an empty batch says that it has ended. Never ends where there is none. Cancel safe.
async fn next(lines: &mut VecDeque<(Line, mpsc::Receiver<Heard>)>, batch: &mut Vec<Heard>) -> Line {
    poll_fn(|context| {
        for _ in 0..lines.len() {
            lines.rotate_left(1);
            let Some((line, heard)) = lines.back_mut() else { break };
            if heard.poll_recv_many(context, batch, BATCH).is_ready() {
                return Poll::Ready(*line);
            }
        }
        Poll::Pending
    })
    .await
}

/// How each server stands, where there is more than one: nobody is waited for beside the only one. One that is being left is up until its events end,
/// which is soon.
fn standings(shared: &Shared, lines: &VecDeque<(Line, mpsc::Receiver<Heard>)>) -> Vec<(Line, Standing)> {
    if lines.len() < 2 {
        return Vec::new();
    }
    let route = shared.route.lock();
    let is_down = |line: Line| {
        let side = std::iter::once(&route.current).chain(&route.previous).find(|side| side.line == line);
        side.is_some_and(|side| !side.bus.is_up() || side.bus.hearing() == Hearing::Deaf)
    };
    let standing = |(line, heard): &(Line, mpsc::Receiver<Heard>)| match (heard.is_empty(), is_down(*line)) {
        (false, _) => Standing::Behind,
        (true, true) => Standing::Down,
        (true, false) => Standing::Up,
    };
    lines.iter().map(|entry| (entry.0, standing(entry))).collect()
}

fn standing(standings: &[(Line, Standing)], line: Line) -> Standing {
    standings.iter().find(|(l, _)| *l == line).map_or(Standing::Down, |(_, standing)| *standing)
}

/// Whether the end of this server's events is that of all.
fn has_ended(shared: &Shared, line: Line) -> bool {
    let mut route = shared.route.lock();
    if route.current.line == line {
        return true;
    }
    if route.previous.as_ref().is_some_and(|side| side.line == line) {
        // Nobody asked for it: the mover opens it again.
        route.previous = None;
        shared.lost.notify_one();
    }
    false
}

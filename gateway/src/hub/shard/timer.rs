//! Deadlines of a shard's connections: one runtime timer, set for the next tick of the wheel at which something is due.

use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use super::Shard;
use crate::hub::link::Link;

impl Shard {
    /// Wakes the connection at or shortly after `at`. Replaces its earlier deadline.
    pub fn wake_at(&self, link: &Link, at: Option<Instant>) {
        let mut wheel = self.wheel.borrow_mut();
        let due = at.map_or(u32::MAX, |at| wheel.tick_of(at));
        link.due.set(due);
        if due < link.scheduled.get() {
            let tick = wheel.schedule(link.slot, due);
            link.scheduled.set(tick);
            if tick < self.timed.get()
                && let Some(timer) = &*self.timer.borrow()
            {
                self.timed.set(tick);
                timer.wake_by_ref();
            }
        }
    }

    /// Runs the timer of the wheel, without end.
    pub(in crate::hub) async fn run_timer(self: Rc<Self>) -> Infallible {
        let mut due = Vec::new();
        let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        poll_fn(|cx| {
            self.timer
                .borrow_mut()
                .get_or_insert_with(|| cx.waker().clone())
                .clone_from(cx.waker());
            loop {
                let Some((tick, at)) = self.wheel.borrow().next() else {
                    self.timed.set(u32::MAX);
                    return Poll::Pending;
                };
                self.timed.set(tick);
                if sleep.deadline() != at.into() {
                    sleep.as_mut().reset(at.into());
                }
                ready!(sleep.as_mut().poll(cx));
                self.wake_due(Instant::now(), &mut due);
            }
        })
        .await
    }

    /// Wakes every connection whose deadline has come.
    fn wake_due(&self, now: Instant, due_entries: &mut Vec<(u32, u32)>) {
        due_entries.clear();
        let mut wheel = self.wheel.borrow_mut();
        wheel.turn(now, due_entries);
        let links = self.links.borrow();
        for (slot, tick) in due_entries.drain(..) {
            let Some(link) = links.get(slot as usize) else {
                continue;
            };
            if link.scheduled.get() != tick {
                // An earlier tick was scheduled since, or another connection has the slot.
                continue;
            }
            link.scheduled.set(u32::MAX);
            let due = link.due.get();
            if wheel.has_passed(due) {
                link.wake();
            } else if due < u32::MAX {
                link.scheduled.set(wheel.schedule(slot, due));
            }
        }
    }
}

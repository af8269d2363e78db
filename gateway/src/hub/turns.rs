//! Whether each shard turns. One whose thread is stuck serves none of its connections, and says nothing.
//!
//! A task of its own answers on each shard, so a long list of commands delays no answer: it comes as soon as the thread takes turns between tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Inlet;

/// The question to one shard.
#[derive(Default)]
pub(super) struct Turn {
    is_asked: AtomicBool,
    asked: Notify,
}

impl Turn {
    fn ask(&self) {
        self.is_asked.store(true, Ordering::Release);
        self.asked.notify_one();
    }

    fn is_answered(&self) -> bool {
        !self.is_asked.load(Ordering::Acquire)
    }

    /// Answers, until it is dropped.
    pub(super) async fn answer(&self) {
        loop {
            self.asked.notified().await;
            self.is_asked.store(false, Ordering::Release);
        }
    }
}

/// How long the shards have not answered.
pub struct Turns {
    inlets: Arc<[Arc<Inlet>]>,
    /// How many checks each has not answered. They are counted, and not timed: a process that was stopped for a while is not stuck.
    missed: Vec<u32>,
    interval: Duration,
    next_at: Instant,
}

impl Turns {
    pub(super) fn new(inlets: &Arc<[Arc<Inlet>]>, interval: Duration) -> Self {
        Self {
            inlets: Arc::clone(inlets),
            missed: vec![0; inlets.len()],
            interval,
            next_at: Instant::now(),
        }
    }

    /// Asks each shard, at most once in the interval, and returns the one that has not answered for longest, with the time.
    pub fn check(&mut self) -> Option<(usize, Duration)> {
        let now = Instant::now();
        if now >= self.next_at {
            self.next_at = now + self.interval;
            for (inlet, missed) in self.inlets.iter().zip(&mut self.missed) {
                *missed = match inlet.turn.is_answered() || inlet.mailbox.is_closed() {
                    true => 0,
                    false => *missed + 1,
                };
                inlet.turn.ask();
            }
        }
        let shards = self.missed.iter().enumerate();
        let (shard, missed) = shards.max_by_key(|(_, missed)| **missed)?;
        (*missed > 0).then(|| (shard, self.interval * *missed))
    }
}

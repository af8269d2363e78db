//! One coarse timer wheel for every deadline of a shard: tens of thousands of connections cost one timer of the runtime.
//!
//! An entry only wakes its connection, which looks at its own deadlines and asks again. A deadline beyond the wheel's span wakes it early, at the
//! span, and is asked for again: that is one extra wake-up per span.

use std::time::{Duration, Instant};

/// How coarse deadlines are.
pub(super) const TICK: Duration = Duration::from_millis(50);
const TICK_MS: u64 = TICK.as_millis() as u64;
const SLOTS: usize = 1024;

/// Whole milliseconds, rounded up: a deadline is never early.
fn millis(duration: Duration) -> u64 {
    duration.as_secs() * 1000 + u64::from(duration.subsec_nanos().div_ceil(1_000_000))
}

/// Deadlines of one shard.
#[derive(Debug)]
pub(super) struct Wheel {
    started: Instant,
    /// The next tick that has not been turned to.
    tick: u64,
    slots: Box<[Vec<u32>]>,
}

impl Wheel {
    /// An empty wheel.
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, tick: 0, slots: (0..SLOTS).map(|_| Vec::new()).collect() }
    }

    /// Wakes `key` at or up to one tick after `at`, or at the end of the span. Says at which tick, so that a later request for the same tick can be left out.
    pub(super) fn schedule(&mut self, key: u32, at: Instant) -> u64 {
        let tick = self.tick_of(at);
        self.slots[(tick % SLOTS as u64) as usize].push(key);
        tick
    }

    /// The tick that [`Wheel::schedule`] would choose.
    pub(super) fn tick_of(&self, at: Instant) -> u64 {
        let due = millis(at.saturating_duration_since(self.started)).div_ceil(TICK_MS);
        due.clamp(self.tick, self.tick + SLOTS as u64 - 1)
    }

    /// Turns to `now` and hands out every key that is due.
    pub(super) fn turn(&mut self, now: Instant, due: &mut Vec<u32>) {
        let passed = now.saturating_duration_since(self.started);
        let until = (passed.as_secs() * 1000 + u64::from(passed.subsec_millis())) / TICK_MS;
        // After a long sleep one full turn visits every slot.
        self.tick = self.tick.max((until + 1).saturating_sub(SLOTS as u64));
        while self.tick <= until {
            let slot = &mut self.slots[(self.tick % SLOTS as u64) as usize];
            due.append(slot);
            if slot.capacity() > 4096 {
                *slot = Vec::new();
            }
            self.tick += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(wheel: &mut Wheel, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.turn(now, &mut due);
        due
    }

    #[test]
    fn a_key_is_due_at_its_deadline_and_not_before() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.schedule(7, start + Duration::from_millis(5000));
        assert_eq!(turn(&mut wheel, start + Duration::from_millis(4999)), [0u32; 0]);
        assert_eq!(turn(&mut wheel, start + Duration::from_millis(5000)), [7]);
        assert_eq!(turn(&mut wheel, start + Duration::from_secs(600)), [0u32; 0]);
    }

    #[test]
    fn a_deadline_that_passed_is_due_at_the_next_turn() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        turn(&mut wheel, start + Duration::from_secs(10));
        wheel.schedule(1, start);
        assert_eq!(turn(&mut wheel, start + Duration::from_secs(10) + TICK), [1]);
    }

    #[test]
    fn a_deadline_beyond_the_span_wakes_at_the_span() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.schedule(1, start + Duration::from_secs(3600));
        assert_eq!(turn(&mut wheel, start + TICK * (SLOTS as u32 - 2)), [0u32; 0]);
        assert_eq!(turn(&mut wheel, start + TICK * SLOTS as u32), [1]);
    }

    #[test]
    fn a_long_sleep_hands_out_every_key_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for key in 0..2000 {
            wheel.schedule(key, start + Duration::from_millis(u64::from(key) * 20));
        }
        let mut due = turn(&mut wheel, start + Duration::from_secs(500));
        due.sort_unstable();
        assert_eq!(due, (0..2000).collect::<Vec<_>>());
    }
}

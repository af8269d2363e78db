//! One coarse timer wheel for every deadline of a shard: tens of thousands of connections cost one timer of the runtime, which is set only for ticks at
//! which something is due.
//!
//! The user of the wheel checks the deadline of each key that it hands out, and schedules it again if the deadline lies later. So a deadline that
//! moved, or one beyond the span of the wheel, wakes no connection.

use std::time::{Duration, Instant};

/// The precision of deadlines.
const TICK: Duration = Duration::from_millis(100);
const TICK_MS: u64 = TICK.as_millis() as u64;
/// Spans 102 s: longer than a connection may be silent.
const SLOTS: usize = 1024;

/// Returns whole milliseconds, rounded up, so that no deadline is early.
fn millis(duration: Duration) -> u64 {
    duration.as_secs() * 1000 + u64::from(duration.subsec_nanos().div_ceil(1_000_000))
}

/// Deadlines of one shard.
#[derive(Debug)]
pub(super) struct Wheel {
    started: Instant,
    /// The next tick that the wheel has not reached. 32 bits of 100 ms last for 13 years.
    tick: u32,
    slots: Box<[Vec<u32>]>,
    /// A bit for each slot that is not empty.
    filled: [u64; SLOTS / 64],
}

impl Wheel {
    /// Creates an empty wheel.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            tick: 0,
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            filled: [0; SLOTS / 64],
        }
    }

    /// Schedules `key` for `tick`: for the next turn if that has passed, and for the end of the span if it lies beyond. Returns the tick.
    pub(super) fn schedule(&mut self, key: u32, tick: u32) -> u32 {
        let tick = tick.clamp(self.tick, self.tick + SLOTS as u32 - 1);
        let slot = tick as usize % SLOTS;
        self.slots[slot].push(key);
        self.filled[slot / 64] |= 1 << (slot % 64);
        tick
    }

    /// Returns the next tick at which something is due, and its time; `None` if the wheel is empty.
    pub(super) fn next(&self) -> Option<(u32, Instant)> {
        let from = self.tick as usize % SLOTS;
        // The word of `from` comes twice: its upper bits first, its lower bits last.
        let words = (0..=self.filled.len()).map(|n| {
            let word = (from / 64 + n) % self.filled.len();
            let upper = u64::MAX << (from % 64);
            let seen = if n == 0 {
                upper
            } else if n == self.filled.len() {
                !upper
            } else {
                u64::MAX
            };
            (word, self.filled[word] & seen)
        });
        let slot = words
            .filter(|(_, bits)| *bits != 0)
            .map(|(word, bits)| word * 64 + bits.trailing_zeros() as usize)
            .next()?;
        let tick = self.tick + ((slot + SLOTS - from) % SLOTS) as u32;
        Some((tick, self.started + TICK * tick))
    }

    /// Returns the first tick at or after `at`.
    pub(super) fn tick_of(&self, at: Instant) -> u32 {
        let due = millis(at.saturating_duration_since(self.started)).div_ceil(TICK_MS);
        u32::try_from(due).unwrap_or(u32::MAX)
    }

    /// Returns whether the wheel has reached a tick.
    pub(super) fn has_passed(&self, tick: u32) -> bool {
        tick < self.tick
    }

    /// Turns to `now`, and adds every due key to `due`, with the tick that [`Wheel::schedule`] returned.
    pub(super) fn turn(&mut self, now: Instant, due: &mut Vec<(u32, u32)>) {
        let passed = now.saturating_duration_since(self.started);
        let until =
            ((passed.as_secs() * 1000 + u64::from(passed.subsec_millis())) / TICK_MS) as u32;
        while self.tick <= until {
            let Some((tick, _)) = self.next().filter(|(tick, _)| *tick <= until) else {
                self.tick = until + 1;
                return;
            };
            let at = tick as usize % SLOTS;
            let slot = &mut self.slots[at];
            due.extend(slot.drain(..).map(|key| (key, tick)));
            if slot.capacity() > 4096 {
                *slot = Vec::new();
            }
            self.filled[at / 64] &= !(1 << (at % 64));
            self.tick = tick + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(wheel: &mut Wheel, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.turn(now, &mut due);
        assert!(due.iter().all(|(_, tick)| wheel.has_passed(*tick)));
        due.into_iter().map(|(key, _)| key).collect()
    }

    fn schedule(wheel: &mut Wheel, key: u32, at: Instant) -> u32 {
        wheel.schedule(key, wheel.tick_of(at))
    }

    #[test]
    fn a_key_is_due_at_its_deadline_and_not_before() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        schedule(&mut wheel, 7, start + Duration::from_millis(5000));
        assert_eq!(
            turn(&mut wheel, start + Duration::from_millis(4999)),
            [0u32; 0]
        );
        assert_eq!(turn(&mut wheel, start + Duration::from_millis(5000)), [7]);
        assert_eq!(
            turn(&mut wheel, start + Duration::from_secs(600)),
            [0u32; 0]
        );
    }

    #[test]
    fn a_deadline_that_passed_is_due_at_the_next_turn() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        turn(&mut wheel, start + Duration::from_secs(10));
        schedule(&mut wheel, 1, start);
        assert_eq!(
            turn(&mut wheel, start + Duration::from_secs(10) + TICK),
            [1]
        );
    }

    #[test]
    fn a_deadline_beyond_the_span_is_handed_out_at_its_end() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        schedule(&mut wheel, 1, start + Duration::from_secs(3600));
        assert_eq!(
            turn(&mut wheel, start + TICK * (SLOTS as u32 - 2)),
            [0u32; 0]
        );
        assert_eq!(turn(&mut wheel, start + TICK * SLOTS as u32), [1]);
        assert!(!wheel.has_passed(wheel.tick_of(start + Duration::from_secs(3600))));
    }

    #[test]
    fn the_next_tick_is_the_first_with_a_key_wherever_the_wheel_stands() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        assert_eq!(wheel.next(), None);
        for turned in [
            0,
            1,
            63,
            64,
            100,
            SLOTS as u32 - 1,
            SLOTS as u32 + 70,
            5 * SLOTS as u32,
        ] {
            turn(&mut wheel, start + TICK * turned);
            for ahead in [1, 2, 62, 63, 64, 65, 700, SLOTS as u32 - 2] {
                let at = start + TICK * (turned + ahead);
                let tick = schedule(&mut wheel, 1, at);
                schedule(&mut wheel, 2, start + TICK * (turned + SLOTS as u32));
                assert_eq!(
                    wheel.next(),
                    Some((tick, at)),
                    "{ahead} ticks ahead of {turned}"
                );
                wheel.slots.iter_mut().for_each(Vec::clear);
                wheel.filled.fill(0);
            }
            assert_eq!(wheel.next(), None);
        }
    }

    #[test]
    fn a_long_sleep_hands_out_every_key_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for key in 0..2000 {
            schedule(
                &mut wheel,
                key,
                start + Duration::from_millis(u64::from(key) * 40),
            );
        }
        let mut due = turn(&mut wheel, start + Duration::from_secs(500));
        due.sort_unstable();
        assert_eq!(due, (0..2000).collect::<Vec<_>>());
    }
}

//! One stream out of two servers: each message of an instance once, and in the order it was published. No IO, no clock.
//!
//! An instance that publishes to two servers gives each dispatch a number, the same on both and greater than the one before, and says which of the two
//! it was on alone before: its **home**. Whichever copy comes
//! first is taken, and what is not beyond the last number taken is a repeat. That alone would let an instance's first dispatch on the new server
//! overtake what it had published to the old one alone, so the other stream of an instance is **held** until home has brought the same number:
//! by then it has brought everything before it. A server that is down is not waited for, and no other longer than [`HOLD`].
//!
//! Input: what the two buses heard. Output: what the hub hears.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::super::BusEvent;
use super::super::pubsub::{Heard, Stamp};
use super::super::wire::Bridged;
use crate::dispatch::ResyncReason;

/// Longest time a message is held.
pub(super) const HOLD: Duration = Duration::from_secs(1);
/// Most messages held of one instance.
const MAX_HELD: usize = 16_384;
/// Most instances that are remembered: more than are ever alive at a time.
const MAX_INSTANCES: usize = 4096;

/// Which server something was heard on.
pub(super) type Line = u64;

/// How a server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is not heard.
    Down,
    /// It is heard.
    Up,
    /// Something was heard that is not looked at yet.
    Behind,
}

#[derive(Default)]
struct Publisher {
    /// The greatest number taken.
    last: u64,
    /// The server that it was on alone last, where that is known.
    home: Option<Line>,
    /// The first number since then.
    since: u64,
    /// Both streams are at one, since then.
    joined: bool,
    held: VecDeque<(Option<u64>, BusEvent)>,
    /// When what is held is taken anyway.
    until: Option<Instant>,
}

/// The state.
#[derive(Default)]
pub(super) struct Merge {
    lines: Vec<Line>,
    publishers: HashMap<Box<str>, Publisher>,
    /// How many have something held.
    holding: usize,
    /// Repeats that were dropped.
    pub(super) repeats: u64,
}

impl Merge {
    /// A server is heard from here on.
    pub(super) fn attach(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// A server is heard no longer; what waited for it is taken.
    pub(super) fn detach(&mut self, line: Line, out: &mut Vec<BusEvent>) {
        self.lines.retain(|l| *l != line);
        for publisher in self.publishers.values_mut() {
            publisher.release(out);
            (publisher.home, publisher.joined) = (None, false);
        }
        self.holding = 0;
    }

    /// Whether something is held.
    pub(super) fn is_holding(&self) -> bool {
        self.holding > 0
    }

    /// Takes what was heard on a server.
    pub(super) fn on(
        &mut self,
        line: Line,
        heard: Heard,
        now: Instant,
        standing: impl Fn(Line) -> Standing,
        out: &mut Vec<BusEvent>,
    ) {
        let Heard { event, stamp } = heard;
        let other = self.lines.iter().copied().find(|l| *l != line);
        let Some(Stamp { instance, bridged }) =
            stamp.filter(|stamp| other.is_some() || stamp.bridged.is_some())
        else {
            return out.push(event);
        };
        self.make_room(&instance);
        let publisher = self.publishers.entry(instance).or_default();
        let was_holding = publisher.until.is_some();
        match bridged {
            None => publisher.plain(event, line, out),
            Some(Bridged {
                number,
                since,
                is_home,
            }) => {
                let home = if is_home { Some(line) } else { other };
                let settled = publisher.settle(home, since);
                let repeat = number <= publisher.last;
                let waits = !settled
                    || home.is_some_and(|home| home != line && standing(home) != Standing::Down);
                self.repeats += u64::from(repeat);
                match (repeat, waits && !publisher.joined) {
                    (true, _) => publisher.repeat(since, line),
                    (false, true) => publisher.hold(number, event, now),
                    (false, false) => publisher.take(number, event, line, out),
                }
            }
        }
        match (was_holding, publisher.until.is_some()) {
            (false, true) => self.holding += 1,
            (true, false) => self.holding -= 1,
            _ => {}
        }
    }

    /// Takes what was held for too long, and what waits for a server that is down.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        standing: impl Fn(Line) -> Standing,
        out: &mut Vec<BusEvent>,
    ) {
        let mut late = 0;
        for publisher in self.publishers.values_mut() {
            let Some(until) = publisher.until else {
                continue;
            };
            let goes_on = match publisher.home.map_or(Standing::Down, &standing) {
                Standing::Down => false,
                Standing::Up => until > now,
                Standing::Behind => publisher.held.len() < MAX_HELD,
            };
            if !goes_on {
                publisher.release(out);
                self.holding -= 1;
                late += 1;
            }
        }
        if late > 0 {
            tracing::warn!(
                instances = late,
                "messages of the other Redis are late: some may be missed"
            );
            out.push(BusEvent::Resync(ResyncReason::BusMoved));
        }
    }

    fn make_room(&mut self, instance: &str) {
        if self.publishers.len() >= MAX_INSTANCES && !self.publishers.contains_key(instance) {
            self.publishers
                .retain(|_, publisher| publisher.until.is_some());
        }
    }
}

impl Publisher {
    /// A dispatch that was published to one server alone.
    fn plain(&mut self, event: BusEvent, line: Line, out: &mut Vec<BusEvent>) {
        if self.until.is_some() && self.home != Some(line) {
            // It was published after what is held.
            return self.held.push_back((None, event));
        }
        (self.home, self.joined) = (Some(line), false);
        out.push(event);
    }

    /// Learns where it was alone last: a stream that was at one then has to catch up anew. `false` while something from before is held.
    fn settle(&mut self, home: Option<Line>, since: u64) -> bool {
        let is_new =
            since > self.since || (since == self.since && home.is_some() && self.home != home);
        if is_new && self.until.is_none() {
            (self.home, self.since, self.joined) = (home, since, false);
        }
        !(is_new && self.until.is_some())
    }

    fn repeat(&mut self, since: u64, line: Line) {
        // Home is ahead of this stream, so all that was before it has come.
        self.joined |= self.home != Some(line) && since == self.since;
    }

    fn hold(&mut self, number: u64, event: BusEvent, now: Instant) {
        self.until.get_or_insert(now + HOLD);
        self.held.push_back((Some(number), event));
        if self.held.len() >= MAX_HELD {
            self.until = Some(now);
        }
    }

    fn take(&mut self, number: u64, event: BusEvent, line: Line, out: &mut Vec<BusEvent>) {
        self.last = number;
        out.push(event);
        if self.home == Some(line) {
            let has_caught_up = self
                .held
                .front()
                .is_some_and(|(held, _)| held.is_some_and(|held| held <= number));
            if has_caught_up {
                self.release(out);
            }
        } else {
            self.joined = true;
        }
    }

    /// Takes what is held, less repeats: both streams are at one.
    fn release(&mut self, out: &mut Vec<BusEvent>) {
        self.joined = true;
        self.until = None;
        for (number, event) in self.held.drain(..) {
            if number.is_none_or(|number| number > self.last) {
                self.last = number.unwrap_or(self.last);
                out.push(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use serde_json::value::RawValue;

    use super::*;
    use crate::dispatch::{Destination, Dispatch};

    const OLD: Line = 1;
    const NEW: Line = 2;

    /// A dispatch on a line; `home` and a number where it went to both.
    fn from(
        line: Line,
        instance: &str,
        home: Line,
        number: Option<(u64, u64)>,
        data: u64,
    ) -> Heard {
        let dispatch = Dispatch::new(
            Destination::Broadcast,
            "e",
            Arc::from(RawValue::from_string(data.to_string()).unwrap()),
        );
        Heard {
            event: BusEvent::Dispatch(dispatch),
            stamp: Some(Stamp {
                instance: instance.into(),
                bridged: number.map(|(number, since)| Bridged {
                    number,
                    since,
                    is_home: line == home,
                }),
            }),
        }
    }

    struct Lab {
        merge: Merge,
        now: Instant,
        old: Standing,
        out: Vec<BusEvent>,
    }

    impl Lab {
        fn bridged() -> Self {
            let mut merge = Merge::default();
            merge.attach(OLD);
            merge.attach(NEW);
            Self {
                merge,
                now: Instant::now(),
                old: Standing::Up,
                out: Vec::new(),
            }
        }

        fn on(&mut self, line: Line, heard: Heard) -> &mut Self {
            let old = self.old;
            self.merge.on(
                line,
                heard,
                self.now,
                |line| if line == OLD { old } else { Standing::Up },
                &mut self.out,
            );
            self
        }

        /// A dispatch of an instance whose home is the old server.
        fn said(
            &mut self,
            line: Line,
            instance: &str,
            number: Option<u64>,
            data: u64,
        ) -> &mut Self {
            self.on(
                line,
                from(line, instance, OLD, number.map(|number| (number, 1)), data),
            )
        }

        fn expire(&mut self) {
            let old = self.old;
            self.merge.expire(
                self.now,
                |line| if line == OLD { old } else { Standing::Up },
                &mut self.out,
            );
        }

        /// What came out since the last look; `None` for a resync.
        fn out(&mut self) -> Vec<Option<u64>> {
            let read = |event| match event {
                BusEvent::Dispatch(dispatch) => Some(dispatch.data.get().parse().unwrap()),
                BusEvent::Resync(_) => None,
                other => panic!("{other:?}"),
            };
            std::mem::take(&mut self.out)
                .into_iter()
                .map(read)
                .collect()
        }
    }

    fn all(numbers: impl IntoIterator<Item = u64>) -> Vec<Option<u64>> {
        numbers.into_iter().map(Some).collect()
    }

    #[test]
    fn an_instance_that_goes_over_is_heard_once_and_in_order_however_the_two_servers_mix() {
        // What was published to the old server alone comes there only; from 3 on all comes on both.
        let old = [
            (None, 1),
            (None, 2),
            (Some(1), 3),
            (Some(2), 4),
            (Some(3), 5),
        ];
        let new = [(Some(1), 3), (Some(2), 4), (Some(3), 5), (None, 6)];
        for mix in 0..1u32 << 9 {
            let mut lab = Lab::bridged();
            let (mut old, mut new) = (old.iter(), new.iter());
            for bit in 0..9 {
                let (line, next) = if mix >> bit & 1 == 0 {
                    (OLD, old.next())
                } else {
                    (NEW, new.next())
                };
                if let Some((number, data)) = next {
                    lab.said(line, "x", *number, *data);
                }
            }
            old.for_each(|(number, data)| {
                lab.said(OLD, "x", *number, *data);
            });
            new.for_each(|(number, data)| {
                lab.said(NEW, "x", *number, *data);
            });
            assert_eq!(lab.out(), all(1..=6), "{mix:b}");
            assert!(!lab.merge.is_holding());
        }
    }

    #[test]
    fn who_comes_to_hear_the_new_server_later_misses_and_repeats_nothing() {
        let mut lab = Lab::bridged();
        lab.merge.detach(NEW, &mut Vec::new());
        lab.said(OLD, "x", Some(7), 7);
        lab.merge.attach(NEW);
        // The new server is ahead of the old one.
        lab.said(NEW, "x", Some(9), 9).said(NEW, "x", Some(10), 10);
        assert_eq!(lab.out(), all([7]));
        lab.said(OLD, "x", Some(8), 8)
            .said(OLD, "x", Some(9), 9)
            .said(OLD, "x", Some(10), 10);
        assert_eq!(lab.out(), all([8, 9, 10]));
        lab.said(NEW, "x", Some(11), 11)
            .said(OLD, "x", Some(11), 11);
        assert_eq!((lab.out(), lab.merge.repeats), (all([11]), 2));
        lab.merge.detach(OLD, &mut Vec::new());
        lab.said(NEW, "x", Some(11), 11)
            .said(NEW, "x", Some(12), 12)
            .said(NEW, "x", None, 13);
        assert_eq!(
            lab.out(),
            all([12, 13]),
            "a copy that is late is a repeat still"
        );
    }

    #[test]
    fn a_server_that_is_down_or_silent_is_not_waited_for_and_clients_are_told() {
        let mut lab = Lab::bridged();
        lab.old = Standing::Down;
        lab.said(NEW, "x", Some(1), 1);
        assert_eq!(lab.out(), all([1]));
        lab.old = Standing::Up;
        lab.said(NEW, "y", Some(1), 1);
        assert!(lab.out().is_empty() && lab.merge.is_holding());
        lab.now += HOLD - Duration::from_millis(1);
        lab.expire();
        assert!(lab.out().is_empty());
        (lab.old, lab.now) = (Standing::Behind, lab.now + HOLD);
        lab.expire();
        assert!(
            lab.out().is_empty(),
            "it was heard and is only not looked at"
        );
        (lab.old, lab.now) = (Standing::Up, lab.now - HOLD);
        lab.now += Duration::from_millis(1);
        lab.expire();
        assert_eq!(lab.out(), [Some(1), None]);
        lab.said(NEW, "z", Some(1), 1);
        lab.old = Standing::Down;
        lab.expire();
        assert_eq!(lab.out(), [Some(1), None], "it went down meanwhile");
        lab.old = Standing::Up;
        lab.said(NEW, "z", Some(2), 2);
        assert_eq!(lab.out(), all([2]), "once is enough");
    }

    #[test]
    fn emitters_are_heard_at_once_on_either_server() {
        let mut lab = Lab::bridged();
        let outside = |data| Heard {
            stamp: None,
            ..from(OLD, "x", OLD, None, data)
        };
        lab.on(NEW, outside(1))
            .on(OLD, outside(1))
            .on(NEW, outside(2));
        assert_eq!(lab.out(), all([1, 1, 2]));
    }

    #[test]
    fn instances_that_go_there_and_back_and_there_again_are_heard_once_and_in_order() {
        for seed in 0..2000 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut lab, mut number, mut data) = (Lab::bridged(), 0, 0u64);
            for round in 0..6 {
                // For a while on one server alone, then on both; by the next time all has come.
                let alone = if round == 0 {
                    0
                } else {
                    random.random_range(0..2)
                };
                let mut streams = [Vec::new(), Vec::new()];
                for _ in 0..random.random_range(1..4) {
                    data += 1;
                    streams[alone].push((None, data));
                }
                let since = number + 1;
                for _ in 0..random.random_range(1..4) {
                    (data, number) = (data + 1, number + 1);
                    streams
                        .iter_mut()
                        .for_each(|stream| stream.push((Some((number, since)), data)));
                }
                let mut waiting = streams.map(std::collections::VecDeque::from);
                while waiting.iter().any(|stream| !stream.is_empty()) {
                    let side = random.random_range(0..2);
                    if let Some((number, data)) = waiting[side].pop_front() {
                        let line = [OLD, NEW][side];
                        lab.on(line, from(line, "x", [OLD, NEW][alone], number, data));
                    }
                }
            }
            assert_eq!(lab.out(), all(1..=data), "seed {seed}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut lab = Lab::bridged();
        for n in 0..3 * MAX_INSTANCES {
            lab.said(OLD, &n.to_string(), Some(1), 1);
        }
        assert!(lab.merge.publishers.len() <= MAX_INSTANCES);
        lab.out();
        for n in 0..MAX_HELD as u64 {
            lab.said(NEW, "held", Some(n + 1), n + 1);
        }
        lab.expire();
        assert_eq!(lab.out().len(), MAX_HELD + 1, "and the resync");
    }
}

//! The merge as a value: every way in which two servers can deliver.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::value::RawValue;

use super::*;
use crate::dispatch::{Destination, Dispatch};

const OLD: ServerId = 1;
const NEW: ServerId = 2;

/// A dispatch on a server, with its numbers where it went to both.
fn from(
    server: ServerId,
    instance: &str,
    complete: ServerId,
    number: Option<(u64, u64)>,
    data: u64,
) -> Received {
    let dispatch = Dispatch::new(
        Destination::Broadcast,
        "e",
        Arc::from(RawValue::from_string(data.to_string()).unwrap()),
    );
    Received {
        event: BusEvent::Dispatch(dispatch),
        origin: Some(Origin {
            instance: instance.into(),
            bridged: number.map(|(number, since)| Bridged {
                number,
                since,
                is_complete: server == complete,
            }),
        }),
    }
}

struct Lab {
    merge: Merge,
    now: Instant,
    old: ServerState,
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
            old: ServerState::Up,
            out: Vec::new(),
        }
    }

    fn on(&mut self, server: ServerId, received: Received) -> &mut Self {
        let old = self.old;
        self.merge.take(
            server,
            received,
            self.now,
            |server| if server == OLD { old } else { ServerState::Up },
            &mut self.out,
        );
        self
    }

    /// Takes a dispatch of an instance whose complete server is the old one.
    fn publish(
        &mut self,
        server: ServerId,
        instance: &str,
        number: Option<u64>,
        data: u64,
    ) -> &mut Self {
        self.on(
            server,
            from(
                server,
                instance,
                OLD,
                number.map(|number| (number, 1)),
                data,
            ),
        )
    }

    fn expire(&mut self) {
        let old = self.old;
        self.merge.expire(
            self.now,
            |server| if server == OLD { old } else { ServerState::Up },
            &mut self.out,
        );
    }

    /// What came out since the last look; `None` for a resync.
    fn out(&mut self) -> Vec<Option<u64>> {
        let read = |event| match event {
            BusEvent::Dispatch(dispatch) => Some(dispatch.data_text().unwrap().parse().unwrap()),
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
fn an_instance_that_switches_is_received_once_and_in_order_however_the_two_servers_mix() {
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
            let (server, next) = if mix >> bit & 1 == 0 {
                (OLD, old.next())
            } else {
                (NEW, new.next())
            };
            if let Some((number, data)) = next {
                lab.publish(server, "x", *number, *data);
            }
        }
        old.for_each(|(number, data)| {
            lab.publish(OLD, "x", *number, *data);
        });
        new.for_each(|(number, data)| {
            lab.publish(NEW, "x", *number, *data);
        });
        assert_eq!(lab.out(), all(1..=6), "{mix:b}");
        assert!(!lab.merge.is_holding());
    }
}

#[test]
fn a_server_that_is_attached_later_causes_no_gap_and_no_repeat() {
    let mut lab = Lab::bridged();
    lab.merge.detach(NEW, &mut Vec::new());
    lab.publish(OLD, "x", Some(7), 7);
    lab.merge.attach(NEW);
    // The new server is ahead of the old one.
    lab.publish(NEW, "x", Some(9), 9)
        .publish(NEW, "x", Some(10), 10);
    assert_eq!(lab.out(), all([7]));
    lab.publish(OLD, "x", Some(8), 8)
        .publish(OLD, "x", Some(9), 9)
        .publish(OLD, "x", Some(10), 10);
    assert_eq!(lab.out(), all([8, 9, 10]));
    lab.publish(NEW, "x", Some(11), 11)
        .publish(OLD, "x", Some(11), 11);
    assert_eq!((lab.out(), lab.merge.repeats), (all([11]), 2));
    lab.merge.detach(OLD, &mut Vec::new());
    lab.publish(NEW, "x", Some(11), 11)
        .publish(NEW, "x", Some(12), 12)
        .publish(NEW, "x", None, 13);
    assert_eq!(lab.out(), all([12, 13]), "a late copy is still a repeat");
}

#[test]
fn a_server_that_is_down_or_late_is_not_waited_for_and_a_resync_follows() {
    let mut lab = Lab::bridged();
    lab.old = ServerState::Down;
    lab.publish(NEW, "x", Some(1), 1);
    assert_eq!(lab.out(), all([1]));
    lab.old = ServerState::Up;
    lab.publish(NEW, "y", Some(1), 1);
    assert!(lab.out().is_empty() && lab.merge.is_holding());
    lab.now += HOLD - Duration::from_millis(1);
    lab.expire();
    assert!(lab.out().is_empty());
    (lab.old, lab.now) = (ServerState::Behind, lab.now + HOLD);
    lab.expire();
    assert!(
        lab.out().is_empty(),
        "it was received and was not looked at yet"
    );
    (lab.old, lab.now) = (ServerState::Up, lab.now - HOLD);
    lab.now += Duration::from_millis(1);
    lab.expire();
    assert_eq!(lab.out(), [Some(1), None]);
    lab.publish(NEW, "z", Some(1), 1);
    lab.old = ServerState::Down;
    lab.expire();
    assert_eq!(lab.out(), [Some(1), None], "it went down meanwhile");
    lab.old = ServerState::Up;
    lab.publish(NEW, "z", Some(2), 2);
    assert_eq!(lab.out(), all([2]), "once is enough");
}

#[test]
fn emitters_are_received_at_once_on_either_server() {
    let mut lab = Lab::bridged();
    let outside = |data| Received {
        origin: None,
        ..from(OLD, "x", OLD, None, data)
    };
    lab.on(NEW, outside(1))
        .on(OLD, outside(1))
        .on(NEW, outside(2));
    assert_eq!(lab.out(), all([1, 1, 2]));
}

#[test]
fn instances_that_switch_there_and_back_and_there_again_are_received_once_and_in_order() {
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
                    let server = [OLD, NEW][side];
                    lab.on(server, from(server, "x", [OLD, NEW][alone], number, data));
                }
            }
        }
        assert_eq!(lab.out(), all(1..=data), "seed {seed}");
    }
}

#[test]
fn memory_is_bounded() {
    let mut lab = Lab::bridged();
    for n in 0..3 * MAX_INSTANCES {
        lab.publish(OLD, &n.to_string(), Some(1), 1);
    }
    assert!(lab.merge.publishers.len() <= MAX_INSTANCES);
    lab.out();
    for n in 0..MAX_HELD as u64 {
        lab.publish(NEW, "held", Some(n + 1), n + 1);
    }
    lab.expire();
    assert_eq!(lab.out().len(), MAX_HELD + 1, "and the resync");
}

#[test]
fn numbers_taken_from_one_server_are_repeats_on_one_that_is_attached_later() {
    let mut lab = Lab::bridged();
    lab.merge.detach(NEW, &mut Vec::new());
    lab.publish(OLD, "x", Some(1), 1)
        .publish(OLD, "x", Some(2), 2);
    lab.merge.attach(NEW);
    lab.publish(NEW, "x", Some(2), 2);
    assert!(!lab.merge.is_holding());
    assert_eq!((lab.out(), lab.merge.repeats), (all([1, 2]), 1));
}

//! Single steps by hand, and whole courses over pods that cannot reach everything.

use proptest::prelude::*;

use super::*;
use crate::plan::EventKind;
use signal_contract::RedisMode;
use signal_contract::{PreviousRedis, RedisReport};

const TIMEOUT: signal_crds::Duration = signal_crds::Duration::secs(300);

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000 + secs, 0).unwrap()
}

fn redis(node: &str) -> RecordedRedis {
    RecordedRedis {
        mode: RedisMode::Standalone,
        nodes: vec![format!("{node}:6379")],
        sentinel_master: String::new(),
        database: 0,
        username: String::new(),
        username_file: None,
        password_file: None,
        sentinel_password_file: None,
        tls: false,
        ca_file: None,
        certificate_file: None,
        key_file: None,
        prefix: String::new(),
    }
}

fn pod(name: &str, revision: &str, node: &str) -> Pod {
    let bus = RedisReport {
        mode: Some(RedisMode::Standalone),
        nodes: vec![format!("{node}:6379")],
        subscribed: true,
        ..RedisReport::default()
    };
    Pod {
        ip: None,
        node: None,
        template_hash: String::new(),
        created: at(0),
        report: Ok(StatusReport {
            ready: true,
            live_revision: revision.into(),
            redis: bus,
            ..StatusReport::default()
        }),
        ..crate::fixture::pod(name)
    }
}

fn fails(mut pod: Pod, error: &str) -> Pod {
    pod.report.as_mut().unwrap().redis.error = Some(error.into());
    pod
}

fn switching(to: &str, from: &str) -> RedisRecord {
    RedisRecord {
        current: Some(redis(to)),
        previous: Some(redis(from)),
        since: Some(at(0)),
    }
}

fn on(node: &str) -> RedisRecord {
    RedisRecord {
        current: Some(redis(node)),
        ..RedisRecord::default()
    }
}

fn step(
    wanted: Option<&RecordedRedis>,
    record: &RedisRecord,
    pods: Vec<Pod>,
    secs: i64,
) -> Plan<RedisRecord> {
    let fleet = Fleet { pods };
    plan(
        &RoutingInput {
            wanted,
            record,
            revision: Some("r"),
            fleet: &fleet,
            ack_timeout: TIMEOUT,
        },
        at(secs),
    )
}

fn reasons(plan: &Plan<RedisRecord>) -> Vec<&'static str> {
    plan.events
        .iter()
        .map(|event| event.reason.as_str())
        .collect()
}

#[test]
fn a_switch_bridges_the_previous_redis_and_ends_when_every_pod_is_subscribed_to_the_new_one() {
    let begun = step(Some(&redis("b")), &on("a"), vec![pod("p", "r", "a")], 0);
    assert_eq!(
        (&begun.next, reasons(&begun)),
        (&switching("b", "a"), vec!["RedisSwitchStarted"])
    );
    assert_eq!(begun.waiting.unwrap().reason, "WaitingForPods");

    let mut stalled = pod("q", "r", "b");
    stalled.report.as_mut().unwrap().redis.subscribed = false;
    for (late, word) in [
        (pod("q", "old", "a"), "older"),
        (pod("q", "r", "a"), "receive"),
        (stalled, "receive"),
        (unknown("q"), "no route"),
    ] {
        let waits = step(
            Some(&redis("b")),
            &switching("b", "a"),
            vec![pod("p", "r", "b"), late],
            1,
        );
        assert_eq!((&waits.next, waits.events.len()), (&switching("b", "a"), 0));
        let waiting = waits.waiting.unwrap();
        assert!(
            waiting.reason == "WaitingForPods"
                && waiting.message.contains("pod q")
                && waiting.message.contains(word),
            "{waiting:?}"
        );
    }
    let done = step(
        Some(&redis("b")),
        &switching("b", "a"),
        vec![pod("p", "r", "b"), pod("q", "r", "b")],
        1,
    );
    assert_eq!(
        (&done.next, reasons(&done), done.waiting),
        (&on("b"), vec!["RedisSwitched"], None)
    );
}

fn unknown(name: &str) -> Pod {
    let mut pod = pod(name, "r", "a");
    pod.report = Err("no route".into());
    pod
}

#[test]
fn an_unreachable_redis_is_reported_with_the_pod_and_by_an_event_after_the_timeout() {
    let pods = || {
        vec![
            pod("p", "r", "b"),
            fails(pod("q", "r", "a"), "connection refused"),
        ]
    };
    let waits = step(Some(&redis("b")), &switching("b", "a"), pods(), 299);
    let waiting = Waiting {
        reason: ConditionReason::RedisUnreachable,
        message: "pod q: connection refused".into(),
    };
    assert_eq!(
        (&waits.next, waits.waiting, waits.events.len()),
        (&switching("b", "a"), Some(waiting.clone()), 0)
    );
    let late = step(Some(&redis("b")), &switching("b", "a"), pods(), 300);
    assert_eq!(
        (&late.waiting, late.events[0].kind, reasons(&late)),
        (
            &Some(waiting),
            EventKind::Warning,
            vec!["AcknowledgementTimedOut"]
        )
    );
    let silent = step(
        Some(&redis("b")),
        &switching("b", "a"),
        vec![pod("p", "old", "a")],
        300,
    );
    assert_eq!(silent.waiting.unwrap().reason, "AcknowledgementTimedOut");
}

#[test]
fn switching_back_is_immediate() {
    let back = step(
        Some(&redis("a")),
        &switching("b", "a"),
        vec![pod("p", "r", "b"), pod("q", "r", "a")],
        0,
    );
    assert_eq!(
        (&back.next, reasons(&back)),
        (&switching("a", "b"), vec!["RedisSwitchStarted"])
    );
}

#[test]
fn switching_to_a_third_waits_for_the_switch_unless_no_pod_uses_the_second() {
    let third = redis("c");
    let unused = step(
        Some(&third),
        &switching("b", "a"),
        vec![fails(pod("p", "r", "a"), "refused"), pod("q", "old", "a")],
        0,
    );
    assert_eq!(unused.next, switching("c", "a"));
    for other in [pod("q", "r", "b"), unknown("q")] {
        let waits = step(
            Some(&third),
            &switching("b", "a"),
            vec![fails(pod("p", "r", "a"), "refused"), other],
            0,
        );
        assert_eq!(waits.next, switching("b", "a"));
        let message = waits.waiting.unwrap().message;
        assert!(
            message.starts_with("c:6379 waits until the switch to b:6379 is done: pod p: refused"),
            "{message}"
        );
    }
    let done = step(
        Some(&third),
        &switching("b", "a"),
        vec![pod("p", "r", "b")],
        0,
    );
    assert_eq!(done.next, on("b"));
    assert_eq!(
        step(Some(&third), &done.next, vec![pod("p", "r", "b")], 0).next,
        switching("c", "b")
    );
}

#[test]
fn other_credentials_of_the_same_redis_are_a_switch_that_the_acknowledgement_confirms() {
    let with = |file: &str| RecordedRedis {
        password_file: Some(file.into()),
        ..redis("a")
    };
    let begun = step(
        Some(&with("two")),
        &RedisRecord {
            current: Some(with("one")),
            ..RedisRecord::default()
        },
        vec![pod("p", "r", "a")],
        0,
    );
    assert_eq!(
        (begun.next.current, begun.next.previous),
        (Some(with("two")), Some(with("one")))
    );
    let record = RedisRecord {
        current: Some(with("two")),
        previous: Some(with("one")),
        since: Some(at(0)),
    };
    assert_eq!(
        step(Some(&with("two")), &record, vec![pod("p", "old", "a")], 0).next,
        record
    );
    let refused = || vec![fails(pod("p", "r", "a"), "WRONGPASS")];
    assert_eq!(
        step(Some(&with("two")), &record, refused(), 0)
            .waiting
            .unwrap()
            .reason,
        "RedisUnreachable"
    );
    let third = step(Some(&with("three")), &record, refused(), 0).next;
    assert_eq!(
        (third.current, third.previous),
        (Some(with("three")), Some(with("one")))
    );
    assert_eq!(
        step(Some(&with("three")), &record, vec![pod("p", "r", "a")], 0)
            .next
            .current,
        Some(with("two")),
        "that move ends first"
    );
    assert_eq!(
        step(Some(&with("two")), &record, vec![pod("p", "r", "a")], 0)
            .next
            .previous,
        None
    );
}

#[test]
fn adding_or_removing_redis_is_no_switch_and_without_pods_there_is_none() {
    let b = redis("b");
    for (wanted, record, pods, next) in [
        (
            Some(&b),
            RedisRecord::default(),
            vec![pod("p", "r", "")],
            on("b"),
        ),
        (
            None,
            on("a"),
            vec![pod("p", "r", "a")],
            RedisRecord::default(),
        ),
        (
            None,
            switching("a", "b"),
            vec![pod("p", "r", "a")],
            RedisRecord::default(),
        ),
        (
            None,
            RedisRecord::default(),
            vec![pod("p", "r", "")],
            RedisRecord::default(),
        ),
        (Some(&b), on("a"), vec![], on("b")),
        (Some(&b), switching("b", "a"), vec![], on("b")),
        (Some(&b), on("b"), vec![pod("p", "old", "b")], on("b")),
    ] {
        let plan = step(wanted, &record, pods, 0);
        assert_eq!(
            (plan.next, plan.waiting, plan.events.len()),
            (next, None, 0)
        );
    }
}

/// A gateway as far as its bus goes.
#[derive(Debug, Clone)]
struct Gateway {
    number: usize,
    revision: usize,
    used: RecordedRedis,
    bridged: Option<RecordedRedis>,
    error: bool,
    ready: bool,
    answers: bool,
}

impl Gateway {
    fn observed(&self) -> Pod {
        let mut pod = pod(&format!("p{}", self.number), &self.revision.to_string(), "");
        pod.ready = self.ready;
        let bus = &mut pod.report.as_mut().unwrap().redis;
        bus.nodes.clone_from(&self.used.nodes);
        bus.error = self.error.then(|| "refused".into());
        bus.previous = self.bridged.as_ref().map(|redis| PreviousRedis {
            nodes: redis.nodes.clone(),
            subscribed: true,
        });
        if !self.answers {
            pod.report = Err("no route".into());
        }
        pod
    }

    /// Reads the newest file; a bus that it cannot reach leaves everything as it is.
    fn read(&mut self, revision: usize, record: &RedisRecord, broken: Option<usize>) {
        self.revision = revision;
        let wanted = record.current.clone().unwrap();
        self.error = broken.is_some_and(|at| wanted == choice(at)) && self.used != wanted;
        if !self.error {
            (self.used, self.bridged) = (wanted, record.previous.clone());
        }
    }
}

/// Three places, and other credentials for the first of them.
fn choice(at: usize) -> RecordedRedis {
    let node = ["a", "b", "c", "a"][at];
    RecordedRedis {
        password_file: (at == 3).then(|| "other".into()),
        ..redis(node)
    }
}

#[derive(Debug, Clone)]
enum Act {
    Want(usize),
    Read(usize),
    Restart(usize),
    Ready(usize, bool),
    Answers(usize, bool),
    Break(Option<usize>),
    Plan,
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (0..4_usize).prop_map(Act::Want),
        6 => (0..3_usize).prop_map(Act::Read),
        1 => (0..3_usize).prop_map(Act::Restart),
        1 => (0..3_usize, any::<bool>()).prop_map(|(at, on)| Act::Ready(at, on)),
        1 => (0..3_usize, any::<bool>()).prop_map(|(at, on)| Act::Answers(at, on)),
        1 => proptest::option::of(0..4_usize).prop_map(Act::Break),
        6 => Just(Act::Plan),
        1 => Just(Act::Crash),
    ]
}

struct Simulation {
    gateways: Vec<Gateway>,
    record: RedisRecord,
    revision: usize,
    wanted: usize,
    broken: Option<usize>,
    secs: i64,
}

impl Simulation {
    fn plan(&mut self) -> Plan<RedisRecord> {
        let fleet = Fleet {
            pods: self.gateways.iter().map(Gateway::observed).collect(),
        };
        let (wanted, revision) = (choice(self.wanted), self.revision.to_string());
        let input = RoutingInput {
            wanted: Some(&wanted),
            record: &self.record,
            revision: Some(&revision),
            fleet: &fleet,
            ack_timeout: TIMEOUT,
        };
        self.secs += 1;
        plan(&input, at(self.secs))
    }

    fn write(&mut self) -> bool {
        let next = self.plan().next;
        let changed = next != self.record;
        if changed {
            (self.record, self.revision) = (next, self.revision + 1);
        }
        changed
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Want(at) => self.wanted = at,
            Act::Read(at) => self.gateways[at].read(self.revision, &self.record, self.broken),
            // One that starts has nothing else to fall back to: where its Redis is broken it does not get ready.
            Act::Restart(at) => {
                let used = self.record.current.clone().unwrap();
                let ready = self.broken.is_none_or(|broken| used != choice(broken));
                let gateway = &mut self.gateways[at];
                (gateway.used, gateway.bridged) = (used, self.record.previous.clone());
                (
                    gateway.revision,
                    gateway.error,
                    gateway.ready,
                    gateway.answers,
                ) = (self.revision, !ready, ready, true);
            }
            // The kubelet still reports a pod ready that does not answer the operator.
            Act::Ready(at, on) => self.gateways[at].ready = on || !self.gateways[at].answers,
            Act::Answers(at, on) => self.gateways[at].answers = on || !self.gateways[at].ready,
            Act::Break(at) => self.broken = at,
            Act::Plan => _ = self.write(),
            Act::Crash => _ = self.plan(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_pod_is_ever_alone_and_every_move_comes_to_its_end(acts in proptest::collection::vec(act(), 1..80)) {
        let gateway = |number| Gateway { number, revision: 0, used: choice(0), bridged: None, error: false, ready: true, answers: true };
        let mut simulation =
            Simulation { gateways: (0..3).map(gateway).collect(), record: on("a"), revision: 0, wanted: 0, broken: None, secs: 0 };
        for act in &acts {
            simulation.act(act);
            let known = [simulation.record.current.as_ref(), simulation.record.previous.as_ref()];
            prop_assert_ne!(known[0], known[1]);
            for gateway in simulation.gateways.iter().filter(|gateway| gateway.ready) {
                let subscribed = [Some(&gateway.used), gateway.bridged.as_ref()];
                prop_assert!(subscribed.iter().flatten().any(|redis| known.contains(&Some(*redis))), "after {:?}: {:?} {:?}", act, gateway, simulation.record);
            }
        }
        // Left alone, with everything reachable, it comes to rest where it is wanted.
        simulation.broken = None;
        for _ in 0..6 {
            for at in 0..3 {
                simulation.act(&Act::Answers(at, true));
                simulation.act(&Act::Read(at));
            }
            simulation.write();
        }
        prop_assert_eq!(&simulation.record, &RedisRecord { current: Some(choice(simulation.wanted)), ..RedisRecord::default() });
        prop_assert!(!simulation.write() && simulation.plan().waiting.is_none());
    }
}

//! A Deployment, its ReplicaSet's order of deletion, pods that start, drain, fall silent and die, and an operator that is killed between writes.

use std::cmp::Reverse;

use super::*;

const START_SECS: i64 = 5;

#[derive(Debug, Clone)]
struct SimPod {
    name: String,
    created: i64,
    died: bool,
    since: Option<i64>,
    cost: Option<i32>,
    drain_began: Option<i64>,
    connections: i64,
    silent_until: i64,
}

struct Sim {
    clock: i64,
    born: usize,
    replicas: i32,
    wanted: i32,
    rolling_out: bool,
    pods: Vec<SimPod>,
    drain: Drain,
}

#[derive(Debug, Clone)]
enum Action {
    Want(i32),
    Pass(i64),
    Connect(usize, i64),
    Die(usize),
    FallSilent(usize, i64),
    Rollout(bool),
    /// Reconcile, killed after so many writes.
    Reconcile(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (0..7).prop_map(Action::Want),
        6 => (1..20i64).prop_map(Action::Pass),
        2 => (0..8usize, 1..500i64).prop_map(|(pod, count)| Action::Connect(pod, count)),
        1 => (0..8usize).prop_map(Action::Die),
        1 => (0..8usize, 1..60i64).prop_map(|(pod, secs)| Action::FallSilent(pod, secs)),
        1 => any::<bool>().prop_map(Action::Rollout),
        8 => (0..8usize).prop_map(Action::Reconcile),
    ]
}

impl Sim {
    fn new(replicas: i32) -> Self {
        let drain = Drain {
            endpoint_propagation: signal_crds::Duration::secs(4),
            window: signal_crds::Duration::secs(20),
            ..Drain::default()
        };
        let mut sim = Self {
            clock: 1000,
            born: 0,
            replicas,
            wanted: replicas,
            rolling_out: false,
            pods: vec![],
            drain,
        };
        sim.replica_set().unwrap();
        sim.pass(10).unwrap();
        sim
    }

    fn at(&self, clock: i64) -> DateTime<Utc> {
        now() + TimeDelta::seconds(clock)
    }

    fn is_started(&self, pod: &SimPod) -> bool {
        self.clock >= pod.created + START_SECS
    }

    fn is_ready(&self, pod: &SimPod) -> bool {
        self.is_started(pod) && pod.drain_began.is_none()
    }

    fn observe(&self) -> Fleet {
        let seen = |sim: &SimPod| {
            let mut pod = pod(&sim.name, sim.connections);
            pod.created = self.at(sim.created);
            // Here a pod that drains is unready at once.
            pod.readiness_lag = Duration::ZERO;
            pod.ready = self.is_ready(sim);
            pod.draining_since = sim.since.map(|since| self.at(since));
            pod.deletion_cost = sim.cost;
            if !self.is_started(sim) {
                (pod.ip, pod.report) = (None, Err("has no address".into()));
            } else if self.clock < sim.silent_until {
                pod.report = Err("timed out".into());
            } else if let Ok(report) = &mut pod.report {
                let draining = sim.drain_began.is_some();
                report.drain = signal_contract::DrainStatus {
                    at_start: 0,
                    draining,
                    held: draining,
                    remaining: if draining { sim.connections } else { 0 },
                };
            }
            pod
        };
        Fleet {
            pods: self.pods.iter().map(seen).collect(),
        }
    }

    /// The ReplicaSet makes the number right: its order is unassigned and pending, not ready, lowest cost, youngest.
    fn replica_set(&mut self) -> Result<(), TestCaseError> {
        self.pods.retain(|pod| !pod.died);
        while self.pods.len() < size(self.replicas) {
            self.born += 1;
            self.pods.push(SimPod {
                name: format!("p{:03}", self.born),
                created: self.clock,
                died: false,
                since: None,
                cost: None,
                drain_began: None,
                connections: 0,
                silent_until: 0,
            });
        }
        while self.pods.len() > size(self.replicas) {
            let first = self.pods.iter().enumerate().min_by_key(|(_, pod)| {
                (
                    self.is_started(pod),
                    self.is_ready(pod),
                    pod.cost.unwrap_or(0),
                    Reverse(pod.created),
                )
            });
            let index = first.map(|(index, _)| index).unwrap();
            let pod = self.pods.remove(index);
            let at_once = Pod {
                readiness_lag: Duration::ZERO,
                ..crate::fixture::pod("")
            };
            let ends = |since: i64| deadline(self.at(since), &at_once, &self.drain);
            let late = pod
                .since
                .is_some_and(|since| self.at(self.clock) >= ends(since));
            prop_assert!(
                pod.connections == 0 || late,
                "{pod:?} was deleted at {}",
                self.clock
            );
            self.spread(pod.connections);
        }
        Ok(())
    }

    /// Clients come back to the pods that are ready.
    fn spread(&mut self, mut connections: i64) {
        let ready: Vec<usize> = (0..self.pods.len())
            .filter(|index| self.is_ready(&self.pods[*index]))
            .collect();
        for (place, index) in ready.iter().enumerate() {
            let share = connections / i64::try_from(ready.len() - place).unwrap();
            self.pods[*index].connections += share;
            connections -= share;
        }
    }

    fn pass(&mut self, secs: i64) -> Result<(), TestCaseError> {
        for _ in 0..secs {
            self.clock += 1;
            let mut closed = 0;
            for pod in &mut self.pods {
                if let Some(began) = pod.drain_began {
                    let left = 24 - (self.clock - began);
                    let batch = if left <= 0 {
                        pod.connections
                    } else if left <= 20 {
                        pod.connections / left
                    } else {
                        0
                    };
                    pod.connections -= batch;
                    closed += batch;
                }
            }
            self.spread(closed);
        }
        self.replica_set()
    }

    fn reconcile(&mut self, writes: usize) -> Result<(), TestCaseError> {
        let fleet = self.observe();
        let deployment = deployment(self.replicas, i32::try_from(self.pods.len()).unwrap());
        let input = ScaleInput {
            wanted: self.wanted,
            deployment: Some(&deployment),
            fleet: &fleet,
            drain: &self.drain,
            seen: &BTreeMap::new(),
            rolling_out: self.rolling_out,
            shrinks: None,
        };
        let step = plan(&input, self.at(self.clock));
        let floor = self.wanted.min(self.replicas);
        prop_assert!(step.deployment_replicas >= floor);
        let marked = step.mark.iter().filter(|mark| {
            fleet
                .pods
                .iter()
                .all(|pod| pod.name != mark.name || pod.draining_since.is_none())
        });
        if marked.count() > 0 {
            let staying = fleet.pods.len() - step.status.victims.len();
            prop_assert!(staying >= size(floor).min(fleet.pods.len()), "{step:?}");
        }
        let mut left = writes;
        let mut may_write = || {
            left = left.saturating_sub(1);
            left > 0
        };
        if step.deployment_replicas != self.replicas && may_write() {
            self.replicas = step.deployment_replicas;
            self.replica_set()?;
        }
        let started = self.clock - START_SECS;
        let since = |mark: &PodMark| (mark.since - now()).num_seconds();
        for pod in &mut self.pods {
            if let Some(mark) = step.mark.iter().find(|mark| mark.name == pod.name)
                && may_write()
            {
                (pod.since, pod.cost) = (Some(since(mark)), Some(mark.cost));
            }
            if step.unmark.iter().any(|mark| mark.name == pod.name) && may_write() {
                (pod.since, pod.cost) = (None, None);
            }
            let reachable = pod.created <= started && self.clock >= pod.silent_until;
            if step.undrain.contains(&pod.name) && reachable && may_write() {
                pod.drain_began = None;
            }
            if step.drain.contains(&pod.name) && reachable && may_write() {
                pod.drain_began = pod.drain_began.or(Some(self.clock));
            }
        }
        Ok(())
    }

    fn act(&mut self, action: &Action) -> Result<(), TestCaseError> {
        match *action {
            Action::Want(wanted) => self.wanted = wanted,
            Action::Pass(secs) => self.pass(secs)?,
            Action::Connect(pod, count) => {
                if let Some(index) = pod.checked_rem(self.pods.len())
                    && self.is_ready(&self.pods[index])
                {
                    self.pods[index].connections += count;
                }
            }
            Action::Die(pod) => {
                if let Some(index) = pod.checked_rem(self.pods.len()) {
                    self.pods[index].died = true;
                    self.replica_set()?;
                }
            }
            Action::FallSilent(pod, secs) => {
                if let Some(index) = pod.checked_rem(self.pods.len()) {
                    self.pods[index].silent_until = self.clock + secs;
                }
            }
            Action::Rollout(rolling_out) => self.rolling_out = rolling_out,
            Action::Reconcile(writes) => self.reconcile(writes)?,
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nobody_is_cut_off_before_the_deadline_and_the_number_converges(
        first in 0..6i32,
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let mut sim = Sim::new(first);
        for action in &actions {
            sim.act(action)?;
        }
        sim.rolling_out = false;
        for _ in 0..100 {
            sim.reconcile(usize::MAX)?;
            sim.pass(3)?;
        }
        prop_assert_eq!(sim.replicas, sim.wanted);
        prop_assert_eq!(sim.pods.len(), size(sim.wanted));
        for pod in &sim.pods {
            prop_assert!(pod.since.is_none() && pod.cost.is_none() && pod.drain_began.is_none(), "{:?}", pod);
        }
    }
}

//! `kubectl apply && kubectl wait --for=condition=Ready` never returns early: no status that an operator writes, at whatever moment, says Ready of a
//! generation while pods of an older template are wanted.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::fixture::{changed, plan_of, pod};
use crate::names::{RESTARTED_AT, TEMPLATE_HASH};
use crate::observe::fleet::{Pod, PodProblem, PodProblemKind};
use crate::observe::observed::PodRevision;
use crate::reasons::EventReason;
use crate::status::status;

/// What happens next, in any order.
#[derive(Debug, Clone)]
enum Action {
    /// Somebody applies another image.
    Image,
    /// Somebody applies another number.
    Replicas(i32),
    /// A reconcile, whose apply succeeds or fails.
    Reconcile(bool),
    /// The Deployment's controller observes the Deployment, or replaces one pod.
    Control,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        1 => Just(Action::Image),
        1 => (1..4).prop_map(Action::Replicas),
        6 => any::<bool>().prop_map(Action::Reconcile),
        8 => Just(Action::Control),
    ]
}

/// A SignalCluster, its Deployment, and pods that are ready at once. A pod's revision is its image.
struct Simulation {
    observed: Observed,
    memory: ClusterMemory,
    /// How many statuses said Ready.
    ready: usize,
}

fn image(deployment: &Deployment) -> String {
    let template = deployment.spec.as_ref().unwrap().template.spec.as_ref();
    template.unwrap().containers[0].image.clone().unwrap()
}

impl Simulation {
    fn new() -> Self {
        let observed = changed("minimal", |cluster| cluster.spec.replicas = 2);
        Self {
            observed,
            memory: ClusterMemory::default(),
            ready: 0,
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut signal_crds::SignalClusterSpec)) {
        let cluster = Arc::make_mut(&mut self.observed.cluster);
        let before = cluster.spec.clone();
        change(&mut cluster.spec);
        if cluster.spec != before {
            cluster.metadata.generation = cluster.metadata.generation.map(|number| number + 1);
        }
    }

    /// One reconcile: the status is written from what was observed before the apply.
    fn reconcile(&mut self, succeeds: bool) -> Result<(), TestCaseError> {
        let now = DateTime::UNIX_EPOCH;
        let plan = decide(
            &self.observed,
            &mut self.memory,
            None,
            &mut StdRng::seed_from_u64(7),
            now,
        );
        let planned = plan.planned().expect("the spec is valid");
        let wanted = planned.desired.deployment.clone().unwrap();
        if succeeds {
            self.apply(wanted);
        }
        let status = status(&self.observed, &plan, &[], now);
        let cluster = Arc::make_mut(&mut self.observed.cluster);
        let is_ready = |one: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            one.type_ == "Ready" && one.status == "True"
        };
        if status.conditions.iter().any(is_ready) {
            prop_assert_eq!(status.observed_generation, cluster.metadata.generation);
            let wanted = cluster.spec.image.reference();
            let mut running = self
                .observed
                .fleet
                .pods
                .iter()
                .map(|pod| &pod.template_hash);
            prop_assert!(
                running.all(|image| *image == wanted),
                "pods of an older image"
            );
            let deployment = self.observed.deployment.as_ref().unwrap();
            prop_assert_eq!(image(deployment), wanted);
            self.ready += 1;
        }
        cluster.status = Some(status);
        Ok(())
    }

    fn apply(&mut self, mut wanted: Deployment) {
        let before = self.observed.deployment.take();
        let generation = |of: &Deployment| of.metadata.generation.unwrap_or(0);
        let next = match &before {
            Some(before) if before.spec == wanted.spec => generation(before),
            Some(before) => generation(before) + 1,
            None => 1,
        };
        wanted.metadata.generation = Some(next);
        wanted.status = before.and_then(|before| before.status);
        self.observed.deployment = Some(wanted);
    }

    /// The Deployment's controller: it observes first, and then replaces one pod at a time.
    fn control(&mut self, turn: usize) {
        let Some(deployment) = &mut self.observed.deployment else {
            return;
        };
        let (image, pods) = (image(deployment), &mut self.observed.fleet.pods);
        let replicas = deployment.spec.as_ref().unwrap().replicas.unwrap();
        let replicas = usize::try_from(replicas).unwrap();
        let status = deployment.status.get_or_insert_default();
        if status.observed_generation == deployment.metadata.generation {
            let old = pods.iter().position(|pod| pod.template_hash != image);
            match old {
                Some(old) if pods.len() > replicas => drop(pods.remove(old)),
                None if pods.len() > replicas => drop(pods.pop()),
                None if pods.len() == replicas => {}
                _ => pods.push(Pod {
                    template_hash: image.clone(),
                    ..pod(&format!("p{turn}"))
                }),
            }
        }
        let annotations = deployment.metadata.annotations.as_ref().unwrap();
        self.observed.template_hashes = [annotations[TEMPLATE_HASH].clone()].into();
        let count = |number: usize| Some(i32::try_from(number).unwrap());
        let updated = pods.iter().filter(|pod| pod.template_hash == image).count();
        *status = DeploymentStatus {
            observed_generation: deployment.metadata.generation,
            replicas: count(pods.len()),
            updated_replicas: count(updated),
            ..DeploymentStatus::default()
        };
    }

    fn act(&mut self, turn: usize, action: &Action) -> Result<(), TestCaseError> {
        match action {
            Action::Image => self.change(|spec| spec.image.tag = Some(format!("v{turn}"))),
            Action::Replicas(number) => self.change(|spec| spec.replicas = *number),
            Action::Reconcile(succeeds) => return self.reconcile(*succeeds),
            Action::Control => self.control(turn),
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_status_says_ready_of_a_generation_whose_rollout_has_not_ended(actions in proptest::collection::vec(action(), 1..80)) {
        let mut simulation = Simulation::new();
        for (turn, action) in actions.iter().enumerate() {
            simulation.act(turn, action)?;
        }
        let before = simulation.ready;
        for turn in 1000..1040 {
            if simulation.ready > before {
                break;
            }
            simulation.act(turn, &Action::Reconcile(true))?;
            simulation.act(turn, &Action::Control)?;
        }
        prop_assert!(simulation.ready > before, "in the end it is ready");
    }
}

/// A full cluster: three old pods, and a new one that no node has room for.
fn full(wanted: i32) -> Observed {
    let mut observed = changed("minimal", |cluster| cluster.spec.replicas = wanted);
    let mut before = observed.clone();
    Arc::make_mut(&mut before.cluster).spec.replicas = 3;
    let mut memory = ClusterMemory::default();
    let plan = |observed: &Observed, memory: &mut ClusterMemory| {
        let mut random = StdRng::seed_from_u64(7);
        decide(observed, memory, None, &mut random, DateTime::UNIX_EPOCH)
    };
    let first = plan(&before, &mut memory);
    let mut deployment = first.planned().unwrap().desired.deployment.clone().unwrap();
    deployment.metadata.generation = Some(2);
    deployment.status = Some(DeploymentStatus {
        observed_generation: Some(2),
        replicas: Some(4),
        updated_replicas: Some(1),
        ..DeploymentStatus::default()
    });
    observed.deployment = Some(deployment);
    let revision = |hash: &str, pods: i32| PodRevision {
        template_hash: hash.into(),
        wanted: pods,
        pods,
        ..PodRevision::default()
    };
    observed.revisions = vec![revision("old", 3), revision("new", 1)];
    let of = |hash: &str, name: &str| Pod {
        template_hash: hash.into(),
        ..pod(name)
    };
    observed.fleet.pods = vec![
        of("old", "a"),
        of("old", "b"),
        of("old", "c"),
        of("new", "d"),
    ];
    let waits = observed.fleet.pods.last_mut().unwrap();
    (waits.node, waits.ip, waits.ready) = (None, None, false);
    waits.report = Err("it has no address yet".into());
    waits.problem = Some(PodProblem {
        kind: PodProblemKind::Unschedulable,
        message: "0/3 nodes are available".into(),
    });
    observed
}

#[test]
fn a_rollout_that_waits_for_room_lets_pods_go_that_are_not_wanted() {
    let marked = |observed: &Observed| {
        let plan = plan_of(observed, DateTime::UNIX_EPOCH);
        plan.pods().scale.mark.len()
    };
    assert_eq!(marked(&full(3)), 0, "all are wanted");
    assert_eq!(marked(&full(2)), 1);
    let mut slow = full(2);
    slow.fleet.pods[3].problem = None;
    assert_eq!(marked(&slow), 0, "its new pod only starts");
    let quota = slow.revisions.last_mut().unwrap();
    quota.failure = Some("exceeded quota".into());
    assert_eq!(marked(&slow), 1, "no quota has room for the next one");
    let mut unseen = full(2);
    unseen.deployment.as_mut().unwrap().metadata.generation = Some(3);
    assert_eq!(marked(&unseen), 0, "a pod is about to be deleted");
    let mut deleting = full(2);
    deleting.revisions[0].wanted = 2;
    assert_eq!(marked(&deleting), 0, "the ReplicaSet deletes one");
}

#[test]
fn a_restart_that_a_person_asked_for_is_told_until_the_deployment_has_it() {
    let mut simulation = Simulation::new();
    let told = |simulation: &Simulation| {
        let plan = plan_of(&simulation.observed, DateTime::UNIX_EPOCH);
        let mut events = plan.facts().events.iter();
        let found = events.find(|event| event.reason == EventReason::RestartRequested);
        found.map(|event| event.note.clone())
    };
    let ask = |simulation: &mut Simulation, value: &str| {
        let cluster = Arc::make_mut(&mut simulation.observed.cluster);
        let annotations = cluster.metadata.annotations.get_or_insert_default();
        annotations.insert(RESTARTED_AT.into(), value.into());
    };
    ask(&mut simulation, "one");
    assert_eq!(told(&simulation), None, "nothing runs that could restart");
    simulation.reconcile(true).unwrap();
    assert_eq!(told(&simulation), None, "it began with it");
    ask(&mut simulation, "two, a leak");
    let note = told(&simulation).unwrap();
    assert!(note.contains("two, a leak"), "{note}");
    simulation.reconcile(true).unwrap();
    assert_eq!(told(&simulation), None);
}

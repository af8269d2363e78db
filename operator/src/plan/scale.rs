//! How many pods the Deployment has, and which of them are deleted: a pure function of the fleet, so an operator killed at any point can continue.
//!
//! Scaling out is immediate. Scaling in is a drain, and each step follows from what the last one left on the objects:
//! choose victims -> `mark` (label, since when, deletion cost) -> seen marked: `drain` -> seen finished: lower the Deployment -> the ReplicaSet
//! deletes exactly those.
//!
//! The ReplicaSet deletes in this order: pods without a node, pending ones, those that are not ready, those with the lowest deletion cost
//! (Kubernetes, "ReplicaSet: Scaling a ReplicaSet"). Victims that drain are not ready and have the lowest cost, so only a pending pod is deleted
//! before them. A pending pod serves no client: it becomes a victim, and the drain of another victim is cancelled. If it starts between two
//! reconciles it is deleted instead of a victim, and the next reconcile cancels the drain of the surplus victim.
//!
//! A pod that somebody asks to have drained goes in the same way: for it the wanted number is another one for a while ([`wanted_with_drains`]), and it is
//! the first victim.
//!
//! A rollout ends before pods are taken away. One that is stuck does not end: then they go one at a time, from the ReplicaSet from which the Deployment's
//! controller takes them.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::apps::v1::Deployment;
use signal_crds::scaling::Drain;
use signal_crds::status::{Scaling, ScalingState};

use crate::observe::fleet::{Fleet, Pod};
use crate::plan::{Due, DueReason, PlanEvent, Waiting};
use crate::reasons::{ConditionReason, EventReason};
use crate::time::to_k8s;

/// Deletion cost of a victim that drains.
pub const DRAINING_COST: i32 = i32::MIN + 1;
/// Deletion cost of a victim that may be deleted while others still drain.
pub const FINISHED_COST: i32 = i32::MIN;
/// How much longer than its settings a drain may take.
const DRAIN_MARGIN: TimeDelta = TimeDelta::seconds(15);
/// No cluster notices faster, whatever `drain.endpointPropagation` says.
const LEAST_PROPAGATION: Duration = Duration::from_secs(2);
/// Most pods that a message names.
const NAMED: usize = 5;

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct ScaleInput<'a> {
    /// Wanted pods; 0 if the cluster is stopped.
    pub wanted: i32,
    /// The Deployment, if there is one.
    pub deployment: Option<&'a Deployment>,
    /// Its pods.
    pub fleet: &'a Fleet,
    /// How pods drain; gives the deadline.
    pub drain: &'a Drain,
    /// Since when this process knows the mark of each pod, by uid. A mark has the time of whoever wrote it, whose clock may have been another one.
    pub seen: &'a BTreeMap<String, DateTime<Utc>>,
    /// Pods of an older revision exist, or this reconcile changes the template.
    pub rolling_out: bool,
    /// In a rollout that is stuck: the ReplicaSet that a Deployment of fewer pods takes them from.
    pub shrinks: Option<ShrinkingSet<'a>>,
}

/// The ReplicaSet from which the Deployment's controller takes a pod when its number falls by one in the middle of a rollout: the largest, of two the
/// older (Kubernetes, "Proportional scaling").
#[derive(Debug, Clone, Copy)]
pub struct ShrinkingSet<'a> {
    /// `pod-template-hash` of its pods.
    pub template_hash: &'a str,
    /// Whether no pod is about to be deleted: the Deployment's controller has seen the last number, and no ReplicaSet has more pods than it wants.
    pub settled: bool,
}

impl ShrinkingSet<'_> {
    /// Its pods among these.
    fn of<'p>(&self, active: &[&'p Pod]) -> Vec<&'p Pod> {
        let pods = active.iter().copied();
        pods.filter(|pod| pod.template_hash == self.template_hash)
            .collect()
    }
}

/// One step of scaling. All of it can be repeated without harm.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleStep {
    /// `spec.replicas` of the Deployment.
    pub deployment_replicas: i32,
    /// For the status.
    pub status: Scaling,
    /// Pods to be marked as victims, or marked with a lower cost.
    pub mark: Vec<PodMark>,
    /// Pods whose mark is to be removed: label, annotation and cost.
    pub unmark: Vec<PodMark>,
    /// Pods to be ordered to drain and keep running.
    pub drain: Vec<String>,
    /// Pods that drain and are to go on: a drain that nobody orders again expires.
    pub renew: Vec<String>,
    /// How long each of these pods still accepts connections.
    pub pauses: BTreeMap<String, Duration>,
    /// Pods whose drain is to be cancelled.
    pub undrain: Vec<String>,
    /// What the next step waits for.
    pub waiting: Option<Waiting>,
    /// When drains may end at the earliest and at the latest. Times that have passed may be among them.
    pub due: Vec<Due>,
    /// What happened.
    pub events: Vec<PlanEvent>,
}

/// A victim's mark, and the preconditions of its write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodMark {
    /// The pod.
    pub name: String,
    /// Its uid: a precondition.
    pub uid: String,
    /// Its resource version: a precondition.
    pub resource_version: String,
    /// Since when it is a victim; the deadline counts from here.
    pub since: DateTime<Utc>,
    /// Its deletion cost.
    pub cost: i32,
}

impl PodMark {
    fn of(pod: &Pod, since: DateTime<Utc>, cost: i32) -> Self {
        Self {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            resource_version: pod.resource_version.clone(),
            since,
            cost,
        }
    }
}

/// When a drain of this pod that started at `since` ends, finished or not.
pub fn deadline(since: DateTime<Utc>, pod: &Pod, drain: &Drain) -> DateTime<Utc> {
    since + span(pause(pod, drain)) + span(drain.window.std()) + DRAIN_MARGIN
}

/// How long a pod accepts connections after it says that it is not ready: until Kubernetes knows it by the pod's probe, and endpoints have noticed.
pub fn pause(pod: &Pod, drain: &Drain) -> Duration {
    pod.readiness_lag + drain.endpoint_propagation.std().max(LEAST_PROPAGATION)
}

fn span(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::days(36_500))
}

/// The wanted number while a pod is replaced that somebody asks to have drained: one at a time, after rollouts, and as in a rollout. With `has_surge` its
/// successor serves before it drains; without, there is one pod less for a while. 0 stays 0.
pub fn wanted_with_drains(wanted: i32, fleet: &Fleet, has_surge: bool, rolling_out: bool) -> i32 {
    let asked: Vec<&Pod> = fleet.alive().filter(|pod| pod.asked_to_drain).collect();
    let Some(first) = asked.iter().min_by_key(|pod| order(pod)) else {
        return wanted;
    };
    if wanted <= 0 || rolling_out {
        return wanted;
    }
    let without_it = wanted - i32::from(!has_surge);
    let serving = fleet.ready().filter(|pod| pod.stays());
    let others = serving.filter(|pod| pod.name != first.name).count();
    // One that drains does not serve any more, and goes on.
    let goes = asked.iter().any(|pod| pod.draining_since.is_some()) || others >= size(without_it);
    without_it + i32::from(!goes)
}

/// The next step towards the wanted number.
pub fn plan(input: &ScaleInput<'_>, now: DateTime<Utc>) -> ScaleStep {
    let active: Vec<&Pod> = input.fleet.alive().collect();
    let current = input.deployment.map_or(input.wanted, |deployment| {
        deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
    });
    let shrinks = input
        .shrinks
        .filter(|set| input.rolling_out && (input.wanted < current || !set.settled));
    let victims = match &shrinks {
        Some(set) => Victims::of_stuck_rollout(set, &active),
        None => Victims::choose(input, &active, current),
    };
    let finished: Vec<&Pod> = victims
        .kept
        .iter()
        .copied()
        .filter(|pod| is_finished(pod, input, now))
        .collect();
    let set = shrinks.map(|set| set.of(&active));
    let leaving = leaving(&finished, set.as_ref().unwrap_or(&active));
    let replicas = match (&shrinks, input.wanted < current) {
        // One at a time, so that it is known which ReplicaSet has one pod less.
        (Some(shrinks), true) => current - i32::from(shrinks.settled && !leaving.is_empty()),
        _ => replicas(input, &active, current, leaving.len()),
    };

    let mut step = begin(replicas, &victims, now);
    for pod in &victims.kept {
        let since = pod.draining_since.unwrap_or(now);
        let held = pod
            .report()
            .is_some_and(|report| report.drain.draining && report.drain.held);
        if held && is_marked(pod) {
            step.renew.push(pod.name.clone());
        }
        step.pauses
            .insert(pod.name.clone(), pause(pod, input.drain));
        step.due.extend(ends(pod, input));
        let is_in = |pods: &[&Pod]| pods.iter().any(|other| other.name == pod.name);
        if !is_marked(pod) {
            step.mark.push(PodMark::of(pod, since, DRAINING_COST));
        } else if is_in(&finished) {
            // Others that drain would be as likely to be deleted: this one is to go before them.
            if !is_in(&leaving) && pod.deletion_cost != Some(FINISHED_COST) {
                step.mark.push(PodMark::of(pod, since, FINISHED_COST));
            }
        } else if pod.ip.is_some() && !pod.report().is_some_and(|report| report.drain.draining) {
            step.drain.push(pod.name.clone());
        }
    }
    let is_victim = |pod: &Pod| victims.all().any(|victim| victim.name == pod.name);
    let held = |pod: &&&Pod| {
        pod.report()
            .is_some_and(|report| report.drain.draining && report.drain.held)
    };
    step.undrain = active
        .iter()
        .filter(|pod| !is_victim(pod))
        .filter(held)
        .map(|pod| pod.name.clone())
        .collect();
    report(
        &mut step,
        input,
        &victims,
        &leaving,
        (current, active.len()),
        now,
    );
    step
}

/// A step that marks new victims, and takes marks of others back.
fn begin(replicas: i32, victims: &Victims<'_>, now: DateTime<Utc>) -> ScaleStep {
    let since = |pod: &Pod| pod.draining_since.unwrap_or(now);
    let new = victims.new.iter();
    let cancelled = victims.cancelled.iter();
    ScaleStep {
        deployment_replicas: replicas,
        status: Scaling::default(),
        mark: new
            .map(|pod| PodMark::of(pod, now, DRAINING_COST))
            .collect(),
        unmark: cancelled
            .map(|pod| PodMark::of(pod, since(pod), DRAINING_COST))
            .collect(),
        drain: Vec::new(),
        renew: Vec::new(),
        pauses: BTreeMap::new(),
        undrain: Vec::new(),
        waiting: None,
        due: Vec::new(),
        events: Vec::new(),
    }
}

/// Which pods are to be deleted.
struct Victims<'a> {
    /// Observed with a mark, and still to be deleted.
    kept: Vec<&'a Pod>,
    /// To be marked.
    new: Vec<&'a Pod>,
    /// Observed with a mark, and to stay: the fullest first.
    cancelled: Vec<&'a Pod>,
}

impl<'a> Victims<'a> {
    fn choose(input: &ScaleInput<'_>, active: &[&'a Pod], current: i32) -> Self {
        let (mut marked, unmarked): (Vec<&Pod>, Vec<&Pod>) =
            active.iter().partition(|pod| pod.draining_since.is_some());
        marked.sort_by_key(|pod| order(pod));
        let (mut pending, mut serving): (Vec<&Pod>, Vec<&Pod>) =
            unmarked.into_iter().partition(|pod| has_no_clients(pod));
        pending.sort_by_key(|pod| (pod.node.is_some(), pod.ip.is_some(), order(pod)));
        serving.sort_by_key(|pod| order(pod));

        // Before a Deployment exists, and during a rollout, no victim is chosen and every drain is cancelled.
        let settled = input.deployment.is_some() && !input.rolling_out;
        let above = |count: usize| {
            if settled {
                count.saturating_sub(size(input.wanted))
            } else {
                0
            }
        };
        // Pods beyond the Deployment's number are being deleted: their marks stay, and no victim is chosen for them.
        let surplus = above(active.len());
        let choosable = above(active.len().min(size(current)));

        pending.truncate(choosable);
        let mut cancelled = marked.split_off(marked.len().min(surplus - pending.len()));
        cancelled.reverse();
        let mut new = pending;
        // One step at a time: further victims with clients are chosen when the last ones are gone.
        if marked.is_empty() && cancelled.is_empty() {
            new.extend(serving.into_iter().take(choosable - new.len()));
        }
        Self {
            kept: marked,
            new,
            cancelled,
        }
    }

    /// One pod of the ReplicaSet that shrinks: a rollout replaces all others.
    fn of_stuck_rollout(set: &ShrinkingSet<'_>, active: &[&'a Pod]) -> Self {
        let is_marked = |pod: &&Pod| pod.draining_since.is_some();
        let (marked, unmarked): (Vec<&Pod>, Vec<&Pod>) =
            active.iter().partition(|pod| is_marked(pod));
        if !set.settled {
            // One of the marked is about to be deleted: its mark keeps any other from being chosen.
            return Self {
                kept: marked,
                new: Vec::new(),
                cancelled: Vec::new(),
            };
        }
        let is_of_set = |pod: &&Pod| pod.template_hash == set.template_hash;
        let (mut marked, mut cancelled): (Vec<&Pod>, Vec<&Pod>) =
            marked.into_iter().partition(is_of_set);
        marked.sort_by_key(|pod| order(pod));
        cancelled.extend(marked.split_off(marked.len().min(1)));
        let mut new: Vec<&Pod> = unmarked.into_iter().filter(is_of_set).collect();
        new.sort_by_key(|pod| (!has_no_clients(pod), pod.node.is_some(), order(pod)));
        new.truncate(usize::from(marked.is_empty()));
        Self {
            kept: marked,
            new,
            cancelled,
        }
    }

    fn all(&self) -> impl Iterator<Item = &'a Pod> {
        self.kept.iter().chain(&self.new).copied()
    }
}

/// Those that somebody asks to have drained first, then the emptiest; of two, the youngest first.
fn order(pod: &Pod) -> (bool, i64, Reverse<DateTime<Utc>>, String) {
    let created = Reverse(pod.created);
    (!pod.asked_to_drain, load(pod), created, pod.name.clone())
}

/// Connections of a pod, to rank it. A ready pod that does not answer counts as full; one that is neither ready nor answers counts as empty.
fn load(pod: &Pod) -> i64 {
    match &pod.report {
        Ok(report) if report.drain.draining => report.drain.remaining,
        Ok(report) => report.connections.total,
        Err(_) if pod.ready => i64::MAX,
        Err(_) => -1,
    }
}

/// Whether it has no clients: it is not ready and does not answer (pending, starting, or broken).
fn has_no_clients(pod: &Pod) -> bool {
    is_unplaced(pod) || !pod.ready && pod.report.is_err()
}

fn is_unplaced(pod: &Pod) -> bool {
    pod.node.is_none() || pod.ip.is_none()
}

/// Whether it has the whole mark: time and cost.
fn is_marked(pod: &Pod) -> bool {
    pod.draining_since.is_some() && pod.deletion_cost.is_some_and(|cost| cost <= DRAINING_COST)
}

/// Whether a marked pod may be deleted: it is empty and gets no new clients, or its deadline has passed.
///
/// One that does not answer gets its whole time: it is not ready while it drains, so its connections are unknown.
fn is_finished(pod: &Pod, input: &ScaleInput<'_>, now: DateTime<Utc>) -> bool {
    let Some(since) = drains_since(pod, input) else {
        return false;
    };
    let drain = input.drain;
    let empty = pod
        .report()
        .is_some_and(|report| report.drain.draining && report.drain.remaining <= 0);
    is_unplaced(pod)
        || now >= deadline(since, pod, drain)
        || empty && !pod.ready && now >= since + span(pause(pod, drain))
}

/// From when the time of a marked pod counts. A clock that runs ahead of the one that wrote the mark must not shorten a drain.
fn drains_since(pod: &Pod, input: &ScaleInput<'_>) -> Option<DateTime<Utc>> {
    let since = pod.draining_since.filter(|_| is_marked(pod))?;
    let seen = input.seen.get(&pod.uid);
    Some(seen.map_or(since, |seen| since.max(*seen)))
}

/// When a marked pod may be deleted although its report stays the same: at its deadline, and where it is empty at the end of its pause.
fn ends(pod: &Pod, input: &ScaleInput<'_>) -> impl Iterator<Item = Due> + use<> {
    let since = drains_since(pod, input);
    let times = since.map(|since| {
        [
            since + span(pause(pod, input.drain)),
            deadline(since, pod, input.drain),
        ]
    });
    times.into_iter().flatten().map(|at| Due {
        at,
        why: DueReason::Drain,
    })
}

/// The largest set of finished pods that the ReplicaSet deletes before any other pod with connections.
fn leaving<'a>(finished: &[&'a Pod], active: &[&Pod]) -> Vec<&'a Pod> {
    let mut leaving = finished.to_vec();
    loop {
        let others: Vec<&Pod> = active
            .iter()
            .copied()
            .filter(|pod| leaving.iter().all(|one| one.name != pod.name))
            .collect();
        let before = leaving.len();
        leaving.retain(|pod| !others.iter().any(|other| may_go_before(other, pod)));
        if leaving.len() == before {
            return leaving;
        }
    }
}

/// Whether the ReplicaSet may delete `other` rather than `pod`. A pod without node or address may be, and does not matter: it has no connections.
fn may_go_before(other: &Pod, pod: &Pod) -> bool {
    let rank = |pod: &Pod| (pod.node.is_some(), pod.ip.is_some(), pod.ready);
    match rank(other).cmp(&rank(pod)) {
        _ if is_unplaced(other) => false,
        Ordering::Less => true,
        Ordering::Equal => other.deletion_cost.unwrap_or(0) <= pod.deletion_cost.unwrap_or(0),
        Ordering::Greater => false,
    }
}

fn replicas(input: &ScaleInput<'_>, active: &[&Pod], current: i32, leaving: usize) -> i32 {
    if input.wanted >= current {
        return input.wanted;
    }
    if input.rolling_out {
        return current;
    }
    // Missing pods need not be created. The Deployment's own count covers pods that the observation missed.
    let counted = input
        .deployment
        .and_then(|deployment| deployment.status.as_ref()?.replicas)
        .unwrap_or(0);
    let pods = i32::try_from(active.len()).unwrap_or(i32::MAX).max(counted);
    current.min(
        input
            .wanted
            .max(pods - i32::try_from(leaving).unwrap_or(i32::MAX)),
    )
}

fn size(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Fills in the status, what the step waits for, and Events.
fn report(
    step: &mut ScaleStep,
    input: &ScaleInput<'_>,
    victims: &Victims<'_>,
    leaving: &[&Pod],
    (current, active): (i32, usize),
    now: DateTime<Utc>,
) {
    let replicas = step.deployment_replicas;
    let blocked = input.rolling_out && input.wanted < current && input.shrinks.is_none();
    let drains = victims.all().count() > leaving.len();
    let state = if blocked {
        ScalingState::Waiting
    } else if drains {
        ScalingState::Draining
    } else if replicas != current || active != size(input.wanted) {
        ScalingState::Scaling
    } else {
        ScalingState::Idle
    };
    let mut names: Vec<String> = victims.all().map(|pod| pod.name.clone()).collect();
    names.sort_unstable();
    step.status = Scaling {
        state,
        from: current,
        to: input.wanted,
        victims: names,
        started_at: victims
            .all()
            .map(|pod| pod.draining_since.unwrap_or(now))
            .min()
            .map(to_k8s),
    };
    if blocked {
        let message = format!("{current} pods become {} after the rollout", input.wanted);
        step.waiting = Some(Waiting {
            reason: ConditionReason::RolloutInProgress,
            message,
        });
    } else if drains {
        let open: Vec<&Pod> = victims
            .all()
            .filter(|pod| leaving.iter().all(|one| one.name != pod.name))
            .collect();
        step.waiting = Some(Waiting {
            reason: ConditionReason::Draining,
            message: format!("these pods drain before they are deleted: {}", list(&open)),
        });
    }
    report_victims(step, input, victims, current);
    if input.deployment.is_some() {
        report_replicas(step, leaving, current);
    }
}

/// Events about victims that begin to drain, or do not any more.
fn report_victims(
    step: &mut ScaleStep,
    input: &ScaleInput<'_>,
    victims: &Victims<'_>,
    current: i32,
) {
    if !victims.new.is_empty() {
        let note = format!(
            "{current} pods become {}; these pods drain first: {}",
            input.wanted,
            list(&victims.new)
        );
        step.events
            .push(PlanEvent::normal(EventReason::DrainStarted, note));
    }
    if !victims.cancelled.is_empty() {
        let why = if input.rolling_out {
            "a rollout replaces these pods"
        } else {
            "these pods are wanted again"
        };
        step.events.push(PlanEvent::normal(
            EventReason::DrainCancelled,
            format!("{why}: {}", list(&victims.cancelled)),
        ));
    }
}

/// Events about a changed number of pods.
fn report_replicas(step: &mut ScaleStep, leaving: &[&Pod], current: i32) {
    let replicas = step.deployment_replicas;
    if replicas == current {
        return;
    }
    if replicas > current {
        step.events.push(PlanEvent::normal(
            EventReason::ScaledOut,
            format!("from {current} to {replicas} pods"),
        ));
        return;
    }
    step.events.push(PlanEvent::normal(
        EventReason::ScaledIn,
        format!("from {current} to {replicas} pods: {}", list(leaving)),
    ));
    let late: Vec<&Pod> = leaving
        .iter()
        .copied()
        .filter(|pod| !is_unplaced(pod) && load(pod) > 0)
        .collect();
    if !late.is_empty() {
        step.events.push(PlanEvent::warning(
            EventReason::DrainDeadlineExceeded,
            format!(
                "these pods are deleted with open connections: {}",
                list(&late)
            ),
        ));
    }
}

fn list(pods: &[&Pod]) -> String {
    let mut parts: Vec<String> = pods
        .iter()
        .take(NAMED)
        .map(|pod| match load(pod) {
            i64::MAX | -1 => format!("{} (does not answer)", pod.name),
            count => format!("{} ({count} connections)", pod.name),
        })
        .collect();
    match pods.len().saturating_sub(NAMED) {
        0 if parts.is_empty() => parts.push("none of them exists".to_owned()),
        0 => {}
        more => parts.push(format!("{more} more")),
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests;

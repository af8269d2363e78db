//! When a SignalCluster is looked at again although no watch reports a change: each reason has its time, and the soonest wins. Pure.
//!
//! What ends at a known time is looked at then, however far away it is: the plans say when they change by time alone. What only pods can tell is looked at
//! again and again, with a delay that grows while they tell nothing new. Everything is looked at after the time of a resync.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use signal_crds::scaling::AutoscalingMode;
use signal_crds::status::{Scaling, ScalingState, SigningKeyStage};

use super::{ClusterMemory, ClusterPlan};
use crate::observe::observed::Observed;
use crate::plan::rollout::Rollout;
use crate::plan::{Due, DueReason, Waiting};
use crate::reasons::ConditionReason;
use crate::time::growing;

/// How much later than a known time it is looked at: a timer that is early would find nothing.
const MARGIN: Duration = Duration::from_millis(200);
/// While something depends on the numbers that pods report.
const SAMPLE: Duration = Duration::from_secs(10);

/// Pods that are asked in one look at a large fleet, where there is time for it.
const AT_ONCE: usize = 16;
/// Between two looks at a large fleet at least.
const TICK: Duration = Duration::from_millis(500);

/// When to look again, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wake {
    /// From now on.
    pub after: Duration,
    /// What it is for.
    pub why: WakeReason,
    /// Every pod is asked within this time.
    polls: Duration,
}

impl Wake {
    /// Where nothing but pods is looked at, those of a large fleet are asked a few at a time: how many, and when again.
    pub fn in_turns(self, pods: usize) -> (Self, usize) {
        let most = usize::try_from(self.polls.as_millis() / TICK.as_millis()).unwrap_or(usize::MAX);
        let turns = pods.div_ceil(AT_ONCE).clamp(1, most.max(1));
        let tick = self.polls / u32::try_from(turns).unwrap_or(u32::MAX);
        let wake = Self {
            after: self.after.min(tick),
            ..self
        };
        (wake, pods.div_ceil(turns))
    }
}

/// What [`wake`] looks at.
#[derive(Clone, Copy)]
pub struct WakeInput<'a> {
    /// What was observed.
    pub observed: &'a Observed,
    /// What came of it.
    pub plan: &'a ClusterPlan,
    /// The conditions after it.
    pub conditions: &'a [Condition],
    /// The longest time between two looks.
    pub resync: Duration,
    /// Pods that were asked for this look.
    pub asked: usize,
    /// From 0 to 1: spreads SignalClusters that are looked at together.
    pub chance: f64,
}

/// Why a SignalCluster is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeReason {
    /// Nothing has to be done.
    Resync,
    /// Pods have to report something before the next step.
    Pods,
    /// Decisions depend on the numbers that pods report.
    Samples,
    /// Pods report something that is not as it should be.
    Settling,
    /// A known time.
    Due(DueReason),
}

impl WakeReason {
    /// As the metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resync => "resync",
            Self::Pods => "pods",
            Self::Samples => "samples",
            Self::Settling => "settling",
            Self::Due(DueReason::Overlap) => "overlap",
            Self::Due(DueReason::Acknowledgement) => "acknowledgement",
            Self::Due(DueReason::SigningKey) => "signing_key",
            Self::Due(DueReason::Drain) => "drain",
            Self::Due(DueReason::Migration) => "migration",
            Self::Due(DueReason::Canary) => "canary",
            Self::Due(DueReason::Starting) => "starting",
            Self::Due(DueReason::Problem) => "problem",
        }
    }
}

/// How fast pods are asked again: between these, longer each time that they tell nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    first: Duration,
    longest: Duration,
    why: WakeReason,
}

impl Pace {
    const fn new(first: u64, longest: u64, why: WakeReason) -> Self {
        Self {
            first: Duration::from_secs(first),
            longest: Duration::from_secs(longest),
            why,
        }
    }

    /// A kubelet hands changed files to a pod within two minutes.
    const PODS: Self = Self::new(2, 15, WakeReason::Pods);
    /// People wait for the pod that is to go.
    const DRAIN: Self = Self::new(2, 10, WakeReason::Pods);
    /// An issuer or a Redis that does not answer may be away for long.
    const UNREACHABLE: Self = Self::new(2, 60, WakeReason::Pods);
    const SETTLING: Self = Self::new(10, 60, WakeReason::Settling);
}

/// What the last look found of everything that is waited for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progress {
    rotation: Option<Waiting>,
    routing: Option<Waiting>,
    scaling: Scaling,
    draining: Option<Waiting>,
    rollout: Rollout,
    conditions: Vec<(String, String)>,
}

/// How often pods were asked in a row without an answer that changes anything.
#[derive(Debug, Clone, Default)]
pub(super) struct Patience {
    last: Option<Progress>,
    looks: u32,
    /// Pods that were asked since all of them had been.
    asked: usize,
}

impl Patience {
    /// Counts a look at so many of all pods, and returns how many times all of them were asked, from 1.
    fn count(&mut self, progress: Progress, asked: usize, pods: usize) -> u32 {
        if self.last.as_ref() != Some(&progress) {
            (self.last, self.looks, self.asked) = (Some(progress), 1, 0);
            return 1;
        }
        self.asked += asked;
        if self.asked >= pods {
            self.asked = 0;
            self.looks = self.looks.saturating_add(1);
        }
        self.looks
    }
}

/// When to look again.
pub fn wake(input: &WakeInput<'_>, memory: &mut ClusterMemory, now: DateTime<Utc>) -> Wake {
    let WakeInput {
        observed,
        plan,
        conditions,
        resync,
        asked,
        chance,
    } = *input;
    let spread = |pause: Duration| pause.mul_f64(0.8 + 0.4 * chance.clamp(0.0, 1.0));
    let pods = observed.fleet.pods.len();
    let looks = memory
        .patience
        .count(progress(plan, conditions), asked, pods);
    let paced = pace(observed, plan, conditions)
        .map(|pace| (growing(pace.first, pace.longest, looks, chance), pace.why));
    let sampled = wants_samples(observed, plan).then(|| (spread(SAMPLE), WakeReason::Samples));
    let polls = paced.into_iter().chain(sampled);
    let (polls, why) = polls
        .chain([(spread(resync), WakeReason::Resync)])
        .min_by_key(|(after, _)| *after)
        .unwrap_or((resync, WakeReason::Resync));
    let mut soonest = Wake {
        after: polls,
        why,
        polls,
    };
    for due in plan.due().copied().chain(of_pods(observed)) {
        let after = until(due.at, now).map(|after| after + MARGIN);
        if let Some(after) = after.filter(|after| *after < soonest.after) {
            (soonest.after, soonest.why) = (after, WakeReason::Due(due.why));
        }
    }
    soonest
}

/// When pods are seen in another way although nothing of them changes.
fn of_pods(observed: &Observed) -> impl Iterator<Item = Due> {
    observed.fleet.alive().flat_map(|pod| {
        // One that does not answer lacks nothing that anybody knows of.
        let started = pod.starts_until().filter(|_| pod.report.is_ok());
        let started = started.map(|at| (at, DueReason::Starting));
        let told = pod.changes_at.map(|at| (at, DueReason::Problem));
        let times = started.into_iter().chain(told);
        times.map(|(at, why)| Due { at, why })
    })
}

/// `None` for a time that has passed.
fn until(at: DateTime<Utc>, now: DateTime<Utc>) -> Option<Duration> {
    let left = at - now;
    (left > TimeDelta::zero()).then(|| left.to_std().unwrap_or_default())
}

fn progress(plan: &ClusterPlan, conditions: &[Condition]) -> Progress {
    let planned = plan.planned();
    let scale = &plan.pods().scale;
    Progress {
        rotation: planned.and_then(|planned| planned.rotation.clone()),
        routing: planned.and_then(|planned| planned.routing.clone()),
        scaling: scale.status.clone(),
        draining: scale.waiting.clone(),
        rollout: plan.facts().rollout.clone(),
        conditions: conditions
            .iter()
            .map(|one| (one.status.clone(), one.reason.clone()))
            .collect(),
    }
}

/// How fast pods are asked for what no watch reports: watches report pods that come and go, not what serving pods say of themselves.
fn pace(observed: &Observed, plan: &ClusterPlan, conditions: &[Condition]) -> Option<Pace> {
    let planned = plan.planned();
    let waiting = [
        planned.and_then(|planned| planned.rotation.as_ref()),
        planned.and_then(|planned| planned.routing.as_ref()),
    ];
    let of_waits = waiting
        .into_iter()
        .flatten()
        .filter(|waiting| waiting.is_for_pods())
        .map(|waiting| match waiting.reason {
            ConditionReason::SourceUnreachable | ConditionReason::RedisUnreachable => {
                Pace::UNREACHABLE
            }
            _ => Pace::PODS,
        })
        .min_by_key(|pace| pace.longest);
    let serves = observed.fleet.ready().next().is_some();
    let scaling = plan.pods().scale.status.state;
    let pods_change = scaling != ScalingState::Idle || plan.facts().rollout.going_on;
    if scaling == ScalingState::Draining {
        return Some(Pace::DRAIN);
    }
    let of_pods = (pods_change && serves).then_some(Pace::PODS);
    let settles = serves && !is_settled(conditions);
    let of_waits = of_waits.into_iter().chain(of_pods);
    of_waits
        .min_by_key(|pace| pace.longest)
        .or_else(|| settles.then_some(Pace::SETTLING))
}

/// Whether what pods report is as it should be.
fn is_settled(conditions: &[Condition]) -> bool {
    let holds = |kind: &str| {
        conditions
            .iter()
            .any(|condition| condition.type_ == kind && condition.status == "True")
    };
    holds("Ready") && holds("KafkaReachable")
}

/// Whether pods are polled often although nothing is in progress, because something depends on their connections or on the key that they are to serve.
fn wants_samples(observed: &Observed, plan: &ClusterPlan) -> bool {
    let spec = &observed.cluster.spec;
    let connections = spec
        .autoscaling
        .as_ref()
        .is_some_and(|autoscaling| autoscaling.mode != AutoscalingMode::Hpa);
    let mut keys = plan.facts().record.signing.keys.iter();
    let published = keys.any(|key| key.stage == SigningKeyStage::Published);
    observed.fleet.ready().next().is_some()
        && (connections || published || (spec.rebalance.enabled && spec.replicas > 1))
}

#[cfg(test)]
mod tests;

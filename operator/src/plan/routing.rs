//! Moves from one Redis to another, as a plan: gateways use the new one and go on hearing the old one until all of them are there.
//!
//! A move that is under way has a place for one Redis of before, and that is the one which every gateway hears: those that have moved bridge it,
//! the others use it. So back is always possible, and on to a third place once the move is done, or while no gateway uses the second yet: that is
//! the way out where it was a wrong one.
//!
//! To have a Redis at all or none is no move: gateways restart for it, and what was used before is of no use to them.

use chrono::{DateTime, TimeDelta, Utc};

use crate::observe::fleet::{Fleet, Pod, Report, lag};
use crate::plan::record::{RecordedRedis, RedisRecord};
use crate::plan::{Plan, PlanEvent, Waiting};
use crate::reasons::{ConditionReason, EventReason};

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct RoutingInput<'a> {
    /// Redis as the spec wants it.
    pub wanted: Option<&'a RecordedRedis>,
    /// How far a move has come.
    pub record: &'a RedisRecord,
    /// Revision of the `live.toml` in the cluster that was made from exactly this record; `None`: there is none yet.
    pub revision: Option<&'a str>,
    /// The pods.
    pub fleet: &'a Fleet,
    /// When pods have not moved for so long, someone is told.
    pub ack_timeout: signal_crds::Duration,
}

/// The next step.
pub fn plan(input: &RoutingInput<'_>, now: DateTime<Utc>) -> Plan<RedisRecord> {
    let mut plan = Plan {
        next: input.record.clone(),
        waiting: None,
        events: Vec::new(),
    };
    let (Some(wanted), Some(used)) = (input.wanted, &input.record.current) else {
        place(&mut plan.next, input.wanted, None, None);
        return plan;
    };
    // Pods that do not run hear nothing: those that start find the one that is wanted.
    if input.fleet.pods.is_empty() {
        place(&mut plan.next, Some(wanted), None, None);
        return plan;
    }
    let previous = input.record.previous.as_ref();
    match previous {
        _ if wanted == used => {}
        // Nobody is there yet, so that what everybody still uses is to be heard until the move to the third is done.
        Some(previous) if previous != wanted && !may_use(input, used, previous) => {
            begin(&mut plan, wanted, previous, now)
        }
        Some(previous) if previous != wanted => {}
        // The first move, and back again.
        _ => begin(&mut plan, wanted, used, now),
    }
    if plan.next != *input.record {
        plan.waiting = Some(Waiting {
            reason: ConditionReason::WaitingForPods,
            message: "the move is not written yet".into(),
        });
        return plan;
    }
    let Some(previous) = previous else {
        return plan;
    };
    let Some(mut waiting) = obstacle(input, used) else {
        plan.events.push(PlanEvent::normal(
            EventReason::RedisMoved,
            format!("from {} to {}", address(previous), address(used)),
        ));
        // Where a third is wanted by now, the next look begins with that.
        place(&mut plan.next, Some(used), None, None);
        return plan;
    };
    if wanted != used {
        let next = address(wanted);
        waiting.message = format!(
            "{next} has to wait until the move to {} is done: {}",
            address(used),
            waiting.message
        );
    }
    let timeout = TimeDelta::from_std(input.ack_timeout.std()).unwrap_or(TimeDelta::days(36_500));
    if let Some(since) = input.record.since.filter(|since| now - *since >= timeout) {
        let since = since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let note = format!("Redis moves since {since}: {}", waiting.message);
        plan.events.push(PlanEvent::warning(
            EventReason::AcknowledgementTimedOut,
            note.clone(),
        ));
        // That it cannot be reached says more than that it takes long.
        if waiting.reason == ConditionReason::WaitingForPods {
            waiting = Waiting {
                reason: ConditionReason::AcknowledgementTimedOut,
                message: note,
            };
        }
    }
    plan.waiting = Some(waiting);
    plan
}

fn place(
    record: &mut RedisRecord,
    redis: Option<&RecordedRedis>,
    previous: Option<&RecordedRedis>,
    since: Option<DateTime<Utc>>,
) {
    (record.current, record.previous, record.since) = (redis.cloned(), previous.cloned(), since);
}

fn begin(
    plan: &mut Plan<RedisRecord>,
    to: &RecordedRedis,
    from: &RecordedRedis,
    now: DateTime<Utc>,
) {
    place(&mut plan.next, Some(to), Some(from), Some(now));
    plan.events.push(PlanEvent::normal(
        EventReason::RedisMoveStarted,
        format!("from {} to {}", address(from), address(to)),
    ));
}

/// Pods whose clients would miss what is sent: ready ones, and all that answer, since those that drain or terminate have clients as well.
fn concerned(fleet: &Fleet) -> impl Iterator<Item = &Pod> {
    fleet
        .pods
        .iter()
        .filter(|pod| pod.report().is_some() || (pod.ready && !pod.terminating))
}

/// What keeps the move from being done.
fn obstacle(input: &RoutingInput<'_>, used: &RecordedRedis) -> Option<Waiting> {
    let of = |reason, message| Some(Waiting { reason, message });
    let Some(revision) = input.revision else {
        return of(
            ConditionReason::WaitingForPods,
            input.fleet.lagging(None).unwrap_or_default(),
        );
    };
    let (there, late): (Vec<&Pod>, Vec<&Pod>) =
        concerned(input.fleet).partition(|pod| pod.holds(revision));
    let bus = |pod: &'_ Pod| {
        pod.report()
            .map(|report| report.bus.clone())
            .unwrap_or_default()
    };
    if let Some((pod, error)) = there.iter().find_map(|pod| Some((pod, bus(pod).error?))) {
        return of(
            ConditionReason::RedisUnreachable,
            format!("pod {}: {error}", pod.name),
        );
    }
    if let Some(lag) = lag(late) {
        return of(ConditionReason::WaitingForPods, lag);
    }
    let waits = |pod: &&&Pod| !same_nodes(&bus(pod).nodes, &used.nodes) || !bus(pod).hearing;
    let pod = there.iter().find(waits)?;
    of(
        ConditionReason::WaitingForPods,
        format!(
            "pod {} does not hear itself over {} yet",
            pod.name,
            address(used)
        ),
    )
}

/// Whether a pod may use this one rather than the one before; who does not answer may.
fn may_use(input: &RoutingInput<'_>, this: &RecordedRedis, before: &RecordedRedis) -> bool {
    // Nodes do not tell them apart where only credentials changed; that a pod refuses the newest does.
    let telling = !same_nodes(&this.nodes, &before.nodes);
    let refuses = |pod: &Pod, report: &Report| {
        input.revision.is_some_and(|revision| pod.holds(revision)) && report.bus.error.is_some()
    };
    concerned(input.fleet).any(|pod| match pod.report() {
        None => true,
        Some(report) => {
            same_nodes(&report.bus.nodes, &this.nodes) && (telling || !refuses(pod, report))
        }
    })
}

/// In any order: it says where to look first, no more.
fn same_nodes(some: &[String], others: &[String]) -> bool {
    let sorted = |nodes: &[String]| {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        nodes
    };
    sorted(some) == sorted(others)
}

fn address(redis: &RecordedRedis) -> String {
    redis.nodes.join(", ")
}

#[cfg(test)]
mod tests;

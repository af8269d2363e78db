//! Switches from one Redis to another: gateways use the new server and stay subscribed to the previous one until every pod uses the new one.
//!
//! A switch has room for one previous Redis, the one that every gateway is subscribed to: gateways that have switched bridge it, the others use it.
//! So switching back is always possible. Switching on to a third Redis is possible once the switch is done, or while no gateway uses the second one
//! yet, which is the way out if the second one is wrong.
//!
//! Adding or removing Redis is no switch: gateways restart for it, and a previous Redis is of no use to them.

use chrono::{DateTime, TimeDelta, Utc};

use crate::observe::fleet::{Fleet, Pod, lag};
use crate::plan::record::{RecordedRedis, RedisRecord};
use crate::plan::{Due, DueReason, Plan, PlanEvent, Waiting};
use crate::reasons::{ConditionReason, EventReason};
use signal_contract::StatusReport;

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct RoutingInput<'a> {
    /// Redis as the spec wants it.
    pub wanted: Option<&'a RecordedRedis>,
    /// How far a switch has come.
    pub record: &'a RedisRecord,
    /// Revision of the `live.toml` in the cluster that was made from exactly this record; `None`: it does not exist yet.
    pub revision: Option<&'a str>,
    /// The pods.
    pub fleet: &'a Fleet,
    /// A Warning is published when pods take longer than this.
    pub ack_timeout: signal_crds::Duration,
}

/// The next step.
pub fn plan(input: &RoutingInput<'_>, now: DateTime<Utc>) -> Plan<RedisRecord> {
    let mut plan = Plan {
        next: input.record.clone(),
        waiting: None,
        due: Vec::new(),
        events: Vec::new(),
    };
    let (Some(wanted), Some(used)) = (input.wanted, &input.record.current) else {
        set(&mut plan.next, input.wanted, None, None);
        return plan;
    };
    // Without pods there is nothing to switch: starting pods read the wanted Redis.
    if input.fleet.pods.is_empty() {
        set(&mut plan.next, Some(wanted), None, None);
        return plan;
    }
    let previous = input.record.previous.as_ref();
    match previous {
        _ if wanted == used => {}
        // No pod uses the second Redis yet: all pods stay subscribed to the previous one until the switch to the third is done.
        Some(previous) if previous != wanted && !may_use(input, used, previous) => {
            begin(&mut plan, wanted, previous, now)
        }
        Some(previous) if previous != wanted => {}
        // The first switch, or the switch back.
        _ => begin(&mut plan, wanted, used, now),
    }
    if plan.next != *input.record {
        plan.waiting = Some(Waiting {
            reason: ConditionReason::WaitingForPods,
            message: "the switch has not been written yet".into(),
        });
        return plan;
    }
    let Some(previous) = previous else {
        return plan;
    };
    let Some(mut waiting) = obstacle(input, used) else {
        plan.events.push(PlanEvent::normal(
            EventReason::RedisSwitched,
            format!(
                "every pod has switched from {} to {}",
                address(previous),
                address(used)
            ),
        ));
        // If a third Redis is wanted by now, the next reconcile switches to it.
        set(&mut plan.next, Some(used), None, None);
        return plan;
    };
    if wanted != used {
        let next = address(wanted);
        waiting.message = format!(
            "{next} waits until the switch to {} is done: {}",
            address(used),
            waiting.message
        );
    }
    let timeout = TimeDelta::from_std(input.ack_timeout.std()).unwrap_or(TimeDelta::days(36_500));
    plan.due.extend(input.record.since.map(|since| Due {
        at: since + timeout,
        why: DueReason::Acknowledgement,
    }));
    if let Some(since) = input.record.since.filter(|since| now - *since >= timeout) {
        let since = since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let note = format!("switching Redis since {since}: {}", waiting.message);
        plan.events.push(PlanEvent::warning(
            EventReason::AcknowledgementTimedOut,
            note.clone(),
        ));
        // RedisUnreachable is more precise than a timeout.
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

fn set(
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
    set(&mut plan.next, Some(to), Some(from), Some(now));
    plan.events.push(PlanEvent::normal(
        EventReason::RedisSwitchStarted,
        format!("switching from {} to {}", address(from), address(to)),
    ));
}

/// Pods whose clients could miss messages: ready ones, and all that answer, because pods that drain or terminate have clients too.
fn concerned(fleet: &Fleet) -> impl Iterator<Item = &Pod> {
    fleet
        .pods
        .iter()
        .filter(|pod| pod.report().is_some() || (pod.ready && !pod.terminating))
}

/// Why the switch is not done.
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
            .map(|report| report.redis.clone())
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
    let waits = |pod: &&&Pod| !same_nodes(&bus(pod).nodes, &used.nodes) || !bus(pod).subscribed;
    let pod = there.iter().find(waits)?;
    of(
        ConditionReason::WaitingForPods,
        format!(
            "pod {} does not receive its own messages through {} yet",
            pod.name,
            address(used)
        ),
    )
}

/// Whether a pod may use this Redis rather than the previous one; a pod that does not answer may.
fn may_use(input: &RoutingInput<'_>, this: &RecordedRedis, before: &RecordedRedis) -> bool {
    // If only credentials changed, both have the same nodes; a pod that refuses the newest revision uses the previous one.
    let differs = !same_nodes(&this.nodes, &before.nodes);
    let refuses = |pod: &Pod, report: &StatusReport| {
        input.revision.is_some_and(|revision| pod.holds(revision)) && report.redis.error.is_some()
    };
    concerned(input.fleet).any(|pod| match pod.report() {
        None => true,
        Some(report) => {
            same_nodes(&report.redis.nodes, &this.nodes) && (differs || !refuses(pod, report))
        }
    })
}

/// Whether both name the same nodes, in any order: the order is only where a client connects first.
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

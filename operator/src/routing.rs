//! Redis moves: from the server that gateways use to the one that the spec names, with no pod alone on either side.
//!
//! Gateways hold both while `redis_previous` is recorded: they publish to both and hear both, so a pod that has moved and one that has not reach
//! each other. The one before goes when every ready pod uses the new one, hears itself through it and holds the revision that names it.
//!
//! At most one is held beside the current one. A wish that comes in the middle of a move waits for its end, unless no ready pod uses the new
//! server yet: then nobody is left behind, and the wish takes its place. That is also the way out of a move to a server that cannot be reached.

use crate::fleet::{Fleet, Pod};
use crate::plan::{Happening, Plan, Waiting};
use crate::record::{Record, RecordedRedis};

/// Reason: ready pods do not hold the newest configuration yet.
pub const WAITING_FOR_PODS: &str = "WaitingForPods";
/// Reason: a pod cannot use the new server.
pub const NOT_REACHABLE: &str = "RedisNotReachable";
/// Reason: another move ends first.
pub const MOVE_UNDER_WAY: &str = "RedisMoveUnderWay";
/// Event: pods begin to move.
pub const MOVE_STARTED: &str = "RedisMoveStarted";
/// Event: every pod has moved.
pub const MOVED: &str = "RedisMoved";

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct RoutingInput<'a> {
    /// Redis of the spec.
    pub wanted: Option<&'a RecordedRedis>,
    /// What is recorded.
    pub record: &'a Record,
    /// Revision of the `live.toml` in the cluster that was made from exactly this record; `None`: there is none yet.
    pub revision: Option<&'a str>,
    /// The pods.
    pub fleet: &'a Fleet,
}

/// The next step of a move: changes `redis` and `redis_previous` alone.
pub fn plan(input: &RoutingInput<'_>) -> Plan<Record> {
    let mut plan = Plan { next: input.record.clone(), waiting: None, events: Vec::new() };
    let (Some(wanted), Some(current)) = (input.wanted, &input.record.redis) else {
        // Adding or removing Redis replaces the pods: nobody is bridged.
        plan.next.redis = input.wanted.cloned();
        plan.next.redis_previous = None;
        return plan;
    };
    let nobody = input.fleet.alive().next().is_none();
    if wanted != current {
        if nobody {
            plan.next.redis = Some(wanted.clone());
            plan.next.redis_previous = None;
            return plan;
        }
        let previous = match &input.record.redis_previous {
            None => Some(current.clone()),
            // Back to where pods came from: what they may have moved to already is held beside it.
            Some(previous) if previous == wanted => Some(current.clone()),
            Some(previous) if input.fleet.alive().all(|pod| !uses(pod, current, input.revision)) => Some(previous.clone()),
            Some(_) => None,
        };
        let Some(previous) = previous else {
            plan.waiting = unfinished(input, current).or_else(|| Some(under_way()));
            if plan.waiting.as_ref().is_none_or(|waiting| waiting.reason == MOVE_UNDER_WAY) {
                finish(&mut plan, current);
            }
            return plan;
        };
        plan.events.push(Happening::normal(MOVE_STARTED, format!("from {} to {}", named(&previous), named(wanted))));
        plan.next.redis = Some(wanted.clone());
        plan.next.redis_previous = Some(previous);
        plan.waiting = Some(Waiting { reason: WAITING_FOR_PODS, message: "no pod has the new address yet".into() });
        return plan;
    }
    if input.record.redis_previous.is_some() {
        plan.waiting = unfinished(input, current);
        if plan.waiting.is_none() {
            finish(&mut plan, current);
        }
    }
    plan
}

fn finish(plan: &mut Plan<Record>, current: &RecordedRedis) {
    plan.next.redis_previous = None;
    plan.events.push(Happening::normal(MOVED, format!("every pod uses {}", named(current))));
}

fn under_way() -> Waiting {
    Waiting { reason: MOVE_UNDER_WAY, message: "the move before this one ends first".into() }
}

/// Whether a pod uses this Redis, or may: one that serves and does not answer may. Where only credentials differ the addresses are the same, so
/// the revision and the lack of a complaint say it.
fn uses(pod: &Pod, redis: &RecordedRedis, revision: Option<&str>) -> bool {
    let Some(report) = pod.report() else { return pod.ready };
    report.bus.nodes == redis.nodes && report.bus.error.is_none() && revision.is_none_or(|revision| report.live_revision == revision)
}

/// What the first pod that has not moved waits for.
fn unfinished(input: &RoutingInput<'_>, current: &RecordedRedis) -> Option<Waiting> {
    // Terminating pods still hold connections, and are reached through the server before.
    for pod in &input.fleet.pods {
        let wait = |reason, message: String| Some(Waiting { reason, message: format!("{}: {message}", pod.name) });
        let Some(report) = pod.report() else {
            if pod.ready {
                return wait(WAITING_FOR_PODS, pod.report.as_ref().err().cloned().unwrap_or_default());
            }
            continue;
        };
        if let Some(error) = &report.bus.error {
            return wait(NOT_REACHABLE, error.clone());
        }
        if input.revision.is_some_and(|revision| report.live_revision != revision) {
            let error = report.live_error.clone().unwrap_or_else(|| "it does not hold the newest configuration yet".into());
            return wait(WAITING_FOR_PODS, error);
        }
        if report.bus.nodes != current.nodes {
            return wait(WAITING_FOR_PODS, format!("it uses {}", report.bus.nodes.join(", ")));
        }
        if !report.bus.hearing {
            return wait(NOT_REACHABLE, "it does not hear itself through the new server".into());
        }
    }
    None
}

fn named(redis: &RecordedRedis) -> String {
    redis.nodes.join(", ")
}

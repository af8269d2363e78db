//! Condition Degraded: the first thing that is wrong and that waiting alone may not fix.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::conditions::{ConditionType as Type, Finding, State};
use super::failures::{ApplyFailure, Concern, first};
use super::findings::canary;
use super::{pods, reports};
use crate::decide::ClusterPlan;
use crate::objects::{Migration, revision_name};
use crate::observe::observed::Observed;
use crate::plan::canary::CanaryState;
use crate::plan::validate::ProblemKind;
use crate::reasons::ConditionReason;

pub(super) fn degraded(
    observed: &Observed,
    plan: &ClusterPlan,
    failures: &[ApplyFailure],
    now: DateTime<Utc>,
) -> Finding {
    let wrong = record_unreadable(plan)
        .or_else(|| first(failures, Concern::Service))
        .or_else(|| failed_canary(plan))
        .or_else(|| stuck_rollout(observed, plan))
        .or_else(|| failed_migration(observed, plan, now))
        .or_else(|| pods::wrong(observed, |pod| plan.facts().rollout.is_newest(pod)))
        .or_else(|| refused_configuration(observed, plan))
        .or_else(|| late_acknowledgement(plan));
    match wrong {
        Some((reason, message)) => Finding::new(Type::Degraded, State::True, reason, message),
        None => Finding::new(
            Type::Degraded,
            State::False,
            ConditionReason::AsExpected,
            "",
        ),
    }
}

fn record_unreadable(plan: &ClusterPlan) -> Option<(ConditionReason, String)> {
    let problem = plan
        .problems()
        .iter()
        .find(|problem| problem.kind == ProblemKind::Record)?;
    Some((problem.reason, problem.message.clone()))
}

fn failed_canary(plan: &ClusterPlan) -> Option<(ConditionReason, String)> {
    let canary = canary(plan.planned()?).filter(|canary| canary.state == CanaryState::Failed)?;
    let revision = revision_name(&canary.template);
    Some((
        ConditionReason::CanaryFailed,
        format!(
            "the rollout stopped after one pod of revision {revision}: {}",
            canary.why
        ),
    ))
}

fn stuck_rollout(observed: &Observed, plan: &ClusterPlan) -> Option<(ConditionReason, String)> {
    let rollout = &plan.facts().rollout;
    let stuck = rollout.stuck.as_ref()?;
    let wrong = pods::wrong(observed, |pod| rollout.is_newest(pod));
    let why = wrong.map_or_else(|| stuck.clone(), |(_, message)| message);
    Some((
        ConditionReason::ProgressDeadlineExceeded,
        format!("the rollout is stuck, pods of the old revision stay: {why}"),
    ))
}

fn failed_migration(
    observed: &Observed,
    plan: &ClusterPlan,
    now: DateTime<Utc>,
) -> Option<(ConditionReason, String)> {
    let message = match &plan.planned()?.migration {
        Migration::Failed { job, message, .. } => {
            let why =
                pods::wrong_with_migration(observed, job, now).map(|(_, why)| format!("; {why}"));
            let why = why.unwrap_or_default();
            format!("Job {job} failed, pods of the old image stay: {message}{why}")
        }
        // The next attempt proves nothing yet: without this, an alert with a waiting time would never fire.
        Migration::Pending { job } => {
            if let Some((reason, why)) = pods::wrong_with_migration(observed, job, now) {
                let message = format!("Job {job} does not get on: {why}");
                return Some((reason, message));
            }
            let conditions = &observed.cluster.status.as_ref()?.conditions;
            let is_of_job = |condition: &&Condition| {
                condition.type_ == Type::Degraded.as_str()
                    && condition.reason == ConditionReason::MigrationFailed.as_str()
                    && condition.message.contains(job.as_str())
            };
            conditions.iter().find(is_of_job)?.message.clone()
        }
        Migration::NotWanted | Migration::Complete(_) | Migration::AwaitsApproval => return None,
    };
    Some((ConditionReason::MigrationFailed, message))
}

fn refused_configuration(
    observed: &Observed,
    plan: &ClusterPlan,
) -> Option<(ConditionReason, String)> {
    let of_tls = reports(&observed.fleet).find_map(|(pod, report)| {
        let error = report.tls.as_ref()?.error.as_ref()?;
        Some((
            ConditionReason::ConfigurationRefused,
            format!("{}: {error}", pod.name),
        ))
    });
    let of_live = reports(&observed.fleet).find_map(|(pod, report)| {
        let error = report.live_error.as_ref()?;
        let is_refused = !pod.holds(&plan.facts().revision) || !report.ready;
        is_refused.then(|| {
            (
                ConditionReason::ConfigurationRefused,
                format!("{}: {error}", pod.name),
            )
        })
    });
    of_live.or(of_tls)
}

fn late_acknowledgement(plan: &ClusterPlan) -> Option<(ConditionReason, String)> {
    let planned = plan.planned()?;
    let late = [&planned.rotation, &planned.routing]
        .into_iter()
        .flatten()
        .find(|waiting| waiting.reason == ConditionReason::AcknowledgementTimedOut)?;
    Some((late.reason, late.message.clone()))
}

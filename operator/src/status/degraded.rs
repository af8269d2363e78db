//! Condition Degraded: the first thing that is wrong and that waiting alone may not fix.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::conditions::{ConditionType as Type, Finding, State};
use super::failures::{ApplyFailure, Concern, first};
use super::reports;
use crate::decide::ClusterPlan;
use crate::objects::Migration;
use crate::observe::observed::Observed;
use crate::plan::validate::ProblemKind;
use crate::reasons::ConditionReason;

pub(super) fn degraded(
    observed: &Observed,
    plan: &ClusterPlan,
    failures: &[ApplyFailure],
) -> Finding {
    let wrong = record_unreadable(plan)
        .or_else(|| first(failures, Concern::Service))
        .or_else(|| stuck_rollout(plan))
        .or_else(|| failed_migration(observed, plan))
        .or_else(|| replica_failure(observed))
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

fn stuck_rollout(plan: &ClusterPlan) -> Option<(ConditionReason, String)> {
    let stuck = plan.facts().rollout.stuck.as_ref()?;
    Some((
        ConditionReason::ProgressDeadlineExceeded,
        format!("the rollout is stuck, pods of the old revision stay: {stuck}"),
    ))
}

fn failed_migration(observed: &Observed, plan: &ClusterPlan) -> Option<(ConditionReason, String)> {
    let message = match &plan.planned()?.migration {
        Migration::Failed { job, message, .. } => {
            format!("Job {job} failed, pods of the old image stay: {message}")
        }
        // The next attempt proves nothing yet: without this, an alert with a waiting time would never fire.
        Migration::Pending { job } => {
            let conditions = &observed.cluster.status.as_ref()?.conditions;
            let is_of_job = |condition: &&Condition| {
                condition.type_ == Type::Degraded.as_str()
                    && condition.reason == ConditionReason::MigrationFailed.as_str()
                    && condition.message.contains(job.as_str())
            };
            conditions.iter().find(is_of_job)?.message.clone()
        }
        Migration::NotWanted | Migration::Complete { .. } => return None,
    };
    Some((ConditionReason::MigrationFailed, message))
}

fn replica_failure(observed: &Observed) -> Option<(ConditionReason, String)> {
    let status = observed.deployment.as_ref()?.status.as_ref()?;
    let failure = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    Some((
        ConditionReason::ReplicaFailure,
        failure.message.clone().unwrap_or_default(),
    ))
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

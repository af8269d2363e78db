//! Reconciling and Stalled, by which Flux and others that use kstatus (`sigs.k8s.io/cli-utils`, `pkg/kstatus`) tell work in progress from failure.
//!
//! Both are abnormal when true: each is in the status only while it holds. They never hold together, because kstatus takes the first that it meets.

use signal_crds::status::SourceStage;

use super::conditions::{ConditionType as Type, Finding, State};
use super::failures::ApplyFailure;
use crate::decide::{ClusterPlan, PlannedCluster};
use crate::observe::observed::Observed;
use crate::plan::validate::ProblemKind;
use crate::reasons::ConditionReason;

/// Reconciling, Stalled, or neither. `found` are the findings of all other conditions.
pub(super) fn kstatus(
    observed: &Observed,
    plan: &ClusterPlan,
    failures: &[ApplyFailure],
    found: &[Finding],
) -> Option<Finding> {
    if observed.cluster.spec.paused {
        // Nothing goes on, as the spec wants it.
        return None;
    }
    let finding = |kind| {
        move |(reason, message): (ConditionReason, String)| {
            Finding::new(kind, State::True, reason, message)
        }
    };
    stalled(plan, failures, found)
        .map(finding(Type::Stalled))
        .or_else(|| reconciling(observed, plan, failures, found).map(finding(Type::Reconciling)))
}

/// What goes on only after somebody has changed something. A Secret that is missing is none of it: often another controller is about to write it.
fn stalled(
    plan: &ClusterPlan,
    failures: &[ApplyFailure],
    found: &[Finding],
) -> Option<(ConditionReason, String)> {
    if let Some(invalid) = of(found, Type::SpecAccepted).filter(|it| it.state == State::False) {
        return Some((invalid.reason, invalid.message.clone()));
    }
    let mut problems = plan.problems().iter();
    if let Some(record) = problems.find(|problem| problem.kind == ProblemKind::Record) {
        return Some((record.reason, record.message.clone()));
    }
    if let Some(refused) = failures.iter().find(|failure| failure.is_final) {
        return Some((refused.reason, refused.message.clone()));
    }
    let is_given_up = |reason| match reason {
        ConditionReason::CanaryFailed => true,
        // kstatus takes a Deployment past its deadline for failed as well. One that gets another template goes on.
        ConditionReason::ProgressDeadlineExceeded => {
            plan.facts().rollout_begun && plan.facts().rollout.stuck.is_some()
        }
        _ => false,
    };
    of(found, Type::Degraded)
        .filter(|it| is_given_up(it.reason))
        .map(|it| (it.reason, it.message.clone()))
}

/// Why what the spec wants is not in force yet.
fn reconciling(
    observed: &Observed,
    plan: &ClusterPlan,
    failures: &[ApplyFailure],
    found: &[Finding],
) -> Option<(ConditionReason, String)> {
    if let Some(waits) = of(found, Type::SecretsResolved).filter(|it| it.state != State::True) {
        return Some((waits.reason, waits.message.clone()));
    }
    if let Some(failure) = failures.first() {
        return Some((failure.reason, failure.message.clone()));
    }
    let plan = plan.planned()?;
    let changes = of(found, Type::Progressing).filter(|it| it.state == State::True);
    match changes {
        // A template that waits for a person is no work of the operator.
        Some(Finding {
            reason: ConditionReason::RotationInProgress | ConditionReason::AwaitingApproval,
            ..
        })
        | None => {}
        Some(changes) => return Some((changes.reason, changes.message.clone())),
    }
    rotation(plan).or_else(|| {
        let lag = observed.fleet.lagging(Some(&plan.facts.revision))?;
        Some((ConditionReason::WaitingForPods, lag))
    })
}

/// A rotation whose new sources are not trusted yet. An old source that is accepted for the overlap, or an emergency that is over, keeps nothing waiting.
fn rotation(plan: &PlannedCluster) -> Option<(ConditionReason, String)> {
    let waiting = plan.rotation.as_ref()?;
    let is_in_force = matches!(
        waiting.reason,
        ConditionReason::Overlap | ConditionReason::EmergencyInForce
    );
    let mut sources = plan.facts.record.jwks.sources.iter();
    let prepares = sources.any(|source| source.stage == SourceStage::Prepared);
    (!is_in_force || prepares).then(|| (waiting.reason, waiting.message.clone()))
}

fn of(found: &[Finding], kind: Type) -> Option<&Finding> {
    found.iter().find(|finding| finding.kind == kind)
}

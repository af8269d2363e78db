//! One finding per condition, and the summary of them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use signal_crds::SignalClusterSpec;
use signal_crds::scaling::AutoscalingMode;
use signal_crds::status::{ScalingState, SourceStage};

use super::hpa::hpa_condition;
use super::reports;
use crate::decide::ClusterPlan;
use crate::objects::Migration;
use crate::observe::observed::Observed;
use crate::plan::Waiting;
use crate::plan::validate::Problem;
use crate::status::conditions::{ConditionType as Type, Finding, State};

/// Why something could not be applied and will not be by trying again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyFailure {
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Everything that was found.
pub fn findings(
    observed: &Observed,
    plan: &ClusterPlan,
    failure: Option<&ApplyFailure>,
) -> Vec<Finding> {
    let spec = &observed.cluster.spec;
    let problems = plan.valid.as_ref().err().map_or(&[][..], Vec::as_slice);
    let mut all = vec![
        paused(spec),
        resolved(
            Type::SpecAccepted,
            problems,
            "Accepted",
            "the spec can be carried out",
        ),
        resolved(
            Type::SecretsResolved,
            problems,
            "Resolved",
            "everything the spec names is there",
        ),
        available(observed),
        degraded(observed, plan, failure),
        redis(observed),
        kafka(observed),
        jwks(observed, plan),
        limited(observed, plan),
    ];
    if problems.is_empty() {
        all.push(progressing(observed, plan));
        all.push(database(spec, &plan.migration));
        all.push(rotation(plan));
    }
    all.push(ready(observed, plan, &all));
    all
}

fn paused(spec: &SignalClusterSpec) -> Finding {
    let (state, reason, message) = match spec.paused {
        true => (
            State::True,
            "Paused",
            "spec.paused: nothing is changed but status",
        ),
        false => (State::False, "NotPaused", ""),
    };
    Finding::new(Type::ReconciliationPaused, state, reason, message)
}

fn resolved(kind: Type, problems: &[Problem], reason: &'static str, message: &str) -> Finding {
    let mut of: Vec<&Problem> = problems
        .iter()
        .filter(|problem| problem.condition == kind)
        .collect();
    of.sort_by_key(|problem| &problem.message);
    match of.first() {
        Some(first) => {
            let messages: Vec<&str> = of.iter().map(|problem| problem.message.as_str()).collect();
            Finding::new(kind, State::False, first.reason, messages.join("; "))
        }
        None => Finding::new(kind, State::True, reason, message),
    }
}

/// Ready pods that stay, and how many are wanted.
fn serving(observed: &Observed) -> (i32, i32) {
    let serving = observed.fleet.ready().filter(|pod| pod.stays()).count();
    (
        i32::try_from(serving).unwrap_or(i32::MAX),
        crate::plan::autoscale::wanted(&observed.cluster.spec).0,
    )
}

fn available(observed: &Observed) -> Finding {
    let spec = &observed.cluster.spec;
    let (serving, wanted) = serving(observed);
    if wanted == 0 {
        let reason = if spec.stopped {
            "Stopped"
        } else {
            "ScaledToZero"
        };
        return Finding::new(Type::Available, State::False, reason, "no pods are wanted");
    }
    let may_be_away = if spec.disruption.enabled {
        spec.disruption.max_unavailable
    } else {
        1
    };
    let least = (wanted - may_be_away).max(1);
    let message = format!("{serving} of {wanted} pods serve");
    match serving >= least {
        true => Finding::new(Type::Available, State::True, "PodsAvailable", message),
        false => Finding::new(Type::Available, State::False, "PodsUnavailable", message),
    }
}

fn degraded(observed: &Observed, plan: &ClusterPlan, failure: Option<&ApplyFailure>) -> Finding {
    let bad = |reason, message: String| Finding::new(Type::Degraded, State::True, reason, message);
    if let Some(failure) = failure {
        return bad(failure.reason, failure.message.clone());
    }
    if let Some(stuck) = &plan.rollout.stuck {
        return bad(
            "ProgressDeadlineExceeded",
            format!("the rollout is stuck, pods of the old revision stay: {stuck}"),
        );
    }
    if let Migration::Failed { job, message, .. } = &plan.migration {
        return bad(
            "MigrationFailed",
            format!("Job {job} failed, pods of the old image stay: {message}"),
        );
    }
    // While it is tried again nothing is better yet, and an alert that waits would never be given.
    if let Migration::Pending { job } = &plan.migration
        && let Some(before) = observed.cluster.status.as_ref().and_then(|status| {
            let is_ours = |one: &&Condition| {
                one.type_ == Type::Degraded.as_str() && one.reason == "MigrationFailed"
            };
            status
                .conditions
                .iter()
                .find(is_ours)
                .filter(|one| one.message.contains(job.as_str()))
        })
    {
        return bad("MigrationFailed", before.message.clone());
    }
    let failure = observed
        .deployment
        .as_ref()
        .and_then(|deployment| deployment.status.as_ref()?.conditions.as_ref());
    let failure = failure.and_then(|all| {
        all.iter()
            .find(|one| one.type_ == "ReplicaFailure" && one.status == "True")
    });
    if let Some(failure) = failure {
        return bad(
            "ReplicaFailure",
            failure.message.clone().unwrap_or_default(),
        );
    }
    let refused = reports(&observed.fleet).find(|(pod, report)| {
        report.live_error.is_some() && (!pod.holds(&plan.revision) || !report.ready)
    });
    if let Some((pod, report)) = refused {
        return bad(
            "ConfigurationRefused",
            format!(
                "{}: {}",
                pod.name,
                report.live_error.as_deref().unwrap_or_default()
            ),
        );
    }
    let late = [&plan.rotation, &plan.routing]
        .into_iter()
        .flatten()
        .find(|waiting| waiting.reason == "AcknowledgementTimedOut");
    if let Some(late) = late {
        return bad("AcknowledgementTimedOut", late.message.clone());
    }
    Finding::new(Type::Degraded, State::False, "AsExpected", "")
}

fn progressing(observed: &Observed, plan: &ClusterPlan) -> Finding {
    let on =
        |reason, message: String| Finding::new(Type::Progressing, State::True, reason, message);
    // While stopped no Job is made, and no pod waits for one.
    let spec = &observed.cluster.spec;
    if let Migration::Pending { job } = &plan.migration
        && !spec.stopped
    {
        return on(
            "MigrationRunning",
            format!("pods of the wanted image start once Job {job} has completed"),
        );
    }
    if let Some(job) = plan.migration.tried_again(spec) {
        return on(
            "MigrationFailed",
            format!("Job {job} is made again a minute after it failed"),
        );
    }
    if plan.rollout.going_on {
        return on(
            "RolloutInProgress",
            format!("{} pods are of the newest revision", plan.rollout.updated),
        );
    }
    let (serving, wanted) = serving(observed);
    let starting = || on("PodsStarting", format!("{serving} of {wanted} pods serve"));
    if let Some(step) = plan
        .scale
        .as_ref()
        .filter(|step| step.status.state != ScalingState::Idle)
    {
        if step.status.from == step.status.to && step.status.victims.is_empty() && serving < wanted
        {
            return starting();
        }
        let message = format!(
            "from {} to {} pods; {} drain",
            step.status.from,
            step.status.to,
            step.status.victims.len()
        );
        return on("ScalingInProgress", message);
    }
    if let Some(waiting) = &plan.routing {
        return on("RedisMoving", waiting.message.clone());
    }
    if let Some(waiting) = &plan.rotation {
        return on("RotationInProgress", waiting.message.clone());
    }
    if serving < wanted {
        return starting();
    }
    Finding::new(Type::Progressing, State::False, "Settled", "")
}

fn redis(observed: &Observed) -> Finding {
    let find =
        |state, reason, message: String| Finding::new(Type::RedisReachable, state, reason, message);
    if observed.cluster.spec.redis.is_none() {
        return find(State::True, "NotConfigured", "one pod alone".into());
    }
    let mut asked = 0;
    for (pod, report) in reports(&observed.fleet) {
        asked += 1;
        if let Some(error) = &report.bus.error {
            return find(
                State::False,
                "NotReachable",
                format!("{}: {error}", pod.name),
            );
        }
        if !report.bus.hearing {
            return find(
                State::False,
                "Deaf",
                format!("{} does not hear itself through Redis", pod.name),
            );
        }
    }
    match asked {
        0 => find(State::Unknown, "NotReported", "no pod answers".into()),
        _ => find(
            State::True,
            "Hearing",
            format!("{asked} pods hear themselves through Redis"),
        ),
    }
}

fn kafka(observed: &Observed) -> Finding {
    let find =
        |state, reason, message: String| Finding::new(Type::KafkaReachable, state, reason, message);
    if observed.cluster.spec.kafka.is_none() {
        return find(State::True, "NotConfigured", "there is no pipeline".into());
    }
    let facts: Vec<_> = reports(&observed.fleet)
        .filter_map(|(pod, report)| Some((pod, report.kafka?)))
        .collect();
    if let Some((pod, facts)) = facts.iter().find(|(_, facts)| facts.retrying > 0) {
        return find(
            State::False,
            "PipelineWaits",
            format!(
                "{}: {} partitions wait for a dependency",
                pod.name, facts.retrying
            ),
        );
    }
    match facts.iter().map(|(_, facts)| facts.partitions).sum::<i64>() {
        _ if facts.is_empty() => find(State::Unknown, "NotReported", "no pod answers".into()),
        0 => find(
            State::False,
            "NoPartitions",
            "no pod has a partition: brokers cannot be reached, or the topics are not there".into(),
        ),
        partitions => find(
            State::True,
            "Consuming",
            format!("{partitions} partitions are assigned"),
        ),
    }
}

fn database(spec: &SignalClusterSpec, migration: &Migration) -> Finding {
    let find = |state, reason, message: String| {
        Finding::new(Type::DatabaseMigrated, state, reason, message)
    };
    match migration {
        Migration::NotWanted if spec.database.is_none() => {
            find(State::True, "NotConfigured", "rows live in the pod".into())
        }
        Migration::NotWanted => find(
            State::True,
            "NotManaged",
            "spec.database.migrations: no Job migrates".into(),
        ),
        Migration::Pending { job } => find(
            State::False,
            "MigrationRunning",
            format!("Job {job} has not completed"),
        ),
        Migration::Failed { job, message, .. } => find(
            State::False,
            "MigrationFailed",
            format!("Job {job}: {message}"),
        ),
        Migration::Complete { job } => {
            find(State::True, "Migrated", format!("Job {job} completed"))
        }
    }
}

/// Of accepted sources alone: one that is being prepared is spoken of by the rotation.
fn jwks(observed: &Observed, plan: &ClusterPlan) -> Finding {
    let find =
        |state, reason, message: String| Finding::new(Type::JWKSHealthy, state, reason, message);
    let accepted = |name: &str| {
        plan.record
            .sources
            .iter()
            .any(|source| source.name == name && source.stage != SourceStage::Prepared)
    };
    let mut asked = 0;
    for (pod, report) in reports(&observed.fleet) {
        asked += 1;
        let ill = report.key_sources.iter().find(|source| {
            accepted(&source.name) && (source.error.is_some() || source.keys.is_empty())
        });
        if let Some(source) = ill {
            let error = source.error.as_deref().unwrap_or("it has no usable key");
            return find(
                State::False,
                "SourceUnhealthy",
                format!("{}: source {}: {error}", pod.name, source.name),
            );
        }
    }
    match asked {
        0 => find(State::Unknown, "NotReported", "no pod answers".into()),
        _ => find(
            State::True,
            "Fetched",
            format!("{asked} pods have usable keys of every source"),
        ),
    }
}

fn rotation(plan: &ClusterPlan) -> Finding {
    let find = |state, reason, message: String| {
        Finding::new(Type::JWKSRotationComplete, state, reason, message)
    };
    if let Some(Waiting { reason, message }) = &plan.rotation {
        return find(State::False, reason, message.clone());
    }
    let moving: Vec<String> = plan
        .record
        .sources
        .iter()
        .filter(|source| source.stage != SourceStage::Trusted)
        .map(|source| format!("{} is {:?}", source.name, source.stage))
        .collect();
    match moving.is_empty() && plan.record.revoked_sources.is_empty() {
        true => find(State::True, "Complete", String::new()),
        false if moving.is_empty() => find(
            State::False,
            "Revoking",
            format!("revoked: {}", plan.record.revoked_sources.join(", ")),
        ),
        false => find(State::False, "InProgress", moving.join("; ")),
    }
}

fn limited(observed: &Observed, plan: &ClusterPlan) -> Finding {
    let spec = &observed.cluster.spec;
    let by_hpa = spec
        .autoscaling
        .as_ref()
        .is_some_and(|autoscaling| autoscaling.mode == AutoscalingMode::Hpa);
    let (state, reason, message) = match (&plan.limited, &observed.hpa) {
        (Some((reason, message)), _) => (State::True, *reason, message.clone()),
        (None, Some(hpa)) if by_hpa => hpa_condition(hpa),
        _ => (State::False, "NotLimited", String::new()),
    };
    Finding::new(Type::ScalingLimited, state, reason, message)
}

/// The first thing that is wrong, in the order in which people would mend it.
fn ready(observed: &Observed, plan: &ClusterPlan, found: &[Finding]) -> Finding {
    let spec = &observed.cluster.spec;
    let not = |finding: &Finding| {
        Finding::new(
            Type::Ready,
            State::False,
            finding.reason,
            finding.message.clone(),
        )
    };
    let of = |kind: Type| found.iter().find(|finding| finding.kind == kind);
    for kind in [Type::SpecAccepted, Type::SecretsResolved] {
        if let Some(finding) = of(kind).filter(|finding| finding.state == State::False) {
            return not(finding);
        }
    }
    if let Some(finding) = of(Type::Degraded).filter(|finding| finding.state == State::True) {
        return not(finding);
    }
    if spec.stopped {
        return Finding::new(
            Type::Ready,
            State::False,
            "Stopped",
            "spec.stopped: no pods are wanted",
        );
    }
    for kind in [Type::DatabaseMigrated, Type::Available] {
        if let Some(finding) = of(kind).filter(|finding| finding.state == State::False) {
            return not(finding);
        }
    }
    let (serving, wanted) = serving(observed);
    if serving < wanted {
        return Finding::new(
            Type::Ready,
            State::False,
            "PodsStarting",
            format!("{serving} of {wanted} pods serve"),
        );
    }
    if plan.rollout.going_on {
        return Finding::new(
            Type::Ready,
            State::False,
            "RolloutInProgress",
            "pods are being replaced",
        );
    }
    for kind in [Type::RedisReachable, Type::JWKSHealthy] {
        if let Some(finding) = of(kind).filter(|finding| finding.state != State::True) {
            return not(finding);
        }
    }
    Finding::new(
        Type::Ready,
        State::True,
        "AllPodsReady",
        format!("{serving} of {wanted} pods serve"),
    )
}

//! One finding per condition, and the summary of them: condition Ready.

use chrono::{DateTime, Utc};
use signal_crds::SignalClusterSpec;
use signal_crds::scaling::AutoscalingMode;
use signal_crds::status::{ScalingState, SourceStage};

use super::degraded::degraded;
use super::exposure::exposed;
use super::failures::{ApplyFailure, monitored};
use super::hpa::hpa_condition;
use super::kstatus::kstatus;
use super::{pods, reports, trust};
use crate::decide::{ClusterPlan, PlannedCluster};
use crate::names::{APPROVE_ROLLOUT, RESTARTED_AT};
use crate::objects::{Held, Migration, canary_of, revision_name};
use crate::observe::fleet::Pod;
use crate::observe::observed::Observed;
use crate::plan::Waiting;
use crate::plan::canary::{Canary, CanaryState};
use crate::plan::validate::{Problem, ProblemKind};
use crate::reasons::ConditionReason;
use crate::status::conditions::{ConditionType as Type, Finding, State};

/// Until then every pod has an older template.
const ROLLOUT_NOT_BEGUN: &str = "no pod has the wanted template yet";

/// The findings of all conditions.
pub fn findings(
    observed: &Observed,
    plan: &ClusterPlan,
    failures: &[ApplyFailure],
    now: DateTime<Utc>,
) -> Vec<Finding> {
    let spec = &observed.cluster.spec;
    let problems = plan.problems();
    let mut all = vec![
        paused(spec),
        resolved(
            Type::SpecAccepted,
            ProblemKind::Spec,
            problems,
            ConditionReason::Accepted,
            "the spec is valid",
        ),
        resolved(
            Type::SecretsResolved,
            ProblemKind::Reference,
            problems,
            ConditionReason::Resolved,
            "every Secret and ConfigMap that the spec names is usable",
        ),
        available(observed),
        degraded(observed, plan, failures, now),
        exposed(observed, failures),
        monitored(observed, failures),
        redis(observed, now),
        kafka(observed),
        jwks(observed, plan, now),
        limited(observed, plan),
    ];
    if let Some(planned) = plan.planned() {
        all.push(progressing(observed, planned, now));
        all.push(database(spec, &planned.migration));
        all.push(rotation(planned));
        all.push(update_pending(planned));
        all.push(trust::emergency(spec, planned));
        all.push(trust::signing_keys(spec, planned));
    }
    all.push(ready(observed, plan, &all));
    all.extend(kstatus(observed, plan, failures, &all));
    all
}

fn paused(spec: &SignalClusterSpec) -> Finding {
    let (state, reason, message) = match spec.paused {
        true => (
            State::True,
            ConditionReason::Paused,
            "spec.paused: only the status is written",
        ),
        false => (State::False, ConditionReason::NotPaused, ""),
    };
    Finding::new(Type::ReconciliationPaused, state, reason, message)
}

fn resolved(
    kind: Type,
    of_kind: ProblemKind,
    problems: &[Problem],
    reason: ConditionReason,
    message: &str,
) -> Finding {
    let said = |state, of_kind| {
        let mut of: Vec<&Problem> = problems
            .iter()
            .filter(|problem| problem.kind == of_kind)
            .collect();
        of.sort_by_key(|problem| &problem.message);
        let first = of.first()?;
        let messages: Vec<&str> = of.iter().map(|problem| problem.message.as_str()).collect();
        Some(Finding::new(kind, state, first.reason, messages.join("; ")))
    };
    said(State::False, of_kind)
        .or_else(|| said(State::Unknown, ProblemKind::Unread))
        .unwrap_or_else(|| Finding::new(kind, State::True, reason, message))
}

/// Ready pods that stay, and how many are wanted.
fn serving(observed: &Observed) -> (i32, i32) {
    let serving = observed.fleet.ready().filter(|pod| pod.stays()).count();
    (
        i32::try_from(serving).unwrap_or(i32::MAX),
        crate::plan::autoscale::wanted(&crate::plan::autoscale::number(observed)).0,
    )
}

fn available(observed: &Observed) -> Finding {
    let spec = &observed.cluster.spec;
    let (serving, wanted) = serving(observed);
    if wanted == 0 {
        let reason = if spec.stopped {
            ConditionReason::Stopped
        } else {
            ConditionReason::ScaledToZero
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
        true => Finding::new(
            Type::Available,
            State::True,
            ConditionReason::PodsAvailable,
            message,
        ),
        false => Finding::new(
            Type::Available,
            State::False,
            ConditionReason::PodsUnavailable,
            message,
        ),
    }
}

fn progressing(observed: &Observed, plan: &PlannedCluster, now: DateTime<Utc>) -> Finding {
    let mut found = progress(observed, plan);
    let wrong = match (found.reason, &plan.migration) {
        (ConditionReason::Settled, _) => None,
        (
            ConditionReason::MigrationRunning | ConditionReason::MigrationFailed,
            Migration::Pending { job } | Migration::Failed { job, .. },
        ) => pods::wrong_with_migration(observed, job, now),
        _ => pods::wrong(observed, |pod| plan.facts.rollout.is_newest(pod)),
    };
    if let Some((_, why)) = wrong {
        found.message += &format!("; {why}");
    }
    found
}

fn progress(observed: &Observed, plan: &PlannedCluster) -> Finding {
    let on =
        |reason, message: String| Finding::new(Type::Progressing, State::True, reason, message);
    if let Some(message) = awaited(plan) {
        return on(ConditionReason::AwaitingApproval, message);
    }
    // While stopped no Job is made, and no pod waits for one.
    let spec = &observed.cluster.spec;
    if let Migration::Pending { job } = &plan.migration
        && !spec.stopped
    {
        return on(
            ConditionReason::MigrationRunning,
            format!("pods of the wanted image start once Job {job} has completed"),
        );
    }
    if let Some(job) = plan.migration.tried_again(spec) {
        return on(
            ConditionReason::MigrationFailed,
            format!("Job {job} failed; it is created again a minute later"),
        );
    }
    if !plan.facts.rollout_begun {
        return on(
            ConditionReason::RolloutInProgress,
            ROLLOUT_NOT_BEGUN.to_owned(),
        );
    }
    if let Some(canary) = canary(plan).filter(|canary| canary.state == CanaryState::Observed) {
        let reason = match canary.awaits_approval(&spec.rollout) {
            true => ConditionReason::AwaitingApproval,
            false => ConditionReason::CanaryObserved,
        };
        return on(reason, observed_canary(spec, &canary));
    }
    if plan.facts.rollout.going_on {
        return on(
            ConditionReason::RolloutInProgress,
            format!(
                "{} pods are of the newest revision",
                plan.facts.rollout.updated
            ),
        );
    }
    let (serving, wanted) = serving(observed);
    let starting = || {
        on(
            ConditionReason::PodsStarting,
            format!("{serving} of {wanted} pods serve"),
        )
    };
    let scaling = &plan.pods.scale.status;
    if scaling.state != ScalingState::Idle {
        if scaling.from == scaling.to && scaling.victims.is_empty() && serving < wanted {
            return starting();
        }
        let message = format!(
            "from {} to {} pods; {} drain",
            scaling.from,
            scaling.to,
            scaling.victims.len()
        );
        return on(ConditionReason::ScalingInProgress, message);
    }
    if let Some(waiting) = &plan.routing {
        return on(ConditionReason::RedisMoving, waiting.message.clone());
    }
    if let Some(waiting) = &plan.rotation {
        return on(ConditionReason::RotationInProgress, waiting.message.clone());
    }
    if serving < wanted {
        return starting();
    }
    Finding::new(
        Type::Progressing,
        State::False,
        ConditionReason::Settled,
        "",
    )
}

/// The canary of the template that is applied.
pub(super) fn canary(plan: &PlannedCluster) -> Option<Canary> {
    canary_of(plan.desired.deployment.as_ref()?)
}

fn observed_canary(spec: &SignalClusterSpec, canary: &Canary) -> String {
    let revision = revision_name(&canary.template);
    let soak = spec.rollout.canary.as_ref().and_then(|canary| canary.soak);
    let until = match (soak, canary.good_since) {
        (None, _) => format!("annotation {APPROVE_ROLLOUT} of the SignalCluster names it"),
        (Some(soak), None) => format!("it is good for {soak}"),
        (Some(soak), Some(since)) => format!(
            "it is good for {soak}, which it is since {}",
            since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
        ),
    };
    format!("one pod has revision {revision}, and the others follow once {until}")
}

fn is_starting(pod: &Pod, now: DateTime<Utc>) -> bool {
    pod.starts_until().is_some_and(|until| now < until)
}

fn redis(observed: &Observed, now: DateTime<Utc>) -> Finding {
    let find =
        |state, reason, message: String| Finding::new(Type::RedisReachable, state, reason, message);
    if observed.cluster.spec.redis.is_none() {
        return find(
            State::True,
            ConditionReason::NotConfigured,
            "one pod serves without Redis".into(),
        );
    }
    let mut asked = 0;
    for (pod, report) in reports(&observed.fleet) {
        if let Some(error) = &report.redis.error {
            return find(
                State::False,
                ConditionReason::NotReachable,
                format!("{}: {error}", pod.name),
            );
        }
        if !report.redis.subscribed && is_starting(pod, now) {
            continue;
        }
        if !report.redis.subscribed {
            return find(
                State::False,
                ConditionReason::SubscriptionStalled,
                format!(
                    "{} does not receive its own messages through Redis",
                    pod.name
                ),
            );
        }
        asked += 1;
    }
    match asked {
        0 => find(
            State::Unknown,
            ConditionReason::NotReported,
            "no pod answers".into(),
        ),
        _ => find(
            State::True,
            ConditionReason::Subscribed,
            format!("{asked} pods receive their own messages through Redis"),
        ),
    }
}

fn kafka(observed: &Observed) -> Finding {
    let find =
        |state, reason, message: String| Finding::new(Type::KafkaReachable, state, reason, message);
    if observed.cluster.spec.kafka.is_none() {
        return find(
            State::True,
            ConditionReason::NotConfigured,
            "the spec has no Kafka".into(),
        );
    }
    let facts: Vec<_> = reports(&observed.fleet)
        .filter_map(|(pod, report)| Some((pod, report.kafka.as_ref()?)))
        .collect();
    if let Some((pod, facts)) = facts.iter().find(|(_, facts)| facts.retrying > 0) {
        return find(
            State::False,
            ConditionReason::PipelineWaits,
            format!(
                "{}: {} partitions wait for a dependency",
                pod.name, facts.retrying
            ),
        );
    }
    let mut stuck = facts
        .iter()
        .flat_map(|(pod, facts)| facts.stuck.iter().map(move |stuck| (pod, stuck)));
    if let Some((pod, stuck)) = stuck.next() {
        return find(
            State::False,
            ConditionReason::PipelineWaits,
            format!(
                "{}: partition {} of {} stands still at offset {} ({})",
                pod.name, stuck.partition, stuck.topic, stuck.offset, stuck.reason
            ),
        );
    }
    match facts.iter().map(|(_, facts)| facts.partitions).sum::<i64>() {
        _ if facts.is_empty() => find(
            State::Unknown,
            ConditionReason::NotReported,
            "no pod answers".into(),
        ),
        0 => find(
            State::False,
            ConditionReason::NoPartitions,
            "no pod has a partition: the brokers cannot be reached, or the topics do not exist"
                .into(),
        ),
        partitions => find(
            State::True,
            ConditionReason::Consuming,
            format!("{partitions} partitions are assigned"),
        ),
    }
}

fn database(spec: &SignalClusterSpec, migration: &Migration) -> Finding {
    let find = |state, reason, message: String| {
        Finding::new(Type::DatabaseMigrated, state, reason, message)
    };
    match migration {
        Migration::NotWanted if spec.database.is_none() => find(
            State::True,
            ConditionReason::NotConfigured,
            "each pod has a database of its own".into(),
        ),
        Migration::NotWanted => find(
            State::True,
            ConditionReason::NotManaged,
            "spec.database.migrations: the operator creates no Job".into(),
        ),
        Migration::Pending { job } => find(
            State::False,
            ConditionReason::MigrationRunning,
            format!("Job {job} has not completed"),
        ),
        Migration::Failed { job, message, .. } => find(
            State::False,
            ConditionReason::MigrationFailed,
            format!("Job {job}: {message}"),
        ),
        Migration::AwaitsApproval => find(
            State::True,
            ConditionReason::AwaitingApproval,
            "it has the schema of the running pods; that of the next ones is made once they are approved"
                .into(),
        ),
        Migration::Complete(migrated) => find(
            State::True,
            ConditionReason::Migrated,
            format!("it has the schema of image {}", migrated.image),
        ),
    }
}

/// Only accepted sources count; condition JWKSRotationComplete covers those that are being prepared.
fn jwks(observed: &Observed, plan: &ClusterPlan, now: DateTime<Utc>) -> Finding {
    let find =
        |state, reason, message: String| Finding::new(Type::JWKSHealthy, state, reason, message);
    let accepted = |name: &str| {
        plan.facts()
            .record
            .jwks
            .sources
            .iter()
            .any(|source| source.name == name && source.stage != SourceStage::Prepared)
    };
    let mut asked = 0;
    for (pod, report) in reports(&observed.fleet) {
        let ill = report.key_sources.iter().find(|source| {
            accepted(&source.name) && (source.error.is_some() || source.keys.is_empty())
        });
        if ill.is_some_and(|source| source.error.is_none()) && is_starting(pod, now) {
            continue;
        }
        asked += 1;
        if let Some(source) = ill {
            let error = source.error.as_deref().unwrap_or("it has no usable key");
            return find(
                State::False,
                ConditionReason::SourceUnhealthy,
                format!("{}: source {}: {error}", pod.name, source.name),
            );
        }
    }
    match asked {
        0 => find(
            State::Unknown,
            ConditionReason::NotReported,
            "no pod answers".into(),
        ),
        _ => find(
            State::True,
            ConditionReason::Fetched,
            format!("{asked} pods have usable keys of every source"),
        ),
    }
}

fn rotation(plan: &PlannedCluster) -> Finding {
    let find = |state, reason, message: String| {
        Finding::new(Type::JWKSRotationComplete, state, reason, message)
    };
    if let Some(Waiting { reason, message }) = &plan.rotation {
        return find(State::False, *reason, message.clone());
    }
    let moving: Vec<String> = plan
        .facts
        .record
        .jwks
        .sources
        .iter()
        .filter(|source| source.stage != SourceStage::Trusted)
        .map(|source| format!("{} is {:?}", source.name, source.stage))
        .collect();
    match moving.is_empty() && plan.facts.record.jwks.revoked_sources.is_empty() {
        true => find(State::True, ConditionReason::Complete, String::new()),
        false if moving.is_empty() => find(
            State::False,
            ConditionReason::Revoking,
            format!(
                "revoked: {}",
                plan.facts.record.jwks.revoked_sources.join(", ")
            ),
        ),
        false => find(State::False, ConditionReason::InProgress, moving.join("; ")),
    }
}

/// Parts of a template that a message names.
const NAMED_PARTS: usize = 5;

/// What a template waits for that nobody has approved.
fn awaited(plan: &PlannedCluster) -> Option<String> {
    let Some(Held::Approval { revision, parts }) = &plan.desired.held else {
        return None;
    };
    Some(format!(
        "revision {revision} waits until annotation {APPROVE_ROLLOUT} of the SignalCluster names it: it differs in {}",
        named(parts)
    ))
}

fn update_pending(plan: &PlannedCluster) -> Finding {
    let pending = |reason, message| Finding::new(Type::UpdatePending, State::True, reason, message);
    if let Some(message) = awaited(plan) {
        return pending(ConditionReason::AwaitingApproval, message);
    }
    let Some(Held::Update(parts)) = &plan.desired.held else {
        return Finding::new(
            Type::UpdatePending,
            State::False,
            ConditionReason::UpToDate,
            "",
        );
    };
    pending(
        ConditionReason::OperatorChanged,
        format!(
            "pods keep the template of an earlier operator until the spec changes, or annotation {RESTARTED_AT} of the SignalCluster: this one differs in {}",
            named(parts)
        ),
    )
}

fn named(parts: &[String]) -> String {
    let more = parts.len().saturating_sub(NAMED_PARTS);
    let mut named = parts[..parts.len() - more].join(", ");
    if more > 0 {
        named += &format!(" and {more} more");
    }
    named
}

fn limited(observed: &Observed, plan: &ClusterPlan) -> Finding {
    let spec = &observed.cluster.spec;
    let by_hpa = spec
        .autoscaling
        .as_ref()
        .is_some_and(|autoscaling| autoscaling.mode == AutoscalingMode::Hpa);
    let limited = plan.pods().limited.as_ref();
    let (state, reason, message) = match (limited, &observed.hpa) {
        (Some((reason, message)), _) => (State::True, *reason, message.clone()),
        (None, Some(hpa)) if by_hpa => hpa_condition(hpa),
        _ => (State::False, ConditionReason::NotLimited, String::new()),
    };
    Finding::new(Type::ScalingLimited, state, reason, message)
}

/// The first thing that is wrong, in the order in which people would fix it.
fn ready(observed: &Observed, plan: &ClusterPlan, found: &[Finding]) -> Finding {
    let spec = &observed.cluster.spec;
    let not = |finding: &Finding| {
        let state = match finding.reason {
            ConditionReason::ReadFailed => State::Unknown,
            _ => State::False,
        };
        Finding::new(Type::Ready, state, finding.reason, finding.message.clone())
    };
    let of = |kind: Type| found.iter().find(|finding| finding.kind == kind);
    for kind in [Type::SpecAccepted, Type::SecretsResolved] {
        if let Some(finding) = of(kind).filter(|finding| finding.state != State::True) {
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
            ConditionReason::Stopped,
            "spec.stopped: no pods are wanted",
        );
    }
    if let Some(message) = plan.planned().and_then(awaited) {
        return Finding::new(
            Type::Ready,
            State::False,
            ConditionReason::AwaitingApproval,
            message,
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
            ConditionReason::PodsStarting,
            format!("{serving} of {wanted} pods serve"),
        );
    }
    if !plan.facts().rollout_begun {
        return Finding::new(
            Type::Ready,
            State::False,
            ConditionReason::RolloutInProgress,
            ROLLOUT_NOT_BEGUN,
        );
    }
    if plan.facts().rollout.going_on {
        let canary = plan.planned().and_then(canary);
        let (reason, message) = match canary.filter(|it| it.awaits_approval(&spec.rollout)) {
            Some(canary) => (
                ConditionReason::AwaitingApproval,
                observed_canary(spec, &canary),
            ),
            None => (
                ConditionReason::RolloutInProgress,
                "pods are being replaced".to_owned(),
            ),
        };
        return Finding::new(Type::Ready, State::False, reason, message);
    }
    for kind in [Type::RedisReachable, Type::JWKSHealthy] {
        if let Some(finding) = of(kind).filter(|finding| finding.state != State::True) {
            return not(finding);
        }
    }
    Finding::new(
        Type::Ready,
        State::True,
        ConditionReason::AllPodsReady,
        format!("{serving} of {wanted} pods serve"),
    )
}

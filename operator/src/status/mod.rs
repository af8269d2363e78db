//! The status of a SignalCluster: numbers from the fleet, conditions from the plan. Pure.
//!
//! It shows what was observed and what the API server returned, never what is only wanted.

pub mod conditions;

mod degraded;
mod differences;
mod exposure;
mod failures;
mod findings;
mod hpa;
mod kstatus;
mod pods;
mod trust;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use signal_crds::SignalClusterSpec;
use signal_crds::scaling::AutoscalingMode;
use signal_crds::status::{
    ConfigStatus, Connections, DatabaseStatus, KafkaStatus, RedisStatus, ScalingState,
    SourceStatus, Status,
};

use crate::decide::ClusterPlan;
use crate::names::staying_selector;
use crate::objects::Migration;
use crate::observe::definition::UnreadableCluster;
use crate::observe::fleet::{Fleet, Pod};
use crate::observe::observed::Observed;
use crate::plan::record::{RecordedSource, RedisRecord, SourcesRecord};
use crate::plan::validate::ProblemKind;
use crate::reasons::ConditionReason;
use crate::status::conditions::{ConditionType, Finding, State, conditions};
use crate::time::{from_k8s, to_k8s};
use signal_contract::StatusReport;

pub use differences::{Difference, difference};
pub use failures::ApplyFailure;
pub use findings::findings;

/// Most key ids that are listed of one source.
const MAX_KEY_IDS: usize = 16;

/// The status after this reconcile. `failures` are the objects that could not be applied.
pub fn status(
    observed: &Observed,
    plan: &ClusterPlan,
    failures: &[ApplyFailure],
    now: DateTime<Utc>,
) -> Status {
    let cluster = &observed.cluster;
    let before = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let fleet = &observed.fleet;
    let staying: Vec<&Pod> = fleet.pods.iter().filter(|pod| pod.stays()).collect();
    let count = |pods: usize| i32::try_from(pods).unwrap_or(i32::MAX);
    let found = findings(observed, plan, failures, now);
    // Without a readable record the stages are unknown: the last status stays.
    let has = |kind| plan.problems().iter().any(|problem| problem.kind == kind);
    let is_known = !has(ProblemKind::Record) && !has(ProblemKind::Unread);
    let record = is_known.then_some(&plan.facts().record);
    Status {
        observed_generation: generation,
        operator_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        version: common_version(fleet),
        replicas: count(staying.len()),
        ready_replicas: count(staying.iter().filter(|pod| pod.ready).count()),
        updated_replicas: match plan.facts().rollout_begun {
            true => plan.facts().rollout.updated,
            false => 0,
        },
        draining_replicas: count(
            fleet
                .alive()
                .filter(|pod| pod.draining_since.is_some())
                .count(),
        ),
        selector: Some(staying_selector(name)),
        endpoints: Some(exposure::endpoints(
            observed,
            name,
            cluster.metadata.namespace.as_deref().unwrap_or_default(),
        )),
        connections: connections(&staying).map(|counted| Connections {
            sampled_at: sampled_at(&cluster.spec, &counted, before.connections.as_ref(), now),
            ..counted
        }),
        config: match has(ProblemKind::Unread) {
            true => before.config,
            false => config(fleet, plan),
        },
        scaling: Some(plan.pods().scale.status.clone())
            .filter(|scaling| scaling.state != ScalingState::Idle),
        jwks: match record {
            Some(record) => sources(&record.jwks, fleet),
            None => before.jwks,
        },
        signing_keys: plan.facts().signing_keys.clone(),
        redis: match record {
            Some(record) => redis(&cluster.spec, &record.redis, fleet),
            None => before.redis,
        },
        kafka: kafka(&cluster.spec, fleet),
        database: database(&cluster.spec, plan, observed, before.database.as_ref()),
        conditions: conditions(&before.conditions, &found, generation, now),
    }
}

/// The conditions of a SignalCluster that this release cannot read. What is known of its pods stays as it was.
pub fn unreadable_conditions(unreadable: &UnreadableCluster, now: DateTime<Utc>) -> Vec<Condition> {
    let message = format!(
        "the spec has a form of another release, and this operator leaves everything as it is: {}",
        unreadable.why
    );
    let found = [
        (ConditionType::Ready, State::False),
        (ConditionType::SpecAccepted, State::False),
        (ConditionType::Stalled, State::True),
    ]
    .map(|(kind, state)| {
        let reason = ConditionReason::SpecUnreadable;
        Finding::new(kind, state, reason, message.clone())
    });
    let generation = unreadable.metadata.generation;
    conditions(&unreadable.conditions, &found, generation, now)
}

/// Reports of pods that are not terminating.
fn reports(fleet: &Fleet) -> impl Iterator<Item = (&Pod, &StatusReport)> {
    fleet.alive().filter_map(|pod| Some((pod, pod.report()?)))
}

fn common_version(fleet: &Fleet) -> Option<String> {
    let mut versions = fleet
        .ready()
        .filter_map(|pod| pod.report().map(|report| report.version.as_str()));
    let first = versions.next()?;
    versions
        .all(|version| version == first)
        .then(|| first.to_owned())
}

/// `None` if no pod answered: an old number would look like a fresh one.
fn connections(staying: &[&Pod]) -> Option<Connections> {
    let reports: Vec<&StatusReport> = staying.iter().filter_map(|pod| pod.report()).collect();
    let sum = |of: fn(&StatusReport) -> i64| reports.iter().map(|report| of(report)).sum();
    let each = || reports.iter().map(|report| report.connections.total);
    Some(Connections {
        min_per_pod: each().min()?,
        max_per_pod: each().max()?,
        total: sum(|report| report.connections.total),
        authenticated: sum(|report| report.connections.authenticated),
        encrypted: sum(|report| report.connections.encrypted),
        reporting_pods: i32::try_from(reports.len()).unwrap_or(i32::MAX),
        sampled_at: None,
    })
}

/// Numbers that stay as they are get a new time only now and then: each is a write.
const SAMPLE_AGE: TimeDelta = TimeDelta::seconds(30);

/// When the connections were counted; only where KEDA asks for them.
fn sampled_at(
    spec: &SignalClusterSpec,
    counted: &Connections,
    before: Option<&Connections>,
    now: DateTime<Utc>,
) -> Option<Time> {
    let mode = spec
        .autoscaling
        .as_ref()
        .map(|autoscaling| autoscaling.mode);
    if mode != Some(AutoscalingMode::External) {
        return None;
    }
    let same = before.filter(|before| {
        let without_time = Connections {
            sampled_at: None,
            ..(*before).clone()
        };
        without_time == *counted
    });
    let sampled = same.and_then(|before| before.sampled_at.clone());
    // One from the future is of another clock.
    let recent =
        sampled.filter(|at| (TimeDelta::zero()..SAMPLE_AGE).contains(&(now - from_k8s(at))));
    Some(recent.unwrap_or_else(|| to_k8s(now)))
}

fn config(fleet: &Fleet, plan: &ClusterPlan) -> Option<ConfigStatus> {
    let revision = &plan.facts().revision;
    if revision.is_empty() {
        return None;
    }
    let error = reports(fleet).find_map(|(pod, report)| {
        report
            .live_error
            .as_ref()
            .map(|error| format!("{}: {error}", pod.name))
    });
    let acknowledged = fleet.ready().filter(|pod| pod.holds(revision)).count();
    Some(ConfigStatus {
        revision: revision.clone(),
        acknowledged_replicas: i32::try_from(acknowledged).unwrap_or(i32::MAX),
        error,
    })
}

fn sources(record: &SourcesRecord, fleet: &Fleet) -> Vec<SourceStatus> {
    let of = |source: &RecordedSource| {
        let ready: Vec<_> = fleet
            .ready()
            .filter_map(|pod| Some((pod, pod.report()?)))
            .collect();
        let held: Vec<_> = ready
            .iter()
            .filter_map(|(pod, report)| {
                Some((
                    *pod,
                    report
                        .key_sources
                        .iter()
                        .find(|held| held.name == source.name)?,
                ))
            })
            .collect();
        let fetched = held
            .iter()
            .filter(|(_, held)| !held.keys.is_empty() && held.error.is_none())
            .count();
        let mut key_ids: Vec<String> = held
            .first()
            .map(|(_, held)| held.keys.clone())
            .unwrap_or_default();
        key_ids.retain(|kid| held.iter().all(|(_, held)| held.keys.contains(kid)));
        key_ids.truncate(MAX_KEY_IDS);
        SourceStatus {
            name: source.name.clone(),
            issuer: source.definition.issuer.clone(),
            state: source.stage,
            key_ids,
            fetched_replicas: i32::try_from(fetched).unwrap_or(i32::MAX),
            retire_after: source.retire_after.map(to_k8s),
            last_error: held.iter().find_map(|(pod, held)| {
                held.error
                    .as_ref()
                    .map(|error| format!("{}: {error}", pod.name))
            }),
        }
    };
    record.sources.iter().map(of).collect()
}

fn redis(spec: &SignalClusterSpec, record: &RedisRecord, fleet: &Fleet) -> Option<RedisStatus> {
    spec.redis.as_ref()?;
    let wanted = record.current.as_ref();
    let is_subscribed = |report: &StatusReport| {
        report.redis.subscribed && wanted.is_some_and(|redis| redis.nodes == report.redis.nodes)
    };
    let subscribed = fleet
        .ready()
        .filter_map(Pod::report)
        .filter(|report| is_subscribed(report))
        .count();
    Some(RedisStatus {
        subscribed_replicas: i32::try_from(subscribed).unwrap_or(i32::MAX),
        switching: record.previous.is_some(),
        error: reports(fleet).find_map(|(pod, report)| {
            report
                .redis
                .error
                .as_ref()
                .map(|error| format!("{}: {error}", pod.name))
        }),
    })
}

fn kafka(spec: &SignalClusterSpec, fleet: &Fleet) -> Option<KafkaStatus> {
    spec.kafka.as_ref()?;
    let facts: Vec<_> = reports(fleet)
        .filter_map(|(_, report)| report.kafka.as_ref())
        .collect();
    if facts.is_empty() {
        return None;
    }
    Some(KafkaStatus {
        assigned_partitions: facts.iter().map(|facts| facts.partitions).sum(),
        max_lag: facts
            .iter()
            .filter_map(|facts| facts.max_lag)
            .max()
            .unwrap_or(0),
    })
}

fn database(
    spec: &SignalClusterSpec,
    plan: &ClusterPlan,
    observed: &Observed,
    before: Option<&DatabaseStatus>,
) -> Option<DatabaseStatus> {
    spec.database.as_ref()?;
    let version = reports(&observed.fleet)
        .filter_map(|(_, report)| report.database.version)
        .max();
    let remembered = before.cloned().unwrap_or_default();
    Some(match plan.planned().map(|planned| &planned.migration) {
        Some(Migration::Complete(migrated)) => DatabaseStatus {
            version,
            migrated_image: Some(migrated.image.clone()),
            migrated_database: Some(migrated.database.clone()),
            migrated_version: migrated.version,
        },
        _ => DatabaseStatus {
            version,
            ..remembered
        },
    })
}

#[cfg(test)]
mod tests;

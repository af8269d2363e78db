//! The status that people read, from hand-made observations.

mod recorded;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use signal_crds::data::Migrations;

use super::*;
use crate::fixture::{example, plan_of};
use crate::observe::fleet::{PodProblem, PodProblemKind};
use crate::observe::observed::PodRevision;
use crate::observe::resources::SERVICE;
use crate::plan::DueReason;
use crate::reasons::ConditionReason;
use signal_contract::{
    ConnectionCounts, KafkaReport, KeySourceReport, RedisMode, RedisReport, SourceState,
    StuckPartition,
};

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + secs, 0).unwrap()
}

/// The status after one reconcile.
fn look(observed: &Observed, failures: &[ApplyFailure]) -> Status {
    let plan = plan_of(observed, at(0));
    status(observed, &plan, failures, at(0))
}

/// State and reason of a condition.
fn said<'a>(status: &'a Status, kind: &str) -> (&'a str, &'a str) {
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .unwrap();
    (&condition.status, &condition.reason)
}

/// A healthy ready pod of the production example with so many connections.
fn pod(name: &str, connections: i64) -> Pod {
    Pod {
        ip: None,
        template_hash: "hash".into(),
        created: at(-60),
        report: Ok(StatusReport {
            version: "1.2.3".into(),
            ready: true,
            connections: ConnectionCounts {
                total: connections,
                authenticated: connections,
                encrypted: 0,
            },
            redis: RedisReport {
                mode: Some(RedisMode::Sentinel),
                subscribed: true,
                ..RedisReport::default()
            },
            key_sources: ["main", "partner"].map(key_source).into(),
            kafka: Some(KafkaReport {
                partitions: 3,
                max_lag: Some(5),
                ..KafkaReport::default()
            }),
            ..StatusReport::default()
        }),
        ..crate::fixture::pod(name)
    }
}

fn key_source(name: &str) -> KeySourceReport {
    KeySourceReport {
        name: name.into(),
        state: Some(SourceState::Trusted),
        keys: vec!["k1".into()],
        ..KeySourceReport::default()
    }
}

/// The production example with these pods, without a migration and without autoscaling.
fn running(pods: Vec<Pod>) -> Observed {
    let mut observed = example("production");
    let cluster = Arc::make_mut(&mut observed.cluster);
    cluster.spec.database.as_mut().unwrap().migrations = Migrations::Startup;
    cluster.spec.autoscaling = None;
    cluster.spec.jwks.managed = None;
    cluster.spec.replicas = i32::try_from(pods.len()).unwrap();
    observed.fleet.pods = pods;
    observed
}

fn report(pod: &mut Pod) -> &mut StatusReport {
    pod.report.as_mut().unwrap()
}

#[test]
fn pods_that_all_serve_are_ready_and_their_numbers_add_up() {
    let status = look(&running(vec![pod("a", 7), pod("b", 11)]), &[]);
    assert_eq!(said(&status, "Ready"), ("True", "AllPodsReady"));
    assert_eq!(
        (
            status.ready_replicas,
            status.replicas,
            status.version.as_deref()
        ),
        (2, 2, Some("1.2.3"))
    );
    let connections = status.connections.unwrap();
    assert_eq!(
        (
            connections.total,
            connections.min_per_pod,
            connections.max_per_pod,
            connections.reporting_pods
        ),
        (18, 7, 11, 2)
    );
    assert_eq!(
        status.kafka.unwrap(),
        KafkaStatus {
            assigned_partitions: 6,
            max_lag: 5
        }
    );
    assert!(
        status
            .endpoints
            .unwrap()
            .internal
            .ends_with(".svc:80/stream")
    );
}

#[test]
fn connections_that_keda_asks_for_have_their_time_which_moves_with_them_or_now_and_then() {
    let mut observed = running(vec![pod("a", 7), pod("b", 11)]);
    let sampled = |observed: &mut Observed, secs: i64| {
        let plan = plan_of(observed, at(secs));
        let status = status(observed, &plan, &[], at(secs));
        let time = status.connections.as_ref().unwrap().sampled_at.clone();
        Arc::make_mut(&mut observed.cluster).status = Some(status);
        time.map(|time| from_k8s(&time))
    };
    assert_eq!(sampled(&mut observed, 0), None, "nobody asks");
    let spec = &mut Arc::make_mut(&mut observed.cluster).spec;
    spec.autoscaling = example("production").cluster.spec.autoscaling.clone();
    spec.autoscaling.as_mut().unwrap().mode = AutoscalingMode::External;
    assert_eq!(sampled(&mut observed, 10), Some(at(10)));
    assert_eq!(
        sampled(&mut observed, 39),
        Some(at(10)),
        "not every look is a write"
    );
    assert_eq!(sampled(&mut observed, 40), Some(at(40)));
    report(&mut observed.fleet.pods[0]).connections.total = 8;
    assert_eq!(sampled(&mut observed, 41), Some(at(41)));
    assert_eq!(
        sampled(&mut observed, 20),
        Some(at(20)),
        "a clock was set back"
    );
}

#[test]
fn a_pod_that_starts_takes_neither_redis_nor_keys_away() {
    let with = |age: i64, change: fn(&mut StatusReport)| {
        let mut starting = pod("b", 0);
        (starting.ready, starting.created) = (false, at(-age));
        change(report(&mut starting));
        let status = look(&running(vec![pod("a", 7), starting]), &[]);
        let said = |kind| said(&status, kind).0.to_owned();
        [said("RedisReachable"), said("JWKSHealthy")]
    };
    let nothing_yet = |report: &mut StatusReport| {
        report.redis.subscribed = false;
        report.key_sources = vec![KeySourceReport {
            name: "main".into(),
            ..KeySourceReport::default()
        }];
    };
    assert_eq!(with(5, nothing_yet), ["True", "True"]);
    assert_eq!(
        with(60, nothing_yet),
        ["False", "False"],
        "it takes too long"
    );
    let failing = |report: &mut StatusReport| {
        report.redis.error = Some("refused".into());
        report.key_sources[0].error = Some("404".into());
    };
    assert_eq!(
        with(5, failing),
        ["False", "False"],
        "an error is told at once"
    );
}

#[test]
fn pods_of_two_versions_have_no_common_one() {
    let mut newer = pod("b", 0);
    report(&mut newer).version = "1.3.0".into();
    assert_eq!(look(&running(vec![pod("a", 0), newer]), &[]).version, None);
}

#[test]
fn connections_that_no_pod_reports_are_left_out() {
    let mut silent = pod("a", 7);
    silent.report = Err("no answer within 2 s".into());
    let mut observed = running(vec![silent]);
    Arc::make_mut(&mut observed.cluster).status = Some(Status {
        connections: Some(Connections {
            total: 9,
            ..Connections::default()
        }),
        ..Status::default()
    });
    let status = look(&observed, &[]);
    assert_eq!(status.connections, None);
    assert_eq!(said(&status, "RedisReachable"), ("Unknown", "NotReported"));
}

#[test]
fn a_missing_secret_shows_in_its_condition_and_in_the_summary() {
    let mut observed = running(vec![pod("a", 0), pod("b", 0)]);
    observed
        .secrets
        .values_mut()
        .for_each(|secret| *secret = None);
    let status = look(&observed, &[]);
    assert_eq!(said(&status, "SecretsResolved"), ("False", "SecretMissing"));
    assert_eq!(said(&status, "Ready"), ("False", "SecretMissing"));
    assert_eq!(said(&status, "Progressing").0, "Unknown", "not decided");
}

#[test]
fn a_stalled_pod_a_source_without_keys_and_a_waiting_pipeline_name_the_pod() {
    let with = |change: fn(&mut StatusReport)| {
        let mut bad = pod("bad", 0);
        change(report(&mut bad));
        look(&running(vec![pod("a", 0), bad]), &[])
    };
    let message = |status: &Status, kind: &str| {
        status
            .conditions
            .iter()
            .find(|one| one.type_ == kind)
            .unwrap()
            .message
            .clone()
    };
    let stalled = with(|report| report.redis.subscribed = false);
    assert_eq!(
        (said(&stalled, "RedisReachable"), said(&stalled, "Ready")),
        (
            ("False", "SubscriptionStalled"),
            ("False", "SubscriptionStalled")
        )
    );
    assert!(message(&stalled, "RedisReachable").contains("bad"));
    let keyless =
        with(|report| report.key_sources[0].error = Some("the answer is 404, not 200".into()));
    assert_eq!(said(&keyless, "JWKSHealthy"), ("False", "SourceUnhealthy"));
    assert!(message(&keyless, "JWKSHealthy").contains("404"));
    let waiting = with(|report| report.kafka.as_mut().unwrap().retrying = 2);
    assert_eq!(said(&waiting, "KafkaReachable"), ("False", "PipelineWaits"));
    let stuck = with(|report| {
        report.kafka.as_mut().unwrap().stuck = vec![StuckPartition {
            topic: "activity".into(),
            partition: 2,
            offset: 7,
            reason: "fetch".into(),
            ..StuckPartition::default()
        }];
    });
    assert_eq!(said(&stuck, "KafkaReachable"), ("False", "PipelineWaits"));
    let text = message(&stuck, "KafkaReachable");
    assert!(
        text.ends_with("partition 2 of activity stands still at offset 7 (fetch)"),
        "{text}"
    );
    assert_eq!(
        said(&waiting, "Ready").0,
        "True",
        "rows are late, people are connected"
    );
}

#[test]
fn pods_wait_for_the_migration_and_say_so() {
    let status = look(&example("production"), &[]);
    assert_eq!(
        said(&status, "DatabaseMigrated"),
        ("False", "MigrationRunning")
    );
    assert_eq!(said(&status, "Progressing"), ("True", "MigrationRunning"));
    assert_eq!(said(&status, "Ready"), ("False", "MigrationRunning"));
    let mut stopped = example("production");
    Arc::make_mut(&mut stopped.cluster).spec.stopped = true;
    assert_eq!(
        said(&look(&stopped, &[]), "Progressing").0,
        "False",
        "no Job is made for it"
    );
}

#[test]
fn what_the_api_server_refuses_degrades() {
    let failure = ApplyFailure {
        kind: SERVICE,
        reason: ConditionReason::NameOccupied,
        message: "Service edge belongs to someone else".into(),
        is_final: true,
    };
    let status = look(&running(vec![pod("a", 0), pod("b", 0)]), &[failure]);
    assert_eq!(
        (said(&status, "Degraded"), said(&status, "Ready")),
        (("True", "NameOccupied"), ("False", "NameOccupied"))
    );
}

#[test]
fn a_pod_that_drains_counts_as_draining_and_not_as_a_replica() {
    let mut leaving = pod("b", 4);
    leaving.ready = false;
    leaving.draining_since = Some(at(-5));
    let status = look(&running(vec![pod("a", 7), leaving]), &[]);
    assert_eq!((status.replicas, status.draining_replicas), (1, 1));
    assert_eq!(status.connections.unwrap().total, 7);
}

#[test]
fn paused_and_stopped_are_shown() {
    let mut observed = running(vec![pod("a", 0)]);
    Arc::make_mut(&mut observed.cluster).spec.paused = true;
    assert_eq!(
        said(&look(&observed, &[]), "ReconciliationPaused"),
        ("True", "Paused")
    );
    let spec = &mut Arc::make_mut(&mut observed.cluster).spec;
    (spec.paused, spec.stopped) = (false, true);
    let stopped = look(&observed, &[]);
    assert_eq!(
        (said(&stopped, "Ready"), said(&stopped, "Available")),
        (("False", "Stopped"), ("False", "Stopped"))
    );
}

/// A pod that does not serve, and why.
fn broken(name: &str, kind: PodProblemKind, message: &str) -> Pod {
    let mut pod = pod(name, 0);
    pod.ready = false;
    pod.report = Err("it does not answer".into());
    pod.problem = Some(PodProblem {
        kind,
        message: message.into(),
    });
    pod
}

fn message<'a>(status: &'a Status, kind: &str) -> &'a str {
    let mut conditions = status.conditions.iter();
    &conditions.find(|one| one.type_ == kind).unwrap().message
}

#[test]
fn what_keeps_a_pod_from_serving_is_told_by_its_name() {
    for (kind, reason) in [
        (PodProblemKind::Image, "ImagePullBackOff"),
        (PodProblemKind::Crash, "CrashLoopBackOff"),
        (PodProblemKind::OutOfMemory, "OOMKilled"),
        (PodProblemKind::Configuration, "ContainerCannotStart"),
        (PodProblemKind::Unschedulable, "Unschedulable"),
    ] {
        let status = look(
            &running(vec![pod("a", 1), broken("edge-7", kind, "because")]),
            &[],
        );
        assert_eq!(said(&status, "Degraded"), ("True", reason));
        assert_eq!(said(&status, "Ready"), ("False", reason));
        let expected = format!("pod edge-7: {reason}: because");
        assert_eq!(message(&status, "Degraded"), expected);
        assert_eq!(said(&status, "Progressing").0, "True");
        let progress = message(&status, "Progressing");
        assert!(progress.ends_with(&expected), "{progress}");
    }
    let well = look(&running(vec![pod("a", 1), pod("b", 1)]), &[]);
    assert_eq!(said(&well, "Degraded").0, "False");
}

#[test]
fn many_broken_pods_are_counted_and_no_secret_that_one_says_is_repeated() {
    let text = "password kafka-secret, database-secret, signal";
    let pods = (0..9).map(|at| broken(&format!("p{at}"), PodProblemKind::Crash, text));
    let status = look(&running(pods.collect()), &[]);
    let told = message(&status, "Degraded");
    assert!(told.ends_with("and 6 more"), "{told}");
    assert!(!told.contains("-secret"), "{told}");
}

#[test]
fn a_quota_is_told_by_the_replica_set_and_a_stuck_rollout_by_its_pod() {
    let mut observed = running(vec![pod("a", 1)]);
    observed.revisions = vec![PodRevision {
        name: "edge-5f".into(),
        wanted: 2,
        failure: Some("exceeded quota: small".into()),
        ..PodRevision::default()
    }];
    let status = look(&observed, &[]);
    assert_eq!(said(&status, "Degraded"), ("True", "ReplicaFailure"));
    assert_eq!(
        message(&status, "Degraded"),
        "ReplicaSet edge-5f: exceeded quota: small"
    );
    observed.revisions[0].wanted = 0;
    assert_eq!(
        said(&look(&observed, &[]), "Degraded").0,
        "False",
        "a past one"
    );

    let stuck = DeploymentCondition {
        type_: "Progressing".into(),
        status: "False".into(),
        reason: Some("ProgressDeadlineExceeded".into()),
        message: Some("no progress".into()),
        ..DeploymentCondition::default()
    };
    observed.deployment = Some(Deployment {
        status: Some(DeploymentStatus {
            conditions: Some(vec![stuck]),
            ..DeploymentStatus::default()
        }),
        ..Deployment::default()
    });
    let told = |observed: &Observed| {
        let status = look(observed, &[]);
        assert_eq!(
            said(&status, "Degraded"),
            ("True", "ProgressDeadlineExceeded")
        );
        message(&status, "Degraded").to_owned()
    };
    assert!(told(&observed).ends_with("no progress"));
    observed
        .fleet
        .pods
        .push(broken("b", PodProblemKind::Image, "not found"));
    assert!(told(&observed).ends_with("pod b: ImagePullBackOff: not found"));
}

#[test]
fn a_migration_that_does_not_get_on_is_told_by_its_pod() {
    let mut observed = example("production");
    let problem = PodProblem {
        kind: PodProblemKind::Crash,
        message: "container migrate: it ended with code 1: no such host".into(),
    };
    observed.migration_pods = vec![("edge-migrate-1-x".into(), problem)];
    let status = look(&observed, &[]);
    for kind in ["Degraded", "Progressing"] {
        let told = message(&status, kind);
        assert!(
            told.contains("pod edge-migrate-1-x") && told.ends_with("no such host"),
            "{told}"
        );
    }
    assert_eq!(said(&status, "Degraded"), ("True", "CrashLoopBackOff"));
}

#[test]
fn a_migration_whose_pods_nobody_lets_be_created_is_told_after_a_while() {
    let mut observed = example("production");
    let migration = plan_of(&observed, at(0))
        .planned()
        .unwrap()
        .desired
        .migration
        .clone();
    let mut job = migration.unwrap();
    let with = |job: &mut Job, began: i64, active: i32| {
        job.status = Some(JobStatus {
            start_time: Some(to_k8s(at(began))),
            active: Some(active),
            ..JobStatus::default()
        });
    };
    with(&mut job, -9, 0);
    observed.jobs = vec![job.clone()];
    let status = look(&observed, &[]);
    assert_eq!(said(&status, "Degraded"), ("False", "AsExpected"));
    let due: Vec<_> = plan_of(&observed, at(0))
        .due()
        .map(|due| (due.at, due.why))
        .collect();
    assert!(due.contains(&(at(1), DueReason::Migration)), "{due:?}");

    with(&mut job, -10, 0);
    observed.jobs = vec![job.clone()];
    let status = look(&observed, &[]);
    assert_eq!(said(&status, "Degraded"), ("True", "ReplicaFailure"));
    for kind in ["Degraded", "Progressing"] {
        let told = message(&status, kind);
        assert!(
            told.ends_with("no pod of it can be created, by a quota, a LimitRange, a policy or a webhook; the Events of the Job say which"),
            "{told}"
        );
    }
    with(&mut job, -10, 1);
    observed.jobs = vec![job];
    let status = look(&observed, &[]);
    assert_eq!(said(&status, "Degraded"), ("False", "AsExpected"));
}

//! `golden/health.yaml`: SignalClusters as people's tools find them, each with the status that the operator writes. The health checks in `charts/gitops`
//! are run against them (`crds/tests/charts/gitops.rs`).

use std::fmt::Write as _;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use kube::CustomResourceExt as _;
use serde_json::{Value, json};
use signal_crds::scaling::{CanarySettings, RolloutStrategy};
use signal_crds::{Duration, SignalCluster, SignalClusterSpec};

use super::*;
use crate::decide::PlannedCluster;
use crate::observe::definition::UnreadableCluster;
use crate::observe::resources::{INGRESS, Owned};
use crate::status::unreadable_conditions;

fn plan(observed: &Observed) -> Box<PlannedCluster> {
    let plan = plan_of(observed, at(0));
    match plan {
        ClusterPlan::Planned(planned) => planned,
        ClusterPlan::Invalid(invalid) => panic!("{:?}", invalid.problems),
    }
}

/// Everything is written, and pods have read it.
fn settled(mut observed: Observed) -> Observed {
    for _ in 0..3 {
        let planned = plan(&observed);
        observed.deployment = planned.desired.deployment.clone().map(|made| {
            let pods = observed.fleet.pods.iter();
            controlled(made, pods.filter(|pod| !pod.terminating))
        });
        observed.live_config = Some(planned.desired.live_config.clone());
        observed.credentials = Some(planned.desired.credentials.clone());
        for pod in &mut observed.fleet.pods {
            let Ok(report) = &mut pod.report else {
                continue;
            };
            report.live_revision.clone_from(&planned.facts.revision);
            let sources = planned.facts.record.jwks.sources.iter();
            report.key_sources = sources
                .map(|source| KeySourceReport {
                    state: Some(source.stage.into()),
                    ..key_source(&source.name)
                })
                .collect();
        }
    }
    observed
}

/// The Deployment with these pods, as its controller counts them. Those of another revision than the first one's are the newer ones.
fn controlled<'a>(mut deployment: Deployment, pods: impl Iterator<Item = &'a Pod>) -> Deployment {
    let hashes: Vec<&String> = pods.map(|pod| &pod.template_hash).collect();
    let newest = hashes
        .iter()
        .filter(|hash| **hash == hashes[hashes.len() - 1]);
    let count = |pods: usize| Some(i32::try_from(pods).unwrap());
    deployment.spec.as_mut().unwrap().replicas = count(hashes.len());
    deployment.status = Some(DeploymentStatus {
        replicas: count(hashes.len()),
        updated_replicas: count(newest.count()),
        ..DeploymentStatus::default()
    });
    deployment
}

fn fleet(pods: Vec<Pod>) -> Observed {
    let mut observed = running(pods);
    let metadata = &mut Arc::make_mut(&mut observed.cluster).metadata;
    (metadata.name, metadata.namespace) = (Some("edge".into()), Some("realtime".into()));
    metadata.generation = Some(4);
    settled(observed)
}

fn both() -> Observed {
    fleet(vec![pod("a", 7), pod("b", 11)])
}

fn with_spec(change: impl FnOnce(&mut SignalClusterSpec)) -> Observed {
    let mut observed = both();
    change(&mut Arc::make_mut(&mut observed.cluster).spec);
    observed
}

/// Its rollout is past the deadline.
fn stuck() -> Observed {
    let mut observed = fleet(vec![
        pod("a", 1),
        broken("edge-7", PodProblemKind::Image, "not found"),
    ]);
    let condition = DeploymentCondition {
        type_: "Progressing".into(),
        status: "False".into(),
        reason: Some("ProgressDeadlineExceeded".into()),
        message: Some("no progress".into()),
        ..DeploymentCondition::default()
    };
    let deployment = observed.deployment.as_mut().unwrap();
    deployment.status.as_mut().unwrap().conditions = Some(vec![condition]);
    observed
}

fn stuck_and_mended() -> Observed {
    let mut observed = stuck();
    let image = &mut Arc::make_mut(&mut observed.cluster).spec.image;
    (image.tag, image.digest) = (Some("the-right-one".into()), None);
    observed
}

fn rolling_out() -> Observed {
    let mut newer = pod("b", 3);
    newer.template_hash = "newer".into();
    newer.created = at(-1);
    fleet(vec![pod("a", 7), newer])
}

/// One pod has another template, and is as `change` leaves it.
fn canary(soak: Option<Duration>, change: impl FnOnce(&mut Pod)) -> Observed {
    let mut observed = with_spec(|spec| {
        (spec.image.tag, spec.image.digest) = (Some("next".into()), None);
        spec.rollout.strategy = RolloutStrategy::Canary;
        spec.rollout.canary = Some(CanarySettings { soak });
    });
    let mut new = pod("c", 0);
    (new.template_hash, new.created) = ("newer".into(), at(-1));
    change(&mut new);
    observed.fleet.pods.push(new);
    settled(observed)
}

fn awaiting_approval() -> Observed {
    with_spec(|spec| {
        (spec.image.tag, spec.image.digest) = (Some("next".into()), None);
        spec.rollout.strategy = RolloutStrategy::Supervised;
    })
}

fn draining() -> Observed {
    let mut leaving = pod("c", 4);
    leaving.ready = false;
    leaving.draining_since = Some(at(-5));
    let mut observed = fleet(vec![pod("a", 7), pod("b", 11), leaving]);
    Arc::make_mut(&mut observed.cluster).spec.replicas = 2;
    observed
}

fn migration_failed() -> Observed {
    let mut observed = with_spec(|spec| {
        spec.database.as_mut().unwrap().migrations = Migrations::Job;
    });
    let Migration::Pending { job } = plan(&observed).migration else {
        panic!("no Job")
    };
    let condition = JobCondition {
        type_: "Failed".into(),
        status: "True".into(),
        message: Some("Job has reached the specified backoff limit".into()),
        last_transition_time: Some(to_k8s(at(0))),
        ..JobCondition::default()
    };
    let mut failed = Job::default();
    failed.metadata.name = Some(job);
    failed.status = Some(JobStatus {
        conditions: Some(vec![condition]),
        ..JobStatus::default()
    });
    observed.jobs.push(failed);
    observed
}

fn without_secrets() -> Observed {
    let mut observed = both();
    observed.secrets.values_mut().for_each(|it| *it = None);
    observed
}

fn record_unreadable() -> Observed {
    let mut observed = both();
    let live = observed.live_config.as_mut().unwrap();
    let annotations = live.metadata.annotations.get_or_insert_default();
    annotations.insert(crate::names::RECORD.into(), "{".into());
    observed
}

fn not_subscribed() -> Observed {
    let mut observed = both();
    report(&mut observed.fleet.pods[1]).redis.subscribed = false;
    observed
}

fn older_live_settings() -> Observed {
    let mut observed = both();
    report(&mut observed.fleet.pods[1]).live_revision = "sha256:older".into();
    observed
}

fn refused(is_final: bool) -> ApplyFailure {
    let kind: Owned = INGRESS;
    ApplyFailure {
        kind,
        reason: ConditionReason::ApplyRefused,
        message: "apply Ingress edge: the API server refuses it".into(),
        is_final,
    }
}

/// Of the spec only what decides whether pods are wanted.
fn object(observed: &Observed, status: &Value) -> Value {
    let (spec, metadata) = (&observed.cluster.spec, &observed.cluster.metadata);
    json!({
        "apiVersion": "signal.dev/v1alpha1",
        "kind": "SignalCluster",
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "generation": metadata.generation},
        "spec": {"paused": spec.paused, "stopped": spec.stopped, "replicas": spec.replicas},
        "status": status,
    })
}

/// The object with the status of one reconcile.
fn reconciled(observed: &Observed, failures: &[ApplyFailure]) -> Value {
    let mut status = look(observed, failures);
    status.operator_version = None;
    object(observed, &serde_json::to_value(status).unwrap())
}

fn unseen() -> Value {
    let definition = serde_json::to_value(SignalCluster::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    object(&both(), &schema["properties"]["status"]["default"])
}

fn unreadable() -> Value {
    let observed = both();
    let of = UnreadableCluster {
        metadata: observed.cluster.metadata.clone(),
        conditions: look(&observed, &[]).conditions,
        why: "unknown variant `Future`".into(),
    };
    let mut found = reconciled(&observed, &[]);
    found["status"]["conditions"] =
        serde_json::to_value(unreadable_conditions(&of, at(0))).unwrap();
    found
}

fn changed(mut object: Value, member: &str, value: Value) -> Value {
    object["metadata"][member] = value;
    object
}

/// Name and object.
fn all() -> Vec<(&'static str, Value)> {
    let seen = |observed: &Observed| reconciled(observed, &[]);
    let healthy = seen(&both());
    let mut late = pod("b", 0);
    late.ready = false;
    let starting = fleet(vec![pod("a", 7), late]);
    let crash = broken("edge-7", PodProblemKind::Crash, "because");
    let crashing = fleet(vec![pod("a", 1), crash]);
    let retiring = settled(with_spec(|spec| {
        spec.jwks.sources.pop();
    }));
    vec![
        ("unseen", unseen()),
        ("starting", seen(&starting)),
        ("healthy", healthy.clone()),
        (
            "generation lag",
            changed(healthy.clone(), "generation", json!(5)),
        ),
        (
            "being deleted",
            changed(healthy, "deletionTimestamp", json!("2027-01-15T08:00:00Z")),
        ),
        ("rolling out", seen(&rolling_out())),
        ("stuck rollout", seen(&stuck())),
        (
            "stuck rollout with another image",
            seen(&stuck_and_mended()),
        ),
        ("canary", seen(&canary(Some(Duration::secs(900)), |_| {}))),
        ("canary that awaits approval", seen(&canary(None, |_| {}))),
        ("failed canary", seen(&canary(None, |pod| pod.restarts = 1))),
        ("awaiting approval", seen(&awaiting_approval())),
        ("crashing", seen(&crashing)),
        ("draining", seen(&draining())),
        ("older live settings", seen(&older_live_settings())),
        (
            "new source",
            seen(&with_spec(|spec| {
                let mut new = spec.jwks.sources[0].clone();
                (new.name, new.issuer) = ("new".into(), "https://new.example.com/".into());
                new.subject_prefix = "new:".into();
                spec.jwks.sources.push(new);
            })),
        ),
        ("retiring source", seen(&retiring)),
        ("Secret missing", seen(&without_secrets())),
        (
            "invalid spec",
            seen(&with_spec(|spec| {
                spec.gateway.allowed_origins = vec!["not an origin".into()];
            })),
        ),
        ("unreadable spec", unreadable()),
        ("unreadable record", seen(&record_unreadable())),
        ("migration failed", seen(&migration_failed())),
        ("Ingress refused", reconciled(&both(), &[refused(true)])),
        ("Ingress forbidden", reconciled(&both(), &[refused(false)])),
        ("not subscribed", seen(&not_subscribed())),
        ("paused", seen(&with_spec(|spec| spec.paused = true))),
        (
            "paused and invalid",
            seen(&with_spec(|spec| {
                spec.paused = true;
                spec.gateway.allowed_origins = vec!["not an origin".into()];
            })),
        ),
        (
            "stopped",
            seen(&{
                let mut stopped = fleet(Vec::new());
                Arc::make_mut(&mut stopped.cluster).spec.stopped = true;
                stopped
            }),
        ),
        ("scaled to zero", seen(&fleet(Vec::new()))),
    ]
}

/// One condition a line: a table that people can read.
fn text(objects: Vec<(&'static str, Value)>) -> String {
    let mut text = String::from(
        "# Written by SIGNAL_UPDATE_GOLDEN=1 cargo test -p signal-operator; not edited by hand.\n",
    );
    for (name, mut object) in objects {
        let conditions = object["status"]["conditions"].take();
        object["status"]
            .as_object_mut()
            .unwrap()
            .remove("conditions");
        write!(text, "---\n# {name}\n").unwrap();
        text += &serde_yaml_ng::to_string(&object).unwrap();
        text += "  conditions:\n";
        for condition in conditions.as_array().unwrap() {
            writeln!(text, "  - {condition}").unwrap();
        }
    }
    text
}

#[test]
fn the_recorded_objects_are_what_this_operator_writes() {
    let text = text(all());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/health.yaml");
    if std::env::var_os("SIGNAL_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == text,
        "SIGNAL_UPDATE_GOLDEN=1 cargo test -p signal-operator rewrites it; check the difference"
    );
}

#[test]
fn reconciling_and_stalled_are_there_only_while_they_hold_and_never_both() {
    for (name, object) in all() {
        let conditions = object["status"]["conditions"].as_array().unwrap();
        let kstatus: Vec<&Value> = conditions
            .iter()
            .filter(|one| one["type"] == "Reconciling" || one["type"] == "Stalled")
            .collect();
        assert!(kstatus.len() <= 1, "{name}: {kstatus:?}");
        assert!(
            kstatus.iter().all(|one| one["status"] == "True"),
            "{name}: {kstatus:?}"
        );
    }
}

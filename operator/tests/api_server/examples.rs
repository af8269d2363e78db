//! The examples on a real API server: it accepts every object as it is made, and none is written twice.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::DynamicObject;
use serde::Deserialize as _;
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_crds::status::SourceStage;
use signal_operator::act::apply::{Applied, apply, wanted};
use signal_operator::names::TEMPLATE_HASH;
use signal_operator::objects::compare::hash;
use signal_operator::objects::{DesiredInput, desired};
use signal_operator::observe::resources::{CONFIG_MAP, SECRET};
use signal_operator::plan::record::{Record, RecordedSource, RedisRecord, SourcesRecord};
use signal_operator::plan::validate::validate;
use signal_operator::reconcile::reconcile;
use signal_operator::time::now;

use crate::Stage;
use crate::apply::Harness;
use crate::killed::{FIRST, TestOperator, rest, set_spec};
use crate::simulated_pods::SimulatedPods;

/// Applies the documents of an example; returns the SignalCluster.
pub(crate) async fn example(stage: &Stage, yaml: &str) -> SignalCluster {
    let mut cluster = None;
    let params = PatchParams::apply("test").force();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let mut value = Value::deserialize(document).unwrap();
        let name = value["metadata"]["name"].as_str().unwrap().to_owned();
        value["metadata"] = json!({"name": name, "namespace": stage.namespace});
        let kind = match value["kind"].as_str().unwrap() {
            "SignalCluster" => {
                cluster = Some(
                    stage
                        .api::<SignalCluster>()
                        .patch(&name, &params, &Patch::Apply(&value))
                        .await
                        .unwrap(),
                );
                continue;
            }
            "Secret" => SECRET,
            "ConfigMap" => CONFIG_MAP,
            other => panic!("{other}"),
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(stage.client.clone(), &stage.namespace, &kind.resource());
        api.patch(&name, &params, &Patch::Apply(&value))
            .await
            .unwrap();
    }
    cluster.unwrap()
}

/// One round without a change in progress and without autoscaling.
pub(crate) async fn round(harness: &Harness, cluster: &SignalCluster) -> Applied {
    let observed = harness.look(cluster).await;
    let valid = validate(&observed).unwrap();
    let sources = valid
        .sources
        .iter()
        .map(|(declared, definition)| RecordedSource {
            name: declared.clone(),
            declared: declared.clone(),
            definition: definition.clone(),
            stage: SourceStage::Trusted,
            since: chrono::DateTime::UNIX_EPOCH,
            retire_after: None,
        });
    let record = Record {
        jwks: SourcesRecord {
            sources: sources.collect(),
            ..SourcesRecord::default()
        },
        redis: RedisRecord {
            current: valid.redis.clone(),
            ..RedisRecord::default()
        },
        ..Record::default()
    };
    let input = DesiredInput {
        keys: None,
        replicas: cluster.spec.replicas,
        observed: &observed,
        operator_namespace: None,
        entropy: [7; 32],
        now: now(),
    };
    let mut desired = desired(&valid, &record, input);
    if let Some(deployment) = desired
        .deployment
        .as_mut()
        .filter(|_| desired.held.is_none())
    {
        // As a reconcile marks the template that it applies.
        let template = serde_json::to_value(&deployment.spec.as_ref().unwrap().template).unwrap();
        let annotations = deployment.metadata.annotations.get_or_insert_default();
        annotations.insert(TEMPLATE_HASH.into(), hash(&template));
    }
    apply(wanted(desired).unwrap(), &observed, &harness.writer)
        .await
        .unwrap()
}

/// Completes the migration Job, if there is one: no controller runs Jobs here.
pub(crate) async fn migrate(stage: &Stage) -> bool {
    let jobs = stage
        .api::<Job>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    for job in &jobs {
        let done = |kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"});
        let status = json!({"status": {
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:01Z", "succeeded": 1,
            "conditions": [done("SuccessCriteriaMet"), done("Complete")],
        }});
        stage
            .api::<Job>()
            .patch_status(
                &job.name_any(),
                &PatchParams::default(),
                &Patch::Merge(status),
            )
            .await
            .unwrap();
    }
    !jobs.is_empty()
}

#[tokio::test]
async fn a_migration_that_failed_is_tried_again() {
    let Some(stage) = Stage::new("a_migration_that_failed_is_tried_again").await else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    set_spec(&stage, (1, FIRST)).await;
    let operator = TestOperator::begin(&stage, None).await;
    let look = async || {
        let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
        reconcile(&operator.context, &cluster).await.unwrap();
        stage
            .api::<Job>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
    };
    let reasons = async || {
        let status = stage
            .api::<SignalCluster>()
            .get("edge")
            .await
            .unwrap()
            .status
            .unwrap();
        ["DatabaseMigrated", "Degraded"].map(|kind| {
            status
                .conditions
                .iter()
                .find(|one| one.type_ == kind)
                .unwrap()
                .reason
                .clone()
        })
    };
    let first = look().await.remove(0);
    fail(&stage, &first, now()).await;
    assert_eq!(
        look().await[0].uid(),
        first.uid(),
        "it is left to be looked at"
    );
    assert_eq!(reasons().await, ["MigrationFailed"; 2]);

    fail(&stage, &first, now() - TimeDelta::minutes(1)).await;
    assert!(look().await.is_empty());
    let second = look().await.remove(0);
    assert_eq!(
        (second.name_any(), second.uid() == first.uid()),
        (first.name_any(), false)
    );
    assert_eq!(
        reasons().await,
        ["MigrationRunning", "MigrationFailed"],
        "it is not better before it is"
    );
    rest(&stage, &mut simulated, None).await;
    assert_eq!(reasons().await, ["Migrated", "AsExpected"]);
}

/// The Job gave up at that time.
async fn fail(stage: &Stage, job: &Job, at: DateTime<Utc>) {
    let at = at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let failed = |kind| json!({"type": kind, "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": at});
    let status = json!({"status": {"startTime": "2026-01-01T00:00:00Z", "conditions": [failed("FailureTarget"), failed("Failed")]}});
    stage
        .api::<Job>()
        .patch_status(
            &job.name_any(),
            &PatchParams::default(),
            &Patch::Merge(status),
        )
        .await
        .unwrap();
}

async fn is_written_once(stage: &Stage, yaml: &str) {
    let cluster = example(stage, yaml).await;
    let first = Harness::of(stage).await;
    let made = round(&first, &cluster).await;
    if migrate(stage).await {
        // The gateways were held back until now, with what only their start reads.
        let written = round(&first, &cluster).await.objects.into_iter();
        let mut kinds: Vec<&str> = written
            .filter(|object| object.written)
            .map(|object| object.kind.kind)
            .collect();
        kinds.sort_unstable();
        assert_eq!(kinds, ["ConfigMap", "Deployment", "Secret"]);
    }
    assert!(
        made.writes() >= 7,
        "{}: {} writes",
        cluster.name_any(),
        made.writes()
    );
    let again = round(&first, &cluster).await;
    let other = round(&Harness::of(stage).await, &cluster).await;
    for (who, applied) in [("the same operator", again), ("the next one", other)] {
        let written: Vec<(&str, String)> = applied
            .objects
            .iter()
            .filter(|object| object.written)
            .map(|object| (object.kind.kind, object.object.name_any()))
            .collect();
        assert_eq!(
            (written, applied.pruned),
            (vec![], vec![]),
            "{who} writes again"
        );
    }
}

#[tokio::test]
async fn the_minimal_example_is_written_once() {
    let Some(stage) = Stage::new("the_minimal_example_is_written_once").await else {
        return;
    };
    is_written_once(&stage, include_str!("../../golden/minimal.yaml")).await;
}

#[tokio::test]
async fn the_production_example_is_written_once() {
    let Some(stage) = Stage::new("the_production_example_is_written_once").await else {
        return;
    };
    is_written_once(&stage, include_str!("../../golden/production.yaml")).await;
}

#[tokio::test]
async fn the_development_example_is_written_once() {
    let Some(stage) = Stage::new("the_development_example_is_written_once").await else {
        return;
    };
    is_written_once(&stage, include_str!("../../golden/development.yaml")).await;
}

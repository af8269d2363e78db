//! What keeps pods from serving is in the conditions, by the pods' names, as Kubernetes writes it into their statuses.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_operator::names::selector;
use signal_operator::reconcile::reconcile;

use crate::Stage;
use crate::killed::{FIRST, TestOperator};
use crate::simulated_pods::{SimulatedPods, edge};

async fn look(stage: &Stage, operator: &TestOperator) -> SignalCluster {
    let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
    reconcile(&operator.context, &cluster).await.unwrap();
    stage.api::<SignalCluster>().get("edge").await.unwrap()
}

/// Reason and message of a condition that is true.
fn told(cluster: &SignalCluster, kind: &str) -> (String, String) {
    let conditions = &cluster.status.as_ref().unwrap().conditions;
    let condition = conditions.iter().find(|one| one.type_ == kind).unwrap();
    assert_eq!(condition.status, "True", "{condition:?}");
    (condition.reason.clone(), condition.message.clone())
}

async fn set_status(stage: &Stage, pod: &str, status: Value) {
    let patch = json!({"status": status});
    stage
        .api::<Pod>()
        .patch_status(pod, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

fn container(name: &str, state: Value) -> Value {
    let mut container = json!({"name": name, "image": "x", "imageID": "", "ready": false, "restartCount": 3, "started": false});
    let members = container.as_object_mut().unwrap();
    members.extend(state.as_object().unwrap().clone());
    container
}

#[tokio::test]
async fn statuses_of_pods_become_reasons_by_name() {
    let Some(stage) = Stage::new("problems").await else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    let operator = TestOperator::begin(&stage, None).await;
    let params = PatchParams::apply("test").force();
    stage
        .api::<SignalCluster>()
        .patch("edge", &params, &Patch::Apply(&edge(1, FIRST)))
        .await
        .unwrap();

    // The migration: its pod is made by hand.
    look(&stage, &operator).await;
    let job = stage
        .api::<Job>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let job = &job.items[0];
    let template = job.spec.as_ref().unwrap().template.clone();
    let mut pod = serde_json::to_value(template).unwrap();
    pod["metadata"]["name"] = json!("migrates");
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": job.name_any(), "uid": job.metadata.uid, "controller": true}]);
    let pod = serde_json::from_value(pod).unwrap();
    stage
        .api::<Pod>()
        .create(&PostParams::default(), &pod)
        .await
        .unwrap();
    let pull = json!({"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}}});
    let waits = json!({"phase": "Pending", "containerStatuses": [container("migrate", pull)]});
    set_status(&stage, "migrates", waits).await;
    let cluster = look(&stage, &operator).await;
    let (reason, message) = told(&cluster, "Degraded");
    assert_eq!(reason, "ImagePullBackOff");
    assert!(
        message.contains("pod migrates") && message.ends_with("Back-off pulling image x"),
        "{message}"
    );
    assert!(
        told(&cluster, "Progressing")
            .1
            .ends_with("Back-off pulling image x")
    );

    for _ in 0..4 {
        simulated.advance().await;
        look(&stage, &operator).await;
    }
    let labels: Vec<String> = selector("edge")
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let pods = ListParams::default().labels(&labels.join(","));
    let name = stage.api::<Pod>().list(&pods).await.unwrap().items[0].name_any();
    let ended = json!({"exitCode": 1, "reason": "Error", "message": "loading\ndatabase.url_file: no such file\n"});
    let crash = json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ended}});
    let status = json!({"conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [container("gateway", crash)]});
    set_status(&stage, &name, status).await;
    let (reason, message) = told(&look(&stage, &operator).await, "Degraded");
    assert_eq!(reason, "CrashLoopBackOff");
    assert!(
        message.contains(&name) && message.ends_with("database.url_file: no such file"),
        "{message}"
    );

    let room = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"});
    let status = json!({"conditions": [{"type": "Ready", "status": "False"}, room], "containerStatuses": null});
    set_status(&stage, &name, status).await;
    let cluster = look(&stage, &operator).await;
    assert_eq!(told(&cluster, "Degraded").0, "Unschedulable");
    assert!(
        told(&cluster, "Progressing")
            .1
            .ends_with("0/3 nodes are available")
    );
}

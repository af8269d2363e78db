//! `spec.replicas` leaves the manifest when autoscaling begins: the number of pods stays, whoever applies how.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_operator::reconcile::reconcile;

use crate::Stage;
use crate::killed::{FIRST, TestOperator, rest, set_spec};
use crate::simulated_pods::{SimulatedPods, edge};

/// The manifest with autoscaling and without a number.
fn without_number() -> Value {
    let mut cluster = edge(0, FIRST);
    let spec = cluster["spec"].as_object_mut().unwrap();
    spec.remove("replicas");
    spec.insert(
        "autoscaling".into(),
        json!({"mode": "External", "minReplicas": 1, "maxReplicas": 9}),
    );
    cluster
}

async fn replicas(stage: &Stage) -> i32 {
    let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
    cluster.spec.replicas
}

/// Reconciles some times; the number of pods never changes.
async fn stays_at(stage: &Stage, simulated: &mut SimulatedPods<'_>, number: i32) {
    let operator = TestOperator::begin(stage, None).await;
    for _ in 0..4 {
        simulated.advance().await;
        let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
        // The status conflicts with a number that the same reconcile has written.
        let _ = reconcile(&operator.context, &cluster).await;
        let deployment = stage
            .api::<k8s_openapi::api::apps::v1::Deployment>()
            .get("edge")
            .await
            .unwrap();
        assert_eq!(deployment.spec.unwrap().replicas, Some(number));
    }
}

#[tokio::test]
async fn a_number_that_is_removed_when_autoscaling_begins_shrinks_nothing() {
    let Some(stage) =
        Stage::new("a_number_that_is_removed_when_autoscaling_begins_shrinks_nothing").await
    else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    set_spec(&stage, (4, FIRST)).await;
    rest(&stage, &mut simulated, None).await;

    let api = stage.api::<SignalCluster>();
    let apply = PatchParams::apply("test").force();
    api.patch("edge", &apply, &Patch::Apply(&without_number()))
        .await
        .unwrap();
    assert_eq!(replicas(&stage).await, 2, "the API server's default");
    stays_at(&stage, &mut simulated, 4).await;
    assert_eq!(replicas(&stage).await, 4, "it is written back");
    // The operator owns it now, and the next apply leaves it.
    api.patch("edge", &apply, &Patch::Apply(&without_number()))
        .await
        .unwrap();
    assert_eq!(replicas(&stage).await, 4);

    // As `kubectl apply` without `--server-side` removes it.
    let mut applied = without_number();
    applied["metadata"] = json!({});
    let annotation =
        json!({"kubectl.kubernetes.io/last-applied-configuration": applied.to_string()});
    let patch = json!({"metadata": {"annotations": annotation}, "spec": {"replicas": null}});
    let client_side = PatchParams {
        field_manager: Some("kubectl-client-side-apply".into()),
        ..PatchParams::default()
    };
    api.patch("edge", &client_side, &Patch::Merge(&patch))
        .await
        .unwrap();
    assert_eq!(replicas(&stage).await, 2, "the API server's default");
    stays_at(&stage, &mut simulated, 4).await;
    assert_eq!(replicas(&stage).await, 4, "it is written back");

    // Who writes the number wishes it.
    let scale = json!({"spec": {"replicas": 5}});
    api.patch_scale("edge", &PatchParams::default(), &Patch::Merge(&scale))
        .await
        .unwrap();
    stays_at(&stage, &mut simulated, 5).await;
}

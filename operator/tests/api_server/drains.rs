//! A pod that a person asks to have drained is drained as at scale-in and replaced, and the others stay.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use signal_crds::SignalCluster;
use signal_operator::names::{DRAIN, DRAINING};
use signal_operator::reconcile::reconcile;

use crate::Stage;
use crate::killed::{FIRST, TestOperator, rest, set_spec};
use crate::simulated_pods::SimulatedPods;

#[tokio::test]
async fn a_pod_that_is_asked_to_drain_is_replaced_and_drained_before_it_goes() {
    let Some(stage) = Stage::new("drains").await else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    set_spec(&stage, (2, FIRST)).await;
    rest(&stage, &mut simulated, None).await;
    let pods = async || {
        let labels = ListParams::default().labels("app.kubernetes.io/component=gateway");
        stage.api::<Pod>().list(&labels).await.unwrap().items
    };
    let before: BTreeSet<String> = pods().await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(before.len(), 2);
    let (gone, stays) = (before.first().unwrap(), before.last().unwrap());
    let ask = json!({"metadata": {"annotations": {DRAIN: "now"}}});
    stage
        .api::<Pod>()
        .patch(gone, &PatchParams::default(), &Patch::Merge(&ask))
        .await
        .unwrap();
    let operator = TestOperator::begin(&stage, None).await;
    let (mut most, mut drained) = (0, BTreeSet::new());
    for _ in 0..100 {
        let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
        // A pod may be written in between.
        let _ = reconcile(&operator.context, &cluster).await;
        let deployment = stage.api::<Deployment>().get("edge").await.unwrap();
        most = most.max(deployment.spec.unwrap().replicas.unwrap());
        let now = pods().await;
        let drains = now.iter().filter(|pod| pod.labels().contains_key(DRAINING));
        drained.extend(drains.map(ResourceExt::name_any));
        if now.iter().all(|pod| pod.name_any() != *gone) {
            break;
        }
        simulated.advance().await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    rest(&stage, &mut simulated, None).await;
    let after: BTreeSet<String> = pods().await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(after.len(), 2);
    assert!(
        after.contains(stays) && !after.contains(gone),
        "{before:?} {after:?}"
    );
    assert_eq!(most, 3, "its successor came first");
    assert_eq!(
        drained,
        BTreeSet::from([gone.clone()]),
        "and it was drained"
    );
}

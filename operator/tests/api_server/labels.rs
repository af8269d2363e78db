//! Labels of objects that somebody removes by hand: what only an object holds is neither made again nor lost.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_operator::names::{INSTANCE_LABEL, MANAGED_BY_LABEL};
use signal_operator::reconcile::reconcile;

use crate::Stage;
use crate::killed::{FIRST, TestOperator};
use crate::simulated_pods::{SimulatedPods, edge};

/// Objects by what only they hold: keys, the token of pods, the record of stages, the pods.
async fn held(stage: &Stage) -> Value {
    let secret = async |name: &str| stage.api::<Secret>().get(name).await.unwrap().data;
    let live = stage.api::<ConfigMap>().get("edge-live").await.unwrap();
    let deployment = stage.api::<Deployment>().get("edge").await.unwrap();
    json!([
        secret("edge-signing-keys").await,
        secret("edge-credentials").await,
        live.data,
        deployment.metadata.uid,
        deployment.metadata.generation,
    ])
}

/// Names of everything that is listed.
async fn listed(stage: &Stage) -> Vec<String> {
    let labels = format!("{MANAGED_BY_LABEL}=signal-operator,{INSTANCE_LABEL}=edge");
    let params = ListParams::default().labels(&labels);
    let mut all = Vec::new();
    macro_rules! add {
        ($($kind:ty),*) => {$(
            for object in stage.api::<$kind>().list(&params).await.unwrap().items {
                all.push(object.name_any());
            }
        )*};
    }
    add!(Deployment, ConfigMap, Secret);
    all
}

async fn strip(stage: &Stage) {
    let patch =
        json!({"metadata": {"labels": {MANAGED_BY_LABEL: null, INSTANCE_LABEL: "another"}}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    macro_rules! strip {
        ($($kind:ty),*) => {$(
            for object in stage.api::<$kind>().list(&ListParams::default()).await.unwrap().items {
                if object.name_any().starts_with("edge") {
                    let name = object.name_any();
                    stage.api::<$kind>().patch(&name, &params, &patch).await.unwrap();
                }
            }
        )*};
    }
    strip!(Deployment, ConfigMap, Secret);
}

#[tokio::test]
async fn an_object_whose_labels_are_removed_keeps_what_only_it_holds() {
    let Some(stage) =
        Stage::new("an_object_whose_labels_are_removed_keeps_what_only_it_holds").await
    else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    let mut cluster = edge(2, FIRST);
    cluster["spec"]["jwks"]["managed"] =
        json!({"issuer": "https://own.example/", "audiences": ["signal"], "subjectPrefix": "own:"});
    let api = stage.api::<SignalCluster>();
    let params = PatchParams::apply("test").force();
    api.patch("edge", &params, &Patch::Apply(&cluster))
        .await
        .unwrap();
    let look = async |operator: &TestOperator| {
        let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
        reconcile(&operator.context, &cluster).await.unwrap();
        cluster.status.unwrap_or_default()
    };
    let operator = TestOperator::begin(&stage, None).await;
    for _ in 0..8 {
        simulated.advance().await;
        // A pod that was written in the meantime is looked at again.
        let cluster = api.get("edge").await.unwrap();
        let _ = reconcile(&operator.context, &cluster).await;
    }
    let (before, names) = (held(&stage).await, listed(&stage).await);
    assert_eq!(names.len(), 5, "{names:?}");
    strip(&stage).await;
    assert!(listed(&stage).await.is_empty());
    // One that knows nothing of it.
    let operator = TestOperator::begin(&stage, None).await;
    look(&operator).await;
    assert_eq!(held(&stage).await, before);
    assert_eq!(listed(&stage).await, names);
    let status = look(&operator).await;
    assert_eq!(status.replicas, 2);
    let mut conditions = status.conditions.iter();
    let keys = conditions.find(|one| one.type_ == "SigningKeysIntact");
    assert_eq!(keys.unwrap().status, "True");
}

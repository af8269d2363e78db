//! An installation for one namespace has a Role there and nothing else.

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use signal_crds::SignalCluster;

use crate::leadership::{Operator, SLACK};
use crate::{Stage, touch, until};

/// What the operator needs in each namespace that it looks after; the chart grants the same.
fn rules() -> Value {
    let full = ["get", "list", "watch", "create", "patch", "delete"];
    json!([
        {"apiGroups": ["signal.dev"], "resources": ["signalclusters"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["signal.dev"], "resources": ["signalclusters/status", "signalclusters/scale"], "verbs": ["get", "patch", "update"]},
        {"apiGroups": [""], "resources": ["configmaps", "secrets", "serviceaccounts", "services"], "verbs": full},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": full},
        {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["list"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": full},
        {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": full},
        {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": full},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": full},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
    ])
}

/// Wants an Ingress of `edge`, for which these rules give no right.
async fn expose(stage: &Stage) {
    let exposed = json!({"spec": {"exposure": {"ingress": {"host": "rt.example"}}}});
    stage
        .api::<SignalCluster>()
        .patch("edge", &PatchParams::default(), &Patch::Merge(exposed))
        .await
        .unwrap();
}

async fn says_what_is_forbidden(stage: &Stage) -> bool {
    let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
    let conditions = cluster.status.map(|status| status.conditions);
    let lacks =
        "spec.exposure.ingress: the operator has no right to list ingresses.networking.k8s.io";
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "Exposed"
            && condition.reason == "KindForbidden"
            && condition.message.contains(lacks)
    })
}

#[tokio::test]
async fn a_role_in_its_own_namespace_is_all_it_needs_and_a_kind_it_may_not_use_is_left_alone() {
    let Some(stage) = Stage::new(
        "a_role_in_its_own_namespace_is_all_it_needs_and_a_kind_it_may_not_use_is_left_alone",
    )
    .await
    else {
        return;
    };
    let params = PostParams::default();
    let account: ServiceAccount =
        serde_json::from_value(json!({"metadata": {"name": "operator"}})).unwrap();
    stage
        .api::<ServiceAccount>()
        .create(&params, &account)
        .await
        .unwrap();
    let role: Role =
        serde_json::from_value(json!({"metadata": {"name": "operator"}, "rules": rules()}))
            .unwrap();
    stage.api::<Role>().create(&params, &role).await.unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": stage.namespace}],
    }))
    .unwrap();
    stage
        .api::<RoleBinding>()
        .create(&params, &binding)
        .await
        .unwrap();
    let request: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": []}})).unwrap();
    let token = stage
        .api::<ServiceAccount>()
        .create_token_request("operator", &params, &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token;

    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    let admin = kube::config::Kubeconfig::read_from(stage.server.cluster.kubeconfig()).unwrap();
    let mut own = serde_json::to_value(&admin).unwrap();
    for user in own["users"].as_array_mut().unwrap() {
        user["user"] = json!({"token": token});
    }
    std::fs::write(&kubeconfig, own.to_string()).unwrap();

    stage.cluster("edge").await;
    expose(&stage).await;
    let operator = Operator::start(&kubeconfig, &stage.namespace, "one");
    until("it leads", SLACK, async || operator.leads().await).await;
    let looked = async || {
        operator
            .metric("signal_operator_reconciles_total{outcome=\"ok\"} ")
            .await
            >= Some(1.0)
    };
    until("it looks at the SignalCluster", SLACK, looked).await;
    let told = async || says_what_is_forbidden(&stage).await;
    until("it says what it may not use", SLACK, told).await;
    // Whatever it may not watch has failed once this watch, which began with the others, reports something.
    until("it watches the Secret", SLACK, async || {
        touch::<Secret>(&stage, "authority").await;
        operator
            .metric("signal_operator_triggers_total{source=\"named\"} ")
            .await
            >= Some(1.0)
    })
    .await;
    assert_eq!(
        operator.metric("signal_operator_watch_errors_total ").await,
        Some(0.0)
    );
    assert_eq!(
        operator
            .metric("signal_operator_reconciles_total{outcome=\"denied\"} ")
            .await,
        None
    );
}

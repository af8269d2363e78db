//! The fields of Services on a real API server: it takes each, none is written twice, and what is unset is removed.

use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use signal_crds::SignalCluster;

use k8s_openapi::api::core::v1::{Secret, Service};

use crate::apply::Harness;
use crate::examples::round;
use crate::{Stage, authority, small};

/// Applies a spec with these Services, as its only owner.
async fn set(stage: &Stage, service: Value, admin: Value) -> Result<SignalCluster, kube::Error> {
    let mut spec = small();
    spec["service"] = service;
    spec["adminService"] = admin;
    let object = json!({"apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster", "metadata": {"name": "edge"}, "spec": spec});
    let params = PatchParams::apply("test").force();
    let clusters = stage.api::<SignalCluster>();
    clusters
        .patch("edge", &params, &Patch::Apply(&object))
        .await
}

/// The Service after a round, which the next one leaves as it is.
async fn made(stage: &Stage, cluster: &SignalCluster, name: &str) -> Value {
    let harness = Harness::of(stage).await;
    round(&harness, cluster).await;
    let again = round(&harness, cluster).await;
    let written = again.objects.iter().filter(|object| object.written);
    let written: Vec<String> = written.map(|it| it.object.name_any()).collect();
    assert_eq!(written, [""; 0], "written twice");
    let service = stage.api::<Service>().get(name).await.unwrap();
    serde_json::to_value(service).unwrap()
}

#[tokio::test]
async fn each_field_of_a_service_is_taken_and_what_is_unset_is_removed() {
    let Some(stage) =
        Stage::new("each_field_of_a_service_is_taken_and_what_is_unset_is_removed").await
    else {
        return;
    };
    let ca = authority(&stage.server.cluster.kubeconfig());
    let secret = json!({"metadata": {"name": "authority"}, "stringData": {"ca.crt": ca}});
    stage
        .api::<Secret>()
        .create(
            &PostParams::default(),
            &serde_json::from_value(secret).unwrap(),
        )
        .await
        .unwrap();
    let whole = json!({
        "type": "LoadBalancer", "port": 443, "labels": {"team": "realtime"}, "annotations": {"example.com/lb": "nlb"},
        "appProtocol": "kubernetes.io/ws", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "trafficDistribution": "PreferClose", "loadBalancerClass": "example.com/lb",
        "loadBalancerSourceRanges": ["192.0.2.0/24"], "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
    });
    let admin = json!({"labels": {"scrape": "yes"}, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]});
    let cluster = set(&stage, whole.clone(), admin).await.unwrap();
    let service = made(&stage, &cluster, "edge").await;
    let spec = &service["spec"];
    for field in [
        "type",
        "externalTrafficPolicy",
        "internalTrafficPolicy",
        "trafficDistribution",
        "loadBalancerClass",
        "loadBalancerSourceRanges",
        "ipFamilyPolicy",
        "ipFamilies",
    ] {
        assert_eq!(spec[field], whole[field], "{field}");
    }
    assert_eq!(spec["ports"][0]["appProtocol"], "kubernetes.io/ws");
    assert_eq!(service["metadata"]["labels"]["team"], "realtime");
    assert_eq!(service["metadata"]["annotations"]["example.com/lb"], "nlb");

    let mut other = whole.clone();
    other["loadBalancerClass"] = json!("example.com/other");
    let refused = set(&stage, other, Value::Null).await.unwrap_err();
    let said = "loadBalancerClass cannot change while type is LoadBalancer: set another type first";
    assert!(refused.to_string().contains(said), "{refused}");

    // The class goes with the type alone.
    let bare = json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/lb"});
    let cluster = set(&stage, bare, Value::Null).await.unwrap();
    let service = made(&stage, &cluster, "edge").await;
    let spec = &service["spec"];
    assert_eq!(
        spec["externalTrafficPolicy"], "Cluster",
        "Kubernetes' default"
    );
    assert_eq!(spec["internalTrafficPolicy"], "Cluster");
    for field in [
        "trafficDistribution",
        "loadBalancerSourceRanges",
        "healthCheckNodePort",
    ] {
        assert!(spec[field].is_null(), "{field} is {}", spec[field]);
    }
    assert_eq!(spec["ports"][0]["appProtocol"], "http");
    assert_eq!(spec["ports"][0]["port"], 8080);
    assert!(service["metadata"]["labels"]["team"].is_null());
    assert!(service["metadata"]["annotations"]["example.com/lb"].is_null());
    let admin = stage.api::<Service>().get("edge-admin").await.unwrap();
    assert!(!admin.labels().contains_key("scrape"));

    let cluster = set(&stage, json!({}), Value::Null).await.unwrap();
    let service = made(&stage, &cluster, "edge").await;
    let spec = &service["spec"];
    assert_eq!(spec["type"], "ClusterIP");
    for field in ["externalTrafficPolicy", "loadBalancerClass"] {
        assert!(spec[field].is_null(), "{field} is {}", spec[field]);
    }
    assert!(spec["ports"][0]["nodePort"].is_null());
}

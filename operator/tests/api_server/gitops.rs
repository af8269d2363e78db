//! What Argo CD and Flux see: no difference between a manifest and the object in the cluster, and no success before an operator has looked at it.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{CustomResourceExt as _, ResourceExt as _};
use serde::Deserialize as _;
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_operator::reconcile::reconcile;

use crate::killed::TestOperator;
use crate::kstatus::{Kstatus, compute};
use crate::{Stage, authority};

/// The path of the first difference that a comparison at the client finds, as Argo CD makes it for kinds that it does not know (`argoproj/gitops-engine`,
/// `pkg/diff`, `ThreeWayDiff`): a JSON merge patch from the live object to the manifest. What only the live object has is no difference, and a list is
/// compared as a whole.
fn drift(manifest: &Value, live: &Value, path: &str) -> Option<String> {
    match (manifest, live) {
        (Value::Object(manifest), Value::Object(live)) => {
            manifest.iter().find_map(|(member, wanted)| {
                let path = format!("{path}.{member}");
                match live.get(member) {
                    Some(live) => drift(wanted, live, &path),
                    None => Some(path),
                }
            })
        }
        (manifest, live) => (manifest != live).then(|| format!("{path}: {manifest} is {live}")),
    }
}

/// Has every list of the spec, and in them only what must be written.
fn lists() -> Value {
    let secret = json!({"name": "s", "key": "k"});
    json!({
        "apiVersion": "signal.dev/v1alpha1",
        "kind": "SignalCluster",
        "metadata": {"name": "lists"},
        "spec": {
            "image": {"repository": "signal-gateway", "tag": "1", "pullSecrets": ["one"]},
            "gateway": {
                "allowedOrigins": ["https://a.example.com"], "trustedProxies": ["10.0.0.0/8"], "proxyProtocolFrom": ["10.0.0.0/8"],
                "streamPaths": ["/stream"], "subprotocols": ["*"],
            },
            "redis": {"mode": "Cluster", "nodes": ["a:1", "b:1"]},
            "kafka": {
                "brokers": ["kafka:9092"], "topics": ["one"],
                "registry": {"url": "https://r.example.com", "topics": ["one"]},
            },
            "database": {"urlSecretRef": secret},
            "jwks": {
                "sources": [
                    {"name": "plain", "url": "https://i.example.com/certs", "issuer": "https://i.example.com/", "audiences": ["a"]},
                    {"name": "ignis", "url": "https://j.example.com/certs", "preset": "Ignis", "subjectPrefix": "j:"},
                ],
                "managed": {"issuer": "own", "audiences": ["a"], "subjectPrefix": "own:"},
                "rotation": {"emergencySources": ["gone"]},
            },
            "policy": {"alwaysAllowRoles": ["super-admin"]},
            "autoscaling": {
                "mode": "HPA", "maxReplicas": 3,
                "extraMetrics": [{"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 70}}}],
                "behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}},
            },
            "exposure": {"httpRoute": {"parentRefs": [{"name": "shared"}], "hostnames": ["a.example.com"]}},
            "networkPolicy": {"publicFrom": [{"podSelector": {}}], "adminFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]},
            "podTemplate": {"spec": {"containers": [{"name": "gateway", "resources": {"requests": {"cpu": 1}}, "ports": [{"containerPort": 7}]}]}},
        },
    })
}

/// The SignalClusters of the files that people start from.
fn manifests() -> Vec<Value> {
    let files = [
        include_str!("../../golden/minimal.yaml"),
        include_str!("../../golden/production.yaml"),
        include_str!("../../golden/development.yaml"),
        include_str!("../../../charts/examples/minimal.yaml"),
        include_str!("../../../charts/examples/production.yaml"),
        include_str!("../../../charts/examples/development.yaml"),
    ];
    let documents = files.into_iter().flat_map(|file| {
        let documents = serde_yaml_ng::Deserializer::from_str(file);
        documents.map(|document| Value::deserialize(document).unwrap())
    });
    let clusters = documents.filter(|document| document["kind"] == "SignalCluster");
    clusters.chain([lists()]).collect()
}

#[tokio::test]
async fn what_is_applied_does_not_differ_from_what_is_in_the_cluster() {
    let Some(stage) =
        Stage::new("what_is_applied_does_not_differ_from_what_is_in_the_cluster").await
    else {
        return;
    };
    let kind = ApiResource::erase::<SignalCluster>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(stage.client.clone(), &stage.namespace, &kind);
    for (at, mut manifest) in manifests().into_iter().enumerate() {
        // Two of them have the same name.
        let name = format!("c{at}");
        manifest["metadata"] = json!({"name": name});
        let live = api
            .create(
                &PostParams::default(),
                &serde_json::from_value(manifest.clone()).unwrap(),
            )
            .await
            .unwrap();
        let live = serde_json::to_value(live).unwrap();
        assert_eq!(drift(&manifest, &live, ""), None, "{name}");
        // Flux compares what a server-side apply would make.
        let flux = PatchParams::apply("flux").force();
        let applied = api.patch(&name, &flux, &Patch::Apply(&manifest)).await;
        let applied = applied.unwrap();
        let dry = api
            .patch(&name, &flux.dry_run(), &Patch::Apply(&manifest))
            .await
            .unwrap();
        assert_eq!(dry.data["spec"], live["spec"], "{name}");
        assert_eq!(applied.metadata.generation, Some(1), "{name}");
    }
    let manifest = serde_json::to_value(SignalCluster::crd()).unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(stage.client.clone());
    let live = definitions.get("signalclusters.signal.dev").await.unwrap();
    let live = serde_json::to_value(live).unwrap();
    assert_eq!(drift(&manifest["spec"], &live["spec"], ""), None);
}

#[tokio::test]
async fn kstatus_waits_for_an_operator_to_look_at_a_new_object_and_at_each_change() {
    let Some(stage) =
        Stage::new("kstatus_waits_for_an_operator_to_look_at_a_new_object_and_at_each_change")
            .await
    else {
        return;
    };
    let created = stage.cluster("edge").await;
    let get = async || {
        let object = stage.api::<SignalCluster>().get("edge").await.unwrap();
        (compute(&serde_json::to_value(&object).unwrap()), object)
    };
    let (unseen, object) = get().await;
    assert_eq!(unseen, Kstatus::InProgress);
    let status = object.status.unwrap();
    assert_eq!(status.observed_generation, Some(-1));
    let ready = &status.conditions[0];
    assert_eq!(
        (&*ready.type_, &*ready.status, &*ready.reason),
        ("Ready", "Unknown", "Unseen")
    );

    // Its Secret does not exist, which somebody may be about to change.
    let operator = TestOperator::begin(&stage, None).await;
    reconcile(&operator.context, &created).await.unwrap();
    let (waits, object) = get().await;
    assert_eq!(waits, Kstatus::InProgress);
    let conditions = object.status.unwrap().conditions;
    let said = |kind: &str| {
        let found = conditions.iter().find(|one| one.type_ == kind);
        found.map(|one| (one.status.clone(), one.reason.clone()))
    };
    let expected = ("True".to_owned(), "SecretMissing".to_owned());
    assert_eq!(said("Reconciling"), Some(expected));
    assert_eq!(said("Stalled"), None);
    let ready = conditions.iter().find(|one| one.type_ == "Ready").unwrap();
    assert!(
        ready.last_transition_time.0.as_second() > 1_700_000_000,
        "the definition's time is no transition"
    );

    // A spec that cannot be carried out fails, and is in progress again once it is changed. Pods are judged once all that they need is there.
    let authority = authority(&stage.server.cluster.kubeconfig());
    let secret = json!({"metadata": {"name": "authority"}, "stringData": {"ca.crt": authority}});
    let secret = serde_json::from_value(secret).unwrap();
    let api = stage.api::<Secret>();
    api.create(&PostParams::default(), &secret).await.unwrap();
    let set = async |host_network: Value| {
        let patch = json!({"spec": {"podTemplate": {"spec": {"hostNetwork": host_network}}}});
        let api = stage.api::<SignalCluster>();
        let patched = api
            .patch("edge", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        assert_eq!(get().await.0, Kstatus::InProgress, "not seen yet");
        reconcile(&operator.context, &patched).await.unwrap();
        get().await.0
    };
    assert_eq!(set(json!(true)).await, Kstatus::Failed);
    assert_eq!(set(Value::Null).await, Kstatus::InProgress);
    assert_eq!(get().await.1.name_any(), "edge");
}

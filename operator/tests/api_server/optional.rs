//! Optional kinds: objects are created once the API server knows the kind, and a kind that is removed blocks nothing.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use signal_crds::SignalCluster;

use crate::leadership::Operator;
use crate::{Server, define, make_authority, skip, small, until};

/// The operator looks for kinds twice a minute.
const LIMIT: Duration = Duration::from_secs(120);

const ROUTE: (&str, &str, &str) = ("gateway.networking.k8s.io", "HTTPRoute", "httproutes");
const MONITOR: (&str, &str, &str) = ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors");
const RULE: (&str, &str, &str) = ("monitoring.coreos.com", "PrometheusRule", "prometheusrules");

/// Teaches the API server a kind: whatever is in its objects is kept.
async fn teach(client: &Client, (group, kind, plural): (&str, &str, &str)) {
    let crd = json!({
        "metadata": {"name": format!("{plural}.{group}"), "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    });
    let crd: CustomResourceDefinition = serde_json::from_value(crd).unwrap();
    Api::all(client.clone())
        .create(&PostParams::default(), &crd)
        .await
        .unwrap();
}

fn objects(client: &Client, (group, kind, _): (&str, &str, &str)) -> Api<DynamicObject> {
    Api::default_namespaced_with(
        client.clone(),
        &ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind)),
    )
}

/// The object of a kind that belongs to the SignalCluster.
async fn made(client: &Client, kind: (&str, &str, &str)) -> Option<Value> {
    let object = objects(client, kind).get_opt("edge").await.ok().flatten()?;
    assert_eq!(object.owner_references()[0].kind, "SignalCluster");
    Some(object.data)
}

#[tokio::test]
async fn a_kind_that_comes_later_is_used_and_one_that_goes_is_not_waited_for() {
    let server = match Server::start() {
        Ok(server) => server,
        Err(reason) => {
            return skip(
                "a_kind_that_comes_later_is_used_and_one_that_goes_is_not_waited_for",
                &reason,
            );
        }
    };
    let client = server.client().await;
    define(&client).await;
    make_authority(&client, &server.cluster.kubeconfig()).await;
    let operator = Operator::start(&server.cluster.kubeconfig(), "default", "one");
    until("it leads", LIMIT, async || operator.leads().await).await;

    let clusters: Api<SignalCluster> = Api::default_namespaced(client.clone());
    let mut spec = small();
    spec["exposure"] = json!({"ingress": {"host": "rt.example"}, "httpRoute": {"parentRefs": [{"name": "public"}], "hostnames": ["rt.example"]}});
    spec["observability"] =
        json!({"serviceMonitor": {"labels": {"release": "prometheus"}}, "prometheusRule": {}});
    let object = json!({"apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster", "metadata": {"name": "edge"}, "spec": spec});
    clusters
        .patch("edge", &PatchParams::apply("test"), &Patch::Apply(&object))
        .await
        .unwrap();
    // The API server has this one from the start.
    let ingresses: Api<Ingress> = Api::default_namespaced(client.clone());
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    until("what is possible without the others", LIMIT, async || {
        ingresses.get_opt("edge").await.unwrap().is_some()
            && deployments.get_opt("edge").await.unwrap().is_some()
    })
    .await;
    let ingress = ingresses.get("edge").await.unwrap().spec.unwrap();
    assert_eq!(
        ingress.rules.unwrap()[0].host.as_deref(),
        Some("rt.example")
    );

    for kind in [ROUTE, MONITOR, RULE] {
        teach(&client, kind).await;
    }
    for kind in [ROUTE, MONITOR, RULE] {
        until(&format!("{} is made", kind.1), LIMIT, async || {
            made(&client, kind).await.is_some()
        })
        .await;
    }
    let route = made(&client, ROUTE).await.unwrap();
    assert_eq!(route["spec"]["parentRefs"][0]["name"], "public");
    assert_eq!(route["spec"]["rules"][0]["backendRefs"][0]["name"], "edge");
    let monitor = objects(&client, MONITOR).get("edge").await.unwrap();
    assert_eq!(monitor.labels()["release"], "prometheus");
    assert!(
        !made(&client, RULE).await.unwrap()["spec"]["groups"][0]["rules"]
            .as_array()
            .unwrap()
            .is_empty()
    );

    let without = json!({"spec": {"exposure": {"httpRoute": null}, "observability": {"serviceMonitor": null}}});
    clusters
        .patch("edge", &PatchParams::default(), &Patch::Merge(&without))
        .await
        .unwrap();
    for kind in [ROUTE, MONITOR] {
        until(&format!("{} is taken away", kind.1), LIMIT, async || {
            made(&client, kind).await.is_none()
        })
        .await;
    }
    assert!(made(&client, RULE).await.is_some());

    a_kind_that_goes_blocks_nothing(&client, &clusters, &deployments).await;
}

async fn a_kind_that_goes_blocks_nothing(
    client: &Client,
    clusters: &Api<SignalCluster>,
    deployments: &Api<Deployment>,
) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    crds.delete(&format!("{}.{}", RULE.2, RULE.0), &DeleteParams::default())
        .await
        .unwrap();
    let changed = json!({"spec": {"image": {"tag": "2"}}});
    clusters
        .patch("edge", &PatchParams::default(), &Patch::Merge(&changed))
        .await
        .unwrap();
    until("the rest goes on", LIMIT, async || {
        let template = deployments
            .get("edge")
            .await
            .unwrap()
            .spec
            .unwrap()
            .template;
        template.spec.unwrap().containers[0].image.as_deref() == Some("example/signal-gateway:2")
    })
    .await;
}

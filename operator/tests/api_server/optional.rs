//! Optional kinds: objects are created once the API server knows the kind, and a kind that is removed blocks nothing.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::events::v1::Event;
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
const GATEWAY: (&str, &str, &str) = ("gateway.networking.k8s.io", "Gateway", "gateways");
const MONITOR: (&str, &str, &str) = ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors");
const RULE: (&str, &str, &str) = ("monitoring.coreos.com", "PrometheusRule", "prometheusrules");

/// Teaches the API server a kind: whatever is in its objects is kept.
async fn teach(client: &Client, (group, kind, plural): (&str, &str, &str)) {
    let crd = json!({
        "metadata": {"name": format!("{plural}.{group}"), "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
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

/// State, reason and message of a condition of `edge`, and its URLs from outside.
async fn said(clusters: &Api<SignalCluster>, kind: &str) -> (String, String, String, Vec<String>) {
    let cluster = clusters.get("edge").await.unwrap();
    let generation = cluster.metadata.generation;
    let status = cluster.status.unwrap_or_default();
    let condition = status
        .conditions
        .into_iter()
        .find(|condition| condition.type_ == kind && condition.observed_generation == generation);
    let urls = status.endpoints.unwrap_or_default().all_public;
    match condition {
        Some(it) => (it.status, it.reason, it.message, urls),
        None => Default::default(),
    }
}

async fn until_said(
    clusters: &Api<SignalCluster>,
    kind: &str,
    reason: &str,
    parts: &[&str],
    urls: &[&str],
) {
    let what = format!("{kind} has reason {reason}, {parts:?} and {urls:?}");
    until(&what, LIMIT, async || {
        let (_, found, message, shown) = said(clusters, kind).await;
        found == reason && shown == urls && parts.iter().all(|part| message.contains(part))
    })
    .await;
}

/// A controller of Gateways and Ingresses, as far as statuses show it.
async fn answer(client: &Client, accepted: &str) {
    let routes = objects(client, ROUTE);
    let generation = routes.get("edge").await.unwrap().metadata.generation;
    let says = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "NotAllowedByListeners", "message": "namespace default is not allowed",
        "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let parent = json!({"parentRef": {"name": "public"}, "controllerName": "example.com/gateway",
        "conditions": [says("Accepted", accepted), says("ResolvedRefs", "True")]});
    let status = json!({"status": {"parents": [parent]}});
    routes
        .patch_status("edge", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}

/// What a route, an Ingress and a load balancer serve is shown once they serve it, and what they lack is told meanwhile.
async fn ways_in_are_shown_once_they_serve(client: &Client, clusters: &Api<SignalCluster>) {
    let silent = [
        "HTTPRoute edge: no controller has answered for Gateway default/public",
        "Ingress edge has no address yet",
    ];
    until_said(clusters, "Exposed", "Pending", &silent, &[]).await;
    answer(client, "False").await;
    let refused = "HTTPRoute edge: Gateway default/public: NotAllowedByListeners: namespace default is not allowed";
    until_said(clusters, "Exposed", "RouteNotAccepted", &[refused], &[]).await;
    answer(client, "True").await;
    let route = "wss://route.example/stream";
    let last = ["Ingress edge has no address yet"];
    until_said(clusters, "Exposed", "AddressNotAssigned", &last, &[route]).await;

    let address = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}}});
    Api::<Ingress>::default_namespaced(client.clone())
        .patch_status("edge", &PatchParams::default(), &Patch::Merge(&address))
        .await
        .unwrap();
    let both = [route, "ws://rt.example/stream"];
    until_said(clusters, "Exposed", "Applied", &[], &both).await;

    // The parent has accepted another generation of the route than the one that is wanted now.
    let change = json!({"spec": {
        "exposure": {"httpRoute": {"hostnames": ["other.example"]}},
        "service": {"type": "LoadBalancer"},
    }});
    clusters
        .patch("edge", &PatchParams::default(), &Patch::Merge(&change))
        .await
        .unwrap();
    let silent = [
        "no controller has answered",
        "Service edge has no address of a load balancer",
    ];
    until_said(clusters, "Exposed", "Pending", &silent, &both[1..]).await;
    answer(client, "True").await;
    let addresses = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"ip": "2001:db8::7"}]}}});
    Api::<Service>::default_namespaced(client.clone())
        .patch_status("edge", &PatchParams::default(), &Patch::Merge(&addresses))
        .await
        .unwrap();
    let all = [
        "wss://other.example/stream",
        "ws://rt.example/stream",
        "ws://203.0.113.7:8080/stream",
        "ws://[2001:db8::7]:8080/stream",
    ];
    until_said(clusters, "Exposed", "Applied", &[], &all).await;
    a_route_loses_what_is_unset(client, clusters).await;
    let events: Api<Event> = Api::default_namespaced(client.clone());
    let warned = async || {
        let all = events.list(&Default::default()).await.unwrap().items;
        let is = |event: &Event, reason: &str| {
            event.reason.as_deref() == Some(reason) && event.type_.as_deref() == Some("Warning")
        };
        ["KindMissing", "RouteNotAccepted"]
            .iter()
            .all(|reason| all.iter().any(|event| is(event, reason)))
    };
    until("both are Warnings", LIMIT, warned).await;
}

/// Filters, timeouts and the redirect come and go with their fields, and the redirect has to be accepted as well.
async fn a_route_loses_what_is_unset(client: &Client, clusters: &Api<SignalCluster>) {
    let routes = objects(client, ROUTE);
    let merge = async |route: Value| {
        let change = json!({"spec": {"exposure": {"httpRoute": route}}});
        clusters
            .patch("edge", &PatchParams::default(), &Patch::Merge(&change))
            .await
            .unwrap();
    };
    merge(json!({
        "timeouts": {"request": "0s"},
        "requestHeaders": {"remove": ["X-Debug"]},
        "annotations": {"example.com/a": "b"},
        "redirect": {"parentRefs": [{"name": "public", "sectionName": "http"}]},
    }))
    .await;
    let silent = [
        "HTTPRoute edge-redirect: no controller has answered for Gateway default/public, listener http",
    ];
    until_said(
        clusters,
        "Exposed",
        "Pending",
        &silent,
        &[
            "ws://rt.example/stream",
            "ws://203.0.113.7:8080/stream",
            "ws://[2001:db8::7]:8080/stream",
        ],
    )
    .await;
    let rule = async || routes.get("edge").await.unwrap().data["spec"]["rules"][0].clone();
    assert_eq!(rule().await["timeouts"], json!({"request": "0s"}));
    merge(json!({"timeouts": null, "requestHeaders": null, "annotations": null, "redirect": null}))
        .await;
    until("the redirect is taken away", LIMIT, async || {
        routes.get_opt("edge-redirect").await.unwrap().is_none()
    })
    .await;
    let rule = rule().await;
    assert!(
        rule["timeouts"].is_null() && rule["filters"].is_null(),
        "{rule}"
    );
    let route = routes.get("edge").await.unwrap();
    assert!(!route.annotations().contains_key("example.com/a"));
    has_a_gateway_in_the_clear(client).await;
    answer(client, "True").await;
    until_said(
        clusters,
        "Exposed",
        "Applied",
        &[],
        &[
            "ws://other.example/stream",
            "ws://rt.example/stream",
            "ws://203.0.113.7:8080/stream",
            "ws://[2001:db8::7]:8080/stream",
        ],
    )
    .await;
}

/// The parent of the route, whose listener speaks no TLS.
async fn has_a_gateway_in_the_clear(client: &Client) {
    teach(client, GATEWAY).await;
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "public"},
        "spec": {"listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
    });
    let gateway: DynamicObject = serde_json::from_value(gateway).unwrap();
    until("there is a Gateway", LIMIT, async || {
        let api = objects(client, GATEWAY);
        api.create(&PostParams::default(), &gateway).await.is_ok()
    })
    .await;
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
    spec["exposure"] = json!({"ingress": {"host": "rt.example"}, "httpRoute": {"parentRefs": [{"name": "public"}], "hostnames": ["route.example"]}});
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

    let missing = ["the API server does not know gateway.networking.k8s.io/v1 HTTPRoute"];
    until_said(&clusters, "Exposed", "KindMissing", &missing, &[]).await;
    let missing = [
        "monitoring.coreos.com/v1 ServiceMonitor",
        "v1 PrometheusRule",
    ];
    until_said(&clusters, "Monitored", "KindMissing", &missing, &[]).await;

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

    until_said(&clusters, "Monitored", "Applied", &[], &[]).await;
    ways_in_are_shown_once_they_serve(&client, &clusters).await;

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

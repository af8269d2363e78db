//! How the public Service is reached from outside: an Ingress, an HTTPRoute.

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule,
    IngressServiceBackend, IngressSpec, IngressTLS, ServiceBackendPort,
};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use signal_crds::exposure::HeaderChanges;
use signal_crds::pod::{HttpRoute, ParentRef};

use crate::names::{Children, PUBLIC_PORT};
use crate::observe::observed::Kinds;
use crate::observe::resources::{HTTP_ROUTE, INGRESS};
use crate::plan::validate::ValidCluster;

/// An Ingress to the public Service, if the cluster has that kind.
pub(super) fn ingress(
    cluster: &ValidCluster,
    children: &Children,
    kinds: Kinds,
) -> Option<Ingress> {
    let ingress = cluster
        .spec
        .exposure
        .ingress
        .as_ref()
        .filter(|_| kinds.has(INGRESS))?;
    let service = IngressServiceBackend {
        name: children.name.clone(),
        port: Some(ServiceBackendPort {
            name: Some(PUBLIC_PORT.into()),
            ..ServiceBackendPort::default()
        }),
    };
    let path = HTTPIngressPath {
        path: Some("/".into()),
        path_type: "Prefix".into(),
        backend: IngressBackend {
            service: Some(service),
            ..IngressBackend::default()
        },
    };
    let mut metadata = super::meta(cluster, &children.name);
    metadata.annotations = (!ingress.annotations.is_empty()).then(|| ingress.annotations.clone());
    Some(Ingress {
        metadata,
        spec: Some(IngressSpec {
            ingress_class_name: ingress.class_name.clone(),
            rules: Some(vec![IngressRule {
                host: Some(ingress.host.clone()),
                http: Some(HTTPIngressRuleValue { paths: vec![path] }),
            }]),
            tls: ingress.tls_secret_name.as_ref().map(|secret| {
                vec![IngressTLS {
                    hosts: Some(vec![ingress.host.clone()]),
                    secret_name: Some(secret.clone()),
                }]
            }),
            ..IngressSpec::default()
        }),
        ..Ingress::default()
    })
}

/// An HTTPRoute to the public Service, if the cluster has that kind.
pub(super) fn http_route(
    cluster: &ValidCluster,
    children: &Children,
    kinds: Kinds,
) -> Option<DynamicObject> {
    let route = wanted(cluster, kinds)?;
    let mut rule = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [{"name": children.name, "port": cluster.spec.service.port}],
    });
    let filters: Vec<Value> = [
        ("RequestHeaderModifier", &route.request_headers),
        ("ResponseHeaderModifier", &route.response_headers),
    ]
    .into_iter()
    .filter_map(|(kind, changes)| Some(header_filter(kind, changes.as_ref()?)))
    .collect();
    if !filters.is_empty() {
        rule["filters"] = json!(filters);
    }
    if let Some(timeouts) = route.timeouts {
        for (name, timeout) in [
            ("request", timeouts.request),
            ("backendRequest", timeouts.backend_request),
        ] {
            if let Some(timeout) = timeout {
                rule["timeouts"][name] = json!(timeout);
            }
        }
    }
    let mut object = route_object(cluster, &children.name, route, &route.parent_refs, rule);
    super::add(&mut object.metadata.annotations, &route.annotations);
    Some(object)
}

/// An HTTPRoute that redirects what comes to listeners without TLS.
pub(super) fn redirect_route(
    cluster: &ValidCluster,
    children: &Children,
    kinds: Kinds,
) -> Option<DynamicObject> {
    let route = wanted(cluster, kinds)?;
    let redirect = route.redirect.as_ref()?;
    let rule = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": {
            "scheme": "https",
            "port": redirect.port.unwrap_or(443),
            "statusCode": redirect.status_code,
        }}],
    });
    let name = &children.redirect_route;
    let mut object = route_object(cluster, name, route, &redirect.parent_refs, rule);
    super::add(&mut object.metadata.annotations, &route.annotations);
    Some(object)
}

fn wanted(cluster: &ValidCluster, kinds: Kinds) -> Option<&HttpRoute> {
    let route = cluster.spec.exposure.http_route.as_ref();
    route.filter(|_| kinds.has(HTTP_ROUTE))
}

fn route_object(
    cluster: &ValidCluster,
    name: &str,
    route: &HttpRoute,
    parents: &[ParentRef],
    rule: Value,
) -> DynamicObject {
    let mut spec = json!({"parentRefs": parents, "rules": [rule]});
    if !route.hostnames.is_empty() {
        spec["hostnames"] = json!(route.hostnames);
    }
    let api_version = HTTP_ROUTE.api_version();
    super::dynamic(cluster, name, &api_version, HTTP_ROUTE.kind, spec)
}

/// A filter of the Gateway API, whose member has the name of its type in camel case.
fn header_filter(kind: &str, changes: &HeaderChanges) -> Value {
    let member = format!("r{}", &kind[1..]);
    json!({"type": kind, member: changes})
}

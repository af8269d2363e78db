//! How the public Service is reached from outside: an Ingress, an HTTPRoute.

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule,
    IngressServiceBackend, IngressSpec, IngressTLS, ServiceBackendPort,
};
use kube::core::DynamicObject;
use serde_json::json;

use crate::names::{Children, PUBLIC_PORT};
use crate::observe::observed::Kinds;
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
        .filter(|_| kinds.ingress)?;
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
    let route = cluster
        .spec
        .exposure
        .http_route
        .as_ref()
        .filter(|_| kinds.http_route)?;
    let mut spec = json!({
        "parentRefs": route.parent_refs,
        "rules": [{
            "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
            "backendRefs": [{"name": children.name, "port": cluster.spec.service.port}],
        }],
    });
    if !route.hostnames.is_empty() {
        spec["hostnames"] = json!(route.hostnames);
    }
    Some(super::dynamic(
        cluster,
        &children.name,
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        spec,
    ))
}

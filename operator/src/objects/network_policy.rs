//! Which peers may reach the pods.
//!
//! Egress is open: Redis, Kafka, the database, issuers and collectors have names, and a NetworkPolicy has only addresses.
//! Probes of the kubelet need no rule: traffic from a pod's own node is always allowed.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::names::{ADMIN_PORT, Children, MANAGER, PUBLIC_PORT, selector};
use crate::plan::validate::ValidCluster;

/// `operator_namespace`: where the operator runs; `None` if it may run in any.
pub(super) fn network_policy(
    cluster: &ValidCluster,
    children: &Children,
    operator_namespace: Option<&str>,
) -> Option<NetworkPolicy> {
    let mut admin_from = vec![operator(operator_namespace)];
    admin_from.extend(cluster.admin_from.iter().cloned());
    cluster.spec.network_policy.enabled.then(|| NetworkPolicy {
        metadata: super::meta(cluster, &children.name),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(labelled(selector(&cluster.name))),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![
                rule(PUBLIC_PORT, cluster.public_from.clone()),
                rule(ADMIN_PORT, admin_from),
            ]),
            ..NetworkPolicySpec::default()
        }),
    })
}

/// No peers: all may connect. A port has its name, which each pod resolves by its own template: while the number changes, old pods stay reachable.
fn rule(port: &str, from: Vec<NetworkPolicyPeer>) -> NetworkPolicyIngressRule {
    let port = NetworkPolicyPort {
        protocol: Some("TCP".into()),
        port: Some(IntOrString::String(port.into())),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule {
        ports: Some(vec![port]),
        from: (!from.is_empty()).then_some(from),
    }
}

fn operator(namespace: Option<&str>) -> NetworkPolicyPeer {
    let name = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    NetworkPolicyPeer {
        namespace_selector: Some(
            namespace
                .map(|namespace| labelled(name("kubernetes.io/metadata.name", namespace)))
                .unwrap_or_default(),
        ),
        pod_selector: Some(labelled(name("app.kubernetes.io/name", MANAGER))),
        ..NetworkPolicyPeer::default()
    }
}

fn labelled(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        ..LabelSelector::default()
    }
}

//! The public Service, the headless Service of the admin port, and the pods' ServiceAccount.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use signal_crds::exposure::{IpFamily, IpFamilyPolicy, TrafficDistribution, TrafficPolicy};
use signal_crds::gateway::AddressFamilies;
use signal_crds::pod::ServiceType;

use crate::names::{ADMIN_PORT, Children, PUBLIC_PORT, selector};
use crate::plan::validate::ValidCluster;

/// `/stream` and REST, on ready pods only. A WebSocket starts as plain HTTP/1.1, and every proxy supports the protocols `http` and `https`.
pub(super) fn public(cluster: &ValidCluster, children: &Children) -> Service {
    let service = &cluster.spec.service;
    let kind = match service.kind {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let protocol = match (&service.app_protocol, &cluster.spec.gateway.tls) {
        (Some(protocol), _) => protocol,
        (None, Some(_)) => "https",
        (None, None) => "http",
    };
    let distribution = service
        .traffic_distribution
        .map(|preferred| match preferred {
            TrafficDistribution::PreferClose => "PreferClose",
            TrafficDistribution::PreferSameZone => "PreferSameZone",
            TrafficDistribution::PreferSameNode => "PreferSameNode",
        });
    let policy = |policy: Option<TrafficPolicy>| {
        policy.map(|policy| match policy {
            TrafficPolicy::Cluster => "Cluster".to_owned(),
            TrafficPolicy::Local => "Local".to_owned(),
        })
    };
    Service {
        metadata: meta(
            cluster,
            &children.name,
            &service.labels,
            &service.annotations,
        ),
        spec: Some(ServiceSpec {
            type_: Some(kind.into()),
            selector: Some(selector(&cluster.name)),
            ports: Some(vec![port(PUBLIC_PORT, service.port, protocol)]),
            external_traffic_policy: policy(service.external_traffic_policy),
            internal_traffic_policy: policy(service.internal_traffic_policy),
            traffic_distribution: distribution.map(Into::into),
            load_balancer_class: service.load_balancer_class.clone(),
            load_balancer_source_ranges: service.load_balancer_source_ranges.clone(),
            ip_family_policy: family_policy(cluster, service.ip_family_policy),
            ip_families: families(service.ip_families.as_deref()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The admin port of every pod, ready or not: headless, with a DNS name per pod for scrapers.
pub(super) fn admin(cluster: &ValidCluster, children: &Children) -> Service {
    let service = cluster.spec.admin_service.clone().unwrap_or_default();
    Service {
        metadata: meta(
            cluster,
            &children.admin_service,
            &service.labels,
            &service.annotations,
        ),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(&cluster.name)),
            ports: Some(vec![port(
                ADMIN_PORT,
                cluster.spec.gateway.admin_port,
                "http",
            )]),
            ip_family_policy: family_policy(cluster, service.ip_family_policy),
            ip_families: families(service.ip_families.as_deref()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Labels that the operator sets itself win.
fn meta(
    cluster: &ValidCluster,
    name: &str,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> ObjectMeta {
    let mut metadata = super::meta(cluster, name);
    super::add(&mut metadata.labels, labels);
    super::add(&mut metadata.annotations, annotations);
    metadata
}

/// `None` leaves the choice to the cluster.
fn family_policy(cluster: &ValidCluster, named: Option<IpFamilyPolicy>) -> Option<String> {
    let policy = match (named, cluster.spec.gateway.address_families) {
        (Some(IpFamilyPolicy::SingleStack), _) => "SingleStack",
        (Some(IpFamilyPolicy::RequireDualStack), _) => "RequireDualStack",
        (Some(IpFamilyPolicy::PreferDualStack), _) | (None, AddressFamilies::DualStack) => {
            "PreferDualStack"
        }
        (None, AddressFamilies::IPv4) => return None,
    };
    Some(policy.into())
}

fn families(named: Option<&[IpFamily]>) -> Option<Vec<String>> {
    let name = |family: &IpFamily| match family {
        IpFamily::IPv4 => "IPv4".to_owned(),
        IpFamily::IPv6 => "IPv6".to_owned(),
    };
    named.map(|families| families.iter().map(name).collect())
}

fn port(name: &str, number: u16, protocol: &str) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: number.into(),
        target_port: Some(IntOrString::String(name.into())),
        protocol: Some("TCP".into()),
        app_protocol: Some(protocol.into()),
        ..ServicePort::default()
    }
}

/// An account without a token: gateways send no requests to the API server.
pub(super) fn account(cluster: &ValidCluster, children: &Children) -> ServiceAccount {
    ServiceAccount {
        metadata: super::meta(cluster, &children.name),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

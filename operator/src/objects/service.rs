//! The public Service, the headless Service of the admin port, and the pods' ServiceAccount.

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
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
    let mut metadata = super::meta(cluster, &children.name);
    metadata.annotations = (!service.annotations.is_empty()).then(|| service.annotations.clone());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(kind.into()),
            selector: Some(selector(&cluster.name)),
            ports: Some(vec![port(
                PUBLIC_PORT,
                service.port,
                match cluster.spec.gateway.tls {
                    Some(_) => "https",
                    None => "http",
                },
            )]),
            ip_family_policy: family_policy(cluster),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The admin port of every pod, ready or not: headless, with a DNS name per pod for scrapers.
pub(super) fn admin(cluster: &ValidCluster, children: &Children) -> Service {
    Service {
        metadata: super::meta(cluster, &children.admin_service),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(&cluster.name)),
            ports: Some(vec![port(
                ADMIN_PORT,
                cluster.spec.gateway.admin_port,
                "http",
            )]),
            ip_family_policy: family_policy(cluster),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// `None` leaves the choice to the cluster.
fn family_policy(cluster: &ValidCluster) -> Option<String> {
    match cluster.spec.gateway.address_families {
        AddressFamilies::IPv4 => None,
        AddressFamilies::DualStack => Some("PreferDualStack".into()),
    }
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

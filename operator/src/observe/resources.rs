//! Every kind of object that the operator makes, in one table: they are watched, listed, applied in this order, and pruned.

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};

/// One kind that the operator makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// As URLs write it.
    pub plural: &'static str,
    /// Only where the API server knows it.
    pub optional: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Owned {
    Owned {
        group,
        version,
        kind,
        plural,
        optional: false,
    }
}

const fn optional(
    group: &'static str,
    version: &'static str,
    name: &'static str,
    plural: &'static str,
) -> Owned {
    Owned {
        optional: true,
        ..kind(group, version, name, plural)
    }
}

/// ServiceAccount.
pub const SERVICE_ACCOUNT: Owned = kind("", "v1", "ServiceAccount", "serviceaccounts");
/// ConfigMap.
pub const CONFIG_MAP: Owned = kind("", "v1", "ConfigMap", "configmaps");
/// Secret.
pub const SECRET: Owned = kind("", "v1", "Secret", "secrets");
/// Service.
pub const SERVICE: Owned = kind("", "v1", "Service", "services");
/// NetworkPolicy.
pub const NETWORK_POLICY: Owned = kind(
    "networking.k8s.io",
    "v1",
    "NetworkPolicy",
    "networkpolicies",
);
/// Job.
pub const JOB: Owned = kind("batch", "v1", "Job", "jobs");
/// Deployment.
pub const DEPLOYMENT: Owned = kind("apps", "v1", "Deployment", "deployments");
/// PodDisruptionBudget.
pub const BUDGET: Owned = kind(
    "policy",
    "v1",
    "PodDisruptionBudget",
    "poddisruptionbudgets",
);
/// HorizontalPodAutoscaler.
pub const AUTOSCALER: Owned = kind(
    "autoscaling",
    "v2",
    "HorizontalPodAutoscaler",
    "horizontalpodautoscalers",
);
/// Ingress.
pub const INGRESS: Owned = optional("networking.k8s.io", "v1", "Ingress", "ingresses");
/// HTTPRoute of the Gateway API.
pub const HTTP_ROUTE: Owned =
    optional("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes");
/// Gateway of the Gateway API: read where an HTTPRoute names it, and never made.
pub const GATEWAY: Owned = optional("gateway.networking.k8s.io", "v1", "Gateway", "gateways");
/// ServiceMonitor of Prometheus's operator.
pub const SERVICE_MONITOR: Owned = optional(
    "monitoring.coreos.com",
    "v1",
    "ServiceMonitor",
    "servicemonitors",
);
/// PrometheusRule of Prometheus's operator.
pub const PROMETHEUS_RULE: Owned = optional(
    "monitoring.coreos.com",
    "v1",
    "PrometheusRule",
    "prometheusrules",
);

/// All of them, in the order in which they are applied: the gateways, with what a pod mounts before the pod, and then what is around them.
pub const ALL: [Owned; 13] = [
    SERVICE_ACCOUNT,
    CONFIG_MAP,
    SECRET,
    JOB,
    DEPLOYMENT,
    NETWORK_POLICY,
    SERVICE,
    BUDGET,
    AUTOSCALER,
    INGRESS,
    HTTP_ROUTE,
    SERVICE_MONITOR,
    PROMETHEUS_RULE,
];

impl Owned {
    /// As kube wants it.
    pub fn resource(&self) -> ApiResource {
        ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk(self.group, self.version, self.kind),
            self.plural,
        )
    }

    /// `group/version`, or the version alone for the core.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The kind that an object states; `None` if the operator makes none of it.
    pub fn of(object: &DynamicObject) -> Option<Owned> {
        let types = object.types.as_ref()?;
        Self::find(&types.api_version, &types.kind)
    }

    /// The kind of this name.
    pub fn find(api_version: &str, kind: &str) -> Option<Owned> {
        ALL.into_iter()
            .find(|owned| owned.kind == kind && owned.api_version() == api_version)
    }

    /// Whether it is the Deployment or belongs to what its pods need to start: none of them is applied after one before it has failed.
    pub fn is_of_gateways(&self) -> bool {
        self.order() <= DEPLOYMENT.order()
    }

    /// Its place in the order of application.
    pub fn order(&self) -> usize {
        ALL.iter()
            .position(|owned| owned == self)
            .unwrap_or(ALL.len())
    }
}

//! SignalCluster itself.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::data::{Database, Kafka, Notifications, Policy, Redis};
use crate::exposure::AdminService;
use crate::gateway::{Gateway, Limits};
use crate::jwks::Jwks;
use crate::pod::{
    Disruption, Exposure, Image, InheritedMetadata, Mesh, NetworkPolicy, Observability, Platform,
    PodTemplate, Service,
};
use crate::scaling::{Autoscaling, Drain, Rebalance, Rollout};
use crate::status::Status;

/// A realtime edge: gateway pods that hold WebSocket connections, and everything around them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "signal.dev",
    version = "v1alpha1",
    kind = "SignalCluster",
    plural = "signalclusters",
    shortname = "sigc",
    category = "signal",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    doc = "A realtime edge: gateway pods that hold WebSocket connections, and everything around them.",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Connections", type_ = "integer", json_path = ".status.connections.total"),
    printcolumn(name = "Draining", type_ = "integer", json_path = ".status.drainingReplicas", priority = 1),
    printcolumn(name = "JWKS", type_ = "string", json_path = ".status.conditions[?(@.type==\"JWKSHealthy\")].status", priority = 1),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40").message("metadata.name is at most 40 characters: child names need room for suffixes"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name is the name of a Service (RFC 1035): small letters, digits and hyphens; it begins with a letter and ends with a letter or digit"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.redis) || (self.replicas <= 1 && !has(self.autoscaling))")
        .message("more than one replica needs redis").field_path(".redis"),
    validation = Rule::new("has(self.database) || (self.replicas <= 1 && !has(self.autoscaling))")
        .message("more than one replica needs a database").field_path(".database"),
    validation = Rule::new("self.gateway.addressFamilies == 'DualStack' || !((has(self.service.ipFamilies) && 'IPv6' in self.service.ipFamilies) || (has(self.service.ipFamilyPolicy) && self.service.ipFamilyPolicy != 'SingleStack'))")
        .message("a Service with IPv6 addresses needs gateway.addressFamilies DualStack: without it pods listen on IPv4 alone").field_path(".service.ipFamilies"),
    validation = Rule::new("self.gateway.addressFamilies == 'DualStack' || !has(self.adminService) || !((has(self.adminService.ipFamilies) && 'IPv6' in self.adminService.ipFamilies) || (has(self.adminService.ipFamilyPolicy) && self.adminService.ipFamilyPolicy != 'SingleStack'))")
        .message("a Service with IPv6 addresses needs gateway.addressFamilies DualStack: without it pods listen on IPv4 alone").field_path(".adminService.ipFamilies"),
    validation = Rule::new("!has(self.policy) || !has(self.policy.urlSecretRef) || !has(self.policy.connection)")
        .message("set either urlSecretRef or connection").field_path(".policy"),
    validation = Rule::new("!has(self.policy) || has(self.policy.urlSecretRef) || has(self.policy.connection) || !(has(self.policy.sslMode) || has(self.policy.caSecretRef))")
        .message("sslMode and caSecretRef belong to urlSecretRef or connection").field_path(".policy"),
)]
pub struct SignalClusterSpec {
    /// Nothing is changed but status.
    #[serde(default)]
    pub paused: bool,
    /// Objects stay, pods go.
    #[serde(default)]
    pub stopped: bool,
    /// Wanted pods. Autoscalers write it through the scale subresource: leave it out of what is applied when there is one.
    #[serde(default = "replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// The gateway's image.
    pub image: Image,
    /// What a gateway does with connections.
    #[serde(default)]
    pub gateway: Gateway,
    /// Bounds of one gateway pod.
    #[serde(default)]
    pub limits: Limits,
    /// Redis between the pods; absent: one pod alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// The activity pipeline; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<Kafka>,
    /// Where notifications are stored; absent: in the pod, lost with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<Database>,
    /// Whose tokens are accepted.
    pub jwks: Jwks,
    /// Where policies are read.
    #[serde(default)]
    pub policy: Policy,
    /// Texts of notifications.
    #[serde(default)]
    pub notifications: Notifications,
    /// How a pod lets its connections go.
    #[serde(default)]
    pub drain: Drain,
    /// How pods are replaced.
    #[serde(default)]
    pub rollout: Rollout,
    /// Evens connections out over the pods.
    #[serde(default)]
    pub rebalance: Rebalance,
    /// Who decides how many pods there are; absent: whoever writes `replicas`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// How many pods a node drain may take at once.
    #[serde(default)]
    pub disruption: Disruption,
    /// The public Service.
    #[serde(default)]
    pub service: Service,
    /// The headless Service of the admin ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_service: Option<AdminService>,
    /// How the public Service is reached from outside.
    #[serde(default)]
    pub exposure: Exposure,
    /// Who may reach the pods.
    #[serde(default)]
    pub network_policy: NetworkPolicy,
    /// Logs, traces, and what Prometheus's operator is told.
    #[serde(default)]
    pub observability: Observability,
    /// What gives pods their user and group; absent: Kubernetes. A change rolls the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The service mesh whose sidecars leave the admin port alone, so that the operator and the kubelet reach it without the mesh's TLS; absent: none. A
    /// change rolls the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<Mesh>,
    /// What is merged into the gateways' pods.
    #[serde(default)]
    pub pod_template: PodTemplate,
    /// Labels and annotations of every object that the operator makes. Pods have those of `podTemplate` alone: a change of this restarts none.
    #[serde(default)]
    pub inherited_metadata: InheritedMetadata,
}

fn replicas() -> i32 {
    2
}

//! What surrounds the gateways: image, pod template, Services, exposure, policies, observability.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

use crate::exposure::{
    HeaderChanges, IpFamily, IpFamilyPolicy, Redirect, RouteTimeouts, TrafficDistribution,
    TrafficPolicy, families,
};

/// The gateway's image. A change rolls the pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.tag) != has(self.digest)").message("set either tag or digest").field_path(".tag"))]
pub struct Image {
    /// Repository, registry included.
    #[schemars(length(min = 1, max = 255))]
    pub repository: String,
    /// Tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub tag: Option<String>,
    /// Digest, `sha256:...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80), pattern("^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
    /// When the image is pulled.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// Names of Secrets with registry credentials.
    #[serde(default)]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub pull_secrets: Vec<String>,
}

impl Image {
    /// What a container names.
    pub fn reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.repository),
            (None, Some(tag)) => format!("{}:{tag}", self.repository),
            (None, None) => self.repository.clone(),
        }
    }
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "Kubernetes' own words")]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// What gives pods their user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Platform {
    /// The operator: user, group and file system group 65532.
    Kubernetes,
    /// The security context constraints of the namespace, such as `restricted-v2`.
    OpenShift,
}

/// The service mesh whose sidecars the pods have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mesh {
    /// Istio with sidecars.
    Istio,
    /// Linkerd.
    Linkerd,
}

/// What is merged into the gateways' pods. What the operator needs wins over it. A change rolls the pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTemplate {
    /// Labels and annotations.
    pub metadata: PodMetadata,
    /// Parts of a PodSpec: resources and environment of the container `gateway`, further containers, volumes, affinity, tolerations, priority, topology spread.
    #[schemars(schema_with = "any_object")]
    pub spec: Map<String, Value>,
}

/// Labels and annotations of the pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PodMetadata {
    /// Labels.
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

/// Labels and annotations of every object of a SignalCluster. What the operator sets itself wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct InheritedMetadata {
    /// Labels. Not those of `app.kubernetes.io`, `kubernetes.io`, `k8s.io` and `signal.dev`.
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Annotations, of the same domains.
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// The public Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'")
        .message("externalTrafficPolicy belongs to types LoadBalancer and NodePort").field_path(".externalTrafficPolicy"),
    validation = Rule::new("!has(self.loadBalancerClass) || self.type == 'LoadBalancer'")
        .message("loadBalancerClass belongs to type LoadBalancer").field_path(".loadBalancerClass"),
    validation = Rule::new("!has(self.loadBalancerSourceRanges) || self.type == 'LoadBalancer'")
        .message("loadBalancerSourceRanges belong to type LoadBalancer").field_path(".loadBalancerSourceRanges"),
    validation = Rule::new("self.type != 'LoadBalancer' || oldSelf.type != 'LoadBalancer' || (has(self.loadBalancerClass) ? self.loadBalancerClass : '') == (has(oldSelf.loadBalancerClass) ? oldSelf.loadBalancerClass : '')")
        .message("loadBalancerClass cannot change while type is LoadBalancer: set another type first").field_path(".loadBalancerClass"),
    validation = families::two_need_a_policy(),
    validation = families::each_once(),
    validation = families::first_stays(),
)]
pub struct Service {
    /// Its type.
    #[serde(rename = "type", default)]
    pub kind: ServiceType,
    /// Its port.
    #[serde(default = "Service::port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Its labels, besides those that the operator sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
    /// What its port carries, as proxies are told; absent: `https` with `gateway.tls`, `http` without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub app_protocol: Option<String>,
    /// Which pods get what comes from outside: `Local` keeps the client's address and loses what arrives at nodes without a pod. Types LoadBalancer and
    /// NodePort; absent: `Cluster`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<TrafficPolicy>,
    /// Which pods get what comes from inside; absent: `Cluster`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<TrafficPolicy>,
    /// Which pods are preferred, among those that the policies allow; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Who makes the load balancer; absent: the cluster's own. Fixed while the type is LoadBalancer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub load_balancer_class: Option<String>,
    /// Networks (CIDR) that the load balancer admits; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 3, max = 49)))]
    pub load_balancer_source_ranges: Option<Vec<String>>,
    /// How many families of addresses it has; absent: as `gateway.addressFamilies` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_family_policy: Option<IpFamilyPolicy>,
    /// Its families, the first one for good; absent: the cluster's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2))]
    pub ip_families: Option<Vec<IpFamily>>,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            kind: ServiceType::ClusterIP,
            port: Self::port(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            app_protocol: None,
            external_traffic_policy: None,
            internal_traffic_policy: None,
            traffic_distribution: None,
            load_balancer_class: None,
            load_balancer_source_ranges: None,
            ip_family_policy: None,
            ip_families: None,
        }
    }
}

impl Service {
    fn port() -> u16 {
        8080
    }
}

/// Type of the public Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "Kubernetes' own words")]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}

/// How the public Service is reached from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Exposure {
    /// An HTTPRoute, where the cluster has the Gateway API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_route: Option<HttpRoute>,
    /// An Ingress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
}

/// An HTTPRoute of the Gateway API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// The Gateways that carry it.
    #[schemars(length(min = 1, max = 8))]
    pub parent_refs: Vec<ParentRef>,
    /// Host names.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub hostnames: Vec<String>,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
    /// How long its Gateways wait; absent: their own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<RouteTimeouts>,
    /// What is changed in the header of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_headers: Option<HeaderChanges>,
    /// What is changed in the header of responses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_headers: Option<HeaderChanges>,
    /// Redirects what comes to listeners without TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
}

/// A Gateway that carries an HTTPRoute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace; absent: that of the SignalCluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Its listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// An Ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// Its class; absent: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,
    /// The host name.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Secret with the host's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tls_secret_name: Option<String>,
    /// Its annotations.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

/// Who may reach the pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicy {
    /// Whether a NetworkPolicy is made.
    pub enabled: bool,
    /// `NetworkPolicyPeer`s that may reach the public port; empty: everybody.
    #[schemars(length(max = 16), schema_with = "peers")]
    pub public_from: Vec<Map<String, Value>>,
    /// `NetworkPolicyPeer`s that may reach the admin port, besides the operator and the kubelet: Prometheus, say.
    #[schemars(length(max = 16), schema_with = "peers")]
    pub admin_from: Vec<Map<String, Value>>,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            public_from: Vec::new(),
            admin_from: Vec::new(),
        }
    }
}

fn peers(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 16, "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}})
}

/// How many pods a node drain may take at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Disruption {
    /// Whether a PodDisruptionBudget is made.
    pub enabled: bool,
    /// Most pods that may be away.
    #[schemars(range(min = 1, max = 1000))]
    pub max_unavailable: i32,
}

impl Default for Disruption {
    fn default() -> Self {
        Self {
            enabled: true,
            max_unavailable: 1,
        }
    }
}

/// Logs, traces, and what Prometheus's operator is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Observability {
    /// What is logged, in the filter syntax of `tracing`: `info,signal_gateway::ws=debug`. Live.
    #[schemars(length(min = 1, max = 512))]
    pub log_filter: String,
    /// Format of the log. A change rolls the pods.
    pub log_format: LogFormat,
    /// Traces over OTLP/HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
    /// A ServiceMonitor, where the cluster knows that kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_monitor: Option<Monitor>,
    /// A PrometheusRule with Signal's alerts, where the cluster knows that kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus_rule: Option<Rules>,
}

impl Default for Observability {
    fn default() -> Self {
        Self {
            log_filter: "info".into(),
            log_format: LogFormat::Json,
            tracing: None,
            service_monitor: None,
            prometheus_rule: None,
        }
    }
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Traces over OTLP/HTTP. A change rolls the pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// Where they go: `http://collector:4318/v1/traces`.
    #[schemars(length(min = 1, max = 1024))]
    pub endpoint: String,
    /// Traces kept of a million.
    #[serde(default = "per_million")]
    #[schemars(range(min = 0, max = 1000000))]
    pub samples_per_million: u32,
}

fn per_million() -> u32 {
    10_000
}

/// A ServiceMonitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Monitor {
    /// Labels by which Prometheus finds it.
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// How often Prometheus scrapes.
    pub interval: crate::Duration,
}

impl Default for Monitor {
    fn default() -> Self {
        Self {
            labels: BTreeMap::new(),
            interval: crate::Duration::secs(30),
        }
    }
}

/// A PrometheusRule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rules {
    /// Labels by which Prometheus finds it.
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
}

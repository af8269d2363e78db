//! How many pods, and how they come and go.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Duration;

/// How a pod lets its connections go: at scale-in, in a rollout, and when a node is drained. The pods' grace period follows from it. A change rolls the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.window) <= duration('30m')").message("the drain window is at most 30m").field_path(".window"),
    validation = Rule::new("duration(self.endpointPropagation) <= duration('2m')").message("endpointPropagation is at most 2m").field_path(".endpointPropagation"),
    validation = Rule::new("duration(self.batchInterval) > duration('0s') && duration(self.batchInterval) <= duration(self.window)")
        .message("batchInterval must be above zero and within the window").field_path(".batchInterval"),
)]
pub struct Drain {
    /// From not ready until closing starts: the time endpoints need to notice.
    #[serde(default = "Drain::endpoint_propagation")]
    pub endpoint_propagation: Duration,
    /// How long it takes to close all connections (1001).
    #[serde(default = "Drain::window")]
    pub window: Duration,
    /// Time between two batches of connections, which are chosen at random.
    #[serde(default = "Drain::batch_interval")]
    pub batch_interval: Duration,
    /// Fewest connections of one batch.
    #[serde(default = "Drain::min_batch")]
    #[schemars(range(min = 1, max = 100000))]
    pub min_batch: u32,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            endpoint_propagation: Self::endpoint_propagation(),
            window: Self::window(),
            batch_interval: Self::batch_interval(),
            min_batch: Self::min_batch(),
        }
    }
}

impl Drain {
    fn endpoint_propagation() -> Duration {
        Duration::secs(8)
    }

    fn window() -> Duration {
        Duration::secs(120)
    }

    fn batch_interval() -> Duration {
        Duration::secs(1)
    }

    fn min_batch() -> u32 {
        10
    }
}

/// How pods are replaced when image or static settings change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])")
        .message("maxSurge or maxUnavailable must be above 0: otherwise no pod can be replaced").field_path(".maxSurge"),
    validation = Rule::new("!has(self.canary) || self.strategy == 'Canary'")
        .message("canary belongs to strategy Canary").field_path(".canary"),
)]
pub struct Rollout {
    /// Whether a new pod template is rolled out at once, or waits for a person.
    #[serde(default)]
    pub strategy: RolloutStrategy,
    /// What the first pod has to show; strategy Canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanarySettings>,
    /// Pods above the wanted number during a rollout, as a number or a percentage.
    #[serde(default = "Rollout::max_surge")]
    #[schemars(schema_with = "int_or_percent")]
    pub max_surge: IntOrString,
    /// Pods below the wanted number during a rollout, as a number or a percentage. Above 0 where the nodes have no room for a pod more: an old pod then goes before a new one comes.
    #[serde(default = "Rollout::max_unavailable")]
    #[schemars(schema_with = "int_or_percent")]
    pub max_unavailable: IntOrString,
    /// How long a new pod must be ready before it counts.
    #[serde(default = "Rollout::min_ready")]
    pub min_ready: Duration,
    /// A rollout that makes no progress for this long is reported as Degraded; pods of the old revision stay.
    #[serde(default = "Rollout::progress_deadline")]
    pub progress_deadline: Duration,
}

/// What the first pod of a new template has to show before others follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CanarySettings {
    /// How long it must stay good: ready, not restarted, and without an error in its status that no other pod has. Absent: until it is approved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soak: Option<Duration>,
}

/// When a new pod template is rolled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum RolloutStrategy {
    /// At once.
    #[default]
    Automatic,
    /// One pod at once; the others once it stayed good for `canary.soak`, or are approved as with Supervised.
    Canary,
    /// Once annotation `signal.dev/approve-rollout` of the SignalCluster names its revision, which condition UpdatePending tells. Migrations wait with it.
    Supervised,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::default(),
            canary: None,
            max_surge: Self::max_surge(),
            max_unavailable: Self::max_unavailable(),
            min_ready: Self::min_ready(),
            progress_deadline: Self::progress_deadline(),
        }
    }
}

impl Rollout {
    fn max_surge() -> IntOrString {
        IntOrString::String("25%".into())
    }

    fn max_unavailable() -> IntOrString {
        IntOrString::Int(0)
    }

    fn min_ready() -> Duration {
        Duration::secs(10)
    }

    fn progress_deadline() -> Duration {
        Duration::secs(600)
    }
}

fn int_or_percent(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(100|[0-9]{1,2})%$"}]})
}

/// Evens connections out over the pods after a scale-out. Live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rebalance {
    /// Whether connections are evened out.
    pub enabled: bool,
    /// A pod this many percent above the mean sheds connections (4009).
    #[schemars(range(min = 5, max = 1000))]
    pub max_skew_percent: u32,
    /// The skew must have lasted this long.
    pub stable_for: Duration,
    /// Most connections that all pods together shed per minute.
    #[schemars(range(min = 1, max = 1000000))]
    pub max_per_minute: u32,
}

impl Default for Rebalance {
    fn default() -> Self {
        Self {
            enabled: true,
            max_skew_percent: 25,
            stable_for: Duration::secs(300),
            max_per_minute: 500,
        }
    }
}

/// Who decides how many pods there are. Whoever it is writes `spec.replicas` through the scale subresource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas must not exceed maxReplicas").field_path(".minReplicas"),
    validation = Rule::new("self.mode == 'HPA' || !has(self.extraMetrics)").message("extraMetrics belong to mode HPA").field_path(".extraMetrics"),
    validation = Rule::new("self.mode == 'HPA' || !has(self.targetCPUUtilization)").message("targetCPUUtilization belongs to mode HPA").field_path(".targetCPUUtilization"),
    validation = Rule::new("self.mode != 'External' || !has(self.behavior)").message("behavior belongs to modes Connections and HPA").field_path(".behavior"),
)]
pub struct Autoscaling {
    /// Who decides.
    pub mode: AutoscalingMode,
    /// Fewest pods. With mode External it bounds what the others wrote.
    #[serde(default = "min_replicas")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Most pods. With mode External it bounds what the others wrote.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Wanted connections per pod; with mode External what KEDA is told.
    #[serde(default = "target_connections")]
    #[schemars(range(min = 1, max = 10000000))]
    pub target_connections_per_pod: u32,
    /// Wanted CPU in percent of the request, beside connections; mode HPA.
    #[serde(
        rename = "targetCPUUtilization",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = 1000))]
    pub target_cpu_utilization: Option<i32>,
    /// Further `autoscaling/v2` MetricSpecs, passed on as they are; mode HPA.
    // Without `default` a schema of one's own makes the field required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), schema_with = "metric_specs")]
    pub extra_metrics: Option<Vec<Map<String, Value>>>,
    /// How fast the number may change; absent: up at once, down by one pod every two minutes after five quiet ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
}

fn metric_specs(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 8, "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}})
}

fn min_replicas() -> i32 {
    2
}

fn target_connections() -> u32 {
    20_000
}

/// Who decides how many pods there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AutoscalingMode {
    /// The operator, by the connections that pods report; needs no metrics adapter.
    Connections,
    /// A HorizontalPodAutoscaler that the operator makes; needs the custom metrics API for `signal_connections`.
    #[serde(rename = "HPA")]
    Hpa,
    /// People, or KEDA by the operator's external scaler.
    External,
}

/// How fast the number of pods may change, as in `autoscaling/v2`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Behavior {
    /// On the way up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScalingRules>,
    /// On the way down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScalingRules>,
}

/// How fast the number of pods may change in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingRules {
    /// For so many seconds back, the most cautious recommendation counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: Option<i32>,
    /// Which of the policies counts.
    #[serde(default)]
    pub select_policy: SelectPolicy,
    /// What may change in how long; empty: as without rules.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub policies: Vec<ScalingPolicy>,
}

/// Which of the policies counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    #[default]
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// What may change in how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingPolicy {
    /// What `value` counts.
    #[serde(rename = "type")]
    pub kind: PolicyKind,
    /// Pods, or percent of the pods at the beginning of the period.
    #[schemars(range(min = 1, max = 10000))]
    pub value: i32,
    /// The period.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: i32,
}

/// What the value of a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyKind {
    /// Pods.
    Pods,
    /// Percent of the pods.
    Percent,
}

//! What the operator found and did.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Reason of condition Ready before any operator has looked at the object.
pub const UNSEEN_REASON: &str = "Unseen";

/// The status of an object that no operator has looked at yet. Without it kstatus, and with it Flux, would take a new object for current at once:
/// `observedGeneration` says that no generation was observed, as Flux's own kinds do it; the condition is for people and `kubectl wait`, as the
/// Gateway API does it.
fn unseen() -> serde_json::Value {
    serde_json::json!({
        "observedGeneration": -1,
        "conditions": [{
            "type": "Ready",
            "status": "Unknown",
            "reason": UNSEEN_REASON,
            "message": "no operator has looked at it yet",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }],
    })
}

/// What the operator found and did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("default" = unseen()))]
pub struct Status {
    /// The generation of the spec that this status is about; -1 before any operator has looked at it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Version of the operator that wrote this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_version: Option<String>,
    /// Version that every ready pod reports; empty while they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Pods that stay: those of the Deployment less those that drain. What the scale subresource reports.
    pub replicas: i32,
    /// Pods that stay and are ready.
    pub ready_replicas: i32,
    /// Pods of the newest revision.
    pub updated_replicas: i32,
    /// Pods on their way out at scale-in.
    pub draining_replicas: i32,
    /// Selects the pods that stay. What the scale subresource reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Where clients connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
    /// Open connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// The live configuration and who has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigStatus>,
    /// A change of the number of pods under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// Every source of keys and its stage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub jwks: Vec<SourceStatus>,
    /// The keys that the operator makes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["kid"]))]
    pub signing_keys: Vec<SigningKeyStatus>,
    /// Redis as the pods report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisStatus>,
    /// The pipeline as the pods report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaStatus>,
    /// The database's schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseStatus>,
    /// Ready is the summary of all others. Reconciling and Stalled are there only while they are true, as kstatus reads them.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where clients connect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoints {
    /// From outside: the first of `allPublic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public: Option<String>,
    /// Every URL from outside that serves: of an HTTPRoute that a parent has accepted, of an Ingress with an address, of each address of a load balancer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub all_public: Vec<String>,
    /// From inside the cluster.
    pub internal: String,
}

/// Open connections over all pods that answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Connections {
    /// All.
    pub total: i64,
    /// Past authentication.
    pub authenticated: i64,
    /// Sealed.
    pub encrypted: i64,
    /// Of the emptiest pod that stays.
    pub min_per_pod: i64,
    /// Of the fullest pod that stays.
    pub max_per_pod: i64,
    /// Pods that answered.
    pub reporting_pods: i32,
    /// When they did, up to 30 s ago; with autoscaling mode External, whose scaler refuses old numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled_at: Option<Time>,
}

/// The live configuration and who has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigStatus {
    /// `sha256:` and the hash of `live.toml`.
    pub revision: String,
    /// Ready pods that hold it.
    pub acknowledged_replicas: i32,
    /// What a pod says is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A change of the number of pods under way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scaling {
    /// What it is doing.
    pub state: ScalingState,
    /// Pods of the Deployment.
    pub from: i32,
    /// Wanted pods.
    pub to: i32,
    /// Pods that drain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<String>,
    /// Since when they drain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
}

/// How the number of pods changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ScalingState {
    /// It is as wanted.
    #[default]
    Idle,
    /// Pods drain before they go.
    Draining,
    /// Pods come, or drained ones go.
    Scaling,
    /// It waits for a rollout to end.
    Waiting,
}

/// One source of keys and its stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Its name in the gateways.
    pub name: String,
    /// Its issuer.
    pub issuer: String,
    /// Its stage.
    pub state: SourceStage,
    /// Keys that all answering pods hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_ids: Vec<String>,
    /// Ready pods that have fetched it.
    pub fetched_replicas: i32,
    /// Until when it is accepted; stage Retiring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retire_after: Option<Time>,
    /// What a pod says is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Stage of a source of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceStage {
    /// Pods fetch and validate it; its tokens are refused.
    Prepared,
    /// Its tokens are accepted.
    Trusted,
    /// It is not wanted any more; its tokens are accepted until `retireAfter`.
    Retiring,
}

/// One key that the operator made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SigningKeyStatus {
    /// Its `kid`.
    pub kid: String,
    /// Its stage.
    pub state: SigningKeyStage,
    /// Since when.
    pub since: Time,
}

/// Stage of a key that the operator made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SigningKeyStage {
    /// Published ahead; signs nothing yet.
    Published,
    /// The issuer signs with it.
    Signing,
    /// Signs no more; its tokens are still verified.
    VerifyOnly,
}

/// Redis as the pods report it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RedisStatus {
    /// Ready pods that are subscribed to the wanted servers.
    pub subscribed_replicas: i32,
    /// Whether pods still keep the previous servers as well.
    pub switching: bool,
    /// What a pod says is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The pipeline as the pods report it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KafkaStatus {
    /// Partitions that some pod has.
    pub assigned_partitions: i64,
    /// Most records that wait in one partition.
    pub max_lag: i64,
}

/// The database's schema.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatabaseStatus {
    /// Number of the newest migration that pods report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The image whose schema the database has: a Job ran it to its end. Remembered, so that nothing is run again when the Job is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrated_image: Option<String>,
    /// Which database that was: a hash of its servers and its name, without the login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrated_database: Option<String>,
    /// Number of the newest migration that pods have reported since. A lower one means that the database went back, and is migrated again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrated_version: Option<i64>,
}

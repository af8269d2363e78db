//! Where messages and rows go: Redis, Kafka, the database, policies, texts.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::pod::PodMetadata;
use crate::reference::{ConfigMapName, SecretKey};
use crate::secrets::{DatabaseConnection, KafkaUser, SslMode};

/// Redis between the pods. Address, credentials and CA are live: gateways keep the previous server until all of them have switched to the new one.
/// Adding or removing the whole section rolls the pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.mode == 'Sentinel') == has(self.sentinel)")
        .message("sentinel belongs to mode Sentinel, and mode Sentinel needs it").field_path(".sentinel"),
    validation = Rule::new("self.mode != 'Standalone' || self.nodes.size() == 1")
        .message("mode Standalone takes exactly one node").field_path(".nodes"),
    validation = Rule::new("self.mode != 'Cluster' || self.database == 0")
        .message("a Redis Cluster has database 0 alone").field_path(".database"),
    validation = Rule::new("!self.shardedPubsub || self.mode == 'Cluster'")
        .message("shardedPubsub belongs to mode Cluster").field_path(".shardedPubsub"),
    validation = Rule::new("!self.shardedPubsub || !self.channelPrefix.contains('{')")
        .message("with shardedPubsub the channelPrefix holds no braces").field_path(".channelPrefix"),
    validation = Rule::new("!has(self.tls) || has(self.tls.certificateSecretRef) == has(self.tls.keySecretRef)")
        .message("certificateSecretRef and keySecretRef belong together").field_path(".tls"),
    validation = Rule::new("duration(self.stalledAfter) > duration(self.selfPingInterval)")
        .message("stalledAfter must exceed selfPingInterval").field_path(".stalledAfter"),
)]
pub struct Redis {
    /// What the nodes are.
    pub mode: RedisMode,
    /// `host:port` of the server, of sentinels, or of some cluster nodes.
    #[schemars(length(min = 1, max = 16), inner(length(min = 3, max = 260)))]
    #[x_kube(validation = Rule::new("self.all(n, n.matches('^.+:[0-9]+$'))").message("a node is host:port"))]
    pub nodes: Vec<String>,
    /// Whom to ask for the master; mode Sentinel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<Sentinel>,
    /// Database number.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000000))]
    pub database: u32,
    /// ACL user and password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RedisAuth>,
    /// TLS; absent: in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// In front of every channel and key; empty keeps to what existing emitters use.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub channel_prefix: String,
    /// How often a pod sends itself a message through Redis. A change rolls the pods.
    #[serde(default = "self_ping")]
    pub self_ping_interval: Duration,
    /// The subscriber of a pod is stalled, and the pod not ready, when no such message came back for this long. A change rolls the pods.
    #[serde(default = "stalled_after")]
    pub stalled_after: Duration,
    /// Messages between pods go over sharded Pub/Sub, so that the masters of the cluster share them; Redis 7 or newer. Pods use it once all of them
    /// have it. Servers other than gateways do not receive these messages. A change rolls the pods.
    #[serde(default)]
    pub sharded_pubsub: bool,
}

fn self_ping() -> Duration {
    Duration::secs(5)
}

fn stalled_after() -> Duration {
    Duration::secs(15)
}

/// What the nodes of Redis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RedisMode {
    /// One server.
    Standalone,
    /// Sentinels that name a master.
    Sentinel,
    /// A Redis Cluster.
    Cluster,
}

/// Whom to ask for the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sentinel {
    /// The master's name among the sentinels.
    #[schemars(length(min = 1, max = 253))]
    pub master_name: String,
    /// The sentinels' own password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKey>,
}

/// ACL user and password of Redis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisAuth {
    /// The user; absent: the default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username_secret_ref: Option<SecretKey>,
    /// The password.
    pub password_secret_ref: SecretKey,
}

/// TLS towards a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// PEM authorities to trust; absent: those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
    /// PEM certificate that the server asks for, and its chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_secret_ref: Option<SecretKey>,
    /// Its PEM private key, which has no password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_secret_ref: Option<SecretKey>,
}

/// The activity pipeline. Absent: none. Changes roll the pods, but for the content of Secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.security.protocol.startsWith('SASL') || has(self.security.auth) || has(self.security.user)")
        .message("SASL needs auth or user").field_path(".security"),
    validation = Rule::new("self.security.protocol.startsWith('SASL') || !has(self.security.auth)")
        .message("auth needs a SASL protocol").field_path(".security"),
    validation = Rule::new("!has(self.security.auth) || has(self.security.auth.username) != has(self.security.auth.usernameSecretRef)")
        .message("auth needs either username or usernameSecretRef").field_path(".security"),
    validation = Rule::new("!has(self.security.user) || !(has(self.security.auth) || has(self.security.certificateSecretRef))")
        .message("user takes the place of auth, certificateSecretRef and keySecretRef").field_path(".security"),
    validation = Rule::new("!has(self.security.user) || self.security.protocol != 'PLAINTEXT'")
        .message("user needs SSL or a SASL protocol").field_path(".security"),
    validation = Rule::new("has(self.security.certificateSecretRef) == has(self.security.keySecretRef)")
        .message("certificateSecretRef and keySecretRef belong together").field_path(".security"),
    validation = Rule::new("!has(self.security.certificateSecretRef) || self.security.protocol.endsWith('SSL')")
        .message("a certificate needs SSL or SASL_SSL").field_path(".security"),
    validation = Rule::new("!has(self.security.auth) || (self.security.auth.mechanism == 'OAUTHBEARER') == has(self.security.auth.tokenUrl)")
        .message("OAUTHBEARER needs tokenUrl, and no other mechanism has one").field_path(".security"),
    validation = Rule::new("duration(self.stuckAfter) >= duration('5s') && duration(self.stuckAfter) <= duration('1h')")
        .message("stuckAfter must be 5s to 1h").field_path(".stuckAfter"),
    validation = Rule::new("self.groupId == oldSelf.groupId || self.allowGroupChange")
        .message("another group reads the topic again or skips part of it: set allowGroupChange").field_path(".groupId"),
)]
pub struct Kafka {
    /// `host:port` of some brokers.
    #[schemars(length(min = 1, max = 16), inner(length(min = 3, max = 260)))]
    pub brokers: Vec<String>,
    /// Consumer group.
    #[serde(default = "group_id")]
    #[schemars(length(min = 1, max = 249))]
    pub group_id: String,
    /// Lets `groupId` change.
    #[serde(default)]
    pub allow_group_change: bool,
    /// Topics of activity records.
    #[serde(default = "topics")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 249)))]
    pub topics: Vec<String>,
    /// Where a group without offsets starts.
    #[serde(default)]
    pub offset_reset: OffsetReset,
    /// Dead letters go to the topic of the record with this suffix.
    #[serde(default = "dead_letter_suffix")]
    #[schemars(length(min = 1, max = 64))]
    pub dead_letter_suffix: String,
    /// Most partitions of a pod whose batches are stored at the same time.
    #[serde(default = "concurrency")]
    #[schemars(range(min = 1, max = 256))]
    pub concurrency: u32,
    /// Memory of a pod for records on their way to the database, in bytes. All partitions share it; one that holds its part pauses.
    #[serde(default = "memory_bytes")]
    #[schemars(range(min = 16777216, max = 1099511627776_i64))]
    pub memory_bytes: u64,
    /// A partition that has records and does not advance for this long is reported as stuck, by `/readyz?verbose`, `/status`, a metric and an alert.
    #[serde(default = "stuck_after")]
    pub stuck_after: Duration,
    /// Whether a pod with a stuck partition is not ready. It then gets no new connections, which does not help the partition.
    #[serde(default)]
    pub stuck_is_unready: bool,
    /// Transport and login.
    #[serde(default)]
    pub security: KafkaSecurity,
    /// Where schemas of records are. Absent: records are JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<KafkaRegistry>,
}

fn group_id() -> String {
    "signal-notifications".into()
}

fn topics() -> Vec<String> {
    vec!["activity-notification".into()]
}

fn dead_letter_suffix() -> String {
    ".dlq".into()
}

fn concurrency() -> u32 {
    8
}

fn memory_bytes() -> u64 {
    67_108_864
}

fn stuck_after() -> Duration {
    Duration::secs(30)
}

/// Where a group without offsets starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OffsetReset {
    /// With the oldest record.
    #[default]
    Earliest,
    /// With the next record.
    Latest,
}

/// Transport and login of Kafka.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KafkaSecurity {
    /// Transport.
    pub protocol: KafkaProtocol,
    /// Login by SASL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<KafkaAuth>,
    /// A user by the Secret of its Strimzi KafkaUser: certificate and key with SSL, user and password with SASL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<KafkaUser>,
    /// PEM authorities to trust; absent: those of the image. A changed content rolls the pods. Key `*.crt` stands for every key that ends so: Strimzi keeps the
    /// old authority beside the new one while brokers change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
    /// PEM certificate that brokers ask for, and its chain. A changed content is taken over without a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_secret_ref: Option<SecretKey>,
    /// Its PEM private key, which has no password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_secret_ref: Option<SecretKey>,
}

/// Schemas of records in Avro, Protobuf and JSON Schema, at a registry with Confluent's API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.usernameSecretRef) == has(self.passwordSecretRef)")
        .message("usernameSecretRef and passwordSecretRef belong together"),
    validation = Rule::new("!has(self.passwordSecretRef) || !has(self.tokenSecretRef)")
        .message("passwordSecretRef and tokenSecretRef exclude each other"),
)]
pub struct KafkaRegistry {
    /// Base of its API.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// Topics, of those of the pipeline, whose records carry the id of a schema.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 249)))]
    pub topics: Vec<String>,
    /// User of HTTP Basic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username_secret_ref: Option<SecretKey>,
    /// Password of HTTP Basic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKey>,
    /// Bearer token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,
    /// PEM authorities to trust; absent: those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

/// Transport of Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum KafkaProtocol {
    /// In the clear.
    #[default]
    #[serde(rename = "PLAINTEXT")]
    Plaintext,
    /// TLS.
    #[serde(rename = "SSL")]
    Ssl,
    /// SASL in the clear.
    #[serde(rename = "SASL_PLAINTEXT")]
    SaslPlaintext,
    /// SASL over TLS.
    #[serde(rename = "SASL_SSL")]
    SaslSsl,
}

impl KafkaProtocol {
    /// Whether there is a login by SASL.
    pub fn is_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

/// Login of Kafka by SASL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaAuth {
    /// Mechanism.
    #[serde(default)]
    pub mechanism: KafkaMechanism,
    /// The user; with OAUTHBEARER the id of the client. A change rolls the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub username: Option<String>,
    /// The same out of a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username_secret_ref: Option<SecretKey>,
    /// The password; with OAUTHBEARER the secret of the client.
    pub password_secret_ref: SecretKey,
    /// Where the client gets its tokens with OAUTHBEARER (RFC 6749, section 4.4).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub token_url: Option<String>,
    /// Scope that it asks for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub scope: String,
    /// PEM authorities to trust at `tokenUrl`; absent: those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ca_secret_ref: Option<SecretKey>,
}

/// SASL mechanism of Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum KafkaMechanism {
    /// RFC 4616; over TLS alone.
    #[serde(rename = "PLAIN")]
    Plain,
    /// RFC 7677.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The same with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// RFC 7628, with tokens that a client gets by its own credentials.
    #[serde(rename = "OAUTHBEARER")]
    OAuthBearer,
}

/// Where notifications are stored. Absent: SQLite in the pod, lost with it, for one replica that tries things out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.urlSecretRef) != has(self.connection)").message("set either urlSecretRef or connection"))]
pub struct Database {
    /// `postgres://user:password@host:5432/name?sslmode=verify-full`, with several hosts between commas if there are standbys. A changed content is taken over without a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKey>,
    /// The same by its parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<DatabaseConnection>,
    /// `sslmode`, where the URL does not say it. Absent: by `connection` VerifyFull with `caSecretRef` and Require without; by a URL Prefer, as libpq has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssl_mode: Option<SslMode>,
    /// PEM authorities for `sslmode=verify-ca` and `verify-full`; absent: those of the image. A changed content rolls the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
    /// Most connections of one pod. A change rolls the pods.
    #[serde(default = "max_connections")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_connections: u32,
    /// Who brings the schema to the image's version: a Job before pods of a new image, each pod as it starts, or somebody else.
    #[serde(default)]
    pub migrations: Migrations,
    /// The Job of `migrations: Job`. Its pod is made like those of gateways: see `podTemplate`.
    #[serde(default)]
    pub migration_job: MigrationJob,
    /// Notifications older than this are removed; `0s`: never. Whole days. A change rolls the pods.
    #[serde(default)]
    pub retention: Duration,
}

fn max_connections() -> u32 {
    20
}

/// The Job that migrates the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationJob {
    /// Longest time for all attempts together.
    pub deadline: Duration,
    /// Attempts after the first.
    #[schemars(range(min = 0, max = 100))]
    pub retries: u32,
    /// Labels and annotations of its pod, over those of `podTemplate` and over the defaults, which keep the sidecars of Istio and Linkerd out of it: one that never ends would keep the Job from completing.
    pub metadata: PodMetadata,
}

impl Default for MigrationJob {
    fn default() -> Self {
        Self {
            deadline: Duration::secs(1800),
            retries: 4,
            metadata: PodMetadata::default(),
        }
    }
}

/// Who brings the schema to the image's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Migrations {
    /// A Job, before pods of a new image start.
    #[default]
    Job,
    /// Each pod as it starts, under a lock.
    Startup,
    /// Somebody else; a pod does not start while migrations are missing.
    None,
}

/// Where policies (`policy_definition`, `permission`, `role`) are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// Their database; absent, as `connection` is: the notification database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKey>,
    /// The same by its parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<DatabaseConnection>,
    /// As `database.sslMode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssl_mode: Option<SslMode>,
    /// PEM authorities for `sslmode=verify-ca` and `verify-full`; absent: those of the image. A changed content is taken over without a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
    /// How long what was read is used. A change rolls the pods.
    pub cache: Duration,
    /// Roles that may do everything, from sources whose roles are trusted. A change rolls the pods.
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    pub always_allow_roles: Vec<String>,
    /// The kind of a domain that a row writes without one: with `Merchant` the domain `42` is `Merchant_42`. Empty: such a row is not understood.
    /// A change rolls the pods.
    #[schemars(length(max = 64), pattern("^[A-Za-z0-9-]*$"))]
    pub bare_domain_kind: String,
    /// Names of the tables. A change rolls the pods.
    pub tables: PolicyTables,
    /// Names of their columns. A change rolls the pods.
    pub columns: PolicyColumns,
    /// Words that stand in rows. A change rolls the pods.
    pub kinds: PolicyKinds,
}

/// Names of the platform's tables: a name, or a schema and a name with a dot between them. Upper and lower case differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyTables {
    /// Who may do what, and who is a member of what.
    #[schemars(
        length(min = 1, max = 127),
        pattern("^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)?$")
    )]
    pub policy_definition: String,
    /// What the codes of permissions are.
    #[schemars(
        length(min = 1, max = 127),
        pattern("^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)?$")
    )]
    pub permission: String,
}

/// Names of the columns of the platform's tables. Upper and lower case differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyColumns {
    /// Marks deleted rows in both tables. A table may lack it under its default name; empty: no row is deleted.
    #[schemars(length(max = 63), pattern("^([A-Za-z_][A-Za-z0-9_]*)?$"))]
    pub deleted_at: String,
    /// Of both tables.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub id: String,
    /// Of policy definitions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub variant: String,
    /// Of policy definitions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub subject_type: String,
    /// Of policy definitions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub subject_id: String,
    /// Of policy definitions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub target_type: String,
    /// Of policy definitions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub target_id: String,
    /// Of policy definitions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub action: String,
    /// Of policy definitions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub effect: String,
    /// Of policy definitions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub domain: String,
    /// Of permissions.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub code: String,
}

/// Words that stand in `subject_type`, in `target_type`, and before the underscore of a domain. Upper and lower case differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyKinds {
    /// Stands for a role.
    #[schemars(length(min = 1, max = 64), pattern("^[A-Za-z0-9-]+$"))]
    pub role: String,
    /// Stands for a permission.
    #[schemars(length(min = 1, max = 64), pattern("^[A-Za-z0-9-]+$"))]
    pub permission: String,
    /// Stands for a merchant.
    #[schemars(length(min = 1, max = 64), pattern("^[A-Za-z0-9-]+$"))]
    pub merchant: String,
    /// Stands for an organizer.
    #[schemars(length(min = 1, max = 64), pattern("^[A-Za-z0-9-]+$"))]
    pub organizer: String,
}

impl Default for PolicyTables {
    fn default() -> Self {
        Self {
            policy_definition: "policy_definition".into(),
            permission: "permission".into(),
        }
    }
}

impl Default for PolicyColumns {
    fn default() -> Self {
        Self {
            id: "id".into(),
            deleted_at: "deleted_at".into(),
            variant: "variant".into(),
            subject_type: "subject_type".into(),
            subject_id: "subject_id".into(),
            target_type: "target_type".into(),
            target_id: "target_id".into(),
            action: "action".into(),
            effect: "effect".into(),
            domain: "domain".into(),
            code: "code".into(),
        }
    }
}

impl Default for PolicyKinds {
    fn default() -> Self {
        Self {
            role: "Role".into(),
            permission: "Permission".into(),
            merchant: "Merchant".into(),
            organizer: "Organizer".into(),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            url_secret_ref: None,
            connection: None,
            ssl_mode: None,
            ca_secret_ref: None,
            cache: Duration::secs(30),
            always_allow_roles: vec!["super-admin".into()],
            bare_domain_kind: String::new(),
            tables: PolicyTables::default(),
            columns: PolicyColumns::default(),
            kinds: PolicyKinds::default(),
        }
    }
}

/// Texts of notifications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Notifications {
    /// The locale of records that name none. A change rolls the pods.
    #[schemars(length(min = 2, max = 35))]
    pub default_locale: String,
    /// Project Fluent catalogs in addition to those of the image, one key `LOCALE.ftl` per locale. Its content is live; naming another rolls the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog_ref: Option<ConfigMapName>,
}

impl Default for Notifications {
    fn default() -> Self {
        Self {
            default_locale: "vi".into(),
            catalog_ref: None,
        }
    }
}

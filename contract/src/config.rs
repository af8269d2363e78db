//! The static settings: ports, addresses, database, Kafka. The gateway reads them once, when it starts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Redis, Secret, SecretFile};

/// `config.default.toml`: every static setting with its default.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// The static settings. Each part of the gateway receives its own section.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Path of the live file; empty for the built-in defaults.
    pub live_file: PathBuf,
    /// Listeners and HTTP limits.
    pub server: Server,
    /// Threads.
    pub workers: Workers,
    /// Timers of authentication, and users of `Authorization: Basic`.
    pub auth: Auth,
    /// Pings and silence.
    pub heartbeat: Heartbeat,
    /// Other timers of a connection.
    pub session: Session,
    /// Whether and how frames are sealed.
    pub encryption: Encryption,
    /// Worker numbers of ids.
    pub ids: Ids,
    /// Redis, or none.
    pub redis: Redis,
    /// The activity pipeline's consumer.
    pub kafka: Kafka,
    /// Where notifications are stored.
    pub database: Database,
    /// Where policies are read.
    pub policy: Policy,
    /// Tokens refused before their time.
    pub revocations: Revocations,
    /// Room names that no rule knows.
    pub rooms: Rooms,
    /// Catalogs of texts.
    pub notifications: Notifications,
    /// How connections are closed before the process ends.
    pub drain: Drain,
    /// Logs and traces.
    pub observability: Observability,
}

/// `[server]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address of `/stream` and REST.
    pub public_address: SocketAddr,
    /// Address of probes, metrics, status and drain.
    pub admin_address: SocketAddr,
    /// File with the token for `/status`, `/drain` and `/shed`.
    pub admin_token_file: SecretFile,
    /// Shown in lists of connections; empty for the host name.
    pub instance_name: String,
    /// Sockets that the kernel holds until they are accepted.
    pub listen_backlog: u32,
    /// Longest wait for a whole request head, in seconds.
    pub header_read_timeout_secs: u64,
    /// Longest wait for the next request of a connection, in seconds.
    pub keep_alive_timeout_secs: u64,
    /// Largest request head in bytes.
    pub max_header_bytes: usize,
    /// Most header fields.
    pub max_headers: usize,
    /// Largest REST body in bytes.
    pub max_body_bytes: usize,
    /// Paths that open a WebSocket.
    pub stream_paths: Vec<String>,
    /// Subprotocols that are answered; `*` for any.
    pub subprotocols: Vec<String>,
    /// TLS on the public listener.
    pub tls: ServerTls,
}

/// `[server.tls]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// PEM file of the certificate and its chain; empty for a listener in the clear.
    pub certificate_file: PathBuf,
    /// PEM file of the certificate's private key.
    pub key_file: SecretFile,
    /// PEM file of the authorities that clients' certificates are verified against; empty if clients show none.
    pub client_ca_file: PathBuf,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
}

impl ServerTls {
    /// Whether the public listener speaks TLS.
    pub fn enabled(&self) -> bool {
        !self.certificate_file.as_os_str().is_empty()
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3, RFC 8446.
    #[serde(rename = "1.3")]
    V1_3,
}

/// `[workers]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    /// Threads that own connections; 0 for one per core.
    pub shards: usize,
    /// Threads for everything else.
    pub control_threads: usize,
}

/// `[auth]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// From connecting to `authenticate`, in milliseconds.
    pub connect_timeout_ms: u64,
    /// From `authenticate` to its outcome, in milliseconds.
    pub finish_timeout_ms: u64,
    /// How long before a token ends `expiring` is sent, in seconds.
    pub expiring_lead_secs: u64,
    /// JSON file of users for `Authorization: Basic`; empty refuses Basic.
    pub basic_users_file: SecretFile,
    /// Failed attempts of Basic per address and minute before 429.
    pub basic_max_failures_per_minute: u32,
}

/// `[heartbeat]`
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// How often the server pings, in milliseconds; 0 for never.
    pub ping_interval_ms: u64,
    /// Without a frame for this long the connection is closed, in milliseconds.
    pub timeout_ms: u64,
    /// How often the gateway looks for silent connections, in milliseconds.
    pub sweep_interval_ms: u64,
}

/// `[session]`
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// How long a close waits for the peer, in milliseconds.
    pub close_timeout_ms: u64,
    /// How long `connected` waits for the bus, in milliseconds.
    pub subscribe_timeout_ms: u64,
    /// Serves a plain echo, for conformance suites.
    pub conformance_echo: bool,
}

/// `[encryption]`
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// Whether connections are encrypted.
    pub mode: EncryptionMode,
    /// What an encrypted connection may send.
    pub client_frames: ClientFrames,
}

/// Whether connections are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EncryptionMode {
    /// Client keys are ignored.
    Disabled,
    /// With a client key encrypted, without one in the clear.
    Optional,
    /// Without a client key the connection is closed.
    Required,
}

/// What an encrypted connection may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientFrames {
    /// Clear and encrypted frames.
    Any,
    /// Encrypted frames and `heartbeat`.
    Encrypted,
}

/// `[ids]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// The lowest worker number.
    pub worker_base: u16,
    /// How many numbers from it on may be leased.
    pub worker_count: u16,
}

/// `[kafka]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Whether the pipeline runs.
    pub enabled: bool,
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// Consumer group.
    pub group_id: String,
    /// Topics of activity records.
    pub topics: Vec<String>,
    /// Where a group without offsets starts.
    pub offset_reset: OffsetReset,
    /// Appended to a topic's name for its dead letters.
    pub dead_letter_suffix: String,
    /// Transport and login.
    pub security: KafkaSecurity,
    /// Where schemas of records are.
    pub registry: KafkaRegistry,
    /// Most records of a batch.
    pub batch_records: usize,
    /// How long a batch waits to fill, in milliseconds.
    pub batch_wait_ms: u64,
    /// Most rows of one statement.
    pub batch_rows: usize,
    /// Most records waiting per partition.
    pub partition_queue: usize,
    /// Most partitions stored at the same time.
    pub concurrency: usize,
    /// Memory of records between Kafka and the database, in bytes.
    pub memory_bytes: usize,
    /// First delay after a failure, in milliseconds.
    pub retry_initial_ms: u64,
    /// Longest delay after a failure, in milliseconds.
    pub retry_max_ms: u64,
    /// Most recipients of one record.
    pub max_recipients: usize,
    /// Group session timeout, in milliseconds.
    pub session_timeout_ms: u64,
    /// How long a partition that has records may stand still before it is reported, in seconds.
    pub stuck_after_secs: u64,
    /// Whether a gateway with such a partition is not ready.
    pub stuck_is_unready: bool,
    /// Further librdkafka properties.
    pub properties: BTreeMap<String, String>,
}

/// Where a group without offsets starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OffsetReset {
    /// At the oldest record.
    Earliest,
    /// At the next new record.
    Latest,
}

/// `[kafka.security]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaSecurity {
    /// Transport to the brokers.
    pub protocol: KafkaProtocol,
    /// Login by SASL.
    pub auth: KafkaAuth,
    /// PEM file of authorities; empty for the system's.
    pub ca_file: PathBuf,
    /// PEM file of the certificate that brokers ask for, and its chain; empty for none.
    pub certificate_file: PathBuf,
    /// PEM file of its private key.
    pub key_file: SecretFile,
}

/// Transport to the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum KafkaProtocol {
    /// In the clear.
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL in the clear.
    SaslPlaintext,
    /// SASL over TLS.
    SaslSsl,
}

/// `[kafka.security.auth]`: used where the protocol has SASL.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaAuth {
    /// SASL mechanism.
    pub mechanism: KafkaMechanism,
    /// SASL user; with OAUTHBEARER the id of the client.
    pub username: String,
    /// File with the user, instead of `username`.
    pub username_file: SecretFile,
    /// File with the SASL password; with OAUTHBEARER the secret of the client.
    pub password_file: SecretFile,
    /// Token endpoint of OAUTHBEARER; empty for none.
    pub token_url: String,
    /// Scope that is asked for; empty for none.
    pub scope: String,
    /// PEM file of authorities for the token endpoint; empty for the system's.
    pub token_ca_file: PathBuf,
}

/// SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum KafkaMechanism {
    /// RFC 4616; over TLS alone.
    #[serde(rename = "PLAIN")]
    Plain,
    /// RFC 7677.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The same with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// RFC 7628, with tokens that a client gets by its own credentials (RFC 6749, section 4.4).
    #[serde(rename = "OAUTHBEARER")]
    OAuthBearer,
}

/// `[kafka.registry]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaRegistry {
    /// Base of Confluent's API; empty for none.
    pub url: String,
    /// Topics whose records carry the id of a schema.
    pub topics: Vec<String>,
    /// User of HTTP Basic.
    pub username: String,
    /// File with the user, instead of `username`.
    pub username_file: SecretFile,
    /// File with the password of HTTP Basic.
    pub password_file: SecretFile,
    /// File with a bearer token.
    pub token_file: SecretFile,
    /// PEM file of authorities; empty for the system's.
    pub ca_file: PathBuf,
}

/// `[database]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `postgres://` or `sqlite://`.
    pub url: Secret,
    /// File with the URL, instead of `url`.
    pub url_file: SecretFile,
    /// Most connections.
    pub max_connections: u32,
    /// Longest wait for a connection, in milliseconds.
    pub acquire_timeout_ms: u64,
    /// Longest statement, in milliseconds.
    pub statement_timeout_ms: u64,
    /// Whether to migrate at start.
    pub migrate: bool,
    /// Longest wait for another instance's migration, in milliseconds.
    pub migrate_lock_timeout_ms: u64,
    /// Age at which notifications are removed, in days; 0 for never.
    pub retention_days: u32,
    /// How long marks of deleted notifications stay, in days.
    pub tombstone_days: u32,
}

/// `[policy]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Database of the platform's tables; empty for the notification database.
    pub url: Secret,
    /// File with that URL.
    pub url_file: SecretFile,
    /// How long what was read is used, in seconds.
    pub cache_secs: u64,
    /// Identifiers of roles that may do everything.
    pub always_allow_roles: Vec<String>,
    /// The kind of a domain that is written without one; empty: such a row is not understood.
    pub bare_domain_kind: String,
    /// Names of the tables.
    pub tables: PolicyTables,
    /// Names of the columns.
    pub columns: PolicyColumns,
    /// Words in `subject_type`, `target_type` and `domain`.
    pub kinds: PolicyKinds,
}

/// `[policy.tables]`: a name, or a schema and a name with a dot between them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyTables {
    /// Who may do what, and who is a member of what.
    pub policy_definition: String,
    /// What the codes of permissions are.
    pub permission: String,
}

/// `[policy.columns]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyColumns {
    /// Of both tables.
    pub id: String,
    /// Of both tables: a row with a value in it was deleted. The column may be absent under its default name; empty: there is none.
    pub deleted_at: String,
    /// Of policy definitions.
    pub variant: String,
    /// Of policy definitions.
    pub subject_type: String,
    /// Of policy definitions.
    pub subject_id: String,
    /// Of policy definitions.
    pub target_type: String,
    /// Of policy definitions.
    pub target_id: String,
    /// Of policy definitions.
    pub action: String,
    /// Of policy definitions.
    pub effect: String,
    /// Of policy definitions.
    pub domain: String,
    /// Of permissions.
    pub code: String,
}

/// `[policy.kinds]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyKinds {
    /// What stands for a role.
    pub role: String,
    /// What stands for a permission.
    pub permission: String,
    /// What stands for a merchant.
    pub merchant: String,
    /// What stands for an organizer.
    pub organizer: String,
}

/// `[revocations]`
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Revocations {
    /// The longest life of a token, in days: how long a revocation is kept.
    pub token_life_days: u32,
}

/// `[rooms]`
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rooms {
    /// What happens to a name that no rule knows.
    pub unmatched: Unmatched,
}

/// What happens to a room name that no rule knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// It is not joined.
    Deny,
    /// It is joined.
    Allow,
}

/// `[notifications]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Notifications {
    /// Folder of catalogs; empty for the built-in ones.
    pub catalog_dir: PathBuf,
    /// Locale of records that name none.
    pub default_locale: String,
}

/// `[drain]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// From not ready until closing starts, in milliseconds.
    pub endpoint_propagation_ms: u64,
    /// Over how long connections are closed, in milliseconds.
    pub window_ms: u64,
    /// Between two batches, in milliseconds.
    pub batch_interval_ms: u64,
    /// Least connections in a batch.
    pub min_batch: usize,
    /// How long queues may flush afterwards, in milliseconds.
    pub flush_ms: u64,
}

/// `[observability]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Observability {
    /// How log lines look.
    pub log_format: LogFormat,
    /// Traces over OTLP/HTTP.
    pub tracing: Tracing,
}

/// `[observability.tracing]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// OTLP/HTTP endpoint; empty for none.
    pub endpoint: String,
    /// Traces kept of a million.
    pub samples_per_million: u32,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Config {
    /// Returns the built-in defaults.
    pub fn defaults() -> Self {
        toml::from_str(DEFAULTS).expect("the defaults parse")
    }

    /// Returns the defaults with small limits and no waiting: what tests start from.
    pub fn for_tests() -> Self {
        let mut config = Self::defaults();
        config.server.public_address = ([127, 0, 0, 1], 0).into();
        config.server.admin_address = ([127, 0, 0, 1], 0).into();
        config.workers.shards = 2;
        config.kafka.retry_initial_ms = 20;
        config.kafka.retry_max_ms = 500;
        config.redis.self_ping_interval_ms = 200;
        config.redis.stalled_after_ms = 1000;
        config.drain.endpoint_propagation_ms = 0;
        config.drain.window_ms = 500;
        config.drain.batch_interval_ms = 50;
        config
    }
}

//! What operator and gateway exchange, as plain serde types.
//!
//! | document | type | written by | read by |
//! |---|---|---|---|
//! | `gateway.toml`, the static settings | [`Config`] | the operator, or a person | the gateway, once, when it starts |
//! | `live.toml`, the live settings | [`Live`] | the operator, or a person | the gateway, at each change |
//! | `/status` | [`StatusReport`] | the gateway | the operator, at each look at its pods |
//! | `/drain`, `/shed` | [`DrainOrder`], [`ShedOrder`] | the operator | the gateway |
//!
//! A key has the name of the SignalCluster's field in snake case and its unit (`finishTimeout` is `finish_timeout_ms`), in the section of the same
//! path without `gateway`. Nothing here does IO: the gateway loads and checks (`signal_gateway::config`), the operator decides what to write.

mod config;
mod database;
mod jwks;
mod live;
mod object;
mod origin;
mod redis;
mod revision;
mod secret;
mod sparse;
mod status;

pub use config::{
    Auth, ClientFrames, Config, DEFAULTS, Database, Drain, Encryption, EncryptionMode, Heartbeat,
    Ids, Kafka, KafkaAuth, KafkaMechanism, KafkaProtocol, KafkaRegistry, KafkaSecurity, LogFormat,
    Notifications, Observability, OffsetReset, Policy, PolicyColumns, PolicyKinds, PolicyTables,
    Revocations, Rooms, Server, ServerTls, Session, TlsVersion, Tracing, Unmatched, Workers,
};
pub use database::one_url_per_host;
pub use jwks::{Algorithm, Jwks, ManagedJwks, Source, SourcePreset, SourceState, prefixes_collide};
pub use live::{
    LIVE_DEFAULTS, Limits, Live, LiveAuth, LiveObservability, LiveRooms, MAX_MESSAGE_BYTES,
    MIN_MESSAGE_BYTES, SendQueue,
};
pub use object::{Object, object, objects, optional_object};
pub use origin::{
    LOOPBACK_ORIGINS, MAX_STREAM_PATHS, NULL_ORIGIN, REST_PATHS, is_allowed_origin, is_stream_path,
    is_subprotocol,
};
pub use redis::{Redis, RedisAuth, RedisLocation, RedisMode, RedisTls, Sentinel};
pub use revision::{revision, revision_of_digest};
pub use secret::{Secret, SecretFile};
pub use status::{
    ConnectionCounts, DatabaseReport, DrainOrder, DrainStatus, JwksFileReport, KafkaReport,
    KeySourceReport, PreviousRedis, RedisReport, Shed, ShedOrder, StatusReport, StuckPartition,
    TlsReport, UnreadyPart,
};

//! What operator and gateway say to each other, as plain serde types: the operator writes settings, the gateway reads them.
//!
//! | document | type | written by | read by |
//! |---|---|---|---|
//! | `gateway.toml`, the static settings | [`Config`] | the operator, or a person | the gateway, once, when it starts |
//! | `live.toml`, the live settings | [`Live`] | the operator, or a person | the gateway, at each change |
//!
//! Nothing here does IO: the gateway loads and checks (`signal_gateway::config`), the operator decides what to write.

mod config;
mod live;
mod redis;
mod revision;
mod secret;

pub use config::{
    Basic, Bus, BusMode, ClientFrames, Config, DEFAULTS, Database, Drain, Encryption,
    EncryptionMode, Ids, Kafka, KafkaSecurity, LogFormat, Notifications, OffsetReset, Policy,
    Revocations, Rooms, Server, SessionTimes, Telemetry, Unmatched, Workers,
};
pub use live::{Algorithm, Keys, LIVE_DEFAULTS, Limits, Live, Source, SourceState};
pub use redis::BusPlace;
pub use revision::{revision, revision_of_digest};
pub use secret::{Secret, SecretFile};

//! Loads the settings: defaults, then a file, then the environment; parsed into types once and checked as a whole, so that every
//! wrong setting is reported together, by name, before anything is bound.
//!
//! The types are those of [`signal_contract`]. There are two documents. [`Config`] is static: ports, addresses, database, Kafka.
//! [`Live`] may change while connections are open: key sources, origins, limits, log filter; `app::settings` reloads it.

mod check;
mod check_live;
mod load;
mod secret;

pub use load::{Invalid, load, load_live};
pub use secret::{read_secret, read_username};
pub use signal_contract::{
    Algorithm, Auth, ClientFrames, Config, DEFAULTS, Database, Drain, Encryption, EncryptionMode,
    Heartbeat, Ids, Jwks, Kafka, KafkaAuth, KafkaMechanism, KafkaProtocol, KafkaRegistry,
    KafkaSecurity, LIVE_DEFAULTS, Limits, Live, LogFormat, MAX_MESSAGE_BYTES, MIN_MESSAGE_BYTES,
    Notifications, Observability, OffsetReset, Policy, PolicyColumns, PolicyKinds, PolicyTables,
    Redis, RedisAuth, RedisLocation, RedisMode, RedisTls, Revocations, Rooms, Secret, SecretFile,
    Server, Session, Source, SourcePreset, SourceState, Unmatched, Workers,
};

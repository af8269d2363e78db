//! What a change has come to, kept on the objects: an operator killed between any two steps goes on from here.
//!
//! The record lies in an annotation of the live ConfigMap, so it changes in the same write as the `live.toml` that it describes. A copy of what
//! cannot be derived again lies nowhere else: without the ConfigMap there is no configuration whose stage would matter.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use signal_contract::RedisMode;
use signal_crds::jwks::Algorithm;
use signal_crds::status::SourceStage;

/// The stage of everything that changes in stages: one member for each plan, which reads and changes no other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Key sources; of [`crate::plan::sources`].
    #[serde(flatten)]
    pub jwks: SourcesRecord,
    /// Redis; of [`crate::plan::routing`].
    #[serde(flatten)]
    pub redis: RedisRecord,
}

/// The stages of key sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourcesRecord {
    /// Key sources as gateways know them, in the order of `live.toml`.
    pub sources: Vec<RecordedSource>,
    /// Names of sources that lost trust in an emergency: their connections are closed at once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revoked_sources: Vec<String>,
    /// When the last of them lost it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_since: Option<DateTime<Utc>>,
}

/// How far gateways have switched from one Redis to another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RedisRecord {
    /// Redis that gateways use, or switch to.
    #[serde(rename = "redis", skip_serializing_if = "Option::is_none")]
    pub current: Option<RecordedRedis>,
    /// Redis that gateways switch from and stay subscribed to meanwhile.
    #[serde(rename = "redisPrevious", skip_serializing_if = "Option::is_none")]
    pub previous: Option<RecordedRedis>,
    /// When the switch began.
    #[serde(rename = "redisSince", skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

/// One key source as gateways know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedSource {
    /// Its name in gateways, unique: the declared name, or that with a hash where a source of the same name is still there.
    pub name: String,
    /// Its name in the spec.
    pub declared: String,
    /// What it is.
    pub definition: SourceDefinition,
    /// Its stage.
    pub stage: SourceStage,
    /// Since when it has this stage.
    pub since: DateTime<Utc>,
    /// Until when it is accepted; stage Retiring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retire_after: Option<DateTime<Utc>>,
}

/// Everything of a source that a gateway is told. Any difference makes another source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceDefinition {
    /// `iss`.
    pub issuer: String,
    /// Its JWK Set; `None` for the managed set, which is a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `aud`.
    pub audiences: Vec<String>,
    /// Accepted algorithms.
    pub algorithms: Vec<Algorithm>,
    /// In front of its subjects.
    pub subject_prefix: String,
    /// Whether its roles count.
    pub trust_roles: bool,
    /// Key of the credentials Secret with its authorities, content-addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Accepts `http://`.
    pub allow_insecure_http: bool,
}

/// One Redis as gateways know it. Any difference is a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedRedis {
    /// Which kind.
    pub mode: RedisMode,
    /// `host:port`.
    pub nodes: Vec<String>,
    /// Sentinel's name of the master, else empty.
    pub sentinel_master: String,
    /// Database number.
    pub database: u32,
    /// ACL user, or empty.
    pub username: String,
    /// Key of the credentials Secret with the password, content-addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
    /// The same for the sentinels' password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_password_file: Option<String>,
    /// Whether TLS is used.
    pub tls: bool,
    /// Key of the credentials Secret with its authorities, content-addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// In front of channels and keys.
    pub prefix: String,
}

impl Record {
    /// Returns whether gateways still trust a source of the managed keys.
    pub fn names_managed(&self) -> bool {
        self.jwks
            .sources
            .iter()
            .any(|source| source.definition.url.is_none())
    }

    /// Keys of the credentials Secret that the record names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let sources = self
            .jwks
            .sources
            .iter()
            .filter_map(|source| source.definition.ca_file.as_deref());
        let redis = self
            .redis
            .current
            .iter()
            .chain(&self.redis.previous)
            .flat_map(|redis| {
                [
                    redis.password_file.as_deref(),
                    redis.sentinel_password_file.as_deref(),
                    redis.ca_file.as_deref(),
                ]
                .into_iter()
                .flatten()
            });
        sources.chain(redis)
    }
}

//! What a gateway reports of itself at `GET /status` of its admin listener, and the orders that it takes there. Members are in camelCase.
//!
//! Reading is tolerant, since a pod may run another release than the operator: unknown members are ignored, missing ones have their defaults, and
//! a word that this release does not know is `None`.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{RedisMode, SourceState, object, objects, optional_object};

/// The answer of `GET /status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusReport {
    /// Name of the instance.
    pub instance: String,
    /// Version of the gateway.
    pub version: String,
    /// Whether it is ready.
    pub ready: bool,
    /// The parts that are not.
    #[serde(deserialize_with = "objects")]
    pub unready: Vec<UnreadyPart>,
    /// Open connections.
    #[serde(deserialize_with = "object")]
    pub connections: ConnectionCounts,
    /// Redis.
    #[serde(deserialize_with = "object")]
    pub redis: RedisReport,
    /// How far a drain has come.
    #[serde(deserialize_with = "object")]
    pub drain: DrainStatus,
    /// The notification database.
    #[serde(deserialize_with = "object")]
    pub database: DatabaseReport,
    /// Revision of the static settings.
    pub static_revision: String,
    /// Revision of the `live.toml` that is in use: the acknowledgement of it.
    pub live_revision: String,
    /// Why a newer `live.toml` is not in use.
    pub live_error: Option<String>,
    /// TLS of the public listener; `None` where it is in the clear.
    pub tls: Option<TlsReport>,
    /// Revision of the catalogs that are in use.
    pub catalogs_revision: String,
    /// Every key source.
    #[serde(deserialize_with = "objects")]
    pub key_sources: Vec<KeySourceReport>,
    /// What `/.well-known/jwks.json` serves; `None` where it serves nothing.
    #[serde(deserialize_with = "optional_object")]
    pub jwks_file: Option<JwksFileReport>,
    /// The pipeline; `None` where there is none.
    #[serde(deserialize_with = "optional_object")]
    pub kafka: Option<KafkaReport>,
}

/// TLS of the public listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsReport {
    /// When the certificate in use ends, RFC 3339.
    pub not_after: String,
    /// Why newer files are not in use.
    pub error: Option<String>,
}

/// A part that is not ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnreadyPart {
    /// Its name.
    pub part: String,
    /// Why.
    pub reason: String,
}

/// Open connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionCounts {
    /// All.
    pub total: i64,
    /// Past authentication.
    pub authenticated: i64,
    /// Sealed.
    pub encrypted: i64,
}

/// Redis of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RedisReport {
    /// Which kind is in use.
    #[serde(deserialize_with = "known")]
    pub mode: Option<RedisMode>,
    /// `host:port` of the servers, sentinels or cluster nodes in use.
    pub nodes: Vec<String>,
    /// Whether the instance receives what others publish.
    pub subscribed: bool,
    /// How long the last self-ping took, in milliseconds.
    pub lag_ms: Option<f64>,
    /// Whether the live settings name another server or login than the current one, and the gateway is switching to it.
    pub switching: bool,
    /// Why the switch has failed so far.
    pub error: Option<String>,
    /// The previous server, while the gateway keeps it.
    #[serde(deserialize_with = "optional_object")]
    pub previous: Option<PreviousRedis>,
}

/// The previous server, while the gateway keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PreviousRedis {
    /// `host:port` of its servers, sentinels or cluster nodes.
    pub nodes: Vec<String>,
    /// Whether the instance receives what others publish there; readiness does not depend on it.
    pub subscribed: bool,
}

/// How far a drain has come; also the answer of `POST /drain` and `DELETE /drain`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrainStatus {
    /// It drains.
    pub draining: bool,
    /// The process stays afterwards, and the drain can be taken back.
    pub held: bool,
    /// Connections when it began to close them; 0 until then.
    pub at_start: i64,
    /// Connections that are still open.
    pub remaining: i64,
}

/// The notification database of one gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseReport {
    /// Number of the newest migration; `None` while the database does not answer.
    pub version: Option<i64>,
}

/// One key source of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeySourceReport {
    /// Its name.
    pub name: String,
    /// Its stage in a rotation.
    #[serde(deserialize_with = "known")]
    pub state: Option<SourceState>,
    /// Its usable keys: `kid`, or the thumbprint of a key without one.
    pub keys: Vec<String>,
    /// The last good fetch, RFC 3339.
    pub refreshed_at: Option<String>,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// What `/.well-known/jwks.json` serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JwksFileReport {
    /// Revision of the file's text.
    pub revision: String,
    /// The `kid` of each key.
    pub keys: Vec<String>,
}

/// The pipeline of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KafkaReport {
    /// Partitions assigned to it.
    pub partitions: i64,
    /// The longest lag of any of them, in records; `None` while none is known.
    pub max_lag: Option<i64>,
    /// Partitions that wait for a dependency.
    pub retrying: i64,
    /// Partitions that have records and have not advanced for `kafka.stuck_after_secs`.
    #[serde(deserialize_with = "objects")]
    pub stuck: Vec<StuckPartition>,
    /// What else keeps the pipeline from its work, each as a text for people.
    pub notices: Vec<String>,
}

/// A partition that has records and does not advance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StuckPartition {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The record that keeps it.
    pub offset: i64,
    /// How many records wait; `None` while it is not known.
    pub lag: Option<i64>,
    /// Since when it has not advanced.
    pub seconds: i64,
    /// Why: `database`, `recipients`, `dead_letters`, `schemas`, `fetch` or `unknown`.
    pub reason: String,
    /// The last error.
    pub error: Option<String>,
}

/// The body of `POST /drain`: close all connections over the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainOrder {
    /// The process stays, unready and without connections, until the drain is taken back or the process ends.
    #[serde(default)]
    pub hold: bool,
    /// Of a held drain: how long the instance still accepts connections, until everybody who sends them knows that it is not ready. Absent:
    /// `drain.endpoint_propagation_ms`.
    #[serde(default, rename = "pauseMs", skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
    /// Of a held drain: it is taken back after this time, unless the order is repeated. Absent: it stays.
    #[serde(default, rename = "expiresMs", skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// The body of `POST /shed`: close this many connections with 4009.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShedOrder {
    /// At least 1.
    pub count: usize,
}

/// The answer of `POST /shed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shed {
    /// Connections that were closed.
    pub closed: usize,
}

/// Reads a word; one that this release does not know is `None`.
fn known<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Word<T> {
        Known(T),
        Other(IgnoredAny),
    }
    Ok(match Word::deserialize(from)? {
        Word::Known(word) => Some(word),
        Word::Other(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Object;

    #[test]
    fn a_report_of_an_older_or_a_newer_release_is_understood() {
        let read = |text: &str| toml::from_str::<StatusReport>(text).unwrap();
        assert_eq!(read(""), StatusReport::default());
        let newer = read(
            "ready = true\nnew = { a = 1 }\n[redis]\nmode = \"ring\"\nnew = 1\nsubscribed = true\n\
             [[keySources]]\nname = \"main\"\nstate = \"paused\"\n[[keySources]]\nname = \"b\"\nstate = \"retiring\"\n",
        );
        assert!(newer.ready && newer.redis.subscribed && newer.redis.mode.is_none());
        let states: Vec<_> = newer.key_sources.iter().map(|s| s.state).collect();
        assert_eq!(states, [None, Some(SourceState::Retiring)]);
    }

    #[test]
    fn a_list_is_no_report_and_no_part_of_one() {
        let read = |text: &str| serde_json::from_str::<Object<StatusReport>>(text);
        assert!(read(r#"{"ready":true,"redis":{"subscribed":true}}"#).is_ok());
        for list in [
            r#"["gateway-0","1.0.0",true]"#,
            r#"{"redis":[null,[],true]}"#,
            r#"{"redis":{"previous":[[],true]}}"#,
            r#"{"drain":[false,false,0,0]}"#,
            r#"{"connections":[1,1,0]}"#,
            r#"{"database":[7]}"#,
            r#"{"unready":[["redis","lost"]]}"#,
            r#"{"keySources":[["main","trusted",[]]]}"#,
            r#"{"jwksFile":["sha256:0",[]]}"#,
            r#"{"kafka":[1,null,0]}"#,
            r#"{"kafka":{"stuck":[["t",0,5]]}}"#,
        ] {
            assert!(read(list).unwrap_err().is_data(), "{list}");
        }
    }
}

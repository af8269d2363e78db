//! Redis: where it is, how to log in to it, and the timings of the gateway's use of it.
//!
//! The static `[redis]` is a [`Redis`]; `[redis]` and `[redis_previous]` of the live file are a [`RedisLocation`] each, the part that may change
//! while connections are open.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::SecretFile;

/// `[redis]` of the static settings.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// Which Redis, if any.
    pub mode: RedisMode,
    /// `host:port` of the server, the sentinels or cluster nodes.
    pub nodes: Vec<String>,
    /// The sentinels.
    pub sentinel: Sentinel,
    /// Database number.
    pub database: i64,
    /// Login.
    pub auth: RedisAuth,
    /// TLS.
    pub tls: RedisTls,
    /// In front of every channel and key.
    pub channel_prefix: String,
    /// How often the instance pings itself, in milliseconds.
    pub self_ping_interval_ms: u64,
    /// The subscriber counts as stalled when no ping came back for this long, in milliseconds.
    pub stalled_after_ms: u64,
    /// How long to wait for other instances' replies, in milliseconds.
    pub request_timeout_ms: u64,
    /// How long to wait for the server, in milliseconds.
    pub command_timeout_ms: u64,
    /// Most dispatches waiting to be published.
    pub publish_queue: usize,
    /// Whether messages between instances go over sharded Pub/Sub where the mode is cluster, once every live instance is set so.
    pub sharded_pubsub: bool,
}

/// Which Redis, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisMode {
    /// None: one instance alone.
    #[default]
    None,
    /// One server.
    Standalone,
    /// A master that sentinels name.
    Sentinel,
    /// A Redis Cluster.
    Cluster,
}

/// `[redis.sentinel]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sentinel {
    /// The name of the master.
    pub master_name: String,
    /// File with the sentinels' own password.
    pub password_file: SecretFile,
}

impl Default for Sentinel {
    fn default() -> Self {
        Self {
            master_name: "mymaster".into(),
            password_file: SecretFile::default(),
        }
    }
}

/// `[redis.auth]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisAuth {
    /// ACL user; empty for the default user.
    pub username: String,
    /// File with the user, instead of `username`.
    pub username_file: SecretFile,
    /// File with the password.
    pub password_file: SecretFile,
}

/// `[redis.tls]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisTls {
    /// Whether to use TLS.
    pub enabled: bool,
    /// PEM file of authorities; empty for the system's.
    pub ca_file: PathBuf,
    /// PEM file of the certificate that the server asks for, and its chain; empty for none.
    pub certificate_file: PathBuf,
    /// PEM file of its private key.
    pub key_file: SecretFile,
}

/// Where one Redis is and how to log in to it. What is left out is as in `config.default.toml`, whatever the static `[redis]` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisLocation {
    /// Which kind; never [`RedisMode::None`].
    pub mode: RedisMode,
    /// `host:port` of the server, the sentinels or cluster nodes.
    pub nodes: Vec<String>,
    /// The sentinels.
    pub sentinel: Sentinel,
    /// Database number.
    pub database: i64,
    /// Login.
    pub auth: RedisAuth,
    /// TLS.
    pub tls: RedisTls,
    /// In front of every channel and key.
    pub channel_prefix: String,
}

impl RedisLocation {
    /// Returns the location that the static settings name.
    pub fn of(redis: &Redis) -> Self {
        Self {
            mode: redis.mode,
            nodes: redis.nodes.clone(),
            sentinel: redis.sentinel.clone(),
            database: redis.database,
            auth: redis.auth.clone(),
            tls: redis.tls.clone(),
            channel_prefix: redis.channel_prefix.clone(),
        }
    }

    /// Returns the static settings with this location in place of theirs.
    pub fn with_timings_of(&self, redis: &Redis) -> Redis {
        Redis {
            mode: self.mode,
            nodes: self.nodes.clone(),
            sentinel: self.sentinel.clone(),
            database: self.database,
            auth: self.auth.clone(),
            tls: self.tls.clone(),
            channel_prefix: self.channel_prefix.clone(),
            ..redis.clone()
        }
    }

    /// Returns whether both name the same channels and keys of the same servers, whatever their logins.
    pub fn is_same_server(&self, other: &Self) -> bool {
        let nodes = |location: &Self| {
            let mut nodes = location.nodes.clone();
            nodes.sort();
            nodes
        };
        let master = |location: &Self| {
            (location.mode == RedisMode::Sentinel).then(|| location.sentinel.master_name.clone())
        };
        // A Redis Cluster has one database, number 0.
        let database = |location: &Self| match location.mode {
            RedisMode::Cluster => 0,
            _ => location.database,
        };
        self.mode == other.mode
            && nodes(self) == nodes(other)
            && master(self) == master(other)
            && database(self) == database(other)
            && self.channel_prefix == other.channel_prefix
    }

    /// Returns the files that it names, each with the name of its setting.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let secrets = [
            ("auth.username_file", self.auth.username_file.path()),
            ("auth.password_file", self.auth.password_file.path()),
            ("sentinel.password_file", self.sentinel.password_file.path()),
        ];
        let of_tls = [
            ("tls.ca_file", Some(self.tls.ca_file.as_path())),
            ("tls.certificate_file", Some(&self.tls.certificate_file)),
            ("tls.key_file", self.tls.key_file.path()),
        ];
        let of_tls = of_tls.into_iter().filter(|(_, path)| {
            self.tls.enabled && path.is_some_and(|path| !path.as_os_str().is_empty())
        });
        secrets
            .into_iter()
            .chain(of_tls)
            .filter_map(|(name, path)| Some((name, path?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_credentials_are_the_same_server_and_another_prefix_is_not() {
        let location = |text: &str| toml::from_str::<RedisLocation>(text).unwrap();
        let first = location("mode = \"standalone\"\nnodes = [\"a:1\"]");
        let login = "auth = { username = \"u\", password_file = \"/p\" }\ntls = { enabled = true }";
        assert!(first.is_same_server(&location(&format!(
            "mode = \"standalone\"\nnodes = [\"a:1\"]\n{login}"
        ))));
        for other in [
            "nodes = [\"a:2\"]",
            "nodes = [\"a:1\"]\nchannel_prefix = \"p:\"",
            "nodes = [\"a:1\"]\ndatabase = 1",
        ] {
            assert!(
                !first.is_same_server(&location(&format!("mode = \"standalone\"\n{other}"))),
                "{other}"
            );
        }
        let mut redis = crate::Config::for_tests().redis;
        redis.publish_queue = 7;
        let used = first.with_timings_of(&redis);
        assert_eq!((RedisLocation::of(&used), used.publish_queue), (first, 7));
    }
}

//! Where a Redis is and how to log in to it: the part of `[bus]` that the live file may change while connections are open.
//!
//! Input: `[bus]` and `[bus_previous]` of the live file, and the static `[bus]`, of which it is a part. Output: the settings of one Redis.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Bus, BusMode, SecretFile};

/// One Redis. What is left out is as in `config.default.toml`, whatever the static `[bus]` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BusPlace {
    /// Which kind; never [`BusMode::Local`].
    pub mode: BusMode,
    /// `host:port` of the server, the sentinels or cluster nodes.
    pub nodes: Vec<String>,
    /// Sentinel's name of the master.
    #[serde(default = "default_master")]
    pub sentinel_master: String,
    /// Database number.
    #[serde(default)]
    pub database: i64,
    /// ACL user; empty for the default user.
    #[serde(default)]
    pub username: String,
    /// File with the password.
    #[serde(default)]
    pub password_file: SecretFile,
    /// File with the sentinels' password.
    #[serde(default)]
    pub sentinel_password_file: SecretFile,
    /// Whether to use TLS.
    #[serde(default)]
    pub tls: bool,
    /// PEM file of authorities; empty for the system's.
    #[serde(default)]
    pub tls_ca_file: PathBuf,
    /// In front of every channel and key.
    #[serde(default)]
    pub prefix: String,
}

fn default_master() -> String {
    "mymaster".into()
}

impl BusPlace {
    /// The place that the static settings name.
    pub fn of(bus: &Bus) -> Self {
        Self {
            mode: bus.mode,
            nodes: bus.nodes.clone(),
            sentinel_master: bus.sentinel_master.clone(),
            database: bus.database,
            username: bus.username.clone(),
            password_file: bus.password_file.clone(),
            sentinel_password_file: bus.sentinel_password_file.clone(),
            tls: bus.tls,
            tls_ca_file: bus.tls_ca_file.clone(),
            prefix: bus.prefix.clone(),
        }
    }

    /// The static settings with this place in them.
    pub fn in_place_of(&self, bus: &Bus) -> Bus {
        Bus {
            mode: self.mode,
            nodes: self.nodes.clone(),
            sentinel_master: self.sentinel_master.clone(),
            database: self.database,
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            sentinel_password_file: self.sentinel_password_file.clone(),
            tls: self.tls,
            tls_ca_file: self.tls_ca_file.clone(),
            prefix: self.prefix.clone(),
            ..bus.clone()
        }
    }

    /// Whether both name the same channels and keys of the same servers, however one logs in to them.
    pub fn is_same_server(&self, other: &Self) -> bool {
        let nodes = |place: &Self| {
            let mut nodes = place.nodes.clone();
            nodes.sort();
            nodes
        };
        let master =
            |place: &Self| (place.mode == BusMode::Sentinel).then(|| place.sentinel_master.clone());
        let database = |place: &Self| {
            if place.mode == BusMode::Cluster {
                0
            } else {
                place.database
            }
        };
        self.mode == other.mode
            && nodes(self) == nodes(other)
            && master(self) == master(other)
            && database(self) == database(other)
            && self.prefix == other.prefix
    }

    /// The files that it names, each with its setting's name.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let secrets = [
            ("password_file", self.password_file.path()),
            ("sentinel_password_file", self.sentinel_password_file.path()),
        ];
        let authorities = (self.tls && !self.tls_ca_file.as_os_str().is_empty())
            .then_some(("tls_ca_file", self.tls_ca_file.as_path()));
        secrets
            .into_iter()
            .filter_map(|(name, path)| Some((name, path?)))
            .chain(authorities)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_credentials_are_the_same_server_and_another_prefix_is_not() {
        let place = |text: &str| toml::from_str::<BusPlace>(text).unwrap();
        let here = place("mode = \"standalone\"\nnodes = [\"a:1\"]");
        assert!(
            here.is_same_server(&place("mode = \"standalone\"\nnodes = [\"a:1\"]\nusername = \"u\"\npassword_file = \"/p\"\ntls = true"))
        );
        for other in [
            "nodes = [\"a:2\"]",
            "nodes = [\"a:1\"]\nprefix = \"p:\"",
            "nodes = [\"a:1\"]\ndatabase = 1",
        ] {
            assert!(
                !here.is_same_server(&place(&format!("mode = \"standalone\"\n{other}"))),
                "{other}"
            );
        }
        let mut config = crate::Config::for_tests().bus;
        config.publish_queue = 7;
        let used = here.in_place_of(&config);
        assert_eq!((BusPlace::of(&used), used.publish_queue), (here, 7));
    }
}

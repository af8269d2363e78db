//! The gateway pods of one SignalCluster as they were observed: what Kubernetes says of each, and what each says of itself.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use serde::Deserialize;

/// All pods of one SignalCluster that are not over (neither Succeeded nor Failed), by name.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// Sorted by name.
    pub pods: Vec<Pod>,
}

/// One gateway pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// For preconditions of writes.
    pub resource_version: String,
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
    /// Its container port named `admin`.
    pub admin_port: u16,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// Condition Ready of Kubernetes.
    pub ready: bool,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// Since when it drains at scale-in, as its label and annotation say.
    pub draining_since: Option<DateTime<Utc>>,
    /// Its deletion cost, if it has one.
    pub deletion_cost: Option<i32>,
    /// Label `pod-template-hash`.
    pub template_hash: String,
    /// When it was created.
    pub created: DateTime<Utc>,
    /// What it says of itself; `Err` says why nobody knows.
    pub report: Result<Report, String>,
}

/// What a gateway's `/status` says (camelCase there); members that are not needed are not read.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Version of the gateway.
    pub version: String,
    /// Whether it calls itself ready.
    pub ready: bool,
    /// Which parts are not.
    pub unready: Vec<UnreadyPart>,
    /// Open connections.
    pub connections: Counts,
    /// Redis; mode `local` where there is none.
    pub bus: Bus,
    /// How far a drain has come.
    pub drain: Drain,
    /// `sha256:` and the hash of the `live.toml` that holds: the acknowledgement.
    pub live_revision: String,
    /// Why a newer `live.toml` does not hold.
    pub live_error: Option<String>,
    /// Every key source.
    pub key_sources: Vec<KeySource>,
    /// The pipeline; `None` where there is none.
    pub kafka: Option<KafkaFacts>,
    /// The database.
    pub database: Database,
    /// What `/.well-known/jwks.json` serves.
    pub jwks_file: Option<JwksFile>,
}

/// A part that is not ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UnreadyPart {
    /// Its name.
    pub part: String,
    /// Why.
    pub reason: String,
}

/// Open connections of one pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// All.
    pub total: i64,
    /// Past authentication.
    pub authenticated: i64,
    /// Sealed.
    pub encrypted: i64,
}

/// Redis of one pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bus {
    /// `local`, `standalone`, `sentinel`, `cluster`.
    pub mode: String,
    /// Of the bus in use.
    pub nodes: Vec<String>,
    /// Whether it hears itself.
    pub hearing: bool,
    /// Why a newer bus is not in use.
    pub error: Option<String>,
    /// The bus before, while it is bridged.
    pub previous: Option<PreviousBus>,
}

/// The bus before, while it is bridged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PreviousBus {
    /// Its nodes.
    pub nodes: Vec<String>,
    /// Whether it is heard.
    pub hearing: bool,
}

/// How far a drain has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Drain {
    /// It drains.
    pub draining: bool,
    /// It will stay afterwards, and the drain can be taken back.
    pub held: bool,
    /// Connections that are still open.
    pub remaining: i64,
}

/// One key source of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeySource {
    /// Its name.
    pub name: String,
    /// `prepared`, `trusted`, `retiring`.
    pub state: String,
    /// Its usable keys.
    pub keys: Vec<String>,
    /// The last good fetch, RFC 3339.
    pub refreshed_at: Option<String>,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// The pipeline of one pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KafkaFacts {
    /// Partitions assigned to it.
    pub partitions: i64,
    /// Most records that wait in one of them.
    pub max_lag: Option<i64>,
    /// Partitions that wait for a dependency.
    pub retrying: i64,
}

/// The database of one pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Database {
    /// Number of the newest migration.
    pub version: Option<i64>,
}

/// What `/.well-known/jwks.json` serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct JwksFile {
    /// Hash of the file.
    pub revision: String,
    /// Its `kid`s.
    pub keys: Vec<String>,
}

impl Pod {
    /// Its report, if it answered.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref().ok()
    }

    /// It neither drains at scale-in nor terminates.
    pub fn stays(&self) -> bool {
        !self.terminating && self.draining_since.is_none()
    }

    /// Whether it holds this live revision without a complaint about a newer one.
    pub fn holds(&self, revision: &str) -> bool {
        self.report()
            .is_some_and(|report| report.live_revision == revision)
    }
}

impl Fleet {
    /// Pods that serve: ready, not terminating. Those that drain are not ready, and so not among them.
    pub fn ready(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| pod.ready && !pod.terminating)
    }

    /// Pods that hold connections or may come to: all that are not terminating. What trust is withdrawn from must reach each of them.
    pub fn alive(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| !pod.terminating)
    }

    /// Ready pods that do not hold this live revision; empty means that it is acknowledged (also where no pod is ready).
    pub fn missing_acknowledgement(&self, revision: &str) -> Vec<&Pod> {
        self.ready().filter(|pod| !pod.holds(revision)).collect()
    }

    /// Who keeps this live revision from being acknowledged, for people; `None` where it is acknowledged. Without a revision there is nothing yet
    /// that could be.
    pub fn lagging(&self, revision: Option<&str>) -> Option<String> {
        let Some(revision) = revision else {
            return Some("live settings are not written yet".into());
        };
        lag(self.missing_acknowledgement(revision))
    }
}

/// Most pods that a message names.
const NAMED: usize = 3;

/// Names these pods, and says what keeps each of them from the newest live settings; `None` where there are none.
pub fn lag(pods: Vec<&Pod>) -> Option<String> {
    let why = |pod: &&Pod| match &pod.report {
        Err(error) => format!("pod {}: {error}", pod.name),
        Ok(Report {
            live_error: Some(error),
            ..
        }) => format!("pod {}: {error}", pod.name),
        Ok(_) => format!("pod {} has older live settings", pod.name),
    };
    let mut parts: Vec<String> = pods.iter().take(NAMED).map(why).collect();
    if pods.len() > NAMED {
        parts.push(format!("and {} more", pods.len() - NAMED));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

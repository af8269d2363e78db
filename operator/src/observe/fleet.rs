//! The gateway pods of one SignalCluster as they were observed: what Kubernetes says of each, and what each says of itself.

use std::net::IpAddr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use signal_contract::StatusReport;

/// For so long after it was created, a pod that is not ready may have no subscription and no keys yet, without anything being wrong.
const STARTING: TimeDelta = TimeDelta::seconds(60);

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
    /// How long after it says that it is not ready Kubernetes knows it at the latest, by its own readiness probe.
    pub readiness_lag: Duration,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// Condition Ready of Kubernetes.
    pub ready: bool,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// Since when it drains at scale-in, as its label and annotation say.
    pub draining_since: Option<DateTime<Utc>>,
    /// How often its gateway was restarted.
    pub restarts: i32,
    /// Somebody asks for it to be drained and replaced.
    pub asked_to_drain: bool,
    /// Its deletion cost, if it has one.
    pub deletion_cost: Option<i32>,
    /// Label `pod-template-hash`.
    pub template_hash: String,
    /// When it was created.
    pub created: DateTime<Utc>,
    /// What keeps it from serving, as Kubernetes says.
    pub problem: Option<PodProblem>,
    /// When the problem is another one although nothing of its object changes.
    pub changes_at: Option<DateTime<Utc>>,
    /// What it says of itself; `Err` says why nobody knows.
    pub report: Result<StatusReport, String>,
}

/// What keeps a pod from serving, as Kubernetes says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodProblem {
    /// What it is.
    pub kind: PodProblemKind,
    /// For people: one short line, which ends with what the container said last.
    pub message: String,
}

/// Kinds of [`PodProblem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodProblemKind {
    /// The image cannot be pulled.
    Image,
    /// A container ends again and again.
    Crash,
    /// A container was killed because it used more memory than its limit.
    OutOfMemory,
    /// A container cannot be started as it is configured.
    Configuration,
    /// No node has room for it.
    Unschedulable,
}

impl Pod {
    /// Its report, if it answered.
    pub fn report(&self) -> Option<&StatusReport> {
        self.report.as_ref().ok()
    }

    /// Until when it may lack what a pod has that serves, without anything being wrong; `None` for one that is ready.
    pub fn starts_until(&self) -> Option<DateTime<Utc>> {
        (!self.ready).then(|| self.created + STARTING)
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
        Ok(StatusReport {
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

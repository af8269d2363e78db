//! Every metric of the process in one list. Labels have few, known values, and never the name of an object but for the namespaces of the arguments and
//! for SignalClusters, whose values are dropped with them.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

/// How something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// One of the values in the metric's help.
    pub outcome: &'static str,
}

/// What was written and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabel {
    /// Kind of the object.
    pub kind: String,
    /// `apply`, `patch`, `delete`, ...
    pub verb: &'static str,
}

/// A request to the API server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiRequest {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    /// As rights name it: `pods`, `signalclusters/status`; `discovery` for what kinds there are.
    pub resource: String,
}

/// What requested a reconcile.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Source {
    /// `cluster`: itself; `owned`: one of its objects; `named`: something that its spec names; `relist`: a watch was started again.
    pub source: &'static str,
}

/// A scope in which SignalClusters are watched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ScopeLabel {
    /// A namespace of the arguments; empty for all namespaces.
    pub namespace: String,
}

/// A SignalCluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClusterLabel {
    /// Its namespace; not `namespace`, which Prometheus sets to that of the operator.
    pub signalcluster_namespace: String,
    /// Its name.
    pub signalcluster: String,
}

/// What is known of a SignalCluster after a reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterState {
    /// Whether condition Ready is true of the newest generation.
    pub ready: bool,
    /// Whether condition Exposed is false.
    pub unexposed: bool,
    /// Whether condition Monitored is false.
    pub unmonitored: bool,
    /// Generations of the spec that the status does not know.
    pub generation_lag: i64,
    /// Since when the oldest change of trust is on its way, in seconds since 1970.
    pub rotation_since: Option<i64>,
    /// Since when the oldest drain lasts, in seconds since 1970.
    pub drain_since: Option<i64>,
}

/// Build facts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// The metrics, and the registry that `/metrics` prints. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Reconciles that ended: `ok`, or the class of the error.
    pub reconciles: Family<Outcome, Counter>,
    /// How long they took.
    pub reconcile_seconds: Histogram,
    /// Reconciles that run now.
    pub running: Gauge,
    /// Reconciles that watches requested, by source.
    pub triggers: Family<Source, Counter>,
    /// Reconciles that were scheduled again, by why: `resync`, `pods`, `samples`, `settling`, what is due at a known time, or the class of the error.
    pub requeues: Family<Outcome, Counter>,
    /// Looks at SignalClusters: `everything` was read, or `pods` alone were asked.
    pub looks: Family<Outcome, Counter>,
    /// Requests sent to the API server, of every kind.
    pub api_requests: Family<ApiRequest, Counter>,
    /// Writes sent to the API server.
    pub writes: Family<WriteLabel, Counter>,
    /// Polls of the status of gateway pods: `ok`, `error`.
    pub polls: Family<Outcome, Counter>,
    /// Watches that broke and were set up again.
    pub watch_errors: Counter,
    /// 1 for each scope whose SignalClusters cannot be watched.
    pub scopes_failing: Family<ScopeLabel, Gauge>,
    /// SignalClusters in the store.
    pub clusters: Gauge,
    /// Of each SignalCluster.
    pub cluster: ClusterMetrics,
    /// 1 while this process holds the lease.
    pub leader: Gauge,
    /// 1 once the API server knows SignalCluster.
    pub crd_present: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("signal_operator");
        let all = &mut registry;
        let reconciles = register(all, "reconciles", "Reconciles that ended, by outcome");
        let reconcile_seconds = Histogram::new(exponential_buckets(0.005, 2.0, 13));
        all.register_with_unit(
            "reconcile_duration",
            "How long reconciles took",
            Unit::Seconds,
            reconcile_seconds.clone(),
        );
        let running = register(all, "reconciles_running", "Reconciles that run now");
        let triggers = register(
            all,
            "triggers",
            "Reconciles that watches requested, by source",
        );
        let requeues = register(
            all,
            "requeues",
            "Reconciles that were scheduled again, by why",
        );
        let looks = register(
            all,
            "looks",
            "Looks at SignalClusters, by what was looked at: everything, or pods alone",
        );
        let api_requests = register(
            all,
            "api_requests",
            "Requests sent to the API server, by verb and resource",
        );
        let writes = register(
            all,
            "writes",
            "Writes sent to the API server, by kind and verb",
        );
        let polls = register(
            all,
            "pod_status_polls",
            "Polls of the status of gateway pods, by outcome",
        );
        let watch_errors = register(
            all,
            "watch_errors",
            "Watches that broke and were set up again",
        );
        let scopes_failing = register(
            all,
            "scopes_failing",
            "1 for each namespace of the arguments whose SignalClusters cannot be watched",
        );
        let clusters = register(all, "clusters", "SignalClusters in the store");
        let cluster = ClusterMetrics::new(all);
        let leader = register(all, "leader", "1 while this process holds the lease");
        let crd_present = register(
            all,
            "crd_present",
            "1 once the API server knows SignalCluster",
        );
        show_build(all);
        Self {
            registry: Arc::new(registry),
            reconciles,
            reconcile_seconds,
            running,
            triggers,
            requeues,
            looks,
            api_requests,
            writes,
            polls,
            watch_errors,
            scopes_failing,
            clusters,
            cluster,
            leader,
            crd_present,
        }
    }
}

/// Metrics of each SignalCluster.
#[derive(Debug, Clone)]
pub struct ClusterMetrics {
    /// 1 for each SignalCluster that is ready, 0 for each other.
    pub ready: Family<ClusterLabel, Gauge>,
    /// 0 for each SignalCluster whose condition Exposed is false, 1 for each other.
    pub exposed: Family<ClusterLabel, Gauge>,
    /// 0 for each SignalCluster whose condition Monitored is false, 1 for each other.
    pub monitored: Family<ClusterLabel, Gauge>,
    /// Generations of each spec that its status does not know.
    pub generation_lag: Family<ClusterLabel, Gauge>,
    /// Since when the oldest change of trust is on its way; absent where there is none.
    pub rotation_since: Family<ClusterLabel, Gauge>,
    /// Since when the oldest drain lasts; absent where there is none.
    pub drain_since: Family<ClusterLabel, Gauge>,
    /// Reconciles of each that failed.
    pub errors: Family<ClusterLabel, Counter>,
}

impl ClusterMetrics {
    fn new(all: &mut Registry) -> Self {
        let ready = register(
            all,
            "cluster_ready",
            "1 for each SignalCluster whose newest generation is ready, 0 for each other",
        );
        let exposed = register(
            all,
            "cluster_exposed",
            "0 for each SignalCluster whose condition Exposed is false, 1 for each other",
        );
        let monitored = register(
            all,
            "cluster_monitored",
            "0 for each SignalCluster whose condition Monitored is false, 1 for each other",
        );
        let generation_lag = register(
            all,
            "cluster_generation_lag",
            "Generations of each SignalCluster that its status does not know",
        );
        let rotation_since = register(
            all,
            "cluster_rotation_since_timestamp_seconds",
            "Since when the oldest change of trust of each SignalCluster is on its way",
        );
        let drain_since = register(
            all,
            "cluster_drain_since_timestamp_seconds",
            "Since when the oldest drain of each SignalCluster lasts",
        );
        let errors = register(
            all,
            "cluster_reconcile_errors",
            "Reconciles of each SignalCluster that failed",
        );
        Self {
            ready,
            exposed,
            monitored,
            generation_lag,
            rotation_since,
            drain_since,
            errors,
        }
    }

    /// Shows what is known of a SignalCluster.
    pub fn show(&self, cluster: &ClusterLabel, state: &ClusterState) {
        for (family, value) in [
            (&self.ready, state.ready.into()),
            (&self.exposed, (!state.unexposed).into()),
            (&self.monitored, (!state.unmonitored).into()),
            (&self.generation_lag, state.generation_lag),
        ] {
            family.get_or_create(cluster).set(value);
        }
        for (family, since) in [
            (&self.rotation_since, state.rotation_since),
            (&self.drain_since, state.drain_since),
        ] {
            match since {
                Some(since) => {
                    family.get_or_create(cluster).set(since);
                }
                None => {
                    family.remove(cluster);
                }
            }
        }
    }

    /// Drops everything about all of them: another process knows them now.
    pub fn forget_all(&self) {
        for family in self.gauges() {
            family.clear();
        }
        self.errors.clear();
    }

    fn gauges(&self) -> [&Family<ClusterLabel, Gauge>; 6] {
        [
            &self.ready,
            &self.exposed,
            &self.monitored,
            &self.generation_lag,
            &self.rotation_since,
            &self.drain_since,
        ]
    }

    /// Drops everything about a SignalCluster that is gone.
    pub fn forget(&self, cluster: &ClusterLabel) {
        for family in self.gauges() {
            family.remove(cluster);
        }
        self.errors.remove(cluster);
    }
}

/// Says which version this is.
fn show_build(registry: &mut Registry) {
    let build: Family<Build, Gauge> = register(registry, "build_info", "Version of the operator");
    let version = env!("CARGO_PKG_VERSION");
    build.get_or_create(&Build { version }).set(1);
}

/// A new metric of the registry.
fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// As Prometheus reads it (OpenMetrics text).
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("a String takes every write");
        text
    }

    /// Counts one more of this outcome.
    pub fn count(family: &Family<Outcome, Counter>, outcome: &'static str) {
        family.get_or_create(&Outcome { outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_cluster_is_shown_until_it_is_gone() {
        let metrics = Metrics::default();
        let edge = ClusterLabel {
            signalcluster_namespace: "realtime".into(),
            signalcluster: "edge".into(),
        };
        let mut state = ClusterState {
            unexposed: true,
            generation_lag: 2,
            rotation_since: Some(1_700_000_000),
            ..ClusterState::default()
        };
        metrics.cluster.show(&edge, &state);
        metrics.cluster.errors.get_or_create(&edge).inc();
        let labels = r#"{signalcluster_namespace="realtime",signalcluster="edge"}"#;
        let text = metrics.text();
        for line in [
            format!("signal_operator_cluster_ready{labels} 0"),
            format!("signal_operator_cluster_exposed{labels} 0"),
            format!("signal_operator_cluster_monitored{labels} 1"),
            format!("signal_operator_cluster_generation_lag{labels} 2"),
            format!("signal_operator_cluster_rotation_since_timestamp_seconds{labels} 1700000000"),
            format!("signal_operator_cluster_reconcile_errors_total{labels} 1"),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(!text.contains(&format!("drain_since_timestamp_seconds{labels}")));
        (state.ready, state.rotation_since) = (true, None);
        metrics.cluster.show(&edge, &state);
        let text = metrics.text();
        assert!(text.contains(&format!("signal_operator_cluster_ready{labels} 1")));
        assert!(!text.contains(&format!("rotation_since_timestamp_seconds{labels}")));
        metrics.cluster.forget(&edge);
        assert!(!metrics.text().contains(labels));
        metrics.cluster.show(&edge, &state);
        metrics.cluster.errors.get_or_create(&edge).inc();
        metrics.cluster.forget_all();
        assert!(!metrics.text().contains(labels));
    }

    #[test]
    fn every_metric_has_the_prefix_and_a_help() {
        let metrics = Metrics::default();
        Metrics::count(&metrics.reconciles, "ok");
        metrics
            .writes
            .get_or_create(&WriteLabel {
                kind: "Deployment".into(),
                verb: "apply",
            })
            .inc();
        let text = metrics.text();
        assert!(
            text.contains(r#"signal_operator_reconciles_total{outcome="ok"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"signal_operator_writes_total{kind="Deployment",verb="apply"} 1"#),
            "{text}"
        );
        assert!(
            text.lines()
                .filter(|line| !line.is_empty() && !line.starts_with("# EOF"))
                .all(|line| line.contains("signal_operator_"))
        );
    }
}

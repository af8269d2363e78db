//! Every metric of the process in one list. Labels have few, known values and never the name of an object but for the namespaces of the arguments.

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
    /// Reconciles that were scheduled again, by why: `wait`, `resync`, or the class of the error.
    pub requeues: Family<Outcome, Counter>,
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
        let leader = register(all, "leader", "1 while this process holds the lease");
        let crd_present = register(
            all,
            "crd_present",
            "1 once the API server knows SignalCluster",
        );
        let build: Family<Build, Gauge> = Family::default();
        build
            .get_or_create(&Build {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        registry.register("build_info", "Version of the operator", build);
        Self {
            registry: Arc::new(registry),
            reconciles,
            reconcile_seconds,
            running,
            triggers,
            requeues,
            writes,
            polls,
            watch_errors,
            scopes_failing,
            clusters,
            leader,
            crd_present,
        }
    }
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

//! What a look at a SignalCluster comes to, whether everything was read for it or pods alone were asked: the plan, when to look again, and the metrics.

use chrono::{DateTime, Utc};
use rand::Rng as _;
use signal_crds::Status;
use signal_crds::status::SourceStage;

use crate::decide::{ClusterMemory, ClusterPlan, Wake, WakeInput, decide, wake};
use crate::metrics::ClusterState;
use crate::observe::observed::Observed;
use crate::reconcile::context::{Context, label};
use crate::status::conditions::ConditionType;

/// One look at what was observed at a time.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) context: &'a Context,
    pub(super) now: DateTime<Utc>,
    /// Pods that were asked for it.
    pub(super) asked: usize,
}

impl Look<'_> {
    /// What is to be done.
    pub(super) fn decide(&self, observed: &Observed, memory: &mut ClusterMemory) -> ClusterPlan {
        decide(
            observed,
            memory,
            self.context.operator_namespace.as_deref(),
            &mut rand::rng(),
            self.now,
        )
    }

    /// When to look again.
    pub(super) fn wake(
        &self,
        observed: &Observed,
        plan: &ClusterPlan,
        status: &Status,
        memory: &mut ClusterMemory,
    ) -> Wake {
        let input = WakeInput {
            observed,
            plan,
            conditions: &status.conditions,
            resync: self.context.settings.resync,
            asked: self.asked,
            chance: rand::rng().random_range(0.0..1.0),
        };
        wake(&input, memory, self.now)
    }

    /// Has the metrics say what the status says.
    pub(super) fn show(&self, observed: &Observed, plan: &ClusterPlan, status: &Status) {
        let state = state(observed, plan, status);
        let metrics = &self.context.metrics.cluster;
        metrics.show(&label(&observed.cluster), &state);
    }
}

/// What metrics show of a SignalCluster whose status was written.
fn state(observed: &Observed, plan: &ClusterPlan, status: &Status) -> ClusterState {
    let is = |kind: ConditionType, state: &str| {
        let mut conditions = status.conditions.iter();
        conditions.any(|one| one.type_ == kind.as_str() && one.status == state)
    };
    let sources = plan.facts().record.jwks.sources.iter();
    let moving = sources.filter(|source| source.stage != SourceStage::Trusted);
    let draining = observed.fleet.alive().filter_map(|pod| pod.draining_since);
    ClusterState {
        ready: is(ConditionType::Ready, "True"),
        unexposed: is(ConditionType::Exposed, "False"),
        unmonitored: is(ConditionType::Monitored, "False"),
        generation_lag: 0,
        rotation_since: moving.map(|source| source.since.timestamp()).min(),
        drain_since: draining.map(|since| since.timestamp()).min(),
    }
}

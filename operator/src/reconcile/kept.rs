//! A look that asks pods alone: everything else is as it was read, as long as no watch reports a change of it.
//!
//! Such a look decides, and gives out nothing but numbers and texts of the status, guarded by the version of the SignalCluster. Whatever else it would do
//! is decided again from a new read, so nothing is ever done because of an old one.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use signal_crds::SignalCluster;
use signal_crds::scaling::AutoscalingMode;
use tokio::time::Instant;

use super::{everything, write_status};
use crate::act::apply::fingerprint;
use crate::decide::{ClusterMemory, ClusterPlan, Wake, WakeReason};
use crate::metrics::Metrics;
use crate::observe::admin_token;
use crate::observe::observed::Observed;
use crate::observe::polls::Turn;
use crate::reconcile::context::{Context, Error};
use crate::reconcile::look::Look;
use crate::reconcile::spoils::Mark;
use crate::status::{Difference, difference, status};
use crate::time::{about, now};

/// Everything is read again after about this time, whatever the watches say: a connection may be dead on both ends without a word.
const READ_EVERY: Duration = Duration::from_secs(45 * 60);
/// Numbers of the status are written at most so often while nothing else changes.
const NUMBERS_EVERY: Duration = Duration::from_secs(60);
/// The same where others scale by them, and for texts that people follow.
const TEXTS_EVERY: Duration = Duration::from_secs(15);

/// What was read of a SignalCluster, and what came of it.
pub(crate) struct Kept {
    observed: Observed,
    /// Before it was read.
    mark: Mark,
    /// It is read again then.
    until: Instant,
    /// Of all objects that are wanted, all of which are as they should be; `None` where the spec cannot be carried out.
    fingerprint: Option<String>,
    /// Pods that are asked in the next look.
    turn: usize,
}

impl Kept {
    /// Keeps an observation after which nothing was left to do. Returns when to look again as well: pods are asked in turns from now on.
    pub(super) fn new(
        observed: Observed,
        mark: Mark,
        fingerprint: Option<String>,
        wake: Wake,
    ) -> (Self, Wake) {
        let now = now();
        let changes = observed.fleet.pods.iter().filter_map(|pod| pod.changes_at);
        let changes = changes.map(|at| (at - now).to_std().unwrap_or_default());
        let age = changes.chain([about(READ_EVERY)]).min().unwrap_or_default();
        let (wake, turn) = wake.in_turns(observed.fleet.pods.len());
        let kept = Self {
            observed,
            mark,
            until: Instant::now() + age,
            fingerprint,
            turn,
        };
        (kept, wake)
    }

    /// Whether it is still true of this SignalCluster.
    fn holds(&self, context: &Context, cluster: &SignalCluster) -> bool {
        let metadata = &self.observed.cluster.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let kinds = context.reader.kinds.borrow().of(namespace);
        metadata.uid == cluster.metadata.uid
            && metadata.generation == cluster.metadata.generation
            // Somebody else has written the status, or the watch is behind.
            && metadata.resource_version == cluster.metadata.resource_version
            && cluster.metadata.deletion_timestamp.is_none()
            && kinds == self.observed.kinds
            && Instant::now() < self.until
            && context
                .spoils
                .holds(&ObjectRef::from_obj(cluster), self.mark)
    }
}

/// Asks the pods of a SignalCluster that was read before. `None`: everything has to be read, because something has changed, or has to be done.
///
/// # Errors
/// When the status could not be written.
pub(super) async fn glance(
    context: &Context,
    cluster: &SignalCluster,
) -> Result<Option<Action>, Error> {
    let Some(mut kept) = context.take_kept(cluster) else {
        return Ok(None);
    };
    if !kept.holds(context, cluster) {
        return Ok(None);
    }
    let uid = kept
        .observed
        .cluster
        .metadata
        .uid
        .clone()
        .unwrap_or_default();
    let token = kept.observed.credentials.as_ref().and_then(admin_token);
    let pods = &mut kept.observed.fleet.pods;
    let turn = Turn::Some(kept.turn);
    let asked = context.reader.polls.ask(&uid, pods, token, turn).await;
    let look = Look {
        context,
        now: now(),
        asked,
    };
    let remembered = context.remembered(&kept.observed.cluster);
    // Where it comes to nothing, nothing of it is remembered.
    let mut memory = remembered.lock().clone();
    let plan = look.decide(&kept.observed, &mut memory);
    let status = status(&kept.observed, &plan, &[], look.now);
    let before = kept.observed.cluster.status.as_ref();
    let differs = difference(before, &status);
    if differs == Difference::State || has_work(&kept, &plan, &mut memory)? {
        return Ok(None);
    }
    let wake = look.wake(&kept.observed, &plan, &status, &mut memory);
    *remembered.lock() = memory;
    if may_wait(context, &kept.observed, differs, wake.why) {
        let shown = kept.observed.cluster.status.clone().unwrap_or_default();
        look.show(&kept.observed, &plan, &shown);
    } else {
        write_status(context, &mut kept.observed, &status, differs).await?;
        look.show(&kept.observed, &plan, &status);
    }
    // An event that came meanwhile counts: the mark is that of the read.
    let (wake, turn) = wake.in_turns(kept.observed.fleet.pods.len());
    kept.turn = turn;
    context.keep(cluster, kept);
    Metrics::count(&context.metrics.looks, "pods");
    Ok(Some(context.look_again(wake)))
}

/// Whether this plan does more than the last one, which left nothing to do.
fn has_work(kept: &Kept, plan: &ClusterPlan, memory: &mut ClusterMemory) -> Result<bool, Error> {
    if !memory.unpublished(&plan.facts().events).is_empty() {
        return Ok(true);
    }
    if kept.observed.cluster.spec.paused {
        return Ok(false);
    }
    if plan.gives_orders(&kept.observed) {
        return Ok(true);
    }
    let fingerprint = match plan.planned() {
        Some(planned) => Some(fingerprint(&everything(planned, &kept.observed)?)?),
        None => None,
    };
    Ok(fingerprint != kept.fingerprint)
}

/// Whether a difference of the status is not written yet.
pub(super) fn may_wait(
    context: &Context,
    observed: &Observed,
    differs: Difference,
    why: WakeReason,
) -> bool {
    let autoscaling = observed.cluster.spec.autoscaling.as_ref();
    // KEDA reads the numbers from the status.
    let scales = autoscaling.is_some_and(|it| it.mode == AutoscalingMode::External);
    let every = match differs {
        Difference::None => return true,
        Difference::State => return false,
        Difference::Numbers if scales => TEXTS_EVERY,
        Difference::Numbers => NUMBERS_EVERY,
        Difference::Texts if why == WakeReason::Pods => TEXTS_EVERY,
        Difference::Texts => TEXTS_EVERY * 4,
    };
    let written = context.written(&observed.cluster, differs);
    written.is_some_and(|written| written.elapsed() < every)
}

/// Whether an observation after which nothing was done may be kept.
pub(super) fn may_be_kept(observed: &Observed, plan: &ClusterPlan) -> bool {
    let paused = observed.cluster.spec.paused;
    observed.unread.is_empty() && (paused || !plan.gives_orders(observed))
}

/// With what the API server made of a new status.
pub(super) fn written(observed: &mut Observed, answer: SignalCluster) {
    let cluster = Arc::make_mut(&mut observed.cluster);
    cluster.metadata.resource_version = answer.metadata.resource_version;
    cluster.status = answer.status;
}

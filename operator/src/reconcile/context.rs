//! What every reconcile holds, and why one may fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use signal_crds::SignalCluster;
use tokio::sync::Notify;

use crate::act::apply::ApplyError;
use crate::act::events::Events;
use crate::act::writer::{WriteError, Writer};
use crate::decide::{ClusterMemory, Wake};
use crate::metrics::{ClusterLabel, Metrics};
use crate::observe::admin_client::AdminClient;
use crate::observe::{ObserveError, Reader};

/// How the controller runs.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Reconciles at the same time, at least 1; never two of one SignalCluster.
    pub concurrency: u16,
    /// A SignalCluster without changes is reconciled again after about this time.
    pub resync: Duration,
}

/// What reconciles hold.
pub struct Context {
    /// Observes.
    pub reader: Reader,
    /// Writes.
    pub writer: Writer,
    /// Publishes Events.
    pub events: Events,
    /// Counts reconciles and requests.
    pub metrics: Metrics,
    /// Sends orders to pods.
    pub pods: AdminClient,
    /// The namespace of the operator's own pod, where operators run in no other.
    pub operator_namespace: Option<String>,
    /// How the controller runs.
    pub settings: Settings,
    /// Asks for a look at the optional kinds before its time.
    pub kinds_doubted: Arc<Notify>,
    /// Failures in a row.
    failures: Mutex<HashMap<ObjectRef<SignalCluster>, u32>>,
    /// What is remembered of each, by uid.
    remembered: Mutex<HashMap<String, Arc<Mutex<ClusterMemory>>>>,
}

/// Why a reconcile failed. Waiting for something is a condition, not an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The observation failed.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// An object could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// An order or the status could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Something failed while pods are in the middle of something else.
    #[error("{source}")]
    InPart {
        /// What failed.
        source: Box<Error>,
        /// When the pods have to be looked at again.
        soon: Duration,
    },
}

/// Labels of its metrics.
pub(crate) fn label(cluster: &SignalCluster) -> ClusterLabel {
    ClusterLabel {
        signalcluster_namespace: cluster.namespace().unwrap_or_default(),
        signalcluster: cluster.name_any(),
    }
}

impl Context {
    /// For a controller that has not failed yet.
    pub fn new(
        reader: Reader,
        writer: Writer,
        events: Events,
        pods: AdminClient,
        metrics: Metrics,
        operator_namespace: Option<String>,
        settings: Settings,
    ) -> Self {
        Self {
            reader,
            writer,
            events,
            metrics,
            pods,
            operator_namespace,
            settings,
            kinds_doubted: Arc::default(),
            failures: Mutex::default(),
            remembered: Mutex::default(),
        }
    }

    /// What is remembered of a SignalCluster, by its uid: a later one of the same name starts empty.
    pub(crate) fn remembered(&self, cluster: &SignalCluster) -> Arc<Mutex<ClusterMemory>> {
        self.remembered
            .lock()
            .entry(cluster.uid().unwrap_or_default())
            .or_default()
            .clone()
    }

    /// Drops everything that is remembered of a SignalCluster.
    pub(crate) fn forget(&self, cluster: &SignalCluster) {
        let uid = cluster.uid().unwrap_or_default();
        self.remembered.lock().remove(&uid);
        self.reader.polls.forget(&uid);
        self.metrics.cluster.forget(&label(cluster));
        self.failures.lock().remove(&ObjectRef::from_obj(cluster));
    }

    /// Counts a failed reconcile; returns how many have failed in a row.
    pub(crate) fn count_failure(&self, cluster: &SignalCluster) -> u32 {
        self.metrics
            .cluster
            .errors
            .get_or_create(&label(cluster))
            .inc();
        let mut all = self.failures.lock();
        let failures = all.entry(ObjectRef::from_obj(cluster)).or_default();
        *failures = failures.saturating_add(1);
        *failures
    }

    /// A reconcile succeeded: the next failure is the first again.
    pub(crate) fn clear_failures(&self, cluster: &SignalCluster) {
        self.failures.lock().remove(&ObjectRef::from_obj(cluster));
    }

    /// Schedules the next reconcile, although nothing changes.
    pub fn look_again(&self, wake: Wake) -> Action {
        Metrics::count(&self.metrics.requeues, wake.why.as_str());
        Action::requeue(wake.after)
    }
}

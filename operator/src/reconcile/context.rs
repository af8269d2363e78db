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
use tokio::time::Instant;

use crate::act::apply::ApplyError;
use crate::act::events::Events;
use crate::act::writer::{WriteError, Writer};
use crate::decide::{ClusterMemory, Wake};
use crate::metrics::{ClusterLabel, Metrics};
use crate::observe::admin_client::AdminClient;
use crate::observe::{ObserveError, Reader};
use crate::reconcile::kept::Kept;
use crate::reconcile::spoils::Spoils;
use crate::status::Difference;

/// How the controller runs.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Reconciles at the same time, at least 1; never two of one SignalCluster.
    pub concurrency: u16,
    /// A SignalCluster without changes is looked at again after about this time.
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
    /// What the watches have told since something was read.
    pub spoils: Spoils,
    /// What is remembered of each.
    remembered: Mutex<HashMap<ObjectRef<SignalCluster>, Remembered>>,
}

/// What is remembered of a SignalCluster. All of it may be lost.
#[derive(Default)]
struct Remembered {
    /// A later one of the same name starts empty.
    uid: String,
    memory: Arc<Mutex<ClusterMemory>>,
    /// What was read last, if it needed nothing.
    kept: Option<Kept>,
    /// When this process wrote the status because of nothing but numbers, or nothing but texts.
    written: HashMap<Difference, Instant>,
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
            spoils: Spoils::default(),
            remembered: Mutex::default(),
        }
    }

    /// Of the SignalCluster with this uid.
    fn with<T>(&self, cluster: &SignalCluster, of: impl FnOnce(&mut Remembered) -> T) -> T {
        let uid = cluster.uid().unwrap_or_default();
        let mut all = self.remembered.lock();
        let remembered = all.entry(ObjectRef::from_obj(cluster)).or_default();
        if remembered.uid != uid {
            self.reader.polls.forget(&remembered.uid);
            *remembered = Remembered {
                uid,
                ..Remembered::default()
            };
        }
        of(remembered)
    }

    /// What is remembered of a SignalCluster for its plans.
    pub(crate) fn remembered(&self, cluster: &SignalCluster) -> Arc<Mutex<ClusterMemory>> {
        self.with(cluster, |it| it.memory.clone())
    }

    /// Takes what was read last: it is given back if it is still good.
    pub(crate) fn take_kept(&self, cluster: &SignalCluster) -> Option<Kept> {
        self.with(cluster, |it| it.kept.take())
    }

    /// Keeps what was read.
    pub(crate) fn keep(&self, cluster: &SignalCluster, kept: Kept) {
        self.with(cluster, |it| it.kept = Some(kept));
    }

    /// When this process wrote the status because of no more than this difference.
    pub(crate) fn written(&self, cluster: &SignalCluster, differs: Difference) -> Option<Instant> {
        self.with(cluster, |it| it.written.get(&differs).copied())
    }

    /// The status was written because of this difference.
    pub(crate) fn wrote_status(&self, cluster: &SignalCluster, differs: Difference) {
        self.with(cluster, |it| it.written.insert(differs, Instant::now()));
    }

    /// Drops everything that was read: a leader starts with nothing, and leaves nothing behind. Its metrics would contradict those of the next one.
    pub(crate) fn begin(&self) {
        self.metrics.cluster.forget_all();
        self.spoils.begin();
        self.remembered.lock().clear();
        self.reader.polls.forget_all();
    }

    /// Drops everything that is remembered of a SignalCluster.
    pub(crate) fn forget(&self, cluster: &SignalCluster) {
        self.forget_named(&ObjectRef::from_obj(cluster));
    }

    /// Drops everything that is remembered of the SignalCluster of this name.
    pub(crate) fn forget_named(&self, cluster: &ObjectRef<SignalCluster>) {
        if let Some(remembered) = self.remembered.lock().remove(cluster) {
            self.reader.polls.forget(&remembered.uid);
        }
        self.metrics.cluster.forget(&ClusterLabel {
            signalcluster_namespace: cluster.namespace.clone().unwrap_or_default(),
            signalcluster: cluster.name.clone(),
        });
        let namespace = cluster.namespace.as_deref().unwrap_or_default();
        self.writer.forget_cluster(namespace, &cluster.name);
        self.spoils.forget(cluster);
        self.failures.lock().remove(cluster);
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

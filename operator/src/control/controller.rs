//! The watches, what a reconcile holds, and what follows from its errors.

mod watches;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use kube::ResourceExt as _;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::{applier, reflector::ObjectRef};
use parking_lot::Mutex;
use rand::Rng as _;
use signal_crds::SignalCluster;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::act::apply::ApplyError;
use crate::act::writer::{WriteError, Writer};
use crate::control::backoff::{self, Class};
use crate::control::clusters::{Clusters, Scope};
use crate::control::events::Events;
use crate::control::judge::Remembered;
use crate::control::reconcile::reconcile;
use crate::metrics::Metrics;
use crate::observe::admin_client::AdminClient;
use crate::observe::{ObserveError, Reader};
use crate::time::about;

/// Changes that come within this time are one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Requests that wait for the scheduler.
const QUEUE: usize = 1024;
/// How long running reconciles may take to end when the controller stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How the controller runs.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Reconciles at the same time, at least 1; never two of one SignalCluster.
    pub concurrency: u16,
    /// A SignalCluster about which nothing is heard is looked at again after about this time.
    pub resync: Duration,
}

/// What reconciles hold.
pub struct Context {
    /// Looks.
    pub reader: Reader,
    /// Writes.
    pub writer: Writer,
    /// Tells people.
    pub events: Events,
    /// Counts.
    pub metrics: Metrics,
    /// Tells pods.
    pub pods: AdminClient,
    /// The namespace of the operator's own pod, where operators run in no other.
    pub operator_namespace: Option<String>,
    /// How the controller runs.
    pub settings: Settings,
    /// Failures in a row.
    failures: Mutex<HashMap<ObjectRef<SignalCluster>, u32>>,
    /// What is remembered of each, by uid.
    remembered: Mutex<HashMap<String, Arc<Mutex<Remembered>>>>,
}

/// Why a reconcile did not come to its end. Waiting for something is no error but a condition.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was observed.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Something could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// An order or the status could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Error {
    /// What follows from it.
    pub fn class(&self) -> Class {
        match self {
            Error::Observe(ObserveError::Read { source, .. })
            | Error::Apply(ApplyError::Read { source, .. }) => Class::of(source),
            Error::Observe(ObserveError::Gone) => Class::Refused,
            Error::Apply(ApplyError::Write(error)) | Error::Write(error) => match error {
                WriteError::NotHeld => Class::NotHeld,
                WriteError::Api { source, .. } => Class::of(source),
                WriteError::TimedOut { .. } => Class::Busy,
            },
            Error::Apply(ApplyError::Occupied { .. } | ApplyError::Leaving { .. }) => {
                Class::InTheWay
            }
            Error::Apply(ApplyError::UnknownKind(_) | ApplyError::Shape(_)) => Class::Refused,
        }
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
            failures: Mutex::default(),
            remembered: Mutex::default(),
        }
    }

    /// What is remembered of a SignalCluster; one of the same name after it has memories of its own.
    pub(crate) fn remembered(&self, cluster: &SignalCluster) -> Arc<Mutex<Remembered>> {
        self.remembered
            .lock()
            .entry(cluster.uid().unwrap_or_default())
            .or_default()
            .clone()
    }

    /// A SignalCluster is gone.
    pub(crate) fn forget(&self, cluster: &SignalCluster) {
        self.remembered
            .lock()
            .remove(&cluster.uid().unwrap_or_default());
        self.failures.lock().remove(&ObjectRef::from_obj(cluster));
    }

    /// When to look again although nothing changes: about the resync time, not all at once.
    pub fn resync(&self) -> Action {
        Metrics::count(&self.metrics.requeues, "resync");
        Action::requeue(about(self.settings.resync))
    }

    /// When to look again because something is waited for.
    pub fn look_again(&self, after: Duration) -> Action {
        Metrics::count(&self.metrics.requeues, "wait");
        Action::requeue(after)
    }
}

/// Reconciles until `stop`, then lets what runs end. Nothing is written after it has returned.
pub async fn run(
    context: Arc<Context>,
    clusters: &Clusters,
    scopes: &[Scope],
    stop: CancellationToken,
) {
    let (requests, queue) = mpsc::channel(QUEUE);
    let watches = watches::Watches {
        client: context.reader.client.clone(),
        clusters: clusters.clone(),
        kinds: context.reader.kinds.clone(),
        metrics: context.metrics.clone(),
        requests,
    };
    let mut tasks = watches.start(scopes);
    drop(watches);
    let queue = stream::unfold(queue, async |mut queue| {
        queue
            .recv()
            .await
            .map(|request| (Ok::<_, std::convert::Infallible>(request), queue))
    });
    let config = Config::default()
        .debounce(DEBOUNCE)
        .concurrency(context.settings.concurrency.max(1));
    let work = applier(
        |cluster, context: Arc<Context>| measured(context, cluster).boxed(),
        |cluster, error, context| after_error(&context, &cluster, error),
        context,
        clusters.store().clone(),
        Box::pin(queue),
        config,
    )
    .for_each(|outcome| {
        if let Err(error @ (ControllerError::QueueError(_) | ControllerError::RunnerError(_))) =
            outcome
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the controller cannot go on"
            );
        }
        std::future::ready(())
    });
    let mut work = std::pin::pin!(work);
    tokio::select! {
        () = &mut work => {}
        () = stop.cancelled() => {
            // The queue ends with its last sender; what runs is awaited.
            tasks.abort_all();
            while tasks.join_next().await.is_some() {}
            if tokio::time::timeout(STOP_LIMIT, work).await.is_err() {
                tracing::warn!("a reconcile did not end in time and is given up");
            }
        }
    }
}

async fn measured(context: Arc<Context>, cluster: Arc<SignalCluster>) -> Result<Action, Error> {
    let began = Instant::now();
    context.metrics.running.inc();
    let running = Running(&context.metrics);
    let outcome = reconcile(&context, &cluster).await;
    drop(running);
    context
        .metrics
        .reconcile_seconds
        .observe(began.elapsed().as_secs_f64());
    Metrics::count(
        &context.metrics.reconciles,
        outcome
            .as_ref()
            .err()
            .map_or("ok", |error| error.class().as_str()),
    );
    if outcome.is_ok() {
        context
            .failures
            .lock()
            .remove(&ObjectRef::from_obj(&*cluster));
    }
    outcome
}

/// A reconcile that is given up does not run any more either.
struct Running<'a>(&'a Metrics);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.dec();
    }
}

/// Everything is tried again; how soon follows from what failed, and how often.
fn after_error(context: &Context, cluster: &SignalCluster, error: &Error) -> Action {
    let class = error.class();
    let failures = {
        let mut all = context.failures.lock();
        let failures = all.entry(ObjectRef::from_obj(cluster)).or_default();
        *failures = failures.saturating_add(1);
        *failures
    };
    let pause = backoff::pause(class, failures, rand::rng().random_range(0.0..1.0));
    Metrics::count(&context.metrics.requeues, class.as_str());
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    if class == Class::Conflict || class == Class::NotHeld {
        tracing::debug!(
            error = error as &dyn std::error::Error,
            namespace,
            name,
            "a reconcile is done again"
        );
    } else {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            namespace,
            name,
            failures,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "a reconcile failed"
        );
    }
    Action::requeue(pause)
}

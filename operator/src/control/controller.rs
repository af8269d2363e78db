//! Runs reconciles: the watches ask for them, a failed one is tried again after a pause.

mod unreadable;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use kube::ResourceExt as _;
use kube::runtime::applier;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use rand::Rng as _;
use signal_crds::SignalCluster;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::control::backoff::{self, ErrorClass};
use crate::control::clusters::{Clusters, Scope};
use crate::metrics::Metrics;
use crate::reconcile::context::{Context, Error};
use crate::reconcile::reconcile;

/// Changes within this time become one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Requests that wait for the scheduler.
const QUEUE: usize = 1024;
/// Longest time for running reconciles to end when the controller stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Reconciles until `stop`, then waits for the reconciles that run. Nothing is written after it has returned.
pub async fn run(
    context: Arc<Context>,
    clusters: &Clusters,
    scopes: &[Scope],
    stop: CancellationToken,
) {
    context.begin();
    let (requests, queue) = mpsc::channel(QUEUE);
    let watches = watches::Watches {
        client: context.reader.client.clone(),
        clusters: clusters.clone(),
        kinds: context.reader.kinds.clone(),
        metrics: context.metrics.clone(),
        requests,
        doubted: context.kinds_doubted.clone(),
        spoils: context.spoils.clone(),
    };
    let mut tasks = watches.start(scopes);
    drop(watches);
    tasks.spawn(unreadable::follow(context.clone(), clusters.clone()));
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
        context.clone(),
        clusters.store().clone(),
        Box::pin(queue),
        config,
    )
    .for_each(|outcome| {
        match outcome {
            // It was deleted.
            Err(ControllerError::ObjectNotFound(gone)) => {
                let namespace = gone.namespace.as_deref().unwrap_or_default();
                context.forget_named(&ObjectRef::new(&gone.name).within(namespace));
            }
            Err(error @ (ControllerError::QueueError(_) | ControllerError::RunnerError(_))) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "controller failed"
                );
            }
            Ok(_) | Err(_) => {}
        }
        std::future::ready(())
    });
    let mut work = std::pin::pin!(work);
    tokio::select! {
        () = &mut work => {}
        () = stop.cancelled() => {
            // The queue ends with its last sender; running reconciles are awaited.
            tasks.abort_all();
            while tasks.join_next().await.is_some() {}
            if tokio::time::timeout(STOP_LIMIT, work).await.is_err() {
                tracing::warn!("reconcile did not end in time; dropping it");
            }
        }
    }
    context.begin();
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
            .map_or("ok", |error| ErrorClass::of(error).as_str()),
    );
    if outcome.is_ok() {
        context.clear_failures(&cluster);
    }
    outcome
}

/// Counts down also when a reconcile is dropped.
struct Running<'a>(&'a Metrics);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.dec();
    }
}

/// Schedules the next attempt: the pause depends on what failed and how often.
fn after_error(context: &Context, cluster: &SignalCluster, error: &Error) -> Action {
    let class = ErrorClass::of(error);
    let failures = context.count_failure(cluster);
    let mut pause = backoff::pause(class, failures, rand::rng().random_range(0.0..1.0));
    if let Error::InPart { soon, .. } = error {
        pause = pause.min(*soon);
    }
    Metrics::count(&context.metrics.requeues, class.as_str());
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    if class == ErrorClass::Conflict || class == ErrorClass::NotHeld {
        tracing::debug!(
            error = error as &dyn std::error::Error,
            namespace,
            name,
            "reconcile interrupted; repeating it"
        );
    } else {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            namespace,
            name,
            failures,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "reconcile failed; retrying after a pause"
        );
    }
    Action::requeue(pause)
}

//! Serves until the process is to end, and then drains the parts in their order: not ready, a pause for endpoints, the pipeline, accepting,
//! connections, Redis and the database, threads.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::drain::Drain;
use super::epoch;
use super::supervisor::Supervisor;
use crate::activity;
use crate::bus::Bus;
use crate::config::Config;
use crate::hub::{self, Hub};
use crate::leftovers::Leftovers;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::store;
use crate::ws;

/// Longest time the pipeline may take to finish the records that it has taken.
const PIPELINE_STOP: Duration = Duration::from_secs(25);
/// Longest time for what clients asked for before their connections ended.
const LEFTOVERS: Duration = Duration::from_secs(5);
/// Longest time Redis and the database, and after them the threads, may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// The pipeline's task.
pub(super) type Pipeline = JoinHandle<Result<(), activity::PipelineError>>;

/// Every part, started.
pub(super) struct Gateway {
    pub(super) config: Config,
    pub(super) hub: Hub,
    pub(super) leftovers: Leftovers,
    pub(super) threads: hub::Threads,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) stores: store::Stores,
    pub(super) supervisor: Supervisor,
    pub(super) pipeline: Option<Pipeline>,
    pub(super) pipeline_stop: CancellationToken,
    pub(super) shards_stop: CancellationToken,
    pub(super) listener: ws::Listener,
    pub(super) admin: Router,
    pub(super) metrics: Arc<Metrics>,
}

impl Gateway {
    /// Serves until `lifecycle` asks for a drain or a part ends unexpectedly, and drains. `probing` is the task of the admin listener.
    ///
    /// # Errors
    /// The part that ended unexpectedly.
    pub(super) async fn serve(
        mut self,
        socket: TcpListener,
        admin: &ArcSwap<Router>,
        probing: &mut JoinHandle<()>,
        lifecycle: &Arc<Lifecycle>,
    ) -> anyhow::Result<()> {
        admin.store(Arc::new(self.admin));
        // With one shard every socket goes to its thread. Accepting on that thread wakes no other one.
        let accepts = self.threads.only().unwrap_or_else(Handle::current);
        let accept_stop = CancellationToken::new();
        let mut accepting = accepts.spawn(ws::serve(self.listener, socket, accept_stop.clone()));
        let drain = Drain {
            config: &self.config,
            hub: &self.hub,
            lifecycle,
            metrics: &self.metrics,
        };
        let ended = tokio::select! {
            ended = &mut accepting => Err(anyhow::anyhow!("the accept loop ended unexpectedly: {ended:?}")),
            ended = &mut *probing => Err(anyhow::anyhow!("the admin listener ended unexpectedly: {ended:?}")),
            () = lifecycle.drain_requested().cancelled() => Ok(()),
            error = self.supervisor.any_ended() => Err(error),
            () = self.threads.any_ended() => Err(anyhow::anyhow!("a shard ended unexpectedly")),
            ended = finished(&mut self.pipeline) => Err(ended),
            never = drain.follow_holds() => match never {},
        };
        if let Err(error) = &ended {
            tracing::error!(
                error = format!("{error:#}"),
                "a part ended; the process drains and exits"
            );
        }
        lifecycle.request_drain();
        self.metrics.draining.set(1);
        // A held drain that came before has done some of the steps.
        let hold = lifecycle.hold();
        tracing::info!(connections = self.hub.counts().total, "drain started");
        drain.wait(drain.propagation_left(hold)).await;

        self.pipeline_stop.cancel();
        if let Some(pipeline) = self.pipeline.take() {
            stop_pipeline(&drain, pipeline).await;
        }
        accept_stop.cancel();
        drain
            .close_connections(hold.and_then(|hold| hold.closing_since))
            .await;
        accepting.abort();
        // What clients asked for before their connections ended needs the bus and the database.
        if drain
            .within(LEFTOVERS, self.leftovers.done())
            .await
            .is_none()
        {
            tracing::warn!("changes that clients asked for last were not carried out in time");
        }
        // Before the threads end, because the bus may run on one of them.
        let closed = drain.within(CLOSE_LIMIT, async {
            self.bus.close().await;
            // What the last seconds changed is seen as well.
            epoch::look(&*self.stores.notifications).await;
            self.stores.close().await;
        });
        if closed.await.is_none() {
            tracing::warn!("Redis or the database did not close in time");
        }
        self.shards_stop.cancel();
        let shards = join_threads(&drain, self.threads).await;
        tracing::info!("drain finished");
        ended.and(shards)
    }
}

async fn stop_pipeline(drain: &Drain<'_>, pipeline: Pipeline) {
    match drain.within(PIPELINE_STOP, pipeline).await {
        Some(Ok(Ok(()))) => {
            tracing::info!("pipeline stopped; every record that it took is finished and committed");
        }
        Some(Ok(Err(error))) => tracing::error!(%error, "the pipeline failed while it stopped"),
        Some(Err(error)) => tracing::error!(%error, "the pipeline panicked while it stopped"),
        None => tracing::warn!(
            "the pipeline did not stop in time; its unfinished records will be consumed again"
        ),
    }
}

/// Waits for the threads of the shards, with a limit.
async fn join_threads(drain: &Drain<'_>, threads: hub::Threads) -> anyhow::Result<()> {
    let joined = tokio::task::spawn_blocking(move || threads.join());
    let whole = drain.within(CLOSE_LIMIT, joined).await;
    anyhow::ensure!(
        !matches!(whole, Some(Ok(false) | Err(_))),
        "a shard panicked"
    );
    Ok(())
}

/// Waits until the pipeline ends, which it must not do by itself; waits for ever without one.
async fn finished(pipeline: &mut Option<Pipeline>) -> anyhow::Error {
    let Some(running) = pipeline else {
        return std::future::pending().await;
    };
    let result = running.await;
    *pipeline = None;
    match result {
        Ok(Ok(())) => anyhow::anyhow!("the pipeline ended unexpectedly"),
        Ok(Err(error)) => anyhow::Error::new(error).context("the pipeline failed"),
        Err(error) => anyhow::anyhow!("the pipeline panicked: {error}"),
    }
}

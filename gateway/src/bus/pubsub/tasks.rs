//! The tasks of one bus and their supervisor.
//!
//! Should one end by itself, all end, and with them the events. Whatever ends them, what is held on the server is given up.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::intake::OpenQuestion;
use super::publisher::Writer;
use super::subscriber::Subscriber;
use super::{PubSubCore, ask, lease, login, self_ping};

/// What the tasks start with.
pub(super) struct Tasks {
    /// In the order of [`PubSubCore::feeds`].
    pub(super) writers: Vec<Writer>,
    pub(super) questions: mpsc::Receiver<OpenQuestion>,
    /// In the same order.
    pub(super) ready: Vec<oneshot::Sender<()>>,
}

impl Tasks {
    /// Runs everything until the bus is closed, then gives up what is held.
    pub(super) async fn supervise(
        self,
        core: Arc<PubSubCore>,
        closing: CancellationToken,
        closed: watch::Sender<bool>,
    ) {
        let end_of_events = core.classic.intake.end_when_dropped();
        let writing = CancellationToken::new();
        let mut writers = JoinSet::new();
        for (writer, feed) in self.writers.into_iter().zip(core.feeds()) {
            writers.spawn(writer.run(
                core.clone(),
                Arc::clone(feed),
                core.login.subscribe(),
                writing.clone(),
            ));
        }
        let mut tasks = start(&core, &closing, self.questions, self.ready);
        tokio::select! {
            () = closing.cancelled() => {}
            ended = tasks.join_next() => match ended {
                Some(Err(error)) => tracing::error!(%error, "a task of the bus failed: the bus closes"),
                _ => tracing::info!("the events of the bus are no longer taken: the bus closes"),
            },
            ended = writers.join_next() => tracing::error!(failed = !matches!(ended, Some(Ok(()))), "a publisher of the bus ended: the bus closes"),
        }
        closing.cancel();
        tasks.shutdown().await;
        drop(end_of_events);
        for feed in core.feeds() {
            feed.interests.lock().down();
        }
        let give_up = async {
            lease::release(&core).await;
            writing.cancel();
            while writers.join_next().await.is_some() {}
        };
        let limit = 2 * core.connector().timeout();
        if tokio::time::timeout(limit, give_up).await.is_err() {
            tracing::warn!("Redis did not answer while the bus closed");
        }
        writing.cancel();
        writers.abort_all();
        core.set_publisher(None);
        closed.send_replace(true);
    }
}

/// Starts every task but the publisher's.
fn start(
    core: &Arc<PubSubCore>,
    closing: &CancellationToken,
    questions: mpsc::Receiver<OpenQuestion>,
    ready: Vec<oneshot::Sender<()>>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (ready, feed) in ready.into_iter().zip(core.feeds()) {
        let login = core.login.subscribe();
        tasks.spawn(Subscriber::new(core.clone(), Arc::clone(feed), login, ready).run());
    }
    tasks.spawn(login::follow_files(core.clone(), closing.clone()));
    let intake = core.classic.intake.clone();
    tasks.spawn(async move { intake.abandoned().await });
    let answering = core.clone();
    tasks.spawn(async move { ask::answer(&answering, questions).await });
    let renewing = core.clone();
    tasks.spawn(
        async move { lease::renew_in_time(&renewing, renewing.connected.subscribe()).await },
    );
    let pinging = core.clone();
    tasks.spawn(async move { self_ping::send(&pinging).await });
    let passing_on = core.clone();
    tasks.spawn(async move { passing_on.pass_on_losses().await });
    tasks
}

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
    pub(super) writer: Writer,
    pub(super) questions: mpsc::Receiver<OpenQuestion>,
    pub(super) ready: oneshot::Sender<()>,
}

impl Tasks {
    /// Runs everything until the bus is closed, then gives up what is held.
    pub(super) async fn supervise(
        self,
        core: Arc<PubSubCore>,
        closing: CancellationToken,
        closed: watch::Sender<bool>,
    ) {
        let end_of_events = core.intake.end_when_dropped();
        let writing = CancellationToken::new();
        let mut writer = tokio::spawn(self.writer.run(
            core.clone(),
            core.login.subscribe(),
            writing.clone(),
        ));
        let mut tasks = start(&core, &closing, self.questions, self.ready);
        tokio::select! {
            () = closing.cancelled() => {}
            ended = tasks.join_next() => match ended {
                Some(Err(error)) => tracing::error!(%error, "a task of the bus failed: the bus closes"),
                _ => tracing::info!("the events of the bus are no longer taken: the bus closes"),
            },
            ended = &mut writer => tracing::error!(failed = ended.is_err(), "the publisher of the bus ended: the bus closes"),
        }
        closing.cancel();
        tasks.shutdown().await;
        drop(end_of_events);
        core.interests.lock().down();
        let give_up = async {
            lease::release(&core).await;
            writing.cancel();
            if !writer.is_finished() {
                let _ = (&mut writer).await;
            }
        };
        let limit = 2 * core.connector().timeout();
        if tokio::time::timeout(limit, give_up).await.is_err() {
            tracing::warn!("Redis did not answer while the bus closed");
        }
        writing.cancel();
        writer.abort();
        core.set_publisher(None);
        closed.send_replace(true);
    }
}

/// Starts every task but the publisher's.
fn start(
    core: &Arc<PubSubCore>,
    closing: &CancellationToken,
    questions: mpsc::Receiver<OpenQuestion>,
    ready: oneshot::Sender<()>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(Subscriber::new(core.clone(), core.login.subscribe(), ready).run());
    tasks.spawn(login::follow_password(core.clone(), closing.clone()));
    let intake = core.intake.clone();
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

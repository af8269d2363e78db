//! The tasks that run until the process ends. None of them may end before: the process exits then and names the task.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Tasks that run until the process ends.
#[derive(Default)]
pub(super) struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Supervisor {
    /// Runs a task that may fail.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Runs a task that cannot fail.
    pub(super) fn spawn_forever(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_forever_on(&Handle::current(), name, task);
    }

    /// Runs a task that cannot fail on the given runtime.
    pub(super) fn spawn_forever_on(
        &mut self,
        runtime: &Handle,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = async move {
            task.await;
            (name, Ok(()))
        };
        self.tasks.spawn_on(task, runtime);
    }

    /// Waits until a task ends, and returns why; waits for ever without tasks.
    pub(super) async fn any_ended(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the task {name:?} ended unexpectedly"),
            Some(Ok((name, Err(error)))) => error.context(format!("the task {name:?} failed")),
            Some(Err(panic)) => anyhow::anyhow!("a task panicked: {panic}"),
            None => std::future::pending().await,
        }
    }
}

//! What a lane waits for when a step fails, and how all lanes wait together.
//!
//! Input: a step that failed. Output: the moment to try it again. All lanes share one [`Dependency`] for each thing they need. When it returns, at
//! most `kafka.concurrency` of them work at a time, so that it is not overrun.

use super::{Lane, Stopped};
use crate::activity::status::Cause;
use crate::backoff::{Backoff, Dependency};

/// What the steps of a lane need from outside.
#[derive(Debug, Clone, Copy)]
pub(super) enum Need {
    /// Rows are stored there.
    Database,
    /// Recipients are looked up there.
    PolicyTables,
    /// A broker that confirms dead letters.
    DeadLetters,
    /// Schemas of records are there.
    Registry,
}

impl Need {
    /// What it means for a batch that it is missing.
    fn consequence(self) -> &'static str {
        match self {
            Self::Database => "notifications cannot be stored",
            Self::PolicyTables => "recipients cannot be looked up",
            Self::DeadLetters => "dead letters are not confirmed",
            Self::Registry => "schemas cannot be looked up",
        }
    }

    fn cause(self) -> Cause {
        match self {
            Self::Database => Cause::Database,
            Self::PolicyTables => Cause::Recipients,
            Self::DeadLetters => Cause::DeadLetters,
            Self::Registry => Cause::Schemas,
        }
    }
}

/// The dependencies of a pipeline, each shared by its lanes.
pub(in crate::activity) struct Dependencies {
    database: Dependency,
    policy_tables: Dependency,
    dead_letters: Dependency,
    registry: Dependency,
}

impl Dependencies {
    pub(in crate::activity) fn new() -> Self {
        Self {
            database: Dependency::new("the notification database"),
            policy_tables: Dependency::new("the database of the policy tables"),
            dead_letters: Dependency::new("the broker of the dead letters"),
            registry: Dependency::new("the registry of schemas"),
        }
    }
}

impl Lane {
    /// Waits before the next try of what a dependency failed: until it has returned, or a while where it answers; other lanes may work meanwhile.
    pub(super) async fn wait(
        &mut self,
        need: Need,
        backoff: &mut Backoff,
        offset: i64,
        error: &(dyn std::error::Error + Send + Sync),
    ) -> Result<(), Stopped> {
        let delay = backoff.next_delay();
        let pipeline = self.pipeline.clone();
        pipeline.metrics.pipeline_retries.inc();
        tracing::warn!(
            kafka.topic = &*self.topic, kafka.partition = self.partition, kafka.offset = offset, error = %error,
            attempt = backoff.failures(), "{}; the partition waits", need.consequence()
        );
        self.permit = None;
        let why = format!("{}: {error}", need.consequence());
        let status = &pipeline.status;
        status.waits(&self.topic, self.partition, offset, need.cause(), why);
        let _retrying = status.retrying();
        let returned = async {
            let Dependencies {
                database,
                policy_tables,
                dead_letters,
                registry,
            } = &pipeline.dependencies;
            match need {
                Need::Database => database.wait(delay, || pipeline.inbox.ping()).await,
                Need::PolicyTables => {
                    let question = || pipeline.resolver.ping();
                    policy_tables.wait(delay, question).await;
                }
                Need::DeadLetters => {
                    let question = || pipeline.dead_letters.ping(&self.topic);
                    dead_letters.wait(delay, question).await;
                }
                Need::Registry => {
                    if let Some(asked) = &pipeline.registry {
                        registry.wait(delay, || asked.ping()).await;
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = self.drain.cancelled() => return Err(Stopped),
            () = returned => {}
        }
        self.acquire().await
    }
}

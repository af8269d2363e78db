//! The pipeline: an activity of a producer becomes stored notifications, and is pushed to the connections of its recipients.
//!
//! Input: records of `kafka.topics`. Output: rows and pushes through [`crate::inbox`], dead letters, committed offsets.
//!
//! The steps, in this order, for each partition by itself: `consumer` -> (`schema` ->) [`decode`] -> [`resolve`] -> [`render`] -> [`crate::inbox`] (rows, then pushes) -> commit.
//!
//! | failure | what follows |
//! |---|---|
//! | the record can never be a notification ([`DeadLetterReason`]) | dead-letter topic, confirmed; then committed |
//! | the database refuses a batch | the batch is halved until the record is alone; then as above, `refused` |
//! | the database is unavailable, recipients or schemas cannot be looked up | the partition waits for its return, at most seconds longer, and tries again; nothing past it is committed |
//! | the dead-letter topic does not confirm | the same |
//! | Redis is unavailable | nothing: rows are stored and local connections served, others sync later |
//! | records wait, and hold all that `kafka.memory_bytes` leaves their partition | it pauses at the broker until it has room |
//! | the partition is revoked, or the process stops | what is being stored is finished and committed, within a limit; the rest is read again |
//! | the brokers do not give the records of a partition | it stands still, and says so: [`PipelineStatus`] |
//! | this instance cannot work, and another one can | it leaves the group until it can, at most once in ten minutes |
//! | the process is killed | records since the last commit are read again; their rows exist already, so nothing changes |

mod batch;
mod budget;
pub mod catalogs;
mod client;
mod consumer;
pub mod dead_letter;
pub mod decode;
mod intl;
mod lane;
mod leave;
mod login;
mod number;
pub mod poison;
mod progress;
pub mod render;
pub mod replay;
pub mod resolve;
mod schema;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod time;
mod topics;
mod trace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use catalogs::{CatalogError, Catalogs};
pub use client::check;
pub use leave::Surroundings;
pub use poison::{DeadLetterReason, Poison};
pub use status::PipelineStatus;
pub use topics::{CheckedTopic, TopicState, look as look_at_topics};

use crate::clock::Clock;
use crate::config;
use crate::files;
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::store::PolicyStore;

/// How long changed credentials are tried before the next attempt.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// The parts that the pipeline uses.
pub struct PipelineOptions {
    /// `[kafka]`
    pub config: config::Kafka,
    /// `policy.cache_secs`
    pub cache_secs: u64,
    /// Where rows and pushes go.
    pub inbox: Inbox,
    /// Where recipients come from.
    pub policies: Arc<dyn PolicyStore>,
    /// Where texts come from.
    pub catalogs: Arc<Catalogs>,
    /// Times of dead letters.
    pub clock: Arc<dyn Clock>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Where the pipeline reports its state.
    pub status: Arc<PipelineStatus>,
    /// Whether this instance can work, and whether others do.
    pub around: Surroundings,
}

/// Why the pipeline cannot start, or ended unexpectedly.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// Settings that only the pipeline can judge, one line each.
    #[error("wrong Kafka setting(s): {}", .0.join("; "))]
    Settings(Vec<String>),
    /// librdkafka refuses its settings, or cannot reach a broker.
    #[error("the Kafka client: {0}")]
    Client(#[source] KafkaError),
    /// The consumer cannot be used any more.
    #[error("the Kafka consumer failed and cannot recover: {0}")]
    Fatal(RDKafkaErrorCode),
    /// A part of the pipeline panicked.
    #[error("the work on a partition ended unexpectedly")]
    Panicked,
    /// The operating system has no thread for it.
    #[error("the consumer's thread cannot be started: {0}")]
    Thread(#[source] std::io::Error),
}

/// What all lanes share.
struct Pipeline {
    config: config::Kafka,
    resolver: resolve::Resolver,
    inbox: Inbox,
    catalogs: Arc<Catalogs>,
    dead_letters: dead_letter::DeadLetters,
    login: login::Login,
    registry: Option<schema::Registry>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    status: Arc<PipelineStatus>,
    dependencies: lane::Dependencies,
    budget: Arc<budget::Budget>,
    lanes_at_work: Arc<Semaphore>,
}

/// Consumes until `shutdown`; then finishes and commits what is being stored, within a limit, and leaves the group.
///
/// A broker that cannot be reached is waited for. A changed file of credentials starts a second member; the first is stopped once the broker
/// accepts the new ones.
///
/// # Errors
/// Settings that are refused, at once; and what ends the pipeline unexpectedly.
pub async fn run(
    options: PipelineOptions,
    shutdown: CancellationToken,
) -> Result<(), PipelineError> {
    let PipelineOptions {
        config,
        cache_secs,
        inbox,
        policies,
        catalogs,
        clock,
        metrics,
        status,
        around,
    } = options;
    let watched = credentials(&config.security);
    let mut credentials = files::watch_all(watched, files::INTERVAL, shutdown.clone());
    let login = login::Login::new(&config.security, clock.clone());
    let pipeline = Arc::new(Pipeline {
        resolver: resolve::Resolver::new(
            policies,
            Duration::from_secs(cache_secs),
            config.max_recipients,
            metrics.clone(),
        ),
        dead_letters: dead_letter::DeadLetters::new(&config, login.clone())?,
        login,
        dependencies: lane::Dependencies::new(),
        budget: budget::Budget::new(config.memory_bytes, config.concurrency),
        registry: schema::Registry::new(&config.registry),
        lanes_at_work: Arc::new(Semaphore::new(config.concurrency)),
        config,
        inbox,
        catalogs,
        clock,
        metrics,
        status,
    });
    let mut member = consumer::Member::start(pipeline.clone())?;
    let mut leave = leave::Leave::new(pipeline.status.clone(), around);
    let mut topics = std::pin::pin!(topics::follow(pipeline.clone()));
    let mut is_changed = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return member.stop().await,
            ended = member.ended() => return ended,
            never = &mut topics => match never {},
            why = leave.due() => {
                leave_group(&pipeline, member, &why).await?;
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = leave.until_able() => {}
                }
                pipeline.status.set_left(None);
                member = consumer::Member::start(pipeline.clone())?;
                tracing::info!("this instance joins the Kafka group again");
            }
            Ok(()) = credentials.changed(), if !is_changed => is_changed = true,
            taken = renewed(&pipeline), if is_changed => if let Some(next) = taken {
                is_changed = false;
                std::mem::replace(&mut member, next).stop().await?;
                tracing::info!("Kafka is connected with the changed credentials");
            },
        }
    }
}

/// Gives the member's partitions to those that work.
async fn leave_group(
    pipeline: &Pipeline,
    member: consumer::Member,
    why: &str,
) -> Result<(), PipelineError> {
    tracing::error!(
        reason = why,
        "this instance cannot work and another one can: it leaves the Kafka group until it is able again"
    );
    pipeline.metrics.member_left.inc();
    pipeline.status.set_left(Some(format!(
        "this instance left the Kafka group, because it cannot work and another one can: {why}"
    )));
    member.stop().await
}

/// Files that clients read when they are made. The secret behind a token is read whenever a token is asked for.
fn credentials(security: &config::KafkaSecurity) -> Vec<PathBuf> {
    let auth = &security.auth;
    let is_token = auth.mechanism == config::KafkaMechanism::OAuthBearer;
    let password = auth.password_file.path().filter(|_| !is_token);
    let public = [&security.ca_file, &security.certificate_file];
    let public = public
        .into_iter()
        .filter(|path| !path.as_os_str().is_empty());
    let username = auth.username_file.path().filter(|_| !is_token);
    let secret = [username, password, security.key_file.path()];
    let secret = secret.into_iter().flatten().map(Path::to_owned);
    public.cloned().chain(secret).collect()
}

/// Starts a member with the current credentials once a broker accepts it; `None`, after a while, if none does.
async fn renewed(pipeline: &Arc<Pipeline>) -> Option<consumer::Member> {
    let probe = tokio::task::spawn_blocking({
        let pipeline = pipeline.clone();
        move || consumer::probe(pipeline, PROBE_LIMIT)
    });
    let probed = probe.await.unwrap_or(Err(PipelineError::Panicked));
    let started = probed
        .and_then(|()| pipeline.dead_letters.renew())
        .and_then(|()| consumer::Member::start(pipeline.clone()));
    match started {
        Ok(member) => Some(member),
        Err(error) => {
            tracing::warn!(%error, "the brokers refuse the changed Kafka credentials; connections with the previous ones stay in use");
            tokio::time::sleep(files::INTERVAL).await;
            None
        }
    }
}

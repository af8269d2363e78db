//! The dead-letter topics: checked at the start and from then on, and created where they are missing and the login may.
//!
//! Input: `kafka.topics` and what the brokers know. Output: topics, and in [`super::PipelineStatus`] those that cannot be used: the first record that
//! becomes a dead letter would hold its partition there.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;

use super::login::{Login, Quiet};
use super::{Pipeline, PipelineError, client};
use crate::clock::SystemClock;
use crate::config::Kafka;

/// How often the topics are checked while all can be used.
const INTERVAL: Duration = Duration::from_secs(300);
/// The same while one cannot.
const INTERVAL_WHILE_MISSING: Duration = Duration::from_secs(10);
/// Longest wait for one answer of the brokers.
const LIMIT: Duration = Duration::from_secs(10);

/// What the brokers know of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicState {
    /// It has this many partitions.
    Exists(usize),
    /// It does not exist.
    Missing,
    /// The brokers refuse to say.
    Refused(String),
}

/// A topic of records or of dead letters, and what the brokers know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedTopic {
    /// Its name.
    pub name: String,
    /// Whether it holds dead letters.
    pub is_of_dead_letters: bool,
    /// What the brokers know.
    pub state: TopicState,
}

/// Asks the brokers for every topic that the pipeline uses. Takes some seconds at most, and creates nothing.
///
/// # Errors
/// The settings are refused, or no broker answers.
pub async fn look(config: &Kafka) -> Result<Vec<CheckedTopic>, PipelineError> {
    let login = Login::new(&config.security, Arc::new(SystemClock));
    ask(config, login).await
}

async fn ask(config: &Kafka, login: Login) -> Result<Vec<CheckedTopic>, PipelineError> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || ask_now(&config, login))
        .await
        .unwrap_or(Err(PipelineError::Panicked))
}

fn ask_now(config: &Kafka, login: Login) -> Result<Vec<CheckedTopic>, PipelineError> {
    let context = Quiet { login };
    let consumer: BaseConsumer<Quiet> = client::reader(config, &config.group_id)?
        .create_with_context(context.clone())
        .map_err(PipelineError::Client)?;
    context.login.serve(&consumer);
    let mut checked = Vec::new();
    for topic in &config.topics {
        for (name, is_of_dead_letters) in [
            (topic.clone(), false),
            (format!("{topic}{}", config.dead_letter_suffix), true),
        ] {
            context.login.renew(&consumer);
            let metadata = consumer
                .fetch_metadata(Some(&name), LIMIT)
                .map_err(PipelineError::Client)?;
            checked.push(CheckedTopic {
                state: state(&metadata),
                name,
                is_of_dead_letters,
            });
        }
    }
    Ok(checked)
}

fn state(metadata: &Metadata) -> TopicState {
    let Some(topic) = metadata.topics().first() else {
        return TopicState::Missing;
    };
    match topic.error().map(RDKafkaErrorCode::from) {
        None => TopicState::Exists(topic.partitions().len()),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            TopicState::Missing
        }
        // A topic that was just made has no leaders yet.
        Some(RDKafkaErrorCode::LeaderNotAvailable) => TopicState::Exists(topic.partitions().len()),
        Some(code) => TopicState::Refused(code.to_string()),
    }
}

/// Checks and creates the dead-letter topics, for as long as the pipeline runs.
pub(super) async fn follow(pipeline: Arc<Pipeline>) -> Infallible {
    let mut said = BTreeMap::new();
    loop {
        // What cannot be asked is said by the consumer, which needs the brokers too.
        if let Ok(unusable) = check(&pipeline).await {
            if unusable != said {
                say(&said, &unusable);
            }
            let count = i64::try_from(unusable.len()).unwrap_or(i64::MAX);
            pipeline.metrics.missing_topics.set(count);
            pipeline.status.set_missing_topics(unusable.clone());
            said = unusable;
            if said.is_empty() {
                tokio::time::sleep(INTERVAL).await;
                continue;
            }
        }
        tokio::time::sleep(INTERVAL_WHILE_MISSING).await;
    }
}

fn say(before: &BTreeMap<String, String>, unusable: &BTreeMap<String, String>) {
    for (topic, why) in unusable {
        if before.get(topic) != Some(why) {
            tracing::error!(
                kafka.topic = topic,
                reason = why,
                "dead-letter topic cannot be used: the first dead letter will hold its partition until it can; create the topic, or allow this login to"
            );
        }
    }
    for topic in before.keys().filter(|topic| !unusable.contains_key(*topic)) {
        tracing::info!(kafka.topic = topic, "dead-letter topic can be used");
    }
}

/// Returns the dead-letter topics that cannot be used, and why; creates those that are missing.
async fn check(pipeline: &Pipeline) -> Result<BTreeMap<String, String>, PipelineError> {
    let checked = ask(&pipeline.config, pipeline.login.clone()).await?;
    let mut unusable = BTreeMap::new();
    // A dead letter of a partition goes to any partition of its topic: as many as the source has let them be as busy.
    let mut partitions = 1;
    for topic in checked {
        if !topic.is_of_dead_letters {
            partitions = match topic.state {
                TopicState::Exists(count) => count,
                _ => 1,
            };
            continue;
        }
        let why = match topic.state {
            TopicState::Exists(_) => continue,
            TopicState::Refused(why) => why,
            TopicState::Missing => match create(pipeline, &topic.name, partitions).await {
                Ok(()) => {
                    tracing::info!(
                        kafka.topic = topic.name,
                        partitions,
                        "dead-letter topic created"
                    );
                    continue;
                }
                Err(why) => format!("it does not exist, and it cannot be created: {why}"),
            },
        };
        unusable.insert(topic.name, why);
    }
    Ok(unusable)
}

async fn create(pipeline: &Pipeline, topic: &str, partitions: usize) -> Result<(), String> {
    let login = pipeline.login.clone();
    let admin: AdminClient<Quiet> = client::administrator(&pipeline.config)
        .map_err(|error| error.to_string())?
        .create_with_context(Quiet {
            login: login.clone(),
        })
        .map_err(|error: KafkaError| error.to_string())?;
    login
        .hand_to(admin.inner())
        .map_err(|error| error.to_string())?;
    let partitions = i32::try_from(partitions.max(1)).unwrap_or(i32::MAX);
    // As many copies as the brokers make by default.
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new()
        .request_timeout(Some(LIMIT))
        .operation_timeout(Some(LIMIT));
    let created = admin.create_topics([&new], &options).await;
    // Dropping waits for its threads.
    tokio::task::spawn_blocking(move || drop(admin));
    let created = created.map_err(|error| error.to_string())?;
    match created.into_iter().next() {
        // Another instance was faster.
        Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(code.to_string()),
        None => Err("the brokers gave no answer".into()),
    }
}

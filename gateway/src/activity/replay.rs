//! `dlq replay`: puts dead letters back into their source topic, once the pipeline can handle them.
//!
//! Input: `{topic}{dead_letter_suffix}`. Output: the same keys, values and headers in the source topic and partition, so that
//! records of one key keep their order; and offsets in groups of its own, so that a second run repeats nothing.
//!
//! There is one group per reason, `{kafka.group_id}.dlq-replay.{reason}`: a run for some reasons leaves the others for a later one. A broker
//! forgets the offsets of a group that nobody uses, after a week by default. So what was put back is also written into the dead-letter topic
//! itself, as a **mark** with a reason and an offset. It is younger than the letters that it concerns, and is deleted after them. A run reads
//! the marks first.
//!
//! Marks are written and offsets committed after the broker has confirmed the records. A run that dies in between puts some back twice; that
//! changes nothing, because a record keeps its identity.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Serialize;
use tokio::runtime::Handle;

use super::dead_letter;
use super::decode::Record;
use super::login::{Login, Quiet};
use super::poison::DeadLetterReason;
use super::{PipelineError, client, consumer};
use crate::clock::SystemClock;
use crate::config::Kafka;

/// Longest wait for one answer of a broker.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How long after an error that passes by itself.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Most records that are sent before they are confirmed and committed.
const WINDOW: usize = 500;
/// Letters whose reason is none of [`DeadLetterReason::ALL`], such as those of a later release.
const OTHER: &str = "other";

/// Which dead letters are put back.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The source topic.
    pub topic: String,
    /// Only letters with one of these reasons; empty for all.
    pub reasons: Vec<DeadLetterReason>,
    /// Puts back at most so many; `None` for no limit.
    pub limit: Option<u64>,
    /// Counts, puts nothing back, commits nothing.
    pub dry_run: bool,
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplayReport {
    /// Letters put back, by reason; in a dry run those that would be.
    pub replayed: BTreeMap<String, u64>,
    /// Letters without a value, which was too large for the dead-letter topic: it stands in the source topic only.
    pub without_value: u64,
    /// Letters that the broker refuses in the source topic, by their size for example. They are passed over.
    pub refused: u64,
    /// Whether letters are left because of the limit.
    pub is_cut_short: bool,
}

impl ReplayReport {
    /// All letters put back.
    pub fn total(&self) -> u64 {
        self.replayed.values().sum()
    }
}

/// Puts dead letters back, up to the end of the topic as it is when the run begins.
///
/// # Errors
/// Settings that are refused, or a broker that does not answer or confirm; what was committed until then is not repeated by the next run.
pub async fn replay(config: &Kafka, options: ReplayOptions) -> Result<ReplayReport, PipelineError> {
    let (config, runtime) = (config.clone(), Handle::current());
    let login = Login::new(&config.security, Arc::new(SystemClock));
    tokio::task::spawn_blocking(move || Run::new(&config, options, runtime, login)?.finish())
        .await
        .unwrap_or(Err(PipelineError::Panicked))
}

/// What was put back for one reason, by partition.
struct Ledger {
    consumer: BaseConsumer<Quiet>,
    positions: BTreeMap<i32, Position>,
}

#[derive(Default)]
struct Position {
    /// The offset of the group; `None` where it has none, or one of an earlier topic of this name.
    committed: Option<i64>,
    /// The first letter that was not put back, as far as the group and the marks know.
    next: i64,
}

/// A letter that was sent and not confirmed.
struct Sent {
    reason: String,
    offset: i64,
    confirmed: DeliveryFuture,
}

struct Run {
    options: ReplayOptions,
    letters: String,
    ledgers: BTreeMap<String, Ledger>,
    reader: BaseConsumer<Quiet>,
    producer: FutureProducer<Quiet>,
    source_partitions: i32,
    runtime: Handle,
    report: ReplayReport,
    unconfirmed: Vec<Sent>,
    /// Reasons with letters that were put back or passed over since the last mark.
    unmarked: BTreeSet<String>,
}

impl Run {
    fn new(
        config: &Kafka,
        options: ReplayOptions,
        runtime: Handle,
        login: Login,
    ) -> Result<Self, PipelineError> {
        let context = Quiet { login };
        let consumer = |group: &str| {
            let group = format!("{}.dlq-replay.{group}", config.group_id);
            let made = client::reader(config, &group)?.create_with_context(context.clone());
            let consumer = made.map_err(PipelineError::Client)?;
            context.login.serve(&consumer);
            Ok::<BaseConsumer<Quiet>, PipelineError>(consumer)
        };
        let reasons: Vec<&str> = if options.reasons.is_empty() {
            DeadLetterReason::ALL
                .iter()
                .map(|reason| reason.as_str())
                .chain([OTHER])
                .collect()
        } else {
            options
                .reasons
                .iter()
                .map(|reason| reason.as_str())
                .collect()
        };
        let mut ledgers = BTreeMap::new();
        for reason in reasons {
            ledgers.insert(
                reason.to_owned(),
                Ledger {
                    consumer: consumer(reason)?,
                    positions: BTreeMap::new(),
                },
            );
        }
        let reader = consumer("reader")?;
        // A broker refuses a batch as a whole, and one letter must not keep the others back.
        let producer: FutureProducer<Quiet> = client::one_by_one(&mut client::producer(config)?)
            .create_with_context(context.clone())
            .map_err(PipelineError::Client)?;
        let source_partitions = partitions(&reader, &options.topic)?;
        let letters = format!("{}{}", options.topic, config.dead_letter_suffix);
        Ok(Self {
            options,
            letters,
            ledgers,
            reader,
            producer,
            source_partitions,
            runtime,
            report: ReplayReport::default(),
            unconfirmed: Vec::new(),
            unmarked: BTreeSet::new(),
        })
    }

    fn finish(mut self) -> Result<ReplayReport, PipelineError> {
        for partition in 0..partitions(&self.reader, &self.letters)? {
            self.partition(partition)?;
        }
        Ok(self.report)
    }

    fn partition(&mut self, partition: i32) -> Result<(), PipelineError> {
        let (low, high) = asked(&self.reader, |reader| {
            reader.fetch_watermarks(&self.letters, partition, ANSWER_LIMIT)
        })
        .map_err(PipelineError::Client)?;
        if low >= high {
            return Ok(());
        }
        for ledger in self.ledgers.values_mut() {
            let committed = ledger
                .committed(&self.letters, partition)?
                .filter(|next| *next <= high);
            let next = committed.map_or(low, |next| next.max(low));
            let position = Position { committed, next };
            ledger.positions.insert(partition, position);
        }
        let unread = self.first_left(partition, high)..high;
        self.read(partition, unread, |run, letter| {
            run.heed_mark(letter);
            Ok(ControlFlow::Continue(()))
        })?;
        let left = self.first_left(partition, high)..high;
        let is_whole = self.read(partition, left, |run, letter| {
            let is_enough = run
                .options
                .limit
                .is_some_and(|limit| run.report.total() >= limit);
            if is_enough && run.is_wanted(letter) {
                run.report.is_cut_short = true;
                run.settle(partition, letter.offset)?;
                return Ok(ControlFlow::Break(()));
            }
            run.put_back(letter)?;
            if run.unconfirmed.len() >= WINDOW {
                run.settle(partition, letter.offset + 1)?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if is_whole {
            self.settle(partition, high)?;
        }
        Ok(())
    }

    /// The first letter of a partition that is left for any of the reasons.
    fn first_left(&self, partition: i32, high: i64) -> i64 {
        let positions = self.ledgers.values();
        positions
            .filter_map(|ledger| Some(ledger.positions.get(&partition)?.next))
            .fold(high, i64::min)
    }

    /// Shows each record of these offsets to `visit`, until it breaks; returns whether it did not.
    fn read(
        &mut self,
        partition: i32,
        offsets: Range<i64>,
        mut visit: impl FnMut(&mut Self, &Record) -> Result<ControlFlow<()>, PipelineError>,
    ) -> Result<bool, PipelineError> {
        if offsets.is_empty() {
            return Ok(true);
        }
        let mut at = TopicPartitionList::new();
        at.add_partition_offset(&self.letters, partition, Offset::Offset(offsets.start))
            .map_err(PipelineError::Client)?;
        self.reader.assign(&at).map_err(PipelineError::Client)?;
        let topic: Arc<str> = self.letters.as_str().into();
        let mut quiet_since = Instant::now();
        loop {
            let letter = match self.reader.poll(Duration::from_millis(200)) {
                None if quiet_since.elapsed() > ANSWER_LIMIT => {
                    return Err(PipelineError::Client(KafkaError::MessageConsumption(
                        RDKafkaErrorCode::OperationTimedOut,
                    )));
                }
                None => continue,
                // The last offsets of a partition may be marks of transactions, which are no records.
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => return Err(PipelineError::Client(error)),
                Some(Ok(message)) => consumer::record(topic.clone(), &message),
            };
            quiet_since = Instant::now();
            if letter.offset >= offsets.end {
                break;
            }
            if visit(self, &letter)?.is_break() {
                return Ok(false);
            }
            if letter.offset + 1 == offsets.end {
                break;
            }
        }
        Ok(true)
    }

    /// Takes over what a mark says, whoever wrote it.
    fn heed_mark(&mut self, record: &Record) {
        let before = record
            .header(dead_letter::REPLAYED_BEFORE)
            .and_then(|text| text.parse::<i64>().ok());
        if let (Some(reason), Some(before)) = (record.header(dead_letter::REPLAYED), before)
            && let Some(ledger) = self.ledgers.get_mut(reason)
            && let Some(position) = ledger.positions.get_mut(&record.partition)
        {
            // Nothing that comes after a mark was put back before it.
            position.next = position.next.max(before.min(record.offset));
        }
    }

    fn reason(letter: &Record) -> &str {
        letter
            .header(dead_letter::REASON)
            .filter(|text| text.parse::<DeadLetterReason>().is_ok())
            .unwrap_or(OTHER)
    }

    fn is_wanted(&self, letter: &Record) -> bool {
        if letter.header(dead_letter::REPLAYED).is_some() {
            return false;
        }
        let ledger = self.ledgers.get(Self::reason(letter));
        ledger.is_some_and(|ledger| {
            let position = ledger.positions.get(&letter.partition);
            position.is_some_and(|position| letter.offset >= position.next)
        })
    }

    fn put_back(&mut self, letter: &Record) -> Result<(), PipelineError> {
        if !self.is_wanted(letter) {
            return Ok(());
        }
        self.unmarked.insert(Self::reason(letter).to_owned());
        if letter.header(dead_letter::VALUE).is_some() {
            tracing::warn!(
                kafka.topic = letter.header(dead_letter::TOPIC),
                kafka.partition = letter.header(dead_letter::PARTITION),
                kafka.offset = letter.header(dead_letter::OFFSET),
                "dead letter without its value skipped: it stays in the dead-letter topic"
            );
            self.report.without_value += 1;
            return Ok(());
        }
        *self
            .report
            .replayed
            .entry(Self::reason(letter).to_owned())
            .or_default() += 1;
        if self.options.dry_run {
            return Ok(());
        }
        let headers = dead_letter::original_headers(letter);
        let headers = headers.iter().fold(
            OwnedHeaders::new_with_capacity(headers.len()),
            |all, (key, value)| {
                all.insert(Header {
                    key,
                    value: value.as_deref(),
                })
            },
        );
        let from: Option<i32> = letter
            .header(dead_letter::PARTITION)
            .and_then(|text| text.parse().ok());
        let topic = self.options.topic.clone();
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&topic).headers(headers);
        record.key = letter.key.as_deref();
        record.payload = letter.value.as_deref();
        record.partition = from.filter(|partition| (0..self.source_partitions).contains(partition));
        let confirmed = self
            .producer
            .send_result(record)
            .map_err(|(error, _)| PipelineError::Client(error))?;
        self.unconfirmed.push(Sent {
            reason: Self::reason(letter).to_owned(),
            offset: letter.offset,
            confirmed,
        });
        Ok(())
    }

    /// Waits until everything put back is confirmed, then marks it and commits each group up to `next`.
    fn settle(&mut self, partition: i32, next: i64) -> Result<(), PipelineError> {
        if self.options.dry_run {
            return Ok(());
        }
        self.producer
            .flush(client::SEND_TIMEOUT)
            .map_err(PipelineError::Client)?;
        for sent in std::mem::take(&mut self.unconfirmed) {
            match self.runtime.block_on(sent.confirmed) {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) if dead_letter::is_refused(&error) => {
                    tracing::warn!(
                        kafka.topic = self.letters, kafka.partition = partition, kafka.offset = sent.offset, %error,
                        "dead letter refused by the source topic and passed over: it stays in the dead-letter topic"
                    );
                    self.report.refused += 1;
                    if let Some(count) = self.report.replayed.get_mut(&sent.reason) {
                        *count -= 1;
                    }
                }
                Ok(Err((error, _))) => return Err(PipelineError::Client(error)),
                Err(_) => return Err(PipelineError::Client(KafkaError::Canceled)),
            }
        }
        for reason in std::mem::take(&mut self.unmarked) {
            self.mark(&reason, partition, next)?;
        }
        for ledger in self.ledgers.values_mut() {
            ledger.commit(&self.letters, partition, next)?;
        }
        Ok(())
    }

    /// Writes down that the letters of a reason before `next` were put back, and waits until that is confirmed.
    fn mark(&self, reason: &str, partition: i32, next: i64) -> Result<(), PipelineError> {
        let (key, before) = (format!("replayed/{reason}"), next.to_string());
        let headers = [
            (dead_letter::REPLAYED, reason),
            (dead_letter::REPLAYED_BEFORE, &before),
            // An earlier release, which knows no marks, passes over a letter without a value.
            (dead_letter::VALUE, "omitted"),
        ];
        let headers = headers
            .into_iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header {
                    key,
                    value: Some(value),
                })
            });
        let mark = FutureRecord::to(&self.letters)
            .partition(partition)
            .key(&key)
            .payload(&before)
            .headers(headers);
        let sent = self.producer.send(mark, client::SEND_TIMEOUT);
        self.runtime
            .block_on(sent)
            .map(|_| ())
            .map_err(|(error, _)| PipelineError::Client(error))
    }
}

impl Ledger {
    fn commit(&mut self, topic: &str, partition: i32, next: i64) -> Result<(), PipelineError> {
        let position = self.positions.entry(partition).or_default();
        let next = next.max(position.next);
        if position.committed == Some(next) {
            return Ok(());
        }
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(topic, partition, Offset::Offset(next))
            .map_err(PipelineError::Client)?;
        asked(&self.consumer, |consumer| {
            consumer.commit(&offsets, CommitMode::Sync)
        })
        .map_err(PipelineError::Client)?;
        *position = Position {
            committed: Some(next),
            next,
        };
        Ok(())
    }

    fn committed(&self, topic: &str, partition: i32) -> Result<Option<i64>, PipelineError> {
        let mut of = TopicPartitionList::new();
        of.add_partition(topic, partition);
        let known = asked(&self.consumer, |consumer| {
            consumer.committed_offsets(of.clone(), ANSWER_LIMIT)
        })
        .map_err(PipelineError::Client)?;
        Ok(known
            .elements()
            .first()
            .and_then(|p| p.offset().to_raw())
            .filter(|offset| *offset >= 0))
    }
}

/// Asks brokers something, again where the error passes by itself: nothing that a replay asks for changes when it is done twice. Its consumers
/// are polled seldom, so their tokens are renewed here.
fn asked<T>(
    consumer: &BaseConsumer<Quiet>,
    question: impl Fn(&BaseConsumer<Quiet>) -> KafkaResult<T>,
) -> KafkaResult<T> {
    let login = &consumer.context().login;
    let started = Instant::now();
    loop {
        login.renew(consumer);
        match question(consumer) {
            Err(error) if passes(&error, login.changes()) && started.elapsed() < ANSWER_LIMIT => {
                tracing::debug!(%error, "a replay asks again");
                std::thread::sleep(ASK_AGAIN);
            }
            answer => return answer,
        }
    }
}

fn passes(error: &KafkaError, token_changes: bool) -> bool {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::Authentication | Code::SaslAuthenticationFailed) => token_changes,
        Some(
            Code::WaitingForCoordinator
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NotCoordinator
            | Code::BrokerTransportFailure,
        ) => true,
        _ => false,
    }
}

/// How many partitions a topic has; 0 for one that is not there.
fn partitions(reader: &BaseConsumer<Quiet>, topic: &str) -> Result<i32, PipelineError> {
    let metadata = asked(reader, |reader| {
        reader.fetch_metadata(Some(topic), ANSWER_LIMIT)
    })
    .map_err(PipelineError::Client)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(0);
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(0),
        Some(code) => Err(PipelineError::Client(KafkaError::MetadataFetch(code))),
    }
}

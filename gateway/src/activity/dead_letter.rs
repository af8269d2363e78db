//! Poison on its way to the dead-letter topic: the record unchanged, with headers for the reason and the original position.
//!
//! Input: records that a lane gave up. Output: `{topic}{dead_letter_suffix}`, confirmed by every in-sync replica. [`super::replay`]
//! reads back what is written here; the headers of both stand here.

use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::util::Timeout;
use tokio::time::Instant;

use super::decode::{EVENT_ID_HEADER, Record};
use super::login::{Login, Quiet};
use super::poison::Poison;
use super::{PipelineError, client};
use crate::config::Kafka;

/// The prefix of every header that the gateway adds to a dead letter.
pub(super) const PREFIX: &str = "signal-dlq-";
/// The reason: the text of a [`super::DeadLetterReason`].
pub const REASON: &str = "signal-dlq-reason";
/// The details of the reason.
pub const DETAIL: &str = "signal-dlq-detail";
/// The original topic.
pub const TOPIC: &str = "signal-dlq-topic";
/// The original partition.
pub const PARTITION: &str = "signal-dlq-partition";
/// The original offset.
pub const OFFSET: &str = "signal-dlq-offset";
/// The record's own time, in milliseconds since the Unix epoch.
pub const TIMESTAMP: &str = "signal-dlq-timestamp";
/// When it became a dead letter, RFC 3339.
pub const TIME: &str = "signal-dlq-time";
/// `omitted` where the value was too large for the dead-letter topic: it can be read in the source topic.
pub const VALUE: &str = "signal-dlq-value";
/// `omitted` where key and headers of the record were too large as well.
pub const HEADERS: &str = "signal-dlq-headers";
/// On a mark of [`super::replay`], which is no letter: the reason whose letters it concerns.
pub const REPLAYED: &str = "signal-dlq-replayed";
/// On a mark: letters of this partition before this offset were put back.
pub const REPLAYED_BEFORE: &str = "signal-dlq-replayed-before";

/// How long a producer that sends nothing is kept: much longer than sending may take.
const IDLE: Duration = Duration::from_secs(60);

/// Longest wait for a broker's answer.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// Sends to the dead-letter topics. Dead letters are rare, and a producer keeps connections and a thread that polls all the time: it exists
/// from the first letter until none has been sent for [`IDLE`].
pub(super) struct DeadLetters {
    config: Kafka,
    context: Quiet,
    state: Arc<Mutex<State>>,
}

/// How letters travel to the broker, which takes or refuses a whole batch of them.
#[derive(Debug, Clone, Copy)]
enum Sending {
    /// With others in one batch.
    Batched,
    /// Alone, so that what the broker refuses is this letter.
    Alone,
}

/// How much of its record a letter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    WithoutValue,
    /// Nothing but why it is a dead letter, and where the record is.
    PositionOnly,
}

struct State {
    /// Holds the credentials that the brokers accepted last; the files may have newer ones.
    client: ClientConfig,
    /// One for each [`Sending`].
    producers: [Option<FutureProducer<Quiet>>; 2],
    used: Instant,
    /// Whether a task waits for it to be idle.
    is_watched: bool,
}

impl DeadLetters {
    /// Connects only when there is something to send.
    pub(super) fn new(config: &Kafka, login: Login) -> Result<Self, PipelineError> {
        let state = State {
            client: client::producer(config)?,
            producers: [None, None],
            used: Instant::now(),
            is_watched: false,
        };
        Ok(Self {
            config: config.clone(),
            context: Quiet { login },
            state: Arc::new(Mutex::new(state)),
        })
    }

    /// Sends the next letters with changed credentials that a broker accepted; what is being sent ends with the old one.
    pub(super) fn renew(&self) -> Result<(), PipelineError> {
        let client = client::producer(&self.config)?;
        let mut state = self.state.lock();
        state.client = client;
        state.discard_all();
        Ok(())
    }

    fn producer(&self, sending: Sending) -> Result<FutureProducer<Quiet>, KafkaError> {
        let mut state = self.state.lock();
        state.used = Instant::now();
        let producer = match (&state.producers[sending as usize], sending) {
            (Some(producer), _) => producer.clone(),
            (None, Sending::Batched) => state.client.create_with_context(self.context.clone())?,
            (None, Sending::Alone) => client::one_by_one(&mut state.client.clone())
                .create_with_context(self.context.clone())?,
        };
        state.producers[sending as usize] = Some(producer.clone());
        if !std::mem::replace(&mut state.is_watched, true) {
            tokio::spawn(end_when_idle(Arc::downgrade(&self.state)));
        }
        Ok(producer)
    }

    /// Sends one and waits until it is confirmed, at most [`client::SEND_TIMEOUT`] for each try.
    ///
    /// A broker refuses a batch as a whole, so a refused letter is sent again alone. What is too large even then goes without its value, and at
    /// last without its key and headers.
    ///
    /// # Errors
    /// It may or may not have been stored: send it again.
    pub(super) async fn send(
        &self,
        record: &Record,
        poison: &Poison,
        now: DateTime<Utc>,
    ) -> Result<(), KafkaError> {
        let letter = |extent| headers(record, poison, now, extent);
        let batched = self
            .try_send(
                record,
                letter(Extent::Whole),
                Extent::Whole,
                Sending::Batched,
            )
            .await;
        let mut refused = match batched {
            Err(error) if is_refused(&error) => error,
            sent => return sent,
        };
        for extent in [Extent::Whole, Extent::WithoutValue, Extent::PositionOnly] {
            if extent == Extent::WithoutValue && record.value.is_none() {
                continue;
            }
            if extent != Extent::Whole {
                if !is_too_large(&refused) {
                    break;
                }
                tracing::error!(
                    kafka.topic = &*record.topic,
                    kafka.partition = record.partition,
                    kafka.offset = record.offset,
                    "dead letter too large for its topic: sent {}, which stays in the source topic",
                    extent.omitted()
                );
            }
            match self
                .try_send(record, letter(extent), extent, Sending::Alone)
                .await
            {
                Err(error) if is_refused(&error) => refused = error,
                sent => return sent,
            }
        }
        Err(refused)
    }

    /// Answers when a broker does that knows the dead-letter topic of this one, or that there is none.
    ///
    /// # Errors
    /// No broker answers.
    pub(super) async fn ping(&self, topic: &str) -> Result<(), KafkaError> {
        let (producer, topic) = (self.producer(Sending::Batched)?, self.topic(topic));
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = producer.client().fetch_metadata(Some(&topic), PING_LIMIT);
            metadata.map(drop)
        });
        asked.await.unwrap_or(Err(KafkaError::Canceled))
    }

    /// Where dead letters of a topic go.
    fn topic(&self, topic: &str) -> String {
        format!("{topic}{}", self.config.dead_letter_suffix)
    }

    async fn try_send(
        &self,
        record: &Record,
        headers: OwnedHeaders,
        extent: Extent,
        sending: Sending,
    ) -> Result<(), KafkaError> {
        let topic = self.topic(&record.topic);
        let mut letter: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&topic).headers(headers);
        letter.key = record
            .key
            .as_deref()
            .filter(|_| extent != Extent::PositionOnly);
        letter.payload = record.value.as_deref().filter(|_| extent == Extent::Whole);
        let producer = self.producer(sending).map_err(|error| {
            tracing::error!(%error, "the dead-letter producer cannot be created; the partition waits");
            error
        })?;
        let sent = producer
            .send(letter, Timeout::After(client::SEND_TIMEOUT))
            .await;
        if producer.client().fatal_error().is_some() {
            // An idempotent producer that lost its sequence cannot be used again.
            discard(self.state.lock().producers[sending as usize].take());
            discard(Some(producer));
        }
        sent.map(|_| ()).map_err(|(error, _)| error)
    }
}

impl Extent {
    fn omitted(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::WithoutValue => "without its value",
            Self::PositionOnly => "without its value, key and headers",
        }
    }
}

impl State {
    fn discard_all(&mut self) {
        for producer in &mut self.producers {
            discard(producer.take());
        }
    }
}

/// Whether the broker refused the batch for what one of its records is; the others may be good.
pub(super) fn is_refused(error: &KafkaError) -> bool {
    is_too_large(error)
        || matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::InvalidMessage
                    | RDKafkaErrorCode::InvalidTimestamp
                    | RDKafkaErrorCode::InvalidRecord
            )
        )
}

fn is_too_large(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge)
    )
}

async fn end_when_idle(state: Weak<Mutex<State>>) {
    loop {
        let Some(at) = state.upgrade().map(|state| state.lock().used + IDLE) else {
            return;
        };
        tokio::time::sleep_until(at).await;
        let Some(state) = state.upgrade() else { return };
        let mut state = state.lock();
        if state.used.elapsed() >= IDLE {
            state.is_watched = false;
            return state.discard_all();
        }
    }
}

/// Drops a producer where blocking is allowed, since dropping waits for its threads. A sender that still uses it drops it instead.
fn discard(producer: Option<FutureProducer<Quiet>>) {
    if let Some(producer) = producer {
        tokio::task::spawn_blocking(move || drop(producer));
    }
}

/// The record's own headers without those of an earlier dead letter, then ours.
fn headers(record: &Record, poison: &Poison, now: DateTime<Utc>, extent: Extent) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len() + 9);
    for (name, value) in record
        .headers
        .iter()
        .filter(|(name, _)| extent != Extent::PositionOnly && !name.starts_with(PREFIX))
    {
        headers = headers.insert(KafkaHeader {
            key: name,
            value: value.as_deref(),
        });
    }
    let ours = [
        (REASON, poison.reason.as_str().to_owned()),
        (DETAIL, poison.detail.clone()),
        (TOPIC, record.topic.to_string()),
        (PARTITION, record.partition.to_string()),
        (OFFSET, record.offset.to_string()),
        (TIMESTAMP, record.timestamp.unwrap_or(-1).to_string()),
        (TIME, now.to_rfc3339_opts(SecondsFormat::Millis, true)),
    ];
    let headers = ours.iter().fold(headers, |headers, (key, value)| {
        headers.insert(KafkaHeader {
            key,
            value: Some(value),
        })
    });
    let omitted: &[&str] = match extent {
        Extent::Whole => &[],
        Extent::WithoutValue => &[VALUE],
        Extent::PositionOnly => &[VALUE, HEADERS],
    };
    omitted.iter().fold(headers, |headers, key| {
        headers.insert(KafkaHeader {
            key,
            value: Some("omitted"),
        })
    })
}

/// The headers of a dead letter that is replayed: its own, and the identity of its first position.
pub(super) fn original_headers(letter: &Record) -> Vec<super::decode::Header> {
    let mut headers: Vec<_> = letter
        .headers
        .iter()
        .filter(|(name, _)| !name.starts_with(PREFIX))
        .cloned()
        .collect();
    let position = [TOPIC, PARTITION, OFFSET, TIMESTAMP].map(|name| letter.header(name));
    if let ([Some(topic), Some(partition), Some(offset), Some(timestamp)], None) =
        (position, letter.header(EVENT_ID_HEADER))
    {
        headers.push((
            EVENT_ID_HEADER.to_owned(),
            Some(format!("{topic}/{partition}/{offset}/{timestamp}").into_bytes()),
        ));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::DeadLetterReason;
    use crate::activity::decode::decode;
    use crate::activity::testing;
    use rdkafka::message::Headers;

    #[tokio::test(start_paused = true)]
    async fn a_producer_exists_while_it_is_used() {
        let mut config = crate::config::Config::for_tests().kafka;
        config.brokers = vec!["127.0.0.1:1".into()];
        let letters = DeadLetters::new(&config, Login::default()).unwrap();
        let is_there = || {
            let state = letters.state.lock();
            state.producers.iter().any(Option::is_some)
        };
        assert!(!is_there());
        for sending in [Sending::Batched, Sending::Alone, Sending::Batched] {
            drop(letters.producer(sending).unwrap());
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
            assert!(is_there());
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!is_there());
        drop(letters.producer(Sending::Alone).unwrap());
        letters.renew().unwrap();
        assert!(!is_there());
    }

    fn as_letter(record: &Record) -> Record {
        let poison = Poison::new(DeadLetterReason::NoTemplate, "why");
        let headers = headers(record, &poison, DateTime::UNIX_EPOCH, Extent::Whole);
        let headers = headers
            .iter()
            .map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
            .collect();
        Record {
            topic: "t.dlq".into(),
            partition: 0,
            offset: 99,
            timestamp: Some(5),
            headers,
            ..record.clone()
        }
    }

    #[test]
    fn a_dead_letter_has_its_reason_and_position_and_keeps_its_own_headers() {
        let mut record = Record {
            partition: 2,
            offset: 7,
            ..testing::record(r#"{"type":"T"}"#)
        };
        record.headers = vec![
            ("h".into(), None),
            ("h".into(), Some(vec![0xff])),
            (REASON.into(), Some(b"stale".to_vec())),
        ];
        let letter = as_letter(&record);
        let texts: Vec<_> = [REASON, DETAIL, TOPIC, PARTITION, OFFSET, TIMESTAMP, TIME]
            .map(|name| letter.header(name).unwrap())
            .into();
        assert_eq!(
            texts,
            [
                "no_template",
                "why",
                "t",
                "2",
                "7",
                "0",
                "1970-01-01T00:00:00.000Z"
            ]
        );
        assert_eq!(letter.headers[..2], record.headers[..2]);
        assert_eq!(
            letter
                .headers
                .iter()
                .filter(|(name, _)| name == REASON)
                .count(),
            1
        );
    }

    #[test]
    fn the_identity_of_a_record_without_id_survives_any_number_of_replays() {
        let first = Record {
            partition: 2,
            offset: 7,
            timestamp: Some(123),
            ..testing::record(r#"{"type":"T"}"#)
        };
        let id = decode(&first).unwrap().event_id;
        let mut record = first.clone();
        for offset in 50..53 {
            let headers = original_headers(&as_letter(&record));
            record = Record {
                offset,
                timestamp: Some(offset),
                headers,
                ..first.clone()
            };
            assert_eq!(decode(&record).unwrap().event_id, id);
        }
        assert_eq!(record.headers.len(), 1, "{:?}", record.headers);
    }
}

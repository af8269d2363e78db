//! From records to what can be stored: decodes, renders, finds recipients.
//!
//! Input: the records of a batch. Output: one [`BatchRecord`] for each, pending or a dead letter. What does not fit into the lane's part of the memory
//! is left for the next batch.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tracing::Span;

use super::{Lane, Need, Stopped, backoff, refusal};
use crate::activity::batch::{BatchRecord, Outcome};
use crate::activity::budget::RecordsInHand;
use crate::activity::catalogs::Catalogs;
use crate::activity::decode::{Activity, Audience, Dropped, Record, decode};
use crate::activity::poison::Poison;
use crate::activity::render::Text;
use crate::activity::resolve::Resolved;
use crate::activity::schema::{Registry, SchemaError};
use crate::activity::trace;
use crate::inbox::StoreError;
use crate::metrics::Metrics;
use crate::notification::NewActivity;

/// What an activity and its record take besides their text.
const ACTIVITY_BYTES: usize = 768;
/// What the id of a recipient takes besides its text.
const ID_BYTES: usize = 40;

/// A record, decoded and rendered.
struct Decoded {
    record: Record,
    span: Span,
    /// Why there is no text counts only for an activity that has recipients.
    activity: Result<(Activity, Result<Text, Poison>), Poison>,
}

impl Decoded {
    /// `read` is what is read instead of the record, where it carries the id of a schema.
    fn new(record: Record, read: Result<Option<Record>, Poison>, catalogs: &Catalogs) -> Self {
        let span = trace::span(&record);
        let activity = span.in_scope(|| {
            let activity = decode(read?.as_ref().unwrap_or(&record))?;
            let text = catalogs.render(&activity);
            Ok((activity, text))
        });
        Self {
            record,
            span,
            activity,
        }
    }

    /// About the memory of what was made of the record.
    fn bytes(&self) -> usize {
        let Ok((activity, text)) = &self.activity else {
            return ACTIVITY_BYTES;
        };
        let ids = match &activity.audience {
            Audience::Users(ids) => bytes_of_ids(ids),
            _ => 0,
        };
        let text = text
            .as_ref()
            .map_or(0, |text| text.title.len() + text.content.len());
        ACTIVITY_BYTES + activity.data.get().len() + text + ids
    }
}

impl Lane {
    /// Decodes and renders, and finds recipients.
    pub(super) async fn prepare(
        &mut self,
        hand: &mut RecordsInHand,
        records: Vec<Record>,
    ) -> Result<Vec<BatchRecord>, Stopped> {
        let most_bytes = self.share.batch_bytes();
        let (decoded, bytes) = self.decode(hand, records, most_bytes).await?;
        let activities: Vec<&Activity> = decoded
            .iter()
            .filter_map(|one| Some(&one.activity.as_ref().ok()?.0))
            .collect();
        let first_offset = decoded
            .iter()
            .find(|one| one.activity.is_ok())
            .map_or(0, |one| one.record.offset);
        let mut resolved: VecDeque<Resolved> =
            self.resolve(&activities, first_offset).await?.into();
        let mut batch = Vec::with_capacity(decoded.len());
        // Lists of recipients that came from the table, each counted once.
        let (mut seen, mut listed) = (HashSet::new(), 0);
        let mut decoded = decoded.into_iter();
        for Decoded {
            record,
            span,
            activity,
        } in decoded.by_ref()
        {
            if let Ok((activity, _)) = &activity {
                self.count_dropped(&record, &activity.dropped);
            }
            let new = activity.and_then(|(activity, text)| {
                let recipients = resolved
                    .pop_front()
                    .expect("there is an answer for each activity")?;
                if !matches!(activity.audience, Audience::Users(_))
                    && seen.insert(recipients.as_ptr())
                {
                    listed += bytes_of_ids(&recipients);
                }
                Ok(new_activity(activity, text?, recipients))
            });
            let outcome = new.map_or_else(Outcome::DeadLetter, Outcome::Pending);
            batch.push(BatchRecord::new(record, span, outcome));
            if listed >= most_bytes {
                break;
            }
        }
        self.leave(hand, decoded.map(|one| one.record));
        hand.set_made(bytes + listed);
        Ok(batch)
    }

    /// Decodes and renders as many records as fit, at least one; the others are left.
    async fn decode(
        &mut self,
        hand: &mut RecordsInHand,
        records: Vec<Record>,
        most_bytes: usize,
    ) -> Result<(Vec<Decoded>, usize), Stopped> {
        let mut decoded = Vec::with_capacity(records.len());
        let mut bytes = 0;
        let mut records = records.into_iter();
        for record in records.by_ref() {
            let read = self.read_schema(&record).await?;
            let one = Decoded::new(record, read, &self.pipeline.catalogs);
            bytes += one.bytes();
            decoded.push(one);
            if bytes >= most_bytes {
                break;
            }
        }
        self.leave(hand, records);
        hand.set_made(bytes);
        Ok((decoded, bytes))
    }

    /// Leaves records for the next batch, before those that are left already.
    fn leave(
        &mut self,
        hand: &mut RecordsInHand,
        records: impl DoubleEndedIterator<Item = Record>,
    ) {
        for record in records.rev() {
            hand.put_back(&record);
            self.left.push_front(record);
        }
    }

    /// Counts what of a record was passed over, by the member.
    fn count_dropped(&self, record: &Record, dropped: &Dropped) {
        if dropped.is_empty() {
            return;
        }
        let count = |member: &str, number| {
            let counter = &self.pipeline.metrics.values_dropped;
            counter.get_or_create(&Metrics::kind(member)).inc_by(number);
        };
        dropped.members.iter().for_each(|member| count(member, 1));
        if dropped.recipients > 0 {
            count("recipientIds", dropped.recipients);
        }
        tracing::debug!(
            kafka.topic = &*self.topic,
            kafka.partition = self.partition,
            kafka.offset = record.offset,
            members = ?dropped.members,
            recipients = dropped.recipients,
            "invalid values of a record were passed over; the rest of it is used"
        );
    }

    /// What is read instead of a record that carries the id of a schema; `None` for one that is read as it is.
    async fn read_schema(
        &mut self,
        record: &Record,
    ) -> Result<Result<Option<Record>, Poison>, Stopped> {
        let pipeline = self.pipeline.clone();
        let covers = |registry: &&Registry| registry.covers(&self.topic);
        let Some(registry) = pipeline.registry.as_ref().filter(covers) else {
            return Ok(Ok(None));
        };
        let mut backoff = backoff(&pipeline);
        loop {
            let read = tokio::select! {
                biased;
                () = self.drain.cancelled() => return Err(Stopped),
                read = registry.read(record) => read,
            };
            match read {
                Ok(json) => return Ok(Ok(json)),
                Err(SchemaError::Poison(poison)) => return Ok(Err(poison)),
                Err(SchemaError::Away(error)) => {
                    let need = Need::Registry;
                    self.wait(need, &mut backoff, record.offset, &error).await?;
                }
            }
        }
    }

    /// Finds recipients with one query; where the database refuses an id in it, or cannot answer it in time, each activity is asked for alone.
    async fn resolve(
        &mut self,
        activities: &[&Activity],
        offset: i64,
    ) -> Result<Vec<Resolved>, Stopped> {
        let pipeline = self.pipeline.clone();
        let mut backoff = backoff(&pipeline);
        let refused = loop {
            match pipeline.resolver.resolve(activities).await {
                Ok(resolved) => return Ok(resolved),
                // Less at once may be answered.
                Err(StoreError::TooMuch { .. }) if activities.len() > 1 => break refusal(None),
                Err(StoreError::Unavailable { source } | StoreError::TooMuch { source }) => {
                    self.wait(Need::PolicyTables, &mut backoff, offset, &source)
                        .await?;
                }
                Err(StoreError::Refused { code, .. }) => break refusal(code.as_deref()),
            }
        };
        if let [_] = activities {
            return Ok(vec![Err(refused)]);
        }
        let mut resolved = Vec::with_capacity(activities.len());
        for activity in activities {
            resolved.extend(Box::pin(self.resolve(&[activity], offset)).await?);
        }
        Ok(resolved)
    }
}

fn bytes_of_ids(ids: &[String]) -> usize {
    ids.iter().map(|id| id.len() + ID_BYTES).sum()
}

fn new_activity(activity: Activity, text: Text, recipients: Arc<[String]>) -> Box<NewActivity> {
    Box::new(NewActivity {
        source: activity.source,
        event_id: activity.event_id,
        kind: activity.kind,
        title: text.title,
        content: text.content,
        locale: text.locale,
        data: activity.data,
        actor_id: activity.actor_id,
        organizer_id: activity.organizer_id,
        merchant_id: activity.merchant_id,
        occurred_at: activity.occurred_at,
        recipients,
    })
}

//! From records to what can be stored: decodes, finds recipients, renders.
//!
//! Input: the records of a batch. Output: one [`BatchRecord`] for each, pending or a dead letter.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::Span;

use super::{Lane, Need, Stopped, backoff, refusal};
use crate::activity::batch::{BatchRecord, Outcome};
use crate::activity::decode::{Activity, Record, decode};
use crate::activity::poison::Poison;
use crate::activity::render::Text;
use crate::activity::resolve::Resolved;
use crate::activity::trace;
use crate::inbox::StoreError;
use crate::notification::NewActivity;

impl Lane {
    /// Decodes, resolves and renders.
    pub(super) async fn prepare(
        &mut self,
        records: Vec<Record>,
    ) -> Result<Vec<BatchRecord>, Stopped> {
        let decoded: Vec<(Record, Span, Result<Activity, Poison>)> = records
            .into_iter()
            .map(|record| {
                let span = trace::span(&record);
                let activity = span.in_scope(|| decode(&record));
                (record, span, activity)
            })
            .collect();
        let activities: Vec<&Activity> = decoded
            .iter()
            .filter_map(|(_, _, activity)| activity.as_ref().ok())
            .collect();
        let first_offset = decoded
            .iter()
            .find(|(_, _, activity)| activity.is_ok())
            .map_or(0, |(record, _, _)| record.offset);
        let mut resolved: VecDeque<Resolved> =
            self.resolve(&activities, first_offset).await?.into();
        let prepared = decoded.into_iter().map(|(record, span, activity)| {
            let new = activity.and_then(|activity| {
                let recipients = resolved
                    .pop_front()
                    .expect("there is an answer for each activity")?;
                let text = span.in_scope(|| self.pipeline.catalogs.render(&activity))?;
                Ok(new_activity(activity, text, recipients))
            });
            let outcome = new.map_or_else(Outcome::DeadLetter, Outcome::Pending);
            BatchRecord::new(record, span, outcome)
        });
        Ok(prepared.collect())
    }

    /// Finds recipients with one query; where the database refuses an id in it, each activity is asked for alone.
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
                Err(StoreError::Unavailable { source }) => {
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
        recipients,
    })
}

//! What both databases do alike with a batch, without IO: which rows may be new, their numbers, and the answer.
//!
//! Input: activities from the trait's `insert`. Output: [`Row`]s in the order of the batch, then [`Stored`].

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde_json::value::RawValue;

use super::error::{NulCharacter, refuse_nul};
use super::{StoreError, Stored};
use crate::hash;
use crate::id::{Id, IdGenerator};
use crate::notification::{InboxState, NewActivity, Notification, bounds};

/// Most rows of one statement.
pub(super) const CHUNK_ROWS: usize = 5000;
/// Most bytes that one statement writes, unless a single row has more: each row holds the text of its activity.
pub(super) const CHUNK_BYTES: usize = 8 << 20;

/// One (activity, recipient) that may become a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Index into the batch.
    pub(super) activity: usize,
    /// Index into [`InsertBatch::recipients`].
    pub(super) recipient: usize,
}

/// A batch without the repeats within it.
pub(super) struct InsertBatch<'a> {
    given: &'a [NewActivity],
    /// Sorted byte by byte: the order in which state rows are locked.
    pub(super) recipients: Vec<&'a str>,
    /// In the order given.
    pub(super) candidates: Vec<Candidate>,
    /// Ids in their order were made twice.
    draws_ids: bool,
}

/// A row about to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Index into the batch.
    pub(super) activity: usize,
    pub(super) recipient: &'a str,
    pub(super) id: Id,
    pub(super) seq: i64,
    pub(super) inbox: InboxState,
}

/// The counters of an inbox before the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) last_seq: i64,
    pub(super) unread: i64,
    pub(super) version: i64,
}

impl<'a> InsertBatch<'a> {
    /// Refuses what a database would refuse only halfway through.
    pub(super) fn new(given: &'a [NewActivity]) -> Result<Self, StoreError> {
        given.iter().try_for_each(refuse_nul_in)?;
        let mut recipients: Vec<&str> = given
            .iter()
            .flat_map(|a| a.recipients.iter().map(String::as_str))
            .collect();
        recipients.sort_unstable();
        recipients.dedup();
        let index: HashMap<&str, usize> = recipients
            .iter()
            .enumerate()
            .map(|(at, r)| (*r, at))
            .collect();
        let mut events: hash::HashMap<(&str, &str), usize> = hash::HashMap::default();
        let mut seen: hash::HashSet<(usize, usize)> = hash::HashSet::default();
        let mut candidates = Vec::new();
        for (activity, new) in given.iter().enumerate() {
            let fresh = events.len();
            let event = *events.entry((&new.source, &new.event_id)).or_insert(fresh);
            for recipient in new.recipients.iter() {
                let recipient = index[recipient.as_str()];
                if seen.insert((event, recipient)) {
                    candidates.push(Candidate {
                        activity,
                        recipient,
                    });
                }
            }
        }
        Ok(Self {
            given,
            recipients,
            candidates,
            draws_ids: false,
        })
    }

    /// Has rows numbered with ids at random, because one in its order is taken: another process makes ids with the same worker number.
    pub(super) fn draw_ids(&mut self) {
        tracing::warn!(
            "an id of a notification was made twice: the worker number is used by another process as well; the rows get other ids"
        );
        self.draws_ids = true;
    }

    /// How many candidates each recipient has.
    pub(super) fn counts(&self) -> Vec<i64> {
        let mut counts = vec![0; self.recipients.len()];
        for candidate in &self.candidates {
            counts[candidate.recipient] += 1;
        }
        counts
    }

    /// Takes out the candidates at these positions.
    pub(super) fn remove(&mut self, positions: &hash::HashSet<usize>) {
        let mut at = 0;
        self.candidates.retain(|_| {
            at += 1;
            !positions.contains(&(at - 1))
        });
    }

    /// Gives every candidate its id and numbers, in order, starting at the bases, which are by recipient.
    pub(super) fn number(
        &self,
        mut bases: Vec<Base>,
        ids: &IdGenerator,
    ) -> Result<Vec<Row<'a>>, StoreError> {
        let number = |candidate: &Candidate| {
            let base = &mut bases[candidate.recipient];
            base.last_seq += 1;
            base.unread += 1;
            base.version += 1;
            let id = if self.draws_ids {
                ids.at_random()
            } else {
                ids.for_row().map_err(StoreError::unavailable)?
            };
            let inbox = InboxState {
                unread_count: base.unread,
                version: base.version,
            };
            Ok(Row {
                activity: candidate.activity,
                recipient: self.recipients[candidate.recipient],
                id,
                seq: base.last_seq,
                inbox,
            })
        };
        self.candidates.iter().map(number).collect()
    }

    /// Moves numbers that started at nothing to the bases.
    pub(super) fn renumber(&self, rows: &mut [Row<'a>], bases: &[Base]) {
        for (row, candidate) in rows.iter_mut().zip(&self.candidates) {
            let base = bases[candidate.recipient];
            row.seq += base.last_seq;
            row.inbox.unread_count += base.unread;
            row.inbox.version += base.version;
        }
    }

    /// The answer: the rows as they are stored.
    pub(super) fn stored(&self, rows: &[Row<'a>], created_at: DateTime<Utc>) -> Vec<Stored> {
        let mut answer = Vec::with_capacity(rows.len());
        let mut shared: Option<(usize, Texts)> = None;
        for row in rows {
            let (_, texts) = match shared.take() {
                Some(same) if same.0 == row.activity => shared.insert(same),
                _ => shared.insert((row.activity, Texts::of(&self.given[row.activity]))),
            };
            answer.push(Stored {
                activity: row.activity,
                notification: texts.notification(row, created_at),
                inbox: row.inbox,
            });
        }
        answer
    }

    /// How many bytes of text the rows of all candidates hold.
    pub(super) fn bytes(&self) -> usize {
        let texts: Vec<usize> = self.given.iter().map(NewActivity::text_bytes).collect();
        self.candidates.iter().map(|c| texts[c.activity]).sum()
    }

    /// Cuts rows into pieces for one statement each, by their number and by what they write.
    pub(super) fn chunks<'r>(&self, rows: &'r [Row<'a>]) -> Vec<&'r [Row<'a>]> {
        let texts: Vec<usize> = self.given.iter().map(NewActivity::text_bytes).collect();
        let mut chunks = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (at, row) in rows.iter().enumerate() {
            let more = texts[row.activity];
            if at > start && (at - start == CHUNK_ROWS || bytes + more > CHUNK_BYTES) {
                chunks.push(&rows[start..at]);
                (start, bytes) = (at, 0);
            }
            bytes += more;
        }
        if start < rows.len() {
            chunks.push(&rows[start..]);
        }
        chunks
    }
}

/// The words of one activity, shared by its rows.
struct Texts {
    kind: Arc<str>,
    title: Arc<str>,
    content: Arc<str>,
    data: Arc<RawValue>,
    actor_id: Option<Arc<str>>,
    organizer_id: Option<Arc<str>>,
    merchant_id: Option<Arc<str>>,
    locale: Arc<str>,
    occurred_at: Option<DateTime<Utc>>,
}

impl Texts {
    fn of(new: &NewActivity) -> Self {
        let shared = |text: &Option<String>| text.as_deref().map(Arc::from);
        Self {
            kind: new.kind.as_str().into(),
            title: new.title.as_str().into(),
            content: new.content.as_str().into(),
            data: new.data.clone().into(),
            actor_id: shared(&new.actor_id),
            organizer_id: shared(&new.organizer_id),
            merchant_id: shared(&new.merchant_id),
            locale: new.locale.as_str().into(),
            occurred_at: new.occurred_at,
        }
    }

    fn notification(&self, row: &Row<'_>, created_at: DateTime<Utc>) -> Notification {
        Notification {
            id: row.id,
            seq: row.seq,
            kind: self.kind.clone(),
            title: self.title.clone(),
            content: self.content.clone(),
            data: self.data.clone(),
            actor_id: self.actor_id.clone(),
            recipient_id: row.recipient.into(),
            organizer_id: self.organizer_id.clone(),
            merchant_id: self.merchant_id.clone(),
            locale: self.locale.clone(),
            is_read: false,
            read_at: None,
            occurred_at: self.occurred_at,
            created_at,
        }
    }
}

/// Cuts a time to what is kept of it.
pub(super) fn milliseconds(at: DateTime<Utc>) -> DateTime<Utc> {
    at.duration_trunc(TimeDelta::milliseconds(1)).unwrap_or(at)
}

fn refuse_nul_in(new: &NewActivity) -> Result<(), NulCharacter> {
    for (name, text) in [
        ("source", &new.source),
        ("id", &new.event_id),
        ("type", &new.kind),
        ("title", &new.title),
        ("content", &new.content),
        ("locale", &new.locale),
    ] {
        refuse_nul(name, text)?;
    }
    for (name, text) in [
        ("actorId", &new.actor_id),
        ("organizerId", &new.organizer_id),
        ("merchantId", &new.merchant_id),
    ] {
        text.as_deref()
            .map_or(Ok(()), |text| refuse_nul(name, text))?;
    }
    new.recipients
        .iter()
        .try_for_each(|text| refuse_nul("recipientIds", text))?;
    if bounds::json_has_nul(new.data.get()) {
        Err(NulCharacter("data"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{activity, ids};
    use super::*;

    #[test]
    fn repeats_within_a_batch_count_once_and_the_first_stays() {
        let given = [
            activity("a", &["x", "y", "x"]),
            activity("b", &["x"]),
            activity("a", &["z", "y"]),
        ];
        let mut batch = InsertBatch::new(&given).unwrap();
        assert_eq!(batch.recipients, ["x", "y", "z"]);
        let pairs: Vec<_> = batch
            .candidates
            .iter()
            .map(|c| (c.activity, batch.recipients[c.recipient]))
            .collect();
        assert_eq!(pairs, [(0, "x"), (0, "y"), (1, "x"), (2, "z")]);
        assert_eq!(batch.counts(), [2, 1, 1]);
        batch.remove(&hash::HashSet::from_iter([0, 3]));
        let pairs: Vec<_> = batch
            .candidates
            .iter()
            .map(|c| (c.activity, batch.recipients[c.recipient]))
            .collect();
        assert_eq!(pairs, [(0, "y"), (1, "x")]);
    }

    #[test]
    fn numbers_go_on_from_the_base_in_the_order_of_the_batch() {
        let given = [activity("a", &["x"]), activity("b", &["y", "x"])];
        let batch = InsertBatch::new(&given).unwrap();
        let bases = vec![
            Base {
                last_seq: 7,
                unread: 2,
                version: 40,
            },
            Base::default(),
        ];
        let numbers = |rows: &[Row<'_>]| -> Vec<(String, i64, i64, i64)> {
            rows.iter()
                .map(|r| {
                    (
                        r.recipient.into(),
                        r.seq,
                        r.inbox.unread_count,
                        r.inbox.version,
                    )
                })
                .collect()
        };
        let want = [("x", 8, 3, 41), ("y", 1, 1, 1), ("x", 9, 4, 42)]
            .map(|(r, seq, unread, version)| (r.to_owned(), seq, unread, version));
        let mut later = batch.number(vec![Base::default(); 2], &ids()).unwrap();
        batch.renumber(&mut later, &bases);
        assert_eq!(numbers(&later), want);
        let rows = batch.number(bases, &ids()).unwrap();
        assert_eq!(numbers(&rows), want);
        let stored = batch.stored(&rows, DateTime::UNIX_EPOCH);
        assert!(Arc::ptr_eq(
            &stored[1].notification.title,
            &stored[2].notification.title
        ));
        assert_eq!(
            stored.iter().map(|s| s.activity).collect::<Vec<_>>(),
            [0, 1, 1]
        );
    }

    #[test]
    fn chunks_are_bounded_by_rows_and_by_text() {
        let many: Vec<String> = (0..CHUNK_ROWS + 1).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut given = vec![activity("a", &many)];
        let sizes = |given: &[NewActivity]| -> Vec<usize> {
            let batch = InsertBatch::new(given).unwrap();
            let rows = batch
                .number(vec![Base::default(); batch.recipients.len()], &ids())
                .unwrap();
            batch.chunks(&rows).iter().map(|c| c.len()).collect()
        };
        assert_eq!(sizes(&given), [CHUNK_ROWS, 1]);
        given = (0..3)
            .map(|n| activity(&n.to_string(), &["x", "y"]))
            .collect();
        for new in &mut given {
            new.content = "c".repeat(CHUNK_BYTES / 2 - 1000);
        }
        // Each row holds the whole text.
        assert_eq!(sizes(&given), [2, 2, 2]);
        given[0].content = "c".repeat(CHUNK_BYTES * 2);
        assert_eq!(sizes(&given), [1, 1, 2, 2]);
        assert!(sizes(&[]).is_empty());
    }

    #[test]
    fn nul_is_refused_in_every_text() {
        let mut bad = activity("a", &["x"]);
        bad.title.push('\0');
        assert!(matches!(
            InsertBatch::new(&[bad]),
            Err(StoreError::Refused { .. })
        ));
        assert!(matches!(
            InsertBatch::new(&[activity("a", &["x\0"])]),
            Err(StoreError::Refused { .. })
        ));
        let mut escaped = activity("a", &["x"]);
        escaped.data = RawValue::from_string(r#"{"a":"\u0000"}"#.into()).unwrap();
        assert!(matches!(
            InsertBatch::new(&[escaped]),
            Err(StoreError::Refused { .. })
        ));
    }
}

//! What both databases do alike with a batch, without IO: which rows may be new, their numbers, and the answer.
//!
//! Input: activities from the trait's `insert`. Output: [`Row`]s in the order of the batch, then [`Stored`].

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde_json::value::RawValue;

use super::error::{NulCharacter, refuse_nul};
use super::row_id::row_id;
use super::{StoreError, Stored};
use crate::hash;
use crate::id::Id;
use crate::notification::{InboxState, NewActivity, Notification, bounds};

/// Most rows of one statement.
pub(super) const CHUNK_ROWS: usize = 5000;
/// Most bytes of text that one statement writes, unless a single activity has more.
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
    /// The number of each activity's text, by index into the batch. Drawn at random, so that the texts of one event need no counter, and an id that
    /// was given before the database went back in time names no row.
    pub(super) texts: Vec<i32>,
}

/// A row about to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// Index into the batch.
    pub(super) activity: usize,
    /// Index into [`InsertBatch::recipients`].
    pub(super) recipient: usize,
    pub(super) seq: i64,
    pub(super) inbox: InboxState,
}

/// An inbox before the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) number: i64,
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
            texts: given
                .iter()
                .map(|_| rand::random_range(0..=i32::MAX))
                .collect(),
        })
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

    /// Gives every candidate its numbers, in order, starting at the bases, which are by recipient.
    pub(super) fn number(&self, bases: &[Base]) -> Vec<Row> {
        let mut bases = bases.to_vec();
        let number = |candidate: &Candidate| {
            let base = &mut bases[candidate.recipient];
            base.last_seq += 1;
            base.unread += 1;
            base.version += 1;
            Row {
                activity: candidate.activity,
                recipient: candidate.recipient,
                seq: base.last_seq,
                inbox: InboxState {
                    unread_count: base.unread,
                    version: base.version,
                },
            }
        };
        self.candidates.iter().map(number).collect()
    }

    /// The answer: the rows as they are stored.
    pub(super) fn stored(
        &self,
        rows: &[Row],
        bases: &[Base],
        created_at: DateTime<Utc>,
    ) -> Vec<Stored> {
        let mut answer = Vec::with_capacity(rows.len());
        let mut shared: Option<(usize, Texts)> = None;
        for row in rows {
            let (_, texts) = match shared.take() {
                Some(same) if same.0 == row.activity => shared.insert(same),
                _ => shared.insert((row.activity, Texts::of(&self.given[row.activity]))),
            };
            let inbox = bases[row.recipient].number;
            answer.push(Stored {
                activity: row.activity,
                notification: Notification {
                    id: row_id(inbox, row.seq, self.texts[row.activity].into()),
                    recipient_id: self.recipients[row.recipient].into(),
                    ..texts.notification(row.seq, created_at)
                },
                inbox: row.inbox,
            });
        }
        answer
    }

    /// The activities that have candidates, by their index into the batch, in order.
    pub(super) fn activities(&self) -> Vec<usize> {
        let mut activities: Vec<usize> = self.candidates.iter().map(|c| c.activity).collect();
        activities.dedup();
        activities
    }

    /// How many bytes of text these activities have.
    pub(super) fn bytes(&self, activities: &[usize]) -> usize {
        let bytes = |at: &usize| self.given[*at].text_bytes();
        activities.iter().map(bytes).sum()
    }

    /// Cuts activities into pieces for one statement each, by their number and by the text that they write.
    pub(super) fn chunks<'c>(&self, activities: &'c [usize]) -> Vec<&'c [usize]> {
        let mut chunks = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (at, activity) in activities.iter().enumerate() {
            let more = self.given[*activity].text_bytes();
            if at > start && (at - start == CHUNK_ROWS || bytes + more > CHUNK_BYTES) {
                chunks.push(&activities[start..at]);
                (start, bytes) = (at, 0);
            }
            bytes += more;
        }
        if start < activities.len() {
            chunks.push(&activities[start..]);
        }
        chunks
    }
}

/// A number for a type, so that a row needs no text to be found by it. Two types may share one: who asks compares the text, too. Migration 0005
/// computes it as well.
pub(super) fn kind_code(kind: &str) -> i32 {
    const MODULUS: u64 = i32::MAX as u64;
    let code = kind
        .chars()
        .fold(0, |code, c| (code * 31 + u64::from(u32::from(c))) % MODULUS);
    code as i32
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

    /// Without identity and recipient.
    fn notification(&self, seq: i64, created_at: DateTime<Utc>) -> Notification {
        Notification {
            id: Id::from_number(0),
            seq,
            kind: self.kind.clone(),
            title: self.title.clone(),
            content: self.content.clone(),
            data: self.data.clone(),
            actor_id: self.actor_id.clone(),
            recipient_id: Arc::default(),
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
    use super::super::testing::activity;
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
        let bases = [
            Base {
                number: 5,
                last_seq: 7,
                unread: 2,
                version: 40,
            },
            Base {
                number: 6,
                ..Base::default()
            },
        ];
        let rows = batch.number(&bases);
        let numbers: Vec<_> = rows
            .iter()
            .map(|r| {
                let recipient = batch.recipients[r.recipient];
                (recipient, r.seq, r.inbox.unread_count, r.inbox.version)
            })
            .collect();
        assert_eq!(
            numbers,
            [("x", 8, 3, 41), ("y", 1, 1, 1), ("x", 9, 4, 42)],
            "x had seven, and two of them unread"
        );
        let stored = batch.stored(&rows, &bases, DateTime::UNIX_EPOCH);
        assert!(Arc::ptr_eq(
            &stored[1].notification.title,
            &stored[2].notification.title
        ));
        assert_eq!(
            stored.iter().map(|s| s.activity).collect::<Vec<_>>(),
            [0, 1, 1]
        );
        let text = i64::from(batch.texts[1]);
        assert_eq!(stored[1].notification.id, row_id(6, 1, text));
        assert_eq!(stored[2].notification.id, row_id(5, 9, text));
    }

    #[test]
    fn texts_are_written_once_and_in_bounded_pieces() {
        let mut given: Vec<NewActivity> = (0..3)
            .map(|n| activity(&n.to_string(), &["x", "y"]))
            .collect();
        let sizes = |given: &[NewActivity]| -> Vec<usize> {
            let batch = InsertBatch::new(given).unwrap();
            let activities = batch.activities();
            let chunks = batch.chunks(&activities);
            chunks.iter().map(|c| c.len()).collect()
        };
        assert_eq!(sizes(&given), [3]);
        for new in &mut given {
            new.content = "c".repeat(CHUNK_BYTES / 2 - 1000);
        }
        // However many recipients an activity has, its text counts once.
        given[0].recipients = (0..9000).map(|n| n.to_string()).collect();
        assert_eq!(sizes(&given), [2, 1]);
        given[0].content = "c".repeat(CHUNK_BYTES * 2);
        assert_eq!(sizes(&given), [1, 2]);
        given.push(NewActivity {
            recipients: given[1].recipients.clone(),
            ..given[1].clone()
        });
        assert_eq!(
            sizes(&given),
            [1, 2],
            "the text of a repetition is not written"
        );
        assert!(sizes(&[]).is_empty());
    }

    #[test]
    fn types_have_codes_that_do_not_change() {
        assert_eq!(kind_code(""), 0);
        assert_eq!(kind_code("PAYMENT_SUCCESS"), 2_134_467_884);
        assert_ne!(kind_code("odd"), kind_code("ODD"));
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

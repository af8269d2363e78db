//! What happens to a batch of records, as a value: no IO, no clock, no randomness.
//!
//! Input: decoded, resolved and rendered records, and what the store answered. Output: the next [`Step`], which [`super::lane`] performs and
//! reports back. Each record owns its [`Outcome`], and the batch decides what goes into one transaction, in which order, and up to which
//! offset everything is done.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use tracing::Span;

use super::decode::Record;
use super::poison::Poison;
use crate::inbox::Stored;
use crate::notification::NewActivity;

/// What has become of a record.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It waits for a transaction.
    Pending(Box<NewActivity>),
    /// It is in the current transaction, or a part of its recipients is.
    Storing,
    /// The same, and an earlier try was not answered: its rows may be stored already.
    Retry,
    /// Its rows are stored.
    Stored,
    /// It can never be stored: it goes to the dead-letter topic.
    DeadLetter(Poison),
}

/// A record on its way through a batch.
#[derive(Debug)]
pub(super) struct BatchRecord {
    pub(super) record: Record,
    /// Continues the producer's trace; closed when the record is dropped.
    pub(super) span: Span,
    pub(super) outcome: Outcome,
    /// Whether any of its rows was not there before.
    has_new_rows: bool,
}

impl BatchRecord {
    pub(super) fn new(record: Record, span: Span, outcome: Outcome) -> Self {
        Self {
            record,
            span,
            outcome,
            has_new_rows: false,
        }
    }

    /// The metric label of a record that is done.
    pub(super) fn label(&self) -> &'static str {
        match self.outcome {
            Outcome::DeadLetter(_) => "dead_letter",
            _ if self.has_new_rows => "stored",
            _ => "duplicate",
        }
    }
}

/// What the lane does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Store [`Batch::transaction`], and report [`Batch::stored`], [`Batch::refused`], [`Batch::too_much`] or [`Batch::unanswered`].
    Store,
    /// Send the dead letters of [`Batch::finishing`], and report [`Batch::finish`].
    Finish,
    /// Every record is done.
    End,
}

/// What a row needs in memory while it is stored and pushed, besides its text: an identity, a recipient, numbers, each as given, as bound and as answered.
const ROW_BYTES: usize = 640;
/// How often the text of an activity is in memory meanwhile: here, bound, in the buffer of the connection, and in what is answered.
const TEXT_COPIES: usize = 4;
/// A transaction takes this many rows of an activity however long its text is.
const LEAST_ROWS: usize = 100;

/// Most text that one transaction writes: that of each activity once, however many receive it. Unless a single activity has more.
const WRITTEN_BYTES: usize = 64 << 20;

/// What one transaction takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most rows.
    pub(super) rows: usize,
    /// Most bytes of memory, unless that is less than [`LEAST_ROWS`] need.
    pub(super) bytes: usize,
}

impl Limits {
    /// How many rows of this activity one transaction takes.
    fn rows_of(&self, activity: &NewActivity) -> usize {
        let left = self
            .bytes
            .saturating_sub(TEXT_COPIES * activity.text_bytes());
        (left / ROW_BYTES).max(LEAST_ROWS).min(self.rows).max(1)
    }
}

/// What the rows of an activity need while they are stored and pushed.
fn bytes_of(activity: &NewActivity) -> usize {
    TEXT_COPIES * activity.text_bytes() + ROW_BYTES * activity.recipients.len()
}

/// Records of one partition, in the order of their offsets.
pub(super) struct Batch {
    records: Vec<BatchRecord>,
    limits: Limits,
    group: Group,
    /// An activity with more recipients than a transaction takes, and how many of them were taken.
    sliced: Option<Sliced>,
    /// The first record that was not looked at.
    next: usize,
    /// Records before this one are done.
    done: usize,
    /// Records before this one are done once the group is stored.
    finishing: usize,
}

/// Activities that are stored in one transaction, unless the database refuses it.
#[derive(Default)]
struct Group {
    activities: Vec<NewActivity>,
    /// For each activity, its record.
    records: Vec<usize>,
    /// Ranges of activities that are not stored yet, the next one last.
    parts: Vec<Range<usize>>,
}

impl Group {
    fn push(&mut self, record: usize, activity: NewActivity) {
        self.activities.push(activity);
        self.records.push(record);
    }

    fn part(&self) -> Range<usize> {
        self.parts.last().cloned().unwrap_or(0..0)
    }
}

struct Sliced {
    record: usize,
    activity: Box<NewActivity>,
    taken: usize,
}

impl Batch {
    /// Transactions are within `limits`.
    pub(super) fn new(records: Vec<BatchRecord>, limits: Limits) -> Self {
        Self {
            records,
            limits,
            group: Group::default(),
            sliced: None,
            next: 0,
            done: 0,
            finishing: 0,
        }
    }

    /// What is to be done next; the same until its outcome is reported.
    pub(super) fn step(&mut self) -> Step {
        loop {
            if !self.group.parts.is_empty() {
                return Step::Store;
            }
            if self.is_finishing() {
                return Step::Finish;
            }
            if self.done == self.records.len() {
                return Step::End;
            }
            self.plan();
        }
    }

    /// Whether everything is stored that [`Batch::finish`] needs, and it was not reported yet.
    pub(super) fn is_finishing(&self) -> bool {
        self.group.parts.is_empty() && self.done < self.finishing
    }

    /// Fills the group with the activities that come next.
    fn plan(&mut self) {
        self.group = Group::default();
        if self.sliced.is_some() {
            self.plan_slice();
        } else {
            self.plan_activities();
        }
        if !self.group.activities.is_empty() {
            self.group.parts.push(0..self.group.activities.len());
        }
    }

    /// As many whole activities as a transaction takes. One that has too many recipients for any comes in slices, in groups of its own.
    fn plan_activities(&mut self) {
        let (mut rows, mut bytes, mut written) = (0, 0, 0);
        while let Some(at) = self.records.get_mut(self.next) {
            if let Outcome::Pending(activity) = &at.outcome {
                let recipients = activity.recipients.len();
                let more = bytes_of(activity);
                let writes = activity.text_bytes();
                if rows > 0
                    && (rows + recipients > self.limits.rows
                        || bytes + more > self.limits.bytes
                        || written + writes > WRITTEN_BYTES)
                {
                    break;
                }
                let takes_whole = recipients <= self.limits.rows_of(activity);
                let Outcome::Pending(activity) =
                    std::mem::replace(&mut at.outcome, Outcome::Storing)
                else {
                    break;
                };
                if !takes_whole {
                    self.finishing = self.next;
                    self.sliced = Some(Sliced {
                        record: self.next,
                        activity,
                        taken: 0,
                    });
                    self.next += 1;
                    return self.plan_slice();
                }
                rows += recipients;
                bytes += more;
                written += writes;
                self.group.push(self.next, *activity);
            }
            self.next += 1;
        }
        self.finishing = self.next;
    }

    /// The next recipients of the sliced activity, so that its rows are never in memory as a whole. A slice stored twice changes nothing.
    fn plan_slice(&mut self) {
        let Some(mut sliced) = self.sliced.take() else {
            return;
        };
        let recipients = &sliced.activity.recipients;
        let rows = self.limits.rows_of(&sliced.activity);
        let end = recipients.len().min(sliced.taken + rows);
        let slice = NewActivity {
            recipients: recipients[sliced.taken..end].into(),
            ..(*sliced.activity).clone()
        };
        self.records[sliced.record].outcome = Outcome::Storing;
        self.group.push(sliced.record, slice);
        if end < recipients.len() {
            sliced.taken = end;
            self.sliced = Some(sliced);
        } else {
            self.finishing = self.next;
        }
    }

    /// The activities of the current transaction.
    pub(super) fn transaction(&self) -> &[NewActivity] {
        &self.group.activities[self.group.part()]
    }

    /// About the memory that the current transaction and its pushes need.
    pub(super) fn transaction_bytes(&self) -> usize {
        self.transaction().iter().map(bytes_of).sum()
    }

    /// The record of each activity of the current transaction.
    pub(super) fn storing(&self) -> impl Iterator<Item = &BatchRecord> {
        self.group.records[self.group.part()]
            .iter()
            .map(|at| &self.records[*at])
    }

    /// The offset of the first record of the current transaction.
    pub(super) fn offset(&self) -> i64 {
        self.storing().next().map_or(0, |first| first.record.offset)
    }

    /// The current transaction was not answered: its rows may be stored. It stays the current one.
    pub(super) fn unanswered(&mut self) {
        self.set_storing(|| Outcome::Retry);
    }

    fn set_storing(&mut self, outcome: fn() -> Outcome) {
        for at in &self.group.records[self.group.part()] {
            self.records[*at].outcome = outcome();
        }
    }

    /// Recipients whose rows may come from a try that was not answered: what is not among the `rows` that are new was there already, so
    /// that it was not pushed then and is not pushed now.
    pub(super) fn unpushed<'b>(&'b self, rows: &[Stored]) -> BTreeSet<&'b str> {
        self.not_among(rows, |outcome| matches!(outcome, Outcome::Retry))
    }

    /// Recipients of the other rows that are not among the `rows` that are new: another owner of the partition may have stored them.
    pub(super) fn stored_already<'b>(&'b self, rows: &[Stored]) -> BTreeSet<&'b str> {
        self.not_among(rows, |outcome| !matches!(outcome, Outcome::Retry))
    }

    /// Recipients of rows that are not among `rows`, of the activities that `concerns` is true for.
    fn not_among<'b>(
        &'b self,
        rows: &[Stored],
        concerns: impl Fn(&Outcome) -> bool,
    ) -> BTreeSet<&'b str> {
        let concerned: Vec<bool> = self
            .storing()
            .map(|record| concerns(&record.outcome))
            .collect();
        let wanted = self.transaction().iter().map(|new| new.recipients.len());
        // All of them are new as a rule.
        if !concerned.contains(&true) || wanted.sum::<usize>() == rows.len() {
            return BTreeSet::new();
        }
        let new: HashSet<(usize, &str)> = rows
            .iter()
            .map(|row| (row.activity, &*row.notification.recipient_id))
            .collect();
        self.transaction()
            .iter()
            .enumerate()
            .filter(|(activity, _)| concerned[*activity])
            .flat_map(|(activity, new)| {
                let recipients = new.recipients.iter();
                recipients.map(move |recipient| (activity, recipient.as_str()))
            })
            .filter(|row| !new.contains(row))
            .map(|(_, recipient)| recipient)
            .collect()
    }

    /// The current transaction is stored; `rows` are those that were not there before.
    pub(super) fn stored(&mut self, rows: &[Stored]) {
        self.set_storing(|| Outcome::Stored);
        let part = self.group.part();
        for row in rows {
            let record = self.group.records[part.start + row.activity];
            self.records[record].has_new_rows = true;
        }
        self.group.parts.pop();
    }

    /// The database refuses the current transaction: it is halved until the bad record is alone, which becomes a dead letter.
    pub(super) fn refused(&mut self, poison: Poison) {
        self.set_storing(|| Outcome::Storing);
        let Some(part) = self.group.parts.pop() else {
            return;
        };
        if part.len() == 1 {
            let record = self.group.records[part.start];
            self.records[record].outcome = Outcome::DeadLetter(poison);
            // Nor is the rest of its recipients, if it was too much at once.
            let records = &self.group.records;
            self.group
                .parts
                .retain(|part| records[part.start] != record);
            // Nothing more is stored of a sliced activity.
            if self.sliced.take().is_some() {
                self.finishing = self.next;
            }
            return;
        }
        let middle = part.start + part.len() / 2;
        // The left half is stored first, so that order is kept.
        self.group.parts.push(middle..part.end);
        self.group.parts.push(part.start..middle);
    }

    /// The current transaction is more than the database can do at once, and left nothing behind. It is halved, down to one row, and later ones
    /// are as small. False for a single row: what it waits for passes.
    pub(super) fn too_much(&mut self) -> bool {
        let part = self.group.part();
        let rows: usize = self
            .transaction()
            .iter()
            .map(|new| new.recipients.len())
            .sum();
        if rows <= 1 {
            return false;
        }
        self.limits.rows = (rows / 2).max(1);
        self.group.parts.pop();
        if part.len() > 1 {
            let middle = part.start + part.len() / 2;
            self.group.parts.push(middle..part.end);
            self.group.parts.push(part.start..middle);
            return true;
        }
        let at = part.start;
        let whole = self.group.activities[at].clone();
        let (first, second) = whole.recipients.split_at(rows / 2);
        self.group.activities[at].recipients = first.into();
        self.group.activities.insert(
            at + 1,
            NewActivity {
                recipients: second.into(),
                ..whole.clone()
            },
        );
        self.group.records.insert(at + 1, self.group.records[at]);
        for later in &mut self.group.parts {
            *later = later.start + 1..later.end + 1;
        }
        self.group.parts.push(at + 1..at + 2);
        self.group.parts.push(at..at + 1);
        true
    }

    /// How many rows a transaction has at most.
    pub(super) fn most_rows(&self) -> usize {
        self.limits.rows
    }

    /// The records that are done once their dead letters are confirmed; none while a transaction waits.
    pub(super) fn finishing(&self) -> &[BatchRecord] {
        if self.is_finishing() {
            &self.records[self.done..self.finishing]
        } else {
            &[]
        }
    }

    /// Everything of [`Batch::finishing`] is durable. Returns the offset to commit.
    pub(super) fn finish(&mut self) -> Option<i64> {
        let last = self.finishing().last()?.record.offset;
        self.done = self.finishing;
        Some(last + 1)
    }
}

#[cfg(test)]
mod tests;

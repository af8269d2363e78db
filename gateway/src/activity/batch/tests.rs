//! A batch without a lane: a loop that performs its steps against a pretended database.

use chrono::DateTime;
use serde_json::value::RawValue;

use super::*;
use crate::activity::DeadLetterReason;
use crate::activity::testing;
use crate::notification::{InboxState, Notification};

/// A record at `offset` whose event has these recipients.
fn pending(offset: i64, event: &str, recipients: &[&str]) -> BatchRecord {
    let activity = NewActivity {
        source: "t".into(),
        event_id: event.into(),
        kind: "T".into(),
        title: "t".into(),
        content: "c".into(),
        locale: "vi".into(),
        data: RawValue::from_string("{}".into()).unwrap(),
        actor_id: None,
        organizer_id: None,
        merchant_id: None,
        occurred_at: None,
        recipients: recipients.iter().map(|id| (*id).to_owned()).collect(),
    };
    BatchRecord::new(at(offset), Span::none(), Outcome::Pending(activity.into()))
}

/// Limits by rows alone.
fn at_most(rows: usize) -> Limits {
    Limits {
        rows,
        bytes: usize::MAX,
    }
}

fn dead(offset: i64) -> BatchRecord {
    BatchRecord::new(at(offset), Span::none(), Outcome::DeadLetter(poison()))
}

fn at(offset: i64) -> Record {
    Record {
        offset,
        ..testing::record("{}")
    }
}

fn poison() -> Poison {
    Poison::new(DeadLetterReason::Refused, "refused")
}

fn row(activity: usize, recipient: &str) -> Stored {
    let text = || "x".into();
    Stored {
        activity,
        notification: Notification {
            id: crate::id::Id::from_number(1),
            seq: 1,
            kind: text(),
            title: text(),
            content: text(),
            data: RawValue::from_string("{}".into()).unwrap().into(),
            actor_id: None,
            recipient_id: recipient.into(),
            organizer_id: None,
            merchant_id: None,
            locale: text(),
            is_read: false,
            read_at: None,
            occurred_at: None,
            created_at: DateTime::UNIX_EPOCH,
        },
        inbox: InboxState::default(),
    }
}

/// Every (activity, recipient) of the current transaction as a new row.
fn all_rows(batch: &Batch) -> Vec<Stored> {
    let activities = batch.transaction().iter().enumerate();
    activities
        .flat_map(|(at, new)| new.recipients.iter().map(move |id| row(at, id)))
        .collect()
}

/// What a lane would have seen.
#[derive(Default)]
struct Log {
    /// Events of each transaction that was tried.
    tried: Vec<Vec<String>>,
    /// (event, recipient), in the order they were stored.
    rows: Vec<(String, String)>,
    /// Offsets that were given for commit.
    commits: Vec<i64>,
    /// Offsets and labels of the records that are done.
    done: Vec<(i64, &'static str)>,
}

impl Log {
    fn events(&self) -> Vec<&str> {
        self.rows.iter().map(|(event, _)| event.as_str()).collect()
    }
}

/// Performs every step; the database refuses a transaction in which an event's id begins with `bad`.
fn perform(records: Vec<BatchRecord>, max_rows: usize) -> Log {
    let mut batch = Batch::new(records, at_most(max_rows));
    let mut log = Log::default();
    loop {
        match batch.step() {
            Step::End => return log,
            Step::Store => {
                let events: Vec<String> = batch
                    .transaction()
                    .iter()
                    .map(|new| new.event_id.clone())
                    .collect();
                let is_refused = events.iter().any(|event| event.starts_with("bad"));
                log.tried.push(events);
                if is_refused {
                    batch.refused(poison());
                    continue;
                }
                let rows = all_rows(&batch);
                assert!(rows.len() <= max_rows, "a transaction has at most so many");
                for row in &rows {
                    let event = batch.transaction()[row.activity].event_id.clone();
                    log.rows
                        .push((event, row.notification.recipient_id.to_string()));
                }
                batch.stored(&rows);
            }
            Step::Finish => {
                for record in batch.finishing() {
                    assert!(
                        matches!(record.outcome, Outcome::Stored | Outcome::DeadLetter(_)),
                        "{record:?} is committed before it is done"
                    );
                    log.done.push((record.record.offset, record.label()));
                }
                log.commits.extend(batch.finish());
            }
        }
    }
}

fn names(range: std::ops::Range<i64>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[test]
fn a_refused_batch_is_halved_until_the_bad_record_is_alone() {
    for bad in 0..64 {
        let records = (0..64).map(|n| {
            let event = if n == bad {
                "bad".to_owned()
            } else {
                n.to_string()
            };
            pending(n, &event, &["17"])
        });
        let log = perform(records.collect(), 1000);
        let mut want = names(0..64);
        want.remove(bad as usize);
        assert_eq!(log.events(), want, "the others are stored in order");
        assert!(log.tried.contains(&vec!["bad".to_owned()]), "it was alone");
        assert!(log.tried.len() <= 13, "{} transactions", log.tried.len());
        let dead: Vec<_> = log
            .done
            .iter()
            .filter(|(_, label)| *label == "dead_letter")
            .collect();
        assert_eq!(dead, [&(bad, "dead_letter")]);
        assert_eq!(log.commits, [64]);
    }
}

#[test]
fn several_bad_records_are_each_found_and_the_order_of_the_others_stays() {
    let events = ["bad1", "a", "b", "bad2", "bad3", "c", "bad4"];
    let records = events
        .iter()
        .zip(10..)
        .map(|(event, offset)| pending(offset, event, &["17", "18"]));
    let log = perform(records.collect(), 1000);
    assert_eq!(log.events(), ["a", "a", "b", "b", "c", "c"]);
    let labels: Vec<_> = log.done.iter().map(|(_, label)| *label).collect();
    let (dead, stored) = ("dead_letter", "stored");
    assert_eq!(labels, [dead, stored, stored, dead, dead, stored, dead]);
    assert_eq!(log.commits, [17]);
}

#[test]
fn transactions_are_bounded_by_rows_and_the_offset_follows_each() {
    let records = vec![
        pending(5, "a", &["1", "2"]),
        dead(6),
        pending(7, "b", &["1"]),
        pending(9, "c", &["1", "2"]),
        pending(10, "d", &["1", "2", "3"]),
        dead(11),
    ];
    let log = perform(records, 3);
    let tried: Vec<_> = log.tried.iter().map(|events| events.join("+")).collect();
    assert_eq!(tried, ["a+b", "c", "d"]);
    assert_eq!(log.commits, [8, 10, 12]);
    let offsets: Vec<i64> = log.done.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [5, 6, 7, 9, 10, 11]);
}

/// A record whose event has this much text and so many recipients.
fn long(offset: i64, event: &str, text: usize, recipients: usize) -> BatchRecord {
    let names = names(0..recipients as i64);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut record = pending(offset, event, &names);
    if let Outcome::Pending(activity) = &mut record.outcome {
        activity.content = "c".repeat(text);
    }
    record
}

/// Performs every step within these limits; returns rows and memory of each transaction.
fn transactions(records: Vec<BatchRecord>, limits: Limits) -> Vec<(usize, usize)> {
    let mut batch = Batch::new(records, limits);
    let mut seen = Vec::new();
    loop {
        match batch.step() {
            Step::End => return seen,
            Step::Store => {
                let rows = all_rows(&batch);
                seen.push((rows.len(), batch.transaction_bytes()));
                batch.stored(&rows);
            }
            Step::Finish => {
                batch.finish();
            }
        }
    }
}

#[test]
fn transactions_are_bounded_by_memory_too() {
    let limits = Limits {
        rows: 5000,
        bytes: 1 << 20,
    };
    // Text alone: two of 100 KB, four times each.
    let records = (0..5).map(|n| long(n, &n.to_string(), 100_000, 1));
    let rows: Vec<_> = transactions(records.collect(), limits)
        .into_iter()
        .map(|(rows, bytes)| {
            assert!(bytes <= limits.bytes, "{bytes}");
            rows
        })
        .collect();
    assert_eq!(rows, [2, 2, 1]);
    // Rows alone: 4,000 need more than twice a megabyte.
    let seen = transactions(vec![long(0, "many", 10, 4000)], limits);
    assert!(
        (3..=4).contains(&seen.len()) && seen.iter().all(|(_, bytes)| *bytes <= limits.bytes),
        "{seen:?}"
    );
    assert_eq!(seen.iter().map(|(rows, _)| rows).sum::<usize>(), 4000);
}

#[test]
fn text_larger_than_a_transaction_may_need_is_stored_in_slices_that_make_progress() {
    let limits = Limits {
        rows: 5000,
        bytes: 1 << 20,
    };
    let records = vec![
        long(0, "a", 10, 1),
        long(1, "huge", 320_000, 250),
        long(2, "b", 10, 1),
    ];
    let rows: Vec<_> = transactions(records, limits)
        .into_iter()
        .map(|(rows, _)| rows)
        .collect();
    assert_eq!(rows, [1, 100, 100, 50, 1]);
}

#[test]
fn an_activity_for_many_is_stored_in_slices_and_done_after_the_last() {
    let many = ["1", "2", "3", "4", "5"];
    let records = vec![
        dead(0),
        pending(1, "many", &many),
        pending(2, "b", &["1", "2"]),
    ];
    let log = perform(records, 2);
    assert_eq!(log.tried, [["many"], ["many"], ["many"], ["b"]]);
    let recipients: Vec<_> = log.rows.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(recipients, ["1", "2", "3", "4", "5", "1", "2"]);
    assert_eq!(log.commits, [1, 2, 3]);
}

#[test]
fn nothing_more_is_stored_of_a_sliced_activity_that_is_refused() {
    let many = ["1", "2", "3", "4", "5"];
    let records = vec![pending(0, "bad", &many), pending(1, "b", &["1"])];
    let log = perform(records, 2);
    assert_eq!(log.tried, [["bad"], ["b"]]);
    assert_eq!(log.done, [(0, "dead_letter"), (1, "stored")]);
    assert_eq!(log.commits, [1, 2]);
}

#[test]
fn nothing_is_committed_past_a_transaction_that_is_not_answered() {
    let records = vec![
        pending(0, "a", &["1"]),
        pending(1, "b", &["2"]),
        pending(2, "c", &["3"]),
    ];
    let mut batch = Batch::new(records, at_most(2));
    for _ in 0..5 {
        assert_eq!(batch.step(), Step::Store);
        assert_eq!((batch.transaction().len(), batch.offset()), (2, 0));
        assert!(!batch.is_finishing() && batch.finishing().is_empty());
        batch.unanswered();
    }
    let rows = all_rows(&batch);
    batch.stored(&rows);
    assert_eq!((batch.step(), batch.finish()), (Step::Finish, Some(2)));
    assert_eq!((batch.step(), batch.offset()), (Step::Store, 2));
    batch.unanswered();
    assert!(batch.finishing().is_empty(), "2 stays uncommitted");
}

#[test]
fn half_a_batch_is_not_committed_while_the_other_half_waits() {
    let records = vec![pending(0, "a", &["1"]), pending(1, "b", &["2"])];
    let mut batch = Batch::new(records, at_most(10));
    assert_eq!(batch.step(), Step::Store);
    batch.refused(poison());
    assert_eq!((batch.step(), batch.offset()), (Step::Store, 0));
    let rows = all_rows(&batch);
    batch.stored(&rows);
    assert_eq!((batch.step(), batch.offset()), (Step::Store, 1));
    assert!(!batch.is_finishing());
    batch.unanswered();
    assert_eq!((batch.step(), batch.offset()), (Step::Store, 1));
}

#[test]
fn only_recipients_who_may_have_a_row_of_an_unanswered_try_get_resync() {
    let records = vec![pending(0, "a", &["1", "2"]), pending(1, "b", &["2", "3"])];
    let mut batch = Batch::new(records, at_most(10));
    assert_eq!(batch.step(), Step::Store);
    assert!(
        batch.unpushed(&[]).is_empty(),
        "a repeated event is no reason to sync"
    );
    batch.unanswered();
    let new = [row(0, "1"), row(1, "3")];
    assert_eq!(batch.unpushed(&new), BTreeSet::from(["2"]));
    assert_eq!(batch.unpushed(&[]), BTreeSet::from(["1", "2", "3"]));
    batch.refused(poison());
    assert!(
        batch.unpushed(&[]).is_empty(),
        "a refused transaction left nothing behind"
    );
}

#[test]
fn a_record_without_a_new_row_is_a_duplicate() {
    let records = vec![pending(0, "a", &["1"]), pending(1, "b", &["1"])];
    let mut batch = Batch::new(records, at_most(10));
    assert_eq!(batch.step(), Step::Store);
    batch.stored(&[row(1, "1")]);
    assert_eq!(batch.step(), Step::Finish);
    let labels: Vec<_> = batch.finishing().iter().map(BatchRecord::label).collect();
    assert_eq!(labels, ["duplicate", "stored"]);
}

#[test]
fn a_batch_of_dead_letters_asks_the_store_nothing() {
    let log = perform(vec![dead(3), dead(4)], 10);
    assert!(log.tried.is_empty());
    assert_eq!(log.commits, [5]);
    assert!(perform(Vec::new(), 10).commits.is_empty());
}

/// Performs every step; a transaction of more than `able` rows is too much for the database. Returns the rows of each try.
fn tries(records: Vec<BatchRecord>, limits: Limits, able: usize) -> (Vec<usize>, Vec<String>) {
    let mut batch = Batch::new(records, limits);
    let (mut tries, mut stored) = (Vec::new(), Vec::new());
    loop {
        match batch.step() {
            Step::End => return (tries, stored),
            Step::Store => {
                let rows = all_rows(&batch);
                tries.push(rows.len());
                if rows.len() > able {
                    assert!(batch.too_much(), "more than one row can be made less");
                    continue;
                }
                for row in &rows {
                    let event = &batch.transaction()[row.activity].event_id;
                    stored.push(format!("{event}{}", row.notification.recipient_id));
                }
                batch.stored(&rows);
            }
            Step::Finish => {
                batch.finish();
            }
        }
    }
}

#[test]
fn what_is_too_much_at_once_is_halved_down_to_single_rows_in_order() {
    let records = || {
        vec![
            pending(0, "a", &["1"]),
            pending(1, "b", &["1", "2", "3"]),
            pending(2, "c", &["1", "2"]),
        ]
    };
    let in_order = ["a1", "b1", "b2", "b3", "c1", "c2"];
    let (seen, stored) = tries(records(), at_most(100), 1);
    assert_eq!(stored, in_order);
    assert_eq!(seen, [6, 1, 5, 3, 1, 2, 1, 1, 2, 1, 1]);
    let (seen, stored) = tries(records(), at_most(100), 3);
    assert_eq!((seen, stored.len()), (vec![6, 1, 5, 3, 2], 6));
}

#[test]
fn later_transactions_are_as_small_as_the_one_that_was_not_too_much() {
    let records = (0..12).map(|n| pending(n, &n.to_string(), &["1"]));
    let mut limits = at_most(8);
    limits.bytes = usize::MAX;
    assert_eq!(
        tries(records.collect(), limits, 3).0,
        [8, 4, 2, 2, 4, 2, 2, 2, 2]
    );
}

#[test]
fn a_single_row_that_is_too_much_stays_the_current_one() {
    let mut batch = Batch::new(vec![pending(7, "a", &["1"])], at_most(5));
    for _ in 0..3 {
        assert_eq!(batch.step(), Step::Store);
        assert!(!batch.too_much());
    }
    let rows = all_rows(&batch);
    batch.stored(&rows);
    assert_eq!(batch.step(), Step::Finish);
    assert_eq!(batch.finish(), Some(8));
}

#[test]
fn a_record_that_is_refused_in_part_is_a_dead_letter_as_a_whole() {
    let mut batch = Batch::new(vec![pending(7, "a", &["1", "2"])], at_most(5));
    batch.step();
    assert!(batch.too_much());
    assert_eq!(batch.step(), Step::Store);
    batch.refused(poison());
    assert_eq!(batch.step(), Step::Finish);
    assert!(matches!(
        batch.finishing()[0].outcome,
        Outcome::DeadLetter(_)
    ));
}

#[test]
fn a_transaction_is_bounded_by_rows_and_by_text_that_is_written_once() {
    let limits = Limits {
        rows: 5000,
        bytes: usize::MAX,
    };
    let rows = |records: Vec<BatchRecord>| -> Vec<usize> {
        let seen = transactions(records, limits);
        seen.into_iter().map(|(rows, _)| rows).collect()
    };
    // However long the text of 6,000 rows is.
    assert_eq!(rows(vec![long(0, "huge", 320_000, 6000)]), [5000, 1000]);
    let records = (0..6).map(|n| long(n, &n.to_string(), 320_000, 100));
    assert_eq!(rows(records.collect()), [600]);
    let most = WRITTEN_BYTES / 2 - 1000;
    let records = (0..3).map(|n| long(n, &n.to_string(), most, 10));
    assert_eq!(rows(records.collect()), [20, 10]);
}

//! Stores a batch: in one statement where all of it is new, else in a transaction of a few statements, whatever the size of the batch.
//!
//! Input: a [`InsertBatch`] without repeats. Output: its rows, with the numbers that they have.

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::pool::{Session, Tx};
use super::{PgQuery, PostgresStore};
use crate::hash;
use crate::notification::NewActivity;
use crate::store::batch::{
    Base, CHUNK_BYTES, CHUNK_ROWS, InsertBatch, Row, kind_code, milliseconds,
};
use crate::store::{StoreError, Stored};

/// Most rows of [`INSERT_PLAIN`]: for more rows, a few more round trips cost little in comparison.
const PLAIN_ROWS: usize = 128;
/// How often an event is looked for that a purge removes at the same time.
const EVENT_TRIES: usize = 3;

/// `$1` recipients in order, `$2` how many rows each may get. Creates the inboxes that are missing, with these rows counted. An inbox gets its number here
/// and nowhere else, so that none is spent on an inbox that is there.
const CREATE: &str = r#"
INSERT INTO signal_inbox AS s (recipient_id, last_seq, unread_count, version)
SELECT t.recipient_id, t.n, t.n, t.n FROM unnest($1::text[], $2::int8[]) AS t(recipient_id, n)
WHERE (SELECT 1 FROM signal_inbox i WHERE i.recipient_id = t.recipient_id) IS NULL ORDER BY t.recipient_id COLLATE "C"
ON CONFLICT (recipient_id) DO NOTHING
RETURNING s.recipient_id, s.inbox::int8, s.last_seq, s.unread_count, s.version"#;

/// `$1` recipients in order, `$2` how many rows each may get. All of them have an inbox; locks one after the other.
const TAKE_NUMBERS: &str = r#"
INSERT INTO signal_inbox AS s (inbox, recipient_id, last_seq, unread_count, version)
SELECT (SELECT i.inbox FROM signal_inbox i WHERE i.recipient_id = t.recipient_id), t.recipient_id, t.n, t.n, t.n
FROM unnest($1::text[], $2::int8[]) AS t(recipient_id, n) ORDER BY t.recipient_id COLLATE "C"
ON CONFLICT (recipient_id) DO UPDATE SET
    last_seq = s.last_seq + excluded.last_seq,
    unread_count = s.unread_count + excluded.unread_count,
    version = s.version + excluded.version
RETURNING s.recipient_id, s.inbox::int8, s.last_seq, s.unread_count, s.version"#;

/// As [`TAKE_NUMBERS`], of those that have an inbox.
const TAKE_EXISTING: &str = r#"
INSERT INTO signal_inbox AS s (inbox, recipient_id, last_seq, unread_count, version)
SELECT f.inbox, f.recipient_id, f.n, f.n, f.n FROM (
    SELECT (SELECT i.inbox FROM signal_inbox i WHERE i.recipient_id = t.recipient_id) AS inbox, t.recipient_id, t.n
    FROM unnest($1::text[], $2::int8[]) AS t(recipient_id, n) OFFSET 0
) f WHERE f.inbox IS NOT NULL ORDER BY f.recipient_id COLLATE "C"
ON CONFLICT (inbox) DO UPDATE SET
    last_seq = s.last_seq + excluded.last_seq,
    unread_count = s.unread_count + excluded.unread_count,
    version = s.version + excluded.version
RETURNING s.recipient_id, s.inbox::int8, s.last_seq, s.unread_count, s.version"#;

/// `$1` events, `$2` an inbox of each. Whether one of these pairs has a row, or any recipient of these events a tombstone.
const SUSPECT: &str = r"
SELECT EXISTS (
    SELECT 1 FROM unnest($1::int8[], $2::int4[]) AS c(event, inbox)
    WHERE (SELECT 1 FROM signal_notification n WHERE n.event = c.event AND n.inbox = c.inbox LIMIT 1) IS NOT NULL
        OR (SELECT 1 FROM signal_tombstone t WHERE t.event = c.event LIMIT 1) IS NOT NULL
)";

/// `$1` inboxes, `$2` how many numbers they give back. The rows are locked already.
const RETURN_NUMBERS: &str = r"
UPDATE signal_inbox s SET last_seq = s.last_seq - t.n, unread_count = s.unread_count - t.n, version = s.version - t.n
FROM unnest($1::int4[], $2::int8[]) AS t(inbox, n) WHERE s.inbox = ANY($1) AND s.inbox = t.inbox";

/// `$1` sources and `$2` ids of events. Answers those that were not there.
const CREATE_EVENTS: &str = r#"
INSERT INTO signal_event AS v (source, event_id) SELECT e.source, e.event_id FROM unnest($1::text[], $2::text[]) AS e(source, event_id)
ORDER BY e.source COLLATE "C", e.event_id COLLATE "C" ON CONFLICT (source, event_id) DO NOTHING RETURNING v.event, v.source, v.event_id"#;

/// `$1` sources and `$2` ids of events. A purge passes over those that are locked.
const LOCK_EVENTS: &str = r"
SELECT v.event, v.source, v.event_id FROM unnest($1::text[], $2::text[]) AS e(source, event_id)
JOIN signal_event v ON v.source = e.source AND v.event_id = e.event_id ORDER BY v.source, v.event_id FOR UPDATE OF v";

/// `$1` positions, `$2` inboxes, `$3` events. The positions of pairs that have a row or a tombstone: two look-ups each, which the server cannot turn into
/// a join that reads a whole table.
const KNOWN: &str = r"
SELECT c.position FROM unnest($1::int8[], $2::int4[], $3::int8[]) AS c(position, inbox, event)
WHERE (SELECT 1 FROM signal_notification n WHERE n.event = c.event AND n.inbox = c.inbox LIMIT 1) IS NOT NULL
    OR (SELECT 1 FROM signal_tombstone t WHERE t.event = c.event AND t.inbox = c.inbox LIMIT 1) IS NOT NULL";

/// `$1` events, `$2` numbers, and what [`bind_texts`] binds from `$3` on.
const INSERT_TEXTS: &str = r"
INSERT INTO signal_text (event, text, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, created_at)
SELECT a.event, a.text, a.kind, a.title, a.content, a.locale, a.data, a.actor_id, a.organizer_id, a.merchant_id, a.occurred_at, $12
FROM unnest($1::int8[], $2::int4[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::timestamptz[])
    AS a(event, text, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at)";

/// `$1` inboxes, `$2` seqs, `$3` which activity (from 1); `$4` events, `$5` codes of types and `$6` numbers of texts of the activities.
const INSERT_ROWS: &str = r"
INSERT INTO signal_notification (inbox, seq, event, kind, text)
SELECT r.inbox, r.seq, a.event, a.kind, a.text FROM unnest($1::int4[], $2::int4[], $3::int8[]) AS r(inbox, seq, activity)
JOIN unnest($4::int8[], $5::int4[], $6::int4[]) WITH ORDINALITY AS a(event, kind, text, activity) ON a.activity = r.activity";

/// A small batch in one statement, if all of its inboxes are there, all of its events are new, and no other transaction interferes; else nothing happens,
/// and the answer is empty. The answer is each inbox as it is then.
///
/// `$1` recipients in order, `$2` how many rows each gets; `$3` recipients, `$4` seqs, counted from the inbox, and `$5` activities (from 1) of the rows;
/// `$6` sources and `$7` ids of events; `$8` sources, `$9` ids, `$10` codes of types and `$11` numbers of texts of the activities, and what
/// [`bind_texts`] binds from `$12` on.
///
/// What the statement sees is as it was before it had its locks. It holds if no inbox has another version by then, since every change of rows or
/// tombstones is one of their inbox's version. An event that somebody else stores meanwhile is for other inboxes, and keeps its number.
const INSERT_PLAIN: &str = r#"
WITH locked AS MATERIALIZED (
    SELECT recipient_id, version FROM signal_inbox WHERE recipient_id = ANY($1) ORDER BY recipient_id FOR UPDATE
), plain AS MATERIALIZED (
    SELECT cardinality($1) = (
        SELECT count(*) FROM locked l WHERE l.version = (SELECT s.version FROM signal_inbox s WHERE s.recipient_id = l.recipient_id)
    ) AND NOT EXISTS (
        SELECT 1 FROM unnest($6::text[], $7::text[]) AS e(source, event_id)
        WHERE (SELECT 1 FROM signal_event v WHERE v.source = e.source AND v.event_id = e.event_id) IS NOT NULL
    ) AS is_plain
), taken AS (
    UPDATE signal_inbox s SET last_seq = s.last_seq + t.n, unread_count = s.unread_count + t.n, version = s.version + t.n
    FROM unnest($1::text[], $2::int8[]) AS t(recipient_id, n)
    WHERE s.recipient_id = ANY($1) AND s.recipient_id = t.recipient_id AND (SELECT is_plain FROM plain)
    RETURNING s.recipient_id, s.inbox, s.last_seq, s.unread_count, s.version, t.n
), events AS (
    INSERT INTO signal_event AS v (source, event_id) SELECT e.source, e.event_id FROM unnest($6::text[], $7::text[]) AS e(source, event_id)
    WHERE (SELECT is_plain FROM plain) ORDER BY e.source COLLATE "C", e.event_id COLLATE "C"
    ON CONFLICT (source, event_id) DO UPDATE SET event_id = excluded.event_id RETURNING v.event, v.source, v.event_id
), activities AS (
    SELECT v.event, a.* FROM unnest($8::text[], $9::text[], $10::int4[], $11::int4[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
            $17::text[], $18::text[], $19::text[], $20::timestamptz[])
        WITH ORDINALITY AS a(source, event_id, code, text, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, activity)
    JOIN events v ON v.source = a.source AND v.event_id = a.event_id
), texts AS (
    INSERT INTO signal_text (event, text, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, created_at)
    SELECT event, text, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, $21 FROM activities
), stored AS (
    INSERT INTO signal_notification (inbox, seq, event, kind, text)
    SELECT t.inbox, t.last_seq - t.n + r.seq, a.event, a.code, a.text FROM unnest($3::text[], $4::int8[], $5::int8[]) AS r(recipient_id, seq, activity)
    JOIN activities a ON a.activity = r.activity JOIN taken t ON t.recipient_id = r.recipient_id
) SELECT recipient_id, inbox::int8, last_seq, unread_count, version FROM taken"#;

/// The rows of a batch, and the inboxes before them.
type Numbered = (Vec<Row>, Vec<Base>);

impl PostgresStore {
    pub(super) async fn insert(
        &self,
        given: &[NewActivity],
        now: DateTime<Utc>,
    ) -> Result<Vec<Stored>, StoreError> {
        let mut batch = InsertBatch::new(given)?;
        if batch.candidates.is_empty() {
            return Ok(Vec::new());
        }
        let now = milliseconds(now);
        let mut session = self.pool.acquire().await?;
        let result = insert_batch(&mut session, given, &mut batch, now).await;
        let (rows, bases) = session.done(result)?;
        Ok(batch.stored(&rows, &bases, now))
    }
}

/// In one statement if possible. Else it takes numbers for every candidate, which locks the state rows; only then is it certain which candidates exist
/// already, and their numbers are returned.
async fn insert_batch(
    session: &mut Session,
    given: &[NewActivity],
    batch: &mut InsertBatch<'_>,
    now: DateTime<Utc>,
) -> Result<Numbered, StoreError> {
    let activities = batch.activities();
    if batch.candidates.len() <= PLAIN_ROWS
        && batch.bytes(&activities) <= CHUNK_BYTES
        && let Some(done) = insert_plain(session, given, batch, &activities, now).await?
    {
        return Ok(done);
    }
    if batch.candidates.len() > PLAIN_ROWS
        && let Some(done) = insert_new(session, given, batch, &activities, now).await?
    {
        return Ok(done);
    }
    let mut tx = session.begin().await?;
    let bases = take_numbers(&mut tx, batch).await?;
    let events = take_events(&mut tx, given, &activities).await?;
    let known = known(&mut tx, batch, &bases, &events).await?;
    if !known.is_empty() {
        return_numbers(&mut tx, batch, &bases, &known).await?;
        batch.remove(&known);
    }
    let rows = batch.number(&bases);
    insert_texts(&mut tx, given, batch, &events, now).await?;
    insert_rows(&mut tx, given, batch, &rows, &bases, &events).await?;
    tx.commit().await?;
    Ok((rows, bases))
}

/// The way of most large batches: every inbox is there, and nothing is known. `None`, with nothing left behind, if that is not so, which the unique key
/// of rows finds at the latest; nobody else leaves tombstones in inboxes that are locked here.
async fn insert_new(
    session: &mut Session,
    given: &[NewActivity],
    batch: &InsertBatch<'_>,
    activities: &[usize],
    now: DateTime<Utc>,
) -> Result<Option<Numbered>, StoreError> {
    let mut tx = session.begin().await?;
    let Some(bases) = take_existing(&mut tx, batch).await? else {
        tx.rollback().await?;
        return Ok(None);
    };
    let events = take_events(&mut tx, given, activities).await?;
    if is_suspect(&mut tx, batch, &bases, &events).await? {
        tx.rollback().await?;
        return Ok(None);
    }
    let rows = batch.number(&bases);
    insert_texts(&mut tx, given, batch, &events, now).await?;
    match insert_rows(&mut tx, given, batch, &rows, &bases, &events).await {
        Err(error) if error.repeats_row() => {
            tx.rollback().await?;
            return Ok(None);
        }
        other => other?,
    }
    tx.commit().await?;
    Ok(Some((rows, bases)))
}

/// Locks the inboxes and takes their numbers; `None` as soon as one is missing.
async fn take_existing(
    tx: &mut Tx<'_>,
    batch: &InsertBatch<'_>,
) -> Result<Option<Vec<Base>>, StoreError> {
    let counts = batch.counts();
    let mut bases = vec![Base::default(); counts.len()];
    for start in (0..counts.len()).step_by(CHUNK_ROWS) {
        let end = counts.len().min(start + CHUNK_ROWS);
        let query = sqlx::query(TAKE_EXISTING)
            .bind(&batch.recipients[start..end])
            .bind(&counts[start..end]);
        let answer = tx.all(query).await?;
        if answer.len() < end - start {
            return Ok(None);
        }
        read_bases(&answer, batch, &counts, &mut bases)?;
    }
    Ok(Some(bases))
}

/// Whether an event that was there before may have reached one of the candidates: its first one has a row, or somebody has a tombstone.
async fn is_suspect(
    tx: &mut Tx<'_>,
    batch: &InsertBatch<'_>,
    bases: &[Base],
    events: &hash::HashMap<usize, Event>,
) -> Result<bool, StoreError> {
    let (mut old, mut inboxes): (Vec<i64>, Vec<i32>) = (Vec::new(), Vec::new());
    for candidate in &batch.candidates {
        let event = events[&candidate.activity];
        if !event.is_new && old.last() != Some(&event.number) {
            old.push(event.number);
            inboxes.push(bases[candidate.recipient].number as i32);
        }
    }
    if old.is_empty() {
        return Ok(false);
    }
    let query = sqlx::query(SUSPECT).bind(old).bind(inboxes);
    Ok(tx.one(query).await?.try_get(0)?)
}

async fn insert_texts(
    tx: &mut Tx<'_>,
    given: &[NewActivity],
    batch: &InsertBatch<'_>,
    events: &hash::HashMap<usize, Event>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let activities = batch.activities();
    for chunk in batch.chunks(&activities) {
        let of: Vec<i64> = chunk.iter().map(|at| events[at].number).collect();
        let query = sqlx::query(INSERT_TEXTS).bind(of);
        let texts: Vec<i32> = chunk.iter().map(|at| batch.texts[*at]).collect();
        tx.run(bind_texts(query.bind(texts), given, chunk, now))
            .await?;
    }
    Ok(())
}

/// Tries to store the batch in one statement; `None` if it cannot be.
async fn insert_plain(
    session: &mut Session,
    given: &[NewActivity],
    batch: &InsertBatch<'_>,
    activities: &[usize],
    now: DateTime<Utc>,
) -> Result<Option<Numbered>, StoreError> {
    let counts = batch.counts();
    let mut bases = vec![Base::default(); counts.len()];
    let rows = batch.number(&bases);
    let recipients: Vec<&str> = rows.iter().map(|r| batch.recipients[r.recipient]).collect();
    let seqs: Vec<i64> = rows.iter().map(|r| r.seq).collect();
    let (of, order) = numbered(rows.iter().map(|r| r.activity));
    debug_assert_eq!(order, activities);
    let (sources, event_ids) = distinct_events(given, activities);
    let text = |of: fn(&NewActivity) -> &str| texts_of(given, activities, of);
    let query = sqlx::query(INSERT_PLAIN)
        .bind(&batch.recipients)
        .bind(&counts)
        .bind(recipients)
        .bind(seqs)
        .bind(of)
        .bind(sources)
        .bind(event_ids)
        .bind(text(|a| &a.source))
        .bind(text(|a| &a.event_id))
        .bind(codes(given, activities))
        .bind(
            activities
                .iter()
                .map(|at| batch.texts[*at])
                .collect::<Vec<_>>(),
        );
    let answer = session
        .all(bind_texts(query, given, activities, now))
        .await?;
    if answer.is_empty() {
        return Ok(None);
    }
    read_bases(&answer, batch, &counts, &mut bases)?;
    Ok(Some((batch.number(&bases), bases)))
}

/// Creates the inboxes that are missing, and only then locks the others: whoever waits for one that is being created holds no lock that its creator
/// may want.
async fn take_numbers(tx: &mut Tx<'_>, batch: &InsertBatch<'_>) -> Result<Vec<Base>, StoreError> {
    let counts = batch.counts();
    let mut bases = vec![Base::default(); counts.len()];
    for start in (0..counts.len()).step_by(CHUNK_ROWS) {
        let end = counts.len().min(start + CHUNK_ROWS);
        let query = sqlx::query(CREATE)
            .bind(&batch.recipients[start..end])
            .bind(&counts[start..end]);
        read_bases(&tx.all(query).await?, batch, &counts, &mut bases)?;
    }
    let there = |at: &usize| bases[*at].number == 0;
    let there: Vec<usize> = (0..counts.len()).filter(there).collect();
    for chunk in there.chunks(CHUNK_ROWS) {
        let recipients: Vec<&str> = chunk.iter().map(|at| batch.recipients[*at]).collect();
        let numbers: Vec<i64> = chunk.iter().map(|at| counts[*at]).collect();
        let query = sqlx::query(TAKE_NUMBERS).bind(recipients).bind(numbers);
        read_bases(&tx.all(query).await?, batch, &counts, &mut bases)?;
    }
    Ok(bases)
}

/// The event of an activity.
#[derive(Debug, Clone, Copy)]
struct Event {
    number: i64,
    /// Nothing names it yet.
    is_new: bool,
}

/// The events of these activities by their index, created or locked until the transaction ends.
async fn take_events(
    tx: &mut Tx<'_>,
    given: &[NewActivity],
    activities: &[usize],
) -> Result<hash::HashMap<usize, Event>, StoreError> {
    let mut events: hash::HashMap<(String, String), Event> = hash::HashMap::default();
    let mut missing = distinct_events(given, activities);
    for _ in 0..EVENT_TRIES {
        for (statement, is_new) in [(CREATE_EVENTS, true), (LOCK_EVENTS, false)] {
            let (mut sources, mut event_ids) = (Vec::new(), Vec::new());
            for (source, event_id) in missing
                .0
                .chunks(CHUNK_ROWS)
                .zip(missing.1.chunks(CHUNK_ROWS))
            {
                let query = sqlx::query(statement).bind(source).bind(event_id);
                for row in tx.all(query).await? {
                    let number = row.try_get("event")?;
                    let name = (row.try_get("source")?, row.try_get("event_id")?);
                    events.insert(name, Event { number, is_new });
                }
            }
            for (source, event_id) in missing.0.into_iter().zip(missing.1) {
                if !events.contains_key(&(source.to_owned(), event_id.to_owned())) {
                    sources.push(source);
                    event_ids.push(event_id);
                }
            }
            missing = (sources, event_ids);
            if missing.0.is_empty() {
                let event = |at: &usize| {
                    let name = (given[*at].source.clone(), given[*at].event_id.clone());
                    (*at, events[&name])
                };
                return Ok(activities.iter().map(event).collect());
            }
        }
    }
    Err(StoreError::unavailable(std::io::Error::other(
        "an event is removed and stored all the time",
    )))
}

async fn return_numbers(
    tx: &mut Tx<'_>,
    batch: &InsertBatch<'_>,
    bases: &[Base],
    known: &hash::HashSet<usize>,
) -> Result<(), StoreError> {
    let mut counts = vec![0_i64; bases.len()];
    for position in known {
        counts[batch.candidates[*position].recipient] += 1;
    }
    let (inboxes, counts): (Vec<i32>, Vec<i64>) = bases
        .iter()
        .map(|base| base.number as i32)
        .zip(counts)
        .filter(|(_, n)| *n > 0)
        .unzip();
    for (inboxes, counts) in inboxes.chunks(CHUNK_ROWS).zip(counts.chunks(CHUNK_ROWS)) {
        tx.run(sqlx::query(RETURN_NUMBERS).bind(inboxes).bind(counts))
            .await?;
    }
    Ok(())
}

/// The positions of candidates that have a row or a tombstone: only events that were there before can have any.
async fn known(
    tx: &mut Tx<'_>,
    batch: &InsertBatch<'_>,
    bases: &[Base],
    events: &hash::HashMap<usize, Event>,
) -> Result<hash::HashSet<usize>, StoreError> {
    let mut known = hash::HashSet::default();
    let old: Vec<usize> = (0..batch.candidates.len())
        .filter(|at| !events[&batch.candidates[*at].activity].is_new)
        .collect();
    for chunk in old.chunks(CHUNK_ROWS) {
        let candidates = || chunk.iter().map(|at| batch.candidates[*at]);
        let query = sqlx::query(KNOWN)
            .bind(chunk.iter().map(|at| *at as i64).collect::<Vec<_>>())
            .bind(
                candidates()
                    .map(|c| bases[c.recipient].number as i32)
                    .collect::<Vec<_>>(),
            )
            .bind(
                candidates()
                    .map(|c| events[&c.activity].number)
                    .collect::<Vec<_>>(),
            );
        for row in tx.all(query).await? {
            known.insert(row.try_get::<i64, _>(0)? as usize);
        }
    }
    Ok(known)
}

/// Writes the rows in the order of their inboxes, in which the indexes have them next to each other.
async fn insert_rows(
    tx: &mut Tx<'_>,
    given: &[NewActivity],
    batch: &InsertBatch<'_>,
    rows: &[Row],
    bases: &[Base],
    events: &hash::HashMap<usize, Event>,
) -> Result<(), StoreError> {
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_unstable_by_key(|row| (bases[row.recipient].number, row.seq));
    for chunk in sorted.chunks(CHUNK_ROWS) {
        let (of, activities) = numbered(chunk.iter().map(|r| r.activity));
        let number = |row: &&Row| bases[row.recipient].number as i32;
        let query = sqlx::query(INSERT_ROWS)
            .bind(chunk.iter().map(number).collect::<Vec<_>>())
            .bind(
                chunk
                    .iter()
                    .map(|r| int4(r.seq))
                    .collect::<Result<Vec<_>, _>>()?,
            )
            .bind(of)
            .bind(
                activities
                    .iter()
                    .map(|at| events[at].number)
                    .collect::<Vec<_>>(),
            )
            .bind(codes(given, &activities))
            .bind(
                activities
                    .iter()
                    .map(|at| batch.texts[*at])
                    .collect::<Vec<_>>(),
            );
        tx.run(query).await?;
    }
    Ok(())
}

/// A `seq` as its column has it.
fn int4(seq: i64) -> Result<i32, StoreError> {
    seq.try_into().map_err(StoreError::refused)
}

/// Sources and ids of the distinct events of these activities.
fn distinct_events<'g>(
    given: &'g [NewActivity],
    activities: &[usize],
) -> (Vec<&'g str>, Vec<&'g str>) {
    let mut events: Vec<(&str, &str)> = activities
        .iter()
        .map(|at| (&*given[*at].source, &*given[*at].event_id))
        .collect();
    events.sort_unstable();
    events.dedup();
    events.into_iter().unzip()
}

fn texts_of<'g>(
    given: &'g [NewActivity],
    activities: &[usize],
    of: fn(&NewActivity) -> &str,
) -> Vec<&'g str> {
    activities.iter().map(|at| of(&given[*at])).collect()
}

fn codes(given: &[NewActivity], activities: &[usize]) -> Vec<i32> {
    activities
        .iter()
        .map(|at| kind_code(&given[*at].kind))
        .collect()
}

/// Reads the counters of inboxes before `counts` were added to them, by the index of their recipients.
fn read_bases(
    answer: &[PgRow],
    batch: &InsertBatch<'_>,
    counts: &[i64],
    bases: &mut [Base],
) -> Result<(), sqlx::Error> {
    for row in answer {
        let recipient: &str = row.try_get("recipient_id")?;
        let at = batch
            .recipients
            .binary_search(&recipient)
            .map_err(|_| sqlx::Error::RowNotFound)?;
        let before = |name| row.try_get::<i64, _>(name).map(|after| after - counts[at]);
        bases[at] = Base {
            number: row.try_get("inbox")?,
            last_seq: before("last_seq")?,
            unread: before("unread_count")?,
            version: before("version")?,
        };
    }
    Ok(())
}

/// Binds the columns of a text that come from its activity alone, and when.
fn bind_texts<'q>(
    query: PgQuery<'q>,
    given: &'q [NewActivity],
    activities: &[usize],
    now: DateTime<Utc>,
) -> PgQuery<'q> {
    let text = |of: fn(&NewActivity) -> &str| texts_of(given, activities, of);
    let optional = |of: fn(&NewActivity) -> &Option<String>| -> Vec<Option<&str>> {
        activities
            .iter()
            .map(|at| of(&given[*at]).as_deref())
            .collect()
    };
    query
        .bind(text(|a| &a.kind))
        .bind(text(|a| &a.title))
        .bind(text(|a| &a.content))
        .bind(text(|a| &a.locale))
        .bind(text(|a| a.data.get()))
        .bind(optional(|a| &a.actor_id))
        .bind(optional(|a| &a.organizer_id))
        .bind(optional(|a| &a.merchant_id))
        .bind(
            activities
                .iter()
                .map(|at| given[*at].occurred_at)
                .collect::<Vec<_>>(),
        )
        .bind(now)
}

/// Numbers distinct values from 1 on in the order of their first appearance: the number of each value, and the value of each number.
fn numbered(of: impl Iterator<Item = usize>) -> (Vec<i64>, Vec<usize>) {
    let mut known = crate::hash::HashMap::default();
    let mut distinct = Vec::new();
    let numbers = of
        .map(|it| {
            *known.entry(it).or_insert_with(|| {
                distinct.push(it);
                distinct.len() as i64
            })
        })
        .collect();
    (numbers, distinct)
}

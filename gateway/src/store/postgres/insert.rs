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
use crate::store::batch::{Base, CHUNK_BYTES, CHUNK_ROWS, InsertBatch, Row, milliseconds};
use crate::store::{StoreError, Stored};

/// Most rows of [`INSERT_PLAIN`]: for more rows, four more round trips cost little in comparison.
const PLAIN_ROWS: usize = 128;

/// `$1` recipients in order, `$2` how many rows each may get. Creates and locks the state rows, one after the other.
const TAKE_NUMBERS: &str = r#"
INSERT INTO signal_inbox AS s (recipient_id, last_seq, unread_count, version)
SELECT t.recipient_id, t.n, t.n, t.n FROM unnest($1::text[], $2::int8[]) AS t(recipient_id, n) ORDER BY t.recipient_id COLLATE "C"
ON CONFLICT (recipient_id) DO UPDATE SET
    last_seq = s.last_seq + excluded.last_seq,
    unread_count = s.unread_count + excluded.unread_count,
    version = s.version + excluded.version
RETURNING recipient_id, last_seq, unread_count, version"#;

/// `$1` recipients, `$2` how many numbers they give back. The rows are locked already.
const RETURN_NUMBERS: &str = r"
UPDATE signal_inbox s SET last_seq = s.last_seq - t.n, unread_count = s.unread_count - t.n, version = s.version - t.n
FROM unnest($1::text[], $2::int8[]) AS t(recipient_id, n) WHERE s.recipient_id = t.recipient_id";

/// Whether a pair of an event `e` and a candidate `c` has a row or a tombstone: two look-ups, which the server cannot turn into a join that reads a
/// whole table.
macro_rules! is_known {
    () => {
        "((SELECT 1 FROM signal_notification n WHERE n.source = e.source AND n.event_id = e.event_id AND n.recipient_id = c.recipient_id LIMIT 1) IS NOT NULL
    OR (SELECT 1 FROM signal_tombstone t WHERE t.source = e.source AND t.event_id = e.event_id AND t.recipient_id = c.recipient_id LIMIT 1) IS NOT NULL)"
    };
}

/// `$1` positions, `$2` recipients, `$3` which event (from 1), `$4` sources, `$5` event ids. The positions of what is known.
const KNOWN: &str = concat!(
    "SELECT c.position FROM unnest($1::int8[], $2::text[], $3::int8[]) AS c(position, recipient_id, event)
JOIN unnest($4::text[], $5::text[]) WITH ORDINALITY AS e(source, event_id, event) ON e.event = c.event
WHERE ",
    is_known!()
);

/// `$1` which activity (from 1), `$2` ids, `$3` recipients, `$4` seqs; `$5` to `$15` the texts of the activities and when they occurred; `$16` when. The seqs count from
/// an expression, which may use another table.
macro_rules! insert {
    ($from:literal, $other:literal) => {
        concat!(
            "INSERT INTO signal_notification
    (id, recipient_id, seq, source, event_id, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, created_at)
SELECT r.id, r.recipient_id, ",
            $from,
            " + r.seq, a.source, a.event_id, a.kind, a.title, a.content, a.locale, a.data, a.actor_id, a.organizer_id, a.merchant_id, a.occurred_at, $16
FROM unnest($1::int8[], $2::text[], $3::text[], $4::int8[]) AS r(activity, id, recipient_id, seq)
JOIN unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::timestamptz[])
    WITH ORDINALITY AS a(source, event_id, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, activity)
    ON a.activity = r.activity",
            $other
        )
    };
}

const INSERT: &str = insert!("0", "");

/// A small batch in one statement, if all of it is new and no other transaction interferes; else nothing happens, and the answer is empty. Seqs count from
/// the inbox; `$17` recipients in order, `$18` how many rows each gets. The answer is each inbox as it is then.
///
/// What the statement sees is as it was before it had its locks. It holds if no inbox has another version by then, since every change of rows or
/// tombstones is one of their inbox's version; and an inbox that is not there yet is made by [`TAKE_NUMBERS`].
const INSERT_PLAIN: &str = concat!(
    "WITH locked AS MATERIALIZED (
    SELECT recipient_id, version FROM signal_inbox WHERE recipient_id = ANY($17) ORDER BY recipient_id FOR UPDATE
), plain AS MATERIALIZED (
    SELECT cardinality($17) = (
        SELECT count(*) FROM locked l WHERE l.version = (SELECT s.version FROM signal_inbox s WHERE s.recipient_id = l.recipient_id)
    ) AND NOT EXISTS (
        SELECT FROM unnest($1::int8[], $3::text[]) AS c(activity, recipient_id)
        JOIN unnest($5::text[], $6::text[]) WITH ORDINALITY AS e(source, event_id, activity) ON e.activity = c.activity WHERE ",
    is_known!(),
    "
    ) AS is_plain
), taken AS (
    UPDATE signal_inbox s SET last_seq = s.last_seq + t.n, unread_count = s.unread_count + t.n, version = s.version + t.n
    FROM unnest($17::text[], $18::int8[]) AS t(recipient_id, n)
    WHERE s.recipient_id = ANY($17) AND s.recipient_id = t.recipient_id AND (SELECT is_plain FROM plain)
    RETURNING s.recipient_id, s.last_seq, s.unread_count, s.version, t.n
), stored AS (",
    insert!("t.last_seq - t.n", " JOIN taken t ON t.recipient_id = r.recipient_id"),
    ") SELECT recipient_id, last_seq, unread_count, version FROM taken"
);

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
        let mut result = self
            .insert_batch(&mut session, given, &mut batch, now)
            .await;
        if result.as_ref().is_err_and(StoreError::repeats_id) {
            batch.draw_ids();
            result = self
                .insert_batch(&mut session, given, &mut batch, now)
                .await;
        }
        let rows = session.done(result)?;
        Ok(batch.stored(&rows, now))
    }

    /// Tries to store the batch in one statement; `None` if it cannot be.
    async fn insert_plain<'a>(
        &self,
        session: &mut Session,
        given: &[NewActivity],
        batch: &InsertBatch<'a>,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<Row<'a>>>, StoreError> {
        let counts = batch.counts();
        let mut rows = batch.number(vec![Base::default(); counts.len()], &self.ids)?;
        let query = bind_rows(sqlx::query(INSERT_PLAIN), given, &rows, now)
            .bind(&batch.recipients)
            .bind(&counts);
        let answer = session.all(query).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        let mut bases = vec![Base::default(); counts.len()];
        read_bases(&answer, batch, &counts, &mut bases)?;
        batch.renumber(&mut rows, &bases);
        Ok(Some(rows))
    }

    /// In one statement if possible. Else it takes numbers for every candidate, which locks the state rows; only then is it certain which
    /// candidates exist already, and their numbers are returned.
    async fn insert_batch<'a>(
        &self,
        session: &mut Session,
        given: &[NewActivity],
        batch: &mut InsertBatch<'a>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Row<'a>>, StoreError> {
        if batch.candidates.len() <= PLAIN_ROWS
            && batch.bytes() <= CHUNK_BYTES
            && let Some(rows) = self.insert_plain(session, given, batch, now).await?
        {
            return Ok(rows);
        }
        let mut tx = session.begin().await?;
        let bases = self.take_numbers(&mut tx, batch).await?;
        let known = self.known(&mut tx, given, batch).await?;
        if !known.is_empty() {
            self.return_numbers(&mut tx, batch, &known).await?;
            batch.remove(&known);
        }
        let rows = batch.number(bases, &self.ids)?;
        for chunk in batch.chunks(&rows) {
            self.insert_rows(&mut tx, given, chunk, now).await?;
        }
        tx.commit().await?;
        Ok(rows)
    }

    async fn take_numbers(
        &self,
        tx: &mut Tx<'_>,
        batch: &InsertBatch<'_>,
    ) -> Result<Vec<Base>, StoreError> {
        let counts = batch.counts();
        let mut bases = vec![Base::default(); counts.len()];
        for start in (0..counts.len()).step_by(CHUNK_ROWS) {
            let end = counts.len().min(start + CHUNK_ROWS);
            let query = sqlx::query(TAKE_NUMBERS)
                .bind(&batch.recipients[start..end])
                .bind(&counts[start..end]);
            read_bases(&tx.all(query).await?, batch, &counts, &mut bases)?;
        }
        Ok(bases)
    }

    async fn return_numbers(
        &self,
        tx: &mut Tx<'_>,
        batch: &InsertBatch<'_>,
        known: &hash::HashSet<usize>,
    ) -> Result<(), StoreError> {
        let mut counts = vec![0; batch.recipients.len()];
        for position in known {
            counts[batch.candidates[*position].recipient] += 1;
        }
        let (recipients, counts): (Vec<&str>, Vec<i64>) = batch
            .recipients
            .iter()
            .zip(counts)
            .filter(|(_, n)| *n > 0)
            .unzip();
        for (recipients, counts) in recipients.chunks(CHUNK_ROWS).zip(counts.chunks(CHUNK_ROWS)) {
            tx.run(sqlx::query(RETURN_NUMBERS).bind(recipients).bind(counts))
                .await?;
        }
        Ok(())
    }

    async fn known(
        &self,
        tx: &mut Tx<'_>,
        given: &[NewActivity],
        batch: &InsertBatch<'_>,
    ) -> Result<hash::HashSet<usize>, StoreError> {
        let mut known = hash::HashSet::default();
        for (chunk_at, chunk) in batch.candidates.chunks(CHUNK_ROWS).enumerate() {
            let positions: Vec<i64> = (0..chunk.len())
                .map(|at| (chunk_at * CHUNK_ROWS + at) as i64)
                .collect();
            let recipients: Vec<&str> = chunk
                .iter()
                .map(|c| batch.recipients[c.recipient])
                .collect();
            let (event, events) = numbered(chunk.iter().map(|c| c.activity));
            let sources: Vec<&str> = events.iter().map(|at| given[*at].source.as_str()).collect();
            let event_ids: Vec<&str> = events
                .iter()
                .map(|at| given[*at].event_id.as_str())
                .collect();
            let query = sqlx::query(KNOWN)
                .bind(positions)
                .bind(recipients)
                .bind(event)
                .bind(sources)
                .bind(event_ids);
            for row in tx.all(query).await? {
                known.insert(row.try_get::<i64, _>(0)? as usize);
            }
        }
        Ok(known)
    }

    async fn insert_rows(
        &self,
        tx: &mut Tx<'_>,
        given: &[NewActivity],
        rows: &[Row<'_>],
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        tx.run(bind_rows(sqlx::query(INSERT), given, rows, now))
            .await?;
        Ok(())
    }
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
            last_seq: before("last_seq")?,
            unread: before("unread_count")?,
            version: before("version")?,
        };
    }
    Ok(())
}

/// Binds `$1` to `$16` of [`INSERT`].
fn bind_rows<'q>(
    query: PgQuery<'q>,
    given: &'q [NewActivity],
    rows: &[Row<'q>],
    now: DateTime<Utc>,
) -> PgQuery<'q> {
    let (activity, activities) = numbered(rows.iter().map(|r| r.activity));
    let text = |of: fn(&NewActivity) -> &str| -> Vec<&str> {
        activities.iter().map(|at| of(&given[*at])).collect()
    };
    let optional = |of: fn(&NewActivity) -> &Option<String>| -> Vec<Option<&str>> {
        activities
            .iter()
            .map(|at| of(&given[*at]).as_deref())
            .collect()
    };
    query
        .bind(activity)
        .bind(rows.iter().map(|r| r.id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.recipient).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.seq).collect::<Vec<_>>())
        .bind(text(|a| &a.source))
        .bind(text(|a| &a.event_id))
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

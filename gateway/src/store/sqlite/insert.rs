//! Stores a batch in one transaction, activity by activity.
//!
//! Input: a [`InsertBatch`] without repeats. Output: its rows, with the numbers that they have.

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, json};
use crate::hash;
use crate::notification::NewActivity;
use crate::store::batch::{Base, CHUNK_ROWS, Candidate, InsertBatch, Row, kind_code, milliseconds};
use crate::store::{StoreError, Stored};

/// `$1` source, `$2` event id. Answers the number of the event, new or not.
const TAKE_EVENT: &str = r"
INSERT INTO signal_event (source, event_id) VALUES ($1, $2) ON CONFLICT (source, event_id) DO UPDATE SET event_id = excluded.event_id RETURNING event";

/// `$1` event, `$2` recipients as JSON. The positions of those that have a row or a tombstone.
const KNOWN: &str = r"
SELECT j.key FROM json_each($2) j JOIN signal_inbox s ON s.recipient_id = j.value
WHERE EXISTS (SELECT 1 FROM signal_notification n WHERE n.event = $1 AND n.inbox = s.inbox)
    OR EXISTS (SELECT 1 FROM signal_tombstone t WHERE t.event = $1 AND t.inbox = s.inbox)";

/// `$1` pairs of recipient and number of rows, as JSON.
const TAKE_NUMBERS: &str = r"
INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[1]'), json_extract(value, '$[1]') FROM json_each($1) WHERE true
ON CONFLICT (recipient_id) DO UPDATE SET
    last_seq = last_seq + excluded.last_seq,
    unread_count = unread_count + excluded.unread_count,
    version = version + excluded.version
RETURNING recipient_id, inbox, last_seq, unread_count, version";

/// `$1` event, `$2` number; the words of an activity, when it occurred, and when this is.
const INSERT_TEXT: &str = r"
INSERT INTO signal_text (event, text, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

/// `$1` pairs of inbox and seq, as JSON; `$2` event, `$3` code of the type, `$4` text.
const INSERT_ROWS: &str = r"
INSERT INTO signal_notification (inbox, seq, event, kind, text)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), $2, $3, $4 FROM json_each($1)";

impl SqliteStore {
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
        let mut tx = self.pools.begin().await?;
        let events = take_events(&mut tx, given, &batch.activities()).await?;
        let known = known(&mut tx, &batch, &events).await?;
        batch.remove(&known);
        let bases = take_numbers(&mut tx, &batch).await?;
        let rows = batch.number(&bases);
        for same in rows.chunk_by(|a, b| a.activity == b.activity) {
            let at = same[0].activity;
            let (event, text) = (events[&at], batch.texts[at]);
            insert_text(&mut tx, &given[at], event, text, now).await?;
            insert_rows(&mut tx, &given[at].kind, event, text, same, &bases).await?;
        }
        tx.commit().await?;
        Ok(batch.stored(&rows, &bases, now))
    }
}

/// The numbers of the events of these activities, by the index of the activity.
async fn take_events(
    tx: &mut SqliteConnection,
    given: &[NewActivity],
    activities: &[usize],
) -> Result<hash::HashMap<usize, i64>, StoreError> {
    let mut events = hash::HashMap::default();
    for at in activities {
        let query = sqlx::query_scalar(TAKE_EVENT)
            .bind(&given[*at].source)
            .bind(&given[*at].event_id);
        events.insert(*at, query.fetch_one(&mut *tx).await?);
    }
    Ok(events)
}

async fn known(
    tx: &mut SqliteConnection,
    batch: &InsertBatch<'_>,
    events: &hash::HashMap<usize, i64>,
) -> Result<hash::HashSet<usize>, StoreError> {
    let mut known = hash::HashSet::default();
    let mut start = 0;
    let same = |a: &Candidate, b: &Candidate| a.activity == b.activity;
    for same in batch.candidates.chunk_by(same) {
        for chunk in same.chunks(CHUNK_ROWS) {
            let recipients: Vec<&str> = chunk
                .iter()
                .map(|c| batch.recipients[c.recipient])
                .collect();
            let query = sqlx::query_scalar::<_, i64>(KNOWN)
                .bind(events[&chunk[0].activity])
                .bind(json(&recipients)?);
            known.extend(
                query
                    .fetch_all(&mut *tx)
                    .await?
                    .into_iter()
                    .map(|position| start + position as usize),
            );
            start += chunk.len();
        }
    }
    Ok(known)
}

async fn take_numbers(
    tx: &mut SqliteConnection,
    batch: &InsertBatch<'_>,
) -> Result<Vec<Base>, StoreError> {
    let counts = batch.counts();
    let mut bases = vec![Base::default(); counts.len()];
    let wanted: Vec<(&str, i64)> = batch
        .recipients
        .iter()
        .copied()
        .zip(counts.iter().copied())
        .filter(|(_, n)| *n > 0)
        .collect();
    for chunk in wanted.chunks(CHUNK_ROWS) {
        for row in sqlx::query(TAKE_NUMBERS)
            .bind(json(&chunk)?)
            .fetch_all(&mut *tx)
            .await?
        {
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
    }
    Ok(bases)
}

async fn insert_text(
    tx: &mut SqliteConnection,
    new: &NewActivity,
    event: i64,
    text: i32,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let query = sqlx::query(INSERT_TEXT)
        .bind(event)
        .bind(text)
        .bind(&new.kind)
        .bind(&new.title)
        .bind(&new.content)
        .bind(&new.locale)
        .bind(new.data.get())
        .bind(&new.actor_id)
        .bind(&new.organizer_id)
        .bind(&new.merchant_id)
        .bind(new.occurred_at.map(|at| at.timestamp_millis()))
        .bind(now.timestamp_millis());
    query.execute(tx).await?;
    Ok(())
}

async fn insert_rows(
    tx: &mut SqliteConnection,
    kind: &str,
    event: i64,
    text: i32,
    rows: &[Row],
    bases: &[Base],
) -> Result<(), StoreError> {
    for chunk in rows.chunks(CHUNK_ROWS) {
        let rows: Vec<(i64, i64)> = chunk
            .iter()
            .map(|row| (bases[row.recipient].number, row.seq))
            .collect();
        let query = sqlx::query(INSERT_ROWS)
            .bind(json(&rows)?)
            .bind(event)
            .bind(kind_code(kind))
            .bind(text);
        query.execute(&mut *tx).await?;
    }
    Ok(())
}

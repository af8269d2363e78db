//! Stores a batch in one transaction, activity by activity.
//!
//! Input: a [`InsertBatch`] without repeats. Output: its rows, with the numbers that they have.

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, json};
use crate::hash;
use crate::id::Id;
use crate::notification::NewActivity;
use crate::store::batch::{Base, CHUNK_ROWS, InsertBatch, Row, milliseconds};
use crate::store::{StoreError, Stored};

/// `$1` source, `$2` event id, `$3` recipients as JSON. The positions of those that have a row or a tombstone.
const KNOWN: &str = r"
SELECT j.key FROM json_each($3) j
WHERE EXISTS (SELECT 1 FROM signal_notification n WHERE n.source = $1 AND n.event_id = $2 AND n.recipient_id = j.value)
    OR EXISTS (SELECT 1 FROM signal_tombstone t WHERE t.source = $1 AND t.event_id = $2 AND t.recipient_id = j.value)";

/// `$1` pairs of recipient and number of rows, as JSON.
const TAKE_NUMBERS: &str = r"
INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[1]'), json_extract(value, '$[1]') FROM json_each($1) WHERE true
ON CONFLICT (recipient_id) DO UPDATE SET
    last_seq = last_seq + excluded.last_seq,
    unread_count = unread_count + excluded.unread_count,
    version = version + excluded.version
RETURNING recipient_id, last_seq, unread_count, version";

/// `$1` triples of id, recipient and seq, as JSON; `$2` to `$12` the texts of their activity and when it occurred; `$13` when.
const INSERT: &str = r"
INSERT INTO signal_notification (id, recipient_id, seq, source, event_id, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, occurred_at, created_at)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
FROM json_each($1)";

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
        let mut result = self.insert_batch(given, &mut batch, now).await;
        if result.as_ref().is_err_and(StoreError::repeats_id) {
            batch.draw_ids();
            result = self.insert_batch(given, &mut batch, now).await;
        }
        Ok(batch.stored(&result?, now))
    }

    async fn insert_batch<'a>(
        &self,
        given: &[NewActivity],
        batch: &mut InsertBatch<'a>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Row<'a>>, StoreError> {
        let mut tx = self.pools.begin().await?;
        let known = known(&mut tx, given, batch).await?;
        batch.remove(&known);
        let bases = take_numbers(&mut tx, batch).await?;
        let rows = batch.number(bases, &self.ids)?;
        for chunk in batch.chunks(&rows) {
            for same in chunk.chunk_by(|a, b| a.activity == b.activity) {
                insert_rows(&mut tx, &given[same[0].activity], same, now).await?;
            }
        }
        tx.commit().await?;
        Ok(rows)
    }
}

async fn known(
    tx: &mut SqliteConnection,
    given: &[NewActivity],
    batch: &InsertBatch<'_>,
) -> Result<hash::HashSet<usize>, StoreError> {
    let mut known = hash::HashSet::default();
    let mut start = 0;
    for same in batch.candidates.chunk_by(|a, b| a.activity == b.activity) {
        for chunk in same.chunks(CHUNK_ROWS) {
            let activity = &given[chunk[0].activity];
            let recipients: Vec<&str> = chunk
                .iter()
                .map(|c| batch.recipients[c.recipient])
                .collect();
            let query = sqlx::query_scalar::<_, i64>(KNOWN)
                .bind(&activity.source)
                .bind(&activity.event_id)
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
                last_seq: before("last_seq")?,
                unread: before("unread_count")?,
                version: before("version")?,
            };
        }
    }
    Ok(bases)
}

async fn insert_rows(
    tx: &mut SqliteConnection,
    new: &NewActivity,
    rows: &[Row<'_>],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let rows: Vec<(Id, &str, i64)> = rows.iter().map(|r| (r.id, r.recipient, r.seq)).collect();
    let query = sqlx::query(INSERT)
        .bind(json(&rows)?)
        .bind(&new.source)
        .bind(&new.event_id)
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

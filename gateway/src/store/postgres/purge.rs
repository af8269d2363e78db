//! Removes old notifications and old tombstones, a bounded number in one transaction; with the last row goes its text, and with the last that names an
//! event the event.
//!
//! Input: two times and a limit. Output: how many rows were removed.

use chrono::{DateTime, Utc};
use sqlx::Row as _;

use super::PostgresStore;
use super::pool::{Session, Tx};
use crate::store::StoreError;
use crate::store::batch::milliseconds;

/// The advisory lock of the instance that purges.
const PURGE_LOCK: i64 = i64::from_be_bytes(*b"sigpurge");

/// `$1` stored before, `$2` at most. The oldest texts first.
const OLD: &str = "SELECT n.inbox, n.seq, n.event, n.text FROM signal_text t JOIN signal_notification n ON n.event = t.event AND n.text = t.text \
WHERE t.created_at < $1 ORDER BY t.created_at LIMIT $2";

/// `$1` inboxes. In the order of their recipients, as everywhere.
const LOCK_MANY: &str =
    "SELECT inbox FROM signal_inbox WHERE inbox = ANY($1) ORDER BY recipient_id FOR UPDATE";

/// `$1` inboxes and `$2` seqs of rows, `$3` tombstones are left for what was stored since.
const PURGE: &str = r"
WITH deleted AS (
    DELETE FROM signal_notification n USING unnest($1::int4[], $2::int4[]) AS o(inbox, seq) WHERE n.inbox = ANY($1) AND n.inbox = o.inbox AND n.seq = o.seq
    RETURNING n.event, n.text, n.inbox, n.seq, n.read_at
), mark AS (
    INSERT INTO signal_tombstone (event, inbox, deleted_at)
    SELECT d.event, d.inbox, t.created_at FROM deleted d JOIN signal_text t ON t.event = d.event AND t.text = d.text WHERE t.created_at >= $3
    ON CONFLICT (event, inbox) DO NOTHING
), counts AS (
    SELECT d.inbox, count(*) AS n, count(*) FILTER (WHERE d.read_at IS NULL AND d.seq > s.read_seq) AS unread
    FROM deleted d JOIN signal_inbox s ON s.inbox = d.inbox GROUP BY d.inbox
), adjusted AS (
    UPDATE signal_inbox s SET unread_count = s.unread_count - counts.unread, version = s.version + 1
    FROM counts WHERE s.inbox = ANY($1) AND s.inbox = counts.inbox
)
SELECT coalesce(sum(n), 0)::int8 FROM counts";

/// `$1` inboxes. A mark below every row says nothing.
const PURGE_MARKS: &str = "DELETE FROM signal_mark m WHERE m.inbox = ANY($1) AND NOT EXISTS (\
SELECT 1 FROM signal_notification n WHERE n.inbox = m.inbox AND n.seq <= m.seq)";

/// `$1` events and `$2` texts of rows that were removed.
const PURGE_TEXTS: &str = "DELETE FROM signal_text t USING unnest($1::int8[], $2::int4[]) AS o(event, text) \
WHERE t.event = ANY($1) AND t.event = o.event AND t.text = o.text \
AND NOT EXISTS (SELECT 1 FROM signal_notification n WHERE n.event = t.event AND n.text = t.text)";

/// `$1` left before, `$2` at most. Rows that a deletion has locked are left for the next round.
const PURGE_TOMBSTONES: &str = r"
DELETE FROM signal_tombstone WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM signal_tombstone WHERE deleted_at < $1 ORDER BY deleted_at LIMIT $2 FOR UPDATE SKIP LOCKED
)) RETURNING event";

/// `$1` events. Whoever stores one has locked it.
const LOCK_EVENTS: &str =
    "SELECT event FROM signal_event WHERE event = ANY($1) FOR UPDATE SKIP LOCKED";

/// `$1` events, locked: those that nothing names. Their redelivery would be stored as new.
const PURGE_EVENTS: &str = "DELETE FROM signal_event v WHERE v.event = ANY($1) \
AND NOT EXISTS (SELECT 1 FROM signal_notification n WHERE n.event = v.event) \
AND NOT EXISTS (SELECT 1 FROM signal_tombstone t WHERE t.event = v.event)";

impl PostgresStore {
    pub(super) async fn purge(
        &self,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let mut session = self.pool.acquire().await?;
        let (before, tombstones_before) =
            (before.map(milliseconds), milliseconds(tombstones_before));
        let result = self
            .purge_some(&mut session, before, tombstones_before, i64::from(limit))
            .await;
        session.done(result.map_err(StoreError::from))
    }

    async fn purge_some(
        &self,
        session: &mut Session,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: i64,
    ) -> Result<u64, sqlx::Error> {
        let mut tx = session.begin().await?;
        let alone = sqlx::query("SELECT pg_try_advisory_xact_lock($1)").bind(PURGE_LOCK);
        if !tx.one(alone).await?.try_get::<bool, _>(0)? {
            tx.rollback().await?;
            return Ok(0);
        }
        let mut removed = 0;
        let mut events: Vec<i64> = Vec::new();
        if let Some(before) = before {
            let old = tx.all(sqlx::query(OLD).bind(before).bind(limit)).await?;
            removed += purge_rows(&mut tx, &old, tombstones_before, &mut events).await?;
        }
        let query = sqlx::query(PURGE_TOMBSTONES)
            .bind(tombstones_before)
            .bind(limit);
        let tombstones = tx.all(query).await?;
        removed += tombstones.len() as u64;
        for row in &tombstones {
            events.push(row.try_get("event")?);
        }
        events.sort_unstable();
        events.dedup();
        if !events.is_empty() {
            let mut locked: Vec<i64> = Vec::new();
            for row in tx.all(sqlx::query(LOCK_EVENTS).bind(events)).await? {
                locked.push(row.try_get("event")?);
            }
            tx.run(sqlx::query(PURGE_EVENTS).bind(locked)).await?;
        }
        tx.commit().await?;
        Ok(removed)
    }
}

/// Removes these rows, adjusts their inboxes, and adds their events to `events`.
async fn purge_rows(
    tx: &mut Tx<'_>,
    old: &[sqlx::postgres::PgRow],
    tombstones_before: DateTime<Utc>,
    events: &mut Vec<i64>,
) -> Result<u64, sqlx::Error> {
    if old.is_empty() {
        return Ok(0);
    }
    let (mut inboxes, mut seqs): (Vec<i32>, Vec<i32>) = (Vec::new(), Vec::new());
    let mut texts: Vec<(i64, i32)> = Vec::new();
    for row in old {
        inboxes.push(row.try_get("inbox")?);
        seqs.push(row.try_get("seq")?);
        texts.push((row.try_get("event")?, row.try_get("text")?));
    }
    texts.sort_unstable();
    texts.dedup();
    let (of, texts): (Vec<i64>, Vec<i32>) = texts.into_iter().unzip();
    tx.run(sqlx::query(LOCK_MANY).bind(inboxes.clone())).await?;
    let query = sqlx::query(PURGE)
        .bind(inboxes.clone())
        .bind(seqs)
        .bind(tombstones_before);
    let removed = tx.one(query).await?.try_get::<i64, _>(0)? as u64;
    tx.run(sqlx::query(PURGE_MARKS).bind(inboxes)).await?;
    tx.run(sqlx::query(PURGE_TEXTS).bind(of.clone()).bind(texts))
        .await?;
    events.extend(of);
    Ok(removed)
}

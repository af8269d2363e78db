//! Removes old notifications and old tombstones, a bounded number in one transaction.
//!
//! Input: two times and a limit. Output: how many rows were removed.

use chrono::{DateTime, Utc};
use sqlx::Row as _;

use super::PostgresStore;
use super::pool::Session;
use crate::store::StoreError;
use crate::store::batch::milliseconds;

/// The advisory lock of the instance that purges.
const PURGE_LOCK: i64 = i64::from_be_bytes(*b"sigpurge");

/// `$1` created before, `$2` at most.
const OLD: &str = "SELECT id, recipient_id FROM signal_notification WHERE created_at < $1 ORDER BY created_at LIMIT $2";

/// `$1` recipients. In order, as everywhere.
const LOCK_MANY: &str = "SELECT recipient_id FROM signal_inbox WHERE recipient_id = ANY($1) ORDER BY recipient_id FOR UPDATE";

/// `$1` ids, `$2` tombstones are left for what was created since.
const PURGE: &str = r"
WITH deleted AS (
    DELETE FROM signal_notification WHERE id = ANY($1) RETURNING source, event_id, recipient_id, read_at, created_at
), mark AS (
    INSERT INTO signal_tombstone (source, event_id, recipient_id, deleted_at)
    SELECT source, event_id, recipient_id, created_at FROM deleted WHERE created_at >= $2
    ON CONFLICT (source, event_id, recipient_id) DO NOTHING
), counts AS (
    SELECT recipient_id, count(*) AS n, count(*) FILTER (WHERE read_at IS NULL) AS unread FROM deleted GROUP BY recipient_id
), adjusted AS (
    UPDATE signal_inbox s SET unread_count = s.unread_count - counts.unread, version = s.version + 1 FROM counts WHERE s.recipient_id = counts.recipient_id
)
SELECT coalesce(sum(n), 0)::int8 FROM counts";

/// `$1` left before, `$2` at most. Rows that a deletion has locked are left for the next round.
const PURGE_TOMBSTONES: &str = r"
DELETE FROM signal_tombstone WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM signal_tombstone WHERE deleted_at < $1 ORDER BY deleted_at LIMIT $2 FOR UPDATE SKIP LOCKED
))";

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
        if let Some(before) = before {
            let old = tx.all(sqlx::query(OLD).bind(before).bind(limit)).await?;
            let (mut ids, mut recipients) = (Vec::new(), Vec::new());
            for row in &old {
                ids.push(row.try_get::<&str, _>("id")?);
                recipients.push(row.try_get::<&str, _>("recipient_id")?);
            }
            if !ids.is_empty() {
                tx.run(sqlx::query(LOCK_MANY).bind(recipients)).await?;
                let query = sqlx::query(PURGE).bind(ids).bind(tombstones_before);
                removed += tx.one(query).await?.try_get::<i64, _>(0)? as u64;
            }
        }
        let query = sqlx::query(PURGE_TOMBSTONES)
            .bind(tombstones_before)
            .bind(limit);
        removed += tx.run(query).await?;
        tx.commit().await?;
        Ok(removed)
    }
}

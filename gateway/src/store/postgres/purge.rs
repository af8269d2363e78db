//! Removes old notifications and old tombstones, a bounded number in one transaction.
//!
//! Input: two times and a limit. Output: how many rows were removed.

use chrono::{DateTime, Utc};
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::{BEGIN, PostgresStore};
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
        let mut connection = self.pool.acquire().await?;
        let (before, tombstones_before) =
            (before.map(milliseconds), milliseconds(tombstones_before));
        let result = self
            .purge_some(&mut connection, before, tombstones_before, i64::from(limit))
            .await;
        self.pool.done(connection, result.map_err(StoreError::from))
    }

    async fn purge_some(
        &self,
        connection: &mut PgConnection,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: i64,
    ) -> Result<u64, sqlx::Error> {
        let mut tx = self.pool.step(connection.begin_with(BEGIN)).await?;
        let alone =
            sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_xact_lock($1)").bind(PURGE_LOCK);
        if !self.pool.step(alone.fetch_one(&mut *tx)).await? {
            self.pool.step(tx.rollback()).await?;
            return Ok(0);
        }
        let mut removed = 0;
        if let Some(before) = before {
            let old = self
                .pool
                .step(
                    sqlx::query_as::<_, (String, String)>(OLD)
                        .bind(before)
                        .bind(limit)
                        .fetch_all(&mut *tx),
                )
                .await?;
            let (ids, recipients): (Vec<String>, Vec<String>) = old.into_iter().unzip();
            if !ids.is_empty() {
                self.pool
                    .step(sqlx::query(LOCK_MANY).bind(recipients).execute(&mut *tx))
                    .await?;
                let query = sqlx::query_scalar::<_, i64>(PURGE)
                    .bind(ids)
                    .bind(tombstones_before);
                removed += self.pool.step(query.fetch_one(&mut *tx)).await? as u64;
            }
        }
        let query = sqlx::query(PURGE_TOMBSTONES)
            .bind(tombstones_before)
            .bind(limit);
        removed += self
            .pool
            .step(query.execute(&mut *tx))
            .await?
            .rows_affected();
        self.pool.step(tx.commit()).await?;
        Ok(removed)
    }
}

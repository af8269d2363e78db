//! Removes old notifications and old tombstones, a bounded number in one transaction.
//!
//! Input: two times and a limit. Output: how many rows were removed.

use chrono::{DateTime, Utc};

use super::{SqliteStore, json};
use crate::store::StoreError;

/// `$1` created before, `$2` at most.
const OLD: &str =
    "SELECT id FROM signal_notification WHERE created_at < $1 ORDER BY created_at LIMIT $2";

/// `$1` ids as JSON, `$2` for what was created since.
const MARK_PURGED: &str = r"
INSERT INTO signal_tombstone (source, event_id, recipient_id, deleted_at)
SELECT source, event_id, recipient_id, created_at FROM signal_notification WHERE id IN (SELECT value FROM json_each($1)) AND created_at >= $2
ON CONFLICT (source, event_id, recipient_id) DO NOTHING";

/// `$1` ids as JSON.
const ADJUST_PURGED: &str = r"
UPDATE signal_inbox SET unread_count = unread_count - counts.unread, version = version + 1
FROM (
    SELECT recipient_id, sum(read_at IS NULL) AS unread FROM signal_notification
    WHERE id IN (SELECT value FROM json_each($1)) GROUP BY recipient_id
) AS counts WHERE signal_inbox.recipient_id = counts.recipient_id";

/// `$1` ids as JSON.
const PURGE: &str = "DELETE FROM signal_notification WHERE id IN (SELECT value FROM json_each($1))";

/// `$1` left before, `$2` at most.
const PURGE_TOMBSTONES: &str = r"
DELETE FROM signal_tombstone WHERE (source, event_id, recipient_id) IN (
    SELECT source, event_id, recipient_id FROM signal_tombstone WHERE deleted_at < $1 ORDER BY deleted_at LIMIT $2
)";

impl SqliteStore {
    pub(super) async fn purge(
        &self,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let mut tx = self.pools.begin().await?;
        let mut removed = 0;
        if let Some(before) = before {
            let query = sqlx::query_scalar::<_, String>(OLD)
                .bind(before.timestamp_millis())
                .bind(limit);
            let ids = json(&query.fetch_all(&mut *tx).await?)?;
            sqlx::query(MARK_PURGED)
                .bind(&ids)
                .bind(tombstones_before.timestamp_millis())
                .execute(&mut *tx)
                .await?;
            sqlx::query(ADJUST_PURGED)
                .bind(&ids)
                .execute(&mut *tx)
                .await?;
            removed += sqlx::query(PURGE)
                .bind(&ids)
                .execute(&mut *tx)
                .await?
                .rows_affected();
        }
        let query = sqlx::query(PURGE_TOMBSTONES)
            .bind(tombstones_before.timestamp_millis())
            .bind(limit);
        removed += query.execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        Ok(removed)
    }
}

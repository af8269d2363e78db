//! Removes old notifications and old tombstones, a bounded number in one transaction; with the last row goes its text, and with the last that names an
//! event the event.
//!
//! Input: two times and a limit. Output: how many rows were removed.

use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, json};
use crate::store::StoreError;

/// `$1` stored before, `$2` at most. The oldest texts first.
const OLD: &str = "SELECT n.inbox, n.seq, n.event, n.text FROM signal_text t CROSS JOIN signal_notification n \
WHERE n.event = t.event AND n.text = t.text AND t.created_at < $1 ORDER BY t.created_at LIMIT $2";

/// `$1` rows as JSON, each inbox, seq, event and text.
macro_rules! old {
    ($columns:literal) => {
        concat!("(SELECT ", $columns, " FROM json_each($1))")
    };
}

/// `$1` rows as JSON, `$2` for what was stored since.
const MARK_PURGED: &str = "INSERT INTO signal_tombstone (event, inbox, deleted_at)
SELECT o.event, o.inbox, t.created_at FROM (
    SELECT json_extract(value, '$[0]') AS inbox, json_extract(value, '$[2]') AS event, json_extract(value, '$[3]') AS text FROM json_each($1)
) o JOIN signal_text t ON t.event = o.event AND t.text = o.text WHERE t.created_at >= $2
ON CONFLICT (event, inbox) DO NOTHING";

/// `$1` rows as JSON.
const ADJUST_PURGED: &str = r"
UPDATE signal_inbox SET unread_count = unread_count - counts.unread, version = version + 1
FROM (
    SELECT n.inbox AS inbox, sum(n.read_at IS NULL AND n.seq > s.read_seq) AS unread
    FROM json_each($1) j JOIN signal_notification n ON n.inbox = json_extract(j.value, '$[0]') AND n.seq = json_extract(j.value, '$[1]')
    JOIN signal_inbox s ON s.inbox = n.inbox GROUP BY n.inbox
) AS counts WHERE signal_inbox.inbox = counts.inbox";

/// `$1` rows as JSON.
const PURGE: &str = concat!(
    "DELETE FROM signal_notification WHERE (inbox, seq) IN ",
    old!("json_extract(value, '$[0]'), json_extract(value, '$[1]')")
);

/// `$1` rows as JSON. A mark below every row says nothing.
const PURGE_MARKS: &str = concat!(
    "DELETE FROM signal_mark WHERE inbox IN ",
    old!("json_extract(value, '$[0]')"),
    " AND NOT EXISTS (SELECT 1 FROM signal_notification n WHERE n.inbox = signal_mark.inbox AND n.seq <= signal_mark.seq)"
);

/// `$1` rows as JSON.
const PURGE_TEXTS: &str = concat!(
    "DELETE FROM signal_text WHERE (event, text) IN ",
    old!("json_extract(value, '$[2]'), json_extract(value, '$[3]')"),
    " AND NOT EXISTS (SELECT 1 FROM signal_notification n WHERE n.event = signal_text.event AND n.text = signal_text.text)"
);

/// `$1` left before, `$2` at most.
const PURGE_TOMBSTONES: &str = r"
DELETE FROM signal_tombstone WHERE (event, inbox) IN (
    SELECT event, inbox FROM signal_tombstone WHERE deleted_at < $1 ORDER BY deleted_at LIMIT $2
) RETURNING event";

/// `$1` events as JSON: those that nothing names. Their redelivery would be stored as new.
const PURGE_EVENTS: &str = "DELETE FROM signal_event WHERE event IN (SELECT value FROM json_each($1)) \
AND NOT EXISTS (SELECT 1 FROM signal_notification n WHERE n.event = signal_event.event) \
AND NOT EXISTS (SELECT 1 FROM signal_tombstone t WHERE t.event = signal_event.event)";

impl SqliteStore {
    pub(super) async fn purge(
        &self,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let mut tx = self.pools.begin().await?;
        let mut removed = 0;
        let mut events = Vec::new();
        if let Some(before) = before {
            let old: Vec<(i64, i64, i64, i64)> = sqlx::query_as(OLD)
                .bind(before.timestamp_millis())
                .bind(limit)
                .fetch_all(&mut *tx)
                .await?;
            events.extend(old.iter().map(|(_, _, event, _)| *event));
            removed += purge_rows(&mut tx, &json(&old)?, tombstones_before).await?;
        }
        let tombstones: Vec<i64> = sqlx::query_scalar(PURGE_TOMBSTONES)
            .bind(tombstones_before.timestamp_millis())
            .bind(limit)
            .fetch_all(&mut *tx)
            .await?;
        removed += tombstones.len() as u64;
        events.extend(tombstones);
        sqlx::query(PURGE_EVENTS)
            .bind(json(&events)?)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(removed)
    }
}

/// Removes these rows, given as JSON, and adjusts their inboxes.
async fn purge_rows(
    tx: &mut SqliteConnection,
    old: &str,
    tombstones_before: DateTime<Utc>,
) -> Result<u64, StoreError> {
    sqlx::query(MARK_PURGED)
        .bind(old)
        .bind(tombstones_before.timestamp_millis())
        .execute(&mut *tx)
        .await?;
    sqlx::query(ADJUST_PURGED)
        .bind(old)
        .execute(&mut *tx)
        .await?;
    let removed = sqlx::query(PURGE)
        .bind(old)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    for statement in [PURGE_MARKS, PURGE_TEXTS] {
        sqlx::query(statement).bind(old).execute(&mut *tx).await?;
    }
    Ok(removed)
}

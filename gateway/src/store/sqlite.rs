//! Notifications in SQLite: one instance alone, development and tests.
//!
//! Input: the trait's questions. Output: the same answers as PostgreSQL gives; the conformance suite holds both to them.

mod epoch;
mod insert;
mod pool;
mod purge;
mod revocations;

use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, Sqlite as Driver};

use super::batch::milliseconds;
use super::error::refuse_nul;
use super::migrate::VERSION;
use super::{
    Filter, MAX_READ_IDS, MarkedRead, Missed, NotificationSelector, NotificationStore, Page,
    StoreError, StoreFuture, Stored, sql,
};
use crate::id::{Id, IdGenerator};
use crate::notification::{Counts, Epoch, InboxState, NewActivity, Notification};

pub(super) use pool::{BEGIN, SqlitePools, tuned};

/// `$1` recipient, `$2` id.
const DELETE: &str = "DELETE FROM signal_notification WHERE recipient_id = $1 AND id = $2 RETURNING source, event_id, read_at";

/// `$1` source, `$2` event id, `$3` recipient, `$4` when.
const MARK_DELETED: &str = r"
INSERT INTO signal_tombstone (source, event_id, recipient_id, deleted_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (source, event_id, recipient_id) DO UPDATE SET deleted_at = excluded.deleted_at";

/// `$1` recipient, `$2` how many fewer are unread.
const CHANGED: &str = "UPDATE signal_inbox SET unread_count = unread_count - $2, version = version + 1 WHERE recipient_id = $1 RETURNING unread_count, version";

/// The two statements of a mark: the newest ids that will change, and the change.
///
/// `$1` recipient, `$2` most ids or when, `$3` what the selector names.
fn mark(selector: &NotificationSelector) -> (&'static str, &'static str) {
    macro_rules! mark {
        ($filter:literal) => {
            (
                concat!(
                    "SELECT id FROM signal_notification WHERE recipient_id = $1 AND read_at IS NULL",
                    $filter,
                    " ORDER BY seq DESC LIMIT $2"
                ),
                concat!("UPDATE signal_notification SET read_at = $2 WHERE recipient_id = $1 AND read_at IS NULL", $filter),
            )
        };
    }
    match selector {
        NotificationSelector::Ids(_) => mark!(" AND id IN (SELECT value FROM json_each($3))"),
        NotificationSelector::UpTo(_) => mark!(" AND seq <= $3"),
        NotificationSelector::All => mark!(""),
    }
}

/// The notification tables in SQLite.
pub(super) struct SqliteStore {
    pools: SqlitePools,
    ids: IdGenerator,
}

impl SqliteStore {
    pub(super) fn new(pools: SqlitePools, ids: IdGenerator) -> Self {
        Self { pools, ids }
    }

    async fn list(
        &self,
        recipient: &str,
        filter: &Filter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Page, StoreError> {
        refuse_nul("recipient", recipient)?;
        let mut query = sqlx::query(sql::list(filter))
            .bind(recipient)
            .bind(before.unwrap_or(i64::MAX))
            .bind(sql::one_more(limit));
        if let Some(kind) = &filter.kind {
            refuse_nul("type", kind)?;
            query = query.bind(kind);
        }
        let (counts, rows) = self.rows(query).await?;
        Ok(sql::page(counts, rows, limit))
    }

    async fn missed(&self, recipient: &str, after: i64, limit: u32) -> Result<Missed, StoreError> {
        refuse_nul("recipient", recipient)?;
        let (counts, rows) = self
            .rows(
                sqlx::query(sql::MISSED)
                    .bind(recipient)
                    .bind(after)
                    .bind(sql::one_more(limit)),
            )
            .await?;
        Ok(sql::missed(counts, rows, limit))
    }

    async fn rows(
        &self,
        query: SqliteQuery<'_>,
    ) -> Result<(Counts, Vec<Notification>), StoreError> {
        let mut counts = None;
        let mut rows = Vec::new();
        for row in &query.fetch_all(&self.pools.read).await? {
            let (with, notification) = sql::read_with_inbox(row, time)?;
            counts = Some(with);
            rows.extend(notification);
        }
        // One row comes always.
        Ok((counts.ok_or(sqlx::Error::RowNotFound)?, rows))
    }

    async fn get(&self, recipient: &str, id: Id) -> Result<Option<Notification>, StoreError> {
        refuse_nul("recipient", recipient)?;
        let row = sqlx::query(sql::GET)
            .bind(recipient)
            .bind(id.as_str())
            .fetch_optional(&self.pools.read)
            .await?;
        Ok(row.as_ref().map(|row| sql::read(row, time)).transpose()?)
    }

    async fn inbox(&self, recipient: &str) -> Result<Counts, StoreError> {
        refuse_nul("recipient", recipient)?;
        let row = sqlx::query(sql::COUNTS)
            .bind(recipient)
            .fetch_one(&self.pools.read)
            .await?;
        Ok(sql::read_counts(&row)?)
    }

    async fn delete(
        &self,
        recipient: &str,
        id: Id,
        now: DateTime<Utc>,
    ) -> Result<Option<InboxState>, StoreError> {
        refuse_nul("recipient", recipient)?;
        let mut tx = self.pools.begin().await?;
        let Some(deleted) = sqlx::query(DELETE)
            .bind(recipient)
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await?
        else {
            tx.rollback().await?;
            return Ok(None);
        };
        sqlx::query(MARK_DELETED)
            .bind(deleted.try_get::<&str, _>("source")?)
            .bind(deleted.try_get::<&str, _>("event_id")?)
            .bind(recipient)
            .bind(now.timestamp_millis())
            .execute(&mut *tx)
            .await?;
        let unread = i64::from(time(&deleted, "read_at")?.is_none());
        let inbox = sqlx::query(CHANGED)
            .bind(recipient)
            .bind(unread)
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Some(sql::read_inbox(&inbox)?))
    }

    async fn mark_read(
        &self,
        recipient: &str,
        selector: &NotificationSelector,
        now: DateTime<Utc>,
    ) -> Result<MarkedRead, StoreError> {
        refuse_nul("recipient", recipient)?;
        let read_at = milliseconds(now);
        let mut tx = self.pools.begin().await?;
        let state = sqlx::query(sql::INBOX)
            .bind(recipient)
            .fetch_optional(&mut *tx)
            .await?;
        let inbox = state
            .as_ref()
            .map(sql::read_inbox)
            .transpose()?
            .unwrap_or_default();
        let mut read = MarkedRead {
            ids: Vec::new(),
            total: 0,
            read_at,
            inbox,
        };
        let (select, update) = mark(selector);
        let chosen = |query| choose(query, selector);
        for row in chosen(
            sqlx::query(select)
                .bind(recipient)
                .bind(MAX_READ_IDS as i64),
        )?
        .fetch_all(&mut *tx)
        .await?
        {
            read.ids.push(sql::read_id(&row)?);
        }
        if !read.ids.is_empty() {
            let query = chosen(
                sqlx::query(update)
                    .bind(recipient)
                    .bind(read_at.timestamp_millis()),
            )?;
            read.total = query.execute(&mut *tx).await?.rows_affected();
            let inbox = sqlx::query(CHANGED)
                .bind(recipient)
                .bind(read.total as i64)
                .fetch_one(&mut *tx)
                .await?;
            read.inbox = sql::read_inbox(&inbox)?;
        }
        tx.commit().await?;
        Ok(read)
    }
}

type SqliteQuery<'q> = sqlx::query::Query<'q, Driver, sqlx::sqlite::SqliteArguments>;

fn choose<'q>(
    query: SqliteQuery<'q>,
    selector: &NotificationSelector,
) -> Result<SqliteQuery<'q>, StoreError> {
    Ok(match selector {
        NotificationSelector::Ids(ids) => query.bind(json(ids)?),
        NotificationSelector::UpTo(seq) => query.bind(*seq),
        NotificationSelector::All => query,
    })
}

/// SQLite has no arrays: many values travel as one JSON text.
pub(super) fn json(values: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(values).map_err(StoreError::refused)
}

fn time(row: &SqliteRow, column: &'static str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    Ok(row
        .try_get::<Option<i64>, _>(column)?
        .and_then(DateTime::from_timestamp_millis))
}

impl NotificationStore for SqliteStore {
    fn insert<'a>(
        &'a self,
        batch: &'a [NewActivity],
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, Vec<Stored>> {
        Box::pin(self.insert(batch, now))
    }

    fn list<'a>(
        &'a self,
        recipient: &'a str,
        filter: &'a Filter,
        before: Option<i64>,
        limit: u32,
    ) -> StoreFuture<'a, Page> {
        Box::pin(self.list(recipient, filter, before, limit))
    }

    fn get<'a>(&'a self, recipient: &'a str, id: Id) -> StoreFuture<'a, Option<Notification>> {
        Box::pin(self.get(recipient, id))
    }

    fn delete<'a>(
        &'a self,
        recipient: &'a str,
        id: Id,
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, Option<InboxState>> {
        Box::pin(self.delete(recipient, id, now))
    }

    fn mark_read<'a>(
        &'a self,
        recipient: &'a str,
        selector: &'a NotificationSelector,
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, MarkedRead> {
        Box::pin(self.mark_read(recipient, selector, now))
    }

    fn inbox<'a>(&'a self, recipient: &'a str) -> StoreFuture<'a, Counts> {
        Box::pin(self.inbox(recipient))
    }

    fn missed<'a>(&'a self, recipient: &'a str, after: i64, limit: u32) -> StoreFuture<'a, Missed> {
        Box::pin(self.missed(recipient, after, limit))
    }

    fn purge<'a>(
        &'a self,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: u32,
    ) -> StoreFuture<'a, u64> {
        Box::pin(self.purge(before, tombstones_before, limit))
    }

    fn version(&self) -> StoreFuture<'_, Option<i64>> {
        Box::pin(async {
            Ok(sqlx::query_scalar(VERSION)
                .fetch_one(&self.pools.read)
                .await?)
        })
    }

    fn look(&self) -> StoreFuture<'_, Epoch> {
        Box::pin(self.look())
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async {
            sqlx::query("SELECT 1").execute(&self.pools.read).await?;
            Ok(())
        })
    }
}

//! Notifications in PostgreSQL.
//!
//! Input: the trait's questions. Output: one transaction each, of few statements whatever the size of a batch.

mod epoch;
mod insert;
mod pool;
mod purge;
mod revocations;
mod servers;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use self::pool::Session;
use super::batch::milliseconds;
use super::error::refuse_nul;
use super::migrate::VERSION;
use super::{
    Filter, MAX_READ_IDS, MarkedRead, Missed, NotificationSelector, NotificationStore, Page,
    StoreError, StoreFuture, Stored, sql,
};
use crate::id::{Id, IdGenerator};
use crate::notification::{Counts, Epoch, InboxState, NewActivity, Notification};

pub(super) use pool::{Opened, PostgresPool};
pub(super) use servers::{Server, Servers, Unfit, unfit};

/// `$1` recipient.
const LOCK: &str =
    "SELECT unread_count, version FROM signal_inbox WHERE recipient_id = $1 FOR UPDATE";

/// `$1` recipient, `$2` id, `$3` when. The state row is locked already.
const DELETE: &str = r"
WITH deleted AS (
    DELETE FROM signal_notification WHERE recipient_id = $1 AND id = $2 RETURNING source, event_id, recipient_id, read_at
), mark AS (
    INSERT INTO signal_tombstone (source, event_id, recipient_id, deleted_at) SELECT source, event_id, recipient_id, $3 FROM deleted
    ON CONFLICT (source, event_id, recipient_id) DO UPDATE SET deleted_at = excluded.deleted_at
)
UPDATE signal_inbox s SET unread_count = s.unread_count - CASE WHEN deleted.read_at IS NULL THEN 1 ELSE 0 END, version = s.version + 1
FROM deleted WHERE s.recipient_id = deleted.recipient_id RETURNING s.unread_count, s.version";

/// `$1` recipient, `$2` when, `$3` most ids, `$4` what the selector names.
fn mark(selector: &NotificationSelector) -> &'static str {
    macro_rules! mark {
        ($filter:literal) => {
            concat!(
                "WITH changed AS (UPDATE signal_notification SET read_at = $2 WHERE recipient_id = $1 AND read_at IS NULL",
                $filter,
                " RETURNING id, seq) SELECT id, (SELECT count(*) FROM changed) AS total FROM changed ORDER BY seq DESC LIMIT $3"
            )
        };
    }
    match selector {
        NotificationSelector::Ids(_) => mark!(" AND id = ANY($4)"),
        NotificationSelector::UpTo(_) => mark!(" AND seq <= $4"),
        NotificationSelector::All => mark!(""),
    }
}

/// `$1` recipient, `$2` how many became read.
const MARKED: &str = "UPDATE signal_inbox SET unread_count = unread_count - $2, version = version + 1 WHERE recipient_id = $1 RETURNING unread_count, version";

/// The notification tables in PostgreSQL.
pub(super) struct PostgresStore {
    pool: Arc<PostgresPool>,
    ids: IdGenerator,
    looks: epoch::Looks,
}

impl PostgresStore {
    pub(super) fn new(pool: Arc<PostgresPool>, ids: IdGenerator) -> Self {
        Self {
            pool,
            ids,
            looks: epoch::Looks::default(),
        }
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

    async fn rows(&self, query: PgQuery<'_>) -> Result<(Counts, Vec<Notification>), StoreError> {
        let mut counts = None;
        let mut rows = Vec::new();
        for row in &self.pool.all(query).await? {
            let (with, notification) = sql::read_with_inbox(row, time)?;
            counts = Some(with);
            rows.extend(notification);
        }
        // One row comes always.
        Ok((counts.ok_or(sqlx::Error::RowNotFound)?, rows))
    }

    async fn one(&self, query: PgQuery<'_>) -> Result<Option<PgRow>, StoreError> {
        Ok(self.pool.all(query).await?.into_iter().next())
    }

    async fn get(&self, recipient: &str, id: Id) -> Result<Option<Notification>, StoreError> {
        refuse_nul("recipient", recipient)?;
        let row = self
            .one(sqlx::query(sql::GET).bind(recipient).bind(id.as_str()))
            .await?;
        Ok(row.as_ref().map(|row| sql::read(row, time)).transpose()?)
    }

    async fn inbox(&self, recipient: &str) -> Result<Counts, StoreError> {
        refuse_nul("recipient", recipient)?;
        let row = self.one(sqlx::query(sql::COUNTS).bind(recipient)).await?;
        Ok(sql::read_counts(&row.ok_or(sqlx::Error::RowNotFound)?)?)
    }

    async fn delete(
        &self,
        recipient: &str,
        id: Id,
        now: DateTime<Utc>,
    ) -> Result<Option<InboxState>, StoreError> {
        refuse_nul("recipient", recipient)?;
        let mut session = self.pool.acquire().await?;
        let result = self
            .delete_one(&mut session, recipient, id, milliseconds(now))
            .await;
        session.done(result.map_err(StoreError::from))
    }

    async fn delete_one(
        &self,
        session: &mut Session,
        recipient: &str,
        id: Id,
        now: DateTime<Utc>,
    ) -> Result<Option<InboxState>, sqlx::Error> {
        let mut tx = session.begin().await?;
        tx.all(sqlx::query(LOCK).bind(recipient)).await?;
        let query = sqlx::query(DELETE)
            .bind(recipient)
            .bind(id.as_str())
            .bind(now);
        let rows = tx.all(query).await?;
        tx.commit().await?;
        rows.first().map(sql::read_inbox).transpose()
    }

    async fn mark_read(
        &self,
        recipient: &str,
        selector: &NotificationSelector,
        now: DateTime<Utc>,
    ) -> Result<MarkedRead, StoreError> {
        refuse_nul("recipient", recipient)?;
        let mut session = self.pool.acquire().await?;
        let result = self
            .mark(&mut session, recipient, selector, milliseconds(now))
            .await;
        session.done(result.map_err(StoreError::from))
    }

    async fn mark(
        &self,
        session: &mut Session,
        recipient: &str,
        selector: &NotificationSelector,
        read_at: DateTime<Utc>,
    ) -> Result<MarkedRead, sqlx::Error> {
        let mut tx = session.begin().await?;
        let mut read = MarkedRead {
            ids: Vec::new(),
            total: 0,
            read_at,
            inbox: InboxState::default(),
        };
        if let Some(state) = tx.all(sqlx::query(LOCK).bind(recipient)).await?.first() {
            read.inbox = sql::read_inbox(state)?;
            let mut query = sqlx::query(mark(selector))
                .bind(recipient)
                .bind(read_at)
                .bind(MAX_READ_IDS as i64);
            query = match selector {
                NotificationSelector::Ids(ids) => {
                    query.bind(ids.iter().map(Id::as_str).collect::<Vec<_>>())
                }
                NotificationSelector::UpTo(seq) => query.bind(*seq),
                NotificationSelector::All => query,
            };
            for row in tx.all(query).await? {
                read.ids.push(sql::read_id(&row)?);
                read.total = row.try_get::<i64, _>("total")? as u64;
            }
        }
        if read.total > 0 {
            let query = sqlx::query(MARKED).bind(recipient).bind(read.total as i64);
            read.inbox = sql::read_inbox(&tx.one(query).await?)?;
        }
        tx.commit().await?;
        Ok(read)
    }
}

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn time(row: &PgRow, column: &'static str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    row.try_get(column)
}

impl NotificationStore for PostgresStore {
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
            let row = self.one(sqlx::query(VERSION)).await?;
            Ok(row
                .as_ref()
                .map(|row| row.try_get(0))
                .transpose()?
                .flatten())
        })
    }

    fn look(&self) -> StoreFuture<'_, Epoch> {
        Box::pin(self.look())
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(self.pool.ping())
    }
}

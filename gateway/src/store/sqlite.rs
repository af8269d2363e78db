//! Notifications in SQLite: one instance alone, development and tests.
//!
//! Input: the trait's questions. Output: the same answers as PostgreSQL gives; the conformance suite holds both to them.

mod epoch;
mod insert;
mod pool;
mod purge;
mod revocations;

use chrono::{DateTime, Utc};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row as _, Sqlite as Driver};

use super::batch::{kind_code, milliseconds};
use super::error::refuse_nul;
use super::migrate::VERSION;
use super::row_id::{row_id, seq_of};
use super::{
    Filter, MAX_READ_IDS, MarkedRead, Missed, NotificationSelector, NotificationStore, Page,
    StoreError, StoreFuture, Stored, sql,
};
use crate::hash;
use crate::id::Id;
use crate::notification::{Counts, Epoch, InboxState, NewActivity, Notification};

pub(super) use pool::{BEGIN, SqlitePools, tuned};

/// `$1` inbox, `$2` seqs as JSON, `$3` above. Those that are unread.
const NAMED: &str = "SELECT n.seq, n.text FROM signal_notification n \
WHERE n.inbox = $1 AND n.seq IN (SELECT value FROM json_each($2)) AND n.seq > $3 AND n.read_at IS NULL ORDER BY n.seq DESC";

/// `$1` inbox, `$2` seqs as JSON, `$3` when.
const READ: &str = "UPDATE signal_notification SET read_at = $3 WHERE inbox = $1 AND seq IN (SELECT value FROM json_each($2))";

/// The notification tables in SQLite.
pub(super) struct SqliteStore {
    pools: SqlitePools,
}

impl SqliteStore {
    pub(super) fn new(pools: SqlitePools) -> Self {
        Self { pools }
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
            query = query.bind(kind).bind(kind_code(kind));
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
        let Some(seq) = seq_of(id) else {
            return Ok(None);
        };
        let row = sqlx::query(sql::GET)
            .bind(recipient)
            .bind(seq)
            .fetch_optional(&self.pools.read)
            .await?;
        let found = row.as_ref().map(|row| sql::read(row, time)).transpose()?;
        Ok(found.filter(|notification| notification.id == id))
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
        let Some(seq) = seq_of(id) else {
            return Ok(None);
        };
        let mut tx = self.pools.begin().await?;
        let Some(head) = head(&mut tx, recipient).await? else {
            tx.rollback().await?;
            return Ok(None);
        };
        let found = sqlx::query(sql::ROW)
            .bind(head.inbox)
            .bind(seq)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(row) = found.filter(|row| row_id(head.inbox, seq, row.get("text")) == id) else {
            tx.rollback().await?;
            return Ok(None);
        };
        let (event, text): (i64, i64) = (row.try_get("event")?, row.try_get("text")?);
        let was_unread = seq > head.read_seq && time(&row, "read_at")?.is_none();
        let delete = sqlx::query(sql::DELETE).bind(head.inbox).bind(seq);
        delete.execute(&mut *tx).await?;
        let mark = sqlx::query(sql::MARK_DELETED).bind(event).bind(head.inbox);
        mark.bind(now.timestamp_millis()).execute(&mut *tx).await?;
        let delete = sqlx::query(sql::DELETE_TEXT).bind(event).bind(text);
        delete.execute(&mut *tx).await?;
        let inbox = changed(&mut tx, &head, u64::from(was_unread), head.read_seq).await?;
        tx.commit().await?;
        Ok(Some(inbox))
    }

    async fn mark_read(
        &self,
        recipient: &str,
        selector: &NotificationSelector,
        now: DateTime<Utc>,
    ) -> Result<MarkedRead, StoreError> {
        refuse_nul("recipient", recipient)?;
        let mut read = MarkedRead {
            ids: Vec::new(),
            total: 0,
            read_at: milliseconds(now),
            inbox: InboxState::default(),
        };
        let mut tx = self.pools.begin().await?;
        let Some(head) = head(&mut tx, recipient).await? else {
            tx.rollback().await?;
            return Ok(read);
        };
        read.inbox = head.state;
        let up_to = match selector {
            NotificationSelector::Ids(ids) => {
                mark_named(&mut tx, &head, ids, &mut read).await?;
                head.read_seq
            }
            NotificationSelector::UpTo(seq) => {
                mark_up_to(&mut tx, &head, (*seq).min(head.last_seq), &mut read).await?
            }
            NotificationSelector::All => {
                mark_up_to(&mut tx, &head, head.last_seq, &mut read).await?
            }
        };
        if read.total > 0 {
            read.inbox = changed(&mut tx, &head, read.total, up_to).await?;
        }
        tx.commit().await?;
        Ok(read)
    }
}

async fn head(
    tx: &mut SqliteConnection,
    recipient: &str,
) -> Result<Option<sql::Head>, sqlx::Error> {
    let query = sqlx::query(sql::HEAD).bind(recipient);
    let row = query.fetch_optional(tx).await?;
    row.as_ref().map(sql::read_head).transpose()
}

async fn changed(
    tx: &mut SqliteConnection,
    head: &sql::Head,
    fewer: u64,
    up_to: i64,
) -> Result<InboxState, sqlx::Error> {
    let query = sqlx::query(sql::CHANGED)
        .bind(head.inbox)
        .bind(fewer as i64)
        .bind(up_to);
    sql::read_inbox(&query.fetch_one(tx).await?)
}

/// Gives a time to each of these that is unread.
async fn mark_named(
    tx: &mut SqliteConnection,
    head: &sql::Head,
    ids: &[Id],
    read: &mut MarkedRead,
) -> Result<(), StoreError> {
    let seqs: Vec<i64> = ids.iter().copied().filter_map(seq_of).collect();
    let wanted: hash::HashSet<Id> = ids.iter().copied().collect();
    let query = sqlx::query(NAMED).bind(head.inbox).bind(json(&seqs)?);
    let mut seqs: Vec<i64> = Vec::new();
    for row in query.bind(head.read_seq).fetch_all(&mut *tx).await? {
        let id = sql::read_id(&row, head.inbox)?;
        if wanted.contains(&id) {
            seqs.push(row.try_get("seq")?);
            read.ids.push(id);
        }
    }
    read.total = seqs.len() as u64;
    let query = sqlx::query(READ).bind(head.inbox).bind(json(&seqs)?);
    let query = query.bind(read.read_at.timestamp_millis());
    query.execute(tx).await?;
    Ok(())
}

/// One row says that everything up to `up_to` is read, however much that is. Returns up to where nothing is unread.
async fn mark_up_to(
    tx: &mut SqliteConnection,
    head: &sql::Head,
    up_to: i64,
    read: &mut MarkedRead,
) -> Result<i64, sqlx::Error> {
    if up_to <= head.read_seq {
        return Ok(head.read_seq);
    }
    let mut above = 0;
    if up_to < head.last_seq {
        let query = sqlx::query_scalar(sql::COUNT_UNREAD).bind(head.inbox);
        above = query.bind(up_to).fetch_one(&mut *tx).await?;
    }
    read.total = (head.state.unread_count - above).max(0) as u64;
    if read.total == 0 {
        return Ok(head.read_seq);
    }
    let query = sqlx::query(sql::UNREAD)
        .bind(head.inbox)
        .bind(head.read_seq)
        .bind(up_to)
        .bind(MAX_READ_IDS as i64);
    for row in query.fetch_all(&mut *tx).await? {
        read.ids.push(sql::read_id(&row, head.inbox)?);
    }
    let query = sqlx::query(sql::MARK).bind(head.inbox).bind(up_to);
    let query = query.bind(read.read_at.timestamp_millis());
    query.execute(tx).await?;
    Ok(up_to)
}

type SqliteQuery<'q> = sqlx::query::Query<'q, Driver, sqlx::sqlite::SqliteArguments>;

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

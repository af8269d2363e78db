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

use self::pool::{Session, Tx};
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

pub(super) use pool::{Opened, PostgresPool};
pub(super) use servers::{Server, Servers, Unfit, unfit};

/// `$1` inbox, `$2` seqs, `$3` above. Those that are unread.
const NAMED: &str = "SELECT CAST(n.seq AS bigint) AS seq, CAST(n.text AS bigint) AS text FROM signal_notification n \
WHERE n.inbox = $1 AND n.seq = ANY($2) AND n.seq > $3 AND n.read_at IS NULL ORDER BY n.seq DESC";

/// `$1` inbox, `$2` seqs, `$3` when.
const READ: &str = "UPDATE signal_notification SET read_at = $3 WHERE inbox = $1 AND seq = ANY($2)";

/// `$1` event, `$2` text. Of deletions at the same time, the last one sees that no row is left.
const LOCK_TEXT: &str = "SELECT 1 FROM signal_text WHERE event = $1 AND text = $2 FOR UPDATE";

/// The notification tables in PostgreSQL.
pub(super) struct PostgresStore {
    pool: Arc<PostgresPool>,
    looks: epoch::Looks,
}

impl PostgresStore {
    pub(super) fn new(pool: Arc<PostgresPool>) -> Self {
        Self {
            pool,
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
        let Some(seq) = seq_of(id) else {
            return Ok(None);
        };
        let row = self
            .one(sqlx::query(sql::GET).bind(recipient).bind(seq))
            .await?;
        let found = row.as_ref().map(|row| sql::read(row, time)).transpose()?;
        Ok(found.filter(|notification| notification.id == id))
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
        let Some(seq) = seq_of(id) else {
            return Ok(None);
        };
        let mut tx = session.begin().await?;
        let locked = tx.all(sqlx::query(sql::LOCK).bind(recipient)).await?;
        let Some(head) = locked.first().map(sql::read_head).transpose()? else {
            tx.rollback().await?;
            return Ok(None);
        };
        let query = sqlx::query(sql::ROW).bind(head.inbox).bind(seq);
        let found = tx.all(query).await?;
        let Some(row) = found
            .first()
            .filter(|row| row_id(head.inbox, seq, row.get("text")) == id)
        else {
            tx.rollback().await?;
            return Ok(None);
        };
        let (event, text): (i64, i64) = (row.try_get("event")?, row.try_get("text")?);
        let was_unread = seq > head.read_seq && time(row, "read_at")?.is_none();
        tx.run(sqlx::query(sql::DELETE).bind(head.inbox).bind(seq))
            .await?;
        let query = sqlx::query(sql::MARK_DELETED).bind(event).bind(head.inbox);
        tx.run(query.bind(now)).await?;
        tx.all(sqlx::query(LOCK_TEXT).bind(event).bind(text))
            .await?;
        tx.run(sqlx::query(sql::DELETE_TEXT).bind(event).bind(text))
            .await?;
        let query = sqlx::query(sql::CHANGED)
            .bind(head.inbox)
            .bind(i64::from(was_unread))
            .bind(head.read_seq);
        let inbox = sql::read_inbox(&tx.one(query).await?)?;
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
        let locked = tx.all(sqlx::query(sql::LOCK).bind(recipient)).await?;
        let Some(head) = locked.first().map(sql::read_head).transpose()? else {
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
            let query = sqlx::query(sql::CHANGED)
                .bind(head.inbox)
                .bind(read.total as i64)
                .bind(up_to);
            read.inbox = sql::read_inbox(&tx.one(query).await?)?;
        }
        tx.commit().await?;
        Ok(read)
    }
}

/// Gives a time to each of these that is unread.
async fn mark_named(
    tx: &mut Tx<'_>,
    head: &sql::Head,
    ids: &[Id],
    read: &mut MarkedRead,
) -> Result<(), sqlx::Error> {
    let seqs: Vec<i64> = ids.iter().copied().filter_map(seq_of).collect();
    let wanted: hash::HashSet<Id> = ids.iter().copied().collect();
    let query = sqlx::query(NAMED).bind(head.inbox).bind(seqs);
    let mut seqs: Vec<i64> = Vec::new();
    for row in tx.all(query.bind(head.read_seq)).await? {
        let id = sql::read_id(&row, head.inbox)?;
        if wanted.contains(&id) {
            seqs.push(row.try_get("seq")?);
            read.ids.push(id);
        }
    }
    read.total = seqs.len() as u64;
    if !seqs.is_empty() {
        let query = sqlx::query(READ).bind(head.inbox).bind(seqs);
        tx.run(query.bind(read.read_at)).await?;
    }
    Ok(())
}

/// One row says that everything up to `up_to` is read, however much that is. Returns up to where nothing is unread.
async fn mark_up_to(
    tx: &mut Tx<'_>,
    head: &sql::Head,
    up_to: i64,
    read: &mut MarkedRead,
) -> Result<i64, sqlx::Error> {
    if up_to <= head.read_seq {
        return Ok(head.read_seq);
    }
    let mut above = 0;
    if up_to < head.last_seq {
        let query = sqlx::query(sql::COUNT_UNREAD).bind(head.inbox).bind(up_to);
        above = tx.one(query).await?.try_get(0)?;
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
    for row in tx.all(query).await? {
        read.ids.push(sql::read_id(&row, head.inbox)?);
    }
    let query = sqlx::query(sql::MARK).bind(head.inbox).bind(up_to);
    tx.run(query.bind(read.read_at)).await?;
    Ok(up_to)
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

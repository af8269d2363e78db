//! Notifications in SQLite: one instance alone, development and tests.
//!
//! Input: the trait's questions. Output: the same answers as PostgreSQL gives; the conformance suite holds both to them.
//! One connection writes, each time under `BEGIN IMMEDIATE`, so nothing changes between what a transaction reads and what it writes;
//! others read beside it, each statement one snapshot (WAL).

use std::time::Duration;

use chrono::{DateTime, Utc};
use rustc_hash::FxHashSet;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{Row as _, Sqlite as Driver, Transaction};

use super::batch::{Base, Batch, CHUNK_ROWS, Row, milliseconds};
use super::error::{RefusalClass, refuse_nul};
use super::migrate::VERSION;
use super::{
    Filter, MAX_READ_IDS, MarkedRead, Missed, NotificationSelector, NotificationStore, Page,
    StoreError, StoreFuture, Stored, sql,
};
use crate::config;
use crate::id::{Id, IdGenerator};
use crate::notification::{InboxState, NewActivity, Notification};

/// Most connections that read.
const READERS: u32 = 4;

/// The pools of one file.
#[derive(Clone)]
pub(super) struct Sqlite {
    pub(super) read: SqlitePool,
    write: SqlitePool,
}

impl Sqlite {
    /// Opens the file at the first question. A database in memory has one connection for everything: each would see its own.
    pub(super) fn new(
        options: SqliteConnectOptions,
        in_memory: bool,
        database: &config::Database,
    ) -> Self {
        let options = tuned(options, Duration::from_millis(database.acquire_timeout_ms));
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(Duration::from_millis(database.acquire_timeout_ms))
                .max_lifetime(None)
        };
        let write = pool()
            .max_connections(1)
            .idle_timeout(None)
            .connect_lazy_with(options.clone());
        let read = if in_memory {
            write.clone()
        } else {
            pool()
                .max_connections(database.max_connections.min(READERS))
                .connect_lazy_with(options)
        };
        Self { read, write }
    }

    /// Waits until nobody uses the pools, and closes them.
    pub(super) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// Begins a transaction that holds the write lock from its start.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Driver>, sqlx::Error> {
        self.write.begin_with(BEGIN).await
    }
}

/// Takes the write lock at once: a transaction that reads first and writes later could find that another wrote in between.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

/// What every connection is opened with. A commit is on the disk before it is told (`FULL`), because Kafka's offset is committed after it.
pub(super) fn tuned(options: SqliteConnectOptions, busy_timeout: Duration) -> SqliteConnectOptions {
    options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(busy_timeout)
}

/// `$1` source, `$2` event id, `$3` recipients as JSON. The places of those that have a row or a tombstone.
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

/// `$1` triples of id, recipient and seq, as JSON; `$2` to `$11` the texts of their activity; `$12` when.
const INSERT: &str = r"
INSERT INTO signal_notification (id, recipient_id, seq, source, event_id, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, created_at)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
FROM json_each($1)";

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
/// `$1` recipient, `$2` most ids or when, `$3` which.
fn mark(which: &NotificationSelector) -> (&'static str, &'static str) {
    macro_rules! mark {
        ($which:literal) => {
            (
                concat!(
                    "SELECT id FROM signal_notification WHERE recipient_id = $1 AND read_at IS NULL",
                    $which,
                    " ORDER BY seq DESC LIMIT $2"
                ),
                concat!("UPDATE signal_notification SET read_at = $2 WHERE recipient_id = $1 AND read_at IS NULL", $which),
            )
        };
    }
    match which {
        NotificationSelector::Ids(_) => mark!(" AND id IN (SELECT value FROM json_each($3))"),
        NotificationSelector::UpTo(_) => mark!(" AND seq <= $3"),
        NotificationSelector::All => mark!(""),
    }
}

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
UPDATE signal_inbox SET unread_count = unread_count - per.unread, version = version + 1
FROM (
    SELECT recipient_id, sum(read_at IS NULL) AS unread FROM signal_notification
    WHERE id IN (SELECT value FROM json_each($1)) GROUP BY recipient_id
) AS per WHERE signal_inbox.recipient_id = per.recipient_id";

/// `$1` ids as JSON.
const PURGE: &str = "DELETE FROM signal_notification WHERE id IN (SELECT value FROM json_each($1))";

/// `$1` left before, `$2` at most.
const PURGE_TOMBSTONES: &str = r"
DELETE FROM signal_tombstone WHERE (source, event_id, recipient_id) IN (
    SELECT source, event_id, recipient_id FROM signal_tombstone WHERE deleted_at < $1 ORDER BY deleted_at LIMIT $2
)";

/// The notification tables in SQLite.
pub(super) struct SqliteStore {
    sqlite: Sqlite,
    ids: IdGenerator,
}

impl SqliteStore {
    pub(super) fn new(sqlite: Sqlite, ids: IdGenerator) -> Self {
        Self { sqlite, ids }
    }

    async fn insert(
        &self,
        given: &[NewActivity],
        now: DateTime<Utc>,
    ) -> Result<Vec<Stored>, StoreError> {
        let mut batch = Batch::new(given)?;
        if batch.candidates.is_empty() {
            return Ok(Vec::new());
        }
        let now = milliseconds(now);
        let mut tx = self.sqlite.begin().await?;
        let known = known(&mut tx, given, &batch).await?;
        batch.remove(&known);
        let bases = take_numbers(&mut tx, &batch).await?;
        let rows = batch.number(bases, &self.ids)?;
        for chunk in batch.chunks(&rows) {
            for same in chunk.chunk_by(|a, b| a.activity == b.activity) {
                insert_rows(&mut tx, &given[same[0].activity], same, now).await?;
            }
        }
        tx.commit().await?;
        Ok(batch.stored(&rows, now))
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
        let (inbox, rows) = self.rows(query).await?;
        Ok(sql::page(inbox, rows, limit))
    }

    async fn missed(&self, recipient: &str, after: i64, limit: u32) -> Result<Missed, StoreError> {
        refuse_nul("recipient", recipient)?;
        let (inbox, rows) = self
            .rows(
                sqlx::query(sql::MISSED)
                    .bind(recipient)
                    .bind(after)
                    .bind(sql::one_more(limit)),
            )
            .await?;
        Ok(sql::missed(inbox, rows, limit))
    }

    async fn rows(
        &self,
        query: SqliteQuery<'_>,
    ) -> Result<(InboxState, Vec<Notification>), StoreError> {
        let mut inbox = InboxState::default();
        let mut rows = Vec::new();
        for row in &query.fetch_all(&self.sqlite.read).await? {
            let (state, notification) = sql::read_with_inbox(row, time)?;
            inbox = state;
            rows.extend(notification);
        }
        Ok((inbox, rows))
    }

    async fn get(&self, recipient: &str, id: Id) -> Result<Option<Notification>, StoreError> {
        refuse_nul("recipient", recipient)?;
        let row = sqlx::query(sql::GET)
            .bind(recipient)
            .bind(id.as_str())
            .fetch_optional(&self.sqlite.read)
            .await?;
        Ok(row.as_ref().map(|row| sql::read(row, time)).transpose()?)
    }

    async fn inbox(&self, recipient: &str) -> Result<InboxState, StoreError> {
        refuse_nul("recipient", recipient)?;
        let row = sqlx::query(sql::INBOX)
            .bind(recipient)
            .fetch_optional(&self.sqlite.read)
            .await?;
        Ok(row
            .as_ref()
            .map(sql::read_inbox)
            .transpose()?
            .unwrap_or_default())
    }

    async fn delete(
        &self,
        recipient: &str,
        id: Id,
        now: DateTime<Utc>,
    ) -> Result<Option<InboxState>, StoreError> {
        refuse_nul("recipient", recipient)?;
        let mut tx = self.sqlite.begin().await?;
        let Some(gone) = sqlx::query(DELETE)
            .bind(recipient)
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await?
        else {
            tx.rollback().await?;
            return Ok(None);
        };
        sqlx::query(MARK_DELETED)
            .bind(gone.try_get::<&str, _>("source")?)
            .bind(gone.try_get::<&str, _>("event_id")?)
            .bind(recipient)
            .bind(now.timestamp_millis())
            .execute(&mut *tx)
            .await?;
        let unread = i64::from(time(&gone, "read_at")?.is_none());
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
        which: &NotificationSelector,
        now: DateTime<Utc>,
    ) -> Result<MarkedRead, StoreError> {
        refuse_nul("recipient", recipient)?;
        let read_at = milliseconds(now);
        let mut tx = self.sqlite.begin().await?;
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
        let (select, update) = mark(which);
        let chosen = |query| choose(query, which);
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

    async fn purge(
        &self,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let mut tx = self.sqlite.begin().await?;
        let mut gone = 0;
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
            gone += sqlx::query(PURGE)
                .bind(&ids)
                .execute(&mut *tx)
                .await?
                .rows_affected();
        }
        let query = sqlx::query(PURGE_TOMBSTONES)
            .bind(tombstones_before.timestamp_millis())
            .bind(limit);
        gone += query.execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        Ok(gone)
    }
}

type SqliteQuery<'q> = sqlx::query::Query<'q, Driver, sqlx::sqlite::SqliteArguments>;

fn choose<'q>(
    query: SqliteQuery<'q>,
    which: &NotificationSelector,
) -> Result<SqliteQuery<'q>, StoreError> {
    Ok(match which {
        NotificationSelector::Ids(ids) => query.bind(json(ids)?),
        NotificationSelector::UpTo(seq) => query.bind(*seq),
        NotificationSelector::All => query,
    })
}

async fn known(
    tx: &mut SqliteConnection,
    given: &[NewActivity],
    batch: &Batch<'_>,
) -> Result<FxHashSet<usize>, StoreError> {
    let mut known = FxHashSet::default();
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
                    .map(|place| start + place as usize),
            );
            start += chunk.len();
        }
    }
    Ok(known)
}

async fn take_numbers(
    tx: &mut SqliteConnection,
    batch: &Batch<'_>,
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
        .bind(now.timestamp_millis());
    query.execute(tx).await?;
    Ok(())
}

/// SQLite has no arrays: many values travel as one JSON text.
pub(super) fn json(values: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(values)
        .map_err(|error| StoreError::refused(RefusalClass::Encoding, error))
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
        which: &'a NotificationSelector,
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, MarkedRead> {
        Box::pin(self.mark_read(recipient, which, now))
    }

    fn inbox<'a>(&'a self, recipient: &'a str) -> StoreFuture<'a, InboxState> {
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
                .fetch_one(&self.sqlite.read)
                .await?)
        })
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async {
            sqlx::query("SELECT 1").execute(&self.sqlite.read).await?;
            Ok(())
        })
    }
}

//! Notifications in PostgreSQL.
//!
//! Input: the trait's questions. Output: one transaction each, of few statements whatever the size of a batch.
//! [`Postgres`] is the pool that both stores share; [`super::open`] replaces the one inside when the URL's file changes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use rustc_hash::FxHashSet;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{Connection, Row as _};

use super::batch::{Base, Batch, CHUNK_ROWS, Row, milliseconds};
use super::error::refuse_nul;
use super::migrate::VERSION;
use super::{
    Filter, MAX_READ_IDS, MarkedRead, Missed, NotificationSelector, NotificationStore, Page,
    StoreError, StoreFuture, Stored, sql,
};
use crate::config;
use crate::id::{Id, IdGenerator};
use crate::notification::{InboxState, NewActivity, Notification};

/// Beyond the server's own limit of a statement: after this much more the connection is taken for dead.
const GRACE: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is tried before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// The advisory lock of whoever purges.
const PURGE_LOCK: i64 = i64::from_be_bytes(*b"sigpurge");

/// A pool that can be replaced while it is in use.
pub(super) struct Postgres {
    pool: ArcSwap<PgPool>,
    statement_limit: Duration,
}

impl Postgres {
    /// Connects at the first question.
    pub(super) fn new(options: PgConnectOptions, database: &config::Database) -> Arc<Self> {
        Arc::new(Self {
            pool: ArcSwap::from_pointee(pool(options, database)),
            statement_limit: Duration::from_millis(database.statement_timeout_ms) + GRACE,
        })
    }

    /// Puts a pool in place of the present one, which is closed once nobody uses it any more.
    pub(super) fn replace(&self, pool: PgPool) {
        let old = self.pool.swap(Arc::new(pool));
        tokio::spawn(async move { old.close().await });
    }

    /// Waits until nobody uses the pool, and closes it.
    pub(super) async fn close(&self) {
        self.pool.load_full().close().await;
    }

    /// Takes a connection out of the pool.
    pub(super) async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>, StoreError> {
        let pool = self.pool.load_full();
        match pool.acquire().await {
            // It was replaced in between.
            Err(sqlx::Error::PoolClosed) if !Arc::ptr_eq(&pool, &self.pool.load()) => {
                Ok(self.pool.load_full().acquire().await?)
            }
            other => Ok(other?),
        }
    }

    /// Bounds the wait for one answer. A server that vanished with its network never sends one.
    pub(super) async fn step<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        match tokio::time::timeout(self.statement_limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "no answer to a statement",
            ))),
        }
    }

    /// Gives a connection back, or away if it may be in the middle of something.
    pub(super) fn done<T>(
        &self,
        mut connection: PoolConnection<sqlx::Postgres>,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if result.as_ref().is_err_and(StoreError::breaks_connection) {
            connection.close_on_drop();
        }
        result
    }
}

/// A pool whose statements are bounded on the server too.
pub(super) fn pool(options: PgConnectOptions, database: &config::Database) -> PgPool {
    let statement_ms = database.statement_timeout_ms;
    PgPoolOptions::new()
        .max_connections(database.max_connections)
        .acquire_timeout(Duration::from_millis(database.acquire_timeout_ms))
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED_IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _| {
            Box::pin(async move {
                // Set here and not as start-up options, which poolers refuse. A transaction whose gateway vanished gives its locks back. Every
                // statement on our own tables has its index: a plan made while they were small would read them whole, and would be kept while they
                // grow, until the server next counts their rows. The platform's tables are read as they can be, and not compiled for at length.
                sqlx::query(
                    "SELECT set_config('statement_timeout', $1, false), set_config('idle_in_transaction_session_timeout', $1, false),
                        set_config('default_transaction_isolation', 'read committed', false),
                        set_config('enable_seqscan', 'off', false), set_config('jit', 'off', false)",
                )
                .bind(format!("{statement_ms}ms"))
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .connect_lazy_with(options.application_name("signal-gateway"))
}

/// Most rows of [`INSERT_PLAIN`]: beyond, four round trips more are nothing to what the rows cost.
const PLAIN_ROWS: usize = 128;

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// `$1` recipients in order, `$2` how many rows each may get. Creates and locks the state rows, one after the other.
const TAKE_NUMBERS: &str = r#"
INSERT INTO signal_inbox AS s (recipient_id, last_seq, unread_count, version)
SELECT t.recipient_id, t.n, t.n, t.n FROM unnest($1::text[], $2::int8[]) AS t(recipient_id, n) ORDER BY t.recipient_id COLLATE "C"
ON CONFLICT (recipient_id) DO UPDATE SET
    last_seq = s.last_seq + excluded.last_seq,
    unread_count = s.unread_count + excluded.unread_count,
    version = s.version + excluded.version
RETURNING recipient_id, last_seq, unread_count, version"#;

/// `$1` recipients, `$2` how many numbers they give back. The rows are locked already.
const RETURN_NUMBERS: &str = r"
UPDATE signal_inbox s SET last_seq = s.last_seq - t.n, unread_count = s.unread_count - t.n, version = s.version - t.n
FROM unnest($1::text[], $2::int8[]) AS t(recipient_id, n) WHERE s.recipient_id = t.recipient_id";

/// Whether a pair of an event `e` and a candidate `c` has a row or a tombstone: two look-ups, which the server cannot turn into a join that reads a
/// whole table.
macro_rules! is_known {
    () => {
        "((SELECT 1 FROM signal_notification n WHERE n.source = e.source AND n.event_id = e.event_id AND n.recipient_id = c.recipient_id LIMIT 1) IS NOT NULL
    OR (SELECT 1 FROM signal_tombstone t WHERE t.source = e.source AND t.event_id = e.event_id AND t.recipient_id = c.recipient_id LIMIT 1) IS NOT NULL)"
    };
}

/// `$1` places, `$2` recipients, `$3` which event (from 1), `$4` sources, `$5` event ids. The places of what is known.
const KNOWN: &str = concat!(
    "SELECT c.place FROM unnest($1::int8[], $2::text[], $3::int8[]) AS c(place, recipient_id, event)
JOIN unnest($4::text[], $5::text[]) WITH ORDINALITY AS e(source, event_id, event) ON e.event = c.event
WHERE ",
    is_known!()
);

/// `$1` which activity (from 1), `$2` ids, `$3` recipients, `$4` seqs; `$5` to `$14` the texts of the activities; `$15` when. The seqs count from
/// an expression, which may use another table.
macro_rules! insert {
    ($from:literal, $other:literal) => {
        concat!(
            "INSERT INTO signal_notification
    (id, recipient_id, seq, source, event_id, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, created_at)
SELECT r.id, r.recipient_id, ",
            $from,
            " + r.seq, a.source, a.event_id, a.kind, a.title, a.content, a.locale, a.data, a.actor_id, a.organizer_id, a.merchant_id, $15
FROM unnest($1::int8[], $2::text[], $3::text[], $4::int8[]) AS r(activity, id, recipient_id, seq)
JOIN unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[])
    WITH ORDINALITY AS a(source, event_id, kind, title, content, locale, data, actor_id, organizer_id, merchant_id, activity)
    ON a.activity = r.activity",
            $other
        )
    };
}

const INSERT: &str = insert!("0", "");

/// A small batch in one statement, if all of it is new and nobody is in the way; else nothing happens, and the answer is empty. Seqs count from
/// the inbox; `$16` recipients in order, `$17` how many rows each gets. The answer is each inbox as it is then.
///
/// What the statement sees is as it was before it had its locks. It holds if no inbox has another version by then, since every change of rows or
/// tombstones is one of their inbox's version; and an inbox that is not there yet is made by [`TAKE_NUMBERS`].
const INSERT_PLAIN: &str = concat!(
    "WITH locked AS MATERIALIZED (
    SELECT recipient_id, version FROM signal_inbox WHERE recipient_id = ANY($16) ORDER BY recipient_id FOR UPDATE
), plain AS MATERIALIZED (
    SELECT cardinality($16) = (
        SELECT count(*) FROM locked l WHERE l.version = (SELECT s.version FROM signal_inbox s WHERE s.recipient_id = l.recipient_id)
    ) AND NOT EXISTS (
        SELECT FROM unnest($1::int8[], $3::text[]) AS c(activity, recipient_id)
        JOIN unnest($5::text[], $6::text[]) WITH ORDINALITY AS e(source, event_id, activity) ON e.activity = c.activity WHERE ",
    is_known!(),
    "
    ) AS so
), taken AS (
    UPDATE signal_inbox s SET last_seq = s.last_seq + t.n, unread_count = s.unread_count + t.n, version = s.version + t.n
    FROM unnest($16::text[], $17::int8[]) AS t(recipient_id, n)
    WHERE s.recipient_id = ANY($16) AND s.recipient_id = t.recipient_id AND (SELECT so FROM plain)
    RETURNING s.recipient_id, s.last_seq, s.unread_count, s.version, t.n
), stored AS (",
    insert!("t.last_seq - t.n", " JOIN taken t ON t.recipient_id = r.recipient_id"),
    ") SELECT recipient_id, last_seq, unread_count, version FROM taken"
);

/// `$1` recipient.
const LOCK: &str =
    "SELECT unread_count, version FROM signal_inbox WHERE recipient_id = $1 FOR UPDATE";

/// `$1` recipient, `$2` id, `$3` when. The state row is locked already.
const DELETE: &str = r"
WITH gone AS (
    DELETE FROM signal_notification WHERE recipient_id = $1 AND id = $2 RETURNING source, event_id, recipient_id, read_at
), mark AS (
    INSERT INTO signal_tombstone (source, event_id, recipient_id, deleted_at) SELECT source, event_id, recipient_id, $3 FROM gone
    ON CONFLICT (source, event_id, recipient_id) DO UPDATE SET deleted_at = excluded.deleted_at
)
UPDATE signal_inbox s SET unread_count = s.unread_count - CASE WHEN gone.read_at IS NULL THEN 1 ELSE 0 END, version = s.version + 1
FROM gone WHERE s.recipient_id = gone.recipient_id RETURNING s.unread_count, s.version";

/// `$1` recipient, `$2` when, `$3` most ids, `$4` which.
fn mark(which: &NotificationSelector) -> &'static str {
    macro_rules! mark {
        ($which:literal) => {
            concat!(
                "WITH changed AS (UPDATE signal_notification SET read_at = $2 WHERE recipient_id = $1 AND read_at IS NULL",
                $which,
                " RETURNING id, seq) SELECT id, (SELECT count(*) FROM changed) AS total FROM changed ORDER BY seq DESC LIMIT $3"
            )
        };
    }
    match which {
        NotificationSelector::Ids(_) => mark!(" AND id = ANY($4)"),
        NotificationSelector::UpTo(_) => mark!(" AND seq <= $4"),
        NotificationSelector::All => mark!(""),
    }
}

/// `$1` recipient, `$2` how many became read.
const MARKED: &str = "UPDATE signal_inbox SET unread_count = unread_count - $2, version = version + 1 WHERE recipient_id = $1 RETURNING unread_count, version";

/// `$1` created before, `$2` at most.
const OLD: &str = "SELECT id, recipient_id FROM signal_notification WHERE created_at < $1 ORDER BY created_at LIMIT $2";

/// `$1` recipients. In order, as everywhere.
const LOCK_MANY: &str = "SELECT recipient_id FROM signal_inbox WHERE recipient_id = ANY($1) ORDER BY recipient_id FOR UPDATE";

/// `$1` ids, `$2` tombstones are left for what was created since.
const PURGE: &str = r"
WITH gone AS (
    DELETE FROM signal_notification WHERE id = ANY($1) RETURNING source, event_id, recipient_id, read_at, created_at
), mark AS (
    INSERT INTO signal_tombstone (source, event_id, recipient_id, deleted_at)
    SELECT source, event_id, recipient_id, created_at FROM gone WHERE created_at >= $2
    ON CONFLICT (source, event_id, recipient_id) DO NOTHING
), per AS (
    SELECT recipient_id, count(*) AS n, count(*) FILTER (WHERE read_at IS NULL) AS unread FROM gone GROUP BY recipient_id
), adjusted AS (
    UPDATE signal_inbox s SET unread_count = s.unread_count - per.unread, version = s.version + 1 FROM per WHERE s.recipient_id = per.recipient_id
)
SELECT coalesce(sum(n), 0)::int8 FROM per";

/// `$1` left before, `$2` at most. What a deletion holds is left for the next round.
const PURGE_TOMBSTONES: &str = r"
DELETE FROM signal_tombstone WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM signal_tombstone WHERE deleted_at < $1 ORDER BY deleted_at LIMIT $2 FOR UPDATE SKIP LOCKED
))";

/// The notification tables in PostgreSQL.
pub(super) struct PostgresStore {
    postgres: Arc<Postgres>,
    ids: IdGenerator,
}

impl PostgresStore {
    pub(super) fn new(postgres: Arc<Postgres>, ids: IdGenerator) -> Self {
        Self { postgres, ids }
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
        let mut connection = self.postgres.acquire().await?;
        let result = self
            .insert_batch(&mut connection, given, &mut batch, now)
            .await;
        let rows = self.postgres.done(connection, result)?;
        Ok(batch.stored(&rows, now))
    }

    /// All in one statement, if it can be.
    async fn insert_plain<'a>(
        &self,
        connection: &mut PgConnection,
        given: &[NewActivity],
        batch: &Batch<'a>,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<Row<'a>>>, StoreError> {
        let counts = batch.counts();
        let mut rows = batch.number(vec![Base::default(); counts.len()], &self.ids)?;
        let query = bind_rows(sqlx::query(INSERT_PLAIN), given, &rows, now)
            .bind(&batch.recipients)
            .bind(&counts);
        let answer = self.postgres.step(query.fetch_all(connection)).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        let mut bases = vec![Base::default(); counts.len()];
        read_bases(&answer, batch, &counts, &mut bases)?;
        batch.renumber(&mut rows, &bases);
        Ok(Some(rows))
    }

    /// Plainly if it can be. Else numbers are taken for every candidate, which locks the state rows; only then is it certain which candidates are
    /// known already, and their numbers go back.
    async fn insert_batch<'a>(
        &self,
        connection: &mut PgConnection,
        given: &[NewActivity],
        batch: &mut Batch<'a>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Row<'a>>, StoreError> {
        if batch.candidates.len() <= PLAIN_ROWS
            && let Some(rows) = self.insert_plain(connection, given, batch, now).await?
        {
            return Ok(rows);
        }
        let mut tx = self.postgres.step(connection.begin_with(BEGIN)).await?;
        let bases = self.take_numbers(&mut tx, batch).await?;
        let known = self.known(&mut tx, given, batch).await?;
        if !known.is_empty() {
            self.return_numbers(&mut tx, batch, &known).await?;
            batch.remove(&known);
        }
        let rows = batch.number(bases, &self.ids)?;
        for chunk in batch.chunks(&rows) {
            self.insert_rows(&mut tx, given, chunk, now).await?;
        }
        self.postgres.step(tx.commit()).await?;
        Ok(rows)
    }

    async fn take_numbers(
        &self,
        tx: &mut PgConnection,
        batch: &Batch<'_>,
    ) -> Result<Vec<Base>, StoreError> {
        let counts = batch.counts();
        let mut bases = vec![Base::default(); counts.len()];
        for start in (0..counts.len()).step_by(CHUNK_ROWS) {
            let end = counts.len().min(start + CHUNK_ROWS);
            let query = sqlx::query(TAKE_NUMBERS)
                .bind(&batch.recipients[start..end])
                .bind(&counts[start..end]);
            read_bases(
                &self.postgres.step(query.fetch_all(&mut *tx)).await?,
                batch,
                &counts,
                &mut bases,
            )?;
        }
        Ok(bases)
    }

    async fn return_numbers(
        &self,
        tx: &mut PgConnection,
        batch: &Batch<'_>,
        known: &FxHashSet<usize>,
    ) -> Result<(), StoreError> {
        let mut counts = vec![0; batch.recipients.len()];
        for place in known {
            counts[batch.candidates[*place].recipient] += 1;
        }
        let (recipients, counts): (Vec<&str>, Vec<i64>) = batch
            .recipients
            .iter()
            .zip(counts)
            .filter(|(_, n)| *n > 0)
            .unzip();
        for (recipients, counts) in recipients.chunks(CHUNK_ROWS).zip(counts.chunks(CHUNK_ROWS)) {
            self.postgres
                .step(
                    sqlx::query(RETURN_NUMBERS)
                        .bind(recipients)
                        .bind(counts)
                        .execute(&mut *tx),
                )
                .await?;
        }
        Ok(())
    }

    async fn known(
        &self,
        tx: &mut PgConnection,
        given: &[NewActivity],
        batch: &Batch<'_>,
    ) -> Result<FxHashSet<usize>, StoreError> {
        let mut known = FxHashSet::default();
        for (chunk_at, chunk) in batch.candidates.chunks(CHUNK_ROWS).enumerate() {
            let places: Vec<i64> = (0..chunk.len())
                .map(|at| (chunk_at * CHUNK_ROWS + at) as i64)
                .collect();
            let recipients: Vec<&str> = chunk
                .iter()
                .map(|c| batch.recipients[c.recipient])
                .collect();
            let (event, events) = numbered(chunk.iter().map(|c| c.activity));
            let sources: Vec<&str> = events.iter().map(|at| given[*at].source.as_str()).collect();
            let event_ids: Vec<&str> = events
                .iter()
                .map(|at| given[*at].event_id.as_str())
                .collect();
            let query = sqlx::query_scalar::<_, i64>(KNOWN)
                .bind(places)
                .bind(recipients)
                .bind(event)
                .bind(sources)
                .bind(event_ids);
            known.extend(
                self.postgres
                    .step(query.fetch_all(&mut *tx))
                    .await?
                    .into_iter()
                    .map(|place| place as usize),
            );
        }
        Ok(known)
    }

    async fn insert_rows(
        &self,
        tx: &mut PgConnection,
        given: &[NewActivity],
        rows: &[Row<'_>],
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        self.postgres
            .step(bind_rows(sqlx::query(INSERT), given, rows, now).execute(tx))
            .await?;
        Ok(())
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
        query: PgQuery<'_>,
    ) -> Result<(InboxState, Vec<Notification>), StoreError> {
        let mut connection = self.postgres.acquire().await?;
        let result = self
            .postgres
            .step(query.fetch_all(&mut *connection))
            .await
            .map_err(StoreError::from);
        let mut inbox = InboxState::default();
        let mut rows = Vec::new();
        for row in &self.postgres.done(connection, result)? {
            let (state, notification) = sql::read_with_inbox(row, time)?;
            inbox = state;
            rows.extend(notification);
        }
        Ok((inbox, rows))
    }

    async fn one(&self, query: PgQuery<'_>) -> Result<Option<PgRow>, StoreError> {
        let mut connection = self.postgres.acquire().await?;
        let result = self
            .postgres
            .step(query.fetch_optional(&mut *connection))
            .await
            .map_err(StoreError::from);
        self.postgres.done(connection, result)
    }

    async fn get(&self, recipient: &str, id: Id) -> Result<Option<Notification>, StoreError> {
        refuse_nul("recipient", recipient)?;
        let row = self
            .one(sqlx::query(sql::GET).bind(recipient).bind(id.as_str()))
            .await?;
        Ok(row.as_ref().map(|row| sql::read(row, time)).transpose()?)
    }

    async fn inbox(&self, recipient: &str) -> Result<InboxState, StoreError> {
        refuse_nul("recipient", recipient)?;
        let row = self.one(sqlx::query(sql::INBOX).bind(recipient)).await?;
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
        let mut connection = self.postgres.acquire().await?;
        let result = self
            .delete_one(&mut connection, recipient, id, milliseconds(now))
            .await;
        self.postgres
            .done(connection, result.map_err(StoreError::from))
    }

    async fn delete_one(
        &self,
        connection: &mut PgConnection,
        recipient: &str,
        id: Id,
        now: DateTime<Utc>,
    ) -> Result<Option<InboxState>, sqlx::Error> {
        let mut tx = self.postgres.step(connection.begin_with(BEGIN)).await?;
        self.postgres
            .step(sqlx::query(LOCK).bind(recipient).fetch_optional(&mut *tx))
            .await?;
        let query = sqlx::query(DELETE)
            .bind(recipient)
            .bind(id.as_str())
            .bind(now);
        let row = self.postgres.step(query.fetch_optional(&mut *tx)).await?;
        self.postgres.step(tx.commit()).await?;
        row.as_ref().map(sql::read_inbox).transpose()
    }

    async fn mark_read(
        &self,
        recipient: &str,
        which: &NotificationSelector,
        now: DateTime<Utc>,
    ) -> Result<MarkedRead, StoreError> {
        refuse_nul("recipient", recipient)?;
        let mut connection = self.postgres.acquire().await?;
        let result = self
            .mark(&mut connection, recipient, which, milliseconds(now))
            .await;
        self.postgres
            .done(connection, result.map_err(StoreError::from))
    }

    async fn mark(
        &self,
        connection: &mut PgConnection,
        recipient: &str,
        which: &NotificationSelector,
        read_at: DateTime<Utc>,
    ) -> Result<MarkedRead, sqlx::Error> {
        let mut tx = self.postgres.step(connection.begin_with(BEGIN)).await?;
        let mut read = MarkedRead {
            ids: Vec::new(),
            total: 0,
            read_at,
            inbox: InboxState::default(),
        };
        if let Some(state) = self
            .postgres
            .step(sqlx::query(LOCK).bind(recipient).fetch_optional(&mut *tx))
            .await?
        {
            read.inbox = sql::read_inbox(&state)?;
            let mut query = sqlx::query(mark(which))
                .bind(recipient)
                .bind(read_at)
                .bind(MAX_READ_IDS as i64);
            query = match which {
                NotificationSelector::Ids(ids) => {
                    query.bind(ids.iter().map(Id::as_str).collect::<Vec<_>>())
                }
                NotificationSelector::UpTo(seq) => query.bind(*seq),
                NotificationSelector::All => query,
            };
            for row in self.postgres.step(query.fetch_all(&mut *tx)).await? {
                read.ids.push(sql::read_id(&row)?);
                read.total = row.try_get::<i64, _>("total")? as u64;
            }
        }
        if read.total > 0 {
            let query = sqlx::query(MARKED).bind(recipient).bind(read.total as i64);
            read.inbox = sql::read_inbox(&self.postgres.step(query.fetch_one(&mut *tx)).await?)?;
        }
        self.postgres.step(tx.commit()).await?;
        Ok(read)
    }

    async fn purge(
        &self,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let mut connection = self.postgres.acquire().await?;
        let (before, tombstones_before) =
            (before.map(milliseconds), milliseconds(tombstones_before));
        let result = self
            .purge_some(&mut connection, before, tombstones_before, i64::from(limit))
            .await;
        self.postgres
            .done(connection, result.map_err(StoreError::from))
    }

    async fn purge_some(
        &self,
        connection: &mut PgConnection,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: i64,
    ) -> Result<u64, sqlx::Error> {
        let mut tx = self.postgres.step(connection.begin_with(BEGIN)).await?;
        let alone =
            sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_xact_lock($1)").bind(PURGE_LOCK);
        if !self.postgres.step(alone.fetch_one(&mut *tx)).await? {
            self.postgres.step(tx.rollback()).await?;
            return Ok(0);
        }
        let mut gone = 0;
        if let Some(before) = before {
            let old = self
                .postgres
                .step(
                    sqlx::query_as::<_, (String, String)>(OLD)
                        .bind(before)
                        .bind(limit)
                        .fetch_all(&mut *tx),
                )
                .await?;
            let (ids, recipients): (Vec<String>, Vec<String>) = old.into_iter().unzip();
            if !ids.is_empty() {
                self.postgres
                    .step(sqlx::query(LOCK_MANY).bind(recipients).execute(&mut *tx))
                    .await?;
                let query = sqlx::query_scalar::<_, i64>(PURGE)
                    .bind(ids)
                    .bind(tombstones_before);
                gone += self.postgres.step(query.fetch_one(&mut *tx)).await? as u64;
            }
        }
        let query = sqlx::query(PURGE_TOMBSTONES)
            .bind(tombstones_before)
            .bind(limit);
        gone += self
            .postgres
            .step(query.execute(&mut *tx))
            .await?
            .rows_affected();
        self.postgres.step(tx.commit()).await?;
        Ok(gone)
    }
}

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn time(row: &PgRow, column: &'static str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    row.try_get(column)
}

/// Reads what inboxes were before `counts` were added to them, into the places of their recipients.
fn read_bases(
    answer: &[PgRow],
    batch: &Batch<'_>,
    counts: &[i64],
    bases: &mut [Base],
) -> Result<(), sqlx::Error> {
    for row in answer {
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
    Ok(())
}

/// Binds `$1` to `$15` of [`INSERT`].
fn bind_rows<'q>(
    query: PgQuery<'q>,
    given: &'q [NewActivity],
    rows: &[Row<'q>],
    now: DateTime<Utc>,
) -> PgQuery<'q> {
    let (activity, activities) = numbered(rows.iter().map(|r| r.activity));
    let text = |of: fn(&NewActivity) -> &str| -> Vec<&str> {
        activities.iter().map(|at| of(&given[*at])).collect()
    };
    let optional = |of: fn(&NewActivity) -> &Option<String>| -> Vec<Option<&str>> {
        activities
            .iter()
            .map(|at| of(&given[*at]).as_deref())
            .collect()
    };
    query
        .bind(activity)
        .bind(rows.iter().map(|r| r.id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.recipient).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.seq).collect::<Vec<_>>())
        .bind(text(|a| &a.source))
        .bind(text(|a| &a.event_id))
        .bind(text(|a| &a.kind))
        .bind(text(|a| &a.title))
        .bind(text(|a| &a.content))
        .bind(text(|a| &a.locale))
        .bind(text(|a| a.data.get()))
        .bind(optional(|a| &a.actor_id))
        .bind(optional(|a| &a.organizer_id))
        .bind(optional(|a| &a.merchant_id))
        .bind(now)
}

/// Numbers what repeats from 1 on in the order of its first appearance: the number of each, and what each number stands for.
fn numbered(of: impl Iterator<Item = usize>) -> (Vec<i64>, Vec<usize>) {
    let mut known = rustc_hash::FxHashMap::default();
    let mut distinct = Vec::new();
    let numbers = of
        .map(|it| {
            *known.entry(it).or_insert_with(|| {
                distinct.push(it);
                distinct.len() as i64
            })
        })
        .collect();
    (numbers, distinct)
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
            let row = self.one(sqlx::query(VERSION)).await?;
            Ok(row
                .as_ref()
                .map(|row| row.try_get(0))
                .transpose()?
                .flatten())
        })
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { self.one(sqlx::query("SELECT 1")).await.map(drop) })
    }
}

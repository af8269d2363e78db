//! The pool that both stores share, how a session is used, and when a connection leaves the pool.
//!
//! Input: the servers of a URL and `[database]`. Output: sessions. [`super::super::open`] replaces the pool when the content of the URL's file changes.
//!
//! A session that is kept has its settings from its first moment, and its statements stay prepared. Behind a pooler every transaction may be on another
//! session: each one begins with its settings in the same round trip, and prepares without a name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sqlx::pool::{PoolConnection, PoolConnectionMetadata};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _, Transaction};
use tokio::sync::{Notify, OnceCell, Semaphore};

use super::PgQuery;
use super::servers::{Server, Servers, Unfit};
use crate::config;
use crate::store::StoreError;

/// Added to the server's own limit of a statement: after that the connection counts as broken.
const GRACE: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is tried before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// A connection that was idle answers within this time, or the server is gone.
const ANSWER: Duration = Duration::from_secs(2);
/// A connection ends at this age, so that a server which changed its part without a word is noticed.
const LIFETIME: Duration = Duration::from_secs(180);
/// Who waits this long for a connection looks at the other hosts.
const LOOK_ELSEWHERE: Duration = Duration::from_millis(500);

/// Whether the server takes writes. It reads a table of ours as well: a server may answer everything but that.
const PING: &str = "SELECT current_setting('transaction_read_only') = 'on' AS read_only, (SELECT version FROM signal_inbox WHERE recipient_id = '') AS version";

/// A pool that can be replaced while it is in use.
pub(in crate::store) struct PostgresPool {
    opened: ArcSwap<Opened>,
}

/// The pool of one URL.
pub(in crate::store) struct Opened {
    pool: PgPool,
    upstream: Arc<Upstream>,
}

/// What a pool and the hooks of its connections know together.
struct Upstream {
    servers: Servers,
    acquire_limit: Duration,
    statement_ms: u64,
    /// Set once a server was found.
    found: OnceCell<()>,
    /// The server that new connections lead to.
    server: Mutex<Option<Server>>,
    /// How often somebody looked at the hosts.
    looks: AtomicU64,
    is_pooled: AtomicBool,
    /// Whether the last connection was given up because it takes no writes.
    is_read_only: AtomicBool,
    began: Instant,
    /// Connections made before this many milliseconds since `began` are not used again.
    distrusted_ms: AtomicU64,
    /// Told when a new connection was not what it should be.
    lost: Notify,
    /// One look at the hosts at a time.
    looking: Semaphore,
}

/// A connection in use.
pub(in crate::store) struct Session {
    connection: PoolConnection<sqlx::Postgres>,
    upstream: Arc<Upstream>,
    is_pooled: bool,
}

/// A transaction of a session. Dropped, it is undone.
pub(in crate::store) struct Tx<'s> {
    tx: Transaction<'s, sqlx::Postgres>,
    limit: Duration,
    is_pooled: bool,
}

impl PostgresPool {
    /// Connects with the first statement.
    pub(in crate::store) fn new(servers: Servers, database: &config::Database) -> Arc<Self> {
        Arc::new(Self {
            opened: ArcSwap::from_pointee(Opened::new(servers, database)),
        })
    }

    /// Replaces the current pool, which is closed once it is not used any more.
    pub(in crate::store) fn replace(&self, opened: Opened) {
        let old = self.opened.swap(Arc::new(opened));
        tokio::spawn(async move { old.pool.close().await });
    }

    /// Waits until the pool is not used, and closes it.
    pub(in crate::store) async fn close(&self) {
        self.opened.load_full().pool.close().await;
    }

    /// Takes a connection out of the pool.
    pub(in crate::store) async fn acquire(&self) -> Result<Session, StoreError> {
        let opened = self.opened.load_full();
        match opened.acquire().await {
            // It was replaced in between.
            Err(sqlx::Error::PoolClosed) if !Arc::ptr_eq(&opened, &self.opened.load()) => {
                Ok(self.opened.load_full().acquire().await?)
            }
            other => Ok(other?),
        }
    }

    /// Answers when the server does and takes writes where they are needed. A connection that was lost without a word is closed, so that the next
    /// question takes another.
    pub(in crate::store) async fn ping(&self) -> Result<(), StoreError> {
        let mut session = self.acquire().await?;
        let writes = session.upstream.servers.take_writes();
        let ping = if writes { PING } else { "SELECT 1" };
        let rows = bounded(ANSWER, session.all(sqlx::query(ping))).await;
        let answer = rows.and_then(|rows| match rows.first() {
            Some(row) if writes && row.try_get("read_only")? => Err(Unfit::ReadOnly.into()),
            _ => Ok(()),
        });
        session.done(answer.map_err(StoreError::from))
    }

    /// Asks one statement, in a transaction of its own.
    pub(in crate::store) async fn all(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>, StoreError> {
        let mut session = self.acquire().await?;
        let rows = session.all(query).await;
        session.done(rows.map_err(StoreError::from))
    }
}

impl Opened {
    pub(in crate::store) fn new(servers: Servers, database: &config::Database) -> Self {
        let options = servers.options(None);
        let upstream = Arc::new(Upstream {
            servers,
            acquire_limit: Duration::from_millis(database.acquire_timeout_ms),
            statement_ms: database.statement_timeout_ms,
            found: OnceCell::new(),
            server: Mutex::new(None),
            looks: AtomicU64::new(0),
            is_pooled: AtomicBool::new(false),
            is_read_only: AtomicBool::new(false),
            began: Instant::now(),
            distrusted_ms: AtomicU64::new(0),
            lost: Notify::new(),
            looking: Semaphore::new(1),
        });
        let (made, taken) = (Arc::clone(&upstream), Arc::clone(&upstream));
        let pool = PgPoolOptions::new()
            .max_connections(database.max_connections)
            .acquire_timeout(upstream.acquire_limit)
            .max_lifetime(LIFETIME)
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let upstream = Arc::clone(&taken);
                Box::pin(async move { upstream.is_usable(connection, meta).await })
            })
            .after_connect(move |connection, _| {
                let upstream = Arc::clone(&made);
                Box::pin(async move { upstream.prepare(connection).await })
            })
            .connect_lazy_with(options);
        Self { pool, upstream }
    }

    /// Takes a connection out of the pool, from whichever host is fit.
    pub(in crate::store) async fn acquire(&self) -> Result<Session, sqlx::Error> {
        let upstream = &self.upstream;
        let connection = tokio::time::timeout(upstream.acquire_limit, self.connection()).await;
        match connection.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(connection) => Ok(Session {
                connection,
                upstream: Arc::clone(upstream),
                is_pooled: upstream.is_pooled.load(Ordering::Acquire),
            }),
            Err(sqlx::Error::PoolTimedOut) if upstream.is_read_only.load(Ordering::Relaxed) => {
                Err(Unfit::ReadOnly.into())
            }
            Err(error) => Err(error),
        }
    }

    async fn connection(&self) -> Result<PoolConnection<sqlx::Postgres>, sqlx::Error> {
        let upstream = &self.upstream;
        upstream.found.get_or_try_init(|| self.look()).await?;
        let mut may_look = upstream.servers.are_several();
        loop {
            let looks = upstream.looks.load(Ordering::Relaxed);
            let connection = tokio::select! {
                biased;
                connection = self.pool.acquire() => connection,
                // What leads to the server before is given up.
                () = self.moved() => continue,
            };
            match connection {
                // The name of its host is gone, or its network: another host may answer.
                Err(error) if may_look && !is_of_the_pool(&error) => {
                    may_look = false;
                    self.look_after(looks).await;
                }
                other => return other,
            }
        }
    }

    /// Looks at the hosts again for as long as somebody waits for a connection that does not come, until the pool leads to another server.
    async fn moved(&self) {
        let upstream = &self.upstream;
        let before = *upstream.server.lock();
        while *upstream.server.lock() == before {
            let looks = upstream.looks.load(Ordering::Relaxed);
            let is_due = tokio::select! {
                () = upstream.lost.notified() => true,
                () = tokio::time::sleep(LOOK_ELSEWHERE) => upstream.servers.are_several(),
            };
            if is_due {
                self.look_after(looks).await;
            }
        }
    }

    /// Looks at the hosts, unless somebody else did meanwhile. One looks at a time, however many wait.
    async fn look_after(&self, looks: u64) {
        let _one = self.upstream.looking.acquire().await;
        if self.upstream.looks.load(Ordering::Relaxed) == looks
            && let Err(error) = self.look().await
        {
            tracing::debug!(%error, "no server of the URL is fit");
        }
    }

    /// Points the pool to the first server that is fit.
    async fn look(&self) -> Result<(), sqlx::Error> {
        let upstream = &self.upstream;
        let found = upstream.servers.find(upstream.acquire_limit).await;
        upstream.looks.fetch_add(1, Ordering::Relaxed);
        let mut server = found?;
        // Once a pooler, always one: sessions that it gave out may still be in the pool.
        server.is_pooled |= upstream.is_pooled.load(Ordering::Acquire);
        upstream
            .is_pooled
            .store(server.is_pooled, Ordering::Release);
        self.pool
            .set_connect_options(upstream.servers.options(Some(server)));
        *upstream.server.lock() = Some(server);
        Ok(())
    }
}

/// Whether the pool itself says so: nobody was asked for a connection, or it takes too long.
fn is_of_the_pool(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed
    )
}

impl Upstream {
    fn limit(&self) -> Duration {
        Duration::from_millis(self.statement_ms) + GRACE
    }

    /// Nothing that is connected is used again: the server behind it is gone, or is not the one that takes writes.
    fn distrust(&self) {
        let now = self.began.elapsed().as_millis() as u64;
        self.distrusted_ms.fetch_max(now, Ordering::Relaxed);
    }

    /// Whether a connection that was idle may be used.
    async fn is_usable(
        &self,
        connection: &mut PgConnection,
        meta: PoolConnectionMetadata,
    ) -> Result<bool, sqlx::Error> {
        let made_ms = self.began.elapsed().saturating_sub(meta.age).as_millis() as u64;
        let distrusted_ms = self.distrusted_ms.load(Ordering::Relaxed);
        if distrusted_ms > 0 && made_ms <= distrusted_ms {
            return Ok(false);
        }
        if meta.idle_for <= TRUSTED_IDLE {
            return Ok(true);
        }
        let answer = async {
            if self.servers.take_writes() {
                is_read_only(connection).await
            } else {
                connection.ping().await.map(|()| false)
            }
        };
        match bounded(ANSWER, answer).await {
            Ok(false) => Ok(true),
            // The others are as old as this one.
            Ok(true) => {
                self.distrust();
                Ok(false)
            }
            Err(error) => {
                self.distrust();
                Err(error)
            }
        }
    }

    /// Gives a new connection its settings, and refuses one that is not fit.
    async fn prepare(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let read_only = if self.is_pooled.load(Ordering::Acquire) {
            self.servers.take_writes() && is_read_only(connection).await?
        } else {
            let statement = format!(
                "SELECT {}, set_config('default_transaction_isolation', 'read committed', false),
                    coalesce(current_setting('signal.session', true), '') AS mark, current_setting('transaction_read_only') AS read_only",
                self.settings(false)
            );
            let row = connection.fetch_one(AssertSqlSafe(statement)).await?;
            if row.try_get::<&str, _>("mark")?.is_empty() {
                self.lost.notify_one();
                return Err(Unfit::Pooled.into());
            }
            self.servers.take_writes() && row.try_get::<&str, _>("read_only")? == "on"
        };
        self.is_read_only.store(read_only, Ordering::Relaxed);
        if read_only {
            self.lost.notify_one();
            return Err(Unfit::ReadOnly.into());
        }
        Ok(())
    }

    /// What every transaction needs, for the session or for one transaction alone.
    ///
    /// Set here and not as start-up options, which poolers refuse. A transaction whose gateway vanished gives its locks back. Every statement on our own
    /// tables has its index: a plan made while they were small would read them whole, and would be kept while they grow, until the server next counts
    /// their rows. The platform's tables are read as they can be, and not compiled for at length. A role or a server that confirms commits before
    /// they are on disk is overruled, because the offset of a record is committed after its row; one that waits for more than the disk is not.
    fn settings(&self, local: bool) -> String {
        let ms = self.statement_ms;
        format!(
            "set_config('statement_timeout', '{ms}ms', {local}), set_config('idle_in_transaction_session_timeout', '{ms}ms', {local}),
            set_config('enable_seqscan', 'off', {local}), set_config('jit', 'off', {local}), set_config('synchronous_commit',
                CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, {local})"
        )
    }
}

impl Session {
    /// Begins a transaction, with its settings in the same round trip.
    pub(in crate::store) async fn begin(&mut self) -> Result<Tx<'_>, sqlx::Error> {
        let limit = self.upstream.limit();
        let begin = if self.is_pooled {
            format!("{BEGIN}; SELECT {}", self.upstream.settings(true))
        } else {
            BEGIN.to_owned()
        };
        let tx = bounded(limit, self.connection.begin_with(AssertSqlSafe(begin))).await?;
        Ok(Tx {
            tx,
            limit,
            is_pooled: self.is_pooled,
        })
    }

    /// Asks one statement, in a transaction of its own.
    pub(in crate::store) async fn all(
        &mut self,
        query: PgQuery<'_>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        if self.is_pooled {
            let mut tx = self.begin().await?;
            let rows = tx.all(query).await?;
            tx.commit().await?;
            return Ok(rows);
        }
        bounded(
            self.upstream.limit(),
            query.fetch_all(&mut *self.connection),
        )
        .await
    }

    /// Returns the connection to the pool, or closes it if the next one could not use it.
    pub(in crate::store) fn done<T>(
        mut self,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if result.as_ref().is_err_and(StoreError::breaks_connection) {
            self.connection.close_on_drop();
        } else {
            // Megabytes after one large batch, for as long as the connection lasts.
            self.connection.shrink_buffers();
        }
        if let Err(error) = &result {
            if error.concerns_every_connection() {
                self.upstream.distrust();
            }
            if error.tells_of_a_pooler() {
                self.upstream.is_pooled.store(true, Ordering::Release);
                self.upstream.distrust();
            }
        }
        result
    }
}

impl Tx<'_> {
    /// Asks one statement.
    pub(in crate::store) async fn all(
        &mut self,
        query: PgQuery<'_>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let query = query.persistent(!self.is_pooled);
        bounded(self.limit, query.fetch_all(&mut *self.tx)).await
    }

    /// Asks a statement that returns a row.
    pub(in crate::store) async fn one(&mut self, query: PgQuery<'_>) -> Result<PgRow, sqlx::Error> {
        let rows = self.all(query).await?;
        rows.into_iter().next().ok_or(sqlx::Error::RowNotFound)
    }

    /// Performs a statement, and returns how many rows it changed.
    pub(in crate::store) async fn run(&mut self, query: PgQuery<'_>) -> Result<u64, sqlx::Error> {
        let query = query.persistent(!self.is_pooled);
        let done = bounded(self.limit, query.execute(&mut *self.tx)).await?;
        Ok(done.rows_affected())
    }

    pub(in crate::store) async fn commit(self) -> Result<(), sqlx::Error> {
        bounded(self.limit, self.tx.commit()).await
    }

    pub(in crate::store) async fn rollback(self) -> Result<(), sqlx::Error> {
        bounded(self.limit, self.tx.rollback()).await
    }
}

/// Begins every transaction.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

async fn is_read_only(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let row = connection.fetch_one("SHOW transaction_read_only").await?;
    Ok(row.try_get::<&str, _>(0)? == "on")
}

/// Bounds the wait for one answer. A server that vanished with its network never sends one.
async fn bounded<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "no answer to a statement",
        ))),
    }
}

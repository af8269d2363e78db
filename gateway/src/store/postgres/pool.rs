//! The pool that both stores share, and how a connection that may be broken leaves it.
//!
//! Input: the URL and `[database]`. Output: connections. [`super::super::open`] replaces the pool when the content of the URL's file changes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use sqlx::Connection;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::config;
use crate::store::StoreError;

/// Added to the server's own limit of a statement: after that the connection counts as broken.
const GRACE: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is tried before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// Longest wait for the answer to a ping.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// A pool that can be replaced while it is in use.
pub(in crate::store) struct PostgresPool {
    pool: ArcSwap<PgPool>,
    statement_limit: Duration,
}

impl PostgresPool {
    /// Connects with the first statement.
    pub(in crate::store) fn new(
        options: PgConnectOptions,
        database: &config::Database,
    ) -> Arc<Self> {
        Arc::new(Self {
            pool: ArcSwap::from_pointee(new_pool(options, database)),
            statement_limit: Duration::from_millis(database.statement_timeout_ms) + GRACE,
        })
    }

    /// Replaces the current pool, which is closed once it is not used any more.
    pub(in crate::store) fn replace(&self, pool: PgPool) {
        let old = self.pool.swap(Arc::new(pool));
        tokio::spawn(async move { old.close().await });
    }

    /// Waits until the pool is not used, and closes it.
    pub(in crate::store) async fn close(&self) {
        self.pool.load_full().close().await;
    }

    /// Takes a connection out of the pool.
    pub(in crate::store) async fn acquire(
        &self,
    ) -> Result<PoolConnection<sqlx::Postgres>, StoreError> {
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
    pub(in crate::store) async fn step<T>(
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

    /// Returns a connection to the pool, or closes it if it may be in the middle of an answer.
    pub(in crate::store) fn done<T>(
        &self,
        mut connection: PoolConnection<sqlx::Postgres>,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if result.as_ref().is_err_and(StoreError::breaks_connection) {
            connection.close_on_drop();
        } else {
            // Megabytes after one large batch, for as long as the connection lasts.
            connection.shrink_buffers();
        }
        result
    }

    /// Answers when the server does. A connection that was lost without a word is closed, so that the next question takes another.
    pub(in crate::store) async fn ping(&self) -> Result<(), StoreError> {
        let mut connection = self.acquire().await?;
        let answer = tokio::time::timeout(PING_LIMIT, connection.ping()).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "no answer to a ping",
            )))
        });
        self.done(connection, answer.map_err(StoreError::from))
    }
}

/// A pool whose statements are bounded on the server too.
pub(in crate::store) fn new_pool(options: PgConnectOptions, database: &config::Database) -> PgPool {
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

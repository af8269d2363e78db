//! The pools of one SQLite file.
//!
//! Input: the URL and `[database]`. Output: connections. One connection writes, each time under `BEGIN IMMEDIATE`, so nothing changes between
//! what a transaction reads and what it writes; others read at the same time, each statement one snapshot (WAL).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite as Driver, Transaction};

use crate::config;

/// Most connections that read.
const READERS: u32 = 4;

/// The pools of one file.
#[derive(Clone)]
pub(in crate::store) struct SqlitePools {
    pub(in crate::store) read: SqlitePool,
    write: SqlitePool,
    /// Where the database is; `None` in memory.
    pub(in crate::store) file: Option<Arc<Path>>,
}

impl SqlitePools {
    /// Opens the file with the first statement. A database in memory has one connection for everything: each would see its own.
    pub(in crate::store) fn new(
        options: SqliteConnectOptions,
        in_memory: bool,
        database: &config::Database,
    ) -> Self {
        let file = (!in_memory).then(|| options.get_filename().into());
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
        Self { read, write, file }
    }

    /// Waits until the pools are not used, and closes them.
    pub(in crate::store) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// Begins a transaction that holds the write lock from its start.
    pub(in crate::store) async fn begin(
        &self,
    ) -> Result<Transaction<'static, Driver>, sqlx::Error> {
        self.write.begin_with(BEGIN).await
    }
}

/// Takes the write lock at once: a transaction that reads first and writes later could find that another wrote in between.
pub(in crate::store) const BEGIN: &str = "BEGIN IMMEDIATE";

/// The options of every connection. A commit is on the disk before it is confirmed (`FULL`), because Kafka's offset is committed after it.
pub(in crate::store) fn tuned(
    options: SqliteConnectOptions,
    busy_timeout: Duration,
) -> SqliteConnectOptions {
    options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(busy_timeout)
}

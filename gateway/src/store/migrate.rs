//! Brings a database to the schema that this binary knows (`migrations/README.md`).
//!
//! Input: the embedded folders. Output: tables, or the reason why they are missing. A database that is ahead is accepted.

use std::time::Duration;

use sqlx::migrate::{AppliedMigration, Migrate, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use super::OpenError;
use super::open::{DatabaseAddress, parse_address, secret};
use super::sqlite::{BEGIN, tuned};
use crate::config;

static POSTGRES: Migrator = sqlx::migrate!("../migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("../migrations/sqlite");

/// The list of applied migrations. The database may be the platform's, which may have a list of its own under sqlx's name.
const TABLE: &str = "signal_migration";
/// The highest number in it that was applied whole.
pub(super) const VERSION: &str = "SELECT max(version) FROM signal_migration WHERE success";
/// The advisory lock of the instance that migrates.
const LOCK: i64 = i64::from_be_bytes(*b"sigmigra");
/// How often the lock is asked for. Waiting inside the server would hold a snapshot, and `CREATE INDEX CONCURRENTLY` waits for those.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// What a call of [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The numbers that were applied by this call, in order.
    pub applied: Vec<i64>,
    /// The highest number that the database has, this binary's or a later one.
    pub version: i64,
}

/// Applies missing migrations under a lock, and returns their numbers. Safe while any number of instances of this release and the previous one run.
///
/// # Errors
/// The database cannot be reached, another instance held the lock for too long, or a migration failed and was undone.
pub async fn migrate(database: &config::Database) -> Result<Migrated, OpenError> {
    let url = secret("database.url_file", &database.url, &database.url_file).await?;
    run(&parse_address("database.url", &url)?, database).await
}

/// Migrates, or only checks where `database.migrate` is off.
pub(super) async fn prepare(
    address: &DatabaseAddress,
    database: &config::Database,
) -> Result<(), OpenError> {
    if database.migrate {
        let migrated = run(address, database).await?;
        if !migrated.applied.is_empty() {
            tracing::info!(applied = ?migrated.applied, version = migrated.version, "migrated the database");
        }
        return Ok(());
    }
    let missing = match address {
        DatabaseAddress::Postgres(options) => {
            let mut connection = connect(options, database).await?;
            let missing = missing(&POSTGRES, &listed_postgres(&mut connection).await?)?;
            connection.close().await?;
            missing
        }
        DatabaseAddress::Sqlite {
            options,
            in_memory: _,
        } => {
            let mut connection =
                connect(&tuned(options.clone(), lock_timeout(database)), database).await?;
            let missing = missing(&SQLITE, &listed_sqlite(&mut connection).await?)?;
            connection.close().await?;
            missing
        }
    };
    if missing.is_empty() {
        Ok(())
    } else {
        Err(OpenError::Behind(missing))
    }
}

async fn run(
    address: &DatabaseAddress,
    database: &config::Database,
) -> Result<Migrated, OpenError> {
    match address {
        DatabaseAddress::Postgres(options) => {
            let mut connection = connect(options, database).await?;
            let migrated = run_postgres(&mut connection, lock_timeout(database)).await?;
            connection.close().await?;
            Ok(migrated)
        }
        DatabaseAddress::Sqlite {
            options,
            in_memory: _,
        } => {
            let options = tuned(options.clone(), lock_timeout(database));
            let deadline = Instant::now() + lock_timeout(database);
            loop {
                match run_sqlite(&options, database).await {
                    Err(error) if is_busy(&error) && Instant::now() < deadline => {
                        tokio::time::sleep(LOCK_INTERVAL).await
                    }
                    done => return done,
                }
            }
        }
    }
}

/// Whether SQLite gave up on a lock without waiting for it. It does so where waiting could be for ever: when two connections change a new file to
/// its write-ahead log at the same time (`SQLITE_BUSY`, <https://sqlite.org/c3ref/busy_handler.html>).
fn is_busy(error: &OpenError) -> bool {
    let OpenError::Unavailable(error) = error else {
        return false;
    };
    matches!(error.driver(), Some(sqlx::Error::Database(database)) if is_busy_code(database.code().as_deref()))
}

async fn run_postgres(
    connection: &mut PgConnection,
    timeout: Duration,
) -> Result<Migrated, OpenError> {
    let listed = listed_postgres(connection).await?;
    let todo = missing(&POSTGRES, &listed)?;
    if todo.is_empty() {
        return Ok(migrated(todo, &listed));
    }
    sqlx::query("SELECT set_config('lock_timeout', $1, false)")
        .bind(format!("{}ms", timeout.as_millis()))
        .execute(&mut *connection)
        .await?;
    let deadline = Instant::now() + timeout;
    while !sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut *connection)
        .await?
    {
        if Instant::now() >= deadline {
            return Err(OpenError::Locked(timeout));
        }
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
    // Another instance may have done it meanwhile. The lock ends with the connection, whatever happens.
    let todo = missing(&POSTGRES, &listed_postgres(connection).await?)?;
    apply(connection, &POSTGRES, &todo).await?;
    Ok(migrated(todo, &listed_postgres(connection).await?))
}

/// `SQLITE_BUSY` and what extends it: the low byte is 5.
fn is_busy_code(code: Option<&str>) -> bool {
    code.and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| code & 0xFF == 5)
}

async fn run_sqlite(
    options: &SqliteConnectOptions,
    database: &config::Database,
) -> Result<Migrated, OpenError> {
    let mut connection = connect(options, database).await?;
    let migrated = apply_sqlite(&mut connection).await?;
    connection.close().await?;
    Ok(migrated)
}

async fn apply_sqlite(connection: &mut SqliteConnection) -> Result<Migrated, OpenError> {
    let listed = listed_sqlite(connection).await?;
    let todo = missing(&SQLITE, &listed)?;
    if todo.is_empty() {
        return Ok(migrated(todo, &listed));
    }
    let mut tx = connection.begin_with(BEGIN).await?;
    let todo = missing(&SQLITE, &listed_sqlite(&mut tx).await?)?;
    apply(&mut *tx, &SQLITE, &todo).await?;
    let listed = listed_sqlite(&mut tx).await?;
    tx.commit().await?;
    Ok(migrated(todo, &listed))
}

/// Applies these, one after the other, each in a transaction together with its line in the list.
async fn apply(
    connection: &mut impl Migrate,
    embedded: &Migrator,
    todo: &[i64],
) -> Result<(), OpenError> {
    connection.ensure_migrations_table(TABLE).await?;
    for migration in embedded.iter().filter(|m| todo.contains(&m.version)) {
        connection.apply(TABLE, migration).await?;
    }
    Ok(())
}

fn migrated(applied: Vec<i64>, listed: &[AppliedMigration]) -> Migrated {
    Migrated {
        applied,
        version: listed.iter().map(|m| m.version).max().unwrap_or_default(),
    }
}

/// Which embedded migrations are not listed as applied.
fn missing(embedded: &Migrator, listed: &[AppliedMigration]) -> Result<Vec<i64>, OpenError> {
    let mut missing = Vec::new();
    for migration in embedded.iter() {
        match listed
            .iter()
            .find(|applied| applied.version == migration.version)
        {
            None => missing.push(migration.version),
            Some(applied) if applied.checksum != migration.checksum => {
                return Err(OpenError::Changed(migration.version));
            }
            Some(_) => {}
        }
    }
    Ok(missing)
}

async fn listed_postgres(
    connection: &mut PgConnection,
) -> Result<Vec<AppliedMigration>, OpenError> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(TABLE)
        .fetch_one(&mut *connection)
        .await?;
    Ok(if there {
        connection.list_applied_migrations(TABLE).await?
    } else {
        Vec::new()
    })
}

async fn listed_sqlite(
    connection: &mut SqliteConnection,
) -> Result<Vec<AppliedMigration>, OpenError> {
    let query = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1)",
    )
    .bind(TABLE);
    let there: bool = query.fetch_one(&mut *connection).await?;
    Ok(if there {
        connection.list_applied_migrations(TABLE).await?
    } else {
        Vec::new()
    })
}

fn lock_timeout(database: &config::Database) -> Duration {
    Duration::from_millis(database.migrate_lock_timeout_ms)
}

/// One connection of its own: no limit of a statement, because an index may take its time.
async fn connect<O>(options: &O, database: &config::Database) -> Result<O::Connection, OpenError>
where
    O: ConnectOptions,
    O::Connection: Sized,
{
    match tokio::time::timeout(
        Duration::from_millis(database.acquire_timeout_ms),
        options.connect(),
    )
    .await
    {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_have_the_same_numbers_and_names() {
        let list = |migrator: &Migrator| {
            migrator
                .iter()
                .map(|m| (m.version, m.description.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(list(&POSTGRES), list(&SQLITE));
        assert!(
            SQLITE.iter().all(|m| !m.no_tx),
            "SQLite runs all of them in one transaction"
        );
    }
}

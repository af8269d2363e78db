//! Brings a database to the schema that this binary knows (`migrations/README.md`).
//!
//! Input: the embedded folders. Output: tables, or the reason why they are missing. A database that is ahead is accepted.

use std::time::Duration;

use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use super::OpenError;
use super::open::{DatabaseAddress, parse_address, secret};
use super::postgres::{Server, Servers, Unfit, unfit};
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
        DatabaseAddress::Postgres(servers) => {
            let (mut connection, _) = reached(servers, database).await?;
            let mut tx = connection.begin().await?;
            let missing = missing(&POSTGRES, &listed_postgres(&mut tx).await?)?;
            tx.rollback().await?;
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
        DatabaseAddress::Postgres(servers) => {
            let (mut connection, server) = reached(servers, database).await?;
            let timeout = lock_timeout(database);
            let migrated = if server.is_pooled {
                run_pooled(&mut connection, timeout).await?
            } else {
                run_postgres(&mut connection, timeout).await?
            };
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
    apply_postgres(connection, &todo).await?;
    Ok(migrated(todo, &listed_postgres(connection).await?))
}

/// The same behind a pooler, which keeps no session: all of it is one transaction, and the lock is the transaction's.
async fn run_pooled(
    connection: &mut PgConnection,
    timeout: Duration,
) -> Result<Migrated, OpenError> {
    let mut tx = connection.begin().await?;
    let listed = listed_postgres(&mut tx).await?;
    let todo = missing(&POSTGRES, &listed)?;
    if todo.is_empty() {
        tx.rollback().await?;
        return Ok(migrated(todo, &listed));
    }
    if let Some(alone) = POSTGRES
        .iter()
        .find(|m| m.no_tx && todo.contains(&m.version))
    {
        return Err(OpenError::NeedsSession(alone.version));
    }
    let settings =
        "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', '0', true)";
    sqlx::query(settings)
        .bind(format!("{}ms", timeout.as_millis()))
        .persistent(false)
        .execute(&mut *tx)
        .await?;
    let deadline = Instant::now() + timeout;
    while !sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_xact_lock($1)")
        .bind(LOCK)
        .persistent(false)
        .fetch_one(&mut *tx)
        .await?
    {
        if Instant::now() >= deadline {
            return Err(OpenError::Locked(timeout));
        }
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
    let todo = missing(&POSTGRES, &listed_postgres(&mut tx).await?)?;
    apply_postgres(&mut tx, &todo).await?;
    let listed = listed_postgres(&mut tx).await?;
    tx.commit().await?;
    Ok(migrated(todo, &listed))
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

/// The same in PostgreSQL, without a prepared statement that outlives its transaction: behind a pooler somebody else would find it.
async fn apply_postgres(connection: &mut PgConnection, todo: &[i64]) -> Result<(), OpenError> {
    connection.ensure_migrations_table(TABLE).await?;
    for migration in POSTGRES.iter().filter(|m| todo.contains(&m.version)) {
        if migration.no_tx {
            apply_one(connection, migration).await?;
        } else {
            let mut tx = connection.begin().await?;
            apply_one(&mut tx, migration).await?;
            tx.commit().await?;
        }
    }
    Ok(())
}

async fn apply_one(connection: &mut PgConnection, migration: &Migration) -> Result<(), OpenError> {
    let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
    sqlx::raw_sql(migration.sql.clone())
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    sqlx::query(
        "INSERT INTO signal_migration (version, description, success, checksum, execution_time) VALUES ($1, $2, TRUE, $3, -1)",
    )
    .bind(migration.version)
    .bind(&*migration.description)
    .bind(&*migration.checksum)
    .persistent(false)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Applies migrations up to this number, as an older binary does, to a database that has none.
#[cfg(test)]
pub(super) async fn up_to(database: &config::Database, last: i64) -> Result<(), OpenError> {
    let todo: Vec<i64> = SQLITE
        .iter()
        .map(|m| m.version)
        .filter(|n| *n <= last)
        .collect();
    match parse_address("database.url", &database.url)? {
        DatabaseAddress::Postgres(servers) => {
            let (mut connection, _) = reached(&servers, database).await?;
            apply_postgres(&mut connection, &todo).await
        }
        DatabaseAddress::Sqlite { options, .. } => {
            let options = tuned(options, lock_timeout(database));
            apply(&mut connect(&options, database).await?, &SQLITE, &todo).await
        }
    }
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
    for (at, migration) in embedded.iter().enumerate() {
        let mut others = embedded.iter().skip(at + 1);
        if others.any(|other| other.version == migration.version) {
            return Err(OpenError::Repeated(migration.version));
        }
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
    // Reads the catalog and not `to_regclass`, which answers from what the session remembers: the table may have been made since this transaction began.
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relname = $1 AND n.nspname = ANY(current_schemas(false)))";
    let there: bool = sqlx::query_scalar(there)
        .bind(TABLE)
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(Vec::new());
    }
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, checksum FROM signal_migration ORDER BY version")
            .persistent(false)
            .fetch_all(connection)
            .await?;
    Ok(rows
        .into_iter()
        .map(|(version, checksum)| AppliedMigration {
            version,
            checksum: checksum.into(),
        })
        .collect())
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

/// A connection to the server that takes writes. What it does not keep for certain is said here, once for each start.
async fn reached(
    servers: &Servers,
    database: &config::Database,
) -> Result<(PgConnection, Server), OpenError> {
    let limit = Duration::from_millis(database.acquire_timeout_ms);
    let (connection, server) = match servers.connect(limit).await {
        Err(error) if unfit(&error) == Some(Unfit::StatementMode) => {
            return Err(OpenError::Setting {
                setting: "database.url",
                reason: Unfit::StatementMode.to_string(),
            });
        }
        other => other?,
    };
    if server.is_volatile {
        tracing::warn!(
            "PostgreSQL runs with fsync or full_page_writes off: a crash of its machine loses notifications that were confirmed"
        );
    }
    Ok((connection, server))
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

    #[test]
    fn two_migrations_of_one_number_are_refused() {
        let one = SQLITE.iter().next().unwrap();
        let other = Migration {
            description: "another".into(),
            ..one.clone()
        };
        let twice = Migrator::with_migrations(vec![one.clone(), other]);
        let listed = AppliedMigration {
            version: one.version,
            checksum: one.checksum.clone(),
        };
        for listed in [vec![], vec![listed]] {
            assert!(matches!(
                missing(&twice, &listed),
                Err(OpenError::Repeated(version)) if version == one.version
            ));
        }
    }
}

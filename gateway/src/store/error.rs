//! What a database's refusal means: which errors lie in the value, and which pass with time.
//!
//! Input: every error of sqlx in this folder. Output: [`StoreError`], by which the pipeline retries or dead-letters; [`OpenError`] at start.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

/// What went wrong, as far as a caller treats it differently.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refuses the value itself, however often it is tried (data exceptions, integrity violations, too large).
    #[error("the database refuses the value: {0}")]
    Refused(#[source] sqlx::Error),
    /// The database cannot be reached, is overloaded, shutting down, lacks a table or a right, or gave up on a conflict: try again.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if refuses_the_value(&error) {
            Self::Refused(error)
        } else {
            Self::Unavailable(error)
        }
    }
}

/// The value holds what PostgreSQL cannot keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a NUL character (U+0000) in {0}")]
pub(super) struct Nul(pub(super) &'static str);

impl From<Nul> for StoreError {
    fn from(nul: Nul) -> Self {
        Self::Refused(sqlx::Error::Encode(Box::new(nul)))
    }
}

/// Whether trying again cannot help. In doubt it can: a record that waits is found by its lag, one that was dead-lettered for a missing table is not.
fn refuses_the_value(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => match (
            error.try_downcast_ref::<PgDatabaseError>(),
            error.try_downcast_ref::<SqliteError>(),
        ) {
            (Some(error), _) => postgres_refuses(error.code()),
            (_, Some(error)) => error
                .code()
                .and_then(|code| code.parse().ok())
                .is_some_and(sqlite_refuses),
            _ => false,
        },
        sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::InvalidArgument(_) => true,
        _ => false,
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
///
/// Class 42 (no such table, no right) says something of the schema and never of a value, because every statement here is the same for every value.
/// 23505 means that the same row came from elsewhere a moment ago, or an id was made twice: the next try finds the row, and makes a new id.
fn postgres_refuses(sqlstate: &str) -> bool {
    matches!(sqlstate.get(..2), Some("21" | "22" | "23" | "54")) && sqlstate != "23505"
        || sqlstate == "P0001"
}

/// <https://www.sqlite.org/rescode.html>; extended codes carry the primary one in their low byte.
fn sqlite_refuses(code: i32) -> bool {
    const TOO_BIG: i32 = 18;
    const CONSTRAINT: i32 = 19;
    const MISMATCH: i32 = 20;
    const CONSTRAINT_PRIMARY_KEY: i32 = 1555;
    const CONSTRAINT_UNIQUE: i32 = 2067;
    matches!(code & 0xff, TOO_BIG | CONSTRAINT | MISMATCH)
        && !matches!(code, CONSTRAINT_PRIMARY_KEY | CONSTRAINT_UNIQUE)
}

/// Why a store could not be opened or migrated.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is wrong.
    #[error("{setting}: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong, without the value: it may hold a password.
        reason: String,
    },
    /// A file or folder cannot be read or made.
    #[error("{setting}: {path}: {source}")]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Migrations are missing and may not be run.
    #[error("migrations {0:?} are missing: run `signal-gateway migrate`, or set database.migrate")]
    Behind(Vec<i64>),
    /// The database holds another content of a migration than this binary.
    #[error("migration {0} was applied with another content than this binary has")]
    Changed(i64),
    /// A migration failed.
    #[error("cannot migrate: {0}")]
    Migration(#[source] MigrateError),
    /// Another instance went on migrating.
    #[error("another instance held the migration lock for more than {0:?}")]
    Locked(Duration),
    /// The database cannot be reached, or not used yet.
    #[error("the database is away: {0}")]
    Away(#[source] sqlx::Error),
    /// The process was told to stop before the database was there.
    #[error("stopped while the database was away")]
    Stopped,
}

impl OpenError {
    /// Whether waiting may help.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Locked(_))
    }
}

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        Self::Away(error)
    }
}

impl From<MigrateError> for OpenError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMismatch(version) => Self::Changed(version),
            MigrateError::Execute(error) => Self::Away(error),
            // The server went away or a lock was not had in time: the migration was undone.
            MigrateError::ExecuteMigration(error, version) => {
                let passes = match &error {
                    sqlx::Error::Database(inner) => inner.code().is_some_and(|code| {
                        matches!(
                            &*code,
                            "55P03" | "57P01" | "57P02" | "57P03" | "40P01" | "40001"
                        )
                    }),
                    other => other.source().is_some_and(|s| s.is::<std::io::Error>()),
                };
                if passes {
                    Self::Away(error)
                } else {
                    Self::Migration(MigrateError::ExecuteMigration(error, version))
                }
            }
            other => Self::Migration(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_value_is_refused() {
        for code in [
            "22021", "22P05", "22001", "23502", "23514", "23503", "54000", "21000", "P0001",
        ] {
            assert!(postgres_refuses(code), "{code}");
        }
        for code in [
            "08006", "53300", "57P01", "57014", "40001", "40P01", "55P03", "25006", "23505",
            "42P01", "42501", "28P01", "3D000", "XX000", "",
        ] {
            assert!(!postgres_refuses(code), "{code}");
        }
        // TOOBIG, CONSTRAINT_NOTNULL, CONSTRAINT_DATATYPE, MISMATCH
        for code in [18, 1299, 3091, 20] {
            assert!(sqlite_refuses(code), "{code}");
        }
        // BUSY, BUSY_SNAPSHOT, LOCKED, READONLY, IOERR, FULL, CANTOPEN, no such table, UNIQUE, PRIMARYKEY
        for code in [5, 517, 6, 8, 10, 13, 14, 1, 2067, 1555] {
            assert!(!sqlite_refuses(code), "{code}");
        }
    }

    #[test]
    fn a_connection_that_is_gone_is_unavailable() {
        for error in [
            sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()),
            sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed,
            sqlx::Error::WorkerCrashed,
            sqlx::Error::BeginFailed,
            sqlx::Error::Tls("expired".into()),
            sqlx::Error::Protocol("unexpected".into()),
        ] {
            assert!(matches!(
                StoreError::from(error),
                StoreError::Unavailable(_)
            ));
        }
    }
}

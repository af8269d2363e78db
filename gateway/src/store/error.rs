//! What an error of the database means: the value is wrong for good, or the same question may be answered later.
//!
//! Input: every error of sqlx in this folder. Output: [`StoreError`], by which the pipeline retries or dead-letters; [`OpenError`] at start.
//! Neither shows a type of sqlx to the rest of the gateway.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

use crate::notification::bounds;

/// Why a question to the store has no answer, as far as a caller treats it differently.
///
/// Only this folder makes one: a [`DatabaseError`] has no other constructor.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database refuses the value itself, however often it is tried. Its own text may quote the value, so it is not shown.
    #[error("the database refuses the value (code {})", .code.as_deref().unwrap_or("none"))]
    Refused {
        /// The database's own code (an SQLSTATE, or an extended result code of SQLite), where the database was asked.
        code: Option<Arc<str>>,
        /// The driver's error. Its text may quote the value.
        source: DatabaseError,
    },
    /// The database gave up on the statement because of its size, or of what it waited for: less at once may succeed. What cannot be made less is
    /// treated as [`StoreError::Unavailable`]: a lock that somebody holds and a slow disk pass.
    #[error("too much at once for the database: {source}")]
    TooMuch {
        /// The driver's error.
        source: DatabaseError,
    },
    /// The database cannot be reached, is overloaded, shutting down, read-only, lacks a table or a right, or gave up on a conflict: try again.
    #[error("the database is unavailable: {source}")]
    Unavailable {
        /// The driver's error.
        source: DatabaseError,
    },
}

/// An error of a database or its driver: for log lines, never for clients.
#[derive(Clone)]
pub struct DatabaseError(Arc<dyn Error + Send + Sync>);

impl DatabaseError {
    pub(super) fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }

    /// The driver's error, if it is one.
    pub(super) fn driver(&self) -> Option<&sqlx::Error> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for DatabaseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl StoreError {
    /// The value is refused before the database is asked.
    pub(super) fn refused(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Refused {
            code: None,
            source: DatabaseError::new(source),
        }
    }

    /// The question can be asked again.
    pub(super) fn unavailable(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Unavailable {
            source: DatabaseError::new(source),
        }
    }

    /// Whether a recipient has a row of the event already.
    pub(super) fn repeats_row(&self) -> bool {
        let error = self.driver().and_then(sqlx::Error::as_database_error);
        error.is_some_and(|error| error.constraint() == Some("signal_notification_once"))
    }

    /// The driver's error, where there is one.
    pub(super) fn driver(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Refused { source, .. }
            | Self::TooMuch { source }
            | Self::Unavailable { source } => source.driver(),
        }
    }

    /// Whether the connection must not be used again: it may be in the middle of an answer, or its session is not what it should be.
    pub(super) fn breaks_connection(&self) -> bool {
        match self.driver() {
            Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Configuration(_)) => {
                true
            }
            Some(error) => sqlstate(error).is_some_and(|code| sqlstate_breaks_connection(&code)),
            None => false,
        }
    }

    /// Whether the other connections cannot be used either: the server became read-only, or does not answer.
    pub(super) fn concerns_every_connection(&self) -> bool {
        match self.driver() {
            Some(sqlx::Error::Io(error)) => error.kind() == std::io::ErrorKind::TimedOut,
            Some(sqlx::Error::Configuration(_)) => true,
            Some(error) => sqlstate(error).as_deref() == Some(READ_ONLY),
            None => false,
        }
    }

    /// Whether another session answered than the one that prepared the statement: a pooler stands between.
    pub(super) fn tells_of_a_pooler(&self) -> bool {
        let code = self.driver().and_then(sqlstate);
        matches!(
            code.as_deref(),
            Some(UNKNOWN_STATEMENT | REPEATED_STATEMENT)
        )
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = sqlstate(&error);
        if code.as_deref().is_some_and(is_too_much) {
            return Self::TooMuch {
                source: DatabaseError::new(error),
            };
        }
        if !is_refusal(&error) {
            return Self::unavailable(error);
        }
        let code = error.as_database_error().and_then(|error| error.code());
        Self::Refused {
            code: code.map(|code| code.as_ref().into()),
            source: DatabaseError::new(error),
        }
    }
}

/// The code of an error of PostgreSQL.
fn sqlstate(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    let error = error.as_database_error()?;
    error.try_downcast_ref::<PgDatabaseError>()?;
    error.code()
}

/// A write on a standby, or where `default_transaction_read_only` is on.
const READ_ONLY: &str = "25006";
/// A prepared statement that this session does not know, and one of a name that it knows.
const UNKNOWN_STATEMENT: &str = "26000";
const REPEATED_STATEMENT: &str = "42P05";

/// `statement_timeout` or somebody's cancellation (57014), and memory (53200).
fn is_too_much(sqlstate: &str) -> bool {
    matches!(sqlstate, "57014" | "53200")
}

/// Read-only; the server ends the session (57P01 to 57P05, 25P03); a prepared statement is unknown or known already (26000, 42P05), which a pooler between
/// does, or its table changed (0A000).
fn sqlstate_breaks_connection(sqlstate: &str) -> bool {
    matches!(
        sqlstate,
        READ_ONLY
            | UNKNOWN_STATEMENT
            | REPEATED_STATEMENT
            | "25P03"
            | "57P01"
            | "57P02"
            | "57P03"
            | "57P04"
            | "57P05"
            | "0A000"
    ) || sqlstate.starts_with("08")
}

/// The value holds what PostgreSQL cannot keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a NUL character (U+0000) in {0}")]
pub(super) struct NulCharacter(pub(super) &'static str);

/// Refuses a text that holds U+0000. `name` is the field that held it.
pub(super) fn refuse_nul(name: &'static str, text: &str) -> Result<(), NulCharacter> {
    if bounds::has_nul(text) {
        Err(NulCharacter(name))
    } else {
        Ok(())
    }
}

impl From<NulCharacter> for StoreError {
    fn from(nul: NulCharacter) -> Self {
        Self::refused(nul)
    }
}

/// Whether the value is wrong for good; false where trying again may help.
///
/// In doubt it may: a record that waits is found by its lag, one that was dead-lettered for a missing table is not.
fn is_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let Some(code) = error.code() else {
                return false;
            };
            if error.try_downcast_ref::<PgDatabaseError>().is_some() {
                is_postgres_refusal(&code)
            } else if error.try_downcast_ref::<SqliteError>().is_some() {
                code.parse().is_ok_and(is_sqlite_refusal)
            } else {
                false
            }
        }
        // It cannot be written to the database's protocol, or read back from it.
        sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::InvalidArgument(_) => true,
        _ => false,
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>: classes 21, 22, 23 and 54, and P0001 (a trigger's refusal).
///
/// Of the others, 57014 and 53200 are too much at once; 25006 and the ends of a session cost the connection as well ([`StoreError::breaks_connection`]); 08,
/// 40, 53, 55, 57, 58, 28, 3D, 42 and XX are a server that is away, overloaded, in conflict, or not set up yet.
/// Class 42 (no such table, no right) is an error of the schema and never of a value, because every statement here is the same for every value.
/// 23505 means that another connection stored the same row a moment ago, or two texts of one event drew the same number: the next try finds the row, and
/// draws another number.
fn is_postgres_refusal(sqlstate: &str) -> bool {
    let class = sqlstate.get(..2).unwrap_or_default();
    sqlstate == "P0001" || (matches!(class, "21" | "22" | "23" | "54") && sqlstate != "23505")
}

/// <https://www.sqlite.org/rescode.html>; extended codes carry the primary one in their low byte.
fn is_sqlite_refusal(code: i32) -> bool {
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
    /// A migration needs a session of its own, which a pooler does not give.
    #[error(
        "migration {0} cannot run behind a pooler: run `signal-gateway migrate` with a URL of the server itself"
    )]
    NeedsSession(i64),
    /// This binary holds two migrations of one number.
    #[error("two migrations have the number {0}")]
    Repeated(i64),
    /// A migration failed.
    #[error("cannot migrate: {0}")]
    Migration(#[source] DatabaseError),
    /// Another instance did not finish migrating in time.
    #[error("another instance held the migration lock for more than {0:?}")]
    Locked(Duration),
    /// The database cannot be reached, or not used yet.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] DatabaseError),
    /// The process was stopped before the database answered.
    #[error("stopped while the database was unavailable")]
    Stopped,
}

impl OpenError {
    /// Whether waiting may help.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Locked(_))
    }
}

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(DatabaseError::new(error))
    }
}

impl From<MigrateError> for OpenError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMismatch(version) => Self::Changed(version),
            MigrateError::Execute(error) if is_transient(&error) => error.into(),
            // The connection broke or a lock was not granted in time: the migration was undone.
            MigrateError::ExecuteMigration(error, _) if is_transient(&error) => error.into(),
            other => Self::Migration(DatabaseError::new(other)),
        }
    }
}

/// Whether a migration that failed like this may succeed later: the server is away, full, locked, in conflict or read-only. SQLite is busy (5) or locked (6).
fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(inner) => inner.code().is_some_and(|code| {
            if let Ok(code) = code.parse::<i32>()
                && inner.try_downcast_ref::<SqliteError>().is_some()
            {
                return matches!(code & 0xff, 5 | 6);
            }
            matches!(code.get(..2), Some("08" | "40" | "53" | "55" | "57" | "58"))
                || *code == *READ_ONLY
        }),
        other => other.source().is_some_and(|s| s.is::<std::io::Error>()),
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
            assert!(is_postgres_refusal(code) && !is_too_much(code), "{code}");
            assert!(!sqlstate_breaks_connection(code), "{code}");
        }
        for code in [
            "08006", "53300", "57P01", "57014", "40001", "40P01", "55P03", "25006", "23505",
            "42P01", "42501", "28P01", "3D000", "XX000", "",
        ] {
            assert!(!is_postgres_refusal(code), "{code}");
        }
        for code in ["57014", "53200"] {
            assert!(
                is_too_much(code) && !sqlstate_breaks_connection(code),
                "{code}"
            );
        }
        for code in [
            "25006", "57P01", "57P03", "08006", "08P01", "26000", "42P05", "0A000",
        ] {
            assert!(
                sqlstate_breaks_connection(code) && !is_too_much(code),
                "{code}"
            );
        }
        // TOOBIG, CONSTRAINT_NOTNULL, CONSTRAINT_DATATYPE, MISMATCH
        for code in [18, 1299, 3091, 20] {
            assert!(is_sqlite_refusal(code), "{code}");
        }
        // BUSY, BUSY_SNAPSHOT, LOCKED, READONLY, IOERR, FULL, CANTOPEN, no such table, UNIQUE, PRIMARYKEY
        for code in [5, 517, 6, 8, 10, 13, 14, 1, 2067, 1555] {
            assert!(!is_sqlite_refusal(code), "{code}");
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
                StoreError::Unavailable { .. }
            ));
        }
    }
}

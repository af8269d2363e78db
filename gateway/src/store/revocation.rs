//! Revocations as the database keeps them: one row per user or token, in the order of changes.
//!
//! Input: revocations from REST, and what readers saw last. Output: what is in force. The statements are beside each database's own.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{ColumnIndex, Decode, Row, Type};

use super::StoreFuture;
use super::error::{NulCharacter, refuse_nul};
use super::sql::Time;
use crate::revocation::Revocation;

/// Most revocations that are in force at a time.
pub const MAX_REVOCATIONS: u64 = 100_000;

/// The outcome of [`RevocationStore::add`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// All of them are stored.
    Stored,
    /// With them more would be in force than the caller allows; none is stored.
    Full,
}

/// A revocation, and the number of the change that made it or widened it last, which no other has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedRevocation {
    /// Rises with every change; a reader goes on after the highest one that it has seen.
    pub version: i64,
    /// What is refused, of one user or one token.
    pub revocation: Revocation,
}

/// The revocations that every instance reads.
///
/// There is one row per user and one per `jti`. A revocation is never taken back: a second one of the same name widens the first, so that the row covers
/// both. Times are kept to the millisecond.
///
/// **Versions become visible in their order**: each change takes the next one under a lock that it holds until it commits, so whoever sees a version
/// sees every lower one. [`RevocationStore::changed`] after the highest version seen misses nothing, however changes overlap.
pub trait RevocationStore: Send + Sync + 'static {
    /// Stores revocations, all or none, if at most `most` are in force afterwards. Storing them again changes nothing but their versions.
    fn add<'a>(
        &'a self,
        revocations: &'a [Revocation],
        most: u64,
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, Added>;

    /// Returns at most `limit` revocations in force that changed after version `after`, by rising version; 0 stands before every change.
    fn changed(
        &self,
        after: i64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> StoreFuture<'_, Vec<ChangedRevocation>>;

    /// Removes up to `limit` revocations that ended before this time, and returns how many.
    fn purge_ended(&self, before: DateTime<Utc>, limit: u32) -> StoreFuture<'_, u64>;
}

/// `$1` version, `$2` now, `$3` limit.
pub(super) const CHANGED: &str = "SELECT kind, name, issued_before, ends_at, version FROM signal_revocation WHERE version > $1 AND ends_at > $2 ORDER BY version LIMIT $3";

/// `$1` how many. Takes the next versions, of which it returns the last, and locks the row until the transaction ends.
pub(super) const NEXT_VERSIONS: &str = r"
INSERT INTO signal_revocation_state (id, last_version) VALUES (1, $1)
ON CONFLICT (id) DO UPDATE SET last_version = signal_revocation_state.last_version + excluded.last_version RETURNING last_version";

/// One row to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewRow {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) issued_before: DateTime<Utc>,
    pub(super) ends_at: DateTime<Utc>,
}

const USER: &str = "user";
const TOKEN: &str = "token";

/// Makes rows, one per user and token.
pub(super) fn new_rows(revocations: &[Revocation]) -> Result<Vec<NewRow>, NulCharacter> {
    let mut rows: HashMap<(&'static str, &str), (i64, i64)> = HashMap::new();
    for revocation in revocations {
        let user = revocation.user_id.as_deref().map(|name| (USER, name));
        let token = revocation.jti.as_deref().map(|name| (TOKEN, name));
        for key in user.into_iter().chain(token) {
            refuse_nul(key.0, key.1)?;
            let row = rows.entry(key).or_insert((i64::MIN, i64::MIN));
            row.0 = row.0.max(revocation.issued_before_ms);
            row.1 = row.1.max(revocation.until_ms);
        }
    }
    let mut rows: Vec<NewRow> = rows
        .into_iter()
        .map(|((kind, name), (issued_before, ends_at))| NewRow {
            kind,
            name: name.to_owned(),
            issued_before: time_of(issued_before),
            ends_at: time_of(ends_at),
        })
        .collect();
    // In one order, as everywhere: two calls with the same names never deadlock.
    rows.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    Ok(rows)
}

/// A time far outside of what a database keeps becomes the nearest that every one of them does: before any token, or after all.
fn time_of(ms: i64) -> DateTime<Utc> {
    const YEAR_9999_MS: i64 = 253_370_764_800_000;
    DateTime::from_timestamp_millis(ms.clamp(0, YEAR_9999_MS)).unwrap_or_default()
}

/// Reads a row of [`CHANGED`].
pub(super) fn read<'r, R: Row>(
    row: &'r R,
    time: Time<'r, R>,
) -> Result<ChangedRevocation, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let ms = |column| -> Result<i64, sqlx::Error> {
        Ok(time(row, column)?.unwrap_or_default().timestamp_millis())
    };
    let name = row.try_get::<&str, _>("name")?.to_owned();
    let (user_id, jti) = match row.try_get::<&str, _>("kind")? {
        USER => (Some(name), None),
        _ => (None, Some(name)),
    };
    Ok(ChangedRevocation {
        version: row.try_get("version")?,
        revocation: Revocation {
            user_id,
            jti,
            issued_before_ms: ms("issued_before")?,
            until_ms: ms("ends_at")?,
        },
    })
}

//! Revocations in SQLite.
//!
//! Input: the trait's questions. Output: the same answers as PostgreSQL gives. One connection writes, so changes come one after the other.

use chrono::{DateTime, Utc};

use super::{SqliteStore, time};
use crate::revocation::Revocation;
use crate::store::revocation::{
    Added, CHANGED, ChangedRevocation, NEXT_VERSIONS, RevocationStore, new_rows, read,
};
use crate::store::{StoreError, StoreFuture};

/// `$1` now.
const IN_FORCE: &str = "SELECT count(*) FROM signal_revocation WHERE ends_at > $1";

/// `$1` kind, `$2` name, `$3` issued before, `$4` ends, `$5` now, `$6` version.
const ADD: &str = r"
INSERT INTO signal_revocation (kind, name, issued_before, ends_at, made_at, version) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (kind, name) DO UPDATE SET
    issued_before = max(signal_revocation.issued_before, excluded.issued_before),
    ends_at = max(signal_revocation.ends_at, excluded.ends_at),
    version = excluded.version";

/// `$1` ended before, `$2` at most.
const PURGE: &str = r"
DELETE FROM signal_revocation WHERE (kind, name) IN (
    SELECT kind, name FROM signal_revocation WHERE ends_at < $1 ORDER BY ends_at LIMIT $2
)";

impl SqliteStore {
    async fn add_revocations(
        &self,
        revocations: &[Revocation],
        most: u64,
        now: DateTime<Utc>,
    ) -> Result<Added, StoreError> {
        let rows = new_rows(revocations)?;
        if rows.is_empty() {
            return Ok(Added::Stored);
        }
        let now = now.timestamp_millis();
        let mut tx = self.pools.begin().await?;
        let last: i64 = sqlx::query_scalar(NEXT_VERSIONS)
            .bind(rows.len() as i64)
            .fetch_one(&mut *tx)
            .await?;
        for (version, row) in (last - rows.len() as i64 + 1..).zip(rows) {
            sqlx::query(ADD)
                .bind(row.kind)
                .bind(row.name)
                .bind(row.issued_before.timestamp_millis())
                .bind(row.ends_at.timestamp_millis())
                .bind(now)
                .bind(version)
                .execute(&mut *tx)
                .await?;
        }
        let in_force: i64 = sqlx::query_scalar(IN_FORCE)
            .bind(now)
            .fetch_one(&mut *tx)
            .await?;
        if in_force as u64 > most {
            tx.rollback().await?;
            return Ok(Added::Full);
        }
        tx.commit().await?;
        Ok(Added::Stored)
    }

    async fn changed_revocations(
        &self,
        after: i64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<Vec<ChangedRevocation>, StoreError> {
        let rows = sqlx::query(CHANGED)
            .bind(after)
            .bind(now.timestamp_millis())
            .bind(limit)
            .fetch_all(&self.pools.read)
            .await?;
        let changed: Result<Vec<_>, _> = rows.iter().map(|row| read(row, time)).collect();
        Ok(changed?)
    }

    async fn purge_revocations(
        &self,
        before: DateTime<Utc>,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let mut tx = self.pools.begin().await?;
        let done = sqlx::query(PURGE)
            .bind(before.timestamp_millis())
            .bind(limit)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

impl RevocationStore for SqliteStore {
    fn add<'a>(
        &'a self,
        revocations: &'a [Revocation],
        most: u64,
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, Added> {
        Box::pin(self.add_revocations(revocations, most, now))
    }

    fn changed(
        &self,
        after: i64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> StoreFuture<'_, Vec<ChangedRevocation>> {
        Box::pin(self.changed_revocations(after, limit, now))
    }

    fn purge_ended(&self, before: DateTime<Utc>, limit: u32) -> StoreFuture<'_, u64> {
        Box::pin(self.purge_revocations(before, limit))
    }
}

//! Revocations in PostgreSQL.
//!
//! Input: the trait's questions. Output: one transaction each. A change locks the one row that holds the last version, so changes wait for each other:
//! they are rare, and their versions become visible in order.

use chrono::{DateTime, Utc};
use sqlx::Row as _;

use super::pool::Session;
use super::{PostgresStore, time};
use crate::revocation::Revocation;
use crate::store::batch::milliseconds;
use crate::store::revocation::{
    Added, CHANGED, ChangedRevocation, NEXT_VERSIONS, NewRow, RevocationStore, new_rows, read,
};
use crate::store::{StoreError, StoreFuture};

/// `$1` now, `$2` kinds, `$3` names: how many are in force, and how many of these names.
const IN_FORCE: &str = r"
SELECT (SELECT count(*) FROM signal_revocation WHERE ends_at > $1),
    (SELECT count(*) FROM unnest($2::text[], $3::text[]) AS new (kind, name) JOIN signal_revocation r USING (kind, name) WHERE r.ends_at > $1)";

/// `$1` kinds, `$2` names, `$3` issued before, `$4` ends, `$5` now, `$6` the version before the first.
const ADD: &str = r"
INSERT INTO signal_revocation (kind, name, issued_before, ends_at, made_at, version)
SELECT kind, name, issued_before, ends_at, $5, $6 + number
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) WITH ORDINALITY AS new (kind, name, issued_before, ends_at, number)
ON CONFLICT (kind, name) DO UPDATE SET
    issued_before = greatest(signal_revocation.issued_before, excluded.issued_before),
    ends_at = greatest(signal_revocation.ends_at, excluded.ends_at),
    version = excluded.version";

/// `$1` ended before, `$2` at most. Rows that a change has locked are left for the next round.
const PURGE: &str = r"
DELETE FROM signal_revocation WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM signal_revocation WHERE ends_at < $1 ORDER BY ends_at LIMIT $2 FOR UPDATE SKIP LOCKED
)) RETURNING 1";

impl PostgresStore {
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
        let mut session = self.pool.acquire().await?;
        let result = self
            .add_rows(&mut session, rows, most, milliseconds(now))
            .await;
        session.done(result.map_err(StoreError::from))
    }

    async fn add_rows(
        &self,
        session: &mut Session,
        rows: Vec<NewRow>,
        most: u64,
        now: DateTime<Utc>,
    ) -> Result<Added, sqlx::Error> {
        let count = rows.len() as i64;
        let (mut kinds, mut names) = (Vec::new(), Vec::new());
        let (mut issued_before, mut ends_at) = (Vec::new(), Vec::new());
        for row in rows {
            kinds.push(row.kind);
            names.push(row.name);
            issued_before.push(row.issued_before);
            ends_at.push(row.ends_at);
        }
        let mut tx = session.begin().await?;
        let query = sqlx::query(NEXT_VERSIONS).bind(count);
        let last: i64 = tx.one(query).await?.try_get(0)?;
        let query = sqlx::query(IN_FORCE).bind(now).bind(&kinds).bind(&names);
        let row = tx.one(query).await?;
        let (in_force, known): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if (in_force - known + count) as u64 > most {
            tx.rollback().await?;
            return Ok(Added::Full);
        }
        let query = sqlx::query(ADD)
            .bind(&kinds)
            .bind(&names)
            .bind(&issued_before)
            .bind(&ends_at)
            .bind(now)
            .bind(last - count);
        tx.run(query).await?;
        tx.commit().await?;
        Ok(Added::Stored)
    }

    async fn changed_revocations(
        &self,
        after: i64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<Vec<ChangedRevocation>, StoreError> {
        let query = sqlx::query(CHANGED)
            .bind(after)
            .bind(milliseconds(now))
            .bind(i64::from(limit));
        let rows = self.pool.all(query).await?;
        let changed: Result<Vec<_>, _> = rows.iter().map(|row| read(row, time)).collect();
        Ok(changed?)
    }

    async fn purge_revocations(
        &self,
        before: DateTime<Utc>,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let query = sqlx::query(PURGE)
            .bind(milliseconds(before))
            .bind(i64::from(limit));
        Ok(self.pool.all(query).await?.len() as u64)
    }
}

impl RevocationStore for PostgresStore {
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

//! The platform's policy tables, which the gateway only reads: tests make and fill them.

use anyhow::Result;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{AssertSqlSafe, PgPool};

enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// The three tables in one database.
pub struct Policies {
    pool: Pool,
    next: std::sync::atomic::AtomicI64,
}

impl Policies {
    /// Makes the tables in the database at this URL (`postgres://...`, `sqlite://path`).
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn create(url: &str) -> Result<Self> {
        let pool = if url.starts_with("sqlite:") {
            let options: SqliteConnectOptions = url.parse()?;
            Pool::Sqlite(SqlitePool::connect_with(options.create_if_missing(true)).await?)
        } else {
            Pool::Postgres(PgPool::connect(url).await?)
        };
        // The same tables may be opened more than once.
        let first = i64::from(rand::random::<u32>()) << 20;
        let policies = Self {
            pool,
            next: first.into(),
        };
        for table in [
            "create table if not exists policy_definition (id text primary key, variant text not null, subject_type text not null, \
             subject_id text not null, target_type text not null, target_id text not null, action text, effect text, domain text)",
            "create table if not exists permission (id text primary key, code text not null)",
            "create table if not exists role (id text primary key, identifier text not null)",
        ] {
            policies.execute(table.to_owned()).await?;
        }
        Ok(policies)
    }

    /// Makes a user member of a role within a domain such as `Merchant_42`.
    ///
    /// # Errors
    /// When the database refuses, as for all of these.
    pub async fn join(&self, user: &str, domain: &str) -> Result<()> {
        let domain = format!("'{domain}'");
        self.row(&format!(
            "'group', 'User', '{user}', 'Role', '1', null, null, {domain}"
        ))
        .await
    }

    /// Takes a user out of a domain.
    ///
    /// # Errors
    /// As above.
    pub async fn leave(&self, user: &str, domain: &str) -> Result<()> {
        let sql = format!(
            "delete from policy_definition where variant = 'group' and subject_id = '{user}' and domain = '{domain}'"
        );
        self.execute(sql).await
    }

    /// Lets a user do `action` on a permission code, or with `effect` `deny` forbids it.
    ///
    /// # Errors
    /// As above.
    pub async fn grant(&self, user: &str, code: &str, action: &str, effect: &str) -> Result<()> {
        let permission = self.next_id();
        let sql = format!("insert into permission (id, code) values ('{permission}', '{code}')");
        self.execute(sql).await?;
        self.row(&format!(
            "'policy', 'User', '{user}', 'Permission', '{permission}', '{action}', '{effect}', null"
        ))
        .await
    }

    /// Adds a row as SQL writes it: variant, subject, target, action, effect, domain.
    ///
    /// # Errors
    /// As above.
    pub async fn row(&self, values: &str) -> Result<()> {
        let sql = format!(
            "insert into policy_definition (id, variant, subject_type, subject_id, target_type, target_id, action, effect, domain) \
             values ('{}', {values})",
            self.next_id()
        );
        self.execute(sql).await
    }

    async fn execute(&self, sql: String) -> Result<()> {
        let query = AssertSqlSafe(sql);
        match &self.pool {
            Pool::Postgres(pool) => sqlx::query(query).execute(pool).await.map(drop)?,
            Pool::Sqlite(pool) => sqlx::query(query).execute(pool).await.map(drop)?,
        }
        Ok(())
    }

    fn next_id(&self) -> i64 {
        self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

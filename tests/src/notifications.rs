//! The gateway's own tables in SQLite, as a test finds or fills them: rows without Kafka, and a database that somebody else has locked.

use std::path::Path;

use anyhow::Result;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{AssertSqlSafe, Sqlite, Transaction};

/// The tables of one gateway.
pub struct Notifications {
    pool: SqlitePool,
}

impl Notifications {
    /// Opens the file that a gateway has made.
    ///
    /// # Errors
    /// When it is no database.
    pub async fn open(file: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new().filename(file);
        Ok(Self {
            pool: SqlitePool::connect_with(options).await?,
        })
    }

    /// Gives a user so many unread notifications more, which nobody pushes.
    ///
    /// # Errors
    /// When the database refuses, as for all of these.
    pub async fn add(&self, user: &str, count: i64) -> Result<()> {
        self.execute(&format!(
            "INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version) VALUES ('{user}', {count}, {count}, {count})
             ON CONFLICT (recipient_id) DO UPDATE SET last_seq = last_seq + {count}, unread_count = unread_count + {count}, version = version + {count};
             WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
             INSERT INTO signal_event (source, event_id) SELECT 'test', hex(randomblob(8)) FROM n;
             INSERT INTO signal_text (event, text, kind, title, content, locale, data, created_at)
             SELECT event, abs(random() % 2147483648), 'T', 't', 'c', 'vi', '{{}}', 1800000000000 FROM signal_event ORDER BY event DESC LIMIT {count};
             INSERT INTO signal_notification (inbox, seq, event, kind, text)
             SELECT inbox, last_seq - row_number() OVER (ORDER BY event DESC) + 1, event, unicode('T'), text
             FROM (SELECT event, text FROM signal_text ORDER BY event DESC LIMIT {count}), signal_inbox WHERE recipient_id = '{user}';"
        ))
        .await
    }

    /// How many notifications of all users are unread.
    ///
    /// # Errors
    /// As above.
    pub async fn unread(&self) -> Result<i64> {
        let sql = "SELECT coalesce(sum(unread_count), 0) FROM signal_inbox";
        Ok(sqlx::query_scalar(sql).fetch_one(&self.pool).await?)
    }

    /// Runs statements.
    ///
    /// # Errors
    /// As above.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Keeps everybody else from writing until it is dropped.
    ///
    /// # Errors
    /// As above.
    pub async fn lock(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Lets go of the file.
    pub async fn close(self) {
        self.pool.close().await;
    }
}

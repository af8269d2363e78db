//! Makes and fills the platform's three tables, for dev mode and tests. In production they belong to the platform, and the gateway only reads them.
//!
//! Input: permissions, roles and policies. Output: rows that [`super::PolicyStore`] reads.

use super::OpenError;
use super::open::{DatabaseAddress, parse_address};
use crate::config::Secret;

/// The tables, with text ids. PostgreSQL and SQLite take the same statements.
pub const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS policy_definition (
        id text NOT NULL PRIMARY KEY, variant text NOT NULL, subject_type text NOT NULL, subject_id text NOT NULL,
        target_type text NOT NULL, target_id text NOT NULL, action text, effect text, domain text)",
    "CREATE TABLE IF NOT EXISTS permission (id text NOT NULL PRIMARY KEY, code text NOT NULL)",
    "CREATE TABLE IF NOT EXISTS role (id text NOT NULL PRIMARY KEY, identifier text NOT NULL)",
];

/// A row of `policy_definition`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyDefinition {
    /// Identity; an existing row with this id is left as it is.
    pub id: String,
    /// `policy` or `group`.
    pub variant: &'static str,
    /// `User` or `Role`, and its id.
    pub subject: (&'static str, String),
    /// `Permission` or `Role`, and its id.
    pub target: (&'static str, String),
    /// What may be done; `None` for groups.
    pub action: Option<String>,
    /// `allow`, `deny`, or `None` for the default.
    pub effect: Option<String>,
    /// `Merchant_42`; `None` for everywhere.
    pub domain: Option<String>,
}

impl PolicyDefinition {
    /// Makes the user a member of the role, in one domain or everywhere.
    pub fn member(user: &str, role: &str, domain: Option<&str>) -> Self {
        Self {
            id: format!("member/{user}/{role}/{}", domain.unwrap_or_default()),
            variant: "group",
            subject: ("User", user.into()),
            target: ("Role", role.into()),
            action: None,
            effect: None,
            domain: domain.map(Into::into),
        }
    }

    /// Allows the role this action on what the permission names, in one domain or everywhere.
    pub fn may(role: &str, permission: &str, action: &str, domain: Option<&str>) -> Self {
        Self {
            id: format!(
                "may/{role}/{permission}/{action}/{}",
                domain.unwrap_or_default()
            ),
            variant: "policy",
            subject: ("Role", role.into()),
            target: ("Permission", permission.into()),
            action: Some(action.into()),
            effect: None,
            domain: domain.map(Into::into),
        }
    }
}

/// What the tables are filled with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Platform {
    /// Ids and codes.
    pub permissions: Vec<(String, String)>,
    /// Ids and identifiers.
    pub roles: Vec<(String, String)>,
    /// Policies and memberships.
    pub definitions: Vec<PolicyDefinition>,
}

const PERMISSION: &str =
    "INSERT INTO permission (id, code) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING";
const ROLE: &str = "INSERT INTO role (id, identifier) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING";
const DEFINITION: &str = r"
INSERT INTO policy_definition (id, variant, subject_type, subject_id, target_type, target_id, action, effect, domain)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING";

/// Runs the statements on a connection of either kind, in one transaction.
macro_rules! fill {
    ($connection:ident, $platform:ident) => {{
        let mut tx = sqlx::Connection::begin(&mut $connection).await?;
        for table in TABLES {
            sqlx::query(table).execute(&mut *tx).await?;
        }
        for (statement, pairs) in [
            (PERMISSION, &$platform.permissions),
            (ROLE, &$platform.roles),
        ] {
            for (id, name) in pairs {
                sqlx::query(statement)
                    .bind(id)
                    .bind(name)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        for row in &$platform.definitions {
            let query = sqlx::query(DEFINITION).bind(&row.id).bind(row.variant);
            let query = query
                .bind(row.subject.0)
                .bind(&row.subject.1)
                .bind(row.target.0)
                .bind(&row.target.1);
            query
                .bind(&row.action)
                .bind(&row.effect)
                .bind(&row.domain)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        sqlx::Connection::close($connection).await?;
    }};
}

/// Makes the tables where they are missing and adds the rows whose ids are missing. May be repeated.
///
/// # Errors
/// The URL is wrong or the database refuses.
pub async fn seed(url: &Secret, platform: &Platform) -> Result<(), OpenError> {
    match parse_address("policy.url", url)? {
        DatabaseAddress::Postgres(servers) => {
            let (mut connection, _) = servers.connect(std::time::Duration::from_secs(30)).await?;
            fill!(connection, platform);
        }
        DatabaseAddress::Sqlite {
            options,
            in_memory: _,
        } => {
            let options = super::sqlite::tuned(options, std::time::Duration::from_secs(5));
            let mut connection = sqlx::ConnectOptions::connect(&options).await?;
            fill!(connection, platform);
        }
    }
    Ok(())
}

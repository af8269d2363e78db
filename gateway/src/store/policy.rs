//! The platform's policy tables: the users of a merchant or organizer, and the rules of a user.
//!
//! Input: `policy_definition` and `permission`, which are only read. Output: rows for [`crate::auth`] and recipients for [`crate::activity`].
//! Their ids may be numbers or text, so they are compared as text; where the tables are large, the platform may help with an index on
//! `(subject_id::text)`.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{ColumnIndex, Decode, Row, Type};

use super::error::refuse_nul;
use super::postgres::PostgresPool;
use super::sqlite::{SqlitePools, json};
use super::{Domain, GroupRow, PolicyRow, PolicyStore, StoreError, StoreFuture};

macro_rules! users_in {
    ($among:literal) => {
        concat!(
            "SELECT DISTINCT CAST(domain AS text) AS domain, CAST(subject_id AS text) AS subject_id FROM policy_definition",
            " WHERE CAST(variant AS text) = 'group' AND CAST(subject_type AS text) = 'User' AND subject_id IS NOT NULL",
            " AND CAST(domain AS text) ",
            $among
        )
    };
}

/// `$1` domains.
const USERS_IN_POSTGRES: &str = users_in!("= ANY($1)");
/// `$1` domains, as JSON.
const USERS_IN_SQLITE: &str = users_in!("IN (SELECT value FROM json_each($1))");

/// `$1` user.
const DOMAINS_OF: &str = r"
SELECT DISTINCT CAST(domain AS text) AS domain FROM policy_definition
WHERE CAST(variant AS text) = 'group' AND CAST(subject_type AS text) = 'User' AND CAST(subject_id AS text) = $1 AND domain IS NOT NULL";

/// `$1` user. One statement, so that the roles and what they may are of one moment.
const RULES_OF: &str = r"
WITH roles AS (
    SELECT CAST(target_id AS text) AS role, CAST(domain AS text) AS domain FROM policy_definition
    WHERE CAST(variant AS text) = 'group' AND CAST(subject_type AS text) = 'User' AND CAST(subject_id AS text) = $1
        AND CAST(target_type AS text) = 'Role' AND target_id IS NOT NULL
)
SELECT 'group' AS variant, 'User' AS subject_type, $1 AS subject_id, role AS target, domain, NULL AS action, NULL AS effect FROM roles
UNION ALL
SELECT 'policy', CAST(p.subject_type AS text), CAST(p.subject_id AS text), CAST(m.code AS text), CAST(p.domain AS text),
    CAST(p.action AS text), CAST(p.effect AS text)
FROM policy_definition p JOIN permission m ON CAST(m.id AS text) = CAST(p.target_id AS text)
WHERE CAST(p.variant AS text) = 'policy' AND m.code IS NOT NULL AND p.action IS NOT NULL AND CAST(p.action AS text) <> ''
    AND (
        (CAST(p.subject_type AS text) = 'User' AND CAST(p.subject_id AS text) = $1)
        OR (CAST(p.subject_type AS text) = 'Role' AND CAST(p.subject_id AS text) IN (SELECT role FROM roles))
    )";

/// The platform's tables in PostgreSQL.
pub(super) struct PostgresPolicies(pub(super) Arc<PostgresPool>);

/// The platform's tables in SQLite.
pub(super) struct SqlitePolicies(pub(super) SqlitePools);

impl PostgresPolicies {
    async fn rows(
        &self,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<Vec<sqlx::postgres::PgRow>, StoreError> {
        let mut connection = self.0.acquire().await?;
        let result = self
            .0
            .step(query.fetch_all(&mut *connection))
            .await
            .map_err(StoreError::from);
        self.0.done(connection, result)
    }
}

/// The answer to `users_in`, by the text of a domain as the table writes it.
fn users<'r, R: Row>(
    domains: &[Domain],
    rows: &'r [R],
) -> Result<HashMap<Domain, Arc<[String]>>, StoreError>
where
    &'static str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut found: HashMap<&str, Vec<String>> = HashMap::new();
    for row in rows {
        found
            .entry(row.try_get("domain")?)
            .or_default()
            .push(row.try_get::<&str, _>("subject_id")?.to_owned());
    }
    found.values_mut().for_each(|users| users.sort_unstable());
    let found: HashMap<&str, Arc<[String]>> = found
        .into_iter()
        .map(|(domain, users)| (domain, users.into()))
        .collect();
    Ok(domains
        .iter()
        .filter_map(|domain| {
            Some((
                domain.clone(),
                found.get(domain.to_string().as_str())?.clone(),
            ))
        })
        .collect())
}

fn sorted_domains<'r, R: Row>(rows: &'r [R]) -> Result<Vec<String>, StoreError>
where
    &'static str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut domains = rows
        .iter()
        .map(|row| Ok(row.try_get::<&str, _>("domain")?.to_owned()))
        .collect::<Result<Vec<_>, StoreError>>()?;
    domains.sort_unstable();
    Ok(domains)
}

fn rules<'r, R: Row>(rows: &'r [R]) -> Result<(Vec<PolicyRow>, Vec<GroupRow>), StoreError>
where
    &'static str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut policies = Vec::new();
    let mut groups = Vec::new();
    for row in rows {
        let text = |name| row.try_get::<&str, _>(name);
        let optional = |name| row.try_get::<Option<&str>, _>(name);
        let subject = format!("{}_{}", text("subject_type")?, text("subject_id")?);
        let domain = optional("domain")?.map(str::to_owned);
        if text("variant")? == "group" {
            groups.push(GroupRow {
                subject,
                role: format!("Role_{}", text("target")?),
                domain,
            });
        } else {
            let allow =
                optional("effect")?.is_none_or(|effect| effect.eq_ignore_ascii_case("allow"));
            policies.push(PolicyRow {
                subject,
                domain,
                code: text("target")?.to_owned(),
                action: text("action")?.to_owned(),
                allow,
            });
        }
    }
    Ok((policies, groups))
}

fn names(domains: &[Domain]) -> Result<Vec<String>, StoreError> {
    let names: Vec<String> = domains.iter().map(Domain::to_string).collect();
    names
        .iter()
        .try_for_each(|name| refuse_nul("domain", name))?;
    Ok(names)
}

impl PolicyStore for PostgresPolicies {
    fn users_in<'a>(
        &'a self,
        domains: &'a [Domain],
    ) -> StoreFuture<'a, HashMap<Domain, Arc<[String]>>> {
        Box::pin(async move {
            users(
                domains,
                &self
                    .rows(sqlx::query(USERS_IN_POSTGRES).bind(names(domains)?))
                    .await?,
            )
        })
    }

    fn domains_of<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(async move {
            refuse_nul("user", user)?;
            sorted_domains(&self.rows(sqlx::query(DOMAINS_OF).bind(user)).await?)
        })
    }

    fn rules_of<'a>(&'a self, user: &'a str) -> StoreFuture<'a, (Vec<PolicyRow>, Vec<GroupRow>)> {
        Box::pin(async move {
            refuse_nul("user", user)?;
            rules(&self.rows(sqlx::query(RULES_OF).bind(user)).await?)
        })
    }
}

impl PolicyStore for SqlitePolicies {
    fn users_in<'a>(
        &'a self,
        domains: &'a [Domain],
    ) -> StoreFuture<'a, HashMap<Domain, Arc<[String]>>> {
        Box::pin(async move {
            let names = json(&names(domains)?)?;
            users(
                domains,
                &sqlx::query(USERS_IN_SQLITE)
                    .bind(names)
                    .fetch_all(&self.0.read)
                    .await?,
            )
        })
    }

    fn domains_of<'a>(&'a self, user: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(async move {
            refuse_nul("user", user)?;
            sorted_domains(
                &sqlx::query(DOMAINS_OF)
                    .bind(user)
                    .fetch_all(&self.0.read)
                    .await?,
            )
        })
    }

    fn rules_of<'a>(&'a self, user: &'a str) -> StoreFuture<'a, (Vec<PolicyRow>, Vec<GroupRow>)> {
        Box::pin(async move {
            refuse_nul("user", user)?;
            rules(
                &sqlx::query(RULES_OF)
                    .bind(user)
                    .fetch_all(&self.0.read)
                    .await?,
            )
        })
    }
}

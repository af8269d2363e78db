//! The platform's policy tables: the users of a merchant or organizer, and the rules of a user.
//!
//! Input: `policy_definition` and `permission` under the names of `[policy]`, which are only read. Output: rows for [`crate::auth`] and recipients for
//! [`crate::activity`]. [`tables`] writes the statements, and [`read`] says what a row means. Ids may be numbers or text, so they are compared as text;
//! where the tables are large, the platform may help with an index on `(subject_id::text)`.
//!
//! The columns that the tables have are looked up with the first question, again after a failure, and again every 30 s: a platform that begins to mark
//! rows as deleted, and a URL that names another database, count within that time.

mod read;
mod survey;
mod tables;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use sqlx::{AssertSqlSafe, ColumnIndex, Decode, Row, Type};
use tokio::time::Instant;

use super::error::refuse_nul;
use super::postgres::PostgresPool;
use super::sqlite::{SqlitePools, json};
use super::{Domain, Hierarchy, PolicyStore, Rules, StoreError, StoreFuture};
use crate::config;

use read::{Denied, RESOURCE_INHERITS, Reader, Reading, Written};
use tables::{MAX_EDGES, Statements, Tables};

pub use read::Misread;
pub use survey::{PolicySurvey, Unread};

/// How long the columns that were found count.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What both kinds of database share.
struct Platform {
    reader: Reader,
    tables: Tables,
    statements: ArcSwapOption<(Instant, Statements)>,
}

/// The platform's tables in PostgreSQL.
pub(super) struct PostgresPolicies {
    pool: Arc<PostgresPool>,
    platform: Platform,
}

/// The platform's tables in SQLite.
pub(super) struct SqlitePolicies {
    pools: SqlitePools,
    platform: Platform,
}

/// The names by which members of domains are asked for.
struct Asked {
    /// Domains as rows write them.
    domains: Vec<String>,
    merchants: Vec<String>,
    organizers: Vec<String>,
}

impl Platform {
    fn new(policy: &config::Policy) -> Self {
        Self {
            reader: Reader::new(policy),
            tables: Tables::new(policy),
            statements: ArcSwapOption::empty(),
        }
    }

    fn known(&self) -> Option<Arc<(Instant, Statements)>> {
        self.statements
            .load_full()
            .filter(|known| known.0.elapsed() < LOOK_AGAIN)
    }

    fn found(
        &self,
        definition: &HashSet<String>,
        permission: &HashSet<String>,
    ) -> Result<Arc<(Instant, Statements)>, StoreError> {
        let statements = self
            .tables
            .statements(definition, permission)
            .map_err(|missing| StoreError::unavailable(std::io::Error::other(missing)))?;
        let found = Arc::new((Instant::now(), statements));
        self.statements.store(Some(Arc::clone(&found)));
        Ok(found)
    }

    /// Forgets the columns after a failure: they may be why.
    fn checked<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err() {
            self.statements.store(None);
        }
        result
    }

    fn asked(&self, domains: &[Domain]) -> Result<Asked, StoreError> {
        let mut asked = Asked {
            domains: Vec::with_capacity(domains.len()),
            merchants: Vec::new(),
            organizers: Vec::new(),
        };
        for domain in domains {
            refuse_nul("domain", domain.id())?;
            asked.domains.push(self.reader.name(domain));
            asked
                .domains
                .extend(self.reader.bare(domain).map(str::to_owned));
            match domain {
                Domain::Merchant(id) => asked.merchants.push(id.clone()),
                Domain::Organizer(id) => asked.organizers.push(id.clone()),
            }
        }
        Ok(asked)
    }

    /// The members of each domain. Whoever a row denies a domain is no member of it, whatever the other rows say.
    fn users<'r, R: Row>(
        &self,
        domains: &[Domain],
        rows: &'r [R],
    ) -> Result<HashMap<Domain, Arc<[String]>>, StoreError>
    where
        &'static str: ColumnIndex<R>,
        &'r str: Decode<'r, R::Database> + Type<R::Database>,
    {
        let mut members: HashMap<String, BTreeSet<&str>> = HashMap::new();
        let mut denied: HashSet<(String, &str)> = HashSet::new();
        for row in rows {
            let row = written(row)?;
            let Some(user) = row.subject_id else { continue };
            match self.membership(&row) {
                Membership::In(domain) => {
                    members.entry(domain).or_default().insert(user);
                }
                Membership::NotIn(domain) => {
                    denied.insert((domain, user));
                }
                Membership::None => {}
            }
        }
        for (domain, user) in denied {
            if let Some(users) = members.get_mut(&domain) {
                users.remove(user);
            }
        }
        let found: HashMap<String, Arc<[String]>> = members
            .into_iter()
            .filter(|(_, users)| !users.is_empty())
            .map(|(domain, users)| (domain, users.into_iter().map(str::to_owned).collect()))
            .collect();
        Ok(domains
            .iter()
            .filter_map(|domain| {
                Some((
                    domain.clone(),
                    Arc::clone(found.get(&self.reader.name(domain))?),
                ))
            })
            .collect())
    }

    fn membership(&self, row: &Written<'_>) -> Membership {
        match self.reader.read(row) {
            Reading::Member(domain) => Membership::In(domain),
            Reading::Role { role, joins: true } => {
                role.domain.map_or(Membership::None, Membership::In)
            }
            Reading::Unread {
                denies: Some(Denied::Domain(domain)),
                ..
            } => Membership::NotIn(domain),
            _ => Membership::None,
        }
    }

    fn domains<'r, R: Row>(&self, rows: &'r [R]) -> Result<Vec<Domain>, StoreError>
    where
        &'static str: ColumnIndex<R>,
        &'r str: Decode<'r, R::Database> + Type<R::Database>,
    {
        let (mut joined, mut denied) = (BTreeSet::new(), HashSet::new());
        for row in rows {
            match self.membership(&written(row)?) {
                Membership::In(domain) => {
                    joined.insert(domain);
                }
                Membership::NotIn(domain) => {
                    denied.insert(domain);
                }
                Membership::None => {}
            }
        }
        Ok(joined
            .into_iter()
            .filter(|domain| !denied.contains(domain))
            .filter_map(|domain| self.reader.domain_of(&domain))
            .collect())
    }

    fn rules<'r, R: Row>(&self, subject: &str, rows: &'r [R]) -> Result<Rules, StoreError>
    where
        &'static str: ColumnIndex<R>,
        &'r str: Decode<'r, R::Database> + Type<R::Database>,
    {
        let mut rules = Rules::default();
        let mut denied: HashSet<(String, String)> = HashSet::new();
        for row in rows {
            let row = written(row)?;
            match self.reader.read(&row) {
                Reading::Policy(policy) => rules.policies.push(policy),
                Reading::Role { role, .. } => rules.groups.push(role),
                Reading::Unread {
                    denies: Some(Denied::Permission(policy)),
                    ..
                } => rules.policies.push(policy),
                Reading::Unread {
                    denies: Some(Denied::Role(role)),
                    ..
                } => {
                    let named = row.subject_type.zip(row.subject_id);
                    let who =
                        named.map_or_else(|| subject.to_owned(), |(k, id)| format!("{k}_{id}"));
                    denied.insert((who, role));
                }
                Reading::Member(_) | Reading::Elsewhere | Reading::Unread { .. } => {}
            }
        }
        rules
            .groups
            .retain(|row| !denied.contains(&(row.subject.clone(), row.role.clone())));
        Ok(rules)
    }

    fn hierarchy<'r, R: Row>(rows: &'r [R]) -> Result<Hierarchy, StoreError>
    where
        &'static str: ColumnIndex<R>,
        &'r str: Decode<'r, R::Database> + Type<R::Database>,
    {
        if rows.len() > MAX_EDGES {
            // Any part of them would be an arbitrary choice, which might leave out a denied resource.
            return Err(StoreError::unavailable(std::io::Error::other(format!(
                "more than {MAX_EDGES} rows put resources and actions below others"
            ))));
        }
        let mut hierarchy = Hierarchy::default();
        for row in rows {
            let text = |name| row.try_get::<Option<&str>, _>(name);
            let (Some(below), Some(above)) = (text("below")?, text("above")?) else {
                continue;
            };
            let edges = if text("variant")? == Some(RESOURCE_INHERITS) {
                &mut hierarchy.resources
            } else {
                &mut hierarchy.actions
            };
            edges.push((below.to_owned(), above.to_owned()));
        }
        Ok(hierarchy)
    }
}

enum Membership {
    In(String),
    NotIn(String),
    None,
}

fn written<'r, R: Row>(row: &'r R) -> Result<Written<'r>, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let text = |name: &'static str| row.try_get::<Option<&'r str>, _>(name);
    Ok(Written {
        variant: text("variant")?,
        subject_type: text("subject_type")?,
        subject_id: text("subject_id")?,
        target_type: text("target_type")?,
        target_id: text("target_id")?,
        action: text("action")?,
        effect: text("effect")?,
        domain: text("domain")?,
        code: text("code")?,
    })
}

fn columns<'r, R: Row>(rows: &'r [R]) -> Result<HashSet<String>, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    rows.iter()
        .map(|row| Ok(row.try_get::<&str, _>("name")?.to_owned()))
        .collect()
}

/// The columns of a table, without those of the system. A table that the search path does not find, or that does not exist, has none. `$1` its quoted name.
const COLUMNS_POSTGRES: &str = "SELECT CAST(attname AS text) AS name FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
/// `$1` the table, `$2` the schema or NULL.
const COLUMNS_SQLITE: &str = "SELECT name FROM pragma_table_info($1, $2)";

impl PostgresPolicies {
    pub(super) fn new(pool: Arc<PostgresPool>, policy: &config::Policy) -> Self {
        Self {
            pool,
            platform: Platform::new(policy),
        }
    }

    async fn rows(
        &self,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<Vec<sqlx::postgres::PgRow>, StoreError> {
        self.platform.checked(self.pool.all(query).await)
    }

    async fn statements(&self) -> Result<Arc<(Instant, Statements)>, StoreError> {
        if let Some(known) = self.platform.known() {
            return Ok(known);
        }
        let tables = &self.platform.tables;
        let definition = sqlx::query(COLUMNS_POSTGRES).bind(tables.definition.quoted());
        let definition = columns(&self.rows(definition).await?)?;
        let permission = sqlx::query(COLUMNS_POSTGRES).bind(tables.permission.quoted());
        let permission = columns(&self.rows(permission).await?)?;
        self.platform.found(&definition, &permission)
    }
}

impl SqlitePolicies {
    pub(super) fn new(pools: SqlitePools, policy: &config::Policy) -> Self {
        Self {
            pools,
            platform: Platform::new(policy),
        }
    }

    async fn rows(
        &self,
        query: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    ) -> Result<Vec<sqlx::sqlite::SqliteRow>, StoreError> {
        let result = query.fetch_all(&self.pools.read).await;
        self.platform.checked(result.map_err(StoreError::from))
    }

    async fn statements(&self) -> Result<Arc<(Instant, Statements)>, StoreError> {
        if let Some(known) = self.platform.known() {
            return Ok(known);
        }
        let tables = &self.platform.tables;
        let look = |table: &tables::Table| {
            sqlx::query(COLUMNS_SQLITE)
                .bind(table.table().to_owned())
                .bind(table.schema().map(str::to_owned))
        };
        let definition = columns(&self.rows(look(&tables.definition)).await?)?;
        let permission = columns(&self.rows(look(&tables.permission)).await?)?;
        self.platform.found(&definition, &permission)
    }
}

/// Makes a query of a statement that [`tables`] wrote.
macro_rules! query {
    ($statement:expr) => {
        sqlx::query(AssertSqlSafe($statement.clone()))
    };
}

/// The questions that both kinds of database answer with the same statements.
macro_rules! questions {
    () => {
        fn domains_of<'a>(&'a self, kind: &'a str, user: &'a str) -> StoreFuture<'a, Vec<Domain>> {
            Box::pin(async move {
                refuse_nul("user", user)?;
                let statements = self.statements().await?;
                let query = query!(statements.1.domains).bind(user).bind(kind);
                self.platform.domains(&self.rows(query).await?)
            })
        }

        fn rules_of<'a>(&'a self, kind: &'a str, user: &'a str) -> StoreFuture<'a, Rules> {
            Box::pin(async move {
                refuse_nul("user", user)?;
                let kinds = &self.platform.reader.kinds;
                if kind == kinds.role {
                    // Nobody speaks for a role: its rows are those of everybody who has it.
                    return Ok(Rules::default());
                }
                let statements = self.statements().await?;
                let query = query!(statements.1.rules)
                    .bind(user)
                    .bind(kind)
                    .bind(&kinds.role)
                    .bind(&kinds.permission);
                let subject = format!("{kind}_{user}");
                self.platform.rules(&subject, &self.rows(query).await?)
            })
        }

        fn hierarchy(&self) -> StoreFuture<'_, Hierarchy> {
            Box::pin(async move {
                let statements = self.statements().await?;
                let query = query!(statements.1.edges).bind(&self.platform.reader.kinds.permission);
                Platform::hierarchy(&self.rows(query).await?)
            })
        }

        fn survey(&self) -> StoreFuture<'_, PolicySurvey> {
            Box::pin(async move {
                let statements = self.statements().await?;
                let query =
                    query!(statements.1.survey).bind(&self.platform.reader.kinds.permission);
                let mut survey = self.platform.survey(&self.rows(query).await?)?;
                if let Some(deleted) = &statements.1.deleted {
                    let rows = self
                        .rows(sqlx::query(AssertSqlSafe(deleted.clone())))
                        .await?;
                    survey.deleted = rows
                        .first()
                        .map(|row| row.try_get::<i64, _>("number"))
                        .transpose()?
                        .map(i64::cast_unsigned);
                }
                Ok(survey)
            })
        }
    };
}

impl PolicyStore for PostgresPolicies {
    fn users_in<'a>(
        &'a self,
        domains: &'a [Domain],
    ) -> StoreFuture<'a, HashMap<Domain, Arc<[String]>>> {
        Box::pin(async move {
            let asked = self.platform.asked(domains)?;
            let statements = self.statements().await?;
            let kinds = &self.platform.reader.kinds;
            let query = query!(statements.1.users_postgres)
                .bind(asked.domains)
                .bind(asked.merchants)
                .bind(asked.organizers)
                .bind(&kinds.merchant)
                .bind(&kinds.organizer);
            self.platform.users(domains, &self.rows(query).await?)
        })
    }

    questions!();
}

impl PolicyStore for SqlitePolicies {
    fn users_in<'a>(
        &'a self,
        domains: &'a [Domain],
    ) -> StoreFuture<'a, HashMap<Domain, Arc<[String]>>> {
        Box::pin(async move {
            let asked = self.platform.asked(domains)?;
            let statements = self.statements().await?;
            let kinds = &self.platform.reader.kinds;
            let query = query!(statements.1.users_sqlite)
                .bind(json(&asked.domains)?)
                .bind(json(&asked.merchants)?)
                .bind(json(&asked.organizers)?)
                .bind(&kinds.merchant)
                .bind(&kinds.organizer);
            self.platform.users(domains, &self.rows(query).await?)
        })
    }

    questions!();
}

//! The names of the platform's tables and columns, and the statements that read them.
//!
//! Input: `[policy]`, checked when it was loaded, and the columns that a table has. Output: SQL for both kinds of database. Every name is quoted; words and
//! ids are parameters. No IO.

use std::collections::HashSet;

use super::read::{
    ACTION, ACTION_INHERITS, ASSIGN_ROLE, DENY, GROUP, JOIN_DOMAIN, RESOURCE_INHERITS,
    ROLE_INHERITS, USER,
};
use crate::config::{self, PolicyColumns};

/// The name under which `deleted_at` may be absent.
const DELETED_AT: &str = "deleted_at";
/// Most rows that put one resource or action below another.
pub(super) const MAX_EDGES: usize = 10_000;
/// Most kinds of rows that a survey tells apart.
pub(super) const MAX_SHAPES: usize = 1_000;

/// One table.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// As the settings write it.
    pub(super) name: String,
    schema: Option<String>,
    table: String,
    /// Columns that must exist.
    required: Vec<String>,
}

/// Both tables.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    pub(super) definition: Table,
    pub(super) permission: Table,
    columns: PolicyColumns,
}

/// The statements, for the columns that the tables have.
#[derive(Debug)]
pub(super) struct Statements {
    /// Policies and memberships of a user and of the user's roles. `$1` user, `$2` the user's kind, `$3` the kind of roles, `$4` of permissions.
    pub(super) rules: String,
    /// Memberships of a user. `$1` user, `$2` the user's kind.
    pub(super) domains: String,
    /// Memberships of all people in some domains, PostgreSQL. `$1` domains as rows write them, `$2` merchants, `$3` organizers, `$4` and `$5` their kinds.
    pub(super) users_postgres: String,
    /// The same for SQLite, whose lists are JSON.
    pub(super) users_sqlite: String,
    /// What lies below what. `$1` the kind of permissions.
    pub(super) edges: String,
    /// How many rows there are of each shape. `$1` the kind of permissions.
    pub(super) survey: String,
    /// How many rows were deleted, where the table tells.
    pub(super) deleted: Option<String>,
}

impl Table {
    fn new(name: &str, required: &[&String]) -> Self {
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(schema.to_owned()), table),
            None => (None, name),
        };
        Self {
            name: name.to_owned(),
            schema,
            table: table.to_owned(),
            required: required.iter().map(|column| (*column).clone()).collect(),
        }
    }

    pub(super) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Returns the quoted name.
    pub(super) fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.table)),
            None => quoted(&self.table),
        }
    }
}

impl Tables {
    pub(super) fn new(policy: &config::Policy) -> Self {
        let columns = policy.columns.clone();
        // Under its default name the column may be absent; a name that somebody chose and that is not there is a mistake, by which deleted rows would count.
        let deleted: Vec<&String> = [&columns.deleted_at]
            .into_iter()
            .filter(|column| !column.is_empty() && *column != DELETED_AT)
            .collect();
        let definition = [
            &columns.variant,
            &columns.subject_type,
            &columns.subject_id,
            &columns.target_type,
            &columns.target_id,
            &columns.action,
            &columns.effect,
            &columns.domain,
        ];
        let permission = [&columns.id, &columns.code];
        let with = |some: &[&String]| -> Vec<String> {
            some.iter()
                .chain(&deleted)
                .map(|column| (*column).clone())
                .collect()
        };
        let (definition, permission) = (with(&definition), with(&permission));
        Self {
            definition: Table::new(
                &policy.tables.policy_definition,
                &definition.iter().collect::<Vec<_>>(),
            ),
            permission: Table::new(
                &policy.tables.permission,
                &permission.iter().collect::<Vec<_>>(),
            ),
            columns,
        }
    }

    /// Returns the statements for tables with these columns.
    ///
    /// # Errors
    /// For people: the table or column that is missing.
    pub(super) fn statements(
        &self,
        definition: &HashSet<String>,
        permission: &HashSet<String>,
    ) -> Result<Statements, String> {
        for (table, found) in [
            (&self.definition, definition),
            (&self.permission, permission),
        ] {
            if found.is_empty() {
                return Err(format!(
                    "table {} does not exist, or may not be read",
                    table.name
                ));
            }
            if let Some(column) = table
                .required
                .iter()
                .find(|column| !found.contains(*column))
            {
                return Err(format!("table {} has no column {column}", table.name));
            }
            if let Some(column) = self.unnamed_deleted(found) {
                return Err(format!(
                    "table {} has a column {column}: name it in policy.columns.deleted_at if a row with a value in it was deleted, or leave that setting empty",
                    table.name
                ));
            }
        }
        Ok(Statements {
            rules: self.rules(definition, permission),
            domains: self.domains(definition),
            users_postgres: self.users(definition, |list| format!("= ANY({list})")),
            users_sqlite: self.users(definition, |list| {
                format!("IN (SELECT value FROM json_each({list}))")
            }),
            edges: self.edges(definition, permission),
            survey: self.survey(definition, permission),
            deleted: self.has_deleted(definition).then(|| {
                format!(
                    "SELECT count(*) AS number FROM {} d WHERE d.{} IS NOT NULL",
                    self.definition.quoted(),
                    quoted(&self.columns.deleted_at)
                )
            }),
        })
    }

    /// Returns a column that seems to mark deleted rows under a name that is not that of the settings. Overlooking it would bring deleted rows back.
    fn unnamed_deleted<'f>(&self, found: &'f HashSet<String>) -> Option<&'f String> {
        let name = &self.columns.deleted_at;
        if name.is_empty() || found.contains(name) {
            return None;
        }
        found
            .iter()
            .find(|column| column.to_ascii_lowercase().replace('_', "") == "deletedat")
    }

    fn has_deleted(&self, found: &HashSet<String>) -> bool {
        found.contains(&self.columns.deleted_at)
    }

    /// Returns `AND d."deleted_at" IS NULL` for a table that has the column.
    fn live(&self, alias: &str, found: &HashSet<String>) -> String {
        if self.has_deleted(found) {
            format!(" AND {alias}.{} IS NULL", quoted(&self.columns.deleted_at))
        } else {
            String::new()
        }
    }

    /// Returns the columns of a definition as text, each under the name that the reader knows.
    fn selected(&self, code: &str) -> String {
        let c = &self.columns;
        let column = |name: &str, known: &str| format!("{} AS {known}", text("d", name));
        [
            column(&c.variant, "variant"),
            column(&c.subject_type, "subject_type"),
            column(&c.subject_id, "subject_id"),
            column(&c.target_type, "target_type"),
            column(&c.target_id, "target_id"),
            column(&c.action, "action"),
            column(&c.effect, "effect"),
            column(&c.domain, "domain"),
            format!("{code} AS code"),
        ]
        .join(", ")
    }

    /// One statement, so that roles and what they may are of one moment.
    fn rules(&self, definition: &HashSet<String>, permission: &HashSet<String>) -> String {
        let c = &self.columns;
        let (table, live) = (self.definition.quoted(), self.live("d", definition));
        let d = |column: &str| text("d", column);
        let from = format!(
            "SELECT {} FROM {table} d LEFT JOIN {} p ON {} = {} AND ({kind} = $4 OR {kind} IS NULL OR {kind} = ''){}",
            self.selected(&text("p", &c.code)),
            self.permission.quoted(),
            text("p", &c.id),
            d(&c.target_id),
            self.live("p", permission),
            kind = d(&c.target_type),
        );
        format!(
            "WITH RECURSIVE held(role) AS (
    SELECT {target} FROM {table} d WHERE {variant} IN ('{GROUP}', '{ASSIGN_ROLE}') AND {subject_type} = $2 AND {subject} = $1
        AND {target_type} = $3 AND {target} IS NOT NULL{live}
    UNION
    SELECT {target} FROM {table} d JOIN held h ON {subject} = h.role WHERE {variant} = '{ROLE_INHERITS}' AND {subject_type} = $3
        AND {target_type} = $3 AND {target} IS NOT NULL{live}
)
{from} WHERE {subject_type} = $2 AND {subject} = $1{live}
UNION ALL
{from} WHERE {subject_type} = $3 AND {subject} IN (SELECT role FROM held){live}",
            target = d(&c.target_id),
            variant = d(&c.variant),
            subject_type = d(&c.subject_type),
            subject = d(&c.subject_id),
            target_type = d(&c.target_type),
        )
    }

    fn domains(&self, definition: &HashSet<String>) -> String {
        let c = &self.columns;
        format!(
            "SELECT DISTINCT {} FROM {} d WHERE {} = $2 AND {} = $1 AND ({} IN ('{GROUP}', '{JOIN_DOMAIN}') OR {} = '{DENY}'){}",
            self.selected("NULL"),
            self.definition.quoted(),
            text("d", &c.subject_type),
            text("d", &c.subject_id),
            text("d", &c.variant),
            text("d", &c.effect),
            self.live("d", definition),
        )
    }

    fn users(&self, definition: &HashSet<String>, among: impl Fn(&str) -> String) -> String {
        let c = &self.columns;
        let (target, kind) = (text("d", &c.target_id), text("d", &c.target_type));
        format!(
            "SELECT DISTINCT {} FROM {} d WHERE {} = '{USER}' AND ({} IN ('{GROUP}', '{JOIN_DOMAIN}') OR {} = '{DENY}')
    AND ({} {} OR ({kind} = $4 AND {target} {}) OR ({kind} = $5 AND {target} {})){}",
            self.selected("NULL"),
            self.definition.quoted(),
            text("d", &c.subject_type),
            text("d", &c.variant),
            text("d", &c.effect),
            text("d", &c.domain),
            among("$1"),
            among("$2"),
            among("$3"),
            self.live("d", definition),
        )
    }

    fn edges(&self, definition: &HashSet<String>, permission: &HashSet<String>) -> String {
        let c = &self.columns;
        let (table, live) = (self.definition.quoted(), self.live("d", definition));
        let permissions = self.permission.quoted();
        let d = |column: &str| text("d", column);
        format!(
            "SELECT {variant} AS variant, {below} AS below, {above} AS above FROM {table} d
    JOIN {permissions} b ON {below_id} = {subject}{live_b} JOIN {permissions} a ON {above_id} = {target}{live_a}
    WHERE {variant} = '{RESOURCE_INHERITS}' AND {subject_type} = $1 AND {target_type} = $1{live}
UNION ALL
SELECT {variant}, {subject}, {target} FROM {table} d
    WHERE {variant} = '{ACTION_INHERITS}' AND {subject_type} = '{ACTION}' AND {target_type} = '{ACTION}'{live}
LIMIT {limit}",
            variant = d(&c.variant),
            below = text("b", &c.code),
            above = text("a", &c.code),
            below_id = text("b", &c.id),
            above_id = text("a", &c.id),
            live_b = self.live("b", permission),
            live_a = self.live("a", permission),
            subject = d(&c.subject_id),
            target = d(&c.target_id),
            subject_type = d(&c.subject_type),
            target_type = d(&c.target_type),
            limit = MAX_EDGES + 1,
        )
    }

    /// Rows that differ only in names and ids have one shape, so that a table of any size is surveyed with one answer of few rows. `x` stands for a name.
    fn survey(&self, definition: &HashSet<String>, permission: &HashSet<String>) -> String {
        let c = &self.columns;
        let d = |column: &str| text("d", column);
        let some = |column: &str| format!("CASE WHEN {} <> '' THEN 'x' END", d(column));
        let shape = [
            format!("{} AS variant", d(&c.variant)),
            format!("{} AS subject_type", d(&c.subject_type)),
            format!("{} AS subject_id", some(&c.subject_id)),
            format!("{} AS target_type", d(&c.target_type)),
            format!("{} AS target_id", some(&c.target_id)),
            format!(
                "CASE WHEN {0} = 'custom' THEN 'custom' WHEN {0} <> '' THEN 'x' END AS action",
                d(&c.action)
            ),
            format!("{} AS effect", d(&c.effect)),
            format!(
                "CASE WHEN {0} IN ('*', 'ANY_MEMBER', 'SYSTEM_WIDE') THEN {0} WHEN {0} = {1} || '_' || {2} THEN {1} || '_x'
        WHEN {0} LIKE '%!_%' ESCAPE '!' THEN 'x_x' WHEN {0} <> '' THEN 'x' END AS domain",
                d(&c.domain),
                d(&c.target_type),
                d(&c.target_id)
            ),
            format!("CASE WHEN {} <> '' THEN 'x' END AS code", text("p", &c.code)),
        ]
        .join(",\n    ");
        let example = if definition.contains(&c.id) {
            format!("min({})", d(&c.id))
        } else {
            "min(CAST(NULL AS text))".to_owned()
        };
        format!(
            "SELECT {shape},
    count(*) AS number, {example} AS example
FROM {} d LEFT JOIN {} p ON {} = {} AND ({kind} = $1 OR {kind} IS NULL OR {kind} = ''){}
WHERE 1 = 1{} GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9 ORDER BY 10 DESC LIMIT {}",
            self.definition.quoted(),
            self.permission.quoted(),
            text("p", &c.id),
            d(&c.target_id),
            self.live("p", permission),
            self.live("d", definition),
            MAX_SHAPES,
            kind = d(&c.target_type),
        )
    }
}

/// Returns a column as text, so that ids may be numbers or text and words may be of an enumeration.
fn text(alias: &str, column: &str) -> String {
    format!("CAST({alias}.{} AS text)", quoted(column))
}

/// Quotes a name: whatever it holds, it is a name.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_name_holds_it_is_quoted() {
        assert_eq!(
            quoted(r#"a"; DROP TABLE b; --"#),
            r#""a""; DROP TABLE b; --""#
        );
        let table = Table::new("identity.PolicyDefinition", &[]);
        assert_eq!(table.quoted(), r#""identity"."PolicyDefinition""#);
    }

    fn found(columns: &str) -> HashSet<String> {
        columns.split(' ').map(str::to_owned).collect()
    }

    const DEFINITION: &str =
        "variant subject_type subject_id target_type target_id action effect domain";

    #[test]
    fn a_table_may_lack_the_mark_of_deleted_rows_but_not_have_it_under_another_name() {
        let mut policy = crate::config::Config::for_tests().policy;
        let permission = found("id code");
        let with = |policy: &config::Policy, columns: &str| {
            Tables::new(policy)
                .statements(&found(&format!("{DEFINITION} {columns}")), &permission)
                .map(|statements| statements.domains.contains("IS NULL"))
        };
        assert_eq!(with(&policy, "id"), Ok(false));
        assert_eq!(with(&policy, "id deleted_at"), Ok(true));
        assert!(
            with(&policy, "id deletedAt")
                .unwrap_err()
                .contains("deletedAt")
        );
        policy.columns.deleted_at = "deletedAt".into();
        // The table of permissions has none.
        assert!(
            with(&policy, "id deletedAt")
                .unwrap_err()
                .contains("permission has no column deletedAt")
        );
        policy.columns.deleted_at = String::new();
        assert_eq!(with(&policy, "id deletedAt"), Ok(false));
    }
}

//! Puts a document together from its defaults, a file and the environment, and says all that is wrong with it at once.
//!
//! Each setting is tried alone against the defaults first, so that one wrong value does not hide the next.

use std::fmt;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::check::check;
use super::check_live::check_live;
use super::{Config, DEFAULTS, LIVE_DEFAULTS, Live};

/// What precedes the name of every environment variable that is a setting.
pub(super) const ENV_PREFIX: &str = "SIGNAL__";

/// All that is wrong with a document, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid(pub Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} wrong setting(s):", self.0.len())?;
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Loads the static settings: defaults, then `file`, then those of `environment` that begin with `SIGNAL__`.
///
/// # Errors
/// Every unknown key and wrong value, together.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, Invalid> {
    let mut problems = Vec::new();
    let mut given = read(file, &mut problems);
    overlay_environment(&mut given, environment);
    let config = assemble::<Config>(DEFAULTS, &given, &["kafka.properties"], &mut problems);
    if let Some(config) = &config {
        check(config, &mut problems);
    }
    finish(config, problems)
}

/// Loads the live settings: defaults, then the text of the live file.
///
/// # Errors
/// Every unknown key and wrong value, together.
pub fn load_live(text: &str) -> Result<Live, Invalid> {
    let mut problems = Vec::new();
    let given = parse(text, "live file", &mut problems);
    let live = assemble::<Live>(
        LIVE_DEFAULTS,
        &given,
        &["jwks.sources", "redis", "redis_previous"],
        &mut problems,
    );
    if let Some(live) = &live {
        check_live(live, &mut problems);
    }
    finish(live, problems)
}

fn finish<T>(value: Option<T>, problems: Vec<String>) -> Result<T, Invalid> {
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(Invalid(problems)),
    }
}

fn read(file: Option<&Path>, problems: &mut Vec<String>) -> Table {
    let Some(path) = file else {
        return Table::new();
    };
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &path.display().to_string(), problems),
        Err(error) => {
            problems.push(format!("{}: {error}", path.display()));
            Table::new()
        }
    }
}

fn parse(text: &str, name: &str, problems: &mut Vec<String>) -> Table {
    text.parse().unwrap_or_else(|error: toml::de::Error| {
        problems.push(format!(
            "{name}: {}",
            error.to_string().trim_end().replace('\n', "\n    ")
        ));
        Table::new()
    })
}

/// `SIGNAL__SERVER__PUBLIC_ADDRESS=...` sets `server.public_address`. What reads as a TOML value is one; all else is a string.
fn overlay_environment(given: &mut Table, environment: impl Iterator<Item = (String, String)>) {
    for (name, text) in environment {
        let Some(path) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        let keys: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        insert(given, &keys, literal(&text));
    }
}

fn literal(text: &str) -> Value {
    format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn insert(table: &mut Table, keys: &[String], value: Value) {
    match keys {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = table
                .entry(first.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// Lays `given` over the defaults. `open` names keys whose content the defaults do not list.
fn assemble<T: DeserializeOwned>(
    defaults: &str,
    given: &Table,
    open: &[&str],
    problems: &mut Vec<String>,
) -> Option<T> {
    let defaults: Table = defaults.parse().expect("the defaults parse");
    let mut leaves = Vec::new();
    flatten(given, &mut Vec::new(), open, &mut leaves);
    let mut whole = defaults.clone();
    for (keys, value) in leaves {
        let name = keys.join(".");
        if !open.contains(&name.as_str()) && !known(&defaults, &keys) {
            problems.push(format!("{name}: unknown setting"));
            continue;
        }
        let mut alone = defaults.clone();
        let value = as_default_kind(&defaults, &keys, value);
        insert(&mut alone, &keys, value.clone());
        if let Err(error) = T::deserialize(Value::Table(alone)) {
            problems.push(format!(
                "{name}: {}",
                error.to_string().trim_end().replace('\n', " ")
            ));
            continue;
        }
        insert(&mut whole, &keys, value);
    }
    match T::deserialize(Value::Table(whole)) {
        Ok(value) => Some(value),
        Err(error) => {
            problems.push(error.to_string().trim_end().to_owned());
            None
        }
    }
}

fn flatten(
    table: &Table,
    path: &mut Vec<String>,
    open: &[&str],
    leaves: &mut Vec<(Vec<String>, Value)>,
) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) if !open.contains(&path.join(".").as_str()) => {
                flatten(inner, path, open, leaves)
            }
            _ => leaves.push((path.clone(), value.clone())),
        }
        path.pop();
    }
}

fn lookup<'t>(table: &'t Table, keys: &[String]) -> Option<&'t Value> {
    let (first, rest) = keys.split_first()?;
    let value = table.get(first)?;
    if rest.is_empty() {
        Some(value)
    } else {
        lookup(value.as_table()?, rest)
    }
}

fn known(defaults: &Table, keys: &[String]) -> bool {
    lookup(defaults, keys).is_some_and(|v| !v.is_table())
}

/// An environment variable holding digits is still a string where the default is one, and `a,b` is a list where the default is.
fn as_default_kind(defaults: &Table, keys: &[String], value: Value) -> Value {
    match (lookup(defaults, keys), value) {
        (
            Some(Value::String(_)),
            value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_)),
        ) => Value::String(value.to_string()),
        (Some(Value::Array(_)), Value::String(text)) => Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|s| !s.is_empty())
                .map(|s| Value::String(s.to_owned()))
                .collect(),
        ),
        (_, value) => value,
    }
}

#[cfg(test)]
mod tests;

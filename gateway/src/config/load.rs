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
    overlay_environment(&mut given, &table(DEFAULTS), environment);
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

fn table(defaults: &str) -> Table {
    defaults.parse().expect("the defaults parse")
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
        // The error's own text shows the line, which may hold a password.
        let before = text.get(..error.span().map_or(0, |span| span.start));
        let before = before.unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        problems.push(format!(
            "{name}: line {line}, column {column}: {}",
            error.message()
        ));
        Table::new()
    })
}

/// `SIGNAL__SERVER__PUBLIC_ADDRESS=...` sets `server.public_address`; the default says what kind of value the text is.
fn overlay_environment(
    given: &mut Table,
    defaults: &Table,
    environment: impl Iterator<Item = (String, String)>,
) {
    for (name, text) in environment {
        let Some(path) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        let keys: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
        let value = typed(lookup(defaults, &keys), text);
        insert(given, &keys, value);
    }
}

/// Reads the text of an environment variable as the kind of the setting's default. A setting that is text keeps every character of it: `1e5` is a
/// name and `007` is not 7. Keys below an open section, which have no default, are text too. A text that is not of the kind stays one, so that the
/// setting is refused by its name.
fn typed(default: Option<&Value>, text: String) -> Value {
    match default {
        None | Some(Value::String(_)) => Value::String(text),
        Some(Value::Array(_)) => list(&text),
        Some(_) => literal(&text).unwrap_or(Value::String(text)),
    }
}

/// Reads `["a", "b"]`, or `a, b`. Every list among the static settings is one of texts, so anything else in brackets is a text as well.
fn list(text: &str) -> Value {
    match literal(text) {
        Some(Value::Array(items)) if items.iter().all(Value::is_str) => Value::Array(items),
        _ => split(text),
    }
}

fn split(text: &str) -> Value {
    let items = text.split(',').map(str::trim).filter(|s| !s.is_empty());
    Value::Array(items.map(|s| Value::String(s.to_owned())).collect())
}

fn literal(text: &str) -> Option<Value> {
    let mut document: Table = format!("v = {text}").parse().ok()?;
    document.remove("v").filter(|_| document.is_empty())
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
    let defaults = table(defaults);
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
        let value = match (lookup(&defaults, &keys), value) {
            (Some(Value::Array(_)), Value::String(text)) => split(&text),
            (_, value) => value,
        };
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

#[cfg(test)]
mod tests;

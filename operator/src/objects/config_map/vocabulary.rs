//! One vocabulary: what the operator writes has the names of the SignalCluster's fields, and the previous release's gateway reads it.

use std::collections::BTreeSet;

use kube::CustomResourceExt as _;
use serde_json::{Value as Json, json};
use signal_contract::{Config, Live};
use signal_crds::{Duration, SignalCluster};
use toml::{Table, Value};

use super::{gateway_toml, live_toml};
use crate::fixture::{EXAMPLES, example, observed, settled};
use crate::observe::observed::Observed;
use crate::plan::validate::validate;

/// Keys that no field of the SignalCluster is called like, and why.
const OTHER_NAMES: [(&str, &str); 19] = [
    ("live_file", "path of a mounted file"),
    (
        "server.public_address",
        "an address, made of gateway.publicPort",
    ),
    (
        "server.admin_address",
        "an address, made of gateway.adminPort",
    ),
    ("server.admin_token_file", "path of a mounted file"),
    (
        "kafka.retry_max_ms",
        "the default, which is higher in the previous release",
    ),
    (
        "server.max_header_bytes",
        "the default, which is lower in the previous release",
    ),
    ("database.url", "without spec.database: SQLite in the pod"),
    ("database.migrate", "whether database.migrations is Startup"),
    ("kafka.enabled", "whether spec.kafka is there"),
    (
        "notifications.catalog_dir",
        "mounted from notifications.catalogRef",
    ),
    ("jwks.managed.jwks_file", "path of a mounted file"),
    (
        "jwks.revoked_sources",
        "kept in the record, of jwks.rotation.emergency",
    ),
    ("jwks.sources[].keys_file", "path of a mounted file"),
    ("jwks.sources[].state", "status.jwks[].state"),
    (
        "jwks.sources[].application_secret_file",
        "mounted from jwks.sources[].applicationSecretRef",
    ),
    (
        "jwks.sources[].same_subjects_as",
        "kept in the record, while a source is replaced",
    ),
    ("redis.tls.enabled", "whether redis.tls is there"),
    (
        "redis_previous",
        "kept in the record: redis, before it changed",
    ),
    ("database.retention_days", "database.retention"),
];

/// Sections of the spec that are the gateway's, with the parts of them that are not.
const SECTIONS: [(&str, &[&str]); 8] = [
    ("gateway", &[]),
    ("limits", &[]),
    ("redis", &[]),
    ("kafka", &["/allowGroupChange"]),
    ("database", &["/migrationJob"]),
    (
        "jwks",
        &["/rotation", "/managed/rotateEvery", "/managed/maxTokenLife"],
    ),
    ("policy", &[]),
    ("drain", &[]),
];

/// Keys that are new in this release and that an example uses on purpose: its image has to be of this release.
const NEW: [&str; 3] = [
    "redis.auth.username_file",
    "redis_previous.auth.username_file",
    "kafka.security.auth.username_file",
];

/// Both documents of every example, with its record settled and a previous Redis.
fn written() -> Vec<(&'static str, Table, Table)> {
    EXAMPLES
        .iter()
        .map(|(name, text)| {
            let cluster = validate(&observed(text)).unwrap();
            let mut record = settled(&cluster);
            record.jwks.revoked_sources = vec!["old".into()];
            record.redis.previous = record.redis.current.clone().map(|mut redis| {
                redis.nodes = vec!["old:6379".into()];
                redis
            });
            let parse = |text: String| text.parse::<Table>().unwrap();
            let live = live_toml(&cluster, &record, true);
            (*name, parse(gateway_toml(&cluster)), parse(live))
        })
        .collect()
}

/// The dotted names of all values; `[]` stands for the elements of an array of tables.
fn leaves(table: &Table) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        let inner = |inner: &Table, between: &str| -> Vec<_> {
            let under = leaves(inner).into_iter();
            under
                .map(|(name, value)| (format!("{key}{between}{name}"), value))
                .collect()
        };
        match value {
            Value::Table(table) => found.extend(inner(table, ".")),
            Value::Array(values) if values.first().is_some_and(Value::is_table) => found.extend(
                values
                    .iter()
                    .flat_map(|value| inner(value.as_table().unwrap(), "[].")),
            ),
            _ => found.push((key.clone(), value.clone())),
        }
    }
    found
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    let mut lower = false;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && lower {
            snake.push('_');
        }
        lower = !letter.is_ascii_uppercase();
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// The fields of the spec as keys of settings: in snake case, without `gateway`, and the reference to a Secret as the file that is mounted of it.
fn fields(schema: &Json, path: &str, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let name = snake(name);
        let path = match path {
            "" | "gateway" => name.clone(),
            path => format!("{path}.{name}"),
        };
        if let Some(file) = path.strip_suffix("_secret_ref") {
            found.insert(format!("{file}_file"));
        }
        fields(field, &path, found);
        fields(&field["items"], &format!("{path}[]"), found);
        found.insert(path);
    }
}

#[test]
fn every_key_that_is_written_is_called_like_its_field() {
    let crd = serde_json::to_value(SignalCluster::crd()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut names = BTreeSet::new();
    fields(spec, "", &mut names);
    assert!(names.contains("auth.finish_timeout"), "{names:?}");
    let is_field = |key: &str| {
        let units = ["", "_ms", "_secs"].iter();
        units
            .filter_map(|unit| key.strip_suffix(unit))
            .any(|name| names.contains(name))
    };
    for (example, fixed, live) in written() {
        for (key, _) in leaves(&fixed).into_iter().chain(leaves(&live)) {
            let key = key.replace("redis_previous.", "redis.");
            let other = OTHER_NAMES.iter().any(|(name, _)| *name == key);
            assert!(is_field(&key) || other, "{example}: {key}");
        }
    }
}

/// A gateway of the previous release refuses a key that it does not know, and takes its own default where a key is left out.
#[test]
fn the_previous_release_reads_what_is_written_as_it_is_meant() {
    let before = |table: Table| leaves(&table);
    let (fixed_before, live_before) = (
        before(Config::every_key_before()),
        before(Live::every_key_before()),
    );
    let (fixed_now, live_now) = (leaves(&Config::every_key()), leaves(&Live::every_key()));
    for (example, fixed, live) in written() {
        for (written, before, now) in [
            (leaves(&fixed), &fixed_before, &fixed_now),
            (leaves(&live), &live_before, &live_now),
        ] {
            for (key, _) in &written {
                let known = before.iter().any(|(name, _)| name == key);
                assert!(
                    known || NEW.contains(&key.as_str()),
                    "{example}: the previous release does not know {key}"
                );
            }
            for (key, default) in now
                .iter()
                .filter(|(key, _)| !key.starts_with("redis_previous"))
            {
                let changed = before.iter().any(|(name, b)| name == key && b != default);
                let is_written = written.iter().any(|(name, _)| name == key);
                let optional = key.contains("[]") || key.starts_with("redis.");
                assert!(
                    !changed || is_written || optional,
                    "{example}: the default of {key} has changed, and it is left out"
                );
            }
        }
    }
}

/// The numbers, switches and durations under a value, by JSON pointer, each with another value of its kind.
fn changes(value: &Json, pointer: &str) -> Vec<(String, Json)> {
    let under = |name: &str, value: &Json| changes(value, &format!("{pointer}/{name}"));
    let other = match value {
        Json::Object(fields) => {
            return fields
                .iter()
                .flat_map(|(name, value)| under(name, value))
                .collect();
        }
        Json::Array(values) => {
            let values = values.iter().enumerate();
            return values
                .flat_map(|(at, value)| under(&at.to_string(), value))
                .collect();
        }
        Json::Number(number) => Some(json!(number.as_u64().unwrap() + 1)),
        Json::Bool(is_on) => Some(json!(!is_on)),
        Json::String(text) => {
            let duration: Option<Duration> = text.parse().ok();
            duration.map(|duration| json!(Duration::millis(duration.as_millis() * 2)))
        }
        Json::Null => None,
    };
    other
        .map(|other| (pointer.to_owned(), other))
        .into_iter()
        .collect()
}

#[test]
fn every_number_switch_and_duration_of_the_gateways_sections_reaches_its_settings() {
    let example = example("production");
    let spec = serde_json::to_value(&example.cluster.spec).unwrap();
    let documents = |observed: &Observed| {
        let cluster = validate(observed).unwrap();
        let live = live_toml(&cluster, &settled(&cluster), true);
        (gateway_toml(&cluster), live)
    };
    let before = documents(&example);
    let mut count = 0;
    for (section, operators) in SECTIONS {
        for (pointer, other) in changes(&spec[section], "") {
            if operators.iter().any(|part| pointer.starts_with(part)) {
                continue;
            }
            count += 1;
            let mut changed = spec.clone();
            *changed[section].pointer_mut(&pointer).unwrap() = other;
            let mut observed = example.clone();
            let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
            cluster.spec = serde_json::from_value(changed).unwrap();
            assert!(documents(&observed) != before, "{section}{pointer}");
        }
    }
    assert!(count > 30, "only {count}");
}

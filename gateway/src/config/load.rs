//! Puts a document together from its defaults, a file and the environment, and says all that is wrong with it at once.
//!
//! Each setting is tried alone against the defaults first, so that one wrong value does not hide the next.

use std::fmt;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{BusMode, Config, DEFAULTS, KafkaSecurity, LIVE_DEFAULTS, Live};

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
        &["sources", "bus", "bus_previous"],
        &mut problems,
    );
    if let Some(live) = &live {
        check_live(live, &mut problems);
        check_places(live, &mut problems);
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
        (Some(Value::Float(_)), Value::Integer(n)) => Value::Float(n as f64),
        (_, value) => value,
    }
}

fn check(c: &Config, problems: &mut Vec<String>) {
    let mut need = |ok: bool, name: &str, text: &str| {
        if !ok {
            problems.push(format!("{name}: {text}"));
        }
    };
    let s = &c.session;
    need(
        c.server.max_header_bytes >= 8192,
        "server.max_header_bytes",
        "must be at least 8192",
    );
    need(
        c.server.max_headers > 0,
        "server.max_headers",
        "must be at least 1",
    );
    need(
        c.server.max_body_bytes > 0,
        "server.max_body_bytes",
        "must be at least 1",
    );
    need(
        c.server.header_read_timeout_secs > 0,
        "server.header_read_timeout_secs",
        "must be at least 1",
    );
    need(
        (1..=3660).contains(&c.revocations.token_life_days),
        "revocations.token_life_days",
        "must be from 1 to 3660",
    );
    need(
        c.workers.control_threads > 0,
        "workers.control_threads",
        "must be at least 1",
    );
    need(
        c.workers.shards <= 256,
        "workers.shards",
        "must be at most 256",
    );
    need(
        s.authenticate_timeout_ms > 0,
        "session.authenticate_timeout_ms",
        "must be at least 1",
    );
    need(
        s.verify_timeout_ms > 0,
        "session.verify_timeout_ms",
        "must be at least 1",
    );
    need(
        s.sweep_interval_ms > 0,
        "session.sweep_interval_ms",
        "must be at least 1",
    );
    need(
        s.close_timeout_ms > 0,
        "session.close_timeout_ms",
        "must be at least 1",
    );
    need(
        s.heartbeat_timeout_ms > 2 * s.ping_interval_ms,
        "session.heartbeat_timeout_ms",
        "must exceed two ping intervals, or a live connection is taken for dead",
    );
    need(
        u32::from(c.ids.worker_base) + u32::from(c.ids.worker_count) <= 1024
            && c.ids.worker_count > 0,
        "ids.worker_count",
        "worker_base + worker_count must lie within 1 to 1024",
    );
    need(
        c.bus.mode == BusMode::Local || !c.bus.nodes.is_empty(),
        "bus.nodes",
        "must name at least one host:port in this mode",
    );
    need(
        c.bus.deaf_after_ms > c.bus.self_ping_interval_ms,
        "bus.deaf_after_ms",
        "must exceed bus.self_ping_interval_ms",
    );
    need(
        c.bus.self_ping_interval_ms > 0,
        "bus.self_ping_interval_ms",
        "must be at least 1",
    );
    need(
        c.bus.publish_queue > 0,
        "bus.publish_queue",
        "must be at least 1",
    );
    need(
        !c.kafka.enabled || !c.kafka.brokers.is_empty(),
        "kafka.brokers",
        "must name at least one host:port when kafka.enabled",
    );
    need(
        !c.kafka.enabled || !c.kafka.topics.is_empty(),
        "kafka.topics",
        "must name at least one topic when kafka.enabled",
    );
    need(
        !c.kafka.dead_letter_suffix.is_empty(),
        "kafka.dead_letter_suffix",
        "must not be empty, or dead letters would be consumed again",
    );
    need(
        matches!(
            c.kafka.sasl_mechanism.as_str(),
            "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512"
        ),
        "kafka.sasl_mechanism",
        "must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
    );
    let sasl = matches!(
        c.kafka.security,
        KafkaSecurity::SaslPlaintext | KafkaSecurity::SaslSsl
    );
    need(
        !sasl || (!c.kafka.username.is_empty() && c.kafka.password_file.path().is_some()),
        "kafka.username",
        "SASL needs kafka.username and kafka.password_file",
    );
    for (name, value) in [
        ("kafka.batch_records", c.kafka.batch_records),
        ("kafka.batch_rows", c.kafka.batch_rows),
        ("kafka.partition_queue", c.kafka.partition_queue),
        ("kafka.concurrency", c.kafka.concurrency),
        ("kafka.max_recipients", c.kafka.max_recipients),
        (
            "database.max_connections",
            c.database.max_connections as usize,
        ),
        (
            "database.acquire_timeout_ms",
            c.database.acquire_timeout_ms as usize,
        ),
        (
            "database.statement_timeout_ms",
            c.database.statement_timeout_ms as usize,
        ),
    ] {
        need(value > 0, name, "must be at least 1");
    }
    need(
        c.kafka.retry_initial_ms > 0 && c.kafka.retry_initial_ms <= c.kafka.retry_max_ms,
        "kafka.retry_initial_ms",
        "must be at least 1 and at most retry_max_ms",
    );
    let database = c.database.url.expose();
    need(
        c.database.url_file.path().is_some()
            || database.starts_with("postgres://")
            || database.starts_with("postgresql://")
            || database.starts_with("sqlite:"),
        "database.url",
        "must begin with postgres:// or sqlite:",
    );
    need(
        c.database.tombstone_days > 0,
        "database.tombstone_days",
        "must be at least 1",
    );
    need(
        !c.notifications.default_locale.is_empty(),
        "notifications.default_locale",
        "must name a locale",
    );
    need(
        c.drain.batch_interval_ms > 0,
        "drain.batch_interval_ms",
        "must be at least 1",
    );
    need(
        c.drain.min_batch > 0,
        "drain.min_batch",
        "must be at least 1",
    );
    need(
        (0.0..=1.0).contains(&c.telemetry.sampling_ratio),
        "telemetry.sampling_ratio",
        "must lie within 0 and 1",
    );
}

fn check_live(live: &Live, problems: &mut Vec<String>) {
    let mut need = |ok: bool, name: &str, text: &str| {
        if !ok {
            problems.push(format!("{name}: {text}"));
        }
    };
    let l = &live.limits;
    for (name, value) in [
        ("limits.max_connections", l.max_connections),
        ("limits.accepts_per_second", l.accepts_per_second as usize),
        ("limits.accept_burst", l.accept_burst as usize),
        ("limits.max_frame_bytes", l.max_frame_bytes),
        ("limits.outbox_bytes", l.outbox_bytes),
        ("limits.outbox_frames", l.outbox_frames),
        ("limits.total_outbox_bytes", l.total_outbox_bytes),
        ("limits.rooms_per_connection", l.rooms_per_connection),
        ("limits.write_timeout_ms", l.write_timeout_ms as usize),
        ("keys.refresh_secs", live.keys.refresh_secs as usize),
        ("keys.max_stale_secs", live.keys.max_stale_secs as usize),
        (
            "keys.request_timeout_ms",
            live.keys.request_timeout_ms as usize,
        ),
        ("keys.max_bytes", live.keys.max_bytes),
    ] {
        need(value > 0, name, "must be at least 1");
    }
    need(
        l.max_frame_bytes <= 16 << 20,
        "limits.max_frame_bytes",
        "must be at most 16777216",
    );
    need(
        live.keys.leeway_secs <= 300,
        "keys.leeway_secs",
        "must be at most 300",
    );
    need(
        live.log_filter
            .parse::<tracing_subscriber::EnvFilter>()
            .is_ok(),
        "log_filter",
        "is not a filter, such as \"info\" or \"info,signal_gateway=debug\"",
    );
    for origin in &live.allowed_origins {
        let good = origin.split_once("://").is_some_and(|(scheme, host)| {
            matches!(scheme, "http" | "https")
                && !host.is_empty()
                && !host.contains('/')
                && !host.trim_start_matches("*.").contains('*')
        });
        need(
            good,
            "allowed_origins",
            &format!(
                "{origin:?} is not scheme://host[:port], with *. in front of the host at most"
            ),
        );
    }
    let has = |path: &Path| !path.as_os_str().is_empty();
    need(
        (1..=86_400).contains(&live.jwks_max_age_secs),
        "jwks_max_age_secs",
        "must be from 1 to 86400",
    );
    need(
        live.revoked_sources.len() <= 64,
        "revoked_sources",
        "must be at most 64",
    );
    need(
        live.revoked_sources.iter().all(|name| !name.is_empty()),
        "revoked_sources",
        "a name must not be empty",
    );
    need(live.sources.len() <= 16, "sources", "must be at most 16");
    for (at, source) in live.sources.iter().enumerate() {
        let name = format!("sources[{at}]");
        need(!source.name.is_empty(), &name, "name must not be empty");
        need(
            !source.issuer.is_empty() || source.skip_issuer_check,
            &name,
            "issuer must not be empty, or say skip_issuer_check = true",
        );
        need(
            !source.audiences.is_empty() || source.skip_audience_check,
            &name,
            "audiences must not be empty, or say skip_audience_check = true",
        );
        need(
            !source.algorithms.is_empty(),
            &name,
            "algorithms must name at least one",
        );
        need(
            source.url.is_some() != has(&source.keys_file),
            &name,
            "must have either url or keys_file",
        );
        need(
            !has(&source.ca_file) || source.url.is_some(),
            &name,
            "ca_file is for url",
        );
        let scheme = source.url.as_ref().map_or("https", |url| url.scheme());
        need(
            scheme == "https" || (scheme == "http" && source.allow_insecure_http),
            &name,
            "url must be https, or say allow_insecure_http = true",
        );
        need(
            !live.sources[..at].iter().any(|s| s.name == source.name),
            &name,
            "name is taken by an earlier source",
        );
    }
}

fn check_places(live: &Live, problems: &mut Vec<String>) {
    for (section, place) in [("bus", &live.bus), ("bus_previous", &live.bus_previous)] {
        problems.extend(place.iter().flat_map(|place| place.problems(section)));
    }
    if let (Some(bus), Some(previous)) = (&live.bus, &live.bus_previous)
        && bus.is_same_server(previous)
    {
        problems.push("bus_previous: names the same server as bus".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn environment(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn the_defaults_are_valid_as_they_stand() {
        load(None, environment(&[])).unwrap();
        load_live("").unwrap();
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let file =
            file("[server]\npublic_address = \"127.0.0.1:1\"\nadmin_address = \"127.0.0.1:2\"\n");
        let config = load(
            Some(file.path()),
            environment(&[
                ("SIGNAL__SERVER__PUBLIC_ADDRESS", "127.0.0.1:3"),
                ("SIGNAL__KAFKA__BROKERS", "a:1, b:2"),
                ("SIGNAL__BUS__USERNAME", "17"),
                ("SIGNAL__TELEMETRY__SAMPLING_RATIO", "1"),
                ("PATH", "/bin"),
            ]),
        )
        .unwrap();
        assert_eq!(config.server.public_address.port(), 3);
        assert_eq!(config.server.admin_address.port(), 2);
        assert_eq!(config.kafka.brokers, ["a:1", "b:2"]);
        assert_eq!(config.bus.username, "17");
    }

    #[test]
    fn every_unknown_key_and_wrong_value_is_reported_together() {
        let file = file(
            "typo = 1\n[server]\npublic_address = \"nowhere\"\nmax_headers = -1\n[sessions]\nx = 1\n",
        );
        let Invalid(problems) = load(
            Some(file.path()),
            environment(&[("SIGNAL__BUS__MODE", "cluster")]),
        )
        .unwrap_err();
        let names: Vec<_> = problems
            .iter()
            .map(|p| p.split(':').next().unwrap())
            .collect();
        assert_eq!(names.len(), 5, "{problems:?}");
        for name in [
            "typo",
            "server.public_address",
            "server.max_headers",
            "sessions.x",
            "bus.nodes",
        ] {
            assert!(names.contains(&name), "{name} in {problems:?}");
        }
    }

    #[test]
    fn a_source_needs_issuer_audience_https_and_an_asymmetric_algorithm() {
        let source = |rest: &str| load_live(&format!("[[sources]]\nname = \"a\"\n{rest}"));
        let good = "issuer = \"i\"\naudiences = [\"s\"]\nalgorithms = [\"ES256\"]\nurl = \"https://i/certs\"\n";
        source(good).unwrap();
        for (from, to) in [
            ("issuer = \"i\"", "issuer = \"\""),
            ("[\"s\"]", "[]"),
            ("ES256", "HS256"),
            ("https", "http"),
            ("[\"ES256\"]", "[]"),
        ] {
            assert!(source(&good.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn a_source_has_its_keys_from_a_url_or_a_file_and_a_name_of_its_own() {
        let source = |name: &str, keys: &str| {
            format!(
                "[[sources]]\nname = {name:?}\nissuer = \"i\"\naudiences = [\"s\"]\nalgorithms = [\"ES256\"]\n{keys}\n"
            )
        };
        let (url, file) = ("url = \"https://i/certs\"", "keys_file = \"/keys.json\"");
        let both = load_live(&[source("a", url), source("b", file)].concat()).unwrap();
        assert_eq!(both.sources[1].keys_file, Path::new("/keys.json"));
        assert_eq!(
            both.files().collect::<Vec<_>>(),
            [("sources[1].keys_file".to_owned(), Path::new("/keys.json"))]
        );
        let ca = "keys_file = \"/keys.json\"\nca_file = \"/ca.crt\"";
        for wrong in [
            source("a", ""),
            source("a", &format!("{url}\n{file}")),
            source("a", ca),
            [source("a", url), source("a", file)].concat(),
        ] {
            let Invalid(problems) = load_live(&wrong).unwrap_err();
            assert!(
                problems.len() == 1 && problems[0].starts_with("sources["),
                "{problems:?}"
            );
        }
        for wrong in [
            "jwks_max_age_secs = 0",
            "jwks_max_age_secs = 86401",
            "revoked_sources = [\"\"]",
        ] {
            assert_eq!(load_live(wrong).unwrap_err().0.len(), 1, "{wrong}");
        }
    }

    #[test]
    fn a_secret_never_prints() {
        let mut config = Config::for_tests();
        config.database.url = crate::config::Secret::new("postgres://u:hunter2@h/d");
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!toml::to_string(&config).unwrap().contains("hunter2"));
    }
}

//! The two settings files of dev mode, written into its folder and read by the loader of production.
//!
//! Input: the listening addresses. Output: `config.toml`, `live.toml`, and the checked [`Config`]. Other subcommands can read these files too: `signal-gateway dlq replay --config .signal-dev/config.toml`.

use std::net::SocketAddr;

use signal_contract::LOOPBACK_ORIGINS;
use toml::{Table, Value};

use super::folder::Folder;
use super::issuer;
use crate::config::{self, Config, Invalid};

pub(super) const CONFIG_FILE: &str = "config.toml";
const LIVE_FILE: &str = "live.toml";
/// The bearer token of the admin listener.
pub(super) const ADMIN_TOKEN_FILE: &str = "admin-listener.token";
const NOTIFICATIONS: &str = "notifications.db";
const PLATFORM: &str = "platform.db";

/// The addresses on which the parts listen.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListenAddresses {
    pub(super) public: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) kafka: SocketAddr,
    pub(super) issuer: SocketAddr,
}

/// Returns the database of the platform's tables, which is always in the folder.
pub(super) fn platform(folder: &Folder) -> anyhow::Result<config::Secret> {
    folder.database(PLATFORM).map(config::Secret::new)
}

/// Writes both files and loads them. `environment` may change every setting but those that isolate dev mode.
///
/// # Errors
/// A file cannot be written, or everything that is wrong with the settings.
pub(super) fn prepare(
    folder: &Folder,
    addresses: ListenAddresses,
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<Config> {
    let environment: Vec<_> = environment.collect();
    let fixed = fixed(folder, addresses)?;
    let taken: Vec<String> = fixed
        .iter()
        .map(|(name, _)| format!("SIGNAL__{}", name.replace('.', "__").to_uppercase()))
        .filter(|name| {
            let same = |(given, _): &(String, String)| is_same_or_part(given, name);
            environment.iter().any(same)
        })
        .map(|name| format!("{name}: dev mode sets this itself; unset the variable"))
        .collect();
    if !taken.is_empty() {
        return Err(Invalid(taken).into());
    }
    folder.write(
        LIVE_FILE,
        page(
            "Dev mode writes this file at each start. While it runs, changes of the file are used.",
            &live(addresses),
        )
        .as_bytes(),
    )?;
    let config = table(fixed.into_iter().chain(preferred()));
    folder.write(
        CONFIG_FILE,
        page(
            "Dev mode writes this file at each start. SIGNAL__SECTION__KEY overrides it.",
            &config,
        )
        .as_bytes(),
    )?;
    Ok(config::load(
        Some(&folder.file(CONFIG_FILE)),
        environment.into_iter(),
    )?)
}

/// Whether the variable `given` sets what `name` sets: names are read in any case, and `SIGNAL__POLICY` would replace `SIGNAL__POLICY__URL`.
fn is_same_or_part(given: &str, name: &str) -> bool {
    let given = given.to_ascii_uppercase();
    name.strip_prefix(given.as_str())
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("__"))
}

fn page(comment: &str, table: &Table) -> String {
    format!("# {comment}\n\n{table}")
}

/// The settings that isolate dev mode: it reads and writes only its folder, and listens where its arguments say.
fn fixed(
    folder: &Folder,
    addresses: ListenAddresses,
) -> anyhow::Result<Vec<(&'static str, Value)>> {
    let file = |name: &str| Value::String(folder.file(name).display().to_string());
    Ok(vec![
        ("live_file", file(LIVE_FILE)),
        ("server.public_address", addresses.public.to_string().into()),
        ("server.admin_address", addresses.admin.to_string().into()),
        ("server.admin_token_file", file(ADMIN_TOKEN_FILE)),
        ("redis.mode", "none".into()),
        ("kafka.enabled", true.into()),
        ("kafka.brokers", vec![addresses.kafka.to_string()].into()),
        ("kafka.security.protocol", "PLAINTEXT".into()),
        ("database.url", folder.database(NOTIFICATIONS)?.into()),
        ("database.url_file", "".into()),
        ("policy.url", platform(folder)?.expose().into()),
        ("policy.url_file", "".into()),
    ])
}

/// Settings that suit a person at a terminal.
fn preferred() -> [(&'static str, Value); 10] {
    // The mock cluster answers a fetch only when the wait time is over, even if records have arrived.
    let fetch = Table::from_iter([("fetch.wait.max.ms".to_owned(), "20".into())]);
    [
        ("server.instance_name", "dev".into()),
        ("kafka.session_timeout_ms", 6000.into()),
        ("kafka.properties", Value::Table(fetch)),
        ("policy.cache_secs", 2.into()),
        ("drain.endpoint_propagation_ms", 0.into()),
        ("drain.window_ms", 200.into()),
        ("drain.batch_interval_ms", 50.into()),
        ("drain.flush_ms", 1000.into()),
        ("observability.log_format", "text".into()),
        (
            "observability.tracing.samples_per_million",
            1_000_000.into(),
        ),
    ]
}

fn live(addresses: ListenAddresses) -> Table {
    let source = table([
        ("name", "dev".into()),
        ("issuer", issuer::NAME.into()),
        ("url", certs(addresses.issuer).into()),
        ("audiences", vec![issuer::AUDIENCE].into()),
        ("algorithms", vec!["ES256"].into()),
        ("allow_insecure_http", true.into()),
    ]);
    table([
        (
            "observability.log_filter",
            "warn,signal_gateway=info".into(),
        ),
        // A page that is being written is served by whatever its tools start, on any port.
        ("allowed_origins", vec![LOOPBACK_ORIGINS].into()),
        ("jwks.sources", Value::Array(vec![Value::Table(source)])),
    ])
}

/// Returns the URL of the issuer's key set.
pub(super) fn certs(issuer: SocketAddr) -> String {
    format!("http://{issuer}/certs")
}

/// Makes a table in which dotted names become sections.
fn table(settings: impl IntoIterator<Item = (&'static str, Value)>) -> Table {
    let mut table = Table::new();
    for (name, value) in settings {
        insert(&mut table, name, value);
    }
    table
}

fn insert(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        None => {
            table.insert(name.into(), value);
        }
        Some((section, rest)) => {
            let section = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            let section = section.as_table_mut();
            insert(
                section.expect("no setting has a section's name"),
                rest,
                value,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app;

    fn addresses() -> ListenAddresses {
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        ListenAddresses {
            public: at(1),
            admin: at(2),
            kafka: at(3),
            issuer: at(4),
        }
    }

    #[test]
    fn the_written_files_are_valid_settings() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path()).unwrap();
        let environment = [("SIGNAL__ENCRYPTION__MODE".to_owned(), "required".to_owned())];
        let config = prepare(&folder, addresses(), environment.into_iter()).unwrap();
        assert_eq!(config.encryption.mode, config::EncryptionMode::Required);
        assert_eq!(config.kafka.brokers, ["127.0.0.1:3"]);
        app::check(&config).unwrap();
    }

    #[test]
    fn the_settings_that_isolate_dev_mode_cannot_be_overridden() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path()).unwrap();
        for name in [
            "SIGNAL__POLICY__URL",
            "SIGNAL__DATABASE__URL_FILE",
            "SIGNAL__SERVER__PUBLIC_ADDRESS",
            "SIGNAL__policy__Url",
            "SIGNAL__REDIS",
        ] {
            let error = prepare(
                &folder,
                addresses(),
                [(name.to_owned(), "x".to_owned())].into_iter(),
            )
            .unwrap_err();
            let error = error.to_string();
            assert!(error.contains(&name.to_uppercase()), "{error}");
        }
    }
}

//! Sparse documents: what differs from the defaults, so that a gateway one release older or newer reads them too.
//!
//! A gateway refuses keys that it does not know, and the image of a SignalCluster may be one minor release older than the operator. So the
//! operator leaves out what equals the default. The exception is a default that has changed since the previous release: an older gateway
//! would use its own, so such a key is written. `golden/` holds the keys and defaults of the previous release.

use std::sync::LazyLock;

use serde::Serialize;
use toml::{Table, Value};

use crate::{Config, Live, RedisLocation, Source};

/// The keys and defaults of the previous release's static settings.
static PREVIOUS_CONFIG: LazyLock<Table> =
    LazyLock::new(|| parse(include_str!("../golden/config.previous.toml")));
/// The keys and defaults of the previous release's live settings.
static PREVIOUS_LIVE: LazyLock<Table> =
    LazyLock::new(|| parse(include_str!("../golden/live.previous.toml")));

fn parse(text: &str) -> Table {
    text.parse().expect("a golden document parses")
}

impl Config {
    /// Returns these settings as TOML without what the defaults say; deterministic. Contains the database URLs as they are.
    pub fn to_sparse_toml(&self) -> String {
        let sparse = difference(
            &exposed(self),
            &Self::every_key(),
            &Self::every_key_before(),
        );
        write(&sparse)
    }

    /// Returns every key of the document with its default.
    pub fn every_key() -> Table {
        exposed(&Self::defaults())
    }

    /// Returns every key of the previous release with its default there.
    pub fn every_key_before() -> Table {
        PREVIOUS_CONFIG.clone()
    }
}

impl Live {
    /// Returns these settings as TOML without what the defaults say; deterministic.
    pub fn to_sparse_toml(&self) -> String {
        let sparse = difference(&table(self), &Self::every_key(), &Self::every_key_before());
        write(&sparse)
    }

    /// Returns every key of the document with its default: one source and both Redis with the defaults of theirs.
    pub fn every_key() -> Table {
        let mut all = Self::defaults();
        all.redis = Some(RedisLocation::default());
        all.redis_previous = Some(RedisLocation::default());
        all.jwks.sources = vec![Source {
            url: Some("https://issuer.invalid/".parse().expect("a URL")),
            ..Source::default()
        }];
        table(&all)
    }

    /// Returns every key of the previous release with its default there.
    pub fn every_key_before() -> Table {
        PREVIOUS_LIVE.clone()
    }
}

/// The document with the URLs that [`crate::Secret`] hides.
fn exposed(config: &Config) -> Table {
    let mut document = table(config);
    for (section, url) in [
        ("database", &config.database.url),
        ("policy", &config.policy.url),
    ] {
        document[section]["url"] = url.expose().into();
    }
    document
}

fn table(document: &impl Serialize) -> Table {
    Table::try_from(document).expect("settings are plain values")
}

fn write(document: &Table) -> String {
    toml::to_string(document).expect("settings are plain values")
}

/// What of `value` has to be written: neither the default, nor a default that the previous release had as well. An array of tables is compared
/// element by element with the one element of its default.
fn difference(value: &Table, default: &Table, before: &Table) -> Table {
    let mut written = Table::new();
    for (key, value) in value {
        let (default, before) = (default.get(key), before.get(key));
        let entry = match (value, default) {
            (Value::Table(value), Some(Value::Table(default))) => {
                let inner = difference(value, default, &as_table(before));
                (!inner.is_empty()).then_some(Value::Table(inner))
            }
            (Value::Array(values), Some(Value::Array(defaults)))
                if defaults.first().is_some_and(Value::is_table) =>
            {
                let default = as_table(defaults.first());
                let before = as_table(before.and_then(|before| before.get(0)));
                let element =
                    |value| Value::Table(difference(&as_table(Some(value)), &default, &before));
                (!values.is_empty()).then(|| Value::Array(values.iter().map(element).collect()))
            }
            _ => {
                let same = Some(value) == default && before.is_none_or(|b| Some(b) == default);
                (!same).then(|| value.clone())
            }
        };
        if let Some(entry) = entry {
            written.insert(key.clone(), entry);
        }
    }
    written
}

fn as_table(value: Option<&Value>) -> Table {
    value.and_then(Value::as_table).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_left_out_and_what_differs_is_written() {
        // The previous release has other defaults.
        let changed = "[kafka]\nretry_max_ms = 4000\n\n[server]\nmax_header_bytes = 32768\n";
        assert_eq!(Config::defaults().to_sparse_toml(), changed);
        let live_changed = "[limits]\ninbound_burst = 2048\n\n[rooms]\nmax_per_connection = 1024\n";
        assert_eq!(Live::defaults().to_sparse_toml(), live_changed);
        let mut config = Config::defaults();
        config.redis.sentinel.master_name = "m".into();
        config.database.url = crate::Secret::new("sqlite:///data/signal.db");
        assert_eq!(
            config.to_sparse_toml(),
            "[database]\nurl = \"sqlite:///data/signal.db\"\n\n[kafka]\nretry_max_ms = 4000\n\n[redis.sentinel]\nmaster_name = \"m\"\n\n[server]\nmax_header_bytes = 32768\n"
        );
        let mut live = Live::defaults();
        live.jwks.sources = vec![Source {
            name: "main".into(),
            trust_roles: true,
            ..Source::default()
        }];
        assert_eq!(
            live.to_sparse_toml(),
            format!("[[jwks.sources]]\nname = \"main\"\ntrust_roles = true\n\n{live_changed}")
        );
    }

    #[test]
    fn a_key_whose_default_has_changed_is_written_although_it_equals_the_new_default() {
        let value: Table = parse("changed = 2\nsame = 1\nnew = 1\n[s]\nchanged = 2");
        let before = parse("changed = 1\nsame = 1\n[s]\nchanged = 1");
        let written = difference(&value, &value, &before);
        assert_eq!(written, parse("changed = 2\n[s]\nchanged = 2"));
    }

    /// At a release, `SIGNAL_FREEZE_CONTRACT=1 cargo test -p signal-contract` makes this release the previous one.
    #[test]
    fn the_previous_release_is_on_record() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
        for (name, document) in [
            ("config.previous.toml", Config::every_key()),
            ("live.previous.toml", Live::every_key()),
        ] {
            if std::env::var_os("SIGNAL_FREEZE_CONTRACT").is_some() {
                let head = "# Every key of the previous release with its default there. Written by SIGNAL_FREEZE_CONTRACT=1 cargo test -p signal-contract.\n\n";
                std::fs::write(golden.join(name), format!("{head}{}", write(&document))).unwrap();
            }
            let text = std::fs::read_to_string(golden.join(name)).unwrap();
            assert!(!parse(&text).is_empty(), "{name}");
        }
    }
}

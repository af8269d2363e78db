//! The URL of a PostgreSQL: out of one key of a Secret, or made of the keys of one that another operator wrote. It is a file of the credentials Secret in
//! both cases, so a rotated password reaches gateways as a changed file.

use std::net::Ipv6Addr;

use signal_crds::reference::SecretKey;
use signal_crds::secrets::{DatabaseConnection, SslMode};

use super::secrets::Resolver;
use crate::names::LIVE_DIR;
use crate::reasons::ConditionReason;

/// Where a spec says how a database is reached.
pub(super) struct PostgresFields<'a> {
    /// The part of the spec, such as `spec.database`.
    pub(super) field: &'static str,
    /// Key with a URL.
    pub(super) url: Option<&'a SecretKey>,
    /// Keys with its parts.
    pub(super) connection: Option<&'a DatabaseConnection>,
    /// What is checked of the server, where the URL does not say it.
    pub(super) ssl_mode: Option<SslMode>,
    /// Authorities of its certificate.
    pub(super) ca: Option<&'a SecretKey>,
    /// Key of the credentials Secret for the URL.
    pub(super) url_file: &'static str,
    /// The same for the authorities.
    pub(super) ca_file: &'static str,
}

impl Resolver<'_> {
    /// Makes the file with the URL, and that with the authorities.
    pub(super) fn postgres(&mut self, fields: &PostgresFields<'_>) {
        let field = fields.field;
        if let Some(key) = fields.ca {
            self.fixed_authorities(&format!("{field}.caSecretRef"), key, fields.ca_file);
        }
        let by_default = match fields.ca {
            Some(_) => SslMode::VerifyFull,
            None => SslMode::Require,
        };
        let (url, ssl_mode) = match (fields.url, fields.connection) {
            (Some(key), _) => (
                self.url(&format!("{field}.urlSecretRef"), key),
                fields.ssl_mode,
            ),
            (None, Some(connection)) => (
                self.composed(&format!("{field}.connection"), connection),
                fields.ssl_mode.or(Some(by_default)),
            ),
            (None, None) => return,
        };
        let Some(mut url) = url else {
            return;
        };
        if let Some(mode) = ssl_mode {
            add_option(&mut url, "sslmode", mode.as_str());
        }
        if fields.ca.is_some() {
            let path = format!("{LIVE_DIR}/{}", fields.ca_file);
            add_option(&mut url, "sslrootcert", &path);
        }
        self.files.insert(fields.url_file.into(), url.into_bytes());
    }

    /// A URL as it stands in a Secret.
    fn url(&mut self, field: &str, key: &SecretKey) -> Option<String> {
        let text = self.text(field, key)?;
        let is_postgres =
            hosts(text).is_some_and(|urls| matches!(urls[0].scheme(), "postgres" | "postgresql"));
        if is_postgres {
            return Some(text.to_owned());
        }
        // The message must not contain the URL: it holds the password.
        let message = format!(
            "{field}: key {} of Secret {} is not a postgres:// URL",
            key.key, key.name
        );
        self.refuse(ConditionReason::DatabaseURLInvalid, message);
        None
    }

    /// A URL of its parts. Everything that is missing is said at once.
    fn composed(&mut self, field: &str, connection: &DatabaseConnection) -> Option<String> {
        let named = |key: &String| SecretKey {
            name: connection.secret_name.clone(),
            key: key.clone(),
        };
        let mut part = |given: Option<String>, key: &String| match given {
            Some(value) => Some(value),
            None => self.text(field, &named(key)).map(str::to_owned),
        };
        let username = part(None, &connection.username_key);
        let password = part(None, &connection.password_key);
        let host = part(connection.host.clone(), &connection.host_key);
        let port = connection.port.map(|port| port.to_string());
        let port = part(port, &connection.port_key);
        let database = part(connection.database.clone(), &connection.database_key);
        let (username, password, host) = (username?, password?, host?);
        let (port, database) = (port?, database?);
        let at = |given: bool, name: &str, key: &String| match given {
            true => format!("{field}.{name}"),
            false => format!("{field}: key {key} of Secret {}", connection.secret_name),
        };
        let Some(hosts) = with_port(&host, &port) else {
            let host = at(connection.host.is_some(), "host", &connection.host_key);
            let port = at(connection.port.is_some(), "port", &connection.port_key);
            let message =
                format!("{host} is not the name or address of a server, or {port} is not a port");
            self.refuse(ConditionReason::DatabaseURLInvalid, message);
            return None;
        };
        let (username, password) = (encoded(&username), encoded(&password));
        let database = encoded(&database);
        Some(format!(
            "postgres://{username}:{password}@{hosts}/{database}"
        ))
    }
}

/// One URL for each host, if the text is a URL.
fn hosts(text: &str) -> Option<Vec<url::Url>> {
    signal_contract::one_url_per_host(text)
        .iter()
        .map(|url| url.parse().ok())
        .collect()
}

/// `host:port` of each host, between commas; `None` if a name or the port is none.
fn with_port(hosts: &str, port: &str) -> Option<String> {
    let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
    let each = hosts.split(',').map(|host| {
        let host = host.trim();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<Ipv6Addr>().is_ok() {
            return Some(format!("[{bare}]:{port}"));
        }
        let is_good = !host.is_empty() && host.bytes().all(is_name);
        is_good.then(|| format!("{host}:{port}"))
    });
    let each: Option<Vec<String>> = each.collect();
    Some(each?.join(","))
}

/// A part of a URL in which every character that may mean something is written by its number (RFC 3986, section 2.1).
fn encoded(text: &str) -> String {
    let form: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    form.replace('+', "%20")
}

/// Adds an option, unless the URL has it.
fn add_option(url: &mut String, name: &str, value: &str) {
    let has_it = hosts(url).is_some_and(|urls| {
        let mut options = urls[0].query_pairs();
        // sqlx reads both spellings.
        options.any(|(option, _)| option == name || (name == "sslmode" && option == "ssl-mode"))
    });
    if has_it {
        return;
    }
    let has_options =
        hosts(url).is_some_and(|urls| urls[0].query().is_some_and(|it| !it.is_empty()));
    let joint = if has_options { "&" } else { "?" };
    url.truncate(url.trim_end_matches('?').len());
    url.push_str(joint);
    url.push_str(name);
    url.push('=');
    url.push_str(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_encoded_and_hosts_checked() {
        assert_eq!(
            encoded("a b+%/:@?#,é"),
            "a%20b%2B%25%2F%3A%40%3F%23%2C%C3%A9"
        );
        for (hosts, port, url) in [
            ("db-rw", "5432", Some("db-rw:5432")),
            ("a.b, c_d", "1", Some("a.b:1,c_d:1")),
            ("fd00::1", "5432", Some("[fd00::1]:5432")),
            ("[fd00::1]", "5432", Some("[fd00::1]:5432")),
            ("a/b", "5432", None),
            ("u@a", "5432", None),
            ("", "5432", None),
            ("a", "0", None),
            ("a", "65536", None),
            ("a", "5432?b", None),
        ] {
            assert_eq!(with_port(hosts, port).as_deref(), url, "{hosts} {port}");
        }
    }

    #[test]
    fn an_option_is_added_once_and_never_changed() {
        for (before, after) in [
            ("postgres://a/b", "postgres://a/b?sslmode=require"),
            ("postgres://a/b?", "postgres://a/b?sslmode=require"),
            (
                "postgres://a,c/b?d=e",
                "postgres://a,c/b?d=e&sslmode=require",
            ),
            (
                "postgres://a/b?sslmode=disable",
                "postgres://a/b?sslmode=disable",
            ),
        ] {
            let mut url = before.to_owned();
            add_option(&mut url, "sslmode", "require");
            assert_eq!(url, after);
        }
    }
}

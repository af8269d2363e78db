//! Secrets as operators of databases and of Kafka write them: the names of their keys are defaults, so that such a Secret is used as it is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A PostgreSQL by the keys of one Secret. The defaults are the keys of a Secret `NAME-app` of CloudNativePG. `host`, `port` and `database` take the place
/// of keys, for Secrets with a login alone. A changed content is taken over without a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseConnection {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// Key with the user.
    #[serde(default = "username_key")]
    #[schemars(length(min = 1, max = 253))]
    pub username_key: String,
    /// Key with the password.
    #[serde(default = "password_key")]
    #[schemars(length(min = 1, max = 253))]
    pub password_key: String,
    /// Key with the name or address of the server.
    #[serde(default = "host_key")]
    #[schemars(length(min = 1, max = 253))]
    pub host_key: String,
    /// Key with the port.
    #[serde(default = "port_key")]
    #[schemars(length(min = 1, max = 253))]
    pub port_key: String,
    /// Key with the name of the database.
    #[serde(default = "database_key")]
    #[schemars(length(min = 1, max = 253))]
    pub database_key: String,
    /// Name or address of the server, in place of `hostKey`; several between commas if there are standbys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub host: Option<String>,
    /// Port, in place of `portKey`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Name of the database, in place of `databaseKey`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub database: Option<String>,
}

fn username_key() -> String {
    "username".into()
}

fn password_key() -> String {
    "password".into()
}

fn host_key() -> String {
    "host".into()
}

fn port_key() -> String {
    "port".into()
}

fn database_key() -> String {
    "dbname".into()
}

/// Whether a connection to PostgreSQL is encrypted, and what is checked, as `sslmode` of libpq says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SslMode {
    /// In the clear.
    Disable,
    /// Encrypted where the server can.
    Prefer,
    /// Encrypted; nothing is checked.
    Require,
    /// Encrypted; the authority of the server's certificate is checked.
    VerifyCa,
    /// Encrypted; the authority and the name of the server are checked.
    VerifyFull,
}

impl SslMode {
    /// The word of `sslmode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// The Secret of a Kafka user as Strimzi's user operator writes it. With SSL its certificate and key are presented; with SASL its password is used, by
/// SCRAM-SHA-512. A changed content is taken over without a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaUser {
    /// Name of the Secret: that of the KafkaUser.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// The user who logs in by SASL; absent: the name of the Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub username: Option<String>,
    /// Key with the password.
    #[serde(default = "password_key")]
    #[schemars(length(min = 1, max = 253))]
    pub password_key: String,
    /// Key with the PEM certificate, and its chain.
    #[serde(default = "certificate_key")]
    #[schemars(length(min = 1, max = 253))]
    pub certificate_key: String,
    /// Key with its PEM private key, which has no password.
    #[serde(default = "private_key_key")]
    #[schemars(length(min = 1, max = 253))]
    pub private_key_key: String,
}

fn certificate_key() -> String {
    "user.crt".into()
}

fn private_key_key() -> String {
    "user.key".into()
}

//! Resolves every Secret that the spec names: into a file of the credentials Secret, or into a text of the configuration.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use signal_contract::Object;
use signal_crds::reference::SecretKey;

use super::{Files, Problem, ProblemKind};
use crate::names::LIVE_DIR;
use crate::observe::observed::Secrets;
use crate::reasons::ConditionReason;

/// Key of the credentials Secret: Kafka's password.
pub const KAFKA_PASSWORD: &str = "kafka-password";
/// Kafka's user.
pub const KAFKA_USERNAME: &str = "kafka-username";
/// Kafka's certificate authorities. A change restarts the pods.
pub const KAFKA_CA: &str = "kafka-ca.crt";
/// The certificate that Kafka's brokers ask for, and its chain.
pub const KAFKA_CERTIFICATE: &str = "kafka-client.crt";
/// Its private key.
pub const KAFKA_KEY: &str = "kafka-client.key";
/// Certificate authorities of Kafka's token endpoint.
pub const KAFKA_TOKEN_CA: &str = "kafka-token-ca.crt";
/// User of the registry of schemas.
pub const REGISTRY_USERNAME: &str = "kafka-registry-username";
/// Password of the registry of schemas.
pub const REGISTRY_PASSWORD: &str = "kafka-registry-password";
/// Bearer token for it.
pub const REGISTRY_TOKEN: &str = "kafka-registry-token";
/// Its certificate authorities.
pub const REGISTRY_CA: &str = "kafka-registry-ca.crt";
/// URL of the notification database.
pub const DATABASE_URL: &str = "database-url";
/// Its certificate authorities. A change restarts the pods.
pub const DATABASE_CA: &str = "database-ca.crt";
/// URL of the policy database.
pub const POLICY_URL: &str = "policy-url";
/// Certificate of the public port, and its chain.
pub const TLS_CERTIFICATE: &str = "tls.crt";
/// Its private key.
pub const TLS_KEY: &str = "tls.key";
/// Authorities of clients' certificates.
pub const TLS_CLIENT_CA: &str = "tls-client-ca.crt";
/// Users of `Authorization: Basic`.
pub const BASIC_USERS: &str = "basic-users.json";

/// `STEM-XXXXXXXX` with the first eight hexadecimal digits of the content's SHA-256: another content is another file.
fn addressed(stem: &str, content: &[u8], suffix: &str) -> String {
    let hash: String = Sha256::digest(content)
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{stem}-{hash}{suffix}")
}

/// Reads Secrets, and collects the files for gateways and everything that is wrong.
pub(super) struct Resolver<'a> {
    secrets: &'a Secrets,
    /// Keys of the credentials Secret.
    pub(super) files: Files,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(secrets: &'a Secrets, problems: &'a mut Vec<Problem>) -> Self {
        Self {
            secrets,
            files: Files::new(),
            problems,
        }
    }

    fn refuse(&mut self, reason: ConditionReason, message: String) {
        self.problems.push(Problem {
            kind: ProblemKind::Reference,
            reason,
            message,
        });
    }

    /// The content of a key, not empty.
    fn content(&mut self, field: &str, key: &SecretKey) -> Option<&'a [u8]> {
        let SecretKey { name, key } = key;
        let Some(data) = self.secrets.get(name).and_then(Option::as_ref) else {
            self.refuse(
                ConditionReason::SecretMissing,
                format!("{field}: Secret {name} does not exist"),
            );
            return None;
        };
        match data.get(key) {
            None => {
                self.refuse(
                    ConditionReason::SecretKeyMissing,
                    format!("{field}: Secret {name} has no key {key}"),
                );
                None
            }
            Some(content) if content.trim_ascii().is_empty() => {
                self.refuse(
                    ConditionReason::SecretValueEmpty,
                    format!("{field}: key {key} of Secret {name} is empty"),
                );
                None
            }
            Some(content) => Some(content),
        }
    }

    /// A text of one line, without white space around it.
    fn text(&mut self, field: &str, key: &SecretKey) -> Option<&'a str> {
        let content = self.content(field, key)?;
        match std::str::from_utf8(content).map(str::trim) {
            Ok(text) if !text.contains(char::is_control) => Some(text),
            _ => {
                self.refuse(
                    ConditionReason::SecretValueInvalid,
                    format!(
                        "{field}: key {} of Secret {} is not one line of text",
                        key.key, key.name
                    ),
                );
                None
            }
        }
    }

    /// A user or password under a content-addressed name.
    pub(super) fn addressed_text(
        &mut self,
        field: &str,
        key: &SecretKey,
        stem: &str,
    ) -> Option<String> {
        let text = self.text(field, key)?;
        let name = addressed(stem, text.as_bytes(), "");
        self.files.insert(name.clone(), text.into());
        Some(name)
    }

    /// A user or password under a fixed name.
    pub(super) fn fixed_text(&mut self, field: &str, key: &SecretKey, name: &str) {
        if let Some(text) = self.text(field, key) {
            self.files.insert(name.into(), text.into());
        }
    }

    /// Certificate authorities: at least one certificate, and nothing else.
    fn authorities(&mut self, field: &str, key: &SecretKey) -> Option<&'a [u8]> {
        let content = self.content(field, key)?;
        let mut store = rustls::RootCertStore::empty();
        let good = CertificateDer::pem_slice_iter(content)
            .all(|found| found.is_ok_and(|certificate| store.add(certificate).is_ok()));
        if good && !store.is_empty() {
            return Some(content);
        }
        self.refuse(
            ConditionReason::AuthorityInvalid,
            format!(
                "{field}: key {} of Secret {} does not hold PEM certificates only",
                key.key, key.name
            ),
        );
        None
    }

    /// Certificate and key of a Secret of type `kubernetes.io/tls`, which belong to each other.
    pub(super) fn certificate(&mut self, field: &str, name: &str) {
        let key_of = |key: &str| SecretKey {
            name: name.to_owned(),
            key: key.to_owned(),
        };
        let certificate = self.content(field, &key_of(TLS_CERTIFICATE));
        let key = self.content(field, &key_of(TLS_KEY));
        let (Some(certificate), Some(key)) = (certificate, key) else {
            return;
        };
        match pair(certificate, key, [TLS_CERTIFICATE, TLS_KEY]) {
            Ok(()) => {
                self.files
                    .insert(TLS_CERTIFICATE.into(), certificate.into());
                self.files.insert(TLS_KEY.into(), key.into());
            }
            Err(why) => self.refuse(
                ConditionReason::CertificateInvalid,
                format!("{field}: Secret {name}: {why}"),
            ),
        }
    }

    /// A certificate and its key, of any two Secrets, which belong to each other, under fixed names.
    pub(super) fn client_certificate(
        &mut self,
        field: &str,
        [certificate, key]: [&SecretKey; 2],
        names: [&str; 2],
    ) {
        let (chain, private) = (
            self.content(&format!("{field}.certificateSecretRef"), certificate),
            self.content(&format!("{field}.keySecretRef"), key),
        );
        let (Some(chain), Some(private)) = (chain, private) else {
            return;
        };
        match pair(chain, private, [&certificate.key, &key.key]) {
            Ok(()) => {
                self.files.insert(names[0].into(), chain.into());
                self.files.insert(names[1].into(), private.into());
            }
            Err(why) => self.refuse(
                ConditionReason::CertificateInvalid,
                format!(
                    "{field}.certificateSecretRef: Secret {}: {why}",
                    certificate.name
                ),
            ),
        }
    }

    /// Authorities under a content-addressed name.
    pub(super) fn addressed_authorities(
        &mut self,
        field: &str,
        key: &SecretKey,
        stem: &str,
    ) -> Option<String> {
        let content = self.authorities(field, key)?;
        let name = addressed(stem, content, ".crt");
        self.files.insert(name.clone(), content.into());
        Some(name)
    }

    /// Authorities under a fixed name.
    pub(super) fn fixed_authorities(&mut self, field: &str, key: &SecretKey, name: &str) {
        if let Some(content) = self.authorities(field, key) {
            self.files.insert(name.into(), content.into());
        }
    }

    /// The URL of a PostgreSQL; with `authorities`, `sslrootcert` names their file unless the URL names one itself.
    pub(super) fn database(&mut self, field: &str, key: &SecretKey, name: &str, authorities: bool) {
        let Some(text) = self.text(field, key) else {
            return;
        };
        // The message must not contain the URL: it holds the password.
        let parsed: Result<Vec<url::Url>, _> = signal_contract::one_url_per_host(text)
            .iter()
            .map(|url| url.parse())
            .collect();
        let url = parsed.ok().and_then(|hosts| {
            let is_postgres = |url: &url::Url| matches!(url.scheme(), "postgres" | "postgresql");
            hosts.into_iter().find(is_postgres)
        });
        let Some(url) = url else {
            let message = format!(
                "{field}: key {} of Secret {} is not a postgres:// URL",
                key.key, key.name
            );
            return self.refuse(ConditionReason::DatabaseURLInvalid, message);
        };
        let mut text = text.to_owned();
        if authorities && !url.query_pairs().any(|(name, _)| name == "sslrootcert") {
            let joint = if url.query().is_some_and(|query| !query.is_empty()) {
                "&"
            } else {
                "?"
            };
            text = format!(
                "{}{joint}sslrootcert={LIVE_DIR}/{DATABASE_CA}",
                text.trim_end_matches('?')
            );
        }
        self.files.insert(name.into(), text.into_bytes());
    }

    /// Users of `Authorization: Basic`.
    pub(super) fn basic_users(&mut self, field: &str, key: &SecretKey) {
        let Some(content) = self.content(field, key) else {
            return;
        };
        // Whatever their number, users that are not kept take no memory.
        match serde_json::from_slice::<Vec<Object<IgnoredAny>>>(content) {
            Ok(_) => {
                self.files.insert(BASIC_USERS.into(), content.into());
            }
            Err(_) => self.refuse(
                ConditionReason::BasicUsersInvalid,
                format!(
                    "{field}: key {} of Secret {} is not a JSON array of users",
                    key.key, key.name
                ),
            ),
        }
    }
}

/// Checks that a certificate and a key, of keys with these names, can be read and belong together. The error never quotes them.
fn pair(certificate: &[u8], key: &[u8], names: [&str; 2]) -> Result<(), String> {
    let [certificate_name, key_name] = names;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| format!("{certificate_name} does not hold PEM certificates"))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| format!("{key_name} does not hold a PEM private key"))?;
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(chain, key, &provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(format!(
            "{key_name} does not belong to the certificate in {certificate_name}"
        )),
        Err(_) => Err(format!("{certificate_name} and {key_name} cannot be used")),
    }
}

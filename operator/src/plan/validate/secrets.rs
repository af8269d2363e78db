//! Resolves every Secret that the spec names: into a file of the credentials Secret, or into a text of the configuration.

use std::borrow::Cow;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use signal_contract::Object;
use signal_crds::reference::SecretKey;

use super::{Files, Problem, ProblemKind};
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
/// Its certificate authorities.
pub const POLICY_CA: &str = "policy-ca.crt";
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

    /// Adds what is wrong with a reference.
    pub(super) fn refuse(&mut self, reason: ConditionReason, message: String) {
        let problem = Problem {
            kind: ProblemKind::Reference,
            reason,
            message,
        };
        // A Secret that does not exist lacks every key, and is named once for each field.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
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
    pub(super) fn text(&mut self, field: &str, key: &SecretKey) -> Option<&'a str> {
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

    /// The contents of all keys with an ending, each not empty, in the order of their names. No key of a Secret has a `*` in its name.
    fn contents(&mut self, field: &str, secret: &str, ending: &str) -> Option<Cow<'a, [u8]>> {
        let data = self.secrets.get(secret).and_then(Option::as_ref);
        let names = data.into_iter().flat_map(|data| data.keys());
        let names: Vec<&String> = names.filter(|name| name.ends_with(ending)).collect();
        if names.is_empty() {
            // Says which of the two is missing.
            let key = SecretKey {
                name: secret.to_owned(),
                key: format!("*{ending}"),
            };
            return self.content(field, &key).map(Cow::Borrowed);
        }
        let mut all = Vec::new();
        for name in names {
            let key = SecretKey {
                name: secret.to_owned(),
                key: name.clone(),
            };
            all.extend_from_slice(self.content(field, &key)?.trim_ascii());
            all.push(b'\n');
        }
        Some(Cow::Owned(all))
    }

    /// Certificate authorities: at least one certificate, and nothing else. Of a key `*.crt`, those of each key that ends so.
    fn authorities(&mut self, field: &str, key: &SecretKey) -> Option<Cow<'a, [u8]>> {
        let content = match key.key.strip_prefix('*') {
            Some(ending) => self.contents(field, &key.name, ending)?,
            None => Cow::Borrowed(self.content(field, key)?),
        };
        let mut store = rustls::RootCertStore::empty();
        let good = CertificateDer::pem_slice_iter(&content)
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

    /// The contents of a certificate and its key, of any two Secrets, which belong to each other. The fields are those that name them.
    fn pair(
        &mut self,
        fields: [&str; 2],
        [certificate, key]: [&SecretKey; 2],
    ) -> Option<[&'a [u8]; 2]> {
        let contents = (
            self.content(fields[0], certificate),
            self.content(fields[1], key),
        );
        let (Some(chain), Some(private)) = contents else {
            return None;
        };
        match pair(chain, private, [&certificate.key, &key.key]) {
            Ok(()) => Some([chain, private]),
            Err(why) => {
                let message = format!("{}: Secret {}: {why}", fields[0], certificate.name);
                self.refuse(ConditionReason::CertificateInvalid, message);
                None
            }
        }
    }

    /// The same under fixed names.
    pub(super) fn fixed_pair(
        &mut self,
        fields: [&str; 2],
        keys: [&SecretKey; 2],
        names: [&str; 2],
    ) {
        for (name, content) in names
            .into_iter()
            .zip(self.pair(fields, keys).into_iter().flatten())
        {
            self.files.insert(name.into(), content.into());
        }
    }

    /// The same under content-addressed names.
    pub(super) fn addressed_pair(
        &mut self,
        fields: [&str; 2],
        keys: [&SecretKey; 2],
        stems: [&str; 2],
    ) -> Option<[String; 2]> {
        let [chain, private] = self.pair(fields, keys)?;
        let names = [
            addressed(stems[0], chain, ".crt"),
            addressed(stems[1], private, ""),
        ];
        self.files.insert(names[0].clone(), chain.into());
        self.files.insert(names[1].clone(), private.into());
        Some(names)
    }

    /// Authorities under a content-addressed name.
    pub(super) fn addressed_authorities(
        &mut self,
        field: &str,
        key: &SecretKey,
        stem: &str,
    ) -> Option<String> {
        let content = self.authorities(field, key)?;
        let name = addressed(stem, &content, ".crt");
        self.files.insert(name.clone(), content.into_owned());
        Some(name)
    }

    /// Authorities under a fixed name.
    pub(super) fn fixed_authorities(&mut self, field: &str, key: &SecretKey, name: &str) {
        if let Some(content) = self.authorities(field, key) {
            self.files.insert(name.into(), content.into_owned());
        }
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

//! The stage of each change, kept on the objects: an operator that is killed between any two steps goes on from here.
//!
//! The record lies in an annotation of the live ConfigMap, so it changes in the same write as the `live.toml` that it describes. The Secret of
//! credentials has a copy of it, which counts while there is no live ConfigMap: one that was deleted by hand trusts nothing unseen. A record that
//! cannot be read changes nothing.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use signal_contract::{Object, RedisMode, SourcePreset, object, objects, optional_object};
use signal_crds::jwks::Algorithm;
use signal_crds::status::{SigningKeyStage, SourceStage};

use crate::observe::bounded;

/// The stage of everything that changes in stages: one member for each plan, which reads and changes no other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Key sources; of [`crate::plan::sources`].
    #[serde(flatten)]
    pub jwks: SourcesRecord,
    /// Redis; of [`crate::plan::routing`].
    #[serde(flatten)]
    pub redis: RedisRecord,
    /// Public halves of the keys that the operator makes; of [`crate::plan::signing`].
    #[serde(flatten)]
    pub signing: SigningRecord,
}

/// The keys that their Secret held, without their private parts: what is left of them if the Secret is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SigningRecord {
    /// In the order of the public set.
    #[serde(
        rename = "signingKeys",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "objects"
    )]
    pub keys: Vec<PublicKey>,
}

/// The public half of a key that the operator made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicKey {
    /// Its RFC 7638 thumbprint.
    pub kid: String,
    /// First coordinate of its point, base64url.
    pub x: String,
    /// The second one.
    pub y: String,
    /// Its stage.
    pub stage: SigningKeyStage,
    /// Since when it has this stage.
    pub since: DateTime<Utc>,
    /// Until when it is verified; stage VerifyOnly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_until: Option<DateTime<Utc>>,
    /// The longest life of a token that it may have signed.
    #[serde(default)]
    pub token_life: signal_crds::Duration,
}

/// The stages of key sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourcesRecord {
    /// Key sources as gateways know them, in the order of `live.toml`.
    #[serde(deserialize_with = "objects")]
    pub sources: Vec<RecordedSource>,
    /// Names of sources that lost trust in an emergency: their connections are closed at once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revoked_sources: Vec<String>,
    /// When the last of them lost it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_since: Option<DateTime<Utc>>,
}

/// How far gateways have switched from one Redis to another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RedisRecord {
    /// Redis that gateways use, or switch to.
    #[serde(
        rename = "redis",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_object"
    )]
    pub current: Option<RecordedRedis>,
    /// Redis that gateways switch from and stay subscribed to meanwhile.
    #[serde(
        rename = "redisPrevious",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_object"
    )]
    pub previous: Option<RecordedRedis>,
    /// When the switch began.
    #[serde(rename = "redisSince", skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

/// One key source as gateways know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedSource {
    /// Its name in gateways, unique: the declared name, or that with a hash where a source of the same name is still there.
    pub name: String,
    /// Its name in the spec.
    pub declared: String,
    /// What it is.
    #[serde(deserialize_with = "object")]
    pub definition: SourceDefinition,
    /// Its stage.
    pub stage: SourceStage,
    /// Since when it has this stage.
    pub since: DateTime<Utc>,
    /// Until when it is accepted; stage Retiring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retire_after: Option<DateTime<Utc>>,
}

/// Everything of a source that a gateway reads. Any difference makes another source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceDefinition {
    /// `iss`.
    pub issuer: String,
    /// Its JWK Set; `None` for the managed set, which is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `aud`.
    pub audiences: Vec<String>,
    /// Accepted algorithms.
    pub algorithms: Vec<Algorithm>,
    /// What kind of issuer it is.
    #[serde(default, skip_serializing_if = "is_standard")]
    pub preset: SourcePreset,
    /// The claims that may be its subject.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_claims: Vec<String>,
    /// In front of its subjects.
    #[serde(default)]
    pub subject_prefix: String,
    /// Key of the credentials Secret with the secret of its payloads, content-addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_secret_file: Option<String>,
    /// Whether its roles count.
    #[serde(default)]
    pub trust_roles: bool,
    /// Key of the credentials Secret with its authorities, content-addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Accepts `http://`.
    #[serde(default)]
    pub allow_insecure_http: bool,
}

fn is_standard(preset: &SourcePreset) -> bool {
    *preset == SourcePreset::Standard
}

impl SourceDefinition {
    /// Returns whether both are of the same named issuer.
    pub fn is_of_issuer(&self, other: &Self) -> bool {
        !self.issuer.is_empty() && self.issuer == other.issuer
    }
}

/// One Redis as gateways know it. Any difference is a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedRedis {
    /// Which kind.
    pub mode: RedisMode,
    /// `host:port`.
    pub nodes: Vec<String>,
    /// Sentinel's name of the master, else empty.
    #[serde(default)]
    pub sentinel_master: String,
    /// Database number.
    #[serde(default)]
    pub database: u32,
    /// ACL user, or empty: only in records of the first form. Nothing of a Secret is in a record.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Key of the credentials Secret with the ACL user, content-addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_file: Option<String>,
    /// Key of the credentials Secret with the password, content-addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
    /// The same for the sentinels' password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel_password_file: Option<String>,
    /// Whether TLS is used.
    #[serde(default)]
    pub tls: bool,
    /// Key of the credentials Secret with its authorities, content-addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Key of the credentials Secret with the certificate that the server asks for, content-addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<String>,
    /// The same for its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// In front of channels and keys.
    #[serde(default)]
    pub prefix: String,
}

/// Version of the form in which records are written. A newer operator raises it when an older one would misread its records.
const VERSION: u32 = 1;

/// A record with the version of its form; the first form had none.
#[derive(Serialize, Deserialize)]
struct Versioned<R> {
    #[serde(default)]
    version: u32,
    #[serde(flatten)]
    record: R,
}

impl Record {
    /// Reads what [`Record::write`] wrote, in this release or an earlier one.
    ///
    /// # Errors
    /// For people: why it cannot be read.
    pub fn read(text: &str) -> Result<Self, String> {
        bounded::count(text.as_bytes()).map_err(|error| error.to_string())?;
        let Object(read): Object<Versioned<Self>> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        if read.version > VERSION {
            return Err(format!(
                "it has version {} of a newer operator, this one reads up to {VERSION}",
                read.version
            ));
        }
        Ok(read.record)
    }

    /// Returns the text that is kept in the annotation.
    pub fn write(&self) -> String {
        let versioned = Versioned {
            version: VERSION,
            record: self,
        };
        serde_json::to_string(&versioned).expect("a record is plain data")
    }

    /// Returns whether gateways still trust a source of the managed keys.
    pub fn names_managed(&self) -> bool {
        self.jwks
            .sources
            .iter()
            .any(|source| source.definition.url.is_none())
    }

    /// Keys of the credentials Secret that the record names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let sources = self
            .jwks
            .sources
            .iter()
            .flat_map(|source| {
                let definition = &source.definition;
                [&definition.ca_file, &definition.application_secret_file]
            })
            .filter_map(|file| file.as_deref());
        let redis = self
            .redis
            .current
            .iter()
            .chain(&self.redis.previous)
            .flat_map(|redis| {
                [
                    redis.username_file.as_deref(),
                    redis.password_file.as_deref(),
                    redis.sentinel_password_file.as_deref(),
                    redis.ca_file.as_deref(),
                    redis.certificate_file.as_deref(),
                    redis.key_file.as_deref(),
                ]
                .into_iter()
                .flatten()
            });
        sources.chain(redis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As operators wrote it before records had a version.
    const FIRST_FORM: &str = include_str!("../../golden/record.first-form.json");

    #[test]
    fn a_record_of_an_older_operator_is_readable() {
        let record = Record::read(FIRST_FORM).unwrap();
        assert_eq!(record.jwks.sources.len(), 3);
        assert_eq!(record.jwks.sources[2].definition.url, None);
        let redis = record.redis.current.as_ref().unwrap();
        assert_eq!((redis.mode, redis.nodes.len()), (RedisMode::Sentinel, 3));
        assert_eq!(Record::read(&record.write()).unwrap(), record);
        assert!(
            record.write().starts_with("{\"version\":1,"),
            "{}",
            record.write()
        );
        assert_eq!(Record::read("{}").unwrap(), Record::default());
    }

    #[test]
    fn a_record_of_a_newer_operator_is_not_readable() {
        let error = Record::read("{\"version\":2,\"sources\":[]}").unwrap_err();
        assert!(error.contains("version 2"), "{error}");
        assert!(Record::read("{").is_err());
    }

    #[test]
    fn a_record_of_thousands_of_values_is_not_read() {
        let empty = vec!["\"\""; bounded::MAX_VALUES].join(",");
        let error = Record::read(&format!("{{\"unknown\":[{empty}]}}")).unwrap_err();
        assert!(error.contains("more than 4096 values"), "{error}");
    }

    #[test]
    fn a_list_is_no_record_and_no_part_of_one() {
        for list in [
            r#"[1,[]]"#,
            r#"{"sources":[["a","a",{},"Trusted","2026-01-01T00:00:00Z"]]}"#,
            r#"{"redis":["standalone",["redis:6379"]]}"#,
            r#"{"redisPrevious":["standalone",["redis:6379"]]}"#,
        ] {
            let error = Record::read(list).unwrap_err();
            assert!(error.contains("expected an object"), "{list}: {error}");
        }
    }
}

//! Who may issue tokens, where their keys are, and how key sets are fetched.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::SecretFile;

/// `[jwks]` of the live settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jwks {
    /// Between two fetches, in seconds.
    pub refresh_interval_secs: u64,
    /// Least time between two fetches for an unknown `kid`, in seconds.
    pub min_refresh_interval_secs: u64,
    /// How long keys are used after the last good fetch, in seconds.
    pub max_stale_secs: u64,
    /// Longest fetch, in milliseconds.
    pub request_timeout_ms: u64,
    /// Largest key set, in bytes.
    pub max_bytes: usize,
    /// Names of sources whose connections are closed at once and whose tokens are refused, listed in `sources` or not; at most 64.
    pub revoked_sources: Vec<String>,
    /// The key set that the gateway serves.
    pub managed: ManagedJwks,
    /// Who may issue tokens; at most 16.
    #[serde(default)]
    pub sources: Vec<Source>,
}

/// `[jwks.managed]`: the key set that the gateway serves at `/.well-known/jwks.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ManagedJwks {
    /// A file that holds the JWK Set; empty for none.
    pub jwks_file: PathBuf,
    /// How long others may cache it, in seconds.
    pub cache_age_secs: u64,
}

/// `[[jwks.sources]]`: one issuer and where its keys are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// Its name in logs and metrics.
    pub name: String,
    /// What kind of issuer it is: the checks that it waives, and its [`Source::subject_claims`].
    pub preset: SourcePreset,
    /// The `iss` of its tokens.
    pub issuer: String,
    /// Where its JWK Set is fetched; this or `keys_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// A mounted file that holds its JWK Set.
    pub keys_file: PathBuf,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// The algorithms accepted from it.
    pub algorithms: Vec<Algorithm>,
    /// The claims that may be the subject: the first that a token has. Empty for those of the preset.
    pub subject_claims: Vec<String>,
    /// Put in front of its subjects.
    pub subject_prefix: String,
    /// Names of sources whose subjects are the same people, so that their prefixes may be alike: those of one issuer always are.
    pub same_subjects_as: Vec<String>,
    /// The secret with which its payloads are encrypted; for [`SourcePreset::Ignis`].
    pub application_secret_file: SecretFile,
    /// Whether its `roles` count.
    pub trust_roles: bool,
    /// PEM file of authorities for `url`; empty for the system's.
    pub ca_file: PathBuf,
    /// Whether `http://` is accepted.
    pub allow_insecure_http: bool,
    /// Waives the check of `iss`.
    pub skip_issuer_check: bool,
    /// Waives the check of `aud`.
    pub skip_audience_check: bool,
    /// Its stage in a rotation.
    pub state: SourceState,
}

/// What kind of issuer a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourcePreset {
    /// Tokens as RFC 7519 has them: `iss` and `aud` are checked, and the subject is `sub`, else `userId`.
    #[default]
    Standard,
    /// Tokens of services built on `@venizia/ignis`: the subject is `userId`, else `sub`; `iss` is checked only where `issuer` is set, and `aud` only
    /// where `audiences` are; the payload may be encrypted.
    Ignis,
}

/// The stage of a source in a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Fetched and validated; its tokens are refused.
    Prepared,
    /// Its tokens are accepted.
    #[default]
    Trusted,
    /// Its tokens are accepted until it is removed.
    Retiring,
}

/// Asymmetric signature algorithms (RFC 7518 section 3.1, RFC 8037): `none` and `HS*` cannot be named. Those with a name of RFC 9864 have both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[expect(missing_docs, reason = "named by RFC 7518")]
pub enum Algorithm {
    #[serde(alias = "ESP256")]
    ES256,
    #[serde(alias = "ESP384")]
    ES384,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    #[serde(alias = "Ed25519")]
    EdDSA,
}

impl Algorithm {
    /// Every algorithm with its name of RFC 7518 or RFC 8037, and those that RFC 9864 names with that name too.
    const NAMES: [(&str, Self); 12] = [
        ("ES256", Self::ES256),
        ("ES384", Self::ES384),
        ("RS256", Self::RS256),
        ("RS384", Self::RS384),
        ("RS512", Self::RS512),
        ("PS256", Self::PS256),
        ("PS384", Self::PS384),
        ("PS512", Self::PS512),
        ("EdDSA", Self::EdDSA),
        ("ESP256", Self::ES256),
        ("ESP384", Self::ES384),
        ("Ed25519", Self::EdDSA),
    ];

    /// Returns the algorithm of this name (`alg`), in upper and lower case as registered.
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, algorithm)| *algorithm)
    }

    /// Returns its name of RFC 7518 or RFC 8037.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, known)| *known == self);
        found.map_or("", |(name, _)| name)
    }
}

impl Jwks {
    /// Returns the files that these settings name, each with the name of its setting.
    pub fn files(&self) -> impl Iterator<Item = (String, &Path)> {
        let managed = Some(self.managed.jwks_file.as_path())
            .filter(|path| !path.as_os_str().is_empty())
            .map(|path| ("jwks.managed.jwks_file".to_owned(), path));
        let of_sources = self.sources.iter().enumerate().flat_map(|(at, source)| {
            source
                .files()
                .map(move |(name, path)| (format!("jwks.sources[{at}].{name}"), path))
        });
        managed.into_iter().chain(of_sources)
    }
}

/// Returns whether a subject behind the one prefix may look like a subject behind the other (authorization.md 2.8).
///
/// An empty prefix collides with another empty one only: subjects without a prefix that begin with the other prefix are refused.
pub fn prefixes_collide(a: &str, b: &str) -> bool {
    a.is_empty() == b.is_empty() && (a.starts_with(b) || b.starts_with(a))
}

impl Source {
    /// Returns the claims that may be its subject, in their order.
    pub fn subject_claims(&self) -> impl Iterator<Item = &str> {
        let of_preset: &[&str] = match (self.subject_claims.is_empty(), self.preset) {
            (false, _) => &[],
            (true, SourcePreset::Standard) => &["sub", "userId"],
            (true, SourcePreset::Ignis) => &["userId", "sub"],
        };
        let own = self.subject_claims.iter().map(String::as_str);
        own.chain(of_preset.iter().copied())
    }

    /// Returns whether `iss` is not checked.
    pub fn waives_issuer(&self) -> bool {
        self.skip_issuer_check || (self.preset == SourcePreset::Ignis && self.issuer.is_empty())
    }

    /// Returns whether `aud` is not checked.
    pub fn waives_audience(&self) -> bool {
        self.skip_audience_check
            || (self.preset == SourcePreset::Ignis && self.audiences.is_empty())
    }

    /// Returns whether a subject of one is the same person as that subject of the other: one issuer's, or declared so. A source that waives `iss` is
    /// an issuer of its own.
    pub fn shares_subjects_with(&self, other: &Self) -> bool {
        let one_issuer =
            !self.waives_issuer() && !other.waives_issuer() && self.issuer == other.issuer;
        self.name == other.name
            || one_issuer
            || self.same_subjects_as.contains(&other.name)
            || other.same_subjects_as.contains(&self.name)
    }

    /// Returns the files that it names, each with the name of its setting.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [
            ("keys_file", self.keys_file.as_path()),
            ("ca_file", self.ca_file.as_path()),
            (
                "application_secret_file",
                self.application_secret_file.path().unwrap_or(Path::new("")),
            ),
        ];
        files
            .into_iter()
            .filter(|(_, path)| !path.as_os_str().is_empty())
    }
}

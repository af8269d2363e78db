//! Who may issue tokens, where their keys are, and how key sets are fetched.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

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
    /// Put in front of its subjects.
    pub subject_prefix: String,
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

/// Asymmetric signature algorithms (RFC 7518 section 3.1, RFC 8037): `none` and `HS*` cannot be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[expect(missing_docs, reason = "named by RFC 7518")]
pub enum Algorithm {
    ES256,
    ES384,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    EdDSA,
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

impl Source {
    /// Returns the files that it names, each with the name of its setting.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [
            ("keys_file", self.keys_file.as_path()),
            ("ca_file", self.ca_file.as_path()),
        ];
        files
            .into_iter()
            .filter(|(_, path)| !path.as_os_str().is_empty())
    }
}

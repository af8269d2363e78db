//! The live settings: what may change while connections are open.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::BusPlace;

/// `live.default.toml`: every live setting with its default.
pub const LIVE_DEFAULTS: &str = include_str!("../live.default.toml");

/// The live settings.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    /// Origins allowed besides the gateway's own.
    pub allowed_origins: Vec<String>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// tracing's filter syntax.
    pub log_filter: String,
    /// A JWK Set that is served at `/.well-known/jwks.json`; empty for none.
    pub well_known_jwks_file: PathBuf,
    /// How long those who fetch it may keep it, in seconds.
    pub jwks_max_age_secs: u64,
    /// Names of sources whose connections are closed at once and whose tokens are refused, listed in `sources` or not; at most 64.
    pub revoked_sources: Vec<String>,
    /// Bounds.
    pub limits: Limits,
    /// How key sets are fetched.
    pub keys: Keys,
    /// Who may issue tokens; at most 16.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// The Redis in use; none for that of the static settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<BusPlace>,
    /// The Redis that was in use before: published to and heard as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_previous: Option<BusPlace>,
}

/// `[limits]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Open connections of the instance.
    pub max_connections: usize,
    /// WebSocket connections accepted per second.
    pub accepts_per_second: u32,
    /// How many more may come at once.
    pub accept_burst: u32,
    /// Connections of one user on this instance; 0 for no limit.
    pub connections_per_user: usize,
    /// Frames per second of one connection; 0 for no limit.
    pub inbound_frames_per_second: u32,
    /// How many more may come at once.
    pub inbound_burst: u32,
    /// Longest message of a client in bytes.
    pub max_frame_bytes: usize,
    /// Bytes that may wait for one connection.
    pub outbox_bytes: usize,
    /// Frames that may wait for one connection.
    pub outbox_frames: usize,
    /// Longest time a socket may take nothing, in milliseconds.
    pub write_timeout_ms: u64,
    /// Bytes that may wait on the whole instance.
    pub total_outbox_bytes: usize,
    /// Rooms of one connection.
    pub rooms_per_connection: usize,
}

/// `[keys]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Between two fetches, in seconds.
    pub refresh_secs: u64,
    /// Least time between two fetches for an unknown `kid`, in seconds.
    pub min_refresh_secs: u64,
    /// How long keys are used after the last good fetch, in seconds.
    pub max_stale_secs: u64,
    /// Longest fetch, in milliseconds.
    pub request_timeout_ms: u64,
    /// Largest key set, in bytes.
    pub max_bytes: usize,
    /// Allowed difference between clocks, in seconds.
    pub leeway_secs: u64,
}

/// `[[sources]]`: one issuer and where its keys are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name in logs and metrics.
    pub name: String,
    /// The `iss` of its tokens.
    pub issuer: String,
    /// Where its JWK Set is fetched; this or `keys_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// A mounted file that holds its JWK Set.
    #[serde(default)]
    pub keys_file: PathBuf,
    /// One of these must be in `aud`.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// The algorithms accepted from it.
    pub algorithms: Vec<Algorithm>,
    /// Put in front of its subjects.
    #[serde(default)]
    pub subject_prefix: String,
    /// Whether its `roles` count.
    #[serde(default)]
    pub trust_roles: bool,
    /// PEM file of authorities for `url`; empty for the system's.
    #[serde(default)]
    pub ca_file: PathBuf,
    /// Whether `http://` is accepted.
    #[serde(default)]
    pub allow_insecure_http: bool,
    /// Waives the check of `iss`.
    #[serde(default)]
    pub skip_issuer_check: bool,
    /// Waives the check of `aud`.
    #[serde(default)]
    pub skip_audience_check: bool,
    /// Where it stands in a rotation.
    #[serde(default)]
    pub state: SourceState,
}

/// Where a source stands in a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Fetched and validated, its tokens are refused.
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

impl Live {
    /// The built-in defaults: nobody may issue tokens.
    pub fn defaults() -> Self {
        toml::from_str(LIVE_DEFAULTS).expect("the defaults parse")
    }

    /// The files that these settings name, each with the setting's name.
    pub fn files(&self) -> impl Iterator<Item = (String, &Path)> {
        let sources = self.sources.iter().enumerate();
        let of_sources = sources.flat_map(|(at, source)| {
            source
                .files()
                .map(move |(name, path)| (format!("sources[{at}].{name}"), path))
        });
        let published =
            Some(self.well_known_jwks_file.as_path()).filter(|path| !path.as_os_str().is_empty());
        let places = [("bus", &self.bus), ("bus_previous", &self.bus_previous)];
        let places = places
            .into_iter()
            .filter_map(|(section, place)| Some((section, place.as_ref()?)));
        let of_places = places.flat_map(|(section, place)| {
            place
                .files()
                .map(move |(name, path)| (format!("{section}.{name}"), path))
        });
        published
            .map(|path| ("well_known_jwks_file".to_owned(), path))
            .into_iter()
            .chain(of_sources)
            .chain(of_places)
    }
}

impl Source {
    /// The files that it names, each with the setting's name.
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

//! Whose tokens are accepted, and how that changes.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::reference::SecretKey;

/// Whose tokens are accepted. All of it is live: no pod restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.sources.size() > 0 || has(self.managed)").message("name a source, or let the operator manage keys").field_path(".sources"),
    validation = Rule::new("self.sources.all(a, !has(a.issuer) || a.issuer == '' || (self.sources.exists_one(b, has(b.issuer) && b.issuer == a.issuer) && (!has(self.managed) || a.issuer != self.managed.issuer)))")
        .message("one declared source per issuer").field_path(".sources"),
    validation = Rule::new("self.sources.all(a, self.sources.all(b, a.name == b.name || (has(a.subjectPrefix) && a.subjectPrefix != '' ? !has(b.subjectPrefix) || b.subjectPrefix == '' || !a.subjectPrefix.startsWith(b.subjectPrefix) : has(b.subjectPrefix) && b.subjectPrefix != '')))")
        .message("of two issuers neither subjectPrefix may begin the other, and only one may have none").field_path(".sources"),
    validation = Rule::new("!has(self.managed) || self.sources.all(a, has(a.subjectPrefix) && a.subjectPrefix != '' ? self.managed.subjectPrefix == '' || (!a.subjectPrefix.startsWith(self.managed.subjectPrefix) && !self.managed.subjectPrefix.startsWith(a.subjectPrefix)) : self.managed.subjectPrefix != '')")
        .message("of two issuers neither subjectPrefix may begin the other, and only one may have none").field_path(".managed"),
    validation = Rule::new("duration(self.maxStale) >= duration(self.refreshInterval)")
        .message("maxStale must be at least refreshInterval").field_path(".maxStale"),
    validation = Rule::new("!self.rotation.emergency || self.rotation.emergencySources.size() > 0")
        .message("an emergency names the sources it is about").field_path(".rotation.emergencySources"),
)]
pub struct Jwks {
    /// How often key sets are fetched.
    #[serde(default = "refresh")]
    pub refresh_interval: Duration,
    /// Least time between two fetches for an unknown `kid`.
    #[serde(default = "min_refresh")]
    pub min_refresh_interval: Duration,
    /// How long keys are used after the last good fetch.
    #[serde(default = "max_stale")]
    pub max_stale: Duration,
    /// Longest fetch.
    #[serde(default = "request_timeout")]
    pub request_timeout: Duration,
    /// Issuers and where their keys are (RFC 7517). A changed source is a new one beside the old: both are trusted for `rotation.overlap`.
    #[serde(default)]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub sources: Vec<Source>,
    /// How a change of sources proceeds.
    #[serde(default)]
    pub rotation: Rotation,
    /// Signing keys (ES256) that the operator makes for the platform's own issuer, in the Secret `NAME-signing-keys`; the gateways publish the
    /// public set at `/.well-known/jwks.json` and trust it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed: Option<Managed>,
}

fn refresh() -> Duration {
    Duration::secs(300)
}

fn min_refresh() -> Duration {
    Duration::secs(30)
}

fn max_stale() -> Duration {
    Duration::secs(43_200)
}

fn request_timeout() -> Duration {
    Duration::secs(3)
}

/// One issuer and where its keys are.
// The schema has no default inside of a list: the API server would write it into the stored list, and a comparison at the client, as Argo CD makes it,
// takes a list as a whole and would see a difference for ever. What is absent is filled in as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.url.startsWith('https://') || (has(self.allowInsecureHTTP) && self.allowInsecureHTTP && self.url.startsWith('http://'))")
        .message("a JWKS URL must be https, or http with allowInsecureHTTP").field_path(".url"),
    validation = Rule::new("(has(self.preset) && self.preset == 'Ignis') || (has(self.issuer) && self.issuer != '' && has(self.audiences) && self.audiences.size() > 0)")
        .message("name an issuer and an audience; only preset Ignis can do without").field_path(".issuer"),
    validation = Rule::new("!has(self.applicationSecretRef) || (has(self.preset) && self.preset == 'Ignis')")
        .message("encrypted payloads are of preset Ignis").field_path(".applicationSecretRef"),
)]
pub struct Source {
    /// Its name in status, logs and metrics.
    #[schemars(length(min = 1, max = 40), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What kind of issuer it is. Default: `Standard`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub preset: SourcePreset,
    /// Exactly the `iss` of its tokens. With preset `Ignis` it may be left out, and `iss` is not checked.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 512))]
    pub issuer: String,
    /// Its JWK Set.
    #[schemars(length(min = 8, max = 1024))]
    pub url: String,
    /// One of these must be in `aud`. With preset `Ignis` they may be left out, and `aud` is not checked.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    pub audiences: Vec<String>,
    /// The algorithms accepted from it. Default: `ES256` and `RS256`.
    #[serde(default = "algorithms", skip_serializing_if = "are_default_algorithms")]
    #[schemars(length(min = 1, max = 12))]
    pub algorithms: Vec<Algorithm>,
    /// The claims that may be the subject: the first that a token has. Empty: `sub`, then `userId`; with preset `Ignis` the other way round.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 64)))]
    pub subject_claims: Vec<String>,
    /// Put in front of its subjects, so that user 17 of one issuer is not user 17 of another. Of two issuers neither prefix may begin the other, and only
    /// one may have none. Default: none.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 64))]
    pub subject_prefix: String,
    /// The application secret with which a service of preset `Ignis` encrypts its payloads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_secret_ref: Option<SecretKey>,
    /// Whether the `roles` of its tokens count. Default: `false`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub trust_roles: bool,
    /// PEM authorities for its URL; absent: those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
    /// Accepts `http://`, where whoever can change traffic can choose the keys. Default: `false`.
    #[serde(
        default,
        rename = "allowInsecureHTTP",
        skip_serializing_if = "is_default"
    )]
    pub allow_insecure_http: bool,
}

fn algorithms() -> Vec<Algorithm> {
    vec![Algorithm::ES256, Algorithm::RS256]
}

/// Keeps the default out of the schema, and of what is written.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn are_default_algorithms(value: &[Algorithm]) -> bool {
    *value == algorithms()
}

/// What kind of issuer a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum SourcePreset {
    /// Tokens as RFC 7519 has them.
    #[default]
    Standard,
    /// Tokens of services built on `@venizia/ignis`.
    Ignis,
}

/// Asymmetric signature algorithms (RFC 7518 section 3.1, RFC 8037): `none` and `HS*` cannot be named. `ESP256`, `ESP384` and `Ed25519` (RFC 9864) are
/// other names of `ES256`, `ES384` and `EdDSA`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
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
    ESP256,
    ESP384,
    Ed25519,
}

impl Algorithm {
    /// Returns the same algorithm by its name of RFC 7518 or RFC 8037, which every release knows.
    pub fn canonical(self) -> Self {
        match self {
            Self::ESP256 => Self::ES256,
            Self::ESP384 => Self::ES384,
            Self::Ed25519 => Self::EdDSA,
            named => named,
        }
    }
}

/// How a change of sources proceeds: Prepared, Trusted, Retiring, gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rotation {
    /// How long a removed or replaced source is still accepted once its successor is trusted: the longest life of its tokens.
    pub overlap: Duration,
    /// When pods have not acknowledged a stage for this long, the condition says so and an Event is recorded; the stage waits on.
    pub ack_timeout: Duration,
    /// Sources that `emergencySources` names and that the spec does not have any more lose trust at once, and connections that rest on them are closed
    /// (4006). A source that replaces one of them is trusted at once. For a stolen key; take it back afterwards.
    pub emergency: bool,
    /// The sources that `emergency` is about, by their names in the spec or in the status. All others change as ever.
    #[schemars(length(max = 24), inner(length(min = 1, max = 64)))]
    pub emergency_sources: Vec<String>,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            overlap: Duration::secs(7200),
            ack_timeout: Duration::secs(300),
            emergency: false,
            emergency_sources: Vec::new(),
        }
    }
}

/// Signing keys that the operator makes: published ahead, then signed with, then verified only, then dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.rotateEvery) >= duration(self.maxTokenLife)")
    .message("rotateEvery must be at least maxTokenLife").field_path(".rotateEvery"))]
pub struct Managed {
    /// The `iss` of the tokens that the platform signs with these keys.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// One of these must be in `aud`.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 512)))]
    pub audiences: Vec<String>,
    /// How long one key signs.
    #[serde(default = "rotate_every")]
    pub rotate_every: Duration,
    /// The longest life of a token: a key verifies for this long, and for clock skew and cache age, after it stopped signing.
    #[serde(default = "max_token_life")]
    pub max_token_life: Duration,
    /// How long others may cache `/.well-known/jwks.json`: a key is published for so long before it signs.
    #[serde(default = "cache_age")]
    pub cache_age: Duration,
    /// Put in front of its subjects.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub subject_prefix: String,
    /// Whether the `roles` of its tokens count.
    #[serde(default)]
    pub trust_roles: bool,
}

fn rotate_every() -> Duration {
    Duration::secs(720 * 3600)
}

fn max_token_life() -> Duration {
    Duration::secs(24 * 3600)
}

fn cache_age() -> Duration {
    Duration::secs(300)
}

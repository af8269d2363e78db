//! Bearer tokens: a JWS in compact form (RFC 7515) with JWT claims (RFC 7519) becomes a [`Principal`], or is refused.
//!
//! Input: tokens from [`crate::ws`] and [`crate::api`], keys from [`super::key_set`]. Output: who speaks, and why not otherwise.
//! With the key at hand, verifying waits for nothing: a hash and a look-up for a token seen before, one signature check for a new one.
//!
//! `jsonwebtoken` reads the header. Its validation is not used, because it reads the system's clock itself (here time is a
//! [`Clock`], and leeway a live setting) and takes a token without `aud` or with a list of issuers unless told otherwise claim by claim; nor its
//! `CryptoProvider`, a process-wide static that copies and boxes the key for each signature. ring is called directly in [`super::jwk`].

pub(super) mod fuzzing;

use std::sync::Arc;
use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use ring::digest;
use serde::Deserialize;
use serde_json::Value;
use signal_contract::KeySourceReport;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Revocations;
use super::jwk::{Key, MAX_KID};
use super::key_set::{Freshness, KeySets, Table, View, Wish};
use super::recent::Recent;
use crate::clock::Clock;
use crate::config::{Algorithm, Live, Source};
use crate::metrics::Metrics;
use crate::principal::{Principal, TokenFacts, Via};

/// Longest token in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Longest subject in bytes, its source's prefix not counted (OpenID Connect Core section 2 has 255 characters).
const MAX_SUBJECT_BYTES: usize = 256;
/// Most roles that are kept of one token, and the longest in bytes.
const MAX_ROLES: usize = 64;
const MAX_ROLE_BYTES: usize = 128;
/// Verified tokens that are remembered: at least half as many different ones may come in turn, such as those of everyone who comes back at once. The
/// principal is shared with the connection that rests on it; with those that are gone, a full memory is some 15 MiB.
const REMEMBERED: usize = 32_768;
const SHARDS: usize = 16;
/// How often one verification waits for a fetch.
const MAX_WAITS: usize = 3;
/// What a fetch may take beyond its own limit before nobody waits for it any more.
const WAIT_SLACK: Duration = Duration::from_millis(500);

/// Why a token was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is bad, and stays so.
    #[error("the token is refused: {0}")]
    Refused(TokenFault),
    /// Nobody can say: the keys of its source cannot be had.
    #[error("the token cannot be verified: {0}")]
    Unavailable(String),
}

/// What is wrong with a token, from the first check to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenFault {
    /// Longer than 16 KiB.
    TooLong,
    /// Not a signed token that this gateway can read; `none` and unknown algorithms are among these.
    Malformed,
    /// It says of itself that it is something else than an access token (RFC 8725 section 3.11), or has a `crit` that is not understood.
    Kind,
    /// No accepted source has this `iss`.
    Issuer,
    /// The algorithm is not one of the source's, or not the key's.
    Algorithm,
    /// The source has no such `kid`, or there is no `kid` and more than one key.
    UnknownKey,
    /// The signature is wrong.
    Signature,
    /// `aud` is missing or somebody else.
    Audience,
    /// `exp` is missing or past.
    Expired,
    /// `nbf` or `iat` lies ahead.
    NotYetValid,
    /// Neither `sub` nor `userId` names anybody.
    Subject,
    /// Revoked before its time, by itself or with its source.
    Revoked,
}

impl TokenFault {
    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Kind => "kind",
            Self::Issuer => "issuer",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Subject => "subject",
            Self::Revoked => "revoked",
        }
    }
}

impl std::fmt::Display for TokenFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Verifies tokens against the key sets of the configured sources. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    inner: Arc<Inner>,
}

struct Inner {
    sets: Arc<KeySets>,
    remembered: [Mutex<Recent<TokenHash, Remembered>>; SHARDS],
    revocations: Arc<Revocations>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// The first half of a token's SHA-256. Two tokens with the same one help nobody: the one that is remembered was signed by its issuer, so whoever made both
/// is taken for whom they are anyhow, and to meet somebody else's takes 2^128 tries.
type TokenHash = [u8; 16];

/// A token that was verified, by its hash.
#[derive(Clone)]
struct Remembered {
    principal: Arc<Principal>,
    not_before_ms: i64,
    /// The settings it was verified under: compared by pointer, so that any change of them means verifying again.
    source: Arc<Source>,
}

/// What one look at the table led to.
enum Step {
    Done(Result<Arc<Principal>, VerifyError>),
    Wait(Vec<watch::Receiver<u64>>, Duration),
}

impl Authenticator {
    /// Begins to fetch the key sets of `live` and follows its changes; the task ends with `shutdown`. Must be called inside a tokio runtime.
    pub fn start(
        live: watch::Receiver<Arc<Live>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        revocations: Arc<Revocations>,
        shutdown: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (sets, task) = KeySets::start(live, Arc::clone(&clock), Arc::clone(&metrics), shutdown);
        let remembered = std::array::from_fn(|_| Mutex::new(Recent::new(REMEMBERED / SHARDS)));
        (
            Self {
                inner: Arc::new(Inner {
                    sets,
                    remembered,
                    revocations,
                    clock,
                    metrics,
                }),
            },
            task,
        )
    }

    /// Who a token speaks for.
    ///
    /// Waits only when the key is not at hand and a fetch that may bring it is under way or allowed; dropping the future loses nothing.
    ///
    /// # Errors
    /// [`VerifyError::Refused`] for a bad token, [`VerifyError::Unavailable`] when its source's keys cannot be had.
    pub async fn verify(&self, token: &str) -> Result<Arc<Principal>, VerifyError> {
        let verdict = self.inner.verify(token).await;
        self.inner.count(&verdict);
        verdict
    }

    /// The verdict of [`Authenticator::verify`] on a token that was verified before and still stands: it takes microseconds and never waits. `None`
    /// says nothing of the token.
    pub fn verify_cached(&self, token: &str) -> Option<Result<Arc<Principal>, VerifyError>> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let verdict = self.inner.recall(&hash_of(token))?;
        self.inner.count(&verdict);
        Some(verdict)
    }

    /// Whether a connection may go on resting on a token: its source is still accepted and still has the key. Time and revocations are not
    /// looked at. While nothing is known of a source, because it could not be fetched since it was configured, the answer is yes.
    pub fn still_valid(&self, facts: &TokenFacts) -> bool {
        let table = self.inner.sets.table();
        let source = table
            .sources
            .iter()
            .find(|view| view.name == facts.source && view.is_accepted());
        source.is_some_and(|view| view.has(&facts.thumbprint) || !view.was_fetched())
    }

    /// Whether a principal rests on a source that the live settings revoke: its connection is to be closed, whatever time it was given to refresh.
    pub fn is_revoked(&self, principal: &Principal) -> bool {
        principal
            .token()
            .is_some_and(|facts| self.inner.sets.table().is_revoked(&facts.source))
    }

    /// Whether a principal may go on: nothing revoked it, and the source and key of its token are still there.
    pub fn trusts(&self, principal: &Principal) -> bool {
        !self.inner.revocations.matches(principal)
            && !self.is_revoked(principal)
            && principal
                .token()
                .is_none_or(|facts| self.still_valid(facts))
    }

    /// Is marked changed whenever [`Authenticator::still_valid`] or [`Authenticator::is_revoked`] may answer differently than before.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.sets.changes()
    }

    /// Why no token can be verified yet; `None` when ready. Without any source it is ready: then every token is refused, which the log says.
    ///
    /// At start every accepted source must have been fetched. Later only the loss of all of them counts, so that one source that is away, or
    /// was added with a wrong address, does not take every instance out of service at once.
    pub fn unready_reason(&self) -> Option<String> {
        self.inner.sets.unready()
    }

    /// Every source as it stands, in the order of the settings.
    pub fn status(&self) -> Vec<KeySourceReport> {
        self.inner.sets.status()
    }
}

impl Inner {
    async fn verify(&self, token: &str) -> Result<Arc<Principal>, VerifyError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(VerifyError::Refused(TokenFault::TooLong));
        }
        let hash = hash_of(token);
        if let Some(verdict) = self.recall(&hash) {
            return verdict;
        }
        let parts = Parts::parse(token).map_err(VerifyError::Refused)?;
        for round in 0..=MAX_WAITS {
            match self.look(&parts, &hash, round) {
                Step::Done(verdict) => return verdict,
                Step::Wait(fetches, limit) => {
                    let all = futures_util::future::join_all(
                        fetches
                            .into_iter()
                            .map(|mut fetch| async move { fetch.changed().await.is_ok() }),
                    );
                    // Whether they finished is seen in the table.
                    let _ = tokio::time::timeout(limit, all).await;
                }
            }
        }
        Err(VerifyError::Unavailable(
            "its key set is still being fetched".into(),
        ))
    }

    fn count(&self, verdict: &Result<Arc<Principal>, VerifyError>) {
        let outcome = match verdict {
            Ok(_) => "accepted",
            Err(VerifyError::Refused(reason)) => reason.as_str(),
            Err(VerifyError::Unavailable(_)) => "unavailable",
        };
        self.metrics
            .authentications
            .get_or_create(&Metrics::kind(outcome))
            .inc();
    }

    /// The verdict on a token seen before, if that still stands.
    fn recall(&self, hash: &TokenHash) -> Option<Result<Arc<Principal>, VerifyError>> {
        let shard = &self.remembered[usize::from(hash[0]) % SHARDS];
        let Remembered {
            principal,
            not_before_ms,
            source,
        } = shard.lock().get(hash)?.clone();
        let facts = principal.token()?;
        let expires_ms = facts.expires_at?.timestamp_millis();
        let table = self.sets.table();
        let now = self.clock.now_ms();
        let leeway = leeway_ms(&table);
        let view = table
            .sources
            .iter()
            .find(|view| Arc::ptr_eq(&view.source, &source) && view.is_accepted());
        let stands = view.is_some_and(|view| {
            view.has(&facts.thumbprint)
                && view.freshness(now, table.jwks.max_stale_secs) == Freshness::Usable
        }) && now < expires_ms.saturating_add(leeway)
            && now.saturating_add(leeway) >= not_before_ms;
        if !stands {
            // The long way says what is wrong.
            shard.lock().remove(hash);
            return None;
        }
        Some(self.unless_revoked(principal))
    }

    fn unless_revoked(&self, principal: Arc<Principal>) -> Result<Arc<Principal>, VerifyError> {
        if self.revocations.matches(&principal) {
            Err(VerifyError::Refused(TokenFault::Revoked))
        } else {
            Ok(principal)
        }
    }

    /// Tries every source the token may come from with the keys at hand.
    fn look(&self, parts: &Parts<'_>, hash: &TokenHash, round: usize) -> Step {
        let table = self.sets.table();
        let now = self.clock.now_ms();
        let mut reason = TokenFault::Issuer;
        let mut without_key = Vec::new();
        let mut found_key = false;
        for view in table.candidates(parts.claims.iss.as_deref()) {
            if !view.source.algorithms.contains(&parts.algorithm) {
                reason = reason.max(TokenFault::Algorithm);
                continue;
            }
            if view.freshness(now, table.jwks.max_stale_secs) != Freshness::Usable {
                without_key.push(view);
                continue;
            }
            let mut found_here = false;
            for key in matching(view, parts.kid.as_deref()) {
                found_here = true;
                match check(parts, view, key, now, leeway_ms(&table)) {
                    Ok((principal, not_before_ms)) => {
                        return Step::Done(self.accept(principal, not_before_ms, view, hash));
                    }
                    Err(why) => reason = reason.max(why),
                }
            }
            found_key |= found_here;
            if !found_here {
                reason = reason.max(TokenFault::UnknownKey);
                without_key.push(view);
            }
        }
        if reason == TokenFault::Issuer
            && without_key.is_empty()
            && table.is_of_revoked(parts.claims.iss.as_deref())
        {
            reason = TokenFault::Revoked;
        }
        if found_key || without_key.is_empty() {
            return Step::Done(Err(VerifyError::Refused(reason)));
        }
        self.ask_for_keys(&table, &without_key, parts.kid.as_deref(), reason, round)
    }

    fn accept(
        &self,
        principal: Principal,
        not_before_ms: i64,
        view: &View,
        hash: &TokenHash,
    ) -> Result<Arc<Principal>, VerifyError> {
        let principal = Arc::new(principal);
        let remembered = Remembered {
            principal: Arc::clone(&principal),
            not_before_ms,
            source: Arc::clone(&view.source),
        };
        self.remembered[usize::from(hash[0]) % SHARDS]
            .lock()
            .insert(*hash, remembered);
        self.unless_revoked(principal)
    }

    /// No source at hand has the key: some may have it after a fetch.
    fn ask_for_keys(
        &self,
        table: &Table,
        views: &[&View],
        kid: Option<&str>,
        reason: TokenFault,
        round: usize,
    ) -> Step {
        let now = self.clock.now_ms();
        let cooldown = Duration::from_secs(table.jwks.min_refresh_interval_secs);
        let mut fetches = Vec::new();
        let mut unavailable = None;
        for view in views {
            if view.freshness(now, table.jwks.max_stale_secs) != Freshness::Usable {
                fetches.extend(self.sets.under_way(view));
                unavailable.get_or_insert_with(|| view.unusable());
            } else if let Some(kid) = kid {
                match self.sets.wish(view, kid, cooldown, round > 0) {
                    Wish::Wait(fetch) => fetches.push(fetch),
                    Wish::Unknown => {}
                    Wish::Unreachable => unavailable = Some(view.unusable()),
                }
            }
        }
        if !fetches.is_empty() && round < MAX_WAITS {
            return Step::Wait(
                fetches,
                Duration::from_millis(table.jwks.request_timeout_ms) + WAIT_SLACK,
            );
        }
        Step::Done(Err(match unavailable {
            Some(why) => VerifyError::Unavailable(why),
            None => VerifyError::Refused(reason),
        }))
    }
}

fn hash_of(token: &str) -> TokenHash {
    digest::digest(&digest::SHA256, token.as_bytes()).as_ref()[..16]
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

fn leeway_ms(table: &Table) -> i64 {
    table.clock_skew_secs.saturating_mul(1000) as i64
}

/// The keys a token may be signed with: those of its `kid`; without one, the only key there is.
fn matching<'v>(view: &'v View, kid: Option<&'v str>) -> impl Iterator<Item = &'v Arc<Key>> {
    let only = kid.is_none() && view.keys().count() == 1;
    view.keys()
        .filter(move |key| only || (kid.is_some() && key.kid.as_deref() == kid))
}

/// A token taken apart; nothing of it is verified.
struct Parts<'t> {
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Claims,
    expires_at: Option<DateTime<Utc>>,
    issued_at: Option<DateTime<Utc>>,
    not_before: Option<DateTime<Utc>>,
    message: &'t [u8],
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    aud: Option<Audience>,
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    jti: Option<Value>,
    sub: Option<Value>,
    #[serde(rename = "userId")]
    user_id: Option<Value>,
    roles: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn holds_one_of(&self, wanted: &[String]) -> bool {
        match self {
            Self::One(audience) => wanted.contains(audience),
            Self::Many(audiences) => audiences.iter().any(|audience| wanted.contains(audience)),
        }
    }
}

impl<'t> Parts<'t> {
    fn parse(token: &'t str) -> Result<Self, TokenFault> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (_, payload) = message.split_once('.').ok_or(TokenFault::Malformed)?;
        // `none` and whatever else has no name there does not parse.
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenFault::Malformed)?;
        let algorithm = accepted(header.alg).ok_or(TokenFault::Algorithm)?;
        // RFC 7515 section 4.1.11: an extension that is not understood makes the token invalid, and none is understood here.
        if header.crit.is_some() || header.typ.as_deref().is_some_and(names_another_kind) {
            return Err(TokenFault::Kind);
        }
        if header.kid.as_ref().is_some_and(|kid| kid.len() > MAX_KID) {
            return Err(TokenFault::UnknownKey);
        }
        let payload = URL_SAFE_NO_PAD
            .decode_to_vec(payload.as_bytes())
            .map_err(|_| TokenFault::Malformed)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| TokenFault::Malformed)?;
        let signature = URL_SAFE_NO_PAD
            .decode_to_vec(signature.as_bytes())
            .map_err(|_| TokenFault::Malformed)?;
        Ok(Self {
            algorithm,
            kid: header.kid,
            expires_at: claims.exp.map(time).transpose()?,
            issued_at: claims.iat.map(time).transpose()?,
            not_before: claims.nbf.map(time).transpose()?,
            claims,
            message: message.as_bytes(),
            signature,
        })
    }
}

/// The algorithms that may ever be accepted: asymmetric ones.
fn accepted(algorithm: jsonwebtoken::Algorithm) -> Option<Algorithm> {
    use jsonwebtoken::Algorithm as Named;
    match algorithm {
        Named::ES256 => Some(Algorithm::ES256),
        Named::ES384 => Some(Algorithm::ES384),
        Named::RS256 => Some(Algorithm::RS256),
        Named::RS384 => Some(Algorithm::RS384),
        Named::RS512 => Some(Algorithm::RS512),
        Named::PS256 => Some(Algorithm::PS256),
        Named::PS384 => Some(Algorithm::PS384),
        Named::PS512 => Some(Algorithm::PS512),
        Named::EdDSA => Some(Algorithm::EdDSA),
        // HS256 and its like, and whatever a later release of the parser may know.
        _ => None,
    }
}

/// Explicit types such as `logout+jwt` or `dpop+jwt` are no access tokens; `at+jwt` (RFC 9068), `JWT` and names of an issuer's own may be.
fn names_another_kind(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    typ.ends_with("+jwt") && !typ.ends_with("at+jwt")
}

/// Everything that one source demands of a token, the signature first. Gives whom it speaks for, and from when on.
fn check(
    parts: &Parts<'_>,
    view: &View,
    key: &Key,
    now_ms: i64,
    leeway_ms: i64,
) -> Result<(Principal, i64), TokenFault> {
    if !key.algorithms.contains(&parts.algorithm) {
        return Err(TokenFault::Algorithm);
    }
    if !key.verifies(parts.algorithm, parts.message, &parts.signature) {
        return Err(TokenFault::Signature);
    }
    let (claims, source) = (&parts.claims, &view.source);
    if !source.skip_audience_check
        && !claims
            .aud
            .as_ref()
            .is_some_and(|aud| aud.holds_one_of(&source.audiences))
    {
        return Err(TokenFault::Audience);
    }
    let expires_at = parts.expires_at.ok_or(TokenFault::Expired)?;
    if now_ms >= expires_at.timestamp_millis().saturating_add(leeway_ms) {
        return Err(TokenFault::Expired);
    }
    // A token from the future would outlive `issuedBefore` of a revocation.
    let not_before_ms = parts
        .issued_at
        .into_iter()
        .chain(parts.not_before)
        .map(|at| at.timestamp_millis())
        .max()
        .unwrap_or(i64::MIN);
    if now_ms.saturating_add(leeway_ms) < not_before_ms {
        return Err(TokenFault::NotYetValid);
    }
    let facts = TokenFacts {
        source: Arc::clone(&view.name),
        thumbprint: Arc::clone(&key.thumbprint),
        token_id: claims.jti.as_ref().and_then(text).map(Arc::from),
        issued_at: parts.issued_at,
        expires_at: Some(expires_at),
    };
    let principal = Principal {
        subject: subject(claims, &source.subject_prefix)?,
        roles: if source.trust_roles {
            roles(claims.roles.as_ref())
        } else {
            Vec::new()
        },
        via: Via::Token(facts),
    };
    Ok((principal, not_before_ms))
}

/// A NumericDate (RFC 7519 section 2), possibly with a fraction.
fn time(seconds: f64) -> Result<DateTime<Utc>, TokenFault> {
    let ms = (seconds * 1000.0).floor();
    // Beyond 2^53 a double counts no single milliseconds, and no calendar goes there.
    let fits = ms.is_finite() && ms.abs() < 9_007_199_254_740_992.0;
    fits.then(|| DateTime::from_timestamp_millis(ms as i64))
        .flatten()
        .ok_or(TokenFault::Malformed)
}

/// `sub`, else `userId`, behind the source's prefix.
fn subject(claims: &Claims, prefix: &str) -> Result<Arc<str>, TokenFault> {
    let subject = claims
        .sub
        .as_ref()
        .or(claims.user_id.as_ref())
        .and_then(text)
        .ok_or(TokenFault::Subject)?;
    if subject.is_empty()
        || subject.len() > MAX_SUBJECT_BYTES
        || subject.chars().any(char::is_control)
    {
        return Err(TokenFault::Subject);
    }
    Ok(if prefix.is_empty() {
        subject.into()
    } else {
        format!("{prefix}{subject}").into()
    })
}

/// A string, or a whole number in its decimal digits; nothing else names anybody.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// The identifiers of `[{"identifier": ..}]` or `[".."]`; what has another shape is not a role.
fn roles(claim: Option<&Value>) -> Vec<String> {
    let Some(Value::Array(roles)) = claim else {
        return Vec::new();
    };
    let identifier = |role: &Value| {
        role.as_str()
            .or_else(|| role.get("identifier")?.as_str())
            .map(str::to_owned)
    };
    roles
        .iter()
        .take(MAX_ROLES)
        .filter_map(identifier)
        .filter(|role| !role.is_empty() && role.len() <= MAX_ROLE_BYTES)
        .collect()
}

#[cfg(test)]
mod tests;

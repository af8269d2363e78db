//! Bearer tokens: a JWS in compact form (RFC 7515) with JWT claims (RFC 7519) becomes a [`Principal`], or is refused.
//!
//! Input: tokens of connections and requests, keys from [`super::key_set`]. Output: the principal, or why the token is not accepted
//! (authorization.md 1). When the key is known, verifying does not wait: a hash and a look-up for a token seen before, one signature check for a new
//! one.
//!
//! `jsonwebtoken` checks a token, with ring beneath ([`super::signature`]); [`parse`] says what it cannot do. Of its own this module has the order in which
//! sources and keys are tried, waiting for keys, and the memory of verified tokens, so that a client that comes back costs a hash and a look-up.

mod parse;
pub(super) mod payload;

pub(super) mod fuzzing;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ring::digest;
use signal_contract::KeySourceReport;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Revocations;
use super::jwk::Key;
use super::key_set::{Freshness, KeyRequest, KeySets, SourceTable, SourceView};
use super::recent::Recent;
use crate::clock::Clock;
use crate::config::{Live, Source};
use crate::metrics::Metrics;
use crate::principal::{Principal, TokenFacts};

use parse::{ParsedToken, check};

/// Longest token in bytes, on the socket and in a header (authorization.md 1.1). Large identity providers write tokens of 20 kB; with 8 KiB for all other
/// fields it fits into the default of `server.max_header_bytes`.
pub const MAX_TOKEN_BYTES: usize = 24 * 1024;
/// Verified tokens that are remembered. At least half as many different ones are remembered at any time, such as those of all clients that
/// reconnect at once. A connection shares the principal; without connections a full memory takes about 15 MiB.
const REMEMBERED: usize = 32_768;
const SHARDS: usize = 16;
/// How often one verification waits for a fetch.
const MAX_WAITS: usize = 3;
/// How long a verification waits for a fetch beyond the fetch's own limit.
const WAIT_SLACK: Duration = Duration::from_millis(500);

/// Why a token was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The token is wrong, and stays wrong.
    #[error("the token is refused: {0}")]
    Refused(TokenFault),
    /// The token cannot be judged, because the keys of its source are not available.
    #[error("the token cannot be verified: {0}")]
    Unavailable(String),
}

/// What is wrong with a token, in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenFault {
    /// Longer than [`MAX_TOKEN_BYTES`].
    TooLong,
    /// Not a signed token that this gateway can read; `none` and unknown algorithms are among these.
    Malformed,
    /// Its `typ` names another kind of token than an access token (RFC 8725 section 3.11), or it has a `crit`, which is not supported.
    Kind,
    /// No accepted source has this `iss`.
    Issuer,
    /// The source or the key does not allow the algorithm.
    Algorithm,
    /// The source has no such `kid`, or there is no `kid` and more than one key.
    UnknownKey,
    /// The signature is wrong.
    Signature,
    /// `aud` is missing or names another audience.
    Audience,
    /// `exp` is missing or past.
    Expired,
    /// `nbf` or `iat` lies in the future.
    NotYetValid,
    /// Neither `sub` nor `userId` is a usable subject, or `principalType` is no usable kind.
    Subject,
    /// It was revoked before it expired, or its source was.
    Revoked,
}

impl TokenFault {
    /// Returns its name in metrics and logs.
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

/// The first half of a token's SHA-256. A collision gives an attacker nothing: only verified tokens are remembered, so an attacker who makes both
/// tokens has a valid one already, and finding a token with the hash of another one takes 2^128 tries.
type TokenHash = [u8; 16];

/// A token that was verified, by its hash.
#[derive(Clone)]
struct Remembered {
    principal: Arc<Principal>,
    not_before_ms: i64,
    /// The settings it was verified with. They are compared by pointer, so any change of them means that the token is verified again.
    source: Arc<Source>,
}

/// The result of trying all sources once.
enum Step {
    Done(Result<Arc<Principal>, VerifyError>),
    Wait(Vec<watch::Receiver<u64>>, Duration),
}

impl Authenticator {
    /// Starts to fetch the key sets of `live` and follows its changes; the task ends with `shutdown`. Must be called inside a tokio runtime.
    pub fn start(
        live: watch::Receiver<Arc<Live>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        revocations: Arc<Revocations>,
        shutdown: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        super::signature::install();
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

    /// Verifies a token and returns its principal.
    ///
    /// Waits only when the key is not known and a fetch that may bring it is under way or allowed. Cancel safe.
    ///
    /// # Errors
    /// [`VerifyError::Refused`] for a wrong token, [`VerifyError::Unavailable`] when the keys of its source are not available.
    pub async fn verify(&self, token: &str) -> Result<Arc<Principal>, VerifyError> {
        let outcome = self.inner.verify(token).await;
        self.inner.count(&outcome);
        outcome
    }

    /// Returns what [`Authenticator::verify`] would return for a token that is remembered. Takes microseconds and never waits. `None` means only
    /// that the token is not remembered.
    pub fn verify_cached(&self, token: &str) -> Option<Result<Arc<Principal>, VerifyError>> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let outcome = self.inner.recall(&hash_of(token))?;
        self.inner.count(&outcome);
        Some(outcome)
    }

    /// Returns whether the token's source is still accepted and still has the key that verified the token (authorization.md 2.6). Time and
    /// revocations are not checked. Returns true while the source could not be fetched since it was configured.
    pub fn still_valid(&self, facts: &TokenFacts) -> bool {
        let table = self.inner.sets.table();
        let source = table
            .sources
            .iter()
            .find(|view| view.name == facts.source && view.is_accepted());
        source.is_some_and(|view| view.has(&facts.thumbprint) || !view.was_fetched())
    }

    /// Returns whether the live settings revoke the source of the principal's token (authorization.md 2.7). Its connections are closed at once, even
    /// if they were given time to refresh.
    pub fn is_revoked(&self, principal: &Principal) -> bool {
        principal
            .token()
            .is_some_and(|facts| self.inner.sets.table().is_revoked(&facts.source))
    }

    /// Returns whether a principal is still trusted: no revocation matches it, the source and the key of its token are still accepted, and its subject is
    /// not one of another issuer by now.
    pub fn trusts(&self, principal: &Principal) -> bool {
        !self.inner.revocations.matches(principal)
            && !self.is_revoked(principal)
            && principal.token().is_none_or(|facts| {
                self.still_valid(facts)
                    && self
                        .inner
                        .sets
                        .table()
                        .owns(&facts.source, &principal.subject)
            })
    }

    /// Returns a channel that changes whenever [`Authenticator::still_valid`] or [`Authenticator::is_revoked`] may return something else.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.sets.changes()
    }

    /// Returns why tokens cannot be verified, or `None` when ready (authorization.md 2.9). Without any source it is ready and refuses every token.
    ///
    /// At the start every accepted source must be fetched. Later it is not ready only when no accepted source can be used, so that one unreachable
    /// source does not take every instance out of service at once.
    pub fn unready_reason(&self) -> Option<String> {
        self.inner.sets.unready()
    }

    /// Returns the status of every source, in the order of the settings.
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
        if let Some(outcome) = self.recall(&hash) {
            return outcome;
        }
        let token = ParsedToken::parse(token).map_err(VerifyError::Refused)?;
        for round in 0..=MAX_WAITS {
            match self.try_sources(&token, &hash, round) {
                Step::Done(outcome) => return outcome,
                Step::Wait(fetches, limit) => {
                    let all = futures_util::future::join_all(
                        fetches
                            .into_iter()
                            .map(|mut fetch| async move { fetch.changed().await.is_ok() }),
                    );
                    // The next round sees in the table whether they finished.
                    let _ = tokio::time::timeout(limit, all).await;
                }
            }
        }
        Err(VerifyError::Unavailable(
            "its key set is still being fetched".into(),
        ))
    }

    fn count(&self, outcome: &Result<Arc<Principal>, VerifyError>) {
        let outcome = match outcome {
            Ok(_) => "accepted",
            Err(VerifyError::Refused(reason)) => reason.as_str(),
            Err(VerifyError::Unavailable(_)) => "unavailable",
        };
        self.metrics
            .authentications
            .get_or_create(&Metrics::kind(outcome))
            .inc();
    }

    /// Returns the outcome of a remembered token, if it still holds.
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
            // The full verification finds what is wrong.
            shard.lock().remove(hash);
            return None;
        }
        Some(self.unless_revoked(principal))
    }

    fn unless_revoked(&self, principal: Arc<Principal>) -> Result<Arc<Principal>, VerifyError> {
        if self.revocations.matches(&principal) {
            Err(VerifyError::Refused(TokenFault::Revoked))
        } else if self.revocations.is_current() {
            Ok(principal)
        } else {
            Err(VerifyError::Unavailable(
                "whether it was revoked is not known: neither Redis nor the database answers"
                    .into(),
            ))
        }
    }

    /// Tries every source that the token may come from, with the known keys.
    fn try_sources(&self, token: &ParsedToken<'_>, hash: &TokenHash, round: usize) -> Step {
        let table = self.sets.table();
        let now = self.clock.now_ms();
        let mut reason = None;
        // Sources that may have the key by now, and whether a signature was right, so that no other key would change the answer.
        let mut without_key = Vec::new();
        let mut verified = false;
        for view in table.candidates(token.issuer.as_deref()) {
            if !view.source.algorithms.contains(&token.algorithm) {
                reason = reason.max(Some(TokenFault::Algorithm));
                continue;
            }
            if view.freshness(now, table.jwks.max_stale_secs) != Freshness::Usable {
                without_key.push(view);
                continue;
            }
            let (mut found, mut verified_here) = (false, false);
            for key in matching(view, token) {
                found = true;
                match check(token, view, key, now, leeway_ms(&table)) {
                    Ok((principal, not_before_ms)) => {
                        return Step::Done(self.accept(principal, not_before_ms, view, hash));
                    }
                    Err(why) => {
                        verified_here |=
                            !matches!(why, TokenFault::Algorithm | TokenFault::Signature);
                        reason = reason.max(Some(why));
                    }
                }
            }
            verified |= verified_here;
            if !found {
                reason = reason.max(Some(TokenFault::UnknownKey));
            }
            if !verified_here {
                without_key.push(view);
            }
        }
        let reason = reason.unwrap_or_else(|| {
            let revoked = without_key.is_empty() && table.is_of_revoked(token.issuer.as_deref());
            if revoked {
                TokenFault::Revoked
            } else {
                TokenFault::Issuer
            }
        });
        if verified || without_key.is_empty() {
            return Step::Done(Err(VerifyError::Refused(reason)));
        }
        self.ask_for_keys(&table, &without_key, token, reason, round)
    }

    fn accept(
        &self,
        principal: Principal,
        not_before_ms: i64,
        view: &SourceView,
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

    /// No source has the key yet, or it was replaced under its `kid`. Requests fetches where these may bring it.
    fn ask_for_keys(
        &self,
        table: &SourceTable,
        views: &[&SourceView],
        token: &ParsedToken<'_>,
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
                continue;
            }
            let unknown = token
                .kid
                .as_deref()
                .filter(|_| matching(view, token).next().is_none());
            match self.sets.request_key(view, unknown, cooldown, round > 0) {
                KeyRequest::Wait(fetch) => fetches.push(fetch),
                KeyRequest::Unknown => {}
                KeyRequest::Unreachable => unavailable = Some(view.unusable()),
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

fn leeway_ms(table: &SourceTable) -> i64 {
    table.clock_skew_secs.saturating_mul(1000) as i64
}

/// Returns the keys that may have signed a token: those with its `kid`, or, for a token without `kid`, the only key of the source that is for its
/// algorithm.
fn matching<'v>(
    view: &'v SourceView,
    token: &'v ParsedToken<'_>,
) -> impl Iterator<Item = &'v Arc<Key>> {
    let fits = |key: &Key| key.algorithms.contains(&token.algorithm);
    let only = token.kid.is_none() && view.keys().filter(|key| fits(key)).count() == 1;
    view.keys().filter(move |key| match &token.kid {
        Some(kid) => key.kid.as_deref() == Some(kid),
        None => only && fits(key),
    })
}

#[cfg(test)]
mod tests;

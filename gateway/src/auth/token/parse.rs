//! Parsing a token, and the checks of its claims (authorization.md 1).
//!
//! Input: a token, a key and the settings of its source. Output: the principal, or what is wrong. No IO; the time is an argument.

use std::borrow::Cow;
use std::sync::Arc;

use base64_simd::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::TokenFault;
use crate::auth::jwk::{Key, MAX_KID};
use crate::auth::key_set::SourceView;
use crate::config::Algorithm;
use crate::principal::{Principal, TokenFacts, USER, Via};

/// Longest subject in bytes, without the prefix of its source (OpenID Connect Core section 2 allows 255 characters).
const MAX_SUBJECT_BYTES: usize = 256;
/// Longest `principalType` in bytes.
const MAX_KIND_BYTES: usize = 64;
/// What no token may say that it is: rows of policies know roles under this kind.
const ROLE: &str = "Role";
/// Most roles that are read from one token ...
const MAX_ROLES: usize = 64;
/// ... and the longest role in bytes.
const MAX_ROLE_BYTES: usize = 128;

/// A parsed token; nothing of it is verified.
pub(super) struct ParsedToken<'t> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) claims: Claims,
    expires_at: Option<DateTime<Utc>>,
    issued_at: Option<DateTime<Utc>>,
    not_before: Option<DateTime<Utc>>,
    pub(super) message: &'t [u8],
    pub(super) signature: Vec<u8>,
}

#[derive(Deserialize)]
pub(super) struct Claims {
    pub(super) iss: Option<String>,
    aud: Option<Audience>,
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    jti: Option<Value>,
    sub: Option<Value>,
    #[serde(rename = "userId")]
    user_id: Option<Value>,
    #[serde(rename = "principalType")]
    principal_type: Option<Value>,
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

impl<'t> ParsedToken<'t> {
    /// Parses a token without verifying anything.
    pub(super) fn parse(token: &'t str) -> Result<Self, TokenFault> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (_, payload) = message.split_once('.').ok_or(TokenFault::Malformed)?;
        // `none` and unknown algorithms do not parse.
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenFault::Malformed)?;
        let algorithm = accepted(header.alg).ok_or(TokenFault::Algorithm)?;
        // RFC 7515 section 4.1.11: an unknown extension makes the token invalid, and no extension is known here.
        if header.crit.is_some() || header.typ.as_deref().is_some_and(is_another_kind) {
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

/// Returns the algorithm if it is asymmetric; no other may ever be accepted.
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
        // HMAC algorithms, and those that a later release of the parser may add.
        _ => None,
    }
}

/// Returns whether `typ` names another kind of token, such as `logout+jwt`. `at+jwt` (RFC 9068), `JWT` and types without `+jwt` are accepted.
fn is_another_kind(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    typ.ends_with("+jwt") && !typ.ends_with("at+jwt")
}

/// Checks a token as its source demands, the signature first. Returns the principal and the time from which the token is valid.
pub(super) fn check(
    token: &ParsedToken<'_>,
    view: &SourceView,
    key: &Key,
    now_ms: i64,
    leeway_ms: i64,
) -> Result<(Principal, i64), TokenFault> {
    if !key.algorithms.contains(&token.algorithm) {
        return Err(TokenFault::Algorithm);
    }
    if !key.verifies(token.algorithm, token.message, &token.signature) {
        return Err(TokenFault::Signature);
    }
    let (claims, source) = (&token.claims, &view.source);
    if !source.skip_audience_check
        && !claims
            .aud
            .as_ref()
            .is_some_and(|aud| aud.holds_one_of(&source.audiences))
    {
        return Err(TokenFault::Audience);
    }
    let expires_at = token.expires_at.ok_or(TokenFault::Expired)?;
    if now_ms >= expires_at.timestamp_millis().saturating_add(leeway_ms) {
        return Err(TokenFault::Expired);
    }
    // A token from the future would not match the `issuedBefore` of a revocation.
    let not_before_ms = token
        .issued_at
        .into_iter()
        .chain(token.not_before)
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
        issued_at: token.issued_at,
        expires_at: Some(expires_at),
    };
    let principal = Principal {
        subject: subject(claims, &source.subject_prefix)?,
        kind: kind(claims.principal_type.as_ref())?,
        roles: if source.trust_roles {
            roles(claims.roles.as_ref())
        } else {
            Vec::new()
        },
        via: Via::Token(facts),
    };
    Ok((principal, not_before_ms))
}

/// Converts a NumericDate (RFC 7519 section 2), which may have a fraction.
fn time(seconds: f64) -> Result<DateTime<Utc>, TokenFault> {
    let ms = (seconds * 1000.0).floor();
    // From 2^53 on a double cannot express single milliseconds.
    let fits = ms.is_finite() && ms.abs() < 9_007_199_254_740_992.0;
    fits.then(|| DateTime::from_timestamp_millis(ms as i64))
        .flatten()
        .ok_or(TokenFault::Malformed)
}

/// Returns `sub`, or `userId` if there is no `sub`, with the source's prefix (authorization.md 1.9).
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

/// Returns what the subject is: `principalType`, or [`USER`] where there is none (authorization.md 1.13).
///
/// Policies know the subject as `{kind}_{subject}`, so a kind has no `_`, and is never that of roles.
fn kind(claim: Option<&Value>) -> Result<Cow<'static, str>, TokenFault> {
    match claim {
        None => Ok(Cow::Borrowed(USER)),
        Some(Value::String(kind)) if kind == USER => Ok(Cow::Borrowed(USER)),
        Some(Value::String(kind))
            if (1..=MAX_KIND_BYTES).contains(&kind.len())
                && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && kind != ROLE =>
        {
            Ok(Cow::Owned(kind.clone()))
        }
        Some(_) => Err(TokenFault::Subject),
    }
}

/// Returns a string as it is and a whole number as decimal digits; `None` for anything else.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// Returns the identifiers of `[{"identifier": ..}]` or `[".."]`; members of another shape are no roles (authorization.md 1.10).
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

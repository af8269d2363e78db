//! Reading a token, and the checks of its claims (authorization.md 1).
//!
//! Input: a token, a key and the settings of its source. Output: the principal, or what is wrong. No IO; the time is an argument.
//!
//! `jsonwebtoken` decodes a token, verifies its signature, and checks `iss` and `aud`. What it cannot do is done here:
//! - The key is chosen by issuer, algorithm and `kid` before anything is verified, and the header may have a name of RFC 9864, which it does not know.
//! - `crit` and another `typ` are refused; it reads the one and ignores both.
//! - `exp`, `nbf` and `iat` are compared with the given time. It reads the system's clock, in whole seconds, and has no check of `iat`.
//! - A list for an object, and a name that stands twice, are refused ([`Members`]).

use std::borrow::Cow;
use std::sync::Arc;

use base64_simd::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{TokenData, Validation, dangerous};
use serde::Deserialize;
use serde_json::Value;

use super::TokenFault;
use crate::auth::jwk::{Key, MAX_KID, library};
use crate::auth::key_set::SourceView;
use crate::auth::members::Members;
use crate::clock::has_four_digit_year;
use crate::config::{Algorithm, Source};
use crate::principal::{Kind, Principal, TokenFacts, TokenId, USER, Via, is_user_id};

/// Longest `principalType` in bytes.
const MAX_KIND_BYTES: usize = 64;
/// What no token may say that it is: rows of policies know roles under this kind.
const ROLE: &str = "Role";
/// Most roles that are read from one token ...
const MAX_ROLES: usize = 64;
/// ... and the longest role in bytes.
const MAX_ROLE_BYTES: usize = 128;

/// What of a token is read before it is verified: enough to find the key.
pub(super) struct ParsedToken<'t> {
    /// The token, with the algorithm's older name where it has one of RFC 9864.
    text: Cow<'t, str>,
    /// The header as it was signed, where that of `text` is another.
    signed_header: Option<&'t str>,
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) issuer: Option<String>,
}

#[derive(Deserialize)]
struct Unverified {
    iss: Option<String>,
}

/// The claims of a token. Only those of a verified one come out of [`jsonwebtoken::decode`].
#[derive(Deserialize)]
#[serde(try_from = "Members")]
struct Claims {
    expires_at: Option<DateTime<Utc>>,
    issued_at: Option<DateTime<Utc>>,
    not_before: Option<DateTime<Utc>>,
    members: Members,
}

impl TryFrom<Members> for Claims {
    type Error = &'static str;

    fn try_from(members: Members) -> Result<Self, Self::Error> {
        let is_text = |value: &Value| value.is_string();
        let is_audience = |value: &Value| {
            is_text(value) || value.as_array().is_some_and(|all| all.iter().all(is_text))
        };
        if !members.get("iss").is_none_or(is_text) || !members.get("aud").is_none_or(is_audience) {
            return Err("iss is no string, or aud neither a string nor a list of strings");
        }
        let time = |name| members.get(name).map(time).transpose();
        Ok(Self {
            expires_at: time("exp")?,
            issued_at: time("iat")?,
            not_before: time("nbf")?,
            members,
        })
    }
}

/// Returns whether a payload has the shape of claims, for fuzzing: their times can be printed.
pub(super) fn are_claims(payload: &[u8]) -> bool {
    let Ok(claims) = serde_json::from_slice::<Claims>(payload) else {
        return false;
    };
    let times = [claims.expires_at, claims.issued_at, claims.not_before];
    assert!(times.iter().flatten().all(has_four_digit_year));
    true
}

impl<'t> ParsedToken<'t> {
    /// Reads a token without verifying anything.
    pub(super) fn parse(token: &'t str) -> Result<Self, TokenFault> {
        let (encoded, rest) = token.split_once('.').ok_or(TokenFault::Malformed)?;
        let header = URL_SAFE_NO_PAD
            .decode_to_vec(encoded.as_bytes())
            .map_err(|_| TokenFault::Malformed)?;
        let header: Members = serde_json::from_slice(&header).map_err(|_| TokenFault::Malformed)?;
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(TokenFault::Malformed),
        };
        let name = text("alg")?.ok_or(TokenFault::Malformed)?;
        // `none`, every HMAC algorithm and unknown ones have no name here.
        let algorithm = Algorithm::named(name).ok_or(TokenFault::Algorithm)?;
        // RFC 7515 section 4.1.11: an unknown extension makes the token invalid, and no extension is known here.
        if header.has("crit") || text("typ")?.is_some_and(is_another_kind) {
            return Err(TokenFault::Kind);
        }
        let kid = text("kid")?;
        if kid.is_some_and(|kid| kid.len() > MAX_KID) {
            return Err(TokenFault::UnknownKey);
        }
        let (text, signed_header) = if name == algorithm.name() {
            (Cow::Borrowed(token), None)
        } else {
            let header = format!(r#"{{"alg":"{}"}}"#, algorithm.name());
            let renamed = format!("{}.{rest}", URL_SAFE_NO_PAD.encode_to_string(header));
            (Cow::Owned(renamed), Some(encoded))
        };
        let unverified: Unverified =
            dangerous::insecure_decode_claims(&*text).map_err(|_| TokenFault::Malformed)?;
        Ok(Self {
            kid: kid.map(str::to_owned),
            text,
            signed_header,
            algorithm,
            issuer: unverified.iss,
        })
    }

    /// Verifies the signature, and then what `jsonwebtoken` knows of the claims.
    fn decode(&self, view: &SourceView, key: &Key) -> Result<Claims, TokenFault> {
        let validation = validation(&view.source, key);
        let decoded = match self.signed_header {
            None => jsonwebtoken::decode(&*self.text, &key.decoding, &validation),
            Some(header) => {
                let key = key.signed_under(header).ok_or(TokenFault::Algorithm)?;
                jsonwebtoken::decode(&*self.text, &key, &validation)
            }
        };
        decoded
            .map(|TokenData { claims, .. }| claims)
            .map_err(|error| fault(&error))
    }
}

/// Returns what `jsonwebtoken` checks of a token of this source: the algorithm is one that the source allows and the key is for, and `iss` and `aud`
/// are required and right unless they are waived.
fn validation(source: &Source, key: &Key) -> Validation {
    // Starting from one algorithm: the list is replaced.
    let mut validation = Validation::new(library(Algorithm::ES256));
    let both = |algorithm: &&Algorithm| source.algorithms.contains(algorithm);
    let algorithms = key.algorithms.iter().filter(both);
    validation.algorithms = algorithms.map(|algorithm| library(*algorithm)).collect();
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf) = (false, false);
    validation.validate_aud = !source.waives_audience();
    if validation.validate_aud {
        validation.set_audience(&source.audiences);
        validation.required_spec_claims.insert("aud".to_owned());
    }
    if !source.waives_issuer() {
        validation.set_issuer(&[&source.issuer]);
        validation.required_spec_claims.insert("iss".to_owned());
    }
    validation
}

fn fault(error: &Error) -> TokenFault {
    match error.kind() {
        ErrorKind::InvalidSignature => TokenFault::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::MissingAlgorithm => TokenFault::Algorithm,
        ErrorKind::InvalidIssuer => TokenFault::Issuer,
        ErrorKind::InvalidAudience => TokenFault::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => TokenFault::Issuer,
        ErrorKind::MissingRequiredClaim(_) => TokenFault::Audience,
        _ => TokenFault::Malformed,
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
    let Claims {
        expires_at,
        issued_at,
        not_before,
        mut members,
    } = token.decode(view, key)?;
    let expires_at = expires_at.ok_or(TokenFault::Expired)?;
    if now_ms >= expires_at.timestamp_millis().saturating_add(leeway_ms) {
        return Err(TokenFault::Expired);
    }
    // A token from the future would not match the `issuedBefore` of a revocation.
    let not_before_ms = issued_at
        .into_iter()
        .chain(not_before)
        .map(|at| at.timestamp_millis())
        .max()
        .unwrap_or(i64::MIN);
    if now_ms.saturating_add(leeway_ms) < not_before_ms {
        return Err(TokenFault::NotYetValid);
    }
    if let Some(key) = &view.payload_key {
        members = key.open(members).ok_or(TokenFault::Malformed)?;
    }
    let facts = TokenFacts {
        source: Arc::clone(&view.name),
        thumbprint: Arc::clone(&key.thumbprint),
        token_id: members
            .get("jti")
            .and_then(as_text)
            .map(|jti| TokenId::of(&jti)),
        issued_at,
        expires_at: Some(expires_at),
    };
    let principal = Principal {
        subject: subject(&members, view)?,
        kind: kind(members.get("principalType"))?,
        roles: if view.source.trust_roles {
            roles(members.get("roles"), view.payload_key.is_some()).into()
        } else {
            Box::default()
        },
        via: Via::Token(facts),
    };
    Ok((principal, not_before_ms))
}

/// Converts a NumericDate (RFC 7519 section 2), which may have a fraction. Its year has four digits, because it is printed in RFC 3339.
fn time(seconds: &Value) -> Result<DateTime<Utc>, &'static str> {
    let ms = seconds.as_f64().map(|seconds| (seconds * 1000.0).floor());
    // From 2^53 on a double cannot express single milliseconds.
    ms.filter(|ms| ms.abs() < 9_007_199_254_740_992.0)
        .and_then(|ms| DateTime::from_timestamp_millis(ms as i64))
        .filter(has_four_digit_year)
        .ok_or("a time is no number, or not of the years 0 to 9999")
}

/// Returns the first of the source's subject claims that the token has, with the source's prefix (authorization.md 1.9).
fn subject(claims: &Members, view: &SourceView) -> Result<Arc<str>, TokenFault> {
    let subject = view
        .source
        .subject_claims()
        .find_map(|name| claims.get(name))
        .and_then(as_text)
        .ok_or(TokenFault::Subject)?;
    if subject.is_empty() {
        return Err(TokenFault::Subject);
    }
    let prefix = &view.source.subject_prefix;
    let subject: Arc<str> = if prefix.is_empty() {
        subject.into()
    } else {
        format!("{prefix}{subject}").into()
    };
    // The whole is what everything else compares and names. A subject that the source does not own would be taken for one of the issuer that has its prefix.
    if is_user_id(&subject) && view.owns(&subject) {
        Ok(subject)
    } else {
        Err(TokenFault::Subject)
    }
}

/// Returns what the subject is: `principalType`, or [`USER`] where there is none (authorization.md 1.13).
///
/// Policies know the subject as `{kind}_{subject}`, so a kind has no `_`, and is never that of roles.
fn kind(claim: Option<&Value>) -> Result<Kind, TokenFault> {
    match claim {
        None => Ok(USER.into()),
        Some(Value::String(kind))
            if (1..=MAX_KIND_BYTES).contains(&kind.len())
                && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && kind != ROLE =>
        {
            Ok(kind.as_str().into())
        }
        Some(_) => Err(TokenFault::Subject),
    }
}

/// Returns a string as it is and a whole number as decimal digits; `None` for anything else.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// Returns the identifiers of `[{"identifier": ..}]` or `[".."]`; members of another shape are no roles (authorization.md 1.10). In an encrypted payload
/// a text may be `id|identifier|priority`.
fn roles(claim: Option<&Value>, encrypted: bool) -> Vec<String> {
    let Some(Value::Array(roles)) = claim else {
        return Vec::new();
    };
    let identifier = |role: &Value| match role {
        Value::String(text) if encrypted && text.contains('|') => {
            text.split('|').nth(1).map(str::to_owned)
        }
        Value::String(text) => Some(text.clone()),
        Value::Object(role) => ["identifier", "name", "id"]
            .iter()
            .find_map(|name| role.get(*name).filter(|value| !value.is_null()))
            .and_then(as_text),
        _ => None,
    };
    roles
        .iter()
        .take(MAX_ROLES)
        .filter_map(identifier)
        .filter(|role| !role.is_empty() && role.len() <= MAX_ROLE_BYTES)
        .collect()
}

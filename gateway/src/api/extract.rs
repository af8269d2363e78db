//! What handlers take from a request: the caller, their permission, and checked paths, queries and bodies.
//!
//! Input: request heads and bodies. Output: values that need no further checking, or a [`Problem`]. Handlers take the permission before the path, and
//! the body last, so that a caller without permission learns nothing about either.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::RequestExt;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use signal_contract::Object;
use utoipa::ToSchema;

use super::ApiState;
use super::problem::{Cause, Problem};
use crate::auth::{BasicError, MAX_TOKEN_BYTES, TokenFault, VerifyError};
use crate::id::Id;
use crate::peer::{PeerAddress, client_address};
use crate::principal::{MAX_USER_ID_BYTES, Principal};
use crate::protocol::bounds::MAX_ROOM_CHARS;
use crate::protocol::room::RESERVED_PREFIX;

/// Longest wait for a whole body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest user id, `jti` or notification type in a request, in characters: no subject with that many bytes is longer.
pub(super) const MAX_NAME: usize = MAX_USER_ID_BYTES;

const BEARER: &str = "Bearer realm=\"signal\"";
const BEARER_INVALID: &str = "Bearer realm=\"signal\", error=\"invalid_token\"";
const BEARER_SCOPE: &str = "Bearer realm=\"signal\", error=\"insufficient_scope\"";
const BASIC: &str = "Basic realm=\"signal\", charset=\"UTF-8\"";

/// Returns the scheme of the `Authorization` header, its credentials and the whole value; refuses more than one header.
pub(super) fn authorization(headers: &HeaderMap) -> Result<Option<(&str, &str, &str)>, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Cause::InvalidRequest.because("more than one Authorization header"));
    }
    let value = value
        .to_str()
        .map_err(|_| Cause::InvalidRequest.because("the Authorization header is not ASCII"))?;
    let (scheme, credentials) = value.split_once(' ').unwrap_or((value, ""));
    Ok(Some((scheme, credentials.trim(), value)))
}

/// The principal of the request's credentials.
pub(crate) struct Caller(pub(crate) Principal);

impl FromRequestParts<ApiState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        match authorization(&parts.headers)? {
            Some((scheme, token, _)) if scheme.eq_ignore_ascii_case("bearer") => {
                bearer(state, token).await
            }
            Some((scheme, _, header)) if scheme.eq_ignore_ascii_case("basic") => {
                basic(state, header, address(parts, state)).await
            }
            Some(_) => Err(challenges(
                Cause::CredentialsMissing.because("Authorization must be Bearer or Basic"),
            )),
            None => Err(challenges(
                Cause::CredentialsMissing.because("send Authorization: Bearer or Basic"),
            )),
        }
        .map(Self)
    }
}

fn challenges(problem: Problem) -> Problem {
    problem.challenge(BEARER).challenge(BASIC)
}

fn address(parts: &Parts, state: &ApiState) -> IpAddr {
    // Requests without an address share one limit of failed attempts, which is stricter.
    let peer = parts
        .extensions
        .get::<PeerAddress>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
    client_address(peer, &parts.headers, &state.live.borrow().trusted_proxies)
}

async fn bearer(state: &ApiState, token: &str) -> Result<Principal, Problem> {
    state
        .authenticator
        .verify(token)
        .await
        .map(Arc::unwrap_or_clone)
        .map_err(|error| match error {
            VerifyError::Refused(fault) => {
                tracing::debug!(%error, "request refused: its token is not accepted");
                let why = match fault {
                    TokenFault::TooLong => {
                        format!("the token is longer than {MAX_TOKEN_BYTES} bytes")
                    }
                    _ => "the token is not valid, has ended or was revoked".to_owned(),
                };
                Cause::CredentialsRefused
                    .because(why)
                    .challenge(BEARER_INVALID)
            }
            VerifyError::Unavailable(_) => {
                tracing::warn!(%error, "request failed: its token could not be verified");
                Cause::KeysUnavailable
                    .because("the issuer's keys, or the revocations, are not available; try again")
                    .retry_after(5)
            }
        })
}

async fn basic(state: &ApiState, header: &str, from: IpAddr) -> Result<Principal, Problem> {
    state
        .basic
        .verify(header, from)
        .await
        .map_err(|error| match error {
            BasicError::Refused => {
                challenges(Cause::CredentialsRefused.because("the name or the password is wrong"))
            }
            BasicError::TooMany { retry_after_secs } => Cause::TooManyAttempts
                .because("too many failed attempts from this address, or too many attempts at once")
                .retry_after(retry_after_secs),
        })
}

/// The subject whose inbox is used: always the token's, never a parameter.
pub(crate) struct Owner(pub(crate) Arc<str>);

impl FromRequestParts<ApiState> for Owner {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let Caller(principal) = Caller::from_request_parts(parts, state).await?;
        match principal.token() {
            Some(_) => Ok(Self(principal.subject)),
            None => Err(Cause::NoInbox.because("notifications belong to the subject of a token")),
        }
    }
}

/// A permission (authorization.md 4.7): its code and the action.
pub(crate) trait Permission: Send {
    /// `WebSocketClient.find`
    const CODE: &'static str;
    /// `read`
    const ACTION: &'static str;
}

/// A caller who has a permission.
pub(crate) struct May<P> {
    /// The caller's subject.
    pub(crate) subject: Arc<str>,
    permission: std::marker::PhantomData<P>,
}

impl<P: Permission> FromRequestParts<ApiState> for May<P> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let Caller(principal) = Caller::from_request_parts(parts, state).await?;
        if state.access.may(&principal, P::CODE, P::ACTION).await? {
            return Ok(Self {
                subject: principal.subject,
                permission: std::marker::PhantomData,
            });
        }
        tracing::info!(target: super::AUDIT, by = %principal.subject, permission = P::CODE, action = P::ACTION, "permission denied");
        let problem = Cause::Forbidden.because(format!("this needs {} ({})", P::CODE, P::ACTION));
        Err(if principal.token().is_some() {
            problem.challenge(BEARER_SCOPE)
        } else {
            problem
        })
    }
}

/// A checked path parameter.
pub(crate) struct Segment<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for Segment<T>
where
    T: FromStr<Err: Display>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Cause::InvalidPath.because("the path is not percent-encoded UTF-8"))?;
        text.parse()
            .map(Self)
            .map_err(|error: T::Err| Cause::InvalidPath.because(error.to_string()))
    }
}

/// The checked query parameters; `T` refuses unknown and repeated ones.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // Else bytes that are no text would be looked for as U+FFFD.
        let query = parts.uri.query().unwrap_or_default();
        if percent_encoding::percent_decode_str(query)
            .decode_utf8()
            .is_err()
        {
            return Err(Cause::InvalidQuery.because("the query is not percent-encoded UTF-8"));
        }
        Query::try_from_uri(&parts.uri)
            .map(|Query(params)| Self(params))
            .map_err(|rejection| {
                let text = std::error::Error::source(&rejection)
                    .map_or_else(|| rejection.to_string(), ToString::to_string);
                Cause::InvalidQuery.because(text)
            })
    }
}

/// Refuses every query parameter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoParams {}

/// A checked and bounded JSON body; `T` refuses unknown and repeated members.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        must_be_json(is_json(request.headers()))?;
        parse(&read(request, state).await?).map(Self)
    }
}

/// A JSON body that may be empty; an empty one is `T`'s default.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let body = read(request, state).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        must_be_json(is_json)?;
        parse(&body).map(Self)
    }
}

fn must_be_json(is_json: bool) -> Result<(), Problem> {
    is_json
        .then_some(())
        .ok_or_else(|| Cause::UnsupportedMediaType.because("send Content-Type: application/json"))
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    tokio::time::timeout(
        BODY_TIMEOUT,
        Bytes::from_request(request.with_limited_body(), state),
    )
    .await
    .map_err(|_| {
        Cause::BodyTimeout.because(format!("{} s were not enough", BODY_TIMEOUT.as_secs()))
    })?
    .map_err(unread)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map(|Object(value)| value)
        .map_err(|error| match error.classify() {
            serde_json::error::Category::Data => Cause::InvalidBody.because(error.to_string()),
            _ => Cause::InvalidJson.because(error.to_string()),
        })
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Returns whether the media type is `application/json` or `application/*+json`, in UTF-8 (RFC 8259 section 8.1).
fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(Ok(value)), None) = (values.next().map(|v| v.to_str()), values.next()) else {
        return false;
    };
    let mut parts = value
        .split(';')
        .map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    let json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    json && parts
        .filter_map(|p| p.strip_prefix("charset=").map(str::to_owned))
        .all(|charset| charset.trim_matches('"') == "utf-8")
}

fn unread(rejection: BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Cause::BodyTooLarge.because("send less, or in several requests");
    }
    tracing::debug!(error = %rejection, "request failed: its body could not be read");
    Cause::InvalidRequest.because("the body could not be read to its end")
}

/// The size of a page: 1 to 100, by default 50.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Limit(pub(crate) u32);

impl Default for Limit {
    fn default() -> Self {
        Self(50)
    }
}

impl TryFrom<String> for Limit {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        // A number has one text: no sign and no zeros in front.
        text.parse()
            .ok()
            .filter(|limit: &u32| (1..=100).contains(limit) && limit.to_string() == text)
            .map(Self)
            .ok_or("limit must be from 1 to 100")
    }
}

/// The end of a page. It is written in hexadecimal, so that clients treat it as opaque, and so that the documents can say which texts are cursors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor<T>(pub(crate) T);

/// What a cursor stands for, with a text of its own.
pub(crate) trait Position: Sized {
    /// Writes it.
    fn to_cursor(&self) -> String;
    /// Reads it back; `None` for any other text.
    fn of_cursor(text: &str) -> Option<Self>;
}

/// A client id: two digits for each of its characters.
impl Position for Id {
    fn to_cursor(&self) -> String {
        let digits = self.as_str().bytes().map(|byte| format!("{byte:02x}"));
        digits.collect()
    }

    fn of_cursor(text: &str) -> Option<Self> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = pairs
            .iter()
            .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
            .collect();
        let bytes = bytes.filter(|_| rest.is_empty())?;
        std::str::from_utf8(&bytes).ok()?.parse().ok()
    }
}

/// A `seq`: 16 digits.
impl Position for i64 {
    fn to_cursor(&self) -> String {
        format!("{self:016x}")
    }

    fn of_cursor(text: &str) -> Option<Self> {
        let seq = Self::from_str_radix(text, 16).ok()?;
        (seq >= 0 && seq.to_cursor() == text).then_some(seq)
    }
}

impl<T: Position> Serialize for Cursor<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_cursor())
    }
}

impl<'de, T: Position> Deserialize<'de> for Cursor<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::of_cursor(&String::deserialize(deserializer)?)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("cursor must be the `next` of an earlier page"))
    }
}

/// A user id, a `jti` or a type: 1 to 256 characters, none of them a control character.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, min_length = 1, max_length = 256, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
pub(crate) struct Name(pub(crate) String);

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        if !is_short(&text, MAX_NAME) {
            return Err("want 1 to 256 characters, none of them a control character");
        }
        Ok(Self(text))
    }
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.to_owned().try_into()
    }
}

/// Returns whether a text has 1 to `most` characters, none of them a control character. Characters and not bytes are counted, as in JSON Schema.
pub(super) fn is_short(text: &str, most: usize) -> bool {
    !text.is_empty()
        && (text.len() <= most || text.chars().count() <= most)
        && !text.chars().any(char::is_control)
}

/// A room name: 1 to 256 characters, none of them a control character, that do not begin with `ws:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, min_length = 1, max_length = 256, pattern = "^(?!ws:)[^\\x00-\\x1f\\x7f-\\x9f]*$")]
pub(crate) struct RoomName(pub(crate) String);

impl TryFrom<String> for RoomName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        if !is_short(&text, MAX_ROOM_CHARS) || text.starts_with(RESERVED_PREFIX) {
            return Err(
                "a room name has 1 to 256 characters, no control characters, and does not begin with ws:",
            );
        }
        Ok(Self(text))
    }
}

impl FromStr for RoomName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.to_owned().try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn json_is_recognized_by_its_media_type() {
        for (text, good) in [
            ("application/json", true),
            ("Application/JSON; charset=UTF-8", true),
            ("application/merge-patch+json", true),
            ("application/json; charset=\"utf-8\"", true),
            ("application/json; charset=latin1", false),
            ("text/json", false),
            ("text/plain", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(text))]);
            assert_eq!(is_json(&headers), good, "{text}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn cursors_round_trip_and_invalid_ones_are_refused() {
        let text = |json: serde_json::Result<String>| json.unwrap();
        assert_eq!(
            text(serde_json::to_string(&Cursor(812_i64))),
            "\"000000000000032c\""
        );
        for seq in [0, 41, i64::MAX] {
            let text = text(serde_json::to_string(&Cursor(seq)));
            let read: Cursor<i64> = serde_json::from_str(&text).unwrap();
            assert_eq!(read, Cursor(seq));
        }
        for bad in [
            "",
            "41",
            "NDE=",
            "000000000000032C",
            "+00000000000032c",
            "8000000000000000",
            "00000000000000000",
        ] {
            let json = format!("{bad:?}");
            assert!(serde_json::from_str::<Cursor<i64>>(&json).is_err(), "{bad}");
        }
        let id = |text: &str| Cursor(text.parse::<Id>().unwrap());
        assert_eq!(text(serde_json::to_string(&id("aZ0"))), "\"615a30\"");
        assert_eq!(
            serde_json::from_str::<Cursor<Id>>("\"615a30\"").unwrap(),
            id("aZ0")
        );
        for bad in [
            "",
            "6",
            "615A30",
            "2d",
            "7b",
            "g0",
            "61615a30303030303030303030",
        ] {
            let json = format!("{bad:?}");
            assert!(serde_json::from_str::<Cursor<Id>>(&json).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_size_of_a_page_has_one_text() {
        for (text, good) in [("1", true), ("100", true), ("0", false), ("101", false)] {
            assert_eq!(Limit::try_from(text.to_owned()).is_ok(), good, "{text}");
        }
        for text in ["", "+5", "05", "5.0", " 5", "-1", "99999999999"] {
            assert!(Limit::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_measured_in_characters() {
        let of = |text: String| Name::try_from(text).is_ok();
        assert!(of("ă".repeat(256)) && !of("ă".repeat(257)));
        assert!(!of(String::new()) && !of("a\u{85}".into()));
        let of = |text: String| RoomName::try_from(text).is_ok();
        assert!(of("😀".repeat(256)) && !of("😀".repeat(257)));
        assert!(!of("ws:x".into()) && of("xws:".into()) && !of("a\n".into()));
    }
}

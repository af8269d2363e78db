//! The table of REST errors: cause -> status, stable code and title. Their form is [`crate::problem`]'s.
//!
//! Input: the errors of extractors and handlers. Output: a response. What went wrong inside stays in the log: a 5xx only says what the caller
//! can do about it.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value};

use crate::bus::BusError;
use crate::lifecycle::Ending;
use crate::problem::{self, ProblemDocument};
use crate::store::StoreError;

macro_rules! causes {
    ($($name:ident: $status:ident, $code:literal, $title:literal;)*) => {
        /// Why a request is refused or failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Cause {
            $(#[doc = $title] $name,)*
        }

        impl Cause {
            /// Every cause, for the documents.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// The status.
            pub(crate) const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// The stable code that programs compare.
            pub(crate) const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The same text each time, for people.
            pub(crate) const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

causes! {
    InvalidRequest: BAD_REQUEST, "invalid_request", "The request contradicts itself";
    InvalidPath: BAD_REQUEST, "invalid_path", "A part of the path is not valid";
    InvalidQuery: BAD_REQUEST, "invalid_query", "A query parameter is not valid";
    InvalidJson: BAD_REQUEST, "invalid_json", "The body is not JSON";
    InvalidBody: BAD_REQUEST, "invalid_body", "The body does not have the expected form";
    ReservedEvent: BAD_REQUEST, "reserved_event", "The event name belongs to the protocol";
    RefusedValue: BAD_REQUEST, "refused_value", "A value cannot be stored or compared";
    CredentialsMissing: UNAUTHORIZED, "credentials_missing", "Credentials are needed";
    CredentialsRefused: UNAUTHORIZED, "credentials_refused", "The credentials are refused";
    Forbidden: FORBIDDEN, "forbidden", "The permission is missing";
    NoInbox: FORBIDDEN, "no_inbox", "Basic users have no inbox";
    OriginRefused: FORBIDDEN, "origin_refused", "The origin is not on the list";
    AdminDisabled: FORBIDDEN, "admin_disabled", "No administration token is configured";
    NotFound: NOT_FOUND, "not_found", "There is no such thing";
    NoRoute: NOT_FOUND, "no_route", "There is no such route";
    MethodNotAllowed: METHOD_NOT_ALLOWED, "method_not_allowed", "The route does not have this method";
    Ending: CONFLICT, "ending", "The process drains in order to end";
    BodyTimeout: REQUEST_TIMEOUT, "body_timeout", "The body did not arrive in time";
    BodyTooLarge: PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large";
    MessageTooLarge: PAYLOAD_TOO_LARGE, "message_too_large", "The message is too large for clients";
    UnsupportedMediaType: UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body must be JSON";
    TooManyAttempts: TOO_MANY_REQUESTS, "too_many_attempts", "Too many failed attempts";
    Internal: INTERNAL_SERVER_ERROR, "internal", "The gateway failed";
    KeysUnavailable: SERVICE_UNAVAILABLE, "keys_unavailable", "Tokens cannot be verified right now";
    StoreUnavailable: SERVICE_UNAVAILABLE, "store_unavailable", "The database cannot be used right now";
    BusUnavailable: SERVICE_UNAVAILABLE, "bus_unavailable", "Other instances cannot be reached right now";
    InstancesSilent: SERVICE_UNAVAILABLE, "instances_silent", "Some instances did not answer";
    NotReady: SERVICE_UNAVAILABLE, "not_ready", "The gateway is not ready";
}

impl Cause {
    /// Where the documents explain it: a relative URI that the gateway itself answers.
    pub(crate) fn type_uri(self) -> String {
        format!("/docs#{}", self.code())
    }

    /// Makes a problem of this cause; `detail` says what was wrong this time.
    pub(crate) fn because(self, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem(Box::new(Inner {
            cause: self,
            detail: detail.into(),
            members: Map::new(),
            headers: Vec::new(),
        }))
    }
}

/// An error on its way to the caller.
#[derive(Debug, Clone)]
pub(crate) struct Problem(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    cause: Cause,
    detail: Cow<'static, str>,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// Adds a further member (RFC 9457 section 3.2).
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.members.insert(name.into(), value.into());
        self
    }

    /// Adds a challenge (RFC 9110 section 11.6.1).
    pub(crate) fn challenge(mut self, challenge: &'static str) -> Self {
        self.0
            .headers
            .push((WWW_AUTHENTICATE, HeaderValue::from_static(challenge)));
        self
    }

    /// Adds when to try again, in seconds.
    pub(crate) fn retry_after(mut self, secs: u64) -> Self {
        self.0.headers.push((RETRY_AFTER, HeaderValue::from(secs)));
        self
    }

    fn document(&self, request_id: Option<&str>) -> String {
        let inner = &*self.0;
        ProblemDocument {
            kind: inner.cause.type_uri().into(),
            title: inner.cause.title(),
            status: inner.cause.status().as_u16(),
            detail: &inner.detail,
            code: inner.cause.code(),
            instance: request_id,
            members: &inner.members,
        }
        .to_json()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.0.cause.status();
        let mut response = problem::response(status, self.document(None)).map(Body::from);
        for (name, value) in &self.0.headers {
            response.headers_mut().append(name, value.clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the request's id into a problem's document.
pub(super) fn name_request(response: &mut Response, request_id: &str) {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        *response.body_mut() = Body::from(problem.document(Some(request_id)));
        response.headers_mut().remove(CONTENT_LENGTH);
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused { .. } => {
                tracing::warn!(%error, "request refused: the database does not take a value of it");
                Cause::RefusedValue.because("the database refuses a value of this request")
            }
            StoreError::Unavailable { .. } | StoreError::TooMuch { .. } => {
                tracing::error!(%error, "request failed: the database is not available");
                Cause::StoreUnavailable
                    .because("nothing was changed; try again")
                    .retry_after(5)
            }
        }
    }
}

impl From<BusError> for Problem {
    fn from(error: BusError) -> Self {
        tracing::warn!(%error, "request failed: the other instances could not be asked");
        Cause::BusUnavailable
            .because("other instances could not be asked; try again")
            .retry_after(5)
    }
}

impl From<Ending> for Problem {
    fn from(_: Ending) -> Self {
        Cause::Ending.because("a drain that ends the process is not held and not taken back")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_every_cause_is_an_error() {
        let mut codes: Vec<_> = Cause::ALL.iter().map(|c| c.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Cause::ALL.len());
        assert!(
            Cause::ALL
                .iter()
                .all(|c| c.status().is_client_error() || c.status().is_server_error())
        );
    }

    #[test]
    fn a_database_error_does_not_reach_the_caller() {
        let text = "password authentication failed for user \"gateway\"";
        let error = crate::store::testing::unavailable(text);
        let document = Problem::from(error).document(Some("r-1"));
        assert!(!document.contains("password"), "{document}");
        let value: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(value["status"], 503);
        assert_eq!(value["code"], "store_unavailable");
        assert_eq!(value["instance"], "r-1");
    }

    #[test]
    fn further_members_are_added_to_the_standard_ones() {
        let problem = Cause::InstancesSilent
            .because("ask again")
            .with("missing", vec!["gw-2"]);
        let value: Value = serde_json::from_str(&problem.document(None)).unwrap();
        assert_eq!(value["missing"], serde_json::json!(["gw-2"]));
        assert_eq!(value["type"], "/docs#instances_silent");
        assert!(value.get("instance").is_none());
    }
}

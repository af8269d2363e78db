//! The problem document (RFC 9457): the one form in which the gateway refuses an HTTP request, on REST, on the admin listener and in the opening
//! handshake.
//!
//! Input: a status, a stable code and texts; which ones there are is decided where the request is refused. Output: the document, or a whole response.

use std::borrow::Cow;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::Ref;

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";
/// Name of the schema that lists the codes.
pub const CODE_SCHEMA: &str = "Code";

/// An error (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "/docs#not_found", "title": "There is no such thing", "status": 404, "detail": "no notification has this id",
    "code": "not_found", "instance": "5f2b0c7e4d8a41f09c3e6b7d12a94e58"
}))]
pub struct ProblemDocument<'a> {
    /// Where the cause is explained, relative to the gateway's address.
    #[serde(rename = "type")]
    pub kind: Cow<'a, str>,
    /// The same text for each problem of this code.
    pub title: &'a str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What was wrong this time.
    pub detail: &'a str,
    /// What programs compare: it never changes its meaning.
    #[schema(schema_with = code_reference)]
    pub code: &'a str,
    /// The request id, as in the header `X-Request-Id` and the gateway's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<&'a str>,
    /// Further members (RFC 9457 section 3.2).
    #[serde(flatten)]
    #[schema(ignore)]
    pub members: &'a Map<String, Value>,
}

fn code_reference() -> Ref {
    Ref::builder()
        .ref_location_from_schema_name(CODE_SCHEMA)
        .description(Some("What programs compare: it never changes its meaning."))
        .build()
}

impl ProblemDocument<'_> {
    /// Returns the document's JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("text and JSON values serialize")
    }
}

/// Makes the response of a refusal that the documents do not explain: its type is `about:blank` and its title the status's own text
/// (RFC 9457 section 4.2.1).
pub fn plain(status: StatusCode, code: &str, detail: &str) -> Response<String> {
    let document = ProblemDocument {
        kind: "about:blank".into(),
        title: status.canonical_reason().unwrap_or_default(),
        status: status.as_u16(),
        detail,
        code,
        instance: None,
        members: &Map::new(),
    };
    response(status, document.to_json())
}

/// Returns a `Retry-After` of one to five seconds where nothing tells when there is room: random, so that clients that were refused together do not come
/// back together.
pub fn scattered_retry() -> HeaderValue {
    HeaderValue::from(rand::random_range(1..=5u32))
}

/// Makes the response that carries a document.
pub fn response(status: StatusCode, document: String) -> Response<String> {
    let mut response = Response::new(document);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

/// Returns a response as the bytes that answer it on a socket, which ends the connection.
pub fn closing(mut response: Response<String>) -> Vec<u8> {
    let (status, length) = (response.status(), response.body().len());
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(CONTENT_LENGTH, length.into());
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body().as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_refusal_has_the_title_of_its_status_and_a_code() {
        let response = plain(
            StatusCode::BAD_REQUEST,
            "bad_host",
            "The request must name a host.",
        );
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()[CONTENT_TYPE], MEDIA_TYPE);
        let bytes = String::from_utf8(closing(response.clone())).unwrap();
        let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n";
        assert!(bytes.starts_with(head), "{bytes}");
        assert!(bytes.ends_with(&format!("\r\n\r\n{}", response.body())));
        let document: Value = serde_json::from_str(response.body()).unwrap();
        assert_eq!(
            document,
            serde_json::json!({
                "type": "about:blank", "title": "Bad Request", "status": 400,
                "detail": "The request must name a host.", "code": "bad_host",
            })
        );
    }
}

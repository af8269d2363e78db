//! A request to a router, and its response read to the end.

use std::net::IpAddr;

use axum::Router;
use axum::body::Body;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::peer::PeerAddress;

/// A request to be sent.
pub(super) struct Call {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
    peer: IpAddr,
}

impl Call {
    pub(super) fn new(method: Method, path: &str) -> Self {
        Self {
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Body::empty(),
            peer: [192, 0, 2, 1].into(),
        }
    }

    pub(super) fn header(
        mut self,
        name: impl TryInto<HeaderName, Error: std::fmt::Debug>,
        value: &str,
    ) -> Self {
        self.headers.append(
            name.try_into().unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
        self
    }

    pub(super) fn basic(self, name: &str, password: &str) -> Self {
        let text = base64_simd::STANDARD.encode_to_string(format!("{name}:{password}"));
        self.header(AUTHORIZATION, &format!("Basic {text}"))
    }

    pub(super) fn peer(mut self, peer: impl Into<IpAddr>) -> Self {
        self.peer = peer.into();
        self
    }

    pub(super) fn json(self, body: &Value) -> Self {
        self.header(CONTENT_TYPE, "application/json")
            .body(body.to_string())
    }

    pub(super) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) async fn send(self, router: &Router) -> Answer {
        let mut request = Request::builder()
            .method(self.method)
            .uri(&self.path)
            .body(self.body)
            .unwrap();
        *request.headers_mut() = self.headers;
        request.extensions_mut().insert(PeerAddress(self.peer));
        let response = router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
            text: String::from_utf8(bytes.into()).unwrap(),
        }
    }
}

/// A response, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Returns every value of a header.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .get_all(name)
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect()
    }

    /// Asserts the status, and that the answer is personal; returns the body.
    #[track_caller]
    pub(super) fn ok(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("cache-control"), "no-store");
        assert_eq!(self.header("x-content-type-options"), "nosniff");
        self.body
    }

    /// Asserts that the answer is this problem in its full form.
    #[track_caller]
    pub(super) fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!(
            (self.status.as_u16(), self.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.text
        );
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.header("cache-control"), "no-store");
        assert_eq!(self.header("x-content-type-options"), "nosniff");
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("/docs#{code}"));
        assert!(
            self.body["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        assert!(
            self.body["detail"]
                .as_str()
                .is_some_and(|detail| !detail.is_empty())
        );
        assert_eq!(self.body["instance"], self.header("x-request-id"));
        assert!(
            !self.text.contains("10.1.2.3"),
            "an error shows internals: {}",
            self.text
        );
        self
    }
}

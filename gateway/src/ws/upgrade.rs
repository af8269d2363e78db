//! The opening handshake of RFC 6455 section 4.2: what is asked of the request, and each refusal with its status.

use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};

use crate::http::origin_allowed;

/// Why a request does not become a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 405: only GET opens a WebSocket.
    Method,
    /// 426: no upgrade was asked for.
    NotAnUpgrade,
    /// 426 with the version that is spoken (RFC 6455 section 4.2.2).
    Version,
    /// 400: no nonce of 16 bytes.
    Key,
    /// 403: a browser on a page that may not connect.
    Origin,
    /// 503: the instance is at its limit of connections, or of memory for them.
    Full,
    /// 503: connections come faster than they are accepted.
    Rate,
    /// 503: no connections are taken: the process ends, or may not make ids.
    Closed,
}

impl Refusal {
    /// The reason as a metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::NotAnUpgrade => "not_an_upgrade",
            Self::Version => "version",
            Self::Key => "key",
            Self::Origin => "origin",
            Self::Full => "full",
            Self::Rate => "rate",
            Self::Closed => "closed",
        }
    }

    fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "Only GET opens a WebSocket."),
            Self::NotAnUpgrade => (StatusCode::UPGRADE_REQUIRED, "This resource speaks WebSocket (RFC 6455)."),
            Self::Version => (StatusCode::UPGRADE_REQUIRED, "Only version 13 of the WebSocket protocol is spoken."),
            Self::Key => (StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be one base64 value of 16 bytes."),
            Self::Origin => (StatusCode::FORBIDDEN, "This origin may not connect."),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "This instance has as many connections as it takes."),
            Self::Rate => (StatusCode::SERVICE_UNAVAILABLE, "Connections are coming too fast."),
            Self::Closed => (StatusCode::SERVICE_UNAVAILABLE, "This instance takes no connections."),
        }
    }

    /// The response, as a problem of RFC 9457.
    pub(super) fn response(self) -> Response<String> {
        let (status, detail) = self.parts();
        let body = serde_json::json!({
            "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail, "code": self.label(),
        });
        let mut response = Response::new(body.to_string());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self {
            Self::Method => {
                headers.insert(http::header::ALLOW, HeaderValue::from_static("GET"));
            }
            Self::NotAnUpgrade | Self::Version => {
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            }
            Self::Full | Self::Rate | Self::Closed => {
                // Spread out, so that those who were refused together do not come back together ...
                headers.insert(RETRY_AFTER, HeaderValue::from(rand::random_range(1..=5u32)));
                if self == Self::Closed {
                    // ... and not over the same connection, which would lead to the same instance.
                    headers.insert(CONNECTION, HeaderValue::from_static("close"));
                }
            }
            Self::Key | Self::Origin => {}
        }
        response
    }
}

/// Checks a request and makes the response that completes the handshake.
pub(super) fn accept<B>(request: &Request<B>, allowed_origins: &[String]) -> Result<Response<String>, Refusal> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    // RFC 6455 section 4.2.1: an upgrade is a request of HTTP/1.1 or higher.
    if request.version() < Version::HTTP_11 || !has_token(headers, &UPGRADE, "websocket") || !has_token(headers, &CONNECTION, "upgrade") {
        return Err(Refusal::NotAnUpgrade);
    }
    if single(headers, &SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(Refusal::Version);
    }
    let key = single(headers, &SEC_WEBSOCKET_KEY).ok_or(Refusal::Key)?;
    if base64_simd::STANDARD.decode_to_vec(key).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(Refusal::Key);
    }
    let origin = match headers.get_all(ORIGIN).iter().collect::<Vec<_>>()[..] {
        [] => None,
        [one] => Some(one.to_str().map_err(|_| Refusal::Origin)?),
        _ => return Err(Refusal::Origin),
    };
    if !origin_allowed(origin, single(headers, &HOST), allowed_origins) {
        return Err(Refusal::Origin);
    }
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).expect("base64 is a header value"));
    Ok(response)
}

fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.to_str().ok()?.trim();
    values.next().is_none().then_some(first)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::builder()
            .uri("/stream")
            .header("host", "edge.example.com")
            .header("upgrade", "WebSocket")
            .header("connection", "keep-alive, Upgrade")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        change(&mut request);
        request
    }

    fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut Request<()>) {
        move |r| {
            r.headers_mut().insert(name, HeaderValue::from_static(value));
        }
    }

    #[test]
    fn the_nonce_of_rfc_6455_section_1_3_gets_its_answer() {
        let response = accept(&request(|_| {}), &[]).unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn each_fault_has_its_refusal() {
        let refusal = |request: Request<()>| accept(&request, &["https://shop.example.com".into()]).unwrap_err();
        assert_eq!(refusal(request(|r| *r.method_mut() = Method::POST)), Refusal::Method);
        assert_eq!(refusal(request(|r| *r.version_mut() = Version::HTTP_10)), Refusal::NotAnUpgrade);
        assert_eq!(refusal(request(set("upgrade", "h2c"))), Refusal::NotAnUpgrade);
        assert_eq!(refusal(request(set("connection", "close"))), Refusal::NotAnUpgrade);
        assert_eq!(refusal(request(set("sec-websocket-version", "8"))), Refusal::Version);
        assert_eq!(refusal(request(set("sec-websocket-key", "c2hvcnQ="))), Refusal::Key);
        assert_eq!(refusal(request(set("sec-websocket-key", "not base64"))), Refusal::Key);
        assert_eq!(refusal(request(set("origin", "https://evil.example.net"))), Refusal::Origin);
        assert_eq!(refusal(request(set("origin", "null"))), Refusal::Origin);
    }

    #[test]
    fn the_same_origin_and_a_listed_one_pass() {
        for origin in ["https://edge.example.com", "https://shop.example.com"] {
            assert!(accept(&request(set("origin", origin)), &["https://shop.example.com".into()]).is_ok(), "{origin}");
        }
    }

    #[test]
    fn a_wrong_version_is_told_the_right_one() {
        let response = Refusal::Version.response();
        assert_eq!((response.status().as_u16(), &response.headers()["sec-websocket-version"]), (426, &HeaderValue::from_static("13")));
        assert!(Refusal::Full.response().headers().contains_key("retry-after"));
    }
}

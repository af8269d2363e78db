//! The opening handshake of RFC 6455 section 4.2: what a request must have, and the status of each refusal (protocol.md 1.3). No IO. Heads that a
//! shard reads and those that hyper reads go through the same code.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use signal_contract::is_subprotocol;
use smallvec::SmallVec;

use crate::peer::origin_allowed;
use crate::problem;

/// The entry of `server.subprotocols` that stands for every one.
const ANY: &str = "*";

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
    /// 400: a body is announced, whose bytes a proxy and the gateway could read differently.
    Body,
    /// 403: the origin may not connect.
    Origin,
    /// 503: the instance has all the connections, or the queued bytes, that it may have.
    Full,
    /// 503: connections come too fast. The client may come again after so many seconds.
    Rate(u32),
    /// 503: the instance drains, or its worker lease has lapsed.
    Closed,
}

impl Refusal {
    /// Returns the reason as the label of a metric and the code of the problem.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::NotAnUpgrade => "not_an_upgrade",
            Self::Version => "version",
            Self::Key => "key",
            Self::Body => "body",
            Self::Origin => "origin",
            Self::Full => "full",
            Self::Rate(_) => "rate",
            Self::Closed => "closed",
        }
    }

    fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "Only GET opens a WebSocket.",
            ),
            Self::NotAnUpgrade => (
                StatusCode::UPGRADE_REQUIRED,
                "This resource speaks WebSocket (RFC 6455).",
            ),
            Self::Version => (
                StatusCode::UPGRADE_REQUIRED,
                "Only version 13 of the WebSocket protocol is spoken.",
            ),
            Self::Key => (
                StatusCode::BAD_REQUEST,
                "Sec-WebSocket-Key must be one base64 value of 16 bytes.",
            ),
            Self::Body => (StatusCode::BAD_REQUEST, "An opening handshake has no body."),
            Self::Origin => (StatusCode::FORBIDDEN, "This origin may not connect."),
            Self::Full => (
                StatusCode::SERVICE_UNAVAILABLE,
                "This instance has as many connections as it takes.",
            ),
            Self::Rate(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Connections are coming too fast.",
            ),
            Self::Closed => (
                StatusCode::SERVICE_UNAVAILABLE,
                "This instance takes no connections.",
            ),
        }
    }

    /// Returns the response, a problem document.
    pub(super) fn response(self) -> Response<String> {
        let (status, detail) = self.parts();
        let mut response = problem::plain(status, self.label(), detail);
        let headers = response.headers_mut();
        match self {
            Self::Method => {
                headers.insert(http::header::ALLOW, HeaderValue::from_static("GET"));
            }
            Self::NotAnUpgrade | Self::Version => {
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            }
            Self::Rate(seconds) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Self::Full | Self::Closed => {
                headers.insert(RETRY_AFTER, problem::scattered_retry());
                if self == Self::Closed {
                    // The same connection would lead to the same instance again.
                    headers.insert(CONNECTION, HeaderValue::from_static("close"));
                }
            }
            Self::Body => {
                // Where the next request begins is in doubt.
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Key | Self::Origin => {}
        }
        response
    }
}

/// A header field that must appear once.
#[derive(Debug, Clone, Copy, Default)]
enum Field<'h> {
    #[default]
    Absent,
    Once(&'h [u8]),
    Repeated,
}

impl<'h> Field<'h> {
    fn add(&mut self, value: &'h [u8]) {
        *self = if matches!(self, Self::Absent) {
            Self::Once(value)
        } else {
            Self::Repeated
        };
    }

    fn text(self) -> Option<&'h str> {
        match self {
            Self::Once(value) => visible(value).map(str::trim),
            Self::Absent | Self::Repeated => None,
        }
    }
}

/// The parts of a request head that the handshake checks.
#[derive(Debug, Default)]
pub(super) struct Offer<'h> {
    get: bool,
    http_11: bool,
    upgrade: bool,
    connection: bool,
    version: Field<'h>,
    key: Field<'h>,
    origin: Field<'h>,
    host: Field<'h>,
    body: bool,
    subprotocols: SmallVec<[&'h [u8]; 1]>,
}

impl<'h> Offer<'h> {
    /// Reads the fields of a head; names may be in any case.
    pub(super) fn new(
        get: bool,
        http_11: bool,
        fields: impl Iterator<Item = (&'h str, &'h [u8])>,
    ) -> Self {
        let mut offer = Self {
            get,
            http_11,
            ..Self::default()
        };
        for (name, value) in fields {
            let is = |wanted: &HeaderName| name.eq_ignore_ascii_case(wanted.as_str());
            if is(&UPGRADE) {
                offer.upgrade |= has_token(value, "websocket");
            } else if is(&CONNECTION) {
                offer.connection |= has_token(value, "upgrade");
            } else if is(&SEC_WEBSOCKET_VERSION) {
                offer.version.add(value);
            } else if is(&SEC_WEBSOCKET_KEY) {
                offer.key.add(value);
            } else if is(&ORIGIN) {
                offer.origin.add(value);
            } else if is(&HOST) {
                offer.host.add(value);
            } else if is(&SEC_WEBSOCKET_PROTOCOL) {
                offer.subprotocols.push(value);
            } else if is(&CONTENT_LENGTH) {
                offer.body |= value.trim_ascii() != b"0";
            } else if is(&TRANSFER_ENCODING) {
                offer.body = true;
            }
        }
        offer
    }

    /// Reads a request that hyper has parsed.
    pub(super) fn of<B>(request: &'h Request<B>) -> Self {
        let fields = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        Self::new(
            request.method() == Method::GET,
            request.version() >= Version::HTTP_11,
            fields,
        )
    }

    /// Returns whether there is exactly one `Host`.
    pub(super) fn has_one_host(&self) -> bool {
        matches!(self.host, Field::Once(_))
    }
}

/// What completes the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Accept<'h> {
    /// The value of `Sec-WebSocket-Accept`.
    key: String,
    /// The value of `Sec-WebSocket-Protocol`, one of those that were asked for.
    subprotocol: Option<&'h str>,
}

/// Checks an offer; `subprotocols` are those of the settings.
///
/// # Errors
/// The first reason to refuse it.
pub(super) fn accept<'h>(
    offer: &Offer<'h>,
    allowed_origins: &[String],
    subprotocols: &[String],
) -> Result<Accept<'h>, Refusal> {
    if !offer.get {
        return Err(Refusal::Method);
    }
    // RFC 6455 section 4.2.1: an upgrade is a request of HTTP/1.1 or higher.
    if !offer.http_11 || !offer.upgrade || !offer.connection {
        return Err(Refusal::NotAnUpgrade);
    }
    if offer.version.text() != Some("13") {
        return Err(Refusal::Version);
    }
    let key = offer.key.text().filter(is_nonce).ok_or(Refusal::Key)?;
    if offer.body {
        return Err(Refusal::Body);
    }
    let origin = match offer.origin {
        Field::Absent => None,
        Field::Once(origin) => Some(visible(origin).ok_or(Refusal::Origin)?),
        Field::Repeated => return Err(Refusal::Origin),
    };
    if !origin_allowed(origin, offer.host.text(), allowed_origins) {
        return Err(Refusal::Origin);
    }
    Ok(Accept {
        key: tungstenite::handshake::derive_accept_key(key.as_bytes()),
        subprotocol: subprotocol(&offer.subprotocols, subprotocols),
    })
}

/// Returns whether a key is 16 bytes in base64. The four bits that the last digit has too many may be anything: some clients write random digits.
fn is_nonce(key: &&str) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24
        && key
            .strip_suffix("==")
            .is_some_and(|digits| digits.as_bytes().iter().all(is_digit))
}

/// Returns the first subprotocol that is asked for and known. The order is the client's preference (RFC 6455 section 4.1).
fn subprotocol<'h>(offered: &[&'h [u8]], known: &[String]) -> Option<&'h str> {
    let is_known = |name: &&str| known.iter().any(|known| known == name || known == ANY);
    offered
        .iter()
        .filter_map(|line| visible(line))
        .flat_map(|line| line.split(',').map(str::trim))
        .filter(|name| is_subprotocol(name))
        .find(is_known)
}

/// Returns the response that completes the handshake, for hyper.
pub(super) fn response(accept: &Accept<'_>) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(
        SEC_WEBSOCKET_ACCEPT,
        HeaderValue::from_str(&accept.key).expect("base64 is a header value"),
    );
    if let Some(name) = accept.subprotocol {
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_str(name).expect("a token is a header value"),
        );
    }
    response
}

/// Returns the same response as bytes.
pub(super) fn response_bytes(accept: &Accept<'_>) -> Vec<u8> {
    let head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ";
    let (field, name): (&[u8], &[u8]) = match accept.subprotocol {
        Some(name) => (b"\r\nsec-websocket-protocol: ", name.as_bytes()),
        None => (b"", b""),
    };
    [head, accept.key.as_bytes(), field, name, b"\r\n\r\n"].concat()
}

/// Returns the value of a header field as text, if it is visible ASCII.
fn visible(value: &[u8]) -> Option<&str> {
    let is_visible = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    if is_visible {
        std::str::from_utf8(value).ok()
    } else {
        None
    }
}

fn has_token(value: &[u8], token: &str) -> bool {
    visible(value).is_some_and(|value| {
        value
            .split(',')
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    })
}

#[cfg(test)]
mod tests;

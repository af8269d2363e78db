//! What may stand in `allowed_origins` and `stream_paths`. The gateway's check of its files and the operator's validation share it.

use url::Url;

/// The entry of `allowed_origins` for pages without an origin of their own, such as sandboxed frames and `file:` (RFC 6454 section 7.3).
pub const NULL_ORIGIN: &str = "null";
/// The entry of `allowed_origins` for every page of the same machine: `localhost`, 127.0.0.0/8 and `[::1]`, http and https, any port.
pub const LOOPBACK_ORIGINS: &str = "loopback";
/// Most entries of `stream_paths`.
pub const MAX_STREAM_PATHS: usize = 16;
/// Where REST and its documents are; no path below one of these opens a WebSocket.
pub const REST_PATHS: [&str; 6] = [
    "/socket",
    "/notifications",
    "/.well-known",
    "/openapi.json",
    "/asyncapi.json",
    "/docs",
];

/// Returns whether a text may be an entry of `allowed_origins`: a serialized origin of any scheme (RFC 6454 section 6.2), an origin of http or https with
/// `*.` in front of its host, [`NULL_ORIGIN`] or [`LOOPBACK_ORIGINS`].
pub fn is_allowed_origin(entry: &str) -> bool {
    if matches!(entry, NULL_ORIGIN | LOOPBACK_ORIGINS) {
        return true;
    }
    let Some((scheme, host)) = entry.split_once("://") else {
        return false;
    };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    let is_web = matches!(scheme, "http" | "https");
    let host = match host.strip_prefix("*.") {
        Some(parent) if is_web => parent,
        _ => host,
    };
    let strange = |c: char| {
        matches!(c, '/' | '\\' | '?' | '#' | '%' | '@' | '*') || c.is_whitespace() || c.is_control()
    };
    is_scheme
        && !host.is_empty()
        && !host.contains(strange)
        && !host.ends_with(':')
        && (!is_web || Url::parse(&format!("{scheme}://{host}/")).is_ok())
}

/// Returns whether a path may open WebSockets: it needs no escapes, and is no path of REST.
pub fn is_stream_path(path: &str) -> bool {
    let of_rest = |rest: &str| {
        path.strip_prefix(rest)
            .is_some_and(|below| below.is_empty() || below.starts_with('/'))
    };
    path.starts_with('/')
        && path.len() <= 128
        && path
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '~' | '-'))
        && !REST_PATHS.iter().any(|rest| of_rest(rest))
}

/// Returns whether a text is the name of a subprotocol (RFC 6455 section 4.1: a token of HTTP).
pub fn is_subprotocol(name: &str) -> bool {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_an_origin_of_any_scheme_or_a_wildcard_of_the_web_or_a_name() {
        for good in [
            "https://shop.example.com",
            "http://localhost:5173",
            "https://*.example.com:8443",
            "https://bücher.example",
            "http://[::1]:8080",
            "capacitor://localhost",
            "ionic://localhost",
            "tauri://localhost",
            "chrome-extension://abcdefghijklmnop",
            "wss://shop.example.com",
            "null",
            "loopback",
        ] {
            assert!(is_allowed_origin(good), "{good}");
        }
        for bad in [
            "",
            "*",
            "shop.example.com",
            "https://",
            "https://*",
            "https://*.",
            "https://a.*.com",
            "https://*.*.com",
            "capacitor://*.local",
            "https://shop.example.com/",
            "https://shop.example.com/path",
            "https://shop.example.com:",
            "https://shop.example.com:99999",
            "https://user@shop.example.com",
            "https://shop example.com",
            "1https://shop.example.com",
            "Null",
            "localhost",
        ] {
            assert!(!is_allowed_origin(bad), "{bad}");
        }
    }

    #[test]
    fn a_stream_path_needs_no_escape_and_is_none_of_rest() {
        for good in [
            "/stream",
            "/ws",
            "/",
            "/v1/live.socket",
            "/socketry",
            "/docs-live",
        ] {
            assert!(is_stream_path(good), "{good}");
        }
        for bad in [
            "",
            "ws",
            "/ws?x",
            "/w s",
            "/ws%20",
            "/socket",
            "/socket/websocket/clients",
            "/notifications",
            "/notifications/7",
            "/docs",
            "/openapi.json",
        ] {
            assert!(!is_stream_path(bad), "{bad}");
        }
        assert!(!is_stream_path(&format!("/{}", "x".repeat(128))));
    }

    #[test]
    fn a_subprotocol_is_a_token() {
        assert!(is_subprotocol("v1.signal") && is_subprotocol("graphql-ws") && is_subprotocol("*"));
        for bad in ["", "a b", "a,b", "a/b", "é", "a\r\nb"] {
            assert!(!is_subprotocol(bad), "{bad:?}");
        }
    }
}

//! Which web pages may talk to the gateway: the Origin list, for the WebSocket upgrade and for CORS.
//!
//! Input: the `Origin` and `Host` headers and `allowed_origins` of the live settings. Output: yes or no, and the CORS headers of
//! the Fetch standard. The list is read at each request, so a change holds from the next one on.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HOST,
    ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use url::Url;

use super::problem::Cause;

/// Whether a request with these `Origin` and `Host` headers may go on.
///
/// A request without `Origin` passes: it does not come from a web page. The origin that names the gateway's own host passes, whatever its scheme,
/// since a proxy may have ended TLS; so do the exact entries of `allowed`, and subdomains of any depth of entries such as `https://*.example.com`.
/// Everything else is refused, `null` (RFC 6454 section 7.3) included.
pub fn origin_allowed(origin: Option<&str>, host: Option<&str>, allowed: &[String]) -> bool {
    let Some(origin) = origin else { return true };
    let Some(origin) = Place::of_origin(origin) else {
        return false;
    };
    let own = host
        .and_then(|host| Place::of_host(&origin.scheme, host))
        .is_some_and(|own| own == origin);
    own || allowed.iter().any(|entry| origin.matches(entry))
}

/// Scheme, host and port, normalized: lower case, Punycode, the default port filled in.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    scheme: String,
    host: String,
    port: u16,
}

impl Place {
    /// Reads `scheme://host[:port]` and nothing more (RFC 6454 section 6.2).
    fn of_origin(text: &str) -> Option<Self> {
        let (scheme, host) = text.split_once("://")?;
        Self::of_host(scheme, host)
    }

    fn of_host(scheme: &str, host: &str) -> Option<Self> {
        let scheme = scheme.to_ascii_lowercase();
        // What the URL parser would take for user, path, query or fragment, or strip.
        let strange = |c: char| {
            matches!(c, '@' | '/' | '\\' | '?' | '#' | '%' | '*')
                || c.is_whitespace()
                || c.is_control()
        };
        if !matches!(scheme.as_str(), "http" | "https")
            || host.is_empty()
            || host.ends_with(':')
            || host.contains(strange)
        {
            return None;
        }
        let url = Url::parse(&format!("{scheme}://{host}/")).ok()?;
        Some(Self {
            host: url.host_str()?.to_owned(),
            port: url.port_or_known_default()?,
            scheme,
        })
    }

    fn matches(&self, entry: &str) -> bool {
        let Some((scheme, host)) = entry.split_once("://") else {
            return false;
        };
        match host.strip_prefix("*.") {
            None => Self::of_host(scheme, host).is_some_and(|entry| entry == *self),
            Some(parent) => Self::of_host(scheme, parent).is_some_and(|parent| {
                let below = self
                    .host
                    .strip_suffix(&parent.host)
                    .and_then(|rest| rest.strip_suffix('.'));
                self.scheme == parent.scheme
                    && self.port == parent.port
                    && below.is_some_and(|labels| !labels.is_empty())
            }),
        }
    }
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PATCH, DELETE");
const REQUEST_HEADERS: HeaderValue =
    HeaderValue::from_static("authorization, content-type, x-request-id");
const RESPONSE_HEADERS: HeaderValue =
    HeaderValue::from_static("x-request-id, retry-after, www-authenticate, allow");
const PREFLIGHT_SECS: HeaderValue = HeaderValue::from_static("600");

/// Answers preflight requests and lets allowed pages read the answers (Fetch standard, "HTTP extensions").
///
/// Credentials are never allowed: callers send `Authorization` themselves.
pub(super) async fn cors(
    State(state): State<super::State>,
    request: Request,
    next: Next,
) -> Response {
    let Some(origin) = request.headers().get(ORIGIN).cloned() else {
        let mut response = next.run(request).await;
        vary(response.headers_mut());
        return response;
    };
    let live = state.live.borrow().clone();
    let host = request.headers().get(HOST).and_then(|v| v.to_str().ok());
    let allowed = origin
        .to_str()
        .is_ok_and(|origin| origin_allowed(Some(origin), host, &live.allowed_origins));
    let preflight = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match (preflight, allowed) {
        (true, true) => StatusCode::NO_CONTENT.into_response(),
        (true, false) => Cause::OriginRefused
            .because("this origin is not in allowed_origins")
            .into_response(),
        (false, _) => next.run(request).await,
    };
    let headers = response.headers_mut();
    if allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let more: &[(HeaderName, HeaderValue)] = if preflight {
            &[
                (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
                (ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECS),
            ]
        } else {
            &[(ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS)]
        };
        headers.extend(more.iter().cloned());
    }
    vary(headers);
    response
}

fn vary(headers: &mut HeaderMap) {
    headers.append(VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origin: &str, host: &str, list: &[&str]) -> bool {
        let list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
        origin_allowed(Some(origin), Some(host), &list)
    }

    #[test]
    fn a_request_without_an_origin_passes_and_null_never_does() {
        assert!(origin_allowed(None, Some("gw.example.com"), &[]));
        assert!(!allowed("null", "null", &["null"]));
        assert!(!allowed("", "", &[""]));
        assert!(!origin_allowed(Some("https://gw.example.com"), None, &[]));
    }

    #[test]
    fn the_own_origin_passes_by_host_and_effective_port() {
        assert!(allowed("https://gw.example.com", "gw.example.com", &[]));
        assert!(allowed("http://gw.example.com", "gw.example.com", &[]));
        assert!(allowed("https://GW.Example.com", "gw.example.COM:443", &[]));
        assert!(allowed("http://localhost:8080", "localhost:8080", &[]));
        assert!(allowed("http://[::1]:8080", "[::1]:8080", &[]));
        assert!(!allowed("https://gw.example.com", "gw.example.com:80", &[]));
        assert!(!allowed("http://localhost:8081", "localhost:8080", &[]));
        assert!(!allowed("https://evil.com", "gw.example.com", &[]));
        assert!(!allowed("https://evil.com", "gw.example.com@evil.com", &[]));
        assert!(!allowed("https://evil.com", "evil.com/gw.example.com", &[]));
    }

    #[test]
    fn an_exact_entry_fits_scheme_host_and_port() {
        let list = [
            "https://shop.example.com",
            "http://localhost:5173",
            "https://bücher.example",
        ];
        for good in [
            "https://shop.example.com",
            "https://shop.example.com:443",
            "HTTPS://SHOP.example.com",
            "http://localhost:5173",
        ] {
            assert!(allowed(good, "gw", &list), "{good}");
        }
        assert!(allowed("https://xn--bcher-kva.example", "gw", &list));
        for bad in [
            "http://shop.example.com",
            "https://shop.example.com:8443",
            "https://shop.example.com.evil.com",
            "https://shop.example.com.",
            "https://evil-shop.example.com",
            "https://a.shop.example.com",
            "https://shop.example.com@evil.com",
            "https://evil.com/https://shop.example.com",
            "https://shop.example.com/",
            "https://shop.example.com#",
            "https://shop.example.com ",
            "https://shop.example.com:",
            "https:shop.example.com",
            "http://localhost",
            "file://",
            "ftp://shop.example.com",
            "chrome-extension://shop.example.com",
        ] {
            assert!(!allowed(bad, "gw", &list), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_fits_subdomains_only() {
        let list = ["https://*.example.com"];
        for good in [
            "https://a.example.com",
            "https://a.b.example.com",
            "https://A.EXAMPLE.com:443",
        ] {
            assert!(allowed(good, "gw", &list), "{good}");
        }
        for bad in [
            "https://example.com",
            "https://evil-example.com",
            "https://evilexample.com",
            "https://.example.com",
            "https://*.example.com",
            "https://a.example.com.evil.com",
            "https://a.example.com:8443",
            "http://a.example.com",
            "https://a.example.com.",
            "https://a%2eexample.com",
        ] {
            assert!(!allowed(bad, "gw", &list), "{bad}");
        }
        assert!(allowed(
            "https://a.example.com:8443",
            "gw",
            &["https://*.example.com:8443"]
        ));
        assert!(!allowed(
            "https://a.example.com",
            "gw",
            &["*", "https://*", "*.example.com", "https://a.*.com"]
        ));
    }
}

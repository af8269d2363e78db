//! CORS: which web pages may read the answers of REST.
//!
//! Input: the `Origin` and `Host` headers and `allowed_origins` of the live settings. Output: the CORS headers of the
//! Fetch standard. The list is read at each request, so a change applies from the next one on.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HOST,
    ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::problem::Cause;
use crate::peer::origin_allowed;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PATCH, DELETE");
/// Those of W3C Trace Context and Baggage among them, which tracing adds to the requests of a page.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, x-request-id, traceparent, tracestate, baggage",
);
const RESPONSE_HEADERS: HeaderValue =
    HeaderValue::from_static("x-request-id, retry-after, www-authenticate, allow");
const PREFLIGHT_SECS: HeaderValue = HeaderValue::from_static("600");

/// Answers preflight requests, and allows listed origins to read the answers (Fetch standard, "HTTP extensions").
///
/// Cookies are never allowed: callers send `Authorization` themselves.
pub(super) async fn cors(
    State(state): State<super::ApiState>,
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

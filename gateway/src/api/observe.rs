//! The outermost layer of every request: its id, its metrics, and an answer even when a handler panics.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, OriginalUri, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::{CACHE_CONTROL, CONNECTION, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tracing::Instrument;

use super::problem::{self, Cause, Problem};
use crate::lifecycle::Lifecycle;
use crate::metrics::{Metrics, Route};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is accepted from a caller.
const MAX_REQUEST_ID: usize = 64;

/// What the layer needs.
#[derive(Clone)]
pub(super) struct Observer {
    pub(super) metrics: Arc<Metrics>,
    pub(super) lifecycle: Arc<Lifecycle>,
}

/// Handles a request and completes its response.
pub(super) async fn observe(
    State(observer): State<Observer>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let method = method_label(request.method());
    let span =
        tracing::info_span!("request", request.id = %id, http.route = route, http.method = method);

    let answered = AssertUnwindSafe(next.run(request).instrument(span.clone()))
        .catch_unwind()
        .await;
    let mut response = answered.unwrap_or_else(|panic| span.in_scope(|| panicked(&*panic)));
    problem::name_request(&mut response, &id);
    let headers = response.headers_mut();
    headers.insert(
        REQUEST_ID,
        HeaderValue::from_str(&id).expect("a request id is made of visible ASCII"),
    );
    // Answers are personal: caches must not store them and browsers must not guess their type. A handler may have set its own rule.
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if observer.lifecycle.is_draining() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }

    let status = response.status().as_u16();
    observer
        .metrics
        .requests
        .get_or_create(&Route {
            route,
            method: method.into(),
            status,
        })
        .inc();
    observer
        .metrics
        .request_time
        .observe(started.elapsed().as_secs_f64());
    span.in_scope(|| {
        tracing::debug!(
            http.status = status,
            duration_ms = started.elapsed().as_millis() as u64,
            "request answered"
        )
    });
    response
}

/// Returns the caller's id if it is safe to log, or makes one.
fn request_id(headers: &HeaderMap) -> String {
    let is_safe = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let given = headers
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(is_safe);
    given.map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

/// Returns the method as a label; labels have few, known values.
fn method_label(method: &Method) -> &'static str {
    const KNOWN: [(Method, &str); 7] = [
        (Method::GET, "GET"),
        (Method::HEAD, "HEAD"),
        (Method::POST, "POST"),
        (Method::PUT, "PUT"),
        (Method::PATCH, "PATCH"),
        (Method::DELETE, "DELETE"),
        (Method::OPTIONS, "OPTIONS"),
    ];
    KNOWN
        .iter()
        .find(|(known, _)| known == method)
        .map_or("other", |(_, label)| label)
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(
        panic = text.unwrap_or("no message"),
        "request failed: a handler panicked"
    );
    Cause::Internal
        .because("this is a defect of the gateway; its log holds the details")
        .into_response()
}

/// Answers 404 for a path without a route.
pub(super) async fn no_route(OriginalUri(uri): OriginalUri) -> Problem {
    let shown: String = uri.path().chars().take(200).collect();
    Cause::NoRoute.because(format!("no route is called {shown}; GET /docs lists all"))
}

/// Answers 405; axum adds `Allow`.
pub(super) async fn no_method(method: Method) -> Problem {
    let shown: String = method.as_str().chars().take(20).collect();
    Cause::MethodNotAllowed.because(format!("{shown} is not in Allow"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safe_request_id_is_kept_and_any_other_replaced() {
        let id_of = |text: &str| {
            request_id(&HeaderMap::from_iter([(
                REQUEST_ID,
                HeaderValue::from_str(text).unwrap(),
            )]))
        };
        assert_eq!(id_of("b7e1.trace_4-2"), "b7e1.trace_4-2");
        for bad in ["", "a b", "<script>", &"x".repeat(65), "a\"b"] {
            assert_eq!(id_of(bad).len(), 32, "{bad}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn an_unknown_method_has_the_label_other() {
        assert_eq!(method_label(&Method::PATCH), "PATCH");
        assert_eq!(method_label(&Method::from_bytes(b"GROW").unwrap()), "other");
    }
}

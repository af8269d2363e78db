//! What every request passes through, whatever becomes of it: its id, its metrics, and an answer even when a handler panics.

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
/// Longest request id that is taken over from a caller.
const MAX_REQUEST_ID: usize = 64;

/// What is told of requests.
#[derive(Clone)]
pub(super) struct Observer {
    pub(super) metrics: Arc<Metrics>,
    pub(super) lifecycle: Arc<Lifecycle>,
}

/// The outermost layer.
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
    // Answers are nobody else's: not kept by caches, not guessed at by browsers. A handler that knows better has said so itself.
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

/// The caller's id if it is one that logs can take, else one of ours.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let given = headers
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(sane);
    given.map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

/// The method where the code knows it: a label has few, known values.
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
    tracing::error!(panic = text.unwrap_or("not a text"), "a handler panicked");
    Cause::Internal
        .because("this is a defect of the gateway; its log holds the details")
        .into_response()
}

/// 404 of a path that no route has.
pub(super) async fn no_route(OriginalUri(uri): OriginalUri) -> Problem {
    let shown: String = uri.path().chars().take(200).collect();
    Cause::NoRoute.because(format!("no route is called {shown}; GET /docs lists all"))
}

/// 405; axum adds `Allow`.
pub(super) async fn no_method(method: Method) -> Problem {
    let shown: String = method.as_str().chars().take(20).collect();
    Cause::MethodNotAllowed.because(format!("{shown} is not in Allow"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
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
    fn a_made_up_method_is_no_label_of_its_own() {
        assert_eq!(method_label(&Method::PATCH), "PATCH");
        assert_eq!(method_label(&Method::from_bytes(b"GROW").unwrap()), "other");
    }
}

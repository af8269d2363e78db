//! A request that changes something is carried out to its end, also when its caller is gone: hyper drops whatever serves a connection that has closed, and
//! a change would be left between two of its steps, stored and told to nobody.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, Span};

use crate::leftovers::Leftovers;

/// Serves the request in a task of its own, unless it only reads, or too many callers are gone already.
pub(super) async fn carried_out(
    State(leftovers): State<Leftovers>,
    request: Request,
    next: Next,
) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let Some(leftover) = leftovers.begin() else {
        return next.run(request).await;
    };
    let serving = async move {
        let response = next.run(request).await;
        drop(leftover);
        response
    };
    match tokio::spawn(serving.instrument(Span::current())).await {
        Ok(response) => response,
        // Nobody aborts it, so it panicked; whoever observes requests answers.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

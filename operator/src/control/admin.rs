//! `/livez`, `/readyz` and `/metrics` of the operator itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the process still waits for; ready means nothing. A standby is ready.
#[derive(Clone, Default)]
pub struct Pending(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Pending {
    /// This part waits for something.
    pub fn wait(&self, part: &'static str, why: impl Into<String>) {
        self.0.lock().insert(part, why.into());
    }

    /// This part has started.
    pub fn done(&self, part: &'static str) {
        self.0.lock().remove(part);
    }

    /// One line per part that waits; empty when ready.
    pub fn lines(&self) -> Vec<String> {
        self.0
            .lock()
            .iter()
            .map(|(part, why)| format!("{part}: {why}"))
            .collect()
    }
}

/// Serves until `stop`.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    pending: Pending,
    metrics: Metrics,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready).with_state(pending))
        .route("/metrics", get(print).with_state(metrics));
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn ready(State(pending): State<Pending>) -> impl IntoResponse {
    let lines = pending.lines();
    if lines.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n")
    }
}

async fn print(State(metrics): State<Metrics>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        metrics.text(),
    )
}

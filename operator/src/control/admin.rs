//! `/livez`, `/readyz` and `/metrics` of the operator itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::control::clusters::ScopeHealth;
use crate::metrics::Metrics;

/// What the process still waits for; ready means nothing. A standby is ready.
#[derive(Clone, Default)]
pub struct Pending {
    parts: Arc<Mutex<BTreeMap<&'static str, String>>>,
    /// Scopes that fail while others are served: shown, and no reason to be unready.
    pub scopes: ScopeHealth,
}

impl Pending {
    /// This part waits for something.
    pub fn wait(&self, part: &'static str, why: impl Into<String>) {
        self.parts.lock().insert(part, why.into());
    }

    /// This part has started.
    pub fn done(&self, part: &'static str) {
        self.parts.lock().remove(part);
    }

    /// One line per part that waits; empty when ready.
    pub fn lines(&self) -> Vec<String> {
        self.parts
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

/// With `?verbose` also scopes that fail, which a ready process may have.
async fn ready(State(pending): State<Pending>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let mut lines = pending.lines();
    let code = match lines.is_empty() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    if code != StatusCode::OK || query.is_some_and(|query| query.starts_with("verbose")) {
        lines.extend(pending.scopes.lines());
    }
    if lines.is_empty() {
        lines.push("ok".into());
    }
    (code, lines.join("\n") + "\n")
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

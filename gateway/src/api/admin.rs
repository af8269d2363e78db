//! The admin listener: probes, metrics, and, for holders of the token, the status, drains and sheds.
//!
//! It is never public, because probes and metrics need no token. Input: requests of kubelets, Prometheus and the operator. Output: the state of the
//! process; a drain or a shed.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use signal_contract::{
    ConnectionCounts, DatabaseReport, DrainOrder, DrainStatus, PreviousRedis, RedisReport, Shed,
    ShedOrder, StatusReport, UnreadyPart,
};
use subtle::ConstantTimeEq;

use super::extract::{Json, NoParams, OptionalJson, Params, authorization};
use super::problem::{Cause, Problem};
use crate::bus::{Bus, SubscriberState};
use crate::config::SecretFile;
use crate::hub::Hub;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::store::NotificationStore;

/// Longest wait for the version of the database's schema; the rest of the status is answered without it.
const VERSION_LIMIT: Duration = Duration::from_secs(1);
/// Largest body of an admin request.
pub(super) const MAX_BODY_BYTES: usize = 4096;
/// The format of the metrics (OpenMetrics 1.0).
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const CHALLENGE: &str = "Bearer realm=\"signal-admin\"";
const CHALLENGE_INVALID: &str = "Bearer realm=\"signal-admin\", error=\"invalid_token\"";

/// What the admin routes need; cheap to clone.
#[derive(Clone)]
pub struct AdminState {
    /// The state of the process.
    pub lifecycle: Arc<Lifecycle>,
    /// Connections of this instance.
    pub hub: Hub,
    /// Whether it receives, its lag, and its servers.
    pub bus: Arc<dyn Bus>,
    /// Reads the version of the schema.
    pub notifications: Arc<dyn NotificationStore>,
    /// What `/metrics` answers.
    pub metrics: Arc<Metrics>,
    /// This instance's name.
    pub instance: Arc<str>,
    /// `server.admin_token_file`; read at each request, so a changed token is used from the next one on.
    pub token_file: SecretFile,
    /// A report with the members that only the app knows: revisions, key sources, the served key set, the pipeline.
    pub facts: Arc<dyn Fn() -> StatusReport + Send + Sync>,
}

/// Passes requests of holders of the token.
pub(super) async fn guard(
    State(state): State<AdminState>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let file = state.token_file.clone();
    let configured = tokio::task::spawn_blocking(move || crate::config::read_secret(&file)).await;
    let token = match configured {
        Ok(Ok(Some(token))) if !token.is_empty() => token,
        Ok(Ok(_)) => {
            return Err(
                Cause::AdminDisabled.because("set server.admin_token_file to a file with a token")
            );
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "admin request refused: server.admin_token_file cannot be read");
            return Err(Cause::AdminDisabled.because("the file with the token cannot be read"));
        }
        Err(_) => return Err(Cause::Internal.because("the file with the token could not be read")),
    };
    match authorization(request.headers())? {
        Some((scheme, given, _)) if scheme.eq_ignore_ascii_case("bearer") => {
            // Hashes have one length, so the comparison does not reveal the token's.
            let same: bool = Sha256::digest(given.as_bytes())
                .ct_eq(&Sha256::digest(token.expose().as_bytes()))
                .into();
            if !same {
                return Err(Cause::CredentialsRefused
                    .because("this is not the administration token")
                    .challenge(CHALLENGE_INVALID));
            }
        }
        _ => {
            return Err(Cause::CredentialsMissing
                .because("send Authorization: Bearer")
                .challenge(CHALLENGE));
        }
    }
    Ok(next.run(request).await)
}

/// Answers that the process runs, unless only a restart helps. It asks no dependency, so the outage of one restarts no pod.
pub(super) async fn livez(
    State(state): State<AdminState>,
) -> Result<Json<serde_json::Value>, Problem> {
    if state.lifecycle.is_stuck() {
        return Err(Cause::NotReady.because("a shard is stuck; see /readyz?verbose"));
    }
    Ok(Json(serde_json::json!({"live": true})))
}

/// `?verbose`, with or without a value.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadyParams {
    verbose: Option<String>,
}

/// Answers that the process is ready when every part is.
pub(super) async fn readyz(
    State(state): State<AdminState>,
    Params(params): Params<ReadyParams>,
) -> Result<Response, Problem> {
    let parts = unready(&state);
    let verbose = params.verbose.is_some();
    if parts.is_empty() {
        let body = if verbose {
            let parts: Vec<UnreadyPart> = state.lifecycle.notices().into_iter().map(part).collect();
            serde_json::json!({"ready": true, "parts": parts})
        } else {
            serde_json::json!({"ready": true})
        };
        return Ok(Json(body).into_response());
    }
    let names: Vec<&str> = parts.iter().map(|part| part.part.as_str()).collect();
    let problem = Cause::NotReady.because(format!("not ready: {}", names.join(", ")));
    let mut parts = parts.clone();
    parts.extend(state.lifecycle.notices().into_iter().map(part));
    let parts = serde_json::to_value(&parts).expect("names and texts serialize");
    Err(if verbose {
        problem.with("parts", parts)
    } else {
        problem
    })
}

/// Answers all metrics.
pub(super) async fn metrics(State(state): State<AdminState>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], state.metrics.render()).into_response()
}

/// A count as reports carry it.
fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn part((part, reason): (&'static str, String)) -> UnreadyPart {
    UnreadyPart {
        part: part.to_owned(),
        reason,
    }
}

fn unready(state: &AdminState) -> Vec<UnreadyPart> {
    state.lifecycle.unready().into_iter().map(part).collect()
}

fn redis(bus: &dyn Bus) -> RedisReport {
    let status = bus.status();
    RedisReport {
        mode: Some(status.mode),
        nodes: status.nodes,
        subscribed: bus.subscriber() == SubscriberState::Live,
        lag_ms: bus.lag().map(|lag| lag.as_secs_f64() * 1000.0),
        switching: status.switching,
        error: status.error,
        previous: status.previous.map(|previous| PreviousRedis {
            nodes: previous.nodes,
            subscribed: previous.subscribed,
        }),
    }
}

fn drain_status(state: &AdminState) -> DrainStatus {
    let lifecycle = &state.lifecycle;
    DrainStatus {
        draining: lifecycle.is_draining(),
        held: lifecycle.is_held(),
        at_start: count(lifecycle.connections_at_drain()),
        remaining: count(state.hub.counts().total),
    }
}

/// Answers the status, in which the operator sees whether its changes are in use.
pub(super) async fn status(
    State(state): State<AdminState>,
    _: Params<NoParams>,
) -> Json<StatusReport> {
    let version = tokio::time::timeout(VERSION_LIMIT, state.notifications.version()).await;
    let unready = unready(&state);
    let counts = state.hub.counts();
    Json(StatusReport {
        instance: state.instance.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: unready.is_empty(),
        unready,
        connections: ConnectionCounts {
            total: count(counts.total),
            authenticated: count(counts.authenticated),
            encrypted: count(counts.encrypted),
        },
        redis: redis(state.bus.as_ref()),
        drain: drain_status(&state),
        database: DatabaseReport {
            version: version.ok().and_then(Result::ok).flatten(),
        },
        ..(state.facts)()
    })
}

/// Starts a drain; a second request changes nothing.
pub(super) async fn drain(
    State(state): State<AdminState>,
    _: Params<NoParams>,
    OptionalJson(body): OptionalJson<DrainOrder>,
) -> Result<Response, Problem> {
    tracing::info!(held = body.hold, "drain requested on the admin listener");
    if body.hold {
        let millis = |millis: Option<u64>| millis.map(Duration::from_millis);
        state
            .lifecycle
            .request_hold(millis(body.pause_ms), millis(body.expires_ms))?;
    } else {
        state.lifecycle.request_drain();
    }
    Ok((StatusCode::ACCEPTED, Json(drain_status(&state))).into_response())
}

/// Takes a held drain back; without one nothing changes.
pub(super) async fn undrain(
    State(state): State<AdminState>,
    _: Params<NoParams>,
) -> Result<Json<DrainStatus>, Problem> {
    state.lifecycle.release()?;
    Ok(Json(drain_status(&state)))
}

/// Closes random connections with 4009, so that their clients reconnect to other instances.
pub(super) async fn shed(
    State(state): State<AdminState>,
    _: Params<NoParams>,
    Json(body): Json<ShedOrder>,
) -> Result<Json<Shed>, Problem> {
    if body.count == 0 {
        return Err(Cause::InvalidBody.because("`count` must be at least 1"));
    }
    let closed = state.hub.shed(body.count).await;
    tracing::info!(
        asked = body.count,
        closed,
        "connections closed with 4009 so that clients reconnect elsewhere"
    );
    Ok(Json(Shed { closed }))
}

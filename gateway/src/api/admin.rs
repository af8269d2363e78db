//! The admin listener: probes, metrics, and for holders of the token what the operator reads and orders.
//!
//! Never public: probes and metrics need no token. Input: requests of kubelets, Prometheus and the operator. Output: where the
//! process stands; a drain or a shed.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::extract::{Json, NoParams, OptionalJson, Params, authorization};
use super::problem::{Cause, Problem};
use crate::auth::{PublishedKeys, SourceStatus};
use crate::bus::{self, Bus, SubscriberState};
use crate::client::ClientCounts;
use crate::config::SecretFile;
use crate::hub::Hub;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::store::NotificationStore;

/// Longest wait for the database's version: whoever asks for the status wants the rest of it.
const VERSION_LIMIT: Duration = Duration::from_secs(1);
/// Largest body of an admin request.
pub(super) const MAX_BODY_BYTES: usize = 4096;
/// The text format that the metrics are in (OpenMetrics 1.0).
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const CHALLENGE: &str = "Bearer realm=\"signal-admin\"";
const CHALLENGE_INVALID: &str = "Bearer realm=\"signal-admin\", error=\"invalid_token\"";

/// What the admin routes work with; cheap to clone.
#[derive(Clone)]
pub struct AdminState {
    /// Where the process stands.
    pub lifecycle: Arc<Lifecycle>,
    /// Connections of this instance.
    pub hub: Hub,
    /// SubscriberState and lag.
    pub bus: Arc<dyn Bus>,
    /// Knows the schema's version.
    pub notifications: Arc<dyn NotificationStore>,
    /// What `/metrics` prints.
    pub metrics: Arc<Metrics>,
    /// This instance's name.
    pub instance: Arc<str>,
    /// `server.admin_token_file`: read at each request, so a changed token holds from the next one on.
    pub token_file: SecretFile,
    /// What only the app knows.
    pub facts: Arc<dyn Fn() -> Facts + Send + Sync>,
}

/// What `/status` tells that only the app knows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Revision of the static settings, as [`crate::files::revision_of`] writes it.
    pub static_revision: String,
    /// Revision of the live settings that hold.
    pub live_revision: String,
    /// Why a newer live file does not hold.
    pub live_error: Option<String>,
    /// Revision of the catalogs that hold.
    pub catalogs_revision: String,
    /// Each key source with its stage and key ids: [`crate::auth::Authenticator::status`].
    pub key_sources: Vec<SourceStatus>,
    /// What `/.well-known/jwks.json` serves.
    pub jwks_file: Option<JwksFile>,
    /// Whether the pipeline runs, and its partitions; null where there is none.
    pub kafka: serde_json::Value,
}

/// The key set that is served to others.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JwksFile {
    /// Of the file's text, as [`crate::files::revision_of`] writes it.
    pub revision: String,
    /// The `kid` of each key.
    pub keys: Vec<String>,
}

impl JwksFile {
    /// What is told of a key set.
    pub fn of(published: &PublishedKeys) -> Self {
        Self {
            revision: published.revision.clone(),
            keys: published.keys.clone(),
        }
    }
}

/// Lets holders of the token through.
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
            tracing::error!(%error, "server.admin_token_file cannot be read");
            return Err(Cause::AdminDisabled.because("the file with the token cannot be read"));
        }
        Err(_) => return Err(Cause::Internal.because("the file with the token could not be read")),
    };
    match authorization(request.headers())? {
        Some((scheme, given, _)) if scheme.eq_ignore_ascii_case("bearer") => {
            // Hashes have one length, so the comparison tells nothing of the token's.
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

/// The process turns: nothing else is asked, so a dependency's outage restarts nobody.
pub(super) async fn livez() -> Json<serde_json::Value> {
    Json(serde_json::json!({"live": true}))
}

/// `?verbose`, with or without a value.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadyParams {
    verbose: Option<String>,
}

/// One part that is not ready.
#[derive(Debug, Serialize)]
struct Part {
    part: &'static str,
    reason: String,
}

/// Ready when no part says otherwise.
pub(super) async fn readyz(
    State(state): State<AdminState>,
    Params(params): Params<ReadyParams>,
) -> Result<Response, Problem> {
    let parts: Vec<Part> = state
        .lifecycle
        .unready()
        .into_iter()
        .map(|(part, reason)| Part { part, reason })
        .collect();
    let verbose = params.verbose.is_some();
    if parts.is_empty() {
        let body = if verbose {
            serde_json::json!({"ready": true, "parts": []})
        } else {
            serde_json::json!({"ready": true})
        };
        return Ok(Json(body).into_response());
    }
    let names: Vec<&str> = parts.iter().map(|part| part.part).collect();
    let problem = Cause::NotReady.because(format!("not ready: {}", names.join(", ")));
    let told = serde_json::to_value(&parts).expect("names and texts serialize");
    Err(if verbose {
        problem.with("parts", told)
    } else {
        problem
    })
}

/// Everything that is counted.
pub(super) async fn metrics(State(state): State<AdminState>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], state.metrics.render()).into_response()
}

/// Where the process stands.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    instance: Arc<str>,
    version: &'static str,
    ready: bool,
    unready: Vec<Part>,
    connections: ClientCounts,
    bus: BusStatus,
    drain: DrainStatus,
    database: DatabaseStatus,
    #[serde(flatten)]
    facts: Facts,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BusStatus {
    hearing: bool,
    lag_ms: Option<f64>,
    #[serde(flatten)]
    facts: bus::BusStatus,
}

#[derive(Debug, Serialize)]
struct DatabaseStatus {
    /// The schema's version; null while the database does not say.
    version: Option<i64>,
}

impl DatabaseStatus {
    async fn of(state: &AdminState) -> Self {
        let asked = tokio::time::timeout(VERSION_LIMIT, state.notifications.version()).await;
        Self {
            version: asked.ok().and_then(Result::ok).flatten(),
        }
    }
}

/// How far a drain has come.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DrainStatus {
    draining: bool,
    /// Whether it can be taken back: the process stays.
    held: bool,
    /// Connections when it began to close them; 0 until then.
    at_start: usize,
    /// Connections that are still open.
    remaining: usize,
}

impl DrainStatus {
    fn of(state: &AdminState) -> Self {
        let lifecycle = &state.lifecycle;
        Self {
            draining: lifecycle.is_draining(),
            held: lifecycle.is_held(),
            at_start: lifecycle.connections_at_drain(),
            remaining: state.hub.counts().total,
        }
    }
}

/// What the operator reads as an acknowledgement of what it wrote.
pub(super) async fn status(State(state): State<AdminState>, _: Params<NoParams>) -> Json<Status> {
    let database = DatabaseStatus::of(&state).await;
    let unready: Vec<Part> = state
        .lifecycle
        .unready()
        .into_iter()
        .map(|(part, reason)| Part { part, reason })
        .collect();
    Json(Status {
        instance: state.instance.clone(),
        version: env!("CARGO_PKG_VERSION"),
        ready: unready.is_empty(),
        unready,
        connections: state.hub.counts(),
        bus: BusStatus {
            hearing: state.bus.subscriber() == SubscriberState::Live,
            lag_ms: state.bus.lag().map(|lag| lag.as_secs_f64() * 1000.0),
            facts: state.bus.status(),
        },
        drain: DrainStatus::of(&state),
        database,
        facts: (state.facts)(),
    })
}

/// Which drain is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainBody {
    /// The process stays, unready and without connections, until it is taken back or told to end.
    #[serde(default)]
    hold: bool,
}

/// Begins the drain; asking twice changes nothing.
pub(super) async fn drain(
    State(state): State<AdminState>,
    _: Params<NoParams>,
    OptionalJson(body): OptionalJson<DrainBody>,
) -> Result<Response, Problem> {
    tracing::info!(
        held = body.hold,
        "a drain was asked for over the admin listener"
    );
    if body.hold {
        state.lifecycle.request_hold()?;
    } else {
        state.lifecycle.request_drain();
    }
    Ok((StatusCode::ACCEPTED, Json(DrainStatus::of(&state))).into_response())
}

/// Takes a held drain back; without a drain nothing changes.
pub(super) async fn undrain(
    State(state): State<AdminState>,
    _: Params<NoParams>,
) -> Result<Json<DrainStatus>, Problem> {
    state.lifecycle.release()?;
    Ok(Json(DrainStatus::of(&state)))
}

/// How many connections are asked to go elsewhere.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShedBody {
    count: usize,
}

/// Closes random connections with 4009, so that they spread over the other instances.
pub(super) async fn shed(
    State(state): State<AdminState>,
    _: Params<NoParams>,
    Json(body): Json<ShedBody>,
) -> Result<Json<serde_json::Value>, Problem> {
    if body.count == 0 {
        return Err(Cause::InvalidBody.because("`count` must be at least 1"));
    }
    let closed = state.hub.shed(body.count).await;
    tracing::info!(asked = body.count, closed, "connections shed");
    Ok(Json(serde_json::json!({"closed": closed})))
}

//! The playground: a page at `/` with the inboxes of two people, a form that produces an activity, and buttons that break things.
//!
//! Input: requests of that page on the public listener. Output: the embedded page (sources in `clients/playground`), tokens of the two people, previews and records.
//! Nothing of this exists outside of dev mode.
//!
//! A page of another site may reach this port through the same browser, so every request is checked ([`guard`]): its host is a name of this machine, which a
//! rebound name of another site is not; a request that does something comes from the playground's own origin, and carries the key that only the terminal
//! printed. The key stands in the fragment of the printed address, which browsers send to nobody.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::TimeDelta;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::issuer::{Issuer, TOKEN_HOURS};
use super::{USERS, produce};
use crate::activity::Catalogs;
use crate::activity::decode::{Audience, Record, decode};
use crate::clock::{Clock as _, SystemClock};
use crate::lifecycle::Lifecycle;
use crate::peer;

/// The header with the key.
const KEY: &str = "x-playground-key";
/// What the page may load: its own files, texts and connections. It has no inline scripts or styles, and makes no HTML of text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
/// Longest drain that the page may ask for.
const MAX_DRAIN_SECS: u64 = 30;

/// What the page's requests need.
pub(super) struct Playground {
    pub(super) issuer: Arc<Issuer>,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) catalogs: Catalogs,
    /// `host:port` of the embedded broker.
    pub(super) broker: String,
    /// The topic that is consumed.
    pub(super) topic: String,
    pub(super) key: String,
    pub(super) producer: OnceLock<FutureProducer>,
}

/// Returns the routes of the page.
pub(super) fn router(playground: Playground) -> Router {
    let state = Arc::new(playground);
    let page = |media_type, content| get(move || async move { file(media_type, content) });
    Router::new()
        .route(
            "/",
            page(
                "text/html; charset=utf-8",
                include_str!("playground/page/index.html"),
            ),
        )
        .route(
            "/playground.js",
            page(
                "text/javascript; charset=utf-8",
                include_str!("playground/page/playground.js"),
            ),
        )
        .route(
            "/playground.css",
            page(
                "text/css; charset=utf-8",
                include_str!("playground/page/playground.css"),
            ),
        )
        .route("/playground/facts", post(facts))
        .route("/playground/token", post(token))
        .route("/playground/preview", post(preview))
        .route("/playground/produce", post(produce_record))
        .route("/playground/drain", post(drain))
        .route_layer(from_fn_with_state(Arc::clone(&state), guard))
        .with_state(state)
}

fn file(media_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    (headers, content).into_response()
}

/// An answer that says why there is nothing better.
type Refused = (StatusCode, String);

async fn guard(
    State(playground): State<Arc<Playground>>,
    request: Request,
    next: Next,
) -> Result<Response, Refused> {
    check(request.method(), request.headers(), &playground.key)
        .map_err(|why| (StatusCode::FORBIDDEN, format!("{why}\n")))?;
    Ok(next.run(request).await)
}

/// Says why a request is none of the playground's own.
fn check(method: &Method, headers: &HeaderMap, key: &str) -> Result<(), &'static str> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST)
        .filter(|host| peer::names_own_machine(host))
        .ok_or(
            "The playground is for this machine: open it as http://127.0.0.1 or http://localhost.",
        )?;
    if method == Method::GET || method == Method::HEAD {
        return Ok(());
    }
    if !text(header::ORIGIN).is_some_and(|origin| peer::is_own_page(origin, host)) {
        return Err("This is for the playground's own page.");
    }
    let given = text(HeaderName::from_static(KEY)).unwrap_or_default();
    // Hashes have one length, so the comparison does not reveal the key's.
    let is_same: bool = Sha256::digest(given.as_bytes())
        .ct_eq(&Sha256::digest(key.as_bytes()))
        .into();
    if is_same {
        Ok(())
    } else {
        Err(
            "The key is missing or another one: open the address that the terminal printed, with all that follows #.",
        )
    }
}

/// What the page shows of this dev mode.
async fn facts(State(playground): State<Arc<Playground>>) -> Json<Value> {
    let Playground { broker, topic, .. } = &*playground;
    Json(
        json!({"users": USERS, "topic": topic, "kafka": broker, "version": env!("CARGO_PKG_VERSION")}),
    )
}

#[derive(Deserialize)]
struct TokenRequest {
    user: String,
    seconds: Option<i64>,
}

/// Makes a token of one of the two people, as the backend of a page would for whoever signed in.
async fn token(
    State(playground): State<Arc<Playground>>,
    Json(asked): Json<TokenRequest>,
) -> Result<Json<Value>, Refused> {
    let user = USERS
        .iter()
        .find(|user| **user == asked.user)
        .ok_or_else(|| (StatusCode::NOT_FOUND, "no such person".to_owned()))?;
    let longest = TOKEN_HOURS * 3600;
    let life = TimeDelta::seconds(asked.seconds.unwrap_or(longest).clamp(1, longest));
    let token = playground.issuer.token(user, SystemClock.now(), life);
    Ok(Json(json!({"token": token.map_err(failed)?})))
}

fn failed(error: impl Into<anyhow::Error>) -> Refused {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{:#}", error.into()),
    )
}

#[derive(Deserialize)]
struct PreviewRequest {
    value: String,
}

/// What becomes of a record, before it is produced.
#[derive(Serialize)]
struct Preview {
    audience: String,
    title: String,
    content: String,
    locale: String,
    /// Members that are invalid and will be passed over.
    dropped: Vec<&'static str>,
}

/// Reads a record and makes its text, exactly as the pipeline will.
async fn preview(
    State(playground): State<Arc<Playground>>,
    Json(asked): Json<PreviewRequest>,
) -> Result<Json<Preview>, Refused> {
    let record = Record {
        topic: playground.topic.as_str().into(),
        partition: 0,
        offset: 0,
        timestamp: Some(SystemClock.now().timestamp_millis()),
        key: None,
        value: Some(asked.value.into_bytes()),
        headers: Vec::new(),
    };
    let made = decode(&record).and_then(|activity| {
        let text = playground.catalogs.render(&activity)?;
        Ok(Preview {
            audience: describe(&activity.audience),
            title: text.title,
            content: text.content,
            locale: text.locale,
            dropped: activity.dropped.members,
        })
    });
    made.map(Json)
        .map_err(|poison| (StatusCode::UNPROCESSABLE_ENTITY, poison.to_string()))
}

fn describe(audience: &Audience) -> String {
    match audience {
        Audience::Organizer(id) => format!("everyone in organizer {id}"),
        Audience::Merchant(id) => format!("everyone in merchant {id}"),
        Audience::Users(ids) if ids.len() == 1 => format!("user {}", ids.join(", ")),
        Audience::Users(ids) => format!("users {}", ids.join(", ")),
        Audience::Actor => "who caused it".to_owned(),
    }
}

#[derive(Deserialize)]
struct ProduceRequest {
    key: String,
    value: String,
}

/// Produces a record to the embedded broker. It is not checked; the pipeline does that.
async fn produce_record(
    State(playground): State<Arc<Playground>>,
    Json(asked): Json<ProduceRequest>,
) -> Result<Json<Value>, Refused> {
    let producer = match playground.producer.get() {
        Some(producer) => producer,
        None => {
            let made = produce::producer(&playground.broker).map_err(failed)?;
            playground.producer.get_or_init(|| made)
        }
    };
    let record = FutureRecord::to(&playground.topic)
        .key(&asked.key)
        .payload(&asked.value);
    let sent = producer.send(record, produce::TIMEOUT).await;
    let sent = sent.map_err(|(error, _)| failed(error))?;
    Ok(Json(
        json!({"topic": playground.topic, "partition": sent.partition, "offset": sent.offset}),
    ))
}

#[derive(Deserialize)]
struct DrainRequest {
    seconds: u64,
}

/// Drains as before an upgrade, and takes it back by itself: the page could not ask for that if it were closed meanwhile.
async fn drain(
    State(playground): State<Arc<Playground>>,
    Json(asked): Json<DrainRequest>,
) -> Result<Json<Value>, Refused> {
    playground
        .lifecycle
        .request_hold(None, None)
        .map_err(failed)?;
    let lifecycle = Arc::clone(&playground.lifecycle);
    let time = Duration::from_secs(asked.seconds.clamp(1, MAX_DRAIN_SECS));
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        // A process that is about to end stays drained.
        let _ = lifecycle.release();
    });
    Ok(Json(json!({"seconds": time.as_secs()})))
}

#[cfg(test)]
mod tests;

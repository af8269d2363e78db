//! REST and the admin listener: the route tables, and the layers that every request passes.
//!
//! Input: requests of the public listener (all but `/stream`) and of the admin listener. Flow: `observe` (request id, metrics, panics)
//! -> `cors` -> `carried_out` -> route -> `extract` (caller, permission, checked input) -> handler -> [`crate::store`] / [`crate::delivery`] -> response or
//! `problem`.

mod admin;
mod asyncapi;
mod carried_out;
mod clients;
mod cors;
mod documents;
mod extract;
mod jwks;
mod messages;
mod notifications;
mod observe;
mod openapi;
mod problem;
mod revocations;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post};
use tokio::sync::watch;

use crate::auth::{Access, Authenticator, Basic, PublishedKeys, Revocations};
use crate::bus::{Announcer, Bus};
use crate::clock::Clock;
use crate::config::Live;
use crate::delivery::Delivery;
use crate::hub::Hub;
use crate::inbox::Inbox;
use crate::leftovers::Leftovers;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::store::{NotificationStore, RevocationStore};

pub use admin::AdminState;

/// Tag of the routes about live connections.
const CLIENTS: &str = "clients";
/// Tag of the routes that send.
const MESSAGES: &str = "messages";
/// Tag of the documents.
const DOCUMENTS: &str = "documents";
/// Tag of the key set.
const KEYS: &str = "keys";
/// Tag of the inbox.
const NOTIFICATIONS: &str = "notifications";
/// Target of the log lines that say who did what to whom: the only ones above `debug` that name people. `signal_gateway::audit=off` in the log
/// filter switches them off.
const AUDIT: &str = "signal_gateway::audit";

/// What the public routes need; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// Verifies Bearer tokens.
    pub authenticator: Authenticator,
    /// Verifies Basic users.
    pub basic: Basic,
    /// Decides what a caller may do.
    pub access: Access,
    /// Reads inboxes.
    pub notifications: Arc<dyn NotificationStore>,
    /// Changes inboxes, and pushes what changed.
    pub inbox: Inbox,
    /// Sends every message.
    pub delivery: Delivery,
    /// Connections of this instance.
    pub hub: Hub,
    /// The other instances.
    pub bus: Arc<dyn Bus>,
    /// Tells the other instances of revocations.
    pub announcer: Arc<Announcer>,
    /// Keeps revocations.
    pub revocation_store: Arc<dyn RevocationStore>,
    /// The revocations that this instance knows.
    pub revocations: Arc<Revocations>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Origins and trusted proxies.
    pub live: watch::Receiver<Arc<Live>>,
    /// The key set of `/.well-known/jwks.json`.
    pub published: watch::Receiver<Option<Arc<PublishedKeys>>>,
    /// Counts requests.
    pub metrics: Arc<Metrics>,
    /// While it drains, answers ask callers to close their connection.
    pub lifecycle: Arc<Lifecycle>,
    /// This instance's name in lists.
    pub instance: Arc<str>,
    /// Changes whose callers are gone.
    pub leftovers: Leftovers,
    /// Largest body in bytes.
    pub max_body_bytes: usize,
    /// The longest life of a token; a revocation is kept that long.
    pub token_life: Duration,
}

/// The public routes; a test compares them with the documents.
fn routes() -> Vec<(&'static str, MethodRouter<ApiState>)> {
    vec![
        ("/socket/websocket/clients", get(clients::list)),
        (
            "/socket/websocket/clients/{id}",
            get(clients::describe).delete(clients::disconnect),
        ),
        (
            "/socket/websocket/clients/{id}/rooms",
            post(clients::join).delete(clients::leave),
        ),
        (
            "/socket/websocket/clients/{id}/messages",
            post(messages::to_client),
        ),
        (
            "/socket/websocket/users/{id}/clients",
            delete(clients::disconnect_user),
        ),
        (
            "/socket/websocket/users/{id}/messages",
            post(messages::to_user),
        ),
        (
            "/socket/websocket/rooms/{room}/messages",
            post(messages::to_room),
        ),
        ("/socket/websocket/broadcast", post(messages::broadcast)),
        ("/socket/websocket/revocations", post(revocations::revoke)),
        ("/notifications", get(notifications::list)),
        (
            "/notifications/unread-count",
            get(notifications::unread_count),
        ),
        ("/notifications/read", post(notifications::mark_read)),
        (
            "/notifications/{id}",
            get(notifications::get)
                .patch(notifications::patch)
                .delete(notifications::delete),
        ),
        ("/.well-known/jwks.json", get(jwks::published)),
        ("/openapi.json", get(documents::openapi)),
        ("/asyncapi.json", get(documents::asyncapi)),
        ("/docs", get(documents::page)),
        ("/docs/page.js", get(documents::script)),
        ("/docs/page.css", get(documents::style)),
    ]
}

/// The REST routes of the public listener. The accept path puts a [`PeerAddress`](crate::peer::PeerAddress) into the extensions of each request.
pub fn router(state: ApiState) -> Router {
    let observer = observe::Observer {
        metrics: state.metrics.clone(),
        lifecycle: state.lifecycle.clone(),
    };
    let limit = DefaultBodyLimit::max(state.max_body_bytes);
    let router = routes()
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| {
            router.route(path, methods)
        });
    finish(router, limit)
        .layer(from_fn_with_state(
            state.leftovers.clone(),
            carried_out::carried_out,
        ))
        .layer(from_fn_with_state(state.clone(), cors::cors))
        .layer(from_fn_with_state(observer, observe::observe))
        .with_state(state)
}

/// The routes of the admin listener: probes and metrics for everyone who reaches it, the others for holders of the token.
pub fn admin_router(state: AdminState) -> Router {
    let observer = observe::Observer {
        metrics: state.metrics.clone(),
        lifecycle: state.lifecycle.clone(),
    };
    let guarded = from_fn_with_state(state.clone(), admin::guard);
    let router = Router::new()
        .route("/livez", get(admin::livez))
        .route("/readyz", get(admin::readyz))
        .route("/metrics", get(admin::metrics))
        .route("/status", get(admin::status).layer(guarded.clone()))
        .route(
            "/drain",
            post(admin::drain)
                .delete(admin::undrain)
                .layer(guarded.clone()),
        )
        .route("/shed", post(admin::shed).layer(guarded));
    finish(router, DefaultBodyLimit::max(admin::MAX_BODY_BYTES))
        .layer(from_fn_with_state(observer, observe::observe))
        .with_state(state)
}

/// Adds what both routers share: the answers of unknown routes and methods, and the bound of bodies.
fn finish<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    limit: DefaultBodyLimit,
) -> Router<S> {
    router
        .fallback(observe::no_route)
        .method_not_allowed_fallback(observe::no_method)
        .layer(limit)
}

#[cfg(test)]
mod tests;

//! The admin listener. It is open from the start, so that probes get an answer while parts are still starting.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::metrics::Metrics;
use crate::peer::{Network, PeerAddress};
use crate::places::{Bounds, Places};
use crate::requests::{self, Timers};

/// Connections of the admin listener at the same time. A newcomer always gets a place, because it may be the probe that decides on a restart: the oldest
/// idle connection goes for it, else the oldest unfinished request, else the oldest answer, each of the network that holds most.
const PLACES: Bounds = Bounds {
    total: 256,
    per_network: 256,
    evicts_serving: true,
};
/// A scraper comes back within a minute or two; a kubelet opens a new connection for each probe.
const TIMERS: Timers = Timers {
    head: Duration::from_secs(10),
    idle: Duration::from_secs(120),
};
/// How long the accept loop waits after a failure.
const ACCEPT_REST: Duration = Duration::from_millis(250);

/// Returns the routes of a process whose parts are still starting.
pub(super) fn starting(metrics: &Arc<Metrics>) -> Router {
    let metrics = Arc::clone(metrics);
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async || (StatusCode::SERVICE_UNAVAILABLE, "starting\n")),
        )
        .route("/metrics", get(async move || metrics.render()))
}

/// Serves the router that is set at each request, until `stop`.
pub(super) async fn serve_admin(
    socket: TcpListener,
    router: Arc<ArcSwap<Router>>,
    stop: CancellationToken,
) {
    let places = Arc::new(Places::default());
    loop {
        let (stream, peer) = tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the admin listener; trying again");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            },
            () = stop.cancelled() => return,
        };
        let peer = peer.ip().to_canonical();
        let Ok(place) = places.claim(Network::of(peer), false, PLACES) else {
            continue;
        };
        let (router, stop) = (Arc::clone(&router), stop.clone());
        tokio::spawn(async move {
            let service = |request: axum::http::Request<hyper::body::Incoming>| {
                let mut request = request.map(axum::body::Body::new);
                request.extensions_mut().insert(PeerAddress(peer));
                let router = Router::clone(&router.load());
                async move {
                    let answer = router.oneshot(request).await;
                    answer.unwrap_or_else(|never| match never {})
                }
            };
            let mut http = hyper::server::conn::http1::Builder::new();
            // The times are those of `requests`.
            http.header_read_timeout(None);
            requests::serve(&http, TIMERS, stream, place, &stop, service).await;
        });
    }
}

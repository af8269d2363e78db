//! The admin listener. It is open from the start, so that probes get an answer while parts are still starting.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::metrics::Metrics;
use crate::peer::PeerAddress;

/// Connections of the admin listener at the same time.
const ADMIN_CONNECTIONS: usize = 256;
/// Longest life of a connection to the admin listener ...
const ADMIN_LIFE: Duration = Duration::from_secs(120);
/// ... and how long its end may take.
const ADMIN_CLOSE: Duration = Duration::from_secs(5);
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
    let permits = Arc::new(tokio::sync::Semaphore::new(ADMIN_CONNECTIONS));
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
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            continue;
        };
        let router = Arc::clone(&router);
        tokio::spawn(async move {
            let service = service_fn(move |request: axum::http::Request<hyper::body::Incoming>| {
                let router = Router::clone(&router.load());
                async move {
                    let mut request = request.map(axum::body::Body::new);
                    request.extensions_mut().insert(PeerAddress(peer.ip()));
                    Ok::<_, Infallible>(
                        router
                            .oneshot(request)
                            .await
                            .unwrap_or_else(|never| match never {}),
                    )
                }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10));
            // A client that reads slowly or not at all must not block probes.
            let connection = server.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            if tokio::time::timeout(ADMIN_LIFE, connection.as_mut())
                .await
                .is_err()
            {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(ADMIN_CLOSE, connection).await;
            }
            drop(permit);
        });
    }
}

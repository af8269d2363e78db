//! The public listener: one loop accepts, hyper reads the request, `/stream` becomes a WebSocket and leaves for a shard, all else goes to REST.
//!
//! hyper bounds what comes before the upgrade: the time for a request head, its size and its number of fields. A handshake's state is gone once the
//! socket is with its shard.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::header::HOST;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::upgrade::{self, Refusal};
use crate::config::{Live, Server};
use crate::http::{PeerAddress, client_address};
use crate::hub::{Adopted, Hub};
use crate::id::IdGenerator;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;

/// Most TCP connections that are not WebSockets, or not yet; more wait in the kernel's queue ...
const MAX_HTTP_CONNECTIONS: usize = 4096;
/// ... and most of them from one address, unless it is a trusted proxy's.
const MAX_HTTP_PER_ADDRESS: usize = 1024;
/// How long such a connection may live before it is asked to close, and how long that may take.
const HTTP_LIFE: Duration = Duration::from_secs(300);
const HTTP_CLOSE: Duration = Duration::from_secs(30);
/// How long written bytes may stay unacknowledged, or the peer's window shut, before the kernel gives a connection up (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an accept loop rests after the process ran out of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// What the public listener needs.
pub struct Listener {
    /// Bounds of requests.
    pub server: Server,
    /// Where WebSockets go.
    pub hub: Hub,
    /// All that is not `/stream`.
    pub rest: Router,
    /// Client ids.
    pub ids: IdGenerator,
    /// Origins, limits and trusted proxies.
    pub live: watch::Receiver<Arc<Live>>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// While a held drain closes connections, or has closed them, no new WebSocket is taken.
    pub lifecycle: Arc<Lifecycle>,
    /// Set while no new WebSocket is taken: the worker lease has lapsed.
    pub closed: Arc<AtomicBool>,
}

struct Door {
    listener: Listener,
    bucket: Mutex<(f64, Instant)>,
    permits: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    shutdown: CancellationToken,
}

/// One connection of an address, until it is dropped.
struct Counted {
    door: Arc<Door>,
    address: IpAddr,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.door.by_address.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Accepts until `shutdown`.
pub async fn serve(listener: Listener, socket: TcpListener, shutdown: CancellationToken) {
    let burst = f64::from(listener.live.borrow().limits.accept_burst);
    let door = Arc::new(Door {
        listener,
        bucket: Mutex::new((burst, Instant::now())),
        permits: Arc::new(Semaphore::new(MAX_HTTP_CONNECTIONS)),
        by_address: Mutex::default(),
        shutdown: shutdown.clone(),
    });
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&door.permits).acquire_owned() => permit.expect("the semaphore is never closed"),
            () = shutdown.cancelled() => return,
        };
        let (stream, peer) = tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return,
        };
        // One address cannot take every place; what it has too many of is closed at once.
        let Some(counted) = count(&door, peer.ip()) else { continue };
        let door = Arc::clone(&door);
        tokio::spawn(async move {
            door.converse(stream, peer).await;
            drop((permit, counted));
        });
    }
}

fn count(door: &Arc<Door>, address: IpAddr) -> Option<Counted> {
    let is_proxy = door.listener.live.borrow().trusted_proxies.iter().any(|net| net.contains(&address));
    let mut counts = door.by_address.lock();
    let count = counts.entry(address).or_default();
    if *count >= MAX_HTTP_PER_ADDRESS && !is_proxy {
        return None;
    }
    *count += 1;
    Some(Counted { door: Arc::clone(door), address })
}

impl Door {
    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT));
        let server = &self.listener.server;
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(server.header_read_timeout_secs))
            .max_headers(server.max_headers)
            .max_buf_size(server.max_header_bytes);
        let door = Arc::clone(&self);
        let service = service_fn(move |request| Arc::clone(&door).answer(request, peer));
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => Ok(result),
            () = async { tokio::select! { () = self.shutdown.cancelled() => {}, () = tokio::time::sleep(HTTP_LIFE) => {} } } => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(HTTP_CLOSE, connection).await
            }
        };
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection ended early"),
            Err(_) => tracing::debug!("a connection did not end in time"),
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Result<Response<Body>, Infallible> {
        // RFC 9112 section 3.2: a request of HTTP/1.1 without exactly one Host is bad.
        if request.version() >= Version::HTTP_11 && request.headers().get_all(HOST).iter().count() != 1 {
            return Ok(bad_host());
        }
        if request.uri().path() == "/stream" && request.method() != http::Method::OPTIONS {
            return Ok(self.upgrade(request, peer).map(Body::from));
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(PeerAddress(peer.ip()));
        Ok(self.listener.rest.clone().oneshot(request).await.unwrap_or_else(|never| match never {}))
    }

    fn upgrade(self: Arc<Self>, mut request: Request<Incoming>, peer: SocketAddr) -> Response<String> {
        let live = Arc::clone(&self.listener.live.borrow());
        let checked = upgrade::accept(&request, &live.allowed_origins).and_then(|response| self.admit(&live).map(|()| response));
        let response = match checked {
            Ok(response) => response,
            Err(refusal) => {
                self.listener.metrics.refused.get_or_create(&Metrics::kind(refusal.label())).inc();
                return refusal.response();
            }
        };
        let id = match self.listener.ids.next() {
            Ok(id) => id,
            Err(error) => {
                tracing::error!(%error, "no id can be made");
                return Refusal::Closed.response();
            }
        };
        let from = client_address(peer.ip(), request.headers(), &live.trusted_proxies);
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => upgraded,
                Err(error) => return tracing::debug!(%error, "the upgrade was not completed"),
            };
            let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
            match parts.io.into_inner().into_std() {
                Ok(stream) => self.listener.hub.adopt(Adopted { stream, read: parts.read_buf, peer: from, id }),
                Err(error) => tracing::warn!(%error, "a socket could not be handed over"),
            }
        });
        response
    }

    /// Counts this connection against the limits of the instance.
    fn admit(&self, live: &Live) -> Result<(), Refusal> {
        let listener = &self.listener;
        if self.shutdown.is_cancelled() || listener.lifecycle.refuses_connections() || listener.closed.load(Ordering::Acquire) {
            return Err(Refusal::Closed);
        }
        let limits = &live.limits;
        if self.listener.hub.counts().total >= limits.max_connections || self.listener.hub.outbox_bytes() >= limits.total_outbox_bytes {
            return Err(Refusal::Full);
        }
        let mut bucket = self.bucket.lock();
        let now = Instant::now();
        let earned = now.duration_since(bucket.1).as_secs_f64() * f64::from(limits.accepts_per_second);
        let held = (bucket.0 + earned).min(f64::from(limits.accept_burst.max(1)));
        let enough = held >= 1.0;
        *bucket = (if enough { held - 1.0 } else { held }, now);
        if enough { Ok(()) } else { Err(Refusal::Rate) }
    }
}

fn bad_host() -> Response<Body> {
    let mut response = Response::new(Body::from(
        r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"The request must have exactly one Host.","code":"bad_host"}"#,
    ));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/problem+json"));
    response
}

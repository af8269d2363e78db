//! The public listener: one loop accepts sockets and places each on a shard, where [`super::opening`] makes a connection of it. hyper serves here what
//! is not plainly a successful opening handshake: REST, refusals, and a stream path on a connection that made other requests before.
//!
//! Both sides have the same bounds before the upgrade: the time for a request head, its size and its number of fields.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::Context;
use super::head::Bounds;
use super::opening::{self, Opening};
use super::rewound::Rewound;
use super::upgrade::{self, Offer, Refusal};
use crate::config::{Limits, Live, Server};
use crate::hub::Hub;
use crate::id::IdGenerator;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::peer::{PeerAddress, client_address};
use crate::problem;
use crate::rate::{Rate, TokenBucket};

/// Most TCP connections that are not WebSockets, or not yet. More wait in the queue of the kernel.
const MAX_HTTP_CONNECTIONS: usize = 4096;
/// Most of them from one address, unless it is a trusted proxy.
const MAX_HTTP_PER_ADDRESS: usize = 1024;
/// How long such a connection may live before it is asked to close.
const HTTP_LIFE: Duration = Duration::from_secs(300);
/// How long that close may take.
const HTTP_CLOSE: Duration = Duration::from_secs(30);
/// How long written bytes may stay unacknowledged, or the window of the peer closed, before the kernel ends a connection (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the accept loop pauses after an error, such as no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the public listener needs.
pub struct Listener {
    /// Bounds of requests.
    pub server: Server,
    /// Gets the sockets.
    pub hub: Hub,
    /// What connections need.
    pub context: Arc<Context>,
    /// Serves every request of another path than those of streams.
    pub rest: Router,
    /// Makes client ids.
    pub ids: IdGenerator,
    /// A drain refuses new WebSockets.
    pub lifecycle: Arc<Lifecycle>,
    /// Whether new WebSockets are refused because the worker lease has lapsed.
    pub closed: Arc<AtomicBool>,
}

/// The running listener.
pub(super) struct Acceptor {
    pub(super) listener: Listener,
    pub(super) bounds: Bounds,
    pub(super) shutdown: CancellationToken,
    accepts: Mutex<TokenBucket>,
    permits: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// Permits one socket that is not a WebSocket, until it is dropped.
pub(super) struct HttpPermit {
    _permit: OwnedSemaphorePermit,
    _address: AddressPermit,
}

/// Counts one such socket of an address, until it is dropped.
struct AddressPermit {
    acceptor: Arc<Acceptor>,
    address: IpAddr,
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut counts = self.acceptor.by_address.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Accepts until `shutdown`.
pub async fn serve(
    listener: Listener,
    socket: tokio::net::TcpListener,
    shutdown: CancellationToken,
) {
    let rate = accept_rate(&listener.context.live.borrow().limits);
    let bounds = Bounds {
        bytes: listener.server.max_header_bytes,
        fields: listener.server.max_headers,
    };
    let permits = Arc::new(Semaphore::new(MAX_HTTP_CONNECTIONS));
    let acceptor = Arc::new(Acceptor {
        listener,
        bounds,
        shutdown: shutdown.clone(),
        accepts: Mutex::new(TokenBucket::full(rate, Instant::now())),
        permits,
        by_address: Mutex::default(),
    });
    let socket = match listening(socket) {
        Ok(socket) => socket,
        Err(error) => {
            return tracing::error!(%error, "public listener failed; no connections are accepted");
        }
    };
    let stopped = shutdown.cancelled();
    tokio::pin!(stopped);
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&acceptor.permits).acquire_owned() => permit.expect("the semaphore is never closed"),
            () = &mut stopped => return,
        };
        let (stream, peer) = tokio::select! {
            accepted = accept(&socket) => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed; trying again after a pause");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = &mut stopped => return,
        };
        let peer = peer.ip();
        // One address cannot take every permit: its surplus sockets are closed at once.
        let Some(address_permit) = count(&acceptor, peer) else {
            continue;
        };
        let permit = HttpPermit {
            _permit: permit,
            _address: address_permit,
        };
        let of_socket = Arc::clone(&acceptor);
        acceptor.listener.hub.place(move |shard, claim| {
            Opening::begin(of_socket, shard, claim, stream, peer, permit)
        });
    }
}

/// Prepares the listening socket, whose options each accepted socket inherits. Accepted sockets are not registered with this runtime.
fn listening(socket: tokio::net::TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    let socket = socket.into_std()?;
    let options = SockRef::from(&socket);
    options.set_tcp_nodelay(true)?;
    options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    #[expect(
        unsafe_code,
        reason = "the caller must guarantee that the descriptor stays the same"
    )]
    // SAFETY: a listening socket owns its descriptor, which is open and the same until it is dropped.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
    Ok(socket)
}

async fn accept(socket: &AsyncFd<TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        if let Ok(accepted) = socket
            .readable()
            .await?
            .try_io(|socket| socket.get_ref().accept())
        {
            let (stream, peer) = accepted?;
            stream.set_nonblocking(true)?;
            return Ok((stream, peer));
        }
    }
}

fn count(acceptor: &Arc<Acceptor>, address: IpAddr) -> Option<AddressPermit> {
    let is_proxy = acceptor
        .listener
        .context
        .live
        .borrow()
        .trusted_proxies
        .iter()
        .any(|net| net.contains(&address));
    let mut counts = acceptor.by_address.lock();
    let count = counts.entry(address).or_default();
    if *count >= MAX_HTTP_PER_ADDRESS && !is_proxy {
        return None;
    }
    *count += 1;
    Some(AddressPermit {
        acceptor: Arc::clone(acceptor),
        address,
    })
}

impl Acceptor {
    /// Serves a socket with hyper, which reads `seen` first.
    pub(super) async fn serve_http(
        self: Arc<Self>,
        stream: TcpStream,
        seen: Bytes,
        peer: IpAddr,
        permit: HttpPermit,
    ) {
        let stream = match tokio::net::TcpStream::from_std(stream) {
            Ok(stream) => Rewound::new(seen, stream),
            Err(error) => return tracing::warn!(%error, "socket could not be registered; closed"),
        };
        let server = &self.listener.server;
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(server.header_read_timeout_secs))
            .max_headers(server.max_headers)
            .max_buf_size(server.max_header_bytes);
        let acceptor = Arc::clone(&self);
        let service = service_fn(move |request| Arc::clone(&acceptor).answer(request, peer));
        let connection = http
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
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
            Ok(Err(error)) => tracing::debug!(%error, "HTTP connection ended early"),
            Err(_) => tracing::debug!("HTTP connection did not end in time; closed"),
        }
        drop(permit);
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: IpAddr,
    ) -> Result<Response<Body>, Infallible> {
        // RFC 9112 section 3.2: a request of HTTP/1.1 without exactly one Host is bad.
        if request.version() >= Version::HTTP_11
            && request.headers().get_all(HOST).iter().count() != 1
        {
            return Ok(bad_host());
        }
        let path = request.uri().path();
        let is_stream = self
            .listener
            .server
            .stream_paths
            .iter()
            .any(|stream| stream == path);
        if is_stream && request.method() != http::Method::OPTIONS {
            return Ok(self.upgrade(request, peer).map(Body::from));
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(PeerAddress(peer));
        Ok(self
            .listener
            .rest
            .clone()
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {}))
    }

    fn upgrade(self: Arc<Self>, mut request: Request<Incoming>, peer: IpAddr) -> Response<String> {
        let live = Arc::clone(&self.listener.context.live.borrow());
        let subprotocols = &self.listener.server.subprotocols;
        let checked = upgrade::accept(&Offer::of(&request), &live.allowed_origins, subprotocols)
            .and_then(|accept| self.admit(&live).map(|()| upgrade::response(&accept)));
        let response = match checked {
            Ok(response) => response,
            Err(refusal) => {
                self.listener
                    .context
                    .metrics
                    .refused
                    .get_or_create(&Metrics::kind(refusal.label()))
                    .inc();
                return refusal.response();
            }
        };
        let id = match self.listener.ids.next() {
            Ok(id) => id,
            Err(error) => {
                tracing::error!(%error, "no client id: clock or worker lease failed; connection refused");
                return Refusal::Closed.response();
            }
        };
        let from = client_address(peer, request.headers(), &live.trusted_proxies);
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => upgraded,
                Err(error) => return tracing::debug!(%error, "upgrade was not completed"),
            };
            let Ok(parts) = upgraded.downcast::<TokioIo<Rewound>>() else {
                return;
            };
            let (unread, stream) = parts.io.into_inner().into_parts();
            let read = [parts.read_buf, unread].concat();
            match stream.into_std() {
                Ok(stream) => {
                    let acceptor = Arc::clone(&self);
                    self.listener.hub.place(move |shard, _claim| {
                        opening::adopt(&acceptor, shard, stream, from, id, &read)
                    });
                }
                Err(error) => tracing::warn!(%error, "socket could not leave its runtime; closed"),
            }
        });
        response
    }

    /// Counts this connection against the limits of the instance.
    pub(super) fn admit(&self, live: &Live) -> Result<(), Refusal> {
        let listener = &self.listener;
        if self.shutdown.is_cancelled()
            || listener.lifecycle.refuses_connections()
            || listener.closed.load(Ordering::Acquire)
        {
            return Err(Refusal::Closed);
        }
        let limits = &live.limits;
        if self.listener.hub.counts().total >= limits.connections_per_pod
            || self.listener.hub.outbox_bytes() >= limits.send_queue.total_bytes
        {
            return Err(Refusal::Full);
        }
        let mut accepts = self.accepts.lock();
        if accepts.try_take(accept_rate(limits), Instant::now()) {
            Ok(())
        } else {
            Err(Refusal::Rate)
        }
    }
}

fn accept_rate(limits: &Limits) -> Rate {
    Rate {
        per_second: f64::from(limits.accepts_per_second),
        burst: limits.accept_burst,
    }
}

fn bad_host() -> Response<Body> {
    problem::plain(
        StatusCode::BAD_REQUEST,
        "bad_host",
        "The request must have exactly one Host.",
    )
    .map(Body::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_accepted_socket_inherits_its_options_and_does_not_block() {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let socket = listening(socket).unwrap();
        let (client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(address), accept(&socket));
        let (stream, peer) = accepted.unwrap();
        assert_eq!(peer, client.unwrap().local_addr().unwrap());
        let options = SockRef::from(&stream);
        assert!(options.tcp_nodelay().unwrap() && options.nonblocking().unwrap());
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
    }
}

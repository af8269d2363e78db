//! The public listener: one loop accepts sockets and places each on a shard, where [`super::opening`] makes a connection of it. hyper serves here what
//! is not plainly a successful opening handshake: REST, refusals, and a stream path on a connection that made other requests before.
//!
//! Both sides have the same bounds before the upgrade: the time for a request head, its size and its number of fields.

use std::future::poll_fn;
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
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::Context;
use super::admission::{Admission, Admitted, Queued};
use super::head::Bounds;
use super::opening::{self, Opening};
use super::rewound::Rewound;
use super::upgrade::{self, Offer, Refusal};
use crate::config::{Limits, Live, Server};
use crate::hub::Hub;
use crate::id::IdGenerator;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::peer::{Network, PeerAddress, client_address, is_in};
use crate::places::{self, ClaimedPlace, NoPlace, Places};
use crate::problem;
use crate::requests::{self, Timers, Watched};
use crate::stream::Detached;
use crate::tls::Tls;

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
    /// Certificates, if the listener speaks TLS.
    pub tls: Option<Arc<Tls>>,
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
    admission: Arc<Admission>,
    pub(super) places: Arc<Places>,
}

/// Accepts until `shutdown`.
pub async fn serve(
    listener: Listener,
    socket: tokio::net::TcpListener,
    shutdown: CancellationToken,
) {
    let admission = Admission::new(
        &listener.context.live.borrow().limits,
        listener.context.metrics.queued.clone(),
        Instant::now(),
    );
    let bounds = Bounds {
        bytes: listener.server.max_header_bytes,
        fields: listener.server.max_headers,
    };
    let socket = match listening(socket, listener.server.listen_backlog) {
        Ok(socket) => socket,
        Err(error) => {
            return tracing::error!(%error, "public listener failed; no connections are accepted");
        }
    };
    let acceptor = Arc::new(Acceptor {
        listener,
        bounds,
        shutdown: shutdown.clone(),
        admission: Arc::new(admission),
        places: Arc::default(),
    });
    let stopped = shutdown.cancelled();
    tokio::pin!(stopped);
    loop {
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
        acceptor.begin(stream, peer.ip().to_canonical());
    }
}

/// Prepares the listening socket, whose options each accepted socket inherits. Accepted sockets are not registered with this runtime.
fn listening(socket: tokio::net::TcpListener, backlog: u32) -> io::Result<AsyncFd<TcpListener>> {
    let socket = socket.into_std()?;
    let options = SockRef::from(&socket);
    // On a socket that listens already, this sets the length of its queue.
    options.listen(backlog.try_into().unwrap_or(i32::MAX))?;
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

impl Acceptor {
    /// Gives a new socket a place and a shard, or turns it away.
    fn begin(self: &Arc<Self>, stream: TcpStream, peer: IpAddr) {
        let live = self.listener.context.live.borrow();
        let is_proxied = is_in(peer, &live.proxy_protocol_from);
        let is_trusted = is_proxied || is_in(peer, &live.trusted_proxies);
        let bounds = place_bounds(&live.limits);
        drop(live);
        match self.places.claim(Network::of(peer), is_trusted, bounds) {
            Ok(place) => {
                let acceptor = Arc::clone(self);
                self.listener.hub.place(move |shard, claim| {
                    let opening = Opening::new(acceptor, shard, claim, peer, place);
                    if is_proxied {
                        opening.begin_proxied(stream);
                    } else {
                        opening.begin(stream);
                    }
                });
            }
            Err(reason) => self.turn_away(stream, reason),
        }
    }

    /// Answers a socket for which there is no place. A request costs no more than this answer.
    pub(super) fn turn_away(&self, stream: TcpStream, reason: NoPlace) {
        self.count_closed(match reason {
            NoPlace::Full => "full",
            NoPlace::NetworkFull => "network_full",
        });
        // Over TLS an answer would cost the handshake first.
        if self.listener.tls.is_some() {
            return;
        }
        let lingering = self.places.linger();
        self.listener.context.control.spawn(async move {
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => requests::refuse(stream, &requests::busy(), lingering).await,
                Err(error) => tracing::warn!(%error, "socket could not be registered; closed"),
            }
        });
    }

    /// Counts a socket that the gateway closes before it is a WebSocket.
    pub(super) fn count_closed(&self, reason: &str) {
        self.listener
            .context
            .metrics
            .http_closed
            .get_or_create(&Metrics::kind(reason))
            .inc();
    }

    /// Counts an opening handshake that is refused.
    pub(super) fn count_refused(&self, refusal: Refusal) {
        self.listener
            .context
            .metrics
            .refused
            .get_or_create(&Metrics::kind(refusal.label()))
            .inc();
    }

    /// Moves the place of a socket to the client that its proxy names.
    ///
    /// # Errors
    /// The network of the client has no place.
    pub(super) fn move_place(&self, place: &ClaimedPlace, client: IpAddr) -> Result<(), NoPlace> {
        let live = Arc::clone(&self.listener.context.live.borrow());
        let is_trusted = is_in(client, &live.trusted_proxies);
        place.move_to(Network::of(client), is_trusted, place_bounds(&live.limits))
    }

    /// Serves a socket with hyper, which reads `seen` first.
    pub(super) async fn serve_http(
        self: Arc<Self>,
        stream: Detached,
        seen: Bytes,
        peer: IpAddr,
        place: ClaimedPlace,
    ) {
        let mut stream = match stream.attach() {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "socket could not be registered; closed"),
        };
        // hyper drops what it could not write at once when a connection ends with an upgrade that was refused, and a socket that was registered a
        // moment ago is not known to take bytes yet.
        // Held exclusively, since TLS is not shared between threads.
        let waiting = &mut stream;
        if poll_fn(move |cx| waiting.poll_writable(cx)).await.is_err() {
            return;
        }
        let stream = Rewound::new(seen, stream);
        let server = &self.listener.server;
        let mut http = hyper::server::conn::http1::Builder::new();
        // The times are those of `requests`.
        http.header_read_timeout(None)
            .max_headers(server.max_headers)
            .max_buf_size(server.max_header_bytes);
        let timers = Timers {
            head: Duration::from_secs(server.header_read_timeout_secs),
            idle: Duration::from_secs(server.keep_alive_timeout_secs),
        };
        let service = |request| Arc::clone(&self).answer(request, peer);
        let ended = requests::serve(&http, timers, stream, place, &self.shutdown, service).await;
        if let Some(reason) = ended.label() {
            self.count_closed(reason);
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        // RFC 9112 section 3.2: a request of HTTP/1.1 without exactly one Host is bad.
        if request.version() >= Version::HTTP_11
            && request.headers().get_all(HOST).iter().count() != 1
        {
            return bad_host();
        }
        let path = request.uri().path();
        let is_stream = self
            .listener
            .server
            .stream_paths
            .iter()
            .any(|stream| stream == path);
        if is_stream && request.method() != http::Method::OPTIONS {
            return self.upgrade(request, peer).await.map(Body::from);
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(PeerAddress(peer));
        self.listener
            .rest
            .clone()
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {})
    }

    async fn upgrade(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: IpAddr,
    ) -> Response<String> {
        let live = Arc::clone(&self.listener.context.live.borrow());
        let subprotocols = &self.listener.server.subprotocols;
        let from = client_address(peer, request.headers(), &live.trusted_proxies);
        let checked = upgrade::accept(&Offer::of(&request), &live.allowed_origins, subprotocols)
            .and_then(|accept| Ok((upgrade::response(&accept), self.admit(&live, from)?)));
        let admitted = match checked {
            Ok((response, Admitted::Now)) => Ok(response),
            Ok((response, Admitted::Queued(queued))) => self.turn(queued).await.map(|()| response),
            Err(refusal) => Err(refusal),
        };
        let response = match admitted {
            Ok(response) => response,
            Err(refusal) => {
                self.count_refused(refusal);
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
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => upgraded,
                Err(error) => return tracing::debug!(%error, "upgrade was not completed"),
            };
            let Ok(parts) = upgraded.downcast::<TokioIo<Watched<Rewound>>>() else {
                return;
            };
            let (unread, stream) = parts.io.into_inner().into_inner().into_parts();
            let read = [parts.read_buf, unread].concat();
            match stream.detach() {
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

    /// Counts a connection of this client against the limits of the instance.
    pub(super) fn admit(&self, live: &Live, from: IpAddr) -> Result<Admitted, Refusal> {
        self.has_room(live)?;
        self.admission
            .admit(Network::of(from), &live.limits, Instant::now())
            .map_err(Refusal::Rate)
    }

    /// Waits until it is the turn of a handshake.
    pub(super) async fn turn(&self, queued: Queued) -> Result<(), Refusal> {
        let live = || Arc::clone(&self.listener.context.live.borrow());
        tokio::select! {
            turn = queued.turn(live) => turn.map_err(Refusal::Rate)?,
            () = self.shutdown.cancelled() => return Err(Refusal::Closed),
        }
        // Much may have changed meanwhile.
        self.has_room(&live())
    }

    fn has_room(&self, live: &Live) -> Result<(), Refusal> {
        let listener = &self.listener;
        if self.shutdown.is_cancelled()
            || listener.lifecycle.refuses_connections()
            || listener.closed.load(Ordering::Acquire)
        {
            return Err(Refusal::Closed);
        }
        let limits = &live.limits;
        if listener.hub.counts().total >= limits.connections_per_pod
            || listener.hub.outbox_bytes() >= limits.send_queue.total_bytes
        {
            return Err(Refusal::Full);
        }
        Ok(())
    }
}

fn place_bounds(limits: &Limits) -> places::Bounds {
    places::Bounds {
        total: limits.http_connections_per_pod,
        per_network: limits.http_connections_per_network,
        evicts_serving: false,
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
        let socket = listening(socket, 4096).unwrap();
        let (client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(address), accept(&socket));
        let (stream, peer) = accepted.unwrap();
        assert_eq!(peer, client.unwrap().local_addr().unwrap());
        let options = SockRef::from(&stream);
        assert!(options.tcp_nodelay().unwrap() && options.nonblocking().unwrap());
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
    }

    #[tokio::test]
    async fn the_queue_of_the_kernel_is_as_long_as_the_setting_and_the_kernel_allow() {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = listening(socket, 3000).unwrap();
        let most: u32 = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(queue_length(socket.get_ref()), 3000.min(most));
    }

    /// Of a listening socket, `TCP_INFO` has the length of the queue where others have the segments acknowledged out of order.
    fn queue_length(socket: &TcpListener) -> u32 {
        use std::os::fd::AsRawFd;

        let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        #[expect(unsafe_code, reason = "the standard library does not read TCP_INFO")]
        // SAFETY: the buffer is as long as its length says, and all zeroes are a value of it.
        let info = unsafe {
            let result = libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            );
            assert_eq!(result, 0);
            info.assume_init()
        };
        info.tcpi_sacked
    }
}

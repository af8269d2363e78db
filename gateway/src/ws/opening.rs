//! A new socket on its shard: either its first request head makes it a connection there, or hyper gets the socket with all that was read of it.
//!
//! If the first read returns the whole head, the socket costs no task, no timer and no buffer of its own before it is a connection, and it is
//! registered once, with the runtime that it stays with. Only a socket whose head comes in pieces gets a task that keeps its bytes, and one that speaks
//! TLS, whose handshake comes before the head and shares its deadline.

use std::future::poll_fn;
use std::io::{self, Read};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::admission::{Admitted, Queued};
use super::connection::{Connection, READ};
use super::head::{self, Head};
use super::listener::Acceptor;
use super::proxied::{self, Fault, Proxied};
use super::rewound::Rewound;
use super::upgrade::{self, Refusal};
use crate::hub::{Claim, Shard};
use crate::id::Id;
use crate::metrics::Metrics;
use crate::peer::forwarded_for;
use crate::places::ClaimedPlace;
use crate::stream::{Detached, NotAccepted, Stream, TlsStream};
use crate::tls::Tls;
use crate::{problem, requests};

/// A socket whose first request is not answered yet.
pub(super) struct Opening {
    acceptor: Arc<Acceptor>,
    shard: Rc<Shard>,
    peer: IpAddr,
    place: ClaimedPlace,
    /// Counts as pending on its shard until it is dropped.
    _claim: Claim,
}

/// A handshake to complete.
struct Accepted {
    answer: Vec<u8>,
    from: IpAddr,
    id: Id,
    /// Bytes of the head: frames begin behind them.
    length: usize,
}

/// What to do with the bytes so far.
enum Next {
    Wait,
    Open(Accepted),
    /// A good handshake whose turn has not come.
    Queue(Accepted, Queued),
    /// A good handshake for which this instance has no room. Refusing a storm must not cost what serving a request costs.
    Refuse(Refusal),
    HandOver,
}

impl Opening {
    pub(super) fn new(
        acceptor: Arc<Acceptor>,
        shard: &Rc<Shard>,
        claim: Claim,
        peer: IpAddr,
        place: ClaimedPlace,
    ) -> Self {
        Self {
            acceptor,
            shard: Rc::clone(shard),
            peer,
            place,
            _claim: claim,
        }
    }

    /// Begins with a socket whose peer must say for whom it opened it.
    pub(super) fn begin_proxied(self, stream: std::net::TcpStream) {
        match proxied::take(&stream) {
            Ok(Proxied::Partial) => {
                tokio::task::spawn_local(self.wait_for_proxy(stream));
            }
            Ok(Proxied::Whole { client }) => self.begin_for(client, stream),
            Ok(Proxied::Refused(fault)) => self.refuse_proxy(fault),
            Err(_) => {}
        }
    }

    async fn wait_for_proxy(self, stream: std::net::TcpStream) {
        // Another descriptor of the same socket, since the socket itself is registered by whoever reads on.
        let watched = match stream.try_clone() {
            Ok(watched) => registered(watched),
            Err(error) => return tracing::warn!(%error, "socket could not be watched; closed"),
        };
        let Some(watched) = watched else { return };
        let header = async {
            loop {
                let ready = watched.ready(Interest::READABLE).await?;
                let proxied = watched.try_io(Interest::READABLE, || {
                    match proxied::take(&stream)? {
                        // What has come stays in the socket: only more of it makes it readable again.
                        Proxied::Partial => Err(io::ErrorKind::WouldBlock.into()),
                        proxied => Ok(proxied),
                    }
                });
                match proxied {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        // A socket that the peer has ended stays readable, with what it held then: no more will come, and this loop would not pause.
                        if ready.is_read_closed() {
                            return Ok(Proxied::Refused(Fault::Ended));
                        }
                    }
                    proxied => return proxied,
                }
            }
        };
        let proxied = tokio::select! {
            proxied = header => proxied,
            () = tokio::time::sleep(self.head_limit()) => return self.acceptor.count_closed("head_late"),
            () = self.place.evicted() => return self.acceptor.count_closed("evicted"),
            () = self.acceptor.shutdown.cancelled() => return,
        };
        drop(watched);
        match proxied {
            Ok(Proxied::Whole { client }) => self.begin_for(client, stream),
            Ok(Proxied::Refused(fault)) => self.refuse_proxy(fault),
            Ok(Proxied::Partial) | Err(_) => {}
        }
    }

    fn refuse_proxy(&self, fault: Fault) {
        self.acceptor.count_closed("proxy_header");
        // A check of the balancer that connects and goes is no event.
        if fault == Fault::Ended {
            tracing::debug!(peer.address = %self.peer, "{}; socket closed", fault.text());
        } else {
            tracing::warn!(peer.address = %self.peer, "{}; socket closed", fault.text());
        }
    }

    fn begin_for(mut self, client: Option<IpAddr>, stream: std::net::TcpStream) {
        if let Some(client) = client.map(|client| client.to_canonical()) {
            self.peer = client;
            if let Err(reason) = self.acceptor.move_place(&self.place, client) {
                return self.acceptor.turn_away(stream, reason);
            }
        }
        self.begin(stream);
    }

    /// Begins with a socket whose first bytes are those of the client.
    pub(super) fn begin(self, stream: std::net::TcpStream) {
        if let Some(tls) = &self.acceptor.listener.tls {
            let tls = Arc::clone(tls);
            if let Some(socket) = registered(stream) {
                tokio::task::spawn_local(self.secure(socket, tls));
            }
            return;
        }
        READ.with_borrow_mut(|buffer| {
            let room = self.acceptor.bounds.bytes.min(buffer.len());
            let bytes = match (&stream).read(&mut buffer[..room]) {
                Ok(0) => return,
                Ok(n) => &buffer[..n],
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    &[]
                }
                Err(_) => return,
            };
            match self.next(bytes, 0) {
                Next::HandOver => self.hand_over(stream.into(), Bytes::copy_from_slice(bytes)),
                Next::Open(accepted) => {
                    if let Some(socket) = registered(stream) {
                        let stream = Stream::Clear(socket);
                        open(&self.acceptor, self.shard, stream, &accepted, bytes);
                    }
                }
                next @ (Next::Queue(..) | Next::Refuse(_)) => {
                    let seen = bytes.to_vec();
                    if let Some(socket) = registered(stream) {
                        let stream = Stream::Clear(socket);
                        tokio::task::spawn_local(self.proceed(next, stream, seen));
                    }
                }
                Next::Wait => {
                    let seen = bytes.to_vec();
                    if let Some(socket) = registered(stream) {
                        let until = Instant::now() + self.head_limit();
                        tokio::task::spawn_local(self.wait(Stream::Clear(socket), seen, until));
                    }
                }
            }
        });
    }

    fn head_limit(&self) -> Duration {
        Duration::from_secs(self.acceptor.listener.server.header_read_timeout_secs)
    }

    /// Performs the TLS handshake, and goes on with what the client sent behind it.
    async fn secure(self, socket: TcpStream, tls: Arc<Tls>) {
        let until = Instant::now() + self.head_limit();
        let count = |kind: &str| {
            let metrics = &self.acceptor.listener.context.metrics;
            metrics
                .tls_handshakes
                .get_or_create(&Metrics::kind(kind))
                .inc();
        };
        let accepting =
            TlsStream::accept(socket, tls.config(), tls.demands_certificates(), Vec::new());
        let accepted = tokio::select! {
            accepted = accepting => accepted,
            () = tokio::time::sleep_until(until) => {
                count("timeout");
                return self.acceptor.count_closed("head_late");
            }
            () = self.place.evicted() => return self.acceptor.count_closed("evicted"),
            () = self.acceptor.shutdown.cancelled() => return,
        };
        match accepted {
            Ok(accepted) => {
                count(if accepted.resumed { "resumed" } else { "full" });
                let (stream, seen) = (Stream::Tls(Box::new(accepted.stream)), accepted.seen);
                match self.next(&seen, 0) {
                    Next::Wait => self.wait(stream, seen, until).await,
                    next => self.proceed(next, stream, seen).await,
                }
            }
            Err(NotAccepted::PlainHttp(socket)) => {
                count("plain_http");
                let answer = problem::closing(problem::plain(
                    StatusCode::BAD_REQUEST,
                    "tls_required",
                    "This port speaks TLS: use https:// or wss://.",
                ));
                self.close(Stream::Clear(socket), &answer).await;
            }
            Err(NotAccepted::Failed(error)) => {
                count("failed");
                tracing::debug!(%error, "TLS handshake failed; socket closed");
            }
        }
    }

    /// Waits for the rest of the head until the deadline, while the place lasts, and no longer than the listener accepts.
    async fn wait(self, stream: Stream, mut seen: Vec<u8>, until: Instant) {
        let next = tokio::select! {
            next = self.rest(&stream, &mut seen) => next,
            () = tokio::time::sleep_until(until) => {
                self.acceptor.count_closed("head_late");
                return self.close(stream, &requests::late()).await;
            }
            () = self.place.evicted() => {
                self.acceptor.count_closed("evicted");
                return self.close(stream, &requests::busy()).await;
            }
            () = self.acceptor.shutdown.cancelled() => return,
        };
        // An error: the peer has gone.
        if let Ok(next) = next {
            self.proceed(next, stream, seen).await;
        }
    }

    async fn proceed(self, next: Next, stream: Stream, seen: Vec<u8>) {
        match next {
            Next::Open(accepted) => open(&self.acceptor, self.shard, stream, &accepted, &seen),
            Next::Queue(accepted, queued) => self.queue(queued, stream, accepted, seen).await,
            Next::Refuse(refusal) => {
                let acceptor = Arc::clone(&self.acceptor);
                drop(self);
                refuse(&acceptor, stream, refusal).await;
            }
            Next::HandOver => match stream.detach() {
                Ok(stream) => self.hand_over(stream, seen.into()),
                Err(error) => tracing::warn!(%error, "socket could not leave its runtime; closed"),
            },
            // The peer has gone.
            Next::Wait => {}
        }
    }

    /// Opens a connection when its turn comes. A client that has gone meanwhile is noticed when its socket is read.
    async fn queue(self, queued: Queued, stream: Stream, accepted: Accepted, seen: Vec<u8>) {
        let Self {
            acceptor,
            shard,
            place,
            _claim,
            ..
        } = self;
        // The place is free for others: the queue has a bound of its own.
        drop(place);
        match acceptor.turn(queued).await {
            Ok(()) => open(&acceptor, shard, stream, &accepted, &seen),
            Err(refusal) => {
                drop((shard, _claim));
                refuse(&acceptor, stream, refusal).await;
            }
        }
    }

    /// Answers a request that is not served.
    async fn close(self, stream: Stream, answer: &[u8]) {
        let acceptor = Arc::clone(&self.acceptor);
        // The place is free for others meanwhile.
        drop(self);
        close(&acceptor, stream, answer).await;
    }

    /// Reads until the head is complete, or is one for hyper, or the socket ends.
    async fn rest(&self, stream: &Stream, seen: &mut Vec<u8>) -> io::Result<Next> {
        loop {
            poll_fn(|cx| stream.poll_readable(cx)).await?;
            let before = seen.len();
            let read: io::Result<usize> = READ.with_borrow_mut(|buffer| {
                // The same bound as hyper's. Records are read whole, so one read may pass it.
                let room = match self.acceptor.bounds.bytes.saturating_sub(before) {
                    0 => return Ok(0),
                    _ if stream.is_tls() => buffer.len(),
                    room => room.min(buffer.len()),
                };
                let n = stream.read(&mut buffer[..room])?;
                seen.extend_from_slice(&buffer[..n]);
                Ok(n)
            });
            match read {
                Ok(0) => return Ok(Next::Wait),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            }
            match self.next(seen, before) {
                Next::Wait => {}
                next => return Ok(next),
            }
        }
    }

    /// Decides what to do with `bytes`, the first `before` of which were there at the last call. A handshake that cannot be completed goes to hyper,
    /// which finds the same reason and refuses it.
    fn next(&self, bytes: &[u8], before: usize) -> Next {
        let server = &self.acceptor.listener.server;
        let head = head::read(bytes, before, self.acceptor.bounds, &server.stream_paths);
        let (offer, forwarded, length) = match head {
            Head::Partial => return Next::Wait,
            Head::Stream {
                offer,
                forwarded,
                length,
            } if offer.has_one_host() => (offer, forwarded, length),
            Head::Stream { .. } | Head::Other => return Next::HandOver,
        };
        let live = Arc::clone(&self.acceptor.listener.context.live.borrow());
        let Ok(accept) = upgrade::accept(&offer, &live.allowed_origins, &server.subprotocols)
        else {
            return Next::HandOver;
        };
        let from = forwarded_for(self.peer, forwarded.iter().copied(), &live.trusted_proxies);
        let admitted = match self.acceptor.admit(&live, from) {
            Ok(admitted) => admitted,
            Err(refusal) => return Next::Refuse(refusal),
        };
        // A shard never waits for an id; hyper's side does.
        let Ok(Some(id)) = self.acceptor.listener.ids.next_at_once() else {
            return Next::HandOver;
        };
        let accepted = Accepted {
            answer: upgrade::response_bytes(&accept),
            from,
            id,
            length,
        };
        match admitted {
            Admitted::Now => Next::Open(accepted),
            Admitted::Queued(queued) => Next::Queue(accepted, queued),
        }
    }

    /// Gives the socket to hyper, on the control runtime.
    fn hand_over(self, stream: Detached, seen: Bytes) {
        let Self {
            acceptor,
            peer,
            place,
            ..
        } = self;
        let control = acceptor.listener.context.control.clone();
        control.spawn(acceptor.serve_http(stream, seen, peer, place));
    }
}

/// Completes the handshake: the socket becomes a connection.
fn open(acceptor: &Acceptor, shard: Rc<Shard>, stream: Stream, accepted: &Accepted, bytes: &[u8]) {
    let link = shard.adopt(stream, accepted.from, accepted.id);
    // The first write to a socket: it takes so few bytes at once, or it is broken.
    if !link.write_first(&accepted.answer) {
        return shard.forget(&link);
    }
    let context = Arc::clone(&acceptor.listener.context);
    tokio::task::spawn_local(Connection::new(
        shard,
        link,
        context,
        &bytes[accepted.length..],
    ));
}

async fn refuse(acceptor: &Acceptor, stream: Stream, refusal: Refusal) {
    acceptor.count_refused(refusal);
    let answer = problem::closing(refusal.response());
    close(acceptor, stream, &answer).await;
}

async fn close(acceptor: &Acceptor, stream: Stream, answer: &[u8]) {
    let lingering = acceptor.places.linger();
    requests::refuse(Rewound::new(Bytes::new(), stream), answer, lingering).await;
}

/// Makes a connection of a socket whose handshake hyper has completed.
pub(super) fn adopt(
    acceptor: &Acceptor,
    shard: &Rc<Shard>,
    stream: Detached,
    from: IpAddr,
    id: Id,
    read: &[u8],
) {
    let stream = match stream.attach() {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "socket could not be registered; closed"),
    };
    let link = shard.adopt(stream, from, id);
    tokio::task::spawn_local(Connection::new(
        Rc::clone(shard),
        link,
        Arc::clone(&acceptor.listener.context),
        read,
    ));
}

fn registered(stream: std::net::TcpStream) -> Option<TcpStream> {
    TcpStream::from_std(stream)
        .inspect_err(|error| tracing::warn!(%error, "socket could not be registered; closed"))
        .ok()
}

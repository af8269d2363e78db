//! A new socket on its shard: either its first request head makes it a connection there, or hyper gets the socket with all that was read of it.
//!
//! If the first read returns the whole head, the socket costs no task, no timer and no buffer of its own before it is a connection, and it is
//! registered once, with the runtime that it stays with. Only a socket whose head comes in pieces gets a task that keeps its bytes.

use std::io::{self, Read};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::connection::{Connection, READ};
use super::head::{self, Head};
use super::listener::{Acceptor, HttpPermit};
use super::upgrade;
use crate::hub::{Claim, Shard, read_now};
use crate::id::Id;
use crate::peer::forwarded_for;

/// A socket whose first request is not answered yet.
pub(super) struct Opening {
    acceptor: Arc<Acceptor>,
    shard: Rc<Shard>,
    peer: IpAddr,
    permit: HttpPermit,
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
    HandOver,
}

impl Opening {
    /// Begins with a socket that was just accepted.
    pub(super) fn begin(
        acceptor: Arc<Acceptor>,
        shard: &Rc<Shard>,
        claim: Claim,
        stream: std::net::TcpStream,
        peer: IpAddr,
        permit: HttpPermit,
    ) {
        let opening = Self {
            acceptor,
            shard: Rc::clone(shard),
            peer,
            permit,
            _claim: claim,
        };
        READ.with_borrow_mut(|buffer| {
            let room = opening.acceptor.bounds.bytes.min(buffer.len());
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
            match opening.next(bytes, 0) {
                Next::HandOver => opening.hand_over(stream, Bytes::copy_from_slice(bytes)),
                Next::Open(accepted) => {
                    if let Some(stream) = registered(stream) {
                        opening.open(stream, &accepted, bytes);
                    }
                }
                Next::Wait => {
                    let seen = bytes.to_vec();
                    if let Some(stream) = registered(stream) {
                        tokio::task::spawn_local(opening.wait(stream, seen));
                    }
                }
            }
        });
    }

    /// Waits for the rest of the head, with a deadline, and no longer than the listener accepts.
    async fn wait(self, stream: TcpStream, mut seen: Vec<u8>) {
        let limit = Duration::from_secs(self.acceptor.listener.server.header_read_timeout_secs);
        let next = tokio::select! {
            next = self.rest(&stream, &mut seen) => next,
            () = tokio::time::sleep(limit) => return tracing::debug!("request head did not come in time; socket closed"),
            () = self.acceptor.shutdown.cancelled() => return,
        };
        match next {
            Ok(Next::Open(accepted)) => self.open(stream, &accepted, &seen),
            Ok(Next::HandOver) => match stream.into_std() {
                Ok(stream) => self.hand_over(stream, seen.into()),
                Err(error) => tracing::warn!(%error, "socket could not leave its runtime; closed"),
            },
            // The peer has gone.
            Ok(Next::Wait) | Err(_) => {}
        }
    }

    /// Reads until the head is complete, or is one for hyper, or the socket ends.
    async fn rest(&self, stream: &TcpStream, seen: &mut Vec<u8>) -> io::Result<Next> {
        loop {
            stream.readable().await?;
            let before = seen.len();
            let read: io::Result<usize> = READ.with_borrow_mut(|buffer| {
                // The same bound as hyper's.
                let room = (self.acceptor.bounds.bytes - before).min(buffer.len());
                let n = read_now(stream, &mut buffer[..room])?;
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
        if self.acceptor.admit(&live).is_err() {
            return Next::HandOver;
        }
        // A shard never waits for an id; hyper's side does.
        let Ok(Some(id)) = self.acceptor.listener.ids.next_at_once() else {
            return Next::HandOver;
        };
        let from = forwarded_for(self.peer, forwarded.iter().copied(), &live.trusted_proxies);
        Next::Open(Accepted {
            answer: upgrade::response_bytes(&accept),
            from,
            id,
            length,
        })
    }

    /// Completes the handshake: the socket becomes a connection, and its permit is free.
    fn open(self, stream: TcpStream, accepted: &Accepted, bytes: &[u8]) {
        let link = self.shard.adopt(stream, accepted.from, accepted.id);
        // The first write to a socket: it takes so few bytes at once, or it is broken.
        if !link.write_first(&accepted.answer) {
            return self.shard.forget(&link);
        }
        let context = Arc::clone(&self.acceptor.listener.context);
        tokio::task::spawn_local(Connection::new(
            self.shard,
            link,
            context,
            &bytes[accepted.length..],
        ));
    }

    /// Gives the socket to hyper, on the control runtime.
    fn hand_over(self, stream: std::net::TcpStream, seen: Bytes) {
        let Self {
            acceptor,
            peer,
            permit,
            ..
        } = self;
        let control = acceptor.listener.context.control.clone();
        control.spawn(acceptor.serve_http(stream, seen, peer, permit));
    }
}

/// Makes a connection of a socket whose handshake hyper has completed.
pub(super) fn adopt(
    acceptor: &Acceptor,
    shard: &Rc<Shard>,
    stream: std::net::TcpStream,
    from: IpAddr,
    id: Id,
    read: &[u8],
) {
    let Some(stream) = registered(stream) else {
        return;
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

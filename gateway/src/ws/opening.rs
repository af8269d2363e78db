//! A new socket on its shard: the first request head becomes a connection right there, or the socket goes to hyper with all that was read of it.
//!
//! Where the head has come whole by the first look, the socket costs no task, no timer and no buffer of its own until it is a
//! connection, and is registered once, with the runtime that it stays with. Only a socket that lets its shard wait gets a task, and its bytes are
//! kept then.

use std::io::{self, Read};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::connection::{Connection, READ};
use super::head::{self, Head};
use super::listener::{Door, Place};
use super::upgrade;
use crate::hub::{Claim, Shard, read_now};
use crate::id::Id;
use crate::peer::forwarded_for;

/// A socket whose first request has not been answered.
pub(super) struct Opening {
    door: Arc<Door>,
    shard: Rc<Shard>,
    peer: IpAddr,
    place: Place,
    /// Counted among those of its shard until it is dropped.
    _claim: Claim,
}

/// A handshake that is to be completed.
struct Accepted {
    answer: Vec<u8>,
    from: IpAddr,
    id: Id,
    /// Where the frames begin.
    length: usize,
}

/// What is to be done with the bytes so far.
enum Next {
    Wait,
    Open(Accepted),
    HandOver,
}

impl Opening {
    /// Looks at a socket that was just accepted.
    pub(super) fn begin(
        door: Arc<Door>,
        shard: &Rc<Shard>,
        claim: Claim,
        stream: std::net::TcpStream,
        peer: IpAddr,
        place: Place,
    ) {
        let opening = Self {
            door,
            shard: Rc::clone(shard),
            peer,
            place,
            _claim: claim,
        };
        READ.with_borrow_mut(|buffer| {
            let room = opening.door.bounds.bytes.min(buffer.len());
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

    /// Waits for the rest of the head; not for ever, and not beyond the end of accepting.
    async fn wait(self, stream: TcpStream, mut seen: Vec<u8>) {
        let limit = Duration::from_secs(self.door.listener.server.header_read_timeout_secs);
        let next = tokio::select! {
            next = self.rest(&stream, &mut seen) => next,
            () = tokio::time::sleep(limit) => return tracing::debug!("a request head did not come in time"),
            () = self.door.shutdown.cancelled() => return,
        };
        match next {
            Ok(Next::Open(accepted)) => self.open(stream, &accepted, &seen),
            Ok(Next::HandOver) => match stream.into_std() {
                Ok(stream) => self.hand_over(stream, seen.into()),
                Err(error) => tracing::warn!(%error, "a socket could not be handed over"),
            },
            // It has ended: there is nobody to answer.
            Ok(Next::Wait) | Err(_) => {}
        }
    }

    /// Reads until something else than waiting is to be done, or the socket ends.
    async fn rest(&self, stream: &TcpStream, seen: &mut Vec<u8>) -> io::Result<Next> {
        loop {
            stream.readable().await?;
            let before = seen.len();
            let read: io::Result<usize> = READ.with_borrow_mut(|buffer| {
                // What is kept of a head is bounded as hyper bounds it.
                let room = (self.door.bounds.bytes - before).min(buffer.len());
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

    /// What `bytes` call for, of which `before` were looked at before. A handshake that cannot be completed here is for hyper, which finds the same
    /// reason and refuses it.
    fn next(&self, bytes: &[u8], before: usize) -> Next {
        let (offer, forwarded, length) = match head::read(bytes, before, self.door.bounds) {
            Head::Partial => return Next::Wait,
            Head::Stream {
                offer,
                forwarded,
                length,
            } if offer.has_one_host() => (offer, forwarded, length),
            Head::Stream { .. } | Head::Other => return Next::HandOver,
        };
        let live = Arc::clone(&self.door.listener.context.live.borrow());
        let Ok(accept) = upgrade::accept(&offer, &live.allowed_origins) else {
            return Next::HandOver;
        };
        if self.door.admit(&live).is_err() {
            return Next::HandOver;
        }
        // Where an id is to be waited for, a shard does not wait.
        let Ok(Some(id)) = self.door.listener.ids.next_at_once() else {
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

    /// Completes the handshake: from here on it is a connection, and no longer one of the sockets that are not.
    fn open(self, stream: TcpStream, accepted: &Accepted, bytes: &[u8]) {
        let link = self.shard.adopt(stream, accepted.from, accepted.id);
        // Nothing was ever written to it, so it takes so little at once or is broken.
        if !link.write_first(&accepted.answer) {
            return self.shard.forget(&link);
        }
        let context = Arc::clone(&self.door.listener.context);
        tokio::task::spawn_local(Connection::new(
            self.shard,
            link,
            context,
            &bytes[accepted.length..],
        ));
    }

    /// Has the control runtime serve the socket by hyper.
    fn hand_over(self, stream: std::net::TcpStream, seen: Bytes) {
        let Self {
            door, peer, place, ..
        } = self;
        let control = door.listener.context.control.clone();
        control.spawn(door.converse(stream, seen, peer, place));
    }
}

/// Makes a connection of a socket that hyper has completed the handshake of.
pub(super) fn adopt(
    door: &Door,
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
        Arc::clone(&door.listener.context),
        read,
    ));
}

fn registered(stream: std::net::TcpStream) -> Option<TcpStream> {
    TcpStream::from_std(stream)
        .inspect_err(|error| tracing::warn!(%error, "a socket could not be registered"))
        .ok()
}

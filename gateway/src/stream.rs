//! The byte stream of a connection or a request: a socket in the clear, or TLS on a socket.
//!
//! Input: an accepted socket. Output: bytes as the peer meant them. A stream lives on one runtime and waits for nothing by itself; [`Detached`] moves it
//! to another. A clear stream costs one comparison more than the bare socket.

mod tls;

use std::io::{self, Read, Write};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use tls::Engine;
pub use tls::{Accepted, NotAccepted, TlsStream};

/// Least bytes that a reader of a [`Stream`] has room for: so much may come out of one read.
pub const READ_BYTES: usize = 64 * 1024;

/// What a connection reads from and writes to.
#[derive(Debug)]
pub enum Stream {
    /// The socket itself.
    Clear(TcpStream),
    /// TLS after its handshake. Boxed, so that a clear stream is no longer than a socket.
    Tls(Box<TlsStream>),
}

/// A stream on no runtime.
#[derive(Debug)]
pub struct Detached {
    socket: std::net::TcpStream,
    tls: Option<Box<Engine>>,
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Clear(socket) => socket,
            Self::Tls(tls) => tls.socket(),
        }
    }

    /// Whether the bytes on the wire are encrypted by TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The TLS of it, if it has one.
    pub fn tls(&self) -> Option<&TlsStream> {
        match self {
            Self::Clear(_) => None,
            Self::Tls(tls) => Some(tls),
        }
    }

    /// Ready when there may be something to read.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Clear(socket) => socket.poll_read_ready(cx),
            // The peer's close_notify may come before the end of the socket.
            Self::Tls(tls) if tls.has_ended() => Poll::Ready(Ok(())),
            Self::Tls(tls) => tls.socket().poll_read_ready(cx),
        }
    }

    /// Ready when the socket may take more bytes.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_write_ready(cx)
    }

    /// Reads without waiting; 0 at the end. With TLS `buffer` has room for [`READ_BYTES`], and the error is `WouldBlock` too when a record is not whole.
    ///
    /// # Errors
    /// Those of the socket, and of a peer that breaks TLS.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => read_now(socket, buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Bytes of records that were read and are not whole.
    pub fn held_input(&self) -> usize {
        match self {
            Self::Clear(_) => 0,
            Self::Tls(tls) => tls.held_input(),
        }
    }

    /// Writes to a new stream, before the runtime knows that its socket is writable. Returns whether the socket took all.
    pub fn write_first(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Clear(socket) => (&*SockRef::from(socket))
                .write(bytes)
                .is_ok_and(|written| written == bytes.len()),
            Self::Tls(tls) => {
                (tls.held_output() == 0 || tls.write_held().is_ok())
                    && tls.held_output() == 0
                    && tls
                        .write(bytes)
                        .is_ok_and(|taken| taken == bytes.len() && tls.held_output() == 0)
            }
        }
    }

    /// Ends the sending side: with TLS, after a `close_notify`. If the socket cannot take this alert at once, it is not sent.
    pub fn shutdown_write(&self) {
        if let Self::Tls(tls) = self {
            tls.close_notify();
        }
        let _ = SockRef::from(self.socket()).shutdown(std::net::Shutdown::Write);
    }

    /// Takes the stream off its runtime.
    ///
    /// # Errors
    /// When the runtime does not give the socket back.
    pub fn detach(self) -> io::Result<Detached> {
        match self {
            Self::Clear(socket) => Ok(Detached {
                socket: socket.into_std()?,
                tls: None,
            }),
            Self::Tls(tls) => {
                let (socket, engine) = tls.into_parts();
                Ok(Detached {
                    socket: socket.into_std()?,
                    tls: Some(Box::new(engine)),
                })
            }
        }
    }
}

impl From<std::net::TcpStream> for Detached {
    fn from(socket: std::net::TcpStream) -> Self {
        Self { socket, tls: None }
    }
}

impl Detached {
    /// Registers the stream with the current runtime.
    ///
    /// # Errors
    /// When the runtime does not take the socket.
    pub fn attach(self) -> io::Result<Stream> {
        let socket = TcpStream::from_std(self.socket)?;
        Ok(match self.tls {
            None => Stream::Clear(socket),
            Some(engine) => Stream::Tls(Box::new(TlsStream::from_parts(socket, *engine))),
        })
    }
}

/// Reads without waiting.
///
/// A read that does not fill the buffer has emptied the socket. The runtime learns this, so the next read waits until there is more.
fn read_now(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let result = socket.try_io(Interest::READABLE, || {
        let n = (&*SockRef::from(socket)).read(buffer)?;
        if n > 0 && n < buffer.len() {
            short = Some(n);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    short.map_or(result, Ok)
}

/// Writes without waiting, and without asking the runtime first whether the socket is writable: what the runtime knows of each socket lies in memory of its
/// own, which is cold when thousands are written to in turn. It learns of a full socket, so that the next wait lasts until there is room.
///
/// Only on the thread that drives the socket's runtime: elsewhere room could be noted between the write and the note that there is none.
pub fn write_now(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match (&*SockRef::from(socket)).write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            socket.try_io(Interest::WRITABLE, || Err(error))
        }
        result => result,
    }
}

#[cfg(test)]
mod tests;

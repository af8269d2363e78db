//! A stream from which bytes were read before: hyper reads them first.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::{READ_BYTES, Stream};

thread_local! {
    /// Content of records, shared by all requests of a thread.
    static PLAIN: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A stream, and the bytes that were read from it.
#[derive(Debug)]
pub(super) struct Rewound {
    seen: Bytes,
    stream: Stream,
}

impl Rewound {
    pub(super) fn new(seen: Bytes, stream: Stream) -> Self {
        Self { seen, stream }
    }

    /// Returns the bytes that were not read again, and the stream.
    pub(super) fn into_parts(self) -> (Bytes, Stream) {
        (self.seen, self.stream)
    }

    fn read_seen(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.seen.len().min(buffer.remaining());
        buffer.put_slice(&self.seen[..length]);
        self.seen.advance(length);
        if self.seen.is_empty() {
            // Frees the buffer that the bytes are a part of.
            self.seen = Bytes::new();
        }
    }

    /// Reads what comes out of the next records. What does not fit is read next.
    fn poll_read_tls(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_readable(cx))?;
            let read = PLAIN.with_borrow_mut(|plain| {
                let n = self.stream.read(plain)?;
                let length = n.min(buffer.remaining());
                buffer.put_slice(&plain[..length]);
                if length < n {
                    self.seen = Bytes::copy_from_slice(&plain[length..n]);
                }
                Ok(())
            });
            match read {
                Err(error) if waits(&error) => {}
                read => return Poll::Ready(read),
            }
        }
    }

    /// Writes what TLS holds.
    fn poll_held(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = self.stream.tls() else {
            return Poll::Ready(Ok(()));
        };
        while tls.held_output() > 0 {
            match tls.write_held() {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if waits(&error) => ready!(self.stream.poll_writable(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.seen.is_empty() {
            self.read_seen(buffer);
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            Stream::Clear(socket) => Pin::new(socket).poll_read(cx, buffer),
            Stream::Tls(_) => self.poll_read_tls(cx, buffer),
        }
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Stream::Clear(socket) = &mut self.stream {
            return Pin::new(socket).poll_write(cx, bytes);
        }
        ready!(self.poll_held(cx))?;
        Poll::Ready(self.stream.tls().map_or(Ok(0), |tls| tls.write(bytes)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Clear(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Stream::Tls(_) => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                self.poll_write(cx, first.map_or(&[], |slice| slice))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        !self.stream.is_tls()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_held(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        self.stream.shutdown_write();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn seen_bytes_are_read_first_and_returned_if_they_were_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let mut socket = Rewound::new(
            Bytes::from_static(b"seen "),
            Stream::Clear(listener.accept().await.unwrap().0),
        );
        client.write_all(b"unseen").await.unwrap();
        let mut three = [0; 3];
        socket.read_exact(&mut three).await.unwrap();
        assert_eq!((&three, &socket.seen[..]), (b"see", &b"n "[..]));
        let mut rest = [0; 8];
        socket.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"n unseen");
        socket.write_all(b"answer").await.unwrap();
        let (seen, _stream) = socket.into_parts();
        assert!(seen.is_empty());
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
    }
}

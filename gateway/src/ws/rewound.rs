//! A socket from which bytes were read before: hyper reads them first.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A socket, and the bytes that were read from it.
#[derive(Debug)]
pub(super) struct Rewound {
    seen: Bytes,
    stream: TcpStream,
}

impl Rewound {
    pub(super) fn new(seen: Bytes, stream: TcpStream) -> Self {
        Self { seen, stream }
    }

    /// Returns the bytes that were not read again, and the socket.
    pub(super) fn into_parts(self) -> (Bytes, TcpStream) {
        (self.seen, self.stream)
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.seen.len().min(buffer.remaining());
        buffer.put_slice(&self.seen[..length]);
        self.seen.advance(length);
        if self.seen.is_empty() {
            // Frees the buffer that the bytes are a part of.
            self.seen = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn seen_bytes_are_read_first_and_returned_if_they_were_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let mut socket = Rewound::new(
            Bytes::from_static(b"seen "),
            listener.accept().await.unwrap().0,
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

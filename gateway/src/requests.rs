//! HTTP/1.1 on one socket, for the public and the admin listener: hyper reads and writes, and this module times it.
//!
//! Input: a socket and its place in the table of [`crate::places`]. Output: requests to the service, and whatever ends the connection. There are three
//! times: a head that has begun must come whole, a request must be answered, and a connection without one may be idle for much longer, because
//! balancers keep theirs for minutes and lose a request that meets a close.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1::{Builder, UpgradeableConnection};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::places::{ClaimedPlace, Lingering, Phase};
use crate::problem;

/// How long a request may take from its head to the last byte of its answer.
const ANSWER: Duration = Duration::from_secs(330);
/// How long the answers that have begun may take once no more requests are read.
const SHUTDOWN: Duration = Duration::from_secs(30);
/// How long a refused peer may take to read why, and how much it may send meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 * 1024;

/// How long a connection may wait.
#[derive(Debug, Clone, Copy)]
pub struct Timers {
    /// For the rest of a head that has begun.
    pub head: Duration,
    /// For the next request.
    pub idle: Duration,
}

/// How a connection ended that was not simply over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client, or the upgrade, ended it.
    ByPeer,
    /// A head did not come whole in time.
    HeadLate,
    /// No request came for too long.
    Idle,
    /// An answer took too long.
    AnswerLate,
    /// Its place went to a newcomer.
    Evicted,
}

impl Ended {
    /// Returns the label of the metric; `None` where there is nothing to count.
    pub fn label(self) -> Option<&'static str> {
        match self {
            Self::ByPeer => None,
            Self::HeadLate => Some("head_late"),
            Self::Idle => Some("idle"),
            Self::AnswerLate => Some("answer_late"),
            Self::Evicted => Some("evicted"),
        }
    }
}

/// What the parts of one connection tell its timer.
#[derive(Debug)]
struct Progress {
    place: ClaimedPlace,
    step: Mutex<(Step, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A head has begun, or is the first.
    Head,
    /// The service has the request.
    Serving,
    /// The body of the answer has ended, and is not written whole.
    Answered,
    Idle,
}

impl Progress {
    fn set(&self, step: Step) {
        *self.step.lock() = (step, Instant::now());
        self.place.set(match step {
            Step::Head => Phase::Unfinished,
            Step::Serving | Step::Answered => Phase::Serving,
            Step::Idle => Phase::Idle,
        });
    }

    fn go(&self, from: Step, to: Step) {
        if self.step.lock().0 == from {
            self.set(to);
        }
    }

    /// Returns when the connection has waited too long, and what that is.
    fn deadline(&self, timers: Timers) -> (Instant, Ended) {
        let (step, since) = *self.step.lock();
        let (limit, ended) = match step {
            Step::Head => (timers.head, Ended::HeadLate),
            Step::Serving | Step::Answered => (ANSWER, Ended::AnswerLate),
            Step::Idle => (timers.idle, Ended::Idle),
        };
        (since + limit, ended)
    }
}

/// A socket that says when a head begins and when an answer has been written.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S> Watched<S> {
    /// Returns the socket.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.progress.go(Step::Idle, Step::Head);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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

    /// hyper flushes the socket when it has written everything that it holds.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(result, Poll::Ready(Ok(()))) {
            self.progress.go(Step::Answered, Step::Idle);
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The body of an answer. hyper drops it when it has taken all of it.
struct Answer {
    body: Body,
    progress: Arc<Progress>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.progress.set(Step::Answered);
    }
}

/// Serves a socket until it ends, and gives its place up then. After `stop` only the answers that have begun are finished.
///
/// A successful upgrade carries the socket as [`Watched`].
pub async fn serve<S, F>(
    builder: &Builder,
    timers: Timers,
    stream: S,
    place: ClaimedPlace,
    stop: &CancellationToken,
    service: impl Fn(Request<Incoming>) -> F,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Body>> + Send,
{
    let progress = Arc::new(Progress {
        place,
        step: Mutex::new((Step::Head, Instant::now())),
    });
    let watched = Watched {
        stream,
        progress: Arc::clone(&progress),
    };
    let service = service_fn(|request| {
        progress.set(Step::Serving);
        let (answer, progress) = (service(request), Arc::clone(&progress));
        async move { Ok::<_, Infallible>(answer.await.map(|body| Answer { body, progress })) }
    });
    let mut connection = builder
        .serve_connection(TokioIo::new(watched), service)
        .with_upgrades();
    let ended = drive(&mut connection, &progress, timers, stop).await;
    let answer = match ended {
        Ended::HeadLate => late(),
        Ended::Evicted if progress.step.lock().0 == Step::Head => busy(),
        _ => return ended,
    };
    // No answer has begun, so one that says why can follow.
    if let Some(parts) = connection.into_parts() {
        let stream = parts.io.into_inner().into_inner();
        refuse(stream, &answer, progress.place.linger()).await;
    }
    ended
}

/// Polls a connection until it ends or has waited too long.
async fn drive<S, H>(
    connection: &mut UpgradeableConnection<TokioIo<Watched<S>>, H>,
    progress: &Progress,
    timers: Timers,
    stop: &CancellationToken,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: HttpService<Incoming, ResBody = Answer> + Unpin,
    H::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut stopped = pin!(stop.cancelled());
    let mut timer = pin!(tokio::time::sleep_until(progress.deadline(timers).0));
    let mut last: Option<Instant> = None;
    poll_fn(|cx| {
        // First, so that a request that has come is read before the connection ends for want of one.
        let mut over = Pin::new(&mut *connection).poll(cx);
        if over.is_pending() && last.is_none() && stopped.as_mut().poll(cx).is_ready() {
            last = Some(Instant::now() + SHUTDOWN);
            Pin::new(&mut *connection).graceful_shutdown();
            over = Pin::new(&mut *connection).poll(cx);
        }
        if let Poll::Ready(result) = over {
            if let Err(error) = result {
                tracing::debug!(%error, "HTTP connection ended early");
            }
            return Poll::Ready(Ended::ByPeer);
        }
        if progress.place.poll_evicted(cx).is_ready() {
            return Poll::Ready(Ended::Evicted);
        }
        let (deadline, ended) = progress.deadline(timers);
        let deadline = last.map_or(deadline, |last| last.min(deadline));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).map(|()| ended)
    })
    .await
}

/// Answers a peer whose request is not served, and closes in such a way that it can read the answer: the kernel resets a socket that is closed while
/// bytes of the peer are unread, and the peer then loses what it had not read yet (RFC 9112 section 9.6). Without the permit to linger it gets the
/// answer as well, but may lose it if it sends more.
pub async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    answer: &[u8],
    lingering: Option<Lingering>,
) {
    let told = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        if lingering.is_none() {
            return Ok(());
        }
        let (mut left, mut buffer) = (LINGER_BYTES, [0; 1024]);
        while left > 0 {
            match stream.read(&mut buffer).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        io::Result::Ok(())
    };
    // Whatever goes wrong, the socket is closed.
    let _ = tokio::time::timeout(LINGER, told).await;
}

/// Returns the answer to a request whose head did not come whole in time, with the end of the connection.
pub fn late() -> Vec<u8> {
    problem::closing(problem::plain(
        StatusCode::REQUEST_TIMEOUT,
        "request_timeout",
        "The request did not come whole in time.",
    ))
}

/// Returns the answer to a request for which there is no place, with the end of the connection.
pub fn busy() -> Vec<u8> {
    let mut response = problem::plain(
        StatusCode::SERVICE_UNAVAILABLE,
        "busy",
        "Too many requests are unfinished.",
    );
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, problem::scattered_retry());
    problem::closing(response)
}

#[cfg(test)]
mod tests;

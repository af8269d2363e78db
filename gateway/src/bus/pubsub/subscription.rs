//! A connection that subscribes: it waits for each confirmation, and hands out each message where it lies in the buffer that it was read into.
//!
//! The Redis client would do it, but lists every channel of a connection, which is 260 bytes for each client of the gateway, and copies each message on its way. Here
//! [`redis_protocol`] finds the frames; commands are written, and replies to them read, by the functions of the Redis client.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, RedisError, RedisResult, Value};
use redis_protocol::resp3::decode::complete::decode_range;
use redis_protocol::resp3::types::RangeFrame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::connect::failed;
use crate::bus::wire::MAX_PAYLOAD_BYTES;

/// Longest frame. A payload is refused, and said so, from a fourth of it on; what is longer costs the connection.
const MAX_FRAME_BYTES: usize = 4 * MAX_PAYLOAD_BYTES;
/// The least room for one read.
const READ_BYTES: usize = 64 << 10;
/// Most room that is kept while nothing waits in it: a long message leaves it larger.
const KEPT_BYTES: usize = 1 << 20;

/// What a connection runs on: TCP, or TLS over it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// A connection before it subscribes: each command is answered in its turn.
pub(super) struct Session {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    timeout: Duration,
}

impl Session {
    /// Logs in. `timeout` is how long one answer may take.
    pub(super) async fn log_in(
        stream: Box<dyn Stream>,
        username: &str,
        password: Option<&str>,
        timeout: Duration,
    ) -> RedisResult<Self> {
        let mut session = Self {
            stream,
            buffer: Vec::new(),
            timeout,
        };
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        // A user without a password takes any, and logs in only with one.
        if password.is_some() || !username.is_empty() {
            let username = if username.is_empty() {
                "default"
            } else {
                username
            };
            hello
                .arg("AUTH")
                .arg(username)
                .arg(password.unwrap_or_default());
        }
        session.query(&hello).await?;
        Ok(session)
    }

    /// Runs one command.
    pub(super) async fn query(&mut self, command: &Cmd) -> RedisResult<Value> {
        let answer = async {
            self.stream.write_all(&command.get_packed_command()).await?;
            self.stream.flush().await?;
            loop {
                if let Some((_, length)) = frame(&self.buffer)? {
                    let answer = redis::parse_redis_value(&self.buffer[..length]);
                    self.buffer.drain(..length);
                    return answer?.extract_error();
                }
                read(&mut self.stream, &mut self.buffer).await?;
            }
        };
        timeout(self.timeout, answer).await.map_err(|_| late())?
    }

    /// Subscribes from here on. `receive` is called with channel and payload of each message, and must not wait.
    pub(super) fn receive(
        self,
        is_sharded: bool,
        receive: impl FnMut(&[u8], &[u8]) + Send + 'static,
    ) -> Subscription {
        let (stream, writer) = tokio::io::split(self.stream);
        let awaited = Arc::<Mutex<Option<Awaited>>>::default();
        let gone = CancellationToken::new();
        let reader = Reader {
            stream,
            buffer: self.buffer,
            awaited: Arc::clone(&awaited),
            gone: gone.clone(),
            receive,
        };
        Subscription {
            writer,
            timeout: self.timeout,
            is_sharded,
            awaited,
            gone,
            _reader: JoinSet::from_iter([reader.run()]),
        }
    }
}

/// The command whose confirmations are awaited.
struct Awaited {
    /// How the server confirms it.
    kind: &'static [u8],
    /// How many channels are not confirmed yet.
    left: usize,
    done: oneshot::Sender<RedisResult<()>>,
}

/// A connection that receives what it subscribed to, until it is dropped.
pub(super) struct Subscription {
    writer: WriteHalf<Box<dyn Stream>>,
    timeout: Duration,
    is_sharded: bool,
    awaited: Arc<Mutex<Option<Awaited>>>,
    gone: CancellationToken,
    /// Ends with it.
    _reader: JoinSet<()>,
}

impl Subscription {
    /// Ends when the server has confirmed each channel.
    pub(super) async fn subscribe(&mut self, channels: &[String]) -> RedisResult<()> {
        if self.is_sharded {
            return self.run("SSUBSCRIBE", b"ssubscribe", channels).await;
        }
        self.run("SUBSCRIBE", b"subscribe", channels).await
    }

    /// The same.
    pub(super) async fn unsubscribe(&mut self, channels: &[String]) -> RedisResult<()> {
        if self.is_sharded {
            return self.run("SUNSUBSCRIBE", b"sunsubscribe", channels).await;
        }
        self.run("UNSUBSCRIBE", b"unsubscribe", channels).await
    }

    async fn run(
        &mut self,
        command: &str,
        kind: &'static [u8],
        channels: &[String],
    ) -> RedisResult<()> {
        if channels.is_empty() {
            return Ok(());
        }
        let (done, confirmed) = oneshot::channel();
        *self.awaited.lock() = Some(Awaited {
            kind,
            left: channels.len(),
            done,
        });
        let command = redis::cmd(command).arg(channels).get_packed_command();
        let run = async {
            self.writer.write_all(&command).await?;
            self.writer.flush().await?;
            tokio::select! {
                biased;
                Ok(outcome) = confirmed => outcome,
                () = self.gone.cancelled() => Err(closed().into()),
            }
        };
        timeout(self.timeout, run).await.map_err(|_| late())?
    }

    /// Ends when the connection is gone, or when the server has taken the subscription to a channel of a segment back unasked.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Gives the connection up.
    pub(super) fn give_up(&self) {
        self.gone.cancel();
    }
}

/// The reading end.
struct Reader<R> {
    stream: ReadHalf<Box<dyn Stream>>,
    buffer: Vec<u8>,
    awaited: Arc<Mutex<Option<Awaited>>>,
    gone: CancellationToken,
    receive: R,
}

impl<R: FnMut(&[u8], &[u8])> Reader<R> {
    async fn run(mut self) {
        let _gone = self.gone.clone().drop_guard();
        if let Err(error) = self.read().await {
            tracing::debug!(%error, "a subscriber connection to Redis has ended");
        }
    }

    async fn read(&mut self) -> RedisResult<()> {
        loop {
            let mut start = 0;
            while let Some((frame, length)) = frame(&self.buffer[start..])? {
                let bytes = &self.buffer[start..start + length];
                start += length;
                let RangeFrame::Push { data, .. } = frame else {
                    answer(
                        &self.awaited,
                        redis::parse_redis_value(bytes)?.extract_error(),
                    );
                    continue;
                };
                let Some(push) = ChannelPush::new(&data, bytes) else {
                    continue;
                };
                match (push.kind, push.payload) {
                    (b"message" | b"smessage", Some(payload)) => {
                        (self.receive)(push.channel, payload);
                    }
                    (kind, _) => {
                        let is_awaited = confirm(&self.awaited, kind);
                        // The slot of the segment is another node's now.
                        if kind == b"sunsubscribe" && !is_awaited {
                            self.gone.cancel();
                        }
                    }
                }
            }
            // What is read next begins at the front, where the cache has it.
            self.buffer.drain(..start);
            if self.buffer.is_empty() {
                self.buffer.shrink_to(KEPT_BYTES);
            }
            read(&mut self.stream, &mut self.buffer).await?;
        }
    }
}

/// What the server says of a channel.
struct ChannelPush<'b> {
    kind: &'b [u8],
    channel: &'b [u8],
    /// Of a message; of a confirmation it is a number.
    payload: Option<&'b [u8]>,
}

impl<'b> ChannelPush<'b> {
    fn new(data: &[RangeFrame], bytes: &'b [u8]) -> Option<Self> {
        let text = |at: usize| match data.get(at) {
            Some(
                RangeFrame::BlobString {
                    data: (from, to), ..
                }
                | RangeFrame::SimpleString {
                    data: (from, to), ..
                },
            ) => bytes.get(*from..*to),
            _ => None,
        };
        Some(Self {
            kind: text(0)?,
            channel: text(1)?,
            payload: text(2),
        })
    }
}

/// Takes the confirmation of one channel; `false` where none of that kind is awaited.
fn confirm(awaited: &Mutex<Option<Awaited>>, kind: &[u8]) -> bool {
    let mut slot = awaited.lock();
    let Some(command) = slot.as_mut().filter(|command| command.kind == kind) else {
        return false;
    };
    command.left -= 1;
    if command.left == 0
        && let Some(command) = slot.take()
    {
        let _ = command.done.send(Ok(()));
    }
    true
}

/// Takes an answer that is no push: the server refuses the command.
fn answer(awaited: &Mutex<Option<Awaited>>, answer: RedisResult<Value>) {
    if let Some(command) = awaited.lock().take() {
        let outcome = answer.and(Err(failed("Redis answered a subscription otherwise")));
        let _ = command.done.send(outcome);
    }
}

/// Returns the first frame and its length; `None` while it is not whole.
fn frame(bytes: &[u8]) -> RedisResult<Option<(RangeFrame, usize)>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    decode_range(bytes).map_err(|_| failed("Redis sent what is not RESP3"))
}

async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> RedisResult<()> {
    if buffer.len() > MAX_FRAME_BYTES {
        return Err(failed("Redis sent more than any message may be"));
    }
    buffer.reserve(READ_BYTES);
    match stream.read_buf(buffer).await? {
        0 => Err(closed().into()),
        _ => Ok(()),
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "Redis closed the connection")
}

fn late() -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, "Redis did not answer in time").into()
}

#[cfg(test)]
mod tests;

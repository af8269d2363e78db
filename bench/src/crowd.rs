//! The other end: thousands of sockets from several addresses, read by one epoll loop that looks at every frame.
//!
//! Messages carry numbers. A member that gets one twice, late, or not at all ends the run.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use signal_tests::client::{Agreement, Opener};
use socket2::{Domain, SockRef, Socket, Type};

use crate::frame::{self, Frame, opcode};
use crate::os;

/// Connections are opened from so many addresses in turn: one alone has 28,000 ports.
const ADDRESSES: usize = 8;
/// How many are being opened at a time, where nothing else is asked for.
pub(crate) const AT_ONCE: usize = 64;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Who is to become a member.
#[derive(Default)]
pub(crate) struct Guest {
    /// What is asked for in the opening handshake.
    pub(crate) path: String,
    /// The first text, where one is sent.
    pub(crate) first: Option<String>,
    /// Opens what comes, and so checks the order of sealed messages too.
    pub(crate) agreement: Option<Agreement>,
    /// The socket's receive buffer, where it is not to be the system's.
    pub(crate) receive_buffer: Option<usize>,
    /// How it speaks TLS, where it does.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// A socket, or TLS on one.
enum Wire {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    /// Begins a TLS handshake, where there is one; reading goes on with it.
    fn new(socket: TcpStream, tls: Option<Arc<ClientConfig>>) -> Result<Self> {
        let Some(config) = tls else {
            return Ok(Self::Clear(socket));
        };
        let name = ServerName::IpAddress(socket.peer_addr()?.ip().into());
        let connection = ClientConnection::new(config, name)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, socket))))
    }

    /// Writes the first bytes; over TLS they go when the handshake is done.
    fn begin(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Clear(socket) => socket.write_all(bytes),
            Self::Tls(tls) => {
                tls.conn.writer().write_all(bytes)?;
                tls.conn.write_tls(&mut tls.sock).map(drop)
            }
        }
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Clear(socket) => socket,
            Self::Tls(tls) => tls.get_ref(),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Clear(socket) => socket.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// Connections of one crowd.
pub(crate) struct Crowd {
    members: Vec<Member>,
    poll: os::Poll,
    events: os::Events,
    buffer: Vec<u8>,
    /// How many messages each member has had when [`Crowd::receive`] returns.
    expected: u64,
    /// Sleeps until something comes, and leaves the core to others: where those have more to do than this.
    pub(crate) sleeps: bool,
}

enum Stage {
    Upgrading,
    Greeting,
    Ready,
}

struct Member {
    socket: Wire,
    stage: Stage,
    guest: Guest,
    opener: Option<Opener>,
    /// Bytes of a frame whose end has not come.
    rest: Vec<u8>,
    messages: u64,
    /// The number of the last one that could be read.
    last: u64,
    /// Where messages may come in any order: the sum of the numbers of those after `last`.
    sum: Option<u64>,
    /// Answers to what this member sent.
    answers: u64,
}

impl Crowd {
    /// Connects them, a few at a time, until all are greeted.
    pub(crate) fn connect(address: SocketAddr, guests: Vec<Guest>) -> Result<Self> {
        Self::spread(&[address], guests)
    }

    /// The same with `at_once` being opened at a time.
    pub(crate) fn rush(address: SocketAddr, guests: Vec<Guest>, at_once: usize) -> Result<Self> {
        Self::open(&[address], guests, at_once)
    }

    /// The same for several servers: guest `n` goes to the server `n`, counted around.
    pub(crate) fn spread(addresses: &[SocketAddr], guests: Vec<Guest>) -> Result<Self> {
        Self::open(addresses, guests, AT_ONCE)
    }

    fn open(addresses: &[SocketAddr], guests: Vec<Guest>, at_once: usize) -> Result<Self> {
        let count = guests.len();
        let members = Vec::with_capacity(count);
        let poll = os::Poll::new()?;
        let mut crowd = Self {
            members,
            poll,
            events: os::Events::new(4096),
            buffer: vec![0; 256 * 1024],
            expected: 0,
            sleeps: false,
        };
        let mut guests = guests.into_iter();
        let (mut ready, began) = (0, Instant::now());
        while ready < count {
            ensure!(
                began.elapsed() < LIMIT,
                "{ready} of {count} are connected after {LIMIT:?}"
            );
            // What has come is looked at in between: a server waits only so long for the next step.
            for _ in 0..AT_ONCE.min(at_once + ready - crowd.members.len()) {
                let Some(guest) = guests.next() else { break };
                let n = crowd.members.len();
                let address = addresses[n % addresses.len()];
                crowd.members.push(
                    Member::open(address, n, guest).with_context(|| format!("connection {n}"))?,
                );
                crowd
                    .poll
                    .add(crowd.members[n].socket.socket().as_raw_fd(), n as u64)?;
            }
            for token in crowd.poll.look(&mut crowd.events)? {
                let n = token as usize;
                let was = crowd.members[n].is_ready();
                crowd.take(n)?;
                ready += usize::from(!was && crowd.members[n].is_ready());
            }
        }
        Ok(crowd)
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Reads until every member has had `each` messages more, and says how long each member's last one took, in milliseconds.
    pub(crate) fn receive(&mut self, each: u64, began: Instant) -> Result<Vec<f64>> {
        self.expected += each;
        let mut latencies = Vec::with_capacity(self.members.len());
        while latencies.len() < self.members.len() {
            ensure!(
                began.elapsed() < LIMIT,
                "messages are missing: {} of {} members have all",
                latencies.len(),
                self.members.len()
            );
            for token in self.look()? {
                let n = token as usize;
                if self.take(n)? == 0 {
                    continue;
                }
                let messages = self.members[n].messages;
                ensure!(
                    messages <= self.expected,
                    "member {n} got {messages} messages, {} were sent",
                    self.expected
                );
                if messages == self.expected {
                    latencies.push(began.elapsed().as_secs_f64() * 1000.0);
                }
            }
        }
        Ok(latencies)
    }

    /// The same for what was sent at the same time and so may come in any order: each must still come once.
    pub(crate) fn receive_in_any_order(&mut self, each: u64, began: Instant) -> Result<Vec<f64>> {
        for member in &mut self.members {
            member.sum = Some(0);
        }
        let latencies = self.receive(each, began)?;
        for (n, member) in self.members.iter_mut().enumerate() {
            // Members that open nothing have no numbers.
            let wanted: u64 = (member.last + 1..=member.last + each).sum();
            let sum = member.sum.take().unwrap_or_default();
            ensure!(
                sum == wanted || sum == 0,
                "member {n} got other messages than were sent"
            );
            member.last += each;
        }
        Ok(latencies)
    }

    /// Has something sent to one member after another, `rate` times a second, `total` times in all. Says how long each took to arrive after it
    /// was due, in milliseconds: a server that falls behind cannot slow the clock down.
    pub(crate) fn paced(
        &mut self,
        rate: u32,
        total: usize,
        mut send: impl FnMut(&mut Self) -> Result<usize>,
    ) -> Result<Vec<f64>> {
        let began = Instant::now();
        let mut due_since: Vec<VecDeque<Instant>> = vec![VecDeque::new(); self.members.len()];
        let mut latencies = Vec::with_capacity(total);
        let mut sent = 0;
        while latencies.len() < total {
            ensure!(
                began.elapsed() < LIMIT,
                "messages are missing: {} of {total} came",
                latencies.len()
            );
            let due = began + Duration::from_secs_f64(sent as f64 / f64::from(rate));
            if sent < total && Instant::now() >= due {
                let n = send(self)?;
                due_since[n].push_back(due);
                sent += 1;
            }
            for token in self.look()? {
                let n = token as usize;
                for _ in 0..self.take(n)? {
                    let due = due_since[n]
                        .pop_front()
                        .with_context(|| format!("member {n} got what was not sent"))?;
                    latencies.push(due.elapsed().as_secs_f64() * 1000.0);
                }
            }
        }
        Ok(latencies)
    }

    /// Every member has had so many messages more, by [`Crowd::paced`].
    pub(crate) fn expect(&mut self, each: u64) {
        self.expected += each;
    }

    /// The next message has the number after this one.
    pub(crate) fn count_from(&mut self, last: u64) {
        for member in &mut self.members {
            member.last = last;
        }
    }

    /// Sends a frame from one member.
    pub(crate) fn send(&mut self, n: usize, frame: &[u8]) -> Result<()> {
        Ok(self.members[n].socket.write_all(frame)?)
    }

    /// Answers pings for so long, sleeping in between. No message may come.
    pub(crate) fn rest(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            for token in self.poll.wait(&mut self.events, left)? {
                let arrived = self.take(token as usize)?;
                ensure!(
                    arrived == 0,
                    "member {token} got a message that was not sent, or got it twice"
                );
            }
        }
    }

    /// Is cut: connections end with a reset, and leave no ports behind that have to wait.
    pub(crate) fn cut(self) -> Result<()> {
        for member in &self.members {
            SockRef::from(member.socket.socket()).set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// Goes, and gives the server the time to notice.
    pub(crate) fn leave(self, pause: Duration) {
        drop(self);
        std::thread::sleep(pause);
    }

    fn look(&mut self) -> Result<Vec<u64>> {
        let tokens = if self.sleeps {
            self.poll.wait(&mut self.events, Duration::from_millis(1))
        } else {
            self.poll.look(&mut self.events)
        };
        Ok(tokens?)
    }

    fn take(&mut self, n: usize) -> Result<u64> {
        let member = &mut self.members[n];
        let read = match member.socket.read(&mut self.buffer) {
            Ok(0) => bail!("connection {n} was closed"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error).with_context(|| format!("connection {n}")),
        };
        let before = member.messages + member.answers;
        member
            .take(&self.buffer[..read])
            .with_context(|| format!("connection {n}"))?;
        Ok(member.messages + member.answers - before)
    }
}

impl Member {
    fn open(address: SocketAddr, n: usize, mut guest: Guest) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let own = Ipv4Addr::new(127, 0, 0, 2 + (n % ADDRESSES) as u8);
        socket.bind(&SocketAddr::from((own, 0)).into())?;
        if let Some(bytes) = guest.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect(&address.into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut socket = Wire::new(socket.into(), guest.tls.take())?;
        let path = &guest.path;
        // In one segment: formatting into a socket writes piece by piece.
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.begin(request.as_bytes())?;
        Ok(Self {
            socket,
            stage: Stage::Upgrading,
            guest,
            opener: None,
            rest: Vec::new(),
            messages: 0,
            last: 0,
            sum: None,
            answers: 0,
        })
    }

    fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let whole;
        let mut bytes = if self.rest.is_empty() {
            bytes
        } else {
            self.rest.extend_from_slice(bytes);
            whole = std::mem::take(&mut self.rest);
            &whole[..]
        };
        if matches!(self.stage, Stage::Upgrading) {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
                self.rest = bytes.to_vec();
                return Ok(());
            };
            ensure!(
                bytes.starts_with(b"HTTP/1.1 101"),
                "refused: {}",
                String::from_utf8_lossy(bytes)
            );
            bytes = &bytes[end + 4..];
            self.stage = Stage::Ready;
            if let Some(first) = self.guest.first.take() {
                self.stage = Stage::Greeting;
                self.socket
                    .write_all(&frame::of_client(opcode::TEXT, first.as_bytes()))?;
            }
        }
        while let Some(frame) = frame::parse(bytes) {
            bytes = &bytes[frame.length..];
            self.frame(&frame)?;
        }
        self.rest = bytes.to_vec();
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Result<()> {
        let text = || String::from_utf8_lossy(frame.payload);
        match frame.opcode {
            // The floor gives back what it got.
            _ if frame.masked => self.answers += 1,
            opcode::CLOSE => bail!("closed: {:?}", text()),
            opcode::PING => self
                .socket
                .write_all(&frame::of_client(opcode::PONG, frame.payload))?,
            opcode::PONG => self.answers += 1,
            _ if matches!(self.stage, Stage::Greeting) => {
                let mut greeting: Value = serde_json::from_slice(frame.payload)?;
                ensure!(greeting["event"] == "connected", "not let in: {}", text());
                self.opener = self
                    .guest
                    .agreement
                    .take()
                    .map(|agreement| agreement.opener(&greeting["data"].take()));
                self.stage = Stage::Ready;
            }
            _ if frame.payload.starts_with(br#"{"event":"error""#) => self.answers += 1,
            _ if frame.payload.starts_with(br#"{"event":"encrypted""#) => {
                self.sealed(frame.payload)?
            }
            _ => self.message(frame.payload)?,
        }
        Ok(())
    }

    /// What only some members open, since the crowd has one core as the server has. The others count.
    fn sealed(&mut self, payload: &[u8]) -> Result<()> {
        let Some(opener) = &self.opener else {
            self.messages += 1;
            return Ok(());
        };
        let envelope = opener.open(std::str::from_utf8(payload)?);
        if envelope.event == "error" {
            self.answers += 1;
            return Ok(());
        }
        self.message(envelope.data.to_string().as_bytes())
    }

    fn message(&mut self, payload: &[u8]) -> Result<()> {
        let number = frame::number(payload)?;
        self.messages += 1;
        if let Some(sum) = &mut self.sum {
            *sum += number;
            return Ok(());
        }
        ensure!(
            number == self.last + 1,
            "out of order: message {number} came after {}",
            self.last
        );
        self.last = number;
        Ok(())
    }
}

//! The floor: an epoll loop in which nothing is done but what the kernel needs. It accepts sockets, answers the opening handshake with fixed bytes,
//! and then does what a control connection says with one `send` per socket, or gives back to a socket what came from it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::frame::{self, opcode};
use crate::os;

/// Bytes of a command: what, and a number.
const COMMAND: usize = 5;

/// What a control connection may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Order {
    /// A message of so many bytes to every member, each in a `send` of its own.
    Send = b'!',
    /// The same; those read together leave in one `send` per member.
    Join = b'+',
    /// A message of [`UNICAST_BYTES`] to the member of this number.
    One = b'@',
    /// From now on a ping to every member each time so many milliseconds have passed.
    Ping = b'.',
}

/// How often the floor looks who is due for a ping: as often as the gateway.
const TICK: Duration = Duration::from_millis(100);

/// How long a message to one member is.
pub(crate) const UNICAST_BYTES: usize = 128;

impl Order {
    /// As it is written to a control connection.
    pub(crate) fn with(self, number: usize) -> [u8; COMMAND] {
        let [a, b, c, d] = (number as u32).to_be_bytes();
        [self as u8, a, b, c, d]
    }
}

struct Socket {
    stream: TcpStream,
    /// Its number as a member, after the handshake.
    member: Option<usize>,
}

/// Pings in the first half of each interval, as the gateway sends them to those who came together.
struct Pings {
    every: Duration,
    /// When this interval began, and who is next in it.
    began: Instant,
    next: usize,
    tick: Instant,
}

#[derive(Default)]
struct Floor {
    /// By epoll's token; the listener has the first.
    sockets: Vec<Option<Socket>>,
    /// Slots of members by their numbers.
    members: Vec<usize>,
    /// How many messages each member alone got.
    unicasts: Vec<u64>,
    /// How many messages all members got.
    broadcasts: u64,
    pings: Option<Pings>,
}

/// Serves for ever.
pub(crate) fn serve(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let poll = os::Poll::new()?;
    poll.add(listener.as_raw_fd(), 0)?;
    let mut floor = Floor {
        sockets: vec![None],
        ..Floor::default()
    };
    let mut events = os::Events::new(1024);
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let limit = floor.ping()?;
        for token in poll.wait(&mut events, limit)? {
            if token == 0 {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    poll.add(stream.as_raw_fd(), floor.sockets.len() as u64)?;
                    floor.sockets.push(Some(Socket {
                        stream,
                        member: None,
                    }));
                }
            } else {
                floor.read(token as usize, &mut buffer)?;
            }
        }
    }
}

impl Floor {
    fn read(&mut self, slot: usize, buffer: &mut [u8]) -> Result<()> {
        let Some(socket) = &mut self.sockets[slot] else {
            return Ok(());
        };
        let bytes = match socket.stream.read(buffer) {
            Ok(0) | Err(_) => {
                // The listener's slot holds no socket, so nothing is sent to it.
                if let Some(number) = self.sockets[slot].take().and_then(|socket| socket.member) {
                    self.members[number] = 0;
                }
                return Ok(());
            }
            Ok(n) => &buffer[..n],
        };
        if socket.member.is_some() {
            return match bytes[0] & 0x0f {
                opcode::PONG => Ok(()),
                // The echo.
                _ => write(&mut socket.stream, bytes),
            };
        }
        if let Some(path) = bytes.strip_prefix(b"GET /") {
            let digits = path.iter().take_while(|byte| byte.is_ascii_digit());
            let number = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
            socket.member = Some(number);
            write(&mut socket.stream, b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")?;
            if self.members.len() <= number {
                self.members.resize(number + 1, 0);
                self.unicasts.resize(number + 1, 0);
            }
            self.members[number] = slot;
            return Ok(());
        }
        ensure!(
            bytes.len().is_multiple_of(COMMAND),
            "a command came in two parts"
        );
        let mut joined = Vec::new();
        for command in bytes.chunks_exact(COMMAND) {
            let number = u32::from_be_bytes(command[1..].try_into()?) as usize;
            match command[0] {
                b'!' => {
                    let frame = self.next(number);
                    self.fan_out(&frame)?;
                }
                b'+' => joined.extend(self.next(number)),
                b'.' => {
                    let now = Instant::now();
                    self.pings = Some(Pings {
                        every: Duration::from_millis(number as u64),
                        began: now,
                        next: 0,
                        tick: now,
                    });
                }
                b'@' => {
                    self.unicasts[number] += 1;
                    let text = frame::message(self.unicasts[number], UNICAST_BYTES);
                    let member = self.sockets[self.members[number]]
                        .as_mut()
                        .context("a member that is gone")?;
                    write(
                        &mut member.stream,
                        &frame::of_server(opcode::TEXT, text.as_bytes()),
                    )?;
                }
                other => anyhow::bail!("no command begins with {other}"),
            }
        }
        if joined.is_empty() {
            Ok(())
        } else {
            self.fan_out(&joined)
        }
    }

    /// Sends the pings that are due, and returns how long until the next may be.
    fn ping(&mut self) -> Result<Duration> {
        let (now, members) = (Instant::now(), &self.members);
        let Some(pings) = &mut self.pings else {
            return Ok(Duration::from_secs(1));
        };
        if pings.tick <= now {
            pings.tick += TICK;
            if now >= pings.began + pings.every {
                (pings.began, pings.next) = (pings.began + pings.every, 0);
            }
            let passed = (now - pings.began).as_secs_f64() / (pings.every / 2).as_secs_f64();
            let due = (members.len() as f64 * passed.min(1.0)) as usize;
            let frame = frame::of_server(opcode::PING, &[]);
            for member in &members[pings.next.min(due)..due] {
                if let Some(socket) = &mut self.sockets[*member] {
                    write(&mut socket.stream, &frame)?;
                }
            }
            pings.next = due;
        }
        // Rounded up, so that it does not wake too early.
        Ok(pings.tick.saturating_duration_since(now) + Duration::from_millis(1))
    }

    /// The next message to everyone: encoded once.
    fn next(&mut self, bytes: usize) -> Vec<u8> {
        self.broadcasts += 1;
        frame::of_server(
            opcode::TEXT,
            frame::message(self.broadcasts, bytes).as_bytes(),
        )
    }

    fn fan_out(&mut self, bytes: &[u8]) -> Result<()> {
        for member in &self.members {
            if let Some(socket) = &mut self.sockets[*member] {
                write(&mut socket.stream, bytes)?;
            }
        }
        Ok(())
    }
}

/// The benchmark's messages fit into a socket's buffer: what did not would be missing.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    let sent = stream.write(bytes)?;
    ensure!(sent == bytes.len(), "the floor's socket was full");
    Ok(())
}

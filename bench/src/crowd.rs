//! The other end: thousands of sockets in one process, read by one epoll loop that counts every frame.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::os;

/// Connections of one crowd.
pub(crate) struct Crowd {
    members: Vec<Member>,
    poll: os::Poll,
    events: os::Events,
}

struct Member {
    socket: TcpStream,
    /// Bytes of a frame whose end has not come.
    rest: Vec<u8>,
    frames: u64,
}

const LIMIT: Duration = Duration::from_secs(60);

impl Crowd {
    /// Connects `count` sockets and sends each the upgrade request and then, if given, `first`.
    pub(crate) fn connect(address: SocketAddr, count: usize, first: impl Fn(usize) -> Option<String>) -> Result<Self> {
        let poll = os::Poll::new()?;
        let mut members = Vec::with_capacity(count);
        for n in 0..count {
            let mut socket = TcpStream::connect(address).with_context(|| format!("connection {n}"))?;
            socket.set_nodelay(true)?;
            write!(
                socket,
                "GET /stream HTTP/1.1\r\nhost: {address}\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )?;
            let mut head = Vec::new();
            let mut byte = [0u8; 1];
            while !head.ends_with(b"\r\n\r\n") {
                ensure!(socket.read(&mut byte)? == 1, "the server closed connection {n}: {}", String::from_utf8_lossy(&head));
                head.push(byte[0]);
            }
            ensure!(head.starts_with(b"HTTP/1.1 101"), "connection {n} was refused: {}", String::from_utf8_lossy(&head));
            if let Some(text) = first(n) {
                socket.write_all(&masked(text.as_bytes()))?;
            }
            socket.set_nonblocking(true)?;
            poll.add(socket.as_raw_fd(), n as u64)?;
            members.push(Member { socket, rest: Vec::new(), frames: 0 });
        }
        Ok(Self { members, poll, events: os::Events::new(4096) })
    }

    /// Reads until every member has had `frames` frames more, and says how long each connection's last one took, in milliseconds, sorted.
    pub(crate) fn receive(&mut self, frames: u64, began: Instant) -> Result<Vec<f64>> {
        let wanted: Vec<u64> = self.members.iter().map(|member| member.frames + frames).collect();
        let mut latencies = Vec::with_capacity(self.members.len());
        let mut done: HashMap<usize, ()> = HashMap::with_capacity(self.members.len());
        let mut buffer = vec![0u8; 256 * 1024];
        while done.len() < self.members.len() {
            ensure!(began.elapsed() < LIMIT, "{} of {} connections got everything", done.len(), self.members.len());
            for token in self.poll.wait(&mut self.events)? {
                let n = token as usize;
                let member = &mut self.members[n];
                loop {
                    match member.socket.read(&mut buffer) {
                        Ok(0) => anyhow::bail!("connection {n} was closed"),
                        Ok(read) => member.count(&buffer[..read])?,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.into()),
                    }
                }
                ensure!(member.frames <= wanted[n], "connection {n} got more frames than were sent");
                if member.frames == wanted[n] && done.insert(n, ()).is_none() {
                    latencies.push(began.elapsed().as_secs_f64() * 1000.0);
                }
            }
        }
        latencies.sort_by(f64::total_cmp);
        Ok(latencies)
    }
}

impl Member {
    fn count(&mut self, bytes: &[u8]) -> Result<()> {
        let mut whole;
        let mut bytes = if self.rest.is_empty() {
            bytes
        } else {
            whole = std::mem::take(&mut self.rest);
            whole.extend_from_slice(bytes);
            &whole[..]
        };
        while let Some(length) = length(bytes).filter(|length| *length <= bytes.len()) {
            ensure!(bytes[0] != 0x88, "a Close frame: {}", String::from_utf8_lossy(&bytes[2..length]));
            // Pings are not messages.
            self.frames += u64::from(bytes[0] == 0x81);
            bytes = &bytes[length..];
        }
        self.rest = bytes.to_vec();
        Ok(())
    }
}

/// Length of the whole frame at the front.
fn length(bytes: &[u8]) -> Option<usize> {
    match bytes.get(1)? {
        126 => Some(4 + usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        127 => Some(10 + u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        short => Some(2 + usize::from(*short)),
    }
}

/// A client's text frame; the mask is zero, which is a mask like any other.
fn masked(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    if payload.len() < 126 {
        frame.push(0x80 | payload.len() as u8);
    } else {
        frame.push(0x80 | 126);
        frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

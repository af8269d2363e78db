//! A client without manners: bytes, HTTP heads and RFC 6455 frames of any shape over a plain TCP connection.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::wait::{LIMIT, within};

/// Opcodes of RFC 6455 section 5.2.
pub mod opcode {
    /// Goes on with a fragmented message.
    pub const CONTINUATION: u8 = 0;
    /// UTF-8 text.
    pub const TEXT: u8 = 1;
    /// Bytes.
    pub const BINARY: u8 = 2;
    /// The end.
    pub const CLOSE: u8 = 8;
    /// A question.
    pub const PING: u8 = 9;
    /// Its answer.
    pub const PONG: u8 = 10;
}

/// How a frame's length is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// In the shortest form that holds it, as section 5.2 demands.
    Shortest,
    /// In 16 bits, whatever it is.
    Sixteen,
    /// In 64 bits, whatever it is.
    SixtyFour,
    /// In 64 bits, saying this instead of the truth.
    Claimed(u64),
}

/// One frame; [`Frame::new`] makes a good one.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The last of its message.
    pub fin: bool,
    /// The three reserved bits, as a number below 8.
    pub reserved: u8,
    /// See [`opcode`].
    pub opcode: u8,
    /// Whether it is masked, as every client's frame must be.
    pub masked: bool,
    /// How its length is written.
    pub length: Length,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A whole, masked frame.
    pub fn new(opcode: u8, payload: impl AsRef<[u8]>) -> Self {
        Self {
            fin: true,
            reserved: 0,
            opcode,
            masked: true,
            length: Length::Shortest,
            payload: payload.as_ref().to_vec(),
        }
    }

    /// A Close frame with this code and reason.
    pub fn close(code: u16, reason: &str) -> Self {
        Self::new(
            opcode::CLOSE,
            [&code.to_be_bytes(), reason.as_bytes()].concat(),
        )
    }

    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        let mask_bit = if self.masked { 0x80 } else { 0 };
        let mut bytes = vec![(u8::from(self.fin) << 7) | (self.reserved << 4) | self.opcode];
        let length = self.payload.len();
        match self.length {
            Length::Shortest if length < 126 => bytes.push(mask_bit | length as u8),
            Length::Shortest | Length::Sixteen if length <= 0xffff => {
                bytes.push(mask_bit | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            Length::Claimed(claimed) => {
                bytes.push(mask_bit | 127);
                bytes.extend(claimed.to_be_bytes());
            }
            _ => {
                bytes.push(mask_bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if self.masked {
            let mask: [u8; 4] = rand::random();
            bytes.extend(mask);
            bytes.extend(
                self.payload
                    .iter()
                    .zip(mask.iter().cycle())
                    .map(|(byte, mask)| byte ^ mask),
            );
        } else {
            bytes.extend(&self.payload);
        }
        bytes
    }
}

/// The head of an HTTP response.
#[derive(Debug, Clone)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// The head as it came.
    pub text: String,
}

impl Head {
    /// A header field's value; empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        let fields = self.text.lines().filter_map(|line| line.split_once(':'));
        fields
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .next()
            .unwrap_or_default()
    }
}

/// A TCP connection to the gateway.
pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    /// Connects.
    ///
    /// # Panics
    /// When the connection is refused.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("connect", TcpStream::connect(address))
            .await
            .expect("a connection");
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Connects from one of the addresses of this machine.
    ///
    /// # Panics
    /// When the connection is refused.
    pub async fn connect_from(from: IpAddr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind(SocketAddr::new(from, 0))
            .expect("an address of this machine");
        let stream = within("connect", socket.connect(address))
            .await
            .expect("a connection");
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Ends the connection with a reset, as a balancer that dies does.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }

    /// Ends what this side sends; it still reads.
    pub async fn end_sending(&mut self) {
        let _ = within("end", self.stream.shutdown()).await;
    }

    /// Connects with a receive buffer of about this many bytes, so that not reading is soon felt by the sender.
    ///
    /// # Panics
    /// When the connection is refused.
    pub async fn connect_with_receive_buffer(address: SocketAddr, bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("a buffer size");
        let stream = within("connect", socket.connect(address))
            .await
            .expect("a connection");
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Connects and upgrades.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn upgrade(address: SocketAddr) -> Self {
        let mut raw = Self::connect(address).await;
        raw.send_upgrade(address).await;
        raw
    }

    /// Sends an upgrade request and takes the 101.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn send_upgrade(&mut self, address: SocketAddr) {
        self.send(upgrade_request(&format!("Host: {address}")).as_bytes())
            .await;
        let head = self.read_head().await.expect("an answer to the upgrade");
        assert_eq!(head.status, 101, "{head:?}");
    }

    /// Sends bytes. That the server may already be gone is left to the next read to find out.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = within("send bytes", self.stream.write_all(bytes)).await;
    }

    /// Sends a frame.
    pub async fn send_frame(&mut self, frame: &Frame) {
        self.send(&frame.encode()).await;
    }

    /// The head of the next response, or `None` when the connection ends first.
    ///
    /// # Panics
    /// When neither happens in time.
    pub async fn read_head(&mut self) -> Option<Head> {
        loop {
            if let Some(end) = self
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                let text = String::from_utf8_lossy(&head).into_owned();
                let status = text
                    .split(' ')
                    .nth(1)
                    .and_then(|status| status.parse().ok())
                    .unwrap_or_default();
                return Some(Head { status, text });
            }
            if !self.fill(LIMIT).await {
                return None;
            }
        }
    }

    /// Passes over bytes, such as a body of this length.
    ///
    /// # Panics
    /// When they do not come in time.
    pub async fn skip(&mut self, bytes: usize) {
        while self.buffer.len() < bytes {
            assert!(self.fill(LIMIT).await, "the connection ended within a body");
        }
        self.buffer.drain(..bytes);
    }

    /// The next frame, or `None` when the connection ends first.
    ///
    /// # Panics
    /// When neither happens in time, or the server masks a frame.
    pub async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.parse() {
                return Some(frame);
            }
            if !self.fill(LIMIT).await {
                return None;
            }
        }
    }

    /// The code and reason of the Close frame the server sends next; pings, pongs and text before it are passed over.
    /// `None` when the connection ends without one.
    ///
    /// # Panics
    /// When neither happens in time.
    pub async fn read_close(&mut self) -> Option<(u16, String)> {
        while let Some(frame) = self.read_frame().await {
            if frame.opcode == opcode::CLOSE {
                let code = frame
                    .payload
                    .get(..2)
                    .map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                let reason = frame.payload.get(2..).unwrap_or_default();
                return Some((code, String::from_utf8_lossy(reason).into_owned()));
            }
        }
        None
    }

    /// Waits for the server to end the connection.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub async fn expect_end(&mut self, limit: Duration) {
        let end = async { while self.fill(LIMIT).await {} };
        timeout(limit, end)
            .await
            .unwrap_or_else(|_| panic!("the server did not end the connection in {limit:?}"));
    }

    /// Whatever comes until the connection ends.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill(LIMIT).await {}
        std::mem::take(&mut self.buffer)
    }

    /// `false` at the end of the connection.
    async fn fill(&mut self, limit: Duration) -> bool {
        let mut chunk = [0; 16 * 1024];
        let read = timeout(limit, self.stream.read(&mut chunk))
            .await
            .unwrap_or_else(|_| panic!("nothing came in {limit:?}"));
        match read {
            Ok(length) if length > 0 => {
                self.buffer.extend_from_slice(&chunk[..length]);
                true
            }
            _ => false,
        }
    }

    fn parse(&mut self) -> Option<Frame> {
        let buffer = &self.buffer;
        let (&first, &second) = (buffer.first()?, buffer.get(1)?);
        assert_eq!(
            second & 0x80,
            0,
            "a server must not mask (RFC 6455 section 5.1)"
        );
        let (length, head) = match second & 0x7f {
            126 => (
                usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().ok()?)),
                4,
            ),
            127 => (
                u64::from_be_bytes(buffer.get(2..10)?.try_into().ok()?) as usize,
                10,
            ),
            short => (usize::from(short), 2),
        };
        let payload = buffer.get(head..head + length)?.to_vec();
        self.buffer.drain(..head + length);
        Some(Frame {
            fin: first & 0x80 != 0,
            reserved: (first >> 4) & 7,
            opcode: first & 0x0f,
            masked: false,
            length: Length::Shortest,
            payload,
        })
    }
}

/// An upgrade request for `/stream` with one further header line (several where it contains line ends).
pub fn upgrade_request(further: &str) -> String {
    format!(
        "GET /stream HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{further}\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_frames_of_rfc_6455_section_5_7_are_made() {
        let unmasked = Frame {
            masked: false,
            ..Frame::new(opcode::TEXT, "Hello")
        };
        assert_eq!(
            unmasked.encode(),
            [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]
        );
        let long = Frame {
            masked: false,
            ..Frame::new(opcode::BINARY, [0; 256])
        };
        assert_eq!(long.encode()[..4], [0x82, 0x7e, 0x01, 0x00]);
        let longer = Frame {
            masked: false,
            ..Frame::new(opcode::BINARY, vec![0; 65536])
        };
        assert_eq!(longer.encode()[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
        let masked = Frame::new(opcode::TEXT, "Hello").encode();
        assert_eq!((masked.len(), masked[1]), (11, 0x85));
    }

    #[tokio::test]
    async fn frames_and_heads_are_read_from_pieces() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = socket.read(&mut request).await.unwrap();
            let mut bytes =
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_vec();
            bytes.extend(
                Frame {
                    masked: false,
                    ..Frame::new(opcode::TEXT, "x".repeat(300))
                }
                .encode(),
            );
            bytes.extend(
                Frame {
                    masked: false,
                    ..Frame::close(4003, "Authentication failed")
                }
                .encode(),
            );
            for byte in bytes.chunks(7) {
                socket.write_all(byte).await.unwrap();
                socket.flush().await.unwrap();
            }
        });
        let mut raw = Raw::upgrade(address).await;
        assert_eq!(raw.read_frame().await.unwrap().payload.len(), 300);
        assert_eq!(
            raw.read_close().await,
            Some((4003, "Authentication failed".into()))
        );
        assert_eq!(raw.read_close().await, None);
    }
}

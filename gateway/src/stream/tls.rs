//! TLS on a socket: the handshake as a future, and afterwards reads and writes that do not wait.
//!
//! A resting stream holds its keys and no buffer. rustls works in buffers of the thread (its unbuffered API): records are opened where they were read,
//! and sealed into one that is written at once. A stream keeps only a record that has not come whole, and what its socket did not take: a record at most.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{HandshakeKind, ServerConfig};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::{READ_BYTES, read_now};

/// The most plaintext of one record (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;
/// The most that TLS adds to a record, its header included (RFC 5246 section 6.2.3: 2048 and 5).
const OVERHEAD: usize = 2048 + 5;
/// The most that is kept of records and messages that have not come whole.
const INPUT: usize = RECORD + OVERHEAD;
/// The same during a handshake with a client's certificate: the longest message that rustls takes, and its headers.
const INPUT_WITH_CERTIFICATE: usize = 64 * 1024 + OVERHEAD;
/// Most bytes of answers to records of the peer, such as key updates, that may wait for the socket.
const ANSWERS: usize = 64 * 1024;

/// Buffers that all streams of a thread share.
struct Scratch {
    /// Records as they come.
    input: Box<[u8]>,
    /// One record to write.
    output: Box<[u8]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; INPUT_WITH_CERTIFICATE + RECORD].into_boxed_slice(),
        output: vec![0; RECORD + OVERHEAD].into_boxed_slice(),
    });
}

/// TLS without its socket.
pub(super) struct Engine {
    connection: UnbufferedServerConnection,
    /// What has come of a record that is not whole.
    input: Vec<u8>,
    /// Records that the socket has not taken, and how much of them it has.
    output: Vec<u8>,
    written: usize,
    /// Whether the peer has said that nothing more comes.
    ended: bool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            ended: false,
        })
    }

    /// Opens the records in `wire`, which begins with what was kept, and gives their content to `take`. What is to be answered waits in `output`.
    fn open(
        &mut self,
        wire: &mut [u8],
        most: usize,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut at = 0;
        loop {
            let UnbufferedStatus {
                mut discard, state, ..
            } = self.connection.process_tls_records(&mut wire[at..]);
            let more = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        take(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.output)?;
                    true
                }
                // It waits in `output`, ahead of everything that follows.
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.ended = true;
                    true
                }
                Ok(ConnectionState::ReadEarlyData(_)) => {
                    return Err(invalid("early data was not offered"));
                }
                Ok(_) => false,
                Err(error) => {
                    self.ended = true;
                    self.encode_alert();
                    return Err(invalid(error));
                }
            };
            at += discard;
            if !more {
                break;
            }
        }
        self.keep(&wire[at..], most)
    }

    fn keep(&mut self, rest: &[u8], most: usize) -> io::Result<()> {
        if rest.len() > most || self.held_output() > ANSWERS {
            return Err(invalid("too much waits"));
        }
        if rest.is_empty() || self.ended {
            self.input = Vec::new();
        } else {
            self.input.clear();
            self.input.extend_from_slice(rest);
        }
        Ok(())
    }

    /// After an error, rustls has the alert that tells the peer.
    fn encode_alert(&mut self) {
        while self.connection.wants_write() {
            match self.connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    if encode(data, &mut self.output).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    /// Seals at most a record into `output` and returns how many bytes of it are used. Every record before is sealed already.
    fn seal(&mut self, plain: &[u8], output: &mut [u8]) -> io::Result<usize> {
        // rustls keeps positions in what it saw last, so it gets the same again.
        let status = self.connection.process_tls_records(&mut self.input);
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let sealed = traffic.encrypt(plain, output).map_err(invalid)?;
        if !self.connection.wants_write() {
            return Ok(sealed);
        }
        // New keys hold from this record on: the message that says so goes first.
        let mut update = Vec::new();
        while self.connection.wants_write() {
            match self.connection.process_tls_records(&mut self.input).state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut update)?,
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        if let Ok(ConnectionState::TransmitTlsData(data)) =
            self.connection.process_tls_records(&mut self.input).state
        {
            data.done();
        }
        let all = sealed + update.len();
        if all > output.len() {
            return Err(invalid("a key update does not fit"));
        }
        output.copy_within(..sealed, update.len());
        output[..update.len()].copy_from_slice(&update);
        Ok(all)
    }

    /// Writes to the socket what it has not taken. Returns how many bytes it took.
    fn write_held(&mut self, mut socket: impl Write) -> io::Result<usize> {
        let written = socket.write(&self.output[self.written..])?;
        self.written += written;
        if self.written == self.output.len() {
            (self.output, self.written) = (Vec::new(), 0);
        }
        Ok(written)
    }

    fn held_output(&self) -> usize {
        self.output.len() - self.written
    }
}

fn encode(
    mut data: EncodeTlsData<'_, rustls::server::ServerConnectionData>,
    output: &mut Vec<u8>,
) -> io::Result<()> {
    let at = output.len();
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Ok(_) | Err(EncodeError::AlreadyEncoded) => 0,
    };
    output.resize(at + needed, 0);
    data.encode(&mut output[at..]).map_err(invalid)?;
    Ok(())
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Writes without waiting, and without asking the runtime.
struct Now<'a>(&'a TcpStream);

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// TLS on a socket, after the handshake.
#[derive(Debug)]
pub struct TlsStream {
    socket: TcpStream,
    engine: RefCell<Engine>,
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted {
    /// What follows.
    pub stream: TlsStream,
    /// The first bytes of the client, if some came with the end of its handshake.
    pub seen: Vec<u8>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// Why there is no TLS on a socket.
#[derive(Debug, thiserror::Error)]
pub enum NotAccepted {
    /// The first byte is one of plain HTTP.
    #[error("the client does not speak TLS")]
    PlainHttp(TcpStream),
    /// The client has gone, or the handshake failed; an alert was sent.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl TlsStream {
    /// Performs the handshake; `with_certificate` if clients show one, which makes it longer. `seen` was read from the socket before. Dropping the future
    /// drops the socket.
    ///
    /// # Errors
    /// [`NotAccepted`]
    pub async fn accept(
        socket: TcpStream,
        config: Arc<ServerConfig>,
        with_certificate: bool,
        seen: Vec<u8>,
    ) -> Result<Accepted, NotAccepted> {
        let most = match with_certificate {
            true => INPUT_WITH_CERTIFICATE,
            false => INPUT,
        };
        let mut engine = Engine::new(config).map_err(invalid)?;
        engine.input = seen;
        let mut seen = Vec::new();
        let mut first = true;
        loop {
            if !first || engine.input.is_empty() {
                socket.readable().await?;
            }
            let step = SCRATCH.with_borrow_mut(|scratch| {
                let kept = engine.input.len();
                scratch.input[..kept].copy_from_slice(&engine.input);
                let read = match read_now(&socket, &mut scratch.input[kept..]) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => read,
                    Err(error) if waits(&error) => 0,
                    Err(error) => return Err(error),
                };
                let wire = &mut scratch.input[..kept + read];
                if std::mem::take(&mut first) && wire.first().is_some_and(u8::is_ascii_uppercase) {
                    return Ok(false);
                }
                engine.open(wire, most, |plain| seen.extend_from_slice(plain))?;
                Ok(true)
            });
            match step {
                Ok(true) => {}
                Ok(false) => return Err(NotAccepted::PlainHttp(socket)),
                Err(error) => {
                    // The alert of a failed handshake, as far as the socket takes it at once.
                    if engine.held_output() > 0 {
                        let _ = engine.write_held(Now(&socket));
                    }
                    let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Write);
                    return Err(error.into());
                }
            }
            while engine.held_output() > 0 {
                match engine.write_held(Now(&socket)) {
                    Ok(_) => {}
                    Err(error) if waits(&error) => socket.writable().await?,
                    Err(error) => return Err(error.into()),
                }
            }
            if !engine.connection.is_handshaking() {
                break;
            }
        }
        let resumed = engine.connection.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok(Accepted {
            stream: Self::from_parts(socket, engine),
            seen,
            resumed,
        })
    }

    pub(super) fn from_parts(socket: TcpStream, engine: Engine) -> Self {
        Self {
            socket,
            engine: RefCell::new(engine),
        }
    }

    pub(super) fn into_parts(self) -> (TcpStream, Engine) {
        (self.socket, self.engine.into_inner())
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether everything that the peer sent has been read.
    pub(super) fn has_ended(&self) -> bool {
        self.engine.borrow().ended
    }

    pub(super) fn held_input(&self) -> usize {
        self.engine.borrow().input.capacity()
    }

    /// Bytes on their way that the socket has not taken.
    pub fn held_output(&self) -> usize {
        self.engine.borrow().held_output()
    }

    pub(super) fn read(&self, plain: &mut [u8]) -> io::Result<usize> {
        debug_assert!(plain.len() >= READ_BYTES);
        let engine = &mut *self.engine.borrow_mut();
        if engine.ended {
            return Ok(0);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = engine.input.len();
            // What comes out of records is shorter than they are.
            let room = plain.len().min(scratch.input.len());
            if kept >= room {
                return Err(invalid("too much waits"));
            }
            let wire = &mut scratch.input[..room];
            wire[..kept].copy_from_slice(&engine.input);
            let read = read_now(&self.socket, &mut wire[kept..])?;
            if read == 0 {
                return Ok(0);
            }
            let mut length = 0;
            let opened = engine.open(&mut wire[..kept + read], INPUT, |bytes| {
                plain[length..length + bytes.len()].copy_from_slice(bytes);
                length += bytes.len();
            });
            if opened.is_err() && engine.held_output() > 0 {
                // The alert, as far as the socket takes it at once.
                let _ = engine.write_held(Now(&self.socket));
            }
            match opened {
                // What came before the fault counts; the next read ends.
                Ok(()) | Err(_) if length > 0 => Ok(length),
                Ok(()) if engine.ended => Ok(0),
                Ok(()) => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => Err(error),
            }
        })
    }

    /// Seals and writes as much as the socket takes, and a record more at most, whose rest is held. Returns the bytes of `plain` that are on their way.
    /// Nothing is held when it is called.
    ///
    /// # Errors
    /// Those of the socket; never `WouldBlock`.
    pub fn write(&self, plain: &[u8]) -> io::Result<usize> {
        let engine = &mut *self.engine.borrow_mut();
        SCRATCH.with_borrow_mut(|scratch| {
            let mut taken = 0;
            while taken < plain.len() {
                let piece = &plain[taken..plain.len().min(taken + RECORD)];
                let sealed = engine.seal(piece, &mut scratch.output)?;
                taken += piece.len();
                let written = match Now(&self.socket).write(&scratch.output[..sealed]) {
                    Ok(written) => written,
                    Err(error) if waits(&error) => 0,
                    Err(error) => return Err(error),
                };
                if written < sealed {
                    engine
                        .output
                        .extend_from_slice(&scratch.output[written..sealed]);
                    break;
                }
            }
            Ok(taken)
        })
    }

    /// Writes what is held. Returns how many bytes of it the socket took.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn write_held(&self) -> io::Result<usize> {
        self.engine.borrow_mut().write_held(Now(&self.socket))
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn close_notify(&self) {
        let engine = &mut *self.engine.borrow_mut();
        if engine.held_output() > 0 {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let status = engine.connection.process_tls_records(&mut engine.input);
            if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state
                && let Ok(sealed) = traffic.queue_close_notify(&mut scratch.output)
            {
                let _ = Now(&self.socket).write(&scratch.output[..sealed]);
            }
        });
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

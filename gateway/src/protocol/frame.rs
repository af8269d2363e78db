//! Frames of RFC 6455: a decoder that works in place on what was read, and messages that are encoded once for all their receivers.
//!
//! Between reads the decoder holds only unfinished frames and messages, so a waiting connection has no buffer.
//! Each violation has its close code (section 7.4.1): 1002, 1007 or 1009.

use smallvec::SmallVec;

use super::close::Close;

/// Longest payload of a control frame (RFC 6455 section 5.5).
pub const MAX_CONTROL: usize = 125;
/// Longest header of a frame that a server sends.
const MAX_HEADER: usize = 10;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a frame is (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Continues a message.
    Continuation = 0x0,
    /// Begins a text message.
    Text = 0x1,
    /// Begins a binary message.
    Binary = 0x2,
    /// Closes the connection.
    Close = 0x8,
    /// Asks for a pong.
    Ping = 0x9,
    /// Answers a ping, or is sent unasked.
    Pong = 0xA,
}

/// How the peer broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is malformed or out of place.
    #[error("{0}")]
    Protocol(&'static str),
    /// A text message or a close reason is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// The message is longer than the limit.
    #[error("message is longer than the limit")]
    TooBig,
}

impl From<FrameError> for Close {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Protocol(_) => Self::ProtocolError,
            FrameError::Utf8 => Self::InvalidPayload,
            FrameError::TooBig => Self::TooBig,
        }
    }
}

/// One frame, its payload unmasked in place.
#[derive(Debug)]
struct Frame<'b> {
    fin: bool,
    opcode: Opcode,
    payload: &'b mut [u8],
}

/// What the peer sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'b> {
    /// A whole text message.
    Text(&'b str),
    /// A whole binary message.
    Binary(&'b [u8]),
    /// A ping; the pong returns its payload.
    Ping(&'b [u8]),
    /// A pong.
    Pong,
    /// An empty fragment of a message. It counts as a frame, because any number of them stays below every limit of bytes.
    Empty,
    /// A Close frame, with its code and reason if it has them.
    Close(Option<(u16, &'b str)>),
}

/// Splits the bytes of one connection into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes of an unfinished frame.
    pending: Vec<u8>,
    /// The fragments of an unfinished message.
    fragments: Option<Box<Fragments>>,
}

#[derive(Debug)]
struct Fragments {
    opcode: Opcode,
    data: Vec<u8>,
}

impl Decoder {
    /// Creates a decoder that continues with bytes that were already read.
    pub fn with_pending(pending: Vec<u8>) -> Self {
        Self {
            pending,
            fragments: None,
        }
    }

    /// Returns the bytes held for an unfinished frame or message.
    pub fn held_bytes(&self) -> usize {
        self.pending.capacity()
            + self
                .fragments
                .as_ref()
                .map_or(0, |fragments| fragments.data.capacity())
    }

    /// Returns whether no frame or message is unfinished.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.fragments.is_none()
    }

    /// Decodes what was read, and calls `on` for each message, until `on` returns false or the rest is an unfinished frame.
    ///
    /// `input` is scratch: frames are unmasked in it. `limit` bounds a whole message in bytes.
    ///
    /// # Errors
    /// The first violation; nothing more may be read from this peer.
    pub fn read(
        &mut self,
        input: &mut [u8],
        limit: usize,
        mut on: impl FnMut(Received<'_>) -> bool,
    ) -> Result<(), FrameError> {
        if self.pending.is_empty() {
            let used = self.split(input, limit, &mut on)?;
            // One allocation, of the size of the whole frame if its header is there and the limit allows.
            if used < input.len() {
                let rest = &input[used..];
                self.pending.reserve_exact(
                    rest.len()
                        .max(whole_length(rest).unwrap_or(0).min(limit + 16)),
                );
                self.pending.extend_from_slice(rest);
            }
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(input);
        let used = self.split(&mut pending, limit, &mut on)?;
        if used < pending.len() {
            pending.drain(..used);
            self.pending = pending;
        }
        Ok(())
    }

    fn split(
        &mut self,
        buffer: &mut [u8],
        limit: usize,
        on: &mut impl FnMut(Received<'_>) -> bool,
    ) -> Result<usize, FrameError> {
        let mut at = 0;
        while at < buffer.len() {
            let Some((frame, length)) = decode(&mut buffer[at..], limit)? else {
                break;
            };
            at += length;
            if !self.frame(frame, limit, on)? {
                return Ok(buffer.len());
            }
        }
        Ok(at)
    }

    fn frame(
        &mut self,
        frame: Frame<'_>,
        limit: usize,
        on: &mut impl FnMut(Received<'_>) -> bool,
    ) -> Result<bool, FrameError> {
        match frame.opcode {
            Opcode::Ping => Ok(on(Received::Ping(frame.payload))),
            Opcode::Pong => Ok(on(Received::Pong)),
            Opcode::Close => Ok(on(Received::Close(close_reason(frame.payload)?))),
            Opcode::Continuation => {
                let fragments = self
                    .fragments
                    .as_mut()
                    .ok_or(FrameError::Protocol("continuation without a message"))?;
                if fragments.data.len() + frame.payload.len() > limit {
                    return Err(FrameError::TooBig);
                }
                fragments.data.extend_from_slice(frame.payload);
                if !frame.fin {
                    return Ok(!frame.payload.is_empty() || on(Received::Empty));
                }
                let whole = self.fragments.take().expect("taken from above");
                message(whole.opcode, &whole.data, on)
            }
            Opcode::Text | Opcode::Binary if self.fragments.is_some() => Err(FrameError::Protocol(
                "a new message inside an unfinished one",
            )),
            opcode if frame.fin => message(opcode, frame.payload, on),
            opcode => {
                self.fragments = Some(Box::new(Fragments {
                    opcode,
                    data: frame.payload.to_vec(),
                }));
                Ok(true)
            }
        }
    }
}

fn message(
    opcode: Opcode,
    data: &[u8],
    on: &mut impl FnMut(Received<'_>) -> bool,
) -> Result<bool, FrameError> {
    if opcode == Opcode::Binary {
        return Ok(on(Received::Binary(data)));
    }
    simdutf8::basic::from_utf8(data)
        .map(|text| on(Received::Text(text)))
        .map_err(|_| FrameError::Utf8)
}

/// Reads the code and the reason of a Close frame. A peer may send these codes (RFC 6455 section 7.4): 1000-1003, 1007-1014 as registered, 3000-4999.
fn close_reason(payload: &[u8]) -> Result<Option<(u16, &str)>, FrameError> {
    match payload {
        [] => Ok(None),
        [_] => Err(FrameError::Protocol("close payload of one byte")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(FrameError::Protocol("close code that may not be sent"));
            }
            let reason = simdutf8::basic::from_utf8(reason).map_err(|_| FrameError::Utf8)?;
            Ok(Some((code, reason)))
        }
    }
}

/// Returns the length of the whole frame, if the header is complete.
fn whole_length(bytes: &[u8]) -> Option<usize> {
    let second = *bytes.get(1)?;
    let (header, length) = match second & 0x7F {
        126 => (
            4,
            usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?,
        ),
        short => (2, usize::from(short)),
    };
    (header + 4usize).checked_add(length)
}

/// Returns the opcode in the first byte of a frame (RFC 6455 5.2).
#[inline]
fn opcode(first: u8) -> Result<Opcode, FrameError> {
    Ok(match first & 0x0F {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xA => Opcode::Pong,
        _ => return Err(FrameError::Protocol("a reserved opcode")),
    })
}

/// Reads one frame from the front, or returns `None` if it is not complete. A violation is reported as soon as its bytes are there.
fn decode(bytes: &mut [u8], limit: usize) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let (first, second) = match *bytes {
        [first] => (first, None),
        [first, second, ..] => (first, Some(second)),
        [] => return Ok(None),
    };
    if first & RESERVED != 0 {
        return Err(FrameError::Protocol("a reserved bit is set"));
    }
    let fin = first & FIN != 0;
    let opcode = opcode(first)?;
    let control = opcode as u8 & 0x8 != 0;
    if control && !fin {
        return Err(FrameError::Protocol("a control frame in parts"));
    }
    let Some(second) = second else {
        return Ok(None);
    };
    if second & MASKED == 0 {
        return Err(FrameError::Protocol("a client frame without a mask"));
    }
    let short = usize::from(second & 0x7F);
    if control && short > MAX_CONTROL {
        return Err(FrameError::Protocol("a control frame over 125 bytes"));
    }
    let (header, length) = match short {
        126 => {
            let Some(field) = bytes.get(2..4) else {
                return Ok(None);
            };
            let length = usize::from(u16::from_be_bytes([field[0], field[1]]));
            if length < 126 {
                return Err(FrameError::Protocol("a length not in its shortest form"));
            }
            (4, length)
        }
        127 => {
            let Some(field) = bytes.get(2..10) else {
                return Ok(None);
            };
            let length = u64::from_be_bytes(field.try_into().expect("eight bytes"));
            if length >> 63 != 0 {
                return Err(FrameError::Protocol("a length with its highest bit set"));
            }
            if length < 65_536 {
                return Err(FrameError::Protocol("a length not in its shortest form"));
            }
            (10, usize::try_from(length).map_err(|_| FrameError::TooBig)?)
        }
        short => (2, short),
    };
    if length > limit {
        return Err(FrameError::TooBig);
    }
    let start = header + 4;
    if bytes.len() < start + length {
        return Ok(None);
    }
    let mask = [
        bytes[header],
        bytes[header + 1],
        bytes[header + 2],
        bytes[header + 3],
    ];
    let payload = &mut bytes[start..start + length];
    unmask(payload, mask);
    Ok(Some((
        Frame {
            fin,
            opcode,
            payload,
        },
        start + length,
    )))
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let word = u64::from_ne_bytes((&*chunk).try_into().expect("eight bytes")) ^ wide;
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// One unmasked frame, encoded once; all receivers share the bytes.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    frame_at: u8,
    payload_at: u8,
}

impl Message {
    /// Encodes a text frame.
    pub fn text(payload: &[u8]) -> Self {
        Self::new(Opcode::Text, payload)
    }

    /// Encodes a final frame.
    pub fn new(opcode: Opcode, payload: &[u8]) -> Self {
        let header = header(opcode, payload.len());
        let mut bytes = Vec::with_capacity(header.len() + payload.len());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(payload);
        Self {
            bytes,
            frame_at: 0,
            payload_at: header.len() as u8,
        }
    }

    /// Encodes a text frame. `write` appends its payload, of about `room` bytes.
    pub fn written(room: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(MAX_HEADER + room);
        bytes.extend_from_slice(&[0; MAX_HEADER]);
        write(&mut bytes);
        // The length of the header is known only here: it ends where the payload begins.
        let header = header(Opcode::Text, bytes.len() - MAX_HEADER);
        let frame_at = MAX_HEADER - header.len();
        bytes[frame_at..MAX_HEADER].copy_from_slice(&header);
        Self {
            bytes,
            frame_at: frame_at as u8,
            payload_at: MAX_HEADER as u8,
        }
    }

    /// Encodes a Close frame.
    pub fn close(code: u16, reason: &str) -> Self {
        let mut payload = Vec::with_capacity(2 + reason.len());
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
        payload.truncate(MAX_CONTROL);
        Self::new(Opcode::Close, &payload)
    }

    /// Returns the frame as it is written.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[usize::from(self.frame_at)..]
    }

    /// Returns the payload.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[usize::from(self.payload_at)..]
    }
}

/// Encodes the header of a final, unmasked frame, with the length in its shortest form.
pub fn header(opcode: Opcode, length: usize) -> SmallVec<[u8; MAX_HEADER]> {
    let mut out = SmallVec::from_slice(&[FIN | opcode as u8]);
    match length {
        0..=125 => out.push(length as u8),
        126..=65_535 => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out
}

/// Returns the length of what [`header`] encodes.
pub fn header_length(length: usize) -> usize {
    match length {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

#[cfg(test)]
mod tests;

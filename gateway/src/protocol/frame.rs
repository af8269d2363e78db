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
    /// How much of its payload is unmasked and, being text, found to be UTF-8.
    checked: usize,
    /// The end of the text that was checked so far, in frames and parts of a frame.
    text: Utf8Check,
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
            ..Self::default()
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
    /// The first violation, as soon as its bytes are there; nothing more may be read from this peer.
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
            let Some(head) = head(&buffer[at..], limit)? else {
                break;
            };
            if self.bytes_before(head.opcode)? + head.length > limit {
                return Err(FrameError::TooBig);
            }
            let start = at + head.start;
            let there = buffer.len().min(start + head.length);
            let payload = &mut buffer[start..there];
            if payload.len() < head.length {
                self.begun(&head, payload)?;
                break;
            }
            let checked = std::mem::take(&mut self.checked);
            unmask(&mut payload[checked..], head.mask, checked);
            at = there;
            if !self.frame(&head, payload, checked, on)? {
                return Ok(buffer.len());
            }
        }
        Ok(at)
    }

    /// Returns how much of its message has come before a frame, which must be in its place.
    fn bytes_before(&self, opcode: Opcode) -> Result<usize, FrameError> {
        match (opcode, &self.fragments) {
            (Opcode::Continuation, None) => {
                Err(FrameError::Protocol("continuation without a message"))
            }
            (Opcode::Continuation, Some(fragments)) => Ok(fragments.data.len()),
            (Opcode::Text | Opcode::Binary, Some(_)) => Err(FrameError::Protocol(
                "a new message inside an unfinished one",
            )),
            _ => Ok(0),
        }
    }

    /// Looks at the part of a frame that is there: text that cannot become UTF-8 ends the connection before the rest comes (RFC 6455 section 8.1).
    fn begun(&mut self, head: &Head, part: &mut [u8]) -> Result<(), FrameError> {
        let is_text = match head.opcode {
            Opcode::Text => true,
            Opcode::Continuation => self.continues_text(),
            _ => false,
        };
        if is_text {
            let fresh = &mut part[self.checked..];
            unmask(fresh, head.mask, self.checked);
            self.text.push(fresh)?;
            self.checked = part.len();
        }
        Ok(())
    }

    fn continues_text(&self) -> bool {
        let fragments = self.fragments.as_ref();
        fragments.is_some_and(|fragments| fragments.opcode == Opcode::Text)
    }

    /// Takes a whole frame, of which `checked` bytes of text were checked before.
    fn frame(
        &mut self,
        head: &Head,
        payload: &[u8],
        checked: usize,
        on: &mut impl FnMut(Received<'_>) -> bool,
    ) -> Result<bool, FrameError> {
        match head.opcode {
            Opcode::Ping => Ok(on(Received::Ping(payload))),
            Opcode::Pong => Ok(on(Received::Pong)),
            Opcode::Close => Ok(on(Received::Close(close_reason(payload)?))),
            Opcode::Continuation => {
                if self.continues_text() {
                    self.text.push(&payload[checked..])?;
                }
                let mut fragments = self.fragments.take().expect("a frame in its place");
                fragments.data.extend_from_slice(payload);
                if !head.fin {
                    self.fragments = Some(fragments);
                    return Ok(!payload.is_empty() || on(Received::Empty));
                }
                self.text = Utf8Check::default();
                message(fragments.opcode, &fragments.data, on)
            }
            opcode if head.fin => {
                self.text = Utf8Check::default();
                message(opcode, payload, on)
            }
            opcode => {
                if opcode == Opcode::Text {
                    self.text.push(&payload[checked..])?;
                }
                self.fragments = Some(Box::new(Fragments {
                    opcode,
                    data: payload.to_vec(),
                }));
                Ok(true)
            }
        }
    }
}

/// Reads a whole message. Its text is checked as a whole, however much of it was checked before: once more costs less than to trust that it was.
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

/// Checks text that comes in parts: keeps the beginning of a character that the end of a part cut off.
#[derive(Debug, Default, Clone, Copy)]
struct Utf8Check {
    cut: [u8; 4],
    length: u8,
}

impl Utf8Check {
    /// Takes the next part.
    ///
    /// # Errors
    /// What came so far cannot become UTF-8.
    fn push(&mut self, mut part: &[u8]) -> Result<(), FrameError> {
        while self.length > 0 {
            let [next, rest @ ..] = part else {
                return Ok(());
            };
            part = rest;
            self.cut[usize::from(self.length)] = *next;
            self.length += 1;
            match std::str::from_utf8(&self.cut[..usize::from(self.length)]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(FrameError::Utf8),
            }
        }
        let Err(error) = simdutf8::compat::from_utf8(part) else {
            return Ok(());
        };
        if error.error_len().is_some() {
            return Err(FrameError::Utf8);
        }
        let cut = &part[error.valid_up_to()..];
        self.cut[..cut.len()].copy_from_slice(cut);
        self.length = cut.len() as u8;
        Ok(())
    }
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

/// The header of a frame.
#[derive(Debug)]
struct Head {
    fin: bool,
    opcode: Opcode,
    mask: [u8; 4],
    /// Where the payload begins, and how long it is.
    start: usize,
    length: usize,
}

/// Reads the header of a frame, or returns `None` if it is not complete. A violation is reported as soon as its bytes are there.
fn head(bytes: &[u8], limit: usize) -> Result<Option<Head>, FrameError> {
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
    let Some((at, length)) = length(bytes, short)? else {
        return Ok(None);
    };
    if length > limit {
        return Err(FrameError::TooBig);
    }
    let Some(mask) = bytes.get(at..at + 4) else {
        return Ok(None);
    };
    Ok(Some(Head {
        fin,
        opcode,
        mask: mask.try_into().expect("four bytes"),
        start: at + 4,
        length,
    }))
}

/// Reads the length of a payload: where its field ends, and the length.
fn length(bytes: &[u8], short: usize) -> Result<Option<(usize, usize)>, FrameError> {
    match short {
        126 => {
            let Some(field) = bytes.get(2..4) else {
                return Ok(None);
            };
            let length = usize::from(u16::from_be_bytes([field[0], field[1]]));
            if length < 126 {
                return Err(FrameError::Protocol("a length not in its shortest form"));
            }
            Ok(Some((4, length)))
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
            let length = usize::try_from(length).map_err(|_| FrameError::TooBig)?;
            Ok(Some((10, length)))
        }
        short => Ok(Some((2, short))),
    }
}

/// Unmasks a part of a payload that begins at byte `at` of it (RFC 6455 section 5.3).
fn unmask(part: &mut [u8], mut mask: [u8; 4], at: usize) {
    mask.rotate_left(at % 4);
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let mut chunks = part.chunks_exact_mut(8);
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

//! RFC 6455 frames as this benchmark writes and reads them, and the numbers by which it tells that none is missing or out of order.

use anyhow::{Result, ensure};

/// Opcodes of RFC 6455 section 5.2.
pub(crate) mod opcode {
    pub(crate) const TEXT: u8 = 1;
    pub(crate) const CLOSE: u8 = 8;
    pub(crate) const PING: u8 = 9;
    pub(crate) const PONG: u8 = 10;
}

/// One whole frame.
pub(crate) struct Frame<'b> {
    pub(crate) opcode: u8,
    pub(crate) masked: bool,
    /// Without the mask: only this benchmark's own frames carry one, and it is zero.
    pub(crate) payload: &'b [u8],
    /// All of it, with its header.
    pub(crate) length: usize,
}

/// The frame at the front, once it is there as a whole.
pub(crate) fn parse(bytes: &[u8]) -> Option<Frame<'_>> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (head, length) = match second & 0x7f {
        126 => (
            4,
            usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])),
        ),
        127 => (
            10,
            u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
        ),
        short => (2, usize::from(short)),
    };
    let masked = second & 0x80 != 0;
    let head = head + if masked { 4 } else { 0 };
    let payload = bytes.get(head..head + length)?;
    Some(Frame {
        opcode: first & 0x0f,
        masked,
        payload,
        length: head + length,
    })
}

/// A client's frame; the mask is zero, which is a mask like any other.
pub(crate) fn of_client(opcode: u8, payload: &[u8]) -> Vec<u8> {
    write(opcode, 0x80, &[0; 4], payload)
}

/// A server's frame.
pub(crate) fn of_server(opcode: u8, payload: &[u8]) -> Vec<u8> {
    write(opcode, 0, &[], payload)
}

fn write(opcode: u8, bit: u8, mask: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    if payload.len() < 126 {
        frame.push(bit | payload.len() as u8);
    } else {
        frame.push(bit | 126);
        frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    frame.extend_from_slice(mask);
    frame.extend_from_slice(payload);
    frame
}

/// In front of a message's number, wherever in it that stands.
const MARK: &[u8] = b"No-";

/// How a message's number is written.
pub(crate) fn numbered(number: u64) -> String {
    format!("No-{number:010}")
}

/// The number in a message.
pub(crate) fn number(payload: &[u8]) -> Result<u64> {
    let at = memchr::memmem::find(payload, MARK).map(|at| at + MARK.len());
    let digits = at
        .and_then(|at| payload.get(at..at + 10))
        .filter(|digits| digits.iter().all(u8::is_ascii_digit));
    ensure!(
        digits.is_some(),
        "a message without a number: {}",
        String::from_utf8_lossy(payload)
    );
    Ok(digits
        .unwrap_or_default()
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// The event of every message that is sent to members.
pub(crate) const EVENT: &str = "bench";

/// The data of the message `number`, such that [`message`] has `bytes` bytes.
pub(crate) fn data(number: u64, bytes: usize) -> String {
    let mut data = numbered(number);
    data.extend(std::iter::repeat_n(
        'x',
        bytes.saturating_sub(r#"{"event":"bench","data":"No-0123456789"}"#.len()),
    ));
    data
}

/// The message `number` of `bytes` bytes, as a member gets it in the clear.
pub(crate) fn message(number: u64, bytes: usize) -> String {
    format!(r#"{{"event":"{EVENT}","data":"{}"}}"#, data(number, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back_and_none_before_its_end() {
        for bytes in [40, 125, 126, 1024] {
            let text = message(7, bytes);
            assert_eq!(text.len(), bytes);
            for frame in [
                of_client(opcode::TEXT, text.as_bytes()),
                of_server(opcode::TEXT, text.as_bytes()),
            ] {
                assert!((0..frame.len()).all(|end| parse(&frame[..end]).is_none()));
                let read = parse(&frame).unwrap();
                assert_eq!(
                    (read.opcode, read.payload, read.length),
                    (opcode::TEXT, text.as_bytes(), frame.len())
                );
            }
        }
    }

    #[test]
    fn a_number_is_found_anywhere() {
        assert_eq!(
            number(message(1_234_567_890, 128).as_bytes()).unwrap(),
            1_234_567_890
        );
        assert_eq!(
            number(br#"{"data":{"orderId":"No-0000000012"}}"#).unwrap(),
            12
        );
        assert!(number(b"No-12").is_err());
    }
}

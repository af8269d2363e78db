use super::*;
use proptest::prelude::*;

#[derive(Debug, PartialEq, Eq, Clone)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Empty,
    Close(Option<(u16, String)>),
}

fn client(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..=125 => frame.push(0x80 | n as u8),
        n @ 126..=65_535 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, k)| b ^ k));
    frame
}

fn read(decoder: &mut Decoder, bytes: &[u8], limit: usize) -> Result<Vec<Seen>, FrameError> {
    let mut seen = Vec::new();
    decoder.read(&mut bytes.to_vec(), limit, |item| {
        seen.push(match item {
            Received::Text(t) => Seen::Text(t.into()),
            Received::Binary(b) => Seen::Binary(b.into()),
            Received::Ping(p) => Seen::Ping(p.into()),
            Received::Pong => Seen::Pong,
            Received::Empty => Seen::Empty,
            Received::Close(c) => Seen::Close(c.map(|(code, reason)| (code, reason.into()))),
        });
        true
    })?;
    Ok(seen)
}

fn all(bytes: &[u8]) -> Result<Vec<Seen>, FrameError> {
    read(&mut Decoder::default(), bytes, 1 << 20)
}

#[test]
fn the_masked_hello_of_rfc_6455_section_5_7_is_read() {
    let bytes = [
        0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
    ];
    assert_eq!(all(&bytes), Ok(vec![Seen::Text("Hello".into())]));
}

#[test]
fn the_unmasked_frames_of_rfc_6455_section_5_7_are_written() {
    assert_eq!(
        Message::text(b"Hello").frame(),
        [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]
    );
    assert_eq!(
        Message::new(Opcode::Binary, &[0; 256]).frame()[..4],
        [0x82, 0x7E, 0x01, 0x00]
    );
    assert_eq!(
        Message::new(Opcode::Binary, &[0; 65536]).frame()[..10],
        [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]
    );
    for length in [0, 125, 126, 65_535, 65_536] {
        assert_eq!(header(Opcode::Text, length).len(), header_length(length));
        let payload = vec![b'a'; length];
        let written = Message::written(0, |out| out.extend_from_slice(&payload));
        assert_eq!(
            (written.frame(), written.payload()),
            (Message::text(&payload).frame(), &payload[..])
        );
    }
}

#[test]
fn a_message_in_parts_may_have_pings_between_them() {
    let bytes = [
        client(0x01, b"Hel"),
        client(0x89, b"?"),
        client(0x80, b"lo"),
    ]
    .concat();
    assert_eq!(
        all(&bytes),
        Ok(vec![Seen::Ping(b"?".to_vec()), Seen::Text("Hello".into())])
    );
}

#[test]
fn a_part_that_carries_nothing_is_told() {
    let bytes = [
        client(0x01, b""),
        client(0x00, b""),
        client(0x00, b"a"),
        client(0x80, b""),
    ]
    .concat();
    assert_eq!(all(&bytes), Ok(vec![Seen::Empty, Seen::Text("a".into())]));
}

/// protocol.md 1.4.
#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn each_violation_has_its_close_code() {
    let cases: &[(&str, Vec<u8>, Close)] = &[
        ("no mask", vec![0x81, 0x01, b'a'], Close::ProtocolError),
        ("reserved bit", client(0xC1, b"a"), Close::ProtocolError),
        ("reserved opcode", client(0x83, b"a"), Close::ProtocolError),
        (
            "reserved control opcode",
            client(0x8B, b""),
            Close::ProtocolError,
        ),
        ("control in parts", client(0x09, b""), Close::ProtocolError),
        (
            "control over 125 bytes",
            client(0x89, &[0; 126]),
            Close::ProtocolError,
        ),
        (
            "continuation of nothing",
            client(0x80, b"a"),
            Close::ProtocolError,
        ),
        (
            "a message inside another",
            [client(0x01, b"a"), client(0x81, b"b")].concat(),
            Close::ProtocolError,
        ),
        (
            "16-bit length below 126",
            vec![0x81, 0xFE, 0, 5, 0, 0, 0, 0],
            Close::ProtocolError,
        ),
        (
            "64-bit length below 65536",
            vec![0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0, 5],
            Close::ProtocolError,
        ),
        (
            "64-bit length with the top bit",
            vec![0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0],
            Close::ProtocolError,
        ),
        (
            "not UTF-8",
            client(0x81, &[0xce, 0xba, 0xe1, 0xbd]),
            Close::InvalidPayload,
        ),
        (
            "surrogate",
            client(0x81, &[0xed, 0xa0, 0x80]),
            Close::InvalidPayload,
        ),
        (
            "close of one byte",
            client(0x88, &[3]),
            Close::ProtocolError,
        ),
        ("close 1005", client(0x88, &[3, 0xED]), Close::ProtocolError),
        ("close 999", client(0x88, &[3, 0xE7]), Close::ProtocolError),
        (
            "close 5000",
            client(0x88, &[0x13, 0x88]),
            Close::ProtocolError,
        ),
        (
            "close reason not UTF-8",
            client(0x88, &[3, 0xE8, 0xff]),
            Close::InvalidPayload,
        ),
        (
            "longer than the limit, known from the header",
            vec![0x81, 0xFF, 0, 0, 0, 0, 0, 0x10, 0, 1],
            Close::TooBig,
        ),
        (
            "parts longer than the limit",
            [
                client(0x01, &[b'a'; 600_000]),
                client(0x80, &[b'a'; 600_000]),
            ]
            .concat(),
            Close::TooBig,
        ),
    ];
    for (name, bytes, close) in cases {
        assert_eq!(all(bytes).map_err(Close::from), Err(*close), "{name}");
    }
}

/// The text of 6.4 of the Autobahn suite, which turns wrong in its middle (RFC 6455 section 8.1).
const WRONG: &[u8] = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited";
/// How much of it is still a beginning of UTF-8: `f4 90` is beyond the last character.
const RIGHT: usize = 12;

/// protocol.md 1.4.
#[test]
fn text_that_cannot_become_utf_8_ends_before_the_message_is_complete() {
    // In one frame, byte by byte.
    let frame = client(0x81, WRONG);
    let header = frame.len() - WRONG.len();
    let mut decoder = Decoder::default();
    for (at, byte) in frame.iter().enumerate() {
        let result = read(&mut decoder, &[*byte], 1 << 20);
        if at < header + RIGHT {
            assert_eq!(result, Ok(vec![]), "byte {at}");
        } else {
            assert_eq!(result, Err(FrameError::Utf8), "byte {at}");
            break;
        }
    }
    // In fragments, with a ping between them.
    for cut in 0..=RIGHT {
        let mut decoder = Decoder::default();
        let begun = [client(0x01, &WRONG[..cut]), client(0x89, b"?")].concat();
        assert_eq!(read(&mut decoder, &begun, 1 << 20).map(|_| ()), Ok(()));
        let next = client(0x00, &WRONG[cut..=RIGHT]);
        let result = read(&mut decoder, &next, 1 << 20);
        assert_eq!(result, Err(FrameError::Utf8), "{cut}");
        // And in the middle of the second fragment.
        let mut decoder = Decoder::default();
        read(&mut decoder, &begun, 1 << 20).unwrap();
        let part = &client(0x80, &WRONG[cut..])[..6 + RIGHT + 1 - cut];
        let result = read(&mut decoder, part, 1 << 20);
        assert_eq!(result, Err(FrameError::Utf8), "{cut}");
    }
    let cut_off = [client(0x01, b"a"), client(0x80, b"\xce")].concat();
    assert_eq!(all(&cut_off), Err(FrameError::Utf8));
}

#[test]
fn binary_messages_are_not_checked_in_parts() {
    let mut decoder = Decoder::default();
    let bytes = [client(0x02, WRONG), client(0x80, WRONG)].concat();
    let mut seen = Vec::new();
    for byte in bytes {
        seen.extend(read(&mut decoder, &[byte], 1 << 20).unwrap());
    }
    assert_eq!(seen, [Seen::Binary(WRONG.repeat(2))]);
}

#[test]
fn valid_close_frames_are_read() {
    assert_eq!(all(&client(0x88, b"")), Ok(vec![Seen::Close(None)]));
    for code in [1000u16, 1001, 1003, 1007, 1011, 3000, 4999] {
        let payload = [&code.to_be_bytes()[..], "tạm biệt".as_bytes()].concat();
        assert_eq!(
            all(&client(0x88, &payload)),
            Ok(vec![Seen::Close(Some((code, "tạm biệt".into())))])
        );
    }
}

#[test]
fn a_decoder_between_messages_holds_no_memory() {
    let mut decoder = Decoder::default();
    let frame = client(0x81, &[b'x'; 1000]);
    assert_eq!(read(&mut decoder, &frame[..500], 2000).unwrap(), []);
    assert!(!decoder.is_idle());
    assert_eq!(read(&mut decoder, &frame[500..], 2000).unwrap().len(), 1);
    assert!(decoder.is_idle());
    assert_eq!(decoder.pending.capacity(), 0);
}

#[test]
fn nothing_is_read_after_the_callback_says_stop() {
    let mut decoder = Decoder::default();
    let mut bytes = [client(0x88, b""), client(0x81, b"late")].concat();
    let mut count = 0;
    decoder
        .read(&mut bytes, 100, |_| {
            count += 1;
            false
        })
        .unwrap();
    assert_eq!(count, 1);
    assert!(decoder.is_idle());
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_messages(
        texts in prop::collection::vec(".{0,300}", 1..6),
        cuts in prop::collection::vec(1usize..700, 0..12),
    ) {
        let bytes: Vec<u8> = texts.iter().flat_map(|t| client(0x81, t.as_bytes())).collect();
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            seen.extend(read(&mut decoder, now, 4096).unwrap());
            rest = later;
        }
        seen.extend(read(&mut decoder, rest, 4096).unwrap());
        prop_assert_eq!(seen, texts.into_iter().map(Seen::Text).collect::<Vec<_>>());
        prop_assert!(decoder.is_idle());
    }

    #[test]
    fn any_split_into_fragments_and_reads_gives_the_same_text(
        text in ".{0,200}",
        fragments in prop::collection::vec(0usize..40, 0..8),
        cuts in prop::collection::vec(1usize..30, 0..40),
    ) {
        let (mut bytes, mut rest, mut first) = (Vec::new(), text.as_bytes(), 0x01);
        for length in fragments {
            let (now, later) = rest.split_at(length.min(rest.len()));
            bytes.extend(client(first, now));
            (rest, first) = (later, 0x00);
        }
        bytes.extend(client(0x80 | first, rest));
        let mut decoder = Decoder::default();
        let (mut seen, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            seen.extend(read(&mut decoder, now, 4096).unwrap());
            rest = later;
        }
        seen.extend(read(&mut decoder, rest, 4096).unwrap());
        seen.retain(|item| *item != Seen::Empty);
        prop_assert_eq!(seen, vec![Seen::Text(text)]);
        prop_assert!(decoder.is_idle());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = all(&bytes);
    }
}

//! Entry points for fuzzing: each takes any bytes and panics where a decoder breaks a promise.
//!
//! `signal-fuzz` runs them over its corpus and what it makes of it. No part of the library's interface.

use crate::activity::decode::{Record, decode};
use crate::config::load_live;
use crate::protocol::envelope::{Envelope, encode};
use crate::protocol::frame::{Decoder, Message, Opcode, header};

/// Takes any bytes and panics where a promise is broken.
pub type Entry = fn(&[u8]);

/// Every entry point with its name, which is also that of its folder in the corpus.
pub const ENTRIES: [(&str, Entry); 9] = [
    ("activity", activity),
    ("envelope", envelope),
    ("frame", frame),
    ("jwks", crate::auth::fuzzing::jwks),
    ("jwt", crate::auth::fuzzing::jwt),
    ("live", live),
    ("opening", crate::ws::fuzzing::opening),
    ("proxied", crate::ws::fuzzing::proxied),
    ("redis", crate::bus::fuzzing::redis),
];

/// A message's bound in bytes, small enough for inputs to pass it.
const LIMIT: usize = 256;

/// Decodes bytes as they are and in two pieces: both give the same messages, and none is longer than the limit.
fn frame(input: &[u8]) {
    let (cut, bytes) = input
        .split_first()
        .map_or((0, input), |(first, rest)| (usize::from(*first), rest));
    let (head, tail) = bytes.split_at(cut.min(bytes.len()));
    let whole = frames(&[bytes]);
    assert_eq!(whole, frames(&[head, tail]), "cut at {}", head.len());
    if let Ok(text) = std::str::from_utf8(bytes)
        && text.len() <= LIMIT
    {
        let message = Message::new(Opcode::Text, bytes);
        assert_eq!(message.payload(), bytes);
        let mut masked = header(Opcode::Text, bytes.len()).to_vec();
        masked[1] |= 0x80;
        let key = [0x37, 0xfa, 0x21, 0x3d];
        masked.extend(key);
        masked.extend(
            bytes
                .iter()
                .zip(key.iter().cycle())
                .map(|(byte, key)| byte ^ key),
        );
        assert_eq!(frames(&[&masked]), (vec![format!("Text({text:?})")], None));
    }
}

/// What a decoder gives for these pieces, and its error.
fn frames(pieces: &[&[u8]]) -> (Vec<String>, Option<String>) {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for piece in pieces {
        let result = decoder.read(&mut piece.to_vec(), LIMIT, |item| {
            found.push(format!("{item:?}"));
            true
        });
        if let Err(error) = result {
            return (found, Some(error.to_string()));
        }
        let held = decoder.held_bytes();
        assert!(held <= 8 * LIMIT, "{held} bytes are held");
    }
    (found, None)
}

/// Reads an envelope, writes what was read, and reads it again: both are the same.
fn envelope(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(envelope) = Envelope::parse(text) else {
        return;
    };
    if envelope.event.is_empty() {
        // The event was no text.
        return;
    }
    let data = envelope.data.map(|data| data.get());
    let written = encode(&envelope.event, data);
    let written = std::str::from_utf8(written.payload()).expect("an envelope is text");
    let again = Envelope::parse(written).expect("what was written is an envelope");
    assert_eq!(again.event, envelope.event);
    assert_eq!(again.data.map(|data| data.get()), data);
}

/// Decodes a record whose first byte selects its headers: the result is the same each time, names its event, and a refusal is short.
fn activity(input: &[u8]) {
    let (kind, value) = input.split_first().unwrap_or((&0, input));
    let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
    let headers = match kind % 4 {
        0 => Vec::new(),
        1 => vec![header("content-type", "application/cloudevents+json")],
        2 => vec![
            header("content-type", "application/json"),
            header("ce_specversion", "1.0"),
            header("ce_id", "1"),
            header("ce_type", "PAYMENT_SUCCESS"),
            header("ce_source", "/payments"),
        ],
        _ => vec![("content-type".to_owned(), Some(value.to_vec()))],
    };
    let record = Record {
        topic: "activity".into(),
        partition: 0,
        offset: 7,
        timestamp: Some(1_764_000_000_000),
        key: None,
        value: Some(value.to_vec()),
        headers,
    };
    match (decode(&record), decode(&record)) {
        (Ok(one), Ok(two)) => {
            assert!(!one.event_id.is_empty() && !one.kind.is_empty() && !one.source.is_empty());
            assert_eq!(format!("{one:?}"), format!("{two:?}"));
        }
        (Err(one), Err(two)) => {
            assert_eq!(one.detail, two.detail);
            assert!(one.detail.len() <= 4096, "{} bytes", one.detail.len());
        }
        _ => panic!("the same record was taken and refused"),
    }
}

/// Loads live settings, writes what was loaded, and loads it again: both are the same.
fn live(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match load_live(text) {
        Ok(live) => {
            let written = toml::to_string(&live).expect("live settings are TOML");
            let again = load_live(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
            assert_eq!(format!("{live:?}"), format!("{again:?}"));
        }
        Err(invalid) => assert!(!invalid.0.is_empty(), "a refusal has a reason"),
    }
}

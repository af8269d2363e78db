//! Names of rooms: which ones exist from the start, and which ones a client may ask for (protocol.md, section 5).

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Envelope;
use super::bounds::{MAX_ROOM_CHARS, MAX_ROOMS_PER_EVENT};
use super::envelope::Mark;

/// Rooms that every client joins by authenticating (protocol.md 4.6).
pub const DEFAULT_ROOMS: [&str; 2] = ["ws-default", "ws-notification"];

/// Beginning of names that no room may have.
pub const RESERVED_PREFIX: &str = "ws:";

/// Returns whether a room may have this name: not empty, at most [`MAX_ROOM_CHARS`] UTF-16 units, not beginning with [`RESERVED_PREFIX`].
pub fn is_room_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(RESERVED_PREFIX)
        && (name.len() <= MAX_ROOM_CHARS || name.encode_utf16().count() <= MAX_ROOM_CHARS)
}

/// Data of `join` and `leave`. Names that are not strings are dropped, each by itself, so the members are any JSON.
#[derive(Debug, Deserialize)]
pub struct Rooms<'m> {
    #[serde(borrow)]
    rooms: Vec<&'m RawValue>,
}

/// What a `join` or `leave` names.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// The names that a client may ask for, without repeats, at most [`MAX_ROOMS_PER_EVENT`] of them.
    pub names: Vec<String>,
    /// Whether there were more.
    pub more: bool,
}

/// The rooms of a `join`, and what its answer repeats, if it is to be answered (protocol.md 5.8).
#[derive(Debug, PartialEq, Eq)]
pub struct Join {
    /// Their names.
    pub rooms: Vec<String>,
    /// The mark of the client.
    pub mark: Option<Mark>,
}

impl<'m> Rooms<'m> {
    /// Reads the data of a `join` or `leave`; `None` where it is no object with a list `rooms`.
    pub fn read(envelope: &Envelope<'m>) -> Option<Asked> {
        // serde would read a list as the members in their order.
        let data = envelope.data?.get();
        data.starts_with('{')
            .then(|| serde_json::from_str::<Self>(data).ok())?
            .map(Self::asked)
    }

    fn asked(self) -> Asked {
        let mut names: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for room in self.rooms {
            // Half of a surrogate pair, as in a text that was cut within an emoji, is no string here.
            match serde_json::from_str::<String>(room.get()) {
                Ok(name) if is_room_name(&name) && seen.insert(name.clone()) => {
                    if names.len() == MAX_ROOMS_PER_EVENT {
                        return Asked { names, more: true };
                    }
                    names.push(name);
                }
                _ => {}
            }
        }
        Asked { names, more: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &serde_json::Value) -> Option<Asked> {
        let text = serde_json::json!({"event": "join", "data": data}).to_string();
        Rooms::read(&Envelope::parse(&text).unwrap())
    }

    /// protocol.md 5.1.
    #[test]
    fn room_names_that_no_client_may_ask_for_are_dropped() {
        let rooms = serde_json::json!({"rooms": ["a", 5, "", "ws:x", "a", null, "ă".repeat(256), "b".repeat(257), {"x": 1}]});
        let asked = Asked {
            names: vec!["a".to_owned(), "ă".repeat(256)],
            more: false,
        };
        assert_eq!(read(&rooms), Some(asked));
    }

    /// protocol.md 5.1: a name that cannot be read takes no other one with it.
    #[test]
    fn names_that_cannot_be_read_are_dropped_each_by_itself() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for bad in [r#""a\ud83d""#, r#"{"\ud83d":1}"#, "1e400", &deep] {
            let text = format!(r#"{{"event":"join","data":{{"rooms":[{bad},"a"]}}}}"#);
            let asked = Rooms::read(&Envelope::parse(&text).unwrap());
            assert_eq!(asked.unwrap().names, ["a"], "{bad}");
        }
    }

    /// protocol.md 5.1.
    #[test]
    fn one_event_names_1024_rooms_and_more_are_told() {
        for (count, more) in [(1024, false), (1025, true)] {
            let rooms: Vec<String> = (0..count).map(|n| format!("r{n}")).collect();
            let asked = read(&serde_json::json!({"rooms": rooms})).unwrap();
            assert_eq!((asked.names.len(), asked.more), (1024, more));
        }
    }

    /// protocol.md 3.3.
    #[test]
    fn data_without_a_list_of_rooms_names_nothing() {
        for data in [
            "null",
            "5",
            "{}",
            r#"{"rooms":"a"}"#,
            r#"[["a"]]"#,
            r#""a""#,
        ] {
            assert_eq!(read(&serde_json::from_str(data).unwrap()), None, "{data}");
        }
    }
}

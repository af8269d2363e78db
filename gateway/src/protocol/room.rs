//! Names of rooms: which ones exist from the start, and which ones a client may ask for (protocol.md, section 5).

use std::collections::HashSet;

use serde::Deserialize;

use super::bounds::{MAX_ROOM_CHARS, MAX_ROOMS_PER_EVENT};

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

/// Data of `join` and `leave`. Names that are not strings are dropped, so the members are any JSON.
#[derive(Debug, Deserialize)]
pub struct Rooms {
    rooms: Vec<serde_json::Value>,
}

impl Rooms {
    /// Returns the names that a client may ask for, without repeats, at most [`MAX_ROOMS_PER_EVENT`] of them.
    pub fn names(self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for room in self.rooms {
            if names.len() == MAX_ROOMS_PER_EVENT {
                break;
            }
            match room {
                serde_json::Value::String(name)
                    if is_room_name(&name) && seen.insert(name.clone()) =>
                {
                    names.push(name)
                }
                _ => {}
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// protocol.md 5.1.
    #[test]
    fn room_names_that_no_client_may_ask_for_are_dropped() {
        let rooms: Rooms = serde_json::from_value(
            serde_json::json!({"rooms": ["a", 5, "", "ws:x", "a", null, "ă".repeat(256), "b".repeat(257), {"x": 1}]}),
        )
        .unwrap();
        assert_eq!(rooms.names(), ["a".to_owned(), "ă".repeat(256)]);
    }
}

//! Bounds of what clients may send, each once: sessions and the documents use these.

pub use crate::notification::MAX_READ_IDS;

/// Most rows of one `notification:sync` (protocol.md 3.17).
pub const MAX_SYNC: u32 = 200;
/// Most rooms of one `join` or `leave` that count (protocol.md 5.1).
pub const MAX_ROOMS_PER_EVENT: usize = 1024;
/// Longest room name, in UTF-16 units (protocol.md 5.1).
pub const MAX_ROOM_CHARS: usize = 256;
/// Longest `id` of an envelope that an answer repeats, in UTF-16 units (protocol.md 2.14).
pub const MAX_MARK_CHARS: usize = 64;
/// Longest reason of a Close frame in bytes (RFC 6455 section 5.5: 125 bytes less the code).
pub const MAX_CLOSE_REASON: usize = super::frame::MAX_CONTROL - 2;

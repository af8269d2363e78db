//! The limits that connections obey, taken from the live settings.

use std::time::Duration;

use super::outbox::Bounds;
use crate::config::Live;

/// The live limits of connections, copied by each shard so that no lock is needed.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Bounds of each outbox.
    pub outbox: Bounds,
    /// Longest message to clients in bytes.
    pub message_bytes: usize,
    /// Longest message of a client in bytes.
    pub frame_bytes: usize,
    /// Frames per second of one connection; 0 for no limit.
    pub frames_per_second: u32,
    /// Frames that may come at once.
    pub frame_burst: u32,
    /// Longest time a socket may take no bytes while something waits.
    pub write_timeout: Duration,
    /// Rooms of one connection, the default ones included.
    pub rooms: usize,
    /// Connections of one user on this instance.
    pub connections_per_user: u32,
}

impl ConnectionLimits {
    pub(super) fn of(live: &Live) -> Self {
        let (limits, rooms) = (&live.limits, &live.rooms);
        Self {
            outbox: Bounds {
                bytes: limits.send_queue.bytes,
                frames: limits.send_queue.frames,
            },
            message_bytes: limits.message_bytes,
            frame_bytes: limits.frame_bytes,
            frames_per_second: limits.inbound_frames_per_second,
            frame_burst: limits.inbound_burst,
            write_timeout: Duration::from_millis(limits.send_queue.write_timeout_ms),
            rooms: rooms.max_per_connection,
            connections_per_user: match u32::try_from(limits.connections_per_user) {
                Ok(0) | Err(_) => u32::MAX,
                Ok(limit) => limit,
            },
        }
    }
}

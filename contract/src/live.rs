//! The live settings: what may change while connections are open.

use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Jwks, RedisLocation};

/// `live.default.toml`: every live setting with its default.
pub const LIVE_DEFAULTS: &str = include_str!("../live.default.toml");

/// The live settings.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    /// Origins allowed besides the gateway's own.
    pub allowed_origins: Vec<String>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Networks whose sockets begin with a header of PROXY protocol version 2.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Clocks.
    pub auth: LiveAuth,
    /// Logs.
    pub observability: LiveObservability,
    /// Rooms.
    pub rooms: LiveRooms,
    /// Bounds of this instance.
    pub limits: Limits,
    /// Who may issue tokens, and how key sets are fetched.
    pub jwks: Jwks,
    /// The Redis in use; `None` for that of the static settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisLocation>,
    /// The previous Redis: the gateway publishes and subscribes there as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis_previous: Option<RedisLocation>,
}

/// `[auth]` of the live settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LiveAuth {
    /// Allowed difference between the clocks of issuers and gateways, in seconds.
    pub clock_skew_secs: u64,
}

/// `[observability]` of the live settings.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LiveObservability {
    /// What is logged, in tracing's filter syntax.
    pub log_filter: String,
}

/// `[rooms]` of the live settings.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LiveRooms {
    /// Most rooms of one connection.
    pub max_per_connection: usize,
}

/// `[limits]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Open connections of the instance.
    pub connections_per_pod: usize,
    /// Connections of one user on this instance; 0 for no limit.
    pub connections_per_user: usize,
    /// WebSocket connections accepted per second.
    pub accepts_per_second: u32,
    /// How many more may come at once.
    pub accept_burst: u32,
    /// Sockets that are no WebSockets.
    pub http_connections_per_pod: usize,
    /// Those of one network.
    pub http_connections_per_network: usize,
    /// Longest message of a client in bytes.
    pub frame_bytes: usize,
    /// Longest message to clients in bytes.
    pub message_bytes: usize,
    /// Frames per second of one connection; 0 for no limit.
    pub inbound_frames_per_second: u32,
    /// How many more may come at once.
    pub inbound_burst: u32,
    /// What may wait to be written.
    pub send_queue: SendQueue,
}

/// Least and greatest `limits.message_bytes`: all that a gateway itself sends but notifications fits into the least, and Redis drops a subscriber for
/// which more than the greatest waits, unless it is configured otherwise (`client-output-buffer-limit pubsub`).
pub const MIN_MESSAGE_BYTES: usize = 65_536;
/// See [`MIN_MESSAGE_BYTES`].
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// `[limits.send_queue]`
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SendQueue {
    /// Bytes that may wait for one connection.
    pub bytes: usize,
    /// Frames that may wait for one connection.
    pub frames: usize,
    /// Bytes that may wait on the whole instance.
    pub total_bytes: usize,
    /// Longest time a socket may take nothing, in milliseconds.
    pub write_timeout_ms: u64,
}

impl Live {
    /// Returns the built-in defaults: nobody may issue tokens.
    pub fn defaults() -> Self {
        toml::from_str(LIVE_DEFAULTS).expect("the defaults parse")
    }

    /// Returns the files that these settings name, each with the name of its setting.
    pub fn files(&self) -> impl Iterator<Item = (String, &Path)> {
        let locations = [
            ("redis", &self.redis),
            ("redis_previous", &self.redis_previous),
        ];
        let of_locations = locations
            .into_iter()
            .filter_map(|(section, location)| Some((section, location.as_ref()?)))
            .flat_map(|(section, location)| {
                location
                    .files()
                    .map(move |(name, path)| (format!("{section}.{name}"), path))
            });
        self.jwks.files().chain(of_locations)
    }
}

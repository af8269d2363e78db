//! What instances report about live connections to each other and to administrators, and how connections are selected. Plain data.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::Id;

/// Most connections that one instance lists in an answer.
pub const MAX_LISTED: usize = 1000;

/// Describes one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientInfo {
    /// Client id.
    pub id: Id,
    /// The user, once authenticated.
    pub user_id: Option<String>,
    /// `connecting`, `authenticating`, `authenticated`, `encrypted` or `closed`.
    pub state: String,
    /// Whether frames to it are encrypted.
    pub encrypted: bool,
    /// Rooms it is in, except the room of its own id.
    pub rooms: Vec<String>,
    /// When it connected, RFC 3339.
    pub connected_at: String,
    /// When its last frame came, RFC 3339.
    pub last_seen_at: String,
    /// The address it connected from.
    pub address: Option<IpAddr>,
}

/// Selects the connections of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientQuery {
    /// Only of this user.
    pub user_id: Option<String>,
    /// Only in this room.
    pub room: Option<String>,
    /// Only with an id above this one, by the order of their text.
    pub after: Option<Id>,
    /// At most so many, and never more than [`MAX_LISTED`].
    pub limit: usize,
}

/// Selects the connections that are closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientSelector {
    /// One connection.
    Client(Id),
    /// All connections of a user.
    User(String),
}

/// Counts the connections of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ClientCounts {
    /// Open.
    pub total: usize,
    /// Authenticated, encrypted ones included.
    pub authenticated: usize,
    /// Encrypted.
    pub encrypted: usize,
}

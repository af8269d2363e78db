//! Live connections of this instance.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::delivery::{Destination, Dispatch};
use crate::id::Id;
use crate::protocol::close::Close;

/// Most connections one instance lists in an answer.
pub const MAX_LISTED: usize = 1000;

/// What is told of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientInfo {
    /// Client id.
    pub id: Id,
    /// The user, once authenticated.
    pub user_id: Option<String>,
    /// `connecting`, `authenticating`, `authenticated` or `encrypted`.
    pub state: String,
    /// Whether frames to it are sealed.
    pub encrypted: bool,
    /// Rooms it is in, its own id's excepted.
    pub rooms: Vec<String>,
    /// When it connected, RFC 3339.
    pub connected_at: String,
    /// When its last frame came, RFC 3339.
    pub last_seen_at: String,
    /// Where it connected from.
    pub address: Option<IpAddr>,
}

/// Which connections are listed.
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

/// Which connections are closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// One.
    Client(Id),
    /// All of a user.
    User(String),
}

/// How many connections there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Open.
    pub total: usize,
    /// Past authentication.
    pub authenticated: usize,
    /// Sealed.
    pub encrypted: usize,
}

/// The handle to every shard's connections; cheap to clone, callable from any thread.
#[derive(Clone)]
pub struct Hub {
    _shards: (),
}

impl Hub {
    /// A hub without shards: it holds nothing.
    pub fn none() -> Self {
        Self { _shards: () }
    }

    /// Hands a message to every local connection it is for; says how many those are. Never blocks.
    pub fn deliver(&self, _dispatch: &Dispatch) -> usize {
        0
    }

    /// Whether a destination has a local connection.
    pub fn holds(&self, _destination: &Destination) -> bool {
        false
    }

    /// How many connections there are.
    pub fn counts(&self) -> Counts {
        Counts::default()
    }

    /// Local connections in the order of their ids' text.
    pub async fn list(&self, _query: &ClientQuery) -> Vec<ClientInfo> {
        Vec::new()
    }

    /// One local connection.
    pub async fn describe(&self, _client: Id) -> Option<ClientInfo> {
        None
    }

    /// Closes local connections; says how many.
    pub async fn close(&self, _which: &Which, _close: Close) -> usize {
        0
    }

    /// Closes `count` random authenticated connections with 4009; says how many.
    pub async fn shed(&self, _count: usize) -> usize {
        0
    }

    /// Puts a local connection into rooms, past the ACL; `None` if it is not held here, else the rooms that are new to it.
    pub async fn join(&self, _client: Id, _rooms: &[String]) -> Option<Vec<String>> {
        None
    }

    /// Takes a local connection out of rooms; `None` if it is not held here, else the rooms it was in.
    pub async fn leave(&self, _client: Id, _rooms: &[String]) -> Option<Vec<String>> {
        None
    }

    /// Closes every local connection whose token a revocation matches (4006); says how many.
    pub async fn revoke(&self, _revocation: &crate::bus::Revocation) -> usize {
        0
    }
}

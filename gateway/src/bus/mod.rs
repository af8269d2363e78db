//! Between instances: dispatches over Redis Pub/Sub as the wire protocol says, or within the process when there is one instance alone.
//!
//! Input: dispatches from [`crate::delivery`], interests from [`crate::hub`]. Output: [`BusEvent`]s, which `app` hands to the hub.
//! An instance subscribes only to what it holds, so Redis hands a message to the owning instances and nobody else.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::delivery::{Destination, Dispatch};
use crate::hub::{ClientInfo, ClientQuery};
use crate::id::Id;

/// A channel this instance wants to hear: one of its clients, their users, its rooms.
pub type Interest = Destination;

/// Why something could not be published or asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BusError {
    /// Redis cannot be reached or did not answer in time.
    #[error("the bus is unavailable: {0}")]
    Unavailable(String),
    /// Too much waits to be published already.
    #[error("too many dispatches wait to be published")]
    Full,
}

/// What comes in.
#[derive(Debug)]
pub enum BusEvent {
    /// Another instance, or an outside emitter, sent this; never what this instance published itself.
    Dispatch(Dispatch),
    /// Pushes may have been missed: every local client is to be told.
    Resync(&'static str),
    /// Another instance asks; the answer goes back through the channel, or is dropped for none.
    Asked(Ask, oneshot::Sender<Reply>),
}

/// A question for other instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum Ask {
    /// Which connections do you hold?
    List {
        /// Which of them.
        query: ClientQuery,
    },
    /// What do you know of this connection?
    Describe {
        /// Which.
        client: Id,
    },
    /// Close these with that code.
    Close {
        /// One connection, or ...
        client: Option<Id>,
        /// ... all of a user.
        user: Option<String>,
    },
    /// Put this connection into rooms, past the ACL.
    Join {
        /// Which.
        client: Id,
        /// Into which.
        rooms: Vec<String>,
    },
    /// Take it out of them.
    Leave {
        /// Which.
        client: Id,
        /// Out of which.
        rooms: Vec<String>,
    },
    /// Do you hold this connection?
    Holds {
        /// Which.
        client: Id,
    },
    /// This revocation was made; it is stored already.
    Revoke {
        /// What is refused from here on.
        revocation: Revocation,
    },
}

/// An answer to an [`Ask`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "camelCase")]
pub enum Reply {
    /// To `List` and `Describe`.
    Clients {
        /// Those held; at most [`crate::hub::MAX_LISTED`].
        clients: Vec<ClientInfo>,
    },
    /// To `Close` and `Revoke`: how many. To `Holds`: 0 or 1.
    Count {
        /// How many.
        count: usize,
    },
    /// To `Join` and `Leave`: the rooms that changed; `None` when the client is not held here.
    Rooms {
        /// Which.
        rooms: Option<Vec<String>>,
    },
}

/// What all live instances answered.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// By instance name.
    pub replies: Vec<(String, Reply)>,
    /// Names of live instances that did not answer in time.
    pub missing: Vec<String>,
}

/// Tokens that are refused before their time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// All tokens of this subject ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// ... or the one token with this `jti` ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// ... that were issued before this time, in milliseconds since the Unix epoch.
    pub issued_before_ms: i64,
    /// When it may be forgotten: the longest life of a token later, in milliseconds since the Unix epoch.
    pub until_ms: i64,
}

/// How well the bus hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hearing {
    /// There is nothing to hear, or the self-ping came back in time.
    Good,
    /// Subscriptions are down or the self-ping has not come back: pushes from elsewhere are being missed.
    Deaf,
}

/// What carries dispatches between instances.
///
/// At most once and, per publishing instance and destination, in order. Methods never block on an unreachable server longer than the configured
/// timeouts. Events are handed out through the receiver that the constructor returns.
pub trait Bus: Send + Sync + 'static {
    /// Publishes to every other instance that holds the destination; batched with what waits. Returns when the server took it.
    fn publish<'a>(&'a self, dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>>;

    /// Adds interests, counted: as many `unhear` undo them. The future ends when the server has confirmed all of them (or `Err` when it cannot:
    /// they are kept and established as soon as it can).
    fn hear(&self, interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>>;

    /// Takes interests back; the server is told in a batch, later.
    fn unhear(&self, interests: Vec<Interest>);

    /// Asks every other live instance and waits for their replies at most the configured time.
    fn ask<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>>;

    /// Stores a revocation for instances that start later.
    fn store_revocation<'a>(&'a self, revocation: &'a Revocation) -> BoxFuture<'a, Result<(), BusError>>;

    /// Every stored revocation that still matters.
    fn revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>>;

    /// Whether the bus hears right now.
    fn hearing(&self) -> Hearing;

    /// Time from publishing to hearing of the last self-ping.
    fn lag(&self) -> Option<Duration>;

    /// Gives up the worker lease and closes; nothing is heard afterwards.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A bus and what comes out of it.
pub struct Opened {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// What comes in, bounded.
    pub events: tokio::sync::mpsc::Receiver<BusEvent>,
    /// The worker number leased for this instance's ids.
    pub worker: u16,
}

//! One message on its way to clients, and whom it is for. Plain data.

mod audience;

use std::sync::Arc;

use serde_json::value::RawValue;
use tracing::Span;

use crate::id::{AnyId, Id};

pub use audience::{Addressee, Audience, GAPS, SharedText};

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// One connection.
    Client(Id),
    /// Every connection of a user.
    User(Arc<str>),
    /// Every member of a room.
    Room(Arc<str>),
    /// Every authenticated connection.
    Broadcast,
}

impl Destination {
    /// Returns its kind, as `type` on Redis names it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::User(_) => "user",
            Self::Room(_) => "room",
            Self::Broadcast => "broadcast",
        }
    }
}

/// One message on its way.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// Whom it is for.
    pub destination: Destination,
    /// The envelope's event.
    pub event: Arc<str>,
    /// The envelope's data, as JSON text; absent where the sender gave none (protocol.md 2.12).
    pub data: Option<Arc<RawValue>>,
    /// Connections that do not get it.
    pub exclude: Arc<[Id]>,
    /// Further client ids that do not get it, in a form that no gateway gives: another server on the bus may hold them.
    pub exclude_foreign: Arc<[AnyId]>,
    /// Ends when the message was written to every local socket or waits in its outbox. Disabled where tracing is off.
    pub span: Span,
}

impl Dispatch {
    /// Creates a message with `data` as its JSON, which excludes no connection.
    pub fn new(
        destination: Destination,
        event: impl Into<Arc<str>>,
        data: impl Into<Option<Arc<RawValue>>>,
    ) -> Self {
        Self {
            destination,
            event: event.into(),
            data: data.into(),
            exclude: Arc::default(),
            exclude_foreign: Arc::default(),
            span: Span::none(),
        }
    }

    /// Returns the envelope's data as JSON text, if there is any.
    pub fn data_text(&self) -> Option<&str> {
        self.data.as_deref().map(RawValue::get)
    }
}

/// Why clients are told that pushes may have been missed. On the wire it is for logs only (protocol.md 9.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResyncReason {
    /// The connection to Redis was lost and is there again.
    BusReconnected,
    /// Nothing came from Redis for too long.
    BusStalled,
    /// Another instance could not publish for a while.
    BusPeerLost,
    /// More came from Redis than this instance could take.
    BusOverflow,
    /// The instance switched to another Redis.
    BusMoved,
    /// Redis confirmed the subscriptions of this connection late.
    SubscribedLate,
    /// A shard could not take all its messages.
    Overloaded,
    /// Notifications were stored, but perhaps not pushed.
    PushMissed,
    /// The database went back in time.
    EpochChanged,
}

impl ResyncReason {
    /// Returns the text on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BusReconnected => "bus_reconnected",
            Self::BusStalled => "bus_stalled",
            Self::BusPeerLost => "bus_peer_lost",
            Self::BusOverflow => "bus_overflow",
            Self::BusMoved => "bus_moved",
            Self::SubscribedLate => "subscribed_late",
            Self::Overloaded => "overloaded",
            Self::PushMissed => "push_missed",
            Self::EpochChanged => "epoch_changed",
        }
    }
}

//! What goes into a session and what comes out: its settings, inputs and actions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::config::Encryption;
use crate::inbox::NotificationSelector;
use crate::principal::Principal;
use crate::protocol::Message;
use crate::protocol::cipher::{Handshake, UnusableKey};
use crate::protocol::close::Close;
use crate::protocol::room::Join;

/// Settings of all sessions.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Longest time from connecting to `authenticate`.
    pub authenticate_timeout: Duration,
    /// Longest time from `authenticate` to `connected`.
    pub finish_timeout: Duration,
    /// Time without a frame that ends an authenticated connection.
    pub heartbeat_timeout: Duration,
    /// How often that is checked.
    pub sweep_interval: Duration,
    /// How often the server pings, if at all.
    pub ping_interval: Option<Duration>,
    /// How long before a token's end `expiring` is sent.
    pub expiring_lead: Duration,
    /// Whether and how frames are sealed.
    pub encryption: Encryption,
}

impl Rules {
    /// Returns the first sweep from `now` on that may find a connection silent for too long, if it has been silent for `silent`.
    pub(super) fn sweep_after(&self, now: Instant, silent: Duration) -> Instant {
        let left = self.heartbeat_timeout.saturating_sub(silent);
        let sweeps = left
            .as_nanos()
            .div_ceil(self.sweep_interval.as_nanos().max(1))
            .max(1);
        now + self.sweep_interval * u32::try_from(sweeps).unwrap_or(u32::MAX)
    }
}

/// The client's key in `authenticate`: absent, present but not a string, or a string.
pub type GivenKey = Option<Option<String>>;

/// The outcome of an authentication.
#[derive(Debug)]
pub enum Authentication {
    /// The token is valid.
    Accepted {
        /// Whom it speaks for.
        principal: Arc<Principal>,
        /// The handshake with the client's key; `None` without a key, or if encryption is disabled.
        handshake: Option<Result<Handshake, UnusableKey>>,
        /// How far clocks may differ.
        leeway: Duration,
    },
    /// The token is refused.
    Refused,
    /// The token could not be verified.
    Failed,
}

/// What happened to a connection.
#[derive(Debug)]
pub enum Input<'i> {
    /// A text message.
    Text(&'i str),
    /// A ping, a pong, or an empty fragment.
    Alive,
    /// The answer to [`Action::Verify`].
    Authentication(Authentication),
    /// The answer to [`Action::Admit`]: the bus has subscribed for this connection, or cannot.
    Subscribed,
    /// The answer to [`Action::Refresh`].
    Refreshed(Authentication),
    /// Trust in the source or the key of the token is withdrawn (protocol.md 4.11).
    TrustWithdrawn,
    /// A deadline may have passed.
    Tick,
}

/// What the connection does, in this order.
#[derive(Debug)]
pub enum Action {
    /// Send, encrypted if the session is.
    Send(Message),
    /// Send without encryption.
    SendClear(Message),
    /// Send a ping.
    Ping,
    /// Verify a token and, if the client sent a key, agree on a session key.
    Verify {
        /// The JWT.
        token: String,
        /// The client's key.
        key: GivenKey,
    },
    /// Add the connection to the hub, let the bus subscribe for it, and hold back deliveries until `connected` is sent.
    Admit,
    /// `connected` is sent: release the held deliveries.
    Release,
    /// Join those of these rooms that the rules allow.
    Join(Join),
    /// Leave these rooms.
    Leave(Vec<String>),
    /// Verify another token of the same subject.
    Refresh(String),
    /// Mark notifications as read.
    MarkRead(NotificationSelector),
    /// Send the notifications that were missed.
    Sync {
        /// After this `seq`.
        after: i64,
        /// At most so many.
        limit: u32,
    },
    /// Close; nothing more is delivered.
    Close(Close),
}

/// The actions for one input: almost always two at most.
pub type Actions = SmallVec<[Action; 2]>;

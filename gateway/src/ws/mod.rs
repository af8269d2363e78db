//! WebSockets: accept and upgrade, session, connection.
//!
//! Input: TCP connections on the public listener. Output: entries in [`crate::hub`], and requests of other than the stream paths to the REST router.

mod admission;
pub mod connection;
pub(crate) mod fuzzing;
mod head;
mod listener;
mod opening;
mod operation;
mod proxied;
mod rewound;
pub mod session;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use ring::rand::SystemRandom;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::auth::{Access, Authenticator};
use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::Live;
use crate::hub::Hub;
use crate::inbox::Inbox;
use crate::leftovers::Leftovers;
use crate::metrics::Metrics;

pub use listener::{Listener, serve};
pub use session::Rules;

/// What every connection needs.
pub struct Context {
    /// Settings of sessions.
    pub rules: Rules,
    /// Whether connections only echo, for conformance tests.
    pub echo: bool,
    /// How long a close waits for the Close frame of the peer.
    pub close_timeout: Duration,
    /// How long `connected` waits for the bus to subscribe.
    pub subscribe_timeout: Duration,
    /// How long nothing may come from a connection before another one of its user may take its place (protocol.md 4.8).
    pub silent_after: Duration,
    /// How often the right to rooms is checked again.
    pub recheck_interval: Duration,
    /// Verifies tokens.
    pub authenticator: Authenticator,
    /// Decides on rooms.
    pub access: Access,
    /// The inboxes of all users.
    pub inbox: Inbox,
    /// Changes whose connections have ended.
    pub leftovers: Leftovers,
    /// The connections of all shards.
    pub hub: Hub,
    /// Subscribes to what connections need.
    pub bus: Arc<dyn Bus>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Counts connections and frames.
    pub metrics: Arc<Metrics>,
    /// Live settings.
    pub live: watch::Receiver<Arc<Live>>,
    /// Where operations run.
    pub control: Handle,
    /// Randomness of handshakes.
    pub random: SystemRandom,
}

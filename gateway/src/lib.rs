//! The realtime edge: clients hold a WebSocket to it, services only publish.
//!
//! Read a flow from its first module to its last (`ARCHITECTURE.md` walks each one):
//!
//! | flow | modules |
//! |---|---|
//! | WebSocket frame in | [`ws`] socket -> [`protocol`] envelope -> [`ws`] session -> [`auth`] / [`hub`] |
//! | message out | [`delivery`] -> [`hub`] if held here, [`bus`] where it may be elsewhere -> outbox -> socket |
//! | Kafka record in | [`activity`]: consumer -> decode -> resolve -> render -> [`inbox`] ([`store`], then [`delivery`]) -> commit |
//! | REST request in | [`api`] route -> extractor -> [`auth`] policy -> [`inbox`] / [`store`] / [`delivery`] -> response |
//!
//! [`app`] builds each part once, wires them, supervises the tasks and drains them in order.

pub mod activity;
pub mod api;
pub mod app;
pub mod auth;
mod backoff;
pub mod bus;
pub mod client;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod dev;
pub mod dispatch;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod hash;
pub mod hub;
pub mod id;
pub mod inbox;
pub mod leftovers;
pub mod lifecycle;
pub mod memory;
pub mod metrics;
pub mod notification;
mod outgoing;
pub mod peer;
pub mod places;
pub mod principal;
pub mod problem;
pub mod protocol;
pub mod rate;
pub mod requests;
pub mod revocation;
pub mod store;
pub mod stream;
pub mod telemetry;
pub mod tls;
pub mod ws;

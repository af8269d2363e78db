//! The harness of the end-to-end tests: everything around the gateway, and nothing of it.
//!
//! Nothing here uses the gateway's code: the client, the emitter and the tokens are written from the protocol's pages, so
//! that a mistake in the gateway cannot agree with itself.
//!
//! | module | stands for |
//! |---|---|
//! | [`gateway`] | `signal-gateway serve` as a real process, alone or several |
//! | [`client`], [`raw`] | a client that keeps to the protocol, and one that does not |
//! | [`issuer`] | whoever signs tokens and publishes keys |
//! | [`emitter`], [`producer`] | services that publish to Redis and produce to Kafka |
//! | [`inbox`] | what a client keeps of its inbox, and when it syncs |
//! | [`policy`], [`notifications`] | the platform's policy tables, and the gateway's own |
//! | [`services`], [`chaos`] | Redis, PostgreSQL and Kafka, and a proxy that cuts and stalls the way to them |
//! | [`tls`] | certificates, and clients over TLS |
//! | [`cluster`] | Kubernetes, with nodes or without |

pub mod chaos;
pub mod client;
pub mod cluster;
pub mod emitter;
pub mod gateway;
pub mod inbox;
pub mod issuer;
pub mod notifications;
pub mod policy;
pub mod producer;
pub mod raw;
pub mod rest;
pub mod services;
pub mod tls;
pub mod wait;

pub use chaos::Proxy;
pub use client::{Client, Envelope, KeyMember};
pub use emitter::Emitter;
pub use gateway::Gateway;
pub use inbox::Inbox;
pub use issuer::Issuer;
pub use notifications::Notifications;
pub use policy::Policies;
pub use producer::Producer;
pub use raw::Raw;
pub use services::skip;
pub use wait::{LIMIT, until};

//! End-to-end tests of the gateway: real processes, real servers, a client of its own.
//!
//! A module per theme. Every test starts what it needs and shares nothing but the PostgreSQL server and the broker.

mod audience;
mod crowd;
mod dev;
mod examples;
mod failover;
mod framework;
mod hold;
mod hostile;
mod inbox;
mod keys;
mod lifecycle;
mod limits;
mod logs;
mod openapi;
mod opening;
mod outages;
mod pipeline;
mod places;
mod rest;
mod revocations;
mod routing;
mod secrets;
mod socket;
mod storm;
mod switching;
mod tls;
mod tokens;

use serde_json::json;
use signal_tests::gateway::Builder;
use signal_tests::{Client, Gateway, Issuer, Policies};

/// One gateway alone, who it trusts, and its policy tables.
struct Stage {
    issuer: Issuer,
    policies: Policies,
    gateway: Gateway,
}

impl Stage {
    async fn new() -> Self {
        Self::with(|settings| settings).await
    }

    async fn with(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let issuer = Issuer::start().await;
        let settings = configure(Gateway::build().trust(&issuer));
        let policies = settings.policies().await;
        let gateway = settings.start().await;
        Self {
            issuer,
            policies,
            gateway,
        }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.gateway.address()).await
    }

    /// A connection of `user`, in the clear.
    async fn client(&self, user: &str) -> Client {
        Client::open(self.gateway.address(), &self.issuer.token(user)).await
    }

    /// A connection of `user`, encrypted.
    async fn encrypted(&self, user: &str) -> Client {
        Client::open_encrypted(self.gateway.address(), &self.issuer.token(user)).await
    }

    /// Sends an event to a client by REST, as an administrator.
    async fn send_to_client(&self, id: &str, event: &str) {
        self.send(&format!("/socket/websocket/clients/{id}/messages"), event)
            .await;
    }

    /// Sends an event to a room by REST, as an administrator.
    async fn send_to_room(&self, room: &str, event: &str) {
        self.send(&format!("/socket/websocket/rooms/{room}/messages"), event)
            .await;
    }

    async fn send(&self, path: &str, event: &str) {
        let body = json!({"event": event, "data": {"of": event}});
        self.gateway
            .rest("POST", path, &admin(&self.issuer), Some(body))
            .await
            .expect(202);
    }
}

/// The token of someone who may do everything.
fn admin(issuer: &Issuer) -> String {
    issuer.token_with_roles(
        "1",
        json!([{"id": "r1", "identifier": "super-admin", "priority": 0}]),
    )
}

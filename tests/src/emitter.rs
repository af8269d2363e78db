//! An outside emitter: a service that hosts no sockets and only publishes to Redis, exactly as protocol.md 10.1 and 10.6 say.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};

/// `serverId` of everything that comes from outside.
const SERVER_ID: &str = "emitter";

/// A connection to Redis that publishes.
pub struct Emitter {
    redis: redis::aio::MultiplexedConnection,
}

impl Emitter {
    /// Connects.
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let client = redis::Client::open(format!("redis://{address}"))?;
        Ok(Self {
            redis: client.get_multiplexed_async_connection().await?,
        })
    }

    /// To one connection; returns how many subscribers Redis handed it to, as all of these do.
    ///
    /// # Errors
    /// When Redis cannot be reached, as for all of these.
    pub async fn to_client(&mut self, id: &str, event: &str, data: Value) -> Result<i64> {
        self.publish(
            &format!("ws:client:{id}"),
            "client",
            Some(id),
            event,
            data,
            &[],
        )
        .await
    }

    /// To every connection of a user.
    ///
    /// # Errors
    /// As above.
    pub async fn to_user(&mut self, user: &str, event: &str, data: Value) -> Result<i64> {
        self.publish(
            &format!("ws:user:{user}"),
            "user",
            Some(user),
            event,
            data,
            &[],
        )
        .await
    }

    /// To every member of a room but those excluded.
    ///
    /// # Errors
    /// As above.
    pub async fn to_room(
        &mut self,
        room: &str,
        event: &str,
        data: Value,
        exclude: &[&str],
    ) -> Result<i64> {
        self.publish(
            &format!("ws:room:{room}"),
            "room",
            Some(room),
            event,
            data,
            exclude,
        )
        .await
    }

    /// To everyone but those excluded.
    ///
    /// # Errors
    /// As above.
    pub async fn broadcast(&mut self, event: &str, data: Value, exclude: &[&str]) -> Result<i64> {
        self.publish("ws:broadcast", "broadcast", None, event, data, exclude)
            .await
    }

    /// Any payload on any channel.
    ///
    /// # Errors
    /// As above.
    pub async fn raw(&mut self, channel: &str, payload: &str) -> Result<i64> {
        Ok(redis::cmd("PUBLISH")
            .arg(channel)
            .arg(payload)
            .query_async(&mut self.redis)
            .await?)
    }

    async fn publish(
        &mut self,
        channel: &str,
        kind: &str,
        target: Option<&str>,
        event: &str,
        data: Value,
        exclude: &[&str],
    ) -> Result<i64> {
        let mut payload =
            json!({"serverId": SERVER_ID, "type": kind, "event": event, "data": data});
        if let Some(target) = target {
            payload["target"] = target.into();
        }
        if !exclude.is_empty() {
            payload["exclude"] = exclude.into();
        }
        self.raw(channel, &payload.to_string()).await
    }
}

//! Who makes servers send: a service that publishes to Redis, one that asks over REST, and the floor's control connection.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::floor::Order;
use crate::frame::{self, EVENT};
use crate::server::{Server, Testbed};

/// Everyone authenticated is in it.
const ROOM: &str = "ws-notification";

/// A service's connection to Redis, as plain as the protocol allows.
pub(crate) struct Publisher {
    socket: TcpStream,
    /// Replies that have not come yet.
    pending: usize,
}

impl Publisher {
    pub(crate) fn connect(server: &Server) -> Result<Self> {
        Self::to(server.redis()?)
    }

    pub(crate) fn to(redis: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect(redis).context("no connection to Redis")?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, pending: 0 })
    }

    /// One write, however many messages to the room of everyone.
    pub(crate) fn room(&mut self, messages: impl Iterator<Item = String>) -> Result<()> {
        self.publish(messages.map(|data| room_message(ROOM, &data)))
    }

    /// A message to one room.
    pub(crate) fn one_room(&mut self, room: &str, data: &str) -> Result<()> {
        self.publish(std::iter::once(room_message(room, data)))
    }

    /// A message to everyone.
    pub(crate) fn broadcast(&mut self, data: &str) -> Result<()> {
        let dispatch =
            json!({ "serverId": "emitter", "type": "broadcast", "event": EVENT, "data": data });
        self.publish(std::iter::once((
            "ws:broadcast".to_owned(),
            dispatch.to_string(),
        )))
    }

    /// A message to one user.
    pub(crate) fn user(&mut self, user: &str, data: &str) -> Result<()> {
        let dispatch = json!({ "serverId": "emitter", "type": "user", "target": user, "event": EVENT, "data": data });
        self.publish(std::iter::once((
            format!("ws:user:{user}"),
            dispatch.to_string(),
        )))
    }

    fn publish(&mut self, messages: impl Iterator<Item = (String, String)>) -> Result<()> {
        self.replies()?;
        let mut commands = String::new();
        for (channel, payload) in messages {
            commands += &format!(
                "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n{payload}\r\n",
                channel.len(),
                payload.len()
            );
            self.pending += 1;
        }
        Ok(self.socket.write_all(commands.as_bytes())?)
    }

    /// Reads what replies there are. Each counts the subscribers that received the message: the gateway must be one of them.
    fn replies(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while self.pending > 0 {
            let read = match self.socket.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let text = std::str::from_utf8(&buffer[..read])?;
            ensure!(
                read > 0 && !text.contains('-') && !text.contains(":0\r"),
                "Redis says {text:?}"
            );
            self.pending = self.pending.saturating_sub(text.matches('\n').count());
        }
        Ok(())
    }
}

/// The channel and the payload of a message to a room.
fn room_message(room: &str, data: &str) -> (String, String) {
    let dispatch = json!({ "serverId": "emitter", "type": "room", "target": room, "event": EVENT, "data": data });
    (format!("ws:room:{room}"), dispatch.to_string())
}

/// A way to make a server send to everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendMethod {
    /// The floor's `send` per message and member.
    Send,
    /// The floor's `send` per burst and member.
    Join,
    /// Published to a room over Redis, a burst in one write.
    Redis,
    /// The same, each message of a burst in a write of its own.
    RedisApart,
    /// Asked for over REST, a burst as requests at the same time.
    Rest,
}

/// What makes one server send to everyone.
pub(crate) enum Trigger {
    Floor(TcpStream),
    Gateway {
        publisher: Publisher,
        client: reqwest::Client,
        url: String,
        token: String,
    },
}

impl Trigger {
    pub(crate) fn floor(server: &Server) -> Result<Self> {
        let control = TcpStream::connect(server.address)?;
        control.set_nodelay(true)?;
        Ok(Self::Floor(control))
    }

    pub(crate) fn gateway(testbed: &Testbed, server: &Server) -> Result<Self> {
        Ok(Self::Gateway {
            publisher: Publisher::connect(server)?,
            client: reqwest::Client::builder().no_proxy().build()?,
            url: format!("http://{}/socket/websocket/broadcast", server.address),
            token: testbed.admin_token(),
        })
    }

    /// Sends the messages `first` to `first + burst - 1`, each of `bytes` bytes as members get it in the clear. Says when it began.
    pub(crate) fn pull(
        &mut self,
        testbed: &Testbed,
        method: SendMethod,
        first: u64,
        burst: u64,
        bytes: usize,
    ) -> Result<Instant> {
        let numbers = first..first + burst;
        match self {
            Self::Floor(control) => {
                let order = if method == SendMethod::Join {
                    Order::Join
                } else {
                    Order::Send
                };
                let orders = order.with(bytes).repeat(burst as usize);
                let began = Instant::now();
                control.write_all(&orders)?;
                Ok(began)
            }
            Self::Gateway {
                client, url, token, ..
            } if method == SendMethod::Rest => {
                let bodies: Vec<String> = numbers
                    .map(|number| {
                        json!({ "event": EVENT, "data": frame::data(number, bytes) }).to_string()
                    })
                    .collect();
                let began = Instant::now();
                testbed.runtime.block_on(async {
                    let mut requests = tokio::task::JoinSet::new();
                    for body in bodies {
                        let request = client
                            .post(&*url)
                            .bearer_auth(&*token)
                            .header("content-type", "application/json")
                            .body(body);
                        requests.spawn(request.timeout(Duration::from_secs(10)).send());
                    }
                    while let Some(answer) = requests.join_next().await {
                        let status = answer??.status();
                        ensure!(
                            status.as_u16() == 202,
                            "the broadcast was answered {status}"
                        );
                    }
                    Ok(began)
                })
            }
            Self::Gateway { publisher, .. } => {
                let messages: Vec<String> =
                    numbers.map(|number| frame::data(number, bytes)).collect();
                let began = Instant::now();
                if method == SendMethod::RedisApart {
                    for message in messages {
                        publisher.room(std::iter::once(message))?;
                    }
                } else {
                    publisher.room(messages.into_iter())?;
                }
                Ok(began)
            }
        }
    }
}

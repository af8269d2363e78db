//! One connection: opened, authenticated, sealed and opened, until it ends. Comments cite clauses of docs/protocol.md.

use std::fmt::Display;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::cipher::{Cipher, KeyPair};

/// A ping comes every 25 s (1.6): after a minute of silence nobody is there.
const SILENCE: Duration = Duration::from_secs(60);

/// An authenticated connection.
pub(crate) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// None until `connected`, and where the gateway has encryption disabled (6.7).
    cipher: Option<Cipher>,
    /// The text of the last `error`.
    error: String,
}

impl Connection {
    pub(crate) async fn open(url: &str, token: &str) -> Result<Self, Ended> {
        let socket = match timeout(SILENCE, connect_async(url)).await? {
            Ok((socket, _)) => socket,
            // 1.3: only a 503 passes.
            Err(Error::Http(answer)) if answer.status() != 503 => {
                let (why, then) = (format!("refused: {}", answer.status()), Then::Stop);
                return Err(Ended { why, then });
            }
            Err(error) => return Err(error.into()),
        };
        let (cipher, error) = (None, String::new());
        let mut connection = Self {
            socket,
            cipher,
            error,
        };
        let keys = KeyPair::generate();
        let data = json!({"type": "Bearer", "token": token, "clientPublicKey": keys.public_key()});
        connection.send("authenticate", data).await?;
        loop {
            // A refused token is answered with `error` and a close (4.4), at which `next` ends.
            let (event, data) = connection.next().await?;
            if event == "connected" {
                if data["serverPublicKey"].is_string() {
                    connection.cipher = Some(keys.agree(&data)?);
                }
                let encrypted = connection.cipher.is_some();
                let user = text_of(&data["userId"]);
                println!("connected as user {user}, encrypted: {encrypted}");
                return Ok(connection);
            }
            println!("{event} {data}");
        }
    }

    /// Sends an event, sealed where there is a key (6.6).
    pub(crate) async fn send(&mut self, event: &str, data: Value) -> Result<(), Ended> {
        let mut envelope = json!({"event": event, "data": data});
        if let Some(cipher) = &self.cipher {
            envelope = cipher.seal(&envelope)?;
        }
        let message = Message::text(envelope.to_string());
        Ok(self.socket.send(message).await?)
    }

    /// The next event and its data, opened where it is sealed (6.5). The library answers pings meanwhile.
    pub(crate) async fn next(&mut self) -> Result<(String, Value), Ended> {
        loop {
            let message = timeout(SILENCE, self.socket.next()).await?;
            let text = match message.transpose()? {
                Some(Message::Text(text)) => text,
                Some(Message::Close(Some(frame))) => {
                    let _ = self.socket.flush().await;
                    let (code, reason) = (frame.code.into(), &frame.reason);
                    return Err(Ended::with_code(code, reason, &self.error));
                }
                Some(_) => continue,
                None => return Err("no Close frame".into()),
            };
            let mut envelope: Value = serde_json::from_str(&text)?;
            if let (Some(cipher), "encrypted") = (&self.cipher, text_of(&envelope["event"])) {
                envelope = cipher.open(&envelope["data"])?;
            }
            let (event, data) = (text_of(&envelope["event"]), &envelope["data"]);
            if event == "error" {
                self.error = text_of(&data["message"]).to_owned();
            }
            return Ok((event.to_owned(), data.clone()));
        }
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Why a connection ended, and what follows.
pub(crate) struct Ended {
    pub(crate) why: String,
    pub(crate) then: Then,
}

#[derive(PartialEq)]
pub(crate) enum Then {
    /// Connect again soon: after a few seconds at most.
    Reconnect,
    /// Connect again after a delay that grows with each failure.
    BackOff,
    /// Connect again with another token.
    NewToken,
    /// Give up: the next connection would end in the same way.
    Stop,
}

impl Ended {
    /// What to do after a Close frame: the table of section 7. `error` is the text of the last `error` event.
    fn with_code(code: u16, reason: &str, error: &str) -> Self {
        let then = match code {
            1001 | 4001 | 4002 | 4008 | 4009 => Then::Reconnect,
            4003 if error == "Authentication failed" => Then::NewToken,
            4005 => Then::NewToken,
            1002 | 1007 | 1009 | 4004 | 4006 | 4007 => Then::Stop,
            // 1011, 4003 when the token could not be verified, 4010, and what this client does not know.
            _ => Then::BackOff,
        };
        let why = format!("{code} {reason}");
        Self { why, then }
    }
}

impl<E: Display> From<E> for Ended {
    fn from(error: E) -> Self {
        let (why, then) = (error.to_string(), Then::BackOff);
        Self { why, then }
    }
}

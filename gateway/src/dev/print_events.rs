//! `signal-gateway dev watch`: a small client of the protocol that prints every event, decrypted.
//!
//! Input: the socket. Output: lines on standard output. It reconnects after the gateway restarts and asks for missed notifications.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context as _;
use ring::rand::SystemRandom;
use serde::Deserialize;
use serde_json::{Value, json};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};
use url::Url;

use crate::protocol::Envelope;
use crate::protocol::cipher::{Cipher, Offer};
use crate::protocol::event::name;

/// Delay between two attempts to reconnect.
const RETRY: Duration = Duration::from_secs(1);
/// How long the gateway may take to answer a connection and `authenticate`.
const ANSWER: Duration = Duration::from_secs(20);

/// The data of `connected`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connected {
    id: String,
    server_public_key: Option<String>,
    salt: Option<String>,
}

/// An authenticated connection.
struct Client {
    socket: WebSocket<TcpStream>,
    id: String,
    cipher: Option<Cipher>,
}

/// Prints every event of a user's connection until the process ends.
///
/// # Errors
/// The gateway cannot be reached at first or refuses the token; standard output is closed.
pub(super) fn print_events(
    stream: &str,
    user: &str,
    token: impl Fn() -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let mut client = Client::connect(stream, &token()?)?;
    let mut seen = None;
    loop {
        let kind = if client.cipher.is_some() {
            "encrypted"
        } else {
            "in clear text"
        };
        say(&format!(
            "watching as user {user}, connection {}, {kind}; press Ctrl-C to stop",
            client.id
        ))?;
        if let Some(after) = seen {
            client.send(name::NOTIFICATION_SYNC, &json!({"after": after}))?;
        }
        let why = client.print(&mut seen)?;
        say(&format!("{why}; reconnecting"))?;
        client = loop {
            std::thread::sleep(RETRY);
            if let Ok(client) = Client::connect(stream, &token()?) {
                break client;
            }
        };
    }
}

fn say(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}

impl Client {
    fn connect(stream: &str, token: &str) -> anyhow::Result<Self> {
        let url: Url = stream.parse()?;
        let address = format!(
            "{}:{}",
            url.host_str().unwrap_or_default(),
            url.port_or_known_default().unwrap_or_default()
        );
        let tcp = TcpStream::connect(&address)
            .with_context(|| format!("no answer from {address}: is dev mode running?"))?;
        tcp.set_read_timeout(Some(ANSWER))?;
        let (mut socket, _) = tungstenite::client(stream, tcp)
            .map_err(|error| anyhow::anyhow!("{stream}: {error}"))?;
        let offer =
            Offer::new(&SystemRandom::new()).context("the system cannot provide randomness")?;
        let data = json!({"type": "Bearer", "token": token, "clientPublicKey": offer.public_key});
        socket.send(Message::text(
            json!({"event": name::AUTHENTICATE, "data": data}).to_string(),
        ))?;
        loop {
            let text = match socket.read()? {
                Message::Text(text) => text,
                Message::Close(frame) => anyhow::bail!(closed(frame)),
                _ => continue,
            };
            let envelope = Envelope::parse(&text).map_err(|_| {
                anyhow::anyhow!("the gateway sent something that is no envelope: {text}")
            })?;
            anyhow::ensure!(
                envelope.event == name::CONNECTED,
                "the gateway refused: {text}"
            );
            let connected: Connected = envelope.read()?;
            let cipher = match (connected.server_public_key, connected.salt) {
                (Some(key), Some(salt)) => Some(offer.accept(&key, &salt)?),
                _ => None,
            };
            socket.get_ref().set_read_timeout(None)?;
            return Ok(Self {
                socket,
                id: connected.id,
                cipher,
            });
        }
    }

    fn send(&mut self, event: &str, data: &Value) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(
            json!({"event": event, "data": data}).to_string(),
        ))?)
    }

    /// Prints every event until the connection ends; returns why it ended. Answers pings.
    fn print(mut self, seen: &mut Option<i64>) -> anyhow::Result<String> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => say(&self.describe(&text, seen))?,
                Ok(Message::Close(frame)) => {
                    // Reading further sends the answering Close frame.
                    while self.socket.read().is_ok() {}
                    return Ok(closed(frame));
                }
                Ok(_) => {}
                Err(error) => return Ok(format!("the connection was lost: {error}")),
            }
        }
    }

    fn describe(&self, text: &str, seen: &mut Option<i64>) -> String {
        let opened = match (&self.cipher, Envelope::parse(text)) {
            (Some(cipher), Ok(envelope)) if envelope.event == name::ENCRYPTED => envelope
                .read()
                .ok()
                .and_then(|sealed| cipher.open(&sealed).ok()),
            _ => None,
        };
        lines(opened.as_deref().unwrap_or(text), seen)
    }
}

/// Formats an envelope for people, a notification with its text first. Remembers the highest `seq` in `seen`.
fn lines(text: &str, seen: &mut Option<i64>) -> String {
    let Ok(envelope) = Envelope::parse(text) else {
        return text.to_owned();
    };
    let data: Value = envelope.read().unwrap_or_default();
    let raw = envelope.data.map_or("", serde_json::value::RawValue::get);
    let notification = &data["notification"];
    match (
        &*envelope.event,
        notification["title"].as_str(),
        notification["content"].as_str(),
    ) {
        (name::NOTIFICATION_CREATED, Some(title), Some(content)) => {
            *seen = notification["seq"].as_i64().max(*seen);
            format!(
                "{}  {title}: {content}  (unread: {})\n  {raw}",
                envelope.event, data["unreadCount"]
            )
        }
        _ => format!("{}  {raw}", envelope.event),
    }
}

fn closed(frame: Option<CloseFrame>) -> String {
    match frame {
        Some(frame) => format!(
            "the gateway closed the connection: {} {}",
            u16::from(frame.code),
            frame.reason
        ),
        None => "the gateway closed the connection".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_printed_with_its_text_and_the_last_seq_is_remembered() {
        let created = |seq: i64| {
            json!({"event": "notification:created", "data": {
                "notification": {"seq": seq, "title": "Paid", "content": "Order 1"}, "unreadCount": 3, "version": 9}})
            .to_string()
        };
        let mut seen = None;
        assert!(
            lines(&created(7), &mut seen)
                .starts_with("notification:created  Paid: Order 1  (unread: 3)\n  {")
        );
        lines(&created(5), &mut seen);
        assert_eq!(seen, Some(7));
        assert_eq!(
            lines(r#"{"event":"resync","data":{"reason":"x"}}"#, &mut seen),
            r#"resync  {"reason":"x"}"#
        );
        assert_eq!(lines("not json", &mut seen), "not json");
    }
}

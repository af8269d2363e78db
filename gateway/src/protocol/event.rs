//! Names and payloads of the system events (`wire protocol`, "System events") and of our own (`contracts`, "WebSocket events").

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Message;
use super::envelope::encode;
use crate::id::Id;
use crate::notification::{InboxState, Notification, rfc3339};

/// Event names.
#[expect(missing_docs, reason = "each is its text")]
pub mod name {
    pub const AUTHENTICATE: &str = "authenticate";
    pub const CONNECTED: &str = "connected";
    pub const JOIN: &str = "join";
    pub const LEAVE: &str = "leave";
    pub const HEARTBEAT: &str = "heartbeat";
    pub const ERROR: &str = "error";
    pub const ENCRYPTED: &str = "encrypted";
    pub const DISCONNECT: &str = "disconnect";
    pub const REFRESH: &str = "refresh";
    pub const REFRESHED: &str = "refreshed";
    pub const EXPIRING: &str = "expiring";
    pub const RESYNC: &str = "resync";
    pub const NOTIFICATION_CREATED: &str = "notification:created";
    pub const NOTIFICATION_READ: &str = "notification:read";
    pub const NOTIFICATION_DELETED: &str = "notification:deleted";
    pub const NOTIFICATION_SYNC: &str = "notification:sync";
    pub const NOTIFICATION_SYNCED: &str = "notification:synced";
}

/// Events that only the gateway may send: producers and admins cannot choose these names.
pub const RESERVED: [&str; 8] = [
    name::AUTHENTICATE,
    name::CONNECTED,
    name::JOIN,
    name::LEAVE,
    name::HEARTBEAT,
    name::ERROR,
    name::ENCRYPTED,
    name::DISCONNECT,
];

/// `error` texts that clients of the wire protocol know.
#[expect(missing_docs, reason = "each is its text")]
pub mod message {
    pub const INVALID_FORMAT: &str = "Invalid message format";
    pub const NOT_AUTHENTICATED: &str = "Not authenticated";
    pub const ALREADY_AUTHENTICATED: &str = "Already authenticated";
    pub const AUTHENTICATION_FAILED: &str = "Authentication failed";
    pub const AUTHENTICATION_ERROR: &str = "Authentication error";
    pub const HANDSHAKE_FAILED: &str = "Encryption handshake failed";
    pub const ENCRYPTION_REQUIRED: &str = "Encryption required";
    pub const DECRYPTION_FAILED: &str = "Decryption failed";
    pub const INVALID_DATA: &str = "Invalid data";
    pub const REFRESH_REFUSED: &str = "Refresh refused";
    pub const TOO_MANY_REQUESTS: &str = "Too many requests";
    pub const TRY_AGAIN: &str = "Try again later";
}

/// `authenticate`: `{type: "Bearer", token, clientPublicKey?}`; `publicKey` is the same.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authenticate<'m> {
    /// `Bearer`
    #[serde(rename = "type", default, borrow)]
    pub kind: Option<std::borrow::Cow<'m, str>>,
    /// The JWT.
    #[serde(default, borrow)]
    pub token: Option<std::borrow::Cow<'m, str>>,
    /// P-256 point; any JSON, since a present key of the wrong type is an unusable key.
    #[serde(default, borrow)]
    pub client_public_key: Option<&'m serde_json::value::RawValue>,
    /// The same under the name of the reference's own documentation.
    #[serde(default, borrow)]
    pub public_key: Option<&'m serde_json::value::RawValue>,
}

impl Authenticate<'_> {
    /// The client's key: `None` when absent or null, `Some(None)` when present but not even text.
    pub fn key(&self) -> Option<Option<String>> {
        let raw = self.client_public_key.or(self.public_key)?;
        if raw.get() == "null" {
            None
        } else {
            Some(serde_json::from_str(raw.get()).ok())
        }
    }
}

/// `join`, `leave`: names that are not strings are dropped, so members are read as any JSON.
#[derive(Debug, Deserialize)]
pub struct Rooms {
    rooms: Vec<serde_json::Value>,
}

impl Rooms {
    /// The names that may be asked for at all: strings, not empty, at most 256 characters, not beginning with `ws:`.
    /// Without repeats, and at most [`MAX_ROOMS_PER_EVENT`] of them.
    pub fn names(self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for room in self.rooms {
            if names.len() == MAX_ROOMS_PER_EVENT {
                break;
            }
            match room {
                serde_json::Value::String(name)
                    if is_room_name(&name) && seen.insert(name.clone()) =>
                {
                    names.push(name)
                }
                _ => {}
            }
        }
        names
    }
}

/// Most rooms of one `join` or `leave`.
pub const MAX_ROOMS_PER_EVENT: usize = 256;
/// Longest room name in characters.
pub const MAX_ROOM_CHARS: usize = 256;

/// Whether a name may be a room's: not empty, at most 256 characters (UTF-16 units, as the reference counts), not beginning with `ws:`.
pub fn is_room_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with("ws:")
        && (name.len() <= MAX_ROOM_CHARS || name.encode_utf16().count() <= MAX_ROOM_CHARS)
}

/// `encrypted`: standard base64.
#[derive(Debug, Deserialize)]
pub struct Encrypted<'m> {
    /// 12 bytes.
    #[serde(borrow)]
    pub iv: std::borrow::Cow<'m, str>,
    /// Ciphertext and tag.
    #[serde(borrow)]
    pub ct: std::borrow::Cow<'m, str>,
}

/// `notification:read` from a client: `{ids}` or `{upTo}`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MarkRead {
    /// These.
    pub ids: Option<Vec<String>>,
    /// All up to this `seq`.
    pub up_to: Option<i64>,
}

/// `notification:sync`: `{after, limit?}`.
#[derive(Debug, Deserialize)]
pub struct Sync {
    /// The last `seq` the client has.
    pub after: i64,
    /// At most so many, up to 200.
    pub limit: Option<u32>,
}

/// `connected`, always in the clear.
pub fn connected(id: Id, user: &str, now: DateTime<Utc>, keys: Option<(&str, &str)>) -> Message {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Connected<'a> {
        id: Id,
        user_id: &'a str,
        time: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        server_public_key: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        salt: Option<&'a str>,
    }
    let data = Connected {
        id,
        user_id: user,
        time: time(now),
        server_public_key: keys.map(|k| k.0),
        salt: keys.map(|k| k.1),
    };
    of(name::CONNECTED, &data)
}

/// `error`
pub fn error(message: &str) -> Message {
    of(name::ERROR, &serde_json::json!({ "message": message }))
}

/// `resync`
pub fn resync(reason: &str) -> Message {
    encode(name::RESYNC, resync_data(reason).get())
}

/// The data of `resync`.
pub fn resync_data(reason: &str) -> Arc<RawValue> {
    serde_json::value::to_raw_value(&serde_json::json!({ "reason": reason }))
        .expect("it is plain data")
        .into()
}

/// `expiring`
pub fn expiring(at: DateTime<Utc>, seconds: i64) -> Message {
    of(
        name::EXPIRING,
        &serde_json::json!({ "expiresAt": time(at), "seconds": seconds }),
    )
}

/// `refreshed`; null where the token never ends.
pub fn refreshed(at: Option<DateTime<Utc>>) -> Message {
    of(
        name::REFRESHED,
        &serde_json::json!({ "expiresAt": at.map(time) }),
    )
}

/// Data of `notification:created`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Created<'a> {
    /// The row.
    pub notification: &'a Notification,
    /// The inbox's absolute count right after it.
    pub unread_count: i64,
    /// Grows with every change of the inbox.
    pub version: i64,
}

/// `notification:created`
pub fn created(notification: &Notification, inbox: InboxState) -> Message {
    of(
        name::NOTIFICATION_CREATED,
        &Created {
            notification,
            unread_count: inbox.unread_count,
            version: inbox.version,
        },
    )
}

/// Data of `notification:read` to clients, and REST's answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NotificationsRead, example = json!({
    "ids": ["1KbZ0dT9Xa4"], "total": 1, "readAt": "2026-11-23T08:00:00.000Z", "unreadCount": 3, "version": 41
}))]
pub struct ReadByUser<'a> {
    /// Those that became read, newest first; at most 1000.
    pub ids: &'a [Id],
    /// How many became read; where `ids` has no room for all of them, devices list the inbox again.
    pub total: u64,
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub read_at: DateTime<Utc>,
    /// How many notifications are unread.
    pub unread_count: i64,
    /// Grows with every change of the inbox, so counts that arrive out of order are told apart.
    pub version: i64,
}

/// Data of `notification:deleted`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NotificationsDeleted, example = json!({"ids": ["1KbZ0dT9Xa4"], "unreadCount": 3, "version": 42}))]
pub struct Deleted<'a> {
    /// Those that were removed.
    pub ids: &'a [Id],
    /// How many notifications are unread.
    pub unread_count: i64,
    /// Grows with every change of the inbox, so counts that arrive out of order are told apart.
    pub version: i64,
}

/// The `seq` in a `notification:created`, if the message is one.
pub fn created_seq(message: &Message) -> Option<i64> {
    #[derive(Deserialize)]
    struct Row {
        seq: i64,
    }
    #[derive(Deserialize)]
    struct Data {
        notification: Row,
    }
    let text = std::str::from_utf8(message.payload()).ok()?;
    let envelope = super::Envelope::parse(text).ok()?;
    if envelope.event != name::NOTIFICATION_CREATED {
        return None;
    }
    envelope
        .read::<Data>()
        .ok()
        .map(|data| data.notification.seq)
}

/// `notification:synced`
pub fn synced(count: usize, cursor: i64, inbox: InboxState, more: bool) -> Message {
    let data = serde_json::json!({
        "count": count, "cursor": cursor, "unreadCount": inbox.unread_count, "version": inbox.version, "more": more,
    });
    of(name::NOTIFICATION_SYNCED, &data)
}

fn of(event: &str, data: &impl Serialize) -> Message {
    encode(
        event,
        &serde_json::to_string(data).expect("payloads are plain data"),
    )
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_names_that_may_not_be_asked_for_are_dropped() {
        let rooms: Rooms = serde_json::from_value(
            serde_json::json!({"rooms": ["a", 5, "", "ws:x", "a", null, "ă".repeat(256), "b".repeat(257), {"x": 1}]}),
        )
        .unwrap();
        assert_eq!(rooms.names(), ["a".to_owned(), "ă".repeat(256)]);
    }

    #[test]
    fn a_key_that_is_present_but_no_text_is_told_from_none() {
        let key = |json: &str| {
            serde_json::from_str::<Authenticate<'_>>(json)
                .unwrap()
                .key()
        };
        assert_eq!(key("{}"), None);
        assert_eq!(key(r#"{"clientPublicKey":null}"#), None);
        assert_eq!(key(r#"{"publicKey":"abc"}"#), Some(Some("abc".into())));
        assert_eq!(key(r#"{"clientPublicKey":17}"#), Some(None));
        assert_eq!(key(r#"{"clientPublicKey":""}"#), Some(Some(String::new())));
    }

    #[test]
    fn connected_names_the_keys_only_where_there_are_some() {
        let now = DateTime::from_timestamp_millis(1_735_689_600_000).unwrap();
        let id = "abc".parse().unwrap();
        assert_eq!(
            connected(id, "17", now, None).payload(),
            br#"{"event":"connected","data":{"id":"abc","userId":"17","time":"2025-01-01T00:00:00.000Z"}}"#
        );
        let sealed = connected(id, "17", now, Some(("K", "S")));
        assert!(
            std::str::from_utf8(sealed.payload())
                .unwrap()
                .ends_with(r#""serverPublicKey":"K","salt":"S"}}"#)
        );
    }
}

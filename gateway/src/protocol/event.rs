//! Names, error texts and payloads of the system events, each once (protocol.md, section 3).

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Message;
use super::envelope::{encode, encode_answer};
use super::whole::Whole;
use crate::dispatch::ResyncReason;
use crate::id::Id;
use crate::notification::{Counts, Epoch, InboxState, Notification, rfc3339};

/// Names of events (protocol.md 3.1 to 3.18).
#[expect(missing_docs, reason = "each is its text")]
pub mod name {
    pub const AUTHENTICATE: &str = "authenticate";
    pub const CONNECTED: &str = "connected";
    pub const JOIN: &str = "join";
    pub const JOINED: &str = "joined";
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
    pub const NOTIFICATION_SKIPPED: &str = "notification:skipped";
}

/// Names that no sender on REST may choose (protocol.md 3.19).
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

/// Texts of `error` (protocol.md 3.20).
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
    pub const TOO_MANY_ROOMS: &str = "Too many rooms";
}

/// Data of `authenticate` and `refresh` as a client sends it (protocol.md 4.2).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authenticate<'m> {
    /// `Bearer` or `JWT`, in any case; may be absent.
    #[serde(rename = "type", default, borrow)]
    pub kind: Option<std::borrow::Cow<'m, str>>,
    /// The JWT.
    #[serde(default, borrow)]
    pub token: Option<std::borrow::Cow<'m, str>>,
    /// P-256 point. Any JSON: a key of the wrong type is present, and unusable.
    #[serde(default, borrow)]
    pub client_public_key: Option<&'m serde_json::value::RawValue>,
    /// Another name of it.
    #[serde(default, borrow)]
    pub public_key: Option<&'m serde_json::value::RawValue>,
}

impl Authenticate<'_> {
    /// Returns the token, or `None` where it is absent, empty or of another type. The reference never reads `type`, and its own clients leave it out.
    pub fn bearer(&self) -> Option<&str> {
        let kind = self.kind.as_deref().unwrap_or("bearer");
        let known = kind.eq_ignore_ascii_case("bearer") || kind.eq_ignore_ascii_case("jwt");
        self.token
            .as_deref()
            .filter(|token| known && !token.is_empty())
    }

    /// Returns the client's key: `None` when it is absent or null, `Some(None)` when it is present but not a string.
    pub fn key(&self) -> Option<Option<String>> {
        let raw = self.client_public_key.or(self.public_key)?;
        if raw.get() == "null" {
            None
        } else {
            Some(serde_json::from_str(raw.get()).ok())
        }
    }
}

/// Data of `encrypted`: standard base64.
#[derive(Debug, Deserialize)]
pub struct Encrypted<'m> {
    /// 12 bytes.
    #[serde(borrow)]
    pub iv: std::borrow::Cow<'m, str>,
    /// Ciphertext and tag.
    #[serde(borrow)]
    pub ct: std::borrow::Cow<'m, str>,
}

/// Data of `notification:read` from a client: either member.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MarkRead<'m> {
    /// Marks these: texts.
    #[serde(borrow)]
    pub ids: Option<Vec<&'m RawValue>>,
    /// Marks all up to this `seq`.
    pub up_to: Option<Whole>,
}

/// Data of `notification:sync`.
#[derive(Debug, Deserialize)]
pub struct Sync {
    /// The last `seq` the client has.
    pub after: Whole,
    /// At most so many, up to [`MAX_SYNC`](super::bounds::MAX_SYNC).
    pub limit: Option<Whole>,
}

/// Data of `connected`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connected<'a> {
    /// The client id.
    pub id: Id,
    /// The subject of the token.
    pub user_id: &'a str,
    /// When, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    pub time: String,
    /// The server's public key of an encrypted connection, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_public_key: Option<&'a str>,
    /// The salt of an encrypted connection, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<&'a str>,
}

/// Encodes `connected`, which is never encrypted. `keys` are the server's public key and the salt.
pub fn connected(id: Id, user: &str, now: DateTime<Utc>, keys: Option<(&str, &str)>) -> Message {
    let data = Connected {
        id,
        user_id: user,
        time: time(now),
        server_public_key: keys.map(|k| k.0),
        salt: keys.map(|k| k.1),
    };
    of(name::CONNECTED, &data)
}

/// Data of `error`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorText<'a> {
    /// One of the texts in [`message`].
    pub message: &'a str,
}

/// Encodes `error`.
pub fn error(message: &str) -> Message {
    of(name::ERROR, &ErrorText { message })
}

/// Encodes `error` as the answer to an event with this mark, if it has one.
pub fn error_about(mark: Option<&str>, message: &str) -> Message {
    answer(mark, name::ERROR, &ErrorText { message })
}

/// Data of `joined`.
#[derive(Debug, Serialize, ToSchema)]
pub struct RoomsJoined<'a> {
    /// Those of the rooms that were asked for that the client is in now.
    pub rooms: Vec<&'a str>,
    /// The others.
    pub refused: Vec<&'a str>,
}

/// Encodes `joined`, the answer to the `join` with this mark.
pub fn joined(mark: &str, data: &RoomsJoined<'_>) -> Message {
    answer(Some(mark), name::JOINED, data)
}

/// Data of `resync`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Resync {
    /// For logs.
    pub reason: &'static str,
}

/// Encodes `resync`.
pub fn resync(reason: ResyncReason) -> Message {
    encode(name::RESYNC, Some(resync_data(reason).get()))
}

/// Returns the data of `resync` as JSON.
pub fn resync_data(reason: ResyncReason) -> Arc<RawValue> {
    let data = Resync {
        reason: reason.as_str(),
    };
    serde_json::value::to_raw_value(&data)
        .expect("it is plain data")
        .into()
}

/// Data of `expiring`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Expiring {
    /// When the token ends, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    pub expires_at: String,
    /// Seconds until then.
    pub seconds: i64,
}

/// Encodes `expiring`.
pub fn expiring(at: DateTime<Utc>, seconds: i64) -> Message {
    let expires_at = time(at);
    of(
        name::EXPIRING,
        &Expiring {
            expires_at,
            seconds,
        },
    )
}

/// Data of `refreshed`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refreshed {
    /// When the new token ends, RFC 3339 in UTC; null for a token without an end.
    #[schema(format = DateTime, required = true)]
    pub expires_at: Option<String>,
}

/// Encodes `refreshed`.
pub fn refreshed(at: Option<DateTime<Utc>>) -> Message {
    of(
        name::REFRESHED,
        &Refreshed {
            expires_at: at.map(time),
        },
    )
}

/// Data of `notification:created`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NotificationCreated)]
pub struct Created<'a> {
    /// The notification.
    pub notification: &'a Notification,
    /// The `seq` before it in this inbox. A client that has not everything up to it has missed a notification, or gets it in a moment.
    pub previous_seq: i64,
    /// How many notifications are unread.
    pub unread_count: i64,
    /// Grows with every change of the inbox: of two counts the one with the higher version is newer.
    pub version: i64,
}

/// `notification:created`
pub fn created(notification: &Notification, previous_seq: i64, inbox: InboxState) -> Message {
    of(
        name::NOTIFICATION_CREATED,
        &Created {
            notification,
            previous_seq,
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
    /// Grows with every change of the inbox: of two counts the one with the higher version is newer.
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
    /// Grows with every change of the inbox: of two counts the one with the higher version is newer.
    pub version: i64,
}

/// Data of `notification:skipped`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NotificationSkipped)]
pub struct Skipped {
    /// The notification: REST has it.
    pub id: Id,
    /// Its place in the inbox.
    pub seq: i64,
    /// The `seq` before it in this inbox.
    pub previous_seq: i64,
    /// How many notifications are unread.
    pub unread_count: i64,
    /// Grows with every change of the inbox: of two counts the one with the higher version is newer.
    pub version: i64,
}

impl Skipped {
    /// Names a notification that is too long to be sent.
    pub fn new(notification: &Notification, previous_seq: i64, inbox: InboxState) -> Self {
        Self {
            id: notification.id,
            seq: notification.seq,
            previous_seq,
            unread_count: inbox.unread_count,
            version: inbox.version,
        }
    }
}

/// Encodes `notification:skipped`.
pub fn skipped(notification: &Notification, previous_seq: i64, inbox: InboxState) -> Message {
    of(
        name::NOTIFICATION_SKIPPED,
        &Skipped::new(notification, previous_seq, inbox),
    )
}

/// Returns the `seq` of a `notification:created` or `notification:skipped`, or `None` for any other message.
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
    match &*envelope.event {
        name::NOTIFICATION_CREATED => envelope.read::<Data>().ok().map(|d| d.notification.seq),
        name::NOTIFICATION_SKIPPED => envelope.read::<Row>().ok().map(|row| row.seq),
        _ => None,
    }
}

/// Data of `notification:synced`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Synced {
    /// How many notifications were sent before.
    pub count: usize,
    /// `seq` of the last one, or where the client stood.
    pub cursor: i64,
    /// Which history of the inbox this is.
    pub epoch: Epoch,
    /// Whether the client is to sync again from `cursor`.
    pub more: bool,
    /// How many notifications are unread.
    pub unread_count: i64,
    /// Grows with every change of the inbox: of two counts the one with the higher version is newer.
    pub version: i64,
}

/// Encodes `notification:synced`.
pub fn synced(count: usize, cursor: i64, counts: Counts, more: bool) -> Message {
    let Counts { inbox, epoch } = counts;
    let data = Synced {
        count,
        cursor,
        epoch,
        more,
        unread_count: inbox.unread_count,
        version: inbox.version,
    };
    of(name::NOTIFICATION_SYNCED, &data)
}

fn of(event: &str, data: &impl Serialize) -> Message {
    encode(
        event,
        Some(&serde_json::to_string(data).expect("payloads are plain data")),
    )
}

fn answer(mark: Option<&str>, event: &str, data: &impl Serialize) -> Message {
    let Some(mark) = mark else {
        return of(event, data);
    };
    let data = serde_json::to_string(data).expect("payloads are plain data");
    encode_answer(event, &data, mark)
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// protocol.md 3.1 and 6.8.
    #[test]
    fn a_key_that_is_no_string_differs_from_an_absent_one() {
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

    /// protocol.md 3.2.
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

    /// protocol.md 3.1 to 3.18.
    #[test]
    fn events_are_those_of_the_page() {
        let page = include_str!("../../../docs/protocol.md");
        let named: HashSet<&str> = page
            .lines()
            .filter(|line| line.starts_with("| <a id=\"3."))
            .filter_map(|line| line.split('`').nth(1))
            .collect();
        let ours = [
            name::JOINED,
            name::REFRESH,
            name::REFRESHED,
            name::EXPIRING,
            name::RESYNC,
            name::NOTIFICATION_CREATED,
            name::NOTIFICATION_READ,
            name::NOTIFICATION_DELETED,
            name::NOTIFICATION_SYNC,
            name::NOTIFICATION_SYNCED,
            name::NOTIFICATION_SKIPPED,
        ];
        assert_eq!(named, RESERVED.into_iter().chain(ours).collect());
    }
}

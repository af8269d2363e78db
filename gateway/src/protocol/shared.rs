//! One message to each of many users: frames that are put together while they are written, out of what all of them share and what is a user's own.
//!
//! Input: an [`Audience`](crate::dispatch::Audience). Output: bytes in the write buffer of a thread, so that no receiver has a copy of the text.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Message;
use super::event::name;
use super::frame::{Opcode, header, header_length};
use crate::dispatch::{Addressee, GAPS, SharedText};
use crate::notification::{Notification, rfc3339, rfc3339_opt};

/// Messages that share most of their text, one for each of several users.
#[derive(Debug)]
pub struct SharedMessages {
    text: Arc<SharedText>,
    /// The envelope up to its data.
    head: Vec<u8>,
    /// Of each user, one after the other: the name, and what comes behind each piece of the text.
    own: Vec<u8>,
    ends: Vec<Ends>,
}

/// Where a user's name ends in `own`, and where what comes behind each piece does.
#[derive(Debug, Clone, Copy)]
struct Ends {
    user: u32,
    own: [u32; GAPS],
}

/// Behind the data.
const TAIL: &[u8] = b"}";

impl SharedMessages {
    /// Begins without users.
    pub fn new(text: Arc<SharedText>) -> Self {
        let mut head = b"{\"event\":".to_vec();
        serde_json::to_writer(&mut head, &*text.event).expect("a Vec takes every write");
        head.extend_from_slice(b",\"data\":");
        Self {
            text,
            head,
            own: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Adds the message to this user.
    pub fn push(&mut self, addressee: &Addressee<'_>) {
        let out = &mut self.own;
        out.extend_from_slice(addressee.user.as_bytes());
        let user = out.len() as u32;
        let own = std::array::from_fn(|gap| {
            addressee.write(gap, out);
            out.len() as u32
        });
        self.ends.push(Ends { user, own });
    }

    /// Returns how many messages they are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns how many bytes they need until they are written: those that all share count once.
    pub fn bytes(&self) -> usize {
        self.text.bytes() + self.head.len() + self.own.len() + self.ends.len() * size_of::<Ends>()
    }

    fn start(&self, n: usize) -> usize {
        n.checked_sub(1)
            .map_or(0, |before| self.ends[before].own[GAPS - 1] as usize)
    }

    /// Returns whom message `n` is for.
    pub fn user(&self, n: usize) -> &str {
        let name = &self.own[self.start(n)..self.ends[n].user as usize];
        std::str::from_utf8(name).expect("it was written as text")
    }

    /// Returns the length of the payload of message `n`.
    pub fn payload_length(&self, n: usize) -> usize {
        let Ends { user, own } = self.ends[n];
        let pieces: usize = self.text.pieces.iter().map(|piece| piece.len()).sum();
        self.head.len() + pieces + (own[GAPS - 1] - user) as usize + TAIL.len()
    }

    /// Returns the length of the frame of message `n`.
    pub fn frame_length(&self, n: usize) -> usize {
        let payload = self.payload_length(n);
        header_length(payload) + payload
    }

    /// Appends the payload of message `n`.
    pub fn write_payload(&self, n: usize, out: &mut Vec<u8>) {
        let Ends { user, own } = self.ends[n];
        out.reserve(self.payload_length(n));
        out.extend_from_slice(&self.head);
        let mut at = user as usize;
        for (piece, end) in self.text.pieces.iter().zip(own) {
            out.extend_from_slice(piece.as_bytes());
            out.extend_from_slice(&self.own[at..end as usize]);
            at = end as usize;
        }
        out.extend_from_slice(TAIL);
    }

    /// Appends message `n` as a clear frame.
    pub fn write_frame(&self, n: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&header(Opcode::Text, self.payload_length(n)));
        self.write_payload(n, out);
    }

    /// Returns message `n` with a copy of the text, for whoever keeps it longer than the others.
    pub fn message(&self, n: usize) -> Message {
        Message::written(self.payload_length(n), |out| self.write_payload(n, out))
    }
}

/// Encodes what `notification:created` has in common for all recipients of one event, from the row of any of them.
///
/// What [`Addressee`] writes between its pieces makes the JSON of [`event::Created`](super::event::Created), member by member.
pub fn created_text(notification: &Notification) -> SharedText {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct BeforeRecipient<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        title: &'a str,
        content: &'a str,
        data: &'a RawValue,
        actor_id: Option<&'a str>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct BehindRecipient<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        organizer_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        merchant_id: Option<&'a str>,
        locale: &'a str,
        is_read: bool,
        #[serde(serialize_with = "rfc3339_opt")]
        read_at: Option<DateTime<Utc>>,
        #[serde(
            serialize_with = "rfc3339_opt",
            skip_serializing_if = "Option::is_none"
        )]
        occurred_at: Option<DateTime<Utc>>,
        #[serde(serialize_with = "rfc3339")]
        created_at: DateTime<Utc>,
    }
    let row = notification;
    let before = members(&BeforeRecipient {
        kind: &row.kind,
        title: &row.title,
        content: &row.content,
        data: &row.data,
        actor_id: row.actor_id.as_deref(),
    });
    let behind = members(&BehindRecipient {
        organizer_id: row.organizer_id.as_deref(),
        merchant_id: row.merchant_id.as_deref(),
        locale: &row.locale,
        is_read: row.is_read,
        read_at: row.read_at,
        occurred_at: row.occurred_at,
        created_at: row.created_at,
    });
    SharedText {
        event: name::NOTIFICATION_CREATED.into(),
        pieces: [
            r#"{"notification":{"id":"#.into(),
            format!(r#",{before},"recipientId":"#).into(),
            format!(r#",{behind}}},"previousSeq":"#).into(),
        ],
    }
}

/// Returns the members of an object, without its braces.
fn members(object: &impl Serialize) -> String {
    let mut json = serde_json::to_string(object).expect("payloads are plain data");
    json.pop();
    json.remove(0);
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Audience;
    use crate::notification::InboxState;
    use crate::protocol::event;
    use serde_json::json;
    use tracing::Span;

    fn row(user: &str, seq: i64, is_full: bool) -> Notification {
        let full = |text: &str| is_full.then(|| Arc::from(text));
        let at = |ms| DateTime::from_timestamp_millis(ms).unwrap();
        Notification {
            id: format!("4b{seq}").parse().unwrap(),
            seq,
            kind: "PAYMENT_SUCCESS".into(),
            title: "\u{201c}Thanh to\u{e1}n\u{201d} \"x\"\n".into(),
            content: "}{,\\".into(),
            data: serde_json::value::to_raw_value(&json!({"a": [1, {"recipientId": "no"}]}))
                .unwrap()
                .into(),
            actor_id: full("17"),
            recipient_id: user.into(),
            organizer_id: full("3"),
            merchant_id: full("42"),
            locale: "vi".into(),
            is_read: false,
            read_at: None,
            occurred_at: is_full.then(|| at(1_735_689_600_000)),
            created_at: at(1_735_689_600_123),
        }
    }

    /// protocol.md 9.1 and 3.13.
    #[test]
    fn a_message_of_many_has_the_bytes_that_it_has_alone() {
        for is_full in [false, true] {
            let users = [
                "21",
                "a \"quoted\" \u{1F600}\u{7}",
                "x",
                "a-much-longer-name",
            ];
            let rows: Vec<Notification> = (1..)
                .zip(users)
                .map(|(seq, user)| row(user, seq * 1000, is_full))
                .collect();
            let inbox = InboxState {
                unread_count: 3,
                version: 41,
            };
            let audience = Audience {
                text: created_text(&rows[0]).into(),
                addressees: rows
                    .iter()
                    .map(|row| Addressee {
                        user: &row.recipient_id,
                        id: row.id,
                        seq: row.seq,
                        unread_count: inbox.unread_count,
                        version: inbox.version,
                    })
                    .collect(),
                span: Span::none(),
            };
            let mut shared = SharedMessages::new(Arc::clone(&audience.text));
            audience.addressees.iter().for_each(|one| shared.push(one));
            let single: Vec<_> = audience.dispatches().collect();
            for (n, row) in rows.iter().enumerate() {
                let alone = event::created(row, row.seq - 1, inbox);
                let mut frame = Vec::new();
                shared.write_frame(n, &mut frame);
                assert_eq!(
                    String::from_utf8_lossy(&frame),
                    String::from_utf8_lossy(alone.frame())
                );
                assert_eq!(shared.message(n).frame(), alone.frame());
                assert_eq!(shared.frame_length(n), frame.len());
                assert_eq!(shared.payload_length(n), alone.payload().len());
                assert_eq!(shared.user(n), &*row.recipient_id);
                assert!(audience.longest() >= alone.payload().len());
                let single =
                    super::super::envelope::encode(&single[n].event, single[n].data_text());
                assert_eq!(single.payload(), alone.payload());
            }
            assert_eq!(shared.len(), rows.len());
        }
    }

    #[test]
    fn what_all_share_counts_once() {
        let text = Arc::new(created_text(&row("21", 1, true)));
        let mut shared = SharedMessages::new(Arc::clone(&text));
        for seq in 1..=1000 {
            shared.push(&Addressee {
                user: "user-17",
                id: "4bC".parse().unwrap(),
                seq,
                unread_count: 1,
                version: 1,
            });
        }
        let each = (shared.bytes() - text.bytes()) / shared.len();
        assert!((60..120).contains(&each), "{each} bytes for each");
    }
}

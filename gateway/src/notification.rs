//! What an inbox holds: plain data shared by the pipeline, the store, the sockets and REST; and the bounds of its text.

pub mod bounds;

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::id::Id;

/// Most ids that one marking as read names, or reports.
pub const MAX_READ_IDS: usize = 1000;

/// One stored notification of one recipient, in the shape that clients see.
///
/// The texts are shared: a hundred thousand rows of one activity keep them once.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "One stored notification of one recipient.", example = json!({
    "id": "1KbZ0dT9Xa4", "seq": 812, "type": "PAYMENT_SUCCESS", "title": "Thanh toán thành công", "content": "Đơn hàng DH-1001 đã được thanh toán 150.000 ₫.",
    "data": {"amount": 150000, "currency": "VND", "orderId": "DH-1001"}, "actorId": "17", "recipientId": "21", "merchantId": "42",
    "locale": "vi", "isRead": false, "readAt": null, "occurredAt": "2026-11-23T07:59:58.412Z", "createdAt": "2026-11-23T08:00:00.000Z"
}))]
pub struct Notification {
    /// Identity, never an order.
    pub id: Id,
    /// Counts up per recipient without reuse: the order, the cursor and the only thing clients compare.
    pub seq: i64,
    /// The activity's type.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Arc<str>,
    /// Rendered in `locale`.
    #[schema(value_type = String)]
    pub title: Arc<str>,
    /// Rendered in `locale`.
    #[schema(value_type = String)]
    pub content: Arc<str>,
    /// The activity's parameters, as the producer gave them.
    #[schema(value_type = Value)]
    pub data: Arc<RawValue>,
    /// Who caused it.
    #[schema(value_type = Option<String>, required = true)]
    pub actor_id: Option<Arc<str>>,
    /// Whose inbox it is in.
    #[schema(value_type = String)]
    pub recipient_id: Arc<str>,
    /// The organizer it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub organizer_id: Option<Arc<str>>,
    /// The merchant it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub merchant_id: Option<Arc<str>>,
    /// The catalog's locale that was used.
    #[schema(value_type = String)]
    pub locale: Arc<str>,
    /// Whether `readAt` is set.
    pub is_read: bool,
    /// When it was first read.
    #[serde(serialize_with = "rfc3339_opt")]
    #[schema(required = true)]
    pub read_at: Option<DateTime<Utc>>,
    /// When the activity occurred, if its producer said so.
    #[serde(
        serialize_with = "rfc3339_opt",
        skip_serializing_if = "Option::is_none"
    )]
    pub occurred_at: Option<DateTime<Utc>>,
    /// When it was stored.
    #[serde(serialize_with = "rfc3339")]
    pub created_at: DateTime<Utc>,
}

/// The counters of one inbox, changed in the same transaction as its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InboxState {
    /// How many notifications are unread.
    pub unread_count: i64,
    /// Grows with every change of the inbox: of two counts the one with the higher version is newer.
    pub version: i64,
}

/// Names one history of the inboxes. Another one says that the database went back in time, so that numbers which clients know were given again
/// (protocol.md 9.10). It has no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Epoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PartialSchema for Epoch {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "Another one says that the database went back in time: forget every `seq` and `version`, and start over. It has no order.",
            ))
            .examples(["5c1e09d2a7b34f68"])
            .into()
    }
}

impl ToSchema for Epoch {}

/// The counters of one inbox, and the history that they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The counters.
    pub inbox: InboxState,
    /// The history.
    pub epoch: Epoch,
}

/// One activity with everyone it concerns, as the pipeline gives it to the store.
#[derive(Debug, Clone)]
pub struct NewActivity {
    /// CloudEvents `source`, else the topic: with `event_id` the identity of the event.
    pub source: String,
    /// Identity of the event within its source.
    pub event_id: String,
    /// The activity's type.
    pub kind: String,
    /// Rendered title.
    pub title: String,
    /// Rendered content.
    pub content: String,
    /// The locale that was used.
    pub locale: String,
    /// Parameters, stored together with the text.
    pub data: Box<RawValue>,
    /// Who caused it.
    pub actor_id: Option<String>,
    /// The organizer it concerns.
    pub organizer_id: Option<String>,
    /// The merchant it concerns.
    pub merchant_id: Option<String>,
    /// When it occurred, to the millisecond.
    pub occurred_at: Option<DateTime<Utc>>,
    /// Whom it concerns, without repeats; never empty.
    pub recipients: Arc<[String]>,
}

impl NewActivity {
    /// How long its texts are together, in bytes.
    pub fn text_bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.source.len()
            + self.event_id.len()
            + self.kind.len()
            + self.title.len()
            + self.content.len()
            + self.locale.len()
            + self.data.get().len()
            + optional(&self.actor_id)
            + optional(&self.organizer_id)
            + optional(&self.merchant_id)
    }
}

/// Writes a time as RFC 3339 in UTC with milliseconds.
pub fn rfc3339<S: Serializer>(at: &DateTime<Utc>, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// Writes a time as RFC 3339 in UTC with milliseconds, or null.
pub fn rfc3339_opt<S: Serializer>(at: &Option<DateTime<Utc>>, s: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => rfc3339(at, s),
        None => s.serialize_none(),
    }
}

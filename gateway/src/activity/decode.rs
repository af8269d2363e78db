//! A record as Kafka gave it, read as an activity; no IO.
//!
//! Input: [`Record`]s from the consumer. Output: an [`Activity`], or the [`Poison`] that names what is wrong with the record.
//!
//! Three shapes are read: the platform's own JSON object, and CloudEvents 1.0 in structured and in binary content mode. Unknown members are
//! ignored, since producers evolve. Known members are checked one by one, so that nothing a producer sends reaches the database unmeasured.

mod cloud_event;
mod fields;

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use self::fields::{checked, error_position, named, object, rfc3339, shown, string, text_of};
use super::poison::{DeadLetterReason, Poison};
use crate::notification::bounds::{
    self, MAX_CONTENT_BYTES, MAX_DATA_BYTES, MAX_LOCALE_BYTES, MAX_NAME_BYTES, MAX_TITLE_BYTES,
};
use crate::principal::{MAX_USER_ID_BYTES, is_user_id};

/// Carries the identity of a replayed record that has no `id`: its first topic, partition, offset and time.
pub const EVENT_ID_HEADER: &str = "signal-event-id";
/// W3C Trace Context.
pub const TRACEPARENT_HEADER: &str = "traceparent";

/// One record as Kafka gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The topic it was read from.
    pub topic: Arc<str>,
    /// The partition it was read from.
    pub partition: i32,
    /// Its position in the partition.
    pub offset: i64,
    /// Milliseconds since the Unix epoch; `None` where the topic keeps no time.
    pub timestamp: Option<i64>,
    /// Free: producers use the merchant's or organizer's id.
    pub key: Option<Vec<u8>>,
    /// `None` for a tombstone.
    pub value: Option<Vec<u8>>,
    /// In the order they came; names may repeat.
    pub headers: Vec<Header>,
}

/// A header's name and value.
pub type Header = (String, Option<Vec<u8>>);

impl Record {
    /// The last header of this name as text; `None` when there is none or it is no UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .headers
            .iter()
            .rev()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    /// The identity of a record that names none: its topic, partition, offset and time.
    pub fn fallback_id(&self) -> String {
        format!(
            "{}/{}/{}/{}",
            self.topic,
            self.partition,
            self.offset,
            self.timestamp.unwrap_or(-1)
        )
    }

    /// Roughly the memory it takes, in bytes.
    pub fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len))
            .sum();
        self.key.as_ref().map_or(0, Vec::len)
            + self.value.as_ref().map_or(0, Vec::len)
            + headers
            + 128
    }
}

/// Whom an activity is for, before recipients are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Everyone in an organizer.
    Organizer(String),
    /// Everyone in a merchant.
    Merchant(String),
    /// These, without repeats.
    Users(Arc<[String]>),
    /// The user who caused it.
    Actor,
}

/// A decoded record.
#[derive(Debug, Clone)]
pub struct Activity {
    /// CloudEvents `source`, else the topic.
    pub source: String,
    /// Identity of the event within its source.
    pub event_id: String,
    /// Selects the template.
    pub kind: String,
    /// Whom it is for.
    pub audience: Audience,
    /// Who caused it.
    pub actor_id: Option<String>,
    /// The organizer it concerns.
    pub organizer_id: Option<String>,
    /// The merchant it concerns.
    pub merchant_id: Option<String>,
    /// Parameters as the producer wrote them: a JSON object.
    pub data: Box<RawValue>,
    /// The same, parsed.
    pub parameters: Map<String, Value>,
    /// Text given by the producer; it replaces the template's.
    pub title: Option<String>,
    /// Text given by the producer; it replaces the template's.
    pub content: Option<String>,
    /// The locale asked for.
    pub locale: Option<String>,
    /// When it happened.
    pub occurred_at: Option<DateTime<Utc>>,
}

/// The members of the platform's own shape, each still as it was written.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Body<'r> {
    #[serde(borrow)]
    id: Option<&'r RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'r RawValue>,
    #[serde(borrow)]
    actor_id: Option<&'r RawValue>,
    #[serde(borrow)]
    recipient_type: Option<&'r RawValue>,
    #[serde(borrow)]
    organizer_id: Option<&'r RawValue>,
    #[serde(borrow)]
    merchant_id: Option<&'r RawValue>,
    #[serde(borrow)]
    recipient_ids: Option<&'r RawValue>,
    #[serde(borrow)]
    data: Option<&'r RawValue>,
    #[serde(borrow)]
    title: Option<&'r RawValue>,
    #[serde(borrow)]
    content: Option<&'r RawValue>,
    #[serde(borrow)]
    locale: Option<&'r RawValue>,
    #[serde(borrow)]
    occurred_at: Option<&'r RawValue>,
}

/// The attributes that an envelope gives to the event inside it.
struct Event {
    source: String,
    id: Option<String>,
    kind: Option<String>,
    time: Option<DateTime<Utc>>,
}

/// Reads a record.
///
/// # Errors
/// [`Poison`]: this record will never be an activity, however often it is read.
pub fn decode(record: &Record) -> Result<Activity, Poison> {
    if let Some(activity) = cloud_event::decode(record) {
        return activity;
    }
    let event = Event {
        source: record.topic.to_string(),
        id: None,
        kind: None,
        time: None,
    };
    activity(record, event, text_of(record)?)
}

/// Reads the platform's own shape. An attribute of the envelope wins over the member inside.
fn activity(record: &Record, event: Event, text: &str) -> Result<Activity, Poison> {
    let body: Body<'_> = object(text, "the value")?;
    let optional = |name: &'static str, raw: Option<&RawValue>| -> Result<Option<String>, Poison> {
        Ok(raw
            .map(|raw| named(name, raw))
            .transpose()?
            .filter(|text| !text.is_empty()))
    };
    let kind = match event.kind {
        Some(kind) => kind,
        None => optional("type", body.kind)?
            .ok_or_else(|| Poison::new(DeadLetterReason::MissingField, "field type is missing"))?,
    };
    let event_id = match event.id {
        Some(id) => id,
        None => match optional("id", body.id)? {
            Some(id) => id,
            None => match record.header(EVENT_ID_HEADER).filter(|id| !id.is_empty()) {
                Some(id) => checked(EVENT_ID_HEADER, id.into(), MAX_NAME_BYTES)?,
                None => record.fallback_id(),
            },
        },
    };
    let occurred_at = match (event.time, body.occurred_at) {
        (Some(time), _) => Some(time),
        (None, Some(raw)) => Some(rfc3339(
            "occurredAt",
            &string("occurredAt", raw, MAX_LOCALE_BYTES)?,
        )?),
        (None, None) => None,
    };
    let organizer_id = optional("organizerId", body.organizer_id)?;
    let merchant_id = optional("merchantId", body.merchant_id)?;
    let (data, parameters) = parameters(body.data)?;
    Ok(Activity {
        source: event.source,
        event_id,
        kind,
        audience: audience(&body, organizer_id.as_deref(), merchant_id.as_deref())?,
        actor_id: optional("actorId", body.actor_id)?
            .map(|id| user_id("actorId", id))
            .transpose()?,
        organizer_id,
        merchant_id,
        data,
        parameters,
        title: body
            .title
            .map(|raw| string("title", raw, MAX_TITLE_BYTES))
            .transpose()?,
        content: body
            .content
            .map(|raw| string("content", raw, MAX_CONTENT_BYTES))
            .transpose()?,
        locale: body
            .locale
            .map(|raw| string("locale", raw, MAX_LOCALE_BYTES))
            .transpose()?
            .filter(|text| !text.is_empty()),
        occurred_at,
    })
}

fn audience(
    body: &Body<'_>,
    organizer: Option<&str>,
    merchant: Option<&str>,
) -> Result<Audience, Poison> {
    let Some(raw) = body.recipient_type else {
        return Ok(Audience::Actor);
    };
    let kind = string("recipientType", raw, MAX_NAME_BYTES)?;
    let missing = |name| {
        Poison::new(
            DeadLetterReason::MissingAudience,
            format!("recipientType {kind} needs {name}"),
        )
    };
    match kind.as_str() {
        "org" => organizer
            .map(|id| Audience::Organizer(id.to_owned()))
            .ok_or_else(|| missing("organizerId")),
        "merchant" => merchant
            .map(|id| Audience::Merchant(id.to_owned()))
            .ok_or_else(|| missing("merchantId")),
        "users" => {
            let raw: Vec<&RawValue> = serde_json::from_str(
                body.recipient_ids
                    .ok_or_else(|| missing("recipientIds"))?
                    .get(),
            )
            .map_err(|_| {
                Poison::new(
                    DeadLetterReason::InvalidField,
                    "field recipientIds is no array",
                )
            })?;
            let mut seen = HashSet::with_capacity(raw.len());
            let mut ids = Vec::with_capacity(raw.len());
            for raw in raw {
                let id = named("recipientIds", raw)?;
                let id = user_id("recipientIds", id)?;
                if seen.insert(id.clone()) {
                    ids.push(id);
                }
            }
            Ok(Audience::Users(ids.into()))
        }
        other => Err(Poison::new(
            DeadLetterReason::UnknownRecipientType,
            format!(
                "recipientType {} is none of org, merchant, users",
                shown(other)
            ),
        )),
    }
}

/// Checks that a recipient is somebody whom a token may name; the actor may become one.
fn user_id(field: &str, id: String) -> Result<String, Poison> {
    if is_user_id(&id) {
        return Ok(id);
    }
    Err(Poison::new(
        DeadLetterReason::InvalidField,
        format!(
            "field {field} holds no user id: 1 to {MAX_USER_ID_BYTES} bytes without control characters"
        ),
    ))
}

fn parameters(raw: Option<&RawValue>) -> Result<(Box<RawValue>, Map<String, Value>), Poison> {
    let invalid =
        |why: &str| Poison::new(DeadLetterReason::InvalidField, format!("field data {why}"));
    let Some(raw) = raw else {
        return Ok((
            RawValue::from_string("{}".into()).expect("an empty object is JSON"),
            Map::new(),
        ));
    };
    bounds::check_json(raw.get(), MAX_DATA_BYTES).map_err(|error| invalid(&error.to_string()))?;
    if !raw.get().starts_with('{') {
        return Err(invalid("is no object"));
    }
    // Reading it whole refuses what a raw value lets through: nesting beyond 128, lone surrogates, numbers beyond a double.
    let parameters = serde_json::from_str(raw.get())
        .map_err(|error| invalid(&format!("cannot be read: {}", error_position(&error))))?;
    Ok((raw.to_owned(), parameters))
}

#[cfg(test)]
mod tests;

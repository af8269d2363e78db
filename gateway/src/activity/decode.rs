//! A record as Kafka gave it, read as an activity; no IO.
//!
//! Input: [`Record`]s from the consumer. Output: an [`Activity`], or the [`Poison`] that names what is wrong with the record.
//!
//! Three shapes are read: the platform's own JSON object, and CloudEvents 1.0 in structured and in binary content mode. Unknown members are
//! ignored, since producers evolve. Known members are checked one by one, so that nothing a producer sends reaches the database unmeasured.
//! An invalid member makes a record poison only where nobody could be notified, or of something else, without it; elsewhere it is [`Dropped`].

mod cloud_event;
mod fields;

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use self::fields::{
    Readable, checked, error_position, is_empty, named, object, present, shown, string, text_of,
};
use super::poison::{DeadLetterReason, Poison};
use super::time;
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
    /// Text given by the producer; it replaces the template's.
    pub title: Option<String>,
    /// Text given by the producer; it replaces the template's.
    pub content: Option<String>,
    /// The locale asked for.
    pub locale: Option<String>,
    /// When it occurred, to the millisecond.
    pub occurred_at: Option<DateTime<Utc>>,
    /// What was passed over.
    pub dropped: Dropped,
}

/// What of a record is invalid and was passed over, because the rest can be used without it (protocol.md 12.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Names of members.
    pub members: Vec<&'static str>,
    /// How many elements of `recipientIds`.
    pub recipients: u64,
}

impl Dropped {
    /// Returns whether everything was used.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.recipients == 0
    }

    /// Takes what was read, or notes the member's name.
    fn keep<T>(&mut self, member: &'static str, read: Option<T>) -> Option<T> {
        if read.is_none() {
            self.members.push(member);
        }
        read
    }
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
    dropped: Dropped,
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
        dropped: Dropped::default(),
    };
    activity(record, event, text_of(record)?)
}

/// Reads the platform's own shape. An attribute of the envelope wins over the member inside.
fn activity(record: &Record, event: Event, text: &str) -> Result<Activity, Poison> {
    let body: Body<'_> = object(text, "the value")?;
    let mut dropped = event.dropped;
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
    let Addressed {
        audience,
        actor_id,
        organizer_id,
        merchant_id,
    } = addressed(&body, &mut dropped)?;
    let occurred_at = match (event.time, present(body.occurred_at)) {
        (None, Some(raw)) => dropped.keep("occurredAt", time::of_json(raw)),
        (given, _) => given,
    };
    let text = |name, raw, most| -> Result<Option<String>, Poison> {
        present(raw).map(|raw| string(name, raw, most)).transpose()
    };
    Ok(Activity {
        source: event.source,
        event_id,
        kind,
        audience,
        actor_id,
        organizer_id,
        merchant_id,
        data: data(body.data)?,
        title: text("title", body.title, MAX_TITLE_BYTES)?,
        content: text("content", body.content, MAX_CONTENT_BYTES)?,
        locale: present(body.locale)
            .and_then(|raw| dropped.keep("locale", string("locale", raw, MAX_LOCALE_BYTES).ok())),
        occurred_at,
        dropped,
    })
}

/// Reads a member that may be left out; `null` and an empty text leave it out.
fn optional(name: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, Poison> {
    present(raw).map(|raw| named(name, raw)).transpose()
}

/// Whom an activity is for, and who else it names.
struct Addressed {
    audience: Audience,
    actor_id: Option<String>,
    organizer_id: Option<String>,
    merchant_id: Option<String>,
}

/// Reads the members that name somebody. The one that the audience needs must be valid; the others are dropped where they are not.
fn addressed(body: &Body<'_>, dropped: &mut Dropped) -> Result<Addressed, Poison> {
    let kind = present(body.recipient_type)
        .map(|raw| string("recipientType", raw, MAX_NAME_BYTES))
        .transpose()?;
    let kind = kind.as_deref();
    let mut read = |name, raw, is_needed: bool| match optional(name, raw) {
        Err(_) if !is_needed => Ok(dropped.keep(name, None)),
        read => read,
    };
    let organizer_id = read("organizerId", body.organizer_id, kind == Some("org"))?;
    let merchant_id = read("merchantId", body.merchant_id, kind == Some("merchant"))?;
    let actor = read("actorId", body.actor_id, kind.is_none())?;
    let actor_id = match actor.map(|id| user_id("actorId", id)).transpose() {
        Err(_) if kind.is_some() => dropped.keep("actorId", None),
        read => read?,
    };
    let Some(kind) = kind else {
        return Ok(Addressed {
            audience: Audience::Actor,
            actor_id,
            organizer_id,
            merchant_id,
        });
    };
    let missing = |name| {
        Poison::new(
            DeadLetterReason::MissingAudience,
            format!("recipientType {kind} needs {name}"),
        )
    };
    let audience = match kind {
        "org" => Audience::Organizer(organizer_id.clone().ok_or_else(|| missing("organizerId"))?),
        "merchant" => Audience::Merchant(merchant_id.clone().ok_or_else(|| missing("merchantId"))?),
        "users" => {
            let raw = present(body.recipient_ids).ok_or_else(|| missing("recipientIds"))?;
            Audience::Users(recipients(raw, dropped)?)
        }
        other => {
            return Err(Poison::new(
                DeadLetterReason::UnknownRecipientType,
                format!(
                    "recipientType {} is none of org, merchant, users",
                    shown(other)
                ),
            ));
        }
    };
    Ok(Addressed {
        audience,
        actor_id,
        organizer_id,
        merchant_id,
    })
}

/// Reads `recipientIds`. An element that is no user id concerns nobody, and the others no less for it.
fn recipients(raw: &RawValue, dropped: &mut Dropped) -> Result<Arc<[String]>, Poison> {
    let elements: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|_| {
        Poison::new(
            DeadLetterReason::InvalidField,
            "field recipientIds is no array",
        )
    })?;
    let mut seen = HashSet::with_capacity(elements.len());
    let mut ids = Vec::with_capacity(elements.len());
    for element in elements {
        match named("recipientIds", element) {
            Ok(id) if is_user_id(&id) => {
                if seen.insert(id.clone()) {
                    ids.push(id);
                }
            }
            _ => dropped.recipients += 1,
        }
    }
    Ok(ids.into())
}

/// Checks that the actor is somebody whom a token may name: the actor may become a recipient.
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

/// Reads `data`, which stays as it was written. An empty list is how PHP writes an object without members.
fn data(raw: Option<&RawValue>) -> Result<Box<RawValue>, Poison> {
    let invalid =
        |why: &str| Poison::new(DeadLetterReason::InvalidField, format!("field data {why}"));
    let Some(raw) = present(raw).filter(|raw| !is_empty(raw)) else {
        return Ok(RawValue::from_string("{}".into()).expect("an empty object is JSON"));
    };
    bounds::check_json(raw.get(), MAX_DATA_BYTES).map_err(|error| invalid(&error.to_string()))?;
    if !raw.get().starts_with('{') {
        return Err(invalid("is no object"));
    }
    // Reading it whole refuses what a raw value lets through: nesting beyond 128, lone surrogates, numbers beyond a double.
    serde_json::from_str::<Readable>(raw.get())
        .map_err(|error| invalid(&format!("cannot be read: {}", error_position(&error))))?;
    Ok(raw.to_owned())
}

#[cfg(test)]
mod tests;

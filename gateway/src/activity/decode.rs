//! What Kafka gave, read as an activity; no IO.
//!
//! Input: [`Record`]s from the consumer. Output: an [`Activity`], or the [`Poison`] that says what is wrong with the record.
//!
//! Three shapes are read: the platform's own JSON object, and CloudEvents 1.0 in structured and in binary content mode
//! (Kafka protocol binding 1.0.2, sections 3.2 and 3.3). Members that are not known are passed over, since producers evolve.
//! The members that are known are checked one by one, so that nothing a producer sends reaches the database unmeasured.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::poison::{DeadLetterReason, Poison};
use crate::notification::bounds::{
    self, MAX_CONTENT_BYTES, MAX_DATA_BYTES, MAX_LOCALE_BYTES, MAX_NAME_BYTES, MAX_TITLE_BYTES,
};

/// Carries the identity of a replayed record that has no `id`: where it lay first.
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
    /// Where in the partition.
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

    /// The identity of a record that names none: where it lay first.
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

/// Whom an activity is for, before anybody was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Everyone in an organizer.
    Organizer(String),
    /// Everyone in a merchant.
    Merchant(String),
    /// These, without repeats.
    Users(Arc<[String]>),
    /// Whoever caused it.
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
    /// The same, read.
    pub parameters: Map<String, Value>,
    /// Text of the producer's, in place of the template's.
    pub title: Option<String>,
    /// Text of the producer's, in place of the template's.
    pub content: Option<String>,
    /// The locale asked for.
    pub locale: Option<String>,
    /// When it happened.
    pub occurred_at: Option<DateTime<Utc>>,
    /// Header `traceparent`.
    pub traceparent: Option<String>,
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

/// A structured CloudEvent, each attribute still as it was written (CloudEvents JSON format 1.0.2).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Structured<'r> {
    #[serde(borrow)]
    specversion: Option<&'r RawValue>,
    #[serde(borrow)]
    id: Option<&'r RawValue>,
    #[serde(borrow)]
    source: Option<&'r RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'r RawValue>,
    #[serde(borrow)]
    time: Option<&'r RawValue>,
    #[serde(borrow)]
    datacontenttype: Option<&'r RawValue>,
    #[serde(borrow)]
    data: Option<&'r RawValue>,
    #[serde(borrow)]
    data_base64: Option<&'r RawValue>,
}

/// What an envelope says about the event inside it.
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
    let content_type = media_type(record.header("content-type").unwrap_or_default());
    if content_type.starts_with("application/cloudevents") {
        return match content_type.as_str() {
            "application/cloudevents" | "application/cloudevents+json" => structured(record),
            other => Err(cloud_event(format!(
                "content type {} is not application/cloudevents+json",
                shown(other)
            ))),
        };
    }
    if record.headers.iter().any(|(name, _)| {
        matches!(
            name.to_ascii_lowercase().as_str(),
            "ce_specversion" | "ce_id" | "ce_type" | "ce_source"
        )
    }) {
        return binary(record, &content_type);
    }
    let event = Event {
        source: record.topic.to_string(),
        id: None,
        kind: None,
        time: None,
    };
    activity(record, event, text_of(record)?)
}

fn structured(record: &Record) -> Result<Activity, Poison> {
    let envelope: Structured<'_> = object(text_of(record)?, "the value")?;
    let attribute =
        |name: &'static str, raw: Option<&RawValue>| -> Result<Option<String>, Poison> {
            raw.map(|raw| named(name, raw))
                .transpose()
                .map_err(|p| cloud_event(p.detail))
        };
    let version = attribute("specversion", envelope.specversion)?;
    let event = event(
        version.as_deref(),
        attribute("id", envelope.id)?,
        attribute("source", envelope.source)?,
        attribute("type", envelope.kind)?,
        attribute("time", envelope.time)?.as_deref(),
    )?;
    json_content(&attribute("datacontenttype", envelope.datacontenttype)?.unwrap_or_default())?;
    match (envelope.data, envelope.data_base64) {
        (Some(_), Some(_)) => Err(cloud_event("data and data_base64 exclude each other")),
        (Some(data), None) => activity(record, event, data.get()),
        (None, Some(encoded)) => {
            let encoded = string("data_base64", encoded, usize::MAX)?;
            let bytes = base64_simd::STANDARD
                .decode_to_vec(encoded.as_bytes())
                .map_err(|_| cloud_event("data_base64 is not base64"))?;
            activity(record, event, utf8(&bytes)?)
        }
        (None, None) => activity(record, event, "{}"),
    }
}

fn binary(record: &Record, content_type: &str) -> Result<Activity, Poison> {
    let attribute = |name: &'static str| -> Result<Option<String>, Poison> {
        let Some((_, value)) = record
            .headers
            .iter()
            .rev()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
        else {
            return Ok(None);
        };
        let text = std::str::from_utf8(value.as_deref().unwrap_or_default())
            .map_err(|_| cloud_event(format!("{name} is not UTF-8")))?;
        checked(name, text.into(), MAX_NAME_BYTES)
            .map(Some)
            .map_err(|p| cloud_event(p.detail))
    };
    let version = attribute("ce_specversion")?;
    let event = event(
        version.as_deref(),
        attribute("ce_id")?,
        attribute("ce_source")?,
        attribute("ce_type")?,
        attribute("ce_time")?.as_deref(),
    )?;
    json_content(content_type)?;
    let text = if record.value.as_deref().unwrap_or_default().is_empty() {
        "{}"
    } else {
        text_of(record)?
    };
    activity(record, event, text)
}

/// CloudEvents 1.0.2, "Required attributes": `id`, `source`, `specversion`, `type`, none of them empty.
fn event(
    version: Option<&str>,
    id: Option<String>,
    source: Option<String>,
    kind: Option<String>,
    time: Option<&str>,
) -> Result<Event, Poison> {
    let need = |name: &str, value: Option<String>| {
        value
            .filter(|text| !text.is_empty())
            .ok_or_else(|| cloud_event(format!("attribute {name} is missing or empty")))
    };
    match version {
        Some("1.0") => {}
        Some(other) => {
            return Err(cloud_event(format!(
                "specversion {} is not 1.0",
                shown(other)
            )));
        }
        None => return Err(cloud_event("attribute specversion is missing")),
    }
    let time = time
        .map(|text| rfc3339("time", text))
        .transpose()
        .map_err(|p| cloud_event(p.detail))?;
    Ok(Event {
        source: need("source", source)?,
        id: Some(need("id", id)?),
        kind: Some(need("type", kind)?),
        time,
    })
}

/// Reads the platform's own shape; what the envelope says about the event wins over what stands inside.
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
        actor_id: optional("actorId", body.actor_id)?,
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
        traceparent: record.header(TRACEPARENT_HEADER).map(str::to_owned),
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
                if id.is_empty() {
                    return Err(Poison::new(
                        DeadLetterReason::InvalidField,
                        "field recipientIds holds an empty id",
                    ));
                }
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
        .map_err(|error| invalid(&format!("cannot be read: {}", place(&error))))?;
    Ok((raw.to_owned(), parameters))
}

/// An id or a name: a string, or an integer in the digits that were written, since no double holds every one of them.
fn named(field: &'static str, raw: &RawValue) -> Result<String, Poison> {
    let text = raw.get();
    if text.starts_with('"') {
        return string(field, raw, MAX_NAME_BYTES);
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Poison::new(
            DeadLetterReason::InvalidField,
            format!("field {field} is no string or integer"),
        ));
    }
    checked(field, text.into(), MAX_NAME_BYTES)
}

fn string(field: &'static str, raw: &RawValue, max_bytes: usize) -> Result<String, Poison> {
    let text: Cow<'_, str> = serde_json::from_str(raw.get()).map_err(|_| {
        Poison::new(
            DeadLetterReason::InvalidField,
            format!("field {field} is no string"),
        )
    })?;
    checked(field, text, max_bytes)
}

fn checked(field: &str, text: Cow<'_, str>, max_bytes: usize) -> Result<String, Poison> {
    bounds::check_text(&text, max_bytes).map_err(|error| {
        Poison::new(
            DeadLetterReason::InvalidField,
            format!("field {field} {error}"),
        )
    })?;
    Ok(text.into_owned())
}

fn rfc3339(field: &str, text: &str) -> Result<DateTime<Utc>, Poison> {
    DateTime::parse_from_rfc3339(text)
        .map(|at| at.with_timezone(&Utc))
        .map_err(|_| {
            Poison::new(
                DeadLetterReason::InvalidField,
                format!("field {field} is no RFC 3339 time"),
            )
        })
}

/// Derived structs accept arrays as well; the contract speaks of objects only.
fn object<'t, T: Deserialize<'t>>(text: &'t str, what: &str) -> Result<T, Poison> {
    if !text
        .trim_start_matches([' ', '\t', '\n', '\r'])
        .starts_with('{')
    {
        return Err(Poison::new(
            DeadLetterReason::NotJson,
            format!("{what} is no JSON object"),
        ));
    }
    serde_json::from_str(text).map_err(|error| {
        Poison::new(
            DeadLetterReason::NotJson,
            format!("{what} is no JSON object: {}", place(&error)),
        )
    })
}

/// Where a JSON text goes wrong. The error's own text may quote what stands there.
fn place(error: &serde_json::Error) -> String {
    format!(
        "{} error at line {} column {}",
        if error.is_eof() {
            "unexpected end,"
        } else {
            "syntax"
        },
        error.line(),
        error.column()
    )
}

fn text_of(record: &Record) -> Result<&str, Poison> {
    utf8(
        record
            .value
            .as_deref()
            .ok_or_else(|| Poison::new(DeadLetterReason::NotJson, "the record has no value"))?,
    )
}

fn utf8(bytes: &[u8]) -> Result<&str, Poison> {
    simdutf8::basic::from_utf8(bytes)
        .map_err(|_| Poison::new(DeadLetterReason::NotJson, "the value is not UTF-8"))
}

fn media_type(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// CloudEvents JSON format 1.0.2, 3.1: no content type means JSON, as do `application/json` and any `+json`.
fn json_content(content_type: &str) -> Result<(), Poison> {
    let media = media_type(content_type);
    if media.is_empty()
        || media == "application/json"
        || media == "text/json"
        || media.ends_with("+json")
    {
        return Ok(());
    }
    Err(cloud_event(format!(
        "data of content type {} is not JSON",
        shown(&media)
    )))
}

fn cloud_event(detail: impl Into<String>) -> Poison {
    Poison::new(DeadLetterReason::InvalidCloudEvent, detail)
}

/// A producer's word, short and printable enough for a log line and a header.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests;

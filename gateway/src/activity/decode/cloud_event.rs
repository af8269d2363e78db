//! CloudEvents 1.0 in structured and in binary content mode (Kafka protocol binding 1.0.2, sections 3.2 and 3.3).
//!
//! Input: a record that is one. Output: the event's attributes and the JSON text of its data, for [`super::decode`].

use serde::Deserialize;
use serde_json::value::RawValue;

use super::fields::{checked, is_empty, named, object, present, shown, string, text_of, utf8};
use super::{Activity, Dropped, Event, Record, activity};
use crate::activity::poison::{DeadLetterReason, Poison};
use crate::activity::time;
use crate::notification::bounds::MAX_NAME_BYTES;

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

/// Reads a record that is a CloudEvent; `None` for one that is not.
pub(super) fn decode(record: &Record) -> Option<Result<Activity, Poison>> {
    let content_type = media_type(record.header("content-type").unwrap_or_default());
    if content_type.starts_with("application/cloudevents") {
        return Some(match content_type.as_str() {
            "application/cloudevents" | "application/cloudevents+json" => structured(record),
            other => Err(cloud_event(format!(
                "content type {} is not application/cloudevents+json",
                shown(other)
            ))),
        });
    }
    let is_binary = record.headers.iter().any(|(name, _)| {
        matches!(
            name.to_ascii_lowercase().as_str(),
            "ce_specversion" | "ce_id" | "ce_type" | "ce_source"
        )
    });
    is_binary.then(|| binary(record, &content_type))
}

fn structured(record: &Record) -> Result<Activity, Poison> {
    let envelope: Structured<'_> = object(text_of(record)?, "the value")?;
    let attribute =
        |name: &'static str, raw: Option<&RawValue>| -> Result<Option<String>, Poison> {
            present(raw)
                .map(|raw| named(name, raw))
                .transpose()
                .map_err(|p| cloud_event(p.detail))
        };
    let version = attribute("specversion", envelope.specversion)?;
    let mut event = event(
        version.as_deref(),
        attribute("id", envelope.id)?,
        attribute("source", envelope.source)?,
        attribute("type", envelope.kind)?,
    )?;
    event.time =
        present(envelope.time).and_then(|raw| event.dropped.keep("time", time::of_json(raw)));
    json_content(&attribute("datacontenttype", envelope.datacontenttype)?.unwrap_or_default())?;
    let data = present(envelope.data).filter(|raw| !is_empty(raw));
    match (data, present(envelope.data_base64)) {
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
    let mut event = event(
        version.as_deref(),
        attribute("ce_id")?,
        attribute("ce_source")?,
        attribute("ce_type")?,
    )?;
    if record.headers.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case("ce_time") && value.as_ref().is_some_and(|v| !v.is_empty())
    }) {
        let time = record.header("ce_time").and_then(time::of_text);
        event.time = event.dropped.keep("time", time);
    }
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
) -> Result<Event, Poison> {
    let need = |name: &str, value: Option<String>| {
        value
            .filter(|text| !text.is_empty())
            .ok_or_else(|| cloud_event(format!("attribute {name} is missing or empty")))
    };
    match version {
        // The second is how the number 1.0 reads.
        Some("1.0" | "1") => {}
        Some(other) => {
            return Err(cloud_event(format!(
                "specversion {} is not 1.0",
                shown(other)
            )));
        }
        None => return Err(cloud_event("attribute specversion is missing")),
    }
    Ok(Event {
        source: need("source", source)?,
        id: Some(need("id", id)?),
        kind: Some(need("type", kind)?),
        time: None,
        dropped: Dropped::default(),
    })
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

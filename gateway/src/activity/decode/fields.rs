//! One field of a record: its type, its bounds, and what is said of a wrong one. Nothing here quotes what a field holds.

use std::borrow::Cow;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::value::RawValue;
use signal_contract::Object;

use super::Record;
use crate::activity::number;
use crate::activity::poison::{DeadLetterReason, Poison};
use crate::notification::bounds::{self, MAX_NAME_BYTES};

/// A member that says something: `null` and an empty text say nothing.
pub(super) fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| !matches!(raw.get(), "null" | "\"\""))
}

/// Whether a value is a list without elements.
pub(super) fn is_empty(raw: &RawValue) -> bool {
    let inside = raw.get().strip_prefix('[');
    inside.is_some_and(|rest| rest.trim_start().starts_with(']'))
}

/// An id or a name: a string, or an integer in the digits that were written, since no double holds every one of them. `42.0` is one as well: so write
/// languages that have no integers.
pub(super) fn named(field: &'static str, raw: &RawValue) -> Result<String, Poison> {
    let text = raw.get();
    if text.starts_with('"') {
        return string(field, raw, MAX_NAME_BYTES);
    }
    let integer = number::Written::parse(text).and_then(|number| number.integer());
    let integer = integer.ok_or_else(|| {
        Poison::new(
            DeadLetterReason::InvalidField,
            format!("field {field} is no string or integer"),
        )
    })?;
    checked(field, integer.into(), MAX_NAME_BYTES)
}

/// A string of at most `max_bytes`.
pub(super) fn string(
    field: &'static str,
    raw: &RawValue,
    max_bytes: usize,
) -> Result<String, Poison> {
    let text: Cow<'_, str> = serde_json::from_str(raw.get()).map_err(|_| {
        Poison::new(
            DeadLetterReason::InvalidField,
            // The value is JSON already: only half of a surrogate pair makes a text unreadable.
            match raw.get().starts_with('"') {
                true => format!("field {field} holds half of a surrogate pair"),
                false => format!("field {field} is no string"),
            },
        )
    })?;
    checked(field, text, max_bytes)
}

/// Measures a text that is not JSON any more.
pub(super) fn checked(field: &str, text: Cow<'_, str>, max_bytes: usize) -> Result<String, Poison> {
    bounds::check_text(&text, max_bytes).map_err(|error| {
        Poison::new(
            DeadLetterReason::InvalidField,
            format!("field {field} {error}"),
        )
    })?;
    Ok(text.into_owned())
}

/// Reads a JSON object.
pub(super) fn object<'t, T: Deserialize<'t>>(text: &'t str, what: &str) -> Result<T, Poison> {
    serde_json::from_str(text)
        .map(|Object(value)| value)
        .map_err(|error| {
            Poison::new(
                DeadLetterReason::NotJson,
                format!("{what} is no JSON object: {}", error_position(&error)),
            )
        })
}

/// Where a JSON text is wrong. The error's own message may quote the text.
pub(super) fn error_position(error: &serde_json::Error) -> String {
    format!(
        "{} error at line {} column {}",
        match error.classify() {
            Category::Eof => "unexpected end,",
            Category::Data => "shape",
            Category::Syntax | Category::Io => "syntax",
        },
        error.line(),
        error.column()
    )
}

/// The value of a record.
pub(super) fn text_of(record: &Record) -> Result<&str, Poison> {
    utf8(
        record
            .value
            .as_deref()
            .ok_or_else(|| Poison::new(DeadLetterReason::NotJson, "the record has no value"))?,
    )
}

pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Poison> {
    simdutf8::basic::from_utf8(bytes)
        .map_err(|_| Poison::new(DeadLetterReason::NotJson, "the value is not UTF-8"))
}

/// A word of the producer's, short and printable enough for a log line and a header.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    format!("{short:?}")
}

/// A JSON value that can be read whole. Nothing of it is kept.
pub(super) struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self, A::Error> {
        while elements.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        while members.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

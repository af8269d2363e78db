//! One field of a record: its type, its bounds, and what is said of a wrong one. Nothing here quotes what a field holds.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;
use signal_contract::Object;

use super::Record;
use crate::activity::poison::{DeadLetterReason, Poison};
use crate::clock::has_four_digit_year;
use crate::notification::bounds::{self, MAX_NAME_BYTES};

/// An id or a name: a string, or an integer in the digits that were written, since no double holds every one of them.
pub(super) fn named(field: &'static str, raw: &RawValue) -> Result<String, Poison> {
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

/// A string of at most `max_bytes`.
pub(super) fn string(
    field: &'static str,
    raw: &RawValue,
    max_bytes: usize,
) -> Result<String, Poison> {
    let text: Cow<'_, str> = serde_json::from_str(raw.get()).map_err(|_| {
        Poison::new(
            DeadLetterReason::InvalidField,
            format!("field {field} is no string"),
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

/// A time, in UTC.
pub(super) fn rfc3339(field: &str, text: &str) -> Result<DateTime<Utc>, Poison> {
    // An offset can lead out of the four digits that a year has.
    DateTime::parse_from_rfc3339(text)
        .map(|at| at.with_timezone(&Utc))
        .ok()
        .filter(has_four_digit_year)
        .ok_or_else(|| {
            Poison::new(
                DeadLetterReason::InvalidField,
                format!("field {field} is no RFC 3339 time"),
            )
        })
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

//! An activity's text in its recipients' language: Project Fluent catalogs, one per locale; no IO here ([`super::catalogs`] loads them).
//!
//! Input: a decoded activity and a [`Catalog`] per locale. Output: title, content and the locale that was used, or why there is no text.
//!
//! A catalog has one message per activity type, with exactly the attributes `title` and `content`:
//!
//! ```ftl
//! PAYMENT_SUCCESS =
//!     .title = Payment received
//!     .content = Order { $orderId } has been paid: { $amount } { $currency }.
//! ```
//!
//! The message of a type is found by [`message_id`]. Parameters are the members of the activity's `data`, and `$actorId`, `$organizerId`,
//! `$merchantId`. Texts and numbers are as given; true and false are texts; lists, objects and null are no parameters. A parameter that a
//! pattern names and the activity lacks is an error: a text is rendered whole or not at all.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use fluent_bundle::concurrent::FluentBundle;
use fluent_bundle::types::FluentNumber;
use fluent_bundle::{FluentArgs, FluentResource, FluentValue};
use serde_json::Value;
use unic_langid::LanguageIdentifier;

use super::decode::Activity;
use super::poison::{DeadLetterReason, Poison};
use crate::notification::bounds::{MAX_CONTENT_BYTES, MAX_TITLE_BYTES};

/// The locale that is tried last, whatever is configured.
pub const LAST_LOCALE: &str = "en";

/// The messages of one locale.
pub type Catalog = FluentBundle<Arc<FluentResource>>;

/// Text of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Title.
    pub title: String,
    /// Content.
    pub content: String,
    /// The locale of the catalog that was used, or the one asked for where the producer gave the whole text.
    pub locale: String,
}

/// Makes an empty catalog: numbers as the locale writes them, and no bidi isolation marks, since texts are shown alone.
pub fn catalog(locale: &LanguageIdentifier) -> Catalog {
    let mut catalog = FluentBundle::new_concurrent(vec![locale.clone()]);
    catalog.set_use_isolating(false);
    catalog.set_formatter(Some(match locale.language.as_str() {
        "vi" | "id" | "de" | "es" | "it" | "pt" | "nl" | "da" | "tr" | "el" | "ro" | "hr"
        | "sl" | "sr" => dot_and_comma,
        "fr" | "ru" | "uk" | "be" | "bg" | "cs" | "sk" | "pl" | "sv" | "nb" | "no" | "nn"
        | "fi" | "hu" | "et" | "lv" | "lt" => space_and_comma,
        _ => comma_and_dot,
    }));
    catalog
        .add_builtins()
        .expect("a catalog without functions takes the built-in ones");
    catalog
}

/// The message of a type: characters that Fluent's identifiers lack become `_`, and a type that does not begin with a letter gets
/// `type-` in front. So `payment.success` and `payment_success` share a message.
pub fn message_id(kind: &str) -> Cow<'_, str> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let letter_first = kind.starts_with(|c: char| c.is_ascii_alphabetic());
    if letter_first && kind.chars().all(good) {
        return Cow::Borrowed(kind);
    }
    let prefix = if letter_first { "" } else { "type-" };
    Cow::Owned(
        prefix
            .chars()
            .chain(kind.chars().map(|c| if good(c) { c } else { '_' }))
            .collect(),
    )
}

/// A locale, and what is left of it as its last parts go one by one: `vi-VN`, `vi`.
pub fn lineage(locale: &str) -> Vec<String> {
    let whole = canonical(locale).into_owned();
    let ends = whole
        .match_indices('-')
        .map(|(at, _)| at)
        .chain([whole.len()]);
    let mut lineage: Vec<String> = ends.map(|end| whole[..end].to_owned()).collect();
    lineage.reverse();
    lineage
}

/// The locales to try, best first: the lineage of the one asked for, that of the default, then [`LAST_LOCALE`].
pub fn fallbacks(asked: Option<&str>, default_locale: &str) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for locale in lineage(asked.unwrap_or(default_locale))
        .into_iter()
        .chain(lineage(default_locale))
        .chain([LAST_LOCALE.to_owned()])
    {
        if !chain.contains(&locale) {
            chain.push(locale);
        }
    }
    chain
}

/// `vi_vn` becomes `vi-VN`. A text that is not a locale stays as it is, and no catalog has it.
fn canonical(locale: &str) -> Cow<'_, str> {
    match locale.parse::<LanguageIdentifier>() {
        Ok(id) => Cow::Owned(id.to_string()),
        Err(_) => Cow::Borrowed(locale),
    }
}

/// Renders an activity. A title or content given by the producer replaces the template's.
///
/// # Errors
/// [`DeadLetterReason::NoTemplate`]: a text is not given and no catalog in the chain has the type, or a parameter of its pattern is missing.
/// [`DeadLetterReason::TextTooLong`]: a pattern made a text that is longer than one of a record may be.
pub fn render(
    activity: &Activity,
    catalogs: &BTreeMap<String, Catalog>,
    default_locale: &str,
) -> Result<Text, Poison> {
    if let (Some(title), Some(content)) = (&activity.title, &activity.content) {
        let locale = canonical(activity.locale.as_deref().unwrap_or(default_locale)).into_owned();
        return Ok(Text {
            title: title.clone(),
            content: content.clone(),
            locale,
        });
    }
    let id = message_id(&activity.kind);
    let chain = fallbacks(activity.locale.as_deref(), default_locale);
    let (locale, catalog, message) = chain
        .iter()
        .find_map(|locale| {
            let catalog = catalogs.get(locale)?;
            Some((locale, catalog, catalog.get_message(&id)?))
        })
        .ok_or_else(|| {
            Poison::new(
                DeadLetterReason::NoTemplate,
                format!("no catalog of {} has a message {id}", chain.join(", ")),
            )
        })?;
    let arguments = arguments(activity);
    let pattern = |name: &str, most: usize| -> Result<String, Poison> {
        let no_template = |why: String| {
            Poison::new(
                DeadLetterReason::NoTemplate,
                format!("{id}.{name} in {locale}: {why}"),
            )
        };
        let attribute = message
            .get_attribute(name)
            .ok_or_else(|| no_template("there is no such attribute".into()))?;
        let mut errors = Vec::new();
        let text = catalog.format_pattern(attribute.value(), Some(&arguments), &mut errors);
        match errors.first() {
            None if text.len() > most => Err(Poison::new(
                DeadLetterReason::TextTooLong,
                format!(
                    "{id}.{name} in {locale} has {} bytes; at most {most} are stored",
                    text.len()
                ),
            )),
            None => Ok(text.into_owned()),
            Some(error) => Err(no_template(error.to_string())),
        }
    };
    let title = activity
        .title
        .clone()
        .map_or_else(|| pattern("title", MAX_TITLE_BYTES), Ok)?;
    let content = activity
        .content
        .clone()
        .map_or_else(|| pattern("content", MAX_CONTENT_BYTES), Ok)?;
    Ok(Text {
        title,
        content,
        locale: locale.clone(),
    })
}

fn arguments(activity: &Activity) -> FluentArgs<'_> {
    let mut arguments = FluentArgs::with_capacity(activity.parameters.len() + 3);
    for (name, id) in [
        ("actorId", &activity.actor_id),
        ("organizerId", &activity.organizer_id),
        ("merchantId", &activity.merchant_id),
    ] {
        if let Some(id) = id {
            arguments.set(name, FluentValue::String(Cow::Borrowed(id)));
        }
    }
    for (name, value) in &activity.parameters {
        match value {
            Value::String(text) => arguments.set(name, FluentValue::String(Cow::Borrowed(text))),
            Value::Bool(truth) => arguments.set(name, truth.to_string()),
            Value::Number(number) => arguments.set(name, numeric(number)),
            Value::Null | Value::Array(_) | Value::Object(_) => {}
        }
    }
    arguments
}

/// Fluent counts in doubles: a number with more digits than one holds is a text, exactly as it was written.
fn numeric(number: &serde_json::Number) -> FluentValue<'static> {
    const DIGITS: usize = 15;
    let text = number.to_string();
    let exact = text.bytes().filter(u8::is_ascii_digit).count() <= DIGITS
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || b == b'-' || b == b'.');
    match number.as_f64().filter(|_| exact) {
        Some(value) => FluentValue::Number(FluentNumber::from(value)),
        None => FluentValue::String(text.into()),
    }
}

fn comma_and_dot<M>(value: &FluentValue<'_>, _: &M) -> Option<String> {
    as_number(value, ",", ".")
}

fn dot_and_comma<M>(value: &FluentValue<'_>, _: &M) -> Option<String> {
    as_number(value, ".", ",")
}

/// U+00A0, so that a number never breaks across lines.
fn space_and_comma<M>(value: &FluentValue<'_>, _: &M) -> Option<String> {
    as_number(value, "\u{a0}", ",")
}

fn as_number(value: &FluentValue<'_>, group: &str, decimal: &str) -> Option<String> {
    let FluentValue::Number(number) = value else {
        return None;
    };
    let options = &number.options;
    let plain = match options.maximum_fraction_digits {
        Some(most) => format!("{:.*}", most.min(20), number.value),
        None => number.value.to_string(),
    };
    let (sign, plain) = plain
        .strip_prefix('-')
        .map_or(("", plain.as_str()), |rest| ("-", rest));
    let (whole, fraction) = plain.split_once('.').unwrap_or((plain, ""));
    let least = options.minimum_fraction_digits.unwrap_or(0).min(20);
    let fraction = match options.maximum_fraction_digits {
        Some(_) => format!("{:0<least$}", fraction.trim_end_matches('0')),
        None => format!("{fraction:0<least$}"),
    };
    let mut text = sign.to_owned();
    for (at, digit) in whole.char_indices() {
        if options.use_grouping && at > 0 && (whole.len() - at) % 3 == 0 {
            text.push_str(group);
        }
        text.push(digit);
    }
    if !fraction.is_empty() {
        text.push_str(decimal);
        text.push_str(&fraction);
    }
    Some(text)
}

#[cfg(test)]
mod tests;

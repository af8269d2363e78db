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
//! `$merchantId`, `$occurredAt`. Texts are as given, numbers have every digit that was given; true and false are texts; lists, objects and null are
//! no parameters. A parameter that a pattern names and the activity lacks is an error: a text is rendered whole or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fixed_decimal::Decimal;
use fluent_bundle::concurrent::FluentBundle;
use fluent_bundle::types::FluentType;
use fluent_bundle::{FluentArgs, FluentResource, FluentValue};
use icu_locale_core::Locale;
use intl_memoizer::Memoizable;
use intl_memoizer::concurrent::IntlLangMemoizer;
use serde_json::value::RawValue;
use unic_langid::LanguageIdentifier;

use super::decode::Activity;
use super::intl::Plain;
use super::number::Written;
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
    catalog.set_formatter(Some(plain));
    catalog
}

/// The locale of a catalog, as ICU4X has it.
pub(super) fn locale(locale: &LanguageIdentifier) -> Locale {
    locale.to_string().parse().unwrap_or(Locale::UNKNOWN)
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
        if let Some(error) = errors.first() {
            return Err(no_template(error.to_string()));
        }
        if let Some((_, rest)) = text.split_once(FAULT) {
            let why = rest.split(FAULT).next().unwrap_or_default();
            return Err(no_template(why.to_owned()));
        }
        match text.len() {
            length if length > most => Err(Poison::new(
                DeadLetterReason::TextTooLong,
                format!("{id}.{name} in {locale} has {length} bytes; at most {most} are stored"),
            )),
            _ => Ok(text.into_owned()),
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
    // What is no object has no members, and decoding has refused it.
    let members: HashMap<String, &RawValue> =
        serde_json::from_str(activity.data.get()).unwrap_or_default();
    let mut arguments = FluentArgs::with_capacity(members.len() + 4);
    for (name, id) in [
        ("actorId", &activity.actor_id),
        ("organizerId", &activity.organizer_id),
        ("merchantId", &activity.merchant_id),
    ] {
        if let Some(id) = id {
            arguments.set(name, FluentValue::String(Cow::Borrowed(id)));
        }
    }
    if let Some(at) = activity.occurred_at {
        arguments.set("occurredAt", at.to_rfc3339());
    }
    for (name, value) in members {
        let written = value.get();
        match written.as_bytes().first() {
            Some(b'"') => {
                if let Ok(text) = serde_json::from_str::<String>(written) {
                    arguments.set(name, text);
                }
            }
            Some(b't' | b'f') => arguments.set(name, written),
            Some(b'-' | b'0'..=b'9') => {
                arguments.set(name, FluentValue::Custom(Box::new(Figure(written.into()))));
            }
            _ => {}
        }
    }
    arguments
}

/// A number of a record, digit by digit as its producer wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Figure(Box<str>);

impl Figure {
    /// The number; `None` for one that is too long to be counted with.
    pub(super) fn decimal(&self) -> Option<Decimal> {
        decimal(&self.0)
    }

    /// As it was written.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FluentType for Figure {
    fn duplicate(&self) -> Box<dyn FluentType + Send> {
        Box::new(self.clone())
    }

    fn as_string(&self, _: &intl_memoizer::IntlLangMemoizer) -> Cow<'static, str> {
        self.0.to_string().into()
    }

    fn as_string_threadsafe(&self, _: &IntlLangMemoizer) -> Cow<'static, str> {
        self.0.to_string().into()
    }
}

/// Reads a number as JSON writes it.
pub(super) fn decimal(text: &str) -> Option<Decimal> {
    Decimal::try_from_str(&Written::parse(text)?.plain()).ok()
}

/// The format of numbers that no function formats, made once for each catalog.
struct Shown(Plain);

impl Memoizable for Shown {
    type Args = ();
    type Error = String;

    fn construct(locale: LanguageIdentifier, (): ()) -> Result<Self, String> {
        Plain::new(&self::locale(&locale)).map(Self)
    }
}

/// Writes a number with every digit that it has. One that is too long to be counted with stays as it was written.
fn plain(value: &FluentValue<'_>, formats: &IntlLangMemoizer) -> Option<String> {
    let number = match value {
        FluentValue::Custom(value) => value.as_any().downcast_ref::<Figure>()?.decimal()?,
        FluentValue::Number(number) => decimal(&number.as_string())?,
        _ => return None,
    };
    formats
        .with_try_get::<Shown, _, _>((), |format| format.0.format(&number))
        .ok()
}

/// Stands before and behind what a function has to say instead of a text: no catalog and no record holds it.
const FAULT: char = '\0';

/// The value of a function that cannot make a text. Fluent has no errors of functions; [`render`] finds this one in the text.
pub(super) fn fault(call: &str, why: &str) -> FluentValue<'static> {
    FluentValue::String(format!("{FAULT}{call} {why}{FAULT}").into())
}

#[cfg(test)]
mod tests;

//! The envelope: every text message is one JSON object `{"event": string, "data"?: any, "id"?: string}` (protocol.md, section 2).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use signal_contract::Object;

use super::Message;
use super::bounds::MAX_MARK_CHARS;

/// An envelope as a client sent it; borrows from the message.
#[derive(Debug)]
pub struct Envelope<'m> {
    /// The name of the event; empty where the member is no text, so that no rule knows it (protocol.md 2.4).
    pub event: Cow<'m, str>,
    /// The JSON of `data`, unread.
    pub data: Option<&'m RawValue>,
    /// The JSON of `id`, unread.
    id: Option<&'m RawValue>,
}

/// The `id` of an envelope whose sender wants it in the answer (protocol.md 2.14).
pub type Mark = Box<str>;

/// Why a message is not an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEnvelope {
    /// It is answered with an `error` event.
    #[error("not JSON")]
    NotJson,
    /// It is dropped and logged.
    #[error("no event")]
    NoEvent,
}

impl<'m> Envelope<'m> {
    /// Reads a message. Of a member that appears twice the last one counts, as in JavaScript.
    ///
    /// # Errors
    /// [`NotAnEnvelope`], which decides the answer.
    pub fn parse(text: &'m str) -> Result<Self, NotAnEnvelope> {
        match serde_json::from_str::<Members<'m>>(text) {
            Ok(Members {
                event: Some(event),
                data,
                id,
            }) => Ok(Self { event, data, id }),
            Ok(_) => Err(NotAnEnvelope::NoEvent),
            Err(_) if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
                Err(NotAnEnvelope::NoEvent)
            }
            Err(_) => Err(NotAnEnvelope::NotJson),
        }
    }

    /// Reads `data`, an object, as `T`; absent data reads as `null`.
    ///
    /// # Errors
    /// It is not an object, or not one that `T` accepts.
    pub fn read<T: Deserialize<'m>>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.data.map_or("null", RawValue::get)).map(|Object(data)| data)
    }

    /// Returns the sender's mark, which an answer repeats; `None` where it is no text, is empty or has more than [`MAX_MARK_CHARS`] UTF-16 units.
    pub fn mark(&self) -> Option<Mark> {
        let mark: String = serde_json::from_str(self.id?.get()).ok()?;
        let fits = !mark.is_empty() && mark.encode_utf16().count() <= MAX_MARK_CHARS;
        fits.then(|| mark.into())
    }
}

struct Members<'m> {
    event: Option<Cow<'m, str>>,
    data: Option<&'m RawValue>,
    id: Option<&'m RawValue>,
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members {
                    event: None,
                    data: None,
                    id: None,
                };
                while let Some(Text(name)) = map.next_key()? {
                    match &*name {
                        "event" => {
                            let raw: &'de RawValue = map.next_value()?;
                            members.event = event_name(raw);
                        }
                        "data" => members.data = Some(map.next_value()?),
                        "id" => members.id = Some(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

/// Returns the name of an event. The reference drops what JavaScript takes for nothing, and treats any other value as an event that it does not know.
fn event_name(raw: &RawValue) -> Option<Cow<'_, str>> {
    if let Ok(Text(name)) = serde_json::from_str(raw.get()) {
        return Some(name).filter(|name| !name.is_empty());
    }
    let is_zero = || raw.get().parse::<f64>().is_ok_and(|number| number == 0.0);
    (!matches!(raw.get(), "null" | "false") && !is_zero()).then_some(Cow::Borrowed(""))
}

/// A string, borrowed where it holds no escapes.
struct Text<'m>(Cow<'m, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;

        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(v)))
            }

            fn visit_str<E>(self, v: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
        }

        deserializer.deserialize_str(Borrow)
    }
}

/// Encodes an envelope once for all its receivers. `data` is JSON text; without it the envelope has no such member (protocol.md 2.12).
pub fn encode(event: &str, data: Option<&str>) -> Message {
    Message::written(encoded_length(event, data), |text| {
        write_members(text, event, data);
        text.push(b'}');
    })
}

/// Encodes the answer to a client that marked what it sent.
pub fn encode_answer(event: &str, data: &str, mark: &str) -> Message {
    let length = encoded_length(event, Some(data)) + mark.len() + r#","id":"""#.len();
    Message::written(length, |text| {
        write_members(text, event, Some(data));
        text.extend_from_slice(b",\"id\":");
        serde_json::to_writer(&mut *text, mark).expect("a Vec takes every write");
        text.push(b'}');
    })
}

fn write_members(text: &mut Vec<u8>, event: &str, data: Option<&str>) {
    text.extend_from_slice(b"{\"event\":");
    serde_json::to_writer(&mut *text, event).expect("a Vec takes every write");
    if let Some(data) = data {
        text.extend_from_slice(b",\"data\":");
        text.extend_from_slice(data.as_bytes());
    }
}

/// Returns about how many bytes an envelope takes: exactly so many where the name of its event needs no escapes.
pub fn encoded_length(event: &str, data: Option<&str>) -> usize {
    r#"{"event":""}"#.len() + event.len() + data.map_or(0, |data| r#","data":"#.len() + data.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// protocol.md 2.1.
    #[test]
    fn an_envelope_borrows_its_event_and_data() {
        let envelope =
            Envelope::parse(r#"{"event":"join","id":"1","data":{"rooms":["a"]}}"#).unwrap();
        assert!(matches!(envelope.event, Cow::Borrowed("join")));
        assert_eq!(envelope.data.unwrap().get(), r#"{"rooms":["a"]}"#);
    }

    /// protocol.md 2.3 and 2.4.
    #[test]
    fn text_that_is_not_json_differs_from_json_without_an_event() {
        for text in [
            "",
            "hello",
            "{\"event\":",
            "{event:1}",
            "{\"event\":\"a\"} x",
            "\u{feff}{}",
            "NaN",
        ] {
            assert_eq!(
                Envelope::parse(text).unwrap_err(),
                NotAnEnvelope::NotJson,
                "{text}"
            );
        }
        for text in [
            "{}",
            "[]",
            "5",
            "null",
            "\"event\"",
            "{\"event\":\"\"}",
            "{\"event\":null}",
            "{\"event\":false}",
            "{\"event\":-0.0}",
            "{\"data\":1}",
        ] {
            assert_eq!(
                Envelope::parse(text).unwrap_err(),
                NotAnEnvelope::NoEvent,
                "{text}"
            );
        }
    }

    /// protocol.md 2.1.
    #[test]
    fn a_member_given_twice_counts_the_last_time() {
        let envelope =
            Envelope::parse(r#"{"event":"a","data":1,"event":"b\u0021","data":2}"#).unwrap();
        assert_eq!(
            (&*envelope.event, envelope.data.unwrap().get()),
            ("b!", "2")
        );
    }

    /// protocol.md 2.4.
    #[test]
    fn an_event_that_is_no_text_has_no_name() {
        for text in ["5", "true", "{}", "[]", "[\"join\"]", "1e-3"] {
            let envelope = format!("{{\"event\":{text}}}");
            assert_eq!(Envelope::parse(&envelope).unwrap().event, "", "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_without_overflow() {
        let deep = format!(
            "{{\"event\":\"a\",\"data\":{}1{}}}",
            "[".repeat(60_000),
            "]".repeat(60_000)
        );
        // serde_json reads raw values without recursion.
        let _ = Envelope::parse(&deep);
        assert_eq!(
            Envelope::parse(&"[".repeat(60_000)).unwrap_err(),
            NotAnEnvelope::NotJson
        );
    }

    #[test]
    fn an_event_is_escaped_when_encoded() {
        assert_eq!(
            encode("a\"b", Some("null")).payload(),
            br#"{"event":"a\"b","data":null}"#
        );
    }

    /// protocol.md 2.12.
    #[test]
    fn absent_data_stays_absent() {
        assert_eq!(encode("x", None).payload(), br#"{"event":"x"}"#);
        for data in [None, Some("null"), Some("{}")] {
            let length = encode("x", data).payload().len();
            assert_eq!(length, encoded_length("x", data));
        }
    }
}

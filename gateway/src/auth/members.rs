//! A JSON object, member by member: the header and the claims of a token.
//!
//! A value that is JSON but cannot be read, such as half of a surrogate pair in a name that was cut within an emoji, is a member of no type: whoever needs it
//! refuses it, and whoever does not need it goes on.
//!
//! A derived struct reads a JSON list as if it were an object. RFC 7515 section 4 and RFC 7519 section 4 want an object, and refuse one in which a name
//! stands twice, because two readers could then see two different tokens.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The members of one object, each name once.
#[derive(Debug, Clone, Default)]
pub(super) struct Members(Map<String, Value>);

impl Members {
    /// Returns a member; a null counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Returns whether it has this member, null or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Adds a member. Returns whether the name is new.
    pub(super) fn add(&mut self, name: String, value: Value) -> bool {
        self.0.insert(name, value).is_none()
    }
}

impl IntoIterator for Members {
    type Item = (String, Value);
    type IntoIter = serde_json::map::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OneObject)
    }
}

/// Stands for a value that cannot be read. No member that is read is an object, and it is not absent.
fn unreadable() -> Value {
    Value::Object(Map::new())
}

struct OneObject;

impl<'de> Visitor<'de> for OneObject {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut given: A) -> Result<Members, A::Error> {
        let mut members = Members::default();
        while let Some((name, raw)) = given.next_entry::<_, &RawValue>()? {
            let value = serde_json::from_str(raw.get()).unwrap_or_else(|_| unreadable());
            if !members.add(name, value) {
                return Err(de::Error::custom("a name stands twice"));
            }
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_object_whose_names_are_unique_is_read() {
        let read = serde_json::from_str::<Members>;
        let members = read(r#"{"a": 1, "b": null}"#).unwrap();
        assert_eq!(members.get("a"), Some(&1.into()));
        assert_eq!((members.get("b"), members.has("b")), (None, true));
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for value in [r#""\ud83d""#, "1e400", &deep] {
            let text = format!(r#"{{"a": {value}, "b": 2}}"#);
            let members: Members = serde_json::from_str(&text).unwrap();
            assert_eq!(members.get("a"), Some(&unreadable()), "{value}");
            assert_eq!(members.get("b"), Some(&2.into()), "{value}");
        }
        for text in [
            "[]",
            r#"[["a", 1]]"#,
            r#""a""#,
            "null",
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": 1, "\u0061": 2}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}

//! JSON that others write is counted before any of it is kept: a list of empty entries takes up to sixty times as much memory as text.
//!
//! Others are the pods (their status), and whoever may write the objects that a SignalCluster names or owns.

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Error, Value};

/// Most values in one text: lists, objects, and what they contain. The largest that is used, a status with all the sources that a gateway takes, has a
/// quarter.
pub const MAX_VALUES: usize = 4096;

/// Counts the values of a JSON text, and keeps none of them.
///
/// # Errors
/// When it is no JSON, or has more than [`MAX_VALUES`].
pub fn count(text: &[u8]) -> Result<(), Error> {
    let mut left = MAX_VALUES;
    let mut text = serde_json::Deserializer::from_slice(text);
    Counted(&mut left).deserialize(&mut text)
}

/// Counts the values of what is read already.
///
/// # Errors
/// When there are more than [`MAX_VALUES`].
pub fn count_value(value: &Value) -> Result<(), Error> {
    let mut left = MAX_VALUES;
    Counted(&mut left).deserialize(value)
}

/// Reads one value with all that it contains, keeps nothing of it, and counts down.
struct Counted<'a>(&'a mut usize);

impl Counted<'_> {
    fn count<E: serde::de::Error>(&mut self) -> Result<(), E> {
        *self.0 = self
            .0
            .checked_sub(1)
            .ok_or_else(|| E::custom(format!("it has more than {MAX_VALUES} values")))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(mut self, from: D) -> Result<(), D::Error> {
        self.count()?;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = ();

    fn expecting(&self, text: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        text.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Counted(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while members.next_key::<IgnoredAny>()?.is_some() {
            members.next_value_seed(Counted(self.0))?;
        }
        Ok(())
    }
}

//! Whole numbers in JSON that others write.
//!
//! Input: a number of a document. Output: an integer. `7.0` is the whole number 7, as JSON Schema has it, and so write languages that have no integers.

use serde::Deserialize;
use serde_json::Number;

/// A whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Number")]
pub struct Whole(pub i64);

impl TryFrom<Number> for Whole {
    type Error = &'static str;

    fn try_from(number: Number) -> Result<Self, &'static str> {
        let is_whole = |number: &f64| number.fract() == 0.0 && number.abs() < i64::MAX as f64;
        number
            .as_i64()
            .or_else(|| number.as_f64().filter(is_whole).map(|whole| whole as i64))
            .map(Self)
            .ok_or("want a whole number")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_fraction_is_whole_however_it_is_written() {
        for (text, number) in [
            ("7", Some(7)),
            ("7.0", Some(7)),
            ("70e-1", Some(7)),
            ("-0", Some(0)),
            ("-5", Some(-5)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("7.5", None),
            ("1e30", None),
            (r#""7""#, None),
            ("null", None),
        ] {
            let read = serde_json::from_str::<Whole>(text).ok();
            assert_eq!(read, number.map(Whole), "{text}");
        }
    }
}

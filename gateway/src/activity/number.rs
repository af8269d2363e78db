//! A decimal number as it was written, digit by digit: doubles hold neither every integer beyond 2^53 nor 0.1.
//!
//! Input: the text of a JSON number. Output: its digits and its point. No IO.

/// Most digits that an exponent may add: more than the range of a double.
const MAX_EXPONENT: i64 = 400;

/// A number by its digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// Whether a minus stands in front.
    pub(super) is_negative: bool,
    /// Without leading zeros; empty for zero. Zeros behind the point are kept.
    pub(super) digits: String,
    /// How many of the digits, perhaps with zeros added, stand before the point; negative where zeros stand behind the point first.
    pub(super) point: i64,
}

impl Written {
    /// Reads a number as JSON writes it (RFC 8259 section 6). `None` where it is none, or where its exponent is beyond 400.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (is_negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return None,
            None => (mantissa, ""),
        };
        let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty()
            || !is_digits(whole)
            || !is_digits(fraction)
            || exponent.abs() > MAX_EXPONENT
        {
            return None;
        }
        let written = format!("{whole}{fraction}");
        let digits = written.trim_start_matches('0');
        let zeros = written.len() - digits.len();
        Some(Self {
            is_negative,
            digits: digits.to_owned(),
            point: whole.len() as i64 + exponent - zeros as i64,
        })
    }

    /// The number without an exponent, and with the zeros behind the point that it was written with.
    pub(super) fn plain(&self) -> String {
        let sign = if self.is_negative { "-" } else { "" };
        let length = self.digits.len() as i64;
        let zeros = |number: i64| "0".repeat(usize::try_from(number).unwrap_or(0));
        if self.point <= 0 {
            let (zeros, digits) = (zeros(-self.point), &self.digits);
            return match zeros.is_empty() && digits.is_empty() {
                true => format!("{sign}0"),
                false => format!("{sign}0.{zeros}{digits}"),
            };
        }
        if self.point >= length {
            return match self.digits.is_empty() {
                true => format!("{sign}0"),
                false => format!("{sign}{}{}", self.digits, zeros(self.point - length)),
            };
        }
        let (whole, fraction) = self.digits.split_at(self.point as usize);
        format!("{sign}{whole}.{fraction}")
    }

    /// The number in digits alone, if it is whole: `42` for `42.0` and `4.2e1`.
    pub(super) fn integer(&self) -> Option<String> {
        let point = usize::try_from(self.point).unwrap_or(0);
        let (whole, fraction) = self.digits.split_at(point.min(self.digits.len()));
        if fraction.bytes().any(|digit| digit != b'0') {
            return None;
        }
        if whole.is_empty() {
            return Some("0".to_owned());
        }
        let sign = if self.is_negative { "-" } else { "" };
        let zeros = "0".repeat(point - whole.len());
        Some(format!("{sign}{whole}{zeros}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (text, want) in [
            ("42", Some("42")),
            ("42.0", Some("42")),
            ("42.000", Some("42")),
            ("4.2e1", Some("42")),
            ("4200E-2", Some("42")),
            ("-7.0", Some("-7")),
            ("0.0", Some("0")),
            ("-0.0", Some("0")),
            ("0e5", Some("0")),
            ("1e3", Some("1000")),
            ("9007199254740993.0", Some("9007199254740993")),
            (
                "12345678901234567890123.00",
                Some("12345678901234567890123"),
            ),
            ("42.5", None),
            ("0.42", None),
            ("1e-3", None),
            ("1e401", None),
            ("1e99999999999999999999", None),
            ("", None),
            ("-", None),
            (".5", None),
            ("5.", None),
            ("1,000", None),
            ("0x10", None),
            ("NaN", None),
        ] {
            let got = Written::parse(text).and_then(|number| number.integer());
            assert_eq!(got.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn an_exponent_is_worked_out_and_zeros_behind_the_point_stay() {
        for (text, want) in [
            ("0", "0"),
            ("-0", "-0"),
            ("0.00", "0.00"),
            ("0e9", "0"),
            ("1.50", "1.50"),
            ("150", "150"),
            ("1.5e3", "1500"),
            ("-1.25e1", "-12.5"),
            ("1e-3", "0.001"),
            ("0.050", "0.050"),
            ("12345678901234567890.10", "12345678901234567890.10"),
        ] {
            assert_eq!(Written::parse(text).unwrap().plain(), want, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_at_all_makes_the_reader_panic(text in r"-?[0-9.eE+\-]{0,40}") {
            let _ = Written::parse(&text).and_then(|number| number.integer());
        }
    }
}

//! Times as producers write them; no IO.
//!
//! Input: a JSON value, or a text. Output: the moment it means, to the millisecond, or `None` where it may mean several.
//!
//! Read are: RFC 3339, also with a space in place of `T`, without seconds, without the colon of the offset, with a zone's name behind the offset
//! (RFC 9557); the same without an offset, which means UTC; the basic form of ISO 8601; RFC 2822; a count since the Unix epoch, whose number of digits
//! says what it counts; and the array that Java's Jackson makes of a local time.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use serde_json::value::RawValue;

use super::number;
use crate::clock::has_four_digit_year;

/// With an offset. A space in these stands for any number of them, none included.
const WITH_OFFSET: [&str; 5] = [
    "%Y-%m-%dT%H:%M:%S%.f %#z",
    "%Y-%m-%d %H:%M:%S%.f %#z",
    "%Y-%m-%dT%H:%M %#z",
    "%Y-%m-%d %H:%M %#z",
    "%Y%m%dT%H%M%S%.f %#z",
];
/// Without one: UTC.
const IN_UTC: [&str; 5] = [
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y%m%dT%H%M%S%.f",
];
/// Longest text that is read, in bytes: the longest name of a zone fits behind a time.
const MAX_BYTES: usize = 96;

/// Reads a member of a record.
pub(super) fn of_json(raw: &RawValue) -> Option<DateTime<Utc>> {
    let text = raw.get();
    match text.as_bytes().first()? {
        b'"' => of_text(&serde_json::from_str::<Cow<'_, str>>(text).ok()?),
        b'[' => of_array(text),
        _ => of_count(text),
    }
}

/// Reads a text.
pub(super) fn of_text(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if text.len() > MAX_BYTES {
        return None;
    }
    let at = DateTime::parse_from_rfc3339(text)
        .map(|at| at.to_utc())
        .ok()
        .or_else(|| of_count(text))
        .or_else(|| of_other_form(text))?;
    milliseconds(at)
}

/// Reads a text that is a time, or a date alone, which means its midnight in UTC (ECMA-262, 21.4.1.32).
pub(super) fn or_date(text: &str) -> Option<DateTime<Utc>> {
    of_text(text).or_else(|| {
        let date = text.trim();
        let is_date = date.len() == 10 && has_long_year(date);
        let date = NaiveDate::parse_from_str(date, "%Y-%m-%d").ok();
        date.filter(|_| is_date)
            .and_then(|date| date.and_hms_opt(0, 0, 0))
            .map(|at| at.and_utc())
    })
}

/// Reads a count since the Unix epoch. 10 digits before the point count seconds, 13 milliseconds, 16 microseconds, 19 nanoseconds: the years 2001 to 2286. Other
/// numbers of digits are no counts: with 14, for one, a time may be written digit by digit.
pub(super) fn of_count(text: &str) -> Option<DateTime<Utc>> {
    let number = number::Written::parse(text).filter(|number| !number.is_negative)?;
    let to_milliseconds = match number.point {
        10 => 3,
        13 => 0,
        16 => -3,
        19 => -6,
        _ => return None,
    };
    let digits = usize::try_from(number.point + to_milliseconds).ok()?;
    let count = number.digits.bytes().chain(std::iter::repeat(b'0'));
    let count = count.take(digits).try_fold(0_i64, |count, digit| {
        count.checked_mul(10)?.checked_add(i64::from(digit - b'0'))
    })?;
    DateTime::from_timestamp_millis(count).filter(has_four_digit_year)
}

/// Year, month, day, hour, minute, and perhaps second and nanosecond, of UTC.
fn of_array(text: &str) -> Option<DateTime<Utc>> {
    let parts: Vec<u32> = serde_json::from_str(text).ok()?;
    let &[year, month, day, hour, minute, ref rest @ ..] = parts.as_slice() else {
        return None;
    };
    let (second, nano) = match *rest {
        [] => (0, 0),
        [second] => (second, 0),
        [second, nano] => (second, nano),
        _ => return None,
    };
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)?;
    milliseconds(date.and_hms_nano_opt(hour, minute, second, nano)?.and_utc())
}

fn of_other_form(text: &str) -> Option<DateTime<Utc>> {
    if !has_long_year(text) {
        // "Mon, 23 Nov 2026 08:00:00 GMT": mail, and the dates of HTTP.
        return DateTime::parse_from_rfc2822(text)
            .ok()
            .map(|at| at.to_utc());
    }
    // "2026-11-23T15:00:00+07:00[Asia/Ho_Chi_Minh]": the offset says it all.
    let (text, has_zone) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        Some((text, _)) => (text, true),
        None => (text, false),
    };
    let named = ["UTC", "GMT"]
        .iter()
        .find_map(|zone| text.strip_suffix(zone))
        .map(|text| format!("{}Z", text.trim_end()));
    let text = named.as_deref().unwrap_or(text);
    let with_offset = WITH_OFFSET
        .iter()
        .find_map(|form| DateTime::parse_from_str(text, form).ok())
        .map(|at| at.to_utc());
    with_offset.or_else(|| {
        let in_utc = IN_UTC
            .iter()
            .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
        in_utc.filter(|_| !has_zone).map(|at| at.and_utc())
    })
}

/// Whether a text begins with the four digits of a year, in the extended or the basic form of ISO 8601.
fn has_long_year(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_digits = |range: std::ops::Range<usize>| {
        bytes
            .get(range)
            .is_some_and(|some| some.iter().all(u8::is_ascii_digit))
    };
    is_digits(0..4) && (bytes.get(4) == Some(&b'-') || is_digits(4..8))
}

/// Cuts a time to what is kept of it. An offset can lead out of the four digits that a year has.
fn milliseconds(at: DateTime<Utc>) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(at.timestamp_millis()).filter(has_four_digit_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<String> {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        of_json(&raw).map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
    }

    /// protocol.md 12.3.
    #[test]
    fn one_moment_is_read_in_every_form_that_has_one_meaning() {
        for json in [
            r#""2026-11-23T08:00:00.123Z""#,
            r#""2026-11-23t08:00:00.123456789z""#,
            r#""2026-11-23T15:00:00.123+07:00""#,
            r#""2026-11-23T15:00:00.123+0700""#,
            r#""2026-11-23T15:00:00.123+07""#,
            r#""2026-11-23 15:00:00.123 +0700""#,
            r#""2026-11-23T15:00:00.123+07:00[Asia/Ho_Chi_Minh]""#,
            r#""2026-11-23 08:00:00.123""#,
            r#""2026-11-23T08:00:00.123""#,
            r#""2026-11-23 08:00:00.123 UTC""#,
            r#""20261123T080000.123Z""#,
            r#"" 2026-11-23T08:00:00.123Z ""#,
            "1795420800123",
            "1795420800123.0",
            "1795420800.123",
            "1.795420800123e12",
            "1795420800123456",
            "1795420800123456789",
            r#""1795420800123""#,
            r#""1795420800.123456""#,
            "[2026,11,23,8,0,0,123456789]",
        ] {
            assert_eq!(
                read(json).as_deref(),
                Some("2026-11-23T08:00:00.123Z"),
                "{json}"
            );
        }
        for json in [
            r#""Mon, 23 Nov 2026 08:00:00 GMT""#,
            r#""23 Nov 2026 15:00:00 +0700""#,
            r#""2026-11-23T08:00Z""#,
            r#""2026-11-23 08:00""#,
            "1795420800",
            r#""1795420800""#,
            "[2026,11,23,8,0]",
        ] {
            assert_eq!(
                read(json).as_deref(),
                Some("2026-11-23T08:00:00.000Z"),
                "{json}"
            );
        }
    }

    /// protocol.md 12.3.
    #[test]
    fn what_may_mean_several_moments_or_none_is_not_read() {
        for json in [
            "true",
            "{}",
            "[]",
            "[2026,11,23]",
            "[2026,13,23,8,0]",
            "42",
            "-1795420800",
            "179542080012",
            r#""20261123080000""#,
            "1e999999999",
            r#""""#,
            r#""yesterday""#,
            r#""2026-11-23""#,
            r#""23/11/2026 08:00""#,
            r#""26-11-23T08:00:00Z""#,
            r#""2026-11-23T25:00:00Z""#,
            r#""2026-11-23T08:00:00[Asia/Ho_Chi_Minh]""#,
            // In UTC these are of the years 10000 and -1, which RFC 3339 cannot write.
            r#""9999-12-31T23:59:59-00:01""#,
            r#""0000-01-01T00:00:00+00:01""#,
        ] {
            assert_eq!(read(json), None, "{json}");
        }
        let long = format!(r#""2026-11-23T08:00:00Z[{}]""#, "a".repeat(100));
        assert_eq!(read(&long), None);
    }

    #[test]
    fn a_date_alone_is_its_midnight_only_where_dates_are_asked_for() {
        let midnight = or_date("2026-11-23").unwrap();
        assert_eq!(midnight.to_rfc3339(), "2026-11-23T00:00:00+00:00");
        assert_eq!(or_date("2026-11"), None);
        assert_eq!(or_date("23.11.2026"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_at_all_makes_the_reader_panic(text in r"[0-9TZ:+.\- \[\]eGMTUNov,]{0,40}") {
            let _ = or_date(&text);
        }
    }
}

//! Dates and times: the lengths of ECMA-402, and those of its components that CLDR has a pattern for.
//!
//! ICU4X formats by semantic skeletons (UTS 35, part 4): a set of fields with one length. Options that ask for another mixture are refused.

use chrono::{DateTime, Datelike, Offset, Timelike, Utc};
use chrono_tz::Tz;
use icu_datetime::DateTimeFormatter;
use icu_datetime::DateTimeFormatterPreferences;
use icu_datetime::fieldsets::builder::{DateFields, FieldSetBuilder};
use icu_datetime::fieldsets::enums::CompositeFieldSet;
use icu_datetime::input::{Date, Time, TimeZone, UtcOffset, ZonedDateTime};
use icu_datetime::options::{Alignment, Length, SubsecondDigits, TimePrecision, YearStyle};
use icu_datetime::preferences::HourCycle;
use icu_locale_core::Locale;
use icu_time::zone::IanaParser;

use super::options::Options;

/// How one call of `DATETIME` writes times.
pub(in crate::activity) struct DateFormat {
    format: DateTimeFormatter<CompositeFieldSet>,
    zone: Tz,
    zone_id: TimeZone,
}

/// How much of a date or a time is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Full,
    Long,
    Medium,
    Short,
}

/// How a part is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Numeric,
    TwoDigit,
    Long,
    Short,
}

const STYLES: [(&str, Style); 4] = [
    ("full", Style::Full),
    ("long", Style::Long),
    ("medium", Style::Medium),
    ("short", Style::Short),
];
const DIGITS: [(&str, Width); 2] = [("numeric", Width::Numeric), ("2-digit", Width::TwoDigit)];
const NAMES: [(&str, Width); 2] = [("long", Width::Long), ("short", Width::Short)];

impl DateFormat {
    /// # Errors
    /// An option is unknown, has a value that it cannot have, or cannot be honoured together with the others.
    pub(in crate::activity) fn new(locale: &Locale, mut options: Options) -> Result<Self, String> {
        let mut preferences = DateTimeFormatterPreferences::from(locale);
        let cycles = [
            ("h11", HourCycle::H11),
            ("h12", HourCycle::H12),
            ("h23", HourCycle::H23),
        ];
        let cycle = options.word("hourCycle", &cycles)?;
        let clocks = [("true", HourCycle::Clock12), ("false", HourCycle::H23)];
        preferences.hour_cycle = options.word("hour12", &clocks)?.or(cycle);
        let has_style = options.has("dateStyle") || options.has("timeStyle");
        if preferences.hour_cycle.is_some() && has_style {
            return Err("DATETIME takes hour12 and hourCycle with hour and minute only".to_owned());
        }
        let zone = match options.any("timeZone") {
            None => Tz::UTC,
            Some(name) => name.parse().map_err(|_| {
                let why = format!("is {name:?}, which is no zone such as Asia/Ho_Chi_Minh");
                options.problem("timeZone", why)
            })?,
        };
        let fields = if has_style {
            by_styles(&mut options)?
        } else {
            by_parts(&mut options)?
        };
        options.finish()?;
        let fields = fields
            .build_composite()
            .map_err(|error| format!("the options of DATETIME do not go together: {error}"))?;
        Ok(Self {
            format: DateTimeFormatter::try_new(preferences, fields)
                .map_err(|error| error.to_string())?,
            zone,
            zone_id: IanaParser::new().parse(zone.name()),
        })
    }

    /// Writes a moment as the clocks of the zone show it.
    pub(in crate::activity) fn format(&self, at: DateTime<Utc>) -> Option<String> {
        let local = at.with_timezone(&self.zone);
        let part = |number: u32| u8::try_from(number).ok();
        let date =
            Date::try_new_iso(local.year(), part(local.month())?, part(local.day())?).ok()?;
        let time = Time::try_new(
            part(local.hour())?,
            part(local.minute())?,
            part(local.second())?,
            local.nanosecond(),
        )
        .ok()?;
        let offset = UtcOffset::try_from_seconds(local.offset().fix().local_minus_utc()).ok()?;
        let zone = self
            .zone_id
            .with_offset(Some(offset))
            .at_date_time(icu_datetime::input::DateTime { date, time });
        let text = self.format.format(&ZonedDateTime { date, time, zone });
        // As V8 and SpiderMonkey do: scripts and fonts do not expect the narrow space that CLDR has in times.
        Some(text.to_string().replace('\u{202f}', " "))
    }
}

/// `dateStyle` and `timeStyle`. The longer times name the zone, for which ICU4X has other words than ECMA-402 asks for.
fn by_styles(options: &mut Options) -> Result<FieldSetBuilder, String> {
    let mut fields = FieldSetBuilder::new();
    let date = options.word("dateStyle", &STYLES)?;
    fields.length = date.map(|style| match style {
        Style::Full | Style::Long => Length::Long,
        Style::Medium => Length::Medium,
        Style::Short => Length::Short,
    });
    fields.date_fields = date.map(|style| match style {
        Style::Full => DateFields::YMDE,
        Style::Long | Style::Medium | Style::Short => DateFields::YMD,
    });
    let times = [
        ("medium", TimePrecision::Second),
        ("short", TimePrecision::Minute),
    ];
    fields.time_precision = options.word("timeStyle", &times)?;
    Ok(fields)
}

/// `weekday`, `year`, `month` and their like, in those mixtures that ICU4X writes as ECMA-402 does in every locale that was compared: names with plain
/// numbers, numbers of two digits, or one part alone.
fn by_parts(options: &mut Options) -> Result<FieldSetBuilder, String> {
    use Width::{Long, Numeric, Short, TwoDigit};
    let months = [&NAMES[..], &DIGITS[1..]].concat();
    let weekday = options.word("weekday", &NAMES)?;
    let year = options.word("year", &DIGITS[..1])?;
    let month = options.word("month", &months)?;
    let day = options.word("day", &DIGITS)?;
    let hour = options.word("hour", &DIGITS[1..])?;
    let minute = options.word("minute", &DIGITS)?;
    let second = options.word("second", &DIGITS)?;
    let subsecond = options.count("fractionalSecondDigits", 1..=3)?;
    let time = match (hour, minute, second, subsecond) {
        (None, None, None, None) => None,
        (Some(_), Some(_), None, None) => Some(TimePrecision::Minute),
        (Some(_), Some(_), Some(_), None) => Some(TimePrecision::Second),
        (Some(_), Some(_), Some(_), Some(digits)) => Some(TimePrecision::Subsecond(match digits {
            1 => SubsecondDigits::S1,
            2 => SubsecondDigits::S2,
            _ => SubsecondDigits::S3,
        })),
        _ => return Err("DATETIME writes hour and minute, perhaps with second".to_owned()),
    };
    let has_year = year.is_some();
    let (date, length) = match (weekday, month, day) {
        (None, None, None) if time.is_some() && !has_year => (None, None),
        (None, Some(TwoDigit), Some(TwoDigit)) if has_year => {
            (Some(DateFields::YMD), Some(Length::Short))
        }
        (None, Some(TwoDigit), Some(TwoDigit)) => (Some(DateFields::MD), Some(Length::Short)),
        _ if time.is_some() => {
            return Err(
                "DATETIME writes a time with month and day of 2-digit, or use dateStyle and timeStyle"
                    .to_owned(),
            );
        }
        (None, Some(Long), Some(Numeric)) if has_year => {
            (Some(DateFields::YMD), Some(Length::Long))
        }
        (Some(Long), Some(Long), Some(Numeric)) if has_year => {
            (Some(DateFields::YMDE), Some(Length::Long))
        }
        (None, Some(Long), Some(Numeric)) => (Some(DateFields::MD), Some(Length::Long)),
        (Some(Long), Some(Long), Some(Numeric)) => (Some(DateFields::MDE), Some(Length::Long)),
        (Some(Long), None, None) if !has_year => (Some(DateFields::E), Some(Length::Long)),
        (Some(Short), None, None) if !has_year => (Some(DateFields::E), Some(Length::Medium)),
        (None, Some(Long), None) if !has_year => (Some(DateFields::M), Some(Length::Long)),
        (None, Some(Short), None) if !has_year => (Some(DateFields::M), Some(Length::Medium)),
        (None, None, Some(_)) if !has_year => (Some(DateFields::D), None),
        (None, None, None) if has_year => (Some(DateFields::Y), None),
        (None, None, None) => {
            return Err(
                "DATETIME needs dateStyle, timeStyle, or the parts that it writes".to_owned(),
            );
        }
        _ => {
            return Err(
                "DATETIME has no such mixture of weekday, year, month and day; dateStyle is safe"
                    .to_owned(),
            );
        }
    };
    let mut fields = FieldSetBuilder::new();
    (fields.date_fields, fields.length, fields.time_precision) = (date, length, time);
    if date == Some(DateFields::YMD) && length == Some(Length::Short) {
        fields.year_style = Some(YearStyle::Full);
    }
    if [month, day, hour].contains(&Some(TwoDigit)) {
        fields.alignment = Some(Alignment::Column);
    }
    Ok(fields)
}

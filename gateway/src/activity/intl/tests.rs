//! What these formats write is what `Intl` of Node 20 writes: `expected.tsv` is made by `expected.js` with it.

use super::*;
use crate::activity::render::decimal;

/// What stands in for a function that a catalog calls.
fn written(kind: &str, locale: &str, options: &str, value: &str) -> Result<String, String> {
    let locale = locale.parse().unwrap();
    match kind {
        "number" => {
            let format = NumberFormat::new(&locale, given("NUMBER", options))?;
            Ok(format.format(decimal(value).unwrap()))
        }
        "plural" => {
            let select = Selector::new(&locale, Some(given("NUMBER", options)), &[])?;
            Ok(select.select(decimal(value).unwrap()).to_owned())
        }
        _ => {
            let format = DateFormat::new(&locale, given("DATETIME", options))?;
            let at = crate::activity::time::or_date(value).unwrap();
            Ok(format.format(at).unwrap())
        }
    }
}

/// Options as a catalog has them.
fn given(function: &'static str, options: &str) -> Options {
    let each = options.split(", ").filter(|option| !option.is_empty());
    let given = each.map(|option| {
        let (name, value) = option.split_once(": ").unwrap();
        let literal = match value.strip_prefix('"') {
            Some(text) => Literal::Text(text.trim_end_matches('"').to_owned()),
            None => Literal::Number(value.to_owned()),
        };
        (name.to_owned(), literal)
    });
    Options::new(function, given.collect())
}

/// What CLDR 49, which ICU4X's data is of, says otherwise than the 48 of Node 20: kind, locale, a part of the options.
const LATER: [(&str, &str, &str); 6] = [
    ("plural", "vi", ""),
    ("number", "fr", r#"currency: "JPY""#),
    ("date", "vi", r#"dateStyle: "full""#),
    ("date", "vi", r#"dateStyle: "long""#),
    ("date", "vi", r#"dateStyle: "short""#),
    ("date", "vi", r#"year: "numeric", month: "long""#),
];

/// protocol.md 12.4.
#[test]
fn numbers_dates_and_plurals_are_written_as_by_node() {
    let mut wrong = String::new();
    let mut right = 0;
    for row in include_str!("expected.tsv").lines() {
        let fields: Vec<&str> = row.split('\t').collect();
        let [kind, locale, options, value, want] = fields[..] else {
            panic!("{row}")
        };
        let is_later = LATER
            .iter()
            .any(|later| later.0 == kind && later.1 == locale && options.contains(later.2));
        let got = written(kind, locale, options, value).map(|text| visible(&text));
        if got.as_deref() == Ok(want) {
            right += 1;
        } else if !is_later {
            wrong += &format!("{kind} {locale} {options} {value}: {want:?}, and not {got:?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(right > 2000, "{right} of the table are compared");
}

#[test]
fn vietnamese_is_that_of_the_cldr_in_use() {
    let at = "2026-11-23T08:05:09Z";
    for (options, want) in [
        (r#"dateStyle: "full""#, "Thứ Hai, 23 tháng 11 2026"),
        (
            r#"dateStyle: "long", timeStyle: "short""#,
            "lúc 08:05 23 tháng 11 2026",
        ),
        (r#"dateStyle: "medium""#, "23 thg 11, 2026"),
        (r#"dateStyle: "short""#, "23/11/2026"),
    ] {
        assert_eq!(written("date", "vi", options, at).as_deref(), Ok(want));
    }
}

/// Where another library would write something else than ECMA-402 asks for.
#[test]
fn mixtures_of_options_that_would_be_written_otherwise_are_refused() {
    for (kind, options) in [
        ("date", r#"timeStyle: "full""#),
        ("date", r#"timeStyle: "short", timeZoneName: "short""#),
        ("date", r#"year: "numeric", month: "short", day: "numeric""#),
        (
            "date",
            r#"year: "numeric", month: "numeric", day: "numeric""#,
        ),
        ("date", r#"year: "numeric", month: "long""#),
        ("date", r#"year: "2-digit""#),
        ("date", r#"hour: "numeric", minute: "2-digit""#),
        ("date", r#"hour: "2-digit""#),
        ("date", r#"minute: "2-digit""#),
        (
            "date",
            r#"weekday: "long", hour: "2-digit", minute: "2-digit""#,
        ),
        ("date", r#"weekday: "short", month: "long", day: "numeric""#),
        (
            "date",
            r#"hourCycle: "h24", hour: "2-digit", minute: "2-digit""#,
        ),
        ("date", r#"hourCycle: "h12", timeStyle: "short""#),
        ("date", ""),
        ("number", r#"style: "percent", signDisplay: "always""#),
        (
            "number",
            r#"style: "currency", currency: "USD", signDisplay: "always""#,
        ),
        (
            "number",
            r#"style: "currency", currency: "USD", maximumSignificantDigits: 3"#,
        ),
        ("plural", r#"style: "percent""#),
    ] {
        let value = if kind == "date" {
            "2026-11-23T08:05:09Z"
        } else {
            "1"
        };
        assert!(written(kind, "en", options, value).is_err(), "{options}");
    }
}

/// Spaces and marks that nobody sees, by their numbers.
fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\0'..='\u{1f}'
            | '\u{7f}'..='\u{a0}'
            | '\u{2000}'..='\u{200a}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202f}'
            | '\u{61c}'
            | '\u{2066}'..='\u{2069}' => {
                visible += &format!("\\u{{{:x}}}", u32::from(c));
            }
            _ => visible.push(c),
        }
    }
    visible
}

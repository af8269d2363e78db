use super::*;
use crate::activity::catalogs::{self, Catalogs};
use crate::activity::testing;
use std::path::Path;

fn activity(fields: &str) -> Activity {
    testing::activity(&format!(r#"{{{fields}}}"#))
}

fn built_in() -> Catalogs {
    Catalogs::load(Path::new(""), "vi").unwrap()
}

const PAYMENT: &str = r#""type":"PAYMENT_SUCCESS","actorId":"17","data":{"amount":150000,"currency":"VND","orderId":"DH-1001"}"#;

fn texts(catalog: &str, locale: &str, activity: &Activity) -> Result<Text, Poison> {
    let one = catalogs::of_text(locale, catalog).unwrap();
    super::render(
        activity,
        &BTreeMap::from([(locale.to_owned(), one)]),
        locale,
    )
}

#[test]
fn the_payment_of_the_contract_reads_well_in_both_languages() {
    let text = built_in().render(&activity(PAYMENT)).unwrap();
    assert_eq!(
        (text.title.as_str(), text.locale.as_str()),
        ("Thanh toán thành công", "vi")
    );
    assert_eq!(
        text.content,
        "Đơn hàng DH-1001 đã được thanh toán 150.000 VND."
    );
    let text = built_in()
        .render(&activity(&format!(r#"{PAYMENT},"locale":"en""#)))
        .unwrap();
    assert_eq!(text.content, "Order DH-1001 has been paid: 150,000 VND.");
}

#[test]
fn a_locale_falls_back_to_its_language_then_the_default_then_english() {
    assert_eq!(
        fallbacks(Some("vi_vn"), "de-AT"),
        ["vi-VN", "vi", "de-AT", "de", "en"]
    );
    assert_eq!(fallbacks(None, "en-GB"), ["en-GB", "en"]);
    assert_eq!(fallbacks(Some("!!"), "vi"), ["!!", "vi", "en"]);
    for (asked, used) in [
        ("vi-VN", "vi"),
        ("en-GB", "en"),
        ("fr", "vi"),
        ("!!", "vi"),
        ("EN_us", "en"),
    ] {
        assert_eq!(
            built_in()
                .render(&activity(&format!(r#"{PAYMENT},"locale":"{asked}""#)))
                .unwrap()
                .locale,
            used,
            "{asked}"
        );
    }
}

#[test]
fn a_missing_parameter_is_no_template_and_is_named() {
    let lacking =
        activity(r#""type":"PAYMENT_SUCCESS","data":{"amount":1,"currency":"VND","orderId":null}"#);
    let poison = built_in().render(&lacking).unwrap_err();
    assert_eq!(poison.reason, DeadLetterReason::NoTemplate);
    assert!(
        poison.detail.contains("PAYMENT_SUCCESS.content in vi")
            && poison.detail.contains("$orderId"),
        "{}",
        poison.detail
    );
}

#[test]
fn an_unknown_type_needs_both_texts_and_each_text_given_wins_on_its_own() {
    assert_eq!(
        built_in()
            .render(&activity(r#""type":"OTHER""#))
            .unwrap_err()
            .reason,
        DeadLetterReason::NoTemplate
    );
    assert_eq!(
        built_in()
            .render(&activity(r#""type":"OTHER","title":"a""#))
            .unwrap_err()
            .reason,
        DeadLetterReason::NoTemplate
    );
    let text = built_in()
        .render(&activity(r#""type":"OTHER","title":"a","content":"b""#))
        .unwrap();
    assert_eq!(
        text,
        Text {
            title: "a".into(),
            content: "b".into(),
            locale: "vi".into()
        }
    );
    let text = built_in()
        .render(&activity(&format!(r#"{PAYMENT},"title":"Own""#)))
        .unwrap();
    assert_eq!(
        (text.title.as_str(), text.content.as_str()),
        ("Own", "Đơn hàng DH-1001 đã được thanh toán 150.000 VND.")
    );
}

#[test]
fn types_that_are_no_identifiers_have_a_message_all_the_same() {
    for (kind, id) in [
        ("PAYMENT_SUCCESS", "PAYMENT_SUCCESS"),
        ("vn.signal.payment/success", "vn_signal_payment_success"),
        ("1st", "type-1st"),
        ("đơn", "type-__n"),
        ("-x", "type--x"),
    ] {
        assert_eq!(message_id(kind), id);
    }
    let text = texts(
        "a_b =\n .title = T\n .content = C",
        "en",
        &activity(r#""type":"a.b""#),
    )
    .unwrap();
    assert_eq!(text.title, "T");
}

#[test]
fn numbers_are_written_as_the_locale_does_and_ids_can_be_left_alone() {
    let ftl = "T =\n .title = { $n }\n .content = { NUMBER($n, useGrouping: \"false\") } { NUMBER($n, minimumFractionDigits: 2, maximumFractionDigits: 2) }";
    for (locale, n, title, content) in [
        ("vi", "1234567.5", "1.234.567,5", "1234567,5 1.234.567,50"),
        ("en", "-1234", "-1,234", "-1234 -1,234.00"),
        ("fr", "1234", "1\u{202f}234", "1234 1\u{202f}234,00"),
        ("vi", "999", "999", "999 999,00"),
    ] {
        let text = texts(
            ftl,
            locale,
            &activity(&format!(r#""type":"T","data":{{"n":{n}}}"#)),
        )
        .unwrap();
        assert_eq!(
            (text.title.as_str(), text.content.as_str()),
            (title, content),
            "{locale} {n}"
        );
    }
}

#[test]
fn numbers_beyond_a_double_are_counted_with_and_never_a_panic() {
    let ftl = "T =\n .title = { $n }\n .content = { $n ->\n    [one] one\n   *[other] many\n }";
    for n in [
        "12345678901234567",
        "1e300",
        "1e-300",
        "0.1234567890123456",
        "-5e-324",
        "18446744073709551615",
    ] {
        let text = texts(
            ftl,
            "en",
            &activity(&format!(r#""type":"T","data":{{"n":{n}}}"#)),
        )
        .unwrap();
        assert_eq!(text.content, "many", "{n}");
    }
    assert_eq!(
        texts(
            ftl,
            "en",
            &activity(r#""type":"T","data":{"n":12345678901234567}"#)
        )
        .unwrap()
        .title,
        "12,345,678,901,234,567"
    );
    assert_eq!(
        texts(ftl, "en", &activity(r#""type":"T","data":{"n":1}"#))
            .unwrap()
            .content,
        "one"
    );
}

/// The title of a message whose title is this pattern, and which `data` has these members for.
fn title(locale: &str, pattern: &str, data: &str) -> Result<String, String> {
    let catalog = format!("T =\n .title = {pattern}\n .content = c");
    let activity = activity(&format!(
        r#""type":"T","occurredAt":1795420800123,"data":{{{data}}}"#
    ));
    texts(&catalog, locale, &activity)
        .map(|text| text.title)
        .map_err(|poison| poison.to_string())
}

/// protocol.md 12.4.
#[test]
fn a_number_keeps_every_digit_that_was_written() {
    for (locale, n, want) in [
        ("en", "9007199254740993", "9,007,199,254,740,993"),
        (
            "vi",
            "12345678901234567890.10",
            "12.345.678.901.234.567.890,10",
        ),
        ("en", "0.10000000000000000001", "0.10000000000000000001"),
        ("vi", "1.50", "1,50"),
        ("en", "-1.25e3", "-1,250"),
        ("en", "1e-7", "0.0000001"),
        ("en", "0", "0"),
    ] {
        let shown = title(locale, "{ $n }", &format!(r#""n":{n}"#));
        assert_eq!(shown.as_deref(), Ok(want), "{locale} {n}");
    }
    let shown = |n: &str| {
        let data = format!(r#""n":{n}"#);
        title("en", "{ NUMBER($n, useGrouping: \"false\") }", &data)
    };
    let fits = "9".repeat(300);
    assert_eq!(shown(&fits), Ok(fits));
    let beyond = format!(r#""{}""#, "9".repeat(40_000));
    assert_eq!(
        shown(&beyond).unwrap_err(),
        "no_template: T.title in en: NUMBER($n) is not given a number"
    );
}

/// protocol.md 12.4.
#[test]
fn a_selector_compares_and_counts_every_digit() {
    let exact = "{ $n ->\n    [9007199254740992] a\n    [9007199254740993] b\n    [1.5] c\n   *[other] d\n }";
    for (n, want) in [
        ("9007199254740992", "a"),
        ("9007199254740993", "b"),
        ("9007199254740994", "d"),
        ("1.50", "c"),
        ("1", "d"),
        (r#""1.5""#, "d"),
        (r#""exactly""#, "d"),
    ] {
        let shown = title("en", exact, &format!(r#""n":{n}"#));
        assert_eq!(shown.as_deref(), Ok(want), "{n}");
    }
    let plural = "{ $n ->\n    [one] one\n    [few] few\n    [many] many\n   *[other] other\n }";
    for (locale, n, want) in [
        ("ru", "9007199254740993", "few"),
        ("ru", "9007199254740991", "one"),
        ("ru", "90071992547409915", "many"),
        ("ru", "1.5", "other"),
        ("fr", "1000000", "many"),
        ("ja", "1", "other"),
        ("en", "1", "one"),
        ("en", "1.0", "other"),
    ] {
        let shown = title(locale, plural, &format!(r#""n":{n}"#));
        assert_eq!(shown.as_deref(), Ok(want), "{locale} {n}");
    }
    let ordinal = "{ NUMBER($n, type: \"ordinal\") ->\n    [one] { $n } one\n    [two] { $n } two\n   *[other] { $n } other\n }";
    for (n, want) in [("21", "21 one"), ("2", "2 two"), ("11", "11 other")] {
        let shown = title("en", ordinal, &format!(r#""n":{n}"#));
        assert_eq!(shown.as_deref(), Ok(want));
    }
    let rounded = "{ NUMBER($n, maximumFractionDigits: 0) ->\n    [one] one\n   *[other] other\n }";
    assert_eq!(title("en", rounded, r#""n":1.2"#).as_deref(), Ok("one"));
}

#[test]
fn a_term_selects_by_its_own_arguments_and_texts_select_by_themselves() {
    let catalog = "-shop = { $case ->\n    [genitive] Ladens\n   *[nominative] Laden\n }\n-times = { $n ->\n    [one] einmal\n   *[other] öfter\n }\n\
                   T =\n .title = { -shop } { -shop(case: \"genitive\") } { -times(n: 1) } { -times(n: 2) }\n .content = { $kind ->\n    [card] Karte\n   *[cash] bar\n }";
    let text = texts(
        catalog,
        "de",
        &activity(r#""type":"T","data":{"kind":"card"}"#),
    )
    .unwrap();
    assert_eq!(text.title, "Laden Ladens einmal öfter");
    assert_eq!(text.content, "Karte");
}

/// protocol.md 12.4.
#[test]
fn money_and_times_are_written_as_the_options_ask() {
    for (locale, pattern, data, want) in [
        (
            "vi",
            r#"{ NUMBER($n, style: "currency", currency: "VND") }"#,
            r#""n":150000"#,
            "150.000\u{a0}₫",
        ),
        (
            "en",
            r#"{ NUMBER($n, style: "currency", currency: "USD") }"#,
            r#""n":"9007199254740993.005""#,
            "$9,007,199,254,740,993.01",
        ),
        (
            "en",
            r#"{ NUMBER($n, style: "percent", maximumFractionDigits: 1) }"#,
            r#""n":0.1255"#,
            "12.6%",
        ),
        ("en", "{ NUMBER($n) }", r#""n":2.0005"#, "2.001"),
        (
            "en",
            "{ NUMBER(1234.5, minimumFractionDigits: 2) } { 1234.50 }",
            "",
            "1,234.50 1,234.50",
        ),
        (
            "vi",
            r#"{ DATETIME($occurredAt, dateStyle: "short", timeZone: "Asia/Ho_Chi_Minh") }"#,
            "",
            "23/11/2026",
        ),
        (
            "en",
            r#"{ DATETIME($at, dateStyle: "long", timeStyle: "short", timeZone: "America/New_York") }"#,
            r#""at":"2026-07-04T00:00:00Z""#,
            "July 3, 2026 at 8:00 PM",
        ),
        (
            "en",
            r#"{ DATETIME($at, dateStyle: "medium") }"#,
            r#""at":"2026-11-23""#,
            "Nov 23, 2026",
        ),
        (
            "en",
            r#"{ DATETIME($at, timeStyle: "medium") }"#,
            r#""at":1795420800123"#,
            "8:00:00 AM",
        ),
    ] {
        let shown = title(locale, pattern, data);
        assert_eq!(shown.as_deref(), Ok(want), "{pattern}");
    }
}

/// protocol.md 12.4.
#[test]
fn a_value_that_a_function_cannot_read_is_no_template_and_the_call_is_named() {
    for (pattern, data, named) in [
        (
            "{ NUMBER($n) }",
            r#""n":"twelve""#,
            "NUMBER($n) is not given a number",
        ),
        (
            "{ NUMBER($n) }",
            r#""n":true"#,
            "NUMBER($n) is not given a number",
        ),
        ("{ NUMBER($n) }", "", "$n"),
        (
            r#"{ DATETIME($at, dateStyle: "long") }"#,
            r#""at":"soon""#,
            "DATETIME($at) is not given a time",
        ),
        (
            r#"{ DATETIME($at, dateStyle: "long") }"#,
            r#""at":12"#,
            "DATETIME($at) is not given a time",
        ),
    ] {
        let problem = title("en", pattern, data).unwrap_err();
        assert!(
            problem.contains("T.title in en") && problem.contains(named),
            "{problem}"
        );
    }
}

#[test]
fn a_parameter_is_shown_as_it_is_without_isolation_marks_or_being_read_as_a_pattern() {
    let text = texts(
        "T =\n .title = <{ $a }>\n .content = { $b } { $actorId }",
        "en",
        &activity(r#""type":"T","actorId":5,"data":{"a":"{ $b } שלום","b":true}"#),
    )
    .unwrap();
    assert_eq!(
        (text.title.as_str(), text.content.as_str()),
        ("<{ $b } שלום>", "true 5")
    );
}

#[test]
fn a_parameter_that_blows_a_text_up_makes_it_a_dead_letter_and_not_a_row() {
    let rendered = |length: usize| {
        let order = "x".repeat(length);
        let data = format!(r#"{{"amount":1,"currency":"VND","orderId":"{order}"}}"#);
        let fields =
            format!(r#""type":"PAYMENT_SUCCESS","locale":"en","actorId":"17","data":{data}"#);
        built_in().render(&activity(&fields))
    };
    let around = "Order  has been paid: 1 VND.".len();
    let text = rendered(MAX_CONTENT_BYTES - around).unwrap();
    assert_eq!(text.content.len(), MAX_CONTENT_BYTES);
    let poison = rendered(MAX_CONTENT_BYTES - around + 1).unwrap_err();
    assert_eq!(poison.reason, DeadLetterReason::TextTooLong);
    assert!(
        poison.detail.contains("has 65537 bytes"),
        "{}",
        poison.detail
    );
}

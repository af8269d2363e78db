use super::*;
use crate::activity::catalogs::Catalogs;
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
    let id: LanguageIdentifier = locale.parse().unwrap();
    let mut one = super::catalog(&id);
    one.add_resource(Arc::new(FluentResource::try_new(catalog.into()).unwrap()))
        .unwrap();
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
        ("fr", "1234", "1\u{a0}234", "1234 1\u{a0}234,00"),
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
fn numbers_beyond_a_double_are_texts_and_never_a_panic() {
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
        "12345678901234567"
    );
    assert_eq!(
        texts(ftl, "en", &activity(r#""type":"T","data":{"n":1}"#))
            .unwrap()
            .content,
        "one"
    );
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

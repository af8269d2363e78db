use super::*;

fn record(value: impl Into<Vec<u8>>) -> Record {
    Record {
        topic: "activity-notification".into(),
        partition: 3,
        offset: 41,
        timestamp: Some(1_764_000_000_000),
        key: Some(b"42".to_vec()),
        value: Some(value.into()),
        headers: Vec::new(),
    }
}

fn with(value: &str, headers: &[(&str, &str)]) -> Record {
    let headers = headers
        .iter()
        .map(|(n, v)| ((*n).to_owned(), Some(v.as_bytes().to_vec())))
        .collect();
    Record {
        headers,
        ..record(value)
    }
}

fn reason(record: &Record) -> DeadLetterReason {
    decode(record).unwrap_err().reason
}

const CONTRACT: &str = r#"{"id": "evt-81", "type": "PAYMENT_SUCCESS", "actorId": "17", "recipientType": "merchant", "merchantId": "42",
 "data": {"amount": 150000, "currency": "VND", "orderId": "DH-1001"}, "occurredAt": "2026-11-23T08:00:00Z"}"#;

#[test]
fn the_record_of_the_contract_is_read_whole() {
    let got = decode(&with(
        CONTRACT,
        &[(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )],
    ))
    .unwrap();
    assert_eq!(
        (
            got.source.as_str(),
            got.event_id.as_str(),
            got.kind.as_str()
        ),
        ("activity-notification", "evt-81", "PAYMENT_SUCCESS")
    );
    assert_eq!(got.audience, Audience::Merchant("42".into()));
    assert_eq!(
        (
            got.actor_id.as_deref(),
            got.merchant_id.as_deref(),
            got.organizer_id
        ),
        (Some("17"), Some("42"), None)
    );
    assert_eq!(
        got.data.get(),
        r#"{"amount": 150000, "currency": "VND", "orderId": "DH-1001"}"#
    );
    assert_eq!(got.occurred_at.unwrap().timestamp(), 1_795_420_800);
}

#[test]
fn numbers_are_ids_in_the_digits_that_were_written() {
    let got = decode(&record(
        r#"{"id": 12345678901234567890123, "type": "T", "actorId": 17, "recipientType": "users", "recipientIds": [1, "1", 2, "02"]}"#,
    ))
    .unwrap();
    assert_eq!(got.event_id, "12345678901234567890123");
    assert_eq!(got.actor_id.as_deref(), Some("17"));
    let Audience::Users(ids) = got.audience else {
        panic!("{:?}", got.audience)
    };
    assert_eq!(
        *ids,
        ["1", "2", "02"],
        "compared as strings, in order, without repeats"
    );
    for id in ["1.5", "1e-3", "1e401", "true", "{}", "[]"] {
        assert_eq!(
            reason(&record(format!(r#"{{"id": {id}, "type": "T"}}"#))),
            DeadLetterReason::InvalidField,
            "{id}"
        );
    }
}

#[test]
fn a_record_without_an_id_is_known_by_where_it_lies_and_a_replayed_one_by_where_it_lay() {
    for value in [
        r#"{"type":"T"}"#,
        r#"{"type":"T","id":null}"#,
        r#"{"type":"T","id":""}"#,
    ] {
        assert_eq!(
            decode(&record(value)).unwrap().event_id,
            "activity-notification/3/41/1764000000000"
        );
    }
    let replayed = with(
        r#"{"type":"T"}"#,
        &[(EVENT_ID_HEADER, "activity-notification/0/7/5")],
    );
    assert_eq!(
        decode(&replayed).unwrap().event_id,
        "activity-notification/0/7/5"
    );
    let own = with(
        r#"{"type":"T","id":"own"}"#,
        &[(EVENT_ID_HEADER, "activity-notification/0/7/5")],
    );
    assert_eq!(decode(&own).unwrap().event_id, "own");
}

#[test]
fn members_that_are_not_known_are_passed_over() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let got = decode(&record(format!(
        r#"{{"type":"T","future":{deep},"title":"a","content":"b","locale":"en"}}"#
    )))
    .unwrap();
    assert_eq!(
        (
            got.title.as_deref(),
            got.content.as_deref(),
            got.locale.as_deref()
        ),
        (Some("a"), Some("b"), Some("en"))
    );
    assert_eq!(got.audience, Audience::Actor);
    assert_eq!(got.data.get(), "{}");
}

#[test]
fn what_is_no_json_object_is_poison() {
    let cases: [&[u8]; 11] = [
        b"",
        b"not json",
        b"[\"evt\",\"T\"]",
        b"\"T\"",
        b"17",
        b"null",
        b"{\"type\":\"T\"",
        b"{\"type\":\"T\"} trailing",
        b"{\"type\":\"\xff\xfe\"}",
        b"\xef\xbb\xbf{\"type\":\"T\"}",
        b"{\"type\":\"T\",\"type\":\"U\"}",
    ];
    for value in cases {
        assert_eq!(
            reason(&record(value)),
            DeadLetterReason::NotJson,
            "{}",
            String::from_utf8_lossy(value)
        );
    }
    assert_eq!(
        reason(&Record {
            value: None,
            ..record("")
        }),
        DeadLetterReason::NotJson
    );
    let open = "[".repeat(1_000_000);
    assert_eq!(
        reason(&record(format!(r#"{{"type":"T","future":{open}"#))),
        DeadLetterReason::NotJson
    );
}

#[test]
fn a_missing_type_and_wrong_or_oversized_fields_are_poison() {
    assert_eq!(reason(&record("{}")), DeadLetterReason::MissingField);
    assert_eq!(
        reason(&record(r#"{"type":""}"#)),
        DeadLetterReason::MissingField
    );
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let nested = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    let huge = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_DATA_BYTES));
    for fields in [
        r#""type": 1.5"#.to_owned(),
        r#""type": ["T"]"#.to_owned(),
        format!(r#""type": "{long}""#),
        format!(r#""type": "T", "id": "{long}""#),
        r#""type": "T", "id": "a\u0000b""#.to_owned(),
        r#""type": "T", "actorId": {}"#.to_owned(),
        r#""type": "T", "title": 5"#.to_owned(),
        r#""type": "T", "content": "a\u0000""#.to_owned(),
        r#""type": "T", "data": [1]"#.to_owned(),
        r#""type": "T", "data": "text""#.to_owned(),
        r#""type": "T", "data": {"a": "\u0000"}"#.to_owned(),
        r#""type": "T", "data": {"a": "\ud800"}"#.to_owned(),
        r#""type": "T", "data": {"a": 1e999}"#.to_owned(),
        format!(r#""type": "T", "data": {nested}"#),
        format!(r#""type": "T", "data": {huge}"#),
        r#""type": "T", "recipientType": "users", "recipientIds": "17""#.to_owned(),
        r#""type": "T", "recipientType": "org", "organizerId": {}"#.to_owned(),
        r#""type": "T", "recipientType": "merchant", "merchantId": 4.2"#.to_owned(),
        format!(
            r#""type": "T", "actorId": "{}""#,
            "x".repeat(MAX_USER_ID_BYTES + 1)
        ),
        r#""type": "T", "recipientType": 5"#.to_owned(),
    ] {
        assert_eq!(
            reason(&record(format!("{{{fields}}}"))),
            DeadLetterReason::InvalidField,
            "{}",
            &fields[..fields.len().min(80)]
        );
    }
    assert!(
        decode(&record(
            r#"{"type":"T","data":{"a":"\\u0000 is how it is written"}}"#
        ))
        .is_ok()
    );
}

/// protocol.md 12.2.
#[test]
fn an_empty_optional_member_is_absent() {
    let full = r#"{"type":"T","id":"","recipientType":"","organizerId":"","merchantId":"","recipientIds":"","actorId":17,"data":"","title":"",
        "content":"","locale":"","occurredAt":""}"#;
    for value in [
        full.to_owned(),
        full.replace(r#""""#, "null"),
        full.replace(r#""data":"""#, r#""data":[ ]"#),
        r#"{"type":"T","actorId":"17"}"#.to_owned(),
    ] {
        let got = decode(&record(value)).unwrap();
        assert_eq!(got.event_id, "activity-notification/3/41/1764000000000");
        assert_eq!(got.audience, Audience::Actor);
        assert_eq!(
            (got.organizer_id, got.merchant_id, got.actor_id.as_deref()),
            (None, None, Some("17"))
        );
        assert_eq!(got.data.get(), "{}");
        assert_eq!((got.title, got.content, got.locale), (None, None, None));
        assert_eq!(got.occurred_at, None);
        assert!(got.dropped.is_empty(), "{:?}", got.dropped);
    }
}

/// protocol.md 12.2.
#[test]
fn a_whole_number_is_an_id_whether_or_not_it_is_written_with_a_point() {
    let got = decode(&record(
        r#"{"type":"T","id":7e2,"actorId":17.0,"recipientType":"merchant","merchantId":42.0,"organizerId":9007199254740993.0}"#,
    ))
    .unwrap();
    assert_eq!(
        (got.event_id.as_str(), got.actor_id.as_deref()),
        ("700", Some("17"))
    );
    assert_eq!(got.audience, Audience::Merchant("42".into()));
    assert_eq!(got.organizer_id.as_deref(), Some("9007199254740993"));
    assert!(got.dropped.is_empty());
}

/// protocol.md 12.2.
#[test]
fn an_invalid_recipient_is_dropped_and_counted_and_the_others_are_kept() {
    let long = "x".repeat(MAX_USER_ID_BYTES + 1);
    let got = decode(&record(format!(
        r#"{{"type":"T","recipientType":"users","recipientIds":[null,"a","",1.5,{{}},2.0,"{long}","a\u0007",".",true,"b"]}}"#
    )))
    .unwrap();
    assert_eq!(
        got.audience,
        Audience::Users(["a", "2", "b"].map(str::to_owned).into())
    );
    assert_eq!(
        got.dropped,
        Dropped {
            members: vec![],
            recipients: 8
        }
    );
}

/// protocol.md 12.2.
#[test]
fn an_invalid_member_that_nothing_needs_is_dropped_and_named() {
    let got = decode(&record(
        r#"{"type":"T","recipientType":"users","recipientIds":["a"],"organizerId":{},"merchantId":4.2,"actorId":"\u0001","locale":7,
            "occurredAt":"yesterday"}"#,
    ))
    .unwrap();
    assert_eq!(
        got.dropped.members,
        [
            "organizerId",
            "merchantId",
            "actorId",
            "occurredAt",
            "locale"
        ]
    );
    assert_eq!(
        (got.organizer_id, got.merchant_id, got.actor_id, got.locale),
        (None, None, None, None)
    );
    assert_eq!(got.occurred_at, None);
    let event = with(
        r#"{"specversion":"1.0","id":"1","source":"s","type":"T","time":"noon","data":[]}"#,
        &[("content-type", "application/cloudevents+json")],
    );
    assert_eq!(decode(&event).unwrap().dropped.members, ["time"]);
    let event = with(
        "{}",
        &[
            ("ce_specversion", "1.0"),
            ("ce_id", "1"),
            ("ce_source", "s"),
            ("ce_type", "T"),
            ("ce_time", "noon"),
        ],
    );
    assert_eq!(decode(&event).unwrap().dropped.members, ["time"]);
}

/// protocol.md 12.3.
#[test]
fn the_time_of_an_envelope_wins_and_either_is_read_in_other_forms() {
    let event = |time: &str, inside: &str| {
        let value = format!(
            r#"{{"specversion":1.0,"id":"1","source":"s","type":"T","time":{time},"data":{{"occurredAt":{inside}}}}}"#
        );
        let headers = [("content-type", "application/cloudevents+json")];
        decode(&with(&value, &headers)).unwrap().occurred_at
    };
    let at = DateTime::from_timestamp_millis(1_795_420_800_000);
    assert_eq!(event(r#""2026-11-23 08:00:00""#, "1000000000"), at);
    assert_eq!(event("null", "1795420800"), at);
    assert_eq!(event(r#""noon""#, "1795420800000"), at);
}

/// protocol.md 12.4.
#[test]
fn integers_beyond_two_to_the_53_and_decimals_keep_their_digits_in_data() {
    let data = r#"{"order":9007199254740993,"sum":0.10000000000000000001,"deep":[{"n":12345678901234567890.10}]}"#;
    let got = decode(&record(format!(r#"{{"type":"T","data":{data}}}"#))).unwrap();
    assert_eq!(got.data.get(), data);
}

#[test]
fn a_recipient_type_must_be_known_and_name_its_audience() {
    for (fields, want) in [
        (
            r#""recipientType":"everyone""#,
            DeadLetterReason::UnknownRecipientType,
        ),
        (
            r#""recipientType":"org","merchantId":1"#,
            DeadLetterReason::MissingAudience,
        ),
        (
            r#""recipientType":"merchant","merchantId":"""#,
            DeadLetterReason::MissingAudience,
        ),
        (
            r#""recipientType":"users""#,
            DeadLetterReason::MissingAudience,
        ),
    ] {
        assert_eq!(
            reason(&record(format!(r#"{{"type":"T",{fields}}}"#))),
            want,
            "{fields}"
        );
    }
    let got = decode(&record(
        r#"{"type":"T","recipientType":"org","organizerId":7}"#,
    ))
    .unwrap();
    assert_eq!(got.audience, Audience::Organizer("7".into()));
}

const BODY: &str = r#"{"actorId":"17","recipientType":"merchant","merchantId":"42","data":{"amount":1},"id":"inner","type":"INNER"}"#;

#[test]
fn a_structured_cloud_event_is_read() {
    let value = format!(
        r#"{{"specversion":"1.0","id":"ce-1","source":"/payments","type":"PAYMENT_SUCCESS","time":"2026-11-23T08:00:00+07:00",
            "datacontenttype":"application/json; charset=utf-8","extension":1,"data":{BODY}}}"#
    );
    let got = decode(&with(
        &value,
        &[(
            "Content-Type",
            "application/cloudevents+json; charset=UTF-8",
        )],
    ))
    .unwrap();
    assert_eq!(
        (
            got.source.as_str(),
            got.event_id.as_str(),
            got.kind.as_str()
        ),
        ("/payments", "ce-1", "PAYMENT_SUCCESS")
    );
    assert_eq!(got.audience, Audience::Merchant("42".into()));
    assert_eq!(
        got.occurred_at.unwrap().to_rfc3339(),
        "2026-11-23T01:00:00+00:00"
    );
    let encoded = base64_simd::STANDARD.encode_to_string(BODY.as_bytes());
    let value = format!(
        r#"{{"specversion":"1.0","id":"ce-1","source":"/p","type":"T","data_base64":"{encoded}"}}"#
    );
    assert_eq!(
        decode(&with(
            &value,
            &[("content-type", "application/cloudevents+json")]
        ))
        .unwrap()
        .merchant_id
        .as_deref(),
        Some("42")
    );
}

#[test]
fn a_binary_cloud_event_is_read() {
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", "ce-2"),
        ("ce_source", "/payments"),
        ("ce_type", "PAYMENT_SUCCESS"),
        ("ce_time", "2026-11-23T08:00:00Z"),
        ("content-type", "application/json"),
    ];
    let got = decode(&with(BODY, &headers)).unwrap();
    assert_eq!(
        (
            got.source.as_str(),
            got.event_id.as_str(),
            got.kind.as_str()
        ),
        ("/payments", "ce-2", "PAYMENT_SUCCESS")
    );
    assert_eq!(got.data.get(), r#"{"amount":1}"#);
    assert!(got.occurred_at.is_some());
    for missing in 0..4 {
        let mut some = headers.to_vec();
        some.remove(missing);
        assert_eq!(
            reason(&with(BODY, &some)),
            DeadLetterReason::InvalidCloudEvent,
            "{}",
            headers[missing].0
        );
    }
}

#[test]
fn a_cloud_event_of_another_version_content_or_without_attributes_is_poison() {
    let structured = |attributes: &str| {
        with(
            &format!("{{{attributes}}}"),
            &[("content-type", "application/cloudevents+json")],
        )
    };
    for attributes in [
        r#""id":"1","source":"s","type":"T""#,
        r#""specversion":"0.3","id":"1","source":"s","type":"T""#,
        r#""specversion":"1.0","id":"","source":"s","type":"T""#,
        r#""specversion":"1.0","id":"1","type":"T""#,
        r#""specversion":"1.0","id":"1","source":"s""#,
        r#""specversion":"1.0","id":"1","source":"s","type":"T","datacontenttype":"text/xml","data":"<a/>""#,
        r#""specversion":"1.0","id":"1","source":"s","type":"T","data":{},"data_base64":"e30=""#,
        r#""specversion":"1.0","id":"1","source":"s","type":"T","data_base64":"%%""#,
        r#""specversion":"1.0","id":{},"source":"s","type":"T""#,
    ] {
        assert_eq!(
            reason(&structured(attributes)),
            DeadLetterReason::InvalidCloudEvent,
            "{attributes}"
        );
    }
    assert_eq!(
        reason(&with(
            "[]",
            &[("content-type", "application/cloudevents-batch+json")]
        )),
        DeadLetterReason::InvalidCloudEvent
    );
    assert_eq!(
        reason(&structured(
            r#""specversion":"1.0","id":"1","source":"s","type":"T","data":[1]"#
        )),
        DeadLetterReason::NotJson
    );
}

#[test]
fn the_detail_names_the_field_and_never_its_value() {
    for value in [
        r#"{"type":"T","actorId":{"secret":"hunter2"}}"#,
        r#"{"type":"T","title":["hunter2"]}"#,
        r#"{"hunter2":}"#,
    ] {
        let poison = decode(&record(value)).unwrap_err();
        assert!(!poison.to_string().contains("hunter2"), "{poison}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_at_all_make_the_decoder_panic(value in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = decode(&record(value.clone()));
        let mut record = record(value);
        record.headers = vec![("content-type".into(), Some(b"application/cloudevents+json".to_vec()))];
        let _ = decode(&record);
    }

    #[test]
    fn no_member_of_any_type_makes_the_decoder_panic(field in "id|type|actorId|recipientType|organizerId|recipientIds|data|title|locale|occurredAt",
        value in r#"(null|true|-?[0-9]{1,30}|"[^"\\\x00-\x1f]{0,20}"|\[\]|\{\}|\[1,"a",null\]|\{"a":\[\]\})"#) {
        let _ = decode(&record(format!(r#"{{"type":"T","{field}":{value}}}"#)));
        let _ = decode(&record(format!(r#"{{"{field}":{value}}}"#)));
    }
}

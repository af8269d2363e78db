use serde_json::{Value, json};

use super::testing::{Answering, RegistryStub, avro_bytes, avro_long, proto_bytes, with_id};
use super::*;
use crate::activity::decode::decode;
use crate::activity::testing;
use crate::config::{Config, SecretFile};

fn registry(url: &str) -> Registry {
    let config = KafkaRegistry {
        url: url.into(),
        topics: vec!["t".into()],
        ..Config::for_tests().kafka.registry
    };
    Registry::new(&config).unwrap()
}

fn record(value: Vec<u8>) -> Record {
    Record {
        value: Some(value),
        ..testing::record("")
    }
}

async fn json_of(registry: &Registry, value: Vec<u8>) -> String {
    let read = registry.read(&record(value)).await.unwrap().unwrap();
    String::from_utf8(read.value.unwrap()).unwrap()
}

async fn poison_of(registry: &Registry, value: Vec<u8>) -> Poison {
    match registry.read(&record(value)).await {
        Err(SchemaError::Poison(poison)) => poison,
        other => panic!("{other:?}"),
    }
}

async fn away_of(registry: &Registry, value: Vec<u8>) -> String {
    match registry.read(&record(value)).await {
        Err(SchemaError::Away(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

const ORDER: &str = r#"{"type":"record","name":"Order","namespace":"shop","fields":[
    {"name":"type","type":"string"},
    {"name":"actorId","type":["null","long"],"default":null},
    {"name":"title","type":["null","string"],"default":null},
    {"name":"occurredAt","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"data","type":{"type":"record","name":"Data","fields":[
        {"name":"amount","type":{"type":"bytes","logicalType":"decimal","precision":30,"scale":2}},
        {"name":"day","type":{"type":"int","logicalType":"date"}},
        {"name":"big","type":"long"},
        {"name":"lines","type":{"type":"array","items":"Line"}},
        {"name":"notes","type":{"type":"map","values":"string"}},
        {"name":"state","type":{"type":"enum","name":"State","symbols":["NEW","PAID"]}}
    ]}}]}"#;
const LINE: &str = r#"{"type":"record","name":"Line","namespace":"shop","fields":[
    {"name":"price","type":"Price"}]}"#;
const PRICE: &str = r#"{"type":"record","name":"Price","namespace":"shop","fields":[
    {"name":"cents","type":"int"}]}"#;

fn order() -> Vec<u8> {
    [
        avro_bytes("ORDER_PAID"),
        avro_long(1),
        avro_long(17),
        avro_long(0),
        avro_long(1_763_884_800_000),
        // -12,345,678,901,234,567.89 as two's complement.
        avro_bytes((-1_234_567_890_123_456_789_i64).to_be_bytes()),
        avro_long(20_454),
        avro_long(i64::MAX),
        avro_long(2),
        avro_long(5),
        avro_long(-7),
        avro_long(0),
        avro_long(1),
        avro_bytes("k"),
        avro_bytes("\"v\""),
        avro_long(0),
        avro_long(1),
    ]
    .concat()
}

#[tokio::test]
async fn avro_is_read_with_its_references_and_keeps_every_digit() {
    let (stub, url) = RegistryStub::start().await;
    let to = |name: &str| json!([{"name": format!("shop.{name}"), "subject": name, "version": 1}]);
    stub.add(7, "AVRO", ORDER, to("Line"));
    stub.add_subject("Line", "AVRO", LINE, to("Price"));
    stub.add_subject("Price", "AVRO", PRICE, json!([]));
    let registry = registry(&url);
    let text = json_of(&registry, with_id(7, &order())).await;
    assert_eq!(
        text,
        r#"{"type":"ORDER_PAID","actorId":17,"title":null,"occurredAt":"2025-11-23T08:00:00Z","data":{"amount":-12345678901234567.89,"day":"2026-01-01","big":9223372036854775807,"lines":[{"price":{"cents":5}},{"price":{"cents":-7}}],"notes":{"k":"\"v\""},"state":"PAID"}}"#
    );
    assert_eq!(stub.asked(), 3);
    json_of(&registry, with_id(7, &order())).await;
    assert_eq!(stub.asked(), 3, "what is known is not asked for again");
}

#[tokio::test]
async fn avro_that_is_cut_or_goes_on_is_poison_and_so_is_a_schema_without_end() {
    let (stub, url) = RegistryStub::start().await;
    let field = |kind: &str| {
        format!(r#"{{"type":"record","name":"R","fields":[{{"name":"f","type":{kind}}}]}}"#)
    };
    stub.add(1, "AVRO", &field(r#""string""#), json!([]));
    stub.add(2, "AVRO", &field(r#"["null","R"]"#), json!([]));
    stub.add(
        3,
        "AVRO",
        &field(r#"{"type":"array","items":"null"}"#),
        json!([]),
    );
    stub.add(4, "AVRO", "{", json!([]));
    let registry = registry(&url);
    let text = avro_bytes("abc");
    for (value, detail) in [
        (vec![0, 0, 0], "the value ends within the id of its schema"),
        (
            with_id(1, &text[..2]),
            "schema 1: the value cannot be read with it",
        ),
        (
            with_id(1, &[&text[..], b"x"].concat()),
            "schema 1: there is something behind the value",
        ),
        (with_id(2, &[0]), "schema 2: its type R contains itself"),
        (
            with_id(3, &avro_long(1 << 40)),
            "schema 3: it has a list whose elements take no bytes",
        ),
    ] {
        let poison = poison_of(&registry, value).await;
        assert_eq!(
            (poison.reason, poison.detail.as_str()),
            (DeadLetterReason::SchemaMismatch, detail)
        );
    }
    let poison = poison_of(&registry, with_id(4, &[0])).await;
    assert_eq!(poison.reason, DeadLetterReason::SchemaMismatch);
}

const PROTO: &str = r#"syntax = "proto3"; package shop;
import "data.proto"; import "google/protobuf/timestamp.proto";
message Unused {}
message Envelope {
  message Order {
    string type = 1; int64 actor_id = 2; string title = 3;
    google.protobuf.Timestamp occurred_at = 4; Data data = 5; repeated string recipient_ids = 6;
  }
}"#;
const PROTO_DATA: &str = r#"syntax = "proto3"; package shop;
message Data { int32 count = 1; string note = 2; double rate = 3; }"#;

#[tokio::test]
async fn protobuf_is_read_by_its_message_indexes_and_imports() {
    let (stub, url) = RegistryStub::start().await;
    let import = json!([{"name": "data.proto", "subject": "data", "version": 1}]);
    stub.add(9, "PROTOBUF", PROTO, import);
    stub.add_subject("data", "PROTOBUF", PROTO_DATA, json!([]));
    let registry = registry(&url);
    let order = [
        // Two indexes: the second message, and the first in it.
        avro_long(2),
        avro_long(1),
        avro_long(0),
        proto_bytes(1, "ORDER_PAID"),
        // 2^53 + 1
        vec![2 << 3, 0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10],
        proto_bytes(4, [&[1 << 3][..], &[0x80, 0xfe, 0x8a, 0xc9, 0x06]].concat()),
        proto_bytes(5, proto_bytes(2, "n")),
    ]
    .concat();
    let text = json_of(&registry, with_id(9, &order)).await;
    assert_eq!(
        text,
        r#"{"type":"ORDER_PAID","actorId":9007199254740993,"occurredAt":"2025-11-23T08:00:00Z","data":{"count":0,"note":"n","rate":0.0}}"#
    );
    // One index of zero is written as one byte; a value cut in two is poison.
    assert_eq!(json_of(&registry, with_id(9, &[0])).await, "{}");
    for bad in [
        vec![],
        avro_long(1),
        [avro_long(1), avro_long(5)].concat(),
        order[..8].to_vec(),
    ] {
        let poison = poison_of(&registry, with_id(9, &bad)).await;
        assert_eq!(poison.reason, DeadLetterReason::SchemaMismatch, "{bad:?}");
    }
}

#[tokio::test]
async fn json_schema_is_taken_off_and_a_value_without_an_id_is_left_alone() {
    let (stub, url) = RegistryStub::start().await;
    stub.add(3, "JSON", r#"{"type":"object"}"#, json!([]));
    let registry = registry(&url);
    let value = r#"{"type":"T","actorId":"17","title":"t","content":"c"}"#;
    assert_eq!(
        json_of(&registry, with_id(3, value.as_bytes())).await,
        value
    );
    for plain in [Some(value.as_bytes().to_vec()), Some(Vec::new()), None] {
        let record = Record {
            value: plain,
            ..testing::record("")
        };
        assert_eq!(registry.read(&record).await.unwrap(), None);
    }
    assert!(registry.covers("t") && !registry.covers("t2"));
}

#[tokio::test]
async fn a_cloud_event_in_binary_mode_says_json_once_it_is_json() {
    let (stub, url) = RegistryStub::start().await;
    stub.add(3, "JSON", "true", json!([]));
    let registry = registry(&url);
    let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
    let event = Record {
        headers: vec![
            header("ce_specversion", "1.0"),
            header("ce_id", "e1"),
            header("ce_source", "s"),
            header("ce_type", "T"),
            header("Content-Type", "application/avro"),
        ],
        ..record(with_id(3, br#"{"actorId":"17"}"#))
    };
    let read = registry.read(&event).await.unwrap().unwrap();
    let activity = decode(&read).unwrap();
    assert_eq!(
        (activity.event_id.as_str(), activity.kind.as_str()),
        ("e1", "T")
    );
}

#[tokio::test]
async fn only_the_word_of_the_registry_makes_an_id_unknown() {
    let (stub, url) = RegistryStub::start().await;
    stub.add(3, "JSON", "true", json!([]));
    let registry = registry(&url);
    for answering in [
        Answering::Page(404),
        Answering::Page(200),
        Answering::Page(502),
        Answering::Error(401),
        Answering::Error(429),
        Answering::Error(500),
    ] {
        stub.answer(answering);
        let error = away_of(&registry, with_id(3, b"{}")).await;
        assert!(error.starts_with("the schema registry: "), "{error}");
    }
    stub.answer(Answering::Well);
    assert_eq!(json_of(&registry, with_id(3, b"{}")).await, "{}");

    let poison = poison_of(&registry, with_id(4, b"{}")).await;
    assert_eq!(
        (poison.reason, poison.detail.as_str()),
        (
            DeadLetterReason::UnknownSchema,
            "the registry has no schema 4"
        )
    );
    let asked = stub.asked();
    poison_of(&registry, with_id(4, b"{}")).await;
    assert_eq!(stub.asked(), asked, "it is believed for a while");
    let import = json!([{"name": "x.proto", "subject": "x", "version": 1}]);
    stub.add(5, "PROTOBUF", PROTO, import.clone());
    stub.add(6, "AVRO", ORDER, import);
    for id in [5, 6] {
        let poison = poison_of(&registry, with_id(id, &[0])).await;
        assert_eq!(poison.reason, DeadLetterReason::UnknownSchema, "{id}");
    }
    stub.add(8, "THRIFT", "x", json!([]));
    let poison = poison_of(&registry, with_id(8, &[0])).await;
    assert_eq!(poison.detail, "schema 8: its type THRIFT is not known");
}

#[tokio::test]
async fn a_registry_that_nobody_serves_is_away_and_its_address_is_not_said() {
    let registry = registry("http://127.0.0.1:1/secret-path");
    let error = away_of(&registry, with_id(3, b"{}")).await;
    assert!(!error.contains("secret-path"), "{error}");
}

#[tokio::test]
async fn credentials_are_those_that_stand_in_the_files_when_a_schema_is_asked_for() {
    let (stub, url) = RegistryStub::start().await;
    stub.add(3, "JSON", "true", json!([]));
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut config = registry(&url).config;
    config.username = "signal".into();
    config.password_file = SecretFile::new(file.path());
    let basic = Registry::new(&config).unwrap();
    stub.require("Basic c2lnbmFsOnMzY3JldA==");
    std::fs::write(file.path(), "not yet").unwrap();
    away_of(&basic, with_id(3, b"{}")).await;
    std::fs::write(file.path(), "s3cret\n").unwrap();
    json_of(&basic, with_id(3, b"{}")).await;

    config.password_file = SecretFile::default();
    config.token_file = SecretFile::new(file.path());
    let bearer = Registry::new(&config).unwrap();
    stub.require("Bearer s3cret");
    json_of(&bearer, with_id(3, b"{}")).await;
}

#[test]
fn as_many_schemas_are_kept_as_may_be_and_the_one_not_used_for_longest_goes() {
    let mut known = Known::default();
    let now = Instant::now();
    let of = |n: u32| Arc::new(Schema::Unusable(n.to_string()));
    for id in 0..MAX_SCHEMAS as u32 {
        known.put(id, of(id), now);
        assert!(known.get(id, now).is_some());
    }
    assert!(known.get(0, now).is_some());
    known.put(10_000, of(10_000), now);
    assert_eq!(known.schemas.len(), MAX_SCHEMAS);
    assert!(known.get(0, now).is_some() && known.get(1, now).is_none());
    let poison = Poison::new(DeadLetterReason::UnknownSchema, "x");
    known.put(0, Arc::new(Schema::Missing(poison)), now);
    assert!(known.get(0, now + MISSING_FOR).is_some());
    assert!(known.get(0, now + MISSING_FOR * 2).is_none());
}

/// Registers a schema and returns its id.
async fn register(url: &str, subject: &str, kind: &str, schema: &str, references: Value) -> u32 {
    let client = outgoing::client(&url.parse().unwrap(), std::path::Path::new(""));
    let request = client
        .unwrap()
        .build()
        .unwrap()
        .post(format!("{url}/subjects/{subject}/versions"))
        .json(&json!({"schemaType": kind, "schema": schema, "references": references}));
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    let id = answer["id"].as_u64();
    u32::try_from(id.unwrap_or_else(|| panic!("{answer}"))).unwrap()
}

#[tokio::test]
async fn a_real_registry_has_schemas_of_each_kind_with_their_references() {
    let Ok(url) = std::env::var("SIGNAL_TEST_REGISTRY") else {
        eprintln!(
            "skipped: a_real_registry_has_schemas_of_each_kind_with_their_references: SIGNAL_TEST_REGISTRY names none"
        );
        return;
    };
    let registry = registry(&url);
    let to = |name: &str, subject: &str| json!([{"name": name, "subject": subject, "version": 1}]);
    register(&url, "price", "AVRO", PRICE, json!([])).await;
    register(&url, "line", "AVRO", LINE, to("shop.Price", "price")).await;
    let avro = register(&url, "order", "AVRO", ORDER, to("shop.Line", "line")).await;
    let text = json_of(&registry, with_id(avro, &order())).await;
    assert!(
        text.contains(r#""amount":-12345678901234567.89"#) && text.contains(r#"{"cents":5}"#),
        "{text}"
    );
    register(&url, "data", "PROTOBUF", PROTO_DATA, json!([])).await;
    let import = to("data.proto", "data");
    let protobuf = register(&url, "proto", "PROTOBUF", PROTO, import).await;
    let value = [
        avro_long(2),
        avro_long(1),
        avro_long(0),
        proto_bytes(1, "ORDER_PAID"),
        proto_bytes(5, proto_bytes(2, "n")),
    ]
    .concat();
    assert_eq!(
        json_of(&registry, with_id(protobuf, &value)).await,
        r#"{"type":"ORDER_PAID","data":{"count":0,"note":"n","rate":0.0}}"#
    );
    let schema = r#"{"type":"object","properties":{"type":{"type":"string"}}}"#;
    let json_schema = register(&url, "json", "JSON", schema, json!([])).await;
    assert_eq!(
        json_of(&registry, with_id(json_schema, br#"{"type":"T"}"#)).await,
        r#"{"type":"T"}"#
    );
    let poison = poison_of(&registry, with_id(1_000_000, b"{}")).await;
    assert_eq!(poison.reason, DeadLetterReason::UnknownSchema);
}

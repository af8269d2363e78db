//! The whole pipeline against a broker: a real one named by `SIGNAL_TEST_KAFKA`, else librdkafka's mock cluster where that is enough.

mod dead_letters;
mod logins;
mod members;
mod outages;
mod schemas;
mod stage;
mod standstill;
mod starts;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures_util::future::{BoxFuture, join_all};
use rdkafka::admin::{
    AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaRespErr;
use signal_contract::KafkaReport;
use tokio::io::AsyncBufReadExt;

use self::stage::{Broker, PATIENCE, Running, Stage, ids, until};
use super::decode::Record;
use super::replay::{ReplayOptions, replay};
use super::testing::{Policies, unused_reads};
use super::*;
use crate::clock::SystemClock;
use crate::config::{Config, Database, Kafka, Secret};
use crate::inbox::testing::inbox;
use crate::notification::NewActivity;
use crate::protocol::event::name;
use crate::store::testing::TestDatabase;
use crate::store::{self, NotificationStore, StoreError, Stored};

const PAYMENT: &str = r#"{"id":"evt-81","type":"PAYMENT_SUCCESS","actorId":"17","recipientType":"merchant","merchantId":"42",
 "data":{"amount":150000,"currency":"VND","orderId":"DH-1001"},"occurredAt":"2026-11-23T08:00:00Z"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_record_becomes_rows_then_pushes_then_a_committed_offset() {
    let stage = Stage::new(Broker::any(), 1).await;
    let running = stage.run();
    stage.produce(0, PAYMENT).await;
    stage.until_committed(0, 1).await;
    let rows = stage.rows.all();
    assert_eq!(
        rows.iter()
            .map(|row| &*row.recipient_id)
            .collect::<Vec<_>>(),
        ["17", "18"]
    );
    assert_eq!(
        &*rows[0].content,
        "Đơn hàng DH-1001 đã được thanh toán 150.000 VND."
    );
    let pushes = stage.bus.dispatches.lock().clone();
    assert_eq!(pushes.len(), 2);
    for push in &pushes {
        assert_eq!(
            &*push.event,
            crate::protocol::event::name::NOTIFICATION_CREATED
        );
        let data: serde_json::Value = serde_json::from_str(push.data_text().unwrap()).unwrap();
        assert_eq!(
            (&data["unreadCount"], &data["version"]),
            (&1.into(), &1.into())
        );
        assert_eq!(data["notification"]["type"], "PAYMENT_SUCCESS");
        assert_eq!(data["notification"]["data"]["amount"], 150_000);
        assert_eq!(
            push.destination,
            crate::dispatch::Destination::User(
                data["notification"]["recipientId"].as_str().unwrap().into()
            )
        );
    }
    until("the lag is known", || {
        stage.status.facts()
            == KafkaReport {
                partitions: 1,
                max_lag: Some(0),
                retrying: 0,
                ..KafkaReport::default()
            }
    })
    .await;
    assert!(stage.metrics.render().contains("signal_kafka_lag_records{"));
    running.stop().await;
    assert_eq!(stage.status.facts().partitions, 0);
    assert!(
        !stage.metrics.render().contains("signal_kafka_lag_records{"),
        "the lag of a partition that is assigned elsewhere is not exported"
    );
}

/// protocol.md 12.2 and 12.3, authorization.md 6.4.
#[tokio::test(flavor = "multi_thread")]
async fn invalid_values_are_passed_over_and_counted_and_the_record_reaches_everybody_else() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    let long = "x".repeat(5000);
    stage.policies = Policies::new(&[("Merchant_42", &["17", &long, "18"])]);
    let running = stage.run();
    let texts = r#""type":"T","title":"t","content":"c""#;
    for value in [
        format!(
            r#"{{{texts},"recipientType":"merchant","merchantId":42.0,"data":[],"occurredAt":1795420800}}"#
        ),
        format!(
            r#"{{{texts},"recipientType":"users","recipientIds":[null,"19",""],"organizerId":{{}},"occurredAt":"soon"}}"#
        ),
    ] {
        stage.produce(0, &value).await;
    }
    stage.until_committed(0, 2).await;
    running.stop().await;
    let rows = stage.rows.all();
    let people: Vec<&str> = rows.iter().map(|row| &*row.recipient_id).collect();
    assert_eq!(people, ["17", "18", "19"]);
    let at = DateTime::from_timestamp_millis(1_795_420_800_000);
    assert_eq!(rows[0].occurred_at, at);
    assert_eq!((rows[2].occurred_at, &rows[2].organizer_id), (None, &None));
    for (member, number) in [
        ("member", 1),
        ("recipientIds", 2),
        ("organizerId", 1),
        ("occurredAt", 1),
    ] {
        let dropped = &stage.metrics.values_dropped;
        let counted = dropped.get_or_create(&Metrics::kind(member)).get();
        assert_eq!(counted, number, "{member}");
    }
    assert_eq!(
        (stage.counted("stored"), stage.counted("dead_letter")),
        (2, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_twice_and_a_redelivery_of_everything_change_nothing() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    let running = stage.run();
    stage.produce(0, PAYMENT).await;
    stage.produce(0, PAYMENT).await;
    stage
        .produce(
            0,
            r#"{"type":"T","title":"without id","content":"c","actorId":"17"}"#,
        )
        .await;
    stage.until_committed(0, 3).await;
    running.stop().await;
    assert_eq!(
        (
            stage.rows.count(),
            stage.counted("stored"),
            stage.counted("duplicate")
        ),
        (3, 2, 1)
    );
    // Another group has no offsets: it reads everything again.
    stage.config.group_id += "-again";
    let running = stage.run();
    stage.until_committed(0, 3).await;
    running.stop().await;
    assert_eq!(
        (
            stage.rows.count(),
            stage.sent(name::NOTIFICATION_CREATED).len()
        ),
        (3, 3)
    );
    let told: BTreeSet<String> = stage.sent(name::RESYNC).into_iter().collect();
    assert!(
        told.contains("17") && told.contains("18"),
        "nobody knows whether the other group pushed: {told:?}"
    );
}

/// A record for every reason, where at most two recipients are allowed.
const POISON: [(&str, DeadLetterReason); 10] = [
    ("not json", DeadLetterReason::NotJson),
    (
        r#"{"type":"T","actorId":{}}"#,
        DeadLetterReason::InvalidField,
    ),
    (r#"{"actorId":"17"}"#, DeadLetterReason::MissingField),
    (
        r#"{"type":"T","recipientType":"everyone"}"#,
        DeadLetterReason::UnknownRecipientType,
    ),
    (
        r#"{"type":"T","recipientType":"merchant"}"#,
        DeadLetterReason::MissingAudience,
    ),
    (
        r#"{"type":"T","title":"t","content":"c","recipientType":"users","recipientIds":[1,2,3]}"#,
        DeadLetterReason::TooManyRecipients,
    ),
    (
        r#"{"type":"T","title":"t","content":"c","recipientType":"merchant","merchantId":"0"}"#,
        DeadLetterReason::Nobody,
    ),
    (
        r#"{"type":"UNKNOWN","actorId":"17"}"#,
        DeadLetterReason::NoTemplate,
    ),
    (
        r#"{"type":"PAYMENT_SUCCESS","actorId":"17","data":{"amount":1}}"#,
        DeadLetterReason::NoTemplate,
    ),
    (
        r#"{"type":"T","title":"REFUSED","content":"c","actorId":"17"}"#,
        DeadLetterReason::Refused,
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn poison_of_every_kind_is_a_dead_letter_and_the_partition_goes_on() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage.config.max_recipients = 2;
    for (at, (value, _)) in POISON.iter().enumerate() {
        let headers = OwnedHeaders::new().insert(Header {
            key: "h",
            value: Some(&[0xff_u8, 0][..]),
        });
        stage.produce_with(0, value.as_bytes(), headers).await;
        stage.produce_many(0, &format!("good{at}-"), "17", 1).await;
    }
    let running = stage.run();
    stage.until_committed(0, 20).await;
    running.stop().await;
    assert_eq!(
        stage.rows.of("17"),
        (0..10).map(|at| format!("good{at}-0")).collect::<Vec<_>>()
    );
    let letters = stage.dead_letters(POISON.len()).await;
    for (at, (value, reason)) in POISON.iter().enumerate() {
        let letter = letters
            .iter()
            .find(|letter| letter.header(dead_letter::OFFSET) == Some(&(2 * at).to_string()))
            .unwrap();
        assert_eq!(letter.value.as_deref(), Some(value.as_bytes()));
        assert_eq!(letter.key.as_deref(), Some(b"42".as_slice()));
        assert_eq!(letter.headers[0], ("h".into(), Some(vec![0xff, 0])));
        assert_eq!(
            letter.header(dead_letter::REASON),
            Some(reason.as_str()),
            "{value}"
        );
        assert_eq!(letter.header(dead_letter::TOPIC), Some(stage.topic()));
        assert_eq!(letter.header(dead_letter::PARTITION), Some("0"));
        assert!(!letter.header(dead_letter::DETAIL).unwrap().is_empty());
        chrono::DateTime::parse_from_rfc3339(letter.header(dead_letter::TIME).unwrap()).unwrap();
    }
    assert_eq!(
        (stage.counted("stored"), stage.counted("dead_letter")),
        (10, 10)
    );
    assert_eq!(
        stage
            .metrics
            .dead_letters
            .get_or_create(&Metrics::kind("no_template"))
            .get(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_is_found_by_halving_and_the_others_keep_their_order() {
    let stage = Stage::new(Broker::any(), 1).await;
    stage.produce_many(0, "a", "17", 21).await;
    stage
        .produce(
            0,
            r#"{"id":"bad","type":"T","title":"REFUSED","content":"c","actorId":"17"}"#,
        )
        .await;
    stage.produce_many(0, "b", "17", 42).await;
    let running = stage.run();
    stage.until_committed(0, 64).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), [ids("a", 21), ids("b", 42)].concat());
    assert_eq!(
        stage.dead_letters(1).await[0].header(dead_letter::OFFSET),
        Some("21")
    );
    assert!(
        stage.rows.calls().len() <= 24,
        "halving is logarithmic: {:?}",
        stage.rows.calls()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_one_recipient_keep_the_order_of_its_inbox() {
    let stage = Stage::new(Broker::any(), 1).await;
    for n in 0..20 {
        stage
            .produce_many(0, &format!("{n}-"), &format!("u{}", n % 3), 20)
            .await;
    }
    let running = stage.run();
    stage.until_committed(0, 400).await;
    running.stop().await;
    let mut versions: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for push in stage.bus.dispatches.lock().iter() {
        let data: serde_json::Value = serde_json::from_str(push.data_text().unwrap()).unwrap();
        versions
            .entry(data["notification"]["recipientId"].to_string())
            .or_default()
            .push(data["version"].as_i64().unwrap());
    }
    assert_eq!(versions.values().map(Vec::len).sum::<usize>(), 400);
    for seen in versions.values() {
        assert!(seen.is_sorted(), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_for_many_is_stored_in_slices() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage.config.batch_rows = 100;
    let recipients: Vec<String> = (0..1050).map(|n| n.to_string()).collect();
    stage.produce_many(0, "a", "x", 3).await;
    let many = serde_json::json!({"id": "many", "type": "T", "title": "t", "content": "c", "recipientType": "users", "recipientIds": recipients});
    stage.produce(0, &many.to_string()).await;
    stage.produce_many(0, "b", "x", 3).await;
    let running = stage.run();
    stage.until_committed(0, 7).await;
    running.stop().await;
    assert_eq!(stage.rows.of("x"), [ids("a", 3), ids("b", 3)].concat());
    let got: HashSet<String> = stage
        .rows
        .all()
        .iter()
        .filter(|r| &*r.recipient_id != "x")
        .map(|r| r.recipient_id.to_string())
        .collect();
    assert_eq!(got.len(), 1050);
    assert_eq!((stage.rows.count(), stage.counted("stored")), (1056, 7));
    assert!(stage.rows.calls().len() >= 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_pauses_the_partition_and_every_record_still_comes_once_in_order() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    (stage.config.partition_queue, stage.config.batch_records) = (300, 20);
    stage.produce_many(0, "a", "17", 3000).await;
    let running = stage.run();
    stage.until_committed(0, 3000).await;
    running.stop().await;
    assert_eq!(stage.rows.of("17"), ids("a", 3000));
    assert_eq!(stage.counted("duplicate"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_refused_end_the_start_at_once() {
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage
        .config
        .properties
        .insert("enable.auto.commit".into(), "true".into());
    let refused = run(stage.options(), CancellationToken::new()).await;
    assert!(
        matches!(refused, Err(PipelineError::Settings(_))),
        "{refused:?}"
    );
    stage.config.properties = [("no.such.property".to_owned(), "1".to_owned())].into();
    let refused = run(stage.options(), CancellationToken::new()).await;
    assert!(
        matches!(refused, Err(PipelineError::Client(_))),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_yet_is_waited_for_and_a_shutdown_is_not() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stage = Stage::new(Broker::any(), 1).await;
    stage.config.brokers = vec![listener.local_addr().unwrap().to_string()];
    drop(listener);
    let running = stage.run();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!running.task.is_finished());
    let started = Instant::now();
    running.stop().await;
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

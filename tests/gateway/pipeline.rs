//! The main job: an activity produced to Kafka becomes stored notifications and appears, encrypted, on the right people's
//! open connections, on whichever gateway they are, and in their REST inbox.

use serde_json::{Value, json};
use signal_tests::gateway::Builder;
use signal_tests::producer::payment;
use signal_tests::services::{self, unique};
use signal_tests::wait::until;
use signal_tests::{Client, Emitter, Envelope, Gateway, Issuer, Policies, Producer};

/// Two gateways on real Kafka, PostgreSQL and Redis. Merchant 42 has the users 17 and 18, merchant 43 has 19.
pub(crate) struct Pipeline {
    pub(crate) issuer: Issuer,
    policies: Policies,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) producer: Producer,
    emitter: Emitter,
    pub(crate) topic: String,
    _redis: services::Own,
}

impl Pipeline {
    pub(crate) async fn start(count: usize) -> Option<Self> {
        Self::with(count, |settings| settings).await
    }

    async fn with(count: usize, configure: impl FnOnce(Builder) -> Builder) -> Option<Self> {
        let brokers = services::kafka().await?;
        let database = services::postgres().await?;
        let redis = services::redis().await?;
        let (issuer, topic) = (Issuer::start().await, unique("activity"));
        let producer = Producer::new(&brokers).expect("a producer");
        producer.create_topic(&topic, 4).await.expect("a topic");
        let settings = Gateway::build()
            .trust(&issuer)
            .redis(redis.address())
            .postgres(&database)
            .kafka(&brokers, &topic);
        let settings = configure(settings);
        let policies = settings.policies().await;
        for (user, domain) in [
            ("17", "Merchant_42"),
            ("18", "Merchant_42"),
            ("19", "Merchant_43"),
            ("20", "Organizer_7"),
        ] {
            policies.join(user, domain).await.expect("a row");
        }
        let gateways = settings.start_many(count).await;
        let emitter = Emitter::connect(redis.address())
            .await
            .expect("Redis answers");
        Some(Self {
            issuer,
            policies,
            gateways,
            producer,
            emitter,
            topic,
            _redis: redis,
        })
    }

    async fn client(&self, gateway: usize, user: &str) -> Client {
        Client::open_encrypted(self.gateways[gateway].address(), &self.issuer.token(user)).await
    }

    pub(crate) async fn produce(&self, key: &str, record: Value) {
        self.producer
            .send(&self.topic, key, &record)
            .await
            .expect("acknowledged");
    }

    pub(crate) async fn inbox(&self, user: &str) -> Value {
        self.gateways[0]
            .rest("GET", "/notifications", &self.issuer.token(user), None)
            .await
            .expect(200)
            .json()
    }

    /// Shows that nothing came to these clients before: a marker to everyone must be next.
    async fn expect_quiet(&mut self, clients: &mut [&mut Client]) {
        self.emitter
            .broadcast("marker", json!({}), &[])
            .await
            .expect("Redis answers");
        for client in clients {
            let before = client.all_before("marker").await;
            assert!(before.is_empty(), "{before:?}");
        }
    }
}

fn assert_created(envelope: &Envelope, recipient: &str, unread: i64) {
    assert_eq!(envelope.event, "notification:created", "{envelope:?}");
    assert!(envelope.sealed, "{envelope:?}");
    assert_eq!(
        envelope.data["notification"]["recipientId"], recipient,
        "{envelope:?}"
    );
    assert_eq!(envelope.data["unreadCount"], unread, "{envelope:?}");
}

/// protocol.md 3.13.
#[tokio::test]
async fn a_record_for_a_merchant_reaches_its_users_on_either_gateway_and_nobody_else() {
    let Some(mut all) = Pipeline::start(2).await else {
        return;
    };
    let (mut phone, mut laptop) = (all.client(0, "17").await, all.client(1, "17").await);
    let mut second = all.client(1, "18").await;
    let (mut other, mut stranger) = (all.client(0, "19").await, all.client(1, "99").await);
    all.produce("42", payment("evt-81", "42", 150_000)).await;

    let envelope = phone.next_envelope().await;
    assert_created(&envelope, "17", 1);
    assert_created(&laptop.next_envelope().await, "17", 1);
    assert_created(&second.next_envelope().await, "18", 1);
    all.expect_quiet(&mut [
        &mut phone,
        &mut laptop,
        &mut second,
        &mut other,
        &mut stranger,
    ])
    .await;

    let notification = &envelope.data["notification"];
    assert_eq!(notification["type"], "PAYMENT_SUCCESS");
    assert_eq!(
        (&notification["title"], &notification["locale"]),
        (&json!("Thanh toán thành công"), &json!("vi"))
    );
    let content = notification["content"].as_str().unwrap();
    assert!(
        content.contains("DH-evt-81") && content.contains("VND"),
        "{content}"
    );
    assert_eq!(
        notification["data"],
        json!({"amount": 150_000, "currency": "VND", "orderId": "DH-evt-81"})
    );
    assert_eq!(
        (&notification["actorId"], &notification["merchantId"]),
        (&json!("17"), &json!("42"))
    );
    assert_eq!(
        (
            &notification["seq"],
            &notification["isRead"],
            &notification["readAt"]
        ),
        (&json!(1), &json!(false), &Value::Null)
    );

    for user in ["17", "18"] {
        let inbox = all.inbox(user).await;
        assert_eq!(inbox["data"].as_array().map(Vec::len), Some(1), "{inbox}");
        assert_eq!(inbox["unreadCount"], 1);
    }
    assert_eq!(
        all.inbox("17").await["data"][0],
        *notification,
        "the inbox and the push say the same"
    );
    for user in ["19", "99"] {
        assert_eq!(all.inbox(user).await["data"], json!([]));
    }
    let id = notification["id"].as_str().unwrap();
    let of_another = all.gateways[0]
        .rest(
            "GET",
            &format!("/notifications/{id}"),
            &all.issuer.token("18"),
            None,
        )
        .await;
    let of_nobody = all.gateways[0]
        .rest("GET", "/notifications/0000", &all.issuer.token("18"), None)
        .await;
    assert_eq!((of_another.status, of_nobody.status), (404, 404));
}

/// authorization.md 6.1 and 6.2.
#[tokio::test]
async fn every_kind_of_recipient_is_found() {
    let Some(all) = Pipeline::start(1).await else {
        return;
    };
    let mut clients = Vec::new();
    for user in ["17", "18", "20", "30", "31", "40"] {
        clients.push((user, all.client(0, user).await));
    }
    let record = |id: &str, extra: Value| {
        let mut record = json!({"id": id, "type": "PAYMENT_SUCCESS", "actorId": 40, "title": id, "content": "text"});
        record
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        record
    };
    for (id, extra) in [
        ("org", json!({"recipientType": "org", "organizerId": 7})),
        (
            "merchant",
            json!({"recipientType": "merchant", "merchantId": 42}),
        ),
        (
            "users",
            json!({"recipientType": "users", "recipientIds": [30, "31", 30]}),
        ),
        (
            "nobody-found",
            json!({"recipientType": "merchant", "merchantId": "no-such"}),
        ),
        ("absent", json!({})),
    ] {
        all.produce("one-key", record(id, extra)).await;
    }
    let mut got = Vec::new();
    for (user, client) in &mut clients {
        let count = if *user == "40" { 2 } else { 1 };
        for _ in 0..count {
            let envelope = client.expect("notification:created").await;
            got.push((
                *user,
                envelope.data["notification"]["title"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            ));
        }
    }
    let want = [
        ("17", "merchant"),
        ("18", "merchant"),
        ("20", "org"),
        ("30", "users"),
        ("31", "users"),
        ("40", "nobody-found"),
        ("40", "absent"),
    ];
    assert_eq!(got, want.map(|(user, title)| (user, title.to_owned())));
}

#[tokio::test]
async fn texts_follow_the_locale_of_the_record() {
    let Some(all) = Pipeline::start(1).await else {
        return;
    };
    let mut client = all.client(0, "17").await;
    for (n, locale) in ["en", "vi", "en-GB", "xx"].into_iter().enumerate() {
        let mut record = payment(&format!("evt-{n}"), "42", 5);
        record["locale"] = locale.into();
        all.produce("42", record).await;
    }
    let mut titles = Vec::new();
    for _ in 0..4 {
        titles.push(
            client.expect("notification:created").await.data["notification"]["title"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let (english, vietnamese) = ("Payment received", "Thanh toán thành công");
    assert_eq!(titles, [english, vietnamese, english, vietnamese]);
}

#[tokio::test]
async fn cloud_events_are_taken_in_both_modes() {
    let Some(all) = Pipeline::start(1).await else {
        return;
    };
    let mut client = all.client(0, "17").await;
    let data = json!({"recipientType": "merchant", "merchantId": "42", "data": {"amount": 1, "currency": "VND", "orderId": "DH-1"}});
    let structured = json!({
        "specversion": "1.0", "id": "ce-1", "source": "/payments", "type": "PAYMENT_SUCCESS", "time": "2026-11-23T08:00:00Z",
        "datacontenttype": "application/json", "data": data
    });
    let headers = [(
        "content-type",
        "application/cloudevents+json; charset=utf-8",
    )];
    all.producer
        .send_raw(
            &all.topic,
            "42",
            structured.to_string().as_bytes(),
            &headers,
        )
        .await
        .unwrap();
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", "ce-2"),
        ("ce_source", "/payments"),
        ("ce_type", "PAYMENT_SUCCESS"),
        ("content-type", "application/json"),
    ];
    all.producer
        .send_raw(&all.topic, "42", data.to_string().as_bytes(), &headers)
        .await
        .unwrap();
    // The same event once more, in the other mode.
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", "ce-1"),
        ("ce_source", "/payments"),
        ("ce_type", "PAYMENT_SUCCESS"),
    ];
    all.producer
        .send_raw(&all.topic, "42", data.to_string().as_bytes(), &headers)
        .await
        .unwrap();
    all.produce("42", payment("last", "42", 9)).await;
    for seq in 1..=3 {
        assert_eq!(
            client
                .expect_where("the next one", |e| e.data["notification"]["seq"] == seq)
                .await
                .data["unreadCount"],
            seq
        );
    }
    assert_eq!(
        all.inbox("17").await["data"].as_array().map(Vec::len),
        Some(3)
    );
}

#[tokio::test]
async fn poison_goes_to_the_dead_letters_and_blocks_nothing() {
    let Some(all) = Pipeline::start(1).await else {
        return;
    };
    let mut client = all.client(0, "17").await;
    let poison: [&[u8]; 6] = [
        b"not json",
        b"\xff\xfe",
        b"{}",
        br#"{"type":"PAYMENT_SUCCESS","recipientType":"galaxy"}"#,
        br#"{"type":"PAYMENT_SUCCESS","recipientType":"merchant"}"#,
        br#"{"type":"NO_TEMPLATE","actorId":"17"}"#,
    ];
    for value in poison {
        all.producer
            .send_raw(
                &all.topic,
                "42",
                value,
                &[(
                    "traceparent",
                    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                )],
            )
            .await
            .unwrap();
    }
    all.produce("42", payment("after", "42", 7)).await;
    assert_eq!(
        client.expect("notification:created").await.data["notification"]["data"]["orderId"],
        "DH-after"
    );
    let letters = all
        .producer
        .read(&format!("{}.dlq", all.topic), poison.len())
        .await
        .unwrap();
    let mut values: Vec<&[u8]> = letters
        .iter()
        .map(|letter| letter.value.as_slice())
        .collect();
    let mut want = poison.to_vec();
    values.sort_unstable();
    want.sort_unstable();
    assert_eq!(values, want, "the original values");
    for letter in &letters {
        assert_eq!(letter.key, b"42");
        assert!(
            letter.header("traceparent").starts_with("00-4bf92f"),
            "{letter:?}"
        );
        assert_eq!(letter.header("signal-dlq-topic"), all.topic, "{letter:?}");
        for name in [
            "signal-dlq-reason",
            "signal-dlq-partition",
            "signal-dlq-offset",
            "signal-dlq-time",
        ] {
            assert!(!letter.header(name).is_empty(), "{name} of {letter:?}");
        }
    }
    until("the dead letters are counted", || async {
        (all.gateways[0]
            .metric("signal_kafka_dead_letters_total", "")
            .await?
            >= 6.0)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_record_with_a_value_the_database_refuses_is_alone_in_the_dead_letters() {
    let Some(all) = Pipeline::start(1).await else {
        return;
    };
    let mut client = all.client(0, "17").await;
    for n in 0..20 {
        let mut record = payment(&format!("evt-{n}"), "42", n);
        if n == 10 {
            record["title"] = "a NUL: \u{0}".into();
            record["content"] = "text".into();
        }
        all.produce("42", record).await;
    }
    let mut amounts = Vec::new();
    for _ in 0..19 {
        amounts.push(
            client.expect("notification:created").await.data["notification"]["data"]["amount"]
                .as_u64()
                .unwrap(),
        );
    }
    assert_eq!(amounts, (0..20).filter(|n| *n != 10).collect::<Vec<_>>());
    assert_eq!(
        all.producer
            .read(&format!("{}.dlq", all.topic), 1)
            .await
            .unwrap()[0]
            .key,
        b"42"
    );
}

#[tokio::test]
async fn a_producer_that_sends_twice_changes_nothing() {
    let Some(all) = Pipeline::start(2).await else {
        return;
    };
    let mut client = all.client(0, "17").await;
    for _ in 0..3 {
        all.produce("42", payment("evt-1", "42", 5)).await;
        all.produce("another key, another partition", payment("evt-1", "42", 5))
            .await;
    }
    all.produce("42", payment("evt-2", "42", 6)).await;
    client
        .expect_where("the second", |e| {
            e.data["notification"]["data"]["amount"] == 6
        })
        .await;
    until("all records are consumed", || async {
        let mut finished = 0.0;
        for gateway in &all.gateways {
            finished += gateway
                .metric("signal_kafka_records_total", "")
                .await
                .unwrap_or_default();
        }
        (finished >= 7.0).then_some(())
    })
    .await;
    let inbox = all.inbox("17").await;
    assert_eq!(
        (
            inbox["data"].as_array().map(Vec::len),
            &inbox["unreadCount"]
        ),
        (Some(2), &json!(2)),
        "{inbox}"
    );
}

/// protocol.md 3.14, 3.15 and 9.6.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn reading_on_one_device_is_seen_on_all_and_on_rest() {
    let Some(mut all) = Pipeline::start(2).await else {
        return;
    };
    let (mut phone, mut laptop, mut other) = (
        all.client(0, "17").await,
        all.client(1, "17").await,
        all.client(1, "18").await,
    );
    let mut ids = Vec::new();
    for n in 1..=3 {
        all.produce("42", payment(&format!("evt-{n}"), "42", n))
            .await;
        ids.push(phone.expect("notification:created").await.data["notification"]["id"].clone());
        laptop.expect("notification:created").await;
        other.expect("notification:created").await;
    }
    let of_another = all.inbox("18").await["data"][0]["id"].clone();
    phone
        .send(
            "notification:read",
            json!({"ids": [ids[0], of_another, "nonsense"]}),
        )
        .await;
    let mut versions = Vec::new();
    for device in [&mut phone, &mut laptop] {
        let read = device.expect("notification:read").await;
        assert_eq!(
            (&read.data["ids"], &read.data["unreadCount"]),
            (&json!([ids[0]]), &json!(2)),
            "{read:?}"
        );
        assert!(read.data["readAt"].is_string());
        versions.push(read.data["version"].clone());
    }
    assert_eq!(versions[0], versions[1]);
    assert_eq!(
        all.inbox("18").await["unreadCount"],
        3,
        "another's notification is not touched"
    );

    let (token, gateway) = (all.issuer.token("17"), &all.gateways[1]);
    let one = format!("/notifications/{}", ids[1].as_str().unwrap());
    let first = gateway
        .rest("PATCH", &one, &token, Some(json!({"isRead": true})))
        .await;
    let again = gateway
        .rest("PATCH", &one, &token, Some(json!({"isRead": true})))
        .await;
    assert_eq!((first.status / 100, again.status / 100), (2, 2));
    assert_eq!(
        phone.expect("notification:read").await.data["unreadCount"],
        1
    );
    laptop.expect("notification:read").await;
    let unread = gateway
        .rest("GET", "/notifications?status=unread", &token, None)
        .await
        .expect(200)
        .json();
    assert_eq!(unread["data"].as_array().unwrap().len(), 1, "{unread}");
    assert_eq!(unread["data"][0]["id"], ids[2]);
    let read = gateway
        .rest(
            "POST",
            "/notifications/read",
            &token,
            Some(json!({"all": true})),
        )
        .await;
    assert_eq!(read.status / 100, 2, "{read:?}");
    assert_eq!(
        laptop.expect("notification:read").await.data["unreadCount"],
        0
    );
    assert_eq!(
        phone.expect("notification:read").await.data["unreadCount"],
        0
    );
    let removed = gateway.rest("DELETE", &one, &token, None).await;
    assert_eq!(removed.status / 100, 2, "{removed:?}");
    gateway.rest("GET", &one, &token, None).await.expect(404);
    all.produce("42", payment("evt-2", "42", 2)).await;
    all.produce("42", payment("evt-4", "42", 4)).await;
    phone
        .expect_where("the fourth", |e| {
            e.data["notification"]["data"]["amount"] == 4
        })
        .await;
    assert_eq!(
        all.inbox("17").await["data"].as_array().unwrap().len(),
        3,
        "what was deleted does not come back"
    );
    all.emitter
        .broadcast("marker", json!({}), &[])
        .await
        .unwrap();
    let left = other.all_before("marker").await;
    // Where a partition went to the other gateway meanwhile, what came twice may not have been pushed.
    let expected = ["notification:created", "resync"];
    assert!(
        left.iter().all(|e| expected.contains(&e.event.as_str())),
        "{left:?}"
    );
}

#[tokio::test]
async fn twenty_connections_of_one_user_are_told_the_same_of_what_was_read() {
    let Some(all) = Pipeline::start(2).await else {
        return;
    };
    let mut devices = Vec::new();
    for n in 0..20 {
        devices.push(all.client(n % 2, "17").await);
    }
    for n in 1..=2 {
        all.produce("42", payment(&format!("evt-{n}"), "42", n))
            .await;
    }
    let mut ids = Vec::new();
    for device in &mut devices {
        for seq in 1..=2 {
            let created = device.next_envelope().await;
            assert_eq!(created.data["notification"]["seq"], seq, "{created:?}");
            ids.push(created.data["notification"]["id"].clone());
        }
    }
    devices[7]
        .send_sealed("notification:read", json!({"upTo": 1}))
        .await;
    let mut told = Vec::new();
    for device in &mut devices {
        let read = device.next_envelope().await;
        assert_eq!(
            (read.event.as_str(), read.sealed),
            ("notification:read", true),
            "{read:?}"
        );
        told.push(read.data);
    }
    assert!(told.iter().all(|data| *data == told[0]), "{told:?}");
    assert_eq!(
        (&told[0]["ids"], &told[0]["unreadCount"]),
        (&json!([ids[0]]), &json!(1)),
        "{}",
        told[0]
    );
    assert!(
        told[0]["readAt"].is_string() && told[0]["version"].is_i64(),
        "{}",
        told[0]
    );
}

#[tokio::test]
async fn a_dead_letter_is_put_back_once_its_text_is_there_and_becomes_one_notification() {
    let mut folder = std::path::PathBuf::new();
    let with_folder = |settings: Builder| {
        folder = settings.dir().join("catalogs");
        for locale in ["vi", "en"] {
            std::fs::create_dir_all(folder.join(locale)).expect("a writable folder");
        }
        settings.set("notifications.catalog_dir", folder.display().to_string())
    };
    let Some(all) = Pipeline::with(1, with_folder).await else {
        return;
    };
    let (gateway, mut client) = (&all.gateways[0], all.client(0, "17").await);
    let mut record = payment("evt-1", "42", 5);
    record["type"] = "REFUND".into();
    all.produce("42", record).await;
    all.producer
        .send_raw(&all.topic, "42", b"not json", &[])
        .await
        .unwrap();
    let letters = all
        .producer
        .read(&format!("{}.dlq", all.topic), 2)
        .await
        .unwrap();
    let mut reasons: Vec<String> = letters
        .iter()
        .map(|letter| letter.header("signal-dlq-reason"))
        .collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["no_template", "not_json"]);
    assert_eq!(all.inbox("17").await["data"], json!([]));

    let before =
        gateway.admin("GET", "/status").await.expect(200).json()["catalogsRevision"].clone();
    assert!(before.is_string());
    for (locale, title) in [("vi", "Hoàn tiền"), ("en", "Refund")] {
        let text = format!("REFUND =\n    .title = {title}\n    .content = {{ $orderId }}\n");
        std::fs::write(folder.join(locale).join("refunds.ftl"), text).unwrap();
    }
    until("the new catalogs are read", || async {
        let status = gateway.admin("GET", "/status").await.expect(200).json();
        (status["catalogsRevision"] != before).then_some(())
    })
    .await;

    let replay = async |more: &[&str]| {
        let arguments = [
            &[
                "dlq",
                "replay",
                "--topic",
                &all.topic,
                "--reason",
                "no_template",
            ],
            more,
        ]
        .concat();
        let (status, text) = gateway.run_command(&arguments).await;
        assert!(status.success(), "{text}");
        // Lines of the log, in JSON as well, may come before it and behind it.
        let json = &text[text.find('{').expect("a report")..];
        let values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
        let mut values = values.map_while(Result::ok);
        let report = values.find(|value| value.get("replayed").is_some());
        report.expect("a report in JSON")["replayed"].clone()
    };
    assert_eq!(replay(&["--dry-run"]).await, json!({"no_template": 1}));
    assert_eq!(replay(&[]).await, json!({"no_template": 1}));
    let created = client.next_envelope().await;
    assert_created(&created, "17", 1);
    assert_eq!(created.data["notification"]["title"], "Hoàn tiền");
    assert_eq!(created.data["notification"]["content"], "DH-evt-1");
    assert_eq!(replay(&[]).await, json!({}), "a second run repeats nothing");

    all.produce("42", payment("evt-2", "42", 6)).await;
    assert_created(&client.next_envelope().await, "17", 2);
    for user in ["17", "18"] {
        let inbox = all.inbox(user).await;
        assert_eq!(inbox["data"].as_array().map(Vec::len), Some(2), "{inbox}");
    }
}

/// protocol.md 3.17, 3.18 and 9.4.
#[tokio::test]
async fn sync_closes_the_gap_of_a_time_away() {
    let Some(all) = Pipeline::start(1).await else {
        return;
    };
    let mut client = all.client(0, "17").await;
    all.produce("42", payment("evt-1", "42", 1)).await;
    assert_eq!(
        client.expect("notification:created").await.data["notification"]["seq"],
        1
    );
    client.close().await;
    for n in 2..=6 {
        all.produce("42", payment(&format!("evt-{n}"), "42", n))
            .await;
    }
    until("they are stored", || async {
        (all.inbox("17").await["unreadCount"] == 6).then_some(())
    })
    .await;

    let mut client = all.client(0, "17").await;
    client
        .send("notification:sync", json!({"after": 1, "limit": 3}))
        .await;
    for seq in 2..=4 {
        let missed = client.next_envelope().await;
        assert_eq!(
            (missed.event.as_str(), &missed.data["notification"]["seq"]),
            ("notification:created", &json!(seq))
        );
    }
    let synced = client.next_envelope().await;
    assert_eq!(synced.event, "notification:synced", "{synced:?}");
    assert_eq!(
        (
            &synced.data["count"],
            &synced.data["cursor"],
            &synced.data["more"],
            &synced.data["unreadCount"]
        ),
        (&json!(3), &json!(4), &json!(true), &json!(6)),
        "{synced:?}"
    );
    client.send("notification:sync", json!({"after": 4})).await;
    assert_eq!(client.next_envelope().await.data["notification"]["seq"], 5);
    assert_eq!(client.next_envelope().await.data["notification"]["seq"], 6);
    let synced = client.next_envelope().await;
    assert_eq!(
        (&synced.data["count"], &synced.data["more"]),
        (&json!(2), &json!(false)),
        "{synced:?}"
    );
    for wrong in [
        json!({"after": 6, "limit": 201}),
        json!({"after": 6, "limit": 0}),
        json!({"after": -1}),
        json!({}),
    ] {
        client.send("notification:sync", wrong).await;
        assert_eq!(client.expect_error().await, "Invalid data");
    }
}

#[tokio::test]
async fn a_new_member_of_a_merchant_is_told_of_the_next_record() {
    let Some(all) = Pipeline::start(1).await else {
        return;
    };
    let mut newcomer = all.client(0, "50").await;
    all.produce("42", payment("evt-1", "42", 1)).await;
    until("the first is stored", || async {
        (all.inbox("17").await["unreadCount"] == 1).then_some(())
    })
    .await;
    all.policies.join("50", "Merchant_42").await.unwrap();
    let mut n = 1;
    let got = loop {
        n += 1;
        all.produce("42", payment(&format!("evt-{n}"), "42", n))
            .await;
        until("it is stored", || async {
            (all.inbox("17").await["unreadCount"] == n).then_some(())
        })
        .await;
        if all.inbox("50").await["unreadCount"] != 0 {
            break newcomer.expect("notification:created").await;
        }
        assert!(n < 200, "recipients are cached for one second");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(got.data["notification"]["seq"], 1);
}

/// protocol.md 3.22, 8.2, 9.4 and 9.8.
#[tokio::test]
async fn a_long_notification_is_sent_and_one_that_is_too_long_is_told_and_passed_over() {
    let narrow = |settings: Builder| {
        settings
            .live("limits.message_bytes", 65_536)
            .live("limits.send_queue.bytes", 10_000)
    };
    let Some(all) = Pipeline::with(1, narrow).await else {
        return;
    };
    let mut client = all.client(0, "17").await;
    for (content, data) in [(1, 1), (50_000, 1), (60_000, 10_000), (1, 1)] {
        let record = json!({
            "type": "T", "title": "t", "content": "c".repeat(content), "data": {"text": "d".repeat(data)},
            "recipientType": "users", "recipientIds": ["17"],
        });
        all.produce("42", record).await;
    }
    let want = [
        "notification:created",
        "notification:created",
        "notification:skipped",
        "notification:created",
    ];
    for event in want {
        assert_eq!(client.next_envelope().await.event, event);
    }
    let (mut events, mut cursor) = (Vec::new(), json!(0));
    let mut more = true;
    while more {
        let after = json!({"after": cursor});
        client.send("notification:sync", after).await;
        let synced = loop {
            match client.next_envelope().await {
                synced if synced.event == "notification:synced" => break synced,
                event => events.push(event),
            }
        };
        cursor = synced.data["cursor"].clone();
        more = synced.data["more"] == json!(true);
    }
    assert_eq!(cursor, 4);
    let names: Vec<&str> = events.iter().map(|e| e.event.as_str()).collect();
    assert_eq!(names, want);
    let skipped = &events[2].data;
    assert_eq!(
        (&skipped["seq"], &skipped["unreadCount"]),
        (&json!(3), &json!(4))
    );
    let path = format!("/notifications/{}", skipped["id"].as_str().unwrap());
    let token = all.issuer.token("17");
    let stored = all.gateways[0].rest("GET", &path, &token, None).await;
    assert_eq!(stored.expect(200).json()["seq"], 3);
}

use http::Method;
use serde_json::{Value, json};

use super::fixture::TestGateway;

fn ids(body: &Value) -> Vec<String> {
    body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn an_inbox_is_paged_newest_first_and_shows_only_its_owner() {
    let gateway = TestGateway::new().await;
    let mut mine = Vec::new();
    for number in 0..5 {
        let rows = gateway
            .store(&format!("e{number}"), "PAYMENT_SUCCESS", &["17", "18"])
            .await;
        mine.extend(
            rows.iter()
                .filter(|row| &*row.recipient_id == "17")
                .map(|row| row.id.to_string()),
        );
    }
    mine.reverse();
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let body = gateway
            .send(gateway.as_user(
                "17",
                Method::GET,
                &format!("/notifications?limit=2{cursor}"),
            ))
            .await
            .ok(200);
        assert_eq!(
            (&body["unreadCount"], &body["version"]),
            (&json!(5), &json!(5))
        );
        assert!(
            body["data"]
                .as_array()
                .unwrap()
                .iter()
                .all(|n| n["recipientId"] == "17")
        );
        seen.extend(ids(&body));
        // One that arrives between two pages comes before the first.
        match body["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, mine);
    let empty = gateway
        .send(gateway.as_user("nobody", Method::GET, "/notifications"))
        .await
        .ok(200);
    let epoch = &empty["epoch"];
    assert!(epoch.as_str().is_some_and(|epoch| epoch.len() == 16));
    assert_eq!(
        empty,
        json!({"data": [], "next": null, "epoch": epoch, "unreadCount": 0, "version": 0})
    );
}

/// protocol.md 9.1.
#[tokio::test]
async fn a_notification_has_the_shape_of_the_contract() {
    let gateway = TestGateway::new().await;
    let row = gateway
        .store("e", "PAYMENT_SUCCESS", &["17"])
        .await
        .remove(0);
    let body = gateway
        .send(gateway.as_user("17", Method::GET, &format!("/notifications/{}", row.id)))
        .await
        .ok(200);
    let created_at = gateway
        .send(gateway.as_user("17", Method::GET, "/notifications"))
        .await
        .ok(200)["data"][0]["createdAt"]
        .clone();
    assert_eq!(
        body,
        json!({"id": row.id, "seq": 1, "type": "PAYMENT_SUCCESS", "title": "Tiêu đề", "content": "Nội dung", "data": {"amount": 150_000}, "actorId": null,
               "recipientId": "17", "merchantId": "42", "locale": "vi", "isRead": false, "readAt": null,
               "occurredAt": "2026-11-23T07:59:58.412Z", "createdAt": created_at})
    );
}

#[tokio::test]
async fn filters_by_status_and_type() {
    let gateway = TestGateway::new().await;
    let payment = gateway
        .store("e1", "PAYMENT_SUCCESS", &["17"])
        .await
        .remove(0)
        .id
        .to_string();
    let refund = gateway
        .store("e2", "REFUND", &["17"])
        .await
        .remove(0)
        .id
        .to_string();
    gateway
        .send(
            gateway
                .as_user("17", Method::PATCH, &format!("/notifications/{refund}"))
                .json(&json!({"isRead": true})),
        )
        .await
        .ok(200);
    for (query, expected) in [
        ("status=unread", vec![&payment]),
        ("status=read", vec![&refund]),
        ("type=REFUND", vec![&refund]),
        ("type=refund", vec![]),
        ("status=unread&type=REFUND", vec![]),
    ] {
        let body = gateway
            .send(gateway.as_user("17", Method::GET, &format!("/notifications?{query}")))
            .await
            .ok(200);
        assert_eq!(ids(&body).iter().collect::<Vec<_>>(), expected, "{query}");
        assert_eq!(body["unreadCount"], 1);
    }
}

#[tokio::test]
async fn a_notification_of_another_user_is_answered_like_one_that_does_not_exist() {
    let gateway = TestGateway::new().await;
    let id = gateway
        .store("e", "PAYMENT_SUCCESS", &["18"])
        .await
        .remove(0)
        .id
        .to_string();
    let mut details = Vec::new();
    for id in [id.as_str(), "doesnotexist"] {
        for method in [Method::GET, Method::PATCH, Method::DELETE] {
            let call = gateway.as_user("17", method.clone(), &format!("/notifications/{id}"));
            let call = if method == Method::PATCH {
                call.json(&json!({"isRead": true}))
            } else {
                call
            };
            let mut answer = gateway.send(call).await.problem(404, "not_found");
            answer.body["instance"] = Value::Null;
            details.push(answer.body);
        }
    }
    assert!(
        details.windows(2).all(|pair| pair[0] == pair[1]),
        "{details:?}"
    );
    let body = json!({"ids": [id]});
    let read = gateway
        .send(
            gateway
                .as_user("17", Method::POST, "/notifications/read")
                .json(&body),
        )
        .await
        .ok(200);
    assert_eq!((&read["ids"], &read["total"]), (&json!([]), &json!(0)));
    let theirs = gateway
        .send(gateway.as_user("18", Method::GET, &format!("/notifications/{id}")))
        .await
        .ok(200);
    assert_eq!(theirs["isRead"], false);
    assert!(gateway.published().is_empty());
}

/// protocol.md 3.15.
#[tokio::test]
async fn reading_one_is_pushed_to_every_device_once() {
    let gateway = TestGateway::new().await;
    let id = gateway
        .store("e1", "PAYMENT_SUCCESS", &["17"])
        .await
        .remove(0)
        .id
        .to_string();
    gateway.store("e2", "PAYMENT_SUCCESS", &["17"]).await;
    let path = format!("/notifications/{id}");
    let first = gateway
        .send(
            gateway
                .as_user("17", Method::PATCH, &path)
                .json(&json!({"isRead": true})),
        )
        .await
        .ok(200);
    assert_eq!(first["isRead"], true);
    let pushed = gateway.published();
    assert_eq!(pushed.len(), 1);
    assert_eq!(
        (pushed[0].0.as_str(), pushed[0].1.as_str()),
        ("notification:read", "User(\"17\")")
    );
    assert_eq!(
        pushed[0].2,
        json!({"ids": [id], "total": 1, "readAt": first["readAt"], "unreadCount": 1, "version": 3})
    );

    gateway.clock.advance_ms(60_000);
    let again = gateway
        .send(
            gateway
                .as_user("17", Method::PATCH, &path)
                .json(&json!({"isRead": true})),
        )
        .await
        .ok(200);
    assert_eq!(again, first);
    assert!(gateway.published().is_empty());
    for body in [
        json!({"isRead": false}),
        json!({}),
        json!({"isRead": "true"}),
        json!({"isRead": true, "title": "mine"}),
    ] {
        gateway
            .send(gateway.as_user("17", Method::PATCH, &path).json(&body))
            .await
            .problem(400, "invalid_body");
    }
}

#[tokio::test]
async fn reading_many_by_ids_by_seq_or_all() {
    let gateway = TestGateway::new().await;
    let mut rows = Vec::new();
    for number in 0..6 {
        rows.extend(
            gateway
                .store(&format!("e{number}"), "PAYMENT_SUCCESS", &["17"])
                .await,
        );
    }
    let read = |body: Value| {
        gateway.send(
            gateway
                .as_user("17", Method::POST, "/notifications/read")
                .json(&body),
        )
    };
    let by_ids = read(json!({"ids": [rows[5].id, "unknown"]})).await.ok(200);
    assert_eq!(
        (&by_ids["ids"], &by_ids["unreadCount"]),
        (&json!([rows[5].id]), &json!(5))
    );
    assert_eq!(
        gateway.published(),
        [("notification:read".into(), "User(\"17\")".into(), by_ids)]
    );

    let by_seq = read(json!({"upTo": rows[1].seq})).await.ok(200);
    assert_eq!(
        (&by_seq["total"], &by_seq["unreadCount"]),
        (&json!(2), &json!(3))
    );
    let all = read(json!({"all": true})).await.ok(200);
    assert_eq!((&all["total"], &all["unreadCount"]), (&json!(3), &json!(0)));
    gateway.published();

    let again = read(json!({"all": true})).await.ok(200);
    assert_eq!(
        (&again["ids"], &again["version"]),
        (&json!([]), &all["version"])
    );
    assert!(gateway.published().is_empty());
    let count = gateway
        .send(gateway.as_user("17", Method::GET, "/notifications/unread-count"))
        .await
        .ok(200);
    assert_eq!(count, json!({"unreadCount": 0, "epoch": count["epoch"]}));
    assert!(count["epoch"].is_string());
    let too_many = json!({"ids": vec!["a"; 1001]});
    for body in [
        json!({}),
        json!({"ids": []}),
        json!({"all": false}),
        json!({"all": true, "upTo": 3}),
        json!({"upTo": -1}),
        json!({"upTo": 1.5}),
        json!({"ids": ["a b"]}),
    ] {
        read(body).await.problem(400, "invalid_body");
    }
    assert!(read(too_many).await.status.is_client_error());
}

/// protocol.md 3.16.
#[tokio::test]
async fn a_deleted_notification_is_gone_on_every_device() {
    let gateway = TestGateway::new().await;
    let id = gateway
        .store("e1", "PAYMENT_SUCCESS", &["17"])
        .await
        .remove(0)
        .id
        .to_string();
    gateway.store("e2", "PAYMENT_SUCCESS", &["17"]).await;
    let path = format!("/notifications/{id}");
    let answer = gateway
        .send(gateway.as_user("17", Method::DELETE, &path))
        .await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (204, ""));
    assert_eq!(
        gateway.published(),
        [(
            "notification:deleted".into(),
            "User(\"17\")".into(),
            json!({"ids": [id], "unreadCount": 1, "version": 3})
        )]
    );
    gateway
        .send(gateway.as_user("17", Method::DELETE, &path))
        .await
        .problem(404, "not_found");
    gateway
        .send(gateway.as_user("17", Method::GET, &path))
        .await
        .problem(404, "not_found");
    assert!(gateway.published().is_empty());
}

#[tokio::test]
async fn without_redis_an_inbox_works_and_only_the_push_is_missed() {
    let gateway = TestGateway::new().await;
    let id = gateway
        .store("e1", "PAYMENT_SUCCESS", &["17"])
        .await
        .remove(0)
        .id
        .to_string();
    gateway
        .others
        .publishing_fails
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let call = gateway
        .as_user("17", Method::PATCH, &format!("/notifications/{id}"))
        .json(&json!({"isRead": true}));
    assert_eq!(gateway.send(call).await.ok(200)["isRead"], true);
}

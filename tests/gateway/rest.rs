//! REST: permissions, answers and problems.

use serde_json::{Value, json};
use signal_tests::rest::Answer;
use signal_tests::wait::until;

use crate::{Stage, admin};

const CLIENTS: &str = "/socket/websocket/clients";

/// An RFC 9457 problem with this status.
fn expect_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(
        answer.header("content-type"),
        "application/problem+json",
        "{answer:?}"
    );
    let problem = answer.json();
    assert!(
        problem["type"].is_string() && problem["title"].is_string(),
        "{problem}"
    );
    assert_eq!(problem["status"], status, "{problem}");
}

#[tokio::test]
async fn every_error_is_a_problem_document_404_and_405_included() {
    let stage = Stage::new().await;
    let gateway = &stage.gateway;
    let (user, root) = (stage.issuer.token("17"), admin(&stage.issuer));
    expect_problem(&gateway.rest("GET", "/nowhere", &root, None).await, 404);
    let wrong_method = gateway.rest("PUT", CLIENTS, &root, None).await;
    expect_problem(&wrong_method, 405);
    assert!(
        wrong_method.header("allow").contains("GET"),
        "{wrong_method:?}"
    );
    let anonymous = gateway.rest("GET", CLIENTS, "", None).await;
    expect_problem(&anonymous, 401);
    assert!(
        anonymous.header("www-authenticate").contains("Bearer"),
        "{anonymous:?}"
    );
    expect_problem(
        &gateway.rest("GET", CLIENTS, "not.a.token", None).await,
        401,
    );
    expect_problem(&gateway.rest("GET", CLIENTS, &user, None).await, 403);
    expect_problem(
        &gateway
            .rest("GET", &format!("{CLIENTS}?limit=101"), &root, None)
            .await,
        400,
    );
    expect_problem(
        &gateway
            .rest("GET", &format!("{CLIENTS}?unknown=1"), &root, None)
            .await,
        400,
    );
    expect_problem(
        &gateway
            .rest("GET", &format!("{CLIENTS}/nobody"), &root, None)
            .await,
        404,
    );
    let broadcast = "/socket/websocket/broadcast";
    expect_problem(
        &gateway
            .rest(
                "POST",
                broadcast,
                &root,
                Some(json!({"event": "x", "data": 1, "unknown": 2})),
            )
            .await,
        400,
    );
    expect_problem(
        &gateway
            .rest("POST", broadcast, &root, Some(json!({"data": 1})))
            .await,
        400,
    );
    expect_problem(
        &gateway
            .rest(
                "POST",
                broadcast,
                &root,
                Some(json!({"event": "x", "data": "y".repeat(300_000)})),
            )
            .await,
        413,
    );
    for path in ["/notifications/1", "/notifications/unknown"] {
        expect_problem(&gateway.rest("GET", path, &user, None).await, 404);
    }
}

/// authorization.md 4.2, 4.3 and 4.7.
#[tokio::test]
async fn permissions_are_read_from_the_policy_tables() {
    let stage = Stage::new().await;
    stage
        .policies
        .grant("20", "WebSocketClient.find", "read", "allow")
        .await
        .unwrap();
    stage
        .policies
        .grant("21", "WebSocketClient.*", "execute", "allow")
        .await
        .unwrap();
    stage
        .policies
        .grant("22", "WebSocketClient.*", "read", "allow")
        .await
        .unwrap();
    stage
        .policies
        .grant("22", "WebSocketClient.find", "read", "deny")
        .await
        .unwrap();
    let client = stage.client("17").await;
    let one = format!("{CLIENTS}/{}", client.id());
    let message = Some(json!({"event": "x", "data": null}));
    let send = format!("{one}/messages");
    for (user, method, path, body, status) in [
        ("20", "GET", CLIENTS, None, 200),
        ("20", "GET", one.as_str(), None, 403),
        ("20", "POST", send.as_str(), message.clone(), 403),
        ("21", "GET", CLIENTS, None, 403),
        ("21", "POST", send.as_str(), message.clone(), 202),
        ("21", "DELETE", one.as_str(), None, 403),
        ("22", "GET", CLIENTS, None, 403),
        ("22", "GET", one.as_str(), None, 200),
    ] {
        let answer = stage
            .gateway
            .rest(method, path, &stage.issuer.token(user), body)
            .await;
        assert_eq!(answer.status, status, "{user} {method} {path}: {answer:?}");
    }
}

#[tokio::test]
async fn lists_of_clients_come_in_pages() {
    let stage = Stage::new().await;
    let mut clients = Vec::new();
    for n in 0..7 {
        clients.push(stage.client(&format!("user-{n}")).await);
    }
    let (root, mut seen, mut cursor) = (admin(&stage.issuer), Vec::new(), String::new());
    loop {
        let page = stage
            .gateway
            .rest("GET", &format!("{CLIENTS}?limit=3{cursor}"), &root, None)
            .await
            .expect(200)
            .json();
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 3);
        seen.extend(
            data.iter()
                .map(|client| client["id"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    seen.sort();
    let mut want: Vec<String> = clients
        .iter()
        .map(|client| client.id().to_owned())
        .collect();
    want.sort();
    assert_eq!(seen, want);
}

#[tokio::test]
async fn an_empty_inbox_is_empty_and_personal_data_is_not_stored_on_the_way() {
    let stage = Stage::new().await;
    let token = stage.issuer.token("17");
    let list = stage
        .gateway
        .rest("GET", "/notifications", &token, None)
        .await
        .expect(200);
    assert_eq!(
        (&list.json()["data"], &list.json()["unreadCount"]),
        (&json!([]), &json!(0)),
        "{list:?}"
    );
    assert!(
        list.header("cache-control").contains("no-store"),
        "{list:?}"
    );
    assert_eq!(list.header("x-content-type-options"), "nosniff", "{list:?}");
    let count = stage
        .gateway
        .rest("GET", "/notifications/unread-count", &token, None)
        .await
        .expect(200)
        .json();
    assert_eq!(count["unreadCount"], 0);
    expect_problem(
        &stage.gateway.rest("GET", "/notifications", "", None).await,
        401,
    );
    for body in [
        json!({}),
        json!({"ids": [], "all": true}),
        json!({"all": false}),
        json!({"unknown": 1}),
        json!({"upTo": "x"}),
    ] {
        let answer = stage
            .gateway
            .rest("POST", "/notifications/read", &token, Some(body.clone()))
            .await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
    }
}

#[tokio::test]
async fn the_documents_are_served_to_anyone() {
    let stage = Stage::new().await;
    let openapi = stage
        .gateway
        .rest("GET", "/openapi.json", "", None)
        .await
        .expect(200)
        .json();
    assert!(
        openapi["openapi"].as_str().unwrap().starts_with("3.1"),
        "{}",
        openapi["openapi"]
    );
    for path in [
        CLIENTS,
        "/notifications",
        "/socket/websocket/broadcast",
        "/notifications/read",
    ] {
        assert!(openapi["paths"].get(path).is_some(), "{path} is missing");
    }
    let asyncapi = stage
        .gateway
        .rest("GET", "/asyncapi.json", "", None)
        .await
        .expect(200)
        .json();
    assert!(
        asyncapi["asyncapi"].as_str().unwrap().starts_with("3."),
        "{}",
        asyncapi["asyncapi"]
    );
}

#[tokio::test]
async fn a_listed_origin_may_read_over_cors_and_another_may_not() {
    let stage =
        Stage::with(|settings| settings.live("allowed_origins", vec!["https://shop.example.com"]))
            .await;
    let url = format!("http://{}/notifications", stage.gateway.address());
    let ask = async |origin: &str| {
        let request = signal_tests::rest::request("GET", &url, &stage.issuer.token("17"), None)
            .header("origin", origin);
        signal_tests::rest::ask(request)
            .await
            .header("access-control-allow-origin")
            .to_owned()
    };
    assert_eq!(
        ask("https://shop.example.com").await,
        "https://shop.example.com"
    );
    assert_eq!(ask("https://evil.example").await, "");
}

/// authorization.md 7.1, 7.2 and 7.3.
#[tokio::test]
async fn basic_users_manage_clients_have_no_inbox_and_are_slowed_down_when_they_guess() {
    // "correct horse", hashed with small parameters.
    let hash = signal_tests::rest::argon2id("correct horse");
    let users = json!([{"name": "ops", "hash": hash, "subject": "ops"}]).to_string();
    let stage = Stage::with(|settings| {
        let file = settings.dir().join("users.json");
        std::fs::write(&file, users).unwrap();
        settings
            .set("auth.basic_users_file", file.display().to_string())
            .set("auth.basic_max_failures_per_minute", 3)
    })
    .await;
    stage
        .policies
        .grant("ops", "WebSocketClient.find", "read", "allow")
        .await
        .unwrap();
    let ask = async |path: &str, password: &str| {
        let url = format!("http://{}{path}", stage.gateway.address());
        signal_tests::rest::ask(
            signal_tests::rest::http()
                .get(url)
                .basic_auth("ops", Some(password)),
        )
        .await
    };
    ask(CLIENTS, "correct horse").await.expect(200);
    expect_problem(&ask("/notifications", "correct horse").await, 403);
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(ask(CLIENTS, "wrong").await.status);
    }
    assert_eq!(statuses[0], 401, "{statuses:?}");
    assert_eq!(statuses[5], 429, "{statuses:?}");
}

#[tokio::test]
async fn the_admin_listener_answers_probes_to_anyone_and_the_rest_to_the_token() {
    let stage = Stage::new().await;
    let gateway = &stage.gateway;
    for path in ["/livez", "/readyz", "/readyz?verbose", "/metrics"] {
        gateway.admin_with("GET", path, "", None).await.expect(200);
    }
    for token in ["", "wrong"] {
        for (method, path) in [("GET", "/status"), ("POST", "/drain"), ("POST", "/shed")] {
            let answer = gateway.admin_with(method, path, token, None).await;
            assert!(
                [401, 403].contains(&answer.status),
                "{path} with {token:?}: {answer:?}"
            );
        }
    }
    let status = gateway.admin("GET", "/status").await.expect(200).json();
    assert_eq!(
        (&status["ready"], &status["instance"]),
        (&Value::Bool(true), &json!("gateway-0")),
        "{status}"
    );
    let metrics = gateway.admin("GET", "/metrics").await.text;
    assert!(metrics.contains("signal_build_info{"), "{metrics}");
    assert!(
        !metrics.contains("user_id") && !metrics.contains("room="),
        "labels stay few"
    );
    assert_eq!(
        gateway.rest("GET", "/metrics", "", None).await.status,
        404,
        "not on the public listener"
    );
    assert_eq!(gateway.rest("GET", "/status", "", None).await.status, 404);
}

/// protocol.md 7.15.
#[tokio::test]
async fn shedding_closes_so_many_with_4009() {
    let stage = Stage::new().await;
    let mut clients = Vec::new();
    for n in 0..4 {
        clients.push(stage.client(&format!("user-{n}")).await);
    }
    stage
        .gateway
        .admin_with(
            "POST",
            "/shed",
            signal_tests::gateway::ADMIN_TOKEN,
            Some(json!({"count": 1})),
        )
        .await
        .expect(200);
    let closing = clients
        .iter_mut()
        .map(|client| Box::pin(client.expect_closed()));
    let (first, index, _) = futures_util::future::select_all(closing).await;
    assert_eq!(first, (4009, "Rebalanced".into()));
    drop(clients.remove(index));
    // The gateway counts a connection until it has seen the end of its socket.
    until("three are counted", || async {
        let status = stage.gateway.admin("GET", "/status").await.json();
        (status["connections"]["total"] == 3).then_some(())
    })
    .await;
    for client in &mut clients {
        stage.send_to_client(client.id(), "still here").await;
        client.expect("still here").await;
    }
}

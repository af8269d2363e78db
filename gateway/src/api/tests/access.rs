use http::Method;
use serde_json::{Value, json};

use super::fixture::{Call, PASSWORD, TestGateway};
use crate::bus::{Answers, Reply};

/// Every guarded route of client management, with a valid body and the status that `root` gets while nobody is connected.
fn guarded() -> Vec<(Method, &'static str, Option<Value>, u16)> {
    let message = || Some(json!({"event": "order:updated", "data": {"a": 1}}));
    let rooms = || Some(json!({"rooms": ["lobby"]}));
    vec![
        (Method::GET, "/socket/websocket/clients", None, 200),
        (Method::GET, "/socket/websocket/clients/abc", None, 404),
        (Method::DELETE, "/socket/websocket/clients/abc", None, 404),
        (
            Method::DELETE,
            "/socket/websocket/users/17/clients",
            None,
            200,
        ),
        (
            Method::POST,
            "/socket/websocket/revocations",
            Some(json!({"userId": "99"})),
            200,
        ),
        (
            Method::POST,
            "/socket/websocket/clients/abc/messages",
            message(),
            404,
        ),
        (
            Method::POST,
            "/socket/websocket/users/17/messages",
            message(),
            202,
        ),
        (
            Method::POST,
            "/socket/websocket/rooms/lobby/messages",
            message(),
            202,
        ),
        (Method::POST, "/socket/websocket/broadcast", message(), 202),
        (
            Method::POST,
            "/socket/websocket/clients/abc/rooms",
            rooms(),
            404,
        ),
        (
            Method::DELETE,
            "/socket/websocket/clients/abc/rooms",
            rooms(),
            404,
        ),
    ]
}

fn own() -> Vec<(Method, &'static str, Option<Value>, u16)> {
    vec![
        (Method::GET, "/notifications", None, 200),
        (Method::GET, "/notifications/unread-count", None, 200),
        (Method::GET, "/notifications/abc", None, 404),
        (
            Method::PATCH,
            "/notifications/abc",
            Some(json!({"isRead": true})),
            404,
        ),
        (Method::DELETE, "/notifications/abc", None, 404),
        (
            Method::POST,
            "/notifications/read",
            Some(json!({"all": true})),
            200,
        ),
    ]
}

fn with_body(call: Call, body: Option<&Value>) -> Call {
    match body {
        Some(body) => call.json(body),
        None => call,
    }
}

#[tokio::test]
async fn every_route_checks_credentials_first() {
    let gateway = TestGateway::new().await;
    for (method, path, ..) in guarded().into_iter().chain(own()) {
        let answer = gateway
            .send(Call::new(method.clone(), path).body("{"))
            .await
            .problem(401, "credentials_missing");
        assert_eq!(
            answer.all("www-authenticate"),
            [
                "Bearer realm=\"signal\"",
                "Basic realm=\"signal\", charset=\"UTF-8\""
            ],
            "{path}"
        );
        let answer = gateway
            .send(Call::new(method, path).header("authorization", "Bearer nonsense"))
            .await;
        let answer = answer.problem(401, "credentials_refused");
        assert_eq!(
            answer.all("www-authenticate"),
            ["Bearer realm=\"signal\", error=\"invalid_token\""],
            "{path}"
        );
    }
}

/// authorization.md 4.7.
#[tokio::test]
async fn client_management_needs_its_permission_and_takes_basic_users() {
    let gateway = TestGateway::new().await;
    for (method, path, body, status) in guarded() {
        let denied = gateway
            .send(gateway.as_user("17", method.clone(), path).body("{"))
            .await
            .problem(403, "forbidden");
        assert_eq!(
            denied.header("www-authenticate"),
            "Bearer realm=\"signal\", error=\"insufficient_scope\""
        );
        for call in [
            gateway.call(method.clone(), path),
            Call::new(method.clone(), path).basic("ops", PASSWORD),
        ] {
            let answer = gateway.send(with_body(call, body.as_ref())).await;
            assert_eq!(
                answer.status.as_u16(),
                status,
                "{method} {path}: {}",
                answer.text
            );
        }
    }
}

#[tokio::test]
async fn a_permission_allows_only_its_own_routes() {
    let gateway = TestGateway::new().await;
    gateway
        .send(gateway.as_user("finder", Method::GET, "/socket/websocket/clients"))
        .await
        .ok(200);
    for (method, path, body, _) in guarded().into_iter().skip(1) {
        gateway
            .send(with_body(
                gateway.as_user("finder", method, path),
                body.as_ref(),
            ))
            .await
            .problem(403, "forbidden");
    }
}

/// authorization.md 7.2.
#[tokio::test]
async fn inboxes_are_for_tokens_and_basic_users_have_none() {
    let gateway = TestGateway::new().await;
    for (method, path, body, status) in own() {
        let answer = gateway
            .send(with_body(
                gateway.as_user("17", method.clone(), path),
                body.as_ref(),
            ))
            .await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path}: {}",
            answer.text
        );
        gateway
            .send(with_body(
                Call::new(method, path).basic("ops", PASSWORD),
                body.as_ref(),
            ))
            .await
            .problem(403, "no_inbox");
    }
}

#[tokio::test]
async fn expired_revoked_and_foreign_tokens_are_refused() {
    let gateway = TestGateway::new().await;
    let now = super::fixture::NOW;
    for changes in [
        json!({"exp": now - 60}),
        json!({"aud": "billing"}),
        json!({"iss": "https://evil.example.com/"}),
        json!({"nbf": now + 300}),
    ] {
        let token = gateway.token_with("17", changes.clone());
        let call = Call::new(Method::GET, "/notifications")
            .header("authorization", &format!("Bearer {token}"));
        assert_eq!(gateway.send(call).await.status, 401, "{changes}");
    }
    gateway
        .send(gateway.as_user("17", Method::GET, "/notifications"))
        .await
        .ok(200);
    gateway
        .send(
            gateway
                .call(Method::POST, "/socket/websocket/revocations")
                .json(&json!({"userId": "17"})),
        )
        .await
        .ok(200);
    gateway
        .send(gateway.as_user("17", Method::GET, "/notifications"))
        .await
        .problem(401, "credentials_refused");
    gateway
        .send(gateway.as_user("18", Method::GET, "/notifications"))
        .await
        .ok(200);
}

/// authorization.md 1.12.
#[tokio::test]
async fn unavailable_keys_are_a_503() {
    let gateway = TestGateway::new().await;
    let call = Call::new(Method::GET, "/notifications")
        .header("authorization", &gateway.bearer_of_absent_issuer());
    let answer = gateway.send(call).await.problem(503, "keys_unavailable");
    assert_eq!(answer.header("retry-after"), "5");
    assert!(!answer.text.contains("127.0.0.1"), "{}", answer.text);
}

#[tokio::test]
async fn contradicting_or_unusable_credentials_are_refused() {
    let gateway = TestGateway::new().await;
    let call = gateway
        .call(Method::GET, "/socket/websocket/clients")
        .basic("ops", PASSWORD);
    gateway.send(call).await.problem(400, "invalid_request");
    for text in [
        "Bearer",
        "Bearer ",
        "Digest abc",
        "Basic",
        "Basic !!",
        "bearer a b c",
    ] {
        let answer = gateway
            .send(Call::new(Method::GET, "/notifications").header("authorization", text))
            .await;
        assert_eq!(answer.status, 401, "{text}");
        assert!(!answer.all("www-authenticate").is_empty(), "{text}");
    }
    let in_query = format!(
        "/notifications?access_token={}",
        gateway.token_with("17", json!({}))
    );
    gateway
        .send(Call::new(Method::GET, &in_query))
        .await
        .problem(401, "credentials_missing");
}

/// authorization.md 7.3.
#[tokio::test]
async fn failed_basic_attempts_are_limited_by_address() {
    let gateway = TestGateway::new().await;
    let attempt = |peer: [u8; 4], forwarded: &'static str, password: &'static str| {
        let call = Call::new(Method::GET, "/socket/websocket/clients")
            .basic("ops", password)
            .peer(peer);
        gateway.send(if forwarded.is_empty() {
            call
        } else {
            call.header("x-forwarded-for", forwarded)
        })
    };
    let mut slowed = None;
    for _ in 0..30 {
        let answer = attempt([192, 0, 2, 1], "198.51.100.1", "wrong").await;
        if answer.status == 429 {
            slowed = Some(answer.problem(429, "too_many_attempts"));
            break;
        }
        answer.problem(401, "credentials_refused");
    }
    let slowed = slowed.expect("the number of failures is limited");
    assert!(slowed.header("retry-after").parse::<u64>().unwrap() >= 1);
    // X-Forwarded-For counts only when a trusted proxy sent it.
    assert_eq!(
        attempt([192, 0, 2, 1], "203.0.113.77", PASSWORD)
            .await
            .status,
        429
    );
    assert_eq!(
        attempt([10, 0, 0, 1], "203.0.113.77", PASSWORD)
            .await
            .status,
        200
    );
    assert_eq!(
        attempt([10, 0, 0, 1], "192.0.2.1", PASSWORD).await.status,
        429
    );
}

#[tokio::test]
async fn pages_on_the_list_may_read_answers_and_others_may_not() {
    let gateway = TestGateway::new().await;
    let preflight = |origin: &str| {
        let call = Call::new(Method::OPTIONS, "/notifications")
            .header("origin", origin)
            .header("host", "gw.example.com");
        gateway.send(call.header("access-control-request-method", "PATCH"))
    };
    let answer = preflight("https://shop.example.com").await;
    assert_eq!(
        (
            answer.status.as_u16(),
            answer.header("access-control-allow-origin")
        ),
        (204, "https://shop.example.com")
    );
    assert!(
        answer
            .header("access-control-allow-methods")
            .contains("PATCH")
    );
    for name in ["authorization", "traceparent", "tracestate", "baggage"] {
        assert!(
            answer.header("access-control-allow-headers").contains(name),
            "{name}"
        );
    }
    assert_eq!(answer.header("access-control-allow-credentials"), "");
    assert_eq!(answer.header("vary"), "origin");
    let refused = preflight("https://evil.example.com")
        .await
        .problem(403, "origin_refused");
    assert_eq!(refused.header("access-control-allow-origin"), "");

    let read = |origin: &str| {
        gateway.send(
            gateway
                .as_user("17", Method::GET, "/notifications")
                .header("origin", origin),
        )
    };
    assert_eq!(
        read("https://shop.example.com")
            .await
            .header("access-control-allow-origin"),
        "https://shop.example.com"
    );
    assert_eq!(read("null").await.header("access-control-allow-origin"), "");
    // The page can read problems too, so that it can show why a request failed.
    let call =
        Call::new(Method::GET, "/notifications").header("origin", "https://shop.example.com");
    assert_eq!(
        gateway
            .send(call)
            .await
            .header("access-control-allow-origin"),
        "https://shop.example.com"
    );

    let mut live = (**gateway.live.borrow()).clone();
    live.allowed_origins = vec!["https://*.example.com".into()];
    gateway.live.send_replace(live.into());
    assert_eq!(
        read("https://evil.example.com")
            .await
            .header("access-control-allow-origin"),
        "https://evil.example.com"
    );
}

#[tokio::test]
async fn a_reply_of_the_wrong_kind_is_ignored() {
    let gateway = TestGateway::new().await;
    gateway.others.answer(|_| Answers {
        replies: vec![("gateway-1".into(), Reply::Rooms { rooms: None })],
        missing: vec![],
    });
    for (method, path, body, status) in guarded() {
        let answer = gateway
            .send(with_body(gateway.call(method.clone(), path), body.as_ref()))
            .await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path}: {}",
            answer.text
        );
    }
}

use http::{Method, StatusCode};
use serde_json::json;

use super::fixture::{Call, TestGateway};

const SEND: &str = "/socket/websocket/users/17/messages";

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let gateway = TestGateway::new().await;
    for path in [
        "/",
        "/notification",
        "/notifications/",
        "/socket/websocket",
        "/stream/x",
        "/../etc/passwd",
        "/%00",
    ] {
        gateway
            .send(Call::new(Method::GET, path))
            .await
            .problem(404, "no_route");
    }
    let answer = gateway
        .send(Call::new(Method::PUT, "/notifications/abc"))
        .await
        .problem(405, "method_not_allowed");
    let mut allow: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
    allow.sort_unstable();
    assert_eq!(allow, ["DELETE", "GET", "HEAD", "PATCH"]);
    gateway
        .send(Call::new(Method::from_bytes(b"GROW").unwrap(), "/docs"))
        .await
        .problem(405, "method_not_allowed");
    gateway
        .send(Call::new(Method::OPTIONS, "/docs"))
        .await
        .problem(405, "method_not_allowed");
}

#[tokio::test]
async fn bodies_are_bounded_with_and_without_a_content_length() {
    let gateway = TestGateway::new().await;
    let big = json!({"event": "e", "data": "x".repeat(9000)}).to_string();
    let call = |call: Call| call.header("content-type", "application/json");
    let with_length = call(gateway.call(Method::POST, SEND))
        .header("content-length", &big.len().to_string())
        .body(big.clone());
    gateway
        .send(with_length)
        .await
        .problem(413, "body_too_large");
    let chunks: Vec<Result<_, std::io::Error>> = big
        .as_bytes()
        .chunks(100)
        .map(|chunk| Ok(chunk.to_vec()))
        .collect();
    let without_length = call(gateway.call(Method::POST, SEND)).body(
        axum::body::Body::from_stream(futures_util::stream::iter(chunks)),
    );
    gateway
        .send(without_length)
        .await
        .problem(413, "body_too_large");
    let wrong_length = call(gateway.call(Method::POST, SEND))
        .header("content-length", "99999999999")
        .body("{}");
    assert!(gateway.send(wrong_length).await.status.is_client_error());
    assert!(gateway.others.published.lock().is_empty());
}

#[tokio::test]
async fn a_body_that_is_not_valid_json_gets_the_reason() {
    let gateway = TestGateway::new().await;
    let post = |media: Option<&'static str>, body: &'static [u8]| {
        let call = gateway.call(Method::POST, SEND).body(body);
        gateway.send(if let Some(media) = media {
            call.header("content-type", media)
        } else {
            call
        })
    };
    for media in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data"),
        Some("application/json; charset=utf-16"),
    ] {
        post(media, br#"{"event":"e"}"#)
            .await
            .problem(415, "unsupported_media_type");
    }
    for body in [
        &b""[..],
        b"{",
        b"{\"event\":\"e\"} x",
        b"{'event':1}",
        b"{\"event\":\"\xff\"}",
        b"\x00\x01",
        b"{\"event\":\"e\",}",
        b"NaN",
    ] {
        let answer = post(Some("application/json"), body).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        answer.problem(400, "invalid_json");
    }
    for body in [
        &b"[]"[..],
        b"[\"e\",7]",
        b"null",
        b"7",
        b"{}",
        b"{\"event\":7}",
        b"{\"event\":\"\"}",
        b"{\"event\":\"e\",\"event\":\"f\"}",
        b"{\"event\":\"a\\nb\"}",
    ] {
        post(Some("application/json"), body)
            .await
            .problem(400, "invalid_body");
    }
    let answer = post(Some("application/json"), br#"{"event":"e","colour":1}"#)
        .await
        .problem(400, "invalid_body");
    assert!(
        answer.body["detail"].as_str().unwrap().contains("colour"),
        "{}",
        answer.text
    );
    assert!(gateway.others.published.lock().is_empty());
}

#[tokio::test]
async fn queries_are_checked_and_unknown_parameters_refused() {
    let gateway = TestGateway::new().await;
    for query in [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=ten",
        "limit=",
        "limit=99999999999999999999",
        "limit=5&limit=6",
        "status=seen",
        "status=",
        "type=",
        "cursor=x",
        "cursor=",
        "page=2",
        "STATUS=read",
        "type=%ff",
        "type=%ed%a0%80",
    ] {
        let answer = gateway
            .send(gateway.as_user("17", Method::GET, &format!("/notifications?{query}")))
            .await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text);
        answer.problem(400, "invalid_query");
    }
    for query in [
        "limit=1",
        "limit=100",
        "status=unread&type=PAYMENT_SUCCESS",
        "",
    ] {
        gateway
            .send(gateway.as_user("17", Method::GET, &format!("/notifications?{query}")))
            .await
            .ok(200);
    }
    for path in [
        "/socket/websocket/clients?limit=0",
        "/socket/websocket/clients?user=17",
        "/socket/websocket/clients?room=ws:x",
        "/socket/websocket/clients/abc?x=1",
        "/openapi.json?x=1",
    ] {
        gateway
            .send(gateway.call(Method::GET, path))
            .await
            .problem(400, "invalid_query");
    }
    // An unknown filter must not close all connections.
    let path = "/socket/websocket/users/17/clients?room=lobby";
    gateway
        .send(gateway.call(Method::DELETE, path))
        .await
        .problem(400, "invalid_query");
    assert!(gateway.others.asked.lock().is_empty());
}

#[tokio::test]
async fn paths_accept_only_ids_and_names() {
    let gateway = TestGateway::new().await;
    let too_long = "x".repeat(65);
    for id in [
        &too_long,
        "a.b",
        "%20",
        "..%2f..%2fetc",
        "%ff",
        "%C3%A9",
        "a%00",
    ] {
        for path in [
            format!("/socket/websocket/clients/{id}"),
            format!("/notifications/{id}"),
        ] {
            gateway
                .send(gateway.call(Method::GET, &path))
                .await
                .problem(400, "invalid_path");
        }
    }
    let long = "r".repeat(257);
    for name in ["ws:broadcast", "%00", "a%0Ab", &long] {
        let path = format!("/socket/websocket/rooms/{name}/messages");
        gateway
            .send(
                gateway
                    .call(Method::POST, &path)
                    .json(&json!({"event": "e"})),
            )
            .await
            .problem(400, "invalid_path");
    }
    for name in [
        "merchant:42",
        "ph%C3%B2ng",
        "a%2Fb",
        "%F0%9F%91%8B",
        &long[..256],
    ] {
        let path = format!("/socket/websocket/rooms/{name}/messages");
        gateway
            .send(
                gateway
                    .call(Method::POST, &path)
                    .json(&json!({"event": "e"})),
            )
            .await
            .ok(202);
    }
}

#[tokio::test]
async fn a_value_that_no_database_stores_is_a_client_error() {
    let gateway = TestGateway::new().await;
    gateway
        .send(gateway.as_user("17", Method::GET, "/notifications?type=a%00b"))
        .await
        .problem(400, "invalid_query");
    let token = gateway.token_with("17\u{0}", json!({}));
    let call = Call::new(Method::GET, "/notifications")
        .header("authorization", &format!("Bearer {token}"));
    assert!(gateway.send(call).await.status.is_client_error());
}

#[tokio::test]
async fn a_panic_is_a_500_without_details_and_the_next_request_is_served() {
    let gateway = TestGateway::new().await;
    gateway.others.answer(|_| panic!("the secret is 10.1.2.3"));
    let path = "/socket/websocket/clients/abc";
    gateway
        .send(gateway.call(Method::GET, path))
        .await
        .problem(500, "internal");
    gateway.others.answer(|_| crate::bus::Answers::default());
    gateway
        .send(gateway.call(Method::GET, path))
        .await
        .problem(404, "not_found");
}

#[tokio::test]
async fn request_ids_are_echoed_and_requests_are_counted_by_route_template() {
    let gateway = TestGateway::new().await;
    let answer = gateway
        .send(Call::new(Method::GET, "/notifications/abc").header("x-request-id", "trace-7"))
        .await;
    assert_eq!(
        answer.problem(401, "credentials_missing").body["instance"],
        "trace-7"
    );
    gateway
        .send(Call::new(Method::GET, "/no/such/route"))
        .await
        .problem(404, "no_route");
    gateway
        .send(Call::new(
            Method::from_bytes(b"EVIL").unwrap(),
            "/no/such/route",
        ))
        .await
        .problem(404, "no_route");
    let text = gateway.metrics.render();
    for line in [
        r#"signal_http_requests_total{route="/notifications/{id}",method="GET",status="401"} 1"#,
        r#"signal_http_requests_total{route="unmatched",method="GET",status="404"} 1"#,
        r#"signal_http_requests_total{route="unmatched",method="other",status="404"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is missing from:\n{text}");
    }
    assert!(!text.contains("EVIL") && !text.contains("/no/such"));
}

#[tokio::test]
async fn a_draining_gateway_still_serves_and_asks_callers_to_reconnect() {
    let gateway = TestGateway::new().await;
    gateway.lifecycle.request_drain();
    let answer = gateway
        .send(gateway.as_user("17", Method::GET, "/notifications"))
        .await;
    assert_eq!(
        (answer.status, answer.header("connection")),
        (StatusCode::OK, "close")
    );
}

use http::Method;
use serde_json::json;

use super::fixture::{ADMIN_TOKEN, Answer, Call, TestGateway};

async fn ask(gateway: &TestGateway, method: Method, path: &str) -> Answer {
    Call::new(method, path).send(&gateway.admin).await
}

fn with_token(method: Method, path: &str) -> Call {
    Call::new(method, path).header("authorization", &format!("Bearer {ADMIN_TOKEN}"))
}

#[tokio::test]
async fn a_running_process_is_live_whatever_is_unready() {
    let gateway = TestGateway::new().await;
    gateway
        .lifecycle
        .set("database", Some("connection refused".into()));
    gateway.lifecycle.request_drain();
    ask(&gateway, Method::GET, "/livez").await.ok(200);
    gateway.lifecycle.set_stuck(true);
    let answer = ask(&gateway, Method::GET, "/livez").await;
    answer.problem(503, "not_ready");
    gateway.lifecycle.set_stuck(false);
    ask(&gateway, Method::GET, "/livez").await.ok(200);
}

#[tokio::test]
async fn the_process_is_ready_when_every_part_is() {
    let gateway = TestGateway::new().await;
    assert_eq!(
        ask(&gateway, Method::GET, "/readyz").await.ok(200),
        json!({"ready": true})
    );
    gateway
        .lifecycle
        .set("keys", Some("main: not fetched".into()));
    gateway.lifecycle.set("redis", Some("stalled".into()));
    let answer = ask(&gateway, Method::GET, "/readyz")
        .await
        .problem(503, "not_ready");
    assert!(answer.body.get("parts").is_none());
    for path in ["/readyz?verbose", "/readyz?verbose=", "/readyz?verbose=1"] {
        let answer = ask(&gateway, Method::GET, path)
            .await
            .problem(503, "not_ready");
        assert_eq!(
            answer.body["parts"],
            json!([{"part": "keys", "reason": "main: not fetched"}, {"part": "redis", "reason": "stalled"}])
        );
    }
    ask(&gateway, Method::GET, "/readyz?detail")
        .await
        .problem(400, "invalid_query");
    gateway.lifecycle.set("keys", None);
    gateway.lifecycle.set("redis", None);
    assert_eq!(
        ask(&gateway, Method::GET, "/readyz?verbose").await.ok(200)["parts"],
        json!([])
    );
}

#[tokio::test]
async fn a_pipeline_that_stands_still_is_named_and_fails_no_readiness() {
    let gateway = TestGateway::new().await;
    let why = "t/0 has stood at offset 5 for 31 s with 2 records left: no codec";
    gateway.lifecycle.set_notice("pipeline", Some(why.into()));
    assert_eq!(
        ask(&gateway, Method::GET, "/readyz?verbose").await.ok(200),
        json!({"ready": true, "parts": [{"part": "pipeline", "reason": why}]})
    );
    assert_eq!(
        ask(&gateway, Method::GET, "/readyz").await.ok(200),
        json!({"ready": true})
    );
    gateway.lifecycle.set("redis", Some("stalled".into()));
    let answer = ask(&gateway, Method::GET, "/readyz?verbose")
        .await
        .problem(503, "not_ready");
    assert_eq!(answer.body["detail"], "not ready: redis");
    assert_eq!(answer.body["parts"][1]["part"], "pipeline");
    gateway.lifecycle.set("redis", None);
    gateway.lifecycle.set_notice("pipeline", None);
    assert_eq!(
        ask(&gateway, Method::GET, "/readyz?verbose").await.ok(200)["parts"],
        json!([])
    );
}

#[tokio::test]
async fn metrics_are_open_metrics_text() {
    let gateway = TestGateway::new().await;
    let answer = ask(&gateway, Method::GET, "/metrics").await;
    assert_eq!(
        answer.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(
        answer.text.contains("signal_build_info") && answer.text.ends_with("# EOF\n"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn status_drain_and_shed_need_the_token() {
    let gateway = TestGateway::new().await;
    for (method, path) in [
        (Method::GET, "/status"),
        (Method::POST, "/drain"),
        (Method::DELETE, "/drain"),
        (Method::POST, "/shed"),
    ] {
        let answer = ask(&gateway, method.clone(), path)
            .await
            .problem(401, "credentials_missing");
        assert_eq!(
            answer.header("www-authenticate"),
            "Bearer realm=\"signal-admin\""
        );
        for wrong in [
            "Bearer wrong",
            "Bearer ",
            "Bearer",
            "Basic YTpi",
            &format!("Bearer {ADMIN_TOKEN}x"),
            &format!("Bearer {}", &ADMIN_TOKEN[..5]),
        ] {
            let call = Call::new(method.clone(), path).header("authorization", wrong);
            assert_eq!(call.send(&gateway.admin).await.status, 401, "{wrong}");
        }
    }
    assert!(!gateway.lifecycle.is_draining());
    ask(&gateway, Method::PUT, "/drain")
        .await
        .problem(405, "method_not_allowed");
    ask(&gateway, Method::GET, "/notifications")
        .await
        .problem(404, "no_route");
}

#[tokio::test]
async fn a_changed_token_is_used_from_the_next_request_and_without_one_access_is_refused() {
    let gateway = TestGateway::new().await;
    let file = gateway.folder.path().join("admin-token");
    with_token(Method::GET, "/status")
        .send(&gateway.admin)
        .await
        .ok(200);
    std::fs::write(&file, "another\n").unwrap();
    with_token(Method::GET, "/status")
        .send(&gateway.admin)
        .await
        .problem(401, "credentials_refused");
    let call = Call::new(Method::GET, "/status").header("authorization", "Bearer another");
    call.send(&gateway.admin).await.ok(200);
    std::fs::write(&file, " \n").unwrap();
    let call = Call::new(Method::GET, "/status").header("authorization", "Bearer ");
    call.send(&gateway.admin)
        .await
        .problem(403, "admin_disabled");
    std::fs::remove_file(&file).unwrap();
    with_token(Method::GET, "/status")
        .send(&gateway.admin)
        .await
        .problem(403, "admin_disabled");
}

#[tokio::test]
async fn status_shows_the_state_of_every_part() {
    let gateway = TestGateway::new().await;
    gateway.lifecycle.set("redis", Some("stalled".into()));
    let body = with_token(Method::GET, "/status")
        .send(&gateway.admin)
        .await
        .ok(200);
    assert_eq!(body["instance"], "gateway-0");
    assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&body["ready"], &body["unready"]),
        (
            &json!(false),
            &json!([{"part": "redis", "reason": "stalled"}])
        )
    );
    assert_eq!(
        body["connections"],
        json!({"total": 0, "authenticated": 0, "encrypted": 0})
    );
    assert_eq!(
        body["redis"],
        json!({
            "mode": "standalone", "nodes": ["new:6379"], "subscribed": true, "lagMs": 2.0, "switching": false, "error": null,
            "previous": {"nodes": ["old:6379"], "subscribed": false},
        })
    );
    assert_eq!(
        body["drain"],
        json!({"draining": false, "held": false, "atStart": 0, "remaining": 0})
    );
    assert_eq!(
        (
            &body["staticRevision"],
            &body["liveRevision"],
            &body["catalogsRevision"]
        ),
        (&json!("sha256:1"), &json!("sha256:2"), &json!("sha256:3"))
    );
    assert!(
        body["database"]["version"]
            .as_i64()
            .is_some_and(|version| version >= 1),
        "{body}"
    );
    let main = &body["keySources"][0];
    assert_eq!(
        (&main["name"], &main["state"], &main["keys"]),
        (&json!("main"), &json!("trusted"), &json!(["k1"]))
    );
    assert!(!body.to_string().contains(ADMIN_TOKEN));
}

#[tokio::test]
async fn a_drain_starts_once_and_its_progress_is_shown() {
    let gateway = TestGateway::new().await;
    for _ in 0..2 {
        let body = with_token(Method::POST, "/drain")
            .send(&gateway.admin)
            .await
            .ok(202);
        assert_eq!(
            body,
            json!({"draining": true, "held": false, "atStart": 0, "remaining": 0})
        );
    }
    assert!(gateway.lifecycle.is_draining());
    gateway.lifecycle.note_connections(120);
    assert_eq!(
        with_token(Method::GET, "/status")
            .send(&gateway.admin)
            .await
            .ok(200)["drain"]["atStart"],
        120
    );
    let parts = ask(&gateway, Method::GET, "/readyz?verbose")
        .await
        .problem(503, "not_ready");
    assert_eq!(
        parts.body["parts"],
        json!([{"part": "drain", "reason": "draining"}])
    );
}

#[tokio::test]
async fn a_held_drain_can_be_taken_back_and_differs_from_a_drain_that_ends_the_process() {
    let gateway = TestGateway::new().await;
    let hold = |body: serde_json::Value| {
        with_token(Method::POST, "/drain")
            .json(&body)
            .send(&gateway.admin)
    };
    let undrain = || with_token(Method::DELETE, "/drain").send(&gateway.admin);
    for wrong in [
        json!({"held": true}),
        json!({"hold": "yes"}),
        json!({"hold": true, "for": 1}),
        json!([]),
        json!([true]),
        json!(true),
    ] {
        hold(wrong).await.problem(400, "invalid_body");
    }
    let call = with_token(Method::POST, "/drain")
        .header("content-type", "application/json")
        .body("{\"hold\": tr");
    call.send(&gateway.admin).await.problem(400, "invalid_json");
    let call = with_token(Method::POST, "/drain")
        .header("content-type", "text/plain")
        .body("{\"hold\": true}");
    call.send(&gateway.admin)
        .await
        .problem(415, "unsupported_media_type");
    assert!(
        !gateway.lifecycle.is_draining(),
        "a request that is not valid starts no drain"
    );

    let held = json!({"draining": true, "held": true, "atStart": 0, "remaining": 0});
    for _ in 0..2 {
        assert_eq!(hold(json!({"hold": true})).await.ok(202), held);
    }
    assert_eq!(
        with_token(Method::GET, "/status")
            .send(&gateway.admin)
            .await
            .ok(200)["drain"],
        held
    );
    let parts = ask(&gateway, Method::GET, "/readyz?verbose")
        .await
        .problem(503, "not_ready");
    assert_eq!(
        parts.body["parts"],
        json!([{"part": "drain", "reason": "held"}])
    );
    assert!(!gateway.lifecycle.is_ending());

    for _ in 0..2 {
        assert_eq!(
            undrain().await.ok(200),
            json!({"draining": false, "held": false, "atStart": 0, "remaining": 0})
        );
    }
    ask(&gateway, Method::GET, "/readyz").await.ok(200);
    hold(json!({"hold": true})).await.ok(202);
    let ending = json!({"draining": true, "held": false, "atStart": 0, "remaining": 0});
    assert_eq!(hold(json!({"hold": false})).await.ok(202), ending);
    hold(json!({"hold": true})).await.problem(409, "ending");
    undrain().await.problem(409, "ending");
    assert!(gateway.lifecycle.is_ending());
}

#[tokio::test]
async fn shedding_takes_a_count_of_at_least_one() {
    let gateway = TestGateway::new().await;
    let shed = |body: serde_json::Value| {
        with_token(Method::POST, "/shed")
            .json(&body)
            .send(&gateway.admin)
    };
    assert_eq!(
        shed(json!({"count": 10})).await.ok(200),
        json!({"closed": 0})
    );
    for body in [
        json!({}),
        json!({"count": 0}),
        json!({"count": -1}),
        json!({"count": "10"}),
        json!({"count": 1, "of": 2}),
    ] {
        shed(body).await.problem(400, "invalid_body");
    }
    let big = with_token(Method::POST, "/shed").json(&json!({"count": 1, "x": "y".repeat(5000)}));
    big.send(&gateway.admin)
        .await
        .problem(413, "body_too_large");
}

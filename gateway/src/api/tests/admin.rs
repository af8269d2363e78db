use http::Method;
use serde_json::json;

use super::fixture::{ADMIN_TOKEN, Answer, Call, House};

async fn ask(house: &House, method: Method, path: &str) -> Answer {
    Call::new(method, path).send(&house.admin).await
}

fn with_token(method: Method, path: &str) -> Call {
    Call::new(method, path).header("authorization", &format!("Bearer {ADMIN_TOKEN}"))
}

#[tokio::test]
async fn a_live_process_is_live_whatever_it_lacks() {
    let house = House::new().await;
    house
        .lifecycle
        .set("database", Some("connection refused".into()));
    house.lifecycle.request_drain();
    ask(&house, Method::GET, "/livez").await.ok(200);
}

#[tokio::test]
async fn ready_is_when_no_part_says_otherwise() {
    let house = House::new().await;
    assert_eq!(
        ask(&house, Method::GET, "/readyz").await.ok(200),
        json!({"ready": true})
    );
    house
        .lifecycle
        .set("keys", Some("main: not fetched".into()));
    house.lifecycle.set("bus", Some("deaf".into()));
    let answer = ask(&house, Method::GET, "/readyz")
        .await
        .problem(503, "not_ready");
    assert!(answer.body.get("parts").is_none());
    for path in ["/readyz?verbose", "/readyz?verbose=", "/readyz?verbose=1"] {
        let answer = ask(&house, Method::GET, path)
            .await
            .problem(503, "not_ready");
        assert_eq!(
            answer.body["parts"],
            json!([{"part": "keys", "reason": "main: not fetched"}, {"part": "bus", "reason": "deaf"}])
        );
    }
    ask(&house, Method::GET, "/readyz?detail")
        .await
        .problem(400, "invalid_query");
    house.lifecycle.set("keys", None);
    house.lifecycle.set("bus", None);
    assert_eq!(
        ask(&house, Method::GET, "/readyz?verbose").await.ok(200)["parts"],
        json!([])
    );
}

#[tokio::test]
async fn metrics_are_open_metrics_text() {
    let house = House::new().await;
    let answer = ask(&house, Method::GET, "/metrics").await;
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
async fn orders_and_status_are_for_holders_of_the_token() {
    let house = House::new().await;
    for (method, path) in [
        (Method::GET, "/status"),
        (Method::POST, "/drain"),
        (Method::DELETE, "/drain"),
        (Method::POST, "/shed"),
    ] {
        let answer = ask(&house, method.clone(), path)
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
            assert_eq!(call.send(&house.admin).await.status, 401, "{wrong}");
        }
    }
    assert!(!house.lifecycle.is_draining());
    ask(&house, Method::PUT, "/drain")
        .await
        .problem(405, "method_not_allowed");
    ask(&house, Method::GET, "/notifications")
        .await
        .problem(404, "no_route");
}

#[tokio::test]
async fn a_changed_token_holds_from_the_next_request_and_none_closes_the_door() {
    let house = House::new().await;
    let file = house.folder.path().join("admin-token");
    with_token(Method::GET, "/status")
        .send(&house.admin)
        .await
        .ok(200);
    std::fs::write(&file, "another\n").unwrap();
    with_token(Method::GET, "/status")
        .send(&house.admin)
        .await
        .problem(401, "credentials_refused");
    let call = Call::new(Method::GET, "/status").header("authorization", "Bearer another");
    call.send(&house.admin).await.ok(200);
    std::fs::write(&file, " \n").unwrap();
    let call = Call::new(Method::GET, "/status").header("authorization", "Bearer ");
    call.send(&house.admin).await.problem(403, "admin_disabled");
    std::fs::remove_file(&file).unwrap();
    with_token(Method::GET, "/status")
        .send(&house.admin)
        .await
        .problem(403, "admin_disabled");
}

#[tokio::test]
async fn status_says_what_holds() {
    let house = House::new().await;
    house.lifecycle.set("bus", Some("deaf".into()));
    let body = with_token(Method::GET, "/status")
        .send(&house.admin)
        .await
        .ok(200);
    assert_eq!(body["instance"], "gateway-0");
    assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&body["ready"], &body["unready"]),
        (&json!(false), &json!([{"part": "bus", "reason": "deaf"}]))
    );
    assert_eq!(
        body["connections"],
        json!({"total": 0, "authenticated": 0, "encrypted": 0})
    );
    assert_eq!(
        body["redis"],
        json!({
            "mode": "standalone", "nodes": ["new:6379"], "subscribed": true, "lagMs": 2.0, "moving": false, "error": null,
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
async fn a_drain_is_asked_for_once_and_its_progress_told() {
    let house = House::new().await;
    for _ in 0..2 {
        let body = with_token(Method::POST, "/drain")
            .send(&house.admin)
            .await
            .ok(202);
        assert_eq!(
            body,
            json!({"draining": true, "held": false, "atStart": 0, "remaining": 0})
        );
    }
    assert!(house.lifecycle.is_draining());
    house.lifecycle.note_connections(120);
    assert_eq!(
        with_token(Method::GET, "/status")
            .send(&house.admin)
            .await
            .ok(200)["drain"]["atStart"],
        120
    );
    let parts = ask(&house, Method::GET, "/readyz?verbose")
        .await
        .problem(503, "not_ready");
    assert_eq!(
        parts.body["parts"],
        json!([{"part": "drain", "reason": "draining"}])
    );
}

#[tokio::test]
async fn a_held_drain_is_asked_for_taken_back_and_never_mistaken_for_the_other() {
    let house = House::new().await;
    let hold = |body: serde_json::Value| {
        with_token(Method::POST, "/drain")
            .json(&body)
            .send(&house.admin)
    };
    let undrain = || with_token(Method::DELETE, "/drain").send(&house.admin);
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
    call.send(&house.admin).await.problem(400, "invalid_json");
    let call = with_token(Method::POST, "/drain")
        .header("content-type", "text/plain")
        .body("{\"hold\": true}");
    call.send(&house.admin)
        .await
        .problem(415, "unsupported_media_type");
    assert!(
        !house.lifecycle.is_draining(),
        "what cannot be read drains nobody"
    );

    let held = json!({"draining": true, "held": true, "atStart": 0, "remaining": 0});
    for _ in 0..2 {
        assert_eq!(hold(json!({"hold": true})).await.ok(202), held);
    }
    assert_eq!(
        with_token(Method::GET, "/status")
            .send(&house.admin)
            .await
            .ok(200)["drain"],
        held
    );
    let parts = ask(&house, Method::GET, "/readyz?verbose")
        .await
        .problem(503, "not_ready");
    assert_eq!(
        parts.body["parts"],
        json!([{"part": "drain", "reason": "held"}])
    );
    assert!(!house.lifecycle.is_ending());

    for _ in 0..2 {
        assert_eq!(
            undrain().await.ok(200),
            json!({"draining": false, "held": false, "atStart": 0, "remaining": 0})
        );
    }
    ask(&house, Method::GET, "/readyz").await.ok(200);
    hold(json!({"hold": true})).await.ok(202);
    let ending = json!({"draining": true, "held": false, "atStart": 0, "remaining": 0});
    assert_eq!(hold(json!({"hold": false})).await.ok(202), ending);
    hold(json!({"hold": true})).await.problem(409, "ending");
    undrain().await.problem(409, "ending");
    assert!(house.lifecycle.is_ending());
}

#[tokio::test]
async fn shedding_takes_a_count_of_at_least_one() {
    let house = House::new().await;
    let shed = |body: serde_json::Value| {
        with_token(Method::POST, "/shed")
            .json(&body)
            .send(&house.admin)
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
    big.send(&house.admin).await.problem(413, "body_too_large");
}

use super::*;
use crate::dev::folder::Folder;
use axum::body::Body;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

const KEY_OF_TEST: &str = "a-key";

fn playground(lifecycle: &Arc<Lifecycle>) -> Router {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    router(Playground {
        issuer: Arc::new(Issuer::open(&folder).unwrap()),
        lifecycle: Arc::clone(lifecycle),
        catalogs: Catalogs::load(std::path::Path::new(""), "vi").unwrap(),
        broker: "127.0.0.1:1".into(),
        topic: "t".into(),
        key: KEY_OF_TEST.into(),
        producer: OnceLock::new(),
    })
}

/// A request as the page itself sends it, with some headers changed; an empty value leaves the header out.
fn request(path: &str, body: &Value, changed: &[(&str, &str)]) -> http::Request<Body> {
    let mut headers = vec![
        ("host", "127.0.0.1:8080"),
        ("origin", "http://127.0.0.1:8080"),
        ("content-type", "application/json"),
        (KEY, KEY_OF_TEST),
    ];
    headers.retain(|(name, _)| !changed.iter().any(|(other, _)| other == name));
    headers.extend(changed.iter().filter(|(_, value)| !value.is_empty()));
    let builder = http::Request::post(path);
    headers
        .into_iter()
        .fold(builder, |builder, (name, value)| {
            builder.header(name, value)
        })
        .body(body.to_string().into())
        .unwrap()
}

async fn ask(router: &Router, request: http::Request<Body>) -> (StatusCode, String) {
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

const ENDPOINTS: [&str; 5] = ["facts", "token", "preview", "produce", "drain"];

#[tokio::test]
async fn another_site_can_post_nothing_whatever_it_calls_itself() {
    let lifecycle = Arc::default();
    let router = playground(&lifecycle);
    for foreign in [
        // A page of another site, or of another program of this machine.
        &[("origin", "https://evil.example")][..],
        &[("origin", "http://127.0.0.1:5173")],
        &[("origin", "null")],
        &[("origin", "")],
        // A name of another site that leads to this machine.
        &[
            ("host", "evil.example:8080"),
            ("origin", "http://evil.example:8080"),
        ],
        &[
            ("host", "127.0.0.1.evil.example"),
            ("origin", "http://127.0.0.1.evil.example"),
        ],
        &[
            ("host", "192.168.1.7:8080"),
            ("origin", "http://192.168.1.7:8080"),
        ],
        &[("host", "")],
        // A page that does not know what the terminal printed.
        &[(KEY, "")],
        &[(KEY, "another")],
    ] {
        for endpoint in ENDPOINTS {
            let body = json!({"user": "17", "value": "{}", "key": "k", "seconds": 1});
            let path = format!("/playground/{endpoint}");
            let (status, text) = ask(&router, request(&path, &body, foreign)).await;
            assert_eq!(status, 403, "{foreign:?} {endpoint} {text}");
        }
    }
    assert!(!lifecycle.is_draining());
    // What a form of another site can send without being asked by the browser first.
    let form = [("content-type", "text/plain")];
    let (status, _) = ask(
        &router,
        request("/playground/drain", &json!({"seconds": 1}), &form),
    )
    .await;
    assert_eq!(status, 415);
}

#[tokio::test]
async fn the_page_is_for_names_of_this_machine_and_may_load_nothing_foreign() {
    let router = playground(&Arc::default());
    for (host, expected) in [
        ("127.0.0.1:8080", 200),
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
    ] {
        for path in ["/", "/playground.js", "/playground.css"] {
            let request = http::Request::get(path).header("host", host);
            let answer = router
                .clone()
                .oneshot(request.body(Body::empty()).unwrap())
                .await
                .unwrap();
            assert_eq!(answer.status(), expected, "{host}");
            if expected == 200 {
                let policy = answer.headers()[header::CONTENT_SECURITY_POLICY]
                    .to_str()
                    .unwrap();
                assert!(
                    policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
                    "{policy}"
                );
            }
        }
    }
}

#[tokio::test]
async fn tokens_are_for_the_two_people_and_end_when_they_shall() {
    let router = playground(&Arc::default());
    let token = async |body: Value| ask(&router, request("/playground/token", &body, &[])).await;
    let (status, text) = token(json!({"user": "17", "seconds": 5})).await;
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let claims = answer["token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(claims).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["sub"], "17");
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        5
    );
    assert_eq!(token(json!({"user": "1"})).await.0, 404, "an administrator");
}

#[tokio::test]
async fn a_preview_is_what_the_pipeline_would_store_or_why_it_would_not() {
    let router = playground(&Arc::default());
    let preview = async |value: &str| {
        ask(
            &router,
            request("/playground/preview", &json!({"value": value}), &[]),
        )
        .await
    };
    let (status, text) = preview(produce::SAMPLE).await;
    assert_eq!(status, 200, "{text}");
    let made: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (made["audience"].as_str(), made["title"].as_str()),
        (
            Some("everyone in merchant 42"),
            Some("Thanh toán thành công")
        )
    );
    let (status, why) = preview(r#"{"type":"UNKNOWN","actorId":"17"}"#).await;
    assert_eq!(status, 422);
    assert!(why.starts_with("no_template: "), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_by_itself() {
    let lifecycle = Arc::default();
    let router = playground(&lifecycle);
    let (status, text) = ask(
        &router,
        request("/playground/drain", &json!({"seconds": 3}), &[]),
    )
    .await;
    assert_eq!(status, 200, "{text}");
    assert!(lifecycle.is_held());
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!lifecycle.is_draining());
}

use std::sync::Arc;

use http::Method;
use serde_json::json;

use super::fixture::{Call, TestGateway};
use crate::auth::PublishedKeys;

const PATH: &str = "/.well-known/jwks.json";

fn publish(gateway: &TestGateway, kid: &str) -> Arc<PublishedKeys> {
    let text =
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qY", "kid": kid}]}).to_string();
    let published = Arc::new(PublishedKeys::read(&text).unwrap());
    gateway.published.send_replace(Some(Arc::clone(&published)));
    published
}

#[tokio::test]
async fn without_a_configured_key_set_the_route_is_a_404() {
    let gateway = TestGateway::new().await;
    let answer = gateway
        .send(Call::new(Method::GET, PATH))
        .await
        .problem(404, "not_found");
    assert_eq!(answer.header("cache-control"), "no-store");
    let status = gateway.status().await;
    assert_eq!(status["jwksFile"], json!(null));
}

/// authorization.md 2.10.
#[tokio::test]
async fn the_key_set_is_served_to_everyone_with_its_tag_and_age() {
    let gateway = TestGateway::new().await;
    let published = publish(&gateway, "k1");
    let answer = gateway.send(Call::new(Method::GET, PATH)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("content-type")),
        (200, "application/jwk-set+json")
    );
    assert_eq!(
        (answer.header("etag"), answer.header("cache-control")),
        (published.etag.as_str(), "public, max-age=300")
    );
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.text, published.body);
    let head = gateway.send(Call::new(Method::HEAD, PATH)).await;
    assert_eq!(
        (
            head.status.as_u16(),
            head.header("etag"),
            head.text.as_str()
        ),
        (200, published.etag.as_str(), "")
    );
    gateway
        .live
        .send_modify(|live| Arc::make_mut(live).jwks.managed.cache_age_secs = 60);
    assert_eq!(
        gateway
            .send(Call::new(Method::GET, PATH))
            .await
            .header("cache-control"),
        "public, max-age=60"
    );
    assert_eq!(
        gateway.status().await["jwksFile"],
        json!({"revision": published.revision, "keys": ["k1"]})
    );
    gateway
        .send(Call::new(Method::GET, "/.well-known/jwks.json?kid=k1"))
        .await
        .problem(400, "invalid_query");
}

#[tokio::test]
async fn a_caller_with_the_current_key_set_gets_304_until_it_changes() {
    let gateway = TestGateway::new().await;
    let etag = publish(&gateway, "k1").etag.clone();
    let ask =
        |given: &str| gateway.send(Call::new(Method::GET, PATH).header("if-none-match", given));
    for known in [
        etag.clone(),
        format!("W/{etag}"),
        format!("\"other\", {etag}"),
        "*".into(),
    ] {
        let answer = ask(&known).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text.as_str()),
            (304, ""),
            "{known}"
        );
        assert_eq!(
            (answer.header("etag"), answer.header("cache-control")),
            (etag.as_str(), "public, max-age=300")
        );
    }
    for other in ["\"other\"", "", etag.trim_matches('"')] {
        assert_eq!(ask(other).await.status, 200, "{other}");
    }
    publish(&gateway, "k2");
    assert_eq!(ask(&etag).await.status, 200);
}

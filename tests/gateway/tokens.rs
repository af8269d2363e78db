//! Tokens over a real socket: who is admitted, for how long, and what a failing key set does.

use std::time::Duration;

use serde_json::{Value, json};
use signal_tests::issuer::{Algorithm, Answer};
use signal_tests::wait::{now_secs, until};
use signal_tests::{Gateway, Issuer, KeyMember, gateway};

use crate::{Stage, admin};

/// Sends a token and expects it to be refused as the protocol says.
async fn expect_refused(stage: &Stage, token: &str, what: &str) {
    let mut client = stage.connect().await;
    client.send_authenticate(token, KeyMember::None).await;
    let error = client.next_envelope().await;
    assert_eq!(
        (error.event.as_str(), &error.data),
        ("error", &json!({"message": "Authentication failed"})),
        "{what}"
    );
    assert_eq!(
        client.expect_closed().await,
        (4003, "Authentication failed".into()),
        "{what}"
    );
}

/// authorization.md 1.2.
#[tokio::test]
async fn tokens_of_every_allowed_algorithm_are_taken() {
    let issuer = Issuer::start().await;
    issuer.add_key("rsa", Algorithm::RS256);
    issuer.add_key("ed", Algorithm::EdDSA);
    let gateway = Gateway::trusting(&issuer).await;
    for kid in ["key-1", "rsa", "ed"] {
        let token = issuer.sign(kid, &issuer.claims(kid));
        let client = signal_tests::Client::open(gateway.address(), &token).await;
        assert!(!client.id().is_empty());
    }
}

/// authorization.md 1.2, 1.3, 1.4, 1.5, 1.6 and 1.7.
#[tokio::test]
async fn tokens_that_are_not_what_they_should_be_are_refused() {
    let stage = Stage::new().await;
    let issuer = &stage.issuer;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = issuer.claims("17");
        change(&mut claims);
        issuer.sign("key-1", &claims)
    };
    let now = now_secs();
    let (head, rest) = issuer
        .token("17")
        .split_once('.')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let other = Issuer::start().await;
    let forged = other.sign("key-1", &issuer.claims("17"));
    let header = |alg: &str| json!({"alg": alg, "kid": "key-1", "typ": "JWT"});
    let sneaky =
        json!({"alg": "ES256", "kid": "key-9", "jku": other.certs_url(), "x5u": other.certs_url()});
    for (what, token) in [
        ("ended", with(&|c| c["exp"] = (now - 120).into())),
        ("not begun", with(&|c| c["nbf"] = (now + 120).into())),
        ("no end", with(&|c| c["exp"] = Value::Null)),
        (
            "another issuer's name",
            with(&|c| c["iss"] = "http://elsewhere/".into()),
        ),
        ("no issuer", with(&|c| c["iss"] = Value::Null)),
        ("another audience", with(&|c| c["aud"] = "billing".into())),
        ("no audience", with(&|c| c["aud"] = Value::Null)),
        ("no subject", with(&|c| c["sub"] = Value::Null)),
        ("signed by another's key", forged),
        ("no signature", format!("{head}.{payload}.")),
        (
            "signature of another payload",
            format!("{head}.{}x.{signature}", &payload[..payload.len() - 1]),
        ),
        (
            "alg none",
            issuer.sign_with_header("key-1", &header("none"), &issuer.claims("17")),
        ),
        (
            "alg HS256",
            issuer.sign_with_header("key-1", &header("HS256"), &issuer.claims("17")),
        ),
        (
            "alg of another family",
            issuer.sign_with_header("key-1", &header("EdDSA"), &issuer.claims("17")),
        ),
        (
            "keys brought along",
            other.sign_with_header("key-1", &sneaky, &issuer.claims("17")),
        ),
        ("not a token", "abc".into()),
        ("empty", String::new()),
        ("huge", "a".repeat(60_000)),
    ] {
        expect_refused(&stage, &token, what).await;
    }
    assert_eq!(
        other.fetches(),
        0,
        "keys are never fetched from where a token says"
    );
    let mut client = stage.connect().await;
    client
        .send(
            "authenticate",
            json!({"type": "Basic", "token": issuer.token("17")}),
        )
        .await;
    assert_eq!(
        client.expect_error().await,
        "Authentication failed",
        "another type"
    );
}

/// authorization.md 1.9.
#[tokio::test]
async fn the_subject_is_sub_or_else_user_id_as_text() {
    let stage = Stage::new().await;
    for (sub, user, want) in [
        (json!("17"), json!(5), "17"),
        (Value::Null, json!(42), "42"),
        (Value::Null, json!("u-9"), "u-9"),
    ] {
        let mut claims = stage.issuer.claims("x");
        claims["sub"] = sub.clone();
        claims["userId"] = user;
        if sub.is_null() {
            claims.as_object_mut().unwrap().remove("sub");
        }
        let mut client = stage.connect().await;
        let connected = client
            .authenticate(&stage.issuer.sign("key-1", &claims), KeyMember::None)
            .await;
        assert_eq!(connected.user_id, want);
    }
}

/// authorization.md 2.3.
#[tokio::test]
async fn an_unknown_key_is_fetched_once_and_random_ones_cannot_force_more() {
    let stage = Stage::new().await;
    let prefetched = stage.issuer.fetches();
    assert!(
        prefetched >= 1,
        "keys are there before the gateway is ready"
    );
    stage.issuer.add_key("key-2", Algorithm::ES256);
    let mut client = stage.connect().await;
    let token = stage.issuer.sign("key-2", &stage.issuer.claims("17"));
    assert_eq!(
        client.authenticate(&token, KeyMember::None).await.user_id,
        "17"
    );
    let after_new_key = stage.issuer.fetches();
    for n in 0..10 {
        let header = json!({"alg": "ES256", "kid": format!("random-{n}")});
        expect_refused(
            &stage,
            &stage
                .issuer
                .sign_with_header("key-1", &header, &stage.issuer.claims("17")),
            "an unknown kid",
        )
        .await;
    }
    assert!(
        stage.issuer.fetches() <= after_new_key + 1,
        "{} fetches",
        stage.issuer.fetches()
    );
}

/// authorization.md 2.6.
#[tokio::test]
async fn a_withdrawn_key_stops_working_at_the_next_refresh() {
    let stage = Stage::with(|settings| {
        settings
            .live("jwks.refresh_interval_secs", 1)
            .live("jwks.min_refresh_interval_secs", 1)
    })
    .await;
    stage.issuer.add_key("key-2", Algorithm::EdDSA);
    stage.issuer.publish("key-1", false);
    let seen = stage.issuer.fetches();
    until("two refreshes", || async {
        (stage.issuer.fetches() >= seen + 2).then_some(())
    })
    .await;
    expect_refused(&stage, &stage.issuer.token("17"), "a withdrawn key").await;
    let mut client = stage.connect().await;
    client
        .authenticate(
            &stage.issuer.sign("key-2", &stage.issuer.claims("17")),
            KeyMember::None,
        )
        .await;
}

/// protocol.md 4.11.
#[tokio::test]
async fn a_rotation_of_keys_closes_only_who_does_not_refresh() {
    let quick = |settings: gateway::Builder| {
        settings
            .set("auth.expiring_lead_secs", 6)
            .live("jwks.refresh_interval_secs", 1)
            .live("jwks.min_refresh_interval_secs", 1)
    };
    let stage = Stage::with(quick).await;
    let (mut stays, mut goes) = (stage.client("17").await, stage.client("17").await);
    // Nobody has told the gateway of the new key when the first token with it comes.
    stage.issuer.add_key("key-2", Algorithm::EdDSA);
    let fresh = stage.issuer.sign("key-2", &stage.issuer.claims("17"));
    stays
        .send("refresh", json!({"type": "Bearer", "token": fresh}))
        .await;
    stays.expect("refreshed").await;
    let mut new = stage.connect().await;
    new.authenticate(&fresh, KeyMember::None).await;

    stage.issuer.publish("key-1", false);
    assert!(goes.expect("expiring").await.data["expiresAt"].is_string());
    assert_eq!(goes.expect_closed().await, (4005, "Token expired".into()));
    expect_refused(&stage, &stage.issuer.token("17"), "a withdrawn key").await;
    let path = "/socket/websocket/users/17/messages";
    let roles = json!([{"id": "r1", "identifier": "super-admin", "priority": 0}]);
    let mut claims = stage.issuer.claims("1");
    claims["roles"] = roles;
    let admin = stage.issuer.sign("key-2", &claims);
    stage
        .gateway
        .rest(
            "POST",
            path,
            &admin,
            Some(json!({"event": "still here", "data": null})),
        )
        .await
        .expect(202);
    for client in [&mut stays, &mut new] {
        assert_eq!(
            client.next_envelope().await.event,
            "still here",
            "and it was not told to end"
        );
    }
}

/// authorization.md 2.2.
#[tokio::test]
async fn known_keys_work_on_while_the_issuer_is_away() {
    let stage = Stage::with(|settings| {
        settings
            .live("jwks.refresh_interval_secs", 1)
            .live("jwks.min_refresh_interval_secs", 1)
    })
    .await;
    stage.issuer.answer(Answer::Drop);
    let seen = stage.issuer.fetches();
    until("a refresh that fails", || async {
        (stage.issuer.fetches() > seen).then_some(())
    })
    .await;
    stage.client("17").await;
}

/// protocol.md 4.5.
#[tokio::test]
async fn a_verification_that_cannot_be_made_is_an_error_and_not_a_refusal() {
    let stage = Stage::with(|settings| settings.live("jwks.min_refresh_interval_secs", 1)).await;
    stage.issuer.answer(Answer::Drop);
    stage.issuer.add_unpublished_key("key-2", Algorithm::ES256);
    let mut client = stage.connect().await;
    client
        .send_authenticate(
            &stage.issuer.sign("key-2", &stage.issuer.claims("17")),
            KeyMember::None,
        )
        .await;
    assert_eq!(client.expect_error().await, "Authentication error");
    assert_eq!(
        client.expect_closed().await,
        (4003, "Authentication failed".into())
    );
}

/// protocol.md 4.3.
#[tokio::test]
async fn verifying_a_token_for_too_long_is_closed_with_4001() {
    let slow = |settings: gateway::Builder| {
        settings
            .set("auth.finish_timeout_ms", 3000)
            .live("jwks.min_refresh_interval_secs", 1)
    };
    let stage = Stage::with(slow).await;
    stage.issuer.answer(Answer::Late(Duration::from_secs(30)));
    stage.issuer.add_unpublished_key("key-2", Algorithm::ES256);
    let mut client = stage.connect().await;
    client
        .send_authenticate(
            &stage.issuer.sign("key-2", &stage.issuer.claims("17")),
            KeyMember::None,
        )
        .await;
    assert_eq!(
        client.expect_closed().await,
        (4001, "Authentication timeout".into())
    );
    stage.client("17").await;
}

/// authorization.md 1.10 and 2.8.
#[tokio::test]
async fn subjects_and_roles_of_a_second_issuer_are_kept_apart() {
    let (first, second) = (Issuer::start().await, Issuer::start().await);
    let mut source = gateway::source(&second);
    source.insert("subject_prefix".into(), "partner/".into());
    source.insert("trust_roles".into(), false.into());
    let gateway = Gateway::build().trust(&first).source(source).start().await;
    let mut client = signal_tests::Client::connect(gateway.address()).await;
    assert_eq!(
        client
            .authenticate(&second.token("17"), KeyMember::None)
            .await
            .user_id,
        "partner/17"
    );
    let path = "/socket/websocket/clients";
    gateway
        .rest("GET", path, &admin(&first), None)
        .await
        .expect(200);
    gateway
        .rest("GET", path, &admin(&second), None)
        .await
        .expect(403);
}

/// protocol.md 3.9, 3.10, 3.11, 4.9 and 4.10.
#[tokio::test]
async fn a_token_warns_before_its_end_and_a_fresh_one_keeps_the_connection() {
    let stage = Stage::with(|settings| {
        settings
            .set("auth.expiring_lead_secs", 60)
            .live("auth.clock_skew_secs", 1)
    })
    .await;
    let short = |seconds: i64, subject: &str| {
        let mut claims = stage.issuer.claims(subject);
        claims["exp"] = (now_secs() + seconds).into();
        stage.issuer.sign("key-1", &claims)
    };
    let mut client = stage.connect().await;
    client.authenticate(&short(6, "17"), KeyMember::None).await;
    let expiring = client.expect("expiring").await;
    assert!(
        expiring.data["seconds"]
            .as_i64()
            .is_some_and(|seconds| (0..=6).contains(&seconds)),
        "{expiring:?}"
    );
    assert!(expiring.data["expiresAt"].is_string(), "{expiring:?}");

    client
        .send(
            "refresh",
            json!({"type": "Bearer", "token": short(3600, "18")}),
        )
        .await;
    client.expect("error").await;
    client
        .send(
            "refresh",
            json!({"type": "Bearer", "token": short(3600, "17")}),
        )
        .await;
    assert!(client.expect("refreshed").await.data["expiresAt"].is_string());

    let mut other = stage.connect().await;
    other.authenticate(&short(6, "17"), KeyMember::None).await;
    assert_eq!(other.expect_closed().await, (4005, "Token expired".into()));
    // The old end of the first connection has passed as well by now.
    stage.send_to_client(client.id(), "still here").await;
    client.expect("still here").await;
}

/// protocol.md 4.13 and 7.12.
#[tokio::test]
async fn revocations_close_with_4006_and_refuse_the_token_afterwards() {
    let stage = Stage::new().await;
    let (token, other) = (stage.issuer.token("17"), stage.issuer.token("17"));
    let jti = |token: &str| {
        let payload = base64_simd::URL_SAFE_NO_PAD
            .decode_to_vec(token.split('.').nth(1).unwrap())
            .unwrap();
        serde_json::from_slice::<Value>(&payload).unwrap()["jti"].clone()
    };
    let mut one = signal_tests::Client::open(stage.gateway.address(), &token).await;
    let mut two = signal_tests::Client::open(stage.gateway.address(), &other).await;
    let revoke = |body: Value| {
        stage
            .gateway
            .rest("POST", "/socket/websocket/revocations", "", Some(body))
    };
    assert_eq!(revoke(json!({"jti": jti(&token)})).await.status, 401);

    let path = "/socket/websocket/revocations";
    let answer = stage
        .gateway
        .rest(
            "POST",
            path,
            &admin(&stage.issuer),
            Some(json!({"jti": jti(&token)})),
        )
        .await;
    assert_eq!(answer.status / 100, 2, "{answer:?}");
    assert_eq!(one.expect_closed().await, (4006, "Revoked".into()));
    expect_refused(&stage, &token, "revoked by jti").await;
    stage.send_to_client(two.id(), "still here").await;
    two.expect("still here").await;

    let issued_before = json!({"userId": "17", "issuedBefore": "2100-01-01T00:00:00Z"});
    stage
        .gateway
        .rest("POST", path, &admin(&stage.issuer), Some(issued_before))
        .await
        .expect(400);
    let answer = stage
        .gateway
        .rest(
            "POST",
            path,
            &admin(&stage.issuer),
            Some(json!({"userId": "17"})),
        )
        .await;
    assert_eq!(answer.status / 100, 2, "{answer:?}");
    assert_eq!(two.expect_closed().await, (4006, "Revoked".into()));
    expect_refused(&stage, &other, "revoked by user").await;
    stage.client("18").await;
}

/// authorization.md 1.1.
#[tokio::test]
async fn a_large_token_is_taken_on_the_socket_and_in_the_header_and_a_larger_one_is_refused() {
    let stage = Stage::new().await;
    let of = |note: usize| {
        let mut claims = stage.issuer.claims("17");
        claims["note"] = "x".repeat(note).into();
        stage.issuer.sign("key-1", &claims)
    };
    let (large, larger, vast) = (of(15_000), of(19_000), of(27_000));
    assert!(large.len() > 20_000 && larger.len() > 24_576 && vast.len() > 32_768);
    let mut client = stage.connect().await;
    let connected = client.authenticate(&large, KeyMember::None).await;
    assert_eq!(connected.user_id, "17");
    let notifications = async |token: &str| {
        stage
            .gateway
            .rest("GET", "/notifications", token, None)
            .await
    };
    notifications(&large).await.expect(200);
    let refusal = notifications(&larger).await.expect(401);
    assert_eq!(
        refusal.json()["detail"],
        "the token is longer than 24576 bytes"
    );
    notifications(&vast).await.expect(431);
    for token in [larger, vast] {
        expect_refused(&stage, &token, "too long").await;
    }
}

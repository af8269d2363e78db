mod ignis;

use base64_simd::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::auth::fixture::{Issuer, NOW, Rig, Signer, claims, facts, source, wait};
use crate::config::{Algorithm, SourceState};
use crate::principal::{TokenId, USER, Via};
use crate::revocation::Revocation;

fn refused(reason: TokenFault) -> Result<Arc<Principal>, VerifyError> {
    Err(VerifyError::Refused(reason))
}

/// Returns `claims` with one member changed; null removes the member.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims("main");
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}

async fn one_source(change: impl FnOnce(&mut Source)) -> (Rig, Issuer, Signer) {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let mut main = source("main", &issuer);
    change(&mut main);
    (Rig::start(vec![main]).await, issuer, signer)
}

/// authorization.md 1.2.
#[tokio::test]
async fn a_good_token_of_every_algorithm_gives_its_principal() {
    let signers = [
        Signer::es256("a"),
        Signer::es384("b"),
        Signer::ed25519("c"),
        Signer::rsa("d", "RS256"),
        Signer::rsa("e", "PS256"),
        Signer::rsa("f", "RS512"),
    ];
    let issuer = Issuer::start(&signers.iter().collect::<Vec<_>>()).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    let mut keys = std::collections::HashSet::new();
    for signer in &signers {
        let principal = rig.verify(&signer.sign(&claims("main"))).await.unwrap();
        assert_eq!(&*principal.subject, "17");
        assert!(principal.roles.is_empty());
        let facts = facts(&principal);
        assert_eq!(
            (&*facts.source, facts.token_id),
            ("main", Some(TokenId::of("t1")))
        );
        keys.insert(Arc::clone(&facts.thumbprint));
        assert_eq!(facts.issued_at.unwrap().timestamp(), NOW);
        assert_eq!(facts.expires_at.unwrap().timestamp(), NOW + 3600);
    }
    assert_eq!(keys.len(), 4, "the RSA signers share one key");
    assert_eq!(rig.outcomes("accepted"), 6);
    assert_eq!(issuer.fetches(), 1);
}

/// authorization.md 1.5, 1.6, 1.7 and 1.8.
#[tokio::test]
async fn each_claim_is_checked_with_leeway() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    let leeway = 30;
    let cases = [
        ("exp", json!(NOW - leeway + 1), None),
        ("exp", json!(NOW - leeway), Some(TokenFault::Expired)),
        ("exp", json!(NOW as f64 + 0.5), None),
        ("exp", json!(null), Some(TokenFault::Expired)),
        ("exp", json!("soon"), Some(TokenFault::Malformed)),
        ("exp", json!(1e300), Some(TokenFault::Malformed)),
        ("exp", json!(-1), Some(TokenFault::Expired)),
        ("nbf", json!(NOW + leeway), None),
        (
            "nbf",
            json!(NOW + leeway + 1),
            Some(TokenFault::NotYetValid),
        ),
        (
            "iat",
            json!(NOW + leeway + 1),
            Some(TokenFault::NotYetValid),
        ),
        ("iat", json!(null), None),
        ("iss", json!("https://main.test"), Some(TokenFault::Issuer)),
        ("iss", json!(null), Some(TokenFault::Issuer)),
        (
            "iss",
            json!(["https://main.test/"]),
            Some(TokenFault::Malformed),
        ),
        ("aud", json!(["other", "signal"]), None),
        ("aud", json!(["other"]), Some(TokenFault::Audience)),
        ("aud", json!([]), Some(TokenFault::Audience)),
        ("aud", json!("signa"), Some(TokenFault::Audience)),
        ("aud", json!(null), Some(TokenFault::Audience)),
        ("aud", json!(17), Some(TokenFault::Malformed)),
        ("sub", json!(""), Some(TokenFault::Subject)),
        ("sub", json!(null), Some(TokenFault::Subject)),
        ("sub", json!({"id": 1}), Some(TokenFault::Malformed)),
        ("sub", json!(true), Some(TokenFault::Subject)),
        ("sub", json!("a\nb"), Some(TokenFault::Subject)),
        ("sub", json!("x".repeat(257)), Some(TokenFault::Subject)),
        ("jti", json!(null), None),
    ];
    for (name, value, reason) in cases {
        let outcome = rig.verify(&signer.sign(&with(name, value.clone()))).await;
        match reason {
            Some(reason) => assert_eq!(outcome, refused(reason), "{name} = {value}"),
            None => assert!(outcome.is_ok(), "{name} = {value}: {outcome:?}"),
        }
    }
    assert_eq!(rig.outcomes("audience"), 4);
}

/// authorization.md 1.9 and 2.8.
#[tokio::test]
async fn the_subject_is_sub_else_user_id_behind_the_sources_prefix() {
    let (rig, _issuer, signer) = one_source(|main| main.subject_prefix = "b:".into()).await;
    let base = with("sub", Value::Null);
    for (name, value, subject) in [
        ("sub", json!("x"), "b:x"),
        ("userId", json!(17), "b:17"),
        ("userId", json!("u-1"), "b:u-1"),
        ("sub", json!(18), "b:18"),
    ] {
        let mut claims = base.clone();
        claims[name] = value;
        assert_eq!(
            &*rig.verify(&signer.sign(&claims)).await.unwrap().subject,
            subject
        );
    }
    let mut both = with("sub", json!("first"));
    both["userId"] = json!("second");
    assert_eq!(
        &*rig.verify(&signer.sign(&both)).await.unwrap().subject,
        "b:first"
    );
    let mut fraction = base;
    fraction["userId"] = json!(1.5);
    assert_eq!(
        rig.verify(&signer.sign(&fraction)).await,
        refused(TokenFault::Subject)
    );
}

/// authorization.md 1.9.
#[tokio::test]
async fn a_source_says_which_claims_may_be_the_subject() {
    let (rig, _issuer, signer) = one_source(|main| {
        main.subject_claims = vec!["oid".into(), "userId".into()];
    })
    .await;
    let mut claims = with("oid", json!("o-1"));
    claims["userId"] = json!(5);
    let principal = rig.verify(&signer.sign(&claims)).await.unwrap();
    assert_eq!(&*principal.subject, "o-1");
    claims["oid"] = Value::Null;
    let principal = rig.verify(&signer.sign(&claims)).await.unwrap();
    assert_eq!(&*principal.subject, "5", "a null is no claim");
    // The first that is there decides, good or not; `sub` is not on this list.
    for (oid, user) in [
        (json!({}), json!(5)),
        (json!(""), json!(5)),
        (json!(null), json!(null)),
    ] {
        claims["oid"] = oid;
        claims["userId"] = user;
        assert_eq!(
            rig.verify(&signer.sign(&claims)).await,
            refused(TokenFault::Subject)
        );
    }
}

/// authorization.md 2.8.
#[tokio::test]
async fn a_subject_that_begins_with_another_issuers_prefix_is_refused() {
    let (signer, foreign) = (Signer::es256("k1"), Signer::es256("k2"));
    let (a, b) = (
        Issuer::start(&[&signer]).await,
        Issuer::start(&[&foreign]).await,
    );
    let mut partner = source("partner", &b);
    partner.subject_prefix = "p:".into();
    let rig = Rig::start(vec![source("main", &a), partner.clone()]).await;
    let posing = signer.sign(&with("sub", json!("p:17")));
    assert_eq!(rig.verify(&posing).await, refused(TokenFault::Subject));
    for sub in ["p", "P:17", "17", "xp:17"] {
        let token = signer.sign(&with("sub", json!(sub)));
        assert_eq!(&*rig.verify(&token).await.unwrap().subject, sub);
    }
    let token = foreign.sign(&claims("partner"));
    assert_eq!(&*rig.verify(&token).await.unwrap().subject, "p:17");

    // A source that comes later takes the prefix from those who are there, remembered and connected ones too.
    rig.change(|live| live.jwks.sources.truncate(1));
    crate::auth::fixture::until(|| rig.auth.status().len() == 1).await;
    let early = rig.verify(&posing).await.unwrap();
    assert!(rig.auth.trusts(&early));
    let changes = rig.auth.changes();
    rig.change(|live| live.jwks.sources.push(partner));
    crate::auth::fixture::until(|| !rig.auth.trusts(&early)).await;
    assert!(changes.has_changed().unwrap());
    assert_eq!(rig.verify(&posing).await, refused(TokenFault::Subject));
    // Sources that say so have the same people.
    rig.change(|live| live.jwks.sources[0].same_subjects_as = vec!["partner".into()]);
    crate::auth::fixture::until(|| rig.auth.trusts(&early)).await;
    rig.verify(&posing).await.unwrap();
}

/// authorization.md 1.13.
#[tokio::test]
async fn the_kind_of_a_subject_is_its_principal_type_else_user() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    for (value, kind) in [
        (json!(null), "User"),
        (json!("User"), "User"),
        (json!("Staff"), "Staff"),
        (json!("Service-Account2"), "Service-Account2"),
    ] {
        let principal = rig
            .verify(&signer.sign(&with("principalType", value)))
            .await
            .unwrap();
        assert_eq!((&*principal.kind, &*principal.subject), (kind, "17"));
    }
    // `Role_17` would be a role, and `User_1_7` the user `1_7`.
    for value in [
        json!("Role"),
        json!("User_1"),
        json!(""),
        json!("a b"),
        json!("x".repeat(65)),
        json!(7),
        json!({"name": "Staff"}),
    ] {
        assert_eq!(
            rig.verify(&signer.sign(&with("principalType", value.clone())))
                .await,
            refused(TokenFault::Subject),
            "{value}"
        );
    }
}

/// authorization.md 1.10.
#[tokio::test]
async fn roles_count_only_where_they_are_trusted() {
    let claims = with(
        "roles",
        json!([{"id": 1, "identifier": "super-admin", "priority": 1}, "clerk", {"id": 2}, {"identifier": null, "name": "auditor"}, 3, "", {"identifier": []}]),
    );
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    assert!(
        rig.verify(&signer.sign(&claims))
            .await
            .unwrap()
            .roles
            .is_empty()
    );
    let (rig, _issuer, signer) = one_source(|main| main.trust_roles = true).await;
    assert_eq!(
        *rig.verify(&signer.sign(&claims)).await.unwrap().roles,
        ["super-admin", "clerk", "2", "auditor"]
    );
    assert!(
        rig.verify(&signer.sign(&with("roles", json!({"realm": []}))))
            .await
            .unwrap()
            .roles
            .is_empty()
    );
}

/// authorization.md 1.2.
#[tokio::test]
async fn none_and_symmetric_algorithms_are_always_refused() {
    let (rig, issuer, signer) = one_source(|_| {}).await;
    let payload = URL_SAFE_NO_PAD.encode_to_string(claims("main").to_string());
    for alg in [
        "none", "None", "NONE", "", "HS256", "HS512", "ES512", "RSA-OAEP",
    ] {
        let header = URL_SAFE_NO_PAD.encode_to_string(json!({"alg": alg, "kid": "k1"}).to_string());
        let message = format!("{header}.{payload}");
        // The public key, which everyone has, is used as the secret.
        let secret = signer.jwk()["x"].as_str().unwrap().to_owned();
        let mac = ring::hmac::sign(
            &ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes()),
            message.as_bytes(),
        );
        for signature in [String::new(), URL_SAFE_NO_PAD.encode_to_string(mac)] {
            let outcome = rig.verify(&format!("{message}.{signature}")).await;
            assert!(
                matches!(
                    outcome,
                    Err(VerifyError::Refused(
                        TokenFault::Malformed | TokenFault::Algorithm
                    ))
                ),
                "{alg}: {outcome:?}"
            );
        }
    }
    assert_eq!(issuer.fetches(), 1);
}

/// authorization.md 1.2.
#[tokio::test]
async fn the_source_and_the_key_must_both_allow_the_algorithm() {
    let (es, rs, ps) = (
        Signer::es256("es"),
        Signer::rsa("rs", "RS256"),
        Signer::rsa("rs", "PS256"),
    );
    let issuer = Issuer::start(&[&es, &rs]).await;
    let mut main = source("main", &issuer);
    main.algorithms = vec![Algorithm::RS256];
    let rig = Rig::start(vec![main]).await;
    rig.verify(&rs.sign(&claims("main"))).await.unwrap();
    assert_eq!(
        rig.verify(&es.sign(&claims("main"))).await,
        refused(TokenFault::Algorithm)
    );
    assert_eq!(
        rig.verify(&ps.sign(&claims("main"))).await,
        refused(TokenFault::Algorithm)
    );
    // A header that borrows another key's `kid`, or an algorithm that the key is not for.
    rig.change(|live| live.jwks.sources[0].algorithms.push(Algorithm::ES256));
    crate::auth::fixture::until(|| rig.auth.status()[0].keys.len() == 2).await;
    let borrowed = es.sign_with(&json!({"alg": "ES256", "kid": "rs"}), &claims("main"));
    assert_eq!(rig.verify(&borrowed).await, refused(TokenFault::Algorithm));
    rig.verify(&es.sign(&claims("main"))).await.unwrap();
    // The key of that `kid` may have been replaced by one of another type.
    assert_eq!(issuer.fetches(), 2);
}

/// authorization.md 1.2.
#[tokio::test]
async fn names_of_rfc_9864_are_names_of_the_same_algorithms() {
    let signers = [
        (Signer::es256("a"), "ESP256", "ESP384"),
        (Signer::es384("b"), "ESP384", "ESP256"),
        (Signer::ed25519("c"), "Ed25519", "Ed448"),
    ];
    let all: Vec<_> = signers.iter().map(|(signer, ..)| signer).collect();
    let issuer = Issuer::start(&all).await;
    let mut main = source("main", &issuer);
    main.algorithms = ["ESP256", "ES384", "Ed25519"]
        .map(|name| serde_json::from_value(json!(name)).unwrap())
        .to_vec();
    let rig = Rig::start(vec![main]).await;
    for (signer, name, other) in signers {
        let kid = signer.jwk()["kid"].clone();
        let token = signer.sign_with(&json!({"alg": name, "kid": kid}), &claims("main"));
        assert_eq!(&*rig.verify(&token).await.unwrap().subject, "17", "{name}");
        let token = signer.sign_with(&json!({"alg": other, "kid": kid}), &claims("main"));
        assert_eq!(
            rig.verify(&token).await,
            refused(TokenFault::Algorithm),
            "{other}"
        );
        // What was signed is the header as it was sent, and nothing that is made of it.
        let token = signer.sign_with(&json!({"alg": name, "kid": kid}), &claims("main"));
        let (header, rest) = token.split_once('.').unwrap();
        let changed = json!({"alg": name, "kid": kid, "x": 1}).to_string();
        for changed in [
            format!("{}.{rest}", URL_SAFE_NO_PAD.encode_to_string(changed)),
            format!("{header}.{}", rest.replacen('e', "f", 1)),
        ] {
            let outcome = rig.verify(&changed).await;
            assert!(
                matches!(
                    outcome,
                    Err(VerifyError::Refused(
                        TokenFault::Signature | TokenFault::Malformed
                    ))
                ),
                "{name}: {outcome:?}"
            );
        }
    }
}

/// authorization.md 1.4.
#[tokio::test]
async fn a_key_that_the_token_brings_is_never_used() {
    let (rig, issuer, _signer) = one_source(|_| {}).await;
    let thief = Signer::es256("k1");
    let elsewhere = Issuer::start(&[&thief]).await;
    for header in [
        json!({"alg": "ES256", "kid": "k1", "jwk": thief.jwk()}),
        json!({"alg": "ES256", "kid": "k1", "jku": elsewhere.url, "x5u": elsewhere.url}),
        json!({"alg": "ES256", "jwk": thief.jwk()}),
    ] {
        assert_eq!(
            rig.verify(&thief.sign_with(&header, &claims("main"))).await,
            refused(TokenFault::Signature),
            "{header}"
        );
    }
    // A signature that fails may mean that the key was replaced under its `kid`: one fetch in the cooldown.
    assert_eq!((issuer.fetches(), elsewhere.fetches()), (2, 0));
}

/// authorization.md 1.11.
#[tokio::test]
async fn a_changed_token_is_refused() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    let token = signer.sign(&claims("main"));
    let parts: Vec<&str> = token.split('.').collect();
    let other = signer.sign(&with("sub", json!("18")));
    let payload = other.split('.').nth(1).unwrap();
    assert_eq!(
        rig.verify(&format!("{}.{payload}.{}", parts[0], parts[2]))
            .await,
        refused(TokenFault::Signature)
    );
    assert_eq!(
        rig.verify(&format!("{}.{}.", parts[0], parts[1])).await,
        refused(TokenFault::Signature)
    );
    let cut = &token[..token.len() - 2];
    assert!(matches!(
        rig.verify(cut).await,
        Err(VerifyError::Refused(
            TokenFault::Signature | TokenFault::Malformed
        ))
    ));
    for garbage in [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        &format!("{token}.x"),
        &token.replace('.', " "),
        &format!(" {token}"),
    ] {
        assert_eq!(
            rig.verify(garbage).await,
            refused(TokenFault::Malformed),
            "{garbage}"
        );
    }
    let list = signer.sign_with(&json!(["ES256", "k1"]), &claims("main"));
    assert_eq!(rig.verify(&list).await, refused(TokenFault::Malformed));
    let deep = signer.sign_with(
        &json!({"alg": "ES256", "kid": "k1"}),
        &serde_json::from_str(&format!("{}1{}", "[".repeat(90), "]".repeat(90))).unwrap(),
    );
    assert_eq!(rig.verify(&deep).await, refused(TokenFault::Malformed));
}

/// authorization.md 1.3.
#[tokio::test]
async fn a_token_of_another_kind_or_with_an_unknown_extension_is_refused() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    for (member, value, good) in [
        ("typ", json!("JWT"), true),
        ("typ", json!("at+jwt"), true),
        ("typ", json!("application/at+JWT"), true),
        ("typ", json!("logout+jwt"), false),
        ("typ", json!("application/dpop+jwt"), false),
        ("crit", json!(["exp"]), false),
        ("crit", json!([]), false),
        ("crit", json!(null), false),
    ] {
        let mut header = json!({"alg": "ES256", "kid": "k1"});
        header[member] = value.clone();
        let outcome = rig
            .verify(&signer.sign_with(&header, &claims("main")))
            .await;
        if good {
            assert!(outcome.is_ok(), "{member} = {value}")
        } else {
            assert_eq!(outcome, refused(TokenFault::Kind), "{member} = {value}")
        }
    }
}

/// authorization.md 1.15.
#[tokio::test]
async fn a_list_for_an_object_and_a_name_that_stands_twice_are_refused() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    let header = r#"{"alg":"ES256","kid":"k1"}"#;
    let good = claims("main").to_string();
    let twice = |member: &str| format!("{},{member}}}", good.trim_end_matches('}'));
    for (header, payload) in [
        (
            header,
            r#"["https://main.test/","signal",99999999999]"#.to_owned(),
        ),
        (header, twice(r#""sub":"18""#)),
        (header, twice(r#""exp":99999999999"#)),
        (header, twice(r#""note":1,"n\u006fte":2"#)),
        (r#"{"alg":"ES256","kid":"k1","alg":"ES256"}"#, good.clone()),
        (r#"["JWT","ES256",null,null,null,"k1"]"#, good.clone()),
    ] {
        let token = signer.sign_text(header, &payload);
        assert_eq!(
            rig.verify(&token).await,
            refused(TokenFault::Malformed),
            "{header} {payload}"
        );
    }
    rig.verify(&signer.sign_text(header, &good)).await.unwrap();
}

/// authorization.md 1.15: a name that was cut within an emoji locks nobody out, and a claim that decides is not passed over.
#[tokio::test]
async fn a_claim_that_cannot_be_read_is_refused_where_it_is_needed_and_only_there() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    let header = r#"{"alg":"ES256","kid":"k1"}"#;
    let good = claims("main").to_string();
    let with = |member: &str| {
        let payload = format!("{},{member}}}", good.trim_end_matches('}'));
        signer.sign_text(header, &payload)
    };
    for unneeded in [
        r#""name":"Ann \ud83d""#,
        r#""score":1e400"#,
        r#""roles":"\ud83d""#,
    ] {
        let principal = rig.verify(&with(unneeded)).await.unwrap();
        assert_eq!(&*principal.subject, "17", "{unneeded}");
    }
    for (needed, fault) in [
        (r#""nbf":1e400"#, TokenFault::Malformed),
        (r#""principalType":"\ud83d""#, TokenFault::Subject),
    ] {
        assert_eq!(rig.verify(&with(needed)).await, refused(fault), "{needed}");
    }
    let other = good.replace(r#""sub":"17""#, r#""sub":"\ud83d","userId":"18""#);
    assert_ne!(other, good);
    assert_eq!(
        rig.verify(&signer.sign_text(header, &other)).await,
        refused(TokenFault::Subject)
    );
}

/// authorization.md 1.7.
#[tokio::test]
async fn times_that_rfc_3339_cannot_write_are_refused() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    let (first, last) = (-62_167_219_200_i64, 253_402_300_799_i64);
    rig.verify(&signer.sign(&with("exp", json!(last))))
        .await
        .unwrap();
    rig.verify(&signer.sign(&with("iat", json!(first))))
        .await
        .unwrap();
    for (name, value) in [
        ("exp", json!(last + 1)),
        // Milliseconds by mistake.
        ("exp", json!((NOW + 3600) * 1000)),
        ("iat", json!(first - 1)),
        ("nbf", json!(first - 1)),
        ("nbf", json!(i64::MIN)),
    ] {
        assert_eq!(
            rig.verify(&signer.sign(&with(name, value.clone()))).await,
            refused(TokenFault::Malformed),
            "{name} = {value}"
        );
    }
}

/// authorization.md 1.1.
#[tokio::test]
async fn an_oversized_token_is_refused_without_parsing() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    let token = signer.sign(&with("note", json!("x".repeat(MAX_TOKEN_BYTES))));
    assert_eq!(rig.verify(&token).await, refused(TokenFault::TooLong));
    // As large as those of an identity provider that lists every group.
    let large = signer.sign(&with("note", json!("x".repeat(15_000))));
    assert!((20_000..MAX_TOKEN_BYTES).contains(&large.len()));
    rig.verify(&large).await.unwrap();
}

/// authorization.md 1.4.
#[tokio::test]
async fn without_kid_exactly_one_key_must_be_for_the_algorithm() {
    let (rig, issuer, signer) = one_source(|_| {}).await;
    let token = signer.sign_with(&json!({"alg": "ES256"}), &claims("main"));
    let (named, unnamed) = (
        rig.verify(&signer.sign(&claims("main"))).await.unwrap(),
        rig.verify(&token).await.unwrap(),
    );
    assert_eq!(facts(&named).thumbprint, facts(&unnamed).thumbprint);
    let second = Signer::es256("k2");
    issuer.publish(&[&signer, &second]);
    // An unknown `kid` brings the second key in.
    rig.verify(&second.sign(&claims("main"))).await.unwrap();
    assert_eq!(
        rig.verify(&signer.sign_with(&json!({"alg": "ES256"}), &with("jti", json!("t2"))))
            .await,
        refused(TokenFault::UnknownKey)
    );
    rig.verify(&signer.sign(&claims("main"))).await.unwrap();
    assert_eq!(issuer.fetches(), 2);
    // Of several keys one is for the algorithm.
    let other = Signer::ed25519("k3");
    issuer.publish(&[&signer, &second, &other]);
    rig.verify(&other.sign(&claims("main"))).await.unwrap_err();
    wait(Duration::from_secs(61)).await;
    rig.verify(&other.sign(&claims("main"))).await.unwrap();
    rig.verify(&other.sign_with(&json!({"alg": "EdDSA"}), &with("jti", json!("t3"))))
        .await
        .unwrap();
}

/// authorization.md 2.11.
#[tokio::test]
async fn a_key_that_was_replaced_under_its_kid_is_fetched_once_per_cooldown() {
    let (rig, issuer, old) = one_source(|_| {}).await;
    rig.verify(&old.sign(&claims("main"))).await.unwrap();
    let new = Signer::es256("k1");
    issuer.publish(&[&new]);
    rig.verify(&new.sign(&claims("main"))).await.unwrap();
    assert_eq!(issuer.fetches(), 2);
    assert_eq!(
        rig.verify(&old.sign(&with("jti", json!("t2")))).await,
        refused(TokenFault::Signature),
        "the old key is gone"
    );
    // Forged signatures cause one fetch per cooldown, and do not keep a later replacement away.
    let thief = Signer::es256("k1");
    for round in 0..2 {
        for n in 0..20 {
            let forged = thief.sign(&with("jti", json!(format!("{round}-{n}"))));
            assert_eq!(rig.verify(&forged).await, refused(TokenFault::Signature));
        }
        assert_eq!(issuer.fetches(), 2 + round);
        wait(Duration::from_secs(31)).await;
    }
    let newest = Signer::ed25519("k1");
    issuer.publish(&[&newest]);
    rig.verify(&newest.sign(&claims("main"))).await.unwrap();
    assert_eq!(issuer.fetches(), 4);
    // While the source is away, a wrong signature is still a refusal.
    wait(Duration::from_secs(31)).await;
    issuer.answer(503, "");
    for n in 0..3 {
        let forged = thief.sign(&with("jti", json!(format!("away-{n}"))));
        assert!(matches!(
            rig.verify(&forged).await,
            Err(VerifyError::Refused(_))
        ));
    }
    rig.verify(&newest.sign(&with("jti", json!("t9"))))
        .await
        .unwrap();
}

/// authorization.md 2.1 and 2.8.
#[tokio::test]
async fn two_sources_of_one_issuer_are_distinguished_by_kid_and_prefixes_separate_subjects() {
    let (old, new, foreign) = (
        Signer::es256("old"),
        Signer::es256("new"),
        Signer::es256("foreign"),
    );
    let (a, b, c) = (
        Issuer::start(&[&old]).await,
        Issuer::start(&[&new]).await,
        Issuer::start(&[&foreign]).await,
    );
    let (retiring, mut trusted, mut other) = (
        source("main", &a),
        source("next", &b),
        source("partner", &c),
    );
    trusted.issuer.clone_from(&retiring.issuer);
    other.subject_prefix = "partner:".into();
    let rig = Rig::start(vec![
        Source {
            state: SourceState::Retiring,
            ..retiring
        },
        trusted,
        other,
    ])
    .await;
    for (signer, name) in [(&old, "main"), (&new, "next")] {
        let principal = rig.verify(&signer.sign(&claims("main"))).await.unwrap();
        assert_eq!(
            (&*facts(&principal).source, &*principal.subject),
            (name, "17")
        );
    }
    assert_eq!(
        &*rig
            .verify(&foreign.sign(&claims("partner")))
            .await
            .unwrap()
            .subject,
        "partner:17"
    );
    // Another issuer's key does not speak for this one.
    assert_eq!(
        rig.verify(&foreign.sign(&claims("main"))).await,
        refused(TokenFault::UnknownKey)
    );
}

/// authorization.md 1.5 and 1.6.
#[tokio::test]
async fn waived_checks_are_waived_for_that_source_alone() {
    let (named, loose) = (Signer::es256("named"), Signer::es256("loose"));
    let (a, b) = (
        Issuer::start(&[&named]).await,
        Issuer::start(&[&loose]).await,
    );
    let mut fallback = source("loose", &b);
    (fallback.skip_issuer_check, fallback.skip_audience_check) = (true, true);
    (fallback.issuer, fallback.audiences) = (String::new(), vec![]);
    let rig = Rig::start(vec![source("main", &a), fallback]).await;
    let mut bare = with("iss", Value::Null);
    bare.as_object_mut().unwrap().remove("aud");
    for claims in [bare.clone(), claims("unknown"), claims("main")] {
        assert_eq!(
            &*facts(&rig.verify(&loose.sign(&claims)).await.unwrap()).source,
            "loose"
        );
    }
    rig.verify(&named.sign(&claims("main"))).await.unwrap();
    for claims in [bare, claims("unknown")] {
        assert_eq!(
            rig.verify(&named.sign(&claims)).await,
            refused(TokenFault::UnknownKey)
        );
    }
}

/// authorization.md 1.11.
#[tokio::test]
async fn a_remembered_token_is_verified_again_after_its_time_its_key_or_its_settings_change() {
    let (rig, issuer, signer) = one_source(|_| {}).await;
    let token = signer.sign(&claims("main"));
    assert_eq!(
        rig.auth.verify_cached(&token),
        None,
        "it was never verified"
    );
    for _ in 0..3 {
        rig.verify(&token).await.unwrap();
    }
    let known = rig.auth.verify_cached(&token).unwrap().unwrap();
    assert!(
        Arc::ptr_eq(&known, &rig.verify(&token).await.unwrap()),
        "one principal for all connections of a token"
    );
    assert_eq!(
        rig.auth.verify_cached(&"x".repeat(MAX_TOKEN_BYTES + 1)),
        None
    );
    let remembered = || {
        rig.auth
            .inner
            .remembered
            .iter()
            .map(|shard| shard.lock().len())
            .sum::<usize>()
    };
    assert_eq!(remembered(), 1);
    rig.change(|live| live.jwks.sources[0].audiences = vec!["elsewhere".into()]);
    let settled = || rig.auth.inner.sets.table().sources[0].source.audiences[0] == "elsewhere";
    crate::auth::fixture::until(settled).await;
    assert_eq!(rig.verify(&token).await, refused(TokenFault::Audience));
    rig.change(|live| live.jwks.sources[0].audiences = vec!["signal".into()]);
    crate::auth::fixture::until(|| !settled()).await;
    rig.verify(&token).await.unwrap();
    rig.clock.advance_ms((3600 + 30) * 1000 - 1);
    rig.verify(&token).await.unwrap();
    rig.clock.advance_ms(1);
    assert_eq!(
        rig.auth.verify_cached(&token),
        None,
        "only the full verification finds the fault"
    );
    assert_eq!(rig.verify(&token).await, refused(TokenFault::Expired));
    assert_eq!(remembered(), 0);
    assert_eq!(issuer.fetches(), 1);
}

/// authorization.md 3.2.
#[tokio::test]
async fn a_revoked_token_is_refused_even_if_it_is_remembered() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    let (token, other) = (
        signer.sign(&claims("main")),
        signer.sign(&with("jti", json!("t2"))),
    );
    rig.verify(&token).await.unwrap();
    let until_ms = (NOW + 9000) * 1000;
    rig.revocations.add(Revocation {
        user_id: None,
        jti: Some("t1".into()),
        issued_before_ms: NOW * 1000 + 1,
        until_ms,
    });
    assert_eq!(rig.verify(&token).await, refused(TokenFault::Revoked));
    assert_eq!(
        rig.auth.verify_cached(&token),
        Some(refused(TokenFault::Revoked))
    );
    rig.verify(&other).await.unwrap();
    rig.revocations.add(Revocation {
        user_id: Some("17".into()),
        jti: None,
        issued_before_ms: NOW * 1000 + 1,
        until_ms,
    });
    assert_eq!(rig.verify(&other).await, refused(TokenFault::Revoked));
    let younger = signer.sign(&with("iat", json!(NOW + 1)));
    // Same `jti` as the revoked token, but issued after the time of the revocation.
    rig.verify(&younger).await.unwrap();
    assert_eq!(rig.outcomes("revoked"), 3);
}

/// authorization.md 3.5.
#[tokio::test]
async fn while_revocations_are_not_known_a_token_is_neither_accepted_nor_called_wrong() {
    let (rig, _issuer, signer) = one_source(|_| {}).await;
    let (token, revoked) = (
        signer.sign(&claims("main")),
        signer.sign(&with("jti", json!("t2"))),
    );
    rig.verify(&token).await.unwrap();
    rig.revocations.add(Revocation {
        user_id: None,
        jti: Some("t2".into()),
        issued_before_ms: NOW * 1000 + 1,
        until_ms: (NOW + 9000) * 1000,
    });
    rig.revocations.set_whole_until(tokio::time::Instant::now());
    rig.verify(&token).await.unwrap();
    wait(crate::auth::MAX_BLIND + Duration::from_millis(1)).await;
    let unknown = rig.verify(&token).await;
    assert!(
        matches!(unknown, Err(VerifyError::Unavailable(_))),
        "one that was remembered as well: {unknown:?}"
    );
    let unknown = rig.verify(&signer.sign(&with("jti", json!("t3")))).await;
    assert!(
        matches!(unknown, Err(VerifyError::Unavailable(_))),
        "{unknown:?}"
    );
    assert_eq!(rig.verify(&revoked).await, refused(TokenFault::Revoked));
    let principal = Principal {
        subject: "17".into(),
        kind: USER.into(),
        roles: Box::default(),
        via: Via::Basic,
    };
    assert!(
        rig.auth.trusts(&principal),
        "open connections are not looked at"
    );
    rig.revocations.follow();
    rig.verify(&token).await.unwrap();
}

/// authorization.md 2.9.
#[tokio::test]
async fn without_any_source_it_is_ready_and_refuses() {
    let rig = Rig::start(vec![]).await;
    assert_eq!(
        rig.verify(&Signer::es256("k").sign(&claims("main"))).await,
        refused(TokenFault::Issuer)
    );
    assert!(rig.auth.status().is_empty());
}

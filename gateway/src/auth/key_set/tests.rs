use super::*;
use crate::auth::fixture::{Issuer, Rig, Signer, claims, facts, source, source_at, until, wait};
use crate::auth::{TokenFault, VerifyError};
use crate::config::{Algorithm, SourceState};
use serde_json::json;

const UNKNOWN: VerifyError = VerifyError::Refused(TokenFault::UnknownKey);

fn is_unavailable<T>(outcome: &Result<T, VerifyError>) -> bool {
    matches!(outcome, Err(VerifyError::Unavailable(_)))
}

/// authorization.md 2.9.
#[tokio::test]
async fn it_is_ready_once_every_accepted_source_was_fetched() {
    let (a, b) = (Signer::es256("a"), Signer::es256("b"));
    let (up, down) = (Issuer::start(&[&a]).await, Issuer::start(&[&b]).await);
    down.answer(503, "");
    let rig = Rig::start_unready(vec![source("up", &up), source("down", &down)], |_| {}).await;
    assert!(rig.auth.unready_reason().is_some());
    until(|| {
        rig.auth
            .unready_reason()
            .is_some_and(|why| why == "key source down: the answer is 503, not 200")
    })
    .await;
    rig.verify(&a.sign(&claims("up"))).await.unwrap();
    assert!(is_unavailable(&rig.verify(&b.sign(&claims("down"))).await));
    down.publish(&[&b]);
    until(|| rig.auth.unready_reason().is_none()).await;
    rig.verify(&b.sign(&claims("down"))).await.unwrap();
    // From here on one unreachable source does not make the gateway unready.
    rig.change(|live| {
        live.jwks
            .sources
            .push(source_at("lost", "http://127.0.0.1:1/certs"))
    });
    until(|| rig.auth.status().len() == 3 && rig.auth.status()[2].error.is_some()).await;
    assert_eq!(rig.auth.unready_reason(), None);
    rig.change(|live| live.jwks.sources.drain(..2).for_each(drop));
    until(|| rig.auth.unready_reason().is_some()).await;
}

/// authorization.md 1.12.
#[tokio::test]
async fn a_verification_during_the_first_fetch_waits_for_it() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    issuer.hold();
    let rig = Rig::start_unready(vec![source("main", &issuer)], |_| {}).await;
    until(|| issuer.fetches() == 1).await;
    let token = signer.sign(&claims("main"));
    let (outcome, ()) = tokio::join!(rig.verify(&token), async {
        tokio::task::yield_now().await;
        issuer.release();
    });
    outcome.unwrap();
    assert_eq!(issuer.fetches(), 1);
}

/// authorization.md 2.3.
#[tokio::test]
async fn an_unknown_kid_causes_one_fetch_for_all_who_bring_it() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let issuer = Issuer::start(&[&old]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    issuer.publish(&[&old, &new]);
    issuer.hold();
    let tokens: Vec<String> = (0..50)
        .map(|n| {
            let mut claims = claims("main");
            claims["jti"] = json!(n);
            new.sign(&claims)
        })
        .collect();
    let all = futures_util::future::join_all(tokens.iter().map(|token| rig.verify(token)));
    let (outcomes, ()) = tokio::join!(all, async {
        until(|| issuer.fetches() == 2).await;
        issuer.release();
    });
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(issuer.fetches(), 2);
}

/// authorization.md 2.3.
#[tokio::test]
async fn random_kids_cause_one_fetch_per_cooldown_and_no_more() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    let storm = async |round: usize| {
        let tokens: Vec<String> = (0..100)
            .map(|n| {
                signer.sign_with(
                    &json!({"alg": "ES256", "kid": format!("random-{round}-{n}")}),
                    &claims("main"),
                )
            })
            .collect();
        let outcomes =
            futures_util::future::join_all(tokens.iter().map(|token| rig.verify(token))).await;
        assert!(
            outcomes.iter().all(|outcome| *outcome == Err(UNKNOWN)),
            "{outcomes:?}"
        );
        for token in &tokens {
            assert_eq!(rig.verify(token).await, Err(UNKNOWN));
        }
    };
    storm(0).await;
    assert_eq!(issuer.fetches(), 2);
    wait(Duration::from_secs(29)).await;
    storm(1).await;
    assert_eq!(issuer.fetches(), 2);
    wait(Duration::from_secs(2)).await;
    storm(2).await;
    assert_eq!(issuer.fetches(), 3);
    rig.verify(&signer.sign(&claims("main"))).await.unwrap();
}

/// authorization.md 2.3.
#[tokio::test]
async fn a_kid_that_a_fetch_did_not_find_causes_no_other_fetch_for_a_while() {
    let (signer, stranger) = (Signer::es256("k1"), Signer::es256("never"));
    let issuer = Issuer::start(&[&signer]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    let bad = stranger.sign(&claims("main"));
    assert_eq!(rig.verify(&bad).await, Err(UNKNOWN));
    assert_eq!(issuer.fetches(), 2);
    wait(Duration::from_secs(31)).await;
    assert_eq!(rig.verify(&bad).await, Err(UNKNOWN));
    assert_eq!(issuer.fetches(), 2);
    // Another `kid` may still cause a fetch, which brings what was published meanwhile.
    let late = Signer::es256("late");
    issuer.publish(&[&signer, &late, &stranger]);
    rig.verify(&late.sign(&claims("main"))).await.unwrap();
    rig.verify(&bad).await.unwrap();
    assert_eq!(issuer.fetches(), 3);
}

/// authorization.md 1.12.
#[tokio::test]
async fn an_unknown_kid_whose_fetch_fails_is_unavailable_and_not_refused() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let issuer = Issuer::start(&[&old]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    issuer.answer(500, "");
    let token = new.sign(&claims("main"));
    assert!(is_unavailable(&rig.verify(&token).await));
    assert!(is_unavailable(&rig.verify(&token).await));
    rig.verify(&old.sign(&claims("main"))).await.unwrap();
    issuer.publish(&[&new]);
    // The retry in the background brings it, without any more tokens.
    until(|| rig.auth.status()[0].keys == ["new"]).await;
    rig.verify(&token).await.unwrap();
}

/// authorization.md 2.6.
#[tokio::test]
async fn a_withdrawn_key_stops_working_at_the_next_refresh() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let issuer = Issuer::start(&[&old, &new]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    let token = old.sign(&claims("main"));
    let principal = rig.verify(&token).await.unwrap();
    let mut changes = rig.auth.changes();
    changes.mark_unchanged();
    issuer.publish(&[&new]);
    wait(Duration::from_secs(301)).await;
    until(|| issuer.fetches() == 2 && rig.auth.status()[0].keys == ["new"]).await;
    assert!(changes.has_changed().unwrap());
    assert!(!rig.auth.still_valid(facts(&principal)));
    assert_eq!(rig.verify(&token).await, Err(UNKNOWN));
    rig.verify(&new.sign(&claims("main"))).await.unwrap();
}

/// authorization.md 2.6.
#[tokio::test]
async fn a_new_key_with_the_same_kid_is_a_different_key() {
    let (old, new) = (Signer::es256("1"), Signer::es256("1"));
    let issuer = Issuer::start(&[&old]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    let token = old.sign(&claims("main"));
    let principal = rig.verify(&token).await.unwrap();
    assert!(rig.auth.still_valid(facts(&principal)));
    issuer.publish(&[&new]);
    wait(Duration::from_secs(301)).await;
    until(|| !rig.auth.still_valid(facts(&principal))).await;
    assert_eq!(
        rig.verify(&token).await,
        Err(VerifyError::Refused(TokenFault::Signature))
    );
    rig.verify(&new.sign(&claims("main"))).await.unwrap();
}

#[tokio::test]
async fn an_unchanged_set_reports_no_change() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    let mut changes = rig.auth.changes();
    changes.mark_unchanged();
    wait(Duration::from_secs(301)).await;
    let fetched = SourceKind {
        source: "main".into(),
        kind: "ok".into(),
    };
    until(|| rig.metrics.key_fetches.get_or_create(&fetched).get() == 2).await;
    assert!(!changes.has_changed().unwrap());
}

/// authorization.md 2.2.
#[tokio::test]
async fn keys_are_used_during_an_outage_until_they_are_too_old() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    let claims = |n: i64| {
        let mut claims = claims("main");
        (claims["jti"], claims["exp"]) = (json!(n), json!(crate::auth::fixture::NOW + 1_000_000));
        signer.sign(&claims)
    };
    let remembered = claims(0);
    let principal = rig.verify(&remembered).await.unwrap();
    issuer.answer(500, "");
    wait(Duration::from_secs(301)).await;
    until(|| rig.auth.status()[0].error.is_some()).await;
    rig.clock.advance_ms(43_200_000);
    rig.verify(&remembered).await.unwrap();
    rig.verify(&claims(1)).await.unwrap();
    assert_eq!(rig.auth.unready_reason(), None);
    rig.clock.advance_ms(1);
    assert!(is_unavailable(&rig.verify(&remembered).await));
    assert!(is_unavailable(&rig.verify(&claims(2)).await));
    assert!(
        rig.auth
            .unready_reason()
            .unwrap()
            .contains("the answer is 500")
    );
    assert!(
        rig.auth.status()[0]
            .error
            .as_ref()
            .unwrap()
            .starts_with("its keys are too old")
    );
    // Open connections stay, because the key was not withdrawn.
    assert!(rig.auth.still_valid(facts(&principal)));
    issuer.publish(&[&signer]);
    until(|| rig.auth.unready_reason().is_none()).await;
    rig.verify(&remembered).await.unwrap();
    assert_eq!(rig.auth.status()[0].error, None);
    let failed = SourceKind {
        source: "main".into(),
        kind: "error".into(),
    };
    assert!(rig.metrics.key_fetches.get_or_create(&failed).get() >= 1);
}

/// authorization.md 2.2.
#[tokio::test]
async fn an_answer_that_is_no_key_set_keeps_the_last_good_set() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let elsewhere = Issuer::start(&[&signer]).await;
    let rig = Rig::start_unready(vec![source("main", &issuer)], |live| {
        live.jwks.max_bytes = 2000
    })
    .await;
    until(|| rig.auth.unready_reason().is_none()).await;
    let padded = json!({"keys": [signer.jwk()], "padding": "x".repeat(2000)}).to_string();
    let many = json!({"keys": vec![json!({}); 65]}).to_string();
    let answers = [
        (200, "<html>".to_owned(), "it is not a JWK Set"),
        (200, padded, "longer than 2000 bytes"),
        (200, many, "65 keys"),
        (204, String::new(), "the answer is 204"),
    ];
    for (status, body, error) in answers {
        issuer.answer(status, body);
        wait(Duration::from_secs(301)).await;
        until(|| {
            rig.auth.status()[0]
                .error
                .as_ref()
                .is_some_and(|e| e.contains(error))
        })
        .await;
    }
    issuer.redirect(&elsewhere.url);
    wait(Duration::from_secs(301)).await;
    until(|| {
        rig.auth.status()[0]
            .error
            .as_ref()
            .is_some_and(|e| e.contains("302"))
    })
    .await;
    assert_eq!(elsewhere.fetches(), 0);
    assert_eq!(rig.auth.status()[0].keys, ["k1"]);
    rig.verify(&signer.sign(&claims("main"))).await.unwrap();
}

#[tokio::test]
async fn a_fetch_ends_in_time() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    issuer.hold();
    let rig = Rig::start_unready(vec![source("main", &issuer)], |live| {
        live.jwks.request_timeout_ms = 100
    })
    .await;
    until(|| {
        rig.auth
            .unready_reason()
            .is_some_and(|why| why.contains("no whole answer within 100 ms"))
    })
    .await;
    issuer.release();
    until(|| rig.auth.unready_reason().is_none()).await;
}

/// authorization.md 2.6.
#[tokio::test]
async fn an_empty_set_withdraws_every_key() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    issuer.publish(&[]);
    wait(Duration::from_secs(301)).await;
    until(|| rig.auth.status()[0].keys.is_empty()).await;
    assert_eq!(
        rig.verify(&signer.sign(&claims("main"))).await,
        Err(UNKNOWN)
    );
    assert!(
        rig.auth
            .unready_reason()
            .unwrap()
            .contains("no key in the set can be used")
    );
}

/// authorization.md 2.5.
#[tokio::test]
async fn a_source_passes_from_prepared_to_trusted_retiring_and_removed() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let (a, b) = (Issuer::start(&[&old]).await, Issuer::start(&[&new]).await);
    let (first, mut second) = (source("first", &a), source("second", &b));
    second.issuer.clone_from(&first.issuer);
    second.state = SourceState::Prepared;
    let rig = Rig::start(vec![first, second]).await;
    let (by_old, by_new) = (old.sign(&claims("first")), new.sign(&claims("first")));
    let old_facts = rig.verify(&by_old).await.unwrap();
    // Fetched and shown, but not accepted.
    until(|| rig.auth.status()[1].keys == ["new"]).await;
    assert_eq!(rig.auth.status()[1].state, Some(SourceState::Prepared));
    assert_eq!(rig.verify(&by_new).await, Err(UNKNOWN));

    let state = async |at: usize, state: SourceState| {
        rig.change(|live| live.jwks.sources[at].state = state);
        until(|| rig.auth.status()[at].state == Some(state)).await;
    };
    state(1, SourceState::Trusted).await;
    let new_facts = rig.verify(&by_new).await.unwrap();
    rig.verify(&by_old).await.unwrap();
    state(0, SourceState::Retiring).await;
    rig.verify(&by_old).await.unwrap();
    assert!(rig.auth.still_valid(facts(&old_facts)));

    let mut changes = rig.auth.changes();
    changes.mark_unchanged();
    rig.change(|live| drop(live.jwks.sources.remove(0)));
    tokio::time::timeout(Duration::from_secs(10), changes.changed())
        .await
        .unwrap()
        .unwrap();
    assert!(!rig.auth.still_valid(facts(&old_facts)));
    assert!(rig.auth.still_valid(facts(&new_facts)));
    assert!(rig.verify(&by_old).await.is_err());
    rig.verify(&by_new).await.unwrap();
    // One fetch each at the start and one each for the `kid` that only the other source had: changes of state cause no fetch.
    assert_eq!((a.fetches(), b.fetches()), (2, 2));
}

/// authorization.md 2.5.
#[tokio::test]
async fn a_source_that_is_prepared_again_is_not_accepted() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    let token = signer.sign(&claims("main"));
    let principal = rig.verify(&token).await.unwrap();
    rig.change(|live| live.jwks.sources[0].state = SourceState::Prepared);
    until(|| !rig.auth.still_valid(facts(&principal))).await;
    assert_eq!(
        rig.verify(&token).await,
        Err(VerifyError::Refused(TokenFault::Issuer))
    );
}

#[tokio::test]
async fn changed_settings_fetch_only_new_sources() {
    let (a, b) = (Signer::es256("a"), Signer::es256("b"));
    let (first, second) = (Issuer::start(&[&a]).await, Issuer::start(&[&b]).await);
    let rig = Rig::start(vec![source("first", &first)]).await;
    let principal = rig.verify(&a.sign(&claims("first"))).await.unwrap();
    rig.change(|live| {
        live.jwks.sources[0].audiences.push("more".into());
        live.jwks.sources[0].algorithms = vec![Algorithm::ES256];
        live.jwks.sources.insert(0, source("second", &second));
    });
    until(|| {
        rig.auth
            .status()
            .first()
            .is_some_and(|s| s.name == "second" && s.keys == ["b"])
    })
    .await;
    rig.verify(&b.sign(&claims("second"))).await.unwrap();
    rig.verify(&a.sign(&claims("first"))).await.unwrap();
    assert_eq!((first.fetches(), second.fetches()), (1, 1));
    // Another address under the same name is another source: its keys are fetched before trust in open connections is judged.
    first.hold();
    let moved = Issuer::start(&[&b]).await;
    moved.hold();
    rig.change(|live| live.jwks.sources[1].url = Some(moved.url.parse().unwrap()));
    until(|| moved.fetches() == 1).await;
    assert!(rig.auth.still_valid(facts(&principal)));
    moved.release();
    until(|| !rig.auth.still_valid(facts(&principal))).await;
}

#[tokio::test]
async fn the_age_of_a_set_is_a_metric_that_goes_with_its_source() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[&signer]).await;
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    rig.clock.advance_ms(77_000);
    wait(AGE_INTERVAL).await;
    until(|| {
        rig.metrics
            .render()
            .contains("signal_key_set_age_seconds{source=\"main\"} 77")
    })
    .await;
    assert!(
        rig.metrics
            .render()
            .contains("signal_key_set_fetches_total{source=\"main\",kind=\"ok\"} 1")
    );
    rig.change(|live| live.jwks.sources.clear());
    until(|| !rig.metrics.render().contains("signal_key_set_age_seconds{")).await;
    let status = serde_json::to_value(KeySourceReport {
        name: "main".into(),
        state: Some(SourceState::Trusted),
        keys: vec!["k1".into()],
        refreshed_at: None,
        error: None,
    });
    assert_eq!(
        status.unwrap(),
        json!({"name": "main", "state": "trusted", "keys": ["k1"], "refreshedAt": null, "error": null})
    );
}

#[tokio::test]
async fn the_task_ends_with_the_shutdown() {
    let rig = Rig::start(vec![]).await;
    rig.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), rig.task)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_ca_file_is_the_only_authority_for_its_source() {
    let signer = Signer::es256("k1");
    let url = tls_issuer(json!({"keys": [signer.jwk()]}).to_string());
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, "no certificate").unwrap();
    let mut main = source_at("main", &url);
    (main.ca_file, main.allow_insecure_http) = (ca_file.clone(), false);
    let system = Source {
        name: "system".into(),
        ca_file: Default::default(),
        state: SourceState::Prepared,
        ..main.clone()
    };
    let rig = Rig::start_unready(vec![main, system], |_| {}).await;
    until(|| {
        rig.auth
            .unready_reason()
            .is_some_and(|why| why.contains("the CA file cannot be used"))
    })
    .await;
    // The file is read again at the next attempt.
    std::fs::write(&ca_file, include_str!("../fixture/authority.pem")).unwrap();
    until(|| rig.auth.unready_reason().is_none()).await;
    rig.verify(&signer.sign(&claims("main"))).await.unwrap();
    until(|| {
        rig.auth.status()[1]
            .error
            .as_ref()
            .is_some_and(|error| error.contains("the request failed"))
    })
    .await;
}

#[tokio::test]
async fn a_changed_ca_file_is_used_when_the_settings_come_again() {
    let signer = Signer::es256("k1");
    let url = tls_issuer(json!({"keys": [signer.jwk()]}).to_string());
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, include_str!("../fixture/authority.pem")).unwrap();
    let mut main = source_at("main", &url);
    (main.ca_file, main.allow_insecure_http) = (ca_file.clone(), false);
    let rig = Rig::start(vec![main]).await;
    std::fs::write(&ca_file, "no certificate").unwrap();
    rig.change(|_| {});
    until(|| {
        rig.auth.status()[0]
            .error
            .as_ref()
            .is_some_and(|error| error.contains("the CA file cannot be used"))
    })
    .await;
    rig.verify(&signer.sign(&claims("main"))).await.unwrap();
    std::fs::write(&ca_file, include_str!("../fixture/authority.pem")).unwrap();
    rig.change(|_| {});
    until(|| rig.auth.status()[0].error.is_none()).await;
}

fn in_file(name: &str, path: &std::path::Path) -> Source {
    Source {
        url: None,
        keys_file: path.to_owned(),
        ..source_at(name, "https://unused.test/")
    }
}

/// authorization.md 2.1.
#[tokio::test]
async fn keys_from_a_file_follow_its_content() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let write = |signers: &[&Signer]| {
        let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
        std::fs::write(&path, json!({ "keys": keys }).to_string()).unwrap();
    };
    write(&[&old]);
    let rig = Rig::start(vec![in_file("main", &path)]).await;
    let principal = rig.verify(&old.sign(&claims("main"))).await.unwrap();
    write(&[&old, &new]);
    rig.change(|_| {});
    until(|| rig.auth.status()[0].keys == ["old", "new"]).await;
    rig.verify(&new.sign(&claims("main"))).await.unwrap();
    assert!(rig.auth.still_valid(facts(&principal)));
    write(&[&new]);
    rig.change(|_| {});
    until(|| !rig.auth.still_valid(facts(&principal))).await;
    assert_eq!(rig.verify(&old.sign(&claims("main"))).await, Err(UNKNOWN));
    // A file that cannot be read or is too long keeps the last keys.
    std::fs::write(&path, "x".repeat(300_000)).unwrap();
    rig.change(|_| {});
    until(|| {
        rig.auth.status()[0]
            .error
            .as_ref()
            .is_some_and(|error| error.contains("longer than 262144 bytes"))
    })
    .await;
    std::fs::remove_file(&path).unwrap();
    rig.change(|_| {});
    until(|| {
        rig.auth.status()[0]
            .error
            .as_ref()
            .is_some_and(|error| error.contains("the keys file cannot be read"))
    })
    .await;
    rig.verify(&new.sign(&claims("main"))).await.unwrap();
    assert_eq!(rig.auth.unready_reason(), None);
}

/// authorization.md 2.3.
#[tokio::test]
async fn an_unknown_kid_causes_the_file_to_be_read_again() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    std::fs::write(&path, json!({"keys": [old.jwk()]}).to_string()).unwrap();
    let rig = Rig::start(vec![in_file("main", &path)]).await;
    std::fs::write(&path, json!({"keys": [old.jwk(), new.jwk()]}).to_string()).unwrap();
    rig.verify(&new.sign(&claims("main"))).await.unwrap();
}

/// authorization.md 2.7.
#[tokio::test]
async fn a_revoked_source_is_refused_whether_listed_or_not() {
    let (a, b) = (Signer::es256("a"), Signer::es256("b"));
    let (first, second) = (Issuer::start(&[&a]).await, Issuer::start(&[&b]).await);
    let rig = Rig::start(vec![source("first", &first), source("second", &second)]).await;
    let (mine, yours) = (a.sign(&claims("first")), b.sign(&claims("second")));
    let (me, you) = (
        rig.verify(&mine).await.unwrap(),
        rig.verify(&yours).await.unwrap(),
    );
    let mut changes = rig.auth.changes();
    rig.change(|live| live.jwks.revoked_sources = vec!["first".into()]);
    until(|| changes.has_changed().unwrap()).await;
    assert!(rig.auth.is_revoked(&me) && !rig.auth.trusts(&me));
    assert_eq!(
        rig.verify(&mine).await,
        Err(VerifyError::Refused(TokenFault::Revoked))
    );
    assert!(
        rig.auth.status()[0]
            .error
            .as_ref()
            .is_some_and(|error| error.contains("revoked_sources"))
    );
    assert_eq!(
        rig.auth.unready_reason(),
        None,
        "the other source is enough"
    );
    assert!(!rig.auth.is_revoked(&you) && rig.auth.trusts(&you));
    rig.verify(&yours).await.unwrap();

    // A source that was removed first, with time to refresh, and revoked later is reported as well.
    rig.change(|live| {
        (
            live.jwks.revoked_sources.clear(),
            live.jwks.sources.remove(1),
        )
            .0
    });
    until(|| rig.auth.status().len() == 1).await;
    assert!(!rig.auth.is_revoked(&you) && !rig.auth.trusts(&you));
    until(|| rig.auth.status()[0].error.is_none()).await;
    changes.mark_unchanged();
    rig.change(|live| live.jwks.revoked_sources = vec!["second".into()]);
    until(|| changes.has_changed().unwrap()).await;
    assert!(rig.auth.is_revoked(&you) && !rig.auth.is_revoked(&me));
    rig.verify(&mine).await.unwrap();
}

/// Serves one body over TLS on loopback, from a thread that ends with the process.
fn tls_issuer(body: String) -> String {
    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
    use std::io::{Read, Write};
    let certificate = CertificateDer::from_slice(include_bytes!("../fixture/localhost.der"));
    let key = PrivatePkcs8KeyDer::from(include_bytes!("../fixture/localhost.key.der").as_slice());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![certificate.into_owned()], key.clone_key().into())
    .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!(
        "https://127.0.0.1:{}/certs",
        listener.local_addr().unwrap().port()
    );
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::Stream::new(&mut tls, &mut socket);
            // A client that does not trust the certificate ends the handshake here.
            if stream.read(&mut [0; 2048]).is_ok() {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + body.as_str()).as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    url
}

/// authorization.md 2.2 and 2.4.
#[tokio::test]
async fn a_compressed_key_set_is_read_and_bounded_by_what_it_unfolds_to() {
    let signer = Signer::es256("k1");
    let issuer = Issuer::start(&[]).await;
    issuer.answer_gzip(json!({"keys": [signer.jwk()]}).to_string().as_bytes());
    let rig = Rig::start(vec![source("main", &issuer)]).await;
    rig.verify(&signer.sign(&claims("main"))).await.unwrap();
    assert_eq!(issuer.accepted(), "gzip");
    // A few kilobytes that would be 64 MiB.
    let keys = json!({"keys": [signer.jwk()]}).to_string();
    issuer.answer_gzip(&[keys.as_bytes(), &vec![b' '; 64 << 20]].concat());
    let token = signer.sign_with(&json!({"alg": "ES256", "kid": "k2"}), &claims("main"));
    assert_eq!(
        rig.verify(&token).await,
        Err(VerifyError::Unavailable(
            "key source main: the answer is longer than 262144 bytes".into()
        ))
    );
    rig.verify(&signer.sign(&claims("main"))).await.unwrap();
}

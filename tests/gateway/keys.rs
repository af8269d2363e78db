//! Keys out of mounted files, the key set that is served to others, and sources that are revoked.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use signal_tests::gateway::source;
use signal_tests::issuer::Algorithm;
use signal_tests::wait::until;
use signal_tests::{Client, Gateway, Issuer, KeyMember};
use tokio::time::Instant;

use crate::admin;

const JWKS: &str = "/.well-known/jwks.json";

/// Replaces a file at once, as a mounted volume does.
fn put(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).expect("a writable folder");
    std::fs::rename(&draft, path).expect("a writable folder");
}

/// A source that trusts an issuer whose keys are in a file.
fn source_in(issuer: &Issuer, path: &Path) -> toml::Table {
    let mut source = source(issuer);
    source.remove("url");
    source.insert("keys_file".into(), path.display().to_string().into());
    source
}

async fn status(gateway: &Gateway) -> Value {
    gateway.admin("GET", "/status").await.expect(200).json()
}

async fn expect_live_error(gateway: &Gateway, part: &str) {
    until("the fault is told", || async {
        status(gateway).await["liveError"]
            .as_str()
            .is_some_and(|error| error.contains(part))
            .then_some(())
    })
    .await;
}

/// Authenticates with a token and returns `connected`, or the message of the error.
async fn outcome_of(gateway: &Gateway, token: &str) -> String {
    let mut client = Client::connect(gateway.address()).await;
    client.send_authenticate(token, KeyMember::None).await;
    let envelope = client.next_envelope().await;
    if envelope.event == "connected" {
        envelope.event
    } else {
        envelope.data["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

#[tokio::test]
async fn keys_rotate_in_a_file_while_clients_connect_with_old_and_new_tokens() {
    let issuer = Issuer::start().await;
    let settings = Gateway::build().set("auth.expiring_lead_secs", 5);
    let path = settings.dir().join("keys.json");
    put(&path, &issuer.key_set());
    let mut added = source_in(&issuer, &path);
    added.insert("name".into(), "managed".into());
    let gateway = settings.source(added).start().await;
    let old = issuer.token("17");
    let mut client = Client::open(gateway.address(), &old).await;
    let keys = async || status(&gateway).await["keySources"][0]["keys"].clone();
    assert_eq!(keys().await, json!(["key-1"]));

    issuer.add_key("key-2", Algorithm::ES256);
    let new = issuer.sign("key-2", &issuer.claims("17"));
    put(&path, &issuer.key_set());
    until("the new key is known", || async {
        (keys().await == json!(["key-1", "key-2"])).then_some(())
    })
    .await;
    for token in [&old, &new] {
        assert_eq!(outcome_of(&gateway, token).await, "connected");
    }
    issuer.publish("key-1", false);
    put(&path, &issuer.key_set());
    until("the old key is dropped", || async {
        (keys().await == json!(["key-2"])).then_some(())
    })
    .await;
    assert_eq!(outcome_of(&gateway, &old).await, "Authentication failed");
    assert_eq!(outcome_of(&gateway, &new).await, "connected");
    client.expect("expiring").await;
    client
        .send("refresh", json!({"type": "Bearer", "token": new}))
        .await;
    client.expect("refreshed").await;
    assert_eq!(issuer.fetches(), 0);
}

/// authorization.md 2.10.
#[tokio::test]
async fn the_key_set_is_served_from_its_file_and_follows_it() {
    let issuer = Issuer::start().await;
    let settings = Gateway::build()
        .trust(&issuer)
        .live("jwks.managed.cache_age_secs", 120);
    let path = settings.dir().join("jwks.json");
    let mut gateway = settings.start().await;
    assert_eq!(
        gateway.rest("GET", JWKS, "", None).await.expect(404).json()["code"],
        "not_found"
    );
    assert_eq!(status(&gateway).await["jwksFile"], Value::Null);

    put(&path, &issuer.key_set());
    gateway
        .reload(|live| {
            live["jwks"]["managed"]
                .as_table_mut()
                .unwrap()
                .insert("jwks_file".into(), path.display().to_string().into());
        })
        .await;
    let served = gateway.rest("GET", JWKS, "", None).await.expect(200);
    assert_eq!(
        served.json(),
        serde_json::from_str::<Value>(&issuer.key_set()).unwrap()
    );
    assert_eq!(
        (
            served.header("content-type"),
            served.header("cache-control")
        ),
        ("application/jwk-set+json", "public, max-age=120")
    );
    let etag = served.header("etag").to_owned();
    let ask = async || {
        let url = format!("http://{}{JWKS}", gateway.address());
        signal_tests::rest::http()
            .get(url)
            .header("if-none-match", &etag)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(ask().await, 304);
    let told = status(&gateway).await["jwksFile"].clone();
    assert_eq!(told["keys"], json!(["key-1"]));
    assert!(
        told["revision"]
            .as_str()
            .is_some_and(|revision| revision.starts_with("sha256:")),
        "{told}"
    );

    issuer.add_key("key-2", Algorithm::EdDSA);
    put(&path, &issuer.key_set());
    until("the changed set is served", || async {
        (ask().await == 200).then_some(())
    })
    .await;
    assert_eq!(
        gateway.rest("GET", JWKS, "", None).await.expect(200).json()["keys"][1]["kid"],
        "key-2"
    );

    // A private key is mounted by mistake: it is never served, and the key set before it stays.
    let mut set: Value = serde_json::from_str(&issuer.key_set()).unwrap();
    set["keys"][0]["d"] = "a-secret-scalar".into();
    put(&path, &set.to_string());
    expect_live_error(&gateway, "jwks.managed.jwks_file").await;
    let served = gateway.rest("GET", JWKS, "", None).await.expect(200);
    assert_eq!(
        served.json(),
        serde_json::from_str::<Value>(&issuer.key_set()).unwrap()
    );
    let told = format!("{}{}{}", served.text, status(&gateway).await, gateway.log());
    assert!(!told.contains("a-secret-scalar"));
    put(&path, &issuer.key_set());
    until("the fault is over", || async {
        status(&gateway).await["liveError"].is_null().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_named_and_missing_changes_nothing_until_it_is_there() {
    let (issuer, second) = (Issuer::start().await, Issuer::start().await);
    let mut gateway = Gateway::build().trust(&issuer).start().await;
    let before = status(&gateway).await["liveRevision"].clone();
    let path = gateway.file("later.json");
    let mut live = toml::Table::new();
    let mut added = source_in(&second, &path);
    added.insert("subject_prefix".into(), "second/".into());
    let sources = vec![source(&issuer), added];
    let jwks = toml::Table::from_iter([("sources".to_owned(), sources.into())]);
    live.insert("jwks".into(), jwks.into());
    gateway.write_live(&live.to_string());
    expect_live_error(&gateway, "jwks.sources[1].keys_file").await;
    assert_eq!(status(&gateway).await["liveRevision"], before);
    assert_eq!(
        outcome_of(&gateway, &second.token("17")).await,
        "Authentication failed"
    );
    put(&path, &second.key_set());
    until("it is taken up by itself", || async {
        let status = status(&gateway).await;
        (status["liveRevision"] != before && status["liveError"].is_null()).then_some(())
    })
    .await;
    until("the second issuer is trusted", || async {
        (outcome_of(&gateway, &second.token("17")).await == "connected").then_some(())
    })
    .await;

    // Whoever asks before a start is told.
    std::fs::remove_file(&path).unwrap();
    gateway.signal("TERM");
    gateway.expect_exit().await;
    let (status, text) = gateway.run_command(&["check-config"]).await;
    assert!(
        !status.success() && text.contains("jwks.sources[1].keys_file"),
        "{text}"
    );
}

fn gateway_log_has(gateway: &Gateway, text: &str) -> bool {
    gateway.log().contains(text)
}

#[tokio::test]
async fn a_start_waits_for_the_files_that_the_settings_name() {
    let issuer = Issuer::start().await;
    let settings = Gateway::build();
    let path = settings.dir().join("keys.json");
    let gateway = settings
        .source(source_in(&issuer, &path))
        .start_unready()
        .await;
    until("it says what is missing", || async {
        gateway_log_has(&gateway, "sources[0].keys_file").then_some(())
    })
    .await;
    gateway.expect_readiness(503).await;
    assert_eq!(
        gateway.metric("signal_unready", "settings").await,
        Some(1.0)
    );
    put(&path, &issuer.key_set());
    gateway.expect_ready().await;
    assert_eq!(
        gateway.metric("signal_unready", "settings").await,
        Some(0.0)
    );
    Client::open(gateway.address(), &issuer.token("17")).await;
}

/// authorization.md 2.7.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn a_revoked_source_closes_at_once_with_4006_whatever_lead_there_is() {
    let (first, second) = (Issuer::start().await, Issuer::start().await);
    let settings = Gateway::build()
        .trust(&first)
        .trust(&second)
        .set("auth.expiring_lead_secs", 600);
    let mut gateway = settings.start().await;
    let (token, name) = (
        first.token("17"),
        source(&first)["name"].as_str().unwrap().to_owned(),
    );
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::open(gateway.address(), &token).await);
    }
    let mut other = Client::open(gateway.address(), &second.token("17")).await;
    let begun = Instant::now();
    gateway
        .reload(|live| {
            drop(
                live["jwks"]
                    .as_table_mut()
                    .unwrap()
                    .insert("revoked_sources".into(), vec![name.clone()].into()),
            )
        })
        .await;
    for client in &mut clients {
        assert_eq!(client.expect_closed().await, (4006, "Revoked".into()));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        outcome_of(&gateway, &token).await,
        "Authentication failed",
        "although it is listed"
    );
    gateway
        .rest("GET", "/notifications", &token, None)
        .await
        .expect(401);
    until("all of them are counted", || async {
        (gateway
            .metric("signal_connections_closed_total", "4006")
            .await
            == Some(5.0))
        .then_some(())
    })
    .await;

    // The other goes as an emergency does: removed first, revoked afterwards, while its connections have time left.
    gateway
        .reload(|live| drop(live["jwks"]["sources"].as_array_mut().unwrap().remove(1)))
        .await;
    other.expect("expiring").await;
    let names = vec![name, source(&second)["name"].as_str().unwrap().to_owned()];
    gateway
        .reload(|live| {
            drop(
                live["jwks"]
                    .as_table_mut()
                    .unwrap()
                    .insert("revoked_sources".into(), names.into()),
            )
        })
        .await;
    assert_eq!(other.expect_closed().await, (4006, "Revoked".into()));

    gateway
        .reload(|live| {
            drop(
                live["jwks"]
                    .as_table_mut()
                    .unwrap()
                    .insert("revoked_sources".into(), toml::Value::Array(Vec::new())),
            )
        })
        .await;
    until("it is trusted again", || async {
        (outcome_of(&gateway, &token).await == "connected").then_some(())
    })
    .await;
    gateway
        .rest("GET", "/socket/websocket/clients", &admin(&first), None)
        .await
        .expect(200);
}

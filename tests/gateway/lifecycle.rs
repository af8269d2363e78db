//! From start to end: settings, reloads, the drain.

use std::time::Duration;

use serde_json::json;
use signal_tests::gateway::source;
use signal_tests::raw::upgrade_request;
use signal_tests::services;
use signal_tests::wait::until;
use signal_tests::{Client, Gateway, Issuer, Policies, Raw};
use tokio::time::Instant;

use crate::{Stage, admin};

/// protocol.md 7.2.
#[tokio::test]
async fn a_drain_is_not_ready_at_once_closes_in_batches_with_1001_and_exits_0() {
    let paced = |settings: signal_tests::gateway::Builder| {
        settings
            .set("drain.endpoint_propagation_ms", 3000)
            .set("drain.window_ms", 2000)
            .set("drain.batch_interval_ms", 200)
            .set("drain.min_batch", 1)
            .live("limits.connections_per_user", 0)
    };
    let mut stage = Stage::with(paced).await;
    let token = stage.issuer.token("17");
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::open(stage.gateway.address(), &token).await);
    }
    let begun = Instant::now();
    stage.gateway.signal("TERM");
    stage.gateway.expect_readiness(503).await;
    assert!(
        begun.elapsed() < Duration::from_millis(2900),
        "not ready before connections are closed"
    );
    let closing = clients.iter_mut().map(|client| async move {
        assert_eq!(
            client.expect_closed().await,
            (1001, "Server shutting down".into())
        );
        begun.elapsed()
    });
    let mut times = futures_util::future::join_all(closing).await;
    times.sort_unstable();
    assert!(
        times[0] >= Duration::from_millis(2900),
        "endpoints had time to notice: {times:?}"
    );
    assert!(
        times[19] - times[0] >= Duration::from_millis(1000),
        "spread over the window: {times:?}"
    );
    assert!(stage.gateway.expect_exit().await.success());
}

#[tokio::test]
async fn while_draining_new_connections_are_refused_and_open_ones_are_served() {
    let stage = Stage::with(|settings| settings.set("drain.endpoint_propagation_ms", 60_000)).await;
    let mut client = stage.client("17").await;
    stage.gateway.admin("POST", "/drain").await.expect(202);
    stage.gateway.expect_readiness(503).await;
    stage.send_to_client(client.id(), "still here").await;
    client.expect("still here").await;
    let status = stage
        .gateway
        .admin("GET", "/status")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&status["ready"], &status["drain"]["draining"]),
        (&json!(false), &json!(true)),
        "{status}"
    );
}

#[tokio::test]
async fn a_second_sigterm_ends_it_at_once() {
    let mut stage =
        Stage::with(|settings| settings.set("drain.endpoint_propagation_ms", 60_000)).await;
    let client = stage.client("17").await;
    stage.gateway.signal("TERM");
    stage.gateway.expect_readiness(503).await;
    stage.gateway.signal("TERM");
    // Long before its pause would have ended.
    stage.gateway.expect_exit().await;
    drop(client);
}

#[tokio::test]
async fn sources_and_origins_reload_without_dropping_a_connection() {
    let mut stage = Stage::new().await;
    let second = Issuer::start().await;
    let mut client = stage.client("17").await;
    let origin = |gateway: &Gateway| {
        let address = gateway.address();
        async move {
            Client::try_connect(address, &[("origin", "https://shop.example.com")])
                .await
                .is_ok()
        }
    };
    assert!(!origin(&stage.gateway).await);
    let mut added = source(&second);
    added.insert("subject_prefix".into(), "second/".into());
    stage
        .gateway
        .reload(|live| {
            live.insert(
                "allowed_origins".into(),
                vec!["https://shop.example.com"].into(),
            );
            live["jwks"]["sources"]
                .as_array_mut()
                .unwrap()
                .push(added.into());
        })
        .await;
    until("the second issuer is trusted", || async {
        let mut other = Client::connect(stage.gateway.address()).await;
        other
            .send_authenticate(&second.token("18"), signal_tests::KeyMember::None)
            .await;
        (other.next_envelope().await.event == "connected").then_some(())
    })
    .await;
    assert!(origin(&stage.gateway).await);
    stage
        .gateway
        .reload(|live| drop(live["jwks"]["sources"].as_array_mut().unwrap().remove(0)))
        .await;
    until("the first issuer is not trusted", || async {
        let mut other = Client::connect(stage.gateway.address()).await;
        other
            .send_authenticate(&stage.issuer.token("18"), signal_tests::KeyMember::None)
            .await;
        (other.next_envelope().await.event == "error").then_some(())
    })
    .await;
    let mut again = Client::open(stage.gateway.address(), &second.token("20")).await;
    let path = format!("/socket/websocket/clients/{}/messages", client.id());
    stage
        .gateway
        .rest(
            "POST",
            &path,
            &admin(&second),
            Some(json!({"event": "still here", "data": null})),
        )
        .await
        .expect(202);
    client.expect("still here").await;
    again.send("heartbeat", json!(null)).await;
}

/// protocol.md 4.11.
#[tokio::test]
async fn a_connection_whose_source_is_gone_is_told_so_and_closes_unless_it_refreshes() {
    const LEAD_SECS: i64 = 6;
    let (first, second) = (Issuer::start().await, Issuer::start().await);
    let settings = Gateway::build()
        .trust(&first)
        .trust(&second)
        .set("auth.expiring_lead_secs", LEAD_SECS);
    let mut gateway = settings.start().await;
    let token = first.token("17");
    let (mut stays, mut goes) = (
        Client::open(gateway.address(), &token).await,
        Client::open(gateway.address(), &token).await,
    );
    let mut other = Client::open(gateway.address(), &second.token("17")).await;
    gateway
        .reload(|live| drop(live["jwks"]["sources"].as_array_mut().unwrap().remove(0)))
        .await;
    let begun = Instant::now();
    for client in [&mut stays, &mut goes] {
        let expiring = client.expect("expiring").await;
        assert!(
            expiring.data["seconds"]
                .as_i64()
                .is_some_and(|left| (0..=LEAD_SECS).contains(&left)),
            "{expiring:?}"
        );
        assert!(expiring.data["expiresAt"].is_string(), "{expiring:?}");
    }
    stays
        .send("refresh", json!({"type": "Bearer", "token": token}))
        .await;
    assert_eq!(
        stays.expect("error").await.data["message"],
        "Refresh refused",
        "the source is gone for a refresh as well"
    );
    stays
        .send(
            "refresh",
            json!({"type": "Bearer", "token": second.token("17")}),
        )
        .await;
    stays.expect("refreshed").await;
    assert_eq!(goes.expect_closed().await, (4005, "Token expired".into()));
    assert!(
        begun.elapsed() > Duration::from_secs(LEAD_SECS as u64 - 3),
        "it had time to refresh: {:?}",
        begun.elapsed()
    );
    for client in [&mut stays, &mut other] {
        let path = format!("/socket/websocket/clients/{}/messages", client.id());
        gateway
            .rest(
                "POST",
                &path,
                &admin(&second),
                Some(json!({"event": "still here", "data": null})),
            )
            .await
            .expect(202);
        client.expect("still here").await;
    }
}

#[tokio::test]
async fn a_live_file_that_is_wrong_changes_nothing() {
    let stage = Stage::new().await;
    let mut client = stage.client("17").await;
    let before = stage.gateway.admin("GET", "/status").await.json()["liveRevision"].clone();
    for wrong in [
        "not toml [",
        "unknown_key = 1",
        "[limits]\nmax_frame_bytes = \"many\"",
        "allowed_origins = [\"no origin\"]",
    ] {
        stage.gateway.write_live(wrong);
        until("the failed reload is told", || async {
            let status = stage.gateway.admin("GET", "/status").await.json();
            (status["liveError"].is_string()).then_some(())
        })
        .await;
        assert_eq!(
            stage.gateway.admin("GET", "/status").await.json()["liveRevision"],
            before,
            "{wrong}"
        );
    }
    stage.send_to_client(client.id(), "still here").await;
    client.expect("still here").await;
    stage.client("18").await;
}

#[tokio::test]
async fn limits_reload_and_hold_for_new_connections() {
    let mut stage = Stage::new().await;
    let address = stage.gateway.address();
    let held = stage.client("17").await;
    stage
        .gateway
        .reload(|live| {
            let limits: toml::Table = "connections_per_pod = 1".parse().unwrap();
            live.insert("limits".into(), limits.into());
        })
        .await;
    let mut raw = Raw::connect(address).await;
    raw.send(upgrade_request(&format!("Host: {address}")).as_bytes())
        .await;
    assert_eq!(raw.read_head().await.unwrap().status, 503);
    drop(held);
}

#[tokio::test]
async fn wrong_settings_are_all_reported_by_name_before_anything_is_bound() {
    let settings = || {
        Gateway::build()
            .set("heartbeat.timeout_ms", 0)
            .set("redis.mode", "standalone")
            .set("redis.nodes", Vec::<String>::new())
            .set("no_such.key", 1)
            .live("limits.send_queue.frames", 0)
    };
    for command in ["check-config", "serve"] {
        let (status, text) = settings().run_to_end(&[command]).await;
        assert!(!status.success(), "{text}");
        assert!(!text.contains("listening"), "{text}");
        assert!(text.contains("no_such"), "{command}: {text}");
    }
    let several = Gateway::build()
        .set("redis.mode", "standalone")
        .set("redis.nodes", Vec::<String>::new())
        .set("kafka.enabled", true);
    let (status, text) = several.run_to_end(&["check-config"]).await;
    assert!(
        !status.success() && text.contains("redis.nodes") && text.contains("kafka.brokers"),
        "{text}"
    );
}

#[tokio::test]
async fn good_settings_pass_the_check() {
    let issuer = Issuer::start().await;
    let (status, text) = Gateway::build()
        .trust(&issuer)
        .run_to_end(&["check-config"])
        .await;
    assert!(status.success(), "{text}");
}

/// authorization.md 4.12.
#[tokio::test]
async fn the_check_of_the_database_lists_policy_rows_that_are_not_understood() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("policy.db").display());
    let issuer = Issuer::start().await;
    let check = || {
        let settings = Gateway::build()
            .trust(&issuer)
            .set("policy.url", url.as_str());
        settings.run_to_end(&["check-config", "--database"])
    };
    let (status, text) = check().await;
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("policy_definition does not exist"), "{text}");

    let policies = Policies::create(&url).await.unwrap();
    policies
        .grant("17", "WebSocketClient.find", "read", "allow")
        .await
        .unwrap();
    policies.join("17", "Merchant_42").await.unwrap();
    let (status, text) = check().await;
    assert!(status.success(), "{text}");
    assert!(text.contains("1 rows of variant \"group\""), "{text}");

    policies.join("18", "42").await.unwrap();
    let (status, text) = check().await;
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(
        text.contains("1 of variant \"group\": its domain has no kind"),
        "{text}"
    );
}

#[tokio::test]
async fn help_names_every_subcommand() {
    let output = Gateway::build()
        .program()
        .await
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for subcommand in [
        "serve",
        "dev",
        "check-config",
        "migrate",
        "healthcheck",
        "dlq",
    ] {
        assert!(
            text.contains(subcommand),
            "{subcommand} is missing:\n{text}"
        );
    }
}

#[tokio::test]
async fn migrations_are_a_step_of_their_own_where_serve_may_not_migrate() {
    let Some(database) = services::postgres().await else {
        return;
    };
    let issuer = Issuer::start().await;
    let settings = || {
        Gateway::build()
            .trust(&issuer)
            .postgres(&database)
            .set("database.migrate", false)
    };
    settings().policies().await;
    let (status, text) = settings().run_to_end(&["serve"]).await;
    assert!(
        !status.success() && text.contains("migrat"),
        "it says what is missing and ends: {text}"
    );

    let (status, text) = settings().run_to_end(&["migrate"]).await;
    assert!(status.success() && text.contains("applied [1"), "{text}");
    let (status, text) = settings().run_to_end(&["migrate"]).await;
    assert!(
        status.success() && text.contains("applied []"),
        "a second time changes nothing: {text}"
    );

    let gateway = settings().start().await;
    let client = Client::open(gateway.address(), &issuer.token("17")).await;
    let inbox = gateway
        .rest("GET", "/notifications", &issuer.token("17"), None)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&inbox["data"], &inbox["unreadCount"]),
        (&json!([]), &json!(0))
    );
    drop(client);
}

#[tokio::test]
async fn the_health_check_tells_ready_from_alive_from_gone() {
    let issuer = Issuer::start().await;
    issuer.answer(signal_tests::issuer::Answer::Drop);
    let settings = Gateway::build()
        .trust(&issuer)
        .live("jwks.refresh_interval_secs", 1)
        .live("jwks.min_refresh_interval_secs", 1);
    let mut gateway = settings.start_unready().await;
    let (status, text) = gateway.run_command(&["healthcheck"]).await;
    assert!(
        !status.success() && text.contains("503"),
        "not ready without keys: {text}"
    );
    until("it is alive", || async {
        gateway
            .run_command(&["healthcheck", "--live"])
            .await
            .0
            .success()
            .then_some(())
    })
    .await;
    issuer.answer(signal_tests::issuer::Answer::Keys);
    gateway.expect_ready().await;
    let (status, text) = gateway.run_command(&["healthcheck"]).await;
    assert!(status.success(), "{text}");
    gateway.kill();
    for arguments in [&["healthcheck"][..], &["healthcheck", "--live"]] {
        let (status, text) = gateway.run_command(arguments).await;
        assert!(!status.success(), "{arguments:?}: {text}");
    }
}

#[tokio::test]
async fn a_changed_admin_token_is_taken_up() {
    let stage = Stage::new().await;
    std::fs::write(stage.gateway.file("admin-token"), "a new token").unwrap();
    until("the new token works", || async {
        let answer = stage
            .gateway
            .admin_with("GET", "/status", "a new token", None)
            .await;
        (answer.status == 200).then_some(())
    })
    .await;
    let old = stage.gateway.admin("GET", "/status").await;
    assert!([401, 403].contains(&old.status), "{old:?}");
}

#[tokio::test]
async fn it_is_not_ready_until_the_keys_are_there() {
    let issuer = Issuer::start().await;
    issuer.answer(signal_tests::issuer::Answer::Drop);
    let settings = Gateway::build()
        .trust(&issuer)
        .live("jwks.refresh_interval_secs", 1)
        .live("jwks.min_refresh_interval_secs", 1);
    let gateway = settings.start_unready().await;
    gateway.expect_readiness(503).await;
    gateway.admin("GET", "/livez").await.expect(200);
    issuer.answer(signal_tests::issuer::Answer::Keys);
    gateway.expect_ready().await;
    Client::open(gateway.address(), &issuer.token("17")).await;
}

#[tokio::test]
async fn logs_never_carry_a_token() {
    let stage = Stage::with(|settings| settings.live("observability.log_filter", "trace")).await;
    let token = stage.issuer.token("17");
    let mut client = Client::open(stage.gateway.address(), &token).await;
    client.send("chat", json!("a very private sentence")).await;
    stage.send_to_client(client.id(), "hello").await;
    client.expect("hello").await;
    let log = stage.gateway.log();
    let signature = token.rsplit('.').next().unwrap();
    assert!(
        !log.contains(signature),
        "a token's signature is in the log"
    );
    assert!(
        !log.contains("a very private sentence"),
        "a client's text is in the log"
    );
    assert!(
        !log.contains(signal_tests::gateway::ADMIN_TOKEN),
        "the admin token is in the log"
    );
}

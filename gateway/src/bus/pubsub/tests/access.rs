//! Opening, access lists, passwords and TLS.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_opens_when_its_server_comes_and_ends_at_shutdown() {
    if !lab::available("a_bus_opens_when_its_server_comes_and_ends_at_shutdown") {
        return;
    }
    let mut server = Server::start(&[]);
    let config = standalone(&server);
    server.kill();
    let shutdown = CancellationToken::new();
    let mut connecting =
        super::connect(&config, &setup("one", Metrics::new(), shutdown.clone())).unwrap();
    let (result, ()) = tokio::join!(connecting.connected(), async { shutdown.cancel() });
    assert!(matches!(result, Err(BusError::Unavailable(_))));

    let waiting = tokio::spawn(async move { opened(&config).await });
    server.run();
    let bus = waiting.await.unwrap();
    bus.subscribe(&[room("r")]).await;

    let wrong = settings(RedisMode::Standalone, vec!["no port".into()]);
    let result = super::connect(
        &wrong,
        &setup("one", Metrics::new(), CancellationToken::new()),
    );
    assert!(matches!(result, Err(BusError::Misconfigured(_))));
}

/// The commands of one recipe in `docs/redis.md`, with `{prefix}` filled in.
fn recipe(name: &str, prefix: &str) -> Vec<Vec<String>> {
    let page = include_str!("../../../../../docs/redis.md");
    let begin = format!("<!-- recipe: {name} -->");
    let text = page
        .split(&begin)
        .nth(1)
        .unwrap_or_else(|| panic!("docs/redis.md has no recipe {name}"));
    let block = text.split("```").nth(1).unwrap();
    let joined = block.replace("\\\n", " ");
    let lines = joined
        .lines()
        .skip(1)
        .filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            line.split_whitespace()
                .map(|word| word.replace("{prefix}", prefix))
                .collect()
        })
        .collect()
}

fn apply(server: &Server, commands: &[Vec<String>]) {
    for command in commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        assert_eq!(server.cli(&words), "OK", "{words:?}");
    }
}

fn secret(dir: &std::path::Path, name: &str, text: &str) -> SecretFile {
    std::fs::write(dir.join(name), text).unwrap();
    SecretFile::new(dir.join(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_acl_recipes_are_enough_and_no_more() {
    if !lab::available("the_documented_acl_recipes_are_enough_and_no_more") {
        return;
    }
    let server = Server::start(&[]);
    let prefix = "shop1:";
    for name in ["gateway", "emitter", "person"] {
        apply(&server, &recipe(name, prefix));
    }
    let mut config = standalone(&server);
    config.channel_prefix = prefix.into();
    config.auth.username = "signal-gateway".into();
    config.auth.password_file = secret(server.dir.path(), "password", "change-me-gateway\n");
    let (mut a, mut b) = (
        open_with(&config, "a", quick(&config)).await,
        open_with(&config, "b", quick(&config)).await,
    );
    // Everything that a gateway does.
    a.subscribe(&[client("4bC"), Destination::User("17".into()), room("r")])
        .await;
    b.publish(room("r"), 1).await;
    assert_eq!(a.number().await, 1);
    let revocation = Revocation {
        user_id: None,
        jti: Some("t".into()),
        issued_before_ms: 1,
        until_ms: SystemClock.now_ms() + 60_000,
    };
    a.bus.share_revocation(&revocation).await.unwrap();
    assert_eq!(b.bus.shared_revocations().await.unwrap(), [revocation]);
    let question = Ask::Holds {
        client: "A".parse().unwrap(),
    };
    let (answers, ()) = tokio::join!(a.bus.ask(&question), async {
        let BusEvent::Asked(_, reply) = b.event().await else {
            panic!("not asked")
        };
        reply.send(Reply::Count { count: 0 }).unwrap();
    });
    assert_eq!(answers.unwrap().replies.len(), 1);
    a.bus.unsubscribe(vec![room("r")]);
    eventually("it is unsubscribed", async || {
        !channels(&server, "shop1:ws:room:*").contains("shop1:ws:room:r")
    })
    .await;
    assert!(
        server
            .cli(&["KEYS", "*"])
            .lines()
            .all(|key| key.starts_with("shop1:signal:"))
    );
    assert!(
        channels(&server, "*")
            .iter()
            .all(|c| c.starts_with("shop1:"))
    );

    other_users_may_do_what_they_need_and_no_more(&server, &mut a).await;
    server.cli(&["ACL", "SETUSER", "open", "on", "nopass", "+@all", "&*"]);
    (config.auth.username, config.auth.password_file) = ("open".into(), SecretFile::default());
    connect(&config).await.unwrap();
    config.auth.username = "signal-gateway".into();
    config.auth.password_file = secret(server.dir.path(), "wrong", "change-me-emitter");
    assert!(
        connect(&config).await.is_err(),
        "a wrong password is refused"
    );
}

/// `-e` makes redis-cli fail on an error.
async fn other_users_may_do_what_they_need_and_no_more(server: &Server, a: &mut Opening) {
    let as_user = |user: &str, password: &str, command: &[&str]| {
        let login = ["--user", user, "--pass", password, "--no-auth-warning"];
        server.try_cli(&[&login[..], command].concat())
    };
    let emitted = EMITTED.replace(":1}", ":2}");
    assert!(
        as_user(
            "signal-emitter",
            "change-me-emitter",
            &["PUBLISH", "shop1:ws:user:17", &emitted]
        )
        .is_some()
    );
    assert_eq!(a.number().await, 2);
    for (user, password, denied) in [
        (
            "signal-emitter",
            "change-me-emitter",
            vec!["PUBLISH", "shop1:signal:ask:x", "{}"],
        ),
        (
            "signal-emitter",
            "change-me-emitter",
            vec!["SUBSCRIBE", "shop1:ws:broadcast"],
        ),
        (
            "signal-emitter",
            "change-me-emitter",
            vec!["GET", "shop1:signal:worker:9"],
        ),
        (
            "signal-person",
            "change-me-person",
            vec!["PUBLISH", "shop1:ws:broadcast", "{}"],
        ),
        (
            "signal-person",
            "change-me-person",
            vec!["DEL", "shop1:signal:worker:9"],
        ),
        (
            "signal-gateway",
            "change-me-gateway",
            vec!["PUBLISH", "ws:broadcast", "{}"],
        ),
        ("signal-gateway", "change-me-gateway", vec!["GET", "other"]),
        ("signal-gateway", "change-me-gateway", vec!["KEYS", "*"]),
        (
            "signal-gateway",
            "change-me-gateway",
            vec!["EVAL", "return redis.call('GET', 'other')", "0"],
        ),
    ] {
        assert_eq!(as_user(user, password, &denied), None, "{user} {denied:?}");
    }
    for looking in [
        vec!["PUBSUB", "NUMSUB", "shop1:ws:broadcast"],
        vec!["GET", "shop1:signal:worker:9"],
        vec!["TTL", "shop1:signal:worker:9"],
    ] {
        assert!(
            as_user("signal-person", "change-me-person", &looking).is_some(),
            "{looking:?}"
        );
    }
}

async fn connect(config: &config::Redis) -> redis::RedisResult<()> {
    let connector = Connector::new(config).unwrap();
    connector.link(&nodes::Prefer::Any).await?;
    connector.session(&nodes::Prefer::Any).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_password_change_new_connections_replace_the_old_ones_and_nothing_is_missed() {
    if !lab::available(
        "after_a_password_change_new_connections_replace_the_old_ones_and_nothing_is_missed",
    ) {
        return;
    }
    let server = Server::start(&[]);
    server.cli(&[
        "ACL", "SETUSER", "signal", "on", ">first", "+@all", "~*", "&*",
    ]);
    let mut config = standalone(&server);
    config.auth.username = "signal".into();
    config.auth.password_file = secret(server.dir.path(), "password", "first");
    let b = opened(&standalone(&server)).await;
    let mut a = opened(&config).await;
    a.subscribe(&[room("r")]).await;
    let stop = CancellationToken::new();
    let sending = count(&b.bus, room("r"), &stop);
    let ids = || -> HashSet<String> {
        let clients = server.cli(&["CLIENT", "LIST"]);
        let ours = clients.lines().filter(|line| line.contains("user=signal "));
        ours.map(|line| line.split_whitespace().next().unwrap().to_owned())
            .collect()
    };
    let mut before = ids();
    assert_eq!(before.len(), 2);
    for (old, new) in [("first", "second"), ("second", "third")] {
        // A wrong one first: the old connections stay.
        secret(server.dir.path(), "password", "wrong");
        eventually("a refused attempt", async || {
            server.cli(&["ACL", "LOG", "100"]).contains("auth")
        })
        .await;
        assert_eq!(ids(), before);
        server.cli(&["ACL", "LOG", "RESET"]);
        server.cli(&[
            "ACL",
            "SETUSER",
            "signal",
            &format!(">{new}"),
            &format!("<{old}"),
        ]);
        secret(server.dir.path(), "password", new);
        eventually("both connections are new ones", async || {
            let now = ids();
            now.len() == 2 && now.is_disjoint(&before)
        })
        .await;
        before = ids();
        a.subscribe(&[room(new)]).await;
    }
    stop.cancel();
    let sent = sending.await.unwrap();
    assert!(sent > 0);
    for n in 0..sent {
        assert_eq!(a.number().await, n, "of {sent}");
    }
    a.nothing_waits();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified_against_the_given_authority() {
    if !lab::available("tls_is_verified_against_the_given_authority") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path(), Ipv4Addr::LOCALHOST).unwrap();
    let other = tempfile::tempdir().unwrap();
    certificates(other.path(), Ipv4Addr::LOCALHOST).unwrap();
    let files = [
        "--tls-cert-file",
        "{dir}/cert.pem",
        "--tls-key-file",
        "{dir}/key.pem",
        "--tls-ca-cert-file",
        "{dir}/ca.pem",
    ];
    let listen = ["--port", "0", "--tls-port", "{port}"].map(str::to_owned);
    let server = Server::start_in(
        dir,
        &listen,
        &[&files[..], &["--tls-auth-clients", "no"]].concat(),
        &["--tls", "--cacert", "{dir}/ca.pem"],
    );
    let mut config = standalone(&server);
    (config.tls.enabled, config.tls.ca_file) = (true, server.dir.path().join("ca.pem"));
    let (mut a, b) = (opened(&config).await, opened(&config).await);
    a.subscribe(&[room("r")]).await;
    b.publish(room("r"), 1).await;
    assert_eq!(a.number().await, 1);

    connect(&config).await.unwrap();
    config.tls.ca_file = other.path().join("ca.pem");
    assert!(
        connect(&config).await.is_err(),
        "another authority is not trusted"
    );
    config.tls.enabled = false;
    assert!(
        connect(&config).await.is_err(),
        "the server speaks TLS alone"
    );
    config.tls.enabled = true;
    for wrong in ["missing.pem", "key.pem"] {
        config.tls.ca_file = server.dir.path().join(wrong);
        assert!(
            matches!(Connector::new(&config), Err(BusError::Misconfigured(_))),
            "{wrong}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn a_certificate_is_presented_and_a_renewed_one_takes_its_place_without_a_gap() {
    let test = "a_certificate_is_presented_and_a_renewed_one_takes_its_place_without_a_gap";
    if !lab::available(test) {
        return;
    }
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (authority, stranger) = (
        Authority::new(dir.path()).unwrap(),
        Authority::new(other.path()).unwrap(),
    );
    for name in ["server", "first", "second"] {
        authority
            .issue(name, Ipv4Addr::LOCALHOST, PrivateKey::Pkcs8)
            .unwrap();
    }
    stranger
        .issue("stranger", Ipv4Addr::LOCALHOST, PrivateKey::Pkcs8)
        .unwrap();
    let own = tempfile::tempdir().unwrap();
    let present = |from: &std::path::Path, name: &str| {
        for (end, target) in [("pem", "tls.crt"), ("key", "tls.key")] {
            std::fs::copy(from.join(format!("{name}.{end}")), own.path().join(target)).unwrap();
        }
    };
    let from = dir.path().to_owned();
    let files = [
        "--tls-cert-file",
        "{dir}/server.pem",
        "--tls-key-file",
        "{dir}/server.key",
        "--tls-ca-cert-file",
        "{dir}/ca.pem",
        "--tls-auth-clients",
        "yes",
    ];
    let listen = ["--port", "0", "--tls-port", "{port}"].map(str::to_owned);
    let cli = [
        "--tls",
        "--cacert",
        "{dir}/ca.pem",
        "--cert",
        "{dir}/server.pem",
        "--key",
        "{dir}/server.key",
    ];
    let server = Server::start_in(dir, &listen, &files, &cli);
    server.cli(&[
        "ACL", "SETUSER", "signal", "on", "nopass", "+@all", "~*", "&*",
    ]);
    let mut plain = standalone(&server);
    (plain.tls.enabled, plain.tls.ca_file) = (true, from.join("ca.pem"));
    assert!(connect(&plain).await.is_err(), "the server asks for one");
    plain.tls.certificate_file = from.join("server.pem");
    plain.tls.key_file = SecretFile::new(from.join("server.key"));
    let b = opened(&plain).await;

    let mut config = plain.clone();
    config.auth.username = "signal".into();
    present(&from, "first");
    config.tls.certificate_file = own.path().join("tls.crt");
    config.tls.key_file = SecretFile::new(own.path().join("tls.key"));
    let mut a = opened(&config).await;
    a.subscribe(&[room("r")]).await;
    let stop = CancellationToken::new();
    let sending = count(&b.bus, room("r"), &stop);
    let ids = || -> HashSet<String> {
        let clients = server.cli(&["CLIENT", "LIST"]);
        let ours = clients.lines().filter(|line| line.contains("user=signal "));
        ours.map(|line| line.split_whitespace().next().unwrap().to_owned())
            .collect()
    };
    let before = ids();
    // A key without its certificate, and a certificate that the server refuses: the old connections stay.
    std::fs::copy(
        other.path().join("stranger.key"),
        own.path().join("tls.key"),
    )
    .unwrap();
    assert!(connect(&plain).await.is_ok());
    assert!(matches!(
        Connector::new(&config),
        Err(BusError::Misconfigured(_))
    ));
    present(other.path(), "stranger");
    assert!(connect(&config).await.is_err());
    tokio::time::sleep(3 * quick(&config).watch).await;
    assert_eq!(ids(), before);
    present(&from, "second");
    eventually("both connections are new ones", async || {
        let now = ids();
        now.len() == 2 && now.is_disjoint(&before)
    })
    .await;
    stop.cancel();
    let sent = sending.await.unwrap();
    assert!(sent > 0);
    for n in 0..sent {
        assert_eq!(a.number().await, n, "of {sent}");
    }
    a.nothing_waits();
}

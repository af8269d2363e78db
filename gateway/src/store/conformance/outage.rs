//! What only a server can do to a gateway: be away, fall silent, change its URL, be locked by another. PostgreSQL alone.

use super::*;

async fn shut(server: &TestDatabase, name: &str) {
    server
        .execute(&format!(
            "ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false"
        ))
        .await;
    terminate(server, name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_unavailable_and_used_again_when_it_is_back() {
    let Some(mut database) = TestDatabase::postgres("outage").await else {
        return;
    };
    database.settings.acquire_timeout_ms = 500;
    let (server, name) = server(&database);
    let store = database.open().await.notifications;
    store
        .insert(&[activity("e1", &["x"])], at(0))
        .await
        .unwrap();
    shut(&server, &name).await;
    for failed in [
        store
            .insert(&[activity("e2", &["x"])], at(0))
            .await
            .map(drop),
        store
            .insert(&[activity("e2", &["x"])], at(0))
            .await
            .map(drop),
        store.inbox("x").await.map(drop),
        store.ping().await,
    ] {
        assert!(
            matches!(failed, Err(StoreError::Unavailable { .. })),
            "{failed:?}"
        );
    }
    // One that starts meanwhile waits instead of failing, and stops at shutdown.
    let shutdown = CancellationToken::new();
    let settings = database.settings.clone();
    let start = |shutdown: CancellationToken| {
        let settings = settings.clone();
        tokio::spawn(async move { open(&settings, &Config::for_tests().policy, shutdown).await })
    };
    let (stopped, waiting) = (start(shutdown.clone()), start(CancellationToken::new()));
    shutdown.cancel();
    assert!(matches!(stopped.await.unwrap(), Err(OpenError::Stopped)));
    assert!(!waiting.is_finished());
    server
        .execute(&format!(
            "ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true"
        ))
        .await;
    let later = tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .notifications;
    until("the first instance recovers", async || {
        store.insert(&[activity("e2", &["x"])], at(0)).await.ok()
    })
    .await;
    assert_eq!(seqs(&all(&*later, "x").await), [2, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_waits_too_long_is_too_much_and_undone() {
    let Some(mut database) = TestDatabase::postgres("statement timeout").await else {
        return;
    };
    database.settings.statement_timeout_ms = 200;
    let store = database.open().await.notifications;
    // Those that wait for nobody may take longer than the time of a statement as well, on a busy machine.
    let stored = until("the first row", async || {
        let stored = store.insert(&[activity("e1", &["x"])], at(0)).await.ok()?;
        stored.into_iter().next()
    })
    .await;
    let id = stored.notification.id;
    let mut options = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect(database.url().expose())
        .await
        .unwrap()
        .begin()
        .await
        .unwrap();
    sqlx::query("SELECT 1 FROM signal_inbox WHERE recipient_id = 'x' FOR UPDATE")
        .execute(&mut *options)
        .await
        .unwrap();
    for failed in [
        store
            .insert(&[activity("e2", &["w", "x"])], at(0))
            .await
            .map(drop),
        store
            .mark_read("x", &NotificationSelector::All, at(0))
            .await
            .map(drop),
        store.delete("x", id, at(0)).await.map(drop),
    ] {
        assert!(
            matches!(failed, Err(StoreError::TooMuch { .. })),
            "{failed:?}"
        );
    }
    // Other people's inboxes, and reading, go on.
    until("a row of somebody else", async || {
        store.insert(&[activity("e3", &["w"])], at(0)).await.ok()
    })
    .await;
    let counts = until("the counts", async || store.inbox("x").await.ok()).await;
    assert_eq!(counts.inbox.unread_count, 1);
    options.rollback().await.unwrap();
    let stored = until("rows of both", async || {
        let both = [activity("e2", &["w", "x"])];
        store.insert(&both, at(0)).await.ok()
    })
    .await;
    assert_eq!(stored.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_url_opens_a_new_pool_while_the_old_one_is_used() {
    let Some(database) = TestDatabase::postgres("changed URL").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    std::fs::write(&file, database.url().expose()).unwrap();
    let settings = crate::config::Database {
        url: Secret::default(),
        url_file: SecretFile::new(&file),
        ..database.settings.clone()
    };
    let shutdown = CancellationToken::new();
    let stores = open(&settings, &Config::for_tests().policy, shutdown.clone())
        .await
        .unwrap();
    let store = stores.notifications.clone();
    store
        .insert(&[activity("e1", &["x"])], at(0))
        .await
        .unwrap();

    let role = format!("rotated_{}", std::process::id());
    database
        .execute(&format!("CREATE ROLE {role} SUPERUSER LOGIN"))
        .await;
    let users = async |who: &str| {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'signal-gateway'";
        database
            .number(&format!("{count} AND usename = '{who}'"))
            .await
    };
    assert!(users("postgres").await > 0);
    // One that does not work changes nothing.
    std::fs::write(
        &file,
        database.url().expose().replace("postgres@", "nobody@"),
    )
    .unwrap();
    let changed = Instant::now();
    while changed.elapsed() < crate::files::INTERVAL * 2 {
        store.inbox("x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(users("postgres").await > 0);
    std::fs::write(
        &file,
        database
            .url()
            .expose()
            .replace("postgres@", &format!("{role}@")),
    )
    .unwrap();
    let mut n = 0;
    until(
        "the new user is connected and the old one is gone",
        async || {
            n += 1;
            // No call fails on the way.
            store
                .insert(&[activity(&format!("n{n}"), &["x"])], at(0))
                .await
                .unwrap();
            (users(&role).await > 0 && users("postgres").await == 0).then_some(())
        },
    )
    .await;
    shutdown.cancel();
    for task in stores.tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_another_holds_is_waited_for_a_bounded_time() {
    let Some(mut database) = TestDatabase::postgres("migration lock").await else {
        return;
    };
    database.settings.migrate_lock_timeout_ms = 300;
    let other = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect(database.url().expose())
        .await
        .unwrap();
    let mut held = other.acquire().await.unwrap();
    let key = i64::from_be_bytes(*b"sigmigra");
    sqlx::query("SELECT pg_advisory_lock($1)")
        .bind(key)
        .execute(&mut *held)
        .await
        .unwrap();
    assert!(matches!(
        migrate(&database.settings).await,
        Err(OpenError::Locked(_))
    ));
    sqlx::query("SELECT pg_advisory_unlock($1)")
        .bind(key)
        .execute(&mut *held)
        .await
        .unwrap();
    assert!(
        !migrate(&database.settings)
            .await
            .unwrap()
            .applied
            .is_empty()
    );
}

/// Forwards to the server until it is frozen: then nothing comes and nothing is refused, as when a network is gone.
async fn freezable(port: u16) -> (u16, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (here, (frozen, is_frozen)) = (
        listener.local_addr().unwrap().port(),
        tokio::sync::watch::channel(false),
    );
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let mut is_frozen = is_frozen.clone();
            tokio::spawn(async move {
                let thawed = is_frozen.wait_for(|frozen| !frozen).await.map(drop);
                thawed.unwrap();
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port))
                    .await
                    .unwrap();
                let mut client = client;
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    _ = async { is_frozen.wait_for(|frozen| *frozen).await.map(drop) } => {
                        // Both ends stay open and silent for good.
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
    });
    (here, frozen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_is_given_up_and_its_connections_with_it() {
    let Some(mut database) = TestDatabase::postgres("silence").await else {
        return;
    };
    let mut url = url::Url::parse(database.url().expose()).unwrap();
    let (port, frozen) = freezable(url.port().unwrap()).await;
    url.set_port(Some(port)).unwrap();
    let direct = database.at(database.url().expose());
    database.settings.url = Secret::new(url.as_str());
    database.settings.statement_timeout_ms = 100;
    database.settings.acquire_timeout_ms = 500;
    database.settings.max_connections = 2;
    let store = database.open().await.notifications;
    // A busy machine may take longer than the time of a statement.
    until("the first row", async || {
        store.insert(&[activity("e1", &["x"])], at(0)).await.ok()
    })
    .await;
    frozen.send_replace(true);
    // One meets the connection that was open, the other finds none.
    let (inserted, read) = tokio::join!(
        async {
            store
                .insert(&[activity("e2", &["x"])], at(0))
                .await
                .map(drop)
        },
        store.inbox("x")
    );
    for failed in [inserted, read.map(drop)] {
        assert!(
            matches!(failed, Err(StoreError::Unavailable { .. })),
            "{failed:?}"
        );
    }
    frozen.send_replace(false);
    until("new connections take their place", async || {
        store.insert(&[activity("e2", &["x"])], at(0)).await.ok()
    })
    .await;
    assert_eq!(
        direct
            .number("SELECT count(*) FROM signal_notification")
            .await,
        2
    );
}

/// Not a claim, a figure: the rate is printed. What is claimed is that batches of a thousand are a handful of statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_a_thousand_is_a_handful_of_statements() {
    let Some(database) = TestDatabase::postgres("rate").await else {
        return;
    };
    let store = database.open().await.notifications;
    let started = Instant::now();
    let batches = 20;
    for batch in 0..batches {
        let batch: Vec<NewActivity> = (0..1000)
            .map(|n| {
                activity(
                    &format!("{batch}/{n}"),
                    &[&format!("p{}", (batch * 7 + n * 13) % 5000)],
                )
            })
            .collect();
        assert_eq!(store.insert(&batch, at(0)).await.unwrap().len(), 1000);
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{:.0} rows/s in batches of 1000 ({:.1} ms each)",
        f64::from(batches * 1000) / seconds,
        seconds * 1000.0 / f64::from(batches)
    );
    let commits = database
        .number("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        .await;
    assert!(commits < 200, "{commits} transactions");
}

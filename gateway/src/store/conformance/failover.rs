//! A server that takes no writes any more, and settings of a role that weaken what a commit means. PostgreSQL alone.

use signal_services::{Frozen, Postgres, Server};
use sqlx::Row as _;

use super::super::postgres::{Opened, Servers};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_take_no_writes_are_not_kept() {
    let Some(mut database) = TestDatabase::postgres("read-only").await else {
        return;
    };
    database.settings.acquire_timeout_ms = 500;
    let (server, name) = server(&database);
    let store = database.open().await.notifications;
    store
        .insert(&[activity("e1", &["x"])], at(0))
        .await
        .unwrap();
    let only_reads =
        |on: &str| format!("ALTER DATABASE {name} SET default_transaction_read_only = {on}");
    // Sessions that begin meanwhile are read-only for good, as those of a demoted server are.
    server.execute(&only_reads("on")).await;
    terminate(&server, &name).await;
    for _ in 0..3 {
        let failed = store.insert(&[activity("e2", &["x"])], at(0)).await;
        assert!(
            matches!(failed, Err(StoreError::Unavailable { .. })),
            "{failed:?}"
        );
        store.ping().await.unwrap_err();
    }
    server.execute(&only_reads("off")).await;
    until("connections that take no writes are left", async || {
        store.insert(&[activity("e2", &["x"])], at(0)).await.ok()
    })
    .await;
    store.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_host_that_takes_writes_is_used() {
    let Some(mut database) = TestDatabase::postgres("several hosts").await else {
        return;
    };
    // Nobody listens at the first host.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = nobody.local_addr().unwrap();
    drop(nobody);
    let url = database.url().expose().replace('@', &format!("@{away},"));
    database.settings.url = Secret::new(format!("{url}?target_session_attrs=read-write").as_str());
    let store = database.open().await.notifications;
    let stored = store
        .insert(&[activity("e1", &["x"])], at(0))
        .await
        .unwrap();
    assert_eq!(stored.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_weakens_its_commits_is_overruled_and_a_stronger_one_is_not() {
    let Some(database) = TestDatabase::postgres("synchronous_commit").await else {
        return;
    };
    let (server, name) = server(&database);
    for (set, want) in [
        ("off", "on"),
        ("local", "on"),
        ("remote_write", "on"),
        ("on", "on"),
        ("remote_apply", "remote_apply"),
    ] {
        server
            .execute(&format!(
                "ALTER DATABASE {name} SET synchronous_commit = {set}"
            ))
            .await;
        let servers = Servers::parse(database.url().expose()).unwrap();
        let opened = Opened::new(servers, &database.settings);
        let mut session = opened.acquire().await.unwrap();
        let rows = session
            .all(sqlx::query("SELECT current_setting('synchronous_commit')"))
            .await
            .unwrap();
        assert_eq!(rows[0].try_get::<&str, _>(0).unwrap(), want, "{set}");
    }
}

/// A primary and its standby, and a store whose URL names both.
struct Cluster {
    primary: Server,
    standby: Server,
    folder: tempfile::TempDir,
}

impl Cluster {
    fn start(test: &str) -> Option<Self> {
        if Postgres::programs().is_none() {
            println!("skipped {test}: PostgreSQL's server programs are not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        // The server is another user than root.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), everybody).unwrap();
        let primary = Postgres::start(&folder.path().join("one"), true).unwrap();
        let standby = Postgres::standby(&folder.path().join("two"), &primary).unwrap();
        Some(Self {
            primary,
            standby,
            folder,
        })
    }

    fn database(&self) -> TestDatabase {
        let hosts = format!("@{},{}/", self.primary.address(), self.standby.address());
        let at = format!("@{}/", self.primary.address());
        let url = Postgres::url(&self.primary, "postgres").replace(&at, &hosts);
        let mut database = TestDatabase::on_postgres(&url);
        database.settings.acquire_timeout_ms = Config::for_tests().database.acquire_timeout_ms;
        database
    }

    fn of(server: &Server) -> TestDatabase {
        TestDatabase::on_postgres(&Postgres::url(server, "postgres"))
    }
}

/// Stores an event, however often it takes, and returns how long that was.
async fn stored_after(store: &dyn NotificationStore, event: &str) -> Duration {
    let began = Instant::now();
    while let Err(error) = store.insert(&[activity(event, &["x"])], at(0)).await {
        assert!(
            began.elapsed() < Duration::from_secs(40),
            "{event} is not stored: {error}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

async fn a_standby_is_promoted(
    test: &str,
    fail: fn(&mut Server) -> Option<Frozen>,
    limit: Duration,
) {
    let Some(mut cluster) = Cluster::start(test) else {
        return;
    };
    let store = cluster.database().open().await.notifications;
    for event in ["a", "b", "c"] {
        stored_after(&*store, event).await;
    }
    // Connections that were used within the last second are trusted.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let frozen = fail(&mut cluster.primary);
    let failed = store.insert(&[activity("d", &["x"])], at(0)).await;
    assert!(
        matches!(failed, Err(StoreError::Unavailable { .. })),
        "a standby takes no writes: {failed:?}"
    );
    let standby = Cluster::of(&cluster.standby);
    standby.execute("SELECT pg_promote()").await;
    let took = stored_after(&*store, "d").await;
    assert!(took < limit, "it took {took:?} to use the new primary");
    assert_eq!(all(&*store, "x").await.len(), 4);
    assert_counters(&*store, "x").await;
    store.ping().await.unwrap();

    // The old primary comes back as a standby, first in the URL, and every connection is made again.
    cluster.primary.kill();
    drop(frozen);
    Postgres::follow(&mut cluster.primary, &cluster.standby).unwrap();
    standby
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'signal-gateway'")
        .await;
    let took = stored_after(&*store, "e").await;
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    for n in 0..20 {
        let new = activity(&format!("f{n}"), &["x"]);
        store.insert(&[new], at(0)).await.unwrap();
    }
    let other = cluster.database().open().await.notifications;
    other.insert(&[activity("g", &["x"])], at(0)).await.unwrap();
    assert_eq!(all(&*store, "x").await.len(), 26);
    let rows = standby
        .number("SELECT count(*) FROM signal_notification")
        .await;
    assert_eq!(
        rows,
        26,
        "all of them in {}",
        cluster.folder.path().display()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_to_the_standby_that_is_promoted_after_the_primary_died() {
    let kill = |server: &mut Server| {
        server.kill();
        None
    };
    a_standby_is_promoted("promotion after a kill", kill, Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_to_the_standby_that_is_promoted_while_the_primary_answers_nothing() {
    let freeze = |server: &mut Server| Some(Postgres::freeze(server));
    a_standby_is_promoted("promotion after a freeze", freeze, Duration::from_secs(10)).await;
}

//! PgBouncer between the gateway and PostgreSQL, in each version that is there.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};

use signal_services::PgBouncer;
use sqlx::Row as _;

use super::super::postgres::{Opened, Servers};
use super::*;

/// A PgBouncer that ends with the test.
struct Pooler {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Pooler {
    /// Starts one before the server of a database, or says why not.
    async fn start(
        which: PgBouncer,
        test: &str,
        database: &TestDatabase,
        mode: &str,
    ) -> Option<Self> {
        if let Err(error) = which.find() {
            println!("skipped {test}: {error}");
            return None;
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let url = url::Url::parse(database.url().expose()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), everybody).unwrap();
        let settings = folder.path().join("pgbouncer.ini");
        std::fs::write(
            &settings,
            format!(
                "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 auth_type = any\npool_mode = {mode}\nunix_socket_dir =\nserver_round_robin = 1\ndefault_pool_size = 8\n",
                url.port().unwrap()
            ),
        )
        .unwrap();
        let mut command = which.command(folder.path()).unwrap();
        command
            .arg(&settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = signal_services::spawn(command).unwrap();
        let pooler = Self {
            process,
            folder,
            port,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < deadline,
                "PgBouncer does not start in {}",
                pooler.folder.path().display()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(pooler)
    }

    /// The database behind the pooler.
    fn database(&self, database: &TestDatabase) -> TestDatabase {
        let mut url = url::Url::parse(database.url().expose()).unwrap();
        url.set_port(Some(self.port)).unwrap();
        database.at(url.as_str())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_serves_every_question() {
    for which in PgBouncer::ALL {
        serves_every_question(which).await;
    }
}

async fn serves_every_question(which: PgBouncer) {
    let test = "PgBouncer in transaction mode";
    let Some(direct) = TestDatabase::postgres(test).await else {
        return;
    };
    let Some(pooler) = Pooler::start(which, test, &direct, "transaction").await else {
        return;
    };
    let database = pooler.database(&direct);
    // They migrate together, through the pooler.
    let (one, two) = tokio::join!(database.open(), database.open());
    let mut tasks = JoinSet::new();
    for (instance, store) in [one.notifications.clone(), two.notifications.clone()]
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
    {
        tasks.spawn(async move {
            for n in 0..10 {
                let event = format!("{instance}/{n}");
                let new = activity(&event, &["x", &format!("y{instance}")]);
                let stored = store.insert(&[new.clone(), new], at(0)).await.unwrap();
                assert_eq!(stored.len(), 2);
                let many: Vec<NewActivity> = (0..150)
                    .map(|k| activity(&format!("{event}/{k}"), &[&format!("z{instance}")]))
                    .collect();
                assert_eq!(store.insert(&many, at(0)).await.unwrap().len(), 150);
                let user = format!("y{instance}");
                store.ping().await.unwrap();
                let page = store
                    .list(&user, &Filter::default(), None, 10)
                    .await
                    .unwrap();
                assert_eq!(page.rows.len(), 10.min(n + 1));
                let first = NotificationSelector::Ids(vec![page.rows[0].id]);
                let read = store.mark_read(&user, &first, at(1)).await.unwrap();
                assert_eq!(read.total, 1);
                store.missed(&user, 0, 5).await.unwrap();
                store.purge(None, at(-1), 10).await.unwrap();
                store.look().await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(all(&*one.notifications, "x").await.len(), 80);
    assert_counters(&*two.notifications, "x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pooler_every_transaction_has_its_settings_and_leaves_none() {
    for which in PgBouncer::ALL {
        transactions_have_their_settings(which).await;
    }
}

async fn transactions_have_their_settings(which: PgBouncer) {
    let test = "settings behind PgBouncer";
    let Some(direct) = TestDatabase::postgres(test).await else {
        return;
    };
    let Some(pooler) = Pooler::start(which, test, &direct, "transaction").await else {
        return;
    };
    let database = pooler.database(&direct);
    let name = url::Url::parse(database.url().expose()).unwrap();
    let name = name.path().trim_start_matches('/').to_owned();
    direct
        .execute(&format!(
            "ALTER DATABASE {name} SET synchronous_commit = off"
        ))
        .await;
    let servers = Servers::parse(database.url().expose()).unwrap();
    let opened = Opened::new(servers, &database.settings);
    let mut session = opened.acquire().await.unwrap();
    for _ in 0..5 {
        let rows = session
            .all(sqlx::query(
                "SELECT current_setting('synchronous_commit'), current_setting('statement_timeout'), (SELECT count(*) FROM pg_prepared_statements WHERE name <> '')",
            ))
            .await
            .unwrap();
        assert_eq!(rows[0].try_get::<&str, _>(0).unwrap(), "on");
        assert_ne!(rows[0].try_get::<&str, _>(1).unwrap(), "0");
        assert_eq!(rows[0].try_get::<i64, _>(2).unwrap(), 0);
    }
    let left = database
        .number("SELECT count(*) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'")
        .await;
    assert_eq!(left, 1, "the session of the pooler is as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_statement_mode_is_refused_at_start() {
    for which in PgBouncer::ALL {
        statement_mode_is_refused(which).await;
    }
}

async fn statement_mode_is_refused(which: PgBouncer) {
    let test = "PgBouncer in statement mode";
    let Some(direct) = TestDatabase::postgres(test).await else {
        return;
    };
    let Some(pooler) = Pooler::start(which, test, &direct, "statement").await else {
        return;
    };
    let database = pooler.database(&direct);
    let policy = Config::for_tests().policy;
    let opened = open(&database.settings, &policy, CancellationToken::new()).await;
    match opened.map(drop) {
        Err(OpenError::Setting { setting, reason }) => {
            assert_eq!(setting, "database.url");
            assert!(reason.contains("statement mode"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

/// A pooler that passes every start-up option on is known by what its sessions forget.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_forgets_its_statements_is_taken_for_one_of_a_pooler() {
    let Some(database) = TestDatabase::postgres("forgotten statements").await else {
        return;
    };
    let servers = Servers::parse(database.url().expose()).unwrap();
    let opened = Opened::new(servers, &database.settings);
    let prepared =
        || sqlx::query("SELECT count(*) AS prepared FROM pg_prepared_statements WHERE name <> ''");
    let mut session = opened.acquire().await.unwrap();
    let rows = session.all(prepared()).await.unwrap();
    assert_eq!(rows[0].try_get::<i64, _>("prepared").unwrap(), 1);
    session.all(sqlx::query("DEALLOCATE ALL")).await.unwrap();
    let failed = session.all(prepared()).await.map_err(StoreError::from);
    assert!(session.done(failed).is_err());
    for _ in 0..2 {
        let mut session = opened.acquire().await.unwrap();
        let rows = session.all(prepared()).await.map_err(StoreError::from);
        let rows = session.done(rows).unwrap();
        assert_eq!(rows[0].try_get::<i64, _>("prepared").unwrap(), 0);
    }
}

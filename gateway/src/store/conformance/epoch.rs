//! Databases that go back in time, and those that do not (protocol.md 9.10).

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::notification::Epoch;
use crate::store::testing::binaries;

/// Opens, does this, and closes again: a copy is made while nobody has the database open.
async fn opened<T>(
    database: &TestDatabase,
    act: impl AsyncFnOnce(&dyn NotificationStore) -> T,
) -> T {
    let stores = database.open().await;
    let done = act(&*stores.notifications).await;
    stores.close().await;
    done
}

async fn insert(store: &dyn NotificationStore, event: &str) -> i64 {
    let stored = store.insert(&[activity(event, &["x"])], at(0)).await;
    stored.unwrap()[0].notification.seq
}

/// protocol.md 9.10.
pub(super) async fn an_older_copy_that_is_put_back_begins_a_new_epoch_every_time(
    database: &TestDatabase,
) {
    let first = opened(database, async |store| {
        insert(store, "e1").await;
        store.look().await.unwrap()
    })
    .await;
    database.back_up().await;
    let after = opened(database, async |store| {
        assert_eq!(insert(store, "lost").await, 2);
        store.look().await.unwrap()
    })
    .await;
    assert_eq!(after, first, "a restart of the gateway is no new history");
    let mut epochs = HashSet::from([first]);
    for _ in 0..2 {
        database.restore().await;
        let (epoch, again) = opened(database, async |store| {
            let epoch = store.look().await.unwrap();
            assert_eq!(insert(store, "other").await, 2, "the number is given again");
            (epoch, store.look().await.unwrap())
        })
        .await;
        assert!(epochs.insert(epoch), "each history has an epoch of its own");
        assert_eq!(again, epoch);
    }
}

/// protocol.md 11.7.
pub(super) async fn an_id_that_was_lost_with_its_history_names_nothing(database: &TestDatabase) {
    opened(database, async |store| insert(store, "e1").await).await;
    database.back_up().await;
    let lost = opened(database, async |store| {
        let stored = store.insert(&[activity("lost", &["x"])], at(0)).await;
        stored.unwrap()[0].notification.clone()
    })
    .await;
    database.restore().await;
    opened(database, async |store| {
        assert_eq!(insert(store, "other").await, lost.seq, "given again");
        assert!(store.get("x", lost.id).await.unwrap().is_none());
        assert_eq!(store.delete("x", lost.id, at(1)).await.unwrap(), None);
        let named = NotificationSelector::Ids(vec![lost.id]);
        assert_eq!(store.mark_read("x", &named, at(1)).await.unwrap().total, 0);
        assert_eq!(all(store, "x").await.len(), 2);
    })
    .await;
}

/// protocol.md 9.10.
pub(super) async fn instances_that_look_together_agree_on_one_epoch(database: &TestDatabase) {
    let first = opened(database, async |store| store.look().await.unwrap()).await;
    if !database.is_postgres() {
        // A file has one instance.
        return;
    }
    database.back_up().await;
    database.restore().await;
    let instances = [
        database.open().await,
        database.open().await,
        database.open().await,
    ];
    let mut looks = JoinSet::new();
    for instance in &instances {
        let store = instance.notifications.clone();
        looks.spawn(async move { store.look().await.unwrap() });
    }
    let epochs: HashSet<Epoch> = looks.join_all().await.into_iter().collect();
    assert_eq!(epochs.len(), 1);
    assert!(!epochs.contains(&first));
    for instance in &instances {
        assert_eq!(
            HashSet::from([instance.notifications.look().await.unwrap()]),
            epochs
        );
    }
}

/// protocol.md 9.10.
pub(super) async fn every_answer_carries_the_epoch_of_its_database(database: &TestDatabase) {
    let store = database.open().await.notifications;
    insert(&*store, "e1").await;
    let mut epoch = store.look().await.unwrap();
    for _ in 0..2 {
        for recipient in ["x", "nobody"] {
            let page = store.list(recipient, &Filter::default(), None, 9).await;
            let missed = store.missed(recipient, 0, 9).await;
            let counted = store.inbox(recipient).await;
            assert_eq!(page.unwrap().counts.epoch, epoch);
            assert_eq!(missed.unwrap().counts.epoch, epoch);
            assert_eq!(counted.unwrap().epoch, epoch);
        }
        // What a person does after a restore that nobody noticed (docs/admin.md).
        database
            .execute("UPDATE signal_epoch SET epoch = epoch + 1")
            .await;
        epoch = Epoch(epoch.0 + 1);
    }
    let looked = store.look().await.unwrap();
    if database.is_postgres() {
        assert_eq!(looked, epoch, "what a person wrote holds");
    }
}

/// protocol.md 9.10.
#[tokio::test]
async fn a_role_that_may_not_ask_for_server_and_timeline_keeps_the_epoch_of_those_that_may() {
    let test = "a_role_that_may_not_ask_for_server_and_timeline_keeps_the_epoch_of_those_that_may";
    let Some(database) = TestDatabase::postgres(test).await else {
        return;
    };
    let owner = database.open().await.notifications;
    let epoch = owner.look().await.unwrap();
    let mut url = url::Url::parse(database.url().expose()).unwrap();
    let role = format!("role_of_{}", url.path().trim_start_matches('/'));
    database
        .execute(&format!(
            "REVOKE EXECUTE ON FUNCTION pg_control_system(), pg_walfile_name(pg_lsn), pg_current_wal_lsn() FROM PUBLIC;
             CREATE ROLE {role} LOGIN;
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};"
        ))
        .await;
    url.set_username(&role).unwrap();
    let guarded = database.at(url.as_str()).open().await.notifications;
    assert_eq!(guarded.look().await.unwrap(), epoch);
    insert(&*guarded, "e1").await;
    assert_eq!(guarded.missed("x", 0, 9).await.unwrap().counts.epoch, epoch);
    assert_eq!(owner.look().await.unwrap(), epoch);
    // What it may ask for is enough for a database that was read in from a dump.
    database
        .execute("UPDATE signal_epoch SET relation = '1/1'")
        .await;
    assert_ne!(guarded.look().await.unwrap(), epoch);
}

/// A server with a standby, both of one test.
pub(super) struct Pair {
    folder: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
}

impl Pair {
    pub(super) fn new(bin: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let pair = Self { folder, bin, port };
        // The server refuses root.
        pair.run("[ $(id -u) != 0 ] || chown postgres: .");
        pair.run_as("initdb -D first -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync");
        pair
    }

    fn run(&self, script: &str) {
        let status = Command::new("sh")
            .args(["-euc", script])
            .current_dir(self.folder.path())
            .stdout(std::fs::File::create(self.folder.path().join("out")).unwrap())
            .status()
            .unwrap();
        let said = std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default();
        assert!(status.success(), "{script}: {said}");
    }

    /// Runs a program of the server as its user.
    fn run_as(&self, command: &str) {
        let bin = self.bin.display();
        self.run(&format!(
            "as=; [ $(id -u) != 0 ] || as='setpriv --reuid=postgres --regid=postgres --init-groups'; $as {bin}/{command}"
        ));
    }

    pub(super) fn start(&self, data: &str) {
        let port = self.port;
        self.run_as(&format!(
            "pg_ctl -D {data} -w -l {data}/log -o '-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c shared_buffers=16MB' start"
        ));
    }

    fn stop(&self, data: &str) {
        self.run_as(&format!("pg_ctl -D {data} -w -m immediate stop"));
    }

    pub(super) fn database(&self) -> TestDatabase {
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        TestDatabase::sqlite().at(&url)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for data in ["first", "second"] {
            let has_pid = |data: &str| {
                Path::new(self.folder.path())
                    .join(data)
                    .join("postmaster.pid")
                    .exists()
            };
            if has_pid(data) && !std::thread::panicking() {
                self.stop(data);
            } else if has_pid(data) {
                // A second panic would hide the first.
                let bin = self.bin.display();
                let _ = Command::new("sh")
                    .args(["-c", &format!("as=; [ $(id -u) != 0 ] || as='setpriv --reuid=postgres --regid=postgres --init-groups'; $as {bin}/pg_ctl -D {data} -m immediate stop")])
                    .current_dir(self.folder.path())
                    .status();
            }
        }
    }
}

/// protocol.md 9.10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_takes_over_without_the_last_rows_begins_a_new_epoch() {
    let Some(bin) = binaries() else {
        println!("skipped: no PostgreSQL server is installed in /usr/lib/postgresql");
        return;
    };
    let pair = Pair::new(bin);
    pair.start("first");
    let stores = pair.database().open().await;
    let store = &stores.notifications;
    insert(&**store, "e1").await;
    let first = store.look().await.unwrap();
    pair.stop("first");
    pair.start("first");
    let restarted = retried(&**store).await;
    assert_eq!(restarted, first, "a server that restarts loses nothing");
    pair.run_as(&format!(
        "pg_basebackup -h 127.0.0.1 -p {} -U postgres -D second -R -X stream -c fast --no-sync",
        pair.port
    ));
    assert_eq!(insert(&**store, "lost").await, 2);
    assert_eq!(store.look().await.unwrap(), first);

    pair.stop("first");
    pair.start("second");
    pair.run_as("pg_ctl -D second -w promote");
    let second = retried(&**store).await;
    assert_ne!(second, first, "the standby did not have the second row");
    assert_eq!(insert(&**store, "other").await, 2);
    let missed = store.missed("x", 0, 9).await.unwrap();
    assert_eq!(
        (seqs(&missed.rows), missed.counts.epoch),
        (vec![1, 2], second)
    );
    assert_eq!(store.look().await.unwrap(), second);
    stores.close().await;
}

/// Looks until the server answers again.
async fn retried(store: &dyn NotificationStore) -> Epoch {
    let began = Instant::now();
    loop {
        match store.look().await {
            Ok(epoch) => return epoch,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

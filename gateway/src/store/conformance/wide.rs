//! What a wide audience costs: time, log and space for each further recipient. Figures are printed; those of log and space have bounds.

use super::epoch::Pair;
use super::*;
use crate::store::testing::binaries;

fn audience(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("person-{n:06}")).collect()
}

fn wide(event: &str, people: &[String]) -> NewActivity {
    NewActivity {
        recipients: people.iter().cloned().collect(),
        ..activity(event, &[])
    }
}

async fn insert(store: &dyn NotificationStore, event: &str, people: &[String]) {
    for slice in people.chunks(10_000) {
        let stored = store.insert(&[wide(event, slice)], at(0)).await;
        assert_eq!(stored.unwrap().len(), slice.len());
    }
}

/// `cargo test -p signal-gateway --lib -- --ignored eight_times`
#[tokio::test]
#[ignore = "a measurement of half a minute"]
async fn eight_times_a_hundred_thousand_recipients_are_stored() {
    let Some(database) = TestDatabase::postgres("eight_times").await else {
        return;
    };
    let store = database.open().await.notifications;
    let people = audience(100_000);
    let begun = Instant::now();
    for n in 0..8 {
        insert(&*store, &format!("e{n}"), &people).await;
    }
    println!(
        "8 x 100,000 recipients in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
}

/// Most bytes of log, counters included, and of tables and indexes for one more recipient of an event.
const LOG_BYTES: f64 = 450.0;
const SPACE_BYTES: f64 = 180.0;

/// On a server of its own: others would write to the same log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_recipient_costs_450_bytes_of_log_and_180_of_space_at_most() {
    let Some(bin) = binaries() else {
        println!("skipped: no PostgreSQL server is installed in /usr/lib/postgresql");
        return;
    };
    let server = Pair::new(bin);
    server.start("first");
    let database = server.database();
    for setting in [
        "full_page_writes = off",
        "autovacuum = off",
        "max_wal_size = '4GB'",
    ] {
        database
            .execute(&format!("ALTER SYSTEM SET {setting}"))
            .await;
    }
    database.execute("SELECT pg_reload_conf()").await;
    let stores = database.open().await;
    let people = audience(50_000);
    insert(&*stores.notifications, "e0", &people).await;
    let space = "SELECT sum(pg_total_relation_size(c.oid))::int8 FROM pg_class c WHERE c.relkind = 'r' AND c.relname LIKE 'signal_%'";
    let log = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8";
    for n in 1..5 {
        let (space_before, log_before) = (database.number(space).await, database.number(log).await);
        // Text of 24 KB, so that writing it for each recipient would be seen.
        let mut long = wide(&format!("e{n}"), &[]);
        long.content = "nội dung ".repeat(2000);
        for slice in people.chunks(10_000) {
            long.recipients = slice.iter().cloned().collect();
            let stored = stores.notifications.insert(&[long.clone()], at(0)).await;
            assert_eq!(stored.unwrap().len(), slice.len());
        }
        let each = |bytes: i64| bytes as f64 / people.len() as f64;
        let log_bytes = each(database.number(log).await - log_before);
        let space_bytes = each(database.number(space).await - space_before);
        println!("a further recipient: {log_bytes:.0} bytes of log, {space_bytes:.0} of space");
        assert!(log_bytes <= LOG_BYTES && space_bytes <= SPACE_BYTES);
    }
    stores.close().await;
}

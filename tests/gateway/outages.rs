//! Long outages of the database: what the process holds meanwhile, what it gives back, and how soon it goes on.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use signal_tests::services::{self, unique};
use signal_tests::wait::{until, until_within};
use signal_tests::{Gateway, Producer, Proxy};
use tokio::time::{Instant, sleep};

const MIB: f64 = 1_048_576.0;

/// Records of about 2 KB, spread over partitions, behind a database that is away.
struct Load {
    partitions: i32,
    records: usize,
    /// `kafka.memory_bytes`
    budget: i64,
}

impl Load {
    /// Larger than the budget by several times.
    async fn produce(&self, producer: &Producer, topic: &str) {
        let text = "x".repeat(1900);
        for start in (0..self.records).step_by(2000) {
            let sent = (start..self.records.min(start + 2000)).map(|n| {
                let record = json!({"id": n.to_string(), "type": "T", "title": "t", "content": text, "actorId": (n % 100).to_string()});
                async move {
                    let key = n.to_string();
                    producer.send(topic, &key, &record).await
                }
            });
            for sent in join_all(sent).await {
                sent.expect("acknowledged");
            }
        }
    }
}

fn resident(gateway: &Gateway) -> f64 {
    let pid = gateway.pid().expect("a running process");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .expect("resident memory");
    kib * 1024.0
}

#[tokio::test]
async fn memory_is_bounded_while_the_database_is_away_and_comes_back_within_a_minute() {
    let load = Load {
        partitions: 50,
        records: 30_000,
        budget: 16 << 20,
    };
    let (Some(brokers), Some(database)) = (services::kafka().await, services::postgres().await)
    else {
        return;
    };
    let (proxy, topic) = (Proxy::to(database.server).await, unique("activity"));
    let producer = Producer::new(&brokers).expect("a producer");
    producer
        .create_topic(&topic, load.partitions)
        .await
        .expect("a topic");
    let gateway = Gateway::build()
        .postgres_url(&database.through(proxy.address()))
        .kafka(&brokers, &topic)
        .set("kafka.memory_bytes", load.budget)
        .start()
        .await;
    let held = || async {
        let held = gateway.metric("signal_kafka_memory_bytes", "").await;
        held.unwrap_or_default()
    };
    let finished = || async {
        let finished = gateway.metric("signal_kafka_records_total", "").await;
        finished.unwrap_or_default()
    };
    sleep(Duration::from_secs(2)).await;
    let before = resident(&gateway);

    proxy.cut();
    load.produce(&producer, &topic).await;
    until("partitions are full", || async {
        (held().await > load.budget as f64 * 0.5).then_some(())
    })
    .await;
    let mut most: f64 = 0.0;
    for _ in 0..50 {
        sleep(Duration::from_millis(100)).await;
        most = most.max(resident(&gateway));
    }
    assert_eq!(finished().await, 0.0);
    assert!(held().await <= load.budget as f64);
    // Half as much again for what the allocators need around it.
    let allowed = load.budget as f64 * 1.5 + 8.0 * MIB;
    assert!(
        most - before <= allowed,
        "{:.0} MiB before, {:.0} MiB in the outage",
        before / MIB,
        most / MIB
    );

    proxy.restore();
    let returned = Instant::now();
    until_within(Duration::from_secs(10), "the pipeline goes on", || async {
        (finished().await > 0.0).then_some(())
    })
    .await;
    let went_on = returned.elapsed();
    assert!(went_on <= Duration::from_secs(5), "{went_on:?}");
    until_within(Duration::from_secs(120), "all is stored", || async {
        (finished().await >= load.records as f64).then_some(())
    })
    .await;
    let done = resident(&gateway);
    until_within(Duration::from_secs(60), "memory comes back", || async {
        (resident(&gateway) <= before + 12.0 * MIB).then_some(())
    })
    .await;
    println!(
        "resident: {:.0} MiB before, {:.0} MiB in the outage, {:.0} MiB after the last record, {:.0} MiB a while later; went on after {went_on:?}",
        before / MIB,
        most / MIB,
        done / MIB,
        resident(&gateway) / MIB
    );
}

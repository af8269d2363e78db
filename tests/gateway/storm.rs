//! Faults under load: whatever fails, every acknowledged record has exactly its rows, in order per key.
//!
//! Each test produces 500 records a second over 20 keys, two recipients each, on two gateways; and breaks one thing meanwhile.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use signal_tests::producer::payment;
use signal_tests::services::{self, Database, Own, unique};
use signal_tests::wait::{until, until_within};
use signal_tests::{Client, Gateway, Issuer, Producer, Proxy};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const KEYS: usize = 20;
const RECORDS_PER_SECOND: u32 = 500;
/// A machine that is too busy for that rate produces for longer, until each key has so many.
const LEAST_PER_KEY: u64 = 60;
/// How long the rest may take once the fault is over.
const CATCH_UP: Duration = Duration::from_secs(90);

struct Storm {
    issuer: Issuer,
    redis: Own,
    gateways: Vec<Gateway>,
    producer: Arc<Producer>,
    topic: String,
    pool: PgPool,
}

impl Storm {
    /// `database_address` is where the gateways find the database; the test itself asks it directly.
    async fn start(
        brokers: &str,
        database: &Database,
        database_address: SocketAddr,
    ) -> Option<Self> {
        let redis = services::redis().await?;
        let (issuer, topic) = (Issuer::start().await, unique("storm"));
        let producer = Producer::new(brokers).expect("a producer");
        producer.create_topic(&topic, 6).await.expect("a topic");
        let url = database.through(database_address);
        let settings = Gateway::build()
            .trust(&issuer)
            .redis(redis.address())
            .postgres_url(&url)
            .kafka(brokers, &topic)
            .set("policy.cache_secs", 30)
            .live("observability.log_filter", "info");
        let policies = settings.policies().await;
        for key in 0..KEYS {
            for user in ["a", "b"] {
                policies
                    .join(&format!("{user}{key}"), &format!("Merchant_{key}"))
                    .await
                    .expect("a row");
            }
        }
        let gateways = settings.start_many(2).await;
        let pool = PgPool::connect(&database.url)
            .await
            .expect("the database answers");
        Some(Self {
            issuer,
            redis,
            gateways,
            producer: Arc::new(producer),
            topic,
            pool,
        })
    }

    /// Produces until `time` has passed, or longer where little was acknowledged by then; gives how many records of each key were acknowledged.
    ///
    /// A key's next record is produced when its last one is acknowledged, as a producer does that must keep order.
    fn load(&self, time: Duration) -> JoinSet<(usize, u64)> {
        let mut keys = JoinSet::new();
        for key in 0..KEYS {
            let (producer, topic) = (Arc::clone(&self.producer), self.topic.clone());
            keys.spawn(async move {
                let mut ticks = interval(Duration::from_secs(1) * KEYS as u32 / RECORDS_PER_SECOND);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let (begun, mut count) = (Instant::now(), 0);
                while begun.elapsed() < time || count < LEAST_PER_KEY {
                    ticks.tick().await;
                    let record = payment(&format!("{key}-{count}"), &key.to_string(), count);
                    producer
                        .send(&topic, &key.to_string(), &record)
                        .await
                        .expect("the producer tries until it is acknowledged");
                    count += 1;
                }
                (key, count)
            });
        }
        keys
    }

    /// Waits for every row of what was acknowledged, and checks that there are no others and that each inbox is in order.
    async fn expect_exactly(&self, load: JoinSet<(usize, u64)>) {
        let counts: HashMap<usize, u64> = load.join_all().await.into_iter().collect();
        let total: u64 = counts.values().sum();
        let want = total as i64 * 2;
        let count = || async {
            sqlx::query_scalar::<_, i64>("select count(*) from signal_notification")
                .fetch_one(&self.pool)
                .await
                .ok()
        };
        until_within(CATCH_UP, &format!("{want} rows"), || async {
            (count().await? >= want).then_some(())
        })
        .await;

        for (key, count) in counts {
            for user in ["a", "b"] {
                let recipient = format!("{user}{key}");
                let sql = "select event_id, seq::int8 from signal_inbox join signal_notification using (inbox) join signal_event using (event) \
                           where recipient_id = $1 order by seq";
                let rows: Vec<(String, i64)> = sqlx::query_as(sql)
                    .bind(&recipient)
                    .fetch_all(&self.pool)
                    .await
                    .expect("rows");
                let want: Vec<(String, i64)> = (0..count)
                    .map(|n| (format!("{key}-{n}"), n as i64 + 1))
                    .collect();
                let wrong = rows.iter().zip(&want).find(|(row, want)| row != want);
                assert!(
                    wrong.is_none(),
                    "{recipient}: first row out of order, and what it should be: {wrong:?}"
                );
                assert_eq!(rows.len(), want.len(), "rows of {recipient}");
                let sql = "select last_seq, unread_count from signal_inbox where recipient_id = $1";
                let state: (i64, i64) = sqlx::query_as(sql)
                    .bind(&recipient)
                    .fetch_one(&self.pool)
                    .await
                    .expect("a state row");
                assert_eq!(state, (count as i64, count as i64), "state of {recipient}");
            }
        }
    }

    /// Shows that pushes still arrive: one more record reaches a connection on each gateway.
    async fn expect_pushes(&self) {
        let mut clients = Vec::new();
        for gateway in &self.gateways {
            clients.push(Client::open_encrypted(gateway.address(), &self.issuer.token("a0")).await);
        }
        self.producer
            .send(&self.topic, "0", &payment("the last", "0", 1))
            .await
            .expect("acknowledged");
        for client in &mut clients {
            client
                .expect_where("the last push", |e| {
                    e.data["notification"]["data"]["orderId"] == "DH-the last"
                })
                .await;
        }
    }
}

#[tokio::test]
async fn killed_gateways_lose_and_repeat_nothing() {
    let Some(brokers) = services::kafka().await else {
        return;
    };
    let Some(database) = services::postgres().await else {
        return;
    };
    let Some(mut storm) = Storm::start(&brokers, &database, database.server).await else {
        return;
    };
    let load = storm.load(Duration::from_secs(8));
    sleep(Duration::from_secs(2)).await;
    storm.gateways[0].kill();
    sleep(Duration::from_secs(1)).await;
    storm.gateways[0].restart().await;
    storm.gateways[1].kill();
    storm.gateways[1].restart().await;
    storm.expect_exactly(load).await;
    storm.expect_pushes().await;
}

#[tokio::test]
async fn a_database_that_is_away_for_ten_seconds_delays_and_loses_nothing() {
    let Some(brokers) = services::kafka().await else {
        return;
    };
    let Some(server) = services::own_postgres().await else {
        return;
    };
    let database = services::database_on(&server).await;
    let Some(storm) = Storm::start(&brokers, &database, database.server).await else {
        return;
    };
    let load = storm.load(Duration::from_secs(6));
    sleep(Duration::from_secs(2)).await;
    server.kill().await;
    sleep(Duration::from_secs(10)).await;
    for gateway in &storm.gateways {
        gateway.admin("GET", "/livez").await.expect(200);
    }
    server.restart().await;
    storm.expect_exactly(load).await;
    storm.expect_pushes().await;
}

#[tokio::test]
async fn a_database_that_answers_nothing_for_a_while_delays_and_loses_nothing() {
    let Some(brokers) = services::kafka().await else {
        return;
    };
    let Some(database) = services::postgres().await else {
        return;
    };
    let proxy = Proxy::to(database.server).await;
    let Some(storm) = Storm::start(&brokers, &database, proxy.address()).await else {
        return;
    };
    let load = storm.load(Duration::from_secs(5));
    sleep(Duration::from_secs(1)).await;
    proxy.stall();
    sleep(Duration::from_secs(3)).await;
    // Connections that hang are cut, as a failing network does in the end.
    proxy.cut();
    sleep(Duration::from_secs(1)).await;
    proxy.restore();
    storm.expect_exactly(load).await;
}

#[tokio::test]
async fn a_restart_of_redis_does_not_hold_the_pipeline_up() {
    let Some(brokers) = services::kafka().await else {
        return;
    };
    let Some(database) = services::postgres().await else {
        return;
    };
    let Some(storm) = Storm::start(&brokers, &database, database.server).await else {
        return;
    };
    let mut client =
        Client::open_encrypted(storm.gateways[0].address(), &storm.issuer.token("nobody's")).await;
    let load = storm.load(Duration::from_secs(6));
    sleep(Duration::from_secs(1)).await;
    storm.redis.kill().await;
    let rows = || async {
        sqlx::query_scalar::<_, i64>("select count(*) from signal_notification")
            .fetch_one(&storm.pool)
            .await
            .ok()
    };
    let before = rows().await.expect("a count");
    until("rows go on being stored without Redis", || async {
        (rows().await? > before + 500).then_some(())
    })
    .await;
    storm.redis.restart().await;
    client.expect("resync").await;
    storm.expect_exactly(load).await;
    storm.expect_pushes().await;
}

#[tokio::test]
async fn a_restart_of_the_broker_loses_and_repeats_nothing() {
    let Some(broker) = services::own_kafka().await else {
        return;
    };
    let Some(database) = services::postgres().await else {
        return;
    };
    let brokers = broker.address().to_string();
    let Some(storm) = Storm::start(&brokers, &database, database.server).await else {
        return;
    };
    let load = storm.load(Duration::from_secs(6));
    sleep(Duration::from_secs(2)).await;
    broker.kill().await;
    sleep(Duration::from_secs(1)).await;
    broker.restart().await;
    storm.expect_exactly(load).await;
    storm.expect_pushes().await;
}

#[tokio::test]
async fn a_gateway_that_drains_hands_its_partitions_over_without_a_gap() {
    let Some(brokers) = services::kafka().await else {
        return;
    };
    let Some(database) = services::postgres().await else {
        return;
    };
    let Some(mut storm) = Storm::start(&brokers, &database, database.server).await else {
        return;
    };
    let load = storm.load(Duration::from_secs(6));
    sleep(Duration::from_secs(2)).await;
    storm.gateways[0].signal("TERM");
    assert!(storm.gateways[0].expect_exit().await.success());
    storm.gateways[0].restart().await;
    storm.expect_exactly(load).await;
}

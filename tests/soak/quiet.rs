//! A quiet point: nothing is produced, everything is stored, and then every client, every row and every count must agree.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use signal_tests::gateway::ADMIN_TOKEN;
use signal_tests::{Producer, rest};
use sqlx::{PgConnection, Row as _};
use tokio::time::{Instant, sleep};

use crate::devices::View;
use crate::ledger::{CONNECTED, Print, out_of_order};
use crate::load::Load;
use crate::run_state::{Condition, RunState};
use crate::stage::Stage;
use crate::watch::{resident, sum};

/// The broker acknowledges everything within this.
const ACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(60);
/// A backlog may take its time, but the count of rows grows at least this often: the group needs 6 s to miss a member that was killed.
const PROGRESS_LIMIT: Duration = Duration::from_secs(12);
/// Clients know everything this long after it is stored: a push, a `resync` or a gap, and the sync that follows it.
const SETTLE_LIMIT: Duration = Duration::from_secs(12);
/// What an outage or a burst took goes back to the system within this.
const GIVEN_BACK_LIMIT: Duration = Duration::from_secs(75);
/// A gateway holds at most so much more at the end than at the first quiet point, in MiB.
const GROWTH_LIMIT_MIB: u64 = 96;

/// A device and what it knows.
pub(crate) type Views = Vec<(u64, Arc<Mutex<View>>)>;

/// What quiet points have seen.
#[derive(Debug, Default, Clone)]
pub(crate) struct Findings {
    pub(crate) points: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) out_of_order: u64,
    pub(crate) missed: u64,
    pub(crate) rows: i64,
    pub(crate) dead_letters: usize,
    /// Resident memory in MiB at the first and at the last point, by gateway.
    pub(crate) memory: BTreeMap<usize, (u64, u64)>,
    pub(crate) slowest_storing: Duration,
    pub(crate) slowest_settling: Duration,
}

/// Checks at quiet points.
pub(crate) struct Quiet {
    pub(crate) run: RunState,
    pub(crate) load: Arc<Load>,
    pub(crate) views: Views,
    pub(crate) findings: Findings,
}

impl Quiet {
    /// Holds the producers back and checks everything; with `is_last` every event by itself and the dead letters as well.
    pub(crate) async fn point(&mut self, stage: &Stage, is_last: bool) -> Result<()> {
        self.findings.points += 1;
        if !self.load.pause(ACKNOWLEDGED_LIMIT).await {
            self.run.fail("the broker does not acknowledge".into());
        }
        let mut connection = stage.connect().await?;
        self.wait_for_rows(&mut connection).await?;
        let stored = Instant::now();
        self.wait_for_clients(&mut connection).await?;
        let settled = stored.elapsed();
        self.findings.slowest_settling = self.findings.slowest_settling.max(settled);
        self.check_order(&mut connection).await?;
        self.check_counts().await;
        if is_last || self.findings.rows < 200_000 {
            self.check_events(&mut connection).await?;
        }
        if is_last {
            self.check_dead_letters(stage).await?;
            self.check_growth().await;
        } else {
            self.load.resume();
        }
        let text = format!(
            "quiet: {} rows, clients agree after {:.1} s",
            self.findings.rows,
            settled.as_secs_f64()
        );
        self.run.say(&text);
        Ok(())
    }

    async fn wait_for_rows(&mut self, connection: &mut PgConnection) -> Result<()> {
        let want = self.load.ledger.lock().rows();
        let begun = Instant::now();
        let (mut last, mut progress) = (-1, Instant::now());
        loop {
            let rows: i64 = sqlx::query_scalar("select count(*) from signal_notification")
                .fetch_one(&mut *connection)
                .await?;
            self.findings.rows = rows;
            if rows >= want {
                break;
            }
            if rows != last {
                (last, progress) = (rows, Instant::now());
            } else if progress.elapsed() > PROGRESS_LIMIT {
                let silent = format!(
                    "{} rows are missing and none has come for {PROGRESS_LIMIT:?}",
                    want - rows
                );
                self.run.fail(silent);
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.findings.slowest_storing = self.findings.slowest_storing.max(begun.elapsed());
        Ok(())
    }

    /// Every device holds what the database holds, without another push that would show it a gap.
    async fn wait_for_clients(&mut self, connection: &mut PgConnection) -> Result<()> {
        let mut stored = HashMap::new();
        for user in 1..=CONNECTED {
            stored.insert(user, inbox(connection, user).await?);
        }
        let begun = Instant::now();
        loop {
            let behind: Vec<String> = self
                .views
                .iter()
                .filter_map(|(user, view)| difference(*user, &view.lock(), &stored[user]))
                .collect();
            if behind.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > SETTLE_LIMIT {
                self.findings.missed += behind.len() as u64;
                for text in behind {
                    self.run
                        .fail(format!("a client misses what nobody told it of: {text}"));
                }
                // So that the next point tells what is new.
                self.views.iter().for_each(|(_, view)| view.lock().tell());
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn check_order(&mut self, connection: &mut PgConnection) -> Result<()> {
        for user in 1..=CONNECTED {
            let sql = "select event_id from signal_inbox join signal_notification using (inbox) join signal_event using (event) \
                       where recipient_id = $1 order by seq";
            let events: Vec<String> = sqlx::query_scalar(sql)
                .bind(format!("u{user}"))
                .fetch_all(&mut *connection)
                .await?;
            if let Some(which) = out_of_order(&events) {
                self.findings.out_of_order += 1;
                self.run.fail(format!("order of user u{user}: {which}"));
            }
        }
        Ok(())
    }

    async fn check_events(&mut self, connection: &mut PgConnection) -> Result<()> {
        let sql = "select event_id, count(*), count(distinct recipient_id), sum(n)::bigint, sum(n * n)::bigint \
                   from (select event_id, recipient_id, substr(recipient_id, 2)::bigint as n \
                         from signal_notification join signal_inbox using (inbox) join signal_event using (event)) as rows \
                   group by event_id";
        let rows = sqlx::query(sql).fetch_all(&mut *connection).await?;
        let mut stored = HashMap::with_capacity(rows.len());
        for row in rows {
            let print = Print {
                rows: row.try_get(1)?,
                distinct: row.try_get(2)?,
                sum: row.try_get(3)?,
                squares: row.try_get(4)?,
            };
            stored.insert(row.try_get::<String, _>(0)?, print);
        }
        let (lost, doubled) = self.load.ledger.lock().compare(&stored);
        self.findings.lost = lost.len() as u64;
        self.findings.doubled = doubled.len() as u64;
        for text in lost.iter().take(5) {
            self.run.fail(format!("lost: {text}"));
        }
        for text in doubled.iter().take(5) {
            self.run.fail(format!("doubled: {text}"));
        }
        Ok(())
    }

    /// Nothing waits, nothing is unready, and each gateway counts the connections that the clients count.
    async fn check_counts(&mut self) {
        let begun = Instant::now();
        loop {
            let wrong = self.wrong_counts().await;
            if wrong.is_empty() {
                break;
            }
            if begun.elapsed() > SETTLE_LIMIT {
                wrong.into_iter().for_each(|text| self.run.fail(text));
                break;
            }
            sleep(Duration::from_millis(300)).await;
        }
        for (number, known) in self.run.in_condition(Condition::Running) {
            let now = resident(known.pid).unwrap_or_default();
            let memory = self.findings.memory.entry(number).or_insert((now, now));
            memory.1 = now;
        }
    }

    /// What an outage or a burst took goes back to the system.
    async fn check_growth(&mut self) {
        let begun = Instant::now();
        for (number, known) in self.run.in_condition(Condition::Running) {
            let Some(&(first, _)) = self.findings.memory.get(&number) else {
                continue;
            };
            let mut now = resident(known.pid).unwrap_or_default();
            while now > first + GROWTH_LIMIT_MIB && begun.elapsed() < GIVEN_BACK_LIMIT {
                sleep(Duration::from_secs(1)).await;
                now = resident(known.pid).unwrap_or_default();
            }
            if now > first + GROWTH_LIMIT_MIB {
                let grew = format!("gateway {number} grew from {first} to {now} MiB at rest");
                self.run.fail(grew);
            }
            self.findings.memory.insert(number, (first, now));
        }
    }

    async fn wrong_counts(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, known) in self.run.in_condition(Condition::Running) {
            let get = |path: &str| {
                let url = format!("http://{}{path}", known.admin);
                rest::try_ask(rest::http().get(url).bearer_auth(ADMIN_TOKEN))
            };
            let (Ok(metrics), Ok(status)) = (get("/metrics").await, get("/status").await) else {
                wrong.push(format!(
                    "gateway {number} answers neither metrics nor status"
                ));
                continue;
            };
            let held = |view: &&(u64, Arc<Mutex<View>>)| view.1.lock().gateway == Some(number);
            let held = self.views.iter().filter(held).count();
            let kafka = &status.json()["kafka"];
            let checks = [
                ("signal_connections", held as f64),
                ("signal_kafka_lag_records", 0.0),
                ("signal_unready", 0.0),
                ("signal_bus_stalled", 0.0),
                ("signal_outbox_bytes", 0.0),
                ("signal_kafka_memory_bytes", 0.0),
            ];
            for (name, want) in checks {
                let got = sum(&metrics.text, name);
                if (got - want).abs() > f64::EPSILON {
                    wrong.push(format!("gateway {number}: {name} is {got}, want {want}"));
                }
            }
            if kafka["retrying"] != 0 || kafka["maxLag"].as_i64().unwrap_or(0) != 0 {
                wrong.push(format!(
                    "gateway {number}: /status says of the pipeline {kafka}"
                ));
            }
        }
        wrong
    }

    async fn check_dead_letters(&mut self, stage: &Stage) -> Result<()> {
        let topic = format!("{}.dlq", stage.topic);
        let brokers = stage.brokers();
        let (name, address) = (topic.clone(), brokers.clone());
        let count = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &address)
                .create()?;
            let (_, high) = consumer.fetch_watermarks(&name, 0, Duration::from_secs(20))?;
            Ok::<_, rdkafka::error::KafkaError>(usize::try_from(high).unwrap_or_default())
        });
        let count = count.await?.context("the dead letters cannot be read")?;
        let letters = Producer::new(&brokers)?.read(&topic, count).await?;
        self.findings.dead_letters = letters.len();
        let ledger = self.load.ledger.lock();
        let keys: std::collections::HashSet<&[u8]> =
            letters.iter().map(|letter| letter.key.as_slice()).collect();
        for key in ledger.poison() {
            if !keys.contains(key.as_bytes()) {
                self.findings.lost += 1;
                self.run.fail(format!("{key} is no dead letter"));
            }
        }
        for letter in &letters {
            if !letter.key.starts_with(b"poison-") {
                let reason = letter.header("signal-dlq-reason");
                let key = String::from_utf8_lossy(&letter.key);
                self.run.fail(format!(
                    "a good record of key {key} is a dead letter: {reason}"
                ));
            }
        }
        Ok(())
    }
}

async fn inbox(connection: &mut PgConnection, user: u64) -> Result<Vec<(i64, String)>> {
    let sql = "select seq::int8, inbox::int8, text::int8 from signal_inbox join signal_notification using (inbox) \
               where recipient_id = $1 order by seq";
    let rows = sqlx::query(sql)
        .bind(format!("u{user}"))
        .fetch_all(connection)
        .await?;
    let row = |row: sqlx::postgres::PgRow| {
        let seq = row.try_get(0)?;
        Ok((seq, id(row.try_get(1)?, seq, row.try_get(2)?)))
    };
    rows.into_iter().map(row).collect()
}

/// The id of a row (protocol.md 11.7), of which none here has a large number.
fn id(inbox: i64, seq: i64, text: i64) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut number = (text as u128 & 0x1f_ffff) << 48 | (inbox as u128) << 22 | seq as u128;
    let mut text = Vec::new();
    while number > 0 {
        text.push(DIGITS[(number % 62) as usize]);
        number /= 62;
    }
    text.reverse();
    String::from_utf8_lossy(&text).into_owned()
}

/// What a device has other than the database, if anything.
fn difference(user: u64, view: &View, stored: &[(i64, String)]) -> Option<String> {
    let held = view.inbox.held();
    let same = held.len() == stored.len()
        && held
            .iter()
            .zip(stored)
            .all(|((seq, row), (want, id))| seq == want && row["id"] == id.as_str());
    if same && view.is_settled() && view.inbox.starts() == 0 {
        return None;
    }
    Some(format!(
        "u{user} on gateway {:?}: {} of {} rows, contiguous {}, last {}, settled {}, starts {}",
        view.gateway,
        held.len(),
        stored.len(),
        view.inbox.contiguous(),
        stored.last().map_or(0, |row| row.0),
        view.is_settled(),
        view.inbox.starts()
    ))
}

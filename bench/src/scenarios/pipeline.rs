//! Activity records through Kafka to rows in PostgreSQL to sockets.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::json;
use signal_tests::Producer;
use signal_tests::services::{self, Database, unique};
use sqlx::{Connection as _, PgConnection};

use crate::crowd::{Crowd, Guest};
use crate::frame::numbered;
use crate::os;
use crate::report::{Measurement, Report, Target};
use crate::server::{Server, Settings, Testbed};

const PARTITIONS: i32 = 4;
const MIB: f64 = 1024.0;
/// Records per second where they come one after another.
const RATE: u32 = 500;
const LIMIT: Duration = Duration::from_secs(60);

/// One consumer with its topic, its rows and its sockets.
struct ConsumerUnderTest {
    server: Server,
    crowd: Crowd,
    source: Source,
    database: Database,
    table: &'static str,
    /// Records produced until now; each is one notification.
    records: usize,
    cpu: Vec<f64>,
    per_second: Vec<f64>,
    times: Vec<f64>,
}

#[expect(
    clippy::too_many_lines,
    reason = "the phases of one measurement, in their order"
)]
pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let (kafka, postgres) = testbed
        .runtime
        .block_on(async { (services::kafka().await, services::postgres().await) });
    let (Some(brokers), Some(database)) = (kafka, postgres) else {
        report.skip(
            "pipeline",
            "it needs Kafka and PostgreSQL: run `cargo xtask setup`",
        );
        return Ok(());
    };
    let sizes = &testbed.sizes;
    let mut rows = ConsumerUnderTest::row_at_a_time(testbed, &brokers, &database)?;
    let mut gateway = ConsumerUnderTest::gateway(testbed, &brokers, &database)?;
    for round in 0..=sizes.rounds {
        for (subject, records) in [
            (&mut rows, sizes.row_records),
            (&mut gateway, sizes.records),
        ] {
            subject.drain(testbed, records)?;
            if round == 0 {
                subject.forget();
            }
        }
    }
    let line = Measurement::new(
        "a record that waits, to one user",
        "us per notification",
        &gateway.cpu,
    );
    report.add(
        &line
            .against("row at a time", &rows.cpu)
            .target(Target::Times(0.125)),
    );
    let line = Measurement::new(
        "records that wait, drained",
        "per second",
        &gateway.per_second,
    );
    report.add(&line.against("row at a time", &rows.per_second));
    for subject in [&mut rows, &mut gateway] {
        subject.forget();
    }
    for _ in 0..sizes.rounds {
        for subject in [&mut rows, &mut gateway] {
            subject.follow(testbed, sizes.row_records)?;
        }
    }
    let line = Measurement::new(
        format!("{RATE} records a second, to one user each"),
        "us per notification",
        &gateway.cpu,
    );
    report.add(
        &line
            .against("row at a time", &rows.cpu)
            .times(&gateway.times, &rows.times),
    );
    drop(rows);

    // The first drain is a fifth of the second: what grows with the burst shows.
    let mut peaks = Vec::new();
    for records in [sizes.burst_records / 5, sizes.burst_records] {
        let before = gateway.server.memory()?;
        os::forget_peak(gateway.server.pid())?;
        gateway.drain(testbed, records)?;
        peaks.push((os::peak_kib(gateway.server.pid())? - before) / MIB);
        let rate = gateway.per_second.last().copied().unwrap_or_default();
        report.add(&Measurement::new(
            format!("a burst of {records} records, drained"),
            "per second",
            &[rate],
        ));
    }
    let line = Measurement::new(
        format!(
            "a burst of {} records: memory above the rest",
            sizes.burst_records
        ),
        "MiB",
        &peaks[1..],
    );
    report.add(&line.against("a fifth of them", &peaks[..1]));
    let peak = os::peak_kib(gateway.server.pid())? / MIB;
    report.add(&Measurement::new(
        format!(
            "a burst of {} records: most memory in all",
            sizes.burst_records
        ),
        "MiB",
        &[peak],
    ));
    Ok(())
}

impl ConsumerUnderTest {
    fn row_at_a_time(testbed: &Testbed, brokers: &str, database: &Database) -> Result<Self> {
        let topic = topic(testbed, brokers)?;
        let server = Server::row_at_a_time(testbed, brokers, &topic, &database.url)?;
        let guests = (0..testbed.sizes.people).map(|n| Guest {
            path: format!("/user-{n}"),
            ..Guest::default()
        });
        let crowd = Crowd::connect(server.address, guests.collect())?;
        Ok(Self::new(
            server,
            crowd,
            Source::connect(brokers, &topic)?,
            database,
            "rowwise",
        ))
    }

    fn gateway(testbed: &Testbed, brokers: &str, database: &Database) -> Result<Self> {
        let topic = topic(testbed, brokers)?;
        let pipeline = Some((brokers.to_owned(), topic.clone(), database.url.clone()));
        let server = Server::gateway(
            testbed,
            &Settings {
                pipeline,
                ..Settings::default()
            },
        )?;
        let crowd = testbed.crowd(&server, &testbed.tokens(testbed.sizes.people), false)?;
        Ok(Self::new(
            server,
            crowd,
            Source::connect(brokers, &topic)?,
            database,
            "signal_notification",
        ))
    }

    fn new(
        server: Server,
        mut crowd: Crowd,
        source: Source,
        database: &Database,
        table: &'static str,
    ) -> Self {
        // Kafka and PostgreSQL share its core.
        crowd.sleeps = true;
        let database = database.clone();
        Self {
            server,
            crowd,
            source,
            database,
            table,
            records: 0,
            cpu: Vec::new(),
            per_second: Vec::new(),
            times: Vec::new(),
        }
    }

    /// Produces while the consumer stands still, then lets it go until every notification is on its socket.
    fn drain(&mut self, testbed: &Testbed, records: usize) -> Result<()> {
        let each = self.each(records)?;
        self.server.pause();
        let produced = self.produce(each);
        self.server.resume();
        produced?;
        self.records += records;
        let (cpu, began) = (self.server.cpu()?, Instant::now());
        self.crowd.receive(each as u64, began)?;
        self.per_second
            .push(records as f64 / began.elapsed().as_secs_f64());
        self.finish(testbed, cpu, records)
    }

    /// Produces one record after another at a rate, for each user in turn.
    fn follow(&mut self, testbed: &Testbed, records: usize) -> Result<()> {
        let (users, before) = (self.crowd.len(), self.records);
        let each = self.each(records)?;
        self.records += records;
        let (source, cpu) = (&self.source, self.server.cpu()?);
        let mut next = before;
        let times = self.crowd.paced(RATE, each * users, |_| {
            let user = next % users;
            source.put(user, next / users + 1)?;
            next += 1;
            Ok(user)
        })?;
        self.times.extend(times);
        self.crowd.expect(each as u64);
        self.finish(testbed, cpu, records)
    }

    /// Notes what it cost, and looks for the rows.
    fn finish(&mut self, testbed: &Testbed, cpu: f64, records: usize) -> Result<()> {
        // The last offsets are committed behind the last messages.
        self.crowd.rest(Duration::from_millis(300))?;
        self.cpu.push((self.server.cpu()? - cpu) / records as f64);
        let stored = testbed
            .runtime
            .block_on(count(&self.database.url, self.table))?;
        ensure!(
            stored == self.records as i64,
            "{stored} rows for {} records",
            self.records
        );
        Ok(())
    }

    fn each(&self, records: usize) -> Result<usize> {
        let users = self.crowd.len();
        ensure!(
            records.is_multiple_of(users),
            "{records} records are not the same for each of {users} users"
        );
        Ok(records / users)
    }

    fn produce(&self, each: usize) -> Result<()> {
        let users = self.crowd.len();
        let before = self.records / users;
        for number in before + 1..=before + each {
            (0..users).try_for_each(|user| self.source.put(user, number))?;
        }
        self.source.flush()
    }

    fn forget(&mut self) {
        self.cpu.clear();
        self.per_second.clear();
        self.times.clear();
    }
}

pub(super) fn topic(testbed: &Testbed, brokers: &str) -> Result<String> {
    let topic = unique("bench");
    testbed.runtime.block_on(async {
        Producer::new(brokers)?
            .create_topic(&topic, PARTITIONS)
            .await
    })?;
    Ok(topic)
}

/// A service that produces records; a user's have one key, and so an order.
pub(super) struct Source {
    producer: BaseProducer,
    topic: String,
}

impl Source {
    pub(super) fn connect(brokers: &str, topic: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("linger.ms", "1");
        Ok(Self {
            producer: config.create()?,
            topic: topic.to_owned(),
        })
    }

    /// The record `number` of a user.
    fn put(&self, user: usize, number: usize) -> Result<()> {
        let user = format!("user-{user}");
        self.put_event(&user, std::slice::from_ref(&user), number as u64)
    }

    /// The record `number` for all these users, in its order with those of the same key.
    pub(super) fn put_event(&self, key: &str, users: &[String], number: u64) -> Result<()> {
        let first = users.first().map_or("", String::as_str);
        let record = json!({
            "id": format!("{first}/{number}"), "type": "PAYMENT_SUCCESS", "actorId": "17", "recipientType": "users", "recipientIds": users,
            "data": { "amount": 150_000, "currency": "VND", "orderId": numbered(number) }, "occurredAt": "2026-11-23T08:00:00Z",
        })
        .to_string();
        let mut next = BaseRecord::to(&self.topic).key(key).payload(&record);
        while let Err((error, back)) = self.producer.send(next) {
            ensure!(
                error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull),
                "not produced: {error}"
            );
            self.producer.poll(Duration::from_millis(10));
            next = back;
        }
        self.producer.poll(Duration::ZERO);
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.producer
            .flush(LIMIT)
            .context("the broker did not take all records")
    }
}

async fn count(url: &str, table: &str) -> Result<i64> {
    let mut connection = PgConnection::connect(url).await?;
    let sql = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
    Ok(sqlx::query_scalar(sql).fetch_one(&mut connection).await?)
}

//! One event for many users who are online, from the record to their sockets, beside a broadcast of about the same length.

use std::time::{Duration, Instant};

use anyhow::Result;
use signal_tests::services::{self, Database};

use super::pipeline::{Source, topic};
use crate::crowd::Crowd;
use crate::frame;
use crate::publish::Publisher;
use crate::report::{Measurement, Report, Target};
use crate::server::{Server, Settings, SharedRedis, Testbed};

/// About what `notification:created` of the record has.
const BYTES: usize = 512;
/// Events, and broadcasts, per round.
const TIMES: u64 = 4;
/// Until each gateway knows which others there are, and how to publish to them.
const ACQUAINTED: Duration = Duration::from_secs(12);

/// A gateway with a crowd, and what makes it send.
struct Subject {
    server: Server,
    crowd: Crowd,
    publisher: Publisher,
    source: Source,
    /// Consumes the records, where the one that is measured does not.
    _consumer: Option<Server>,
    members: Vec<String>,
    sent: u64,
    broadcasts: Vec<f64>,
    events: Vec<f64>,
}

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let (kafka, postgres) = testbed
        .runtime
        .block_on(async { (services::kafka().await, services::postgres().await) });
    let (Some(brokers), Some(database)) = (kafka, postgres) else {
        report.skip(
            "audience",
            "it needs Kafka and PostgreSQL: run `cargo xtask setup`",
        );
        return Ok(());
    };
    let mut subjects = [
        Subject::behind_another(testbed, &brokers, &database, false)?,
        Subject::behind_another(testbed, &brokers, &database, true)?,
        Subject::alone(testbed, &brokers, &database)?,
    ];
    std::thread::sleep(ACQUAINTED);
    for round in 0..=testbed.sizes.rounds {
        for (n, subject) in subjects.iter_mut().enumerate() {
            // The one that stores as well stores the same for as many who are away: the difference is the push.
            subject.round(n == 2)?;
            if round == 0 {
                subject.broadcasts.clear();
                subject.events.clear();
            }
        }
    }
    let [clear, encrypted, alone] = &subjects;
    let members = clear.members.len();
    for (subject, name, target) in [
        (clear, "published by another gateway, clear", 1.6),
        (encrypted, "published by another gateway, encrypted", 1.8),
        (
            alone,
            "of its own pipeline without what storing costs, clear",
            1.6,
        ),
    ] {
        let line = Measurement::new(
            format!("one event to {members}, {name}"),
            "us per user",
            &subject.events,
        );
        report.add(
            &line
                .against("broadcast in the clear", &clear.broadcasts)
                .target(Target::Times(target)),
        );
    }
    Ok(())
}

impl Subject {
    /// One that holds the connections, and another one that consumes the records.
    fn behind_another(
        testbed: &Testbed,
        brokers: &str,
        database: &Database,
        encrypted: bool,
    ) -> Result<Self> {
        let server = Server::gateway(testbed, &Settings::default())?;
        let topic = topic(testbed, brokers)?;
        let consumer = Server::gateway(
            testbed,
            &Settings {
                pipeline: Some((brokers.to_owned(), topic.clone(), database.url.clone())),
                redis: Some(SharedRedis::Single(server.redis()?)),
                cores: vec![testbed.cores.others],
                ..Settings::default()
            },
        )?;
        let source = Source::connect(brokers, &topic)?;
        Self::new(testbed, server, source, Some(consumer), encrypted)
    }

    /// One that does both.
    fn alone(testbed: &Testbed, brokers: &str, database: &Database) -> Result<Self> {
        let topic = topic(testbed, brokers)?;
        let server = Server::gateway(
            testbed,
            &Settings {
                pipeline: Some((brokers.to_owned(), topic.clone(), database.url.clone())),
                ..Settings::default()
            },
        )?;
        let source = Source::connect(brokers, &topic)?;
        Self::new(testbed, server, source, None, false)
    }

    fn new(
        testbed: &Testbed,
        server: Server,
        source: Source,
        consumer: Option<Server>,
        encrypted: bool,
    ) -> Result<Self> {
        let count = testbed.sizes.crowds[1];
        let mut crowd = testbed.crowd(&server, &testbed.tokens(count), encrypted)?;
        // Kafka, PostgreSQL and the other gateway share its core.
        crowd.sleeps = true;
        Ok(Self {
            publisher: Publisher::connect(&server)?,
            server,
            crowd,
            source,
            _consumer: consumer,
            members: (0..count).map(|n| format!("user-{n}")).collect(),
            sent: 0,
            broadcasts: Vec::new(),
            events: Vec::new(),
        })
    }

    fn round(&mut self, stores: bool) -> Result<()> {
        let broadcast =
            self.cost(|subject, number| subject.publisher.broadcast(&frame::data(number, BYTES)))?;
        let event = self.cost(|subject, number| {
            subject.source.put_event("all", &subject.members, number)?;
            subject.source.flush()
        })?;
        self.broadcasts.push(broadcast);
        if !stores {
            self.events.push(event);
            return Ok(());
        }
        let away: Vec<String> = self
            .members
            .iter()
            .map(|name| format!("away-{name}"))
            .collect();
        let with_away = self.cost(|subject, number| {
            subject.source.put_event("all", &away, number)?;
            subject.source.put_event("all", &subject.members, number)?;
            subject.source.flush()
        })?;
        self.events.push(2.0 * event - with_away);
        Ok(())
    }

    /// Sends a few times to everyone, and returns what one cost for each.
    fn cost(&mut self, send: impl Fn(&mut Self, u64) -> Result<()>) -> Result<f64> {
        let cpu = self.server.cpu()?;
        for _ in 0..TIMES {
            let began = Instant::now();
            self.sent += 1;
            send(self, self.sent)?;
            self.crowd.receive(1, began)?;
        }
        // Answers and commits follow.
        self.crowd.rest(Duration::from_millis(300))?;
        Ok((self.server.cpu()? - cpu) / (TIMES * self.members.len() as u64) as f64)
    }
}

//! More than one worker, and a member that reads nothing.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::fanout::{FanoutServer, Figures, Shape};
use crate::crowd::{Crowd, Guest};
use crate::frame;
use crate::publish::{Publisher, SendMethod};
use crate::report::{Measurement, Report, Target, Times};
use crate::server::{Settings, Testbed, guest};

/// What waits for the slow reader before anything is measured: more than its socket takes, and less than the gateway lets wait.
const CLOG: (u64, usize) = (80, 8192);
const SLOW: &str = "slow";

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    workers(testbed, report)?;
    slow_reader(testbed, report)
}

fn workers(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let members = testbed.sizes.crowds[1];
    let shape = Shape {
        bytes: 128,
        burst: 1,
        times: testbed.sizes.messages,
    };
    let cores = vec![testbed.cores.server, testbed.cores.others];
    let mut servers = [
        FanoutServer::gateway(testbed, &Settings::default(), members, false)?,
        FanoutServer::gateway(
            testbed,
            &Settings {
                cores,
                ..Settings::default()
            },
            members,
            false,
        )?,
    ];
    let mut figures = [Figures::default(), Figures::default()];
    for round in 0..=testbed.sizes.rounds {
        for (subject, figures) in servers.iter_mut().zip(&mut figures) {
            subject.round(testbed, SendMethod::Redis, shape, figures)?;
            if round == 0 {
                *figures = Figures::default();
            }
        }
    }
    let [one, two] = &figures;
    let line = Measurement::new(
        format!("{} B to {members}, two workers", shape.bytes),
        "us per message",
        &two.cpu,
    );
    report.add(
        &line
            .against("one worker", &one.cpu)
            .target(Target::Times(1.1))
            .times(&two.times, &one.times),
    );
    Ok(())
}

fn slow_reader(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let members = testbed.sizes.crowds[1];
    let shape = Shape {
        bytes: 1024,
        burst: 1,
        times: testbed.sizes.messages,
    };
    let mut servers = [
        FanoutServer::gateway(testbed, &Settings::default(), members, false)?,
        FanoutServer::gateway(testbed, &Settings::default(), members, false)?,
    ];
    for subject in &mut servers {
        subject.count_from(CLOG.0);
    }
    let mut times = [Vec::new(), Vec::new()];
    let mut figures = [const { Vec::new() }; 2];
    for round in 0..=testbed.sizes.rounds {
        for (at, subject) in servers.iter_mut().enumerate() {
            // The second crowd has a slow reader, another one each round: the gateway gives up those that stay slow.
            let slow = if at == 1 {
                Some(Slow::join(testbed, subject, round)?)
            } else {
                None
            };
            let mut own = Figures::default();
            subject.round(testbed, SendMethod::Redis, shape, &mut own)?;
            if let Some(slow) = slow {
                slow.read_all(shape.times)?;
            }
            if round > 0 {
                figures[at].push(Times::of(&own.times).p99);
                times[at].extend(own.times);
            }
        }
    }
    let name = format!(
        "{} B to {members}, p99 of the others with 1 slow reader",
        shape.bytes
    );
    let line = Measurement::new(name, "ms", &figures[1])
        .against("without", &figures[0])
        .target(Target::Times(1.1));
    report.add(&line.times(&times[1], &times[0]));
    Ok(())
}

/// A member that reads nothing, and has more waiting for it than its socket takes.
struct Slow(Crowd);

impl Slow {
    fn join(testbed: &Testbed, subject: &FanoutServer, round: usize) -> Result<Self> {
        let user = format!("{SLOW}-{round}");
        let token = testbed.issuer.token(&user);
        let slow = Guest {
            receive_buffer: Some(4096),
            ..guest(&token, None)
        };
        let mut crowd = Crowd::connect(subject.server.address, vec![slow])?;
        let mut publisher = Publisher::connect(&subject.server)?;
        // Their numbers lead up to those of the messages to everyone.
        let before = subject.sent() - CLOG.0;
        crowd.count_from(before);
        for number in before + 1..=subject.sent() {
            publisher.user(&user, &frame::data(number, CLOG.1))?;
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(Self(crowd))
    }

    /// Reads at last: all that waited, and then the messages to everyone, in order.
    fn read_all(mut self, messages: u64) -> Result<()> {
        self.0.receive(CLOG.0 + messages, Instant::now())?;
        Ok(())
    }
}

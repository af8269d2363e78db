//! What connections at rest cost: memory before and after traffic, and CPU with and without pings.

use std::io::Write as _;
use std::net::TcpStream;

use anyhow::Result;

use crate::crowd::Crowd;
use crate::floor::Order;
use crate::publish::{SendMethod, Trigger};
use crate::report::{Measurement, Report, Target};
use crate::server::{Server, Settings, Testbed};

/// Messages to everyone before memory is looked at again.
const MESSAGES: u64 = 5;
const BYTES: usize = 1024;

#[derive(Default)]
struct Figures {
    kib: Vec<f64>,
    kib_after: Vec<f64>,
    cpu: Vec<f64>,
    /// The gateway's before any client connected, in microseconds per second.
    alone: Vec<f64>,
}

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let count = testbed.sizes.idle;
    let mut both = [Figures::default(), Figures::default()];
    for _ in 0..testbed.sizes.rounds {
        for (figures, encrypted) in both.iter_mut().zip([false, true]) {
            round(testbed, figures, encrypted)?;
        }
    }
    for (figures, (mode, kib)) in both.iter().zip([("clear", 1.6), ("encrypted", 2.2)]) {
        let name = format!("{count} at rest, {mode}");
        report.add(&Measurement::new(&name, "KiB each", &figures.kib).target(Target::Value(kib)));
        let after = Measurement::new(
            format!("{name}, after traffic"),
            "KiB each",
            &figures.kib_after,
        );
        report.add(
            &after
                .against("before", &figures.kib)
                .target(Target::Times(1.2)),
        );
        report.add(
            &Measurement::new(
                format!("{name}, no pings"),
                "us per connection and s",
                &figures.cpu,
            )
            .target(Target::Value(0.1)),
        );
    }
    let alone = both
        .iter()
        .flat_map(|figures| figures.alone.iter().copied())
        .collect::<Vec<_>>();
    report.add(&Measurement::new(
        "the gateway without connections",
        "us per s",
        &alone,
    ));
    let every = testbed.sizes.pings;
    let floor = floor_pings(testbed)?;
    for (encrypted, mode) in [(false, "clear"), (true, "encrypted")] {
        let figures = pings(testbed, encrypted)?;
        let name = format!(
            "{count} at rest, {mode}, a ping every {} s",
            every.as_secs()
        );
        let line =
            Measurement::new(name, "us per connection and s", &figures).against("floor", &floor);
        // Another interval has another price.
        report.add(&if testbed.sizes.small {
            line
        } else {
            line.target(Target::Value(0.25))
        });
    }
    Ok(())
}

fn round(testbed: &Testbed, figures: &mut Figures, encrypted: bool) -> Result<()> {
    let count = testbed.sizes.idle;
    let tokens = testbed.tokens(count);
    let server = Server::gateway(testbed, &Settings::default())?;
    let mut trigger = Trigger::gateway(testbed, &server)?;
    let time = testbed.sizes.at_rest;
    let cpu = server.cpu()?;
    std::thread::sleep(time);
    figures
        .alone
        .push((server.cpu()? - cpu) / time.as_secs_f64());
    let before = server.memory()?;
    let each = |kib: f64| (kib - before) / count as f64;
    let mut crowd = testbed.crowd(&server, &tokens, encrypted)?;
    crowd.rest(testbed.sizes.rest)?;
    figures.kib.push(each(server.memory()?));

    let cpu = server.cpu()?;
    crowd.rest(time)?;
    figures
        .cpu
        .push((server.cpu()? - cpu) / count as f64 / time.as_secs_f64());

    for number in 1..=MESSAGES {
        let began = trigger.pull(testbed, SendMethod::Redis, number, 1, BYTES)?;
        crowd.receive(1, began)?;
    }
    crowd.rest(testbed.sizes.rest)?;
    figures.kib_after.push(each(server.memory()?));
    Ok(())
}

/// How often CPU is read, each time over a whole interval: connections that came together ping in the same half of each.
const READINGS: usize = 2;

fn pings(testbed: &Testbed, encrypted: bool) -> Result<Vec<f64>> {
    let tokens = testbed.tokens(testbed.sizes.idle);
    let server = Server::gateway(
        testbed,
        &Settings {
            ping_ms: testbed.sizes.pings.as_millis() as u64,
            ..Settings::default()
        },
    )?;
    let crowd = testbed.crowd(&server, &tokens, encrypted)?;
    read_pings(testbed, &server, crowd)
}

/// The same of the floor: one `send` of a ping, and one read of a pong.
fn floor_pings(testbed: &Testbed) -> Result<Vec<f64>> {
    let server = Server::floor(testbed)?;
    let crowd = Testbed::floor_crowd(&server, testbed.sizes.idle)?;
    let mut control = TcpStream::connect(server.address)?;
    control.write_all(&Order::Ping.with(testbed.sizes.pings.as_millis() as usize))?;
    read_pings(testbed, &server, crowd)
}

fn read_pings(testbed: &Testbed, server: &Server, mut crowd: Crowd) -> Result<Vec<f64>> {
    let (every, count) = (testbed.sizes.pings, crowd.len() as f64);
    let mut figures = Vec::new();
    for _ in 0..READINGS {
        let cpu = server.cpu()?;
        crowd.rest(every)?;
        figures.push((server.cpu()? - cpu) / count / every.as_secs_f64());
    }
    Ok(figures)
}

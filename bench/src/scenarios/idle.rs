//! What connections at rest cost: memory before and after traffic, and CPU with and without pings.

use anyhow::Result;

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
    for (figures, (mode, kib)) in both.iter().zip([("clear", 2.5), ("encrypted", 3.5)]) {
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
    for (encrypted, mode) in [(false, "clear"), (true, "encrypted")] {
        let figures = pings(testbed, encrypted)?;
        let name = format!(
            "{count} at rest, {mode}, a ping every {} s",
            testbed.sizes.pings.as_secs()
        );
        let line = Measurement::new(name, "us per connection and s", &figures);
        // Another interval has another price.
        report.add(&if testbed.sizes.small {
            line
        } else {
            line.target(Target::Value(1.5))
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

/// Over whole intervals: connections that came together ping in the same half of each.
fn pings(testbed: &Testbed, encrypted: bool) -> Result<Vec<f64>> {
    let (every, readings) = (testbed.sizes.pings, 2);
    let count = testbed.sizes.idle;
    let tokens = testbed.tokens(count);
    let server = Server::gateway(
        testbed,
        &Settings {
            ping_ms: every.as_millis() as u64,
            ..Settings::default()
        },
    )?;
    let mut crowd = testbed.crowd(&server, &tokens, encrypted)?;
    let mut figures = Vec::new();
    for _ in 0..readings {
        let cpu = server.cpu()?;
        crowd.rest(every)?;
        figures.push((server.cpu()? - cpu) / count as f64 / every.as_secs_f64());
    }
    Ok(figures)
}

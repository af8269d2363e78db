//! What TLS costs beside the same in the clear: handshakes, messages to everyone, memory at rest.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::ClientConfig;
use rustls::client::Resumption;

use super::fanout::{FanoutServer, Figures, Shape};
use crate::publish::SendMethod;
use crate::report::{Measurement, Report};
use crate::server::{Server, Settings, Testbed};

/// Before each round, as for other messages to everyone.
const PAUSE: Duration = Duration::from_millis(300);

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    connect(testbed, report)?;
    for members in testbed.sizes.crowds {
        fan_out(testbed, report, members)?;
    }
    memory(testbed, report)
}

fn settings() -> Settings {
    Settings {
        tls: true,
        ..Settings::default()
    }
}

/// With tokens seen before, so that the handshake is the difference.
fn connect(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let count = testbed.sizes.arrivals;
    let tokens = testbed.tokens(count);
    let clear = Server::gateway(testbed, &Settings::default())?;
    let mut tls = Server::gateway(testbed, &settings())?;
    let resumed = tls.tls.clone().context("a server of TLS")?;
    let mut full = ClientConfig::clone(&resumed);
    full.resumption = Resumption::disabled();
    let full = Arc::new(full);
    let mut figures = [const { Vec::new() }; 3];
    for round in 0..=testbed.sizes.rounds {
        for (at, figures) in figures.iter_mut().enumerate() {
            let server = match at {
                0 => &clear,
                _ => {
                    tls.tls = Some(Arc::clone(if at == 1 { &full } else { &resumed }));
                    &tls
                }
            };
            let cpu = server.cpu()?;
            let crowd = testbed.crowd(server, &tokens, false)?;
            let figure = (server.cpu()? - cpu) / count as f64;
            crowd.leave(testbed.sizes.leave);
            if round > 0 {
                figures.push(figure);
            }
        }
    }
    for (name, figures_of) in [("a full handshake", 1), ("a resumed session", 2)] {
        let line = Measurement::new(name, "us per connection", &figures[figures_of]);
        report.add(&line.against("clear", &figures[0]));
    }
    Ok(())
}

fn fan_out(testbed: &Testbed, report: &mut Report, members: usize) -> Result<()> {
    let shape = Shape {
        bytes: 128,
        burst: 1,
        times: testbed.sizes.messages,
    };
    let mut servers = [
        FanoutServer::gateway(testbed, &Settings::default(), members, false)?,
        FanoutServer::gateway(testbed, &settings(), members, false)?,
    ];
    let mut both = [Figures::default(), Figures::default()];
    for round in 0..=testbed.sizes.short_rounds {
        for (server, figures) in servers.iter_mut().zip(&mut both) {
            std::thread::sleep(PAUSE);
            server.round(testbed, SendMethod::Redis, shape, figures)?;
            if round == 0 {
                *figures = Figures::default();
            }
        }
    }
    let [clear, tls] = &both;
    let name = format!("{} B to {members}, clear frames", shape.bytes);
    report.add(
        &Measurement::new(name, "us per message", &tls.cpu)
            .against("clear", &clear.cpu)
            .times(&tls.times, &clear.times),
    );
    Ok(())
}

fn memory(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let count = testbed.sizes.idle;
    let tokens = testbed.tokens(count);
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..testbed.sizes.rounds {
        for (figures, settings) in figures.iter_mut().zip([Settings::default(), settings()]) {
            let server = Server::gateway(testbed, &settings)?;
            let before = server.memory()?;
            let mut crowd = testbed.crowd(&server, &tokens, false)?;
            crowd.rest(testbed.sizes.rest)?;
            figures.push((server.memory()? - before) / count as f64);
        }
    }
    let [clear, tls] = &figures;
    let line = Measurement::new(format!("{count} at rest"), "KiB each", tls);
    report.add(&line.against("clear", clear));
    Ok(())
}

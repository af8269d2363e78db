//! What it costs to come: the opening handshake, the token, the agreement on a key.

use anyhow::Result;

use crate::report::{Measurement, Report, Target};
use crate::server::{Server, Settings, Testbed};

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    const UNIT: &str = "us per connection";
    let count = testbed.sizes.arrivals;
    let each = |us: f64| us / count as f64;
    let (floor, gateway) = (
        Server::floor(testbed)?,
        Server::gateway(testbed, &Settings::default())?,
    );
    let mut base = Vec::new();
    let mut figures = [const { Vec::new() }; 4];
    // The first round is forgotten, as everywhere.
    for round in 0..=testbed.sizes.rounds {
        let cpu = floor.cpu()?;
        let crowd = Testbed::floor_crowd(&floor, count)?;
        let figure = each(floor.cpu()? - cpu);
        crowd.leave(testbed.sizes.leave);
        if round > 0 {
            base.push(figure);
        }
        for (encrypted, at) in [(false, 0), (true, 2)] {
            let tokens = testbed.tokens(count);
            for at in [at, at + 1] {
                let cpu = gateway.cpu()?;
                let crowd = testbed.crowd(&gateway, &tokens, encrypted)?;
                let figure = each(gateway.cpu()? - cpu);
                crowd.leave(testbed.sizes.leave);
                if round > 0 {
                    figures[at].push(figure);
                }
            }
        }
    }
    let lines = [
        ("a new token", 60.0),
        ("a token seen before", 40.0),
        ("a new token, encryption handshake", 105.0),
        ("a token seen before, encryption handshake", 85.0),
    ];
    for (figures, (name, limit)) in figures.iter().zip(lines) {
        report.add(
            &Measurement::new(name, UNIT, figures)
                .against("floor", &base)
                .target(Target::Value(limit)),
        );
    }
    Ok(())
}

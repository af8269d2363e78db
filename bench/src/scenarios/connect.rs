//! What it costs to come: the opening handshake, the token, the agreement on a key.

use anyhow::Result;

use crate::report::{Line, Report, Target};
use crate::server::{Ground, Server, Settings};

pub(crate) fn run(ground: &Ground, report: &mut Report) -> Result<()> {
    const UNIT: &str = "us per connection";
    let count = ground.sizes.arrivals;
    let each = |us: f64| us / count as f64;
    let (floor, gateway) = (
        Server::floor(ground)?,
        Server::gateway(ground, &Settings::default())?,
    );
    let mut base = Vec::new();
    let mut figures = [const { Vec::new() }; 4];
    // The first round is forgotten, as everywhere.
    for round in 0..=ground.sizes.rounds {
        let cpu = floor.cpu()?;
        let crowd = Ground::floor_crowd(&floor, count)?;
        let figure = each(floor.cpu()? - cpu);
        crowd.leave(ground.sizes.leave);
        if round > 0 {
            base.push(figure);
        }
        for (encrypted, at) in [(false, 0), (true, 2)] {
            let tokens = ground.tokens(count);
            for at in [at, at + 1] {
                let cpu = gateway.cpu()?;
                let crowd = ground.crowd(&gateway, &tokens, encrypted)?;
                let figure = each(gateway.cpu()? - cpu);
                crowd.leave(ground.sizes.leave);
                if round > 0 {
                    figures[at].push(figure);
                }
            }
        }
    }
    let lines = [
        ("a new token", 100.0),
        ("a token seen before", 50.0),
        ("a new token, encryption handshake", 160.0),
        ("a token seen before, encryption handshake", 110.0),
    ];
    for (figures, (name, limit)) in figures.iter().zip(lines) {
        report.add(
            &Line::new(name, UNIT, figures)
                .against("floor", &base)
                .target(Target::Value(limit)),
        );
    }
    Ok(())
}

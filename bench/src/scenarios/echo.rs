//! A client's frame and the answer to it. Two are cheap and answered: a ping of the WebSocket protocol, and an event that is refused at once
//! (`authenticate` when authenticated). A `heartbeat` is not answered.

use std::time::Duration;

use anyhow::Result;

use crate::crowd::Crowd;
use crate::frame::{self, opcode};
use crate::report::{Measurement, Report, Target};
use crate::server::{Server, Settings, Testbed};

const RATE: u32 = 2000;

struct Cell {
    name: &'static str,
    server: usize,
    frame: Vec<u8>,
    cpu: Vec<f64>,
    times: Vec<f64>,
}

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let floor = Server::floor(testbed)?;
    let crowd = Testbed::floor_crowd(&floor, testbed.sizes.people)?;
    let mut servers = vec![(floor, crowd)];
    for encrypted in [false, true] {
        let server = Server::gateway(testbed, &Settings::default())?;
        let crowd = testbed.crowd(&server, &testbed.tokens(testbed.sizes.people), encrypted)?;
        servers.push((server, crowd));
    }
    let event = frame::of_client(opcode::TEXT, br#"{"event":"authenticate"}"#);
    let ping = frame::of_client(opcode::PING, b"bench");
    let cell = |name, server, frame: &[u8]| Cell {
        name,
        server,
        frame: frame.to_vec(),
        cpu: Vec::new(),
        times: Vec::new(),
    };
    let mut cells = [
        cell("", 0, &event),
        cell("an event and its answer, clear", 1, &event),
        cell("a clear event and its encrypted answer", 2, &event),
        cell("a ping and its pong", 1, &ping),
    ];
    for round in 0..=testbed.sizes.single_rounds {
        for cell in &mut cells {
            let (server, crowd) = &mut servers[cell.server];
            cell.round(server, crowd, testbed.sizes.singles)?;
            if round == 0 {
                cell.cpu.clear();
                cell.times.clear();
            }
        }
    }
    let [floor, others @ ..] = &cells;
    for (cell, target) in others.iter().zip([1.05, 1.2, 1.05]) {
        let line =
            Measurement::new(cell.name, "us per frame", &cell.cpu).against("floor", &floor.cpu);
        report.add(
            &line
                .target(Target::Times(target))
                .times(&cell.times, &floor.times),
        );
    }
    Ok(())
}

impl Cell {
    fn round(&mut self, server: &Server, crowd: &mut Crowd, total: usize) -> Result<()> {
        let cpu = server.cpu()?;
        let mut next = 0;
        let times = crowd.paced(RATE, total, |crowd| {
            let n = next % crowd.len();
            next += 1;
            crowd.send(n, &self.frame)?;
            Ok(n)
        })?;
        self.cpu.push((server.cpu()? - cpu) / total as f64);
        self.times.extend(times);
        crowd.rest(Duration::from_millis(50))
    }
}

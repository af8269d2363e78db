//! Messages to everyone, one at a time and in bursts.

use std::time::Duration;

use anyhow::Result;

use crate::crowd::Crowd;
use crate::publish::{SendMethod, Trigger};
use crate::report::{Measurement, Report, Target};
use crate::server::{Server, Settings, Testbed};

/// One server with its crowd, and how to make it send.
pub(super) struct FanoutServer {
    pub(super) server: Server,
    pub(super) crowd: Crowd,
    pub(super) trigger: Trigger,
    sent: u64,
}

/// The figures of one way to send on one server.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) cpu: Vec<f64>,
    pub(super) times: Vec<f64>,
}

impl FanoutServer {
    pub(super) fn floor(testbed: &Testbed, members: usize) -> Result<Self> {
        let server = Server::floor(testbed)?;
        let crowd = Testbed::floor_crowd(&server, members)?;
        let trigger = Trigger::floor(&server)?;
        Ok(Self {
            server,
            crowd,
            trigger,
            sent: 0,
        })
    }

    pub(super) fn gateway(
        testbed: &Testbed,
        settings: &Settings,
        members: usize,
        encrypted: bool,
    ) -> Result<Self> {
        let server = Server::gateway(testbed, settings)?;
        let crowd = testbed.crowd(&server, &testbed.tokens(members), encrypted)?;
        let trigger = Trigger::gateway(testbed, &server)?;
        Ok(Self {
            server,
            crowd,
            trigger,
            sent: 0,
        })
    }

    /// How many messages everyone was sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The next message has the number after this one.
    pub(super) fn count_from(&mut self, sent: u64) {
        self.sent = sent;
        self.crowd.count_from(sent);
    }

    /// Sends `messages` times `burst` and notes the cost of each delivered message.
    pub(super) fn round(
        &mut self,
        testbed: &Testbed,
        method: SendMethod,
        shape: Shape,
        figures: &mut Figures,
    ) -> Result<()> {
        let cpu = self.server.cpu()?;
        for _ in 0..shape.times {
            let began =
                self.trigger
                    .pull(testbed, method, self.sent + 1, shape.burst, shape.bytes)?;
            self.sent += shape.burst;
            let times = if method == SendMethod::Rest && shape.burst > 1 {
                self.crowd.receive_in_any_order(shape.burst, began)?
            } else {
                self.crowd.receive(shape.burst, began)?
            };
            figures.times.extend(times);
        }
        let delivered = shape.times * shape.burst * self.crowd.len() as u64;
        figures
            .cpu
            .push((self.server.cpu()? - cpu) / delivered as f64);
        Ok(())
    }
}

/// What is sent in a round.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) bytes: usize,
    pub(super) burst: u64,
    pub(super) times: u64,
}

const FLOOR: usize = 0;
const CLEAR: usize = 1;
const ENCRYPTED: usize = 2;

/// Before each round: what comes after a pause longer than TCP's shortest timeout, of 200 ms, is acknowledged packet by packet for a while. So it is the
/// same for those whose sockets were written to just before and those whose were not.
const PAUSE: Duration = Duration::from_millis(300);

/// One method on one server, and the cell it is compared with, by its index in the same list.
struct Cell {
    name: &'static str,
    server: usize,
    method: SendMethod,
    against: Option<(usize, &'static str)>,
    target: Option<f64>,
}

const fn cell(
    name: &'static str,
    server: usize,
    method: SendMethod,
    against: Option<(usize, &'static str)>,
    target: Option<f64>,
) -> Cell {
    Cell {
        name,
        server,
        method,
        against,
        target,
    }
}

const SEND: Option<(usize, &str)> = Some((0, "send"));
const JOINED: Option<(usize, &str)> = Some((1, "one send per burst"));

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    for members in testbed.sizes.crowds {
        let mut servers = servers(testbed, members)?;
        for bytes in [128, 1024] {
            let mut cells = vec![
                cell("", FLOOR, SendMethod::Send, None, None),
                cell("clear", CLEAR, SendMethod::Redis, SEND, Some(1.05)),
                cell("encrypted", ENCRYPTED, SendMethod::Redis, SEND, Some(1.1)),
            ];
            if bytes == 128 {
                cells.push(cell("clear, by REST", CLEAR, SendMethod::Rest, SEND, None));
            }
            let shape = Shape {
                bytes,
                burst: 1,
                times: testbed.sizes.messages,
            };
            compare(testbed, report, &mut servers, &cells, shape)?;
        }
    }
    largest(testbed, report)
}

/// The largest crowd, for two servers at a time: this process holds the sockets of both.
fn largest(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let members = testbed.sizes.largest.min((testbed.files - 500) / 2);
    let shape = Shape {
        bytes: 128,
        burst: 1,
        times: testbed.sizes.messages.div_ceil(2),
    };
    for (name, encrypted, target) in [("clear", false, 1.05), ("encrypted", true, 1.1)] {
        let settings = Settings::default();
        let mut servers = [
            FanoutServer::floor(testbed, members)?,
            FanoutServer::gateway(testbed, &settings, members, encrypted)?,
        ];
        let cells = [
            cell("", FLOOR, SendMethod::Send, None, None),
            cell(name, 1, SendMethod::Redis, SEND, Some(target)),
        ];
        compare(testbed, report, &mut servers, &cells, shape)?;
    }
    Ok(())
}

pub(crate) fn run_bursts(testbed: &Testbed, report: &mut Report) -> Result<()> {
    const CELLS: [Cell; 8] = [
        cell("", FLOOR, SendMethod::Send, None, None),
        cell("floor", FLOOR, SendMethod::Join, SEND, None),
        cell("clear", CLEAR, SendMethod::Redis, JOINED, Some(1.05)),
        cell("encrypted", ENCRYPTED, SendMethod::Redis, JOINED, Some(1.3)),
        cell(
            "clear, in ten writes",
            CLEAR,
            SendMethod::RedisApart,
            JOINED,
            Some(1.05),
        ),
        cell(
            "encrypted, in ten writes",
            ENCRYPTED,
            SendMethod::RedisApart,
            JOINED,
            Some(1.3),
        ),
        cell("clear, by REST", CLEAR, SendMethod::Rest, JOINED, None),
        cell(
            "encrypted, by REST",
            ENCRYPTED,
            SendMethod::Rest,
            JOINED,
            None,
        ),
    ];
    for members in testbed.sizes.crowds {
        let mut servers = servers(testbed, members)?;
        let shape = Shape {
            bytes: 128,
            burst: 10,
            times: testbed.sizes.messages.div_ceil(4),
        };
        compare(testbed, report, &mut servers, &CELLS, shape)?;
    }
    Ok(())
}

fn servers(testbed: &Testbed, members: usize) -> Result<[FanoutServer; 3]> {
    Ok([
        FanoutServer::floor(testbed, members)?,
        FanoutServer::gateway(testbed, &Settings::default(), members, false)?,
        FanoutServer::gateway(testbed, &Settings::default(), members, true)?,
    ])
}

/// Every round takes each cell in turn, so that a busy machine weighs on all of them.
fn compare(
    testbed: &Testbed,
    report: &mut Report,
    servers: &mut [FanoutServer],
    cells: &[Cell],
    shape: Shape,
) -> Result<()> {
    let mut all: Vec<Figures> = cells.iter().map(|_| Figures::default()).collect();
    for round in 0..=testbed.sizes.short_rounds {
        for (cell, figures) in cells.iter().zip(&mut all) {
            std::thread::sleep(PAUSE);
            servers[cell.server].round(testbed, cell.method, shape, figures)?;
            if round == 0 {
                // It fills caches and socket buffers.
                *figures = Figures::default();
            }
        }
    }
    let members = servers[FLOOR].crowd.len();
    for (cell, figures) in cells.iter().zip(&all) {
        let Some((against, name)) = cell.against else {
            continue;
        };
        let burst = if shape.burst > 1 {
            format!("{} x ", shape.burst)
        } else {
            String::new()
        };
        let line = Measurement::new(
            format!("{burst}{} B to {members}, {}", shape.bytes, cell.name),
            "us per message",
            &figures.cpu,
        );
        let mut line = line
            .against(name, &all[against].cpu)
            .times(&figures.times, &all[against].times);
        line.target = cell.target.map(Target::Times);
        report.add(&line);
    }
    for server in servers {
        server.crowd.rest(Duration::from_millis(50))?;
    }
    Ok(())
}

//! Messages to everyone, one at a time and in bursts.

use std::time::Duration;

use anyhow::Result;

use crate::crowd::Crowd;
use crate::publish::{Trigger, Way};
use crate::report::{Line, Report, Target};
use crate::server::{Ground, Server, Settings};

/// One server with its crowd, and how to make it send.
pub(super) struct Side {
    pub(super) server: Server,
    pub(super) crowd: Crowd,
    pub(super) trigger: Trigger,
    sent: u64,
}

/// The figures of one way to send on one side.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) cpu: Vec<f64>,
    pub(super) times: Vec<f64>,
}

impl Side {
    pub(super) fn floor(ground: &Ground, members: usize) -> Result<Self> {
        let server = Server::floor(ground)?;
        let crowd = Ground::floor_crowd(&server, members)?;
        let trigger = Trigger::floor(&server)?;
        Ok(Self {
            server,
            crowd,
            trigger,
            sent: 0,
        })
    }

    pub(super) fn gateway(
        ground: &Ground,
        settings: &Settings,
        members: usize,
        encrypted: bool,
    ) -> Result<Self> {
        let server = Server::gateway(ground, settings)?;
        let crowd = ground.crowd(&server, &ground.tokens(members), encrypted)?;
        let trigger = Trigger::gateway(ground, &server)?;
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
        ground: &Ground,
        way: Way,
        shape: Shape,
        figures: &mut Figures,
    ) -> Result<()> {
        let cpu = self.server.cpu()?;
        for _ in 0..shape.times {
            let began = self
                .trigger
                .pull(ground, way, self.sent + 1, shape.burst, shape.bytes)?;
            self.sent += shape.burst;
            let times = if way == Way::Rest && shape.burst > 1 {
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

/// One way on one side, and what it is held against: the place of another in the same list.
struct Cell {
    name: &'static str,
    side: usize,
    way: Way,
    against: Option<(usize, &'static str)>,
    target: Option<f64>,
}

const fn cell(
    name: &'static str,
    side: usize,
    way: Way,
    against: Option<(usize, &'static str)>,
    target: Option<f64>,
) -> Cell {
    Cell {
        name,
        side,
        way,
        against,
        target,
    }
}

const SEND: Option<(usize, &str)> = Some((0, "send"));
const JOINED: Option<(usize, &str)> = Some((1, "one send per burst"));

pub(crate) fn run(ground: &Ground, report: &mut Report) -> Result<()> {
    for members in ground.sizes.crowds {
        let mut sides = sides(ground, members)?;
        for (bytes, sealed) in [(128, 1.3), (1024, 1.4)] {
            let mut cells = vec![
                cell("", FLOOR, Way::Send, None, None),
                cell("clear", CLEAR, Way::Redis, SEND, Some(1.1)),
                cell("encrypted", ENCRYPTED, Way::Redis, SEND, Some(sealed)),
            ];
            if bytes == 128 {
                cells.push(cell("clear, by REST", CLEAR, Way::Rest, SEND, None));
            }
            let shape = Shape {
                bytes,
                burst: 1,
                times: ground.sizes.messages,
            };
            compare(ground, report, &mut sides, &cells, shape)?;
        }
    }
    Ok(())
}

pub(crate) fn run_bursts(ground: &Ground, report: &mut Report) -> Result<()> {
    const CELLS: [Cell; 6] = [
        cell("", FLOOR, Way::Send, None, None),
        cell("floor", FLOOR, Way::Join, SEND, None),
        cell("clear", CLEAR, Way::Redis, JOINED, Some(1.25)),
        cell("encrypted", ENCRYPTED, Way::Redis, JOINED, None),
        cell("clear, by REST", CLEAR, Way::Rest, JOINED, None),
        cell("encrypted, by REST", ENCRYPTED, Way::Rest, JOINED, None),
    ];
    for members in ground.sizes.crowds {
        let mut sides = sides(ground, members)?;
        let shape = Shape {
            bytes: 128,
            burst: 10,
            times: ground.sizes.messages.div_ceil(4),
        };
        compare(ground, report, &mut sides, &CELLS, shape)?;
    }
    Ok(())
}

fn sides(ground: &Ground, members: usize) -> Result<[Side; 3]> {
    Ok([
        Side::floor(ground, members)?,
        Side::gateway(ground, &Settings::default(), members, false)?,
        Side::gateway(ground, &Settings::default(), members, true)?,
    ])
}

/// Every round takes each cell in turn, so that a busy machine weighs on all of them.
fn compare(
    ground: &Ground,
    report: &mut Report,
    sides: &mut [Side; 3],
    cells: &[Cell],
    shape: Shape,
) -> Result<()> {
    let mut all: Vec<Figures> = cells.iter().map(|_| Figures::default()).collect();
    for round in 0..=ground.sizes.short_rounds {
        for (cell, figures) in cells.iter().zip(&mut all) {
            std::thread::sleep(PAUSE);
            sides[cell.side].round(ground, cell.way, shape, figures)?;
            if round == 0 {
                // It fills caches and socket buffers.
                *figures = Figures::default();
            }
        }
    }
    let members = sides[FLOOR].crowd.len();
    for (cell, figures) in cells.iter().zip(&all) {
        let Some((against, name)) = cell.against else {
            continue;
        };
        let burst = if shape.burst > 1 {
            format!("{} x ", shape.burst)
        } else {
            String::new()
        };
        let line = Line::new(
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
    for side in sides {
        side.crowd.rest(Duration::from_millis(50))?;
    }
    Ok(())
}

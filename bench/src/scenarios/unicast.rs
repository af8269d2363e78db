//! Messages to one user at a time.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;

use crate::crowd::Crowd;
use crate::floor::{Order, UNICAST_BYTES};
use crate::frame;
use crate::publish::Publisher;
use crate::report::{Line, Report, Target};
use crate::server::{Ground, Server, Settings};

const RATE: u32 = 1000;

struct Side {
    server: Server,
    crowd: Crowd,
    sender: Sender,
    /// How many messages each member was sent.
    sent: Vec<u64>,
    cpu: Vec<f64>,
    times: Vec<f64>,
}

enum Sender {
    Floor(TcpStream),
    Redis(Publisher),
}

impl Side {
    fn new(server: Server, crowd: Crowd, sender: Sender) -> Self {
        let sent = vec![0; crowd.len()];
        Self {
            server,
            crowd,
            sender,
            sent,
            cpu: Vec::new(),
            times: Vec::new(),
        }
    }

    fn gateway(ground: &Ground, encrypted: bool) -> Result<Self> {
        let server = Server::gateway(ground, &Settings::default())?;
        let crowd = ground.crowd(&server, &ground.tokens(ground.sizes.people), encrypted)?;
        let publisher = Publisher::connect(&server)?;
        Ok(Self::new(server, crowd, Sender::Redis(publisher)))
    }

    fn round(&mut self, total: usize, random: &mut Random) -> Result<()> {
        let cpu = self.server.cpu()?;
        let (sender, sent) = (&mut self.sender, &mut self.sent);
        let times = self.crowd.paced(RATE, total, |_| {
            let n = random.below(sent.len());
            sent[n] += 1;
            match sender {
                Sender::Floor(control) => control.write_all(&Order::One.with(n))?,
                Sender::Redis(publisher) => {
                    publisher.user(&format!("user-{n}"), &frame::data(sent[n], UNICAST_BYTES))?
                }
            }
            Ok(n)
        })?;
        self.cpu.push((self.server.cpu()? - cpu) / total as f64);
        self.times.extend(times);
        self.crowd.rest(Duration::from_millis(50))
    }
}

pub(crate) fn run(ground: &Ground, report: &mut Report) -> Result<()> {
    let floor = Server::floor(ground)?;
    let control = TcpStream::connect(floor.address)?;
    control.set_nodelay(true)?;
    let crowd = Ground::floor_crowd(&floor, ground.sizes.people)?;
    let mut sides = [
        Side::new(floor, crowd, Sender::Floor(control)),
        Side::gateway(ground, false)?,
        Side::gateway(ground, true)?,
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..=ground.sizes.single_rounds {
        for side in &mut sides {
            side.round(ground.sizes.singles, &mut random)?;
            if round == 0 {
                side.cpu.clear();
                side.times.clear();
            }
        }
    }
    let [floor, gateways @ ..] = &sides;
    for (side, mode) in gateways.iter().zip(["clear", "encrypted"]) {
        let line = Line::new(
            format!("to one of {}, {mode}", ground.sizes.people),
            "us per message",
            &side.cpu,
        );
        report.add(
            &line
                .against("floor", &floor.cpu)
                .target(Target::Times(1.5))
                .times(&side.times, &floor.times),
        );
    }
    Ok(())
}

/// Marsaglia's xorshift: the same users in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

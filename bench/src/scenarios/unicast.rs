//! Messages to one user at a time.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;

use crate::crowd::Crowd;
use crate::floor::{Order, UNICAST_BYTES};
use crate::frame;
use crate::publish::Publisher;
use crate::report::{Measurement, Report, Target};
use crate::server::{Server, Settings, Testbed};

const RATE: u32 = 1000;

struct UnicastServer {
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

impl UnicastServer {
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

    fn gateway(testbed: &Testbed, encrypted: bool) -> Result<Self> {
        let server = Server::gateway(testbed, &Settings::default())?;
        let crowd = testbed.crowd(&server, &testbed.tokens(testbed.sizes.people), encrypted)?;
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

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let floor = Server::floor(testbed)?;
    let control = TcpStream::connect(floor.address)?;
    control.set_nodelay(true)?;
    let crowd = Testbed::floor_crowd(&floor, testbed.sizes.people)?;
    let mut servers = [
        UnicastServer::new(floor, crowd, Sender::Floor(control)),
        UnicastServer::gateway(testbed, false)?,
        UnicastServer::gateway(testbed, true)?,
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..=testbed.sizes.single_rounds {
        for subject in &mut servers {
            subject.round(testbed.sizes.singles, &mut random)?;
            if round == 0 {
                subject.cpu.clear();
                subject.times.clear();
            }
        }
    }
    let [floor, gateways @ ..] = &servers;
    for (subject, mode) in gateways.iter().zip(["clear", "encrypted"]) {
        let line = Measurement::new(
            format!("to one of {}, {mode}", testbed.sizes.people),
            "us per message",
            &subject.cpu,
        );
        report.add(
            &line
                .against("floor", &floor.cpu)
                .target(Target::Times(1.2))
                .times(&subject.times, &floor.times),
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

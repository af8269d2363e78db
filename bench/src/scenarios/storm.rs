//! Everybody is cut at once and comes back at once, while others go on to get messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::crowd::Crowd;
use crate::frame;
use crate::os;
use crate::publish::Publisher;
use crate::report::{Measurement, Report, Target};
use crate::server::{Server, Settings, Testbed};

const BYTES: usize = 128;
/// How many of those who come back are being opened at a time.
const AT_ONCE: usize = 1000;
/// Messages a second to those who stay, one after the other.
const RATE: u32 = 200;
/// How long they are sent messages before anybody is cut.
const BEFORE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Figures {
    /// CPU in microseconds for each connection, of those who come a few at a time, and of those who come at once.
    few: Vec<f64>,
    all: Vec<f64>,
    /// Milliseconds until all were back, and the CPU in milliseconds that their handshakes take a few at a time.
    back: Vec<f64>,
    needed: Vec<f64>,
    /// How long messages to those who stay took in milliseconds, before and during the storm.
    quiet: Vec<f64>,
    stormy: Vec<f64>,
}

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    for (tls, transport) in [(false, "clear"), (true, "over TLS")] {
        let settings = Settings {
            tls,
            ..Settings::default()
        };
        let server = Server::gateway(testbed, &settings)?;
        let figures = storms(testbed, &server)?;
        add(testbed, report, transport, &figures);
    }
    Ok(())
}

fn storms(testbed: &Testbed, server: &Server) -> Result<Figures> {
    let count = testbed.sizes.moved;
    let tokens = testbed.tokens(count + testbed.sizes.people);
    let (cut, stay) = tokens.split_at(count);
    let guests = || Testbed::guests(server, cut, true);
    let mut staying = Staying {
        crowd: testbed.crowd(server, stay, false)?,
        publisher: Publisher::connect(server)?,
        first: count,
        sent: vec![0; stay.len()],
        next: 0,
    };
    staying.crowd.sleeps = true;
    let mut figures = Figures::default();
    // Tokens are known after the first round, and sessions of TLS.
    for round in 0..=testbed.sizes.rounds {
        let cpu = server.cpu()?;
        let crowd = Crowd::connect(server.address, guests())?;
        let needed = server.cpu()? - cpu;
        let quiet = staying.messages(|so_far| so_far < BEFORE)?;
        let is_over = AtomicBool::new(false);
        let cpu = server.cpu()?;
        let began = Instant::now();
        let (back, stormy) = std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                // Their times are the server's: the storm shares their core.
                os::hurry();
                staying.messages(|_| !is_over.load(Ordering::Relaxed))
            });
            let back = crowd
                .cut()
                .and_then(|()| Crowd::rush(server.address, guests(), AT_ONCE));
            let took = began.elapsed();
            is_over.store(true, Ordering::Relaxed);
            let stormy = others.join().ok().context("those who stay")?;
            anyhow::Ok((back.map(|crowd| (crowd, took))?, stormy?))
        })?;
        let storm = server.cpu()? - cpu;
        let (crowd, took) = back;
        crowd.cut()?;
        std::thread::sleep(testbed.sizes.leave);
        if round > 0 {
            figures.few.push(needed / count as f64);
            figures.all.push(storm / count as f64);
            figures.back.push(took.as_secs_f64() * 1000.0);
            figures.needed.push(needed / 1000.0);
            figures.quiet.extend(quiet);
            figures.stormy.extend(stormy);
        }
    }
    Ok(figures)
}

/// Those who are not cut.
struct Staying {
    crowd: Crowd,
    publisher: Publisher,
    /// The number of the first one's user.
    first: usize,
    /// How many messages each was sent.
    sent: Vec<u64>,
    /// Whose turn it is.
    next: usize,
}

impl Staying {
    /// Sends messages to one after the other as long as `goes_on`, and returns how long each took in milliseconds.
    fn messages(&mut self, goes_on: impl Fn(Duration) -> bool) -> Result<Vec<f64>> {
        let began = Instant::now();
        let mut times = Vec::new();
        while goes_on(began.elapsed()) {
            let (publisher, sent, next) = (&mut self.publisher, &mut self.sent, &mut self.next);
            let some = self.crowd.paced(RATE, RATE as usize / 10, |_| {
                let n = *next;
                *next = (n + 1) % sent.len();
                sent[n] += 1;
                let user = format!("user-{}", self.first + n);
                publisher.user(&user, &frame::data(sent[n], BYTES))?;
                Ok(n)
            })?;
            times.extend(some);
        }
        Ok(times)
    }
}

fn add(testbed: &Testbed, report: &mut Report, transport: &str, figures: &Figures) {
    let count = testbed.sizes.moved;
    let cpu = Measurement::new(
        format!("{count} come back at once, encrypted, {transport}"),
        "us per connection",
        &figures.all,
    );
    report.add(
        &cpu.against("64 at a time", &figures.few)
            .target(Target::Times(1.3)),
    );
    let back = Measurement::new(
        format!("{count} come back at once, encrypted, {transport}: until all are back"),
        "ms",
        &figures.back,
    );
    report.add(
        &back
            .against("CPU of 64 at a time", &figures.needed)
            .target(Target::Times(1.3))
            .times(&figures.stormy, &figures.quiet),
    );
}

//! What many gateways cost each other: the same messages and the same connections, spread over more and more of them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use signal_services::Redis;
use tempfile::TempDir;

use crate::crowd::Crowd;
use crate::frame::{self, opcode};
use crate::os;
use crate::publish::Publisher;
use crate::report::{Measurement, Report};
use crate::server::{Server, Settings, SharedRedis, Testbed, guest};

const RATE: u32 = 1000;
const BYTES: usize = 128;
/// A room with members on the first two gateways alone, and how many.
const ROOM: &str = "team";
const TEAM: usize = 64;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Gateways that share one Redis.
pub(super) struct Cluster {
    pub(super) gateways: Vec<Server>,
    /// One server, or the nodes of a Redis Cluster.
    redis: Vec<signal_services::Server>,
    /// What Redis held before the first connection.
    empty: Info,
    /// What it takes a second without messages: it is not charged to them.
    idle: Cpu,
    _dir: TempDir,
}

/// CPU in microseconds: of all gateways, and of Redis.
#[derive(Clone, Copy, Default)]
pub(super) struct Cpu {
    gateways: f64,
    redis: f64,
}

/// What Redis says of itself.
#[derive(Clone, Copy)]
struct Info {
    memory_bytes: f64,
    channels: f64,
}

impl Cluster {
    fn start(testbed: &Testbed, count: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let redis = Redis::start(dir.path(), &[])?;
        let shared = SharedRedis::Single(redis.address());
        Self::with(testbed, count, dir, vec![redis], shared)
    }

    /// With a Redis Cluster of six nodes, three of them masters.
    pub(super) fn start_clustered(testbed: &Testbed, count: usize, sharded: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let redis = Redis::start_cluster(dir.path())?;
        let nodes = redis.iter().map(signal_services::Server::address).collect();
        let shared = SharedRedis::Cluster { nodes, sharded };
        Self::with(testbed, count, dir, redis, shared)
    }

    fn with(
        testbed: &Testbed,
        count: usize,
        dir: TempDir,
        redis: Vec<signal_services::Server>,
        shared: SharedRedis,
    ) -> Result<Self> {
        let settings = Settings {
            redis: Some(shared),
            ..Settings::default()
        };
        let gateways: Result<Vec<Server>> = (0..count)
            .map(|_| Server::gateway(testbed, &settings))
            .collect();
        Ok(Self {
            gateways: gateways?,
            empty: Info::of(redis[0].address())?,
            idle: Cpu::default(),
            redis,
            _dir: dir,
        })
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|server| server.address).collect()
    }

    /// What this took beyond what it takes at rest.
    pub(super) fn measured(&self, run: impl FnOnce() -> Result<()>) -> Result<Cpu> {
        let (before, began) = (self.cpu()?, Instant::now());
        run()?;
        let (after, seconds) = (self.cpu()?, began.elapsed().as_secs_f64());
        Ok(Cpu {
            gateways: after.gateways - before.gateways - self.idle.gateways * seconds,
            redis: after.redis - before.redis - self.idle.redis * seconds,
        })
    }

    /// Looks at what it takes without messages.
    pub(super) fn rest(&mut self, crowd: &mut Crowd, time: Duration) -> Result<()> {
        self.idle = Cpu::default();
        let cpu = self.measured(|| crowd.rest(time))?;
        let seconds = time.as_secs_f64();
        self.idle = Cpu {
            gateways: cpu.gateways / seconds,
            redis: cpu.redis / seconds,
        };
        Ok(())
    }

    fn cpu(&self) -> Result<Cpu> {
        let gateways: Result<Vec<f64>> = self.gateways.iter().map(Server::cpu).collect();
        let of_node = |node: &signal_services::Server| {
            Ok(os::cpu_us(node.pid().context("Redis does not run")?)?)
        };
        let redis: Result<Vec<f64>> = self.redis.iter().map(of_node).collect();
        Ok(Cpu {
            gateways: gateways?.iter().sum(),
            redis: redis?.iter().sum(),
        })
    }

    fn info(&self) -> Result<Info> {
        Info::of(self.redis[0].address())
    }

    /// Waits until Redis has exactly so many channels with subscribers.
    fn wait_for_channels(&self, wanted: f64) -> Result<()> {
        let began = Instant::now();
        loop {
            // It may be starting.
            let channels = self.info().map(|info| info.channels);
            if channels.as_ref().is_ok_and(|channels| *channels == wanted) {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                bail!("Redis has {channels:?} channels and not {wanted}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until nobody is connected any more, as far as Redis can tell.
    fn wait_until_left(&self) -> Result<()> {
        self.wait_for_channels(self.empty.channels)
    }
}

impl Info {
    fn of(redis: SocketAddr) -> Result<Self> {
        let mut socket = TcpStream::connect(redis)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.write_all(b"INFO\r\nQUIT\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.parse().ok())
                .with_context(|| format!("INFO of Redis has no {name}"))
        };
        Ok(Self {
            memory_bytes: number("used_memory:")?,
            channels: number("pubsub_channels:")?,
        })
    }
}

/// The figures of one number of gateways.
#[derive(Default)]
pub(super) struct Figures {
    /// What gateways and Redis took.
    pub(super) gateways: Vec<f64>,
    pub(super) redis: Vec<f64>,
    /// In milliseconds.
    pub(super) times: Vec<f64>,
}

impl Figures {
    pub(super) fn note(&mut self, cpu: Cpu, per: f64) {
        self.gateways.push(cpu.gateways / per);
        self.redis.push(cpu.redis / per);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A crowd at each cluster, and how many messages each member of it was sent.
struct Subject {
    cluster: Cluster,
    publisher: Publisher,
    crowd: Crowd,
    sent: u64,
    at_rest: Figures,
    unicast: Figures,
    broadcast: Figures,
    list: Vec<f64>,
}

impl Subject {
    fn start(testbed: &Testbed, count: usize) -> Result<Self> {
        let cluster = Cluster::start(testbed, count)?;
        let tokens = testbed.tokens(testbed.sizes.spread);
        let guests = tokens.iter().map(|token| guest(token, None)).collect();
        let crowd = Crowd::spread(&cluster.addresses(), guests)?;
        Ok(Self {
            publisher: Publisher::to(cluster.redis[0].address())?,
            cluster,
            crowd,
            sent: 0,
            at_rest: Figures::default(),
            unicast: Figures::default(),
            broadcast: Figures::default(),
            list: Vec::new(),
        })
    }

    /// A message to each member, in an order that mixes the gateways.
    fn unicast(&mut self) -> Result<()> {
        self.sent += 1;
        let (count, data) = (self.crowd.len(), frame::data(self.sent, BYTES));
        let (crowd, publisher, times) = (
            &mut self.crowd,
            &mut self.publisher,
            &mut self.unicast.times,
        );
        let cpu = self.cluster.measured(|| {
            // 389 is a prime that divides no number of members here, so each is met once.
            let mut n = 0;
            times.extend(crowd.paced(RATE, count, |_| {
                n = (n + 389) % count;
                publisher.user(&format!("user-{n}"), &data)?;
                Ok(n)
            })?);
            Ok(())
        })?;
        self.crowd.expect(1);
        self.unicast.note(cpu, count as f64);
        Ok(())
    }

    fn broadcast(&mut self, messages: u64) -> Result<()> {
        let (crowd, publisher, sent) = (&mut self.crowd, &mut self.publisher, &mut self.sent);
        let times = &mut self.broadcast.times;
        let cpu = self.cluster.measured(|| {
            for _ in 0..messages {
                *sent += 1;
                let began = Instant::now();
                publisher.broadcast(&frame::data(*sent, BYTES))?;
                times.extend(crowd.receive(1, began)?);
            }
            Ok(())
        })?;
        self.broadcast.note(cpu, messages as f64);
        Ok(())
    }

    fn rest(&mut self, time: Duration) -> Result<()> {
        self.cluster.rest(&mut self.crowd, time)?;
        let count = self.cluster.gateways.len() as f64;
        self.at_rest.note(self.cluster.idle, count);
        Ok(())
    }

    /// One page of the connections of all gateways, asked of the first.
    fn list(&mut self, testbed: &Testbed, client: &reqwest::Client, token: &str) -> Result<()> {
        let address = self.cluster.gateways[0].address;
        let url = format!("http://{address}/socket/websocket/clients?limit=50");
        let began = Instant::now();
        let page: Value = testbed.runtime.block_on(async {
            let answer = client.get(url).bearer_auth(token).send().await?;
            answer.error_for_status()?.json().await
        })?;
        self.list.push(began.elapsed().as_secs_f64() * 1000.0);
        let listed = page["data"].as_array().map_or(0, Vec::len);
        ensure!(
            listed == 50 && page["missing"] == serde_json::json!([]),
            "a page has {listed} connections, and lacks {}",
            page["missing"]
        );
        Ok(())
    }
}

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let clusters = spread(testbed, report)?;
    one_room(testbed, report, &clusters)?;
    reconnects(testbed, report, &clusters)?;
    for cluster in clusters {
        redis_restarts(testbed, report, cluster)?;
    }
    Ok(())
}

/// The same connections, spread over all gateways of a cluster.
fn spread(testbed: &Testbed, report: &mut Report) -> Result<Vec<Cluster>> {
    let sizes = &testbed.sizes;
    let counts = sizes.instances.iter();
    let subjects: Result<Vec<Subject>> = counts
        .map(|count| Subject::start(testbed, *count))
        .collect();
    let mut subjects = subjects?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let token = testbed.admin_token();
    for round in 0..=sizes.rounds {
        for subject in &mut subjects {
            subject.rest(sizes.at_rest / 5)?;
            subject.unicast()?;
            subject.broadcast(sizes.messages)?;
            for _ in 0..sizes.messages {
                subject.list(testbed, &client, &token)?;
            }
            if round == 0 {
                subject.at_rest.clear();
                subject.unicast.clear();
                subject.broadcast.clear();
                subject.list.clear();
            }
        }
    }
    type Of = fn(&Subject) -> &Figures;
    for (name, unit, figures) in [
        (
            "at rest",
            "us per s and gateway",
            (|subject| &subject.at_rest) as Of,
        ),
        ("to one user", "us per message", |subject| &subject.unicast),
        ("to everyone", "us per message", |subject| {
            &subject.broadcast
        }),
    ] {
        let all: Vec<(usize, &Figures)> = subjects
            .iter()
            .map(|subject| (subject.cluster.gateways.len(), figures(subject)))
            .collect();
        report_figures(report, name, unit, &all);
    }
    for subject in &subjects {
        let count = subject.cluster.gateways.len();
        report.add(&Measurement::new(
            format!("{count} gateways: a page of 50 of all connections"),
            "ms",
            &subject.list,
        ));
        let (info, empty) = (subject.cluster.info()?, subject.cluster.empty);
        let connections = subject.crowd.len() as f64;
        report.add(&Measurement::new(
            format!("{count} gateways: channels in Redis"),
            "per connection",
            &[(info.channels - empty.channels) / connections],
        ));
        report.add(&Measurement::new(
            format!("{count} gateways: memory of Redis"),
            "bytes per connection",
            &[(info.memory_bytes - empty.memory_bytes) / connections],
        ));
    }
    let mut clusters = Vec::new();
    for subject in subjects {
        drop(subject.crowd);
        subject.cluster.wait_until_left()?;
        clusters.push(subject.cluster);
    }
    Ok(clusters)
}

/// A line for the gateways and one for Redis, each held against the smallest cluster.
fn report_figures(report: &mut Report, name: &str, unit: &'static str, all: &[(usize, &Figures)]) {
    let Some((_, least)) = all.first() else {
        return;
    };
    for (n, (count, figures)) in all.iter().enumerate() {
        for (who, own, base) in [
            ("all of them", &figures.gateways, &least.gateways),
            ("Redis", &figures.redis, &least.redis),
        ] {
            let mut line = Measurement::new(format!("{count} gateways: {name}, {who}"), unit, own);
            if n > 0 {
                line = line.against("the fewest", base);
            }
            if who == "all of them" {
                line = line.times(&figures.times, if n > 0 { &least.times } else { &[] });
            }
            report.add(&line);
        }
    }
}

/// A room whose members are on two gateways: the others have nothing to do with it.
fn one_room(testbed: &Testbed, report: &mut Report, clusters: &[Cluster]) -> Result<()> {
    let mut all = Vec::new();
    for cluster in clusters {
        let tokens = testbed.tokens(TEAM);
        let guests = tokens.iter().map(|token| guest(token, None)).collect();
        let mut crowd = Crowd::spread(&cluster.addresses()[..2], guests)?;
        let join = serde_json::json!({ "event": "join", "data": { "rooms": [ROOM] } }).to_string();
        for n in 0..TEAM {
            crowd.send(n, &frame::of_client(opcode::TEXT, join.as_bytes()))?;
        }
        // Subscriptions are confirmed meanwhile.
        crowd.rest(Duration::from_millis(500))?;
        let mut publisher = Publisher::to(cluster.redis[0].address())?;
        let mut figures = Figures::default();
        let mut sent = 0;
        for round in 0..=testbed.sizes.rounds {
            let cpu = cluster.measured(|| {
                for _ in 0..testbed.sizes.messages {
                    sent += 1;
                    let began = Instant::now();
                    publisher.one_room(ROOM, &frame::data(sent, BYTES))?;
                    figures.times.extend(crowd.receive(1, began)?);
                }
                Ok(())
            })?;
            figures.note(cpu, testbed.sizes.messages as f64);
            if round == 0 {
                figures.clear();
            }
        }
        drop(crowd);
        cluster.wait_until_left()?;
        all.push((cluster.gateways.len(), figures));
    }
    let all: Vec<(usize, &Figures)> = all.iter().map(|(count, own)| (*count, own)).collect();
    report_figures(
        report,
        "to a room with members on two",
        "us per message",
        &all,
    );
    Ok(())
}

/// Connections of one gateway that are cut, and come back to the others.
fn reconnects(testbed: &Testbed, report: &mut Report, clusters: &[Cluster]) -> Result<()> {
    let count = testbed.sizes.moved;
    let tokens = testbed.tokens(count);
    let mut all = Vec::new();
    for cluster in clusters {
        let addresses = cluster.addresses();
        let guests = || tokens.iter().map(|token| guest(token, None)).collect();
        let mut figures = Figures::default();
        // In the first round each gateway verifies the tokens; later it knows them, as after any reconnect to where a client was before.
        for _ in 0..2 {
            let cut = Crowd::spread(&addresses[..1], guests())?;
            let mut back = None;
            let cpu = cluster.measured(|| {
                let began = Instant::now();
                drop(cut);
                back = Some(Crowd::spread(&addresses[1..], guests())?);
                figures.times.push(began.elapsed().as_secs_f64() * 1000.0);
                Ok(())
            })?;
            figures.note(cpu, count as f64);
            drop(back);
            cluster.wait_until_left()?;
        }
        all.push((cluster.gateways.len(), figures));
    }
    let all: Vec<(usize, &Figures)> = all.iter().map(|(count, own)| (*count, own)).collect();
    report_figures(
        report,
        &format!("{count} leave one and come to the others"),
        "us per connection",
        &all,
    );
    Ok(())
}

/// Redis is killed and starts empty: until every gateway is ready and every channel has its subscribers again.
fn redis_restarts(testbed: &Testbed, report: &mut Report, mut cluster: Cluster) -> Result<()> {
    let tokens = testbed.tokens(testbed.sizes.moved);
    let guests = tokens.iter().map(|token| guest(token, None)).collect();
    let crowd = Crowd::spread(&cluster.addresses(), guests)?;
    let channels = cluster.info()?.channels;
    let (mut times, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..testbed.sizes.rounds {
        cluster.redis[0].kill();
        // Every gateway has noticed, and waits for its next attempt.
        std::thread::sleep(Duration::from_secs(1));
        cluster.redis[0].restart()?;
        let began = Instant::now();
        cluster.wait_for_channels(channels)?;
        while !cluster.gateways.iter().all(Server::is_ready) {
            ensure!(
                began.elapsed() < LIMIT,
                "not every gateway is ready again after {LIMIT:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        cpu.push(cluster.cpu()?.redis / 1000.0);
    }
    drop(crowd);
    let count = cluster.gateways.len();
    report.add(&Measurement::new(
        format!("{count} gateways: all {channels} channels are back after a restart of Redis"),
        "ms",
        &times,
    ));
    report.add(&Measurement::new(
        format!("{count} gateways: CPU of Redis until then"),
        "ms",
        &cpu,
    ));
    Ok(())
}

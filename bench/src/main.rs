//! What a connection and a message cost, against bare system calls in the same run.
//!
//! The server is pinned to the first core and the crowd to the second. Figures are the server's own CPU time, user and system, as the kernel counts it;
//! every message on every connection is counted. Rounds of the gateway and of the floor alternate, so that a busy machine weighs on both. Nothing here
//! judges: the ratio is what to read.

#![expect(clippy::print_stdout, reason = "a command line tool speaks to its terminal")]

mod crowd;
mod floor;
mod os;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use signal_tests::issuer::{AUDIENCE, Algorithm, Issuer};
use signal_tests::policy::Policies;

use crowd::Crowd;

const HELP: &str = "\
What a connection and a message cost, against bare system calls in the same run.

Usage: signal-bench [--small] [--json FILE] [--gateway PATH]

  --small         a tenth of the connections and two rounds: to see that it works
  --json FILE     the figures, for programs
  --gateway PATH  the gateway's binary (default: beside this one)
";

struct Sizes {
    idle: usize,
    members: usize,
    messages: usize,
    rounds: usize,
}

/// One kind of message sent to every member.
struct Scenario {
    name: &'static str,
    payload: usize,
    burst: usize,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "broadcast, 128 B", payload: 128, burst: 1 },
    Scenario { name: "broadcast, 1 KiB", payload: 1024, burst: 1 },
    Scenario { name: "burst of ten, 128 B", payload: 128, burst: 10 },
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["floor", payload, coalesce] => {
            os::raise_file_limit()?;
            os::pin(0)?;
            let listener = TcpListener::bind("127.0.0.1:0")?;
            println!("{}", listener.local_addr()?);
            floor::serve(listener, payload.parse()?, *coalesce == "true")
        }
        ["--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => run(&arguments),
    }
}

fn value<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1)).map(String::as_str)
}

fn run(arguments: &[String]) -> Result<()> {
    let small = arguments.iter().any(|a| a == "--small");
    let sizes = if small {
        Sizes { idle: 1000, members: 500, messages: 20, rounds: 2 }
    } else {
        Sizes { idle: 10_000, members: 5000, messages: 40, rounds: 5 }
    };
    let beside = std::env::current_exe()?.with_file_name("signal-gateway");
    let gateway = value(arguments, "--gateway").map_or(beside, PathBuf::from);
    let _ = rustls::crypto::ring::default_provider().install_default();
    os::raise_file_limit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _entered = runtime.enter();
    let issuer = runtime.block_on(Issuer::start());
    issuer.add_key("bench", Algorithm::ES256);
    // The issuer's thread was started before, and stays where it is.
    os::pin(1)?;

    let mut report = json!({ "connections": [], "messages": [] });
    println!("| connections | KiB resident each | CPU us per connect and authentication |\n| --- | --- | --- |");
    for encrypted in [false, true] {
        let figure = idle(&runtime, &gateway, &issuer, sizes.idle, encrypted)?;
        println!("| {} idle, {} | {:.2} | {:.0} |", sizes.idle, if encrypted { "encrypted" } else { "clear" }, figure.0, figure.1);
        push(&mut report, "connections", json!({ "count": sizes.idle, "encrypted": encrypted, "kib_each": figure.0, "cpu_us": figure.1 }));
    }
    println!("\nCPU us of the server per delivered message to {} members: median (min-max) of {} rounds", sizes.members, sizes.rounds);
    println!("| message | floor | gateway, clear | ratio | gateway, encrypted | ratio | p50 / p99 ms, floor | clear | encrypted |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for scenario in &SCENARIOS {
        let row = compare(&runtime, &gateway, &issuer, scenario, &sizes)?;
        println!("{}", row.0);
        push(&mut report, "messages", row.1);
    }
    if let Some(file) = value(arguments, "--json") {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

fn push(report: &mut Value, list: &str, figure: Value) {
    if let Some(list) = report[list].as_array_mut() {
        list.push(figure);
    }
}

/// A server process, ended when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    /// Removed with the server.
    _dir: Option<tempfile::TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn floor(payload: usize, coalesce: bool) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["floor", &payload.to_string(), &coalesce.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("the floor's output")?).read_line(&mut line)?;
        Ok(Self { child, address: line.trim().parse()?, _dir: None })
    }

    fn gateway(runtime: &tokio::runtime::Runtime, binary: &Path, issuer: &Issuer, connections: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(
            path("live.toml"),
            format!(
                "log_filter = \"info\"\n[limits]\nmax_connections = {}\naccepts_per_second = 1000000\naccept_burst = 1000000\nconnections_per_user = 0\n\
                 inbound_frames_per_second = 0\n[[sources]]\nname = \"bench\"\nissuer = \"{}\"\nurl = \"{}\"\naudiences = [\"{AUDIENCE}\"]\n\
                 algorithms = [\"ES256\"]\nallow_insecure_http = true\n",
                connections + 100,
                issuer.name(),
                issuer.certs_url(),
            ),
        )?;
        std::fs::write(
            path("static.toml"),
            format!(
                "live_file = \"{}\"\n[server]\npublic_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[workers]\nshards = 1\n\
                 control_threads = 1\n[session]\nping_interval_ms = 0\n[policy]\nurl = \"sqlite://{}\"\n\
                 [database]\nurl = \"sqlite://{}\"\n[drain]\nendpoint_propagation_ms = 0\nwindow_ms = 100\n",
                path("live.toml"),
                path("policy.db"),
                path("bench.db"),
            ),
        )?;
        runtime.block_on(async {
            let policies = Policies::create(&format!("sqlite://{}", path("policy.db"))).await?;
            policies.grant("admin", "WebSocketClient.broadcast", "execute", "allow").await
        })?;
        let log = std::fs::File::create(path("log"))?;
        let mut child = Command::new("taskset")
            .args(["-c", "0"])
            .arg(binary)
            .args(["serve", "--config", &path("static.toml")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let began = Instant::now();
        loop {
            let log = std::fs::read_to_string(path("log"))?;
            let bound = log.lines().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["message"] == "listening"));
            let ready = log.contains("migrated the database");
            if let (Some(bound), true) = (bound, ready) {
                let address = bound["public.address"].as_str().context("the address in the log")?.parse()?;
                std::thread::sleep(Duration::from_millis(500));
                return Ok(Self { child, address, _dir: Some(dir) });
            }
            if began.elapsed() > Duration::from_secs(30) || child.try_wait()?.is_some() {
                bail!("the gateway did not start:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn cpu(&self) -> Result<f64> {
        Ok(os::cpu_us(self.pid())?)
    }
}

fn authenticate(token: &str, encrypted: bool) -> String {
    // Any point of the curve does: the crowd never opens what it gets. This is the base point of P-256 (SEC 2 section 2.4.2).
    const POINT: &str = "BGsX0fLhLEJH+Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT+NC4v4af5uO5+tKfA+eFivOM1drMV7Oy7ZAaDe/UfU=";
    let mut data = json!({ "type": "Bearer", "token": token });
    if encrypted {
        data["clientPublicKey"] = json!(POINT);
    }
    json!({ "event": "authenticate", "data": data }).to_string()
}

/// Memory of each idle connection and the cost of its coming.
fn idle(runtime: &tokio::runtime::Runtime, binary: &Path, issuer: &Issuer, count: usize, encrypted: bool) -> Result<(f64, f64)> {
    let tokens: Vec<String> = runtime.block_on(async { (0..count).map(|n| issuer.token(&format!("user-{n}"))).collect() });
    let server = Server::gateway(runtime, binary, issuer, count)?;
    let (memory, cpu) = (os::rss_kib(server.pid())?, server.cpu()?);
    let began = Instant::now();
    let mut crowd = Crowd::connect(server.address, count, |n| Some(authenticate(&tokens[n], encrypted)))?;
    crowd.receive(1, began)?;
    std::thread::sleep(Duration::from_secs(2));
    Ok(((os::rss_kib(server.pid())? - memory) / count as f64, (server.cpu()? - cpu) / count as f64))
}

/// One server with its crowd, and how to make it send.
struct Side {
    server: Server,
    crowd: Crowd,
    trigger: Trigger,
    figures: Vec<f64>,
    latencies: Vec<f64>,
}

enum Trigger {
    Floor(TcpStream),
    Gateway { client: reqwest::Client, url: String, token: String, body: String },
}

impl Side {
    fn floor(scenario: &Scenario, members: usize) -> Result<Self> {
        let server = Server::floor(scenario.payload, scenario.burst > 1)?;
        let crowd = Crowd::connect(server.address, members, |_| None)?;
        let control = TcpStream::connect(server.address)?;
        control.set_nodelay(true)?;
        Ok(Self { server, crowd, trigger: Trigger::Floor(control), figures: Vec::new(), latencies: Vec::new() })
    }

    fn gateway(
        runtime: &tokio::runtime::Runtime,
        binary: &Path,
        issuer: &Issuer,
        scenario: &Scenario,
        members: usize,
        encrypted: bool,
    ) -> Result<Self> {
        let server = Server::gateway(runtime, binary, issuer, members)?;
        let tokens: Vec<String> = (0..members).map(|n| issuer.token(&format!("user-{n}"))).collect();
        let began = Instant::now();
        let mut crowd = Crowd::connect(server.address, members, |n| Some(authenticate(&tokens[n], encrypted)))?;
        crowd.receive(1, began)?;
        // {"event":"bench","data":"xxx"} has as many bytes as the floor's payload.
        let data = "x".repeat(scenario.payload - r#"{"event":"bench","data":""}"#.len());
        let trigger = Trigger::Gateway {
            client: reqwest::Client::builder().no_proxy().build()?,
            url: format!("http://{}/socket/websocket/broadcast", server.address),
            token: issuer.token("admin"),
            body: json!({ "event": "bench", "data": data }).to_string(),
        };
        Ok(Self { server, crowd, trigger, figures: Vec::new(), latencies: Vec::new() })
    }

    /// Sends `messages` times `burst` and notes the cost of each delivered message.
    fn round(&mut self, runtime: &tokio::runtime::Runtime, scenario: &Scenario, messages: usize, members: usize) -> Result<()> {
        let cpu = self.server.cpu()?;
        for _ in 0..messages {
            let began = Instant::now();
            self.trigger.pull(runtime, scenario.burst)?;
            let latencies = self.crowd.receive(scenario.burst as u64, began)?;
            self.latencies.extend(latencies);
        }
        self.figures.push((self.server.cpu()? - cpu) / (messages * scenario.burst * members) as f64);
        Ok(())
    }
}

impl Trigger {
    fn pull(&mut self, runtime: &tokio::runtime::Runtime, burst: usize) -> Result<()> {
        match self {
            Self::Floor(control) => control.write_all(&vec![b'!'; burst])?,
            Self::Gateway { client, url, token, body } => runtime.block_on(async {
                let sends = (0..burst)
                    .map(|_| client.post(&*url).bearer_auth(&*token).header("content-type", "application/json").body(body.clone()).send());
                let mut tasks = tokio::task::JoinSet::new();
                sends.for_each(|send| {
                    tasks.spawn(send);
                });
                while let Some(sent) = tasks.join_next().await {
                    let status = sent??.status();
                    anyhow::ensure!(status.as_u16() == 202, "the broadcast was answered {status}");
                }
                Ok(())
            })?,
        }
        Ok(())
    }
}

fn compare(
    runtime: &tokio::runtime::Runtime,
    binary: &Path,
    issuer: &Issuer,
    scenario: &Scenario,
    sizes: &Sizes,
) -> Result<(String, Value)> {
    let mut sides = [
        Side::floor(scenario, sizes.members)?,
        Side::gateway(runtime, binary, issuer, scenario, sizes.members, false)?,
        Side::gateway(runtime, binary, issuer, scenario, sizes.members, true)?,
    ];
    // The first round fills caches and socket buffers, and is forgotten.
    for round in 0..=sizes.rounds {
        for side in &mut sides {
            side.round(runtime, scenario, sizes.messages, sizes.members)?;
            if round == 0 {
                side.figures.clear();
                side.latencies.clear();
            }
        }
    }
    let [floor, clear, encrypted] = &mut sides;
    let base = median(&mut floor.figures);
    let show = |side: &mut Side| {
        let middle = median(&mut side.figures);
        side.latencies.sort_by(f64::total_cmp);
        let at = |share: f64| side.latencies[((side.latencies.len() - 1) as f64 * share) as usize];
        let figure = json!({
            "cpu_us": middle, "min": side.figures.first(), "max": side.figures.last(), "ratio": middle / base, "p50_ms": at(0.5), "p99_ms": at(0.99),
        });
        let text = format!("{middle:.2} ({:.2}-{:.2})", side.figures[0], side.figures[side.figures.len() - 1]);
        (text, format!("{:.1} / {:.1}", at(0.5), at(0.99)), middle / base, figure)
    };
    let (f, c, e) = (show(floor), show(clear), show(encrypted));
    let row = format!("| {} | {} | {} | {:.2} | {} | {:.2} | {} | {} | {} |", scenario.name, f.0, c.0, c.2, e.0, e.2, f.1, c.1, e.1);
    Ok((row, json!({ "message": scenario.name, "members": sizes.members, "floor": f.3, "clear": c.3, "encrypted": e.3 })))
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

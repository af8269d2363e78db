//! What is measured: the gateway, the floor, and whoever else runs as a process of its own on the first core.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::ClientConfig;
use serde_json::Value;
use signal_services::{Redis, bound_command, find_program};
use signal_tests::client::Agreement;
use signal_tests::issuer::{AUDIENCE, Issuer};
use signal_tests::policy::Policies;
use signal_tests::tls::Certificates;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::crowd::{Crowd, Guest};
use crate::os::{self, Cores};
use crate::scenarios::Sizes;

/// How long a server may take to be ready.
const LIMIT: Duration = Duration::from_secs(60);
/// The subject that may broadcast.
const ADMIN: &str = "admin";
/// Members of an encrypted crowd that open what they get: every so many.
const OPENS_EVERY: usize = 250;

/// What all scenarios share.
pub(crate) struct Testbed {
    pub(crate) runtime: Runtime,
    pub(crate) issuer: Issuer,
    pub(crate) sizes: Sizes,
    pub(crate) cores: Cores,
    /// How many files this process may have open.
    pub(crate) files: usize,
    gateway: PathBuf,
}

impl Testbed {
    /// Starts the issuer, and leaves the first core to the servers.
    pub(crate) fn new(gateway: PathBuf, sizes: Sizes) -> Result<Self> {
        ensure!(
            gateway.is_file(),
            "there is no gateway at {}",
            gateway.display()
        );
        let limit = os::raise_file_limit()?;
        let needed = sizes.most_sockets() + 500;
        ensure!(
            limit >= needed,
            "{needed} open files are needed, and {limit} are allowed (ulimit -n)"
        );
        let cores = Cores::of_this_process()?;
        // Before any other thread: they inherit it, and so do processes.
        os::pin(cores.others)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let issuer = runtime.block_on(Issuer::start());
        Ok(Self {
            runtime,
            issuer,
            sizes,
            cores,
            files: limit,
            gateway,
        })
    }

    /// A token of whoever may broadcast.
    pub(crate) fn admin_token(&self) -> String {
        self.issuer.token(ADMIN)
    }

    /// A token for each of `user-0` to `user-{count - 1}`.
    pub(crate) fn tokens(&self, count: usize) -> Vec<String> {
        (0..count)
            .map(|n| self.issuer.token(&format!("user-{n}")))
            .collect()
    }

    /// A crowd at the gateway with these tokens.
    pub(crate) fn crowd(
        &self,
        server: &Server,
        tokens: &[String],
        encrypted: bool,
    ) -> Result<Crowd> {
        Crowd::connect(server.address, Self::guests(server, tokens, encrypted))
    }

    /// Who comes with these tokens.
    pub(crate) fn guests(server: &Server, tokens: &[String], encrypted: bool) -> Vec<Guest> {
        let guests = tokens.iter().enumerate().map(|(n, token)| Guest {
            tls: server.tls.clone(),
            ..guest(token, encrypted.then_some(n.is_multiple_of(OPENS_EVERY)))
        });
        guests.collect()
    }

    /// A crowd at the floor.
    pub(crate) fn floor_crowd(server: &Server, count: usize) -> Result<Crowd> {
        let guests = (0..count).map(|n| Guest {
            path: format!("/{n}"),
            ..Guest::default()
        });
        Crowd::connect(server.address, guests.collect())
    }
}

/// Someone who authenticates; `encrypted` says whether what comes is opened.
pub(crate) fn guest(token: &str, encrypted: Option<bool>) -> Guest {
    // Any point of the curve does for who opens nothing. This is the base point of P-256 (SEC 2 section 2.4.2).
    const POINT: &str =
        "BGsX0fLhLEJH+Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT+NC4v4af5uO5+tKfA+eFivOM1drMV7Oy7ZAaDe/UfU=";
    let agreement = (encrypted == Some(true)).then(Agreement::fresh);
    let mut data = serde_json::json!({ "type": "Bearer", "token": token });
    if encrypted.is_some() {
        data["clientPublicKey"] = agreement
            .as_ref()
            .map_or_else(|| POINT.to_owned(), Agreement::public_key)
            .into();
    }
    let first = serde_json::json!({ "event": "authenticate", "data": data }).to_string();
    Guest {
        path: "/stream".to_owned(),
        first: Some(first),
        agreement,
        ..Guest::default()
    }
}

/// How a gateway differs from the one with a worker, Redis, and no pings.
#[derive(Default)]
pub(crate) struct Settings {
    /// One for each worker; the first core when empty.
    pub(crate) cores: Vec<usize>,
    pub(crate) ping_ms: u64,
    /// Brokers, topic, and PostgreSQL's URL.
    pub(crate) pipeline: Option<(String, String, String)>,
    /// Whether clients connect over TLS.
    pub(crate) tls: bool,
    /// The Redis that it shares with others; one of its own where there is none.
    pub(crate) redis: Option<SharedRedis>,
}

/// A Redis of several gateways.
#[derive(Debug, Clone)]
pub(crate) enum SharedRedis {
    /// One server.
    Single(SocketAddr),
    /// The nodes of a Redis Cluster.
    Cluster {
        nodes: Vec<SocketAddr>,
        /// Whether what gateways send each other goes on segments.
        sharded: bool,
    },
}

impl SharedRedis {
    /// The settings `redis.*` that say so.
    fn settings(&self) -> String {
        let (mode, nodes, sharded) = match self {
            Self::Single(node) => ("standalone", std::slice::from_ref(node), false),
            Self::Cluster { nodes, sharded } => ("cluster", nodes.as_slice(), *sharded),
        };
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        format!("mode = \"{mode}\"\nnodes = {nodes:?}\nsharded_pubsub = {sharded}\n")
    }
}

/// A server process, ended when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    /// How clients connect over TLS, where they do.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Its own, so that nothing published for one server reaches another.
    redis: Option<signal_services::Server>,
    /// Removed with the server.
    _dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub(crate) fn floor(testbed: &Testbed) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        Self::own(testbed, dir, None, &["floor"])
    }

    /// The consumer that takes one record at a time.
    pub(crate) fn row_at_a_time(
        testbed: &Testbed,
        brokers: &str,
        topic: &str,
        database: &str,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let redis = Redis::start(dir.path(), &[])?;
        let address = redis.address().to_string();
        Self::own(
            testbed,
            dir,
            Some(redis),
            &["rowwise", brokers, topic, database, &address],
        )
    }

    /// This program with other arguments, which prints its address.
    fn own(
        testbed: &Testbed,
        dir: TempDir,
        redis: Option<signal_services::Server>,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = pinned(&[testbed.cores.server], &std::env::current_exe()?)?;
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = signal_services::spawn(command)?;
        let output = child.stdout.take();
        let mut server = Self {
            child,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            admin: SocketAddr::from(([0, 0, 0, 0], 0)),
            tls: None,
            redis,
            _dir: dir,
        };
        let mut line = String::new();
        BufReader::new(output.context("the server's output")?).read_line(&mut line)?;
        server.address = line
            .trim()
            .parse()
            .with_context(|| format!("{arguments:?} did not start: {line:?}"))?;
        Ok(server)
    }

    pub(crate) fn gateway(testbed: &Testbed, settings: &Settings) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let folder = dir.path().to_owned();
        let path = |name: &str| folder.join(name).display().to_string();
        let own_redis = match settings.redis {
            Some(_) => None,
            None => Some(Redis::start(&folder.join("redis"), &[])?),
        };
        let own_address = own_redis.as_ref().map(signal_services::Server::address);
        let redis = own_address
            .map(SharedRedis::Single)
            .or_else(|| settings.redis.clone())
            .context("no Redis")?;
        let policies = settings.pipeline.as_ref().map_or_else(
            || format!("sqlite://{}", path("policy.db")),
            |(_, _, url)| url.clone(),
        );
        let tls = settings.tls.then(|| Certificates::new(&folder));
        let tls = tls.map(|made| Arc::new(made.client().config));
        std::fs::write(path("live.toml"), live(&testbed.issuer))?;
        std::fs::write(
            path("static.toml"),
            fixed(settings, &folder, &redis, &policies),
        )?;
        testbed.runtime.block_on(async {
            let policies = Policies::create(&policies).await?;
            for (permission, action) in [
                ("WebSocketClient.broadcast", "execute"),
                ("WebSocketClient.send", "execute"),
                ("WebSocketClient.find", "read"),
            ] {
                policies.grant(ADMIN, permission, action, "allow").await?;
            }
            anyhow::Ok(())
        })?;
        let own = [testbed.cores.server];
        let cores = if settings.cores.is_empty() {
            &own[..]
        } else {
            &settings.cores
        };
        let mut command = pinned(cores, &testbed.gateway)?;
        command
            .args(["serve", "--config", &path("static.toml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.stderr(std::fs::File::create(path("log"))?);
        let child = signal_services::spawn(command)
            .with_context(|| format!("cannot start {}", testbed.gateway.display()))?;
        let mut server = Self {
            child,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            admin: SocketAddr::from(([0, 0, 0, 0], 0)),
            tls,
            redis: own_redis,
            _dir: dir,
        };
        let began = Instant::now();
        loop {
            let log = std::fs::read_to_string(path("log"))?;
            if let Some((public, admin)) = addresses(&log)
                && is_ready(admin)
            {
                (server.address, server.admin) = (public, admin);
                return Ok(server);
            }
            if began.elapsed() > LIMIT || server.child.try_wait()?.is_some() {
                bail!("the gateway did not start:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where to publish for it.
    pub(crate) fn redis(&self) -> Result<SocketAddr> {
        Ok(self
            .redis
            .as_ref()
            .context("a server without Redis")?
            .address())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the gateway says so.
    pub(crate) fn is_ready(&self) -> bool {
        is_ready(self.admin)
    }

    /// A metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let metrics = get(self.admin, "/metrics").ok()?;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.trim().parse().ok()
    }

    /// CPU time it took until now, in microseconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        Ok(os::cpu_us(self.pid())?)
    }

    /// Resident memory in KiB.
    pub(crate) fn memory(&self) -> Result<f64> {
        Ok(os::rss_kib(self.pid())?)
    }

    /// Stops it where it stands, until [`Server::resume`].
    pub(crate) fn pause(&self) {
        signal_services::signal(self.pid(), "STOP");
    }

    pub(crate) fn resume(&self) {
        signal_services::signal(self.pid(), "CONT");
    }
}

/// A program on these cores that does not outlive this process.
fn pinned(cores: &[usize], program: &Path) -> Result<Command> {
    let taskset = find_program(&["taskset"]).context("taskset of util-linux is not installed")?;
    let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
    let mut command = bound_command(&taskset, None);
    command.args(["-c", &cores.join(",")]).arg(program);
    Ok(command)
}

fn live(issuer: &Issuer) -> String {
    format!(
        "observability.log_filter = \"info\"\n\
         [limits]\nconnections_per_pod = 1000000\naccepts_per_second = 1000000\naccept_burst = 1000000\nconnections_per_user = 0\n\
         inbound_frames_per_second = 0\n\
         [[jwks.sources]]\nname = \"bench\"\nissuer = \"{}\"\nurl = \"{}\"\naudiences = [\"{AUDIENCE}\"]\nalgorithms = [\"ES256\"]\n\
         allow_insecure_http = true\n",
        issuer.name(),
        issuer.certs_url(),
    )
}

fn fixed(settings: &Settings, dir: &Path, redis: &SharedRedis, policies: &str) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    let (database, pipeline) = match &settings.pipeline {
        None => (format!("sqlite://{}", path("bench.db")), String::new()),
        Some((brokers, topic, url)) => (
            url.clone(),
            // It stands still while records are produced, and is not to take that for a Redis that fell silent.
            format!(
                "command_timeout_ms = 60000\nstalled_after_ms = 120000\n[kafka]\nenabled = true\nbrokers = [\"{brokers}\"]\ntopics = [\"{topic}\"]\ngroup_id = \"gateway-{topic}\"\n"
            ),
        ),
    };
    let tls = match settings.tls {
        false => String::new(),
        true => format!(
            "[server.tls]\ncertificate_file = \"{}\"\nkey_file = \"{}\"\n",
            path("tls.crt"),
            path("tls.key")
        ),
    };
    format!(
        "live_file = \"{}\"\n\
         [server]\npublic_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n{tls}\
         [workers]\nshards = {}\ncontrol_threads = 1\n\
         [heartbeat]\nping_interval_ms = {}\ntimeout_ms = 3600000\n\
         [policy]\nurl = \"{policies}\"\n\
         [rooms]\nunmatched = \"allow\"\n\
         [database]\nurl = \"{database}\"\n\
         [drain]\nendpoint_propagation_ms = 0\nwindow_ms = 100\n\
         [redis]\n{}{pipeline}",
        path("live.toml"),
        settings.cores.len().max(1),
        settings.ping_ms,
        redis.settings(),
    )
}

/// The public and the admin address in the line that says `listening`.
fn addresses(log: &str) -> Option<(SocketAddr, SocketAddr)> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines
        .into_iter()
        .find(|line| line["message"] == "listening")?;
    let address = |name: &str| line[name].as_str()?.parse().ok();
    Some((address("public.address")?, address("admin.address")?))
}

fn is_ready(admin: SocketAddr) -> bool {
    get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The whole answer of the admin listener.
fn get(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(admin)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.write_all(
        format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

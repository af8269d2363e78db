//! Real Redis servers for tests: on loopback, on free ports, gone with the value that stands for them.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use signal_services::{Redis, free_port};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config;

/// Longest wait for anything in a test.
pub(in crate::bus) const LIMIT: Duration = Duration::from_secs(20);

/// Whether there is a server of Redis; prints that the test is skipped where there is none.
pub(in crate::bus) fn available(test: &str) -> bool {
    let found = Redis::is_installed();
    if !found {
        eprintln!("skipped: {test}: there is no redis-server on this machine");
    }
    found
}

/// Gives every wait of a bus so much time that only what never comes exceeds it: where a busy machine takes its time, nothing is given up, and no
/// subscriber counts as stalled. A test of such an end sets the time that it is about.
pub(in crate::bus) fn be_patient(config: &mut config::Redis) {
    (config.command_timeout_ms, config.request_timeout_ms) = (20_000, 20_000);
    config.stalled_after_ms = 60_000;
}

/// Waits for a condition.
pub(in crate::bus) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One server.
pub(in crate::bus) struct Server {
    child: Option<Child>,
    pub(in crate::bus) port: u16,
    pub(in crate::bus) dir: TempDir,
    arguments: Vec<String>,
    /// Before each command of `redis-cli`.
    cli: Vec<String>,
}

impl Server {
    /// A server with further arguments.
    pub(in crate::bus) fn start(arguments: &[&str]) -> Self {
        Self::start_with(&["--port".into(), "{port}".into()], arguments, &[])
    }

    /// `{port}` and `{dir}` stand for what is known only later.
    pub(in crate::bus) fn start_with(listen: &[String], arguments: &[&str], cli: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), listen, arguments, cli)
    }

    pub(in crate::bus) fn start_in(
        dir: TempDir,
        listen: &[String],
        arguments: &[&str],
        cli: &[&str],
    ) -> Self {
        let port = free_port().unwrap();
        let fill = |text: &str| {
            text.replace("{port}", &port.to_string())
                .replace("{dir}", dir.path().to_str().unwrap())
        };
        let base = [
            "--bind",
            "127.0.0.1",
            "--dir",
            "{dir}",
            "--save",
            "",
            "--appendonly",
            "no",
            "--enable-debug-command",
            "yes",
        ];
        let all = listen
            .iter()
            .map(|a| fill(a))
            .chain(base.iter().map(|a| fill(a)))
            .chain(arguments.iter().map(|a| fill(a)));
        let arguments: Vec<String> = all.collect();
        let cli = cli.iter().map(|a| fill(a)).collect();
        let mut server = Self {
            child: None,
            port,
            dir,
            arguments,
            cli,
        };
        server.run();
        server
    }

    /// A sentinel with this configuration.
    pub(in crate::bus) fn sentinel(configuration: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, path) = (free_port().unwrap(), dir.path().join("sentinel.conf"));
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\n{configuration}",
            dir.path().display()
        );
        std::fs::write(&path, text).unwrap();
        // A sentinel is the same program under another flag.
        let arguments = vec![path.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        let mut server = Self {
            child: None,
            port,
            dir,
            arguments,
            cli: Vec::new(),
        };
        server.run();
        server
    }

    /// Starts it, or starts it again.
    pub(in crate::bus) fn run(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(Redis::program().expect("it is available"))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait_for("a Redis server that answers", || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && self.try_cli(&["PING"]).is_some()
        });
    }

    /// `kill -9`.
    pub(in crate::bus) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal by name.
    pub(in crate::bus) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(
            Command::new("kill")
                .args([&format!("-{name}"), &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// What `redis-cli` prints; fails the test where it fails.
    pub(in crate::bus) fn cli(&self, arguments: &[&str]) -> String {
        self.try_cli(arguments)
            .unwrap_or_else(|| panic!("redis-cli {arguments:?} failed"))
    }

    /// The same; `None` where it fails.
    pub(in crate::bus) fn try_cli(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("redis-cli");
        command
            .args(["-e", "-p", &self.port.to_string()])
            .args(&self.cli)
            .args(arguments)
            .stderr(Stdio::null());
        let output = command.output().unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    pub(in crate::bus) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three masters that share the slots.
pub(in crate::bus) fn cluster() -> Vec<Server> {
    let arguments = [
        "--cluster-enabled",
        "yes",
        "--cluster-config-file",
        "nodes.conf",
        "--cluster-node-timeout",
        "2000",
    ];
    let servers: Vec<Server> = (0..3)
        .map(|_| {
            let second = free_port().unwrap().to_string();
            Server::start(&[&arguments[..], &["--cluster-port", &second]].concat())
        })
        .collect();
    let mut create = Command::new("redis-cli");
    create
        .args(["--cluster", "create"])
        .args(servers.iter().map(Server::address))
        .args(["--cluster-replicas", "0", "--cluster-yes"]);
    let output = create.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    wait_for("a cluster that is ok", || {
        servers
            .iter()
            .all(|s| s.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
    });
    servers
}

/// A master, its replica and three sentinels; the master is named `mymaster`.
pub(in crate::bus) fn sentinels() -> (Server, Server, Vec<Server>) {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    let mut configuration = format!("sentinel monitor mymaster 127.0.0.1 {} 2\n", master.port);
    for (setting, value) in [
        ("down-after-milliseconds", 1000),
        ("failover-timeout", 5000),
        ("parallel-syncs", 1),
    ] {
        writeln!(configuration, "sentinel {setting} mymaster {value}").unwrap();
    }
    let sentinels: Vec<Server> = (0..3).map(|_| Server::sentinel(&configuration)).collect();
    wait_for("sentinels that know each other and the replica", || {
        sentinels.iter().all(|s| {
            let lines = s.cli(&["SENTINEL", "master", "mymaster"]);
            let value = |name: &str| {
                lines
                    .lines()
                    .skip_while(|l| *l != name)
                    .nth(1)
                    .and_then(|v| v.parse::<u32>().ok())
                    .unwrap_or(0)
            };
            value("num-slaves") >= 1 && value("num-other-sentinels") >= 2
        })
    });
    (master, replica, sentinels)
}

/// Stands between a bus and its server, can swallow what the server sends on connections that subscribed, and can be slow.
pub(in crate::bus) struct Proxy {
    port: u16,
    open: Arc<Mutex<Vec<Arc<Wire>>>>,
    /// How long bytes take in each direction, in milliseconds.
    delay: Arc<AtomicU64>,
    _end: DropGuard,
}

#[derive(Default)]
struct Wire {
    subscribes: AtomicBool,
    mute: AtomicBool,
    delay: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens until dropped.
    pub(in crate::bus) async fn start(server: u16) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let (port, end) = (
            listener.local_addr().unwrap().port(),
            CancellationToken::new(),
        );
        let open = Arc::new(Mutex::new(Vec::new()));
        let delay = Arc::<AtomicU64>::default();
        let (wires, token, slow) = (open.clone(), end.clone(), delay.clone());
        tokio::spawn(token.run_until_cancelled_owned(async move {
            while let Ok((here, _)) = listener.accept().await {
                let Ok(there) = tokio::net::TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                let wire = Arc::new(Wire {
                    delay: slow.clone(),
                    ..Wire::default()
                });
                wires.lock().push(wire.clone());
                let ((from, to), (back_from, back_to)) = (here.into_split(), there.into_split());
                tokio::spawn(pass(from, back_to, wire.clone(), |wire, bytes| {
                    if bytes.windows(9).any(|w| w == b"SUBSCRIBE") {
                        wire.subscribes.store(true, Ordering::SeqCst);
                    }
                    true
                }));
                tokio::spawn(pass(back_from, to, wire, |wire, _| {
                    !wire.mute.load(Ordering::SeqCst)
                }));
            }
        }));
        Self {
            port,
            open,
            delay,
            _end: end.drop_guard(),
        }
    }

    /// From here on each answer takes this much longer, however many are under way.
    pub(in crate::bus) fn set_round_trip(&self, time: Duration) {
        self.delay
            .store(time.as_millis() as u64 / 2, Ordering::SeqCst);
    }

    pub(in crate::bus) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From here on the connections that have subscribed receive nothing; later ones do.
    pub(in crate::bus) fn mute_subscribers(&self) {
        for wire in self
            .open
            .lock()
            .iter()
            .filter(|wire| wire.subscribes.load(Ordering::SeqCst))
        {
            wire.mute.store(true, Ordering::SeqCst);
        }
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    wire: Arc<Wire>,
    passes: fn(&Wire, &[u8]) -> bool,
) {
    let (under_way, mut arriving) = tokio::sync::mpsc::unbounded_channel::<(_, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let delay = Duration::from_millis(wire.delay.load(Ordering::SeqCst));
            let due = tokio::time::Instant::now() + delay;
            if passes(&wire, &buffer[..length])
                && under_way.send((due, buffer[..length].to_vec())).is_err()
            {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = arriving.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    // When the reader ends, its sending end goes, and the writer ends behind what is under way.
    tokio::join!(read, write);
}

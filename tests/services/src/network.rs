//! Where a server listens and a client stands: the machine's loopback, or the switch of a cluster.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

/// Above what a cluster's own parts listen on, below its node ports and what outgoing connections get.
const SERVER_PORTS: Range<u16> = 12_000..30_000;

/// Each port once, before any comes again; processes start at different ones.
fn next_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(997);
    let offset = first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed))
        % u32::from(SERVER_PORTS.end - SERVER_PORTS.start);
    SERVER_PORTS.start + u16::try_from(offset).expect("an offset within the range")
}

/// An address to listen on, and the network namespace in which it exists.
#[derive(Debug, Clone)]
pub struct Network {
    ip: Ipv4Addr,
    namespace: Option<PathBuf>,
}

impl Network {
    /// This machine's loopback.
    pub fn loopback() -> Self {
        Self {
            ip: Ipv4Addr::LOCALHOST,
            namespace: None,
        }
    }

    pub(crate) fn namespace(path: PathBuf, ip: Ipv4Addr) -> Self {
        Self {
            ip,
            namespace: Some(path),
        }
    }

    /// The address that servers listen on, and that whoever is in the network reaches them at.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// A TCP port of its address that nobody listens on and that this process was not given before. It lies below those that the
    /// kernel hands to outgoing connections: a server that is stopped and started again finds it free. Another process may
    /// still take it before it is used.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn free_port(&self) -> Result<u16> {
        let ip = self.ip;
        self.run(move || {
            (0..SERVER_PORTS.len())
                .map(|_| next_port())
                .find(|port| TcpListener::bind((ip, *port)).is_ok())
                .with_context(|| format!("no free port of {ip}"))
        })?
    }

    /// The same command, run inside the network.
    pub fn command(&self, command: Command) -> Command {
        let Some(namespace) = &self.namespace else {
            return command;
        };
        let mut inside = Command::new("nsenter");
        inside
            .arg(format!("--net={}", namespace.display()))
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            inside.current_dir(dir);
        }
        inside
    }

    /// Runs a closure on a thread of its own inside the network, and waits for it. Sockets it opens, and threads it starts
    /// (those of an async runtime too), belong to the network for good, wherever they are used later.
    ///
    /// # Errors
    /// When the namespace is gone or may not be entered.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let Some(namespace) = &self.namespace else {
            return Ok(act());
        };
        let enter = || -> Result<T> {
            enter(namespace).with_context(|| format!("cannot enter {}", namespace.display()))?;
            Ok(act())
        };
        // The thread ends with the closure: no other code ever finds itself in the namespace.
        std::thread::scope(|scope| {
            scope
                .spawn(enter)
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "the standard library cannot move a thread into a namespace"
)]
fn enter(namespace: &std::path::Path) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;

    let file = std::fs::File::open(namespace)?;
    // SAFETY: the descriptor is open for the whole call, which touches nothing but the calling thread.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[cfg(not(target_os = "linux"))]
fn enter(_: &std::path::Path) -> std::io::Result<()> {
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
}

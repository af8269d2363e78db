//! One child process with a folder, a port and a question that tells when it is ready.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::find_program;

/// How long a server may take from its start to its first answer.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A running, paused or killed server process.
pub struct Server {
    name: &'static str,
    dir: PathBuf,
    address: SocketAddr,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    ready: Box<dyn Fn() -> bool + Send + Sync>,
    /// The signal that ends it cleanly.
    stop_signal: &'static str,
    child: Option<Child>,
}

impl Server {
    pub(crate) fn start(
        name: &'static str,
        dir: &Path,
        address: SocketAddr,
        stop_signal: &'static str,
        command: impl Fn() -> Command + Send + Sync + 'static,
        ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut server = Self {
            name,
            dir: dir.to_owned(),
            address,
            command: Box::new(command),
            ready: Box::new(ready),
            stop_signal,
            child: None,
        };
        server.restart()?;
        Ok(server)
    }

    /// The folder of its data.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The processes that it started itself, as Linux tells them.
    pub(crate) fn children(&self) -> Vec<u32> {
        let Some(child) = &self.child else {
            return Vec::new();
        };
        let list = format!("/proc/{0}/task/{0}/children", child.id());
        let text = fs::read_to_string(list).unwrap_or_default();
        let pids = text.split_whitespace();
        pids.filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Whether it was started, and neither killed nor stopped.
    pub(crate) fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it on its data and port, and waits until it answers. Does nothing while it runs.
    ///
    /// # Errors
    /// When it ends, or does not answer within a minute; the message carries the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut child = self.spawn()?;
        while !(self.ready)() {
            if let Some(status) = child.try_wait()? {
                // The port of a killed server, or its shared memory, can stay taken for a moment.
                if begun.elapsed() > Duration::from_secs(10) {
                    bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
                }
                std::thread::sleep(Duration::from_millis(100));
                child = self.spawn()?;
            }
            if begun.elapsed() > READY_LIMIT {
                end(&mut child);
                bail!(
                    "{} is not ready after {READY_LIMIT:?}:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
        Ok(())
    }

    /// Ends it with SIGKILL: nothing is flushed. Its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }

    /// Asks it to end, and waits; kills it after ten seconds. Its data stays.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        signal(child.id(), self.stop_signal);
        let begun = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if begun.elapsed() > Duration::from_secs(10) {
                end(&mut child);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.send("STOP");
    }

    /// Lets it go on after [`Server::pause`].
    pub fn resume(&self) {
        self.send("CONT");
    }

    /// The last lines it wrote.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.log())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    fn send(&self, name: &str) {
        if let Some(child) = &self.child {
            signal(child.id(), name);
        }
    }

    fn spawn(&self) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = (self.command)();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        spawn(command).with_context(|| format!("cannot start {}", self.name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        bail!("{command:?} ended with {}:\n{out}{err}", output.status);
    }
    Ok(())
}

pub(crate) fn is_root() -> Result<bool> {
    let id = Command::new("id")
        .arg("-u")
        .output()
        .context("cannot run `id`")?;
    Ok(id.stdout.trim_ascii() == b"0")
}

/// Sends the signal of this name (without `SIG`) to a process; a process that is gone is not an error.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// A command that the kernel kills when the thread that spawns it ends, where `setpriv` of util-linux exists.
/// As root and with `user`, it runs as that user.
pub fn bound_command(program: &Path, user: Option<&str>) -> Command {
    let Some(setpriv) = find_program(&["setpriv"]) else {
        return Command::new(program);
    };
    let mut command = Command::new(setpriv);
    command.arg("--pdeathsig=KILL");
    if let Some(user) = user {
        command
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={user}"))
            .arg("--init-groups");
    }
    command.arg("--").arg(program);
    command
}

fn end(child: &mut Child) {
    // A stopped process takes SIGKILL too, so nothing has to be resumed first.
    let _ = child.kill();
    let _ = child.wait();
}

type Request = (Command, Sender<io::Result<Child>>);

/// Spawns from a thread that lives as long as this process: the kernel's parent-death signal follows the spawning *thread*,
/// and the thread of a test ends with the test.
///
/// # Errors
/// When the program cannot be started.
pub fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(requests)
    });
    let (reply, answer) = channel();
    let gone = || io::Error::other("the spawning thread is gone");
    spawner
        .lock()
        .map_err(|_| gone())?
        .send((command, reply))
        .map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

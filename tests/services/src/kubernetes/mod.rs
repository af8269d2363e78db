//! A real Kubernetes on this machine: API server and etcd alone, with controllers, or with nodes whose pods really run.
//!
//! The scripts of `tests/kubernetes` start and end the programs; this is their front. A cluster ends with its handle, and
//! with the process that holds it, however that process dies: a small script waits for the end of a pipe.

mod installation;
mod release;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

pub use installation::KubernetesInstallation;
pub(crate) use installation::{complete, fingerprint};
pub use release::KubernetesRelease;

use crate::process::{run, spawn};
use crate::{Network, cache_dir, free_port};

/// Where the switch of a level C cluster listens; pods reach servers there.
const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);

/// How much of Kubernetes runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// etcd and the API server on loopback, without root: definitions, rules, server-side apply, watches.
    A,
    /// Controllers and scheduler too: Deployments make ReplicaSets and Pods, which stay Pending.
    B,
    /// Real nodes in namespaces of their own, 1 to 9: pods run. Needs root; one such cluster at a time on a machine.
    C {
        /// The first of them also has the control plane.
        nodes: usize,
    },
}

/// One program of a cluster. Those of the control plane are on node 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the names say it; a number is that of the node, from 1"
)]
pub enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Containerd(usize),
    Kubelet(usize),
    KubeProxy(usize),
}

impl Component {
    fn name_and_node(self) -> (&'static str, usize) {
        match self {
            Self::Etcd => ("etcd", 1),
            Self::ApiServer => ("kube-apiserver", 1),
            Self::ControllerManager => ("kube-controller-manager", 1),
            Self::Scheduler => ("kube-scheduler", 1),
            Self::Containerd(node) => ("containerd", node),
            Self::Kubelet(node) => ("kubelet", node),
            Self::KubeProxy(node) => ("kube-proxy", node),
        }
    }
}

/// A running cluster. Dropped, it ends and its folder goes.
#[derive(Debug)]
pub struct Kubernetes {
    installation: KubernetesInstallation,
    level: Level,
    dir: PathBuf,
    keeper: Child,
    record: PathBuf,
    /// Held while a level C cluster runs.
    _turn: Option<File>,
}

impl Kubernetes {
    /// Starts a cluster with all of its state in `dir`, which goes with it, and waits until it answers: its nodes are Ready
    /// and names of services resolve. Level C waits for its turn while another one runs on this machine.
    ///
    /// # Errors
    /// When a part does not start; the message carries the end of what was said.
    pub fn start(installation: &KubernetesInstallation, dir: &Path, level: Level) -> Result<Self> {
        if matches!(level, Level::C { nodes } if !(1..=9).contains(&nodes)) {
            bail!("a cluster has 1 to 9 nodes");
        }
        Self::end_left_behind()?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = fs::canonicalize(dir)?;
        let clusters = clusters()?;
        let turn = match level {
            Level::C { .. } => {
                let file = File::create(clusters.join("turn"))?;
                file.lock().context("cannot wait for the turn")?;
                Some(file)
            }
            _ => None,
        };
        fs::write(dir.join("settings"), settings(installation, level)?)?;
        let name = dir.to_string_lossy().replace('/', "%");
        let record = clusters.join(format!("{name}.cluster"));
        fs::write(
            &record,
            format!(
                "{} {}\n{}",
                std::process::id(),
                started(std::process::id()).unwrap_or_default(),
                dir.display()
            ),
        )?;
        let mut keep = script("keep.sh", &dir);
        keep.stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // In a session of its own, so that an interrupt at the terminal does not end it before its work.
        let mut session = Command::new("setsid");
        session
            .arg(keep.get_program())
            .args(keep.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let keeper = spawn(session).context("cannot start the keeper")?;
        let cluster = Self {
            installation: installation.clone(),
            level,
            dir,
            keeper,
            record,
            _turn: turn,
        };
        cluster.up()?;
        Ok(cluster)
    }

    /// Ends clusters whose process died so badly that nothing ended them; [`Kubernetes::start`] does it too.
    ///
    /// # Errors
    /// When the cache folder cannot be read.
    pub fn end_left_behind() -> Result<()> {
        for entry in fs::read_dir(clusters()?)?.flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else {
                continue;
            };
            let Some((owner, dir)) = text.split_once('\n') else {
                continue;
            };
            let (pid, time) = owner.split_once(' ').unwrap_or((owner, ""));
            if pid
                .parse()
                .ok()
                .and_then(started)
                .is_some_and(|now| now == time)
            {
                continue;
            }
            Self::end(Path::new(dir))?;
            let _ = fs::remove_file(entry.path());
        }
        Ok(())
    }

    /// Ends the cluster whose state is in `dir`, if there is one.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn end(dir: &Path) -> Result<()> {
        if dir.join("settings").is_file() {
            run(&mut script("down.sh", dir))
        } else {
            Ok(())
        }
    }

    /// Leaves the cluster running when this process ends, until [`Kubernetes::end`].
    ///
    /// # Errors
    /// When the keeper is gone already.
    pub fn leave_running(mut self) -> Result<()> {
        let mut word = self
            .keeper
            .stdin
            .take()
            .context("the keeper has its pipe")?;
        word.write_all(b"leave\n").context("the keeper is gone")?;
        drop(word);
        self.keeper.wait()?;
        let _ = fs::remove_file(&self.record);
        Ok(())
    }

    /// The file with an administrator's access from this machine's loopback.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig/admin")
    }

    /// The same for clients at the switch of a level C cluster.
    pub fn kubeconfig_outside(&self) -> PathBuf {
        self.dir.join("kubeconfig/outside")
    }

    /// The level it was started with.
    pub fn level(&self) -> Level {
        self.level
    }

    /// `kubectl` for this cluster, without arguments.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.installation.kubectl());
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .stdin(Stdio::null());
        command
    }

    /// The switch that all nodes hang on, outside of each: a level C cluster's clients and servers stand there. It reaches
    /// nodes, pods and node ports, pods reach its address, and nothing there reaches this machine's networks.
    pub fn outside(&self) -> Network {
        Network::namespace(Path::new("/run/netns").join(self.name()), SWITCH)
    }

    /// A command inside a node, counted from 1.
    pub fn in_node(&self, node: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = script("in.sh", &self.dir);
        command
            .arg(node.to_string())
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// The address of a node, counted from 1.
    pub fn node_ip(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 240, 0, u8::try_from(10 + node).unwrap_or(u8::MAX))
    }

    /// Gives every node an image; pods name it with `imagePullPolicy: Never`.
    ///
    /// # Errors
    /// When a node refuses it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        for node in 1..=self.nodes() {
            let snapshotter = fs::read_to_string(self.dir.join(format!("node{node}/snapshotter")))?;
            let mut import = self.in_node(node, "ctr");
            import
                .args([
                    "-n",
                    "k8s.io",
                    "images",
                    "import",
                    "--snapshotter",
                    snapshotter.trim(),
                ])
                .arg(archive);
            run(&mut import)?;
        }
        Ok(())
    }

    /// Ends a program: `kill` with SIGKILL, else by asking first. What it manages goes on without it.
    ///
    /// # Errors
    /// When its node is down.
    pub fn stop_component(&self, component: Component, kill: bool) -> Result<()> {
        self.component("stop", component, Some(if kill { "KILL" } else { "TERM" }))
    }

    /// Starts a program again, on its data. Does nothing while it runs.
    ///
    /// # Errors
    /// When its node is down.
    pub fn start_component(&self, component: Component) -> Result<()> {
        self.component("start", component, None)
    }

    /// A node dies at once, with all that runs on it.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn kill_node(&self, node: usize) -> Result<()> {
        run(script("down.sh", &self.dir).arg(self.numbered(node)?))
    }

    /// Boots nodes that died, starts programs that were stopped, and waits until all of it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn up(&self) -> Result<()> {
        run(&mut script("up.sh", &self.dir))
    }

    /// Pulls the cable of a node; what runs on it runs on.
    ///
    /// # Errors
    /// When the node is down.
    pub fn cut_off(&self, node: usize) -> Result<()> {
        self.cable(node, "down")
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// When the node is down.
    pub fn reconnect(&self, node: usize) -> Result<()> {
        self.cable(node, "up")
    }

    fn cable(&self, node: usize, state: &str) -> Result<()> {
        let cable = format!("v{}", self.numbered(node)?);
        run(Command::new("ip").args(["-n", &self.name(), "link", "set", &cable, state]))
    }

    fn component(&self, verb: &str, component: Component, signal: Option<&str>) -> Result<()> {
        let (name, node) = component.name_and_node();
        let mut command = match self.level {
            Level::C { .. } => {
                let mut command = self.in_node(node, installation::sources().join("component.sh"));
                command.arg(&self.dir);
                command
            }
            _ => script("component.sh", &self.dir),
        };
        run(command.args([verb, name, &node.to_string()]).args(signal))
    }

    fn nodes(&self) -> usize {
        if let Level::C { nodes } = self.level {
            nodes
        } else {
            0
        }
    }

    fn numbered(&self, node: usize) -> Result<String> {
        if !(1..=self.nodes()).contains(&node) {
            bail!("there is no node {node}");
        }
        Ok(node.to_string())
    }

    /// What the scripts call its namespaces: the checksum of its folder, as `cksum` has it.
    fn name(&self) -> String {
        fs::read_to_string(self.dir.join("name"))
            .map(|name| name.trim().to_owned())
            .unwrap_or_default()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        // The end of its pipe is the keeper's word.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        let _ = fs::remove_file(&self.record);
    }
}

/// The lines that `lib.sh` reads.
fn settings(installation: &KubernetesInstallation, level: Level) -> Result<String> {
    let (letter, nodes) = match level {
        Level::A => ("A", 0),
        Level::B => ("B", 0),
        Level::C { nodes } => ("C", nodes),
    };
    let mut text = format!("LEVEL={letter}\nNODES={nodes}\n");
    for (name, path) in [
        ("BIN", &installation.programs),
        ("IMAGES", &installation.images),
    ] {
        let path = path
            .to_str()
            .filter(|path| !path.contains('\''))
            .context("a cache folder without quotes in its name")?;
        text.push_str(&format!("{name}='{path}'\n"));
    }
    for name in ["PORT", "ETCD_PORT", "ETCD_PEER_PORT"] {
        text.push_str(&format!("{name}={}\n", free_port()?));
    }
    Ok(text)
}

/// A script for the cluster in `dir`, run by bash whatever its mode is.
fn script(name: &str, dir: &Path) -> Command {
    let mut command = Command::new("bash");
    command
        .arg(installation::sources().join(name))
        .arg(dir)
        .stdin(Stdio::null());
    command
}

/// Where running clusters are recorded: with the owner's process and its folder.
fn clusters() -> Result<PathBuf> {
    let dir = cache_dir()?.join("clusters");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// When a process started, in the kernel's ticks: with its id, it is told from a later one.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // One that only waits to be reaped is gone.
    let alive = fields.next()? != "Z";
    fields.nth(18).filter(|_| alive).map(str::to_owned)
}

#[cfg(test)]
mod tests;

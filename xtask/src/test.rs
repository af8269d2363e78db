//! Every check and every test, against servers that live as long as the run.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use signal_services::{
    Kafka, KafkaInstallation, Kubernetes, KubernetesInstallation, KubernetesRelease, Level,
    Postgres, Redis, Server, Tool,
};

use crate::outcome::Outcome;
use crate::timing::Timing;
use crate::{cargo, check, clients, setup, soak, target_folder};

/// Everything in order; `--quick` leaves all but tests out, other arguments go to `cargo test`, and then there are neither clients nor soak: who names tests wants those.
pub(crate) fn run(mut arguments: Vec<String>) -> Result<ExitCode> {
    let quick = arguments
        .iter()
        .position(|argument| argument == "--quick")
        .map(|at| arguments.remove(at))
        .is_some();
    let is_whole = arguments.is_empty();
    let mut timing = Timing::default();
    let (kafka, kubernetes) = timing.part("setup", || {
        setup::build()?;
        setup::components()?;
        setup::packages();
        let kubernetes = setup::clusters(KubernetesRelease::chosen()?)?;
        Ok((setup::services()?, kubernetes))
    })?;
    let mut failed = Vec::new();
    if !quick {
        checks(&mut timing, &mut failed);
    }
    // With the tests, so that the gateway's binary is built with the same features and nothing is compiled twice.
    let mut build = cargo();
    build.args(["build", "--workspace", "--bins", "--tests"]);
    timing.part("build", || succeed(&mut build))?;
    let servers = timing.part("servers", || Servers::start(&kafka, kubernetes.as_ref()))?;
    let mut outcome = tests(&servers, arguments, &mut timing)?;
    if is_whole {
        let environment = servers.environment();
        clients::part(quick, &environment, &mut timing, &mut outcome, &mut failed);
    }
    timing.part("end of servers", || {
        drop(servers);
        Ok(())
    })?;
    if is_whole && let Err(error) = timing.part("soak", soak::part) {
        println!("xtask: {error:#}");
        failed.push(format!("{error:#}"));
    }

    let mut stdout = std::io::stdout().lock();
    timing.write(&mut stdout)?;
    for failure in &failed {
        writeln!(stdout, "\nfailed: {failure}")?;
    }
    outcome.write(&mut stdout)?;
    stdout.flush()?;
    Ok(if outcome.is_good() && failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is checked before anything runs. One that fails does not keep the others, or the tests, from running.
fn checks(timing: &mut Timing, failed: &mut Vec<String>) {
    let mut format = cargo();
    format.args(["fmt", "--all", "--check"]);
    let mut lints = cargo();
    lints.args(["clippy", "--workspace", "--all-targets", "--"]);
    lints.args(["-D", "warnings"]);
    let mut docs = cargo();
    docs.args(["doc", "--no-deps", "--workspace"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    let results = [
        timing.part("format", || succeed(&mut format)),
        timing.part("arrows", check::arrows),
        timing.part("names", check::names),
        timing.part("spelling", check::spelling),
        timing.part("licences", check::licences),
        timing.part("lints", || succeed(&mut lints)),
        timing.part("docs", || succeed(&mut docs)),
    ];
    for error in results.into_iter().filter_map(Result::err) {
        println!("xtask: {error:#}");
        failed.push(format!("{error:#}"));
    }
}

/// One server of each kind, killed on drop.
struct Servers {
    kafka: Server,
    postgres: Server,
    redis: Server,
    /// With controllers and without nodes; none where a cluster is named from outside, or none can be had.
    kubernetes: Option<Kubernetes>,
    dir: ScratchDir,
}

impl Servers {
    fn start(
        installation: &KafkaInstallation,
        cluster: Option<&KubernetesInstallation>,
    ) -> Result<Self> {
        // While the folders of dead runs still say what is to be ended.
        if cluster.is_some() {
            Kubernetes::end_left_behind()?;
        }
        let named = std::env::var_os("SIGNAL_TEST_KUBECONFIG").is_some_and(|name| !name.is_empty());
        let dir = ScratchDir::new()?;
        Ok(Self {
            redis: Redis::start(&dir.0.join("redis"), &[])?,
            postgres: Postgres::start(&dir.0.join("postgres"), false)?,
            kafka: Kafka::start(installation, &dir.0.join("kafka"))?,
            kubernetes: match cluster {
                Some(installation) if !named => Some(Kubernetes::start(
                    installation,
                    &dir.0.join("kubernetes"),
                    Level::B,
                )?),
                _ => None,
            },
            dir,
        })
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            ("SIGNAL_TEST_KAFKA", self.kafka.address().to_string()),
            (
                "SIGNAL_TEST_POSTGRES",
                Postgres::url(&self.postgres, "postgres"),
            ),
            (
                "SIGNAL_TEST_REDIS",
                format!("redis://{}", self.redis.address()),
            ),
            // Whatever a killed test leaves goes with the run.
            ("TMPDIR", self.dir.0.join("tests").display().to_string()),
        ];
        let kubeconfig = self.kubernetes.as_ref().map(Kubernetes::kubeconfig);
        environment
            .extend(kubeconfig.map(|file| ("SIGNAL_TEST_KUBECONFIG", file.display().to_string())));
        environment.extend(tools());
        environment
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // Before their data goes.
        self.kubernetes = None;
        self.kafka.kill();
        self.redis.kill();
        self.postgres.stop();
    }
}

/// The programs that check charts, under the names by which tests find them.
pub(crate) fn tools() -> impl Iterator<Item = (&'static str, String)> {
    let tools = [
        ("SIGNAL_TEST_HELM", Tool::Helm),
        ("SIGNAL_TEST_KUBECONFORM", Tool::Kubeconform),
        ("SIGNAL_TEST_KUBE_SCORE", Tool::KubeScore),
    ];
    tools
        .into_iter()
        .filter_map(|(name, tool)| Some((name, tool.find()?.display().to_string())))
}

/// A folder in the system's place for temporary files, which the user `postgres` can reach.
pub(crate) struct ScratchDir(pub(crate) PathBuf);

impl ScratchDir {
    const PREFIX: &str = "signal-run.";

    pub(crate) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        Self::remove_left_behind(&parent);
        let dir = parent.join(format!("{}{}", Self::PREFIX, std::process::id()));
        std::fs::create_dir_all(dir.join("tests"))
            .with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// An interrupted run dies without cleaning up; its folder is told by the process that is gone.
    fn remove_left_behind(parent: &Path) {
        let Ok(entries) = std::fs::read_dir(parent) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let pid = name
                .to_str()
                .and_then(|name| name.strip_prefix(Self::PREFIX))
                .and_then(|pid| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| {
                Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{pid}")).exists()
            }) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Runs them all, whichever fail.
fn tests(servers: &Servers, arguments: Vec<String>, timing: &mut Timing) -> Result<Outcome> {
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .envs(servers.environment());
    command.env(
        "SIGNAL_TEST_GATEWAY",
        target_folder().join("debug/signal-gateway"),
    );
    watch(command, timing)
}

/// Runs `cargo test` to its end, and copies what it and its tests write line by line.
pub(crate) fn watch(mut command: Command, timing: &mut Timing) -> Result<Outcome> {
    // One pipe for both, so that cargo's `Running ...` and the binary's lines keep their order.
    let (output, input) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    let mut child = command.spawn().context("cannot run cargo test")?;
    // It holds the pipe's other end, and reading ends when nobody does.
    drop(command);

    let mut outcome = Outcome::default();
    let mut stdout = std::io::stdout();
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    // Bytes, because a test may print what is not UTF-8.
    while output.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        outcome.read(&text);
        timing.read(&text);
        stdout.write_all(&line)?;
        line.clear();
    }
    outcome.exit(child.wait()?.success());
    timing.end();
    Ok(outcome)
}

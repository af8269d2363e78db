//! `cargo xtask dev | test | check | bench | capacity | soak | kubernetes | cluster | setup`: set-up, checks, runs, and what a load needs.
//!
//! Needs a Rust toolchain and nothing more to build: what the gateway's own build and its tests need is found or installed
//! by [`setup`], and [`mod@test`] starts the servers that tests talk to.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks to its terminal"
)]

mod capacity;
mod check;
mod clients;
mod cluster;
mod fuzz;
mod kubernetes;
mod outcome;
mod registry;
mod setup;
mod soak;
mod test;
mod timing;
mod tools;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use signal_services::KubernetesRelease;

const HELP: &str = "\
Set-up and runs of Signal.

Usage: cargo xtask <COMMAND> [ARGUMENTS]

Commands:
  dev    [ARGUMENTS]           Runs the gateway in dev mode, everything embedded. Arguments go to `signal-gateway dev`
  test   [--quick] [ARGUMENTS] Format, lints, docs, checks, then every test, with real Kafka, PostgreSQL, Redis and
                               Kubernetes, the packages in `clients/` where Node is installed, and last five minutes of
                               `soak`. --quick leaves all but tests out. Arguments go to `cargo test`; with any, there are
                               neither `clients/` nor soak
  check  [NAME]                Arrows between modules, names, spelling and licences: what `test` checks of them, or one of
                               arrows, names, spelling, licences; `arrows --print PACKAGE` prints those of the sources
  bench  [ARGUMENTS]           Builds optimized and measures against bare system calls, with real Kafka, PostgreSQL and
                               Redis. Arguments go to `signal-bench`: --small, --only GROUP, --json FILE
  soak   [--minutes N] [--seed S] [--rate R]
                               Two gateways, R records a second (default 40) and faults drawn from seed S, for N minutes
                               (default 60); checks every row, client, probe and metric, and prints totals as a table and JSON
  capacity [OPTIONS]           What a load needs of gateways, Redis, PostgreSQL and the network (docs/scaling.md);
                               --help lists the options
  fuzz   [--seconds N] [ENTRY] Fuzzes each entry, or those named, for a minute or N seconds
  registry                     Tests of schemas against a real registry (Apicurio; Java 21 or newer), which `test` leaves out
  kubernetes VERSION [ARGUMENTS]
                               Builds another Kubernetes (1.36) and runs the tests of the operator and of the charts against
                               its API server, or `cargo test ARGUMENTS`
  cluster up [--nodes N]       Starts a Kubernetes to play with: with N nodes as root (default 1), which have both images; N = 0 without nodes and root
  cluster down                 Ends it
  setup                        Only checks what building and testing need, and installs what is missing
  help                         Prints this

Each command first checks what it needs. On Debian and its kin, as root, what is missing is installed with apt-get;
elsewhere the command ends and says what to install.

Environment:
  SIGNAL_CACHE            where downloads and builds are kept across runs (default: ~/.cache/signal)
  SIGNAL_TEST_KUBECONFIG  a cluster that tests use in place of one that `test` starts
  SIGNAL_TEST_KUBERNETES  the release of Kubernetes that tests and `cluster` start (default: 1.34)
  KUBEBUILDER_ASSETS      a folder with etcd, kube-apiserver and kubectl for tests that need no more of Kubernetes
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match run(&command, rest) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, arguments: Vec<String>) -> Result<ExitCode> {
    match command {
        "dev" => {
            setup::build()?;
            let mut dev = cargo();
            dev.args(["run", "--quiet", "-p", "signal-gateway", "--", "dev"])
                .args(arguments);
            // The gateway takes this process's place, so that signals and the exit code are its own.
            Err(dev.exec().into())
        }
        "test" => test::run(arguments),
        "check" => check::run(&arguments),
        "capacity" => capacity::run(&arguments),
        "cluster" => cluster::run(&arguments),
        "fuzz" => fuzz::run(&arguments),
        "kubernetes" => kubernetes::run(arguments),
        "registry" => registry::run(),
        "soak" => soak::run(&arguments),
        "bench" => {
            setup::build()?;
            setup::services()?;
            let status = cargo()
                .args([
                    "build",
                    "--release",
                    "-p",
                    "signal-gateway",
                    "-p",
                    "signal-bench",
                ])
                .status()?;
            if !status.success() {
                bail!("the build failed");
            }
            // It finds the gateway in its own folder. `cargo run` would link it once more, with the features of this package alone.
            let mut bench = Command::new(target_folder().join("release/signal-bench"));
            Err(bench.args(arguments).exec().into())
        }
        "setup" => {
            setup::build()?;
            setup::components()?;
            setup::services()?;
            setup::clusters(KubernetesRelease::chosen()?)?;
            setup::packages();
            println!("everything that building and testing need is here");
            Ok(ExitCode::SUCCESS)
        }
        "" | "help" | "-h" | "--help" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("there is no command {other:?}; `cargo xtask help` lists them"),
    }
}

/// The toolchain's cargo, in the workspace's root.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where [`cargo`] puts what it builds: a relative folder counts from where it runs.
fn target_folder() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

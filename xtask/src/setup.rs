//! What building and testing need from the machine: found, installed, or named.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use signal_services::{
    KafkaInstallation, KubernetesInstallation, KubernetesRelease, Level, Packages, PgBouncer,
    Postgres, Redis, Tool, fake_clock, find_program,
};

use crate::cargo;

/// One thing that must be there.
struct Need {
    /// What it is called in messages.
    name: &'static str,
    present: fn() -> bool,
    /// Debian's package.
    debian: &'static str,
    /// Homebrew's package.
    homebrew: &'static str,
}

const BUILD: [Need; 5] = [
    Need {
        name: "a C compiler",
        present: || {
            find_program(&["cc"]).is_some()
                && find_program(&["c++"]).is_some()
                && find_program(&["make"]).is_some()
        },
        debian: "build-essential",
        homebrew: "gcc",
    },
    Need {
        name: "cmake",
        present: || find_program(&["cmake"]).is_some(),
        debian: "cmake",
        homebrew: "cmake",
    },
    Need {
        name: "pkg-config",
        present: || find_program(&["pkg-config", "pkgconf"]).is_some(),
        debian: "pkg-config",
        homebrew: "pkgconf",
    },
    Need {
        name: "libcurl's headers",
        present: || compiles("curl/curl.h"),
        debian: "libcurl4-openssl-dev",
        homebrew: "curl",
    },
    Need {
        name: "OpenSSL's headers",
        present: || compiles("openssl/ssl.h"),
        debian: "libssl-dev",
        homebrew: "openssl@3",
    },
];

const SERVICES: [Need; 8] = [
    Need {
        name: "Java 17 or newer",
        present: java_17,
        debian: "openjdk-17-jre-headless",
        homebrew: "openjdk",
    },
    Need {
        name: "Maven",
        present: || find_program(&["mvn"]).is_some(),
        debian: "maven",
        homebrew: "maven",
    },
    Need {
        name: "redis-server",
        present: Redis::is_installed,
        debian: "redis-server",
        homebrew: "redis",
    },
    // Makes certificates for tests over TLS.
    Need {
        name: "openssl",
        present: || find_program(&["openssl"]).is_some(),
        debian: "openssl",
        homebrew: "openssl@3",
    },
    // Steps the clock of a gateway; where it cannot be installed, no clock steps.
    Need {
        name: "libfaketime",
        present: || fake_clock().is_some() || cfg!(not(target_os = "linux")),
        debian: "libfaketime",
        homebrew: "",
    },
    // The README's producer from outside.
    Need {
        name: "kcat",
        present: || find_program(&["kcat"]).is_some(),
        debian: "kcat",
        homebrew: "kcat",
    },
    Need {
        name: "PostgreSQL's server",
        present: || Postgres::programs().is_some(),
        debian: "postgresql",
        homebrew: "postgresql@17",
    },
    // Between the gateway and PostgreSQL.
    Need {
        name: "PgBouncer",
        present: || PgBouncer::Installed.find().is_ok(),
        debian: "pgbouncer",
        homebrew: "pgbouncer",
    },
];

/// What clusters need without nodes.
const CLUSTERS: [Need; 2] = [
    Need {
        name: "Go 1.24 or newer",
        present: || go_minor().is_some_and(|minor| minor >= 24),
        debian: "golang-go",
        homebrew: "go",
    },
    Need {
        name: "bash",
        present: || find_program(&["bash"]).is_some(),
        debian: "bash",
        homebrew: "bash",
    },
];

/// What nodes need, which only Linux has.
const NODES: [Need; 8] = [
    Need {
        name: "containerd",
        present: || find_program(&["containerd"]).is_some(),
        debian: "containerd",
        homebrew: "",
    },
    Need {
        name: "runc",
        present: || find_program(&["runc"]).is_some(),
        debian: "runc",
        homebrew: "",
    },
    Need {
        name: "network plugins",
        present: || Path::new("/usr/lib/cni/bridge").is_file(),
        debian: "containernetworking-plugins",
        homebrew: "",
    },
    Need {
        name: "iptables",
        present: || find_program(&["iptables"]).is_some(),
        debian: "iptables",
        homebrew: "",
    },
    Need {
        name: "nftables",
        present: || find_program(&["nft"]).is_some(),
        debian: "nftables",
        homebrew: "",
    },
    Need {
        name: "iproute2",
        present: || find_program(&["ip"]).is_some(),
        debian: "iproute2",
        homebrew: "",
    },
    Need {
        name: "socat",
        present: || find_program(&["socat"]).is_some(),
        debian: "socat",
        homebrew: "",
    },
    Need {
        name: "busybox",
        present: || find_program(&["busybox"]).is_some(),
        debian: "busybox-static",
        homebrew: "",
    },
];

/// What tests of pages run in.
const BROWSER: [Need; 1] = [Need {
    name: "Chromium",
    present: || browser().is_some(),
    debian: "chromium",
    homebrew: "chromium",
}];

/// What compiling the gateway needs.
pub(crate) fn build() -> Result<()> {
    satisfy(&BUILD)
}

/// What the tests' servers need, Kafka's jars included.
pub(crate) fn services() -> Result<KafkaInstallation> {
    satisfy(&SERVICES)?;
    KafkaInstallation::ensure(say).context("Kafka cannot be set up")
}

/// What clusters of a release are made of, as far as this machine can have them: with nodes as root on Linux, without as anyone there. Says what
/// is left out and why; tests that need it then report themselves skipped.
///
/// # Errors
/// When something can be had here and fails.
pub(crate) fn clusters(release: KubernetesRelease) -> Result<Option<KubernetesInstallation>> {
    if !cfg!(target_os = "linux") {
        println!("xtask: no clusters: they are only started on Linux");
        return Ok(None);
    }
    // Programs may be there already, and then need no Go.
    if KubernetesInstallation::find_release(release, Level::B).is_err() {
        satisfy(&CLUSTERS)?;
        let minor = release.go()?;
        if go_minor().is_none_or(|installed| installed < minor) {
            let version = release.version;
            bail!("Kubernetes {version} needs Go 1.{minor} or newer");
        }
    }
    let installation = KubernetesInstallation::ensure(release, Level::B, say)
        .context("Kubernetes cannot be set up")?;
    for tool in [Tool::Helm, Tool::Kubeconform, Tool::KubeScore] {
        tool.ensure(say)?;
    }
    match KubernetesInstallation::nodes_are_possible() {
        Ok(()) => {
            satisfy(&NODES)?;
            KubernetesInstallation::ensure(release, Level::C { nodes: 1 }, say)
                .context("the nodes of clusters cannot be set up")?;
        }
        Err(reason) => println!("xtask: no clusters with nodes: {reason:#}"),
    }
    Ok(Some(installation))
}

/// Programs of others that some tests run. Where they cannot be had, those tests report themselves skipped.
pub(crate) fn packages() {
    for packages in Packages::ALL {
        if let Err(error) = packages.ensure(say) {
            println!("xtask: tests are left out that need {packages:?}: {error:#}");
        }
    }
    if let Err(error) = PgBouncer::Debian13.ensure(say) {
        println!("xtask: tests are left out that need PgBouncer of Debian 13: {error:#}");
    }
    if let Err(error) = satisfy(&BROWSER) {
        println!("xtask: tests are left out that need a browser: {error:#}");
    }
}

/// Chromium, under one of its names.
pub(crate) fn browser() -> Option<PathBuf> {
    find_program(&["chromium", "chromium-browser", "google-chrome"])
}

fn say(what: &str) {
    println!("xtask: {what}");
}

/// rustfmt and clippy of the toolchain in use.
pub(crate) fn components() -> Result<()> {
    for component in ["rustfmt", "clippy"] {
        let subcommand = if component == "rustfmt" {
            "fmt"
        } else {
            component
        };
        if quiet(cargo().args([subcommand, "--version"])) {
            continue;
        }
        println!("xtask: installing {component}");
        let added = Command::new("rustup")
            .args(["component", "add", component])
            .status();
        if !added.is_ok_and(|status| status.success()) {
            bail!("{component} is missing: run `rustup component add {component}`");
        }
    }
    Ok(())
}

fn satisfy(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|need| need.name).collect();
    let packages: Vec<&str> = missing.iter().map(|need| need.debian).collect();
    let debian = find_program(&["apt-get"]).is_some();
    if !(debian && is_root()) {
        let advice = match debian {
            true => format!("sudo apt-get install -y {}", packages.join(" ")),
            false if cfg!(target_os = "macos") => {
                format!(
                    "brew install {}",
                    missing
                        .iter()
                        .map(|need| need.homebrew)
                        .collect::<Vec<_>>()
                        .join(" ")
                )
            }
            false => format!(
                "install what your system calls Debian's {}",
                packages.join(", ")
            ),
        };
        bail!("missing: {}\n  {advice}", names.join(", "));
    }
    println!("xtask: installing {}", packages.join(" "));
    apt(&["update", "-qq"])?;
    apt(&[
        &["install", "-y", "-qq", "--no-install-recommends"],
        packages.as_slice(),
    ]
    .concat())?;
    let still = self::missing(needs);
    if !still.is_empty() {
        let names: Vec<&str> = still.iter().map(|need| need.name).collect();
        bail!("still missing after apt-get: {}", names.join(", "));
    }
    Ok(())
}

fn missing(needs: &[Need]) -> Vec<&Need> {
    needs.iter().filter(|need| !(need.present)()).collect()
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Run level 1 keeps packages from starting their own servers: the tests start theirs.
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdin(Stdio::null());
    let status = command.status().context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// Whether the C compiler finds a header.
fn compiles(header: &str) -> bool {
    let mut command = Command::new("cc");
    command
        .args(["-E", "-x", "c", "-o", "/dev/null", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else {
        return false;
    };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = writeln!(stdin, "#include <{header}>");
    }
    child.wait().is_ok_and(|status| status.success())
}

/// `java -version` begins with `openjdk version "17.0.15"`, on standard error.
fn java_17() -> bool {
    let Ok(output) = Command::new("java").arg("-version").output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    let major = text
        .split('"')
        .nth(1)
        .and_then(|version| version.split('.').next());
    major
        .and_then(|major| major.parse::<u32>().ok())
        .is_some_and(|major| major >= 17)
}

/// `go version` says `go version go1.26.8 linux/amd64`, which is 26.
fn go_minor() -> Option<u32> {
    let output = Command::new("go").arg("version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rest = text.split(" go1.").nth(1)?;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

fn quiet(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

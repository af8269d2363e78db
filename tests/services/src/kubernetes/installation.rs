//! What clusters are made of: the programs, and the images every node gets.
//!
//! Go builds etcd and all of Kubernetes into one binary from their modules. It takes minutes once; the result lies in the
//! cache folder, under a name that changes with the sources, and so do the images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{KubernetesRelease, Level};
use crate::process::{is_root, run};
use crate::{Image, Tool, cache_dir, find_program};

/// Grows when anything is built another way.
const LAYOUT: u32 = 1;
const IMAGE_SOURCES: [&str; 2] = [
    include_str!("../../../kubernetes/echo/main.go"),
    include_str!("../../../kubernetes/pause/pause.c"),
];
const PROGRAMS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];

/// The folders with programs and images.
#[derive(Debug, Clone)]
pub struct KubernetesInstallation {
    pub(super) programs: PathBuf,
    pub(super) images: PathBuf,
}

impl KubernetesInstallation {
    /// What clusters of this level need, of the release that the environment names, if it is all here.
    ///
    /// # Errors
    /// Names what is missing: a reason to skip a test.
    pub fn find(level: Level) -> Result<Self> {
        Self::find_release(KubernetesRelease::chosen()?, level)
    }

    /// What clusters of this level and release need, if it is all here.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn find_release(release: KubernetesRelease, level: Level) -> Result<Self> {
        let installation = Self::paths(release, level)?;
        installation.check(level)?;
        if !installation.has_programs(level) {
            let version = release.version;
            let command = match release == KubernetesRelease::DEFAULT {
                true => "setup".to_owned(),
                false => format!("kubernetes {version}"),
            };
            bail!("Kubernetes {version} is not in the cache folder: run `cargo xtask {command}`");
        }
        if matches!(level, Level::C { .. }) && !installation.images.join("complete").is_file() {
            bail!("the images of the nodes are not in the cache folder: run `cargo xtask setup`");
        }
        Ok(installation)
    }

    /// Builds what is missing; `say` receives a line for what takes time. At level A the programs of `KUBEBUILDER_ASSETS` do, if it is set.
    ///
    /// # Errors
    /// Names what the machine lacks, or what did not build.
    pub fn ensure(release: KubernetesRelease, level: Level, say: impl Fn(&str)) -> Result<Self> {
        let installation = Self::paths(release, level)?;
        installation.check(level)?;
        if !installation.has_programs(level) {
            say(&format!(
                "building Kubernetes {} into {}: minutes, once",
                release.version,
                installation.programs.display()
            ));
            complete(&installation.programs, |draft| {
                build_programs(release, draft)?;
                Ok(())
            })?;
        }
        if matches!(level, Level::C { .. }) && !installation.images.join("complete").is_file() {
            let dns = Tool::CoreDns.ensure(&say)?;
            say(&format!(
                "making images of nodes in {}",
                installation.images.display()
            ));
            complete(&installation.images, |draft| build_images(draft, &dns))?;
        }
        Ok(installation)
    }

    /// Whether this process may start nodes at all, whatever is installed.
    ///
    /// # Errors
    /// Says why it may not.
    pub fn nodes_are_possible() -> Result<()> {
        if !is_root()? {
            bail!("nodes are namespaces and mounts, which need root");
        }
        let mut attempt = Command::new("unshare");
        attempt.args([
            "--mount",
            "--pid",
            "--fork",
            "--net",
            "--uts",
            "--ipc",
            "--cgroup",
            "mount",
            "--make-rprivate",
            "/",
        ]);
        run(&mut attempt)
            .context("nodes are namespaces and mounts, which even root may not make here")
    }

    /// The client that belongs to these servers.
    pub fn kubectl(&self) -> PathBuf {
        self.programs.join("kubectl")
    }

    fn paths(release: KubernetesRelease, level: Level) -> Result<Self> {
        let cache = cache_dir()?;
        let (version, key) = (release.version, fingerprint(&release.sources));
        let image_key = fingerprint(&IMAGE_SOURCES);
        let assets = std::env::var_os("KUBEBUILDER_ASSETS")
            .filter(|dir| !dir.is_empty() && level == Level::A);
        let programs = assets.map_or_else(
            || cache.join(format!("kubernetes-{version}-{LAYOUT}-{key:016x}")),
            PathBuf::from,
        );
        Ok(Self {
            programs,
            images: cache.join(format!(
                "kubernetes-images-{LAYOUT}-{}-{image_key:016x}",
                Tool::CoreDns.version()
            )),
        })
    }

    fn has_programs(&self, level: Level) -> bool {
        let needed: &[&str] = if level == Level::A {
            &["etcd", "kube-apiserver", "kubectl"]
        } else {
            &PROGRAMS
        };
        needed.iter().all(|name| self.programs.join(name).is_file())
    }

    /// What must be installed on the machine.
    fn check(&self, level: Level) -> Result<()> {
        if !cfg!(target_os = "linux") {
            bail!("clusters are only started on Linux");
        }
        let mut needed = vec!["bash", "openssl", "setsid", "cksum"];
        if !self.has_programs(level) {
            needed.push("go");
        }
        if matches!(level, Level::C { .. }) {
            Self::nodes_are_possible()?;
            needed.extend(NODE_PROGRAMS);
        }
        let missing: Vec<&str> = needed
            .into_iter()
            .filter(|name| find_program(&[name]).is_none())
            .collect();
        if !missing.is_empty() {
            bail!("not installed: {}", missing.join(", "));
        }
        if matches!(level, Level::C { .. }) && !Path::new("/usr/lib/cni/bridge").is_file() {
            bail!("the network plugins of containers are not in /usr/lib/cni");
        }
        Ok(())
    }
}

/// What level C runs on the machine; `xtask` knows the packages.
const NODE_PROGRAMS: [&str; 10] = [
    "containerd",
    "runc",
    "ctr",
    "ip",
    "nft",
    "iptables",
    "socat",
    "busybox",
    "nsenter",
    "cc",
];

/// Where the sources and scripts of clusters lie.
pub(super) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new(".."))
        .join("kubernetes")
}

fn build_programs(release: KubernetesRelease, draft: &Path) -> Result<()> {
    let mut flags = "-s -w".to_owned();
    let version = release.version;
    let minor = version
        .split('.')
        .nth(1)
        .context("a version has three parts")?;
    // What the API server says of itself: without it clients refuse to compare versions.
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        for (name, value) in [
            ("gitVersion", format!("v{version}").as_str()),
            ("gitMajor", "1"),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        ] {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
        flags.push_str(&format!(" -X {package}.buildDate=2026-01-01T00:00:00Z"));
    }
    let mut build = Command::new("go");
    build
        .args(["build", "-modfile", release.module, "-trimpath"])
        .args(["-ldflags", &flags, "-o"])
        .arg(draft.join("kubernetes"))
        .arg(".");
    build
        .current_dir(sources().join("cluster"))
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly");
    run(&mut build)?;
    for name in PROGRAMS {
        std::os::unix::fs::symlink("kubernetes", draft.join(name))?;
    }
    Ok(())
}

fn build_images(draft: &Path, dns: &Path) -> Result<()> {
    let pause = draft.join("pause");
    run(Command::new("cc")
        .args(["-static", "-Os", "-s", "-o"])
        .arg(&pause)
        .arg(sources().join("pause/pause.c")))?;
    Image::new("localhost/signal-pause:1")
        .file(&pause, "/pause", 0o755)?
        .entrypoint(&["/pause"])
        .write(&draft.join("pause.tar"))?;

    let echo = draft.join("echo");
    let mut build = Command::new("go");
    build
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(&echo)
        .arg(".");
    run(build
        .current_dir(sources().join("echo"))
        .env("CGO_ENABLED", "0"))?;
    let image = Image::new("localhost/signal-echo:1")
        .file(&echo, "/echo", 0o755)?
        .entrypoint(&["/echo"])
        .nonroot()?;
    image.write(&draft.join("echo.tar"))?;

    let busybox = find_program(&["busybox"]).context("busybox is not installed")?;
    let listed = Command::new(&busybox)
        .arg("--list")
        .output()
        .context("cannot run busybox")?;
    let mut shell = Image::new("localhost/signal-shell:1")
        .program(&busybox, "/bin/busybox")?
        .file(&echo, "/echo", 0o755)?;
    for applet in String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        shell = shell.link("/bin/busybox", &format!("/bin/{applet}"));
    }
    shell
        .entrypoint(&["/bin/sh"])
        .write(&draft.join("shell.tar"))?;

    let image = Image::new("localhost/signal-coredns:1")
        .file(dns, "/coredns", 0o755)?
        .entrypoint(&["/coredns"]);
    image.write(&draft.join("coredns.tar"))?;
    fs::remove_file(&pause)?;
    fs::remove_file(&echo)?;
    Ok(())
}

/// Makes a folder under another name and renames it, so that two runs at once never see half of it.
pub(crate) fn complete(target: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = target
        .file_name()
        .context("a target has a name")?
        .to_owned();
    name.push(format!(".{}.draft", std::process::id()));
    let draft = target.with_file_name(name);
    let _ = fs::remove_dir_all(&draft);
    fs::create_dir_all(&draft).with_context(|| format!("cannot create {}", draft.display()))?;
    let made = make(&draft).and_then(|()| Ok(fs::write(draft.join("complete"), "")?));
    if let Err(error) = made {
        let _ = fs::remove_dir_all(&draft);
        return Err(error);
    }
    if fs::rename(&draft, target).is_err() {
        let _ = fs::remove_dir_all(target);
        fs::rename(&draft, target)
            .with_context(|| format!("cannot move it to {}", target.display()))?;
    }
    Ok(())
}

/// FNV-1a of all parts: it distinguishes versions of sources and is no protection.
pub(crate) fn fingerprint(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

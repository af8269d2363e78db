//! PgBouncer in two versions, which refuse start-up parameters in different words: the system's, and Debian 13's.
//!
//! Debian 13's runs on any Linux with `apt-get`: its packages are unpacked in the cache folder, with the libraries and the loader that they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::kubernetes::complete;
use crate::process::{bound_command, is_root, run};
use crate::{cache_dir, find_program};

/// The program and every library that it is linked with.
const PACKAGES: [&str; 12] = [
    "pgbouncer",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcares2",
    "libcrypt1",
    "libevent-2.1-7t64",
    "libpam0g",
    "libssl3t64",
    "libsystemd0",
    "libzstd1",
];

/// One of the versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PgBouncer {
    /// `$SIGNAL_TEST_PGBOUNCER`, else the installed one; 1.18 in Debian 12.
    Installed,
    /// 1.24 or a later one of Debian 13.
    Debian13,
}

impl PgBouncer {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Installed, Self::Debian13];

    /// The program.
    ///
    /// # Errors
    /// Why tests cannot use it.
    pub fn find(self) -> Result<PathBuf> {
        let found = match self {
            Self::Installed => installed(),
            Self::Debian13 => Some(debian_13()?.join("usr/sbin/pgbouncer")),
        };
        found
            .filter(|program| program.is_file())
            .with_context(|| format!("PgBouncer ({self:?}) is not installed (`cargo xtask setup`)"))
    }

    /// Downloads what can be downloaded; `say` is told what takes time.
    ///
    /// # Errors
    /// When it cannot be had here.
    pub fn ensure(self, say: impl Fn(&str)) -> Result<()> {
        if self.find().is_ok() {
            return Ok(());
        }
        if self == Self::Debian13 {
            find_program(&["apt-get"]).context("apt-get is not installed")?;
            say("downloading PgBouncer of Debian 13");
            complete(&debian_13()?, unpack)?;
        }
        self.find().map(drop)
    }

    /// A command that runs it, not as root, which it refuses. What it reads is copied to `folder`, which everybody may read.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn command(self, folder: &Path) -> Result<Command> {
        let program = self.find()?;
        let user = is_root()?.then_some("postgres");
        if self == Self::Installed {
            return Ok(bound_command(&program, user));
        }
        let copy = folder.join("debian-13");
        run(Command::new("cp").arg("-R").arg(debian_13()?).arg(&copy))?;
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(&copy))?;
        let loader = loader(&copy).context("the loader of Debian 13 is missing")?;
        let mut command = bound_command(&loader, user);
        command
            .arg("--library-path")
            .arg(loader.parent().context("it lies in a folder")?)
            .arg(copy.join("usr/sbin/pgbouncer"));
        Ok(command)
    }
}

fn installed() -> Option<PathBuf> {
    let named = std::env::var_os("SIGNAL_TEST_PGBOUNCER").filter(|name| !name.is_empty());
    // Debian's is on the `PATH` of root alone.
    let found =
        || find_program(&["pgbouncer"]).unwrap_or_else(|| PathBuf::from("/usr/sbin/pgbouncer"));
    Some(named.map_or_else(found, PathBuf::from))
}

fn debian_13() -> Result<PathBuf> {
    Ok(cache_dir()?.join("pgbouncer-debian-13-1"))
}

/// `usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2`, or what it is called on another processor.
fn loader(root: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(root.join("usr/lib")).ok()?.flatten();
    let files = folders.filter_map(|folder| fs::read_dir(folder.path()).ok());
    let mut paths = files.flatten().flatten().map(|entry| entry.path());
    paths.find(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("ld-linux-"))
    })
}

/// Fetches the packages with settings of their own, so that the system's package lists stay as they are, and unpacks them.
fn unpack(draft: &Path) -> Result<()> {
    let apt = draft.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    fs::write(apt.join("status"), "")?;
    fs::write(
        apt.join("sources.list"),
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main\n",
    )?;
    let at = apt.display();
    fs::write(
        apt.join("apt.conf"),
        format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"-\";\nDir::State::lists \"{at}/lists\";\n\
             Dir::State::status \"{at}/status\";\nDir::Cache \"{at}/cache\";\nAPT::Sandbox::User \"root\";\n"
        ),
    )?;
    for arguments in [&["update"][..], &[&["download"], &PACKAGES[..]].concat()] {
        let mut command = Command::new("apt-get");
        command.arg("-qq").args(arguments);
        run(command
            .env("APT_CONFIG", apt.join("apt.conf"))
            .current_dir(&apt))?;
    }
    for entry in fs::read_dir(&apt)?.flatten() {
        if entry.path().extension().is_some_and(|end| end == "deb") {
            run(Command::new("dpkg-deb")
                .arg("-x")
                .arg(entry.path())
                .arg(draft))?;
        }
    }
    // Manuals.
    fs::remove_dir_all(draft.join("usr/share"))?;
    Ok(fs::remove_dir_all(&apt)?)
}

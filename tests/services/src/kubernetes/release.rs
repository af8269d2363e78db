//! Releases of Kubernetes that clusters can be made of: one for every run of the tests, others for `cargo xtask kubernetes`.

use anyhow::{Context as _, Result};

/// A release, with the module file that it is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KubernetesRelease {
    /// In three parts, without `v`.
    pub version: &'static str,
    /// In `tests/kubernetes/cluster`; its checksums lie beside it, in the file with the ending `.sum`.
    pub(super) module: &'static str,
    /// What the programs are made of.
    pub(super) sources: [&'static str; 3],
}

impl KubernetesRelease {
    /// Names the release that tests run on: `1.36`, `1.36.3`. Unset or empty is [`Self::DEFAULT`].
    pub const VARIABLE: &str = "SIGNAL_TEST_KUBERNETES";

    /// What tests run on where nobody names another.
    pub const DEFAULT: Self = Self {
        version: "1.34.4",
        module: "go.mod",
        sources: [
            include_str!("../../../kubernetes/cluster/main.go"),
            include_str!("../../../kubernetes/cluster/go.mod"),
            include_str!("../../../kubernetes/cluster/go.sum"),
        ],
    };

    /// Every release that can be built, oldest first.
    pub const ALL: [Self; 2] = [
        Self::DEFAULT,
        Self {
            version: "1.36.3",
            module: "kubernetes-1.36.mod",
            sources: [
                include_str!("../../../kubernetes/cluster/main.go"),
                include_str!("../../../kubernetes/cluster/kubernetes-1.36.mod"),
                include_str!("../../../kubernetes/cluster/kubernetes-1.36.sum"),
            ],
        },
    ];

    /// The release that the environment names.
    ///
    /// # Errors
    /// When it names none of them.
    pub fn chosen() -> Result<Self> {
        match std::env::var(Self::VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name).context(Self::VARIABLE),
            _ => Ok(Self::DEFAULT),
        }
    }

    /// A release by its version, or by the first two parts of it.
    ///
    /// # Errors
    /// When there is none; it lists those that there are.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL
            .into_iter()
            .find(|release| [release.version, release.minor()].contains(&name));
        let known = Self::ALL.map(|release| release.version).join(", ");
        found.with_context(|| format!("no Kubernetes {name:?} among {known}"))
    }

    /// The first two parts of the version: `1.34`.
    pub fn minor(self) -> &'static str {
        self.version
            .rsplit_once('.')
            .map_or(self.version, |(minor, _)| minor)
    }

    /// What Go must at least be to build it: the minor of Go 1.
    ///
    /// # Errors
    /// When its module does not say it.
    pub fn go(self) -> Result<u32> {
        let [_, module, _] = self.sources;
        let line = module.lines().find_map(|line| line.strip_prefix("go 1."));
        line.and_then(|rest| rest.split('.').next()?.parse().ok())
            .with_context(|| format!("{} names no version of Go", self.module))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_found_by_its_version_and_by_its_minor_version() -> Result<()> {
        for release in KubernetesRelease::ALL {
            assert_eq!(KubernetesRelease::named(release.version)?, release);
            assert_eq!(KubernetesRelease::named(release.minor())?, release);
            assert!((24..40).contains(&release.go()?));
        }
        let error = KubernetesRelease::named("1.3").expect_err("no such release");
        assert!(error.to_string().contains("1.34.4, 1.36.3"), "{error}");
        Ok(())
    }

    #[test]
    fn each_release_is_built_from_modules_of_its_own_version() {
        for release in KubernetesRelease::ALL {
            let [_, module, sums] = release.sources;
            let wanted = format!("k8s.io/kubernetes v{}\n", release.version);
            assert!(module.contains(&wanted), "{}", release.module);
            assert!(sums.contains(wanted.trim()), "{}", release.module);
            let staging = release.version.replacen("1.", "v0.", 1);
            let replaced = module.lines().filter_map(|line| line.split_once(" => "));
            for (name, by) in replaced {
                assert_eq!(
                    by,
                    format!("{} {staging}", name.trim()),
                    "{}",
                    release.module
                );
            }
        }
    }
}

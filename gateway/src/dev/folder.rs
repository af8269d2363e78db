//! The folder that holds a dev mode's state: readable by its owner alone, since tokens and keys lie in it.
//!
//! Input: `--data-dir`. Output: files that survive a restart, and the addresses by which `dev watch` and `dev produce` find the running gateway.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use url::Url;

const ADDRESSES: &str = "addresses.json";
const LOCK: &str = "lock";

/// An existing folder, by its whole path.
pub(super) struct Folder {
    path: PathBuf,
    /// Held by the one dev mode that serves from here.
    _lock: Option<File>,
}

/// Where the parts of a running dev mode are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Addresses {
    /// `ws://host:port/stream`
    pub(super) stream: String,
    /// `http://host:port` of REST.
    pub(super) rest: String,
    /// `http://host:port` of the admin listener.
    pub(super) admin: String,
    /// `host:port` of the broker.
    pub(super) kafka: String,
    /// The topic that is consumed.
    pub(super) topic: String,
    /// The issuer's key set.
    pub(super) certs: String,
}

impl Folder {
    /// Makes the folder where it is missing, and takes it for this process.
    ///
    /// # Errors
    /// It cannot be made, or another dev mode serves from it.
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let mut folder = Self::open(path)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.file(LOCK))?;
        lock.try_lock()
            .with_context(|| format!("another dev mode serves from {}", folder.path.display()))?;
        folder._lock = Some(lock);
        Ok(folder)
    }

    /// An existing folder.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let found = path
            .canonicalize()
            .with_context(|| format!("no dev mode ever ran in {}", path.display()))?;
        Ok(Self {
            path: found,
            _lock: None,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The URL of an SQLite database in the folder.
    pub(super) fn database(&self, name: &str) -> anyhow::Result<String> {
        // What a URL cannot hold as it is, is escaped.
        let url = Url::from_file_path(self.file(name))
            .ok()
            .context("the data folder has no absolute path")?;
        Ok(format!("sqlite://{}", url.path()))
    }

    /// The content of a secret file, made by `make` when it is not there yet.
    pub(super) fn secret(
        &self,
        name: &str,
        make: impl FnOnce() -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Vec<u8>> {
        let path = self.file(name);
        match std::fs::read(&path) {
            Ok(content) => Ok(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let content = make()?;
                self.write(name, &content)?;
                Ok(content)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Replaces a file at once, so that nobody reads half of it.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let (path, draft) = (self.file(name), self.file(&format!("{name}.draft")));
        let written = || {
            let _ = std::fs::remove_file(&draft);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(content)?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)
        };
        written().with_context(|| format!("cannot write {}", path.display()))
    }

    pub(super) fn write_addresses(&self, addresses: &Addresses) -> anyhow::Result<()> {
        self.write(ADDRESSES, &serde_json::to_vec_pretty(addresses)?)
    }

    /// Where the dev mode that serves from here is, or was.
    pub(super) fn addresses(&self) -> anyhow::Result<Addresses> {
        let text = std::fs::read(self.file(ADDRESSES))
            .with_context(|| format!("no dev mode ever ran in {}", self.path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_is_made_once_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(&dir.path().join("a b")).unwrap();
        let made = folder.secret("key", || Ok(b"first".to_vec())).unwrap();
        let kept = folder.secret("key", || Ok(b"second".to_vec())).unwrap();
        assert_eq!(
            (made.as_slice(), kept.as_slice()),
            (&b"first"[..], &b"first"[..])
        );
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&folder.file("key")), mode(folder.path())),
            (0o600, 0o700)
        );
        assert!(folder.database("x.db").unwrap().ends_with("/a%20b/x.db"));
    }

    #[test]
    fn one_dev_mode_serves_from_a_folder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::take(dir.path()).unwrap();
        let second = Folder::take(dir.path()).err().unwrap();
        assert!(second.to_string().contains("another dev mode"), "{second}");
        drop(first);
        Folder::take(dir.path()).unwrap();
    }
}

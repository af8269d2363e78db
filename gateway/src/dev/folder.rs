//! The folder with the state of dev mode. Only its owner can read it, because it contains tokens and keys.
//!
//! Input: `--data-dir`. Output: files that survive a restart, and the addresses by which `dev watch` and `dev produce` find the running gateway.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use signal_contract::Object;
use url::Url;

const ADDRESSES: &str = "addresses.json";
const LOCK: &str = "lock";

/// An existing folder, by its absolute path.
pub(super) struct Folder {
    path: PathBuf,
    /// The lock of the one dev mode that uses the folder.
    _lock: Option<File>,
}

/// The addresses of a running dev mode.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Addresses {
    /// `ws://host:port/stream`
    pub(super) stream: String,
    /// `http://host:port` of REST.
    pub(super) rest: String,
    /// The playground, with its key.
    #[serde(default)]
    pub(super) playground: String,
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
    /// Creates the folder if it is missing, and locks it for this process.
    ///
    /// # Errors
    /// It cannot be created, or another dev mode uses it.
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let mut folder = Self::open(path)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.file(LOCK))?;
        lock.try_lock()
            .with_context(|| format!("another dev mode uses {}", folder.path.display()))?;
        folder._lock = Some(lock);
        Ok(folder)
    }

    /// Opens an existing folder.
    ///
    /// # Errors
    /// It does not exist.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let found = path
            .canonicalize()
            .with_context(|| format!("dev mode has never run in {}", path.display()))?;
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

    /// Returns the URL of an SQLite database in the folder.
    pub(super) fn database(&self, name: &str) -> anyhow::Result<String> {
        // `Url` escapes what a URL cannot contain.
        let url = Url::from_file_path(self.file(name))
            .ok()
            .context("the data folder has no absolute path")?;
        Ok(format!("sqlite://{}", url.path()))
    }

    /// Returns the content of a secret file; `make` makes it if the file is missing.
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

    /// Replaces a file atomically.
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

    /// Returns the addresses of the dev mode that uses the folder, or used it last.
    pub(super) fn addresses(&self) -> anyhow::Result<Addresses> {
        let text = std::fs::read(self.file(ADDRESSES))
            .with_context(|| format!("dev mode has never run in {}", self.path.display()))?;
        let Object(addresses) = serde_json::from_slice(&text)?;
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_is_made_once_and_only_its_owner_can_read_it() {
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
    fn a_folder_has_one_dev_mode_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::take(dir.path()).unwrap();
        let second = Folder::take(dir.path()).err().unwrap();
        assert!(second.to_string().contains("another dev mode"), "{second}");
        drop(first);
        Folder::take(dir.path()).unwrap();
    }
}

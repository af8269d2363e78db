//! Watches the content of files and folders: the live settings, catalogs and secrets that are mounted as volumes.
//!
//! Content is compared, not times or events: a kubelet swaps a symbolic link, an editor renames, and a network mount sends
//! nothing at all. A poll every [`INTERVAL`] sees each of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
pub use signal_contract::revision as revision_of;
use signal_contract::revision_of_digest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often content is compared.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Returns the revision of everything below a path: `sha256:` and 64 hexadecimal digits. A path that cannot be read counts as empty.
pub fn revision(path: &Path) -> String {
    revision_of_all(&[path.to_owned()])
}

fn revision_of_all(paths: &[PathBuf]) -> String {
    let mut hash = Sha256::new();
    for path in paths {
        feed(path, &mut hash, 0);
    }
    revision_of_digest(&hash.finalize())
}

fn feed(path: &Path, hash: &mut Sha256, depth: u8) {
    if let Ok(entries) = std::fs::read_dir(path) {
        let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        paths.sort();
        for inner in paths {
            // A kubelet's `..data` folders repeat the content of the visible links.
            let hidden = inner
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(".."));
            if !hidden && depth < 4 {
                hash.update(inner.to_string_lossy().as_bytes());
                feed(&inner, hash, depth + 1);
            }
        }
    } else if let Ok(bytes) = std::fs::read(path) {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
}

/// Watches a path until `shutdown`; the receiver holds the current revision and is marked changed at each new one.
/// Must be called inside a tokio runtime.
pub fn watch(
    path: PathBuf,
    interval: Duration,
    shutdown: CancellationToken,
) -> watch::Receiver<String> {
    watch_all(vec![path], interval, shutdown)
}

/// The same for several paths, which have one revision: files that change together are one change.
pub fn watch_all(
    paths: Vec<PathBuf>,
    interval: Duration,
    shutdown: CancellationToken,
) -> watch::Receiver<String> {
    let (sender, receiver) = watch::channel(revision_of_all(&paths));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sender.closed() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let paths = paths.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || revision_of_all(&paths)).await
            else {
                return;
            };
            sender.send_if_modified(|current| {
                let changed = *current != read;
                *current = read;
                changed
            });
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_swapped_symbolic_link_is_a_change_and_a_touch_is_none() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("a", "one"), ("b", "two")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("a", &link).unwrap();
        let mut changes = watch(
            link.clone(),
            Duration::from_millis(10),
            CancellationToken::new(),
        );
        let first = changes.borrow_and_update().clone();
        std::fs::write(dir.path().join("a"), "one").unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(100), changes.changed())
                .await
                .is_err()
        );
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("b", &link).unwrap();
        // The link may be seen while it is missing; the end state is what counts.
        let other = revision(&dir.path().join("b"));
        let seen = changes.wait_for(|seen| *seen == other);
        tokio::time::timeout(Duration::from_secs(20), seen)
            .await
            .unwrap()
            .unwrap();
        assert_ne!(other, first);
    }
}

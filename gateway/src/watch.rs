//! Tells when the content of a file or folder changes: the live settings, catalogs and secrets that are mounted as volumes.
//!
//! Content is compared, not times or events: a kubelet swaps a symbolic link, an editor renames, and a network mount sends
//! nothing at all. A poll every [`INTERVAL`] sees each of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often content is compared.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// A hash of everything below a path: `sha256:` and 64 hexadecimal digits. A path that cannot be read hashes as empty.
pub fn revision(path: &Path) -> String {
    let mut hash = Sha256::new();
    feed(path, &mut hash, 0);
    hex(&hash.finalize())
}

/// The same for a text.
pub fn revision_of(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::from("sha256:"), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn feed(path: &Path, hash: &mut Sha256, depth: u8) {
    if let Ok(entries) = std::fs::read_dir(path) {
        let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        paths.sort();
        for inner in paths {
            // A kubelet's `..data` folders repeat what the visible links show.
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
    let (tell, told) = watch::channel(revision(&path));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tell.closed() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let path = path.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || revision(&path)).await else {
                return;
            };
            tell.send_if_modified(|last| {
                let changed = *last != now;
                *last = now;
                changed
            });
        }
    });
    told
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
        let mut told = watch(
            link.clone(),
            Duration::from_millis(10),
            CancellationToken::new(),
        );
        let first = told.borrow_and_update().clone();
        std::fs::write(dir.path().join("a"), "one").unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(100), told.changed())
                .await
                .is_err()
        );
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("b", &link).unwrap();
        tokio::time::timeout(Duration::from_secs(5), told.changed())
            .await
            .unwrap()
            .unwrap();
        // The link may be seen while it is missing; the end state is what counts.
        for _ in 0..100 {
            if *told.borrow() == revision(&dir.path().join("b")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_ne!(*told.borrow(), first);
        assert_eq!(*told.borrow(), revision(&dir.path().join("b")));
    }
}

//! Looks whether the file went back (`store::epoch`). The file cannot tell: a small one beside it holds what the last look saw.
//!
//! Input: the epoch, and the sum of all versions, which every change raises. Output: the epoch, a new one where the sum is lower than the one beside
//! the file, or belongs to another epoch. Whoever puts an older copy back leaves the small file as it is.

use std::io;
use std::path::{Path, PathBuf};

use sqlx::Row as _;

use super::SqliteStore;
use crate::notification::Epoch;
use crate::store::StoreError;
use crate::store::epoch::fresh;

const LOOK: &str = "SELECT epoch, (SELECT coalesce(sum(version), 0) FROM signal_inbox) AS mark FROM signal_epoch WHERE id = 1";

/// `$1` the epoch.
const WRITE: &str = "UPDATE signal_epoch SET epoch = $1 WHERE id = 1";

/// What is appended to the name of the database's file.
const ENDING: &str = ".seen";

/// What a look sees, and what the small file holds: the epoch and the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    epoch: Epoch,
    mark: i64,
}

impl SqliteStore {
    pub(super) async fn look(&self) -> Result<Epoch, StoreError> {
        let file = self.pools.file.as_deref().map(seen_file);
        // Read first, so that it is never newer than what it is compared with.
        let before = file.as_deref().and_then(read);
        let row = sqlx::query(LOOK).fetch_one(&self.pools.read).await?;
        let mut now = Seen {
            epoch: Epoch(row.try_get("epoch")?),
            mark: row.try_get("mark")?,
        };
        let Some(file) = file else {
            return Ok(now.epoch);
        };
        if before.is_some_and(|before| before.epoch != now.epoch || before.mark > now.mark) {
            now.epoch = fresh();
            let mut tx = self.pools.begin().await?;
            sqlx::query(WRITE)
                .bind(now.epoch.0)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            tracing::warn!(
                epoch = %now.epoch,
                "the database file went back in time: its inboxes begin a new epoch, and clients start over"
            );
        }
        if before != Some(now)
            && let Err(error) = write(&file, now)
        {
            tracing::warn!(%error, path = %file.display(), "what the database holds cannot be noted beside it; a restore may go unnoticed");
        }
        Ok(now.epoch)
    }
}

fn seen_file(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ENDING);
    name.into()
}

/// What was noted; nothing where there is no such file, or none that is understood.
fn read(path: &Path) -> Option<Seen> {
    let text = std::fs::read_to_string(path).ok()?;
    let (epoch, mark) = text.trim().split_once(' ')?;
    Some(Seen {
        epoch: Epoch(epoch.parse().ok()?),
        mark: mark.parse().ok()?,
    })
}

/// Notes it whole or not at all.
fn write(path: &Path, seen: Seen) -> io::Result<()> {
    let new = path.with_extension("seen-new");
    std::fs::write(&new, format!("{} {}\n", seen.epoch.0, seen.mark))?;
    std::fs::rename(new, path)
}

//! Looks where the database is (`store::epoch`): the server's identity and timeline, its position in the log, and which database and table it is.
//!
//! Input: functions that every role may call, unless the server refuses them. Output: the epoch, written again where the database went back.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use crate::notification::Epoch;
use crate::store::StoreError;
use crate::store::epoch::{Finding, Location, Look, fresh};

/// The row, and where it is. A promoted server writes on the new timeline at once; its control file names that only after a checkpoint.
macro_rules! look {
    ($server:literal, $timeline:literal, $mark:literal) => {
        concat!(
            "SELECT e.epoch, e.server, e.timeline, e.relation, ",
            $server,
            " AS server_here, CASE WHEN NOT pg_is_in_recovery() THEN ",
            $timeline,
            " END AS timeline_here, CASE WHEN NOT pg_is_in_recovery() THEN ",
            $mark,
            " END AS mark,
    (SELECT d.oid::text FROM pg_database d WHERE d.datname = current_database()) || '/' || 'signal_inbox'::regclass::oid::text AS relation_here
FROM signal_epoch e WHERE e.id = 1"
        )
    };
}

/// From the one that asks for everything to the one that every server answers.
const LOOKS: [&str; 3] = [
    look!(
        "(SELECT system_identifier::text FROM pg_control_system())",
        "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)",
        "(pg_current_wal_lsn() - '0/0'::pg_lsn)::int8"
    ),
    look!(
        "NULL::text",
        "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)",
        "(pg_current_wal_lsn() - '0/0'::pg_lsn)::int8"
    ),
    look!("NULL::text", "NULL::text", "NULL::int8"),
];

/// `$1` the epoch that was seen, `$2` the new or the same one, `$3` to `$5` the location. Of several instances that saw the same, the first writes.
const WRITE: &str = r"
UPDATE signal_epoch SET epoch = $2, server = coalesce($3, server), timeline = coalesce($4, timeline), relation = coalesce($5, relation)
WHERE id = 1 AND epoch = $1";

/// `$1` the epoch. The row comes with the migration; a restore of data alone may have left it out.
const MAKE: &str =
    "INSERT INTO signal_epoch (id, epoch) VALUES (1, $1) ON CONFLICT (id) DO NOTHING";

/// How often a look begins again because somebody else wrote the row meanwhile.
const TRIES: usize = 4;

/// What the looks of one store know.
#[derive(Default)]
pub(super) struct Looks {
    before: Mutex<Option<Look>>,
    /// Which of [`LOOKS`] the server answers.
    answered: AtomicUsize,
}

impl PostgresStore {
    pub(super) async fn look(&self) -> Result<Epoch, StoreError> {
        for _ in 0..TRIES {
            let Some(look) = self.look_once().await? else {
                self.one(sqlx::query(MAKE).bind(fresh().0)).await?;
                continue;
            };
            let finding = look.finding(self.looks.before.lock().as_ref());
            let epoch = match finding {
                Finding::Same => look.epoch,
                Finding::Note => self.write(&look, look.epoch).await?,
                Finding::WentBack => {
                    let epoch = self.write(&look, fresh()).await?;
                    tracing::warn!(
                        from = ?look.noted, to = ?look.here, %epoch,
                        "the database went back in time, or may have: its inboxes begin a new epoch, and clients start over"
                    );
                    epoch
                }
            };
            // What was written is read again: somebody else may have been first.
            if finding == Finding::Same {
                *self.looks.before.lock() = Some(look);
                return Ok(epoch);
            }
            // The next look compares with nothing: what went back is known.
            *self.looks.before.lock() = None;
        }
        Err(StoreError::unavailable(std::io::Error::other(
            "the row of signal_epoch changes all the time",
        )))
    }

    async fn write(&self, look: &Look, epoch: Epoch) -> Result<Epoch, StoreError> {
        let query = sqlx::query(WRITE)
            .bind(look.epoch.0)
            .bind(epoch.0)
            .bind(&look.here.server)
            .bind(&look.here.timeline)
            .bind(&look.here.relation);
        self.one(query).await?;
        Ok(epoch)
    }

    /// Asks for as much as the server answers; `None` if there is no row.
    async fn look_once(&self) -> Result<Option<Look>, StoreError> {
        loop {
            let asked = self.looks.answered.load(Ordering::Relaxed);
            let row = match self.one(sqlx::query(LOOKS[asked])).await {
                Err(error) if asked + 1 < LOOKS.len() && is_refused(&error) => {
                    self.looks.answered.store(asked + 1, Ordering::Relaxed);
                    tracing::info!(
                        %error,
                        "the database does not tell which server or timeline it is; after a restore, begin a new epoch by hand (docs/admin.md)"
                    );
                    continue;
                }
                Err(error) => {
                    // It was not for a function.
                    self.looks.answered.store(0, Ordering::Relaxed);
                    return Err(error);
                }
                Ok(row) => row,
            };
            return Ok(row.as_ref().map(read).transpose()?);
        }
    }
}

/// Whether the role may not call a function, or the server has none of this name.
fn is_refused(error: &StoreError) -> bool {
    let code = match error.driver() {
        Some(sqlx::Error::Database(error)) => error.code(),
        _ => None,
    };
    code.is_some_and(|code| ["42501", "42883", "0A000"].contains(&&*code))
}

fn read(row: &PgRow) -> Result<Look, sqlx::Error> {
    Ok(Look {
        epoch: Epoch(row.try_get("epoch")?),
        noted: Location {
            server: row.try_get("server")?,
            timeline: row.try_get("timeline")?,
            relation: row.try_get("relation")?,
        },
        here: Location {
            server: row.try_get("server_here")?,
            timeline: row.try_get("timeline_here")?,
            relation: row.try_get("relation_here")?,
        },
        mark: row.try_get("mark")?,
    })
}

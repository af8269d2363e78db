//! The statements that PostgreSQL and SQLite share, and how a row becomes a notification.
//!
//! A page and the counters of its inbox come out of one statement, so they are one snapshot at the price of one round trip.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{ColumnIndex, Decode, Row, Type};

use super::row_id::row_id;
use super::{Filter, Missed, Page};
use crate::id::Id;
use crate::notification::{Counts, Epoch, InboxState, Notification};

/// `$1` recipient.
macro_rules! inbox {
    ($column:literal) => {
        concat!(
            "(SELECT i.",
            $column,
            " FROM signal_inbox i WHERE i.recipient_id = $1)"
        )
    };
}

/// Of the inbox `s`, the row `n` and its text `t`. Numbers are 64 bits wide in every answer. A row without a time of its own was read with the first mark
/// at its `seq` or above.
macro_rules! columns {
    () => {
        "s.recipient_id, CAST(s.inbox AS bigint) AS inbox, CAST(n.seq AS bigint) AS seq, CAST(n.text AS bigint) AS text, \
t.kind, t.title, t.content, t.locale, t.data, t.actor_id, t.organizer_id, t.merchant_id, t.occurred_at, t.created_at, \
coalesce(n.read_at, (SELECT m.read_at FROM signal_mark m WHERE m.inbox = s.inbox AND m.seq >= n.seq ORDER BY m.seq LIMIT 1)) AS read_at"
    };
}

/// `$1` recipient, `$2` seq.
pub(super) const GET: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM signal_inbox s JOIN signal_notification n ON n.inbox = s.inbox JOIN signal_text t ON t.event = n.event AND t.text = n.text \
WHERE s.recipient_id = $1 AND n.seq = $2"
);

/// What is known of an inbox before it changes.
macro_rules! head {
    ($lock:literal) => {
        concat!(
            "SELECT CAST(inbox AS bigint) AS inbox, last_seq, read_seq, unread_count, version FROM signal_inbox WHERE recipient_id = $1",
            $lock
        )
    };
}

/// `$1` recipient.
pub(super) const HEAD: &str = head!("");
/// `$1` recipient. Nobody else changes the inbox until the transaction ends.
pub(super) const LOCK: &str = head!(" FOR UPDATE");

/// `$1` inbox, `$2` seq.
pub(super) const ROW: &str = "SELECT event, CAST(text AS bigint) AS text, read_at FROM signal_notification WHERE inbox = $1 AND seq = $2";

/// `$1` inbox, `$2` above, `$3` up to, `$4` at most: the newest that are unread.
pub(super) const UNREAD: &str = "SELECT CAST(n.seq AS bigint) AS seq, CAST(n.text AS bigint) AS text FROM signal_notification n \
WHERE n.inbox = $1 AND n.seq > $2 AND n.seq <= $3 AND n.read_at IS NULL ORDER BY n.seq DESC LIMIT $4";

/// `$1` inbox, `$2` above.
pub(super) const COUNT_UNREAD: &str = "SELECT count(*) FROM signal_notification n WHERE n.inbox = $1 AND n.seq > $2 AND n.read_at IS NULL";

/// `$1` inbox, `$2` up to, `$3` when.
pub(super) const MARK: &str = "INSERT INTO signal_mark (inbox, seq, read_at) VALUES ($1, $2, $3)";

/// `$1` inbox, `$2` how many fewer are unread, `$3` up to here nothing is. Finds up to where nothing is unread.
pub(super) const CHANGED: &str = "UPDATE signal_inbox SET unread_count = unread_count - $2, version = version + 1, \
read_seq = coalesce((SELECT n.seq - 1 FROM signal_notification n WHERE n.inbox = $1 AND n.seq > $3 AND n.read_at IS NULL ORDER BY n.seq LIMIT 1), last_seq) \
WHERE inbox = $1 RETURNING unread_count, version";

/// `$1` inbox, `$2` seq.
pub(super) const DELETE: &str = "DELETE FROM signal_notification WHERE inbox = $1 AND seq = $2";

/// `$1` event, `$2` inbox, `$3` when.
pub(super) const MARK_DELETED: &str = "INSERT INTO signal_tombstone (event, inbox, deleted_at) VALUES ($1, $2, $3) \
ON CONFLICT (event, inbox) DO UPDATE SET deleted_at = excluded.deleted_at";

/// `$1` event, `$2` text. The last row of a text takes it along.
pub(super) const DELETE_TEXT: &str = "DELETE FROM signal_text WHERE event = $1 AND text = $2 AND NOT EXISTS (\
SELECT 1 FROM signal_notification n WHERE n.event = $1 AND n.text = $2)";

macro_rules! epoch {
    () => {
        "(SELECT epoch FROM signal_epoch WHERE id = 1) AS epoch"
    };
}

/// `$1` recipient. One row always.
pub(super) const COUNTS: &str = concat!(
    "SELECT ",
    epoch!(),
    ", s.unread_count, s.version FROM (SELECT 1 AS one) one LEFT JOIN signal_inbox s ON s.recipient_id = $1"
);

macro_rules! rows {
    ($where:expr, $order:literal) => {
        concat!(
            "SELECT n.seq, n.event, n.text, n.read_at FROM signal_notification n WHERE n.inbox = ",
            inbox!("inbox"),
            " AND ",
            $where,
            " ORDER BY n.seq ",
            $order,
            " LIMIT $3"
        )
    };
}

macro_rules! with_inbox {
    ($rows:expr, $order:literal) => {
        concat!(
            "SELECT ",
            epoch!(),
            ", s.unread_count, s.version, ",
            columns!(),
            " FROM (SELECT 1 AS one) one LEFT JOIN signal_inbox s ON s.recipient_id = $1 LEFT JOIN (",
            $rows,
            ") n ON true LEFT JOIN signal_text t ON t.event = n.event AND t.text = n.text ORDER BY n.seq ",
            $order
        )
    };
}

/// `$1` recipient, `$2` after, `$3` limit. At least one row; without a seq if nothing was missed.
pub(super) const MISSED: &str = with_inbox!(rows!("n.seq > $2", "ASC"), "ASC");

/// All, unread or read ones; each with what else must hold.
macro_rules! page {
    (all $more:expr) => {
        with_inbox!(rows!(concat!("n.seq < $2", $more), "DESC"), "DESC")
    };
    (unread $more:expr) => {
        with_inbox!(
            rows!(
                concat!(
                    "n.seq < $2 AND n.seq > ",
                    inbox!("read_seq"),
                    " AND n.read_at IS NULL",
                    $more
                ),
                "DESC"
            ),
            "DESC"
        )
    };
    // Everything up to `read_seq`, and single ones above it, which have an index of their own.
    (read $more:expr) => {
        with_inbox!(
            concat!(
                "SELECT * FROM (",
                rows!(
                    concat!(
                        "n.seq < $2 AND n.seq > ",
                        inbox!("read_seq"),
                        " AND n.read_at IS NOT NULL",
                        $more
                    ),
                    "DESC"
                ),
                ") single UNION ALL SELECT * FROM (",
                rows!(
                    concat!("n.seq < $2 AND n.seq <= ", inbox!("read_seq"), $more),
                    "DESC"
                ),
                ") below ORDER BY seq DESC LIMIT $3"
            ),
            "DESC"
        )
    };
}

/// By the code of the type first, which is in the row; two types may share one.
macro_rules! of_kind {
    () => {
        " AND n.kind = $5 AND (SELECT k.kind FROM signal_text k WHERE k.event = n.event AND k.text = n.text) = $4"
    };
}

/// `$1` recipient, `$2` before, `$3` limit; `$4` type and `$5` its code if the filter names one. At least one row; without a seq if the page is empty.
pub(super) fn list(filter: &Filter) -> &'static str {
    match (filter.is_read, &filter.kind) {
        (None, None) => page!(all ""),
        (Some(false), None) => page!(unread ""),
        (Some(true), None) => page!(read ""),
        (None, Some(_)) => page!(all of_kind!()),
        (Some(false), Some(_)) => page!(unread of_kind!()),
        (Some(true), Some(_)) => page!(read of_kind!()),
    }
}

/// An inbox as [`HEAD`] and [`LOCK`] find it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// Its number.
    pub(super) inbox: i64,
    pub(super) last_seq: i64,
    /// Up to here nothing is unread.
    pub(super) read_seq: i64,
    pub(super) state: InboxState,
}

/// Reads the answer to [`HEAD`] or [`LOCK`].
pub(super) fn read_head<'r, R: Row>(row: &'r R) -> Result<Head, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(Head {
        inbox: row.try_get("inbox")?,
        last_seq: row.try_get("last_seq")?,
        read_seq: row.try_get("read_seq")?,
        state: read_inbox(row)?,
    })
}

/// How many rows to ask for, so that the answer shows whether there are more.
pub(super) fn one_more(limit: u32) -> i64 {
    i64::from(limit.max(1)) + 1
}

/// Makes a page of the answer to [`list`].
pub(super) fn page(counts: Counts, mut rows: Vec<Notification>, limit: u32) -> Page {
    let more = cut(&mut rows, limit);
    Page {
        next: rows.last().filter(|_| more).map(|last| last.seq),
        rows,
        counts,
    }
}

/// Makes what was missed of the answer to [`MISSED`].
pub(super) fn missed(counts: Counts, mut rows: Vec<Notification>, limit: u32) -> Missed {
    let more = cut(&mut rows, limit);
    Missed { rows, more, counts }
}

fn cut(rows: &mut Vec<Notification>, limit: u32) -> bool {
    let limit = limit.max(1) as usize;
    let more = rows.len() > limit;
    rows.truncate(limit);
    more
}

/// Reads a row of [`MISSED`] or [`list`]: the counters, zero where there is no inbox, and the notification, if any.
pub(super) fn read_with_inbox<'r, R: Row>(
    row: &'r R,
    time: Time<'r, R>,
) -> Result<(Counts, Option<Notification>), sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let there = row.try_get::<Option<i64>, _>("seq")?.is_some();
    let notification = there.then(|| read(row, time)).transpose()?;
    Ok((read_counts(row)?, notification))
}

/// Reads a row of [`COUNTS`], [`MISSED`] or [`list`] without the notification: zero where there is no inbox.
pub(super) fn read_counts<'r, R: Row>(row: &'r R) -> Result<Counts, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let number = |name| {
        row.try_get::<Option<i64>, _>(name)
            .map(Option::unwrap_or_default)
    };
    Ok(Counts {
        inbox: InboxState {
            unread_count: number("unread_count")?,
            version: number("version")?,
        },
        epoch: Epoch(number("epoch")?),
    })
}

/// How a database reads one of its times.
pub(super) type Time<'r, R> = fn(&'r R, &'static str) -> Result<Option<DateTime<Utc>>, sqlx::Error>;

/// Reads the columns of a notification.
pub(super) fn read<'r, R: Row>(row: &'r R, time: Time<'r, R>) -> Result<Notification, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let text = |name| row.try_get::<&str, _>(name);
    let optional = |name| {
        row.try_get::<Option<&str>, _>(name)
            .map(|text| text.map(Into::into))
    };
    let read_at = time(row, "read_at")?;
    Ok(Notification {
        id: read_id(row, row.try_get("inbox")?)?,
        seq: row.try_get("seq")?,
        kind: text("kind")?.into(),
        title: text("title")?.into(),
        content: text("content")?.into(),
        data: RawValue::from_string(text("data")?.to_owned())
            .map_err(|error| decode("data", error))?
            .into(),
        actor_id: optional("actor_id")?,
        recipient_id: text("recipient_id")?.into(),
        organizer_id: optional("organizer_id")?,
        merchant_id: optional("merchant_id")?,
        locale: text("locale")?.into(),
        is_read: read_at.is_some(),
        read_at,
        occurred_at: time(row, "occurred_at")?,
        created_at: time(row, "created_at")?
            .ok_or_else(|| decode("created_at", sqlx::error::UnexpectedNullError))?,
    })
}

/// Reads the counters of an inbox.
pub(super) fn read_inbox<'r, R: Row>(row: &'r R) -> Result<InboxState, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(InboxState {
        unread_count: row.try_get("unread_count")?,
        version: row.try_get("version")?,
    })
}

/// Makes the id of a row of this inbox, of its columns `seq` and `text`.
pub(super) fn read_id<'r, R: Row>(row: &'r R, inbox: i64) -> Result<Id, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(row_id(inbox, row.try_get("seq")?, row.try_get("text")?))
}

fn decode(column: &str, source: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: Box::new(source),
    }
}

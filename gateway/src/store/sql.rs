//! The statements that PostgreSQL and SQLite share, and how a row becomes a notification.
//!
//! A page and the counters of its inbox come out of one statement, so they are one snapshot at the price of one round trip.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{ColumnIndex, Decode, Row, Type};

use super::{Filter, Missed, Page};
use crate::id::Id;
use crate::notification::{Counts, Epoch, InboxState, Notification};

macro_rules! columns {
    () => {
        "n.id, n.recipient_id, n.seq, n.kind, n.title, n.content, n.locale, n.data, n.actor_id, n.organizer_id, n.merchant_id, n.read_at, n.occurred_at, n.created_at"
    };
}

/// `$1` recipient, `$2` id.
pub(super) const GET: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM signal_notification n WHERE n.recipient_id = $1 AND n.id = $2"
);

/// `$1` recipient.
pub(super) const INBOX: &str =
    "SELECT unread_count, version FROM signal_inbox WHERE recipient_id = $1";

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

macro_rules! with_inbox {
    ($where:expr, $order:literal) => {
        concat!(
            "SELECT ",
            epoch!(),
            ", s.unread_count, s.version, ",
            columns!(),
            " FROM (SELECT 1 AS one) one LEFT JOIN signal_inbox s ON s.recipient_id = $1 LEFT JOIN (SELECT ",
            columns!(),
            " FROM signal_notification n WHERE n.recipient_id = $1 AND ",
            $where,
            " ORDER BY n.seq ",
            $order,
            " LIMIT $3) n ON true ORDER BY n.seq ",
            $order
        )
    };
}

/// `$1` recipient, `$2` after, `$3` limit. At least one row; without an id if nothing was missed.
pub(super) const MISSED: &str = with_inbox!("n.seq > $2", "ASC");

/// `$1` recipient, `$2` before, `$3` limit, `$4` type if the filter names one. At least one row; without an id if the page is empty.
pub(super) fn list(filter: &Filter) -> &'static str {
    match (filter.is_read, &filter.kind) {
        (None, None) => with_inbox!("n.seq < $2", "DESC"),
        (Some(false), None) => with_inbox!("n.seq < $2 AND n.read_at IS NULL", "DESC"),
        (Some(true), None) => with_inbox!("n.seq < $2 AND n.read_at IS NOT NULL", "DESC"),
        (None, Some(_)) => with_inbox!("n.seq < $2 AND n.kind = $4", "DESC"),
        (Some(false), Some(_)) => {
            with_inbox!("n.seq < $2 AND n.kind = $4 AND n.read_at IS NULL", "DESC")
        }
        (Some(true), Some(_)) => with_inbox!(
            "n.seq < $2 AND n.kind = $4 AND n.read_at IS NOT NULL",
            "DESC"
        ),
    }
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
    let there = row.try_get::<Option<&str>, _>("id")?.is_some();
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
        id: read_id(row)?,
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

/// Reads a column `id`.
pub(super) fn read_id<'r, R: Row>(row: &'r R) -> Result<Id, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    row.try_get::<&str, _>("id")?
        .parse()
        .map_err(|error| decode("id", error))
}

fn decode(column: &str, source: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: Box::new(source),
    }
}

//! Where notifications are kept and policies are read: PostgreSQL, or SQLite for one instance alone.
//!
//! Input: activities from [`crate::activity`], questions from [`crate::http`] and [`crate::ws`]. Output: rows as domain types.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;

use crate::id::Id;
use crate::notification::{InboxState, NewActivity, Notification};

/// What went wrong, as far as a caller treats it differently.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refuses the value itself, however often it is tried (data exceptions, integrity violations).
    #[error("the database refuses the value: {0}")]
    Refused(#[source] sqlx::Error),
    /// The database cannot be reached, is overloaded, shutting down, or gave up on a conflict: try again.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
}

/// What storing one activity did.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Index into the batch that was given.
    pub activity: usize,
    /// The row as it is.
    pub notification: Notification,
    /// The recipient's inbox right after this row.
    pub inbox: InboxState,
}

/// Which notifications a list holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only read, or only unread ones.
    pub is_read: Option<bool>,
    /// Only of this type.
    pub kind: Option<String>,
}

/// One page, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// The rows, by falling `seq`.
    pub rows: Vec<Notification>,
    /// Give this as `before` for the next page; `None` at the end.
    pub next: Option<i64>,
    /// The inbox in the same snapshot.
    pub inbox: InboxState,
}

/// Which notifications become read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// These; ids of other recipients are ignored.
    Ids(Vec<Id>),
    /// All with this `seq` or a lower one.
    UpTo(i64),
    /// All.
    All,
}

/// What marking as read did.
#[derive(Debug, Clone)]
pub struct Read {
    /// Those that were unread until this call.
    pub ids: Vec<Id>,
    /// When they became read.
    pub read_at: DateTime<Utc>,
    /// The inbox afterwards; the version grew if and only if `ids` is not empty.
    pub inbox: InboxState,
}

/// What a client missed.
#[derive(Debug, Clone)]
pub struct Missed {
    /// By rising `seq`.
    pub rows: Vec<Notification>,
    /// Whether there are more after the last of them.
    pub more: bool,
    /// The inbox in the same snapshot.
    pub inbox: InboxState,
}

/// The notification tables.
///
/// Every method is one transaction. `seq`, unread count and version of a recipient live in one state row, locked in the order of
/// recipients, so that batches that touch the same people never deadlock. Strings are compared byte by byte.
pub trait NotificationStore: Send + Sync + 'static {
    /// Stores one row per (activity, recipient) in the order given, all or none.
    ///
    /// A (source, event, recipient) that has a row, or the tombstone of a deleted one, is left as it is and is **not** in the answer: exactly one
    /// row exists however often this is called. The answer is in the order of the batch; within a recipient `seq` rises in that order without reuse.
    fn insert<'a>(&'a self, batch: &'a [NewActivity], now: DateTime<Utc>) -> BoxFuture<'a, Result<Vec<Stored>, StoreError>>;

    /// A page of a recipient's inbox, newest first, at most `limit` rows with `seq` below `before`.
    fn list<'a>(
        &'a self,
        recipient: &'a str,
        filter: &'a Filter,
        before: Option<i64>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// One notification; `None` for another recipient's as for none.
    fn get<'a>(&'a self, recipient: &'a str, id: Id) -> BoxFuture<'a, Result<Option<Notification>, StoreError>>;

    /// Removes one, leaving a tombstone; `None` if the recipient has no such row.
    fn delete<'a>(&'a self, recipient: &'a str, id: Id, now: DateTime<Utc>) -> BoxFuture<'a, Result<Option<InboxState>, StoreError>>;

    /// Marks as read; what is read already keeps its time.
    fn mark_read<'a>(&'a self, recipient: &'a str, which: &'a Which, now: DateTime<Utc>) -> BoxFuture<'a, Result<Read, StoreError>>;

    /// The counters; zero for a recipient that never got anything.
    fn inbox<'a>(&'a self, recipient: &'a str) -> BoxFuture<'a, Result<InboxState, StoreError>>;

    /// The rows with `seq` above `after`, oldest first, at most `limit`.
    fn missed<'a>(&'a self, recipient: &'a str, after: i64, limit: u32) -> BoxFuture<'a, Result<Missed, StoreError>>;

    /// Removes up to `limit` notifications created before `before`, adjusting the counters of their inboxes, and up to `limit` tombstones that
    /// were left before `tombstones_before`; says how many rows of both went.
    fn purge<'a>(
        &'a self,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Answers when the database does.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// A merchant or an organizer, as `policy_definition.domain` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Domain {
    /// `Merchant_{id}`
    Merchant(String),
    /// `Organizer_{id}`
    Organizer(String),
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Merchant(id) => write!(f, "Merchant_{id}"),
            Self::Organizer(id) => write!(f, "Organizer_{id}"),
        }
    }
}

/// A row of `policy_definition` of variant `policy`, its target resolved to the permission's code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRow {
    /// `User_17`, `Role_3`
    pub subject: String,
    /// `Merchant_42`; `None` matches every domain.
    pub domain: Option<String>,
    /// The permission's code.
    pub code: String,
    /// `create`, `read`, `update`, `delete`, `execute`.
    pub action: String,
    /// False for `deny`.
    pub allow: bool,
}

/// A row of `policy_definition` of variant `group`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRow {
    /// `User_17`
    pub subject: String,
    /// `Role_3`
    pub role: String,
    /// `Merchant_42`; `None` holds in every domain.
    pub domain: Option<String>,
}

/// The platform's policy tables; read only.
pub trait PolicyStore: Send + Sync + 'static {
    /// The distinct `User` subjects with a group row in each domain, in one query. A domain with nobody may be absent from the answer.
    fn users_in<'a>(&'a self, domains: &'a [Domain]) -> BoxFuture<'a, Result<HashMap<Domain, Arc<[String]>>, StoreError>>;

    /// The domains in which this user has a group row.
    fn domains_of<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<Vec<String>, StoreError>>;

    /// Every policy and group row that concerns this user or one of the user's roles. Rows without an action are skipped.
    fn rules_of<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<(Vec<PolicyRow>, Vec<GroupRow>), StoreError>>;
}

/// Both stores, opened.
pub struct Stores {
    /// The notification tables.
    pub notifications: Arc<dyn NotificationStore>,
    /// The policy tables, possibly in another database.
    pub policies: Arc<dyn PolicyStore>,
}

/// How long a purge waits between two rounds.
pub const PURGE_INTERVAL: Duration = Duration::from_secs(600);

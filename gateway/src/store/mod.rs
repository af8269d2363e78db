//! Where notifications and revocations are kept and policies are read: PostgreSQL, or SQLite for one instance alone.
//!
//! Input: activities and changes from [`crate::inbox`], revocations and questions from [`crate::api`] and [`crate::auth`]. Output: rows as domain types.
//! [`open`] chooses by the URL, migrates, and follows a changed `url_file`; [`purge_loop`] removes what is old.

mod batch;
mod epoch;
mod error;
mod migrate;
mod open;
pub mod platform;
mod policy;
mod postgres;
mod retention;
mod revocation;
mod row_id;
mod sql;
mod sqlite;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;

use crate::id::Id;
use crate::notification::{Counts, Epoch, InboxState, NewActivity, Notification};

pub use crate::notification::MAX_READ_IDS;
pub use error::{DatabaseError, OpenError, StoreError};
pub use migrate::{Migrated, migrate};
pub use open::{Stores, open, survey_policies};
pub use policy::{Misread, PolicySurvey, Unread};
pub use retention::{PURGE_INTERVAL, purge_loop};
pub use revocation::{Added, ChangedRevocation, MAX_REVOCATIONS, RevocationStore};

/// One row that was stored.
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
    pub counts: Counts,
}

/// Which notifications become read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotificationSelector {
    /// These; ids of other recipients are ignored.
    Ids(Vec<Id>),
    /// All with this `seq` or a lower one.
    UpTo(i64),
    /// All.
    All,
}

/// What marking as read did.
#[derive(Debug, Clone)]
pub struct MarkedRead {
    /// Those that were unread until this call, newest first; of more than [`MAX_READ_IDS`] the newest.
    pub ids: Vec<Id>,
    /// How many became read, those included that `ids` has no room for.
    pub total: u64,
    /// When they became read, to the millisecond.
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
    pub counts: Counts,
}

/// The answer of a method, as a future.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The notification tables.
///
/// - Every method is one transaction, and what it returns is one snapshot: a page and its counters belong together.
/// - `last_seq`, unread count and version of a recipient live in one state row. A change of an inbox locks that row first, several of them in
///   the order of their recipients, so that batches for the same recipients never deadlock and the counters are always right.
/// - Strings are compared byte by byte. One that holds a NUL character is [`StoreError::Refused`] wherever it is given, and so is JSON with
///   the escape `\u0000`: PostgreSQL keeps neither.
/// - Times are kept to the millisecond.
/// - After [`StoreError::Unavailable`] it is unknown whether a write took effect; each of them may be repeated. [`StoreError::TooMuch`] and
///   [`StoreError::Refused`] left nothing behind.
/// - Dropping a future undoes its transaction, unless the commit was already on its way.
pub trait NotificationStore: Send + Sync + 'static {
    /// Stores one row per (activity, recipient) in the order given, all or none.
    ///
    /// A (source, event, recipient) that has a row, or the tombstone of a deleted one, or came earlier in the batch, is left as it is and is **not** in
    /// the answer: exactly one row exists however often and from however many instances this is called. The answer is in the order of the
    /// batch; within a recipient `seq` rises by one per row in that order, without reuse, and so do unread count and version.
    /// A batch that is [`StoreError::Refused`] left nothing behind; which activity was at fault is found by halving.
    fn insert<'a>(
        &'a self,
        batch: &'a [NewActivity],
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, Vec<Stored>>;

    /// A page of a recipient's inbox, newest first, at most `limit` rows (at least one) with `seq` below `before`.
    ///
    /// Rows that arrive between two pages come before the first: going on at [`Page::next`] repeats and skips nothing.
    fn list<'a>(
        &'a self,
        recipient: &'a str,
        filter: &'a Filter,
        before: Option<i64>,
        limit: u32,
    ) -> StoreFuture<'a, Page>;

    /// One notification; `None` if the recipient has none with this id, as for a notification of another recipient.
    fn get<'a>(&'a self, recipient: &'a str, id: Id) -> StoreFuture<'a, Option<Notification>>;

    /// Removes one, leaving a tombstone; `None` if the recipient has no such row, and then nothing changed.
    fn delete<'a>(
        &'a self,
        recipient: &'a str,
        id: Id,
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, Option<InboxState>>;

    /// Marks as read; what is read already keeps its time.
    fn mark_read<'a>(
        &'a self,
        recipient: &'a str,
        selector: &'a NotificationSelector,
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, MarkedRead>;

    /// The counters; zero for a recipient that never got anything.
    fn inbox<'a>(&'a self, recipient: &'a str) -> StoreFuture<'a, Counts>;

    /// The rows with `seq` above `after`, oldest first, at most `limit` (at least one).
    fn missed<'a>(&'a self, recipient: &'a str, after: i64, limit: u32) -> StoreFuture<'a, Missed>;

    /// Removes up to `limit` of the oldest notifications created before `before`, adjusting the counters of their inboxes (whose versions grow by
    /// one), and up to `limit` tombstones that were left before `tombstones_before`; returns how many rows of both were removed.
    ///
    /// A notification created since `tombstones_before` leaves a tombstone of its own age: redelivery may still bring it. Of several
    /// instances one purges at a time; the others get 0.
    fn purge<'a>(
        &'a self,
        before: Option<DateTime<Utc>>,
        tombstones_before: DateTime<Utc>,
        limit: u32,
    ) -> StoreFuture<'a, u64>;

    /// The highest migration that the database has, this binary's or a later one, as [`Migrated::version`]; `None` before the first.
    fn version(&self) -> StoreFuture<'_, Option<i64>>;

    /// Looks whether the database went back in time since anybody looked, and returns the epoch that every answer carries from here on: a new one if
    /// it did. Of several instances that look at once, one makes it. `epoch.rs` says what is noticed.
    fn look(&self) -> StoreFuture<'_, Epoch>;

    /// Answers when the database does.
    fn ping(&self) -> StoreFuture<'_, ()>;
}

/// A merchant or an organizer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// `Merchant_{id}`
    Merchant(String),
    /// `Organizer_{id}`
    Organizer(String),
}

impl Domain {
    /// Its id alone.
    pub fn id(&self) -> &str {
        match self {
            Self::Merchant(id) | Self::Organizer(id) => id,
        }
    }
}

/// As rows write it, where the settings rename nothing.
impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Merchant(id) => write!(f, "Merchant_{id}"),
            Self::Organizer(id) => write!(f, "Organizer_{id}"),
        }
    }
}

/// What a policy row is about, by the code of its permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// This code; one that ends in `.*` is every code that begins with what stands before the `*`. Of variant `policy`.
    Code(String),
    /// This code and everything below it: `Order` is `Order.find` too, and `*` is every code. Of variant `grant`.
    Resource(String),
}

/// A row of `policy_definition` that says what may or may not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRow {
    /// `User_17`, `Role_3`
    pub subject: String,
    /// `Merchant_42`; `None` matches every domain.
    pub domain: Option<String>,
    /// The permission.
    pub target: Target,
    /// `create`, `read`, `update`, `delete`, `execute`; `None` for every action.
    pub action: Option<String>,
    /// False for `deny`.
    pub allow: bool,
}

/// A row of `policy_definition` that makes somebody, or a role, a member of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRow {
    /// `User_17`; `Role_4` for a role that has everything that another one has.
    pub subject: String,
    /// `Role_3`
    pub role: String,
    /// `Merchant_42`; `None` holds in every domain.
    pub domain: Option<String>,
}

/// The rows that concern one user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// What the user, and the roles of the user, may and may not do.
    pub policies: Vec<PolicyRow>,
    /// The roles of the user, and those that they inherit.
    pub groups: Vec<GroupRow>,
}

/// What lies below what for grants, as pairs of the lower and the higher one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchy {
    /// Codes of permissions.
    pub resources: Vec<(String, String)>,
    /// Actions.
    pub actions: Vec<(String, String)>,
}

/// The platform's policy tables; read only.
///
/// Ids in them may be numbers or text; they are compared and returned as text. A person is named by kind and id: `User` and `17`, as in the rows. Deleted
/// rows are never read, and rows that are not understood grant nothing (authorization.md 4.12).
pub trait PolicyStore: Send + Sync + 'static {
    /// The ids of the distinct `User` subjects that are members of each domain, sorted, in one query. A domain without users is absent from the answer.
    fn users_in<'a>(
        &'a self,
        domains: &'a [Domain],
    ) -> StoreFuture<'a, HashMap<Domain, Arc<[String]>>>;

    /// The distinct merchants and organizers of which this person is a member, sorted.
    fn domains_of<'a>(&'a self, kind: &'a str, user: &'a str) -> StoreFuture<'a, Vec<Domain>>;

    /// Every rule that concerns this person or one of the roles that the person has in any domain.
    fn rules_of<'a>(&'a self, kind: &'a str, user: &'a str) -> StoreFuture<'a, Rules>;

    /// What lies below what; the same for everybody.
    fn hierarchy(&self) -> StoreFuture<'_, Hierarchy>;

    /// What the whole table holds, and which rows of it are not understood. Reads the table once.
    fn survey(&self) -> StoreFuture<'_, PolicySurvey>;
}

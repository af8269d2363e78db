//! Store, then push: every change of an inbox, in the one order that loses nothing.
//!
//! Input: activities from [`crate::activity`], a user's operations from [`crate::ws`], requests from [`crate::api`]. Output: rows in
//! [`crate::store`] and, once they are durable, events with the absolute counts through [`crate::delivery`].
//!
//! A push is best effort: a device that misses one finds the row in the inbox, or by `notification:sync`.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tracing::Span;

use crate::clock::Clock;
use crate::delivery::Delivery;
use crate::dispatch::{Addressee, Audience, Destination, Dispatch, ResyncReason};
use crate::id::Id;
use crate::notification::{InboxState, NewActivity};
use crate::protocol::event::{self, name};
use crate::protocol::shared::created_text;
use crate::store::NotificationStore;

pub use crate::store::{MarkedRead, Missed, NotificationSelector, StoreError, Stored};

/// Most pushes of one event that are sent together; and after how many pushes, or bytes that were encoded for them, the other tasks of the thread get their
/// turn.
const PUSH_BATCH: usize = 1000;
const PUSH_BYTES: usize = 1 << 20;

/// The inboxes of all users. Clones share everything.
#[derive(Clone)]
pub struct Inbox {
    notifications: Arc<dyn NotificationStore>,
    delivery: Delivery,
    clock: Arc<dyn Clock>,
    created_event: Arc<str>,
}

impl Inbox {
    /// Stores in `notifications` and pushes through `delivery`; `clock` gives the times of rows.
    pub fn new(
        notifications: Arc<dyn NotificationStore>,
        delivery: Delivery,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            notifications,
            delivery,
            clock,
            created_event: name::NOTIFICATION_CREATED.into(),
        }
    }

    /// Stores one row per (activity, recipient), all or none, as [`NotificationStore::insert`]. [`Inbox::push_created`] is the second half.
    ///
    /// # Errors
    /// The database refuses a value or does not answer. After the latter the rows may be stored: repeat the call.
    pub async fn insert(&self, activities: &[NewActivity]) -> Result<Vec<Stored>, StoreError> {
        self.notifications
            .insert(activities, self.clock.now())
            .await
    }

    /// Answers when the database does, as [`NotificationStore::ping`].
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.notifications.ping().await
    }

    /// Pushes `notification:created` for rows that were stored, in their order. `spans` has one for each activity.
    ///
    /// What rows of one event have in common is encoded once for all that follow each other.
    pub async fn push_created(&self, stored: &[Stored], spans: &[Span]) {
        let mut rows = stored;
        while !rows.is_empty() {
            let (mut pushed, mut bytes) = (0, 0);
            while pushed < PUSH_BATCH
                && bytes < PUSH_BYTES
                && let Some(first) = rows.first()
            {
                let alike = rows
                    .iter()
                    .take(PUSH_BATCH)
                    .take_while(|row| is_same_event(first, row));
                let group = &rows[..alike.count()];
                let (count, more) = self.push_group(group, &spans[first.activity]);
                pushed += count;
                bytes += more;
                rows = &rows[count..];
            }
            // Many rows leave the bus time to take them.
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Pushes the first of these rows, which are of one event and of another user each: all where that takes few bytes. Returns how many, and about how many
    /// bytes were encoded.
    fn push_group(&self, group: &[Stored], span: &Span) -> (usize, usize) {
        if let [first, _, ..] = group {
            let audience = Audience {
                text: Arc::new(created_text(&first.notification)),
                addressees: group.iter().map(addressee).collect(),
                span: span.clone(),
            };
            if self.delivery.fits(&audience) {
                self.delivery.post_audience(&audience);
                let own = group.len() * size_of::<Addressee<'_>>();
                return (group.len(), audience.longest() + own);
            }
        }
        let (mut count, mut bytes) = (0, 0);
        for row in group {
            let dispatch = self.created(row, span);
            bytes += dispatch.data_text().map_or(0, str::len);
            count += 1;
            self.delivery.post(std::slice::from_ref(&dispatch));
            if bytes >= PUSH_BYTES {
                break;
            }
        }
        (count, bytes)
    }

    fn created(&self, row: &Stored, span: &Span) -> Dispatch {
        // Numbers of an inbox are given one after the other.
        let previous_seq = row.notification.seq - 1;
        let data = json(&event::Created {
            notification: &row.notification,
            previous_seq,
            unread_count: row.inbox.unread_count,
            version: row.inbox.version,
        });
        let destination = Destination::User(row.notification.recipient_id.clone());
        let mut dispatch = Dispatch {
            span: span.clone(),
            ..Dispatch::new(destination, self.created_event.clone(), data)
        };
        if self
            .delivery
            .check_length(&dispatch, "notification")
            .is_err()
        {
            dispatch.event = name::NOTIFICATION_SKIPPED.into();
            dispatch.data = Some(json(&event::Skipped::new(
                &row.notification,
                previous_seq,
                row.inbox,
            )));
        }
        dispatch
    }

    /// Sends `resync` to these users: a push of theirs may be missing.
    pub fn push_resync<'u>(&self, users: impl IntoIterator<Item = &'u str>) {
        let data = event::resync_data(ResyncReason::PushMissed);
        let dispatches: Vec<Dispatch> = users
            .into_iter()
            .map(|user| Dispatch::new(Destination::User(user.into()), name::RESYNC, data.clone()))
            .collect();
        self.delivery.post(&dispatches);
    }

    /// Marks notifications of a user as read. Where any changed, every device of the user receives `notification:read`.
    ///
    /// # Errors
    /// As [`NotificationStore::mark_read`]; nothing is pushed then.
    pub async fn mark_read(
        &self,
        user: &Arc<str>,
        selector: &NotificationSelector,
    ) -> Result<MarkedRead, StoreError> {
        let read = self
            .notifications
            .mark_read(user, selector, self.clock.now())
            .await?;
        if !read.ids.is_empty() {
            self.push(user, name::NOTIFICATION_READ, &read_data(&read));
        }
        Ok(read)
    }

    /// Deletes a notification of a user. Every device of the user receives `notification:deleted`. `None` if the user has no such
    /// notification; nothing changed then.
    ///
    /// # Errors
    /// As [`NotificationStore::delete`]; nothing is pushed then.
    pub async fn delete(&self, user: &Arc<str>, id: Id) -> Result<Option<InboxState>, StoreError> {
        let deleted = self
            .notifications
            .delete(user, id, self.clock.now())
            .await?;
        if let Some(InboxState {
            unread_count,
            version,
        }) = deleted
        {
            let data = event::Deleted {
                ids: &[id],
                unread_count,
                version,
            };
            self.push(user, name::NOTIFICATION_DELETED, &data);
        }
        Ok(deleted)
    }

    /// The notifications of a user with `seq` above `after`, oldest first, at most `limit`: the answer to `notification:sync`.
    ///
    /// # Errors
    /// As [`NotificationStore::missed`].
    pub async fn missed(&self, user: &str, after: i64, limit: u32) -> Result<Missed, StoreError> {
        self.notifications.missed(user, after, limit).await
    }

    fn push(&self, user: &Arc<str>, event: &'static str, data: &impl Serialize) {
        let dispatch = Dispatch::new(Destination::User(user.clone()), event, json(data));
        self.delivery.post(std::slice::from_ref(&dispatch));
    }
}

/// The data of `notification:read`, which is also the answer of REST.
pub fn read_data(read: &MarkedRead) -> event::ReadByUser<'_> {
    event::ReadByUser {
        ids: &read.ids,
        total: read.total,
        read_at: read.read_at,
        unread_count: read.inbox.unread_count,
        version: read.inbox.version,
    }
}

fn addressee(row: &Stored) -> Addressee<'_> {
    Addressee {
        user: &row.notification.recipient_id,
        id: row.notification.id,
        seq: row.notification.seq,
        unread_count: row.inbox.unread_count,
        version: row.inbox.version,
    }
}

/// Whether two rows say the same, to whomever.
fn is_same_event(row: &Stored, other: &Stored) -> bool {
    let (a, b) = (&row.notification, &other.notification);
    row.activity == other.activity
        && a.kind == b.kind
        && a.title == b.title
        && a.content == b.content
        && (Arc::ptr_eq(&a.data, &b.data) || a.data.get() == b.data.get())
        && a.actor_id == b.actor_id
        && a.organizer_id == b.organizer_id
        && a.merchant_id == b.merchant_id
        && a.locale == b.locale
        && (a.is_read, a.read_at, a.occurred_at, a.created_at)
            == (b.is_read, b.read_at, b.occurred_at, b.created_at)
}

fn json(data: &impl Serialize) -> Arc<RawValue> {
    to_raw_value(data)
        .expect("ids, texts, times and numbers serialize")
        .into()
}

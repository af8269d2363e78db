//! What is pushed after each change, and that nothing is pushed where nothing changed.

use super::testing::{Published, inbox};
use super::*;
use crate::store::Stored;
use crate::store::testing::{TestDatabase, activity};

/// An inbox over SQLite, its bus, and the rows of two events of user 17.
async fn start(database: &TestDatabase) -> (Inbox, Arc<Published>, Vec<Stored>) {
    let bus = Arc::new(Published::default());
    let inbox = inbox(database.open().await.notifications, bus.clone());
    let new = [activity("e1", &["17"]), activity("e2", &["17"])];
    let stored = inbox.insert(&new).await.unwrap();
    (inbox, bus, stored)
}

/// The events and data that were pushed, which all go to user 17.
fn pushed(bus: &Published) -> Vec<(String, serde_json::Value)> {
    let dispatches = std::mem::take(&mut *bus.dispatches.lock());
    dispatches
        .iter()
        .map(|push| {
            assert_eq!(push.destination, Destination::User("17".into()));
            let data = serde_json::from_str(push.data_text().unwrap()).unwrap();
            (push.event.to_string(), data)
        })
        .collect()
}

/// protocol.md 3.13.
#[tokio::test]
async fn created_rows_are_pushed_in_their_order_with_the_counts_of_each() {
    let database = TestDatabase::sqlite();
    let (inbox, bus, stored) = start(&database).await;
    assert!(pushed(&bus).is_empty(), "storing alone pushes nothing");
    let spans = [Span::none(), Span::none()];
    inbox.push_created(&stored, &spans).await;
    let seen: Vec<_> = pushed(&bus)
        .into_iter()
        .map(|(event, data)| {
            let numbers =
                ["previousSeq", "unreadCount", "version"].map(|name| data[name].as_i64().unwrap());
            (
                event,
                data["notification"]["seq"].as_i64().unwrap(),
                numbers,
            )
        })
        .collect();
    let created = name::NOTIFICATION_CREATED.to_owned();
    assert_eq!(
        seen,
        [(created.clone(), 1, [0, 1, 1]), (created, 2, [1, 2, 2])]
    );
}

/// protocol.md 3.13 and 9.1.
#[tokio::test]
async fn each_recipient_of_one_event_is_pushed_the_row_and_the_counts_of_its_own() {
    let database = TestDatabase::sqlite();
    let (inbox, bus, _) = start(&database).await;
    let users: Vec<String> = (0..2500)
        .map(|n| format!("u{n}"))
        .chain(["17".into()])
        .collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let stored = inbox
        .insert(&[activity("e3", &users), activity("e4", &["17"])])
        .await
        .unwrap();
    inbox
        .push_created(&stored, &[Span::none(), Span::none()])
        .await;
    let dispatches = std::mem::take(&mut *bus.dispatches.lock());
    assert_eq!(dispatches.len(), stored.len());
    for (push, row) in dispatches.iter().zip(&stored) {
        let user = Arc::clone(&row.notification.recipient_id);
        assert_eq!(push.destination, Destination::User(user));
        let whole = event::Created {
            notification: &row.notification,
            previous_seq: row.notification.seq - 1,
            unread_count: row.inbox.unread_count,
            version: row.inbox.version,
        };
        assert_eq!(&*push.event, name::NOTIFICATION_CREATED);
        assert_eq!(push.data_text().unwrap(), json(&whole).get());
    }
    let seqs: Vec<i64> = dispatches
        .iter()
        .zip(&stored)
        .filter(|(push, _)| push.destination == Destination::User("17".into()))
        .map(|(_, row)| row.notification.seq)
        .collect();
    assert_eq!(seqs, [3, 4], "in their order");
}

#[tokio::test]
async fn marking_as_read_is_pushed_once() {
    let database = TestDatabase::sqlite();
    let (inbox, bus, stored) = start(&database).await;
    let user: Arc<str> = "17".into();
    let selector = NotificationSelector::UpTo(1);
    let read = inbox.mark_read(&user, &selector).await.unwrap();
    let data = serde_json::to_value(read_data(&read)).unwrap();
    assert_eq!(data["ids"], serde_json::json!([stored[0].notification.id]));
    assert_eq!(
        pushed(&bus),
        [(name::NOTIFICATION_READ.to_owned(), data)],
        "devices receive what the caller receives"
    );
    let again = inbox.mark_read(&user, &selector).await.unwrap();
    assert!(again.ids.is_empty() && pushed(&bus).is_empty());
}

#[tokio::test]
async fn deleting_is_pushed_and_a_missing_notification_changes_nothing() {
    let database = TestDatabase::sqlite();
    let (inbox, bus, stored) = start(&database).await;
    let user: Arc<str> = "17".into();
    let id = stored[1].notification.id;
    let left = inbox.delete(&user, id).await.unwrap().unwrap();
    assert_eq!((left.unread_count, left.version), (1, 3));
    let data = serde_json::json!({"ids": [id], "unreadCount": 1, "version": 3});
    assert_eq!(
        pushed(&bus),
        [(name::NOTIFICATION_DELETED.to_owned(), data)]
    );
    assert!(inbox.delete(&user, id).await.unwrap().is_none());
    assert!(pushed(&bus).is_empty());
}

#[tokio::test]
async fn resync_names_its_reason() {
    let database = TestDatabase::sqlite();
    let (inbox, bus, _) = start(&database).await;
    inbox.push_resync(["17"]);
    let data = serde_json::json!({"reason": "push_missed"});
    assert_eq!(pushed(&bus), [(name::RESYNC.to_owned(), data)]);
}

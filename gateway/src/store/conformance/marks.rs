//! Read states against a model of an inbox, and what goes with the last row that needs it.

use super::*;

/// An inbox as its changes say that it is: `seq`, id, type, and when it was read.
#[derive(Default)]
struct Model {
    rows: Vec<(i64, Id, String, Option<DateTime<Utc>>)>,
    version: i64,
}

impl Model {
    /// Marks what fits. Returns the ids, newest first.
    fn mark(&mut self, now: DateTime<Utc>, fits: impl Fn(i64, Id) -> bool) -> Vec<Id> {
        let mut ids = Vec::new();
        for (seq, id, _, read_at) in self.rows.iter_mut().rev() {
            if read_at.is_none() && fits(*seq, *id) {
                *read_at = Some(millis(now));
                ids.push(*id);
            }
        }
        self.version += i64::from(!ids.is_empty());
        ids
    }

    async fn assert_is(&self, store: &dyn NotificationStore) {
        for is_read in [None, Some(true), Some(false)] {
            for kind in [None, Some("even"), Some("odd")] {
                let filter = Filter {
                    is_read,
                    kind: kind.map(Into::into),
                };
                let mut seen = Vec::new();
                let mut before = None;
                loop {
                    let page = store.list("x", &filter, before, 4).await.unwrap();
                    seen.extend(page.rows.iter().map(|n| (n.seq, n.id, n.read_at)));
                    before = page.next;
                    if before.is_none() {
                        break;
                    }
                }
                let mut want: Vec<_> = self.rows.iter().collect();
                want.retain(|(_, _, of, read_at)| {
                    is_read.is_none_or(|is_read| is_read == read_at.is_some())
                        && kind.is_none_or(|kind| kind == of)
                });
                let want: Vec<_> = want.iter().rev().map(|row| (row.0, row.1, row.3)).collect();
                assert_eq!(seen, want, "{filter:?}");
            }
        }
        let unread = self.rows.iter().filter(|row| row.3.is_none()).count();
        assert_eq!(
            store.inbox("x").await.unwrap().inbox,
            counters(unread as i64, self.version)
        );
    }
}

/// Numbers that look random, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

pub(super) async fn every_state_of_an_inbox_is_as_its_changes_say(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let mut dice = Dice(15);
    let mut model = Model::default();
    for round in 0..120 {
        let now = at(round);
        match dice.below(8) {
            0..3 => {
                let kind = if round % 2 == 0 { "even" } else { "odd" };
                let new = NewActivity {
                    kind: kind.into(),
                    ..activity(&format!("e{round}"), &["x", "y"])
                };
                for row in store.insert(&[new], now).await.unwrap() {
                    if &*row.notification.recipient_id == "x" {
                        let n = row.notification;
                        model.rows.push((n.seq, n.id, kind.into(), None));
                        model.version += 1;
                    }
                }
            }
            3 | 4 => {
                let ids: Vec<Id> = (0..dice.below(4))
                    .filter_map(|_| Some(model.rows.get(dice.below(model.rows.len()))?.1))
                    .collect();
                let want = model.mark(now, |_, id| ids.contains(&id));
                let selector = NotificationSelector::Ids(ids);
                let read = store.mark_read("x", &selector, now).await.unwrap();
                assert_eq!((read.total, read.ids), (want.len() as u64, want));
            }
            5 => {
                let up_to = dice.below(round as usize) as i64;
                let want = model.mark(now, |seq, _| seq <= up_to);
                let selector = NotificationSelector::UpTo(up_to);
                let read = store.mark_read("x", &selector, now).await.unwrap();
                assert_eq!((read.total, read.ids), (want.len() as u64, want));
            }
            6 if round % 3 == 0 => {
                let want = model.mark(now, |_, _| true);
                let read = store
                    .mark_read("x", &NotificationSelector::All, now)
                    .await
                    .unwrap();
                assert_eq!((read.total, read.ids), (want.len() as u64, want));
            }
            _ if !model.rows.is_empty() => {
                let (_, id, ..) = model.rows.remove(dice.below(model.rows.len()));
                assert!(store.delete("x", id, now).await.unwrap().is_some());
                model.version += 1;
            }
            _ => {}
        }
        if round % 5 == 0 {
            model.assert_is(&*store).await;
        }
    }
    // Retention takes the oldest; the marks that nothing needs go along.
    let rows = model.rows.len();
    store.purge(Some(at(60)), at(0), 10_000).await.unwrap();
    let left = all(&*store, "x").await;
    assert!(left.len() < rows && !left.is_empty());
    model.rows.retain(|row| left.iter().any(|n| n.id == row.1));
    model.version += 1;
    model.assert_is(&*store).await;
    store.purge(Some(at(1000)), at(0), 10_000).await.unwrap();
    assert_eq!(database.number("SELECT count(*) FROM signal_mark").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM signal_text").await, 0);
}

pub(super) async fn the_last_row_of_a_text_takes_it_along(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let stored = store
        .insert(&[activity("e1", &["x", "y", "z"])], at(0))
        .await
        .unwrap();
    let texts = async || database.number("SELECT count(*) FROM signal_text").await;
    assert_eq!(texts().await, 1, "one text, however many receive it");
    let mut deletions = JoinSet::new();
    for row in stored {
        let (store, n) = (store.clone(), row.notification);
        deletions.spawn(async move { store.delete(&n.recipient_id, n.id, at(1)).await.unwrap() });
    }
    assert!(deletions.join_all().await.iter().all(Option::is_some));
    assert_eq!(texts().await, 0, "whoever deletes at the same time");
    let events = "SELECT count(*) FROM signal_event";
    assert_eq!(database.number(events).await, 1, "tombstones name it");
}

pub(super) async fn a_repetition_after_its_text_was_removed_stays_away(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let event = activity("e1", &["x", "y"]);
    store
        .insert(std::slice::from_ref(&event), at(0))
        .await
        .unwrap();
    assert_eq!(store.purge(Some(at(1)), at(-1), 100).await.unwrap(), 2);
    let counts = async || {
        [
            database.number("SELECT count(*) FROM signal_text").await,
            database
                .number("SELECT count(*) FROM signal_tombstone")
                .await,
            database.number("SELECT count(*) FROM signal_event").await,
        ]
    };
    assert_eq!(counts().await, [0, 2, 1]);
    let again = store.insert(std::slice::from_ref(&event), at(2)).await;
    assert!(again.unwrap().is_empty());
    assert_eq!(counts().await, [0, 2, 1]);
    // Somebody else of the audience, whom no delivery reached before.
    let more = store.insert(&[activity("e1", &["x", "z"])], at(2)).await;
    assert_eq!(&*more.unwrap()[0].notification.recipient_id, "z");
    assert_eq!(counts().await, [1, 2, 1]);
    // A replay is not possible any longer.
    assert_eq!(store.purge(Some(at(3)), at(3), 100).await.unwrap(), 3);
    assert_eq!(counts().await, [0, 0, 0]);
}

pub(super) async fn an_event_of_several_transactions_is_one_event(database: &TestDatabase) {
    let stores = [
        database.open().await.notifications,
        database.open().await.notifications,
    ];
    let people: Vec<String> = (0..600).map(|n| format!("p{n}")).collect();
    let mut tasks = JoinSet::new();
    // Slices of one audience that overlap, some small enough for one statement.
    for task in 0..12_usize {
        let store = stores[task % 2].clone();
        let slice = if task % 3 == 0 {
            &people[task * 40..task * 40 + 60]
        } else {
            &people[task * 20..task * 20 + 300]
        };
        let slice: Arc<[String]> = slice.into();
        tasks.spawn(async move {
            let new = NewActivity {
                recipients: slice,
                ..activity("e1", &[])
            };
            store.insert(&[new], at(0)).await.unwrap().len()
        });
    }
    let stored: usize = tasks.join_all().await.into_iter().sum();
    let number = async |sql| database.number(sql).await;
    assert_eq!(
        number("SELECT count(*) FROM signal_notification").await,
        stored as i64
    );
    assert_eq!(number("SELECT count(*) FROM signal_event").await, 1);
    assert_eq!(
        number("SELECT count(*) FROM signal_inbox WHERE last_seq > 1").await,
        0
    );
}

/// The tables of release 0.1 before the text was stored once.
const BEFORE: &str = "
INSERT INTO signal_inbox (recipient_id, last_seq, unread_count, version) VALUES ('x', 4, 2, 5), ('y', 1, 1, 1), ('nobody', 0, 0, 0);
INSERT INTO signal_notification (id, recipient_id, seq, source, event_id, kind, title, content, locale, data, actor_id, read_at, created_at) VALUES
    ('a', 'x', 1, 'shop', 'e1', 'PAYMENT_SUCCESS', 'title', 'text', 'vi', '{\"a\": 1}', '17', NULL, T),
    ('b', 'x', 3, 'shop', 'e2', 'Đơn', 'title 2', 'text', 'vi', '{}', NULL, T, T),
    ('c', 'x', 4, 'shop', 'e3', 'PAYMENT_SUCCESS', 'title 3', 'text', 'vi', '{}', NULL, NULL, T),
    ('d', 'y', 1, 'shop', 'e1', 'PAYMENT_SUCCESS', 'title', 'text', 'vi', '{\"a\": 1}', '17', NULL, T),
    ('e', 'z', 1, 'shop', 'e1', 'PAYMENT_SUCCESS', 'another locale', 'text', 'en', '{\"a\": 1}', '17', NULL, T);
INSERT INTO signal_tombstone (source, event_id, recipient_id, deleted_at) VALUES ('shop', 'e0', 'x', T), ('shop', 'e1', 'w', T);";

pub(super) async fn what_the_tables_before_hold_is_carried_over(database: &TestDatabase) {
    migrate::up_to(&database.settings, 4).await.unwrap();
    let when = if database.is_postgres() {
        "timestamptz '2027-01-15T08:00:00Z'"
    } else {
        "1800000000000"
    };
    database
        .execute(&BEFORE.replace(" T", &format!(" {when}")))
        .await;
    let epoch = "SELECT epoch FROM signal_epoch";
    let before = database.number(epoch).await;
    let store = database.open().await.notifications;
    assert_ne!(database.number(epoch).await, before, "ids changed");

    let rows = all(&*store, "x").await;
    let seen: Vec<_> = rows
        .iter()
        .map(|n| (n.seq, &*n.kind, &*n.title, n.data.get(), n.is_read))
        .collect();
    assert_eq!(
        seen,
        [
            (4, "PAYMENT_SUCCESS", "title 3", "{}", false),
            (3, "Đơn", "title 2", "{}", true),
            (1, "PAYMENT_SUCCESS", "title", r#"{"a": 1}"#, false),
        ]
    );
    assert_eq!(
        rows[1].read_at,
        Some(millis(at(0))).map(|at| at - TimeDelta::milliseconds(123))
    );
    assert_eq!(
        (rows[2].actor_id.as_deref(), rows[1].actor_id.as_deref()),
        (Some("17"), None)
    );
    assert_eq!(store.inbox("x").await.unwrap().inbox, counters(2, 5));
    assert_eq!(&*all(&*store, "y").await[0].title, "title");
    assert_eq!(&*all(&*store, "z").await[0].title, "another locale");
    for n in &rows {
        assert_eq!(json(&store.get("x", n.id).await.unwrap().unwrap()), json(n));
    }
    for kind in ["PAYMENT_SUCCESS", "Đơn"] {
        let filter = Filter {
            is_read: None,
            kind: Some(kind.into()),
        };
        let page = store.list("x", &filter, None, 9).await.unwrap();
        assert_eq!(page.rows.len(), if kind == "Đơn" { 1 } else { 2 }, "{kind}");
    }
    // What was stored or deleted before is known, and numbers go on.
    let again = [
        activity("e0", &["x"]),
        activity("e1", &["x", "w"]),
        activity("e9", &["x"]),
    ];
    let stored = store.insert(&again, at(1)).await.unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(
        (stored[0].notification.seq, stored[0].inbox),
        (5, counters(3, 6))
    );
}

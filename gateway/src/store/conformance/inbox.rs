//! Reading: pages, filters, states, what was missed.

use super::*;

pub(super) async fn reading_sets_the_time_once_and_counts_once(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let batch: Vec<NewActivity> = (1..=6)
        .map(|n| activity(&format!("e{n}"), &["x", "y"]))
        .collect();
    let stored = store.insert(&batch, at(0)).await.unwrap();
    let id = |recipient: &str, seq: i64| {
        let is =
            |s: &&Stored| &*s.notification.recipient_id == recipient && s.notification.seq == seq;
        stored.iter().find(is).unwrap().notification.id
    };
    let read = store
        .mark_read(
            "x",
            &NotificationSelector::Ids(vec![id("x", 2), id("y", 3), id("x", 2)]),
            at(10),
        )
        .await
        .unwrap();
    assert_eq!((read.ids.as_slice(), read.total), (&[id("x", 2)][..], 1));
    assert_eq!((read.read_at, read.inbox), (millis(at(10)), counters(5, 7)));
    assert_eq!(store.inbox("y").await.unwrap().inbox, counters(6, 6));

    let read = store
        .mark_read(
            "x",
            &NotificationSelector::Ids(vec![id("x", 2), id("y", 3)]),
            at(20),
        )
        .await
        .unwrap();
    assert!(read.ids.is_empty() && read.total == 0);
    assert_eq!(read.inbox, counters(5, 7));

    let read = store
        .mark_read("x", &NotificationSelector::UpTo(4), at(30))
        .await
        .unwrap();
    assert_eq!(read.ids, [id("x", 4), id("x", 3), id("x", 1)]);
    assert_eq!(read.inbox, counters(2, 8));
    let read = store
        .mark_read("x", &NotificationSelector::All, at(40))
        .await
        .unwrap();
    assert_eq!(read.ids, [id("x", 6), id("x", 5)]);
    assert_eq!(read.inbox, counters(0, 9));
    assert_eq!(
        store
            .mark_read("x", &NotificationSelector::All, at(50))
            .await
            .unwrap()
            .inbox
            .version,
        9
    );

    let times: Vec<_> = all(&*store, "x")
        .await
        .iter()
        .map(|n| (n.seq, n.is_read, n.read_at.unwrap()))
        .collect();
    let want: Vec<_> = [(6, 40), (5, 40), (4, 30), (3, 30), (2, 10), (1, 30)]
        .map(|(seq, s)| (seq, true, millis(at(s))))
        .into();
    assert_eq!(times, want);
    assert_counters(&*store, "y").await;
}

pub(super) async fn marking_a_large_inbox_returns_the_newest_ids_and_the_whole_count(
    database: &TestDatabase,
) {
    let store = database.open().await.notifications;
    let count = MAX_READ_IDS as i64 + 200;
    let batch: Vec<NewActivity> = (0..count)
        .map(|n| activity(&format!("e{n}"), &["x"]))
        .collect();
    let stored = store.insert(&batch, at(0)).await.unwrap();
    let read = store
        .mark_read("x", &NotificationSelector::UpTo(count - 1), at(1))
        .await
        .unwrap();
    assert_eq!(
        (read.ids.len(), read.total),
        (MAX_READ_IDS, count as u64 - 1)
    );
    assert_eq!(
        read.inbox,
        InboxState {
            unread_count: 1,
            version: count + 1
        }
    );
    let newest: Vec<Id> = stored
        .iter()
        .rev()
        .skip(1)
        .take(MAX_READ_IDS)
        .map(|s| s.notification.id)
        .collect();
    assert_eq!(read.ids, newest);
    let ids: Vec<Id> = stored.iter().map(|s| s.notification.id).collect();
    assert_eq!(
        store
            .mark_read("x", &NotificationSelector::Ids(ids), at(2))
            .await
            .unwrap()
            .total,
        1
    );
    assert_counters(&*store, "x").await;
}

pub(super) async fn pages_are_stable_while_rows_arrive(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let insert = async |from: i64, to: i64| {
        let batch: Vec<NewActivity> = (from..=to)
            .map(|n| activity(&format!("e{n}"), &["x"]))
            .collect();
        store.insert(&batch, at(0)).await.unwrap();
    };
    insert(1, 10).await;
    let first = store.list("x", &Filter::default(), None, 4).await.unwrap();
    assert_eq!(
        (seqs(&first.rows), first.next),
        (vec![10, 9, 8, 7], Some(7))
    );
    insert(11, 13).await;
    store.delete("x", first.rows[3].id, at(1)).await.unwrap();
    let second = store
        .list("x", &Filter::default(), first.next, 4)
        .await
        .unwrap();
    assert_eq!(
        (seqs(&second.rows), second.next),
        (vec![6, 5, 4, 3], Some(3))
    );
    assert_eq!(second.counts.inbox.unread_count, 12);
    let last = store
        .list("x", &Filter::default(), second.next, 4)
        .await
        .unwrap();
    assert_eq!((seqs(&last.rows), last.next), (vec![2, 1], None));
    // A last page that is just full has no next; a limit of none is one.
    assert_eq!(
        store
            .list("x", &Filter::default(), Some(5), 4)
            .await
            .unwrap()
            .next,
        None
    );
    assert_eq!(
        seqs(
            &store
                .list("x", &Filter::default(), None, 0)
                .await
                .unwrap()
                .rows
        ),
        [13]
    );
    assert!(
        store
            .list("x", &Filter::default(), Some(i64::MIN), 4)
            .await
            .unwrap()
            .rows
            .is_empty()
    );
}

pub(super) async fn lists_are_filtered_by_state_and_type(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let batch: Vec<NewActivity> = (1..=8)
        .map(|n| NewActivity {
            kind: if n % 2 == 0 { "EVEN" } else { "odd" }.into(),
            ..activity(&format!("e{n}"), &["x", "y"])
        })
        .collect();
    store.insert(&batch, at(0)).await.unwrap();
    store
        .mark_read("x", &NotificationSelector::UpTo(5), at(1))
        .await
        .unwrap();
    for (is_read, kind, want) in [
        (None, None, vec![8, 7, 6, 5, 4, 3, 2, 1]),
        (Some(true), None, vec![5, 4, 3, 2, 1]),
        (Some(false), None, vec![8, 7, 6]),
        (None, Some("EVEN"), vec![8, 6, 4, 2]),
        (Some(true), Some("EVEN"), vec![4, 2]),
        (Some(false), Some("odd"), vec![7]),
        (None, Some("ODD"), vec![]),
    ] {
        let filter = Filter {
            is_read,
            kind: kind.map(Into::into),
        };
        let mut seen = Vec::new();
        let mut before = None;
        loop {
            let page = store.list("x", &filter, before, 2).await.unwrap();
            assert_eq!(page.counts.inbox, counters(3, 9));
            seen.extend(seqs(&page.rows));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen, want, "{filter:?}");
    }
}

pub(super) async fn missed_rows_come_in_order_with_whether_there_are_more(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let batch: Vec<NewActivity> = (1..=5)
        .map(|n| activity(&format!("e{n}"), &["x", "y"]))
        .collect();
    store.insert(&batch, at(0)).await.unwrap();
    let missed = store.missed("x", 1, 2).await.unwrap();
    assert_eq!((seqs(&missed.rows), missed.more), (vec![2, 3], true));
    assert_eq!(missed.counts.inbox, counters(5, 5));
    let missed = store.missed("x", 3, 2).await.unwrap();
    assert_eq!((seqs(&missed.rows), missed.more), (vec![4, 5], false));
    let missed = store.missed("x", 5, 2).await.unwrap();
    assert!(missed.rows.is_empty() && !missed.more && missed.counts.inbox.unread_count == 5);
    assert_eq!(
        seqs(&store.missed("x", i64::MIN, 9).await.unwrap().rows),
        [1, 2, 3, 4, 5]
    );
    assert!(
        store
            .missed("x", i64::MAX, 9)
            .await
            .unwrap()
            .rows
            .is_empty()
    );
}

pub(super) async fn an_id_of_another_recipient_is_not_found(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let stored = store
        .insert(&[activity("e1", &["x", "X"])], at(0))
        .await
        .unwrap();
    let id = stored[0].notification.id;
    for stranger in ["X", "x ", "y", "", "%"] {
        assert!(store.get(stranger, id).await.unwrap().is_none());
        assert!(store.delete(stranger, id, at(1)).await.unwrap().is_none());
        assert!(
            store
                .mark_read(stranger, &NotificationSelector::Ids(vec![id]), at(1))
                .await
                .unwrap()
                .ids
                .is_empty()
        );
    }
    assert_eq!(store.inbox("X").await.unwrap().inbox, counters(1, 1));
    assert_eq!(
        json(&store.get("x", id).await.unwrap().unwrap()),
        json(&stored[0].notification)
    );
}

pub(super) async fn a_page_and_its_counters_are_one_snapshot(database: &TestDatabase) {
    let store = database.open().await.notifications;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..60 {
                store
                    .insert(
                        &[
                            activity(&format!("a{n}"), &["x"]),
                            activity(&format!("b{n}"), &["x"]),
                        ],
                        at(0),
                    )
                    .await
                    .unwrap();
            }
        })
    };
    let mut seen = BTreeSet::new();
    while !writer.is_finished() {
        let page = store.list("x", &Filter::default(), None, 3).await.unwrap();
        let newest = page.rows.first().map_or(0, |n| n.seq);
        assert_eq!(
            (page.counts.inbox.unread_count, page.counts.inbox.version),
            (newest, newest)
        );
        let missed = store.missed("x", newest, 100).await.unwrap();
        assert_eq!(
            missed.counts.inbox.version,
            newest + missed.rows.len() as i64
        );
        assert_eq!(newest % 2, 0, "a batch is seen whole");
        seen.insert(newest);
    }
    writer.await.unwrap();
    assert!(seen.len() > 2, "reads fell between writes: {seen:?}");
}

//! Revocations: one row for each user and token, in an order of changes that no reader can miss anything in.

use super::*;
use crate::revocation::Revocation;

const MOST: u64 = 1_000;

fn of_user(user: &str, issued_before_s: i64, until_s: i64) -> Revocation {
    Revocation {
        user_id: Some(user.into()),
        jti: None,
        issued_before_ms: at(issued_before_s).timestamp_millis(),
        until_ms: at(until_s).timestamp_millis(),
    }
}

fn of_token(jti: &str, issued_before_s: i64, until_s: i64) -> Revocation {
    Revocation {
        user_id: None,
        jti: Some(jti.into()),
        ..of_user("", issued_before_s, until_s)
    }
}

async fn in_force(store: &dyn RevocationStore, now_s: i64) -> Vec<Revocation> {
    let changed = store.changed(0, 10_000, at(now_s)).await.unwrap();
    assert!(
        changed.windows(2).all(|w| w[0].version < w[1].version),
        "{changed:?}"
    );
    changed.into_iter().map(|one| one.revocation).collect()
}

/// authorization.md 3.3.
pub(super) async fn revocations_are_widened_read_in_the_order_of_changes_and_purged_past_their_end(
    database: &TestDatabase,
) {
    let stores = [
        database.open().await.revocations,
        database.open().await.revocations,
    ];
    assert!(in_force(&*stores[0], 0).await.is_empty());
    let (first, same_name) = (of_user("1'7\\", 0, 100), of_token("1'7\\", 0, 200));
    for (store, revocation) in stores.iter().zip([&first, &same_name]) {
        let added = store
            .add(std::slice::from_ref(revocation), MOST, at(0))
            .await;
        assert_eq!(added.unwrap(), Added::Stored);
    }
    assert_eq!(
        in_force(&*stores[0], 0).await,
        [first.clone(), same_name.clone()],
        "a user and a token of one name are two"
    );
    let seen = stores[1].changed(0, 1, at(0)).await.unwrap();
    assert_eq!(seen.len(), 1, "as many as were asked for");
    let after = seen[0].version;
    assert_eq!(
        stores[1].changed(after, 10, at(0)).await.unwrap()[0].revocation,
        same_name
    );

    // Neither a narrower one nor a repeated one takes anything back, and a changed one comes last.
    for again in [
        of_user("1'7\\", -50, 90),
        first.clone(),
        of_user("1'7\\", 5, 50),
    ] {
        stores[1].add(&[again], MOST, at(0)).await.unwrap();
    }
    let widened = of_user("1'7\\", 5, 100);
    assert_eq!(
        in_force(&*stores[0], 0).await,
        [same_name.clone(), widened.clone()]
    );
    // Many at once, two of one name among them, each with a version of its own.
    let many: Vec<Revocation> = (0..50)
        .map(|n| of_token(&format!("t{n}"), 0, 300))
        .chain([
            of_token("t7", 9, 10),
            Revocation {
                user_id: None,
                jti: None,
                ..first.clone()
            },
        ])
        .collect();
    stores[0].add(&many, MOST, at(0)).await.unwrap();
    let all = in_force(&*stores[1], 0).await;
    assert_eq!(
        (all.len(), all.contains(&of_token("t7", 9, 300))),
        (52, true)
    );

    assert_eq!(in_force(&*stores[0], 100).await.len(), 51, "one has ended");
    assert_eq!(stores[0].purge_ended(at(100), 10).await.unwrap(), 0);
    assert_eq!(stores[0].purge_ended(at(101), 10).await.unwrap(), 1);
    assert_eq!(stores[0].purge_ended(at(301), 20).await.unwrap(), 20);
    assert_eq!(stores[0].purge_ended(at(301), 100).await.unwrap(), 31);
    stores[0].add(&[first], MOST, at(0)).await.unwrap();
    assert!(
        stores[1].changed(0, 10, at(0)).await.unwrap()[0].version > after,
        "versions are not used again"
    );
    let refused = stores[0].add(&[of_user("a\0b", 0, 100)], MOST, at(0)).await;
    assert!(
        matches!(refused, Err(StoreError::Refused { .. })),
        "{refused:?}"
    );
}

/// authorization.md 3.3.
pub(super) async fn beyond_the_bound_a_revocation_is_refused_and_those_in_force_stay(
    database: &TestDatabase,
) {
    let store = database.open().await.revocations;
    let three: Vec<Revocation> = (0..3).map(|n| of_token(&n.to_string(), 0, 100)).collect();
    assert_eq!(store.add(&three, 3, at(0)).await.unwrap(), Added::Stored);
    let wider = of_token("1", 5, 200);
    assert_eq!(
        store
            .add(std::slice::from_ref(&wider), 3, at(0))
            .await
            .unwrap(),
        Added::Stored,
        "one that is there already takes no place"
    );
    let more = [of_token("1", 5, 300), of_token("3", 0, 100)];
    assert_eq!(store.add(&more, 3, at(0)).await.unwrap(), Added::Full);
    assert_eq!(
        in_force(&*store, 0).await,
        [three[0].clone(), three[2].clone(), wider],
        "nothing of it is stored"
    );
    assert_eq!(
        store.add(&more, 3, at(100)).await.unwrap(),
        Added::Stored,
        "those that have ended take no place"
    );
}

/// However changes overlap, a reader that goes on after the highest version it has seen gets every one.
pub(super) async fn a_reader_that_goes_on_after_what_it_saw_misses_no_revocation(
    database: &TestDatabase,
) {
    const WRITERS: usize = 6;
    const EACH: usize = 25;
    let stores = [
        database.open().await.revocations,
        database.open().await.revocations,
    ];
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = stores[writer % 2].clone();
        writers.spawn(async move {
            for n in 0..EACH {
                let new = of_token(&format!("{writer}/{n}"), 0, 100);
                store
                    .add(&[new, of_user("shared", n as i64, 100)], MOST, at(0))
                    .await
                    .unwrap();
            }
        });
    }
    let mut seen = HashSet::new();
    let mut after = 0;
    let mut ended = false;
    loop {
        let changed = stores[0].changed(after, 7, at(0)).await.unwrap();
        if changed.is_empty() && ended {
            break;
        }
        ended = writers.is_empty();
        after = changed.last().map_or(after, |last| last.version);
        seen.extend(changed.into_iter().filter_map(|one| one.revocation.jti));
        while writers.try_join_next().is_some_and(|done| done.is_ok()) {}
    }
    assert_eq!(seen.len(), WRITERS * EACH);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_commits_late_keeps_later_ones_from_being_seen_before_it() {
    let Some(database) = TestDatabase::postgres("late commit").await else {
        return;
    };
    let store = database.open().await.revocations;
    store
        .add(&[of_token("before", 0, 100)], MOST, at(0))
        .await
        .unwrap();
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect(database.url().expose())
        .await
        .unwrap();
    let mut late = pool.begin().await.unwrap();
    let version: i64 = sqlx::query_scalar(revocation::NEXT_VERSIONS)
        .bind(1_i64)
        .fetch_one(&mut *late)
        .await
        .unwrap();
    let insert = "INSERT INTO signal_revocation (kind, name, issued_before, ends_at, made_at, version) VALUES ('token', 'late', $1, $2, $1, $3)";
    sqlx::query(insert)
        .bind(at(0))
        .bind(at(100))
        .bind(version)
        .execute(&mut *late)
        .await
        .unwrap();
    let other = database.open().await.revocations;
    let later =
        tokio::spawn(async move { other.add(&[of_token("later", 0, 100)], MOST, at(0)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let names = async || {
        let all = in_force(&*store, 0).await.into_iter();
        all.filter_map(|one| one.jti).collect::<Vec<_>>()
    };
    assert_eq!(
        (names().await, later.is_finished()),
        (vec!["before".to_owned()], false)
    );
    late.commit().await.unwrap();
    later.await.unwrap().unwrap();
    assert_eq!(names().await, ["before", "late", "later"]);
}

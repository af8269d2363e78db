//! One suite for every implementation of the storage traits: it gives their docs an exact meaning.
//!
//! Each function below runs against SQLite and against a real PostgreSQL, on a database of its own.

mod concurrency;
mod epoch;
mod failover;
mod framework;
mod inbox;
mod insert;
mod marks;
mod migrations;
mod outage;
mod plans;
mod policies;
mod poolers;
mod purge;
mod revocations;
mod wide;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::task::JoinSet;

use self::concurrency::*;
use self::epoch::*;
use self::framework::*;
use self::inbox::*;
use self::insert::*;
use self::marks::*;
use self::migrations::*;
use self::policies::*;
use self::purge::*;
use self::revocations::*;
use super::testing::{TestDatabase, activity};
use super::*;
use crate::config::{Config, Secret, SecretFile};
use crate::notification::NewActivity;
use platform::{Platform, PolicyDefinition};
use tokio_util::sync::CancellationToken;

/// Waits until there is a value.
async fn until<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = holds().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&super::TestDatabase::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(database) = super::TestDatabase::postgres(stringify!($name)).await {
                    super::$name(&database).await;
                }
            })*
        }
    };
}

conformance! {
    what_is_stored_reads_back_as_it_was_answered,
    an_empty_batch_and_an_empty_inbox_are_nothing,
    a_repeated_event_changes_nothing,
    rows_of_two_instances_at_one_time_have_ids_of_their_own,
    concurrent_duplicates_make_exactly_one_row,
    overlapping_recipients_in_opposite_orders_never_deadlock,
    a_deleted_notification_does_not_come_back,
    reading_sets_the_time_once_and_counts_once,
    marking_a_large_inbox_returns_the_newest_ids_and_the_whole_count,
    pages_are_stable_while_rows_arrive,
    lists_are_filtered_by_state_and_type,
    missed_rows_come_in_order_with_whether_there_are_more,
    an_id_of_another_recipient_is_not_found,
    one_activity_may_have_a_hundred_thousand_recipients,
    a_refused_value_leaves_nothing_behind,
    a_page_and_its_counters_are_one_snapshot,
    purging_keeps_counters_right_and_reuses_no_number,
    counters_agree_with_the_rows_after_everything_at_once,
    an_abandoned_insert_holds_nothing,
    every_state_of_an_inbox_is_as_its_changes_say,
    the_last_row_of_a_text_takes_it_along,
    a_repetition_after_its_text_was_removed_stays_away,
    an_event_of_several_transactions_is_one_event,
    what_the_tables_before_hold_is_carried_over,
    an_older_copy_that_is_put_back_begins_a_new_epoch_every_time,
    an_id_that_was_lost_with_its_history_names_nothing,
    instances_that_look_together_agree_on_one_epoch,
    every_answer_carries_the_epoch_of_its_database,
    instances_migrate_together_and_a_later_schema_is_accepted,
    missing_and_changed_migrations_are_named,
    policies_are_read_with_text_ids,
    policies_are_read_with_number_ids,
    policies_may_live_in_another_database,
    revocations_are_widened_read_in_the_order_of_changes_and_purged_past_their_end,
    beyond_the_bound_a_revocation_is_refused_and_those_in_force_stay,
    a_reader_that_goes_on_after_what_it_saw_misses_no_revocation,
    a_row_of_another_target_with_the_id_of_a_permission_grants_nothing,
    people_of_two_kinds_with_one_id_are_two,
    memberships_have_every_form_and_deleted_rows_none,
    newer_variants_are_read_and_roles_inherit,
    tables_and_columns_have_the_names_of_the_settings,
    a_column_that_is_missing_is_named_and_found_when_it_is_there,
    a_survey_counts_what_is_not_understood,
}

/// The server's own database, which stays as it is, and the name of the test's.
fn server(database: &TestDatabase) -> (TestDatabase, String) {
    let mut url = url::Url::parse(database.url().expose()).unwrap();
    let name = url.path().trim_start_matches('/').to_owned();
    url.set_path("postgres");
    (database.at(url.as_str()), name)
}

/// Ends every session of a database.
async fn terminate(server: &TestDatabase, name: &str) {
    server
        .execute(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        ))
        .await;
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 123_456_789).unwrap()
}

fn millis(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at.timestamp_millis()).unwrap()
}

fn counters(unread_count: i64, version: i64) -> InboxState {
    InboxState {
        unread_count,
        version,
    }
}

fn json(notification: &Notification) -> String {
    serde_json::to_string(notification).unwrap()
}

async fn all(store: &dyn NotificationStore, recipient: &str) -> Vec<Notification> {
    store
        .list(recipient, &Filter::default(), None, 100_000)
        .await
        .unwrap()
        .rows
}

fn seqs(rows: &[Notification]) -> Vec<i64> {
    rows.iter().map(|n| n.seq).collect()
}

/// Asserts that the state row agrees with the rows.
async fn assert_counters(store: &dyn NotificationStore, recipient: &str) {
    let page = store
        .list(recipient, &Filter::default(), None, 100_000)
        .await
        .unwrap();
    assert_eq!(
        page.rows.iter().filter(|n| !n.is_read).count() as i64,
        page.counts.inbox.unread_count,
        "{recipient}"
    );
}

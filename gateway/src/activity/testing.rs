//! What the pipeline's tests share.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::decode::{Activity, Record, decode};
use crate::clock::SystemClock;
use crate::id::IdGenerator;
use crate::notification::{InboxState, NewActivity, Notification};
use crate::store::{
    Domain, Hierarchy, NotificationStore, PolicyStore, PolicySurvey, Rules, StoreError, Stored,
};

/// A record that lies first in partition 0 of topic `t`.
pub(crate) fn record(value: &str) -> Record {
    Record {
        topic: "t".into(),
        partition: 0,
        offset: 0,
        timestamp: Some(0),
        key: None,
        value: Some(value.as_bytes().to_vec()),
        headers: Vec::new(),
    }
}

/// A record's activity.
pub(crate) fn activity(value: &str) -> Activity {
    decode(&record(value)).unwrap()
}

/// People of domains, and a count of the questions asked.
pub(crate) struct Policies {
    people: HashMap<String, Arc<[String]>>,
    queries: AtomicUsize,
}

impl Policies {
    pub(crate) fn new(people: &[(&str, &[&str])]) -> Arc<Self> {
        let people = people
            .iter()
            .map(|(domain, ids)| {
                (
                    (*domain).to_owned(),
                    ids.iter().map(|id| (*id).to_owned()).collect(),
                )
            })
            .collect();
        Arc::new(Self {
            people,
            queries: AtomicUsize::new(0),
        })
    }

    pub(crate) fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }
}

impl PolicyStore for Policies {
    fn users_in<'a>(
        &'a self,
        domains: &'a [Domain],
    ) -> BoxFuture<'a, Result<HashMap<Domain, Arc<[String]>>, StoreError>> {
        self.queries.fetch_add(1, Ordering::SeqCst);
        let found = domains
            .iter()
            .filter_map(|domain| {
                Some((
                    domain.clone(),
                    self.people.get(&domain.to_string())?.clone(),
                ))
            })
            .collect();
        Box::pin(async move { Ok(found) })
    }

    fn domains_of<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Domain>, StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn rules_of<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Rules, StoreError>> {
        Box::pin(async { Ok(Rules::default()) })
    }

    fn hierarchy(&self) -> BoxFuture<'_, Result<Hierarchy, StoreError>> {
        Box::pin(async { Ok(Hierarchy::default()) })
    }

    fn survey(&self) -> BoxFuture<'_, Result<PolicySurvey, StoreError>> {
        Box::pin(async { Ok(PolicySurvey::default()) })
    }
}

/// What the pipeline never asks of the notification tables.
macro_rules! unused_reads {
    () => {
        fn list<'a>(
            &'a self,
            _: &'a str,
            _: &'a crate::store::Filter,
            _: Option<i64>,
            _: u32,
        ) -> futures_util::future::BoxFuture<'a, Result<crate::store::Page, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }

        fn get<'a>(
            &'a self,
            _: &'a str,
            _: crate::id::Id,
        ) -> futures_util::future::BoxFuture<'a, Result<Option<crate::notification::Notification>, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }

        fn delete<'a>(
            &'a self,
            _: &'a str,
            _: crate::id::Id,
            _: chrono::DateTime<chrono::Utc>,
        ) -> futures_util::future::BoxFuture<'a, Result<Option<crate::notification::InboxState>, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }

        fn mark_read<'a>(
            &'a self,
            _: &'a str,
            _: &'a crate::store::NotificationSelector,
            _: chrono::DateTime<chrono::Utc>,
        ) -> futures_util::future::BoxFuture<'a, Result<crate::store::MarkedRead, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }

        fn inbox<'a>(
            &'a self,
            _: &'a str,
        ) -> futures_util::future::BoxFuture<'a, Result<crate::notification::Counts, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }

        fn missed<'a>(
            &'a self,
            _: &'a str,
            _: i64,
            _: u32,
        ) -> futures_util::future::BoxFuture<'a, Result<crate::store::Missed, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }

        fn purge<'a>(
            &'a self,
            _: Option<chrono::DateTime<chrono::Utc>>,
            _: chrono::DateTime<chrono::Utc>,
            _: u32,
        ) -> futures_util::future::BoxFuture<'a, Result<u64, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }

        fn version(&self) -> futures_util::future::BoxFuture<'_, Result<Option<i64>, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }

        fn look(&self) -> futures_util::future::BoxFuture<'_, Result<crate::notification::Epoch, crate::store::StoreError>> {
            $crate::activity::testing::unused()
        }
    };
}
pub(crate) use unused_reads;

/// Rows in memory, one per (source, event, recipient), and the faults a database has.
pub(crate) struct Rows {
    ids: IdGenerator,
    inside: Mutex<Inside>,
    changed: tokio::sync::Notify,
}

#[derive(Default)]
struct Inside {
    rows: Vec<(String, Notification)>,
    seen: HashSet<(String, String, String)>,
    inboxes: HashMap<String, (i64, InboxState)>,
    is_away: bool,
    is_stuck: bool,
    loses_answer: bool,
    most: Option<usize>,
    calls: Vec<usize>,
    failures: usize,
    pings: usize,
}

impl Rows {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            ids: IdGenerator::new(9, Arc::new(SystemClock)),
            inside: Mutex::default(),
            changed: tokio::sync::Notify::new(),
        })
    }

    /// Event ids of a recipient's rows, in the order they were stored.
    pub(crate) fn of(&self, recipient: &str) -> Vec<String> {
        let inside = self.inside.lock();
        inside
            .rows
            .iter()
            .filter(|(_, row)| &*row.recipient_id == recipient)
            .map(|(event, _)| event.clone())
            .collect()
    }

    pub(crate) fn all(&self) -> Vec<Notification> {
        self.inside
            .lock()
            .rows
            .iter()
            .map(|(_, row)| row.clone())
            .collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.inside.lock().rows.len()
    }

    /// Activities of each call that was answered with rows or a refusal.
    pub(crate) fn calls(&self) -> Vec<usize> {
        self.inside.lock().calls.clone()
    }

    pub(crate) fn failures(&self) -> usize {
        self.inside.lock().failures
    }

    /// How often it was asked whether it answers.
    pub(crate) fn pings(&self) -> usize {
        self.inside.lock().pings
    }

    pub(crate) fn is_away(&self) -> bool {
        self.inside.lock().is_away
    }

    /// Nothing answers while away.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.inside.lock().is_away = is_away;
    }

    /// More activities than this in one call are too much at once.
    pub(crate) fn set_most(&self, most: Option<usize>) {
        self.inside.lock().most = most;
    }

    /// Rows are stored, and the answer never comes while stuck.
    pub(crate) fn set_stuck(&self, is_stuck: bool) {
        self.inside.lock().is_stuck = is_stuck;
        self.changed.notify_waiters();
    }

    /// The rows of the next call are stored, and its answer is lost.
    pub(crate) fn lose_answer(&self) {
        self.inside.lock().loses_answer = true;
    }

    fn store(&self, batch: &[NewActivity], now: DateTime<Utc>) -> Result<Vec<Stored>, StoreError> {
        let mut inside = self.inside.lock();
        if inside.is_away {
            inside.failures += 1;
            return Err(crate::store::testing::unavailable("no connection"));
        }
        if inside.most.is_some_and(|most| batch.len() > most) {
            inside.failures += 1;
            return Err(crate::store::testing::too_much("no answer in time"));
        }
        inside.calls.push(batch.len());
        if batch
            .iter()
            .any(|activity| activity.title.contains("REFUSED"))
        {
            return Err(crate::store::testing::refused("a title that is refused"));
        }
        let mut stored = Vec::new();
        for (at, new) in batch.iter().enumerate() {
            for recipient in new.recipients.iter() {
                if !inside.seen.insert((
                    new.source.clone(),
                    new.event_id.clone(),
                    recipient.clone(),
                )) {
                    continue;
                }
                let (seq, inbox) = inside.inboxes.entry(recipient.clone()).or_default();
                *seq += 1;
                *inbox = InboxState {
                    unread_count: inbox.unread_count + 1,
                    version: inbox.version + 1,
                };
                let notification = Notification {
                    id: self.ids.next().unwrap(),
                    seq: *seq,
                    kind: new.kind.as_str().into(),
                    title: new.title.as_str().into(),
                    content: new.content.as_str().into(),
                    data: new.data.clone().into(),
                    actor_id: new.actor_id.as_deref().map(Into::into),
                    recipient_id: recipient.as_str().into(),
                    organizer_id: new.organizer_id.as_deref().map(Into::into),
                    merchant_id: new.merchant_id.as_deref().map(Into::into),
                    locale: new.locale.as_str().into(),
                    is_read: false,
                    read_at: None,
                    occurred_at: new.occurred_at,
                    created_at: now,
                };
                let inbox = *inbox;
                inside
                    .rows
                    .push((new.event_id.clone(), notification.clone()));
                stored.push(Stored {
                    activity: at,
                    notification,
                    inbox,
                });
            }
        }
        if std::mem::take(&mut inside.loses_answer) {
            inside.failures += 1;
            return Err(crate::store::testing::unavailable("the answer is lost"));
        }
        Ok(stored)
    }
}

impl NotificationStore for Rows {
    fn insert<'a>(
        &'a self,
        batch: &'a [NewActivity],
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<Vec<Stored>, StoreError>> {
        Box::pin(async move {
            let outcome = self.store(batch, now);
            loop {
                let changed = self.changed.notified();
                if !self.inside.lock().is_stuck {
                    return outcome;
                }
                changed.await;
            }
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            let mut inside = self.inside.lock();
            inside.pings += 1;
            if inside.is_away {
                return Err(crate::store::testing::unavailable("no connection"));
            }
            Ok(())
        })
    }

    unused_reads!();
}

pub(crate) fn unused<T: Send + 'static>() -> BoxFuture<'static, Result<T, StoreError>> {
    panic!("the pipeline asks the notification tables nothing but insert")
}

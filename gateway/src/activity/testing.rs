//! What the pipeline's tests share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;

use super::decode::{Activity, Record, decode};
use crate::store::{Domain, GroupRow, PolicyRow, PolicyStore, StoreError};

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
        let people = people.iter().map(|(domain, ids)| ((*domain).to_owned(), ids.iter().map(|id| (*id).to_owned()).collect())).collect();
        Arc::new(Self { people, queries: AtomicUsize::new(0) })
    }

    pub(crate) fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }
}

impl PolicyStore for Policies {
    fn users_in<'a>(&'a self, domains: &'a [Domain]) -> BoxFuture<'a, Result<HashMap<Domain, Arc<[String]>>, StoreError>> {
        self.queries.fetch_add(1, Ordering::SeqCst);
        let found = domains.iter().filter_map(|domain| Some((domain.clone(), self.people.get(&domain.to_string())?.clone()))).collect();
        Box::pin(async move { Ok(found) })
    }

    fn domains_of<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<String>, StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn rules_of<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(Vec<PolicyRow>, Vec<GroupRow>), StoreError>> {
        Box::pin(async { Ok((Vec::new(), Vec::new())) })
    }
}

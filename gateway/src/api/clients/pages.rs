//! One page of the connections of all instances.
//!
//! All instances are asked at once. Connections are spread over them as a rule, so each is asked for about twice its share of the page at first, and
//! only those that turn out to hold more of the page are asked a second time. What travels is a few pages at most, however many instances there are.
//! Input: a [`ClientQuery`]. Output: [`Listed`], for [`super::list`].

use std::cmp::Ordering;

use super::Client;
use crate::api::ApiState;
use crate::bus::{Answers, Ask, BusError, Reply};
use crate::client::{ClientInfo, ClientQuery};
use crate::id::Id;

/// How many connections beyond twice its share an instance is asked for: small shares vary more.
const SPARE: usize = 4;

/// Connections in the order of their ids' text, and who did not answer.
pub(super) struct Listed {
    /// At most as many as were asked for.
    pub(super) clients: Vec<Client>,
    /// Live instances that did not answer in time.
    pub(super) missing: Vec<String>,
}

/// Reads the first connections that match, of all instances or of the one that is named.
///
/// # Errors
/// [`BusError`] when the other instances cannot be asked.
pub(super) async fn read(
    state: &ApiState,
    query: &ClientQuery,
    only: Option<&str>,
) -> Result<Listed, BusError> {
    let here = async {
        if only.is_none_or(|only| only == &*state.instance) {
            state.hub.list(query).await
        } else {
            Vec::new()
        }
    };
    let first = ClientQuery {
        limit: match only {
            Some(_) => query.limit,
            None => first_share(query.limit, state.bus.last_seen().len()),
        },
        ..query.clone()
    };
    let (here, elsewhere) = tokio::join!(here, ask(state, &first, only));
    let mut page = Page::new(query.limit);
    page.add(&state.instance, here, query.limit);
    let mut missing = page.take(elsewhere?, first.limit);
    if let Some(rest) = page.rest() {
        let second = ClientQuery {
            after: Some(rest.after),
            limit: rest.limit,
            ..query.clone()
        };
        let question = Ask::List {
            query: second.clone(),
        };
        let answers = state.bus.ask_named(&question, &rest.instances).await?;
        missing.extend(page.take(answers, second.limit));
        missing.sort();
        missing.dedup();
    }
    Ok(Listed {
        clients: page.clients,
        missing,
    })
}

async fn ask(
    state: &ApiState,
    query: &ClientQuery,
    only: Option<&str>,
) -> Result<Answers, BusError> {
    let question = Ask::List {
        query: query.clone(),
    };
    match only {
        Some(only) if only == &*state.instance => Ok(Answers::default()),
        Some(only) => state.bus.ask_named(&question, &[only.to_owned()]).await,
        None => state.bus.ask(&question).await,
    }
}

/// Returns for how many connections each of so many others is asked at first.
fn first_share(wanted: usize, others: usize) -> usize {
    (2 * wanted.div_ceil(others.max(1)) + SPARE).min(wanted)
}

/// What is known of a page.
struct Page {
    /// How many connections it takes.
    wanted: usize,
    /// The first of those that were listed.
    clients: Vec<Client>,
    /// Instances that listed as many as they were asked for, and the last id of each: they may hold more.
    open: Vec<(String, Id)>,
}

/// What is still to be asked: these instances, for connections behind this one, and so many at most.
#[derive(Debug, PartialEq)]
struct Rest {
    instances: Vec<String>,
    after: Id,
    limit: usize,
}

impl Page {
    fn new(wanted: usize) -> Self {
        Self {
            wanted,
            clients: Vec::new(),
            open: Vec::new(),
        }
    }

    /// Adds what the others listed, each asked for `limit`; returns who did not answer.
    fn take(&mut self, answers: Answers, limit: usize) -> Vec<String> {
        for (instance, reply) in answers.replies {
            if let Reply::Clients { clients } = reply {
                self.add(&instance, clients, limit);
            }
        }
        answers.missing
    }

    /// Adds what an instance listed in order, asked for `limit`.
    fn add(&mut self, instance: &str, listed: Vec<ClientInfo>, limit: usize) {
        if let Some(last) = listed.last().filter(|_| listed.len() >= limit) {
            self.open.push((instance.to_owned(), last.id));
        }
        let listed = listed
            .into_iter()
            .map(|client| Client::on(instance, client));
        self.clients.extend(listed);
        self.clients.sort_unstable_by(|a, b| by_text(a.id, b.id));
        // Two instances of one name are asked together a second time.
        self.clients.dedup_by_key(|client| client.id);
        self.clients.truncate(self.wanted);
    }

    /// Returns what is still to be asked; `None` where nobody can hold more of the page.
    fn rest(&self) -> Option<Rest> {
        let end = self.clients.get(self.wanted - 1).map(|last| last.id);
        let behind = |last: Id| end.is_none_or(|end| by_text(last, end) == Ordering::Less);
        let behind: Vec<&(String, Id)> =
            self.open.iter().filter(|(_, last)| behind(*last)).collect();
        let after = behind
            .iter()
            .map(|(_, last)| *last)
            .min_by(|a, b| by_text(*a, *b))?;
        // Up to there every instance has listed all.
        let known = self
            .clients
            .iter()
            .filter(|client| by_text(client.id, after) != Ordering::Greater)
            .count();
        Some(Rest {
            instances: behind.into_iter().map(|(name, _)| name.clone()).collect(),
            after,
            limit: self.wanted - known,
        })
    }
}

fn by_text(a: Id, b: Id) -> Ordering {
    a.as_str().cmp(b.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(ids: &[&str]) -> Vec<ClientInfo> {
        ids.iter()
            .map(|id| ClientInfo {
                id: id.parse().unwrap(),
                user_id: None,
                state: "authenticated".into(),
                encrypted: false,
                rooms: Vec::new(),
                connected_at: String::new(),
                last_seen_at: String::new(),
                address: None,
            })
            .collect()
    }

    fn ids(page: &Page) -> Vec<&str> {
        page.clients
            .iter()
            .map(|client| client.id.as_str())
            .collect()
    }

    #[test]
    fn each_instance_is_asked_for_twice_its_share_and_some_more() {
        for (wanted, others, share) in [(51, 0, 51), (51, 2, 51), (51, 31, 8), (101, 31, 12)] {
            assert_eq!(first_share(wanted, others), share, "{others} others");
        }
    }

    #[test]
    fn only_instances_that_may_hold_more_of_the_page_are_asked_again() {
        let mut page = Page::new(5);
        page.add("here", listed(&["5", "6"]), 5);
        page.add("a", listed(&["1", "2"]), 2);
        page.add("b", listed(&["8", "9"]), 2);
        page.add("c", listed(&["7"]), 2);
        assert_eq!(ids(&page), ["1", "2", "5", "6", "7"]);
        let rest = Rest {
            instances: vec!["a".into()],
            after: "2".parse().unwrap(),
            limit: 3,
        };
        assert_eq!(page.rest(), Some(rest));
        let before = std::mem::take(&mut page.open);
        assert_eq!(before.len(), 2, "a and b listed as many as they were asked");
        page.add("a", listed(&["3", "4"]), 3);
        assert_eq!(ids(&page), ["1", "2", "3", "4", "5"]);
        assert_eq!(page.rest(), None);
    }

    #[test]
    fn a_page_that_is_not_full_asks_all_that_may_hold_more() {
        let mut page = Page::new(9);
        page.add("a", listed(&["1", "4"]), 2);
        page.add("b", listed(&["2", "3"]), 2);
        page.add("c", listed(&[]), 2);
        let rest = page.rest().unwrap();
        assert_eq!(rest.instances, ["a", "b"]);
        // 1, 2 and 3 are known; 4 comes again, and counts once.
        assert_eq!((rest.after.as_str(), rest.limit), ("3", 6));
        page.open.clear();
        page.add("a", listed(&["4", "5"]), 6);
        page.add("b", listed(&[]), 6);
        assert_eq!(ids(&page), ["1", "2", "3", "4", "5"]);
        assert_eq!(page.rest(), None);
    }
}

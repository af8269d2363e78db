//! Permissions: Casbin over the rows of the platform's policy tables, for client management and for joining rooms (authorization.md 4 and 5).
//!
//! Input: a principal, and rows from [`crate::store::PolicyStore`]. Output: whether it is allowed, or an error when the store is not available; an
//! outage never allows anything. The rows of a user are kept for a short time, so a decision is never older than `policy.cache_secs`. A row without a
//! domain is loaded with domain `*`, which matches every domain; a deny wins.
//!
//! A question is about one code and one action, and rows that do not cover them are left out before the enforcer is loaded: it decides by subject, roles and
//! domain. One enforcer is loaded with a user's rows for each question. An enforcer per user, with its own script engine, would take more memory than the
//! user's connection.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use casbin::{CoreApi, DefaultModel, Enforcer, MemoryAdapter};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::recent::Recent;
use crate::config::{self, Unmatched};
use crate::id::Id;
use crate::principal::{self, Principal};
use crate::protocol::room::DEFAULT_ROOMS;
use crate::store::{Domain, Hierarchy, PolicyRow, PolicyStore, Rules, StoreError, Target};

/// The domain of a row without one, and of a question about the whole cluster.
const EVERY_DOMAIN: &str = "*";
/// Users whose rows are kept.
const MAX_USERS: usize = 8192;
/// Answers that are kept per user.
const MAX_ANSWERS: usize = 64;
/// Rooms that are decided before the enforcer is free for other callers.
const ROOMS_AT_ONCE: usize = 32;
/// The role of a domain's members in the enforcer. Roles of the tables begin with `Role_`, so none has this name.
const MEMBER: &str = "Member";
/// Client ids have at least this many characters from February 2025 on.
const MIN_CLIENT_ID: usize = 10;

/// The model of authorization.md 4, for rows that cover the code and the action of the question. The cheap comparison comes first.
const MODEL: &str = r#"
[request_definition]
r = sub, dom

[policy_definition]
p = sub, dom, eft

[role_definition]
g = _, _, _

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = (p.dom == "*" || r.dom == p.dom) && g(r.sub, p.sub, r.dom)
"#;

/// Decides what a principal may do. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn PolicyStore>,
    always_allow_roles: Vec<String>,
    unmatched: Unmatched,
    cache: Duration,
    rules: UserCache<UserRules>,
    /// What lies above what, under the one name `""`.
    above: UserCache<Above>,
    domains: UserCache<Vec<Domain>>,
    enforcer: Mutex<Enforcer>,
}

/// A user's rows, and the answers that follow from them.
struct UserRules {
    rows: Rules,
    answers: Mutex<Recent<(String, String), bool>>,
}

impl Access {
    /// Makes an access check over the rows of `store`.
    pub fn new(store: Arc<dyn PolicyStore>, policy: &config::Policy, rooms: config::Rooms) -> Self {
        let cache = Duration::from_secs(policy.cache_secs);
        let inner = Inner {
            store,
            always_allow_roles: policy.always_allow_roles.clone(),
            unmatched: rooms.unmatched,
            cache,
            rules: UserCache::new(cache),
            above: UserCache::new(cache),
            domains: UserCache::new(cache / 6),
            enforcer: Mutex::new(enforcer()),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Returns whether the principal may do `action` (`read`, `execute`, `update`, `delete`, ...) on the permission `code`, in the whole cluster.
    ///
    /// Client management has no domain, so the question is asked in domain `*`: only rows without a domain count, and only roles that are held
    /// without one (authorization.md 4.7). A grant or a deny within one merchant or organizer does not count for the connections of everyone.
    ///
    /// # Errors
    /// The store is not available.
    pub async fn may(
        &self,
        principal: &Principal,
        code: &str,
        action: &str,
    ) -> Result<bool, StoreError> {
        if principal
            .roles
            .iter()
            .any(|role| self.inner.always_allow_roles.contains(role))
        {
            return Ok(true);
        }
        let subject = subject(principal);
        let store = &self.inner.store;
        let read = || async {
            let rows = store.rules_of(&principal.kind, &principal.subject).await?;
            Ok(UserRules {
                rows,
                answers: Mutex::new(Recent::new(MAX_ANSWERS)),
            })
        };
        let decided = self.inner.rules.get(&subject, read).await?;
        let rows = &decided.rows;
        let has_grants = rows
            .policies
            .iter()
            .any(|row| matches!(row.target, Target::Resource(_)));
        if has_grants {
            // Such an answer is not kept: it also depends on what was read at another time.
            let read = || async { Ok(Above::from(store.hierarchy().await?)) };
            let above = self.inner.above.get(&Arc::from(""), read).await?;
            return Ok(self.decide(rows, &subject, &above.of(code, action)));
        }
        let question = (code.to_owned(), action.to_owned());
        if let Some(answer) = decided.answers.lock().get(&question) {
            return Ok(*answer);
        }
        let answer = self.decide(rows, &subject, &Above::default().of(code, action));
        decided.answers.lock().insert(question, answer);
        Ok(answer)
    }

    fn decide(&self, rows: &Rules, subject: &str, question: &Question<'_>) -> bool {
        // Rows of one merchant or organizer cannot match domain `*`, and a user may have thousands of them.
        let policies = rows
            .policies
            .iter()
            .filter(|row| row.domain.is_none() && question.is_covered_by(row))
            .map(|row| {
                [
                    row.subject.as_str(),
                    EVERY_DOMAIN,
                    if row.allow { "allow" } else { "deny" },
                ]
            });
        let groups = rows
            .groups
            .iter()
            .filter(|row| row.domain.is_none())
            .map(|row| [row.subject.as_str(), &row.role, EVERY_DOMAIN]);
        let mut enforcer = self.inner.enforcer.lock();
        load(&mut enforcer, policies, groups);
        enforces(&enforcer, subject, EVERY_DOMAIN)
    }

    /// Returns for each of `rooms`, in their order, whether the principal may join it on the connection `client` (authorization.md 5).
    ///
    /// | room | who may join |
    /// |---|---|
    /// | the connection's own id, `ws-default`, `ws-notification` | this connection |
    /// | `user:{id}` | that subject, if it is a `User` |
    /// | `merchant:{id}`, `organizer:{id}` | a member of that merchant or organizer |
    /// | shaped like a client id: 10 to 12 of `0-9A-Za-z`, no leading zero, below 2^70 | nobody, because messages to that client would be received |
    /// | any other | as `rooms.unmatched` says |
    ///
    /// Every client id made from February 2025 on has at least ten characters, so shorter words are ordinary names. Roles on the always-allow list
    /// do not count here.
    ///
    /// # Errors
    /// The store is not available, and a room needs it.
    pub async fn may_join(
        &self,
        principal: &Principal,
        client: Id,
        rooms: &[&str],
    ) -> Result<Vec<bool>, StoreError> {
        let rules: Vec<Rule> = rooms.iter().map(|room| Rule::of(room, client)).collect();
        if !rules.iter().any(|rule| matches!(rule, Rule::MemberOf(_))) {
            return Ok(rules
                .iter()
                .map(|rule| self.without_store(rule, principal))
                .collect());
        }
        let subject = subject(principal);
        let read = || {
            let store = &self.inner.store;
            store.domains_of(&principal.kind, &principal.subject)
        };
        let domains = self.inner.domains.get(&subject, read).await?;
        let mut answers = Vec::with_capacity(rules.len());
        for some in rules.chunks(ROOMS_AT_ONCE) {
            let member_of = self.memberships(&subject, some, &domains);
            answers.extend(
                some.iter()
                    .zip(member_of)
                    .map(|(rule, member)| member || self.without_store(rule, principal)),
            );
        }
        Ok(answers)
    }

    /// Returns for each room whether it belongs to a merchant or organizer of the user. Loads only the memberships in question, for a few rooms at a
    /// time, so that neither a user with thousands of merchants nor a long list of rooms blocks the enforcer for others.
    fn memberships(&self, subject: &str, rules: &[Rule], domains: &[Domain]) -> Vec<bool> {
        let asked: Vec<Option<(&Domain, String)>> = rules
            .iter()
            .map(|rule| match rule {
                Rule::MemberOf(domain) => Some((domain, domain.to_string())),
                _ => None,
            })
            .collect();
        let policy = [MEMBER, EVERY_DOMAIN, "allow"];
        let held = asked
            .iter()
            .flatten()
            .filter(|(domain, _)| domains.contains(domain));
        let mut enforcer = self.inner.enforcer.lock();
        load(
            &mut enforcer,
            [policy].into_iter(),
            held.map(|(_, name)| [subject, MEMBER, name]),
        );
        let answer = |domain: &Option<(&Domain, String)>| {
            domain
                .as_ref()
                .is_some_and(|(_, name)| enforces(&enforcer, subject, name))
        };
        asked.iter().map(answer).collect()
    }

    /// Returns how often [`Access::may_join`] must be asked again for a connection's rooms, so that a lost right takes the connection out of the room
    /// within `policy.cache_secs`: memberships are read again after a sixth of that time, and this interval is two thirds of it.
    pub fn recheck_interval(&self) -> Duration {
        (self.inner.cache * 2 / 3).max(Duration::from_secs(1))
    }

    fn without_store(&self, rule: &Rule, principal: &Principal) -> bool {
        match rule {
            Rule::Own => true,
            Rule::User(id) => *principal.kind == *principal::USER && **id == *principal.subject,
            Rule::ForeignClient | Rule::MemberOf(_) => false,
            Rule::Unmatched => self.inner.unmatched == Unmatched::Allow,
        }
    }
}

/// Who may join a room, by its name.
#[derive(Debug, PartialEq, Eq)]
enum Rule {
    Own,
    User(String),
    MemberOf(Domain),
    ForeignClient,
    Unmatched,
}

impl Rule {
    fn of(room: &str, client: Id) -> Self {
        if room == client.as_str() || DEFAULT_ROOMS.contains(&room) {
            return Self::Own;
        }
        match room.split_once(':') {
            Some(("user", id)) => Self::User(id.to_owned()),
            Some(("merchant", id)) => Self::MemberOf(Domain::Merchant(id.to_owned())),
            Some(("organizer", id)) => Self::MemberOf(Domain::Organizer(id.to_owned())),
            _ if is_shaped_like_a_client_id(room) => Self::ForeignClient,
            _ => Self::Unmatched,
        }
    }
}

/// Returns whether a name could be a client id. Ids have no leading zeros and 70 bits.
fn is_shaped_like_a_client_id(room: &str) -> bool {
    room.len() >= MIN_CLIENT_ID
        && !room.starts_with('0')
        && room.parse::<Id>().is_ok_and(|id| id.number() < 1 << 70)
}

/// The name of a person in rows: people of two kinds with the same id are two.
fn subject(principal: &Principal) -> Arc<str> {
    format!("{}_{}", principal.kind, principal.subject).into()
}

/// What lies above each code and each action: a grant of what lies above covers what lies below (authorization.md 4.10).
#[derive(Default)]
struct Above {
    resources: HashMap<String, Vec<String>>,
    actions: HashMap<String, Vec<String>>,
}

impl From<Hierarchy> for Above {
    fn from(hierarchy: Hierarchy) -> Self {
        let grouped = |edges: Vec<(String, String)>| {
            let mut above: HashMap<String, Vec<String>> = HashMap::new();
            for (lower, higher) in edges {
                above.entry(lower).or_default().push(higher);
            }
            above
        };
        Self {
            resources: grouped(hierarchy.resources),
            actions: grouped(hierarchy.actions),
        }
    }
}

impl Above {
    fn of<'q>(&'q self, code: &'q str, action: &'q str) -> Question<'q> {
        let dots = code.match_indices('.').map(|(at, _)| &code[..at]);
        Question {
            code,
            action,
            resources: reach([code, "*"].into_iter().chain(dots), &self.resources),
            actions: reach([action].into_iter(), &self.actions),
        }
    }
}

/// Returns these and everything above them.
fn reach<'q>(
    from: impl Iterator<Item = &'q str>,
    above: &'q HashMap<String, Vec<String>>,
) -> HashSet<&'q str> {
    let mut reached: HashSet<&str> = from.collect();
    let mut next: Vec<&str> = reached.iter().copied().collect();
    while let Some(one) = next.pop() {
        for higher in above.get(one).into_iter().flatten() {
            if reached.insert(higher) {
                next.push(higher);
            }
        }
    }
    reached
}

/// A code and an action, and what lies above them.
struct Question<'q> {
    code: &'q str,
    action: &'q str,
    resources: HashSet<&'q str>,
    actions: HashSet<&'q str>,
}

impl Question<'_> {
    fn is_covered_by(&self, row: &PolicyRow) -> bool {
        let (code, action) = match &row.target {
            Target::Code(granted) => (
                code_match(self.code, granted),
                row.action.as_deref() == Some(self.action),
            ),
            Target::Resource(granted) => (
                self.resources.contains(granted.as_str()),
                row.action
                    .as_deref()
                    .is_some_and(|action| self.actions.contains(action)),
            ),
        };
        code && (action || row.action.is_none())
    }
}

/// Returns whether the granted code covers the asked one: `WebSocketClient.*` covers every code that begins with `WebSocketClient.`.
fn code_match(asked: &str, granted: &str) -> bool {
    asked == granted
        || granted
            .strip_suffix('*')
            .is_some_and(|prefix| prefix.ends_with('.') && asked.starts_with(prefix))
}

fn enforcer() -> Enforcer {
    let made = async {
        let model = DefaultModel::from_str(MODEL).await?;
        Enforcer::new(model, MemoryAdapter::default()).await
    };
    let enforcer = made
        .now_or_never()
        .expect("a model in memory needs no waiting")
        .expect("the model is a constant that tests load");
    // In the domain of the question, roles of that domain and of `*` count.
    enforcer.get_role_manager().write().matching_fn(
        None,
        Some(|asked, held| held == EVERY_DOMAIN || asked == held),
    );
    enforcer
}

/// Replaces all rows of the enforcer.
fn load<'r>(
    enforcer: &mut Enforcer,
    policies: impl Iterator<Item = [&'r str; 3]>,
    groups: impl Iterator<Item = [&'r str; 3]>,
) {
    let model = enforcer.get_mut_model();
    model.clear_policy();
    for line in policies {
        model.add_policy("p", "p", line.map(str::to_owned).to_vec());
    }
    for line in groups {
        model.add_policy("g", "g", line.map(str::to_owned).to_vec());
    }
    enforcer
        .build_role_links()
        .expect("every group line has the three fields of the model");
}

/// Returns Casbin's answer; a question that it cannot evaluate is denied.
fn enforces(enforcer: &Enforcer, subject: &str, domain: &str) -> bool {
    enforcer.enforce((subject, domain)).unwrap_or_else(|error| {
        tracing::error!(%error, "policy evaluation failed; access denied");
        false
    })
}

/// What was read of each user, kept for a short time.
struct UserCache<T> {
    keep_for: Duration,
    entries: Mutex<Recent<Arc<str>, Arc<CacheEntry<T>>>>,
}

struct CacheEntry<T> {
    /// When reading started, and what was read.
    read: OnceCell<(Instant, Arc<T>)>,
    failures: AtomicU64,
    last_failure: Mutex<Option<StoreError>>,
}

impl<T> UserCache<T> {
    fn new(keep_for: Duration) -> Self {
        Self {
            keep_for,
            entries: Mutex::new(Recent::new(MAX_USERS)),
        }
    }

    /// Returns what is kept, or reads it with `read`. Callers for the same user at the same time wait for one read and share its result or failure.
    /// Cancel safe: when the reading caller is dropped, the next one reads.
    async fn get<'s, F>(
        &self,
        user: &Arc<str>,
        read: impl FnOnce() -> F,
    ) -> Result<Arc<T>, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + 's,
    {
        let entry = self.entry(user);
        let failures = entry.failures.load(Ordering::Acquire);
        let reading = async {
            if entry.failures.load(Ordering::Acquire) > failures
                && let Some(error) = entry.last_failure.lock().clone()
            {
                // The read of the caller before failed, so those who waited for it fail too instead of trying one by one.
                return Err(error);
            }
            let began = Instant::now();
            match read().await {
                Ok(value) => Ok((began, Arc::new(value))),
                Err(error) => {
                    *entry.last_failure.lock() = Some(error.clone());
                    entry.failures.fetch_add(1, Ordering::Release);
                    Err(error)
                }
            }
        };
        Ok(Arc::clone(&entry.read.get_or_try_init(|| reading).await?.1))
    }

    fn entry(&self, user: &Arc<str>) -> Arc<CacheEntry<T>> {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(user)
            && entry
                .read
                .get()
                .is_none_or(|(began, _)| began.elapsed() < self.keep_for)
        {
            return Arc::clone(entry);
        }
        let entry = Arc::new(CacheEntry {
            read: OnceCell::new(),
            failures: AtomicU64::new(0),
            last_failure: Mutex::new(None),
        });
        entries.insert(Arc::clone(user), Arc::clone(&entry));
        entry
    }
}

#[cfg(test)]
mod tests;

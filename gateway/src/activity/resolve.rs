//! The recipients of activities: the audiences of a whole batch become lists of users with one query.
//!
//! Input: audiences from [`super::decode`]. Output: one list of recipients per activity, or the reason why there is none.
//! The answer of the platform's table is used for `policy.cache_secs`, since the table gives no change signal. Its ids are measured as those of a record are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::decode::{Activity, Audience};
use super::poison::{DeadLetterReason, Poison};
use crate::metrics::Metrics;
use crate::principal::{MAX_USER_ID_BYTES, is_user_id};
use crate::store::{Domain, PolicyStore, StoreError};

/// Most ids of users that are kept between batches, over all merchants and organizers.
const MAX_CACHED_IDS: usize = 1_000_000;
/// Most merchants and organizers that are kept between batches.
const MAX_CACHED_DOMAINS: usize = 50_000;
/// How often it is logged at most that members are passed over.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Recipients of one activity, or why it has none.
pub type Resolved = Result<Arc<[String]>, Poison>;

/// Looks recipients up, and caches them for a while.
pub struct Resolver {
    policies: Arc<dyn PolicyStore>,
    keep: Duration,
    max_recipients: usize,
    metrics: Arc<Metrics>,
    cache: Mutex<Cache>,
    /// When it was last logged that members are passed over.
    warned: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Cache {
    known: HashMap<Domain, (Instant, Arc<[String]>)>,
    ids: usize,
}

impl Resolver {
    /// Answers are used for `keep`; an activity with more than `max_recipients` is poison.
    pub fn new(
        policies: Arc<dyn PolicyStore>,
        keep: Duration,
        max_recipients: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            policies,
            keep,
            max_recipients,
            metrics,
            cache: Mutex::default(),
            warned: Mutex::default(),
        }
    }

    /// Finds the recipients of each activity, in the order given, with at most one query.
    ///
    /// The actor stands in for an audience that is absent or empty.
    ///
    /// # Errors
    /// The policy database does not answer, or refuses one of the ids.
    pub async fn resolve(&self, activities: &[&Activity]) -> Result<Vec<Resolved>, StoreError> {
        let wanted: HashSet<Domain> = activities
            .iter()
            .filter_map(|activity| domain(&activity.audience))
            .collect();
        let people = self.people(wanted).await?;
        Ok(activities
            .iter()
            .map(|activity| self.recipients(activity, &people))
            .collect())
    }

    /// Answers when the database of the policy tables does.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ping(&self) -> Result<(), StoreError> {
        // Nobody is in it, and the statement is the one that lanes wait for.
        let nobody = [Domain::Merchant("0".into())];
        self.policies.users_in(&nobody).await.map(drop)
    }

    /// Frees answers that are too old to be used.
    pub fn forget_old(&self) {
        self.cache.lock().forget_old(Instant::now());
    }

    async fn people(
        &self,
        wanted: HashSet<Domain>,
    ) -> Result<HashMap<Domain, Arc<[String]>>, StoreError> {
        let mut people = HashMap::with_capacity(wanted.len());
        let now = Instant::now();
        let mut unknown = Vec::new();
        {
            let cache = self.cache.lock();
            for domain in wanted {
                match cache.known.get(&domain) {
                    Some((until, ids)) if *until > now => {
                        people.insert(domain, ids.clone());
                    }
                    _ => unknown.push(domain),
                }
            }
        }
        if unknown.is_empty() {
            return Ok(people);
        }
        let mut found = self.policies.users_in(&unknown).await?;
        for (domain, ids) in &mut found {
            self.measure(domain, ids);
        }
        let until = Instant::now() + self.keep;
        let mut cache = self.cache.lock();
        for domain in unknown {
            let ids = found.remove(&domain).unwrap_or_else(|| Arc::from([]));
            if !self.keep.is_zero() {
                cache.put(domain.clone(), until, ids.clone());
            }
            people.insert(domain, ids);
        }
        Ok(people)
    }

    /// Takes out the ids that no token may name, which an inbox cannot have either: one of them must not keep an activity from the other members.
    fn measure(&self, domain: &Domain, ids: &mut Arc<[String]>) {
        let is_bad = |id: &&String| !is_user_id(id);
        let Some(first) = ids.iter().find(is_bad) else {
            return;
        };
        let number = ids.iter().filter(is_bad).count();
        self.metrics
            .values_dropped
            .get_or_create(&Metrics::kind("member"))
            .inc_by(number as u64);
        let start: String = first.chars().take(40).collect();
        tracing::debug!(%domain, bytes = first.len(), %start, "a member's id in the platform's table is no user id");
        let now = Instant::now();
        let mut warned = self.warned.lock();
        if warned.is_none_or(|last| now - last >= WARN_INTERVAL) {
            *warned = Some(now);
            tracing::warn!(
                %domain,
                number,
                bytes = first.len(),
                "members in the platform's table have ids that are no user ids (1 to {MAX_USER_ID_BYTES} bytes without control characters): they are passed over"
            );
        }
        drop(warned);
        *ids = ids.iter().filter(|id| is_user_id(id)).cloned().collect();
    }

    fn recipients(&self, activity: &Activity, people: &HashMap<Domain, Arc<[String]>>) -> Resolved {
        let found = match &activity.audience {
            Audience::Users(ids) => Some(ids),
            other => domain(other).and_then(|domain| people.get(&domain)),
        };
        match found.filter(|ids| !ids.is_empty()) {
            Some(ids) if ids.len() > self.max_recipients => Err(Poison::new(
                DeadLetterReason::TooManyRecipients,
                format!(
                    "{} recipients, more than the {} that are allowed",
                    ids.len(),
                    self.max_recipients
                ),
            )),
            Some(ids) => Ok(ids.clone()),
            None => match &activity.actor_id {
                Some(actor) => Ok(Arc::from([actor.clone()])),
                None => Err(Poison::new(
                    DeadLetterReason::Nobody,
                    "no recipient was found and there is no actorId",
                )),
            },
        }
    }
}

impl Cache {
    fn put(&mut self, domain: Domain, until: Instant, ids: Arc<[String]>) {
        if ids.len() > MAX_CACHED_IDS {
            return;
        }
        if self.ids + ids.len() > MAX_CACHED_IDS || self.known.len() >= MAX_CACHED_DOMAINS {
            // The whole cache is dropped: what is still in use comes back with the next query, and keeping an order would cost every hit.
            *self = Self::default();
        }
        self.ids += ids.len();
        if let Some((_, old)) = self.known.insert(domain, (until, ids)) {
            self.ids -= old.len();
        }
    }

    fn forget_old(&mut self, now: Instant) {
        self.known.retain(|_, (until, _)| *until > now);
        self.known.shrink_to_fit();
        self.ids = self.known.values().map(|(_, ids)| ids.len()).sum();
    }
}

fn domain(audience: &Audience) -> Option<Domain> {
    match audience {
        Audience::Organizer(id) => Some(Domain::Organizer(id.clone())),
        Audience::Merchant(id) => Some(Domain::Merchant(id.clone())),
        Audience::Users(_) | Audience::Actor => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::decode::{Record, decode};
    use crate::activity::testing::Policies;

    fn activity(fields: &str) -> Activity {
        decode(&Record {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            timestamp: None,
            key: None,
            value: Some(format!(r#"{{"type":"T",{fields}}}"#).into_bytes()),
            headers: Vec::new(),
        })
        .unwrap()
    }

    async fn one(resolver: &Resolver, fields: &str) -> Resolved {
        resolver
            .resolve(&[&activity(fields)])
            .await
            .unwrap()
            .remove(0)
    }

    /// authorization.md 6.1 and 6.3.
    #[tokio::test(start_paused = true)]
    async fn a_batch_costs_one_query_and_the_next_none_until_the_answer_is_old() {
        let policies = Policies::new(&[("Merchant_1", &["a", "b"]), ("Organizer_1", &["c"])]);
        let resolver = Resolver::new(
            policies.clone(),
            Duration::from_secs(30),
            10,
            Metrics::new(),
        );
        let batch = [
            activity(r#""recipientType":"merchant","merchantId":1"#),
            activity(r#""recipientType":"org","organizerId":"1""#),
            activity(r#""recipientType":"merchant","merchantId":"1""#),
            activity(r#""recipientType":"merchant","merchantId":"2","actorId":"z""#),
        ];
        let batch: Vec<_> = batch.iter().collect();
        let got: Vec<_> = resolver
            .resolve(&batch)
            .await
            .unwrap()
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            got.iter().map(|ids| ids.join(",")).collect::<Vec<_>>(),
            ["a,b", "c", "a,b", "z"]
        );
        assert!(
            Arc::ptr_eq(&got[0], &got[2]),
            "the list of a merchant is shared, not copied"
        );
        assert_eq!(policies.queries(), 1);
        resolver.resolve(&batch).await.unwrap();
        assert_eq!(policies.queries(), 1, "an empty audience is cached as well");
        tokio::time::advance(Duration::from_secs(31)).await;
        resolver.resolve(&batch).await.unwrap();
        assert_eq!(policies.queries(), 2);
    }

    /// authorization.md 6.2.
    #[tokio::test]
    async fn an_empty_audience_means_the_actor_and_no_actor_means_poison() {
        let resolver = Resolver::new(Policies::new(&[]), Duration::ZERO, 2, Metrics::new());
        assert_eq!(*one(&resolver, r#""actorId":17"#).await.unwrap(), ["17"]);
        assert_eq!(
            *one(
                &resolver,
                r#""actorId":17,"recipientType":"users","recipientIds":[]"#
            )
            .await
            .unwrap(),
            ["17"]
        );
        assert_eq!(
            *one(
                &resolver,
                r#""actorId":17,"recipientType":"users","recipientIds":["b","a","b"]"#
            )
            .await
            .unwrap(),
            ["b", "a"]
        );
        assert_eq!(
            one(&resolver, r#""recipientType":"org","organizerId":9"#)
                .await
                .unwrap_err()
                .reason,
            DeadLetterReason::Nobody
        );
        let three = r#""recipientType":"users","recipientIds":["a","b","c"]"#;
        assert_eq!(
            one(&resolver, three).await.unwrap_err().reason,
            DeadLetterReason::TooManyRecipients
        );
    }

    /// authorization.md 6.4.
    #[tokio::test]
    async fn a_member_whose_id_is_no_user_id_is_passed_over_counted_and_keeps_nobody_from_the_others()
     {
        let long = "x".repeat(5000);
        let policies = Policies::new(&[
            ("Merchant_1", &["a", &long, "", "b\u{7}", "c"]),
            ("Organizer_1", &[&long]),
        ]);
        let metrics = Metrics::new();
        let resolver = Resolver::new(policies, Duration::from_secs(30), 2, metrics.clone());
        let merchant = r#""recipientType":"merchant","merchantId":1"#;
        assert_eq!(*one(&resolver, merchant).await.unwrap(), ["a", "c"]);
        let organizer = r#""recipientType":"org","organizerId":1,"actorId":"z""#;
        assert_eq!(*one(&resolver, organizer).await.unwrap(), ["z"]);
        let dropped = &metrics.values_dropped;
        assert_eq!(dropped.get_or_create(&Metrics::kind("member")).get(), 4);
    }

    #[test]
    fn the_cache_is_bounded_by_the_people_in_it() {
        let mut cache = Cache::default();
        let many: Arc<[String]> = vec![String::new(); MAX_CACHED_IDS / 2 + 1].into();
        let until = Instant::now();
        for n in 0..3 {
            cache.put(Domain::Merchant(n.to_string()), until, many.clone());
            cache.put(
                Domain::Merchant(n.to_string()),
                until,
                Arc::from(["x".to_owned()]),
            );
            assert!(cache.ids <= MAX_CACHED_IDS, "{}", cache.ids);
        }
        cache.put(
            Domain::Merchant("all".into()),
            until,
            vec![String::new(); MAX_CACHED_IDS + 1].into(),
        );
        assert!(!cache.known.contains_key(&Domain::Merchant("all".into())));
    }

    #[test]
    fn answers_that_are_too_old_hold_no_memory() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let ids: Arc<[String]> = Arc::from(["x".to_owned()]);
        for (n, until) in [now, now + Duration::from_secs(1)].into_iter().enumerate() {
            cache.put(Domain::Merchant(n.to_string()), until, ids.clone());
        }
        cache.forget_old(now);
        assert_eq!((cache.ids, cache.known.len()), (1, 1));
        cache.forget_old(now + Duration::from_secs(1));
        assert_eq!((cache.ids, cache.known.capacity()), (0, 0));
    }
}

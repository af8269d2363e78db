//! Revocations: tokens that are refused before they expire, by user or by `jti` (authorization.md 3).
//!
//! Input: revocations from REST, from other instances and from the database; until when what is known was whole. Output: whether one matches a principal,
//! and whether enough is known to accept a token. A revocation is never taken back, it only ends. So one that arrives twice, late or in another order
//! leaves the same state.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::principal::{Principal, TokenId};
use crate::revocation::Revocation;

/// Most revocations that are held: what the database keeps at most, and as many again that are announced before they are read from it.
const MAX_HELD: usize = 200_000;

/// How long revocations may have been missed before new tokens are refused (authorization.md 3.5).
pub const MAX_BLIND: Duration = Duration::from_secs(10);

/// [`Revocations::whole_until`]: nothing has been read yet ...
const NEVER: u64 = 0;
/// ... and announcements come in, so nothing is missed.
const FOLLOWING: u64 = u64::MAX;

/// Every revocation that has not ended.
pub struct Revocations {
    clock: Arc<dyn Clock>,
    limit: usize,
    held: RwLock<Held>,
    /// Until when what is held was whole: milliseconds since `origin`, [`NEVER`] or [`FOLLOWING`].
    whole_until: AtomicU64,
    origin: Instant,
}

#[derive(Default)]
struct Held {
    users: HashMap<String, Moments>,
    tokens: HashMap<TokenId, Moments>,
}

#[derive(Clone, Copy)]
struct Moments {
    issued_before_ms: i64,
    until_ms: i64,
}

impl Moments {
    fn of(revocation: &Revocation) -> Self {
        Self {
            issued_before_ms: revocation.issued_before_ms,
            until_ms: revocation.until_ms,
        }
    }

    fn covers(&self, other: &Self) -> bool {
        self.issued_before_ms >= other.issued_before_ms && self.until_ms >= other.until_ms
    }
}

impl Revocations {
    /// Makes an empty set that is not whole: no token is accepted before [`Revocations::follow`] or [`Revocations::set_whole_until`].
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::with_limit(clock, MAX_HELD)
    }

    fn with_limit(clock: Arc<dyn Clock>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            clock,
            limit,
            held: RwLock::default(),
            whole_until: AtomicU64::new(NEVER),
            origin: Instant::now(),
        })
    }

    /// Everything in force is held, and announcements of new ones come in.
    pub fn follow(&self) {
        self.whole_until.store(FOLLOWING, Ordering::Release);
    }

    /// Everything that was in force at this time is held; later ones may have been missed. A time before the set was made says that nothing is known.
    pub fn set_whole_until(&self, at: Instant) {
        let ms = match at.checked_duration_since(self.origin) {
            Some(since) => u64::try_from(since.as_millis()).map_or(FOLLOWING - 1, |ms| ms + 1),
            None => NEVER,
        };
        self.whole_until.store(ms, Ordering::Release);
    }

    /// Returns whether enough is known to accept a token: announcements come in, or what is held was whole at most [`MAX_BLIND`] ago.
    pub fn is_current(&self) -> bool {
        match self.whole_until.load(Ordering::Acquire) {
            FOLLOWING => true,
            NEVER => false,
            ms => self.origin.elapsed() <= Duration::from_millis(ms - 1) + MAX_BLIND,
        }
    }

    /// Adds one revocation.
    pub fn add(&self, revocation: Revocation) {
        self.extend([revocation]);
    }

    /// Adds many revocations, such as those that were read from the database, and returns whether one of them is new or wider than what was known. Known
    /// ones stay, so one that is announced while others are read is not lost.
    pub fn extend(&self, revocations: impl IntoIterator<Item = Revocation>) -> bool {
        let now = self.clock.now_ms();
        let mut held = self.held.write();
        let mut has_more = false;
        for revocation in revocations {
            let moments = Moments::of(&revocation);
            if moments.until_ms <= now {
                continue;
            }
            if let Some(user) = revocation.user_id {
                has_more |= merge(&mut held.users, user, moments);
            }
            if let Some(jti) = revocation.jti {
                has_more |= merge(&mut held.tokens, TokenId::of(&jti), moments);
            }
            if held.len() > self.limit {
                held.shrink(now, self.limit);
            }
        }
        has_more
    }

    /// Returns whether what is held refuses every token that this revocation refuses, for as long.
    pub fn covers(&self, revocation: &Revocation) -> bool {
        let held = self.held.read();
        let new = Moments::of(revocation);
        let covers = |moments: Option<&Moments>| moments.is_some_and(|held| held.covers(&new));
        let (user, jti) = (revocation.user_id.as_deref(), revocation.jti.as_deref());
        user.is_none_or(|user| covers(held.users.get(user)))
            && jti.is_none_or(|jti| covers(held.tokens.get(&TokenId::of(jti))))
    }

    /// Drops those that have ended.
    pub fn drop_ended(&self) {
        let now = self.clock.now_ms();
        self.held.write().keep_after(now);
    }

    /// Returns whether one of them matches the principal; see [`Revocation::matcher`].
    pub fn matches(&self, principal: &Principal) -> bool {
        let Some(token) = principal.token() else {
            return false;
        };
        let held = self.held.read();
        if held.len() == 0 {
            return false;
        }
        let now = self.clock.now_ms();
        let issued = token.issued_ms();
        let applies =
            |moments: &Moments| now < moments.until_ms && issued < moments.issued_before_ms;
        held.users.get(&*principal.subject).is_some_and(applies)
            || token
                .token_id
                .and_then(|id| held.tokens.get(&id))
                .is_some_and(applies)
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.held.read().len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Merges two revocations of the same name into one that covers both; returns whether it covers more than before.
fn merge<K: Eq + Hash>(into: &mut HashMap<K, Moments>, name: K, new: Moments) -> bool {
    let held = match into.entry(name) {
        Entry::Vacant(vacant) => {
            vacant.insert(new);
            return true;
        }
        Entry::Occupied(held) => held.into_mut(),
    };
    if held.covers(&new) {
        return false;
    }
    held.issued_before_ms = held.issued_before_ms.max(new.issued_before_ms);
    held.until_ms = held.until_ms.max(new.until_ms);
    true
}

impl Held {
    fn len(&self) -> usize {
        self.users.len() + self.tokens.len()
    }

    fn keep_after(&mut self, moment: i64) {
        self.users.retain(|_, moments| moments.until_ms > moment);
        self.tokens.retain(|_, moments| moments.until_ms > moment);
    }

    /// Drops revocations that have ended. If that is not enough, drops the tenth part that ends first, so that this work is rare.
    ///
    /// The database refuses one more long before ([`crate::store::MAX_REVOCATIONS`]), so only announcements of what it does not hold lead here.
    fn shrink(&mut self, now: i64, limit: usize) {
        self.keep_after(now);
        if self.len() <= limit {
            return;
        }
        let mut ends: Vec<i64> = self
            .users
            .values()
            .chain(self.tokens.values())
            .map(|moments| moments.until_ms)
            .collect();
        ends.sort_unstable();
        let keep = limit - limit / 10;
        let mut surplus = self.len() - keep;
        let last = ends[surplus - 1];
        tracing::error!(
            dropped = surplus,
            limit,
            "too many revocations; those that end first are dropped"
        );
        let mut drop_one = |moments: &Moments| {
            let drop = surplus > 0 && moments.until_ms <= last;
            surplus -= usize::from(drop);
            !drop
        };
        self.users.retain(|_, moments| drop_one(moments));
        self.tokens.retain(|_, moments| drop_one(moments));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::FixedClock;
    use crate::principal::{TokenFacts, USER, Via};
    use chrono::{DateTime, Utc};

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    fn principal(subject: &str, jti: Option<&str>, issued_ms: Option<i64>) -> Principal {
        let facts = TokenFacts {
            source: "main".into(),
            thumbprint: Arc::default(),
            token_id: jti.map(TokenId::of),
            issued_at: issued_ms.map(at),
            expires_at: Some(at(1_000_000)),
        };
        Principal {
            subject: subject.into(),
            kind: USER.into(),
            roles: Box::default(),
            via: Via::Token(facts),
        }
    }

    fn of_user(user: &str, issued_before_ms: i64, until_ms: i64) -> Revocation {
        Revocation {
            user_id: Some(user.into()),
            jti: None,
            issued_before_ms,
            until_ms,
        }
    }

    fn of_token(jti: &str, issued_before_ms: i64, until_ms: i64) -> Revocation {
        Revocation {
            user_id: None,
            jti: Some(jti.into()),
            issued_before_ms,
            until_ms,
        }
    }

    /// authorization.md 3.1.
    #[test]
    fn a_revocation_matches_its_user_or_token_issued_before_it_and_nothing_else() {
        let cases = [
            (
                of_user("17", 500, 9000),
                principal("17", None, Some(499)),
                true,
            ),
            (
                of_user("17", 500, 9000),
                principal("17", None, Some(500)),
                false,
            ),
            (of_user("17", 500, 9000), principal("17", None, None), true),
            (of_user("17", 0, 9000), principal("17", None, None), false),
            (
                of_user("17", 500, 9000),
                principal("18", Some("17"), Some(1)),
                false,
            ),
            (
                of_token("t", 500, 9000),
                principal("17", Some("t"), Some(1)),
                true,
            ),
            (
                of_token("t", 500, 9000),
                principal("t", Some("u"), Some(1)),
                false,
            ),
            (
                of_token("t", 500, 9000),
                principal("17", None, Some(1)),
                false,
            ),
            (
                Revocation {
                    user_id: None,
                    jti: None,
                    issued_before_ms: 500,
                    until_ms: 9000,
                },
                principal("17", None, None),
                false,
            ),
        ];
        for (revocation, principal, expected) in cases {
            assert_eq!(
                revocation.matcher()(&principal),
                expected,
                "{revocation:?} {principal:?}"
            );
            let held = Revocations::new(Arc::new(FixedClock::new(at(1000))));
            held.add(revocation);
            assert_eq!(held.matches(&principal), expected, "{principal:?}");
        }
        let basic = Principal {
            subject: "17".into(),
            kind: USER.into(),
            roles: Box::default(),
            via: Via::Basic,
        };
        assert!(!of_user("17", 500, 9000).matcher()(&basic));
    }

    /// authorization.md 3.3.
    #[test]
    fn a_revocation_ends_at_its_time_and_order_does_not_matter() {
        let clock = FixedClock::new(at(1000));
        let held = Revocations::new(Arc::new(clock.clone()));
        let all = [
            of_user("17", 500, 2000),
            of_user("17", 300, 3000),
            of_user("gone", 500, 1000),
        ];
        assert!(held.extend(all.clone()));
        assert!(!held.extend(all), "nothing of it is new");
        assert_eq!(held.len(), 1);
        assert!(held.covers(&of_user("17", 500, 3000)));
        for wider in [
            of_user("17", 501, 3000),
            of_user("17", 500, 3001),
            of_user("18", 1, 2),
            of_token("17", 1, 2),
        ] {
            assert!(!held.covers(&wider), "{wider:?}");
        }
        assert!(held.matches(&principal("17", None, Some(400))));
        clock.advance_ms(1999);
        assert!(held.matches(&principal("17", None, Some(299))));
        clock.advance_ms(1);
        assert!(!held.matches(&principal("17", None, Some(299))));
        held.drop_ended();
        assert!(held.is_empty());
    }

    /// authorization.md 3.5.
    #[tokio::test(start_paused = true)]
    async fn no_token_is_accepted_before_the_first_read_nor_long_after_the_last() {
        let held = Revocations::new(Arc::new(FixedClock::new(at(0))));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!held.is_current());
        held.set_whole_until(Instant::now());
        assert!(held.is_current(), "read this moment");
        tokio::time::advance(MAX_BLIND).await;
        assert!(held.is_current());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!held.is_current());
        held.follow();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(held.is_current(), "nothing is missed");
        held.set_whole_until(Instant::now() - Duration::from_secs(9));
        assert!(held.is_current());
        held.set_whole_until(Instant::now() - Duration::from_secs(7200));
        assert!(!held.is_current(), "before there was anything");
        held.set_whole_until(Instant::now() - Duration::from_secs(9));
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert!(!held.is_current());
    }

    /// authorization.md 3.3.
    #[test]
    fn when_full_it_drops_ended_revocations_and_then_those_that_end_first() {
        let clock = FixedClock::new(at(0));
        let held = Revocations::with_limit(Arc::new(clock.clone()), 100);
        held.extend((0..100).map(|n| of_user(&format!("early{n}"), 10, 1000)));
        clock.advance_ms(1000);
        held.extend((0..100).map(|n| of_token(&format!("late{n}"), 2000, 5000 + n)));
        assert_eq!(held.len(), 100);
        held.add(of_user("last", 2000, 9000));
        assert!(held.len() <= 100);
        assert!(held.matches(&principal("last", None, None)));
        assert!(held.matches(&principal("x", Some("late99"), None)));
        assert!(!held.matches(&principal("x", Some("late0"), None)));
    }
}

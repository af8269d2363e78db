//! Revocations: tokens that are refused before they expire, by user or by `jti` (authorization.md 3).
//!
//! Input: revocations from REST, from other instances and from Redis. Output: whether one matches a principal. A revocation is never taken back,
//! it only ends. So one that arrives twice, late or in another order leaves the same state.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::clock::Clock;
use crate::principal::Principal;
use crate::revocation::Revocation;

/// Most revocations that are kept.
const MAX_REVOCATIONS: usize = 100_000;

/// Every revocation that has not ended.
pub struct Revocations {
    clock: Arc<dyn Clock>,
    limit: usize,
    held: RwLock<Held>,
}

#[derive(Default)]
struct Held {
    users: HashMap<String, Moments>,
    tokens: HashMap<String, Moments>,
}

#[derive(Clone, Copy)]
struct Moments {
    issued_before_ms: i64,
    until_ms: i64,
}

impl Revocations {
    /// Makes an empty set.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::with_limit(clock, MAX_REVOCATIONS)
    }

    fn with_limit(clock: Arc<dyn Clock>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            clock,
            limit,
            held: RwLock::default(),
        })
    }

    /// Adds one revocation.
    pub fn add(&self, revocation: Revocation) {
        self.extend([revocation]);
    }

    /// Adds many revocations, such as all that Redis has stored. Known ones stay, so one that arrives while the stored ones are read is not lost.
    pub fn extend(&self, revocations: impl IntoIterator<Item = Revocation>) {
        let now = self.clock.now_ms();
        let mut held = self.held.write();
        for revocation in revocations {
            let moments = Moments {
                issued_before_ms: revocation.issued_before_ms,
                until_ms: revocation.until_ms,
            };
            if moments.until_ms <= now {
                continue;
            }
            if let Some(user) = revocation.user_id {
                merge(&mut held.users, user, moments);
            }
            if let Some(jti) = revocation.jti {
                merge(&mut held.tokens, jti, moments);
            }
            if held.len() > self.limit {
                held.shrink(now, self.limit);
            }
        }
    }

    /// Returns whether one of them matches the principal; see [`Revocation::matches`].
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
                .as_deref()
                .and_then(|jti| held.tokens.get(jti))
                .is_some_and(applies)
    }

    /// Returns every revocation that has not ended; those of one user or one `jti` are merged into one.
    pub fn all(&self) -> Vec<Revocation> {
        let (now, held) = (self.clock.now_ms(), self.held.read());
        let users = held
            .users
            .iter()
            .map(|(user, moments)| (Some(user.clone()), None, moments));
        let tokens = held
            .tokens
            .iter()
            .map(|(jti, moments)| (None, Some(jti.clone()), moments));
        let lasting = users
            .chain(tokens)
            .filter(|(_, _, moments)| moments.until_ms > now);
        let whole = lasting.map(
            |(
                user_id,
                jti,
                Moments {
                    issued_before_ms,
                    until_ms,
                },
            )| Revocation {
                user_id,
                jti,
                issued_before_ms: *issued_before_ms,
                until_ms: *until_ms,
            },
        );
        whole.collect()
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

/// Merges two revocations of the same name into one that covers both.
fn merge(into: &mut HashMap<String, Moments>, name: String, new: Moments) {
    let held = into.entry(name).or_insert(new);
    held.issued_before_ms = held.issued_before_ms.max(new.issued_before_ms);
    held.until_ms = held.until_ms.max(new.until_ms);
}

impl Held {
    fn len(&self) -> usize {
        self.users.len() + self.tokens.len()
    }

    /// Drops revocations that have ended. If that is not enough, drops the tenth part that ends first, so that this work is rare.
    fn shrink(&mut self, now: i64, limit: usize) {
        let keep_after = |held: &mut Self, moment: i64| {
            held.users.retain(|_, moments| moments.until_ms > moment);
            held.tokens.retain(|_, moments| moments.until_ms > moment);
        };
        keep_after(self, now);
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
            token_id: jti.map(Into::into),
            issued_at: issued_ms.map(at),
            expires_at: Some(at(1_000_000)),
        };
        Principal {
            subject: subject.into(),
            kind: USER.into(),
            roles: vec![],
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
                revocation.matches(&principal),
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
            roles: vec![],
            via: Via::Basic,
        };
        assert!(!of_user("17", 500, 9000).matches(&basic));
    }

    /// authorization.md 3.3.
    #[test]
    fn a_revocation_ends_at_its_time_and_order_does_not_matter() {
        let clock = FixedClock::new(at(1000));
        let held = Revocations::new(Arc::new(clock.clone()));
        held.extend([
            of_user("17", 500, 2000),
            of_user("17", 300, 3000),
            of_user("gone", 500, 1000),
        ]);
        assert_eq!(held.len(), 1);
        assert_eq!(held.all(), [of_user("17", 500, 3000)]);
        assert!(held.matches(&principal("17", None, Some(400))));
        clock.advance_ms(1999);
        assert!(held.matches(&principal("17", None, Some(299))));
        clock.advance_ms(1);
        assert!(!held.matches(&principal("17", None, Some(299))));
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

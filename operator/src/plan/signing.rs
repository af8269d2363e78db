//! Keys that the operator makes for the platform's own issuer: Published -> Signing -> VerifyOnly -> dropped.
//!
//! | stage | the issuer | verifiers | left when |
//! |---|---|---|---|
//! | Published | does not use it | may fetch it | every ready pod has served it for `cacheAge`, and `rotateEvery` has passed for the key before |
//! | Signing | signs with it | accept it | its successor signs |
//! | VerifyOnly | does not use it | accept it | the longest `maxTokenLife` it signed under, clock skew and `cacheAge` have passed |
//!
//! So a verifier that caches the set for `cacheAge` has a key before the first token of it, and every token is verified until it expires. A successor
//! is published `cacheAge`, and the time that pods need, before it signs. The first key signs at once: no verifier holds an older set, and until a
//! pod is ready no client can connect.
//!
//! The ring is stored in a Secret: the operator reads `ring.json`, the issuer reads `current.pem` and `current.json`. The record has the public halves.
//! Where the Secret loses a key that signed, its public half is verified as that of a key of stage VerifyOnly.
//!
//! Annotation [`ROTATE_NOW`] of the SignalCluster asks for the next key now, once for each value: it is published if none is, and signs as soon as every
//! ready pod has served it for `cacheAge`.

mod ring;

use chrono::{DateTime, TimeDelta, Utc};
use signal_crds::jwks::Managed;
use signal_crds::status::SigningKeyStage;

use crate::names::ROTATE_NOW;
use crate::observe::fleet::{Fleet, Pod};
use crate::plan::record::SigningRecord;
use crate::plan::{Due, DueReason, Plan, PlanEvent, Waiting};
use crate::reasons::{ConditionReason, EventReason};

use ring::Key;
pub use ring::{Damage, KeyRing};

/// How much earlier than `cacheAge` a key is published: pods see a changed ConfigMap within two minutes.
const POD_MARGIN: signal_crds::Duration = signal_crds::Duration::secs(180);
/// Most keys at a time; gateways accept more.
const MAX_KEYS: usize = 8;

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct SigningInput<'a> {
    /// Part of the spec.
    pub managed: &'a Managed,
    /// How far the clocks of issuer and gateways may differ.
    pub skew: signal_crds::Duration,
    /// What the Secret holds, if it exists.
    pub ring: Option<&'a KeyRing>,
    /// The public halves, as the record has them.
    pub recorded: &'a SigningRecord,
    /// What [`ROTATE_NOW`] says.
    pub rotate_now: Option<&'a str>,
    /// The pods.
    pub fleet: &'a Fleet,
}

/// The next step of the keys.
pub fn plan(
    input: &SigningInput<'_>,
    now: DateTime<Utc>,
    random: &mut impl rand::CryptoRng,
) -> Plan<KeyRing> {
    let mut step = Step {
        input,
        now,
        ring: KeyRing {
            issuer: input.managed.issuer.clone(),
            audiences: input.managed.audiences.clone(),
            keys: input.ring.map(|ring| ring.keys.clone()).unwrap_or_default(),
            lost: input.ring.map(|ring| ring.lost.clone()).unwrap_or_default(),
            rotated: input.ring.and_then(|ring| ring.rotated.clone()),
        },
        due: Vec::new(),
        events: Vec::new(),
    };
    step.recover();
    step.update_times();
    step.drop_expired();
    let waiting = match step.ring.at(SigningKeyStage::Signing) {
        Some(signing) => step.rotate(signing, random),
        None => {
            step.activate_first(random);
            None
        }
    };
    let expiry = |until: Option<DateTime<Utc>>| until.map(due);
    let keys = step.ring.keys.iter().map(|key| key.verify_until);
    let lost = step.ring.lost.iter().map(|key| key.verify_until);
    step.due.extend(keys.chain(lost).filter_map(expiry));
    Plan {
        next: step.ring,
        waiting,
        due: step.due,
        events: step.events,
    }
}

struct Step<'a> {
    input: &'a SigningInput<'a>,
    now: DateTime<Utc>,
    ring: KeyRing,
    due: Vec<Due>,
    events: Vec<PlanEvent>,
}

fn due(at: DateTime<Utc>) -> Due {
    Due {
        at,
        why: DueReason::SigningKey,
    }
}

impl Step<'_> {
    fn event(&mut self, reason: EventReason, note: String) {
        self.events.push(PlanEvent::normal(reason, note));
    }

    /// Until when tokens of a key that signs until now are verified, if they live so long.
    fn verified_until(&self, token_life: signal_crds::Duration) -> DateTime<Utc> {
        let Managed {
            max_token_life,
            cache_age,
            ..
        } = self.input.managed;
        [token_life.max(*max_token_life), self.input.skew, *cache_age]
            .into_iter()
            .fold(self.now, after)
    }

    /// Keeps the public halves of keys that the Secret has lost.
    fn recover(&mut self) {
        let now = self.now;
        let mut next = self.ring.clone();
        let lost = next.recover(self.input.recorded, |key| {
            self.verified_until(key.token_life)
        });
        self.ring = next;
        let valid = lost
            .iter()
            .filter(|key| key.verify_until.is_some_and(|until| until > now));
        for key in valid {
            let until = key.verify_until.unwrap_or(now).to_rfc3339();
            let note = format!(
                "key {} is gone from its Secret and signs nothing more; its public half is verified until {until}",
                key.kid
            );
            self.events
                .push(PlanEvent::warning(EventReason::SigningKeysLost, note));
        }
    }

    /// Fills in times that a damaged Secret lacks, and follows what pods serve.
    fn update_times(&mut self) {
        let mut keys = std::mem::take(&mut self.ring.keys);
        for key in &mut keys {
            key.since.get_or_insert(self.now);
            match key.stage {
                // A shorter `maxTokenLife` does not shorten the life of issued tokens.
                SigningKeyStage::Signing => {
                    key.token_life = key.token_life.max(self.input.managed.max_token_life);
                }
                SigningKeyStage::VerifyOnly => {
                    let until = key.verify_until;
                    key.verify_until = until.or_else(|| Some(self.verified_until(key.token_life)));
                }
                SigningKeyStage::Published if unserved(self.input.fleet, &key.kid).is_none() => {
                    key.served_since = key.served_since.or(Some(self.now));
                }
                SigningKeyStage::Published => key.served_since = None,
            }
        }
        self.ring.keys = keys;
    }

    fn drop_expired(&mut self) {
        let now = self.now;
        let is_expired = |key: &Key| {
            key.stage == SigningKeyStage::VerifyOnly
                && key.verify_until.is_some_and(|until| until <= now)
        };
        let (expired, kept): (Vec<Key>, Vec<Key>) = std::mem::take(&mut self.ring.keys)
            .into_iter()
            .partition(is_expired);
        self.ring.keys = kept;
        self.ring
            .lost
            .retain(|key| key.verify_until.is_some_and(|until| until > now));
        for key in expired {
            self.event(
                EventReason::SigningKeyDropped,
                format!("key {}: no token of it can be valid any more", key.kid),
            );
        }
    }

    /// The first key; or the last one is lost, and some verifiers have its successor.
    fn activate_first(&mut self, random: &mut impl rand::CryptoRng) {
        let ring = &mut self.ring;
        let at = ring.at(SigningKeyStage::Published).unwrap_or_else(|| {
            ring.keys
                .push(Key::generate(random, SigningKeyStage::Published, self.now));
            ring.keys.len() - 1
        });
        self.activate(at);
        // A new key that signs is what the annotation would ask for.
        self.ring.rotated = self.input.rotate_now.map(str::to_owned);
        let kid = &self.ring.keys[at].kid;
        let note = format!("key {kid} signs; there was none before");
        self.event(EventReason::SigningKeyActivated, note);
    }

    fn activate(&mut self, at: usize) {
        let key = &mut self.ring.keys[at];
        key.turn(SigningKeyStage::Signing, Some(self.now), None);
        key.token_life = self.input.managed.max_token_life;
    }

    /// Publishes the successor of the signing key in time, and lets it sign when it is due.
    fn rotate(&mut self, signing: usize, random: &mut impl rand::CryptoRng) -> Option<Waiting> {
        let Managed {
            rotate_every,
            cache_age,
            ..
        } = self.input.managed;
        let since = self.ring.keys[signing].since.unwrap_or(self.now);
        let asked = self.is_asked();
        let turn = match asked {
            true => self.now,
            false => after(since, *rotate_every),
        };
        // As long before its turn as pods and verifiers need to have it.
        let publication = before(before(turn, POD_MARGIN), *cache_age);
        match self.ring.at(SigningKeyStage::Published) {
            Some(next) if self.now >= turn => return self.succeed(signing, next),
            None if self.now >= publication => {}
            published => {
                let at = published.map_or(publication, |_| turn);
                self.due.push(due(at));
                return None;
            }
        }
        if self.ring.keys.len() + self.ring.lost.len() >= MAX_KEYS {
            return Some(Waiting {
                reason: ConditionReason::TooManySigningKeys,
                message: format!(
                    "{MAX_KEYS} keys are published; the next one is made when an old one is dropped"
                ),
            });
        }
        let mut key = Key::generate(random, SigningKeyStage::Published, self.now);
        key.asked_for = asked;
        let from = turn.max(after(self.now, *cache_age)).to_rfc3339();
        let note = format!("key {} is published and signs from {from}", key.kid);
        self.event(EventReason::SigningKeyPublished, note);
        self.ring.keys.push(key);
        self.carried_out(asked);
        None
    }

    /// Whether a person asked for the next key, now or before it was published.
    fn is_asked(&mut self) -> bool {
        let published = self.ring.at(SigningKeyStage::Published);
        let asks = self.input.rotate_now.is_some()
            && self.input.rotate_now != self.ring.rotated.as_deref();
        if let Some(at) = published {
            self.ring.keys[at].asked_for |= asks;
            self.carried_out(asks);
            return self.ring.keys[at].asked_for;
        }
        asks
    }

    /// Remembers the value that asked, so that it acts once.
    fn carried_out(&mut self, asked: bool) {
        if !asked {
            return;
        }
        let value = self.input.rotate_now.unwrap_or_default();
        let note =
            format!("the next key signs as soon as verifiers have it ({ROTATE_NOW}: {value})");
        self.event(EventReason::RotationRequested, note);
        self.ring.rotated = Some(value.to_owned());
    }

    /// Lets the published key sign once every ready pod has served it for `cacheAge`.
    fn succeed(&mut self, signing: usize, next: usize) -> Option<Waiting> {
        let cache_age = self.input.managed.cache_age;
        let successor = &self.ring.keys[next];
        let kid = successor.kid.clone();
        if let Some(why) = unserved(self.input.fleet, &kid) {
            return Some(Waiting {
                reason: ConditionReason::WaitingForPods,
                message: format!("signing key {kid}: {why}"),
            });
        }
        let cached = after(successor.served_since?, cache_age);
        if cached > self.now {
            self.due.push(due(cached));
            return None;
        }
        let until = self.verified_until(self.ring.keys[signing].token_life);
        self.activate(next);
        let old = &mut self.ring.keys[signing];
        old.turn(SigningKeyStage::VerifyOnly, Some(self.now), Some(until));
        let retired = format!(
            "key {} signs no more and is verified until {}",
            old.kid,
            until.to_rfc3339()
        );
        self.event(
            EventReason::SigningKeyActivated,
            format!("key {kid} signs; every ready pod has served it for {cache_age}"),
        );
        self.event(EventReason::SigningKeyRetired, retired);
        None
    }
}

/// Which ready pod does not serve a key; or that none is ready although pods run.
fn unserved(fleet: &Fleet, kid: &str) -> Option<String> {
    if fleet.ready().next().is_none() && fleet.alive().next().is_some() {
        return Some("no pod is ready".into());
    }
    let pod = fleet.ready().find(|pod| !serves(pod, kid))?;
    let why = pod
        .report
        .as_ref()
        .err()
        .map_or("it does not serve the key yet", String::as_str);
    Some(format!("{}: {why}", pod.name))
}

fn serves(pod: &Pod, kid: &str) -> bool {
    let served = pod.report().and_then(|report| report.jwks_file.as_ref());
    served.is_some_and(|file| file.keys.iter().any(|served| served == kid))
}

/// The time after `span`; saturates.
fn after(at: DateTime<Utc>, span: signal_crds::Duration) -> DateTime<Utc> {
    let span = TimeDelta::from_std(span.std()).unwrap_or(TimeDelta::MAX);
    at.checked_add_signed(span)
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The time before `span`; saturates.
fn before(at: DateTime<Utc>, span: signal_crds::Duration) -> DateTime<Utc> {
    let span = TimeDelta::from_std(span.std()).unwrap_or(TimeDelta::MAX);
    at.checked_sub_signed(span)
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}

#[cfg(test)]
mod tests;

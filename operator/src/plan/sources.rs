//! Rotation of the sources of keys, as a plan: Prepared -> Trusted -> Retiring -> gone.
//!
//! A new source, which is one with any difference in its definition, is put beside the old one: pods fetch it before anyone trusts it. What is no
//! longer wanted is accepted until its successor is trusted by every ready pod, and for the overlap after that. Each stage is a revision of the live
//! settings, and the next one begins only when every ready pod holds the last. Pods that start read the newest, so where no pod is ready there is
//! nobody to wait for; but nobody's keys are trusted unseen while there are pods that could look.
//!
//! The successor of a source is what is wanted under its name, or for its issuer: a renamed source is not let go before the one of the new name
//! is trusted either. One without a successor waits until nothing is being prepared, since another name and issuer may be what replaces it. Whoever is wanted under some name or for some issuer is never without an accepted source that had been trusted before, however
//! often the wish changes meanwhile.
//!
//! `emergency` is the exception: what is not wanted loses trust in one step, its connections are closed, and what is wanted is trusted at once,
//! seen or not, so that a replacement serves as soon as it is fetched. Names that lost trust are listed until every pod has heard of it and the
//! emergency is over.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use signal_crds::jwks::Rotation;
use signal_crds::status::SourceStage;

use crate::observe::fleet::{Fleet, Pod, lag};
use crate::plan::record::{RecordedSource, SourceDefinition, SourcesRecord};
use crate::plan::{Plan, PlanEvent, Waiting};
use crate::reasons::{ConditionReason, EventReason};

/// Most sources that a gateway takes.
const MAX_SOURCES: usize = 16;
/// Most revoked names that a gateway takes; the oldest go first.
const MAX_REVOKED: usize = 64;

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct SourcesInput<'a> {
    /// Sources as the spec wants them, by their declared names.
    pub wanted: &'a [(String, SourceDefinition)],
    /// How a change proceeds.
    pub rotation: &'a Rotation,
    /// How far it has come.
    pub record: &'a SourcesRecord,
    /// Revision of the `live.toml` in the cluster that was made from exactly this record; `None`: there is none yet.
    pub revision: Option<&'a str>,
    /// The pods.
    pub fleet: &'a Fleet,
}

/// The next step.
pub fn plan(input: &SourcesInput<'_>, now: DateTime<Utc>) -> Plan<SourcesRecord> {
    let mut step = Step {
        input,
        now,
        next: input.record.clone(),
        events: Vec::new(),
        left_out: Vec::new(),
    };
    if input.rotation.emergency || (input.record.sources.is_empty() && input.revision.is_none()) {
        step.at_once();
    } else {
        step.rotate();
    }
    let waiting = step.waiting();
    Plan {
        next: step.next,
        waiting,
        events: step.events,
    }
}

struct Step<'a> {
    input: &'a SourcesInput<'a>,
    now: DateTime<Utc>,
    next: SourcesRecord,
    events: Vec<PlanEvent>,
    /// Declared names of wanted sources that there is no room for.
    left_out: Vec<&'a str>,
}

impl<'a> Step<'a> {
    /// Everything that is wanted is trusted, everything else revoked: an emergency, or the first configuration, where there is nothing else.
    fn at_once(&mut self) {
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.next.sources)
            .into_iter()
            .partition(|source| self.is_wanted(source));
        self.next.sources = kept;
        for source in gone {
            // A source that nobody trusted has no connections.
            if source.stage == SourceStage::Prepared {
                self.event(
                    EventReason::SourceRemoved,
                    format!("{} was never trusted", source.name),
                );
                continue;
            }
            let note = format!(
                "{} lost trust in an emergency: connections that rest on it are closed",
                source.name
            );
            self.events
                .push(PlanEvent::warning(EventReason::SourceRevoked, note));
            self.next.revoked_sources.push(source.name);
            self.next.revoked_since = Some(self.now);
        }
        let surplus = self.next.revoked_sources.len().saturating_sub(MAX_REVOKED);
        self.next.revoked_sources.drain(..surplus);
        self.advance(|source| match source.stage {
            SourceStage::Prepared => Some((SourceStage::Trusted, EventReason::SourceTrusted)),
            SourceStage::Retiring => Some((SourceStage::Trusted, EventReason::SourceTakenBack)),
            SourceStage::Trusted => None,
        });
        self.add(SourceStage::Trusted);
    }

    fn rotate(&mut self) {
        self.take_back();
        self.let_go();
        self.add(SourceStage::Prepared);
        if self.changed() || self.input.fleet.lagging(self.input.revision).is_some() {
            return;
        }
        // Both look at the record that was acknowledged: nothing retires because of what is trusted only from now on.
        let trusted: BTreeSet<String> = self
            .prepared()
            .filter(|source| self.fetched(source).is_ok())
            .map(|source| source.name.clone())
            .collect();
        let retired: BTreeSet<String> = self
            .unwanted()
            .filter(|source| self.may_retire(source))
            .map(|source| source.name.clone())
            .collect();
        self.advance(|source| {
            let trusted = trusted
                .contains(&source.name)
                .then_some((SourceStage::Trusted, EventReason::SourceTrusted));
            trusted.or_else(|| {
                retired
                    .contains(&source.name)
                    .then_some((SourceStage::Retiring, EventReason::SourceRetiring))
            })
        });
    }

    /// What is wanted again need not be fetched again; and while nothing of a wanted name or issuer is trusted, what was trusted last still is.
    fn take_back(&mut self) {
        let mut back: BTreeSet<String> = self
            .retiring()
            .filter(|source| self.is_wanted(source))
            .map(|source| source.name.clone())
            .collect();
        for (declared, definition) in self.input.wanted {
            let of_name = |source: &&RecordedSource| source.declared == *declared;
            let of_issuer =
                |source: &&RecordedSource| source.definition.issuer == definition.issuer;
            for related in [&of_name as &dyn Fn(&&RecordedSource) -> bool, &of_issuer] {
                let stands = |source: &RecordedSource| {
                    source.stage == SourceStage::Trusted || back.contains(&source.name)
                };
                if self.next.sources.iter().filter(related).any(stands) {
                    continue;
                }
                back.extend(
                    self.retiring()
                        .filter(related)
                        .max_by_key(|source| source.since)
                        .map(|source| source.name.clone()),
                );
            }
        }
        self.advance(|source| {
            back.contains(&source.name)
                .then_some((SourceStage::Trusted, EventReason::SourceTakenBack))
        });
    }

    /// What needs no acknowledgement: nobody relies on what was never trusted, and on what is past its time.
    fn let_go(&mut self) {
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.next.sources)
            .into_iter()
            .partition(|source| match source.stage {
                SourceStage::Prepared => self.is_wanted(source),
                SourceStage::Trusted => true,
                SourceStage::Retiring => source.retire_after.is_some_and(|until| until > self.now),
            });
        self.next.sources = kept;
        for source in gone {
            self.event(
                EventReason::SourceRemoved,
                format!("{} is gone: its tokens are refused", source.name),
            );
        }
        if !self.next.revoked_sources.is_empty() && self.revocation_lag().is_none() {
            self.next.revoked_sources.clear();
            self.next.revoked_since = None;
        }
    }

    fn add(&mut self, stage: SourceStage) {
        for (declared, definition) in self.input.wanted {
            if self
                .next
                .sources
                .iter()
                .any(|source| source.declared == *declared && source.definition == *definition)
            {
                continue;
            }
            if self.next.sources.len() >= MAX_SOURCES {
                self.left_out.push(declared);
                continue;
            }
            let name = self.free_name(declared, definition);
            match stage {
                SourceStage::Prepared => self.event(
                    EventReason::SourcePrepared,
                    format!("pods are to fetch {name} ({})", origin(definition)),
                ),
                _ => self.event(
                    EventReason::SourceTrusted,
                    format!("{name} ({})", origin(definition)),
                ),
            }
            let (declared, definition, since) = (declared.clone(), definition.clone(), self.now);
            self.next.sources.push(RecordedSource {
                name,
                declared,
                definition,
                stage,
                since,
                retire_after: None,
            });
        }
    }

    /// The declared name, or with so much of the definition's hash that no source of before, which a pod may still have, is called the same.
    fn free_name(&self, declared: &str, definition: &SourceDefinition) -> String {
        let known = self
            .input
            .record
            .sources
            .iter()
            .chain(&self.next.sources)
            .map(|source| source.name.as_str());
        let taken: BTreeSet<&str> = known
            .chain(self.next.revoked_sources.iter().map(String::as_str))
            .collect();
        let text = serde_json::to_string(definition).expect("a definition is plain data");
        let hash: String = Sha256::digest(text)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let hashed = (6..=hash.len()).map(|digits| format!("{declared}-{}", &hash[..digits]));
        std::iter::once(declared.to_owned())
            .chain(hashed)
            .find(|name| !taken.contains(name.as_str()))
            .expect("fewer sources than digits")
    }

    /// Gives those sources their next stage for which there is one.
    fn advance(&mut self, stage: impl Fn(&RecordedSource) -> Option<(SourceStage, EventReason)>) {
        for source in &mut self.next.sources {
            let Some((stage, reason)) = stage(source) else {
                continue;
            };
            (source.stage, source.since, source.retire_after) = (stage, self.now, None);
            let mut note = format!("{} ({})", source.name, origin(&source.definition));
            if stage == SourceStage::Retiring {
                let until = self.now + span(self.input.rotation.overlap);
                source.retire_after = Some(until);
                note = format!("{note} is accepted until {}", text(until));
            }
            self.events.push(PlanEvent::normal(reason, note));
        }
    }

    fn event(&mut self, reason: EventReason, note: String) {
        self.events.push(PlanEvent::normal(reason, note));
    }

    fn changed(&self) -> bool {
        self.next != *self.input.record
    }

    fn is_wanted(&self, source: &RecordedSource) -> bool {
        self.input.wanted.iter().any(|(declared, definition)| {
            *declared == source.declared && *definition == source.definition
        })
    }

    fn prepared(&self) -> impl Iterator<Item = &RecordedSource> {
        self.next
            .sources
            .iter()
            .filter(|source| source.stage == SourceStage::Prepared)
    }

    fn retiring(&self) -> impl Iterator<Item = &RecordedSource> {
        self.next
            .sources
            .iter()
            .filter(|source| source.stage == SourceStage::Retiring)
    }

    /// Those that are still trusted.
    fn unwanted(&self) -> impl Iterator<Item = &RecordedSource> {
        self.next
            .sources
            .iter()
            .filter(|source| source.stage == SourceStage::Trusted && !self.is_wanted(source))
    }

    fn has_successor(&self, source: &RecordedSource) -> bool {
        self.wants_name(source) || self.wants_issuer(source)
    }

    fn wants_name(&self, source: &RecordedSource) -> bool {
        self.input
            .wanted
            .iter()
            .any(|(declared, _)| *declared == source.declared)
    }

    fn wants_issuer(&self, source: &RecordedSource) -> bool {
        self.input
            .wanted
            .iter()
            .any(|(_, definition)| definition.issuer == source.definition.issuer)
    }

    /// What has a successor waits for that one. What has none may still be replaced by something of another name and issuer, so it waits while
    /// anything is being prepared.
    fn may_retire(&self, source: &RecordedSource) -> bool {
        if self.has_successor(source) {
            self.is_replaced(source)
        } else {
            self.prepared().next().is_none()
        }
    }

    /// Whether something else is trusted, and known to every ready pod, under its name and for its issuer, as far as those are wanted.
    fn is_replaced(&self, source: &RecordedSource) -> bool {
        let named = |other: &RecordedSource| other.declared == source.declared;
        let issued = |other: &RecordedSource| other.definition.issuer == source.definition.issuer;
        let stands = |related: &dyn Fn(&RecordedSource) -> bool| {
            self.successors(source).any(|other| {
                related(other)
                    && self
                        .input
                        .fleet
                        .ready()
                        .all(|pod| has_keys(pod, &other.name).is_ok())
            })
        };
        (!self.wants_name(source) || stands(&named))
            && (!self.wants_issuer(source) || stands(&issued))
    }

    /// Trusted sources that may stand in its place: wanted ones, and ones that came after it, so that of those no longer wanted one is kept.
    fn successors<'s>(
        &'s self,
        source: &'s RecordedSource,
    ) -> impl Iterator<Item = &'s RecordedSource> {
        let at = self
            .next
            .sources
            .iter()
            .position(|other| other.name == source.name);
        let others = self
            .next
            .sources
            .iter()
            .enumerate()
            .filter(move |(other, _)| Some(*other) != at);
        others
            .filter(move |(other, candidate)| Some(*other) > at || self.is_wanted(candidate))
            .filter(|(_, candidate)| candidate.stage == SourceStage::Trusted)
            .map(|(_, candidate)| candidate)
    }

    /// Whether pods have seen its keys: every ready one, or where none is ready at least one, or where there is none at all nobody.
    fn fetched(&self, source: &RecordedSource) -> Result<(), String> {
        let seen = |pod: &Pod| match self.input.revision {
            Some(revision) if pod.holds(revision) => fetched_by(pod, &source.name),
            _ => Err(lag(vec![pod]).unwrap_or_default()),
        };
        if self.input.fleet.ready().next().is_some() {
            return self.input.fleet.ready().try_for_each(seen);
        }
        let answers: Vec<_> = self.input.fleet.alive().map(seen).collect();
        if answers.is_empty() || answers.iter().any(Result::is_ok) {
            return Ok(());
        }
        answers.into_iter().collect()
    }

    /// Who has not heard of the revocations. Pods that are not ready count as well where they answer: they may hold connections.
    fn revocation_lag(&self) -> Option<String> {
        let Some(revision) = self.input.revision else {
            return self.input.fleet.lagging(None);
        };
        lag(self
            .input
            .fleet
            .alive()
            .filter(|pod| (pod.ready || pod.report().is_some()) && !pod.holds(revision))
            .collect())
    }

    fn waiting(&mut self) -> Option<Waiting> {
        let (waiting, since) = self.obstacle()?;
        let Some(since) =
            since.filter(|since| self.now - *since >= span(self.input.rotation.ack_timeout))
        else {
            return Some(waiting);
        };
        let note = format!("since {}: {}", text(since), waiting.message);
        self.events.push(PlanEvent::warning(
            EventReason::AcknowledgementTimedOut,
            note.clone(),
        ));
        // A source that cannot be fetched says more than that pods have not fetched it.
        let timed_out = Waiting {
            reason: ConditionReason::AcknowledgementTimedOut,
            message: note,
        };
        Some(if waiting.reason == ConditionReason::WaitingForPods {
            timed_out
        } else {
            waiting
        })
    }

    /// What keeps the rotation from its next step or its end; and since when, if that is to end by itself within the timeout.
    fn obstacle(&self) -> Option<(Waiting, Option<DateTime<Utc>>)> {
        let of = |reason, message| Waiting { reason, message };
        // What this very step made cannot be late.
        let since = self
            .next
            .sources
            .iter()
            .map(|source| source.since)
            .max()
            .filter(|_| !self.changed());
        let written = || "this step is not written yet".to_owned();
        if !self.next.revoked_sources.is_empty() {
            let lag = if self.changed() {
                Some(written())
            } else {
                self.revocation_lag()
            };
            let names = self.next.revoked_sources.join(", ");
            return Some(match lag {
                Some(lag) => (
                    of(
                        ConditionReason::WaitingForPods,
                        format!("revocation of {names}: {lag}"),
                    ),
                    self.next.revoked_since.filter(|_| !self.changed()),
                ),
                None => (
                    of(
                        ConditionReason::EmergencyInForce,
                        format!(
                            "{names} revoked everywhere; set spec.jwks.rotation.emergency to false"
                        ),
                    ),
                    None,
                ),
            });
        }
        let moving = self.prepared().chain(self.unwanted()).next();
        let lag = if self.changed() {
            Some(written())
        } else {
            self.input.fleet.lagging(self.input.revision)
        };
        match (moving, lag) {
            (Some(source), Some(lag)) => {
                return Some((
                    of(
                        ConditionReason::WaitingForPods,
                        format!("{}: {lag}", source.name),
                    ),
                    since,
                ));
            }
            // A source that went leaves no time to count from.
            (None, Some(lag)) if self.is_news() => {
                return Some((of(ConditionReason::WaitingForPods, lag), None));
            }
            _ => {}
        }
        let unreachable = |source: &RecordedSource, error: String| {
            let message = format!("{} ({}): {error}", source.name, origin(&source.definition));
            Some((
                of(ConditionReason::SourceUnreachable, message),
                Some(source.since),
            ))
        };
        for source in self.prepared() {
            if let Err(error) = self.fetched(source) {
                return unreachable(source, error);
            }
        }
        for source in self.unwanted().flat_map(|source| self.successors(source)) {
            if let Some(error) = self
                .input
                .fleet
                .ready()
                .find_map(|pod| has_keys(pod, &source.name).err())
            {
                return unreachable(source, error);
            }
        }
        if !self.left_out.is_empty() {
            let message = format!(
                "gateways take {MAX_SOURCES} sources; no room yet for {}",
                self.left_out.join(", ")
            );
            return Some((of(ConditionReason::TooManySources, message), None));
        }
        let until = |source: &RecordedSource| {
            source
                .retire_after
                .map(|until| format!("{} is accepted until {}", source.name, text(until)))
        };
        let overlaps: Vec<String> = self.retiring().filter_map(until).collect();
        (!overlaps.is_empty()).then(|| (of(ConditionReason::Overlap, overlaps.join("; ")), None))
    }

    /// Whether a ready pod says that it has other sources, or others of them trusted, than it is to have.
    fn is_news(&self) -> bool {
        let ours: BTreeSet<(&str, &str)> = self
            .next
            .sources
            .iter()
            .map(|source| (source.name.as_str(), state(source.stage)))
            .collect();
        self.input
            .fleet
            .ready()
            .filter_map(Pod::report)
            .any(|report| {
                report
                    .key_sources
                    .iter()
                    .map(|source| (source.name.as_str(), source.state.as_str()))
                    .collect::<BTreeSet<_>>()
                    != ours
            })
    }
}

/// As gateways call it.
fn state(stage: SourceStage) -> &'static str {
    match stage {
        SourceStage::Prepared => "prepared",
        SourceStage::Trusted => "trusted",
        SourceStage::Retiring => "retiring",
    }
}

/// Whether this pod has keys of the source, and got them the last time it asked.
fn fetched_by(pod: &Pod, name: &str) -> Result<(), String> {
    has_keys(pod, name)?;
    let error = pod.report().and_then(|report| {
        report
            .key_sources
            .iter()
            .find(|source| source.name == name)?
            .error
            .as_deref()
    });
    error.map_or(Ok(()), |error| Err(format!("pod {}: {error}", pod.name)))
}

/// Whether this pod has keys of the source, be they fresh or not.
fn has_keys(pod: &Pod, name: &str) -> Result<(), String> {
    let report = pod
        .report
        .as_ref()
        .map_err(|error| format!("pod {}: {error}", pod.name))?;
    match report.key_sources.iter().find(|source| source.name == name) {
        Some(source) if !source.keys.is_empty() => Ok(()),
        Some(source) => Err(format!(
            "pod {}: {}",
            pod.name,
            source.error.as_deref().unwrap_or("has no keys of it yet")
        )),
        None => Err(format!("pod {} does not know it", pod.name)),
    }
}

fn origin(definition: &SourceDefinition) -> &str {
    definition.url.as_deref().unwrap_or("managed keys")
}

fn span(duration: signal_crds::Duration) -> TimeDelta {
    TimeDelta::from_std(duration.std()).unwrap_or(TimeDelta::days(36_500))
}

/// RFC 3339, whole seconds.
fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests;

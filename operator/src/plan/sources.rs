//! Rotation of key sources: Prepared -> Trusted -> Retiring -> removed.
//!
//! Any difference in its definition makes a source a new one. A new source is added first, and every pod fetches its keys before anyone trusts them.
//! A source that the spec does not name any more is accepted until every ready pod trusts its successor, and for the overlap after that. Each stage
//! is a revision of the live settings; the next stage starts only when every ready pod holds the last one. Starting pods read the newest revision, so
//! without a ready pod there is nothing to wait for; but keys that a running pod could fetch are never trusted unseen.
//!
//! The successor of a source is a wanted one of the same name, or of the same issuer: a renamed source is kept until the one with the new name is
//! trusted. A source without a successor waits until nothing is being prepared, because a source of another name and issuer may replace it. Every
//! wanted name and issuer always has an accepted source that had been trusted before, however often the spec changes meanwhile.
//!
//! `emergency` is the exception, for the sources that it names: one of them that is not wanted loses trust in one step and its connections are closed;
//! a wanted source that replaces it is trusted at once, fetched or not, so that it serves as soon as it is fetched. Names that lost trust are listed
//! until every pod has taken the list and the emergency is over. An emergency that names none, which the API server refuses today, is about all.

mod waiting;

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use signal_crds::jwks::Rotation;
use signal_crds::status::{SourceStage, SourceStatus};

use crate::observe::fleet::{Fleet, Pod, lag};
use crate::plan::record::{RecordedSource, SourceDefinition, SourcesRecord};
use crate::plan::{Due, DueReason, Plan, PlanEvent};
use crate::reasons::EventReason;

/// Most sources that a gateway accepts.
const MAX_SOURCES: usize = 16;
/// Most revoked names that a gateway accepts; the oldest are dropped first.
const MAX_REVOKED: usize = 64;

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct SourcesInput<'a> {
    /// Sources as the spec wants them, by their declared names.
    pub wanted: &'a [(String, SourceDefinition)],
    /// The settings of a rotation.
    pub rotation: &'a Rotation,
    /// The stages so far.
    pub record: &'a SourcesRecord,
    /// Revision of the `live.toml` in the cluster that was made from exactly this record; `None`: it does not exist yet.
    pub revision: Option<&'a str>,
    /// Sources as the last status showed them. They count where the record is lost.
    pub shown: &'a [SourceStatus],
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
        due: Vec::new(),
        left_out: Vec::new(),
    };
    let revoked = match input.rotation.emergency {
        true => step.revoke(),
        false => Vec::new(),
    };
    let is_first = input.record.sources.is_empty() && input.revision.is_none();
    if is_first && step.is_record_lost() {
        step.begin_again();
    } else if is_first || (input.rotation.emergency && input.rotation.emergency_sources.is_empty())
    {
        step.trust_at_once(|_, _| true);
    } else {
        if input.rotation.emergency {
            step.replace(&revoked);
        }
        step.rotate();
    }
    let waiting = step.waiting();
    let ends = step.next.sources.iter().filter_map(|it| it.retire_after);
    step.due.extend(ends.map(|at| Due {
        at,
        why: DueReason::Overlap,
    }));
    Plan {
        next: step.next,
        waiting,
        due: step.due,
        events: step.events,
    }
}

struct Step<'a> {
    input: &'a SourcesInput<'a>,
    now: DateTime<Utc>,
    next: SourcesRecord,
    events: Vec<PlanEvent>,
    due: Vec<Due>,
    /// Declared names of wanted sources beyond [`MAX_SOURCES`].
    left_out: Vec<&'a str>,
}

impl<'a> Step<'a> {
    /// Takes trust from sources that the emergency is about and that are not wanted; returns them.
    fn revoke(&mut self) -> Vec<RecordedSource> {
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.next.sources)
            .into_iter()
            .partition(|source| !self.is_wanted(source) && self.is_in_emergency(source));
        self.next.sources = kept;
        for source in &gone {
            // A source that was never trusted has no connections.
            if source.stage == SourceStage::Prepared {
                self.event(
                    EventReason::SourceRemoved,
                    format!("{} was never trusted", source.name),
                );
                continue;
            }
            let note = format!(
                "{} lost trust in an emergency: its connections are closed",
                source.name
            );
            self.events
                .push(PlanEvent::warning(EventReason::SourceRevoked, note));
            self.next.revoked_sources.push(source.name.clone());
            self.next.revoked_since = Some(self.now);
        }
        let surplus = self.next.revoked_sources.len().saturating_sub(MAX_REVOKED);
        self.next.revoked_sources.drain(..surplus);
        gone
    }

    /// Whether the emergency names this source.
    fn is_in_emergency(&self, source: &RecordedSource) -> bool {
        let named = &self.input.rotation.emergency_sources;
        named.is_empty()
            || named
                .iter()
                .any(|name| *name == source.declared || *name == source.name)
    }

    /// Trusts wanted sources that replace what the emergency is about: those of a name that it has, and of an issuer that lost trust in this step.
    fn replace(&mut self, revoked: &[RecordedSource]) {
        let input = self.input;
        self.trust_at_once(|declared, definition| {
            let named = &input.rotation.emergency_sources;
            named.iter().any(|name| name == declared)
                || revoked
                    .iter()
                    .any(|source| source.definition.is_of_issuer(definition))
        });
    }

    /// Trusts these wanted sources, fetched or not: in an emergency, and in the first configuration, which has no other.
    fn trust_at_once(&mut self, which: impl Fn(&str, &SourceDefinition) -> bool) {
        let trusted: BTreeSet<String> = self
            .next
            .sources
            .iter()
            .filter(|source| self.is_wanted(source) && which(&source.declared, &source.definition))
            .map(|source| source.name.clone())
            .collect();
        self.advance(|source| match source.stage {
            _ if !trusted.contains(&source.name) => None,
            SourceStage::Prepared => Some((SourceStage::Trusted, EventReason::SourceTrusted)),
            SourceStage::Retiring => Some((SourceStage::Trusted, EventReason::SourceTakenBack)),
            SourceStage::Trusted => None,
        });
        let wanted = self.input.wanted.iter();
        self.add(
            SourceStage::Trusted,
            wanted.filter(|(declared, definition)| which(declared, definition)),
        );
    }

    /// Whether pods run with sources of which no record is left.
    fn is_record_lost(&self) -> bool {
        !self.input.shown.is_empty() && self.input.fleet.alive().next().is_some()
    }

    /// Without any record: trusts the wanted sources that the last status showed as trusted, and has pods fetch the others first.
    fn begin_again(&mut self) {
        let shown = self.input.shown;
        let was_trusted = |declared: &str, definition: &SourceDefinition| {
            shown.iter().any(|shown| {
                shown.name == declared
                    && shown.issuer == definition.issuer
                    && shown.state != SourceStage::Prepared
            })
        };
        self.trust_at_once(was_trusted);
        self.add(SourceStage::Prepared, self.input.wanted.iter());
        let note = "the live ConfigMap and the copy of its record are gone: sources that the status showed as trusted stay so, pods fetch all others first, and sources that \
                    were retiring are refused"
            .to_owned();
        self.events
            .push(PlanEvent::warning(EventReason::RecordLost, note));
    }

    fn rotate(&mut self) {
        self.take_back();
        self.remove_unused();
        self.add(SourceStage::Prepared, self.input.wanted.iter());
        if self.changed() || self.input.fleet.lagging(self.input.revision).is_some() {
            return;
        }
        // Both use the acknowledged record: a source that becomes trusted in this step lets nothing retire yet.
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

    /// Trusts retiring sources that are wanted again. While no source of a wanted name or issuer is trusted, trusts the one that was trusted last.
    fn take_back(&mut self) {
        let mut back: BTreeSet<String> = self
            .retiring()
            .filter(|source| self.is_wanted(source))
            .map(|source| source.name.clone())
            .collect();
        for (declared, definition) in self.input.wanted {
            let of_name = |source: &&RecordedSource| source.declared == *declared;
            let of_issuer = |source: &&RecordedSource| source.definition.is_of_issuer(definition);
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

    /// Removes sources without an acknowledgement: those that were never trusted, and those whose overlap has ended.
    fn remove_unused(&mut self) {
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
                format!("{} is removed: its tokens are refused", source.name),
            );
        }
        let is_over = !self.input.rotation.emergency;
        if is_over && !self.next.revoked_sources.is_empty() && self.revocation_lag().is_none() {
            self.next.revoked_sources.clear();
            self.next.revoked_since = None;
        }
    }

    /// Adds those of these wanted sources that are not there yet.
    fn add(
        &mut self,
        stage: SourceStage,
        wanted: impl Iterator<Item = &'a (String, SourceDefinition)>,
    ) {
        for (declared, definition) in wanted {
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
                    format!(
                        "pods fetch {name} ({}) before it is trusted",
                        origin(definition)
                    ),
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

    /// The declared name; with enough digits of the definition's hash if a pod may still have another source of that name.
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

    /// Moves every source for which `stage` returns one to that stage.
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

    /// Trusted sources that are not wanted.
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
            .any(|(_, definition)| definition.is_of_issuer(&source.definition))
    }

    /// Whether a source may retire: once its successor replaces it; without a successor, once nothing is being prepared that could replace it.
    fn may_retire(&self, source: &RecordedSource) -> bool {
        if self.has_successor(source) {
            self.is_replaced(source)
        } else {
            self.prepared().next().is_none()
        }
    }

    /// Whether another source of its name and one of its issuer, if those are wanted, is trusted and every ready pod has its keys.
    fn is_replaced(&self, source: &RecordedSource) -> bool {
        let named = |other: &RecordedSource| other.declared == source.declared;
        let issued = |other: &RecordedSource| other.definition.is_of_issuer(&source.definition);
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

    /// Trusted sources that may replace it: wanted ones, and later ones. So of several unwanted sources the last one is kept.
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

    /// Whether pods have fetched its keys: every ready pod; without a ready pod, at least one; without any pod, always.
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

    /// Which pods have not taken the revocations. Pods that are not ready but answer count too: they may hold connections.
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
}

/// Whether this pod has keys of the source and its last fetch succeeded.
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

/// Whether this pod has keys of the source, fresh or not.
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
        None => Err(format!("pod {} does not have this source yet", pod.name)),
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

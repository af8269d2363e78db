//! Whose tokens are accepted, and how that changes: Prepared -> Trusted -> Retiring -> gone, a stage at a time.
//!
//! | stage | gateways | left when |
//! |---|---|---|
//! | Prepared | fetch and validate it, refuse its tokens | every ready pod holds the revision that lists it and reports usable keys |
//! | Trusted | accept its tokens | the spec does not name it any more, and every source that the spec names is Trusted on every ready pod |
//! | Retiring | accept its tokens | `overlap` has passed since then |
//!
//! So a token of the old source is accepted everywhere until every pod has trusted the new one for the overlap, and a new source that cannot be
//! fetched changes nothing. One plan makes one step, and the next waits until every ready pod holds the revision that the step made. Pods that are
//! not ready are not waited for: when they come up they read what is current.
//!
//! The first configuration of a SignalCluster, and one that no pod reads, is trusted at once. With `emergency` a source that the spec does not
//! name goes at once, whether or not its successor can be fetched, and gateways close what rests on it.

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use signal_crds::jwks::Rotation;
use signal_crds::status::SourceStage;

use crate::fleet::{Fleet, Pod};
use crate::plan::{Happening, Plan, Waiting};
use crate::record::{Record, RecordedSource, SourceDefinition};

/// Reason: ready pods do not hold the newest configuration yet.
pub const WAITING_FOR_PODS: &str = "WaitingForPods";
/// Reason: they have not held it for longer than `ackTimeout`.
pub const TIMED_OUT: &str = "AcknowledgementTimedOut";
/// Reason: a pod cannot fetch a new source, or finds no usable key in it.
pub const UNREACHABLE: &str = "SourceUnreachable";
/// Reason: old sources must go before new ones fit.
pub const TOO_MANY: &str = "TooManySources";
/// Event: pods are told to fetch a source.
pub const PREPARED: &str = "SourcePrepared";
/// Event: tokens of a source are accepted.
pub const TRUSTED: &str = "SourceTrusted";
/// Event: the spec names a source again that was on its way out.
pub const TAKEN_BACK: &str = "SourceTakenBack";
/// Event: a source is accepted for the overlap alone.
pub const RETIRING: &str = "SourceRetiring";
/// Event: a source is gone.
pub const REMOVED: &str = "SourceRemoved";
/// Event: a source lost trust in an emergency.
pub const REVOKED: &str = "SourceRevoked";

/// Most sources that gateways are told of (`live.default.toml` of the gateway).
const MAX_SOURCES: usize = 16;

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct JwksInput<'a> {
    /// Sources of the spec by their declared names.
    pub wanted: &'a [(String, SourceDefinition)],
    /// How a change proceeds.
    pub rotation: &'a Rotation,
    /// What is recorded.
    pub record: &'a Record,
    /// Revision of the `live.toml` in the cluster that was made from exactly this record; `None`: there is none yet.
    pub revision: Option<&'a str>,
    /// The pods.
    pub fleet: &'a Fleet,
}

/// The next step of a rotation: changes `sources` and `revoked_sources` alone.
pub fn plan(input: &JwksInput<'_>, now: DateTime<Utc>) -> Plan<Record> {
    let mut step = Step { input, now, next: input.record.clone(), waiting: None, events: Vec::new() };
    if input.rotation.emergency {
        step.revoke();
    }
    if !step.follow_the_spec() && step.is_acknowledged() && !step.trust() {
        step.retire();
    }
    Plan { next: step.next, waiting: step.waiting, events: step.events }
}

struct Step<'a> {
    input: &'a JwksInput<'a>,
    now: DateTime<Utc>,
    next: Record,
    waiting: Option<Waiting>,
    events: Vec<Happening>,
}

impl Step<'_> {
    fn is_wanted(&self, source: &RecordedSource) -> bool {
        self.input.wanted.iter().any(|(declared, definition)| *declared == source.declared && *definition == source.definition)
    }

    fn tell(&mut self, reason: &'static str, note: String) {
        self.events.push(Happening::normal(reason, note));
    }

    /// Nobody reads what is written: there is nobody to be in step with.
    fn is_unread(&self) -> bool {
        self.input.fleet.alive().next().is_none()
    }

    /// What the spec does not name goes at once.
    fn revoke(&mut self) {
        let (stay, go): (Vec<_>, Vec<_>) = self.next.sources.clone().into_iter().partition(|source| self.is_wanted(source));
        self.next.sources = stay;
        for source in go {
            if source.stage != SourceStage::Prepared && !self.next.revoked_sources.contains(&source.name) {
                self.next.revoked_sources.push(source.name.clone());
            }
            self.events
                .push(Happening::warning(REVOKED, format!("source {} of {} lost trust at once", source.name, source.definition.issuer)));
        }
    }

    /// What needs no acknowledgement: sources that come, come back, or go before they were trusted. Says whether anything changed.
    fn follow_the_spec(&mut self) -> bool {
        let before = self.next.sources.clone();
        let was_revoked = self.next.revoked_sources != self.input.record.revoked_sources;
        let unwanted: Vec<RecordedSource> = before.iter().filter(|source| !self.is_wanted(source)).cloned().collect();
        for source in unwanted.iter().filter(|source| source.stage == SourceStage::Prepared) {
            self.next.sources.retain(|kept| kept.name != source.name);
            self.tell(REMOVED, format!("source {} is not wanted any more; it was never trusted", source.name));
        }
        let at_once = self.input.rotation.emergency || self.is_unread() || self.input.revision.is_none();
        for (declared, definition) in self.input.wanted {
            let found = self.next.sources.iter().position(|source| source.declared == *declared && source.definition == *definition);
            match found {
                Some(at) => self.keep(at, at_once),
                None => self.add(declared, definition, at_once),
            }
        }
        let changed = was_revoked || self.next.sources != before;
        if changed && !self.is_unread() {
            self.wait(WAITING_FOR_PODS, "pods have not read the newest configuration yet".into());
        }
        changed
    }

    fn keep(&mut self, at: usize, at_once: bool) {
        let source = &mut self.next.sources[at];
        let (name, issuer) = (source.name.clone(), source.definition.issuer.clone());
        let reason = match source.stage {
            SourceStage::Retiring => TAKEN_BACK,
            SourceStage::Prepared if at_once => TRUSTED,
            SourceStage::Prepared | SourceStage::Trusted => return,
        };
        source.stage = SourceStage::Trusted;
        source.since = self.now;
        source.retire_after = None;
        self.tell(reason, format!("source {name} of {issuer} is trusted"));
    }

    fn add(&mut self, declared: &str, definition: &SourceDefinition, at_once: bool) {
        if self.next.sources.len() >= MAX_SOURCES {
            return self.wait(TOO_MANY, format!("source {declared}: gateways take {MAX_SOURCES} sources; old ones go first"));
        }
        let name = self.free_name(declared, definition);
        let (stage, reason) = if at_once { (SourceStage::Trusted, TRUSTED) } else { (SourceStage::Prepared, PREPARED) };
        self.tell(reason, format!("source {name} of {}", definition.issuer));
        self.next.sources.push(RecordedSource {
            name,
            declared: declared.to_owned(),
            definition: definition.clone(),
            stage,
            since: self.now,
            retire_after: None,
        });
    }

    /// The declared name, or that and a hash where gateways still know another source by it.
    fn free_name(&self, declared: &str, definition: &SourceDefinition) -> String {
        let is_free = |name: &str| {
            !self.next.sources.iter().any(|source| source.name == name) && !self.next.revoked_sources.iter().any(|revoked| revoked == name)
        };
        if is_free(declared) {
            return declared.to_owned();
        }
        let text = serde_json::to_string(definition).expect("a definition is plain data");
        let mut digest = Sha256::digest(text.as_bytes());
        loop {
            let hash: String = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
            let name = format!("{declared}-{hash}");
            if is_free(&name) {
                return name;
            }
            // The same definition was revoked a moment ago.
            digest = Sha256::digest(digest);
        }
    }

    fn wait(&mut self, reason: &'static str, message: String) {
        self.waiting.get_or_insert(Waiting { reason, message });
    }

    /// Every ready pod holds the revision that was made from the record; otherwise says who does not.
    fn is_acknowledged(&mut self) -> bool {
        let Some(revision) = self.input.revision else { return false };
        let missing = self.input.fleet.missing_acknowledgement(revision);
        let Some(pod) = missing.first() else { return true };
        let why = match &pod.report {
            Ok(report) => report.live_error.clone().unwrap_or_else(|| "it holds an older configuration".into()),
            Err(error) => error.clone(),
        };
        let message = format!("{}: {why}", pod.name);
        let begun = self.next.sources.iter().map(|source| source.since).max();
        let is_moving = self.next.sources.iter().any(|source| source.stage != SourceStage::Trusted);
        if begun.is_some_and(|begun| self.now - begun > span(self.input.rotation.ack_timeout)) {
            // Without a change under way a pod that lags says so in `status.config`.
            if is_moving {
                self.wait(TIMED_OUT, message);
            }
        } else {
            self.wait(WAITING_FOR_PODS, message);
        }
        false
    }

    /// Prepared sources that every ready pod has fetched become Trusted. Says whether anything changed.
    fn trust(&mut self) -> bool {
        let ready: Vec<&Pod> = self.input.fleet.ready().collect();
        let mut changed = false;
        for at in 0..self.next.sources.len() {
            let source = &self.next.sources[at];
            if source.stage != SourceStage::Prepared {
                continue;
            }
            let name = source.name.clone();
            if ready.is_empty() {
                self.wait(WAITING_FOR_PODS, format!("source {name}: no pod is ready to fetch it"));
                continue;
            }
            if let Some((pod, why)) = ready.iter().find_map(|pod| Some((pod.name.clone(), cannot_use(pod, &name)?))) {
                self.wait(UNREACHABLE, format!("source {name}: {pod}: {why}"));
                continue;
            }
            let source = &mut self.next.sources[at];
            source.stage = SourceStage::Trusted;
            source.since = self.now;
            changed = true;
            self.tell(TRUSTED, format!("source {name}: every ready pod has fetched it, its tokens are accepted"));
        }
        if changed {
            self.wait(WAITING_FOR_PODS, "pods have not read the newest configuration yet".into());
        }
        changed
    }

    /// What the spec does not name goes, once all that it names is trusted everywhere.
    fn retire(&mut self) {
        if !self.input.rotation.emergency {
            self.next.revoked_sources.clear();
        }
        let all_trusted = self.input.wanted.iter().all(|(declared, definition)| {
            self.next
                .sources
                .iter()
                .any(|source| source.declared == *declared && source.definition == *definition && source.stage == SourceStage::Trusted)
        });
        let overlap = span(self.input.rotation.overlap);
        let mut kept = Vec::new();
        for mut source in std::mem::take(&mut self.next.sources) {
            match source.stage {
                SourceStage::Trusted if all_trusted && !self.is_wanted(&source) => {
                    source.stage = SourceStage::Retiring;
                    source.since = self.now;
                    let until = self.now + overlap;
                    source.retire_after = Some(until);
                    self.tell(RETIRING, format!("source {} is accepted until {}", source.name, until.to_rfc3339()));
                    kept.push(source);
                }
                SourceStage::Retiring if source.retire_after.is_some_and(|until| until <= self.now) => {
                    self.tell(REMOVED, format!("source {}: the overlap is over", source.name));
                }
                _ => kept.push(source),
            }
        }
        self.next.sources = kept;
    }
}

/// Why a pod cannot use a source, if it cannot.
fn cannot_use(pod: &Pod, name: &str) -> Option<String> {
    let report = match &pod.report {
        Ok(report) => report,
        Err(error) => return Some(error.clone()),
    };
    match report.key_sources.iter().find(|source| source.name == name) {
        None => Some("it does not know the source yet".into()),
        Some(source) => source.error.clone().or_else(|| source.keys.is_empty().then(|| "it has no usable key".into())),
    }
}

fn span(duration: signal_crds::Duration) -> TimeDelta {
    TimeDelta::from_std(duration.std()).unwrap_or(TimeDelta::MAX)
}

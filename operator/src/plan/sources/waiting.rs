//! What a rotation waits for.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use signal_contract::SourceState;

use super::{MAX_SOURCES, Step, has_keys, origin, span, text};
use crate::observe::fleet::Pod;
use crate::plan::record::RecordedSource;
use crate::plan::{Due, DueReason, PlanEvent, Waiting};
use crate::reasons::{ConditionReason, EventReason};

/// A change of this step, which pods cannot have.
const NOT_WRITTEN: &str = "this step has not been written yet";

impl Step<'_> {
    pub(super) fn waiting(&mut self) -> Option<Waiting> {
        let (waiting, since) = self.obstacle()?;
        let late = span(self.input.rotation.ack_timeout);
        self.due.extend(since.map(|since| Due {
            at: since + late,
            why: DueReason::Acknowledgement,
        }));
        let Some(since) = since.filter(|since| self.now - *since >= late) else {
            return Some(waiting);
        };
        let note = format!("waiting since {}: {}", text(since), waiting.message);
        self.events.push(PlanEvent::warning(
            EventReason::AcknowledgementTimedOut,
            note.clone(),
        ));
        // SourceUnreachable is more precise than a timeout.
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

    /// Why the rotation cannot take its next step or end; and since when, if it should end by itself within the timeout.
    fn obstacle(&self) -> Option<(Waiting, Option<DateTime<Utc>>)> {
        let of = |reason, message| Waiting { reason, message };
        // A change of this step cannot be late.
        let since = self
            .next
            .sources
            .iter()
            .map(|source| source.since)
            .max()
            .filter(|_| !self.changed());
        if !self.next.revoked_sources.is_empty() {
            return Some(self.revocation_obstacle());
        }
        let moving = self.prepared().chain(self.unwanted()).next();
        let lag = if self.changed() {
            Some(NOT_WRITTEN.to_owned())
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
            // A removed source leaves no time to count from.
            (None, Some(lag)) if self.is_outdated_somewhere() => {
                return Some((of(ConditionReason::WaitingForPods, lag), None));
            }
            _ => {}
        }
        if let Some((source, error)) = self.unreachable() {
            let message = format!("{} ({}): {error}", source.name, origin(&source.definition));
            let waiting = of(ConditionReason::SourceUnreachable, message);
            return Some((waiting, Some(source.since)));
        }
        if !self.left_out.is_empty() {
            let message = format!(
                "gateways accept {MAX_SOURCES} sources; waiting for room: {}",
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

    /// What an emergency waits for: pods, and then the end of the emergency.
    fn revocation_obstacle(&self) -> (Waiting, Option<DateTime<Utc>>) {
        let names = self.next.revoked_sources.join(", ");
        let lag = if self.changed() {
            Some(NOT_WRITTEN.to_owned())
        } else {
            self.revocation_lag()
        };
        match lag {
            Some(lag) => (
                Waiting {
                    reason: ConditionReason::WaitingForPods,
                    message: format!("revocation of {names}: {lag}"),
                },
                self.next.revoked_since.filter(|_| !self.changed()),
            ),
            None => (
                Waiting {
                    reason: ConditionReason::EmergencyInForce,
                    message: format!(
                        "{names} are revoked everywhere; set spec.jwks.rotation.emergency to false"
                    ),
                },
                None,
            ),
        }
    }

    /// A source that some pod needs for the next step and cannot fetch, and its error.
    fn unreachable(&self) -> Option<(&RecordedSource, String)> {
        let prepared = self
            .prepared()
            .find_map(|source| Some((source, self.fetched(source).err()?)));
        prepared.or_else(|| {
            self.unwanted()
                .flat_map(|source| self.successors(source))
                .find_map(|source| {
                    let mut ready = self.input.fleet.ready();
                    let error = ready.find_map(|pod| has_keys(pod, &source.name).err())?;
                    Some((source, error))
                })
        })
    }

    /// Whether a ready pod reports other sources or other stages than the record.
    fn is_outdated_somewhere(&self) -> bool {
        let ours: BTreeSet<(&str, Option<SourceState>)> = self
            .next
            .sources
            .iter()
            .map(|source| (source.name.as_str(), Some(source.stage.into())))
            .collect();
        self.input
            .fleet
            .ready()
            .filter_map(Pod::report)
            .any(|report| {
                report
                    .key_sources
                    .iter()
                    .map(|source| (source.name.as_str(), source.state))
                    .collect::<BTreeSet<_>>()
                    != ours
            })
    }
}

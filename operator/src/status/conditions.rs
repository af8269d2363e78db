//! The conditions of a SignalCluster: a closed list, each with stable reasons (API conventions, "Typical status properties").
//!
//! The status has all of them from the first reconcile on; those without a finding are `Unknown`. Reconciling and Stalled are there only while they hold.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use signal_crds::status::UNSEEN_REASON;

use crate::reasons::ConditionReason;
use crate::time::to_k8s;

/// Longest message that is kept; the schema of metav1.Condition allows 32 KiB, people read less.
const MAX_MESSAGE: usize = 1024;

/// Every condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The summary: the spec is accepted and all wanted pods of the newest revision serve with working parts.
    Ready,
    /// Enough pods serve: all that are wanted, minus those that the disruption budget allows to be unavailable.
    Available,
    /// Something is changing towards the spec.
    Progressing,
    /// Something is wrong that waiting alone may not fix.
    Degraded,
    /// The spec is valid.
    SpecAccepted,
    /// Every Secret and ConfigMap that the spec names exists and is usable.
    SecretsResolved,
    /// Every ready pod receives its own messages through Redis.
    RedisReachable,
    /// No partition waits for a dependency.
    KafkaReachable,
    /// The database has the schema of the image.
    DatabaseMigrated,
    /// Every ready pod has usable keys of every source.
    JWKSHealthy,
    /// No source is between two stages.
    JWKSRotationComplete,
    /// `spec.jwks.rotation.emergency` is set.
    EmergencyInForce,
    /// The Secret holds every key that the operator made and that is still needed.
    SigningKeysIntact,
    /// The objects through which people reach the public Service from outside are as the spec wants them.
    Exposed,
    /// The objects for Prometheus's operator are as the spec wants them.
    Monitored,
    /// Pods keep their template because only the operator is another one.
    UpdatePending,
    /// A bound, a rollout or a drain limits the number of pods.
    ScalingLimited,
    /// `spec.paused` is set.
    ReconciliationPaused,
    /// What the spec wants is not in force yet, and the operator goes on by itself. Of kstatus.
    Reconciling,
    /// Nothing goes on until somebody changes something. Of kstatus.
    Stalled,
}

use ConditionType as Type;

impl ConditionType {
    /// All, in the order in which the status lists them.
    pub const ALL: [Self; 20] = [
        Type::Ready,
        Type::Available,
        Type::Progressing,
        Type::Degraded,
        Type::SpecAccepted,
        Type::SecretsResolved,
        Type::RedisReachable,
        Type::KafkaReachable,
        Type::DatabaseMigrated,
        Type::JWKSHealthy,
        Type::JWKSRotationComplete,
        Type::EmergencyInForce,
        Type::SigningKeysIntact,
        Type::Exposed,
        Type::Monitored,
        Type::UpdatePending,
        Type::ScalingLimited,
        Type::ReconciliationPaused,
        Type::Reconciling,
        Type::Stalled,
    ];

    /// As the status writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Type::Ready => "Ready",
            Type::Available => "Available",
            Type::Progressing => "Progressing",
            Type::Degraded => "Degraded",
            Type::SpecAccepted => "SpecAccepted",
            Type::SecretsResolved => "SecretsResolved",
            Type::RedisReachable => "RedisReachable",
            Type::KafkaReachable => "KafkaReachable",
            Type::DatabaseMigrated => "DatabaseMigrated",
            Type::JWKSHealthy => "JWKSHealthy",
            Type::JWKSRotationComplete => "JWKSRotationComplete",
            Type::EmergencyInForce => "EmergencyInForce",
            Type::SigningKeysIntact => "SigningKeysIntact",
            Type::Exposed => "Exposed",
            Type::Monitored => "Monitored",
            Type::UpdatePending => "UpdatePending",
            Type::ScalingLimited => "ScalingLimited",
            Type::ReconciliationPaused => "ReconciliationPaused",
            Type::Reconciling => "Reconciling",
            Type::Stalled => "Stalled",
        }
    }

    /// Whether the status lists it only while it is true, as kstatus wants it: "abnormal-true".
    pub fn is_listed_only_while_true(self) -> bool {
        matches!(self, Type::Reconciling | Type::Stalled)
    }
}

/// Status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It is not known.
    Unknown,
}

impl State {
    /// As metav1.Condition writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::True => "True",
            State::False => "False",
            State::Unknown => "Unknown",
        }
    }
}

/// What a reconcile found about one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The condition.
    pub kind: ConditionType,
    /// Its status.
    pub state: State,
    /// Its reason.
    pub reason: ConditionReason,
    /// For people.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(
        kind: ConditionType,
        state: State,
        reason: ConditionReason,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            state,
            reason,
            message: message.into(),
        }
    }
}

/// The conditions after these findings. A condition that keeps its status keeps its transition time. One without a finding stays as it is, and is
/// `Unknown` at first; one that is listed only while it is true is left out.
pub fn conditions(
    before: &[Condition],
    findings: &[Finding],
    generation: Option<i64>,
    now: DateTime<Utc>,
) -> Vec<Condition> {
    let next = |kind: ConditionType| {
        // What the definition says of an object that no operator has looked at is no state of it.
        let old = before.iter().find(|condition| {
            condition.type_ == kind.as_str() && condition.reason != UNSEEN_REASON
        });
        let Some(found) = findings.iter().find(|finding| finding.kind == kind) else {
            if kind.is_listed_only_while_true() {
                return None;
            }
            return Some(old.cloned().unwrap_or_else(|| Condition {
                type_: kind.as_str().into(),
                status: State::Unknown.as_str().into(),
                reason: ConditionReason::NotReported.as_str().into(),
                message: "no reconcile has reported it yet".into(),
                observed_generation: generation,
                last_transition_time: to_k8s(now),
            }));
        };
        let since = old
            .filter(|old| old.status == found.state.as_str())
            .map(|old| old.last_transition_time.clone());
        Some(Condition {
            type_: kind.as_str().into(),
            status: found.state.as_str().into(),
            reason: found.reason.as_str().into(),
            message: shortened(&found.message),
            observed_generation: generation,
            last_transition_time: since.unwrap_or_else(|| to_k8s(now)),
        })
    };
    ConditionType::ALL.into_iter().filter_map(next).collect()
}

fn shortened(text: &str) -> String {
    if text.len() <= MAX_MESSAGE {
        return text.to_owned();
    }
    let end = (0..=MAX_MESSAGE)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(secs, 0).unwrap()
    }

    #[test]
    fn every_condition_is_there_from_the_first_time_on() {
        let all = conditions(&[], &[], Some(1), at(10));
        let listed = ConditionType::ALL.iter();
        let listed: Vec<_> = listed
            .filter(|kind| !kind.is_listed_only_while_true())
            .map(|kind| kind.as_str())
            .collect();
        let found: Vec<_> = all.iter().map(|one| one.type_.as_str()).collect();
        assert_eq!(found, listed);
        assert!(
            all.iter().all(|condition| condition.status == "Unknown"
                && condition.observed_generation == Some(1))
        );
    }

    #[test]
    fn the_transition_time_moves_only_with_the_state() {
        let found = |state, reason| vec![Finding::new(Type::Ready, state, reason, "text")];
        let first = conditions(
            &[],
            &found(State::False, ConditionReason::PodsStarting),
            Some(1),
            at(10),
        );
        let other_reason = conditions(
            &first,
            &found(State::False, ConditionReason::RolloutInProgress),
            Some(2),
            at(20),
        );
        assert_eq!(
            (
                other_reason[0].reason.as_str(),
                &other_reason[0].last_transition_time
            ),
            ("RolloutInProgress", &to_k8s(at(10)))
        );
        assert_eq!(other_reason[0].observed_generation, Some(2));
        let turned = conditions(
            &other_reason,
            &found(State::True, ConditionReason::AllPodsReady),
            Some(2),
            at(30),
        );
        assert_eq!(turned[0].last_transition_time, to_k8s(at(30)));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let cut = shortened(&"é".repeat(2000));
        assert!(cut.ends_with("...") && cut.len() <= MAX_MESSAGE + 3);
    }
}

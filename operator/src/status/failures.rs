//! Objects that are not as the spec wants them, each in the condition of what it serves: exposure and monitoring fail apart from the gateways.

use super::conditions::{ConditionType as Type, Finding, State};
use crate::observe::observed::{KindAccess, Observed};
use crate::observe::resources::{HTTP_ROUTE, INGRESS, Owned, PROMETHEUS_RULE, SERVICE_MONITOR};
use crate::reasons::ConditionReason;

/// What an object serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Concern {
    /// The gateways themselves, and reaching them inside of the cluster.
    Service,
    /// Reaching them from outside.
    Exposure,
    /// Watching them.
    Monitoring,
}

impl Concern {
    fn of(kind: Owned) -> Self {
        match kind {
            INGRESS | HTTP_ROUTE => Self::Exposure,
            SERVICE_MONITOR | PROMETHEUS_RULE => Self::Monitoring,
            _ => Self::Service,
        }
    }
}

/// Why one object could not be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyFailure {
    /// Kind of the object.
    pub kind: Owned,
    /// Reason of the condition.
    pub reason: ConditionReason,
    /// For people.
    pub message: String,
    /// Whether it stays so until somebody changes something.
    pub is_final: bool,
}

/// One thing that keeps an object from serving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// How sure it is.
    urgency: Urgency,
    reason: ConditionReason,
    message: String,
}

/// What people look at first comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Somebody refuses it.
    Refused,
    /// The API server did not say.
    Unknown,
    /// Somebody has to answer first.
    Pending,
}

impl Obstacle {
    /// Somebody refuses it.
    pub(super) fn refused(reason: ConditionReason, message: String) -> Self {
        Self {
            urgency: Urgency::Refused,
            reason,
            message,
        }
    }

    /// Somebody has to answer first.
    pub(super) fn pending(reason: ConditionReason, message: String) -> Self {
        Self {
            urgency: Urgency::Pending,
            ..Self::refused(reason, message)
        }
    }
}

/// The condition that names everything that is wrong, with the reason of the first.
pub(super) fn sum_up(kind: Type, mut wrong: Vec<Obstacle>) -> Finding {
    wrong.sort_by_key(|wrong| wrong.urgency);
    let Some(first) = wrong.first() else {
        return Finding::new(kind, State::True, ConditionReason::Applied, "");
    };
    let state = match first.urgency {
        Urgency::Unknown => State::Unknown,
        Urgency::Refused | Urgency::Pending => State::False,
    };
    let messages: Vec<&str> = wrong.iter().map(|wrong| wrong.message.as_str()).collect();
    Finding::new(kind, state, first.reason, messages.join("; "))
}

/// Why the object that a field wants cannot be made; `None` where its kind can be used.
pub(super) fn unusable(observed: &Observed, kind: Owned, field: &str) -> Option<Obstacle> {
    let name = format!("{} {}", kind.api_version(), kind.kind);
    let (reason, why) = match observed.kinds.access(kind) {
        KindAccess::Usable => return None,
        KindAccess::Missing => (
            ConditionReason::KindMissing,
            format!("the API server does not know {name}"),
        ),
        KindAccess::Forbidden => (
            ConditionReason::KindForbidden,
            format!(
                "the operator has no right to list {}.{}",
                kind.plural, kind.group
            ),
        ),
        KindAccess::Unknown => (
            ConditionReason::ReadFailed,
            format!("the API server has not said whether it knows {name}"),
        ),
    };
    Some(Obstacle {
        urgency: match reason {
            ConditionReason::ReadFailed => Urgency::Unknown,
            _ => Urgency::Refused,
        },
        reason,
        message: format!("spec.{field}: {why}"),
    })
}

/// Reason and message of the first failure that concerns this.
pub(super) fn first(
    failures: &[ApplyFailure],
    concern: Concern,
) -> Option<(ConditionReason, String)> {
    let mut of = failures.iter();
    let failure = of.find(|failure| Concern::of(failure.kind) == concern)?;
    Some((failure.reason, failure.message.clone()))
}

/// All failures that concern this.
pub(super) fn of_concern(failures: &[ApplyFailure], concern: Concern) -> Vec<Obstacle> {
    failures
        .iter()
        .filter(|failure| Concern::of(failure.kind) == concern)
        .map(|failure| Obstacle::refused(failure.reason, failure.message.clone()))
        .collect()
}

/// Condition Monitored.
pub(super) fn monitored(observed: &Observed, failures: &[ApplyFailure]) -> Finding {
    let wants = &observed.cluster.spec.observability;
    let mut wrong = of_concern(failures, Concern::Monitoring);
    if wants.service_monitor.is_some() {
        let field = "observability.serviceMonitor";
        wrong.extend(unusable(observed, SERVICE_MONITOR, field));
    }
    if wants.prometheus_rule.is_some() {
        let field = "observability.prometheusRule";
        wrong.extend(unusable(observed, PROMETHEUS_RULE, field));
    }
    sum_up(Type::Monitored, wrong)
}

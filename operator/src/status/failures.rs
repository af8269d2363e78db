//! Objects that could not be applied, each in the condition of what it serves: exposure and monitoring fail apart from the gateways.

use super::conditions::{ConditionType as Type, Finding, State};
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

pub(super) fn exposed(failures: &[ApplyFailure]) -> Finding {
    applied(Type::Exposed, failures, Concern::Exposure)
}

pub(super) fn monitored(failures: &[ApplyFailure]) -> Finding {
    applied(Type::Monitored, failures, Concern::Monitoring)
}

fn applied(kind: Type, failures: &[ApplyFailure], concern: Concern) -> Finding {
    match first(failures, concern) {
        Some((reason, message)) => Finding::new(kind, State::False, reason, message),
        None => Finding::new(kind, State::True, ConditionReason::Applied, ""),
    }
}

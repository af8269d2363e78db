//! What every plan hands back beside its next state: what it waits for, and what is worth an Event.

pub mod autoscale;
pub mod rebalance;
pub mod record;
pub mod rollout;
pub mod routing;
pub mod scale;
pub mod signing;
pub mod sources;
pub mod validate;

/// Pods have not taken the live settings of this stage yet; reason of a [`Waiting`].
pub const WAITING_FOR_PODS: &str = "WaitingForPods";
/// They have not for longer than they may take; reason of a [`Waiting`] and of an Event.
pub const ACKNOWLEDGEMENT_TIMED_OUT: &str = "AcknowledgementTimedOut";

/// What keeps a plan from its next step: becomes the reason and message of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// CamelCase, of a closed list.
    pub reason: &'static str,
    /// For people: which pod, how long, until when.
    pub message: String,
}

/// Something that happened in this step: becomes an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanEvent {
    /// Whether someone should look.
    pub kind: Kind,
    /// CamelCase, of a closed list.
    pub reason: &'static str,
    /// For people.
    pub note: String,
}

/// Kind of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it should be.
    Normal,
    /// Someone should look.
    Warning,
}

/// A plan: the next state, and what people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<T> {
    /// What is to hold after this step; equal to what holds where there is nothing to do.
    pub next: T,
    /// What keeps it from the next step.
    pub waiting: Option<Waiting>,
    /// What happened in this step.
    pub events: Vec<PlanEvent>,
}

impl PlanEvent {
    /// As it should be.
    pub fn normal(reason: &'static str, note: String) -> Self {
        Self {
            kind: Kind::Normal,
            reason,
            note,
        }
    }

    /// Someone should look.
    pub fn warning(reason: &'static str, note: String) -> Self {
        Self {
            kind: Kind::Warning,
            reason,
            note,
        }
    }
}

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

use crate::reasons::{ConditionReason, EventReason};

/// What keeps a plan from its next step: becomes the reason and message of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Reason of the condition.
    pub reason: ConditionReason,
    /// For people: which pod, how long, until when.
    pub message: String,
}

/// Something that happened in this step: becomes an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanEvent {
    /// Whether someone should look.
    pub kind: Kind,
    /// Reason of the Event.
    pub reason: EventReason,
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
    pub fn normal(reason: EventReason, note: String) -> Self {
        Self {
            kind: Kind::Normal,
            reason,
            note,
        }
    }

    /// Someone should look.
    pub fn warning(reason: EventReason, note: String) -> Self {
        Self {
            kind: Kind::Warning,
            reason,
            note,
        }
    }
}

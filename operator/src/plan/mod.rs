//! Pure plans: each takes an observation and its own part of the record, and returns the next state, what it waits for, and Events.
//!
//! `validate` and `rollout` prepare the input of the others. No plan uses another one, holds a client, or reads a clock.

pub mod autoscale;
pub mod canary;
pub mod rebalance;
pub mod record;
pub mod rollout;
pub mod routing;
pub mod scale;
pub mod signing;
pub mod sources;
pub mod validate;

use crate::reasons::{ConditionReason, EventReason};

/// Why a plan cannot take its next step yet: reason and message of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Reason of the condition.
    pub reason: ConditionReason,
    /// For people: which pod, how long, until when.
    pub message: String,
}

/// Something that happened in this step: an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanEvent {
    /// Whether someone should look.
    pub kind: EventKind,
    /// Reason of the Event.
    pub reason: EventReason,
    /// For people.
    pub note: String,
}

/// EventKind of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// As it should be.
    Normal,
    /// Someone should look.
    Warning,
}

/// The result of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<T> {
    /// The state after this step; equal to the present one if there is nothing to do.
    pub next: T,
    /// Why it cannot take its next step yet.
    pub waiting: Option<Waiting>,
    /// What happened in this step.
    pub events: Vec<PlanEvent>,
}

impl PlanEvent {
    /// An Event of kind Normal.
    pub fn normal(reason: EventReason, note: String) -> Self {
        Self {
            kind: EventKind::Normal,
            reason,
            note,
        }
    }

    /// An Event of kind Warning.
    pub fn warning(reason: EventReason, note: String) -> Self {
        Self {
            kind: EventKind::Warning,
            reason,
            note,
        }
    }
}

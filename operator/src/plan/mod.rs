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

use chrono::{DateTime, Utc};

use crate::reasons::{ConditionReason, EventReason};

/// Why a plan cannot take its next step yet: reason and message of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Reason of the condition.
    pub reason: ConditionReason,
    /// For people: which pod, how long, until when.
    pub message: String,
}

impl Waiting {
    /// Whether it ends by what pods report, which no watch tells.
    pub fn is_for_pods(&self) -> bool {
        matches!(
            self.reason,
            ConditionReason::WaitingForPods
                | ConditionReason::AcknowledgementTimedOut
                | ConditionReason::SourceUnreachable
                | ConditionReason::RedisUnreachable
        )
    }
}

/// A time at which a plan changes although nothing else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The plan is the same until then, if what it looks at is.
    pub at: DateTime<Utc>,
    /// What happens then.
    pub why: DueReason,
}

/// What is due at a known time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueReason {
    /// The overlap of a retiring source ends.
    Overlap,
    /// Pods are late with an acknowledgement.
    Acknowledgement,
    /// A signing key is published, signs, or is dropped.
    SigningKey,
    /// A drain ends, finished or not.
    Drain,
    /// A failed migration is tried again, or one that has no pod is told.
    Migration,
    /// A canary was good for its soak, or not good until its deadline.
    Canary,
    /// A pod that is not ready has had its time to start.
    Starting,
    /// What kept a pod from serving is over for long enough.
    Problem,
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
    /// When the plan changes although nothing else does. Times that have passed may be among them.
    pub due: Vec<Due>,
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

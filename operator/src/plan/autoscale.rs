//! How many pods the connections need, by the rules of the HorizontalPodAutoscaler (Kubernetes, "Horizontal Pod Autoscaling: Algorithm
//! details" and "Configurable scaling behavior"): tolerance, missing pods, stabilization windows, policies.
//!
//! Input is what the staying pods report; output is a number to be written through the scale subresource, from where scaling reads it like any other
//! change of it. The history is kept in memory: a new leader starts with the present number as its first recommendation.

use chrono::{DateTime, TimeDelta, Utc};
use signal_crds::SignalClusterSpec;
use signal_crds::scaling::{Autoscaling, AutoscalingMode};

use crate::observe::fleet::{Fleet, Pod};
use crate::observe::observed::Observed;
use crate::reasons::ConditionReason;

mod behavior;

pub use behavior::History;

/// How far the mean may be from the target before anything changes (the HPA's default).
const TOLERANCE: f64 = 0.1;

/// The result of one decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// To be written through the scale subresource; `None`: leave it.
    pub replicas: Option<i32>,
    /// Why the number is not the needed one: reason of condition ScalingLimited.
    pub limited: Option<ConditionReason>,
    /// For people.
    pub message: String,
}

/// Wanted pods, and the bound that limited them, if any: 0 if the spec is stopped; within `minReplicas` and `maxReplicas` with autoscaling, unless
/// somebody switched modes Connections or HPA off by the number 0; else `replicas`.
pub fn wanted(number: &Number<'_>) -> (i32, Option<ConditionReason>) {
    let spec = number.spec;
    match &spec.autoscaling {
        _ if spec.stopped => (0, None),
        Some(autoscaling) if number.get() > 0 || autoscaling.mode == AutoscalingMode::External => {
            bound(autoscaling, number.get())
        }
        _ => (number.get(), None),
    }
}

/// The number of an observed SignalCluster.
pub fn number(observed: &Observed) -> Number<'_> {
    let deployment = observed.deployment.as_ref();
    Number {
        spec: &observed.cluster.spec,
        is_named: observed.replicas_named,
        running: deployment.and_then(|deployment| deployment.spec.as_ref()?.replicas),
    }
}

/// The number of pods before its bounds.
#[derive(Debug, Clone, Copy)]
pub struct Number<'a> {
    /// The spec.
    pub spec: &'a SignalClusterSpec,
    /// Whether `spec.replicas` is what somebody wrote, and not what the API server fills in after the field was removed.
    pub is_named: bool,
    /// Number of the Deployment, if there is one.
    pub running: Option<i32>,
}

impl Number<'_> {
    /// `spec.replicas`. With autoscaling, a number that fell because the field was removed is nobody's wish: then that of the Deployment.
    pub fn get(&self) -> i32 {
        let replicas = self.spec.replicas;
        match self.running {
            Some(running) if self.spec.autoscaling.is_some() && !self.is_named => {
                running.max(replicas)
            }
            _ => replicas,
        }
    }

    /// The number that the spec lost, to be written back.
    pub fn lost(&self) -> Option<i32> {
        let wanted = wanted(self).0;
        let is_lost = self.get() != self.spec.replicas && !self.spec.stopped;
        (is_lost && wanted != self.spec.replicas).then_some(wanted)
    }
}

fn bound(autoscaling: &Autoscaling, replicas: i32) -> (i32, Option<ConditionReason>) {
    if replicas > autoscaling.max_replicas {
        (
            autoscaling.max_replicas,
            Some(ConditionReason::TooManyReplicas),
        )
    } else if replicas < autoscaling.min_replicas {
        (
            autoscaling.min_replicas,
            Some(ConditionReason::TooFewReplicas),
        )
    } else {
        (replicas, None)
    }
}

/// The number of pods for the connections of `fleet`, where `current` is `spec.replicas`. Call it about every 15 seconds; not while the cluster
/// is paused or stopped.
pub fn decide(
    autoscaling: &Autoscaling,
    current: i32,
    fleet: &Fleet,
    history: &mut History,
    now: DateTime<Utc>,
) -> Decision {
    history.begin(autoscaling.behavior.as_ref(), current, now);
    if current == 0 {
        let message =
            "spec.replicas is 0: autoscaling starts once it is set to another number".to_owned();
        return Decision {
            replicas: None,
            limited: Some(ConditionReason::ScalingDisabled),
            message,
        };
    }
    // As in the HPA, a number out of bounds is corrected before anything is measured.
    if let (bounded, Some(reason)) = bound(autoscaling, current) {
        history.writes(current, bounded, now);
        let message = format!("spec.replicas is {current}, and becomes {bounded}");
        return Decision {
            replicas: Some(bounded),
            limited: Some(reason),
            message,
        };
    }
    let target = f64::from(autoscaling.target_connections_per_pod);
    let Some(sample) = Sample::of(fleet) else {
        let message = "no pod reports its connections: the number of pods stays".to_owned();
        return Decision {
            replicas: None,
            limited: Some(ConditionReason::MetricUnavailable),
            message,
        };
    };
    let needed = sample.replicas(current, target);
    let stabilized = history.stabilize(autoscaling.behavior.as_ref(), current, needed, now);
    let (next, limited) = history.limit(autoscaling, current, stabilized, now);
    let mut message = format!(
        "{} connections on {} pods need {needed} pods",
        sample.connections, sample.reporting
    );
    if sample.silent() > 0 {
        message.push_str(&format!("; {} pods do not answer", sample.silent()));
    }
    if stabilized != needed {
        message.push_str("; the stabilization window delays the change");
    }
    if next != current {
        history.writes(current, next, now);
    }
    Decision {
        replicas: (next != current).then_some(next),
        limited,
        message,
    }
}

/// What the staying pods report.
struct Sample {
    connections: i64,
    reporting: u32,
    /// Have an address, do not answer.
    missing: u32,
    /// Have no address.
    pending: u32,
}

impl Sample {
    /// `None`: no pod reports. Draining pods and their connections are left out, as in `status.selector`.
    fn of(fleet: &Fleet) -> Option<Self> {
        let mut sample = Self {
            connections: 0,
            reporting: 0,
            missing: 0,
            pending: 0,
        };
        for pod in fleet.pods.iter().filter(|pod| Pod::stays(pod)) {
            match pod.report() {
                Some(report) => {
                    sample.connections += report.connections.total;
                    sample.reporting += 1;
                }
                None if pod.node.is_none() || pod.ip.is_none() => sample.pending += 1,
                None => sample.missing += 1,
            }
        }
        (sample.reporting > 0).then_some(sample)
    }

    fn silent(&self) -> u32 {
        self.missing + self.pending
    }

    /// The HPA's rule for a metric of pods: on the way down a missing pod counts with the target, on the way up missing and pending pods count with
    /// zero; if that reverses the direction, the number stays.
    fn replicas(&self, current: i32, target: f64) -> i32 {
        let connections = exact(self.connections);
        let ratio = connections / f64::from(self.reporting) / target;
        let counts_pending = self.pending > 0 && ratio > 1.0;
        if !counts_pending && self.missing == 0 {
            return if is_tolerable(ratio) {
                current
            } else {
                whole(connections / target)
            };
        }
        let (mut sum, mut pods) = (connections, self.reporting);
        if ratio < 1.0 {
            sum += target * f64::from(self.missing);
            pods += self.missing;
        } else if ratio > 1.0 {
            pods += self.missing;
        }
        if counts_pending {
            pods += self.pending;
        }
        let careful = sum / f64::from(pods) / target;
        let turned = ratio < 1.0 && careful > 1.0 || ratio > 1.0 && careful < 1.0;
        let replicas = whole(sum / target);
        let contradicts =
            careful < 1.0 && replicas > current || careful > 1.0 && replicas < current;
        if is_tolerable(careful) || turned || contradicts {
            current
        } else {
            replicas
        }
    }
}

fn is_tolerable(ratio: f64) -> bool {
    // A ratio of 1.1 is a hair above it in binary.
    (1.0 - ratio).abs() <= TOLERANCE + 1e-9
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 connections")]
fn exact(connections: i64) -> f64 {
    connections as f64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "saturates, and is bounded by maxReplicas afterwards"
)]
fn whole(replicas: f64) -> i32 {
    replicas.ceil() as i32
}

fn secs(secs: i32) -> TimeDelta {
    TimeDelta::seconds(i64::from(secs))
}

#[cfg(test)]
mod tests;

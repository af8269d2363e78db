//! How fast the number may change: stabilization windows over recommendations, policies over written changes.

use chrono::{DateTime, Utc};
use signal_crds::scaling::{
    Autoscaling, Behavior, PolicyKind, ScalingPolicy, ScalingRules, SelectPolicy,
};

use super::secs;
use crate::reasons::ConditionReason;

/// Windows of a direction without rules, in seconds.
const UP_WINDOW: i32 = 0;
const DOWN_WINDOW: i32 = 300;
/// Without rules the way up is the HPA's default: twice as many or four more each 15 seconds, whichever is more ...
const UP_POLICIES: [ScalingPolicy; 2] = [
    ScalingPolicy {
        kind: PolicyKind::Percent,
        value: 100,
        period_seconds: 15,
    },
    ScalingPolicy {
        kind: PolicyKind::Pods,
        value: 4,
        period_seconds: 15,
    },
];
/// ... and the way down is one pod every two minutes: the clients of each have to reconnect.
const DOWN_POLICIES: [ScalingPolicy; 1] = [ScalingPolicy {
    kind: PolicyKind::Pods,
    value: 1,
    period_seconds: 120,
}];

/// What is remembered of one SignalCluster. It starts empty.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// When, and how many pods were needed.
    recommendations: Vec<(DateTime<Utc>, i32)>,
    /// When, and by how many the number rose (above 0) or fell (below 0).
    changes: Vec<(DateTime<Utc>, i32)>,
    /// The last change that was decided, from and to: it counts once the spec shows it.
    written: Option<(DateTime<Utc>, i32, i32)>,
}

/// Rules of one direction with their defaults.
struct Rules<'a> {
    window: i32,
    select: SelectPolicy,
    policies: &'a [ScalingPolicy],
}

impl<'a> Rules<'a> {
    fn up(behavior: Option<&'a Behavior>) -> Self {
        Self::of(
            behavior.and_then(|behavior| behavior.scale_up.as_ref()),
            UP_WINDOW,
            &UP_POLICIES,
        )
    }

    fn down(behavior: Option<&'a Behavior>) -> Self {
        Self::of(
            behavior.and_then(|behavior| behavior.scale_down.as_ref()),
            DOWN_WINDOW,
            &DOWN_POLICIES,
        )
    }

    fn of(rules: Option<&'a ScalingRules>, window: i32, policies: &'a [ScalingPolicy]) -> Self {
        let given = rules
            .map(|rules| rules.policies.as_slice())
            .filter(|policies| !policies.is_empty());
        Self {
            window: rules
                .and_then(|rules| rules.stabilization_window_seconds)
                .unwrap_or(window),
            select: rules.map_or_else(SelectPolicy::default, |rules| rules.select_policy),
            policies: given.unwrap_or(policies),
        }
    }

    fn longest_period(&self) -> i32 {
        self.policies
            .iter()
            .map(|policy| policy.period_seconds)
            .max()
            .unwrap_or(0)
    }
}

impl History {
    /// Takes the present number: confirms the last written change, and drops what is too old to count.
    pub(super) fn begin(&mut self, behavior: Option<&Behavior>, current: i32, now: DateTime<Utc>) {
        if let Some((at, from, to)) = self.written
            && current == to
        {
            self.changes.push((at, to - from));
        }
        self.written = None;
        let (up, down) = (Rules::up(behavior), Rules::down(behavior));
        let period = secs(up.longest_period().max(down.longest_period()));
        self.changes.retain(|(at, _)| *at > now - period);
        let window = secs(up.window.max(down.window));
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
        self.recommendations
            .retain(|(at, _)| *at > now - window || *at == now);
    }

    /// Notes a change that is about to be written.
    pub(super) fn writes(&mut self, from: i32, to: i32, now: DateTime<Utc>) {
        self.written = Some((now, from, to));
    }

    /// The most cautious recommendation within the window of each direction, `needed` included.
    pub(super) fn stabilize(
        &mut self,
        behavior: Option<&Behavior>,
        current: i32,
        needed: i32,
        now: DateTime<Utc>,
    ) -> i32 {
        let within = |window: i32| {
            let since = now - secs(window);
            self.recommendations
                .iter()
                .filter(move |(at, _)| *at > since)
                .map(|(_, replicas)| *replicas)
        };
        let up = within(Rules::up(behavior).window)
            .chain([needed])
            .min()
            .unwrap_or(needed);
        let down = within(Rules::down(behavior).window)
            .chain([needed])
            .max()
            .unwrap_or(needed);
        self.recommendations.push((now, needed));
        current.max(up).min(down)
    }

    /// `wanted` within policies and bounds, and which of them limited it.
    pub(super) fn limit(
        &self,
        scaling: &Autoscaling,
        current: i32,
        wanted: i32,
        now: DateTime<Utc>,
    ) -> (i32, Option<ConditionReason>) {
        let behavior = scaling.behavior.as_ref();
        if wanted > current {
            let allowed = self
                .highest(&Rules::up(behavior), current, now)
                .max(current);
            let (most, reason) = if allowed < scaling.max_replicas {
                (allowed, ConditionReason::ScaleUpLimit)
            } else {
                (scaling.max_replicas, ConditionReason::TooManyReplicas)
            };
            return if wanted > most {
                (most, Some(reason))
            } else {
                (wanted, None)
            };
        }
        if wanted < current {
            let allowed = self
                .lowest(&Rules::down(behavior), current, now)
                .min(current);
            let (least, reason) = if allowed > scaling.min_replicas {
                (allowed, ConditionReason::ScaleDownLimit)
            } else {
                (scaling.min_replicas, ConditionReason::TooFewReplicas)
            };
            return if wanted < least {
                (least, Some(reason))
            } else {
                (wanted, None)
            };
        }
        (wanted, None)
    }

    fn highest(&self, rules: &Rules<'_>, current: i32, now: DateTime<Utc>) -> i32 {
        let proposals = rules.policies.iter().map(|policy| {
            let start = self.at_start(policy, current, now);
            match policy.kind {
                PolicyKind::Pods => start.saturating_add(policy.value),
                PolicyKind::Percent => {
                    saturate(div_up(i64::from(start) * (100 + i64::from(policy.value))))
                }
            }
        });
        match rules.select {
            SelectPolicy::Max => proposals.max(),
            SelectPolicy::Min => proposals.min(),
            SelectPolicy::Disabled => None,
        }
        .unwrap_or(current)
    }

    fn lowest(&self, rules: &Rules<'_>, current: i32, now: DateTime<Utc>) -> i32 {
        let proposals = rules.policies.iter().map(|policy| {
            let start = self.at_start(policy, current, now);
            match policy.kind {
                PolicyKind::Pods => start.saturating_sub(policy.value),
                PolicyKind::Percent => {
                    saturate(i64::from(start) * (100 - i64::from(policy.value)) / 100)
                }
            }
        });
        // The largest change is the lowest number.
        match rules.select {
            SelectPolicy::Max => proposals.min(),
            SelectPolicy::Min => proposals.max(),
            SelectPolicy::Disabled => None,
        }
        .unwrap_or(current)
    }

    /// How many pods there were at the beginning of the policy's period.
    fn at_start(&self, policy: &ScalingPolicy, current: i32, now: DateTime<Utc>) -> i32 {
        let since = now - secs(policy.period_seconds);
        current
            - self
                .changes
                .iter()
                .filter(|(at, _)| *at > since)
                .map(|(_, change)| change)
                .sum::<i32>()
    }
}

fn div_up(hundredths: i64) -> i64 {
    hundredths / 100 + i64::from(hundredths % 100 > 0)
}

fn saturate(number: i64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

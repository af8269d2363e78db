//! Which pods close how many connections (4009), so that new pods get their share: an open WebSocket moves only when its client reconnects.
//!
//! It runs only on a stable fleet: no rollout, no scaling, every staying pod ready and answering. Pods that are far above the mean for long enough
//! shed their surplus at a limited pace; their clients reconnect to any ready pod, so the numbers approach the mean and never cross it.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};
use signal_crds::scaling::Rebalance;

use crate::observe::fleet::{Fleet, Pod};

/// A smaller surplus over the mean is ignored, whatever the percentage.
const LEAST_SURPLUS: i64 = 10;
/// The period of `maxPerMinute`.
const MINUTE: TimeDelta = TimeDelta::seconds(60);
/// The longest time between two steps that counts for the pace, so that no burst follows a pause.
const STEP: TimeDelta = TimeDelta::seconds(10);

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct RebalanceInput<'a> {
    /// The settings.
    pub settings: &'a Rebalance,
    /// The pods.
    pub fleet: &'a Fleet,
    /// A rollout is going on.
    pub rolling_out: bool,
    /// The number of pods is changing.
    pub scaling: bool,
    /// The cluster is paused or stopped.
    pub paused: bool,
}

/// What is remembered of one SignalCluster. It starts empty: a new leader waits `stableFor` again.
#[derive(Debug, Clone, Default)]
pub struct RebalanceMemory {
    /// Since when a pod is too far above the mean.
    skewed_since: Option<DateTime<Utc>>,
    /// When, and how many connections were shed, within the last minute.
    shed: VecDeque<(DateTime<Utc>, i64)>,
}

/// Pods by name and how many connections each sheds; usually none.
pub fn plan(
    input: &RebalanceInput<'_>,
    memory: &mut RebalanceMemory,
    now: DateTime<Utc>,
) -> Vec<(String, u32)> {
    if !input.settings.enabled || input.rolling_out || input.scaling || input.paused {
        memory.skewed_since = None;
        return Vec::new();
    }
    // Without the number of every pod there is no mean; the time of the skew keeps running.
    let Some(counts) = counts(input.fleet) else {
        return Vec::new();
    };
    let total: i64 = counts.iter().map(|(_, count)| count).sum();
    let pods = i64::try_from(counts.len()).unwrap_or(i64::MAX);
    let is_far = |count: i64| {
        is_skewed(
            count,
            total,
            pods,
            i64::from(input.settings.max_skew_percent),
        )
    };
    // Down to the mean, rounded up: no pod goes below it.
    let mean = total.div_euclid(pods) + i64::from(total % pods > 0);
    let mut surplus: Vec<(&str, i64)> = counts
        .iter()
        .filter(|(_, count)| is_far(*count))
        .map(|(name, count)| (*name, count - mean))
        .filter(|(_, above)| *above >= LEAST_SURPLUS)
        .collect();
    if surplus.is_empty() {
        memory.skewed_since = None;
        return Vec::new();
    }
    let since = *memory.skewed_since.get_or_insert(now);
    if now - since < TimeDelta::from_std(input.settings.stable_for.std()).unwrap_or(TimeDelta::MAX)
    {
        return Vec::new();
    }
    surplus.sort_by(|left, right| right.1.cmp(&left.1).then(left.0.cmp(right.0)));
    let orders = share(
        &surplus,
        memory.budget(i64::from(input.settings.max_per_minute), now),
    );
    let shed: i64 = orders.iter().map(|(_, count)| i64::from(*count)).sum();
    if shed > 0 {
        memory.shed.push_back((now, shed));
    }
    orders
}

/// Connections of the staying pods, by name; `None`: one of them is not ready or does not answer, or there are fewer than two.
fn counts(fleet: &Fleet) -> Option<Vec<(&str, i64)>> {
    let count = |pod: &'_ Pod| {
        pod.report()
            .filter(|_| pod.ready)
            .map(|report| report.connections.total)
    };
    let counts: Option<Vec<(&str, i64)>> = fleet
        .pods
        .iter()
        .filter(|pod| pod.stays())
        .map(|pod| Some((pod.name.as_str(), count(pod)?)))
        .collect();
    counts.filter(|counts| counts.len() > 1)
}

/// `count > mean * (100 + percent) / 100`, in whole numbers.
fn is_skewed(count: i64, total: i64, pods: i64, percent: i64) -> bool {
    i128::from(count) * i128::from(pods) * 100 > i128::from(total) * i128::from(100 + percent)
}

/// Shares the budget in proportion to the surplus; the fullest pods get what rounding leaves.
fn share(surplus: &[(&str, i64)], budget: i64) -> Vec<(String, u32)> {
    let total: i64 = surplus.iter().map(|(_, above)| above).sum();
    let budget = budget.min(total);
    let part = |above: i64| {
        i64::try_from(i128::from(budget) * i128::from(above) / i128::from(total)).unwrap_or(0)
    };
    let mut rest = budget - surplus.iter().map(|(_, above)| part(*above)).sum::<i64>();
    let mut orders = Vec::new();
    for (name, above) in surplus {
        let extra = rest.min(above - part(*above)).min(1);
        rest -= extra;
        let count = u32::try_from(part(*above) + extra).unwrap_or(u32::MAX);
        if count > 0 {
            orders.push(((*name).to_owned(), count));
        }
    }
    orders
}

impl RebalanceMemory {
    /// How many may be shed in this step: the pace times the time since the last step, and never more than `per_minute` in any minute.
    fn budget(&mut self, per_minute: i64, now: DateTime<Utc>) -> i64 {
        let last = self
            .shed
            .back()
            .map_or(STEP, |(at, _)| (now - *at).clamp(TimeDelta::zero(), STEP));
        while self.shed.front().is_some_and(|(at, _)| *at <= now - MINUTE) {
            self.shed.pop_front();
        }
        let left = per_minute - self.shed.iter().map(|(_, count)| count).sum::<i64>();
        // A slow pace still moves one at a time, within the minute's count.
        let paced = (per_minute * last.num_milliseconds() / MINUTE.num_milliseconds()).max(1);
        paced.min(left).max(0)
    }
}

#[cfg(test)]
mod tests;

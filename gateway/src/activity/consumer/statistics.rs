//! What the statistics of librdkafka say, every two seconds: lag, partitions that stand still and why, and records that can no longer be had.
//!
//! Input: statistics and errors of librdkafka. Output: [`crate::activity::PipelineStatus`], metrics, log lines.

use std::time::Instant;

use rdkafka::statistics::{Partition as Facts, Statistics};

use super::assignment::{Assigned, Assignment, Key};
use crate::activity::status::{Cause, MemberNeed};
use crate::metrics::Partition;

/// State of a broker that answers.
const UP: &str = "UP";
/// State of a member that has its partitions.
const STEADY: &str = "steady";

impl Assignment {
    pub(super) fn take_statistics(&self, statistics: &Statistics) {
        self.say_what_the_member_lacks(statistics);
        let mut still = Vec::new();
        let mut lanes = self.lanes.lock();
        for (key, lane) in lanes.iter_mut() {
            let Some(facts) = statistics
                .topics
                .get(key.0.as_ref())
                .and_then(|topic| topic.partitions.get(&key.1))
            else {
                continue;
            };
            lane.commit_again_if_it_failed(facts);
            self.say_missed(key, lane, facts);
            self.write_lag(key, lane, facts);
            if lane.stands_still(facts) {
                still.push((key.clone(), facts.next_offset, away(statistics, facts)));
            } else {
                self.pipeline
                    .status
                    .waits_no_more(&key.0, key.1, Cause::Fetch);
            }
        }
        drop(lanes);
        self.say_what_keeps(still);
    }

    fn label(key: &Key) -> Partition {
        Partition {
            topic: key.0.to_string(),
            partition: key.1,
        }
    }

    /// A connection to any broker, and membership in the group.
    fn say_what_the_member_lacks(&self, statistics: &Statistics) {
        let status = &self.pipeline.status;
        let last = self.last_error.lock().clone();
        let said = |what: &str| match &last {
            Some(error) => format!("{what} (last error: {error})"),
            None => what.to_owned(),
        };
        let is_up = statistics
            .brokers
            .values()
            .any(|broker| broker.state == UP && broker.nodeid >= 0);
        status.lacks(
            MemberNeed::Broker,
            (!is_up).then(|| said("no Kafka broker is connected")),
        );
        let is_member = statistics
            .cgrp
            .as_ref()
            .is_some_and(|group| group.join_state == STEADY);
        status.lacks(
            MemberNeed::Group,
            (!is_member).then(|| said("this instance is no member of the Kafka group")),
        );
        if is_up && is_member {
            *self.last_error.lock() = None;
        }
    }

    fn write_lag(&self, key: &Key, lane: &Assigned, facts: &Facts) {
        let Some((next, lag)) = lane.lag(facts) else {
            return;
        };
        let metrics = &self.pipeline.metrics;
        metrics.lag.get_or_create(&Self::label(key)).set(lag);
        let stuck = self.pipeline.status.observe(&key.0, key.1, next, lag);
        metrics.stuck.get_or_create(&Self::label(key)).set(stuck);
    }

    fn say_missed(&self, key: &Key, lane: &mut Assigned, facts: &Facts) {
        if facts.lo_offset < 0 {
            return;
        }
        let fetched_before =
            (facts.fetchq_cnt == 0 && !lane.is_paused).then_some(facts.next_offset);
        if let Some((from, to)) = lane.position.log_starts(facts.lo_offset, fetched_before) {
            self.missed(
                &key.0,
                key.1,
                from,
                to,
                "they were deleted before they were read, by the topic's retention or by someone",
            );
        }
    }

    /// Says that records cannot be had any more.
    pub(super) fn missed(&self, topic: &str, partition: i32, from: i64, to: i64, why: &str) {
        tracing::warn!(
            kafka.topic = topic,
            kafka.partition = partition,
            kafka.offset = from,
            before = to,
            "records from this offset on cannot be had any more: {why}"
        );
        let label = Partition {
            topic: topic.to_owned(),
            partition,
        };
        self.pipeline
            .metrics
            .missed
            .get_or_create(&label)
            .inc_by(u64::try_from(to - from).unwrap_or(0));
    }

    /// Finds the error of each partition that stands still, and says it.
    fn say_what_keeps(&self, still: Vec<(Key, i64, Option<String>)>) {
        let offsets: Vec<i64> = still.iter().map(|(_, next, _)| *next).collect();
        let blamed = self.faults.lock().blame(Instant::now(), &offsets);
        for ((key, offset, away), blamed) in still.into_iter().zip(blamed) {
            let count = blamed.as_ref().map_or(0, |(_, count)| *count);
            let Some(why) = blamed.map(|(reason, _)| reason).or(away) else {
                continue;
            };
            self.pipeline
                .metrics
                .fetch_errors
                .get_or_create(&Self::label(&key))
                .inc_by(count);
            let mut lanes = self.lanes.lock();
            let Some(lane) = lanes.get_mut(&key) else {
                continue;
            };
            if lane.said_fault.as_deref() != Some(why.as_str()) {
                tracing::error!(
                    kafka.topic = &*key.0,
                    kafka.partition = key.1,
                    kafka.offset = offset,
                    reason = why,
                    "records cannot be fetched; the partition stands still until they can"
                );
                lane.said_fault = Some(why.clone());
            }
            self.pipeline
                .status
                .waits(&key.0, key.1, offset, Cause::Fetch, why);
        }
    }
}

/// Why the leader of a partition cannot answer; `None` if it can.
fn away(statistics: &Statistics, facts: &Facts) -> Option<String> {
    if facts.leader < 0 {
        return Some("the partition has no leader".into());
    }
    let leader = statistics
        .brokers
        .values()
        .find(|broker| broker.nodeid == facts.leader)?;
    (leader.state != UP).then(|| {
        format!(
            "broker {}, the leader of the partition, is not connected ({})",
            facts.leader, leader.state
        )
    })
}

impl Assigned {
    /// A commit in a rebalance may come too late for its generation. librdkafka has no callback for a manual commit, but it reports here which offset
    /// the broker has: a different one is committed again.
    fn commit_again_if_it_failed(&mut self, facts: &Facts) {
        if self
            .committed
            .is_some_and(|committed| committed != facts.committed_offset)
        {
            self.committed = None;
        }
    }

    /// Returns the first offset that is not done, and how many records are left; `None` until librdkafka knows the end.
    ///
    /// Records end where the last finished transaction does. Where nothing is in hand, everything before the next fetch is done: its last offsets may be
    /// marks of transactions, which are no records.
    fn lag(&self, facts: &Facts) -> Option<(i64, i64)> {
        let end = end(facts)?;
        let done = self
            .progress
            .next()
            .or(Some(facts.committed_offset).filter(|offset| *offset >= 0))
            .unwrap_or(facts.lo_offset.max(0));
        let is_nothing_in_hand =
            facts.fetchq_cnt == 0 && self.position.is_all_done(self.progress.next());
        let next = if is_nothing_in_hand && facts.next_offset >= 0 {
            // A partition that was made again ends before what was done of the old one.
            if done > end {
                facts.next_offset
            } else {
                done.max(facts.next_offset)
            }
        } else {
            done
        };
        Some((next, (end - next).max(0)))
    }

    /// Returns whether there is something to fetch and the next fetch begins where it did at the last report.
    fn stands_still(&mut self, facts: &Facts) -> bool {
        let before = self.next_fetch.replace(facts.next_offset);
        let is_at_end = end(facts).is_some_and(|end| facts.next_offset >= end);
        before == Some(facts.next_offset)
            && facts.fetchq_cnt == 0
            && !self.is_paused
            && (!is_at_end || facts.leader < 0)
    }
}

/// Where the records end that may be read: negative numbers stand for what librdkafka does not know yet.
fn end(facts: &Facts) -> Option<i64> {
    [facts.ls_offset, facts.hi_offset]
        .into_iter()
        .find(|offset| *offset >= 0)
}

//! The state of the pipeline: for each partition how far it is and why it waits, and what keeps this member from its work.
//!
//! Input: what the consumer and the lanes report. Output: `/status`, the part `pipeline` of `/readyz`, and whether another instance may rely on this one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use signal_contract::{KafkaReport, StuckPartition};
use tokio::time::Instant;

/// Most partitions that `/readyz?verbose` names; `/status` and the metrics have all.
const NAMED: usize = 8;
/// What stuck means without a setting.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Why a partition waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Rows cannot be stored: the database, the worker number, the clock.
    Database,
    /// Recipients cannot be looked up.
    Recipients,
    /// Dead letters are not confirmed.
    DeadLetters,
    /// Schemas cannot be looked up.
    Schemas,
    /// The brokers do not give its records.
    Fetch,
}

impl Cause {
    /// Returns its word in `/status`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Recipients => "recipients",
            Self::DeadLetters => "dead_letters",
            Self::Schemas => "schemas",
            Self::Fetch => "fetch",
        }
    }

    /// Whether another instance may work where this one cannot.
    fn may_be_of_this_instance(self) -> bool {
        matches!(self, Self::Database | Self::Recipients)
    }
}

/// What this member needs from the brokers and may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MemberNeed {
    /// A connection to a broker.
    Broker,
    /// Membership in the group.
    Group,
}

/// Shared: the pipeline writes it, the admin listener and other instances read it.
#[derive(Debug)]
pub struct PipelineStatus {
    stuck_after: Duration,
    partitions: Mutex<BTreeMap<Key, PartitionState>>,
    needs: Mutex<BTreeMap<MemberNeed, (Instant, String)>>,
    /// By dead-letter topic, why it cannot be used.
    missing_topics: Mutex<BTreeMap<String, String>>,
    /// By partition that was given up with records left: the first of them, and the end of the partition.
    unread: Mutex<BTreeMap<Key, (i64, i64)>>,
    /// Topics of which a partition has been assigned to this process.
    known_topics: Mutex<BTreeSet<Arc<str>>>,
    left: Mutex<Option<String>>,
    is_member: AtomicBool,
    retrying: AtomicUsize,
}

type Key = (Arc<str>, i32);

#[derive(Debug)]
struct PartitionState {
    /// `None` until it is known.
    lag: Option<i64>,
    /// The first record that is not done.
    next: i64,
    /// When it advanced last, or last had nothing to do.
    since: Instant,
    wait: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    cause: Cause,
    offset: i64,
    why: String,
}

impl Default for PipelineStatus {
    fn default() -> Self {
        Self::new(STUCK_AFTER)
    }
}

impl PipelineStatus {
    /// A partition that has records and has not advanced for `stuck_after` is stuck.
    pub fn new(stuck_after: Duration) -> Self {
        Self {
            stuck_after,
            partitions: Mutex::default(),
            needs: Mutex::default(),
            missing_topics: Mutex::default(),
            unread: Mutex::default(),
            known_topics: Mutex::default(),
            left: Mutex::default(),
            is_member: AtomicBool::new(false),
            retrying: AtomicUsize::new(0),
        }
    }

    /// Returns the state of the pipeline.
    pub fn facts(&self) -> KafkaReport {
        let stuck = self.stuck();
        let partitions = self.partitions.lock();
        let max_lag = partitions.values().filter_map(|state| state.lag).max();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        KafkaReport {
            partitions: count(partitions.len()),
            max_lag,
            retrying: count(self.retrying.load(Ordering::Relaxed)),
            stuck,
            notices: self.notices(),
        }
    }

    /// Returns what stands still and why, as one text for people; `None` when nothing does.
    pub fn standstill(&self) -> Option<String> {
        let stuck = self.stuck();
        let mut texts = self.notices();
        texts.extend(stuck.iter().take(NAMED).map(described));
        if let Some(more @ 1..) = stuck.len().checked_sub(NAMED) {
            texts.push(format!("and {more} partitions more"));
        }
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// Returns whether another instance may leave its partitions to this one.
    pub fn is_working(&self) -> bool {
        self.is_member.load(Ordering::Relaxed)
            && self.left.lock().is_none()
            && self.needs.lock().is_empty()
            && self.own_cause(Duration::ZERO).is_none()
    }

    /// Returns why this instance cannot work, if its cause may be of this instance alone: some partition has waited for it for `at_least`.
    pub(super) fn own_cause(&self, at_least: Duration) -> Option<String> {
        let partitions = self.partitions.lock();
        partitions.values().find_map(|state| {
            let wait = state.wait.as_ref()?;
            let is_own = wait.cause.may_be_of_this_instance() && state.since.elapsed() >= at_least;
            is_own.then(|| wait.why.clone())
        })
    }

    pub(super) fn stuck_after(&self) -> Duration {
        self.stuck_after
    }

    fn stuck(&self) -> Vec<StuckPartition> {
        let partitions = self.partitions.lock();
        partitions
            .iter()
            .filter(|(_, state)| state.is_stuck(self.stuck_after))
            .map(|((topic, partition), state)| StuckPartition {
                topic: topic.to_string(),
                partition: *partition,
                offset: state.wait.as_ref().map_or(state.next, |wait| wait.offset),
                lag: state.lag,
                seconds: i64::try_from(state.since.elapsed().as_secs()).unwrap_or(i64::MAX),
                reason: state
                    .wait
                    .as_ref()
                    .map_or("unknown", |wait| wait.cause.as_str())
                    .to_owned(),
                error: state.wait.as_ref().map(|wait| wait.why.clone()),
            })
            .collect()
    }

    fn notices(&self) -> Vec<String> {
        let mut notices: Vec<String> = self.left.lock().iter().cloned().collect();
        notices.extend(
            self.needs
                .lock()
                .values()
                .filter(|(since, _)| since.elapsed() >= self.stuck_after)
                .map(|(since, why)| format!("{why}, for {} s", since.elapsed().as_secs())),
        );
        let missing = self.missing_topics.lock();
        notices.extend(
            missing
                .iter()
                .map(|(topic, why)| format!("dead-letter topic {topic} cannot be used: {why}")),
        );
        notices
    }

    pub(super) fn add(&self, topic: &Arc<str>, partition: i32) {
        let state = PartitionState {
            lag: None,
            next: -1,
            since: Instant::now(),
            wait: None,
        };
        let key = (topic.clone(), partition);
        self.unread.lock().remove(&key);
        self.partitions.lock().insert(key, state);
    }

    /// Takes how far a partition is, and returns for how many seconds it has been stuck; 0 if it is not.
    pub(super) fn observe(&self, topic: &Arc<str>, partition: i32, next: i64, lag: i64) -> i64 {
        let mut partitions = self.partitions.lock();
        let Some(state) = partitions.get_mut(&(topic.clone(), partition)) else {
            return 0;
        };
        state.lag = Some(lag);
        if state.next < 0 {
            state.next = next;
        } else if state.next != next {
            state.next = next;
            state.since = Instant::now();
            state.wait = None;
        } else if lag == 0 && state.wait.is_none() {
            state.since = Instant::now();
        }
        if state.is_stuck(self.stuck_after) {
            i64::try_from(state.since.elapsed().as_secs()).unwrap_or(i64::MAX)
        } else {
            0
        }
    }

    /// Notes that rows of a partition were stored. One whose next record has many recipients stays at it for long, and does not stand still.
    pub(super) fn stored(&self, topic: &Arc<str>, partition: i32) {
        if let Some(state) = self.partitions.lock().get_mut(&(topic.clone(), partition)) {
            state.since = Instant::now();
            state.wait.take_if(|wait| wait.cause != Cause::Fetch);
        }
    }

    /// Keeps why a partition waits at `offset`, until it advances or stores.
    pub(super) fn waits(
        &self,
        topic: &Arc<str>,
        partition: i32,
        offset: i64,
        cause: Cause,
        why: String,
    ) {
        if let Some(state) = self.partitions.lock().get_mut(&(topic.clone(), partition)) {
            state.wait = Some(Wait { cause, offset, why });
        }
    }

    /// Forgets why a partition waits, if that was the cause.
    pub(super) fn waits_no_more(&self, topic: &Arc<str>, partition: i32, cause: Cause) {
        if let Some(state) = self.partitions.lock().get_mut(&(topic.clone(), partition))
            && state.wait.as_ref().is_some_and(|wait| wait.cause == cause)
        {
            state.wait = None;
        }
    }

    /// Forgets a partition, but not which records were left.
    pub(super) fn remove(&self, topic: &Arc<str>, partition: i32) {
        let key = (topic.clone(), partition);
        if let Some(state) = self.partitions.lock().remove(&key)
            && let Some(lag @ 1..) = state.lag
        {
            self.unread
                .lock()
                .insert(key, (state.next, state.next + lag));
        }
    }

    /// Takes which records of a topic were unread when its partitions were given up: partition, first offset, end.
    pub(super) fn take_unread(&self, topic: &str) -> Vec<(i32, i64, i64)> {
        let mut unread = self.unread.lock();
        let keys: Vec<Key> = unread
            .keys()
            .filter(|(name, _)| **name == *topic)
            .cloned()
            .collect();
        keys.iter()
            .filter_map(|key| Some((key.1, unread.remove(key)?)))
            .map(|(partition, (from, to))| (partition, from, to))
            .collect()
    }

    /// Whether this process has read the topic before. Brokers forget a group's offsets of a topic that is deleted.
    pub(super) fn knows_topic(&self, topic: &Arc<str>) -> bool {
        self.known_topics.lock().contains(topic)
    }

    pub(super) fn learn_topic(&self, topic: &Arc<str>) {
        self.known_topics.lock().insert(topic.clone());
    }

    /// Keeps since when the member lacks something; `None` when it has it.
    pub(super) fn lacks(&self, need: MemberNeed, why: Option<String>) {
        let mut needs = self.needs.lock();
        match why {
            None => drop(needs.remove(&need)),
            Some(why) => {
                let since = needs.get(&need).map_or_else(Instant::now, |(at, _)| *at);
                needs.insert(need, (since, why));
            }
        }
        drop(needs);
        if need == MemberNeed::Group {
            let is_member = !self.needs.lock().contains_key(&need);
            self.is_member.store(is_member, Ordering::Relaxed);
        }
    }

    /// Keeps which dead-letter topics cannot be used, and why.
    pub(super) fn set_missing_topics(&self, missing: BTreeMap<String, String>) {
        *self.missing_topics.lock() = missing;
    }

    /// Keeps why this member left the group; `None` when it joins again.
    pub(super) fn set_left(&self, why: Option<String>) {
        if why.is_some() {
            self.needs.lock().clear();
        }
        self.is_member.store(false, Ordering::Relaxed);
        *self.left.lock() = why;
    }

    /// Counts a partition as waiting until the returned value is dropped.
    pub(super) fn retrying(self: &Arc<Self>) -> Retrying {
        self.retrying.fetch_add(1, Ordering::Relaxed);
        Retrying(self.clone())
    }
}

impl PartitionState {
    fn is_stuck(&self, after: Duration) -> bool {
        let has_records = self.lag.is_some_and(|lag| lag > 0) || self.wait.is_some();
        has_records && self.since.elapsed() >= after
    }
}

fn described(stuck: &StuckPartition) -> String {
    let StuckPartition {
        topic,
        partition,
        offset,
        seconds,
        ..
    } = stuck;
    let lag = stuck
        .lag
        .map_or_else(|| "an unknown number of".into(), |lag| lag.to_string());
    let why = stuck.error.as_deref().unwrap_or("no failure is known");
    format!(
        "{topic}/{partition} has stood at offset {offset} for {seconds} s with {lag} records left: {why}"
    )
}

/// One partition that waits for a dependency.
pub(super) struct Retrying(Arc<PipelineStatus>);

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.retrying.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_partition_is_stuck_when_it_has_records_and_does_not_advance_and_says_why() {
        let status = PipelineStatus::default();
        let topic: Arc<str> = "t".into();
        status.add(&topic, 3);
        status.waits(&topic, 3, 5, Cause::Database, "away".into());
        status.observe(&topic, 3, 5, 1);
        assert!(!status.is_working(), "the first report is no advance");
        status.observe(&topic, 3, 4, 0);
        let pass = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        status.observe(&topic, 3, 5, 0);
        pass(60).await;
        assert_eq!(status.observe(&topic, 3, 5, 0), 0, "nothing to do");
        pass(20).await;
        status.observe(&topic, 3, 5, 2);
        status.waits(&topic, 3, 6, Cause::Fetch, "no codec".into());
        assert_eq!(status.standstill(), None);
        pass(11).await;
        assert_eq!(status.observe(&topic, 3, 5, 2), 31);
        assert_eq!(
            status.standstill().unwrap(),
            "t/3 has stood at offset 6 for 31 s with 2 records left: no codec"
        );
        assert_eq!(status.facts().stuck[0].reason, "fetch");
        assert_eq!(status.own_cause(Duration::ZERO), None, "it is the record");
        assert_eq!(status.observe(&topic, 3, 7, 1), 0);
        assert_eq!((status.standstill(), status.facts().stuck.len()), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_stores_one_record_for_long_is_not_stuck() {
        let status = PipelineStatus::default();
        let topic: Arc<str> = "t".into();
        status.add(&topic, 3);
        status.observe(&topic, 3, 5, 9);
        status.waits(&topic, 3, 5, Cause::Database, "away".into());
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            status.stored(&topic, 3);
            assert_eq!(status.observe(&topic, 3, 5, 9), 0);
        }
        assert_eq!(status.own_cause(Duration::ZERO), None);
        tokio::time::sleep(STUCK_AFTER).await;
        assert_eq!(status.observe(&topic, 3, 5, 9), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_works_while_it_is_a_member_and_waits_for_nothing_of_its_own() {
        let status = PipelineStatus::default();
        let topic: Arc<str> = "t".into();
        assert!(!status.is_working());
        status.lacks(MemberNeed::Group, None);
        status.add(&topic, 0);
        status.observe(&topic, 0, 0, 9);
        assert!(status.is_working());
        status.waits(&topic, 0, 0, Cause::Database, "no connection".into());
        assert!(!status.is_working());
        assert_eq!(status.own_cause(status.stuck_after()), None);
        tokio::time::sleep(STUCK_AFTER).await;
        assert_eq!(
            status.own_cause(status.stuck_after()).unwrap(),
            "no connection"
        );
        status.observe(&topic, 0, 9, 0);
        assert!(status.is_working());
        status.lacks(MemberNeed::Group, Some("no member of the group".into()));
        assert!(!status.is_working());
        tokio::time::sleep(STUCK_AFTER).await;
        assert_eq!(
            status.standstill().unwrap(),
            "no member of the group, for 30 s"
        );
        status.set_left(Some("left the group".into()));
        assert_eq!(status.standstill().unwrap(), "left the group");
    }

    #[test]
    fn what_was_unread_of_a_topic_is_taken_once() {
        let status = PipelineStatus::default();
        let topic: Arc<str> = "t".into();
        for (partition, lag) in [(0, 4), (1, 0)] {
            status.add(&topic, partition);
            status.observe(&topic, partition, 10, lag);
            status.remove(&topic, partition);
        }
        assert_eq!(status.take_unread("t"), [(0, 10, 14)]);
        assert_eq!(status.take_unread("t"), []);
    }
}

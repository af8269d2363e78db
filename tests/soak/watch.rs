//! Asks every gateway twice a second how it is, and compares the answers with what the harness knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::Client;
use serde_json::Value;
use signal_tests::gateway::ADMIN_TOKEN;
use signal_tests::rest;
use tokio::time::{Instant, sleep, timeout};

use crate::run_state::{Condition, Known, RunState};
use crate::schedule::Fault;

const INTERVAL: Duration = Duration::from_millis(500);
/// The part of readiness for what stands still.
const PIPELINE: &str = "pipeline";
const STUCK_METRIC: &str = "signal_kafka_stuck_seconds";
/// Ready again this long after the last fault has ended.
pub(crate) const RECOVERY_LIMIT: Duration = Duration::from_secs(10);
/// A subscriber that receives nothing is named within this: `redis.stalled_after_ms` of the harness, a ping, a probe, and a margin.
const STALLED_LIMIT: Duration = Duration::from_secs(7);
/// A gateway that cannot store says so within this, where it is told that it cannot.
const WAITING_LIMIT: Duration = Duration::from_secs(7);
/// `kafka.stuck_after_secs` of the harness.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(5);
/// What stands still is named within this: two reports of the statistics, a probe, and a margin.
const NAMED_LIMIT: Duration = STUCK_AFTER.saturating_add(Duration::from_secs(7));
/// How much later with another fault, which may move partitions when a session ends: they are new to their owner.
const MOVED_LIMIT: Duration = Duration::from_secs(8);
/// A partition may stand so long without a fault: on a machine with other work one batch of large records takes longer than [`STUCK_AFTER`].
const SLOW_LIMIT: Duration = Duration::from_secs(15);
/// Resident memory of a gateway, in MiB.
pub(crate) const MEMORY_LIMIT_MIB: u64 = 320;

/// What was seen of the gateways.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) samples: u64,
    pub(crate) unanswered: u64,
    /// Most resident memory in MiB, by gateway.
    pub(crate) memory: BTreeMap<usize, u64>,
    /// Samples in which a part was not ready, by part.
    pub(crate) unready: BTreeMap<String, u64>,
    /// Samples in which the pipeline had to be named and was.
    pub(crate) standstills: u64,
}

/// The watcher.
pub(crate) struct Watch {
    run: RunState,
    http: Client,
    seen: Arc<Mutex<Seen>>,
    /// How much later than asked for the machine woke this task since the last change.
    starved: Duration,
    /// When the last fault ended, and the gateways that have not been seen ready since.
    calm: Option<(Instant, BTreeSet<usize>)>,
    /// When a fault that may stop partitions of a gateway was last seen.
    may_stand: BTreeMap<usize, Instant>,
    /// What was said already, until the next change.
    said: BTreeSet<String>,
}

impl Watch {
    pub(crate) fn new(run: RunState, seen: Arc<Mutex<Seen>>) -> Self {
        Self {
            run,
            http: rest::http(),
            seen,
            starved: Duration::ZERO,
            calm: None,
            may_stand: BTreeMap::new(),
            said: BTreeSet::new(),
        }
    }

    /// Watches until the run ends.
    pub(crate) async fn run(mut self) {
        while !self.run.is_ending() {
            let begun = Instant::now();
            sleep(INTERVAL).await;
            let late = begun.elapsed().saturating_sub(INTERVAL);
            if late > Duration::from_millis(100) {
                self.starved += late;
            }
            self.follow();
            for (number, known) in self.run.in_condition(Condition::Running) {
                self.look(number, known).await;
            }
        }
    }

    /// Notices that the last fault ended, or that another begins.
    fn follow(&mut self) {
        let calm = self.run.calm_since();
        if self.calm.as_ref().map(|(since, _)| *since) == calm {
            return;
        }
        let running = || self.run.in_condition(Condition::Running).into_iter();
        self.calm = calm.map(|since| (since, running().map(|(number, _)| number).collect()));
        self.starved = Duration::ZERO;
        self.said.clear();
    }

    async fn look(&mut self, number: usize, known: Known) {
        self.weigh(number, known);
        let begun = Instant::now();
        let url = format!("http://{}/readyz?verbose", known.admin);
        let answer = timeout(Duration::from_secs(5), rest::try_ask(self.http.get(&url))).await;
        // What the harness did meanwhile makes the answer one of the past.
        let same = self.run.in_condition(Condition::Running);
        if !same
            .iter()
            .any(|(n, now)| *n == number && now.since == known.since)
        {
            return;
        }
        let Ok(Ok(answer)) = answer else {
            self.seen.lock().unanswered += 1;
            if begun.duration_since(known.since) > RECOVERY_LIMIT {
                self.once(number, "/readyz does not answer".into());
            }
            return;
        };
        let parts: Vec<String> = answer.json()["parts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|part| part["part"].as_str().unwrap_or_default().to_owned())
            .collect();
        self.note(&parts);
        self.compare(number, known, answer.status, &parts, &answer.text);
        if self.run.calm_since().is_some() && answer.status == 200 {
            self.agree(number, known).await;
        }
        let keeps = |(fault, since): &(Fault, Instant)| {
            fault.keeps_from_storing(number)
                && since.elapsed().min(known.since.elapsed()) > WAITING_LIMIT + self.starved
        };
        if let Some((fault, _)) = self.run.faults().into_iter().find(keeps) {
            self.expect_waiting(number, known, fault).await;
        }
        let names = parts.iter().any(|part| part == PIPELINE);
        self.compare_standstill(number, known, names, &answer.text)
            .await;
    }

    /// A pipeline that stands still for long is named, and no partition that cannot stand still is.
    async fn compare_standstill(&mut self, number: usize, known: Known, names: bool, text: &str) {
        let faults = self.run.faults();
        let stops = |(fault, _): &(Fault, Instant)| fault.may_stop_partitions(number);
        let now = Instant::now();
        if faults.iter().any(stops) {
            self.may_stand.insert(number, now);
        }
        let stood = self.may_stand.get(&number);
        let must_go = stood
            .map_or(known.since, |at| known.since.max(*at))
            .elapsed()
            > RECOVERY_LIMIT + self.starved;
        let stands = longest_stand(text);
        if stands > SLOW_LIMIT && must_go && self.starved < STUCK_AFTER / 2 {
            let over = "a partition is named, and nothing stops any";
            self.once(number, format!("{over}: {text}"));
        }
        let alone = if faults.len() == 1 {
            NAMED_LIMIT
        } else {
            NAMED_LIMIT + MOVED_LIMIT
        };
        let keeps = |(fault, since): &&(Fault, Instant)| {
            (fault.keeps_from_storing(number) || fault.keeps_from_reading())
                && since.elapsed().min(known.since.elapsed()) > alone + self.starved
        };
        let Some((fault, _)) = faults.iter().find(keeps) else {
            return;
        };
        if names {
            self.seen.lock().standstills += 1;
            self.agree_on_standstill(number, known, *fault).await;
        } else {
            let late = format!(
                "{fault} for {alone:?} and more, and /readyz does not name the pipeline: {text}"
            );
            self.once(number, late);
        }
    }

    /// Where `/status` has partitions that stand still, the metric has them too.
    async fn agree_on_standstill(&mut self, number: usize, known: Known, fault: Fault) {
        for _ in 0..6 {
            let Some((status, metrics)) = self.state(known).await else {
                return;
            };
            let is_over = !self.run.faults().iter().any(|(now, _)| *now == fault);
            if is_over || stuck(&status) == (sum(&metrics, STUCK_METRIC) > 0.0) {
                return;
            }
            sleep(INTERVAL).await;
        }
        let differ = format!("{fault}, and /status and {STUCK_METRIC} do not agree");
        self.once(number, differ);
    }

    /// `/status` and the metrics; `None` while they do not come.
    async fn state(&self, known: Known) -> Option<(Value, String)> {
        let get = |path: &str| {
            let url = format!("http://{}{path}", known.admin);
            rest::try_ask(self.http.get(url).bearer_auth(ADMIN_TOKEN))
        };
        let both = async { (get("/status").await, get("/metrics").await) };
        let (Ok(status), Ok(metrics)) = timeout(Duration::from_secs(5), both).await.ok()? else {
            return None;
        };
        Some((status.json(), metrics.text))
    }

    /// `/status` says that partitions wait, or that the gateway has none.
    async fn expect_waiting(&mut self, number: usize, known: Known, fault: Fault) {
        let url = format!("http://{}/status", known.admin);
        let ask = rest::try_ask(self.http.get(url).bearer_auth(ADMIN_TOKEN));
        let Ok(Ok(answer)) = timeout(Duration::from_secs(5), ask).await else {
            return;
        };
        let kafka = &answer.json()["kafka"];
        let is_over = !self.run.faults().iter().any(|(now, _)| *now == fault);
        if kafka["retrying"] == 0 && kafka["partitions"] != 0 && !is_over {
            self.once(
                number,
                format!("{fault}, and /status says of the pipeline {kafka}"),
            );
        }
    }

    fn note(&self, parts: &[String]) {
        let mut seen = self.seen.lock();
        seen.samples += 1;
        for part in parts {
            *seen.unready.entry(part.clone()).or_default() += 1;
        }
    }

    fn compare(&mut self, number: usize, known: Known, status: u16, parts: &[String], text: &str) {
        let up = known.since.elapsed();
        // What stands still is compared apart.
        let is_good = status == 200 && parts.iter().all(|part| part == PIPELINE);
        if let Some((since, waiting)) = &mut self.calm {
            let calm = since.elapsed();
            if is_good && waiting.remove(&number) {
                self.run.recovered(calm);
            }
            if !is_good && calm.min(up) > RECOVERY_LIMIT + self.starved {
                let seconds = calm.as_secs();
                self.once(
                    number,
                    format!("not ready {seconds} s after the last fault: {text}"),
                );
            }
        }
        for (fault, since) in self.run.faults() {
            let both = since.elapsed().min(up);
            let is_late = both > STALLED_LIMIT + self.starved;
            let is_named = status == 503 && parts.iter().any(|part| part == "redis");
            if fault.keeps_from_receiving(number) && is_late && !is_named {
                self.once(
                    number,
                    format!("{fault} for {both:?}, and /readyz does not name redis: {text}"),
                );
            }
        }
    }

    /// `/status` and the metrics say the same as `/readyz`. They are asked one after the other, so a difference counts when it stays.
    async fn agree(&mut self, number: usize, known: Known) {
        for _ in 0..6 {
            let url = format!("http://{}/readyz?verbose", known.admin);
            let ask = rest::try_ask(self.http.get(url));
            let Ok(Ok(ready)) = timeout(Duration::from_secs(5), ask).await else {
                return;
            };
            let Some((status, metrics)) = self.state(known).await else {
                return;
            };
            let says_ready = status["ready"] == Value::Bool(true);
            let unready = sum(&metrics, "signal_unready");
            let is_ready = ready.status == 200;
            let names = names_partition(&ready.text);
            if says_ready == is_ready
                && (unready == 0.0) == is_ready
                && names == stuck(&status)
                && names == (sum(&metrics, STUCK_METRIC) > 0.0)
            {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
        if self.run.calm_since().is_some() {
            self.once(
                number,
                "/readyz, /status, signal_unready and signal_kafka_stuck_seconds do not agree"
                    .into(),
            );
        }
    }

    fn weigh(&mut self, number: usize, known: Known) {
        let Some(mib) = resident(known.pid) else {
            return;
        };
        let most = {
            let mut seen = self.seen.lock();
            let most = seen.memory.entry(number).or_default();
            *most = mib.max(*most);
            *most
        };
        if most > MEMORY_LIMIT_MIB {
            self.once(
                number,
                format!("more than {MEMORY_LIMIT_MIB} MiB of memory"),
            );
        }
    }

    fn once(&mut self, number: usize, what: String) {
        // At the end the gateways go while this still asks one.
        if self.run.is_ending() {
            return;
        }
        let kind = what.chars().filter(|c| c.is_alphabetic()).take(20);
        if self
            .said
            .insert(format!("{number} {}", kind.collect::<String>()))
        {
            self.run.fail(format!("gateway {number}: {what}"));
        }
    }
}

/// Whether `/readyz?verbose` names a partition that stands still.
fn names_partition(text: &str) -> bool {
    text.contains(" has stood at offset ")
}

/// How long the partition has stood that `/readyz?verbose` names with the longest time.
fn longest_stand(text: &str) -> Duration {
    let seconds = text
        .split(" has stood at offset ")
        .skip(1)
        .filter_map(|rest| {
            let (_, rest) = rest.split_once(" for ")?;
            rest.split_once(" s ")?.0.parse().ok()
        });
    Duration::from_secs(seconds.max().unwrap_or_default())
}

/// Whether `/status` has partitions that stand still.
fn stuck(status: &Value) -> bool {
    status["kafka"]["stuck"]
        .as_array()
        .is_some_and(|stuck| !stuck.is_empty())
}

/// Resident memory of a process in MiB, where the kernel tells.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let held = text.lines().find_map(|row| row.strip_prefix("VmRSS:"))?;
    let kib: u64 = held.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib / 1024)
}

/// The sum of a metric over all its labels.
pub(crate) fn sum(text: &str, name: &str) -> f64 {
    let samples = text.lines().filter_map(|row| {
        let (key, value) = row.rsplit_once(' ')?;
        (key.split('{').next()? == name).then(|| value.parse::<f64>().ok())?
    });
    samples.sum()
}

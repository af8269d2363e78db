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
/// Ready again this long after the last fault has ended.
pub(crate) const RECOVERY_LIMIT: Duration = Duration::from_secs(10);
/// A subscriber that receives nothing is named within this: `redis.stalled_after_ms` of the harness, a ping, a probe, and a margin.
const STALLED_LIMIT: Duration = Duration::from_secs(7);
/// A gateway that cannot store says so within this, where it is told that it cannot.
const WAITING_LIMIT: Duration = Duration::from_secs(7);
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
        let is_good = status == 200 && parts.is_empty();
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
        for _ in 0..4 {
            let get = |path: &str| {
                let url = format!("http://{}{path}", known.admin);
                rest::try_ask(self.http.get(url).bearer_auth(ADMIN_TOKEN))
            };
            let answers = timeout(Duration::from_secs(5), async {
                (
                    get("/status").await,
                    get("/metrics").await,
                    get("/readyz").await,
                )
            });
            let Ok((Ok(status), Ok(metrics), Ok(ready))) = answers.await else {
                return;
            };
            let says_ready = status.json()["ready"] == Value::Bool(true);
            let unready = sum(&metrics.text, "signal_unready");
            let is_ready = ready.status == 200;
            if says_ready == is_ready && (unready == 0.0) == is_ready {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
        if self.run.calm_since().is_some() {
            self.once(
                number,
                "/readyz, /status and signal_unready do not agree".into(),
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
        let kind = what.chars().filter(|c| c.is_alphabetic()).take(20);
        if self
            .said
            .insert(format!("{number} {}", kind.collect::<String>()))
        {
            self.run.fail(format!("gateway {number}: {what}"));
        }
    }
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

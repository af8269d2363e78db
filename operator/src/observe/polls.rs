//! Who is asked for the status of gateway pods, and when.
//!
//! Polls of all SignalClusters share one bound, and each has a smaller one of its own, so one with many pods, or with pods that do not answer, leaves room for the
//! others. A pod that does not answer is asked again after a delay that grows; an answer, or a change of its object, begins it again.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use rand::Rng as _;
use signal_contract::StatusReport;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::observe::fleet::Pod;
use crate::time::growing;

/// How many polls there are, and how long each look and each delay is.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Polls of all SignalClusters at the same time.
    in_all: usize,
    /// Polls of one SignalCluster at the same time.
    of_one: usize,
    /// Longest time that one look spends on polls: whoever was not asked by then is the first of the next look.
    look: Duration,
    /// Delay after the first poll that failed.
    first: Duration,
    /// Longest delay after polls that failed.
    longest: Duration,
}

const LIMITS: Limits = Limits {
    in_all: 64,
    of_one: 16,
    look: Duration::from_secs(6),
    first: Duration::from_secs(2),
    longest: Duration::from_secs(60),
};

/// Polls the status of one pod: address, port, token.
pub type Poll = Arc<
    dyn Fn(IpAddr, u16, Arc<str>) -> BoxFuture<'static, Result<StatusReport, String>> + Send + Sync,
>;

/// Polls pods, and remembers what each said last. Cheap to clone; all clones share everything.
#[derive(Clone)]
pub struct Polls {
    poll: Poll,
    permits: Arc<Semaphore>,
    known: Arc<Mutex<HashMap<String, KnownPods>>>,
    limits: Limits,
    metrics: Metrics,
}

/// The pods of one SignalCluster by uid.
type KnownPods = HashMap<String, KnownPod>;

/// What is known of one pod.
struct KnownPod {
    /// Of its object when it was asked.
    resource_version: String,
    report: Result<StatusReport, String>,
    asked: Instant,
    /// Polls in a row that failed.
    failures: u32,
    /// It is not asked before, unless its object changes.
    next: Instant,
}

/// Which pods of a SignalCluster are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// All of them.
    All,
    /// So many, those first that were not asked for the longest time; and all that were never asked. The others are as they said last.
    Some(usize),
}

impl Polls {
    /// Polls in this way.
    pub fn new(poll: Poll, metrics: Metrics) -> Self {
        Self::within(LIMITS, poll, metrics)
    }

    fn within(limits: Limits, poll: Poll, metrics: Metrics) -> Self {
        Self {
            poll,
            permits: Arc::new(Semaphore::new(limits.in_all)),
            known: Arc::default(),
            limits,
            metrics,
        }
    }

    /// Fills in the reports of these pods, all of one SignalCluster, and returns how many were asked. A pod that was not asked has its last report.
    pub async fn ask(
        &self,
        cluster: &str,
        pods: &mut [Pod],
        token: Option<Arc<str>>,
        turn: Turn,
    ) -> usize {
        let now = Instant::now();
        let due = self.due(cluster, pods, turn, now);
        let Some(token) = token else {
            for pod in pods.iter_mut() {
                pod.report = Err("there is no admin token yet".into());
            }
            return 0;
        };
        let polls = due.into_iter().filter_map(|at| {
            let pod = pods.get(at)?;
            Some((at, pod.ip?, pod.admin_port))
        });
        let polls: Vec<_> = polls
            .map(|(at, ip, port)| self.one(at, ip, port, token.clone()))
            .collect();
        let mut asked = 0;
        let mut answers = stream::iter(polls).buffer_unordered(self.limits.of_one);
        let limit = tokio::time::sleep_until(now + self.limits.look);
        tokio::pin!(limit);
        loop {
            let (at, report) = tokio::select! {
                answer = answers.next() => match answer {
                    Some(answer) => answer,
                    None => break,
                },
                () = &mut limit => break,
            };
            if let Some(pod) = pods.get_mut(at) {
                self.keep(cluster, pod, &report, now);
                pod.report = report;
                asked += 1;
            }
        }
        asked
    }

    /// Drops what is known of the pods of a SignalCluster.
    pub fn forget(&self, cluster: &str) {
        self.known.lock().remove(cluster);
    }

    /// Drops everything that is known.
    pub fn forget_all(&self) {
        self.known.lock().clear();
    }

    /// Gives every pod its last report, and returns those that are to be asked, in this order. Pods that are gone are forgotten.
    fn due(&self, cluster: &str, pods: &mut [Pod], turn: Turn, now: Instant) -> Vec<usize> {
        let mut all = self.known.lock();
        let known = all.entry(cluster.to_owned()).or_default();
        let there: HashSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        known.retain(|uid, _| there.contains(uid.as_str()));
        let mut due: Vec<(Option<Instant>, usize)> = Vec::new();
        for (at, pod) in pods.iter_mut().enumerate() {
            let last = known.get(&pod.uid);
            pod.report = match (last, pod.ip) {
                (_, None) => Err("it has no address yet".into()),
                (Some(last), _) => last.report.clone(),
                (None, _) => Err("it has not been polled yet".into()),
            };
            let waits = last.is_some_and(|last| {
                last.next > now && last.resource_version == pod.resource_version
            });
            if pod.ip.is_some() && !waits {
                due.push((last.map(|last| last.asked), at));
            }
        }
        due.sort_unstable();
        if let Turn::Some(turn) = turn {
            let never = due.iter().filter(|(asked, _)| asked.is_none()).count();
            due.truncate(turn.max(never));
        }
        due.into_iter().map(|(_, at)| at).collect()
    }

    async fn one(
        &self,
        at: usize,
        ip: IpAddr,
        port: u16,
        token: Arc<str>,
    ) -> (usize, Result<StatusReport, String>) {
        let _permit = self.permits.acquire().await;
        let report = (self.poll)(ip, port, token).await;
        let outcome = if report.is_ok() { "ok" } else { "error" };
        Metrics::count(&self.metrics.polls, outcome);
        (at, report)
    }

    fn keep(
        &self,
        cluster: &str,
        pod: &Pod,
        report: &Result<StatusReport, String>,
        asked: Instant,
    ) {
        let mut all = self.known.lock();
        let known = all.entry(cluster.to_owned()).or_default();
        let before = known
            .get(&pod.uid)
            .filter(|before| before.resource_version == pod.resource_version)
            .map_or(0, |before| before.failures);
        let failures = match report {
            Ok(_) => 0,
            Err(_) => before.saturating_add(1),
        };
        let chance = rand::rng().random_range(0.0..1.0);
        let next = match failures {
            0 => asked,
            _ => {
                let Limits { first, longest, .. } = self.limits;
                asked + growing(first, longest, failures, chance)
            }
        };
        let known_pod = KnownPod {
            resource_version: pod.resource_version.clone(),
            report: report.clone(),
            asked,
            failures,
            next,
        };
        known.insert(pod.uid.clone(), known_pod);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A hundredth of the usual times.
    const QUICK_LIMITS: Limits = Limits {
        look: Duration::from_millis(600),
        first: Duration::from_millis(20),
        longest: Duration::from_millis(600),
        ..LIMITS
    };

    /// Answers after this time, and counts polls in all and at once.
    struct Gateways {
        polls: Polls,
        asked: Arc<Mutex<Vec<IpAddr>>>,
        most: Arc<AtomicUsize>,
    }

    fn gateways(
        answer: impl Fn(IpAddr) -> (Duration, Result<(), ()>) + Send + Sync + 'static,
    ) -> Gateways {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (all, peak) = (asked.clone(), most.clone());
        let poll: Poll = Arc::new(move |ip, _, _| {
            let (after, outcome) = answer(ip);
            let (all, running, peak) = (all.clone(), running.clone(), peak.clone());
            Box::pin(async move {
                all.lock().push(ip);
                let now = running.fetch_add(1, Ordering::Relaxed) + 1;
                peak.fetch_max(now, Ordering::Relaxed);
                tokio::time::sleep(after).await;
                running.fetch_sub(1, Ordering::Relaxed);
                outcome
                    .map(|()| StatusReport::default())
                    .map_err(|()| "no answer within 2 s".into())
            })
        });
        Gateways {
            polls: Polls::within(QUICK_LIMITS, poll, Metrics::default()),
            asked,
            most,
        }
    }

    impl Gateways {
        async fn ask(&self, cluster: &str, pods: &mut [Pod], turn: Turn) -> usize {
            let before = self.asked.lock().len();
            let token = Some("token".into());
            self.polls.ask(cluster, pods, token, turn).await;
            self.asked.lock().len() - before
        }
    }

    fn pods(count: u8) -> Vec<Pod> {
        let pod = |number: u8| Pod {
            ip: Some([10, 0, 0, number].into()),
            report: Err("it has not been polled yet".into()),
            ..crate::fixture::pod(&format!("edge-{number}"))
        };
        (0..count).map(pod).collect()
    }

    const QUICK: (Duration, Result<(), ()>) = (Duration::from_millis(1), Ok(()));
    const SILENT: (Duration, Result<(), ()>) = (Duration::from_millis(200), Err(()));

    #[tokio::test]
    async fn a_pod_that_does_not_answer_is_asked_less_and_less_until_it_answers_or_changes() {
        let silent = Arc::new(AtomicBool::new(true));
        let is_silent = silent.clone();
        let gateways = gateways(move |_| match is_silent.load(Ordering::Relaxed) {
            true => (Duration::ZERO, Err(())),
            false => QUICK,
        });
        let mut one = pods(1);
        let (began, mut asked) = (Instant::now(), 0);
        while asked < 8 {
            asked += gateways.ask("a", &mut one, Turn::All).await;
            assert!(one[0].report.is_err());
            assert!(began.elapsed() < Duration::from_secs(20), "{asked} polls");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // 20, 40, 80, 160, 320 and then 600 ms between two of them, each between half of it and all of it.
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(900), "{took:?}");
        one[0].resource_version = "2".into();
        let again = gateways.ask("a", &mut one, Turn::All).await;
        assert_eq!(again, 1, "its object has changed");
        silent.store(false, Ordering::Relaxed);
        tokio::time::sleep(QUICK_LIMITS.longest).await;
        for _ in 0..3 {
            assert_eq!(gateways.ask("a", &mut one, Turn::All).await, 1);
            assert!(one[0].report.is_ok());
        }
    }

    #[tokio::test]
    async fn a_cluster_whose_pods_are_silent_keeps_no_other_waiting() {
        let quick: IpAddr = [10, 0, 0, 200].into();
        let gateways = gateways(move |ip| if ip == quick { QUICK } else { SILENT });
        let (mut many, mut one) = (pods(100), pods(1));
        one[0].ip = Some(quick);
        let began = Instant::now();
        let small = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            gateways.ask("small", &mut one, Turn::All).await;
            began.elapsed()
        };
        let (_, small) = tokio::join!(gateways.ask("large", &mut many, Turn::All), small);
        let all = began.elapsed();
        assert!(
            one[0].report.is_ok() && small < all / 2,
            "{small:?} of {all:?}"
        );
        assert!(gateways.most.load(Ordering::Relaxed) <= LIMITS.of_one + 1);
        let asked = |gateways: &Gateways| -> usize {
            let asked: HashSet<IpAddr> = gateways.asked.lock().iter().copied().collect();
            asked.len()
        };
        let first = asked(&gateways);
        assert!(first < 90, "the look ends before all were asked: {first}");
        // Who was not asked comes first.
        for _ in 0..5 {
            gateways.ask("large", &mut many, Turn::All).await;
        }
        assert_eq!(asked(&gateways), 101);
    }

    #[tokio::test]
    async fn all_clusters_together_have_one_bound() {
        let gateways = gateways(|_| (Duration::from_millis(20), Ok(())));
        let names: Vec<String> = (0..10).map(|number| format!("c{number}")).collect();
        let asks = names.iter().map(async |name| {
            let mut pods = pods(16);
            gateways.ask(name, &mut pods, Turn::All).await;
            pods.iter().filter(|pod| pod.report.is_ok()).count()
        });
        let answered: usize = futures_util::future::join_all(asks).await.iter().sum();
        assert_eq!(answered, 160);
        assert_eq!(gateways.most.load(Ordering::Relaxed), LIMITS.in_all);
    }

    #[tokio::test]
    async fn a_turn_goes_round_and_a_new_pod_is_asked_at_once() {
        let gateways = gateways(|_| QUICK);
        let mut all = pods(10);
        assert_eq!(gateways.ask("a", &mut all, Turn::All).await, 10);
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert_eq!(gateways.ask("a", &mut all, Turn::Some(2)).await, 2);
        }
        let round: HashSet<IpAddr> = gateways.asked.lock()[10..].iter().copied().collect();
        assert_eq!(round.len(), 10, "each has had its turn");
        all.extend(pods(12).split_off(10));
        let asked = gateways.ask("a", &mut all, Turn::Some(1)).await;
        assert_eq!(asked, 2, "both new ones");
        assert!(all.iter().all(|pod| pod.report.is_ok()));
        gateways.polls.forget("a");
        assert!(gateways.polls.known.lock().is_empty());
    }
}

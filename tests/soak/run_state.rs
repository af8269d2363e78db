//! What the harness knows at every moment: who runs where, which faults last, and what went wrong.
//!
//! The stage writes it, clients and watchers read it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::schedule::Fault;

/// More failures than this are counted and not kept.
const MOST_KEPT: usize = 50;

/// What a gateway does, as the harness made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    Running,
    Frozen,
    /// Between a signal or a start and its effect.
    Changing,
    Gone,
}

/// A gateway as the harness knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) pid: u32,
    pub(crate) condition: Condition,
    pub(crate) since: Instant,
}

#[derive(Default)]
struct State {
    gateways: BTreeMap<usize, Known>,
    faults: Vec<(Fault, Instant)>,
    /// When the last fault ended.
    calm_since: Option<Instant>,
    /// The kinds of the faults that ended then.
    ended: Vec<String>,
    failures: Vec<String>,
    failed: usize,
    /// Recoveries in seconds, by kind of fault.
    recoveries: BTreeMap<String, Vec<f64>>,
}

/// Shared by all tasks.
#[derive(Clone)]
pub(crate) struct RunState {
    state: Arc<Mutex<State>>,
    begun: Instant,
    ending: Arc<AtomicBool>,
}

impl RunState {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            begun: Instant::now(),
            ending: Arc::default(),
        }
    }

    /// Since the start, for what is printed.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Prints a line with the time.
    pub(crate) fn say(&self, text: &str) {
        let seconds = self.elapsed().as_secs();
        println!("soak: {:02}:{:02} {text}", seconds / 60, seconds % 60);
    }

    /// Notes that something is not as it must be.
    pub(crate) fn fail(&self, what: String) {
        self.say(&format!("FAILED: {what}"));
        let mut state = self.state.lock();
        state.failed += 1;
        if state.failures.len() < MOST_KEPT {
            state.failures.push(what);
        }
    }

    /// What went wrong, and how often anything did.
    pub(crate) fn failures(&self) -> (Vec<String>, usize) {
        let state = self.state.lock();
        (state.failures.clone(), state.failed)
    }

    pub(crate) fn set(&self, number: usize, known: Known) {
        self.state.lock().gateways.insert(number, known);
    }

    pub(crate) fn change(&self, number: usize, condition: Condition) {
        if let Some(known) = self.state.lock().gateways.get_mut(&number) {
            (known.condition, known.since) = (condition, Instant::now());
        }
    }

    /// The gateways in this condition.
    pub(crate) fn in_condition(&self, condition: Condition) -> Vec<(usize, Known)> {
        let state = self.state.lock();
        let found = state.gateways.iter();
        found
            .filter(|(_, known)| known.condition == condition)
            .map(|(number, known)| (*number, *known))
            .collect()
    }

    /// Where a client may try to connect: whatever is not gone, frozen ones too.
    pub(crate) fn doors(&self) -> Vec<(usize, SocketAddr)> {
        let state = self.state.lock();
        let found = state.gateways.iter();
        found
            .filter(|(_, known)| known.condition != Condition::Gone)
            .map(|(number, known)| (*number, known.public))
            .collect()
    }

    pub(crate) fn begin(&self, fault: Fault) {
        let mut state = self.state.lock();
        state.faults.push((fault, Instant::now()));
        state.calm_since = None;
    }

    pub(crate) fn end_all(&self) {
        let mut state = self.state.lock();
        let ended = std::mem::take(&mut state.faults);
        state.ended = ended.into_iter().map(|(fault, _)| fault.name()).collect();
        state.calm_since = Some(Instant::now());
    }

    /// The faults that last, and since when.
    pub(crate) fn faults(&self) -> Vec<(Fault, Instant)> {
        self.state.lock().faults.clone()
    }

    /// Since when there has been no fault.
    pub(crate) fn calm_since(&self) -> Option<Instant> {
        self.state.lock().calm_since
    }

    /// A gateway was seen ready for the first time since the last faults ended.
    pub(crate) fn recovered(&self, after: Duration) {
        let state = &mut *self.state.lock();
        for fault in &state.ended {
            let times = state.recoveries.entry(fault.clone()).or_default();
            times.push(after.as_secs_f64());
        }
    }

    /// Recoveries in seconds, by kind of fault.
    pub(crate) fn recoveries(&self) -> BTreeMap<String, Vec<f64>> {
        self.state.lock().recoveries.clone()
    }

    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

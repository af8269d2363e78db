//! The state of the pipeline, for `/status`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use signal_contract::KafkaReport;

/// By topic and partition; `None` until the lag is known.
type Lags = BTreeMap<(Arc<str>, i32), Option<i64>>;

/// Shared: the pipeline writes it, the admin listener reads it.
#[derive(Debug, Default)]
pub struct PipelineStatus {
    partitions: Mutex<Lags>,
    retrying: AtomicUsize,
}

impl PipelineStatus {
    /// Returns the state of the pipeline.
    pub fn facts(&self) -> KafkaReport {
        let partitions = self.partitions.lock();
        let max_lag = partitions.values().flatten().max().copied();
        KafkaReport {
            partitions: i64::try_from(partitions.len()).unwrap_or(i64::MAX),
            max_lag,
            retrying: i64::try_from(self.retrying.load(Ordering::Relaxed)).unwrap_or(i64::MAX),
        }
    }

    pub(super) fn add(&self, topic: &Arc<str>, partition: i32) {
        self.partitions
            .lock()
            .insert((topic.clone(), partition), None);
    }

    pub(super) fn set_lag(&self, topic: &Arc<str>, partition: i32, lag: i64) {
        self.partitions
            .lock()
            .insert((topic.clone(), partition), Some(lag));
    }

    pub(super) fn remove(&self, topic: &Arc<str>, partition: i32) {
        self.partitions.lock().remove(&(topic.clone(), partition));
    }

    /// Counts a partition as waiting until the returned value is dropped.
    pub(super) fn retrying(self: &Arc<Self>) -> Retrying {
        self.retrying.fetch_add(1, Ordering::Relaxed);
        Retrying(self.clone())
    }
}

/// One partition that waits for a dependency.
pub(super) struct Retrying(Arc<PipelineStatus>);

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.retrying.fetch_sub(1, Ordering::Relaxed);
    }
}

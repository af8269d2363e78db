//! What the pipeline tells of itself to `/status`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

/// By topic and partition; `None` until the lag is known.
type Lags = BTreeMap<(Arc<str>, i32), Option<i64>>;

/// Shared between the pipeline, which writes it, and whoever asks.
#[derive(Debug, Default)]
pub struct PipelineStatus {
    partitions: Mutex<Lags>,
    retrying: AtomicUsize,
}

/// The pipeline at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PipelineFacts {
    /// Partitions assigned to this instance.
    pub partitions: usize,
    /// The longest lag of any of them, in records; `None` while none is known.
    pub max_lag: Option<i64>,
    /// Partitions that wait for a dependency.
    pub retrying: usize,
}

impl PipelineStatus {
    /// How the pipeline is.
    pub fn facts(&self) -> PipelineFacts {
        let partitions = self.partitions.lock();
        let max_lag = partitions.values().flatten().max().copied();
        PipelineFacts {
            partitions: partitions.len(),
            max_lag,
            retrying: self.retrying.load(Ordering::Relaxed),
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

    /// Counts a partition as waiting until the answer is dropped.
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

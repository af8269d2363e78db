//! How many connections each shard has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::HubCore;

/// Counts the connections of one shard. Every thread reads them.
#[derive(Debug, Default)]
pub(super) struct ShardCounts {
    /// Sockets that are not connections yet.
    pub(super) pending: AtomicUsize,
    pub(super) total: AtomicUsize,
    pub(super) authenticated: AtomicUsize,
    pub(super) encrypted: AtomicUsize,
}

/// Counts a socket that was placed on a shard and is not a connection yet, until it is dropped. The next socket is placed accordingly.
pub struct Claim {
    core: Arc<HubCore>,
    shard: usize,
}

impl Claim {
    pub(super) fn new(core: &Arc<HubCore>, shard: usize) -> Self {
        core.counts[shard].pending.fetch_add(1, Ordering::Relaxed);
        Self {
            core: Arc::clone(core),
            shard,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.core.counts[self.shard]
            .pending
            .fetch_sub(1, Ordering::Relaxed);
    }
}

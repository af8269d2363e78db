//! The index of which shard holds which destination. Every thread reads it. It is striped, so that shards rarely wait for each other; no lock
//! outlives a call.

use std::hash::BuildHasher;

use hashbrown::HashMap;
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::dispatch::Destination;

const STRIPES: usize = 64;

/// Pairs of a shard and the number of its connections.
pub(super) type Holders = SmallVec<[(u16, u32); 2]>;

/// Counts the connections of each destination by shard.
#[derive(Debug)]
pub(super) struct Directory {
    stripes: Box<[Mutex<HashMap<Destination, Holders, FxBuildHasher>>]>,
}

impl Directory {
    pub(super) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
        }
    }

    fn stripe(
        &self,
        destination: &Destination,
    ) -> &Mutex<HashMap<Destination, Holders, FxBuildHasher>> {
        &self.stripes[(FxBuildHasher.hash_one(destination) >> 40) as usize % STRIPES]
    }

    /// Adds a connection, unless the destination already has `limit`. Returns whether it did.
    pub(super) fn add(&self, destination: &Destination, shard: u16, limit: u32) -> bool {
        let mut stripe = self.stripe(destination).lock();
        let holders = match stripe.get_mut(destination) {
            Some(holders) => holders,
            None => stripe.entry(destination.clone()).or_default(),
        };
        if holders.iter().map(|h| h.1).sum::<u32>() >= limit {
            return false;
        }
        match holders.iter_mut().find(|h| h.0 == shard) {
            Some(holder) => holder.1 += 1,
            None => holders.push((shard, 1)),
        }
        true
    }

    /// Removes a connection.
    pub(super) fn remove(&self, destination: &Destination, shard: u16) {
        let mut stripe = self.stripe(destination).lock();
        let Some(holders) = stripe.get_mut(destination) else {
            return;
        };
        if let Some(at) = holders.iter().position(|h| h.0 == shard) {
            holders[at].1 -= 1;
            if holders[at].1 == 0 {
                holders.swap_remove(at);
            }
        }
        if holders.is_empty() {
            stripe.remove(destination);
            if stripe.capacity() > 64 && stripe.len() < stripe.capacity() / 4 {
                stripe.shrink_to_fit();
            }
        }
    }

    /// Returns the shards that hold a destination; empty if none does.
    pub(super) fn holders(&self, destination: &Destination) -> Holders {
        self.stripe(destination)
            .lock()
            .get(destination)
            .cloned()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_shard_up_to_the_limit() {
        let directory = Directory::new();
        let user = Destination::User("17".into());
        assert!(directory.add(&user, 0, 3));
        assert!(directory.add(&user, 1, 3));
        assert!(directory.add(&user, 1, 3));
        assert!(!directory.add(&user, 2, 3));
        assert_eq!(directory.holders(&user)[..], [(0, 1), (1, 2)]);
        for shard in [1, 0, 1] {
            directory.remove(&user, shard);
        }
        assert!(directory.holders(&user).is_empty());
        directory.remove(&user, 0);
        assert!(directory.stripes.iter().all(|s| s.lock().is_empty()));
    }
}

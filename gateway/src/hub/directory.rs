//! The index of which shard holds which destination. Every thread reads it. It is striped, so that shards rarely wait for each other; no lock
//! outlives a call.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::dispatch::Destination;
use crate::hash::Seeded;

const STRIPES: usize = 64;

/// Pairs of a shard and the number of its connections.
pub(super) type Holders = SmallVec<[(u16, u32); 2]>;

type Held = (Destination, Holders);

/// Counts the connections of each destination by shard.
#[derive(Debug)]
pub(super) struct Directory {
    stripes: Box<[Mutex<HashTable<Held>>]>,
    hasher: Seeded,
}

impl Directory {
    pub(super) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: Seeded::default(),
        }
    }

    /// Returns the hash of a destination, and the stripe that it is in.
    fn find(&self, destination: &Destination) -> (u64, &Mutex<HashTable<Held>>) {
        let hash = self.hash(destination);
        (hash, self.stripe(hash))
    }

    /// A user's is that of the name alone: who has only the name finds it, too.
    fn hash(&self, destination: &Destination) -> u64 {
        match destination {
            Destination::User(user) => self.hasher.hash_one(&**user),
            other => self.hasher.hash_one(other),
        }
    }

    /// One hash serves for stripe and table, which uses its lowest and its highest bits.
    fn stripe(&self, hash: u64) -> &Mutex<HashTable<Held>> {
        &self.stripes[(hash >> 40) as usize % STRIPES]
    }

    /// Adds a connection, unless the destination already has `limit`. Returns whether it did.
    pub(super) fn add(&self, destination: &Destination, shard: u16, limit: u32) -> bool {
        let (hash, stripe) = self.find(destination);
        let mut stripe = stripe.lock();
        let entry = stripe.entry(
            hash,
            |held| held.0 == *destination,
            |held| self.hash(&held.0),
        );
        let holders = match entry {
            Entry::Occupied(held) => &mut held.into_mut().1,
            Entry::Vacant(place) => {
                &mut place
                    .insert((destination.clone(), Holders::new()))
                    .into_mut()
                    .1
            }
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
        let (hash, stripe) = self.find(destination);
        let mut stripe = stripe.lock();
        let Ok(mut held) = stripe.find_entry(hash, |held| held.0 == *destination) else {
            return;
        };
        let holders = &mut held.get_mut().1;
        if let Some(at) = holders.iter().position(|h| h.0 == shard) {
            holders[at].1 -= 1;
            if holders[at].1 == 0 {
                holders.swap_remove(at);
            }
        }
        if holders.is_empty() {
            held.remove();
            if stripe.capacity() > 64 && stripe.len() < stripe.capacity() / 4 {
                stripe.shrink_to_fit(|held| self.hash(&held.0));
            }
        }
    }

    /// Returns the shards that hold a destination; empty if none does.
    pub(super) fn holders(&self, destination: &Destination) -> Holders {
        let (hash, stripe) = self.find(destination);
        let stripe = stripe.lock();
        let held = stripe.find(hash, |held| held.0 == *destination);
        held.map(|held| held.1.clone()).unwrap_or_default()
    }

    /// Returns the shards that hold a user, as [`Directory::holders`].
    pub(super) fn holders_of_user(&self, user: &str) -> Holders {
        let hash = self.hasher.hash_one(user);
        let stripe = self.stripe(hash).lock();
        let held = stripe.find(
            hash,
            |held| matches!(&held.0, Destination::User(name) if **name == *user),
        );
        held.map(|held| held.1.clone()).unwrap_or_default()
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
        assert_eq!(directory.holders_of_user("17")[..], [(0, 1), (1, 2)]);
        assert!(
            directory
                .holders(&Destination::Room("17".into()))
                .is_empty()
        );
        for shard in [1, 0, 1] {
            directory.remove(&user, shard);
        }
        assert!(directory.holders(&user).is_empty());
        directory.remove(&user, 0);
        assert!(directory.stripes.iter().all(|s| s.lock().is_empty()));
    }
}

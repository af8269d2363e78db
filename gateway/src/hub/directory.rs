//! The index of which shard holds which destination. Every thread reads it. It is striped, so that shards rarely wait for each other; no lock
//! outlives a call.
//!
//! Every connection has an entry for its client id and one for its user: 16 and 24 bytes, and most have no allocation.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;
use slab::Slab;
use smallvec::{SmallVec, smallvec};

use crate::hash::Seeded;
use crate::id::Id;

const STRIPES: usize = 64;
/// Stands for the shard of a name that several shards hold.
const SEVERAL: u16 = u16::MAX;

/// Pairs of a shard and the number of its connections.
pub(super) type Holders = SmallVec<[(u16, u32); 2]>;

/// Counts the connections of each destination by shard.
#[derive(Debug)]
pub(super) struct Directory {
    stripes: Box<[Mutex<Stripe>]>,
    hasher: Seeded,
}

#[derive(Debug, Default)]
struct Stripe {
    /// A client is one connection.
    clients: HashTable<(Id, u16)>,
    users: HashTable<Held>,
    rooms: HashTable<Held>,
    /// What several shards hold.
    several: Slab<Holders>,
}

/// Which table of a stripe a name is in.
#[derive(Debug, Clone, Copy)]
enum Kind {
    User,
    Room,
}

impl Stripe {
    fn table(&self, kind: Kind) -> &HashTable<Held> {
        match kind {
            Kind::User => &self.users,
            Kind::Room => &self.rooms,
        }
    }

    fn table_mut(&mut self, kind: Kind) -> (&mut HashTable<Held>, &mut Slab<Holders>) {
        let table = match kind {
            Kind::User => &mut self.users,
            Kind::Room => &mut self.rooms,
        };
        (table, &mut self.several)
    }
}

/// Who holds a user or a room.
#[derive(Debug)]
struct Held {
    name: Arc<str>,
    /// The only shard that has connections of it, or [`SEVERAL`].
    shard: u16,
    /// How many those are, or the key in [`Stripe::several`].
    count: u32,
}

impl Held {
    fn holders(&self, several: &Slab<Holders>) -> Holders {
        match self.shard {
            SEVERAL => several[self.count as usize].clone(),
            shard => smallvec![(shard, self.count)],
        }
    }

    /// Adds a connection, unless there are already `limit`. Returns whether it did.
    fn add(&mut self, shard: u16, limit: u32, several: &mut Slab<Holders>) -> bool {
        if self.shard != SEVERAL {
            if self.count >= limit {
                return false;
            }
            if self.shard == shard {
                self.count += 1;
            } else {
                let holders = smallvec![(self.shard, self.count), (shard, 1)];
                (self.shard, self.count) = (SEVERAL, several.insert(holders) as u32);
            }
            return true;
        }
        let holders = &mut several[self.count as usize];
        if holders.iter().map(|holder| holder.1).sum::<u32>() >= limit {
            return false;
        }
        match holders.iter_mut().find(|holder| holder.0 == shard) {
            Some(holder) => holder.1 += 1,
            None => holders.push((shard, 1)),
        }
        true
    }

    /// Removes a connection. Returns whether it was the last one.
    fn remove(&mut self, shard: u16, several: &mut Slab<Holders>) -> bool {
        if self.shard != SEVERAL {
            if self.shard == shard {
                self.count -= 1;
            }
            return self.count == 0;
        }
        let key = self.count as usize;
        let holders = &mut several[key];
        if let Some(at) = holders.iter().position(|holder| holder.0 == shard) {
            holders[at].1 -= 1;
            if holders[at].1 == 0 {
                holders.swap_remove(at);
            }
        }
        if let [(only, count)] = holders[..] {
            several.remove(key);
            (self.shard, self.count) = (only, count);
        }
        false
    }
}

impl Directory {
    pub(super) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: Seeded::default(),
        }
    }

    /// One hash serves for stripe and table, which uses its lowest and its highest bits.
    fn stripe(&self, hash: u64) -> &Mutex<Stripe> {
        &self.stripes[(hash >> 40) as usize % STRIPES]
    }

    /// Adds a connection to its client id.
    pub(super) fn add_client(&self, id: Id, shard: u16) {
        let hash = self.hasher.hash_one(id);
        let mut stripe = self.stripe(hash).lock();
        let entry = stripe.clients.entry(
            hash,
            |held| held.0 == id,
            |held| self.hasher.hash_one(held.0),
        );
        entry.insert((id, shard));
    }

    /// Removes a connection from its client id.
    pub(super) fn remove_client(&self, id: Id) {
        let hash = self.hasher.hash_one(id);
        let mut stripe = self.stripe(hash).lock();
        if let Ok(held) = stripe.clients.find_entry(hash, |held| held.0 == id) {
            held.remove();
            shrink(&mut stripe.clients, |held| self.hasher.hash_one(held.0));
        }
    }

    /// Adds a connection to a user, unless the user already has `limit`. Returns whether it did.
    pub(super) fn add_user(&self, user: &Arc<str>, shard: u16, limit: u32) -> bool {
        self.add(Kind::User, user, shard, limit)
    }

    /// Removes a connection from a user.
    pub(super) fn remove_user(&self, user: &str, shard: u16) {
        self.remove(Kind::User, user, shard);
    }

    /// Adds a member to a room.
    pub(super) fn add_room(&self, room: &Arc<str>, shard: u16) {
        self.add(Kind::Room, room, shard, u32::MAX);
    }

    /// Removes a member from a room.
    pub(super) fn remove_room(&self, room: &str, shard: u16) {
        self.remove(Kind::Room, room, shard);
    }

    fn add(&self, kind: Kind, name: &Arc<str>, shard: u16, limit: u32) -> bool {
        let hash = self.hasher.hash_one(&**name);
        let mut stripe = self.stripe(hash).lock();
        let (table, several) = stripe.table_mut(kind);
        let entry = table.entry(
            hash,
            |held| *held.name == **name,
            |held| self.hasher.hash_one(&*held.name),
        );
        match entry {
            Entry::Occupied(held) => held.into_mut().add(shard, limit, several),
            Entry::Vacant(_) if limit == 0 => false,
            Entry::Vacant(place) => {
                place.insert(Held {
                    name: Arc::clone(name),
                    shard,
                    count: 1,
                });
                true
            }
        }
    }

    fn remove(&self, kind: Kind, name: &str, shard: u16) {
        let hash = self.hasher.hash_one(name);
        let mut stripe = self.stripe(hash).lock();
        let (table, several) = stripe.table_mut(kind);
        if let Ok(mut held) = table.find_entry(hash, |held| *held.name == *name)
            && held.get_mut().remove(shard, several)
        {
            held.remove();
            shrink(table, |held| self.hasher.hash_one(&*held.name));
        }
    }

    /// Returns the shard that holds a client.
    pub(super) fn holder_of_client(&self, id: Id) -> Option<u16> {
        let hash = self.hasher.hash_one(id);
        let stripe = self.stripe(hash).lock();
        let held = stripe.clients.find(hash, |held| held.0 == id);
        held.map(|held| held.1)
    }

    /// Returns the shards that hold a user; empty if none does.
    pub(super) fn holders_of_user(&self, user: &str) -> Holders {
        self.find(Kind::User, user)
    }

    /// Returns the shards that hold a room; empty if none does.
    pub(super) fn holders_of_room(&self, room: &str) -> Holders {
        self.find(Kind::Room, room)
    }

    fn find(&self, kind: Kind, name: &str) -> Holders {
        let hash = self.hasher.hash_one(name);
        let stripe = self.stripe(hash).lock();
        let held = stripe.table(kind).find(hash, |held| *held.name == *name);
        held.map(|held| held.holders(&stripe.several))
            .unwrap_or_default()
    }
}

/// Gives back what a table does not need after many have left.
pub(super) fn shrink<T>(table: &mut HashTable<T>, hasher: impl Fn(&T) -> u64) {
    if table.capacity() > 64 && table.len() < table.capacity() / 4 {
        table.shrink_to_fit(hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_shard_up_to_the_limit() {
        let directory = Directory::new();
        let user: Arc<str> = "17".into();
        assert!(directory.add_user(&user, 0, 3));
        assert_eq!(directory.holders_of_user("17")[..], [(0, 1)]);
        assert!(directory.add_user(&user, 1, 3));
        assert!(directory.add_user(&user, 1, 3));
        assert!(!directory.add_user(&user, 2, 3));
        assert_eq!(directory.holders_of_user("17")[..], [(0, 1), (1, 2)]);
        assert!(directory.holders_of_room("17").is_empty());
        directory.remove_user("17", 2);
        for shard in [1, 0, 1] {
            assert!(!directory.holders_of_user("17").is_empty());
            directory.remove_user("17", shard);
        }
        assert!(directory.holders_of_user("17").is_empty());
        directory.remove_user("17", 0);
        assert!(directory.is_empty());
    }

    #[test]
    fn a_limit_holds_for_the_connections_of_one_shard() {
        let directory = Directory::new();
        let user: Arc<str> = "17".into();
        assert!(directory.add_user(&user, 4, 2) && directory.add_user(&user, 4, 2));
        assert!(!directory.add_user(&user, 4, 2) && !directory.add_user(&user, 5, 2));
        assert_eq!(directory.holders_of_user("17")[..], [(4, 2)]);
    }

    #[test]
    fn a_room_of_many_shards_is_held_by_each_as_often_as_it_has_members() {
        let directory = Directory::new();
        let room: Arc<str> = "lobby".into();
        for shard in 0..4 {
            for _ in 0..=shard {
                directory.add_room(&room, shard);
            }
        }
        assert_eq!(
            directory.holders_of_room("lobby")[..],
            [(0, 1), (1, 2), (2, 3), (3, 4)]
        );
        for shard in 0..3 {
            for _ in 0..=shard {
                directory.remove_room("lobby", shard);
            }
        }
        assert_eq!(directory.holders_of_room("lobby")[..], [(3, 4)]);
        (0..4).for_each(|_| directory.remove_room("lobby", 3));
        assert!(directory.is_empty());
    }

    #[test]
    fn a_client_has_one_shard_until_it_leaves() {
        let directory = Directory::new();
        let ids: Vec<Id> = (0..5000).map(|n| Id::from_parts(n, 0, 0)).collect();
        for (id, shard) in ids.iter().zip(0..) {
            directory.add_client(*id, shard % 3);
        }
        for (id, shard) in ids.iter().zip(0..) {
            assert_eq!(directory.holder_of_client(*id), Some(shard % 3));
        }
        ids.iter().for_each(|id| directory.remove_client(*id));
        assert_eq!(directory.holder_of_client(ids[0]), None);
        assert!(directory.is_empty());
    }

    /// Every connection has one of each.
    #[test]
    fn entries_are_small() {
        assert_eq!((size_of::<(Id, u16)>(), size_of::<Held>()), (16, 24));
    }

    impl Directory {
        fn is_empty(&self) -> bool {
            self.stripes.iter().all(|stripe| {
                let stripe = stripe.lock();
                stripe.clients.is_empty()
                    && stripe.users.is_empty()
                    && stripe.rooms.is_empty()
                    && stripe.several.is_empty()
            })
        }
    }
}

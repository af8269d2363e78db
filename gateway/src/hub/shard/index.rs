//! Which slots a client and a user have. A key is what the connection in the slot says of itself, so an entry is its slot and the hash of the key: 8 bytes for
//! each connection.
//!
//! The hash is kept so that a table that grows touches no connection.

use std::hash::BuildHasher;
use std::rc::Rc;

use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;

use crate::hash::Seeded;
use crate::hub::directory::shrink;
use crate::hub::link::Link;
use crate::id::Id;

/// The connections of a shard, by slot.
pub(super) type Links = Slab<Rc<Link>>;

/// Marks an entry of a user with several connections.
const SEVERAL: u32 = 1 << 31;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// A slot; with [`SEVERAL`], a key in [`UserIndex::several`].
    value: u32,
    hash: u32,
}

/// Returns a hash for the table, which uses its lowest and its highest bits.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

fn rehash(entry: &Entry) -> u64 {
    spread(entry.hash)
}

/// The slot of each client.
#[derive(Debug, Default)]
pub(super) struct ClientIndex {
    table: HashTable<Entry>,
    hasher: Seeded,
}

impl ClientIndex {
    /// Adds a client that is in none.
    pub(super) fn insert(&mut self, id: Id, slot: u32) {
        let hash = self.hasher.hash_one(id) as u32;
        let entry = Entry { value: slot, hash };
        self.table.insert_unique(spread(hash), entry, rehash);
    }

    /// Removes the client in a slot.
    pub(super) fn remove(&mut self, id: Id, slot: u32) {
        let hash = self.hasher.hash_one(id) as u32;
        let entry = self
            .table
            .find_entry(spread(hash), |entry| entry.value == slot);
        if let Ok(entry) = entry {
            entry.remove();
            shrink(&mut self.table, rehash);
        }
    }

    /// Returns the slot of a client.
    pub(super) fn get(&self, id: Id, links: &Links) -> Option<u32> {
        let hash = self.hasher.hash_one(id) as u32;
        let is_it = |entry: &Entry| {
            entry.hash == hash
                && links
                    .get(entry.value as usize)
                    .is_some_and(|link| link.id == id)
        };
        let entry = self.table.find(spread(hash), is_it);
        entry.map(|entry| entry.value)
    }
}

/// The slots of each user.
#[derive(Debug, Default)]
pub(super) struct UserIndex {
    table: HashTable<Entry>,
    several: Slab<SmallVec<[u32; 4]>>,
    hasher: Seeded,
}

/// Returns the slots of an entry.
fn slots<'a>(entry: &'a Entry, several: &'a Slab<SmallVec<[u32; 4]>>) -> &'a [u32] {
    if entry.value & SEVERAL == 0 {
        std::slice::from_ref(&entry.value)
    } else {
        &several[(entry.value & !SEVERAL) as usize]
    }
}

/// Finds the entry of a user with this hash, by the first of its slots.
fn of_user<'a>(
    user: &'a str,
    hash: u32,
    several: &'a Slab<SmallVec<[u32; 4]>>,
    links: &'a Links,
) -> impl Fn(&Entry) -> bool + 'a {
    let is_in = move |slot: &u32| {
        links.get(*slot as usize).is_some_and(|link| {
            let membership = link.membership.borrow();
            membership
                .principal
                .as_ref()
                .is_some_and(|p| *p.subject == *user)
        })
    };
    move |entry| entry.hash == hash && slots(entry, several).first().is_some_and(is_in)
}

impl UserIndex {
    /// Adds a slot to a user, whose principal is in the slot already.
    pub(super) fn insert(&mut self, user: &str, slot: u32, links: &Links) {
        let hash = self.hasher.hash_one(user) as u32;
        let several = &mut self.several;
        let is_it = of_user(user, hash, several, links);
        match self.table.find_entry(spread(hash), is_it) {
            Err(_) => {
                let entry = Entry { value: slot, hash };
                self.table.insert_unique(spread(hash), entry, rehash);
            }
            Ok(mut entry) => {
                let entry = entry.get_mut();
                if entry.value & SEVERAL == 0 {
                    let both = SmallVec::from_slice(&[entry.value, slot]);
                    entry.value = SEVERAL | several.insert(both) as u32;
                } else {
                    several[(entry.value & !SEVERAL) as usize].push(slot);
                }
            }
        }
    }

    /// Removes a slot from a user, whose principal is still in the slot.
    pub(super) fn remove(&mut self, user: &str, slot: u32, links: &Links) {
        let hash = self.hasher.hash_one(user) as u32;
        let several = &mut self.several;
        let is_it = of_user(user, hash, several, links);
        let Ok(mut found) = self.table.find_entry(spread(hash), is_it) else {
            return;
        };
        let entry = found.get_mut();
        if entry.value & SEVERAL == 0 {
            found.remove();
            return shrink(&mut self.table, rehash);
        }
        let key = (entry.value & !SEVERAL) as usize;
        let left = &mut several[key];
        left.retain(|other| *other != slot);
        if let [only] = left[..] {
            entry.value = only;
            several.remove(key);
        }
    }

    /// Returns the slots of a user; empty if it has none.
    pub(super) fn get(&self, user: &str, links: &Links) -> &[u32] {
        let hash = self.hasher.hash_one(user) as u32;
        let is_it = of_user(user, hash, &self.several, links);
        let entry = self.table.find(spread(hash), is_it);
        entry.map_or(&[], |entry| slots(entry, &self.several))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::principal::{Principal, USER, Via};
    use crate::stream::Stream;

    /// Connections of these users.
    async fn links(users: &[&str]) -> Links {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut links = Links::new();
        for (slot, user) in (0u16..).zip(users) {
            let (client, _) = tokio::join!(TcpStream::connect(address), listener.accept());
            let stream = Stream::Clear(client.unwrap());
            let id = Id::from_parts(7, 0, slot);
            let link = Link::new(id, slot.into(), host, stream, Arc::default());
            link.membership.borrow_mut().principal = Some(Arc::new(Principal {
                subject: (*user).into(),
                kind: USER.into(),
                roles: Box::default(),
                via: Via::Basic,
            }));
            links.insert(Rc::new(link));
        }
        links
    }

    #[tokio::test]
    async fn a_user_has_the_slots_of_its_connections_until_they_leave() {
        let links = links(&["a", "b", "a", "a", "c"]).await;
        let mut users = UserIndex::default();
        for (slot, user) in [(0, "a"), (1, "b"), (2, "a"), (3, "a"), (4, "c")] {
            users.insert(user, slot, &links);
        }
        assert_eq!(users.get("a", &links), [0, 2, 3]);
        assert_eq!(users.get("b", &links), [1]);
        assert_eq!(users.get("d", &links), [0u32; 0]);
        users.remove("a", 0, &links);
        assert_eq!(users.get("a", &links), [2, 3]);
        users.remove("a", 3, &links);
        assert_eq!(users.get("a", &links), [2]);
        assert!(users.several.is_empty());
        for (slot, user) in [(2, "a"), (1, "b"), (4, "c"), (4, "c")] {
            users.remove(user, slot, &links);
            assert!(users.get(user, &links).is_empty());
        }
        assert!(users.table.is_empty());
    }

    #[tokio::test]
    async fn a_client_is_found_by_its_id_as_the_table_grows_and_shrinks() {
        let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
        let links = links(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let mut clients = ClientIndex::default();
        for (slot, link) in &links {
            clients.insert(link.id, slot as u32);
        }
        for (slot, link) in &links {
            assert_eq!(clients.get(link.id, &links), Some(slot as u32));
        }
        let grown = clients.table.capacity();
        for (slot, link) in links.iter().skip(10) {
            clients.remove(link.id, slot as u32);
            assert_eq!(clients.get(link.id, &links), None);
        }
        assert!(clients.table.capacity() < grown / 2);
        for (slot, link) in links.iter().take(10) {
            assert_eq!(clients.get(link.id, &links), Some(slot as u32));
        }
    }

    /// Every connection has one of each.
    #[test]
    fn an_entry_takes_8_bytes() {
        assert_eq!(size_of::<Entry>(), 8);
    }
}

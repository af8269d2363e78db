//! Rooms of a shard: who is in which, and what the bus subscribes to for them.

use std::rc::Rc;
use std::sync::Arc;

use super::Shard;
use crate::dispatch::Destination;
use crate::hub::link::{Link, Seat};
use crate::id::Id;
use crate::protocol::room::DEFAULT_ROOMS;

/// A room with members on this shard.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) name: Arc<str>,
    pub(super) members: Vec<u32>,
}

/// What became of a join.
#[derive(Debug, Default)]
pub struct Joined {
    /// The rooms that the connection was not in before.
    pub rooms: Vec<String>,
    /// Whether the limit per connection left rooms out.
    pub limited: bool,
}

impl Shard {
    /// Returns the names of the rooms a connection is in.
    pub fn rooms_of(&self, link: &Link) -> Vec<String> {
        let rooms = self.rooms.borrow();
        let membership = link.membership.borrow();
        membership
            .seats
            .iter()
            .map(|seat| rooms[seat.room as usize].name.to_string())
            .collect()
    }

    /// Returns the names of the rooms that the rules allowed, without the default rooms: it leaves them when the right ends.
    pub fn rooms_by_right(&self, link: &Link) -> Vec<String> {
        let rooms = self.rooms.borrow();
        let membership = link.membership.borrow();
        let names = membership
            .seats
            .iter()
            .filter(|seat| !seat.is_granted())
            .map(|seat| &*rooms[seat.room as usize].name);
        names
            .filter(|name| !DEFAULT_ROOMS.contains(name))
            .map(str::to_owned)
            .collect()
    }

    /// Joins rooms, up to the limit per connection. Rooms `granted` by an administrator are kept whatever the rules say.
    pub fn join(&self, link: &Rc<Link>, names: &[String], granted: bool) -> Joined {
        let limit = self.limits().rooms;
        let may = |name: &str| match name.parse::<Id>() {
            // A client id is the room of that client alone, from the start (protocol.md 5.7).
            Ok(id) => id != link.id && self.core.directory.holder_of_client(id).is_none(),
            Err(_) => true,
        };
        let mut joined = Joined::default();
        for name in names.iter().filter(|name| may(name)) {
            if link.membership.borrow().seats.len() >= limit && !self.is_in(link, name) {
                joined.limited = true;
            } else if self.enter(link, name, granted) {
                joined.rooms.push(name.clone());
            }
        }
        if !joined.rooms.is_empty() {
            let rooms = joined.rooms.iter().map(|name| name.as_str().into());
            self.core
                .subscribe(link.id, rooms.map(Destination::Room).collect());
        }
        joined
    }

    /// Whether a connection is in a room.
    pub fn is_in(&self, link: &Link, name: &str) -> bool {
        let room = self.by_room.borrow().get(name).copied();
        room.is_some_and(|room| {
            link.membership
                .borrow()
                .seats
                .iter()
                .any(|seat| seat.room == room)
        })
    }

    /// Leaves rooms, and returns those it was in.
    pub fn leave(&self, link: &Link, names: &[String]) -> Vec<String> {
        let left: Vec<String> = names
            .iter()
            .filter(|name| self.exit(link, name))
            .cloned()
            .collect();
        if !left.is_empty() {
            self.core.unsubscribe(
                left.iter()
                    .map(|name| Destination::Room(name.as_str().into()))
                    .collect(),
            );
        }
        left
    }

    pub(super) fn enter(&self, link: &Link, name: &str, granted: bool) -> bool {
        let mut rooms = self.rooms.borrow_mut();
        let known = self.by_room.borrow().get(name).copied();
        let room = known.unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            let room = rooms.insert(Room {
                name: Arc::clone(&name),
                members: Vec::new(),
            }) as u32;
            self.by_room.borrow_mut().insert(name, room);
            room
        });
        let mut membership = link.membership.borrow_mut();
        let seats = &mut membership.seats;
        if let Some(seat) = seats.iter_mut().find(|seat| seat.room == room) {
            if granted {
                seat.grant();
            }
            return false;
        }
        let entered = &mut rooms[room as usize];
        let at = entered.members.len() as u32;
        seats.push(Seat::new(room, at, granted));
        entered.members.push(link.slot);
        self.core.directory.add_room(&entered.name, self.index);
        true
    }

    fn exit(&self, link: &Link, name: &str) -> bool {
        let Some(room) = self.by_room.borrow().get(name).copied() else {
            return false;
        };
        let seat = {
            let mut membership = link.membership.borrow_mut();
            let seats = &mut membership.seats;
            let Some(at) = seats.iter().position(|seat| seat.room == room) else {
                return false;
            };
            seats.swap_remove(at)
        };
        self.vacate(seat);
        true
    }

    /// Removes a seat from its room. The last member of the room takes its index.
    pub(super) fn vacate(&self, seat: Seat) {
        let mut rooms = self.rooms.borrow_mut();
        let room = &mut rooms[seat.room as usize];
        room.members.swap_remove(seat.at() as usize);
        if let Some(moved) = room.members.get(seat.at() as usize) {
            let links = self.links.borrow();
            let mut membership = links[*moved as usize].membership.borrow_mut();
            if let Some(theirs) = membership.seats.iter_mut().find(|s| s.room == seat.room) {
                theirs.move_to(seat.at());
            }
        }
        self.core.directory.remove_room(&room.name, self.index);
        if room.members.is_empty() {
            let room = rooms.remove(seat.room as usize);
            self.by_room.borrow_mut().remove(&room.name);
        } else if room.members.capacity() > 64 && room.members.len() < room.members.capacity() / 4 {
            room.members.shrink_to_fit();
        }
    }
}

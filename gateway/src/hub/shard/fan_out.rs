//! Messages to the connections of a shard: queued to every receiver first, then written with one call per connection.

use std::rc::Rc;

use super::Shard;
use crate::dispatch::{Destination, ResyncReason};
use crate::hub::batch::Outgoing;
use crate::hub::link::Link;
use crate::hub::outbox::Flushed;
use crate::id::Id;
use crate::protocol::{SharedMessages, event};

/// How many connections are written to before other tasks of the shard run.
const FLUSHES_PER_TURN: usize = 512;

impl Shard {
    /// Queues messages to every connection of the destination, and returns how many messages were queued.
    pub(super) fn deliver(
        &self,
        destination: &Destination,
        outgoing: &Outgoing,
        exclude: &[Id],
    ) -> usize {
        let links = self.links.borrow();
        let mut touched = self.touched.borrow_mut();
        let bounds = self.limits().outbox;
        let mut count = 0;
        let mut queue_to = |link: &Rc<Link>| {
            if link.principal.borrow().is_none()
                || (!exclude.is_empty() && exclude.contains(&link.id))
            {
                return;
            }
            match outgoing {
                Outgoing::Single(message) => link.deliver(message, bounds),
                Outgoing::Batch(batch) => link.deliver_batch(batch, bounds),
            }
            count += 1;
            if !link.touched.replace(true) {
                touched.push(Rc::clone(link));
            }
        };
        match destination {
            Destination::Client(id) => self
                .by_client
                .borrow()
                .get(id)
                .into_iter()
                .for_each(|slot| queue_to(&links[*slot as usize])),
            Destination::User(user) => {
                self.by_user
                    .borrow()
                    .get(user)
                    .into_iter()
                    .flatten()
                    .for_each(|slot| queue_to(&links[*slot as usize]));
            }
            Destination::Room(name) => {
                let room = self.by_room.borrow().get(name).copied();
                if let Some(room) = room {
                    self.rooms.borrow()[room as usize]
                        .members
                        .iter()
                        .for_each(|slot| queue_to(&links[*slot as usize]));
                }
                // A client id is the room of that client (protocol.md 5.7).
                let slot = name
                    .parse()
                    .ok()
                    .and_then(|id: Id| self.by_client.borrow().get(&id).copied());
                slot.into_iter()
                    .for_each(|slot| queue_to(&links[slot as usize]));
            }
            Destination::Broadcast => links.iter().for_each(|(_, link)| queue_to(link)),
        }
        for _ in 0..outgoing.count() {
            self.core
                .metrics
                .fan_out
                .observe(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        }
        count * outgoing.count()
    }

    /// Queues to every connection of each user the message to that user, and returns how many messages were queued.
    pub(super) fn deliver_shared(&self, messages: &Rc<SharedMessages>) -> usize {
        let links = self.links.borrow();
        let users = self.by_user.borrow();
        let mut touched = self.touched.borrow_mut();
        let bounds = self.limits().outbox;
        let mut total = 0;
        for n in 0..messages.len() {
            let mut count = 0u32;
            for slot in users.get(messages.user(n)).into_iter().flatten() {
                let link = &links[*slot as usize];
                if link.principal.borrow().is_none() {
                    continue;
                }
                link.deliver_shared(messages, n, bounds);
                count += 1;
                if !link.touched.replace(true) {
                    touched.push(Rc::clone(link));
                }
            }
            self.core.metrics.fan_out.observe(f64::from(count));
            total += count as usize;
        }
        total
    }

    pub(super) async fn flush_touched(&self) {
        let mut bytes = 0;
        let mut touched = std::mem::take(&mut *self.touched.borrow_mut());
        for (n, link) in touched.drain(..).enumerate() {
            if n > 0 && n % FLUSHES_PER_TURN == 0 {
                tokio::task::yield_now().await;
            }
            link.touched.set(false);
            // A blocked socket is written to by its own task, as soon as it takes more.
            if link.blocked_since().is_some() {
                link.account();
                continue;
            }
            match link.flush() {
                Ok((Flushed::All, written)) => bytes += written,
                Ok((Flushed::Blocked, written)) => {
                    bytes += written;
                    link.wake();
                }
                // The task gets the same error and ends the connection.
                Err(_) => link.wake(),
            }
        }
        let mut kept = self.touched.borrow_mut();
        if kept.capacity() == 0 {
            *kept = touched;
        }
        if bytes > 0 {
            self.core.metrics.bytes_out.inc_by(bytes as u64);
        }
    }

    /// Sends `resync` to every connection of this shard.
    pub(in crate::hub) async fn resync(&self, reason: ResyncReason) {
        self.deliver(
            &Destination::Broadcast,
            &Outgoing::Single(Rc::new(event::resync(reason))),
            &[],
        );
        self.flush_touched().await;
    }
}

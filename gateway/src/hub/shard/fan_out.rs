//! Messages to the connections of a shard: queued to every receiver first, then written with one call per connection.

use std::rc::Rc;

use super::Shard;
use crate::dispatch::{Destination, ResyncReason};
use crate::hub::batch::{Joining, Outgoing};
use crate::hub::link::Link;
use crate::hub::outbox::Flushed;
use crate::id::Id;
use crate::protocol::{SharedMessages, event};

/// How many connections are written to before other tasks of the shard run ...
const FLUSHES_PER_TURN: usize = 128;
/// ... and at first, so that what comes a moment later, the rest of a burst, reaches most receivers in the same write: ...
const FLUSHES_OF_FIRST_TURNS: usize = 32;
/// ... this long.
const FLUSHES_OF_ALL_FIRST_TURNS: usize = 256;
/// How many connections are looked at together before the first of them is written to. Each lies in memory that the writes before pushed out of the caches, and
/// the processor fetches several at a time.
const FLUSHES_AHEAD: usize = 8;
/// From how many receivers on a message is joined to those that wait before it, once for all who have the same waiting ...
const JOINED_FROM: usize = 32;
/// ... and for how many that differ in what they have waiting.
const MOST_JOINS: usize = 4;

/// Returns whether other tasks run before the connection with this index is written to.
fn begins_turn(index: usize) -> bool {
    let turn = if index < FLUSHES_OF_ALL_FIRST_TURNS {
        FLUSHES_OF_FIRST_TURNS
    } else {
        FLUSHES_PER_TURN
    };
    index > 0 && index.is_multiple_of(turn)
}

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
        let receivers = match destination {
            Destination::Room(name) => self
                .by_room
                .borrow()
                .get(name)
                .map_or(0, |room| self.rooms.borrow()[*room as usize].members.len()),
            Destination::Broadcast => links.len(),
            Destination::Client(_) | Destination::User(_) => 0,
        };
        let joins = if receivers < JOINED_FROM {
            0
        } else {
            MOST_JOINS
        };
        let mut joining = Joining::new(outgoing, joins);
        let mut count = 0;
        let mut queue_to = |link: &Rc<Link>| {
            if !link.is_member() || (!exclude.is_empty() && exclude.contains(&link.id)) {
                return;
            }
            link.deliver(&mut joining, bounds);
            count += 1;
            if !link.touched.replace(true) {
                touched.push(Rc::clone(link));
            }
        };
        match destination {
            Destination::Client(id) => self
                .by_client
                .borrow()
                .get(*id, &links)
                .into_iter()
                .for_each(|slot| queue_to(&links[slot as usize])),
            Destination::User(user) => {
                self.by_user
                    .borrow()
                    .get(user, &links)
                    .iter()
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
                    .and_then(|id: Id| self.by_client.borrow().get(id, &links));
                slot.into_iter()
                    .for_each(|slot| queue_to(&links[slot as usize]));
            }
            Destination::Broadcast => links.iter().for_each(|(_, link)| queue_to(link)),
        }
        // Whom it was for may have left meanwhile.
        let noted = if count > 0 { outgoing.count() } else { 0 };
        for _ in 0..noted {
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
            for slot in users.get(messages.user(n), &links) {
                let link = &links[*slot as usize];
                if !link.is_member() {
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

    /// Writes what is queued, until nothing is. Other tasks run in between, and after them `meanwhile`, which may queue more: whoever has yet to be written to
    /// gets it in the same write, so that a burst that arrives in pieces costs little more than one that arrives at once, and no message waits for another.
    pub(super) async fn flush_touched(&self, mut meanwhile: impl FnMut()) {
        let (mut bytes, mut writes) = (0, 0);
        loop {
            let mut touched = std::mem::take(&mut *self.touched.borrow_mut());
            let mut links = touched.drain(..);
            for n in 0.. {
                if begins_turn(n) {
                    tokio::task::yield_now().await;
                    meanwhile();
                }
                if n.is_multiple_of(FLUSHES_AHEAD) {
                    links
                        .as_slice()
                        .iter()
                        .take(FLUSHES_AHEAD)
                        .for_each(Link::look_at);
                }
                let Some(link) = links.next() else { break };
                link.touched.set(false);
                // A blocked socket is written to by its own task, as soon as it takes more.
                if link.blocked_since().is_some() {
                    link.account();
                    continue;
                }
                writes += 1;
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
            drop(links);
            let mut again = self.touched.borrow_mut();
            if again.is_empty() {
                if again.capacity() == 0 {
                    *again = touched;
                }
                break;
            }
        }
        if bytes > 0 {
            self.core.metrics.bytes_out.inc_by(bytes as u64);
        }
        if writes > 0 {
            self.core.metrics.writes_out.inc_by(writes);
        }
    }

    /// Sends `resync` to every connection of this shard.
    pub(in crate::hub) async fn resync(&self, reason: ResyncReason) {
        self.deliver(
            &Destination::Broadcast,
            &Outgoing::Single(Rc::new(event::resync(reason))),
            &[],
        );
        self.flush_touched(|| {}).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::{Arc, OnceLock};

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::runtime::{Builder, Handle, LocalOptions};
    use tokio::sync::watch;
    use tracing::Span;

    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Live;
    use crate::hub::counts::ShardCounts;
    use crate::hub::directory::Directory;
    use crate::hub::mailbox::{Batch, Mailbox};
    use crate::hub::shard::{Command, Control};
    use crate::hub::{HubCore, bus_for_tests};
    use crate::metrics::Metrics;
    use crate::principal::{Principal, USER, Via};
    use crate::protocol::Message;
    use crate::protocol::close::Close;
    use crate::stream::Stream;

    const MEMBERS: usize = 200;

    async fn shard() -> (Rc<Shard>, Vec<TcpStream>) {
        let (live, metrics) = (Arc::new(Live::defaults()), Metrics::new());
        let live = watch::channel(live).1;
        let bus = bus_for_tests(&live, &metrics).await;
        let core = HubCore {
            directory: Directory::new(),
            counts: [ShardCounts::default()].into(),
            outbox_bytes: Arc::default(),
            live,
            bus,
            clock: Arc::new(SystemClock),
            metrics,
            control: Handle::current(),
            inlets: OnceLock::new(),
        };
        let shard = Shard::new(0, Arc::new(core));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for n in 0..MEMBERS {
            let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let stream = Stream::Clear(accepted.unwrap().0);
            let id = Id::from_parts(0, 0, n as u16);
            let link = shard.adopt(stream, IpAddr::V4(Ipv4Addr::LOCALHOST), id);
            let principal = Principal {
                subject: n.to_string().into(),
                kind: USER.into(),
                roles: Box::default(),
                via: Via::Basic,
            };
            shard.admit(&link, Arc::new(principal), false).unwrap();
            clients.push(client.unwrap());
        }
        (shard, clients)
    }

    fn deliver(n: usize) -> Command {
        Command::Deliver {
            destination: Destination::Broadcast,
            message: Message::text(format!("message {n}").as_bytes()),
            exclude: Arc::new([]),
            span: Span::none(),
        }
    }

    fn on_a_shard(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        runtime.unwrap().block_on(test);
    }

    async fn expect(clients: &mut [TcpStream], messages: usize) {
        let wanted: Vec<u8> = (0..messages)
            .flat_map(|n| {
                Message::text(format!("message {n}").as_bytes())
                    .frame()
                    .to_vec()
            })
            .collect();
        for client in clients {
            let mut got = vec![0; wanted.len()];
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(got, wanted);
        }
    }

    #[test]
    fn what_comes_while_many_are_written_to_reaches_the_rest_of_them_in_the_same_write() {
        on_a_shard(async {
            let (shard, mut clients) = shard().await;
            let mailbox = Mailbox::new();
            let mut batch = Batch::from([(deliver(0), 0)]);
            let rest_of_the_burst = async {
                (1..10).for_each(|n| assert!(mailbox.push_message(deliver(n), 11)));
            };
            tokio::join!(shard.perform(&mut batch, &mailbox), rest_of_the_burst);
            expect(&mut clients, 10).await;
            let metrics = &shard.core.metrics;
            assert_eq!(metrics.frames_out.get(), 10 * MEMBERS as u64);
            let twice = FLUSHES_OF_FIRST_TURNS;
            assert_eq!(metrics.writes_out.get(), (MEMBERS + twice) as u64);
        });
    }

    #[test]
    fn what_comes_behind_a_command_waits_for_it() {
        on_a_shard(async {
            let (shard, mut clients) = shard().await;
            let mailbox = Mailbox::new();
            let mut batch = Batch::from([(deliver(0), 0)]);
            let (reply, mut answer) = tokio::sync::oneshot::channel();
            let later = async {
                assert!(mailbox.push_message(deliver(1), 11));
                let close = Control::CloseClient(Id::from_parts(0, 0, 7), Close::Revoked, reply);
                assert!(mailbox.push_command(Command::Control(close)));
                assert!(mailbox.push_message(deliver(2), 11));
            };
            tokio::join!(shard.perform(&mut batch, &mailbox), later);
            expect(&mut clients, 2).await;
            assert!(answer.try_recv().is_err(), "the command has not run");
            mailbox.take(&mut batch).await;
            assert_eq!(batch.len(), 2);
            shard.perform(&mut batch, &mailbox).await;
            assert_eq!(answer.try_recv(), Ok(1));
        });
    }

    #[test]
    fn a_flood_that_comes_while_many_are_written_to_is_written_in_parts() {
        on_a_shard(async {
            let (shard, mut clients) = shard().await;
            let mailbox = Mailbox::new();
            let mut batch = Batch::from([(deliver(0), 0)]);
            let flood = async {
                (1..100).for_each(|n| assert!(mailbox.push_message(deliver(n), 11)));
            };
            tokio::join!(shard.perform(&mut batch, &mailbox), flood);
            expect(&mut clients, 64).await;
            mailbox.take(&mut batch).await;
            assert_eq!(
                batch.len(),
                36,
                "as many as readers that keep up may have waiting"
            );
        });
    }
}

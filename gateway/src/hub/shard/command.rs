//! Commands of other threads, performed in batches.

use std::iter::Peekable;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use tokio::sync::oneshot;
use tracing::Span;

use super::Shard;
use crate::client::{ClientInfo, ClientQuery};
use crate::dispatch::Destination;
use crate::hub::batch::BatchBuilder;
use crate::hub::counts::Claim;
use crate::hub::link::{Link, Stage};
use crate::hub::mailbox::{Batch, Mailbox};
use crate::id::Id;
use crate::principal::Principal;
use crate::protocol::close::Close;
use crate::protocol::{Message, SharedMessages};

/// How many messages, or bytes of them, are queued before they are written. A burst is written together, and a reader that keeps up never counts as slow.
const MESSAGES_PER_FLUSH: usize = 64;
const BYTES_PER_FLUSH: usize = 128 * 1024;

/// How many new sockets are begun before other tasks of the shard run.
const BEGUN_PER_TURN: usize = 64;

/// Begins with a new socket, on the shard that it was placed on.
pub(in crate::hub) type Begin = Box<dyn FnOnce(&Rc<Shard>, Claim) + Send>;

/// A silent connection: when it connected, in milliseconds since the Unix epoch, its shard and its id.
pub(in crate::hub) type Silent = (i64, u16, Id);

/// Selects connections by their principal.
pub(in crate::hub) type Predicate = Box<dyn Fn(&Principal) -> bool + Send>;

/// What other threads ask a shard to do.
pub(in crate::hub) enum Command {
    Begin(Begin, Claim),
    Deliver {
        destination: Destination,
        message: Message,
        exclude: Arc<[Id]>,
        span: Span,
    },
    /// A message to each of several users.
    DeliverShared {
        messages: Box<SharedMessages>,
        span: Span,
    },
    Control(Control),
}

/// What administrators and the process ask; each has an answer.
pub(in crate::hub) enum Control {
    CloseClient(Id, Close, oneshot::Sender<usize>),
    CloseUser(Arc<str>, Close, oneshot::Sender<usize>),
    CloseWhere(Predicate, Close, oneshot::Sender<usize>),
    /// Withdraws trust in the tokens of the matching connections.
    WithdrawTrust(Predicate, oneshot::Sender<usize>),
    /// Closes `count` random connections, only authenticated ones or any.
    CloseSome {
        count: usize,
        authenticated_only: bool,
        close: Close,
        reply: oneshot::Sender<usize>,
    },
    /// The oldest connection of a user from which nothing came for so long: when it connected, its shard and its id.
    FindSilent(Arc<str>, Duration, oneshot::Sender<Option<Silent>>),
    /// Closes it and frees its place, if that still holds.
    CloseSilent(Id, Duration, oneshot::Sender<bool>),
    List(ClientQuery, oneshot::Sender<Vec<ClientInfo>>),
    Describe(Id, oneshot::Sender<Option<ClientInfo>>),
    Join(Id, Vec<String>, oneshot::Sender<Option<Vec<String>>>),
    Leave(Id, Vec<String>, oneshot::Sender<Option<Vec<String>>>),
}

impl Command {
    /// Returns the length of a message in bytes; `None` of what is no message.
    fn message_bytes(&self) -> Option<usize> {
        match self {
            Self::Deliver { message, .. } => Some(message.frame().len()),
            // No user has more than one of them.
            Self::DeliverShared { messages, .. } => Some(messages.frame_length(0)),
            Self::Begin(..) | Self::Control(_) => None,
        }
    }
}

/// What was queued since everything was written.
#[derive(Clone, Copy, Default)]
struct Queued {
    messages: usize,
    bytes: usize,
}

impl Queued {
    fn has_room(&self, length: usize) -> bool {
        self.messages < MESSAGES_PER_FLUSH && self.bytes + length <= BYTES_PER_FLUSH
    }

    fn add(&mut self, length: usize) {
        self.messages += 1;
        self.bytes += length;
    }
}

/// What a batch of commands did.
#[derive(Default)]
struct Done {
    delivered: usize,
    /// A span ends when its message is written.
    traced: Vec<Span>,
}

impl Shard {
    /// Performs the commands in their order. Messages are queued first and then written, with one call per connection.
    pub(in crate::hub) async fn perform(
        self: &Rc<Self>,
        batch: &mut Batch<Command>,
        mailbox: &Mailbox<Command>,
    ) {
        let started = Instant::now();
        let (mut queued, mut done, mut begun) = (Queued::default(), Done::default(), 0);
        let mut commands = batch.drain(..).map(|(command, _)| command).peekable();
        while let Some(command) = commands.next() {
            // Order is kept: a message that was sent before a close is written before it.
            let fits = command
                .message_bytes()
                .is_some_and(|length| queued.has_room(length));
            if queued.messages > 0 && !fits {
                self.flush_touched(|| {}).await;
                queued = Queued::default();
            }
            match command {
                Command::Begin(begin, claim) => {
                    begin(self, claim);
                    begun += 1;
                    if begun % BEGUN_PER_TURN == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Command::Control(control) => self.execute(control),
                message => self.queue(message, &mut commands, &mut queued, &mut done),
            }
        }
        self.flush_touched(|| self.queue_more(mailbox, &mut queued, &mut done))
            .await;
        drop(done.traced);
        if done.delivered > 0 {
            self.core.metrics.frames_out.inc_by(done.delivered as u64);
            self.core
                .metrics
                .fan_out_time
                .observe(started.elapsed().as_secs_f64());
        }
    }

    /// Queues the messages that came since the last ones were queued, as far as there is room and nothing else came before them. Connections that have yet
    /// to be written to get them in the same write.
    fn queue_more(&self, mailbox: &Mailbox<Command>, queued: &mut Queued, done: &mut Done) {
        let mut room = *queued;
        let messages = mailbox.take_while(|command, _| {
            let length = command.message_bytes();
            let fits = length.is_some_and(|length| room.has_room(length));
            if let Some(length) = length.filter(|_| fits) {
                room.add(length);
            }
            fits
        });
        let mut messages = messages.into_iter().peekable();
        while let Some(message) = messages.next() {
            self.queue(message, &mut messages, queued, done);
        }
    }

    /// Queues a message to its receivers, together with those that follow it to the same ones.
    fn queue(
        &self,
        command: Command,
        following: &mut Peekable<impl Iterator<Item = Command>>,
        queued: &mut Queued,
        done: &mut Done,
    ) {
        queued.add(command.message_bytes().unwrap_or_default());
        let mut trace = |span: Span| done.traced.extend(Some(span).filter(|s| !s.is_disabled()));
        match command {
            Command::Deliver {
                destination,
                message,
                exclude,
                span,
            } => {
                trace(span);
                let mut batch = BatchBuilder::new(message);
                while queued.messages < MESSAGES_PER_FLUSH
                    && let Some(next) = following.next_if(|next| {
                        matches!(next, Command::Deliver { destination: to, message, exclude: excluded, .. }
                            if *to == destination && *excluded == exclude && batch.has_room(message, BYTES_PER_FLUSH.saturating_sub(queued.bytes)))
                    })
                {
                    if let Command::Deliver { message, span, .. } = next {
                        queued.add(message.frame().len());
                        batch.push(message);
                        trace(span);
                    }
                }
                done.delivered += self.deliver(&destination, &batch.build(), &exclude);
            }
            Command::DeliverShared { messages, span } => {
                trace(span);
                done.delivered += self.deliver_shared(&Rc::from(messages));
            }
            Command::Begin(..) | Command::Control(_) => {}
        }
    }

    fn execute(&self, control: Control) {
        match control {
            Control::CloseClient(id, close, reply) => answer(
                reply,
                self.find(id).map_or(0, |link| request_close(&link, close)),
            ),
            Control::CloseUser(user, close, reply) => {
                let links = self.links.borrow();
                let users = self.by_user.borrow();
                let slots = users.get(&user, &links).iter();
                let closed = slots.map(|slot| request_close(&links[*slot as usize], close));
                answer(reply, closed.sum());
            }
            Control::CloseWhere(matches, close, reply) => {
                let links = self.links.borrow();
                let matching = links.iter().filter(|(_, link)| {
                    link.membership
                        .borrow()
                        .principal
                        .as_ref()
                        .is_some_and(|p| matches(p))
                });
                answer(
                    reply,
                    matching.map(|(_, link)| request_close(link, close)).sum(),
                );
            }
            Control::WithdrawTrust(matches, reply) => {
                let links = self.links.borrow();
                let matching = links.iter().filter(|(_, link)| {
                    link.membership
                        .borrow()
                        .principal
                        .as_ref()
                        .is_some_and(|p| matches(p))
                });
                answer(
                    reply,
                    matching.map(|(_, link)| link.withdraw_trust()).count(),
                );
            }
            Control::CloseSome {
                count,
                authenticated_only,
                close,
                reply,
            } => {
                answer(reply, self.close_some(count, authenticated_only, close));
            }
            Control::FindSilent(user, silence, reply) => {
                answer(reply, self.oldest_silent(&user, silence))
            }
            Control::CloseSilent(id, silence, reply) => {
                answer(reply, self.close_silent(id, silence))
            }
            Control::List(query, reply) => answer(reply, self.list(&query)),
            Control::Describe(id, reply) => {
                answer(reply, self.find(id).map(|link| self.info(&link)))
            }
            Control::Join(id, rooms, reply) => answer(
                reply,
                self.member(id)
                    .map(|link| self.join(&link, &rooms, true).rooms),
            ),
            Control::Leave(id, rooms, reply) => {
                answer(reply, self.member(id).map(|link| self.leave(&link, &rooms)))
            }
        }
    }

    fn oldest_silent(&self, user: &str, silence: Duration) -> Option<Silent> {
        let (links, users) = (self.links.borrow(), self.by_user.borrow());
        let slots = users.get(user, &links).iter();
        slots
            .map(|slot| &links[*slot as usize])
            .filter(|link| is_silent(link, silence))
            .map(|link| (link.connected_at_ms(), self.index, link.id))
            .min()
    }

    fn close_silent(&self, id: Id, silence: Duration) -> bool {
        let Some(link) = self.member(id).filter(|link| is_silent(link, silence)) else {
            return false;
        };
        // Here and not when its task gets its turn: whoever waits for the place finds it free.
        self.withdraw(&link, link.stage.get() == Stage::Encrypted);
        link.request_close(Close::HeartbeatTimeout);
        true
    }

    fn close_some(&self, count: usize, authenticated_only: bool, close: Close) -> usize {
        let links = self.links.borrow();
        let mut candidates: Vec<&Rc<Link>> = links
            .iter()
            .map(|(_, link)| link)
            .filter(|link| {
                link.requested_close().is_none() && (!authenticated_only || link.is_member())
            })
            .collect();
        let count = count.min(candidates.len());
        let mut random = rand::rng();
        for at in 0..count {
            let with = random.random_range(at..candidates.len());
            candidates.swap(at, with);
        }
        candidates[..count]
            .iter()
            .map(|link| request_close(link, close))
            .sum()
    }
}

fn is_silent(link: &Link, silence: Duration) -> bool {
    let is_admitted = matches!(link.stage.get(), Stage::Authenticated | Stage::Encrypted);
    is_admitted
        && link.requested_close().is_none()
        && link.last_seen.get().instant().elapsed() > silence
}

/// Answers, unless the asker has stopped waiting.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _ = reply.send(value);
}

/// Asks a connection to close. Returns 1, or 0 if it was asked before.
fn request_close(link: &Rc<Link>, close: Close) -> usize {
    let first = link.requested_close().is_none();
    link.request_close(close);
    usize::from(first)
}

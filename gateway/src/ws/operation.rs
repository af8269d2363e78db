//! What a connection needs from the rest of the process: authentication, rooms, its inbox. Operations of one connection run one at a time and in order.
//!
//! Operations that use a database run on the control runtime. Authentication runs on the shard of the connection: when many clients come at once, all
//! cores share the work, and no connection pays two thread switches for some tens of microseconds.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::task::{JoinError, JoinHandle};

use super::Context;
use super::session::{Authentication, GivenKey};
use crate::auth::VerifyError;
use crate::bus::BusError;
use crate::config::EncryptionMode;
use crate::id::Id;
use crate::inbox::{Missed, NotificationSelector};
use crate::principal::Principal;
use crate::protocol::cipher::{Handshake, SALT_BYTES, UnusableKey, handshake};
use crate::protocol::envelope::Mark;
use crate::protocol::room::Join;

/// Most waiting operations of a connection, those on rooms aside (protocol.md 2.9).
const MAX_WAITING: usize = 16;
/// Most bytes of room names that wait (protocol.md 2.9): a page may join all its rooms one by one. What comes when none waits may be longer.
const MAX_WAITING_ROOM_BYTES: usize = 256 * 1024;
/// What a waiting room costs besides its name.
const ROOM_BYTES: usize = 32;

/// Something that the shard cannot answer alone.
pub(super) enum Operation {
    Verify {
        token: String,
        key: GivenKey,
    },
    Refresh {
        token: String,
    },
    /// Waits for Redis to confirm the subscriptions, which the bus has already counted.
    Subscribe(BoxFuture<'static, Result<(), BusError>>),
    /// Makes room for one more connection of a user who has as many as the limits allow.
    Replace {
        user: Arc<str>,
    },
    Join {
        who: Arc<Principal>,
        join: Join,
    },
    /// An operation too, so that it comes after an earlier `Join`.
    Leave(Vec<String>),
    Recheck {
        who: Arc<Principal>,
        rooms: Vec<String>,
    },
    MarkRead {
        who: Arc<Principal>,
        selector: NotificationSelector,
    },
    Sync {
        who: Arc<Principal>,
        after: i64,
        limit: u32,
    },
}

impl Operation {
    /// Returns what the names of a `Join` or `Leave` take; `None` for everything else.
    fn room_bytes(&self) -> Option<usize> {
        match self {
            Self::Join { join, .. } => {
                // An answer has to be kept in mind also for a list without names.
                let mark = join.mark.as_ref().map_or(0, |mark| mark.len() + ROOM_BYTES);
                Some(mark + bytes_of(&join.rooms))
            }
            Self::Leave(rooms) => Some(bytes_of(rooms)),
            _ => None,
        }
    }

    /// Returns what the answer of a `Join` repeats.
    pub(super) fn mark(&self) -> Option<&Mark> {
        match self {
            Self::Join { join, .. } => join.mark.as_ref(),
            _ => None,
        }
    }

    /// Returns whether the gateway asked for it, and not the client.
    fn is_own(&self) -> bool {
        matches!(
            self,
            Self::Subscribe(_) | Self::Replace { .. } | Self::Recheck { .. }
        )
    }

    /// Returns whether it changes more than this connection, so that it is carried out also when that has ended (protocol.md 2.13).
    fn lasts(&self) -> bool {
        matches!(self, Self::MarkRead { .. })
    }

    /// Takes in an operation that comes directly behind this one, or gives it back: rooms that are joined one by one are decided together.
    fn merge(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (
                Self::Join { who, join },
                Self::Join {
                    who: same,
                    join: more,
                },
            ) if Arc::ptr_eq(who, &same) && join.mark.is_none() && more.mark.is_none() => {
                join.rooms.extend(more.rooms);
                None
            }
            (Self::Leave(rooms), Self::Leave(more)) => {
                rooms.extend(more);
                None
            }
            (_, next) => Some(next),
        }
    }
}

/// The result of an operation.
#[derive(Debug)]
pub(super) enum Outcome {
    Authentication(Authentication),
    Refreshed(Authentication),
    Subscribed,
    /// Whether a silent connection of the user made room.
    Replaced(bool),
    /// Rooms that may be joined, and those that may not.
    Allowed {
        join: Join,
        refused: Vec<String>,
    },
    /// The policies could not be read for the `Join` with this mark.
    NotJoined(Option<Mark>),
    /// Rooms to leave.
    Leave(Vec<String>),
    /// Rooms that the user may no longer be in.
    Lost(Vec<String>),
    Missed {
        after: i64,
        missed: Missed,
    },
    Done,
    /// A database did not answer.
    Unavailable,
}

/// The operations of one connection.
#[derive(Default)]
pub(super) struct Operations {
    waiting: VecDeque<Operation>,
    /// Bytes of room names in `waiting`.
    room_bytes: usize,
    /// How many of `waiting` the client asked for and are not about rooms.
    others: usize,
    running: Option<Running>,
    /// Whether the running one [lasts](Operation::lasts).
    running_lasts: bool,
}

/// An operation in progress.
pub(super) enum Running {
    /// On the control runtime.
    OnControl(JoinHandle<Outcome>),
    /// On the connection's shard.
    OnShard(BoxFuture<'static, Outcome>),
}

impl Future for Running {
    type Output = Result<Outcome, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::OnControl(task) => Pin::new(task).poll(cx),
            Self::OnShard(work) => work.as_mut().poll(cx).map(Ok),
        }
    }
}

/// Whether an operation was done at once.
pub(super) enum Begun {
    Done(Outcome),
    Running(Running),
}

impl Operations {
    /// Queues an operation of the client. Returns false when too many wait.
    pub(super) fn push(&mut self, operation: Operation) -> bool {
        let Some(bytes) = operation.room_bytes() else {
            let has_room = self.others < MAX_WAITING;
            if has_room {
                self.others += 1;
                self.waiting.push_back(operation);
            }
            return has_room;
        };
        let has_room = self.room_bytes == 0 || self.room_bytes + bytes <= MAX_WAITING_ROOM_BYTES;
        if has_room {
            self.room_bytes += bytes;
            let apart = match self.waiting.back_mut() {
                Some(last) => last.merge(operation),
                None => Some(operation),
            };
            self.waiting.extend(apart);
        }
        has_room
    }

    /// Queues an operation of the gateway ahead of the others: one `Subscribe` or `Replace`, and one `Recheck`, at most.
    pub(super) fn push_own(&mut self, operation: Operation) {
        self.waiting.push_front(operation);
    }

    /// Returns the next operation to start, if none is running.
    pub(super) fn next(&mut self) -> Option<Operation> {
        if self.running.is_some() {
            return None;
        }
        let next = self.waiting.pop_front()?;
        match next.room_bytes() {
            Some(bytes) => self.room_bytes -= bytes,
            None => self.others -= usize::from(!next.is_own()),
        }
        self.running_lasts = next.lasts();
        Some(next)
    }

    /// Drops what has not begun.
    pub(super) fn drop_waiting(&mut self) {
        self.waiting.clear();
        (self.room_bytes, self.others) = (0, 0);
    }

    /// The connection has ended: carries out what lasts, in order, in a task of its own.
    pub(super) fn carry_out(mut self, context: &Arc<Context>) {
        let (running, waiting) = self.take_lasting();
        if running.is_none() && waiting.is_empty() {
            return;
        }
        let Some(leftover) = context.leftovers.begin() else {
            return tracing::warn!(
                "too many connections ended with changes that were not carried out; those of one are dropped"
            );
        };
        let with = Arc::clone(context);
        context.control.spawn(async move {
            if let Some(running) = running {
                // What it returns was for the connection.
                let _ = running.await;
            }
            for operation in waiting {
                if let Operation::MarkRead { who, selector } = operation {
                    mark_read(&with, &who, &selector).await;
                }
            }
            drop(leftover);
        });
    }

    /// Takes out what lasts, the running one first.
    fn take_lasting(&mut self) -> (Option<Running>, VecDeque<Operation>) {
        let lasts = self.running_lasts;
        let running = self.running.take_if(|_| lasts);
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(Operation::lasts);
        (running, waiting)
    }

    pub(super) fn started(&mut self, running: Running) {
        self.running = Some(running);
    }

    pub(super) fn running(&mut self) -> Option<&mut Running> {
        self.running.as_mut()
    }

    pub(super) fn finished(&mut self) {
        self.running = None;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }
}

impl Drop for Operations {
    fn drop(&mut self) {
        if let Some(Running::OnControl(task)) = &self.running {
            task.abort();
        }
    }
}

/// Starts an operation of the connection `id`.
pub(super) fn begin(context: &Arc<Context>, id: Id, operation: Operation) -> Begun {
    let with = Arc::clone(context);
    match operation {
        Operation::Verify { token, key } => match context.authenticator.verify_cached(&token) {
            Some(known) => {
                Begun::Done(Outcome::Authentication(authentication(context, known, key)))
            }
            // It waits only while keys are fetched.
            None => {
                on_shard(async move { Outcome::Authentication(verify(&with, &token, key).await) })
            }
        },
        Operation::Refresh { token } => {
            on_shard(async move { Outcome::Refreshed(verify(&with, &token, None).await) })
        }
        Operation::Replace { user } => on_shard(async move {
            Outcome::Replaced(with.hub.replace_silent(&user, with.silent_after).await)
        }),
        Operation::Leave(rooms) => Begun::Done(Outcome::Leave(rooms)),
        Operation::Subscribe(confirmed) => subscribe(context, id, confirmed),
        Operation::Join { who, join } => on_control(context, async move {
            let Join { rooms, mark } = join;
            match allowed(&with, &who, id, &rooms).await {
                Some(allowed) => {
                    let refused = match mark {
                        Some(_) => split(rooms.clone(), &allowed, false),
                        None => Vec::new(),
                    };
                    let rooms = split(rooms, &allowed, true);
                    let join = Join { rooms, mark };
                    Outcome::Allowed { join, refused }
                }
                None => Outcome::NotJoined(mark),
            }
        }),
        Operation::Recheck { who, rooms } => on_control(context, async move {
            match allowed(&with, &who, id, &rooms).await {
                Some(allowed) => Outcome::Lost(split(rooms, &allowed, false)),
                // Without policies no connection gains a room, and none loses one.
                None => Outcome::Done,
            }
        }),
        Operation::MarkRead { who, selector } => {
            on_control(
                context,
                async move { mark_read(&with, &who, &selector).await },
            )
        }
        Operation::Sync { who, after, limit } => on_control(context, async move {
            match with.inbox.missed(&who.subject, after, limit).await {
                Ok(missed) => Outcome::Missed { after, missed },
                Err(error) => {
                    tracing::warn!(client.id = %id, %error, "sync failed");
                    Outcome::Unavailable
                }
            }
        }),
    }
}

fn on_control(context: &Context, work: impl Future<Output = Outcome> + Send + 'static) -> Begun {
    Begun::Running(Running::OnControl(context.control.spawn(work)))
}

fn on_shard(work: impl Future<Output = Outcome> + Send + 'static) -> Begun {
    let mut work = work.boxed();
    match (&mut work).now_or_never() {
        Some(outcome) => Begun::Done(outcome),
        None => Begun::Running(Running::OnShard(work)),
    }
}

fn subscribe(
    context: &Context,
    id: Id,
    mut confirmed: BoxFuture<'static, Result<(), BusError>>,
) -> Begun {
    let (limit, hub) = (context.subscribe_timeout, context.hub.clone());
    on_shard(async move {
        match tokio::time::timeout(limit, &mut confirmed).await {
            Ok(Ok(())) => {}
            // Without Redis the connection goes on at once; it gets `resync` when the bus is back.
            Ok(Err(error)) => {
                tracing::debug!(client.id = %id, %error, "subscriptions not confirmed; connected without them");
            }
            Err(_) => {
                tracing::debug!(client.id = %id, "subscriptions not confirmed in time; connected without them");
                hub.resync_when_confirmed(id, confirmed);
            }
        }
        Outcome::Subscribed
    })
}

fn bytes_of(rooms: &[String]) -> usize {
    rooms.iter().map(|name| name.len() + ROOM_BYTES).sum()
}

fn split(rooms: Vec<String>, allowed: &[bool], want: bool) -> Vec<String> {
    rooms
        .into_iter()
        .zip(allowed)
        .filter(|(_, allowed)| **allowed == want)
        .map(|(room, _)| room)
        .collect()
}

async fn allowed(
    context: &Context,
    who: &Principal,
    id: Id,
    rooms: &[String],
) -> Option<Vec<bool>> {
    let names: Vec<&str> = rooms.iter().map(String::as_str).collect();
    match context.access.may_join(who, id, &names).await {
        Ok(allowed) => Some(allowed),
        Err(error) => {
            tracing::warn!(client.id = %id, %error, "policies cannot be read; rooms stay as they are");
            None
        }
    }
}

async fn verify(context: &Context, token: &str, key: GivenKey) -> Authentication {
    authentication(context, context.authenticator.verify(token).await, key)
}

/// Turns the result of a verification into an outcome, and agrees on a session key if the client sent one.
fn authentication(
    context: &Context,
    verified: Result<Arc<Principal>, VerifyError>,
    key: GivenKey,
) -> Authentication {
    let principal = match verified {
        Ok(principal) => principal,
        Err(VerifyError::Refused(reason)) => {
            tracing::debug!(reason = reason.as_str(), "token refused");
            return Authentication::Refused;
        }
        Err(VerifyError::Unavailable(why)) => {
            tracing::warn!(%why, "token could not be verified; connection refused");
            return Authentication::Failed;
        }
    };
    let handshake = match context.rules.encryption.mode {
        EncryptionMode::Disabled => None,
        EncryptionMode::Optional | EncryptionMode::Required => {
            key.map(|key| agree(&context.random, key.as_deref()))
        }
    };
    let leeway = std::time::Duration::from_secs(context.live.borrow().auth.clock_skew_secs);
    Authentication::Accepted {
        principal,
        handshake,
        leeway,
    }
}

fn agree(random: &SystemRandom, key: Option<&str>) -> Result<Handshake, UnusableKey> {
    let mut salt = [0u8; SALT_BYTES];
    random.fill(&mut salt).map_err(|_| UnusableKey)?;
    handshake(key.ok_or(UnusableKey)?, salt, random)
}

async fn mark_read(context: &Context, who: &Principal, selector: &NotificationSelector) -> Outcome {
    match context.inbox.mark_read(&who.subject, selector).await {
        Ok(_) => Outcome::Done,
        Err(error) => {
            tracing::warn!(%error, "marking as read failed");
            Outcome::Unavailable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::{USER, Via};

    fn who() -> Arc<Principal> {
        Arc::new(Principal {
            subject: "17".into(),
            kind: USER.into(),
            roles: Box::default(),
            via: Via::Basic,
        })
    }

    fn join(who: &Arc<Principal>, name: String) -> Operation {
        let (rooms, mark) = (vec![name], None);
        let (who, join) = (Arc::clone(who), Join { rooms, mark });
        Operation::Join { who, join }
    }

    /// protocol.md 2.9.
    #[test]
    fn joins_that_follow_each_other_become_one_however_many_they_are() {
        let (mut operations, who) = (Operations::default(), who());
        for n in 0..1024 {
            assert!(operations.push(join(&who, format!("room-{n}"))), "{n}");
        }
        assert!(operations.push(Operation::Leave(vec!["room-1".into()])));
        assert!(operations.push(join(&who, "room-1".into())));
        let Some(Operation::Join { join: all, .. }) = operations.next() else {
            panic!("a join comes first");
        };
        assert_eq!(all.rooms.len(), 1024);
        assert!(matches!(operations.next(), Some(Operation::Leave(_))));
        assert!(matches!(operations.next(), Some(Operation::Join { .. })));
        assert!(operations.is_idle() && operations.room_bytes == 0);
    }

    /// protocol.md 5.8.
    #[test]
    fn joins_that_are_answered_stay_apart_and_are_bounded_without_names_too() {
        let (mut operations, who) = (Operations::default(), who());
        let marked = |rooms: &[&str]| Operation::Join {
            who: Arc::clone(&who),
            join: Join {
                rooms: rooms.iter().map(|name| (*name).to_owned()).collect(),
                mark: Some("1".into()),
            },
        };
        assert!(operations.push(join(&who, "a".into())));
        assert!(operations.push(marked(&["b"])));
        assert!(operations.push(join(&who, "c".into())));
        assert!(operations.push(marked(&["d"])));
        let mut left = Vec::new();
        while let Some(Operation::Join { join, .. }) = operations.next() {
            left.push((join.rooms.concat(), join.mark.is_some()));
        }
        let [a, b, c, d] = ["a", "b", "c", "d"].map(str::to_owned);
        assert_eq!(left, [(a, false), (b, true), (c, false), (d, true)]);
        let fitting = (0..100_000)
            .take_while(|_| operations.push(marked(&[])))
            .count();
        assert_eq!(fitting, MAX_WAITING_ROOM_BYTES / (1 + ROOM_BYTES));
    }

    /// protocol.md 2.13.
    #[tokio::test]
    async fn what_lasts_is_left_when_a_connection_ends_and_goes_on_in_its_order() {
        let (mut operations, who) = (Operations::default(), who());
        let read = |seq| Operation::MarkRead {
            who: who.clone(),
            selector: NotificationSelector::UpTo(seq),
        };
        assert!(operations.push(read(1)));
        assert!(operations.push(Operation::Leave(vec!["room".into()])));
        assert!(operations.push(read(2)));
        assert!(operations.push(Operation::Refresh { token: "t".into() }));
        assert!(operations.push(read(3)));
        operations.next();
        let running = tokio::spawn(std::future::ready(Outcome::Done));
        operations.started(Running::OnControl(running));
        let (running, waiting) = operations.take_lasting();
        assert!(matches!(running.unwrap().await, Ok(Outcome::Done)));
        let seqs: Vec<i64> = waiting
            .iter()
            .map(|operation| match operation {
                Operation::MarkRead {
                    selector: NotificationSelector::UpTo(seq),
                    ..
                } => *seq,
                _ => 0,
            })
            .collect();
        assert_eq!(seqs, [2, 3]);

        // One that only concerned the connection ends with it.
        let mut operations = Operations::default();
        assert!(operations.push(Operation::Refresh { token: "t".into() }));
        operations.next();
        let running = tokio::spawn(std::future::pending());
        operations.started(Running::OnControl(running));
        assert!(operations.take_lasting().0.is_none());
    }

    /// protocol.md 2.9.
    #[test]
    fn rooms_and_other_operations_do_not_take_each_others_places() {
        let (mut operations, who) = (Operations::default(), who());
        let sync = || Operation::Sync {
            who: who.clone(),
            after: 0,
            limit: 1,
        };
        let long = "x".repeat(1000);
        let fitting = (0..1000)
            .take_while(|n| operations.push(join(&who, format!("{long}{n:03}"))))
            .count();
        assert_eq!(fitting, MAX_WAITING_ROOM_BYTES / (1003 + ROOM_BYTES));
        for _ in 0..MAX_WAITING {
            assert!(operations.push(sync()));
        }
        assert!(!operations.push(sync()));
        while operations.next().is_some() {}
        assert!(operations.push(join(&who, "x".repeat(2 * MAX_WAITING_ROOM_BYTES))));
        assert!(!operations.push(join(&who, "x".into())));
        assert!(operations.push(sync()));
    }
}

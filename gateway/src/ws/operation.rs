//! What a connection asks of the rest of the process: verdicts, rooms, its inbox; one at a time and in order per connection. What asks a database runs on
//! the control runtime. A verdict is found on the connection's shard: signatures and key agreements of many who come at once are then shared by all
//! cores, and nobody goes to another thread and back for the tens of microseconds that one takes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::task::{JoinError, JoinHandle};

use super::Context;
use super::session::{GivenKey, Verdict};
use crate::auth::VerifyError;
use crate::bus::BusError;
use crate::config::EncryptionMode;
use crate::id::Id;
use crate::inbox::{Missed, NotificationSelector};
use crate::principal::Principal;
use crate::protocol::cipher::{Handshake, SALT_BYTES, UnusableKey, handshake};

/// Most operations that wait for a connection.
const MAX_WAITING: usize = 16;

/// Something that needs more than the shard.
pub(super) enum Operation {
    Verify {
        token: String,
        key: GivenKey,
    },
    Refresh {
        token: String,
    },
    /// The interests are counted already; what is left is the server's word on them.
    Hear(BoxFuture<'static, Result<(), BusError>>),
    Join {
        who: Arc<Principal>,
        rooms: Vec<String>,
    },
    /// In its turn behind a `Join`.
    Leave(Vec<String>),
    Recheck {
        who: Arc<Principal>,
        rooms: Vec<String>,
    },
    MarkRead {
        who: Arc<Principal>,
        which: NotificationSelector,
    },
    Sync {
        who: Arc<Principal>,
        after: i64,
        limit: u32,
    },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    Verdict(Verdict),
    Refreshed(Verdict),
    Heard,
    /// Rooms that may be joined.
    Allowed(Vec<String>),
    /// Rooms that are to be left.
    Leave(Vec<String>),
    /// Rooms whose right is gone.
    Lost(Vec<String>),
    Missed {
        after: i64,
        missed: Missed,
    },
    Done,
    /// A dependency is away.
    Unavailable,
}

/// The operations of one connection.
#[derive(Default)]
pub(super) struct Operations {
    waiting: VecDeque<Operation>,
    running: Option<Running>,
}

/// An operation under way.
pub(super) enum Running {
    /// On the control runtime.
    There(JoinHandle<Outcome>),
    /// On the connection's shard.
    Here(BoxFuture<'static, Outcome>),
}

impl Future for Running {
    type Output = Result<Outcome, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::There(task) => Pin::new(task).poll(cx),
            Self::Here(wait) => wait.as_mut().poll(cx).map(Ok),
        }
    }
}

/// How far an operation came at once.
pub(super) enum Begun {
    Done(Outcome),
    Running(Running),
}

impl Operations {
    /// Queues what a client asked for; false when too many wait.
    pub(super) fn push(&mut self, operation: Operation) -> bool {
        let room = self.waiting.len() < MAX_WAITING;
        if room {
            self.waiting.push_back(operation);
        }
        room
    }

    /// Queues what the gateway itself wants: one `Hear` and one `Recheck` at the most, ahead of all that waits.
    pub(super) fn push_own(&mut self, operation: Operation) {
        self.waiting.push_front(operation);
    }

    /// The next operation to start, if none is running.
    pub(super) fn next(&mut self) -> Option<Operation> {
        if self.running.is_some() {
            None
        } else {
            self.waiting.pop_front()
        }
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
        if let Some(Running::There(task)) = &self.running {
            task.abort();
        }
    }
}

/// Begins an operation of the connection `id`.
pub(super) fn begin(context: &Arc<Context>, id: Id, operation: Operation) -> Begun {
    let with = Arc::clone(context);
    match operation {
        Operation::Verify { token, key } => match context.authenticator.verify_cached(&token) {
            Some(known) => Begun::Done(Outcome::Verdict(verdict(context, known, key))),
            // It waits only for keys that are being fetched.
            None => here(async move { Outcome::Verdict(verify(&with, &token, key).await) }),
        },
        Operation::Refresh { token } => {
            here(async move { Outcome::Refreshed(verify(&with, &token, None).await) })
        }
        Operation::Leave(rooms) => Begun::Done(Outcome::Leave(rooms)),
        Operation::Hear(heard) => hear(context, id, heard),
        Operation::Join { who, rooms } => there(context, async move {
            match allowed(&with, &who, id, &rooms).await {
                Some(allowed) => Outcome::Allowed(split(rooms, &allowed, true)),
                None => Outcome::Unavailable,
            }
        }),
        Operation::Recheck { who, rooms } => there(context, async move {
            match allowed(&with, &who, id, &rooms).await {
                Some(allowed) => Outcome::Lost(split(rooms, &allowed, false)),
                // While policies cannot be read nobody gains a right, and nobody is thrown out.
                None => Outcome::Done,
            }
        }),
        Operation::MarkRead { who, which } => {
            there(context, async move { mark_read(&with, &who, &which).await })
        }
        Operation::Sync { who, after, limit } => there(context, async move {
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

fn there(context: &Context, work: impl Future<Output = Outcome> + Send + 'static) -> Begun {
    Begun::Running(Running::There(context.control.spawn(work)))
}

fn here(work: impl Future<Output = Outcome> + Send + 'static) -> Begun {
    let mut work = work.boxed();
    match (&mut work).now_or_never() {
        Some(outcome) => Begun::Done(outcome),
        None => Begun::Running(Running::Here(work)),
    }
}

fn hear(context: &Context, id: Id, heard: BoxFuture<'static, Result<(), BusError>>) -> Begun {
    // Without Redis the connection goes on at once; it is told to resync when the bus is back.
    let told = move |heard: bool| {
        if !heard {
            tracing::debug!(client.id = %id, "connected before the bus hears for it");
        }
        Outcome::Heard
    };
    let limit = context.subscribe_timeout;
    here(async move {
        told(matches!(
            tokio::time::timeout(limit, heard).await,
            Ok(Ok(()))
        ))
    })
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
            tracing::warn!(client.id = %id, %error, "the right to rooms cannot be read");
            None
        }
    }
}

async fn verify(context: &Context, token: &str, key: GivenKey) -> Verdict {
    verdict(context, context.authenticator.verify(token).await, key)
}

fn verdict(
    context: &Context,
    verified: Result<Arc<Principal>, VerifyError>,
    key: GivenKey,
) -> Verdict {
    let principal = match verified {
        Ok(principal) => principal,
        Err(VerifyError::Refused(reason)) => {
            tracing::debug!(reason = reason.as_str(), "token refused");
            return Verdict::Refused;
        }
        Err(VerifyError::Unavailable(why)) => {
            tracing::warn!(%why, "token could not be verified");
            return Verdict::Broken;
        }
    };
    let handshake = match context.rules.encryption.mode {
        EncryptionMode::Disabled => None,
        EncryptionMode::Optional | EncryptionMode::Required => {
            key.map(|key| agree(&context.random, key.as_deref()))
        }
    };
    let leeway = std::time::Duration::from_secs(context.live.borrow().auth.clock_skew_secs);
    Verdict::Accepted {
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

async fn mark_read(context: &Context, who: &Principal, which: &NotificationSelector) -> Outcome {
    match context.inbox.mark_read(&who.subject, which).await {
        Ok(_) => Outcome::Done,
        Err(error) => {
            tracing::warn!(%error, "marking as read failed");
            Outcome::Unavailable
        }
    }
}

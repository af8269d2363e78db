//! Hands on what the bus receives: dispatches to the hub, revocations to those who apply them, questions of other instances to the hub, and losses to
//! whoever reads again what they may have hidden.
//!
//! Input: the events of the bus. Output: calls of the hub, and answers to the instances that ask.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use super::pipeline::PipelineState;
use super::revocations::Prompt;
use crate::auth::{Authenticator, Revocations};
use crate::bus::{Ask, BusEvent, EncodedAudience, Events, Reply};
use crate::client::ClientSelector;
use crate::dispatch::{Destination, Dispatch, ResyncReason};
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::principal::Principal;
use crate::protocol::close::Close;
use crate::protocol::event::{self, name};

/// Most questions that are answered at the same time. More are not answered: the asker reports this instance as missing.
const ANSWERS_AT_ONCE: usize = 64;

/// Tells every client of this instance to sync.
pub(super) fn resync(hub: &Hub, reason: ResyncReason) {
    resync_for(hub, Destination::Broadcast, reason);
}

/// Tells the clients of a destination to sync.
fn resync_for(hub: &Hub, destination: Destination, reason: ResyncReason) {
    hub.deliver(&Dispatch::new(
        destination,
        name::RESYNC,
        event::resync_data(reason),
    ));
}

/// The parts that take what the bus receives.
#[derive(Clone)]
pub(super) struct Inbound {
    pub(super) hub: Hub,
    pub(super) prompt: Arc<Prompt>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) authenticator: Authenticator,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pipeline: Option<PipelineState>,
    /// Runs what takes longer than handing on: the events may be received on the thread of connections.
    pub(super) control: Handle,
}

impl Inbound {
    /// Runs until the bus is closed.
    pub(super) async fn run(self, mut events: Events) {
        let permits = Arc::new(Semaphore::new(ANSWERS_AT_ONCE));
        let mut received = Vec::new();
        while events.next(&mut received).await {
            for event in received.drain(..) {
                self.take(event, &permits);
                // This may be the thread of connections: a flood of events leaves time for them.
                tokio::task::coop::consume_budget().await;
            }
        }
    }

    fn take(&self, event: BusEvent, permits: &Arc<Semaphore>) {
        match event {
            BusEvent::Dispatch(dispatch) => {
                if self.hub.check_length(&dispatch, "redis").is_ok() {
                    self.hub.receive(&dispatch);
                }
            }
            BusEvent::Audience(encoded) => self.take_audience(&encoded),
            BusEvent::Resync(reason) => {
                self.metrics.bus_resyncs.inc();
                tracing::info!(
                    reason = reason.as_str(),
                    "pushes may have been missed; clients are told to sync"
                );
                resync(&self.hub, reason);
                // Whoever lost its own dispatches announces its revocations until they are answered.
                if reason != ResyncReason::BusPeerLost {
                    self.prompt.lost();
                }
            }
            BusEvent::ResyncFor(reason, destinations) => {
                for destination in destinations {
                    resync_for(&self.hub, destination, reason);
                }
            }
            BusEvent::Asked(ask, reply) => {
                if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
                    let inbound = self.clone();
                    self.control.spawn(async move {
                        inbound.answer(ask, reply).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    fn take_audience(&self, encoded: &EncodedAudience) {
        let Some(audience) = encoded.read() else {
            tracing::debug!("malformed audience of another instance dropped");
            let received = &self.metrics.bus_received;
            received.get_or_create(&Metrics::kind("malformed")).inc();
            return;
        };
        if self.hub.fits(&audience) {
            self.hub.deliver_audience(&audience);
            return;
        }
        for dispatch in audience.dispatches() {
            if self.hub.check_length(&dispatch, "redis").is_ok() {
                self.hub.deliver(&dispatch);
            }
        }
    }

    /// Closes connections whose token was revoked, by itself or with its source. Announces to those whose source or key is gone that their token ends soon.
    pub(super) async fn close_withdrawn(&self) {
        let (revocations, authenticator) =
            (Arc::clone(&self.revocations), self.authenticator.clone());
        let is_revoked = move |principal: &Principal| {
            revocations.matches(principal) || authenticator.is_revoked(principal)
        };
        let revoked = self.hub.close_where(is_revoked, Close::Revoked).await;
        let authenticator = self.authenticator.clone();
        let ending = self
            .hub
            .withdraw_trust(move |principal| !authenticator.trusts(principal))
            .await;
        if revoked + ending > 0 {
            tracing::info!(
                revoked,
                ending,
                "connections with withdrawn tokens: revoked ones were closed, the others were told that theirs ends soon"
            );
        }
    }

    async fn answer(&self, ask: Ask, reply: oneshot::Sender<Reply>) {
        let answer = match ask {
            Ask::List { query } => Reply::Clients {
                clients: self.hub.list(&query).await,
            },
            Ask::Describe { client } => Reply::Clients {
                clients: self.hub.describe(client).await.into_iter().collect(),
            },
            Ask::Close { client, user } => {
                let mut count = 0;
                for selector in [
                    client.map(ClientSelector::Client),
                    user.map(ClientSelector::User),
                ]
                .into_iter()
                .flatten()
                {
                    count += self.hub.close(&selector, Close::Disconnected).await;
                }
                Reply::Count { count }
            }
            Ask::Join { client, rooms } => Reply::Rooms {
                rooms: self.hub.join(client, &rooms).await,
            },
            Ask::Leave { client, rooms } => Reply::Rooms {
                rooms: self.hub.leave(client, &rooms).await,
            },
            Ask::Holds { client } => Reply::Count {
                count: usize::from(self.hub.holds(&Destination::Client(client))),
            },
            Ask::Pipeline { group } => Reply::Count {
                count: usize::from(match &self.pipeline {
                    Some(pipeline) => pipeline.works(&group).await,
                    None => false,
                }),
            },
            Ask::Revoke {
                revocation,
                in_database,
            } => {
                self.revocations.add(revocation.clone());
                if !in_database {
                    self.prompt.adopt();
                }
                Reply::Count {
                    count: self.hub.revoke(&revocation).await,
                }
            }
        };
        // The asker may have given up.
        let _ = reply.send(answer);
    }
}

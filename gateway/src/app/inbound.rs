//! What the bus hears, handed on: dispatches to the hub, other instances' questions to whoever knows.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use crate::auth::{Authenticator, Revocations};
use crate::bus::{Ask, Bus, BusEvent, Events, Reply};
use crate::client::ClientSelector;
use crate::dispatch::{Destination, Dispatch, ResyncReason};
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::principal::Principal;
use crate::protocol::close::Close;
use crate::protocol::event::{self, name};

/// Questions that are answered at the same time; those beyond are left unanswered, which the asker is told.
const ANSWERS_AT_ONCE: usize = 64;

/// Where what is heard goes.
#[derive(Clone)]
pub(super) struct Inbound {
    pub(super) hub: Hub,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) authenticator: Authenticator,
    pub(super) metrics: Arc<Metrics>,
    /// What takes longer than handing on is done here: the events may be heard on the thread of connections.
    pub(super) control: Handle,
}

impl Inbound {
    /// Runs until the bus is closed.
    pub(super) async fn run(self, mut events: Events) {
        let permits = Arc::new(Semaphore::new(ANSWERS_AT_ONCE));
        let mut heard = Vec::new();
        while events.next(&mut heard).await {
            for event in heard.drain(..) {
                self.take(event, &permits);
                // It may run on the thread of connections: a flood leaves time for them.
                tokio::task::coop::consume_budget().await;
            }
        }
    }

    fn take(&self, event: BusEvent, permits: &Arc<Semaphore>) {
        match event {
            BusEvent::Dispatch(dispatch) => {
                self.hub.deliver(&dispatch);
            }
            BusEvent::Resync(reason) => {
                self.metrics.bus_resyncs.inc();
                tracing::info!(
                    reason = reason.as_str(),
                    "pushes may have been missed; clients are told to sync"
                );
                self.resync(reason);
                self.control.spawn(self.clone().reload_revocations());
            }
            BusEvent::Revocations(stored) => {
                self.revocations.extend(stored);
                let inbound = self.clone();
                self.control
                    .spawn(async move { inbound.close_fallen().await });
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

    fn resync(&self, reason: ResyncReason) {
        self.hub.deliver(&Dispatch::new(
            Destination::Broadcast,
            name::RESYNC,
            event::resync_data(reason),
        ));
    }

    /// Revocations that were made while this instance did not hear.
    async fn reload_revocations(self) {
        match self.bus.revocations().await {
            Ok(stored) => {
                self.revocations.extend(stored);
                self.close_fallen().await;
            }
            Err(error) => tracing::warn!(%error, "stored revocations cannot be read"),
        }
    }

    /// Closes connections whose token was revoked, by itself or with its source, and tells those whose source or key is gone that their token ends soon.
    pub(super) async fn close_fallen(&self) {
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
                "connections rest on tokens that stand no longer"
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
            Ask::Revoke { revocation } => {
                self.revocations.add(revocation.clone());
                Reply::Count {
                    count: self.hub.revoke(&revocation).await,
                }
            }
        };
        // The asker may have given up.
        let _ = reply.send(answer);
    }
}

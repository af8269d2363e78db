//! What the [bridge](crate::bus::bridge) needs of one Redis besides the calls of every bus: numbered dispatches, leases of a certain worker number, and
//! whether two settings name one server.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connect::{Connector, unavailable};
use super::lease;
use super::nodes::Prefer;
use super::presence::{self, Instance};
use super::worker_lease::LeaseState;
use super::{PubSubBus, ask, publisher};
use crate::bus::wire::{self, Bridged, Names};
use crate::bus::{Answers, Ask, BusError, Interest};
use crate::config;
use crate::dispatch::Dispatch;

/// How long a probe waits for what the other server would hand to it at once.
const PROBE_WAIT: Duration = Duration::from_millis(300);

/// Longest wait until what was received is handed out, and how often that is checked.
const HAND_OUT_WAIT: Duration = Duration::from_secs(2);
const HAND_OUT_CHECK: Duration = Duration::from_millis(5);

impl PubSubBus {
    /// Publishes as [`Bus::publish`](crate::bus::Bus::publish) does, with the numbers of a dispatch that goes to two servers. Those go to the channels that
    /// emitters know: a reader of both servers puts them in order.
    pub(in crate::bus) fn publish_numbered(
        &self,
        dispatch: &Dispatch,
        bridged: Option<Bridged>,
    ) -> BoxFuture<'static, Result<(), BusError>> {
        let feed = match bridged {
            None => self.core.feed_of(&dispatch.destination),
            Some(_) => &self.core.classic,
        };
        let channel = feed.names.channel(&dispatch.destination);
        let payload = wire::encode(&self.core.instance, dispatch, bridged);
        match feed.publisher.dispatch(channel, payload) {
            Ok(published) => async move {
                published
                    .await
                    .unwrap_or_else(|_| Err(publisher::closed()))
                    .map(drop)
            }
            .boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    /// Waits, for a limited time, until what was received is handed out; `false` when it is not.
    pub(in crate::bus) async fn handed_out(&self) -> bool {
        let all = async {
            while self.core.classic.intake.waiting() > 0 {
                tokio::time::sleep(HAND_OUT_CHECK).await;
            }
        };
        tokio::time::timeout(HAND_OUT_WAIT, all).await.is_ok()
    }

    /// Whether everything wanted is subscribed and confirmed.
    pub(in crate::bus) fn is_subscribed(&self) -> bool {
        self.core.classic.interests.lock().is_up()
    }

    /// Returns everything that is wanted, as often as it is.
    pub(in crate::bus) fn wanted(&self) -> Vec<Interest> {
        self.core.classic.interests.lock().wanted()
    }

    /// Whether dispatches were lost and the other instances have not been notified yet.
    pub(in crate::bus) fn has_lost(&self) -> bool {
        self.core.classic.publisher.has_lost()
    }

    /// Has the other instances notified that dispatches of this one were lost.
    pub(in crate::bus) fn note_loss(&self) {
        self.core.classic.publisher.note_loss();
    }

    /// Sets whether the gauges show the figures of this bus.
    pub(in crate::bus) fn show(&self, shown: bool) {
        self.core.hidden.store(!shown, Ordering::Release);
        if shown {
            self.core
                .metrics
                .bus_subscriptions
                .set(self.core.classic.interests.lock().len() as i64);
        }
    }

    /// Leases the wanted worker number here and on `also`, or another one that is free on both; see [`lease::acquire`].
    pub(in crate::bus) async fn lease_worker(
        &self,
        also: Option<&Self>,
        ids: &config::Ids,
        wanted: u16,
    ) -> u16 {
        lease::acquire(&self.core, also.map(|bus| &*bus.core), ids, wanted).await
    }

    /// Leases this very worker number; `false` when another instance owns it. The number leased before stays leased on the server.
    pub(in crate::bus) async fn lease_number(&self, worker: u16) -> Result<bool, BusError> {
        lease::lease_number(&self.core, worker).await
    }

    /// Gives up a worker number with which no id is made any more.
    pub(in crate::bus) async fn release_number(&self, worker: u16) {
        if let Err(error) = lease::release_number(&self.core, worker).await {
            tracing::warn!(%error, worker, "giving up the worker lease failed; it ends by itself");
        }
    }

    /// Keeps a worker number with which no id is made any more, for so long and the time of a lease: nobody may make ids with it before.
    pub(in crate::bus) async fn keep_number(&self, worker: u16, at_least: Duration) {
        if let Err(error) = lease::keep_number(&self.core, worker, at_least).await {
            tracing::warn!(%error, worker, "keeping a used worker number failed; another instance may get it within the hour");
        }
    }

    /// Returns the worker number that is leased here.
    pub(in crate::bus) fn leased_number(&self) -> Option<u16> {
        self.core.lease.number()
    }

    /// Whether another instance owns the worker number that was leased here.
    pub(in crate::bus) fn number_owned_by_other(&self) -> bool {
        self.core.lease.state(Instant::now()) == LeaseState::OwnedByOther
    }

    /// Lists this instance among the live ones.
    pub(in crate::bus) async fn announce(&self) {
        if let Err(error) = presence::announce(&self.core).await {
            tracing::warn!(%error, "listing this instance among the live ones failed; trying again");
        }
    }

    /// Lists the other live instances.
    pub(in crate::bus) async fn others(&self) -> Result<Vec<Instance>, BusError> {
        presence::others(&self.core).await
    }

    /// Asks these instances.
    pub(in crate::bus) async fn ask_these(
        &self,
        question: &Ask,
        others: Vec<Instance>,
    ) -> Result<Answers, BusError> {
        ask::ask(&self.core, question, others).await
    }
}

/// Connects by these settings and returns whether what `bus` publishes arrives there: then they name the server of `bus`.
///
/// # Errors
/// [`BusError`] when no connection can be made.
pub(in crate::bus) async fn is_same_server(
    bus: &PubSubBus,
    config: &config::Redis,
) -> Result<bool, BusError> {
    let connector = Connector::new(config)?;
    let token = format!("{:032x}", rand::random::<u128>());
    let received = Arc::new(Notify::new());
    let arrived = received.clone();
    let names = Names::new(&config.channel_prefix, &token);
    let subscribed = async {
        let (session, _) = connector.session(&Prefer::Any).await?;
        let mut subscription = session.receive(false, move |_, _| arrived.notify_one());
        subscription
            .subscribe(std::slice::from_ref(&names.ping))
            .await?;
        Ok(subscription)
    };
    let _subscription = subscribed.await.map_err(|error| unavailable(&error))?;
    let arrives = match bus
        .core
        .classic
        .publisher
        .signal(names.ping, b"probe".to_vec())
    {
        Ok(published) => tokio::time::timeout(PROBE_WAIT, async {
            let _ = published.await;
            received.notified().await;
        })
        .await
        .is_ok(),
        Err(_) => false,
    };
    Ok(arrives)
}

/// Removes from `others` the instances that are among `known`.
pub(in crate::bus) fn only_here(mut others: Vec<Instance>, known: &[Instance]) -> Vec<Instance> {
    let known: HashSet<&str> = known.iter().map(|instance| instance.id.as_str()).collect();
    others.retain(|instance| !known.contains(instance.id.as_str()));
    others
}

//! The bus that callers hold where there is Redis. It follows the live settings from one Redis to another.
//!
//! | module | does |
//! |---|---|
//! | `switcher` | the task that follows the live settings and switches |
//! | `opening` | connects to a server while another serves, and leaves one |
//! | `worker` | one worker number on two servers; another one where it is lost or used up |
//! | `stream` | hands out what is received |
//! | `merging` | whether a merge stands in between |
//! | `merge` | one stream out of what two servers deliver: each message once, in order |
//!
//! With one server the way is plain: a dispatch goes to it as it is, and what it delivers is handed out as it comes. While the live settings name a
//! previous server, a [`Bridge`] is in the [`Route`]: everything is published to both and received from both, and a question goes to each instance once,
//! by whichever server the instance uses. The current server decides what callers get and whether the instance is ready; the previous one is waited for
//! [`PREVIOUS_WAIT`] at most.

mod merge;
mod merging;
mod opening;
mod stream;
mod switcher;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join, join_all};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::merge::ServerId;
pub(super) use self::stream::EventStream;
use self::stream::StreamCommand;
use self::switcher::{Switcher, wanted_location};
use super::pubsub::{self, PubSubBus, Setup};
use super::wire::Bridged;
use super::{
    Answers, Ask, Bus, BusError, BusEvent, BusOptions, BusStatus, Events, Interest, Opened,
    PreviousServer, Reception, Source, SubscriberState,
};
use crate::config::{self, Live, RedisLocation};
use crate::dispatch::{Audience, Dispatch};
use crate::revocation::Revocation;

/// Longest wait for the previous server.
const PREVIOUS_WAIT: Duration = Duration::from_millis(500);

/// One server that is connected to.
#[derive(Clone)]
struct Server {
    id: ServerId,
    location: RedisLocation,
    bus: Arc<PubSubBus>,
}

/// Where dispatches go. The lock is held while a dispatch is queued, so that those before and after a change of the route keep their order.
struct Route {
    current: Server,
    /// In front of the current server while there is a previous one.
    bridge: Option<Bridge>,
    /// A server that is being opened: it learns what is wanted.
    opening: Option<Arc<PubSubBus>>,
    /// The number of the last dispatch that went over a bridge.
    last_number: u64,
}

/// Publishes to the current and the previous server, with the numbers by which receivers take each dispatch once and in order.
struct Bridge {
    previous: Server,
    /// The first number of this pair of servers.
    since: u64,
    /// The server of the pair on which every dispatch before `since` went too.
    complete: ServerId,
}

impl Bridge {
    /// Returns the numbers of the copy for this server.
    fn bridged(&self, server: &Server, number: u64) -> Option<Bridged> {
        Some(Bridged {
            number,
            since: self.since,
            is_complete: server.id == self.complete,
        })
    }
}

impl Route {
    /// Queues a dispatch at the current server, and at the previous one where there is a bridge.
    fn publish(&mut self, dispatch: &Dispatch) -> BoxFuture<'static, Result<(), BusError>> {
        let Some(bridge) = &self.bridge else {
            return self.current.bus.publish_numbered(dispatch, None);
        };
        self.last_number += 1;
        let (previous, number) = (&bridge.previous, self.last_number);
        // That bus counts it and reports it when it is lost; the caller does not wait for it.
        drop(
            previous
                .bus
                .publish_numbered(dispatch, bridge.bridged(previous, number)),
        );
        self.current
            .bus
            .publish_numbered(dispatch, bridge.bridged(&self.current, number))
    }

    /// The same for one event to many users. With a bridge each gets a message of its own, with numbers of its own.
    fn publish_audience(&mut self, audience: &Audience<'_>) {
        if self.bridge.is_none() {
            return self.current.bus.publish_audience(audience);
        }
        for dispatch in audience.dispatches() {
            drop(self.publish(&dispatch));
        }
    }

    /// Puts a bridge in front of the current server. Every dispatch so far went to the server `complete`, one of the two.
    fn attach_bridge(&mut self, previous: Server, complete: ServerId) {
        self.bridge = Some(Bridge {
            previous,
            since: self.last_number + 1,
            complete,
        });
    }

    /// Takes the bridge off and returns the previous server.
    fn detach_bridge(&mut self) -> Option<Server> {
        self.bridge.take().map(|bridge| bridge.previous)
    }

    fn previous(&self) -> Option<&Server> {
        self.bridge.as_ref().map(|bridge| &bridge.previous)
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.current).chain(self.previous())
    }

    fn buses(&self) -> impl Iterator<Item = &Arc<PubSubBus>> {
        self.servers()
            .map(|server| &server.bus)
            .chain(&self.opening)
    }
}

/// How a switch stands, for `/status`.
#[derive(Default)]
struct Progress {
    error: Option<String>,
    /// Nodes of the previous server in the live settings, connected to or not.
    previous: Option<Vec<String>>,
}

/// What callers, the switcher and the stream share.
struct BridgeCore {
    route: Mutex<Route>,
    progress: Mutex<Progress>,
    /// The previous server's bus has ended by itself.
    previous_lost: Notify,
    worker: Arc<AtomicU16>,
    /// The worker number that has to be replaced, and how long it stays leased.
    replaced: Mutex<Option<(u16, Duration)>>,
    setup: Setup,
    fixed: config::Redis,
    live: watch::Receiver<Arc<Live>>,
    closing: CancellationToken,
}

impl BridgeCore {
    fn current(&self) -> Server {
        self.route.lock().current.clone()
    }

    fn previous(&self) -> Option<Server> {
        self.route.lock().previous().cloned()
    }

    fn both(&self) -> (Arc<PubSubBus>, Option<Arc<PubSubBus>>) {
        let route = self.route.lock();
        (
            route.current.bus.clone(),
            route.previous().map(|server| server.bus.clone()),
        )
    }

    /// The worker number that ids are made with.
    fn worker(&self) -> u16 {
        self.worker.load(Ordering::Acquire)
    }
}

/// The bus over the Redis that the live settings name.
struct RedisBus {
    core: Arc<BridgeCore>,
}

/// Opens the bus; see [`super::open`].
pub(super) async fn open(options: BusOptions) -> Result<Opened, BusError> {
    let closing = options.shutdown.child_token();
    let setup = Setup {
        instance: pubsub::new_instance(),
        name: options.instance_name,
        ids: options.ids,
        clock: options.clock,
        metrics: options.metrics,
        shutdown: closing.clone(),
    };
    let (first, live) = opening::open_first(&setup, &options.config, options.live).await?;
    let worker = Arc::new(AtomicU16::new(0));
    let core = Arc::new(BridgeCore {
        route: Mutex::new(Route {
            current: first.server,
            bridge: None,
            opening: None,
            last_number: 0,
        }),
        progress: Mutex::default(),
        previous_lost: Notify::new(),
        worker: worker.clone(),
        replaced: Mutex::default(),
        setup,
        fixed: options.config,
        live: live.clone(),
        closing,
    });
    let (commands, received) = mpsc::unbounded_channel();
    let _ = commands.send(StreamCommand::Attach(core.current().id, first.events));
    let mut switcher = Switcher::new(core.clone(), live, commands);
    let stream = EventStream::new(core.clone(), received);
    let bus = RedisBus { core };
    switcher.start().await?;
    // Should it fail, its commands end, with them the events, and the process goes.
    tokio::spawn(async move { switcher.follow().await });
    Ok(Opened {
        bus: Arc::new(bus),
        events: Events(Source::Redis(Box::new(stream))),
        worker,
    })
}

/// Waits for the previous server, for a limited time.
async fn limited<T>(work: Option<impl Future<Output = T>>) -> Option<T> {
    tokio::time::timeout(PREVIOUS_WAIT, work?).await.ok()
}

impl RedisBus {
    /// Asks all other live instances, or those with one of these names.
    async fn ask_others(
        &self,
        question: &Ask,
        only: Option<&[String]>,
    ) -> Result<Answers, BusError> {
        let (current, previous) = self.core.both();
        let Some(previous) = previous else {
            return match only {
                Some(names) => current.ask_named(question, names).await,
                None => current.ask(question).await,
            };
        };
        let (here, there) = join(current.others(), limited(Some(previous.others()))).await;
        let mut here = here?;
        // An instance that uses both is asked once.
        let mut there = pubsub::only_here(there.and_then(Result::ok).unwrap_or_default(), &here);
        if let Some(names) = only {
            here.retain(|instance| names.contains(&instance.name));
            there.retain(|instance| names.contains(&instance.name));
        }
        let names: Vec<String> = there.iter().map(|instance| instance.name.clone()).collect();
        let (answers, more) = join(
            current.ask_these(question, here),
            previous.ask_these(question, there),
        )
        .await;
        let mut answers = answers?;
        let more = more.unwrap_or_else(|_| Answers {
            missing: names,
            ..Answers::default()
        });
        answers.replies.extend(more.replies);
        answers.missing.extend(more.missing);
        answers.missing.sort();
        Ok(answers)
    }

    async fn all_shared_revocations(&self) -> Result<Vec<Revocation>, BusError> {
        let (current, previous) = self.core.both();
        let Some(previous) = previous else {
            return current.shared_revocations().await;
        };
        let (shared, more) = join(
            current.shared_revocations(),
            limited(Some(previous.shared_revocations())),
        )
        .await;
        let mut all: HashSet<Revocation> = shared?.into_iter().collect();
        all.extend(more.and_then(Result::ok).unwrap_or_default());
        Ok(all.into_iter().collect())
    }
}

impl Bus for RedisBus {
    fn publish<'a>(&'a self, dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        self.core.route.lock().publish(dispatch)
    }

    fn publish_audience(&self, audience: &Audience<'_>) {
        self.core.route.lock().publish_audience(audience);
    }

    fn subscribe(&self, interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        let route = self.core.route.lock();
        if let Some(opening) = &route.opening {
            drop(opening.subscribe(interests.clone()));
        }
        let previous = route
            .previous()
            .map(|server| server.bus.subscribe(interests.clone()));
        let current = route.current.bus.subscribe(interests);
        match previous {
            None => current,
            Some(previous) => async { join(current, limited(Some(previous))).await.0 }.boxed(),
        }
    }

    fn unsubscribe(&self, interests: Vec<Interest>) {
        let route = self.core.route.lock();
        for bus in route.buses() {
            bus.unsubscribe(interests.clone());
        }
    }

    fn ask<'a>(&'a self, question: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        self.ask_others(question, None).boxed()
    }

    fn ask_named<'a>(
        &'a self,
        question: &'a Ask,
        names: &'a [String],
    ) -> BoxFuture<'a, Result<Answers, BusError>> {
        self.ask_others(question, Some(names)).boxed()
    }

    fn last_seen(&self) -> Vec<String> {
        let (current, previous) = self.core.both();
        let mut names = current.last_seen();
        names.extend(previous.iter().flat_map(|bus| bus.last_seen()));
        names.sort();
        names.dedup();
        names
    }

    fn share_revocation<'a>(
        &'a self,
        revocation: &'a Revocation,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        let (current, previous) = self.core.both();
        async move {
            let (shared, _) = join(
                current.share_revocation(revocation),
                limited(
                    previous
                        .as_ref()
                        .map(|bus| bus.share_revocation(revocation)),
                ),
            )
            .await;
            shared
        }
        .boxed()
    }

    fn shared_revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        self.all_shared_revocations().boxed()
    }

    fn reception(&self) -> Option<Reception> {
        let Server { id, bus, .. } = self.core.current();
        // Another server counts its gaps from the start.
        let reception = bus.reception()?;
        Some(Reception {
            gaps: (id << 32) + reception.gaps,
            ..reception
        })
    }

    fn subscriber(&self) -> SubscriberState {
        self.core.current().bus.subscriber()
    }

    fn lag(&self) -> Option<Duration> {
        self.core.current().bus.lag()
    }

    fn lease_lapsed(&self) -> bool {
        self.core.current().bus.lease_lapsed()
    }

    fn lease_doubtful(&self) -> bool {
        self.core.current().bus.lease_doubtful()
    }

    fn replace_worker(&self, stepped_back: Duration) {
        *self.core.replaced.lock() = Some((self.core.worker(), stepped_back));
    }

    fn status(&self) -> BusStatus {
        let route = self.core.route.lock();
        let progress = self.core.progress.lock();
        let previous = match route.previous() {
            Some(server) => Some(PreviousServer {
                nodes: server.location.nodes.clone(),
                subscribed: server.bus.is_subscribed()
                    && server.bus.subscriber() == SubscriberState::Live,
            }),
            None => progress.previous.clone().map(|nodes| PreviousServer {
                nodes,
                subscribed: false,
            }),
        };
        let location = &route.current.location;
        let switching = wanted_location(&self.core.live.borrow(), &self.core.fixed) != *location;
        BusStatus {
            mode: location.mode,
            nodes: location.nodes.clone(),
            switching,
            error: progress.error.clone(),
            previous,
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.core.closing.cancel();
        async {
            let buses: Vec<Arc<PubSubBus>> = self.core.route.lock().buses().cloned().collect();
            join_all(buses.iter().map(|bus| bus.close())).await;
        }
        .boxed()
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.core.closing.cancel();
    }
}

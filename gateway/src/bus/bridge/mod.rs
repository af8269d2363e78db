//! The bus that callers hold where there is Redis: it stands in front of the one in use and, while the live file has `[redis_previous]`, of the one
//! before, so that a running instance goes from one server to another.
//!
//! | module | does |
//! |---|---|
//! | `merge` | one stream out of what both hear: each message once, in order |
//! | `hands` | feeds it, and hands the stream out |
//! | `mover` | the task that follows the live settings: opens beside, goes over, closes |
//!
//! While there are two, everything is published to both and heard from both, and questions go to each instance once, by whichever server it is on.
//! The one in use decides what callers are told and whether the instance is ready; the other is waited for [`BESIDE_WAIT`] at most.

mod hands;
mod merge;
mod mover;

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

use self::hands::Hand;
pub(super) use self::hands::Joined;
use self::merge::Line;
use self::mover::Mover;
use super::pubsub::{self, RedisBus, Setup};
use super::wire::Bridged;
use super::{
    Answers, Ask, Bus, BusError, BusEvent, BusOptions, BusStatus, Events, Interest, Opened,
    PreviousServer, Source, SubscriberState,
};
use crate::config::{self, Live, RedisLocation};
use crate::dispatch::Dispatch;
use crate::revocation::Revocation;

/// Longest wait for the server that is not the one in use.
const BESIDE_WAIT: Duration = Duration::from_millis(500);

/// One server that is connected to.
#[derive(Clone)]
struct Side {
    line: Line,
    place: RedisLocation,
    bus: Arc<RedisBus>,
}

/// Where things go. The lock is held over queueing a dispatch, so that what is published before a change of it and what comes after keep their order.
struct Route {
    /// The one in use.
    current: Side,
    /// The one before.
    previous: Option<Side>,
    /// One that is being opened: it learns what is wanted.
    opening: Option<Arc<RedisBus>>,
    /// Of the last dispatch that went to two servers.
    number: u64,
    /// Of the first since there was one alone.
    since: u64,
    /// The server that was published to alone last.
    home: Line,
}

impl Route {
    fn all(&self) -> impl Iterator<Item = &Arc<RedisBus>> {
        std::iter::once(&self.current.bus)
            .chain(self.previous.as_ref().map(|side| &side.bus))
            .chain(&self.opening)
    }
}

/// What is told of a move.
#[derive(Default)]
struct Progress {
    error: Option<String>,
    /// Nodes of `[redis_previous]`, connected to or not.
    previous: Option<Vec<String>>,
}

/// What callers and the two tasks share.
struct Shared {
    route: Mutex<Route>,
    progress: Mutex<Progress>,
    /// A server was lost for good.
    lost: Notify,
    worker: Arc<AtomicU16>,
    setup: Setup,
    fixed: config::Redis,
    live: watch::Receiver<Arc<Live>>,
    known: Arc<dyn Fn() -> Vec<Revocation> + Send + Sync>,
    closing: CancellationToken,
}

impl Shared {
    fn current(&self) -> Side {
        self.route.lock().current.clone()
    }

    fn previous(&self) -> Option<Side> {
        self.route.lock().previous.clone()
    }

    fn both(&self) -> (Arc<RedisBus>, Option<Arc<RedisBus>>) {
        let route = self.route.lock();
        (
            route.current.bus.clone(),
            route.previous.as_ref().map(|side| side.bus.clone()),
        )
    }

    /// The number in use.
    fn worker(&self) -> u16 {
        self.worker.load(Ordering::Acquire)
    }
}

struct Switch {
    shared: Arc<Shared>,
}

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
    let (first, live) = mover::open_first(&setup, &options.config, options.live).await?;
    let worker = Arc::new(AtomicU16::new(0));
    let shared = Arc::new(Shared {
        route: Mutex::new(Route {
            current: first.side,
            previous: None,
            opening: None,
            number: 0,
            since: 1,
            home: 1,
        }),
        progress: Mutex::default(),
        lost: Notify::new(),
        worker: worker.clone(),
        setup,
        fixed: options.config,
        live: live.clone(),
        known: options.known_revocations,
        closing,
    });
    let (hand, handed) = mpsc::unbounded_channel();
    let _ = hand.send(Hand::Line(shared.current().line, first.events));
    let mut mover = Mover::new(shared.clone(), live, hand);
    let joined = Joined::new(shared.clone(), handed);
    let bus = Switch { shared };
    mover.start().await?;
    // Should it fail, what it hands ends, with that the events, and the process goes.
    tokio::spawn(async move { mover.follow().await });
    Ok(Opened {
        bus: Arc::new(bus),
        events: Events(Source::Switch(Box::new(joined))),
        worker,
    })
}

/// Waits a little for the server that is not the one in use.
async fn beside<T>(work: Option<impl Future<Output = T>>) -> Option<T> {
    tokio::time::timeout(BESIDE_WAIT, work?).await.ok()
}

impl Switch {
    async fn ask_both(&self, question: &Ask) -> Result<Answers, BusError> {
        let (current, previous) = self.shared.both();
        let Some(previous) = previous else {
            return current.ask(question).await;
        };
        let (here, there) = join(current.others(), beside(Some(previous.others()))).await;
        let here = here?;
        // Who is on both is asked once.
        let there = pubsub::only_here(there.and_then(Result::ok).unwrap_or_default(), &here);
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

    async fn stored(&self) -> Result<Vec<Revocation>, BusError> {
        let (current, previous) = self.shared.both();
        let (stored, more) = join(
            current.revocations(),
            beside(previous.as_ref().map(|bus| bus.revocations())),
        )
        .await;
        let mut all: HashSet<Revocation> = stored?.into_iter().collect();
        all.extend(more.and_then(Result::ok).unwrap_or_default());
        Ok(all.into_iter().collect())
    }
}

impl Bus for Switch {
    fn publish<'a>(&'a self, dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        let mut route = self.shared.route.lock();
        if route.previous.is_none() {
            (route.home, route.since) = (route.current.line, route.number + 1);
            return route.current.bus.publish_numbered(dispatch, None);
        }
        route.number += 1;
        let bridged = |side: &Side| {
            Some(Bridged {
                number: route.number,
                since: route.since,
                is_home: side.line == route.home,
            })
        };
        if let Some(previous) = &route.previous {
            // Counted and, where it is lost, told by that bus; nobody waits for it.
            drop(previous.bus.publish_numbered(dispatch, bridged(previous)));
        }
        route
            .current
            .bus
            .publish_numbered(dispatch, bridged(&route.current))
    }

    fn subscribe(&self, interests: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        let route = self.shared.route.lock();
        if let Some(opening) = &route.opening {
            drop(opening.subscribe(interests.clone()));
        }
        let previous = route
            .previous
            .as_ref()
            .map(|side| side.bus.subscribe(interests.clone()));
        let current = route.current.bus.subscribe(interests);
        match previous {
            None => current,
            Some(previous) => async { join(current, beside(Some(previous))).await.0 }.boxed(),
        }
    }

    fn unsubscribe(&self, interests: Vec<Interest>) {
        let route = self.shared.route.lock();
        for bus in route.all() {
            bus.unsubscribe(interests.clone());
        }
    }

    fn ask<'a>(&'a self, question: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        self.ask_both(question).boxed()
    }

    fn store_revocation<'a>(
        &'a self,
        revocation: &'a Revocation,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        let (current, previous) = self.shared.both();
        async move {
            let (stored, _) = join(
                current.store_revocation(revocation),
                beside(
                    previous
                        .as_ref()
                        .map(|bus| bus.store_revocation(revocation)),
                ),
            )
            .await;
            stored
        }
        .boxed()
    }

    fn revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        self.stored().boxed()
    }

    fn subscriber(&self) -> SubscriberState {
        self.shared.current().bus.subscriber()
    }

    fn lag(&self) -> Option<Duration> {
        self.shared.current().bus.lag()
    }

    fn lease_lapsed(&self) -> bool {
        self.shared.current().bus.lease_lapsed()
    }

    fn status(&self) -> BusStatus {
        let route = self.shared.route.lock();
        let progress = self.shared.progress.lock();
        let previous = match &route.previous {
            Some(side) => Some(PreviousServer {
                nodes: side.place.nodes.clone(),
                subscribed: side.bus.is_up() && side.bus.subscriber() == SubscriberState::Live,
            }),
            None => progress.previous.clone().map(|nodes| PreviousServer {
                nodes,
                subscribed: false,
            }),
        };
        let place = &route.current.place;
        let moving = mover::place_wanted(&self.shared.live.borrow(), &self.shared.fixed) != *place;
        BusStatus {
            mode: place.mode,
            nodes: place.nodes.clone(),
            moving,
            error: progress.error.clone(),
            previous,
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.shared.closing.cancel();
        async {
            let buses: Vec<Arc<RedisBus>> = self.shared.route.lock().all().cloned().collect();
            join_all(buses.iter().map(|bus| bus.close())).await;
        }
        .boxed()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

//! Follows the live settings from one Redis to another.
//!
//! A server that is gone over to is opened beside the one in use: connected, everything subscribed and confirmed, revocations written, a worker
//! number leased. Then the two change places at once. What cannot be reached is tried again with growing delay while the one in use serves on.
//! Input: the live settings. Output: the route, and hands to [`super::hands`].

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::{mpsc, watch};

use super::hands::Hand;
use super::{Bus as _, BusEvent, Shared, Side};
use crate::bus::BusError;
use crate::bus::pubsub::{self, Backoff, Begun, Events, RedisBus, Setup};
use crate::config::{self, Live, RedisLocation};
use crate::dispatch::ResyncReason;
use crate::metrics::Metrics;
use crate::revocation::Revocation;

/// How many revocations are written at the same time.
const WRITES_AT_ONCE: usize = 64;
/// How often it is looked whether the worker number is free on the server before.
const LOOK: Duration = Duration::from_secs(1);

/// What the live settings want.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    place: RedisLocation,
    previous: Option<RedisLocation>,
}

/// The place that the settings name.
pub(super) fn place_wanted(live: &Live, fixed: &config::Redis) -> RedisLocation {
    live.redis
        .clone()
        .unwrap_or_else(|| RedisLocation::of(fixed))
}

impl Wanted {
    fn of(live: &Live, fixed: &config::Redis) -> Self {
        Self {
            place: place_wanted(live, fixed),
            previous: live.redis_previous.clone(),
        }
    }

    fn keeps(&self, side: &Side) -> bool {
        self.previous
            .as_ref()
            .is_some_and(|place| place.is_same_server(&side.place))
            && !side.place.is_same_server(&self.place)
    }
}

/// A server that is connected for the first time.
pub(super) struct First {
    pub(super) side: Side,
    pub(super) events: Events,
}

/// Connects to whatever the live settings name, however long it takes and however they change meanwhile.
///
/// # Errors
/// [`BusError`] when it is told to close, or for settings that can never work.
pub(super) async fn open_first(
    setup: &Setup,
    fixed: &config::Redis,
    mut live: watch::Receiver<Arc<Live>>,
) -> Result<(First, watch::Receiver<Arc<Live>>), BusError> {
    loop {
        let place = Wanted::of(&live.borrow_and_update(), fixed).place;
        let mut begun = pubsub::begin(&place.with_timings_of(fixed), setup)?;
        let connected = loop {
            tokio::select! {
                connected = begun.connected() => break Some(connected),
                Ok(()) = live.changed() => {
                    if Wanted::of(&live.borrow_and_update(), fixed).place != place {
                        break None;
                    }
                }
            }
        };
        match connected {
            Some(Ok(())) => {
                let side = Side {
                    line: 1,
                    place,
                    bus: begun.bus,
                };
                return Ok((
                    First {
                        side,
                        events: begun.events,
                    },
                    live,
                ));
            }
            Some(Err(error)) => {
                begun.bus.close().await;
                return Err(error);
            }
            None => begun.bus.close().await,
        }
    }
}

/// The task's state.
pub(super) struct Mover {
    shared: Arc<Shared>,
    live: watch::Receiver<Arc<Live>>,
    hand: mpsc::UnboundedSender<Hand>,
    lines: u64,
}

impl Mover {
    pub(super) fn new(
        shared: Arc<Shared>,
        live: watch::Receiver<Arc<Live>>,
        hand: mpsc::UnboundedSender<Hand>,
    ) -> Self {
        Self {
            shared,
            live,
            hand,
            lines: 1,
        }
    }

    /// Leases a number for a bus that is connected, and opens the server before if that does not take long.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] when it is told to close.
    pub(super) async fn start(&mut self) -> Result<(), BusError> {
        let (shared, ids) = (self.shared.clone(), self.shared.setup.ids.clone());
        let current = shared.current().bus;
        let wanted = Wanted::of(&self.live.borrow(), &shared.fixed);
        // Instances that are on the server before alone have the first numbers of all.
        let first = if wanted.previous.is_some() {
            ids.worker_base + rand::random_range(0..ids.worker_count)
        } else {
            ids.worker_base
        };
        let started = async {
            shared
                .worker
                .store(current.acquire(None, &ids, first).await, Ordering::Release);
            current.beat().await;
            if let Some(place) = &wanted.previous {
                shared.progress.lock().previous = Some(place.nodes.clone());
                if let Err(error) = self.open_previous(place).await {
                    tracing::warn!(%error, nodes = ?place.nodes, "the previous Redis is not connected to yet");
                }
            }
        };
        tokio::select! {
            () = started => Ok(()),
            () = shared.closing.cancelled() => Err(BusError::Unavailable("shut down before Redis was reached".into())),
        }
    }

    /// Follows until the switch is closed.
    pub(super) async fn follow(&mut self) {
        let shared = self.shared.clone();
        let mut backoff = Backoff::default();
        loop {
            let wanted = Wanted::of(&self.live.borrow_and_update(), &shared.fixed);
            let settled = tokio::select! {
                settled = self.settle(&wanted) => settled,
                () = shared.closing.cancelled() => return,
            };
            let wait = if settled {
                backoff = Backoff::default();
                None
            } else {
                Some(backoff.next())
            };
            loop {
                let bridged = shared.previous().is_some();
                tokio::select! {
                    changed = self.live.changed() => {
                        if changed.is_err() {
                            return shared.closing.cancelled().await;
                        }
                        backoff = Backoff::default();
                        break;
                    }
                    () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => break,
                    () = shared.lost.notified() => break,
                    () = tokio::time::sleep(LOOK), if bridged && wait.is_none() => self.look_after_number().await,
                    () = shared.closing.cancelled() => return,
                }
            }
        }
    }

    /// Brings the route to what is wanted; `false` when that has to be tried again.
    async fn settle(&mut self, wanted: &Wanted) -> bool {
        let shared = self.shared.clone();
        if shared.current().place != wanted.place {
            let kind = match self.go(wanted).await {
                Ok(kind) => {
                    shared.progress.lock().error = None;
                    kind
                }
                Err(error) => {
                    tracing::warn!(%error, nodes = ?wanted.place.nodes, "the Redis that the live settings name is not gone over to; the one in use serves on");
                    shared.progress.lock().error = Some(error.to_string());
                    "failed"
                }
            };
            shared
                .setup
                .metrics
                .bus_moves
                .get_or_create(&Metrics::kind(kind))
                .inc();
            if kind == "failed" {
                return false;
            }
        } else {
            shared.progress.lock().error = None;
        }
        self.settle_previous(wanted).await
    }

    /// Goes to the place that is wanted; says how.
    async fn go(&mut self, wanted: &Wanted) -> Result<&'static str, BusError> {
        let shared = self.shared.clone();
        let config = wanted.place.with_timings_of(&shared.fixed);
        let current = shared.current();
        if current.place.is_same_server(&wanted.place) {
            self.log_in_otherwise(&current, &wanted.place, &config)
                .await?;
            return Ok("login");
        }
        if let Some(previous) = shared
            .previous()
            .filter(|previous| previous.place.is_same_server(&wanted.place))
        {
            if previous.place != wanted.place {
                previous.bus.log_in(&config).await?;
            }
            self.exchange(previous, &wanted.place).await?;
            return Ok("moved");
        }
        let mut newer = self.live.clone();
        let probed = tokio::select! {
            probed = pubsub::probe(&current.bus, &config) => probed?,
            Ok(()) = newer.changed() => return Err(superseded()),
        };
        if probed && current.place.channel_prefix == wanted.place.channel_prefix {
            self.log_in_otherwise(&current, &wanted.place, &config)
                .await?;
            return Ok("login");
        }
        self.go_over(wanted, &config, current).await?;
        Ok("moved")
    }

    /// The same server by another login, or by another name.
    async fn log_in_otherwise(
        &self,
        current: &Side,
        place: &RedisLocation,
        config: &config::Redis,
    ) -> Result<(), BusError> {
        current.bus.log_in(config).await?;
        let mut route = self.shared.route.lock();
        if route.current.line == current.line {
            route.current.place = place.clone();
        }
        tracing::info!(nodes = ?place.nodes, "logged in to Redis by the changed settings");
        Ok(())
    }

    /// The two servers that are both connected change places.
    async fn exchange(&self, previous: Side, place: &RedisLocation) -> Result<(), BusError> {
        let shared = &self.shared;
        if !previous.bus.is_up() {
            return Err(BusError::Unavailable("subscriptions are down there".into()));
        }
        if !previous.bus.hold(shared.worker()).await? {
            let current = shared.current().bus;
            self.number_anew(&previous.bus, Some(&current)).await;
        }
        write_known(&previous.bus, (shared.known)()).await?;
        let mut route = shared.route.lock();
        let old = std::mem::replace(
            &mut route.current,
            Side {
                place: place.clone(),
                ..previous
            },
        );
        old.bus.show(false);
        route.current.bus.show(true);
        tracing::info!(nodes = ?place.nodes, previous = ?old.place.nodes, "went over to the other Redis");
        route.previous = Some(old);
        Ok(())
    }

    /// Opens the server that is wanted beside the one in use, and goes over.
    async fn go_over(
        &mut self,
        wanted: &Wanted,
        config: &config::Redis,
        old: Side,
    ) -> Result<(), BusError> {
        let shared = self.shared.clone();
        let known: HashSet<Revocation> = (shared.known)().into_iter().collect();
        let mut begun = self.begin(config)?;
        let bus = begun.bus.clone();
        let mut newer = self.live.clone();
        let also = wanted
            .keeps(&old)
            .then(|| old.bus.clone())
            .filter(|bus| bus.is_up());
        let opening = async {
            begun.connected().await?;
            write_known(&bus, known.iter().cloned()).await?;
            let number = bus
                .acquire(also.as_deref(), &shared.setup.ids, shared.worker())
                .await;
            bus.beat().await;
            Ok(number)
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = tokio::time::sleep(open_limit(config)) => Err(BusError::Unavailable("opening it took too long".into())),
            Ok(()) = newer.changed() => Err(superseded()),
        };
        let number = match opened {
            Ok(number) => number,
            Err(error) => {
                shared.route.lock().opening = None;
                bus.close().await;
                if also.is_some() {
                    // It may have been asked for another number.
                    let _ = old.bus.hold(shared.worker()).await;
                }
                return Err(error);
            }
        };
        let side = self.attach(begun, &wanted.place);
        let left = shared.worker.swap(number, Ordering::AcqRel);
        if let Some(also) = also.filter(|_| left != number) {
            tracing::info!(
                worker = number,
                before = left,
                "the worker number was not free there: another one is used"
            );
            also.give_up(left).await;
        }
        let dropped = {
            let mut route = shared.route.lock();
            if old.bus.has_lost() {
                side.bus.note_loss();
            }
            side.bus.show(true);
            old.bus.show(false);
            route.opening = None;
            let (current, before) = (
                std::mem::replace(&mut route.current, side.clone()),
                route.previous.take(),
            );
            let (kept, dropped): (Vec<Side>, Vec<Side>) = [Some(current), before]
                .into_iter()
                .flatten()
                .partition(|side| wanted.keeps(side));
            route.previous = kept.into_iter().next();
            dropped
        };
        tracing::info!(nodes = ?side.place.nodes, previous = ?old.place.nodes, "went over to another Redis");
        // Those that were made meanwhile went to the one before alone.
        let late: Vec<Revocation> = (shared.known)()
            .into_iter()
            .filter(|revocation| !known.contains(revocation))
            .collect();
        if let Err(error) = write_known(&side.bus, late).await {
            tracing::warn!(%error, "revocations that were made during the move are not stored");
        }
        self.take_revocations(&side.bus).await;
        for side in dropped {
            self.leave(side).await;
        }
        Ok(())
    }

    /// Opens, keeps or closes the server before; `false` when that has to be tried again.
    async fn settle_previous(&mut self, wanted: &Wanted) -> bool {
        let shared = self.shared.clone();
        shared.progress.lock().previous = wanted.previous.as_ref().map(|place| place.nodes.clone());
        let superfluous = {
            let mut route = shared.route.lock();
            let is_superfluous = route
                .previous
                .as_ref()
                .is_some_and(|side| !wanted.keeps(side));
            if is_superfluous {
                route.previous.take()
            } else {
                None
            }
        };
        if let Some(side) = superfluous {
            self.leave(side.clone()).await;
            tracing::info!(nodes = ?side.place.nodes, "the previous Redis is left");
        }
        let done = match (&wanted.previous, shared.previous()) {
            (None, _) => Ok(()),
            (Some(place), Some(side)) if side.place == *place => Ok(()),
            (Some(place), Some(side)) => side
                .bus
                .log_in(&place.with_timings_of(&shared.fixed))
                .await
                .map(|()| {
                    if let Some(previous) = &mut shared.route.lock().previous {
                        previous.place = place.clone();
                    }
                }),
            (Some(place), None) if place.is_same_server(&wanted.place) => Ok(()),
            (Some(place), None) => self
                .open_previous(place)
                .await
                .map(|()| self.tell(BusEvent::Resync(ResyncReason::BusMoved))),
        };
        shared
            .setup
            .metrics
            .bus_bridged
            .set(i64::from(shared.previous().is_some()));
        if let (Err(error), Some(place)) = (&done, &wanted.previous) {
            tracing::warn!(%error, nodes = ?place.nodes, "the previous Redis cannot be connected to");
        }
        done.is_ok()
    }

    /// Opens the server before beside the one in use.
    async fn open_previous(&mut self, place: &RedisLocation) -> Result<(), BusError> {
        let shared = self.shared.clone();
        let config = place.with_timings_of(&shared.fixed);
        let current = shared.current();
        let mut newer = self.live.clone();
        let probed = tokio::select! {
            probed = pubsub::probe(&current.bus, &config) => probed?,
            Ok(()) = newer.changed() => return Err(superseded()),
        };
        if probed && place.channel_prefix == current.place.channel_prefix {
            return Err(BusError::Misconfigured(
                "bus_previous is the server in use under another name".into(),
            ));
        }
        let mut begun = self.begin(&config)?;
        let bus = begun.bus.clone();
        let opening = async {
            begun.connected().await?;
            if !bus.hold(shared.worker()).await? {
                self.number_anew(&current.bus, Some(&bus)).await;
            }
            bus.beat().await;
            Ok(())
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = tokio::time::sleep(open_limit(&config)) => Err(BusError::Unavailable("opening it took too long".into())),
            Ok(()) = newer.changed() => Err(superseded()),
        };
        if let Err(error) = opened {
            shared.route.lock().opening = None;
            bus.close().await;
            return Err(error);
        }
        let side = self.attach(begun, place);
        {
            let mut route = shared.route.lock();
            route.opening = None;
            route.previous = Some(side.clone());
        }
        shared.setup.metrics.bus_bridged.set(1);
        tracing::info!(nodes = ?place.nodes, "the previous Redis is heard as well");
        self.take_revocations(&side.bus).await;
        Ok(())
    }

    /// Leaves a server that is in the route no longer, once what was heard there is handed out.
    async fn leave(&self, side: Side) {
        if !side.bus.is_up() || !side.bus.handed_out().await {
            self.tell(BusEvent::Resync(ResyncReason::BusMoved));
        }
        side.bus.close().await;
    }

    /// Begins to connect to a server that is to hear what is wanted.
    fn begin(&self, config: &config::Redis) -> Result<Begun, BusError> {
        let begun = pubsub::begin(config, &self.shared.setup)?;
        begun.bus.show(false);
        let mut route = self.shared.route.lock();
        drop(begun.bus.subscribe(route.current.bus.wanted()));
        route.opening = Some(begun.bus.clone());
        Ok(begun)
    }

    /// Has what a server hears handed out.
    fn attach(&mut self, begun: Begun, place: &RedisLocation) -> Side {
        self.lines += 1;
        let _ = self.hand.send(Hand::Line(self.lines, begun.events));
        Side {
            line: self.lines,
            place: place.clone(),
            bus: begun.bus,
        }
    }

    fn tell(&self, event: BusEvent) {
        let _ = self.hand.send(Hand::Event(event));
    }

    /// Hands on what is stored on a server that this instance has come to.
    async fn take_revocations(&self, bus: &RedisBus) {
        match bus.revocations().await {
            Ok(stored) if stored.is_empty() => {}
            Ok(stored) => self.tell(BusEvent::Revocations(stored)),
            Err(error) => tracing::warn!(%error, "stored revocations cannot be read"),
        }
    }

    /// Leases a number that is free on both servers and uses it from here on.
    async fn number_anew(&self, bus: &RedisBus, also: Option<&RedisBus>) {
        let ids = &self.shared.setup.ids;
        let wanted = ids.worker_base + rand::random_range(0..ids.worker_count);
        let number = bus.acquire(also, ids, wanted).await;
        let left = self.shared.worker.swap(number, Ordering::AcqRel);
        if left != number {
            tracing::info!(
                worker = number,
                before = left,
                "the worker number was not free on both servers: another one is used"
            );
            for bus in std::iter::once(bus).chain(also) {
                bus.give_up(left).await;
            }
        }
    }

    /// Leases the number on the server before when that was not possible at first, and takes another when it says that another instance has it.
    async fn look_after_number(&self) {
        let (current, previous) = self.shared.both();
        let Some(previous) = previous else { return };
        let number = self.shared.worker();
        let looking = async {
            let is_held = previous.number() == Some(number) || !previous.is_up();
            if previous.is_number_anothers()
                || (!is_held && matches!(previous.hold(number).await, Ok(false)))
            {
                self.number_anew(&current, Some(&previous)).await;
            }
        };
        if tokio::time::timeout(open_limit(&self.shared.fixed), looking)
            .await
            .is_err()
        {
            tracing::warn!("no worker number could be leased on both servers yet");
        }
    }
}

fn superseded() -> BusError {
    BusError::Unavailable("the live settings have changed again".into())
}

/// Longest time that opening a server that has answered may take.
fn open_limit(config: &config::Redis) -> Duration {
    Duration::from_millis(10 * config.command_timeout_ms.max(1))
}

async fn write_known(
    bus: &RedisBus,
    known: impl IntoIterator<Item = Revocation>,
) -> Result<(), BusError> {
    let mut writes = stream::iter(known)
        .map(|revocation| async move { bus.store_revocation(&revocation).await })
        .buffer_unordered(WRITES_AT_ONCE);
    while let Some(written) = writes.next().await {
        match written {
            // As many as are ever kept are there.
            Ok(()) | Err(BusError::Full) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

//! The task that follows the live settings from one Redis to another.
//!
//! The new server is opened while the current one serves: connected, everything subscribed and confirmed, a worker number leased.
//! Then it becomes the current one at once. What cannot be reached is tried again with growing delay while the current server serves on.
//! Input: the live settings. Output: the [`Route`](super::Route), and commands to [`super::stream`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::stream::StreamCommand;
use super::{Bridge, BridgeCore, BusEvent, Server};
use crate::bus::pubsub::{self, Connecting, PubSubBus};
use crate::bus::{Bus as _, BusError};
use crate::config::{self, Live, RedisLocation};
use crate::dispatch::ResyncReason;
use crate::metrics::Metrics;

/// How often the worker number is checked.
const NUMBER_CHECK: Duration = Duration::from_secs(1);

/// What the live settings want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) location: RedisLocation,
    pub(super) previous: Option<RedisLocation>,
}

/// Returns the current server that the settings want.
pub(super) fn wanted_location(live: &Live, fixed: &config::Redis) -> RedisLocation {
    live.redis
        .clone()
        .unwrap_or_else(|| RedisLocation::of(fixed))
}

impl Wanted {
    pub(super) fn of(live: &Live, fixed: &config::Redis) -> Self {
        Self {
            location: wanted_location(live, fixed),
            previous: live.redis_previous.clone(),
        }
    }

    /// Whether this server stays, as the previous one.
    pub(super) fn keeps(&self, server: &Server) -> bool {
        self.previous
            .as_ref()
            .is_some_and(|location| location.is_same_server(&server.location))
            && !server.location.is_same_server(&self.location)
    }
}

/// How a switch was done, as the metric counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switched {
    /// To another server.
    Server,
    /// To another login or name of the same server.
    Login,
}

impl Switched {
    fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Login => "login",
        }
    }
}

/// The state of the task.
pub(super) struct Switcher {
    pub(super) core: Arc<BridgeCore>,
    pub(super) live: watch::Receiver<Arc<Live>>,
    pub(super) commands: mpsc::UnboundedSender<StreamCommand>,
    /// The id of the server that was opened last.
    pub(super) last_server: u64,
}

impl Switcher {
    pub(super) fn new(
        core: Arc<BridgeCore>,
        live: watch::Receiver<Arc<Live>>,
        commands: mpsc::UnboundedSender<StreamCommand>,
    ) -> Self {
        let last_server = core.current().id;
        Self {
            core,
            live,
            commands,
            last_server,
        }
    }

    /// Leases a worker number at a server that is connected, and opens the previous server if that does not take long.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] when the bus is closed meanwhile.
    pub(super) async fn start(&mut self) -> Result<(), BusError> {
        let (core, ids) = (self.core.clone(), self.core.setup.ids.clone());
        let current = core.current().bus;
        let wanted = Wanted::of(&self.live.borrow(), &core.fixed);
        // Instances that use the previous server alone have the first numbers of all.
        let first = if wanted.previous.is_some() {
            ids.worker_base + rand::random_range(0..ids.worker_count)
        } else {
            ids.worker_base
        };
        let started = async {
            let worker = current.lease_worker(None, &ids, first).await;
            core.worker.store(worker, Ordering::Release);
            current.announce().await;
            if let Some(location) = &wanted.previous {
                core.progress.lock().previous = Some(location.nodes.clone());
                if let Err(error) = self.open_previous(location).await {
                    tracing::warn!(%error, nodes = ?location.nodes, "connecting to the previous Redis failed; trying again");
                }
            }
        };
        tokio::select! {
            () = started => Ok(()),
            () = core.closing.cancelled() => Err(BusError::Unavailable("shut down before Redis was reached".into())),
        }
    }

    /// Follows the live settings until the bus is closed.
    pub(super) async fn follow(&mut self) {
        let core = self.core.clone();
        let mut backoff = pubsub::reconnect_backoff();
        loop {
            let wanted = Wanted::of(&self.live.borrow_and_update(), &core.fixed);
            let settled = tokio::select! {
                settled = self.settle(&wanted) => settled,
                () = core.closing.cancelled() => return,
            };
            let retry_at = if settled {
                backoff.reset();
                None
            } else {
                Some(Instant::now() + backoff.next_delay())
            };
            loop {
                tokio::select! {
                    changed = self.live.changed() => {
                        if changed.is_err() {
                            return core.closing.cancelled().await;
                        }
                        backoff.reset();
                        break;
                    }
                    () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => break,
                    () = core.previous_lost.notified() => break,
                    () = tokio::time::sleep(NUMBER_CHECK) => tokio::select! {
                        () = self.keep_worker() => {}
                        () = core.closing.cancelled() => return,
                    },
                    () = core.closing.cancelled() => return,
                }
            }
        }
    }

    /// Brings the route to what is wanted; `false` when that has to be tried again.
    async fn settle(&mut self, wanted: &Wanted) -> bool {
        let core = self.core.clone();
        if core.current().location == wanted.location {
            core.progress.lock().error = None;
            return self.settle_previous(wanted).await;
        }
        let switched = self.switch(wanted).await;
        core.progress.lock().error = switched.as_ref().err().map(ToString::to_string);
        let kind = match &switched {
            Ok(switched) => switched.as_str(),
            Err(error) => {
                tracing::warn!(%error, nodes = ?wanted.location.nodes, "Redis switch failed; staying on the current server and trying again");
                "failed"
            }
        };
        core.setup
            .metrics
            .bus_switches
            .get_or_create(&Metrics::kind(kind))
            .inc();
        switched.is_ok() && self.settle_previous(wanted).await
    }

    /// Switches to the server that is wanted.
    async fn switch(&mut self, wanted: &Wanted) -> Result<Switched, BusError> {
        let core = self.core.clone();
        let config = wanted.location.with_timings_of(&core.fixed);
        let current = core.current();
        if current.location.is_same_server(&wanted.location) {
            self.change_login(&current, &wanted.location, &config)
                .await?;
            return Ok(Switched::Login);
        }
        if let Some(previous) = core
            .previous()
            .filter(|previous| previous.location.is_same_server(&wanted.location))
        {
            if previous.location != wanted.location {
                previous.bus.log_in(&config).await?;
            }
            self.exchange(previous, &wanted.location).await?;
            return Ok(Switched::Server);
        }
        let mut newer = self.live.clone();
        let is_same = tokio::select! {
            is_same = pubsub::is_same_server(&current.bus, &config) => is_same?,
            Ok(()) = newer.changed() => return Err(superseded()),
        };
        if is_same && current.location.channel_prefix == wanted.location.channel_prefix {
            self.change_login(&current, &wanted.location, &config)
                .await?;
            return Ok(Switched::Login);
        }
        self.switch_to_new(wanted, &config, current).await?;
        Ok(Switched::Server)
    }

    /// Uses another login or another name of the same server.
    async fn change_login(
        &self,
        current: &Server,
        location: &RedisLocation,
        config: &config::Redis,
    ) -> Result<(), BusError> {
        current.bus.log_in(config).await?;
        let mut route = self.core.route.lock();
        if route.current.id == current.id {
            route.current.location = location.clone();
        }
        tracing::info!(nodes = ?location.nodes, "Redis login changed");
        Ok(())
    }

    /// Lets the current and the previous server change places.
    async fn exchange(&self, previous: Server, location: &RedisLocation) -> Result<(), BusError> {
        let core = &self.core;
        if !previous.bus.is_subscribed() {
            return Err(BusError::Unavailable("subscriptions are down there".into()));
        }
        if !previous.bus.lease_number(core.worker()).await? {
            let current = core.current().bus;
            self.lease_new_worker(&previous.bus, Some(&current), None)
                .await;
        }
        let mut route = core.route.lock();
        let old = route.current.clone();
        let Some(bridge) = route.bridge.as_mut() else {
            return Err(BusError::Unavailable("its connection has ended".into()));
        };
        bridge.previous = old.clone();
        route.current = Server {
            location: location.clone(),
            ..previous
        };
        old.bus.show(false);
        route.current.bus.show(true);
        tracing::info!(nodes = ?location.nodes, previous = ?old.location.nodes, "switched to the previous Redis");
        Ok(())
    }

    /// Opens the server that is wanted while the current one serves, and makes it the current one.
    async fn switch_to_new(
        &mut self,
        wanted: &Wanted,
        config: &config::Redis,
        old: Server,
    ) -> Result<(), BusError> {
        let also = wanted
            .keeps(&old)
            .then(|| old.bus.clone())
            .filter(|bus| bus.is_subscribed());
        let (connecting, number) = self.open_new(config, also.as_deref()).await?;
        let server = self.attach(connecting, &wanted.location);
        self.use_worker(number, also.as_deref()).await;
        let dropped = self.make_current(&server, &old, wanted);
        tracing::info!(nodes = ?server.location.nodes, previous = ?old.location.nodes, "switched to another Redis");
        for server in dropped {
            self.leave(server).await;
        }
        Ok(())
    }

    /// Connects to a new server and leases a worker number there, and on `also`. Returns it ready to become the current one.
    async fn open_new(
        &self,
        config: &config::Redis,
        also: Option<&PubSubBus>,
    ) -> Result<(Connecting, u16), BusError> {
        let core = &self.core;
        let mut connecting = self.connect(config)?;
        let bus = connecting.bus.clone();
        let opening = async {
            connecting.connected().await?;
            let number = bus.lease_worker(also, &core.setup.ids, core.worker()).await;
            bus.announce().await;
            Ok(number)
        };
        match self.limit_opening(config, opening).await {
            Ok(number) => Ok((connecting, number)),
            Err(error) => {
                core.route.lock().opening = None;
                bus.close().await;
                if let Some(also) = also {
                    // Another number may have been leased there meanwhile.
                    let _ = also.lease_number(core.worker()).await;
                }
                Err(error)
            }
        }
    }

    /// Changes the route at once; returns the servers that have no place in it any more.
    fn make_current(&self, server: &Server, old: &Server, wanted: &Wanted) -> Vec<Server> {
        let mut route = self.core.route.lock();
        if old.bus.has_lost() {
            server.bus.note_loss();
        }
        server.bus.show(true);
        old.bus.show(false);
        route.opening = None;
        let previous = route.detach_bridge();
        let current = std::mem::replace(&mut route.current, server.clone());
        let (kept, dropped): (Vec<Server>, Vec<Server>) = [Some(current), previous]
            .into_iter()
            .flatten()
            .partition(|server| wanted.keeps(server));
        if let Some(kept) = kept.into_iter().next() {
            let complete = kept.id;
            route.attach_bridge(kept, complete);
        }
        dropped
    }

    /// Opens, keeps or leaves the previous server; `false` when that has to be tried again.
    async fn settle_previous(&mut self, wanted: &Wanted) -> bool {
        let core = self.core.clone();
        core.progress.lock().previous = wanted
            .previous
            .as_ref()
            .map(|location| location.nodes.clone());
        let superfluous = {
            let mut route = core.route.lock();
            if route.previous().is_some_and(|server| !wanted.keeps(server)) {
                route.detach_bridge()
            } else {
                None
            }
        };
        if let Some(server) = superfluous {
            self.leave(server.clone()).await;
            tracing::info!(nodes = ?server.location.nodes, "left the previous Redis");
        }
        let done = match (&wanted.previous, core.previous()) {
            (None, _) => Ok(()),
            (Some(location), Some(server)) if server.location == *location => Ok(()),
            (Some(location), Some(server)) => server
                .bus
                .log_in(&location.with_timings_of(&core.fixed))
                .await
                .map(|()| {
                    if let Some(Bridge { previous, .. }) = &mut core.route.lock().bridge {
                        previous.location = location.clone();
                    }
                }),
            (Some(location), None) if location.is_same_server(&wanted.location) => Ok(()),
            (Some(location), None) => self
                .open_previous(location)
                .await
                .map(|()| self.hand_out(BusEvent::Resync(ResyncReason::BusMoved))),
        };
        core.setup
            .metrics
            .bus_bridged
            .set(i64::from(core.previous().is_some()));
        if let (Err(error), Some(location)) = (&done, &wanted.previous) {
            tracing::warn!(%error, nodes = ?location.nodes, "connecting to the previous Redis failed; trying again");
        }
        done.is_ok()
    }
}

pub(super) fn superseded() -> BusError {
    BusError::Unavailable("the live settings have changed again".into())
}

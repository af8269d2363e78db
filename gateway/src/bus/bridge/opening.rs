//! Connects to a server while another one serves, has the stream receive from it, and leaves a server without a gap.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::stream::StreamCommand;
use super::switcher::{Switcher, Wanted, superseded};
use super::{BusEvent, Server};
use crate::bus::pubsub::{self, Connecting, Events, Setup};
use crate::bus::{Bus as _, BusError};
use crate::config::{self, Live, RedisLocation};
use crate::dispatch::ResyncReason;

/// A server that is connected for the first time.
pub(super) struct First {
    pub(super) server: Server,
    pub(super) events: Events,
}

/// Connects to the server that the live settings name, however long it takes and however they change meanwhile.
///
/// # Errors
/// [`BusError`] when the bus is closed meanwhile, or for settings that can never work.
pub(super) async fn open_first(
    setup: &Setup,
    fixed: &config::Redis,
    mut live: watch::Receiver<Arc<Live>>,
) -> Result<(First, watch::Receiver<Arc<Live>>), BusError> {
    loop {
        let location = Wanted::of(&live.borrow_and_update(), fixed).location;
        let mut connecting = pubsub::connect(&location.with_timings_of(fixed), setup)?;
        let connected = loop {
            tokio::select! {
                connected = connecting.connected() => break Some(connected),
                Ok(()) = live.changed() => {
                    if Wanted::of(&live.borrow_and_update(), fixed).location != location {
                        break None;
                    }
                }
            }
        };
        let Connecting { bus, events, .. } = connecting;
        match connected {
            Some(Ok(())) => {
                let server = Server {
                    id: 1,
                    location,
                    bus,
                };
                return Ok((First { server, events }, live));
            }
            Some(Err(error)) => {
                bus.close().await;
                return Err(error);
            }
            None => bus.close().await,
        }
    }
}

impl Switcher {
    /// Opens the previous server while the current one serves.
    pub(super) async fn open_previous(&mut self, location: &RedisLocation) -> Result<(), BusError> {
        let core = self.core.clone();
        let config = location.with_timings_of(&core.fixed);
        let current = core.current();
        let mut newer = self.live.clone();
        let is_same = tokio::select! {
            is_same = pubsub::is_same_server(&current.bus, &config) => is_same?,
            Ok(()) = newer.changed() => return Err(superseded()),
        };
        if is_same && location.channel_prefix == current.location.channel_prefix {
            return Err(BusError::Misconfigured(
                "redis_previous is the current server under another name".into(),
            ));
        }
        let mut connecting = self.connect(&config)?;
        let bus = connecting.bus.clone();
        let opening = async {
            connecting.connected().await?;
            if !bus.lease_number(core.worker()).await? {
                self.lease_new_worker(&current.bus, Some(&bus), None).await;
            }
            bus.announce().await;
            Ok(())
        };
        if let Err(error) = self.limit_opening(&config, opening).await {
            core.route.lock().opening = None;
            bus.close().await;
            return Err(error);
        }
        let server = self.attach(connecting, location);
        {
            let mut route = core.route.lock();
            route.opening = None;
            let complete = route.current.id;
            route.attach_bridge(server.clone(), complete);
        }
        core.setup.metrics.bus_bridged.set(1);
        tracing::info!(nodes = ?location.nodes, "publishing to and receiving from the previous Redis as well");
        Ok(())
    }

    /// Opens a server that has answered: for a limited time, and only while the live settings stay as they are.
    pub(super) async fn limit_opening<T>(
        &self,
        config: &config::Redis,
        opening: impl Future<Output = Result<T, BusError>>,
    ) -> Result<T, BusError> {
        let mut newer = self.live.clone();
        tokio::select! {
            opened = opening => opened,
            () = tokio::time::sleep(open_limit(config)) => Err(BusError::Unavailable("opening it took too long".into())),
            Ok(()) = newer.changed() => Err(superseded()),
        }
    }

    /// Begins to connect to a server, and subscribes there to what is wanted.
    pub(super) fn connect(&self, config: &config::Redis) -> Result<Connecting, BusError> {
        let connecting = pubsub::connect(config, &self.core.setup)?;
        connecting.bus.show(false);
        let mut route = self.core.route.lock();
        drop(connecting.bus.subscribe(route.current.bus.wanted()));
        route.opening = Some(connecting.bus.clone());
        Ok(connecting)
    }

    /// Has the stream receive from a server.
    pub(super) fn attach(&mut self, connecting: Connecting, location: &RedisLocation) -> Server {
        self.last_server += 1;
        let Connecting { bus, events, .. } = connecting;
        let _ = self
            .commands
            .send(StreamCommand::Attach(self.last_server, events));
        Server {
            id: self.last_server,
            location: location.clone(),
            bus,
        }
    }

    /// Leaves a server that is in the route no longer, once what was received there is handed out.
    pub(super) async fn leave(&self, server: Server) {
        if !server.bus.is_subscribed() || !server.bus.handed_out().await {
            self.hand_out(BusEvent::Resync(ResyncReason::BusMoved));
        }
        server.bus.close().await;
    }

    pub(super) fn hand_out(&self, event: BusEvent) {
        let _ = self.commands.send(StreamCommand::HandOut(event));
    }
}

/// Longest time that opening a server that has answered may take.
pub(super) fn open_limit(config: &config::Redis) -> Duration {
    Duration::from_millis(10 * config.command_timeout_ms.max(1))
}

//! What the [switch](crate::bus::bridge) does with a bus beside the calls of every bus: numbered dispatches, leases of a certain number, logging in
//! otherwise in place, and whether two places are one server.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use redis::{PushInfo, PushKind};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::connect::{Prefer, unavailable};
use super::lease::{self, Instance};
use super::{RedisBus, Shared, ask, connector, publisher};
use crate::bus::wire::{self, Bridged, Names};
use crate::bus::{Answers, Ask, BusError, Interest};
use crate::config;
use crate::dispatch::Dispatch;

/// How long a probe waits for what the other server would hand to it at once.
const PROBE_WAIT: Duration = Duration::from_millis(300);

/// Longest wait for what was heard to be handed out, and how often it is looked at.
const HANDING_WAIT: Duration = Duration::from_secs(2);
const HANDING_LOOK: Duration = Duration::from_millis(5);

impl RedisBus {
    /// As [`Bus::publish`](crate::bus::Bus::publish), with what it carries where it goes to two servers.
    pub(in crate::bus) fn publish_numbered(
        &self,
        dispatch: &Dispatch,
        bridged: Option<Bridged>,
    ) -> BoxFuture<'static, Result<(), BusError>> {
        let channel = self.shared.names.channel(&dispatch.destination);
        let payload = wire::encode(&self.shared.instance, dispatch, bridged);
        match self.shared.publisher.dispatch(channel, payload) {
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

    /// Waits, not for ever, until what was heard is handed out; `false` when it is not.
    pub(in crate::bus) async fn handed_out(&self) -> bool {
        let all = async {
            while self.shared.intake.waiting() > 0 {
                tokio::time::sleep(HANDING_LOOK).await;
            }
        };
        tokio::time::timeout(HANDING_WAIT, all).await.is_ok()
    }

    /// Whether everything wanted is subscribed.
    pub(in crate::bus) fn is_up(&self) -> bool {
        self.shared.interests.lock().is_up()
    }

    /// Everything that is wanted, as often as it is.
    pub(in crate::bus) fn wanted(&self) -> Vec<Interest> {
        self.shared.interests.lock().wanted()
    }

    /// Whether dispatches were lost of which the others have not been told.
    pub(in crate::bus) fn has_lost(&self) -> bool {
        self.shared.publisher.has_lost()
    }

    /// Has the others told that dispatches of this instance were lost.
    pub(in crate::bus) fn note_loss(&self) {
        self.shared.publisher.note_loss();
    }

    /// Whether figures are of this bus.
    pub(in crate::bus) fn show(&self, shown: bool) {
        self.shared.aside.store(!shown, Ordering::Release);
        if shown {
            self.shared
                .metrics
                .bus_subscriptions
                .set(self.shared.interests.lock().len() as i64);
        }
    }

    /// Leases the wanted worker number here and on `also`, or another that is free on both; see [`lease::acquire`].
    pub(in crate::bus) async fn acquire(
        &self,
        also: Option<&Self>,
        ids: &config::Ids,
        wanted: u16,
    ) -> u16 {
        lease::acquire(&self.shared, also.map(|bus| &*bus.shared), ids, wanted).await
    }

    /// Leases this very number beside the one held so far; `false` when it is another's.
    pub(in crate::bus) async fn hold(&self, worker: u16) -> Result<bool, BusError> {
        lease::hold(&self.shared, worker).await
    }

    /// Gives a number up that is no longer in use.
    pub(in crate::bus) async fn give_up(&self, worker: u16) {
        if let Err(error) = lease::give_up(&self.shared, worker).await {
            tracing::warn!(%error, worker, "a worker lease was not given up; it ends by itself");
        }
    }

    /// The number that is leased here.
    pub(in crate::bus) fn number(&self) -> Option<u16> {
        self.shared.lease().map(|lease| lease.worker)
    }

    /// Whether another instance holds that number.
    pub(in crate::bus) fn is_number_anothers(&self) -> bool {
        self.shared.lease().is_some_and(|lease| lease.is_anothers())
    }

    /// Lists this instance among the live ones.
    pub(in crate::bus) async fn beat(&self) {
        if let Err(error) = lease::beat(&self.shared).await {
            tracing::warn!(%error, "not listed as a live instance yet");
        }
    }

    /// The other live instances.
    pub(in crate::bus) async fn others(&self) -> Result<Vec<Instance>, BusError> {
        lease::others(&self.shared).await
    }

    /// Asks these.
    pub(in crate::bus) async fn ask_these(
        &self,
        question: &Ask,
        others: Vec<Instance>,
    ) -> Result<Answers, BusError> {
        ask::ask(&self.shared, question, others).await
    }

    /// Logs in otherwise to the same server: with other credentials or authorities, or by another of its names. What is tried first is a connection
    /// of its own; then new connections are made beside the old ones, and nothing is missed. Ends when the one that publishes is there.
    ///
    /// # Errors
    /// [`BusError`] when the new login does not work; the old one stays in use.
    pub(in crate::bus) async fn log_in(&self, config: &config::Redis) -> Result<(), BusError> {
        let connector = connector(config)?;
        connector
            .link(&Prefer::Any, NO_PUSH)
            .await
            .map_err(|error| unavailable(&error))?;
        let mut connected = self.shared.connected.subscribe();
        let before = *connected.borrow_and_update();
        let limit = 4 * connector.timeout();
        *self.shared.connector.lock() = Arc::new(connector);
        self.shared.login.send_modify(|count| *count += 1);
        match tokio::time::timeout(limit, connected.wait_for(|count| *count > before)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(BusError::Unavailable(
                "no connection could be made with the changed login yet".into(),
            )),
        }
    }
}

/// Asks for new connections whenever the content of the password file changes, until `closing`.
pub(super) async fn follow_password(shared: Arc<Shared>, closing: CancellationToken) {
    let mut login = shared.login.subscribe();
    loop {
        login.borrow_and_update();
        let path = shared.connector().password_path().map(ToOwned::to_owned);
        let watching = closing.child_token();
        let mut told =
            path.map(|path| crate::files::watch(path, shared.timing.watch, watching.clone()));
        loop {
            tokio::select! {
                true = changed(&mut told) => {
                    shared.login.send_modify(|count| *count += 1);
                    login.borrow_and_update();
                }
                _ = login.changed() => break,
                () = closing.cancelled() => return,
            }
        }
        watching.cancel();
    }
}

/// Ends at a change; never where nothing is watched.
async fn changed(told: &mut Option<watch::Receiver<String>>) -> bool {
    match told {
        Some(told) => told.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// Connects to a place, and looks whether what `bus` publishes is heard there: then it is the same server under another name.
///
/// # Errors
/// [`BusError`] when it cannot be connected to.
pub(in crate::bus) async fn probe(
    bus: &RedisBus,
    config: &config::Redis,
) -> Result<bool, BusError> {
    let connector = connector(config)?;
    let token = format!("{:032x}", rand::random::<u128>());
    let heard = Arc::new(Notify::new());
    let push = {
        let heard = heard.clone();
        move |info: PushInfo| -> Result<(), ()> {
            if info.kind == PushKind::Message {
                heard.notify_one();
            }
            Ok(())
        }
    };
    let mut link = connector
        .link(&Prefer::Any, Some(push))
        .await
        .map_err(|error| unavailable(&error))?;
    let names = Names::new(&config.channel_prefix, &token);
    link.connection
        .subscribe(&names.ping)
        .await
        .map_err(|error| unavailable(&error))?;
    let is_same_server = match bus.shared.publisher.signal(names.ping, b"probe".to_vec()) {
        Ok(published) => tokio::time::timeout(PROBE_WAIT, async {
            let _ = published.await;
            heard.notified().await;
        })
        .await
        .is_ok(),
        Err(_) => false,
    };
    Ok(is_same_server)
}

/// Removes from `others` those that are among `known`.
pub(in crate::bus) fn only_here(mut others: Vec<Instance>, known: &[Instance]) -> Vec<Instance> {
    let known: HashSet<&str> = known.iter().map(|instance| instance.id.as_str()).collect();
    others.retain(|instance| !known.contains(instance.id.as_str()));
    others
}

const NO_PUSH: Option<fn(PushInfo) -> Result<(), ()>> = None;

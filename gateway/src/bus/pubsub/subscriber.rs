//! The task of each [`Feed`] that subscribes: keeps a connection on which everything that [`Interests`] wants is confirmed, whatever happens to servers.
//!
//! A connection that breaks, or on which no self-ping comes back, is replaced; all is subscribed and confirmed on the new one before clients are
//! told to sync. After a changed login the new connection is made while the old one serves, and takes its place without a gap.
//! The connection of a segment leads to the master of its slot. When the slot moves, the server takes the subscriptions back unasked: then it is replaced, too.
//! Input: [`Interests`]. Output: [`Intake::receive`], called by the connections.
//!
//! [`Interests`]: crate::bus::interests::Interests
//! [`Intake::receive`]: super::intake::Intake::receive

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::RedisResult;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::connect::unavailable;
use super::feed::Feed;
use super::nodes::{Address, Prefer};
use super::subscription::Subscription;
use super::{PubSubCore, reconnect_backoff};
use crate::bus::Interest;
use crate::bus::interests::Waiter;
use crate::dispatch::ResyncReason;

/// Most interests in one command, each of two channels at most.
const CHUNK: usize = 256;

/// How many times the wait for a first ping doubles at most.
const MAX_STALL_DOUBLINGS: u32 = 5;

/// A connection that receives what it subscribed to.
struct Connection {
    subscription: Subscription,
    address: Address,
    generation: u64,
}

/// The state of the task.
pub(super) struct Subscriber {
    core: Arc<PubSubCore>,
    feed: Arc<Feed>,
    login: watch::Receiver<u64>,
    generation: u64,
    /// How many connections in a row were replaced because they stalled. Where the cause is elsewhere, each further one waits longer: otherwise
    /// clients would be told to sync without end.
    stalls: u32,
    /// Completed when everything is confirmed for the first time.
    ready: Option<oneshot::Sender<()>>,
}

impl Subscriber {
    pub(super) fn new(
        core: Arc<PubSubCore>,
        feed: Arc<Feed>,
        login: watch::Receiver<u64>,
        ready: oneshot::Sender<()>,
    ) -> Self {
        Self {
            core,
            feed,
            login,
            generation: 0,
            stalls: 0,
            ready: Some(ready),
        }
    }

    /// Receives until the future is dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = reconnect_backoff();
        let mut reason = ResyncReason::BusReconnected;
        loop {
            let made = async {
                let mut connection = self.connect(Prefer::Any).await?;
                self.feed.intake.switch_to(connection.generation);
                self.establish(&mut connection).await?;
                RedisResult::Ok(connection)
            };
            let connection = match made.await {
                Ok(connection) => connection,
                Err(error) => {
                    let wait = backoff.next_delay();
                    tracing::warn!(%error, segment = self.segment(), retry_ms = wait.as_millis() as u64, "subscribing to Redis failed; trying again");
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            self.feed.set_subscriber(Some(connection.address.clone()));
            // Whoever waits for the opening, or is told to sync, finds it counted.
            self.core.count_segments();
            match self.ready.take() {
                Some(ready) => {
                    self.feed.intake.start_receiving();
                    let _ = ready.send(());
                }
                None => self.feed.resync(reason),
            }
            self.core.ping_at_once.notify_one();
            let since = Instant::now();
            reason = self.serve(connection).await;
            self.feed.interests.lock().down();
            // Of questions and revocations nothing is missed by a segment.
            if self.feed.segment.is_none() {
                self.core.gaps.fetch_add(1, Ordering::AcqRel);
            }
            self.feed.set_subscriber(None);
            self.core.count_segments();
            // A server that takes connections and breaks them at once is left alone for a while.
            if since.elapsed() > self.core.timing.stalled_after {
                backoff.reset();
            }
            let wait = backoff.next_delay();
            tracing::warn!(
                reason = reason.as_str(),
                segment = self.segment(),
                retry_ms = wait.as_millis() as u64,
                "subscriber connection lost; reconnecting"
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// The number of the segment, for the log.
    fn segment(&self) -> Option<u64> {
        self.feed.segment.map(|segment| segment.number() as u64)
    }

    async fn connect(&mut self, prefer: Prefer) -> RedisResult<Connection> {
        self.generation += 1;
        let generation = self.generation;
        let node = self.feed.node(prefer);
        let (session, address) = self.core.connector().session(&node).await?;
        let intake = self.feed.intake.clone();
        let subscription = session.receive(self.feed.segment.is_some(), move |channel, payload| {
            intake.receive(generation, channel, payload);
        });
        Ok(Connection {
            subscription,
            address,
            generation,
        })
    }

    /// Subscribes to everything that is wanted. From its end on, [`Interests::add`](crate::bus::interests::Interests::add) waits for confirmation again.
    async fn establish(&self, connection: &mut Connection) -> RedisResult<()> {
        let began = Instant::now();
        connection
            .subscription
            .subscribe(&self.feed.own_channels())
            .await?;
        let (mut wanted, mut waiters) = self.feed.interests.lock().take_all();
        let mut count = 0;
        loop {
            count += wanted.len();
            let result = self.subscribe(connection, &wanted).await;
            notify(waiters, &result);
            result?;
            // What was added meanwhile belongs to the same gap.
            let mut interests = self.feed.interests.lock();
            (wanted, waiters) = interests.take();
            if wanted.is_empty() {
                interests.up();
                drop(interests);
                notify(waiters, &Ok(()));
                break;
            }
        }
        tracing::info!(
            subscriptions = count,
            segment = self.segment(),
            duration_ms = began.elapsed().as_millis() as u64,
            "subscribed to Redis"
        );
        Ok(())
    }

    /// Keeps subscriptions as wanted until the connection has to be replaced.
    async fn serve(&mut self, mut connection: Connection) -> ResyncReason {
        let mut stalled_after =
            self.core.timing.stalled_after * (1 << self.stalls.min(MAX_STALL_DOUBLINGS));
        let mut since = Instant::now();
        let mut handover_at: Option<Instant> = None;
        let mut backoff = reconnect_backoff();
        loop {
            let pinged = self.feed.intake.last_ping().0;
            if pinged > since && self.stalls > 0 {
                self.stalls = 0;
                stalled_after = self.core.timing.stalled_after;
            }
            let stalled_at = pinged.max(since) + stalled_after;
            let leave_at = self
                .feed
                .interests
                .lock()
                .next_leave(self.core.timing.linger);
            tokio::select! {
                biased;
                () = connection.subscription.gone() => return ResyncReason::BusReconnected,
                Ok(()) = self.login.changed() => handover_at = Some(Instant::now()),
                () = until(handover_at), if handover_at.is_some() => {
                    match self.hand_over(&connection).await {
                        Ok(new) => {
                            (connection, handover_at, backoff, since) = (new, None, reconnect_backoff(), Instant::now());
                        }
                        Err(error) => {
                            tracing::warn!(%error, "connecting to Redis with the changed login failed; the old subscriber connection stays in use");
                            handover_at = Some(Instant::now() + backoff.next_delay());
                        }
                    }
                }
                () = tokio::time::sleep_until(stalled_at) => {
                    let pinged = self.feed.intake.last_ping().0;
                    if pinged.max(since) + stalled_after <= Instant::now() {
                        self.stalls = if pinged > since { 1 } else { self.stalls + 1 };
                        return ResyncReason::BusStalled;
                    }
                }
                () = self.feed.interests_changed.notified() => {}
                () = until(leave_at), if leave_at.is_some() => {}
            }
            if let Err(error) = self.keep_up(&mut connection).await {
                tracing::warn!(%error, "subscribing to further channels failed; reconnecting");
                return ResyncReason::BusReconnected;
            }
        }
    }

    /// Subscribes to what has come and unsubscribes from what has been gone for a while.
    async fn keep_up(&self, connection: &mut Connection) -> RedisResult<()> {
        let (fresh, waiters) = self.feed.interests.lock().take();
        let result = self.subscribe(connection, &fresh).await;
        notify(waiters, &result);
        result?;
        let left = self
            .feed
            .interests
            .lock()
            .take_left(Instant::now(), self.core.timing.linger);
        for chunk in left.chunks(CHUNK) {
            let unneeded = self.unneeded_channels(chunk);
            if !unneeded.is_empty() {
                connection.subscription.unsubscribe(&unneeded).await?;
            }
        }
        self.count();
        Ok(())
    }

    /// Subscribes and marks as confirmed what the server has confirmed.
    async fn subscribe(
        &self,
        connection: &mut Connection,
        interests: &[Interest],
    ) -> RedisResult<()> {
        for chunk in interests.chunks(CHUNK) {
            // Ends when the server has sent its confirmation of each channel.
            connection
                .subscription
                .subscribe(&self.channels(chunk))
                .await?;
            self.feed.interests.lock().confirm(chunk);
        }
        self.count();
        Ok(())
    }

    fn count(&self) {
        if self.core.is_shown() && self.feed.segment.is_none() {
            self.core
                .metrics
                .bus_subscriptions
                .set(self.feed.interests.lock().len() as i64);
        }
    }

    fn channels(&self, interests: &[Interest]) -> Vec<String> {
        interests
            .iter()
            .flat_map(|interest| self.feed.names.subscribed_for(interest))
            .collect()
    }

    /// Returns the channels of what is left, but for those that something else still needs: a client and a room of its id share one.
    fn unneeded_channels(&self, left: &[Interest]) -> Vec<String> {
        let interests = self.feed.interests.lock();
        let is_wanted = |channel: &String| {
            let Some(Interest::Room(name)) = self.feed.names.destination(channel) else {
                return false;
            };
            name.parse()
                .is_ok_and(|id| interests.is_wanted(&Interest::Client(id)))
                || interests.is_wanted(&Interest::Room(name))
        };
        self.channels(left)
            .into_iter()
            .filter(|channel| !is_wanted(channel))
            .collect()
    }

    /// Makes a connection while `old` serves, subscribes to all on it, and hands over at a marker that both receive.
    async fn hand_over(&mut self, old: &Connection) -> RedisResult<Connection> {
        let mut connection = self.connect(Prefer::Same(old.address.clone())).await?;
        connection
            .subscription
            .subscribe(&self.feed.own_channels())
            .await?;
        let (wanted, mut waiters) = self.feed.interests.lock().take_all();
        let subscribed = self.subscribe(&mut connection, &wanted).await;
        if subscribed.is_err() {
            // The old connection has not subscribed to what was new among them: replacing it is the simplest repair.
            old.subscription.give_up();
            notify(std::mem::take(&mut waiters), &subscribed);
        }
        subscribed?;
        let marker = format!("handover-{:016x}", rand::random::<u64>()).into_bytes();
        self.feed
            .intake
            .begin_handover(old.generation, connection.generation, marker.clone());
        let _ = self
            .feed
            .publisher
            .signal(self.feed.names.ping.clone(), marker);
        let in_time = tokio::time::timeout(
            self.core.connector().timeout(),
            self.feed.intake.handed_over(),
        )
        .await
        .is_ok();
        if !in_time {
            self.feed.intake.force_handover();
        }
        // What is new among them is received from here on: before the marker only the old connection was listened to.
        notify(waiters, &Ok(()));
        // Two nodes do not receive the messages of other nodes in the same order: some may have come before the marker on one and after it on the other.
        if !in_time || connection.address != old.address {
            self.feed.resync(ResyncReason::BusReconnected);
        }
        self.feed.set_subscriber(Some(connection.address.clone()));
        tracing::info!(
            segment = self.segment(),
            "subscriber connection with the changed login is in use"
        );
        Ok(connection)
    }
}

fn notify(waiters: Vec<Waiter>, result: &RedisResult<()>) {
    for waiter in waiters {
        let _ = waiter.send(result.as_ref().map_err(unavailable).copied());
    }
}

async fn until(at: Option<Instant>) {
    tokio::time::sleep_until(at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)))
        .await;
}

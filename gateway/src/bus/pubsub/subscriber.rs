//! The one task that subscribes: keeps a connection on which everything that [`Interests`] wants is confirmed, whatever happens to servers.
//!
//! A connection that breaks, or on which no self-ping comes back, is replaced; all is subscribed and confirmed on the new one before clients are
//! told to sync. A changed password makes the new connection beside the old one and hands over without a gap.
//! Input: [`Interests`]. Output: [`Intake::heard`], called by the connections.
//!
//! [`Interests`]: crate::bus::interests::Interests
//! [`Intake::heard`]: super::intake::Intake::heard

use std::sync::Arc;
use std::time::Duration;

use redis::{PushInfo, PushKind, RedisResult};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::connect::{Link, Prefer, unavailable};
use super::publisher::Backoff;
use crate::bus::Interest;
use crate::bus::interests::Waiter;
use crate::dispatch::ResyncReason;

/// Most interests in one command, each of two channels at most.
const CHUNK: usize = 256;

/// How often the wait for a first ping doubles.
const MAX_DEAF_DOUBLINGS: u32 = 5;

/// A connection that hears.
struct Ear {
    link: Link,
    generation: u64,
    /// Cancelled when the connection is gone.
    gone: CancellationToken,
}

/// The task's state.
pub(super) struct Subscriber {
    shared: Arc<Shared>,
    credentials: watch::Receiver<u64>,
    generation: u64,
    /// How many connections in a row were replaced for deafness: when the cause is elsewhere, each further one waits longer, or clients would be
    /// told to sync without end.
    deaf: u32,
    /// Told when everything is confirmed for the first time.
    ready: Option<oneshot::Sender<()>>,
}

impl Subscriber {
    pub(super) fn new(
        shared: Arc<Shared>,
        credentials: watch::Receiver<u64>,
        ready: oneshot::Sender<()>,
    ) -> Self {
        Self {
            shared,
            credentials,
            generation: 0,
            deaf: 0,
            ready: Some(ready),
        }
    }

    /// Hears until the future is dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut reason = ResyncReason::BusReconnected;
        loop {
            let made = async {
                let mut ear = self.connect(&Prefer::Any).await?;
                self.shared.intake.listen_to(ear.generation);
                self.establish(&mut ear).await?;
                RedisResult::Ok(ear)
            };
            let ear = match made.await {
                Ok(ear) => ear,
                Err(error) => {
                    let wait = backoff.next();
                    tracing::warn!(%error, retry_ms = wait.as_millis() as u64, "Redis cannot be subscribed to");
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            self.shared.set_subscriber(Some(ear.link.address.clone()));
            match self.ready.take() {
                Some(ready) => {
                    self.shared.intake.start_hearing();
                    let _ = ready.send(());
                }
                None => self.shared.intake.resync(reason),
            }
            self.shared.ping_at_once.notify_one();
            let since = Instant::now();
            reason = self.serve(ear).await;
            self.shared.interests.lock().down();
            self.shared.set_subscriber(None);
            // A server that takes connections and breaks them at once is not asked again at once.
            if since.elapsed() > self.shared.timing.deaf_after {
                backoff = Backoff::default();
            }
            let wait = backoff.next();
            tracing::warn!(
                reason = reason.as_str(),
                retry_ms = wait.as_millis() as u64,
                "the subscriber connection is replaced"
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn connect(&mut self, prefer: &Prefer) -> RedisResult<Ear> {
        self.generation += 1;
        let (generation, gone) = (self.generation, CancellationToken::new());
        let push = {
            let (intake, gone) = (self.shared.intake.clone(), gone.clone());
            move |info: PushInfo| -> Result<(), ()> {
                if info.kind == PushKind::Disconnection {
                    gone.cancel();
                } else {
                    intake.heard(generation, info);
                }
                Ok(())
            }
        };
        let link = self.shared.connector().link(prefer, Some(push)).await?;
        Ok(Ear {
            link,
            generation,
            gone,
        })
    }

    /// Subscribes to everything that is wanted; from its end on, hearing waits for confirmation again.
    async fn establish(&self, ear: &mut Ear) -> RedisResult<()> {
        let began = Instant::now();
        ear.link
            .connection
            .subscribe(self.shared.own_channels())
            .await?;
        let (mut wanted, mut waiters) = self.shared.interests.lock().take_all();
        let mut count = 0;
        loop {
            count += wanted.len();
            let result = self.subscribe(ear, &wanted).await;
            tell(waiters, &result);
            result?;
            // What was added meanwhile belongs to the same gap.
            let mut interests = self.shared.interests.lock();
            (wanted, waiters) = interests.take();
            if wanted.is_empty() {
                interests.up();
                drop(interests);
                tell(waiters, &Ok(()));
                break;
            }
        }
        tracing::info!(
            subscriptions = count,
            duration_ms = began.elapsed().as_millis() as u64,
            "subscribed to Redis"
        );
        Ok(())
    }

    /// Keeps subscriptions as wanted until the connection has to be replaced.
    async fn serve(&mut self, mut ear: Ear) -> ResyncReason {
        let mut deaf_after =
            self.shared.timing.deaf_after * (1 << self.deaf.min(MAX_DEAF_DOUBLINGS));
        let mut since = Instant::now();
        let mut hand_over_at: Option<Instant> = None;
        let mut backoff = Backoff::default();
        loop {
            let pinged = self.shared.intake.pinged().0;
            if pinged > since && self.deaf > 0 {
                self.deaf = 0;
                deaf_after = self.shared.timing.deaf_after;
            }
            let deaf_at = pinged.max(since) + deaf_after;
            let leave_at = self
                .shared
                .interests
                .lock()
                .next_leave(self.shared.timing.linger);
            tokio::select! {
                biased;
                () = ear.gone.cancelled() => return ResyncReason::BusReconnected,
                Ok(()) = self.credentials.changed() => hand_over_at = Some(Instant::now()),
                () = until(hand_over_at), if hand_over_at.is_some() => {
                    match self.hand_over(&ear).await {
                        Ok(new) => {
                            (ear, hand_over_at, backoff, since) = (new, None, Backoff::default(), Instant::now());
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a connection with the changed password could not be made; the old one is kept");
                            hand_over_at = Some(Instant::now() + backoff.next());
                        }
                    }
                }
                () = tokio::time::sleep_until(deaf_at) => {
                    let pinged = self.shared.intake.pinged().0;
                    if pinged.max(since) + deaf_after <= Instant::now() {
                        self.deaf = if pinged > since { 1 } else { self.deaf + 1 };
                        return ResyncReason::BusStalled;
                    }
                }
                () = self.shared.interests_changed.notified() => {}
                () = until(leave_at), if leave_at.is_some() => {}
            }
            if let Err(error) = self.keep_up(&mut ear).await {
                tracing::warn!(%error, "subscribing failed");
                return ResyncReason::BusReconnected;
            }
        }
    }

    /// Subscribes to what has come and unsubscribes from what has been gone for a while.
    async fn keep_up(&self, ear: &mut Ear) -> RedisResult<()> {
        let (fresh, waiters) = self.shared.interests.lock().take();
        let result = self.subscribe(ear, &fresh).await;
        tell(waiters, &result);
        result?;
        let left = self
            .shared
            .interests
            .lock()
            .take_left(Instant::now(), self.shared.timing.linger);
        for chunk in left.chunks(CHUNK) {
            let silent = self.silent(chunk);
            if !silent.is_empty() {
                ear.link.connection.unsubscribe(silent).await?;
            }
        }
        self.count();
        Ok(())
    }

    /// Subscribes and marks as confirmed what the server has confirmed.
    async fn subscribe(&self, ear: &mut Ear, interests: &[Interest]) -> RedisResult<()> {
        for chunk in interests.chunks(CHUNK) {
            // Ends when the server has sent its confirmation of each channel.
            ear.link.connection.subscribe(self.channels(chunk)).await?;
            self.shared.interests.lock().confirm(chunk);
        }
        self.count();
        Ok(())
    }

    fn count(&self) {
        if self.shared.is_shown() {
            self.shared
                .metrics
                .bus_subscriptions
                .set(self.shared.interests.lock().len() as i64);
        }
    }

    fn channels(&self, interests: &[Interest]) -> Vec<String> {
        interests
            .iter()
            .flat_map(|interest| self.shared.names.heard_for(interest))
            .collect()
    }

    /// The channels of what is left, but for those that something else is still heard for: a client and a room of its id share one.
    fn silent(&self, left: &[Interest]) -> Vec<String> {
        let interests = self.shared.interests.lock();
        let is_heard = |channel: &String| {
            let Some(Interest::Room(name)) = self.shared.names.destination(channel) else {
                return false;
            };
            name.parse()
                .is_ok_and(|id| interests.is_wanted(&Interest::Client(id)))
                || interests.is_wanted(&Interest::Room(name))
        };
        self.channels(left)
            .into_iter()
            .filter(|channel| !is_heard(channel))
            .collect()
    }

    /// Makes a connection beside `old`, subscribes all on it, and goes over at a marker that both hear.
    async fn hand_over(&mut self, old: &Ear) -> RedisResult<Ear> {
        let mut ear = self
            .connect(&Prefer::Same(old.link.address.clone()))
            .await?;
        ear.link
            .connection
            .subscribe(self.shared.own_channels())
            .await?;
        let (wanted, waiters) = self.shared.interests.lock().take_all();
        let subscribed = self.subscribe(&mut ear, &wanted).await;
        if subscribed.is_err() {
            // The old connection does not have what was new among them: taking its place is the plain way out.
            old.gone.cancel();
        }
        tell(waiters, &subscribed);
        subscribed?;
        let marker = format!("handover-{:016x}", rand::random::<u64>()).into_bytes();
        self.shared
            .intake
            .begin_hand_over(old.generation, ear.generation, marker.clone());
        let _ = self
            .shared
            .publisher
            .signal(self.shared.names.ping.clone(), marker);
        let in_time = tokio::time::timeout(
            self.shared.connector().timeout(),
            self.shared.intake.handed_over(),
        )
        .await
        .is_ok();
        if !in_time {
            self.shared.intake.force_hand_over();
        }
        // Two nodes do not hear others' messages in the same order: some may have come before the marker on one and after it on the other.
        if !in_time || ear.link.address != old.link.address {
            self.shared.intake.resync(ResyncReason::BusReconnected);
        }
        self.shared.set_subscriber(Some(ear.link.address.clone()));
        tracing::info!("went over to a connection with the changed password");
        Ok(ear)
    }
}

fn tell(waiters: Vec<Waiter>, result: &RedisResult<()>) {
    for waiter in waiters {
        let _ = waiter.send(result.as_ref().map_err(unavailable).copied());
    }
}

async fn until(at: Option<Instant>) {
    tokio::time::sleep_until(at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)))
        .await;
}

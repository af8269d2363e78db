//! What an instance holds in Redis while it lives: its worker number and its entry among the live ones.
//!
//! Each step is one script on one key, so it is atomic and works in a cluster. A lease is taken when it is free or already ours, which makes taking,
//! renewing and trying again after a lost answer the same thing. Being alive is measured by the server's clock.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::Cmd;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::publisher::Backoff;
use crate::bus::{BusError, SubscriberState};
use crate::config;

/// KEYS: the lease. ARGV: the instance, milliseconds.
const TAKE: &str = "\
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

/// KEYS: the lease. ARGV: the instance.
const RELEASE: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])";

/// KEYS: the live instances. ARGV: this one, milliseconds that it counts as alive.
const BEAT: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
return 1";

/// KEYS: the live instances. ARGV: milliseconds that one counts as alive, the most that are listed.
const LIVE: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], '+inf', 'LIMIT', 0, ARGV[2])";

/// Most instances that are asked.
const MAX_INSTANCES: usize = 1024;

pub(super) fn script(text: &str, key: &str) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(text).arg(1).arg(key);
    cmd
}

/// A worker number that this instance holds.
pub(super) struct Lease {
    pub(super) worker: u16,
    state: Mutex<State>,
}

struct State {
    /// When the last renewal that succeeded was sent.
    renewed: Instant,
    /// Somebody else has the number.
    taken: bool,
}

impl Lease {
    /// Whether the number may be another's: the server forgets a lease one lifetime after its renewal; a little before that it is not relied on.
    pub(super) fn lapsed(&self, lifetime: Duration) -> bool {
        let state = self.state.lock();
        state.taken || state.renewed.elapsed() >= lifetime - lifetime / 100
    }
}

/// Another live instance.
pub(in crate::bus) struct Instance {
    pub(in crate::bus) id: String,
    pub(in crate::bus) name: String,
}

impl Lease {
    fn new(worker: u16, sent: Instant) -> Arc<Self> {
        Arc::new(Self {
            worker,
            state: Mutex::new(State {
                renewed: sent,
                taken: false,
            }),
        })
    }

    /// Whether another instance is known to hold the number.
    pub(super) fn is_anothers(&self) -> bool {
        self.state.lock().taken
    }
}

/// Leases the wanted number, or when that is held any free one from a random place on, for as long as it takes.
///
/// With a second bus the number is leased there as well: instances that are on one of the two must not share it. While that one does not answer,
/// the first decides alone.
pub(super) async fn acquire(
    shared: &Shared,
    also: Option<&Shared>,
    ids: &config::Ids,
    wanted: u16,
) -> u16 {
    let mut backoff = Backoff::default();
    loop {
        match try_acquire(shared, also, ids, wanted).await {
            Ok(Some(worker)) => {
                tracing::info!(worker, "leased a worker number");
                return worker;
            }
            Ok(None) => tracing::error!(
                from = ids.worker_base,
                count = ids.worker_count,
                "every worker number is leased: raise ids.worker_count, or wait for leases of instances that are gone"
            ),
            Err(error) => tracing::warn!(%error, "no worker number could be leased"),
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn try_acquire(
    shared: &Shared,
    also: Option<&Shared>,
    ids: &config::Ids,
    wanted: u16,
) -> Result<Option<u16>, BusError> {
    let start = rand::random_range(0..ids.worker_count.max(1));
    let others =
        (0..ids.worker_count).map(|step| ids.worker_base + (start + step) % ids.worker_count);
    for number in std::iter::once(wanted).chain(others.filter(|number| *number != wanted)) {
        let sent = Instant::now();
        if !take(shared, number).await? {
            continue;
        }
        if let Some(also) = also {
            match hold(also, number).await {
                Ok(true) => {}
                Ok(false) => {
                    give_up(shared, number).await?;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, worker = number, "a worker number could not be leased on the other Redis")
                }
            }
        }
        *shared.lease.lock() = Some(Lease::new(number, sent));
        return Ok(Some(number));
    }
    Ok(None)
}

/// Leases this very number and renews it from here on; `false` when it is another's. The one held before is the caller's to give up, once nothing is
/// made with it.
pub(super) async fn hold(shared: &Shared, worker: u16) -> Result<bool, BusError> {
    let sent = Instant::now();
    let ours = take(shared, worker).await?;
    if ours {
        *shared.lease.lock() = Some(Lease::new(worker, sent));
    }
    Ok(ours)
}

/// Gives a number up if it is this instance's.
pub(super) async fn give_up(shared: &Shared, worker: u16) -> Result<(), BusError> {
    let mut cmd = script(RELEASE, &shared.names.worker(worker));
    cmd.arg(&shared.instance);
    shared.query::<i64>(&cmd).await.map(drop)
}

async fn take(shared: &Shared, worker: u16) -> Result<bool, BusError> {
    let mut cmd = script(TAKE, &shared.names.worker(worker));
    cmd.arg(&shared.instance)
        .arg(shared.timing.lease.as_millis() as u64);
    shared.query(&cmd).await
}

/// Renews the lease and the entry among the live, on time and whenever the connection was made again.
pub(super) async fn keep(shared: &Shared, mut connected: watch::Receiver<u64>) {
    let mut renew_at = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(shared.timing.beat) => {}
            // The server may have forgotten everything: what is ours is put back before another takes it.
            Ok(()) = connected.changed() => renew_at = Instant::now(),
        }
        if let Some(lease) = shared.lease() {
            if Instant::now() >= renew_at && renew(shared, &lease).await {
                renew_at = Instant::now() + shared.timing.renew;
            }
            if let Err(error) = beat(shared).await {
                tracing::debug!(%error, "the entry among live instances was not renewed");
            }
        }
    }
}

async fn renew(shared: &Shared, lease: &Lease) -> bool {
    let sent = Instant::now();
    let ours = match take(shared, lease.worker).await {
        Ok(ours) => ours,
        Err(error) => {
            tracing::debug!(%error, "the worker lease was not renewed");
            return false;
        }
    };
    let mut state = lease.state.lock();
    if ours {
        state.renewed = sent;
    }
    if state.taken == ours {
        state.taken = !ours;
        if ours {
            tracing::info!(worker = lease.worker, "the worker number is ours again");
        } else {
            tracing::error!(
                worker = lease.worker,
                "another instance holds this worker number: no new connections are taken"
            );
        }
    }
    ours
}

/// Says that this instance is alive.
pub(super) async fn beat(shared: &Shared) -> Result<(), BusError> {
    let mut cmd = script(BEAT, &shared.names.instances);
    cmd.arg(shared.member())
        .arg(shared.timing.live.as_millis() as u64);
    shared.query::<i64>(&cmd).await.map(drop)
}

/// The other live instances.
pub(super) async fn others(shared: &Shared) -> Result<Vec<Instance>, BusError> {
    let mut cmd = script(LIVE, &shared.names.instances);
    cmd.arg(shared.timing.live.as_millis() as u64)
        .arg(MAX_INSTANCES);
    let members: Vec<String> = shared.query(&cmd).await?;
    let instances = members.into_iter().filter_map(|member| {
        let (id, name) = member.split_once(' ')?;
        (id != shared.instance).then(|| Instance {
            id: id.to_owned(),
            name: name.to_owned(),
        })
    });
    Ok(instances.collect())
}

/// Gives up what is ours.
pub(super) async fn release(shared: &Shared) {
    let Some(lease) = shared.lease() else { return };
    let released = give_up(shared, lease.worker).await;
    let mut cmd = redis::cmd("ZREM");
    cmd.arg(&shared.names.instances).arg(shared.member());
    let removed = shared.query::<i64>(&cmd).await.map(drop);
    if let Err(error) = released.and(removed) {
        tracing::warn!(%error, "the worker lease was not given up; it ends by itself");
    }
}

/// Sends self-pings, and says on the metric what comes of them.
pub(super) async fn ping(shared: &Shared) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(shared.timing.self_ping) => {}
            () = shared.ping_at_once.notified() => {}
        }
        // Through the same queue as dispatches: what is measured is what they meet.
        let _ = shared
            .publisher
            .signal(shared.names.ping.clone(), shared.intake.ping());
        if shared.is_shown() {
            shared
                .metrics
                .bus_stalled
                .set(i64::from(shared.subscriber() == SubscriberState::Stalled));
            shared
                .metrics
                .bus_lag
                .set(shared.intake.pinged().1.unwrap_or_default().as_secs_f64());
        }
    }
}

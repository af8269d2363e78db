//! What an instance holds in Redis while it lives: its worker number and its entry among the live ones.
//!
//! Each step is one script on one key, so it is atomic and works in a cluster. A lease is taken when it is free or already ours, which makes taking,
//! renewing and trying again after a lost answer the same thing. Being alive is measured by the server's clock.

use std::time::Duration;

use parking_lot::Mutex;
use redis::Cmd;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::publisher::Backoff;
use crate::bus::{BusError, Hearing};
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
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) name: String,
}

/// Leases the first number, or when that is held any free one from a random place on, for as long as it takes.
pub(super) async fn acquire(shared: &Shared, ids: &config::Ids) -> Lease {
    let mut backoff = Backoff::default();
    loop {
        let sent = Instant::now();
        match try_acquire(shared, ids).await {
            Ok(Some(worker)) => {
                tracing::info!(worker, "leased a worker number");
                return Lease { worker, state: Mutex::new(State { renewed: sent, taken: false }) };
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

async fn try_acquire(shared: &Shared, ids: &config::Ids) -> Result<Option<u16>, BusError> {
    if take(shared, ids.worker_base).await? {
        return Ok(Some(ids.worker_base));
    }
    let others = ids.worker_count.saturating_sub(1);
    let start = rand::random_range(0..others.max(1));
    for step in 0..others {
        let number = ids.worker_base + 1 + (start + step) % others;
        if take(shared, number).await? {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

async fn take(shared: &Shared, worker: u16) -> Result<bool, BusError> {
    let mut cmd = script(TAKE, &shared.names.worker(worker));
    cmd.arg(&shared.instance).arg(shared.timing.lease.as_millis() as u64);
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
        if let Some(lease) = shared.lease.get() {
            if Instant::now() >= renew_at && renew(shared, lease).await {
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
            tracing::error!(worker = lease.worker, "another instance holds this worker number: no new connections are taken");
        }
    }
    ours
}

/// Says that this instance is alive.
pub(super) async fn beat(shared: &Shared) -> Result<(), BusError> {
    let mut cmd = script(BEAT, &shared.names.instances);
    cmd.arg(shared.member()).arg(shared.timing.live.as_millis() as u64);
    shared.query::<i64>(&cmd).await.map(drop)
}

/// The other live instances.
pub(super) async fn others(shared: &Shared) -> Result<Vec<Instance>, BusError> {
    let mut cmd = script(LIVE, &shared.names.instances);
    cmd.arg(shared.timing.live.as_millis() as u64).arg(MAX_INSTANCES);
    let members: Vec<String> = shared.query(&cmd).await?;
    let instances = members.into_iter().filter_map(|member| {
        let (id, name) = member.split_once(' ')?;
        (id != shared.instance).then(|| Instance { id: id.to_owned(), name: name.to_owned() })
    });
    Ok(instances.collect())
}

/// Gives up what is ours.
pub(super) async fn release(shared: &Shared) {
    let Some(lease) = shared.lease.get() else { return };
    let mut cmd = script(RELEASE, &shared.names.worker(lease.worker));
    cmd.arg(&shared.instance);
    let released = shared.query::<i64>(&cmd).await;
    let mut cmd = redis::cmd("ZREM");
    cmd.arg(&shared.names.instances).arg(shared.member());
    let removed = shared.query::<i64>(&cmd).await;
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
        let _ = shared.publisher.signal(shared.names.ping.clone(), shared.intake.ping());
        shared.metrics.bus_deaf.set(i64::from(shared.hearing() == Hearing::Deaf));
    }
}

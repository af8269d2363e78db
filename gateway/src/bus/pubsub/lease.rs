//! Leasing, renewing and giving up this instance's worker number on one server.
//!
//! Each step is one script on one key, so it is atomic and works in a cluster. A lease is taken when it is free or already this instance's, which makes
//! taking, renewing and trying again after a lost answer the same script. What the answers mean is decided by
//! [`WorkerLease`](super::worker_lease::WorkerLease).

use std::time::Duration;

use redis::Cmd;
use tokio::sync::watch;
use tokio::time::Instant;

use super::PubSubCore;
use super::worker_lease::{LeaseState, Renewed};
use super::{presence, reconnect_backoff};
use crate::bus::BusError;
use crate::config;

/// Longest time that a number is kept for a clock that was ahead; a clock that was ahead of it by years is beyond help.
const LONGEST_KEPT: Duration = Duration::from_secs(366 * 24 * 3600);

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

/// Returns a command that runs a script on one key; the caller adds the arguments.
pub(super) fn script(text: &str, key: &str) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(text).arg(1).arg(key);
    cmd
}

/// Leases the wanted number or, when another instance owns it, any free one from a random place on. Tries for as long as it takes.
///
/// With a second server the number is leased there as well: instances that use only one of the two must not share it. While that server does not
/// answer, the first one decides alone.
pub(super) async fn acquire(
    core: &PubSubCore,
    also: Option<&PubSubCore>,
    ids: &config::Ids,
    wanted: u16,
) -> u16 {
    let mut backoff = reconnect_backoff();
    loop {
        match try_acquire(core, also, ids, wanted).await {
            Ok(Some(worker)) => {
                tracing::info!(worker, "worker number leased");
                return worker;
            }
            Ok(None) => tracing::error!(
                from = ids.worker_base,
                count = ids.worker_count,
                "no worker number is free: raise ids.worker_count, or wait until the leases of instances that are gone end"
            ),
            Err(error) => {
                tracing::warn!(%error, "leasing a worker number failed; trying again");
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn try_acquire(
    core: &PubSubCore,
    also: Option<&PubSubCore>,
    ids: &config::Ids,
    wanted: u16,
) -> Result<Option<u16>, BusError> {
    let start = rand::random_range(0..ids.worker_count.max(1));
    let others =
        (0..ids.worker_count).map(|step| ids.worker_base + (start + step) % ids.worker_count);
    for number in std::iter::once(wanted).chain(others.filter(|number| *number != wanted)) {
        let sent_at = Instant::now();
        if !take(core, number).await? {
            continue;
        }
        if let Some(also) = also {
            match lease_number(also, number).await {
                Ok(true) => {}
                Ok(false) => {
                    release_number(core, number).await?;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, worker = number, "leasing the worker number on the second Redis failed; the first one decides alone");
                }
            }
        }
        core.lease.leased(number, sent_at);
        return Ok(Some(number));
    }
    Ok(None)
}

/// Leases this very number and renews it from here on; `false` when another instance owns it.
///
/// The number leased before stays leased on the server: the caller gives it up once no id is made with it.
pub(super) async fn lease_number(core: &PubSubCore, number: u16) -> Result<bool, BusError> {
    let sent_at = Instant::now();
    let is_ours = take(core, number).await?;
    if is_ours {
        core.lease.leased(number, sent_at);
    }
    Ok(is_ours)
}

/// Leases a number for so long and the time of a lease, without using it.
pub(super) async fn keep_number(
    core: &PubSubCore,
    number: u16,
    at_least: Duration,
) -> Result<(), BusError> {
    let lifetime = at_least.min(LONGEST_KEPT) + core.timing.lease;
    take_for(core, number, lifetime).await.map(drop)
}

/// Gives a number up on the server if this instance owns it there.
pub(super) async fn release_number(core: &PubSubCore, number: u16) -> Result<(), BusError> {
    let mut cmd = script(RELEASE, &core.names.worker(number));
    cmd.arg(&core.instance);
    core.query::<i64>(&cmd).await.map(drop)
}

async fn take(core: &PubSubCore, number: u16) -> Result<bool, BusError> {
    take_for(core, number, core.timing.lease).await
}

async fn take_for(core: &PubSubCore, number: u16, lifetime: Duration) -> Result<bool, BusError> {
    let mut cmd = script(TAKE, &core.names.worker(number));
    cmd.arg(&core.instance).arg(lifetime.as_millis() as u64);
    core.query(&cmd).await
}

/// Renews the lease and the entry among the live instances, in time and whenever the connection was made again; a renewal that fails is tried again at
/// once, with growing delay. Ends never.
pub(super) async fn renew_in_time(core: &PubSubCore, mut connected: watch::Receiver<u64>) {
    let mut backoff = reconnect_backoff();
    let mut wait = core.timing.beat;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // The server may have forgotten everything: this instance puts its own back before another takes the number.
            Ok(()) = connected.changed() => core.lease.renew_now(Instant::now()),
        }
        let now = Instant::now();
        wait = core.timing.beat;
        match core.lease.due(now) {
            Some(number) if !renew(core, number).await => {
                wait = backoff.next_delay_within(core.timing.beat);
            }
            _ => backoff.reset(),
        }
        if core.lease.state(now) != LeaseState::GivenUp {
            let renewed = presence::announce(core).await;
            // Whom to name when they cannot be asked, and how to publish to them.
            let listed = presence::look(core).await;
            if let Err(error) = renewed.and(listed) {
                tracing::debug!(%error, "the entry among the live instances was not renewed");
            }
        }
    }
}

/// Returns whether the server answered.
async fn renew(core: &PubSubCore, worker: u16) -> bool {
    let sent_at = Instant::now();
    let is_ours = match take(core, worker).await {
        Ok(is_ours) => is_ours,
        Err(error) => {
            tracing::debug!(%error, worker, "renewing the worker lease failed; trying again");
            return false;
        }
    };
    match core.lease.renewed(worker, sent_at, is_ours) {
        Renewed::Unchanged => {}
        Renewed::Regained => {
            tracing::info!(worker, "worker number owned by this instance again");
        }
        Renewed::Lost => tracing::warn!(
            worker,
            "worker number owned by another instance: leasing another one; no new connections are taken until then"
        ),
    }
    true
}

/// Gives up the worker number and the entry among the live instances.
pub(super) async fn release(core: &PubSubCore) {
    let Some(worker) = core.lease.give_up() else {
        return;
    };
    let released = release_number(core, worker).await;
    let removed = presence::withdraw(core).await;
    if let Err(error) = released.and(removed) {
        tracing::warn!(%error, worker, "giving up the worker lease failed; it ends by itself");
    }
}

//! Which instances are live: each renews an entry in one sorted set, and one that stops doing so is forgotten.
//!
//! Age is measured by the server's clock alone. Each step is one script on one key.

use std::collections::HashSet;

use super::PubSubCore;
use super::lease::script;
use crate::bus::BusError;

/// KEYS: the live instances. ARGV: this one, milliseconds that it counts as live.
const ANNOUNCE: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
return 1";

/// KEYS: the live instances. ARGV: milliseconds that one counts as live, the most that are listed.
const LIVE: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], '+inf', 'LIMIT', 0, ARGV[2])";

/// Most instances that are listed.
const MAX_INSTANCES: usize = 1024;

/// Another live instance.
pub(in crate::bus) struct Instance {
    /// Its `serverId`.
    pub(in crate::bus) id: String,
    /// What people call it.
    pub(in crate::bus) name: String,
}

/// Renews the entries of this instance: that it is live, and that it takes audiences.
pub(super) async fn announce(core: &PubSubCore) -> Result<(), BusError> {
    let names = &core.names;
    // Whoever finds it among the live ones finds it among the others, too.
    for key in [&names.audience_instances, &names.instances] {
        let mut cmd = script(ANNOUNCE, key);
        cmd.arg(core.member())
            .arg(core.timing.live.as_millis() as u64);
        core.query::<i64>(&cmd).await?;
    }
    Ok(())
}

/// Removes the entries of this instance.
pub(super) async fn withdraw(core: &PubSubCore) -> Result<(), BusError> {
    let names = &core.names;
    for key in [&names.instances, &names.audience_instances] {
        let mut cmd = redis::cmd("ZREM");
        cmd.arg(key).arg(core.member());
        core.query::<i64>(&cmd).await?;
    }
    Ok(())
}

async fn live(core: &PubSubCore, key: &str) -> Result<Vec<String>, BusError> {
    let mut cmd = script(LIVE, key);
    cmd.arg(core.timing.live.as_millis() as u64)
        .arg(MAX_INSTANCES);
    core.query(&cmd).await
}

/// Looks who else is live, and whether all of them take audiences. Where one does not, and audiences were published while it may have been there, everybody is
/// told to sync.
pub(super) async fn look(core: &PubSubCore) -> Result<(), BusError> {
    let looked = async {
        // In this order: who is among the live ones was among the others before.
        let others = others(core).await?;
        Ok((others, live(core, &core.names.audience_instances).await?))
    };
    let (others, takers) = looked
        .await
        .inspect_err(|_: &BusError| core.peers.forget())?;
    let takers: HashSet<&str> = takers
        .iter()
        .filter_map(|member| Some(member.split_once(' ')?.0))
        .collect();
    let all_take = others.iter().all(|other| takers.contains(&*other.id));
    if core.peers.note(others.len(), all_take) {
        tracing::warn!(
            "an instance of the release before is live: it may have missed notifications, and all clients are told to sync"
        );
        core.publisher.note_loss();
    }
    Ok(())
}

/// Lists the other live instances.
pub(super) async fn others(core: &PubSubCore) -> Result<Vec<Instance>, BusError> {
    let members = live(core, &core.names.instances).await?;
    let instances = members.into_iter().filter_map(|member| {
        let (id, name) = member.split_once(' ')?;
        (id != core.instance).then(|| Instance {
            id: id.to_owned(),
            name: name.to_owned(),
        })
    });
    let instances: Vec<Instance> = instances.collect();
    *core.last_seen.lock() = instances.iter().map(|one| one.name.clone()).collect();
    Ok(instances)
}

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

/// Returns where this instance is listed: first what it takes, then that it is live. Whoever finds it among the live ones finds it among the others,
/// too.
fn keys(core: &PubSubCore) -> Vec<&String> {
    let names = &core.names;
    let mut keys = vec![&names.audience_instances];
    if core.is_sharded() {
        keys.push(&names.sharded_instances);
    }
    keys.push(&names.instances);
    keys
}

/// Renews the entries of this instance: that it is live, and what it takes.
pub(super) async fn announce(core: &PubSubCore) -> Result<(), BusError> {
    for key in keys(core) {
        let mut cmd = script(ANNOUNCE, key);
        cmd.arg(core.member())
            .arg(core.timing.live.as_millis() as u64);
        core.query::<i64>(&cmd).await?;
    }
    Ok(())
}

/// Removes the entries of this instance.
pub(super) async fn withdraw(core: &PubSubCore) -> Result<(), BusError> {
    for key in keys(core).into_iter().rev() {
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

/// Looks who else is live, and what all of them take. Where one does not take what was published while it may have been there, everybody is told to sync.
pub(super) async fn look(core: &PubSubCore) -> Result<(), BusError> {
    let looked = async {
        // In this order: who is among the live ones was among the others before.
        let others = others(core).await?;
        let mut takers = vec![(
            &core.audience_peers,
            live(core, &core.names.audience_instances).await?,
        )];
        if core.is_sharded() {
            let sharded = live(core, &core.names.sharded_instances).await?;
            takers.push((&core.sharded_peers, sharded));
        }
        Ok((others, takers))
    };
    let (others, takers) = looked.await.inspect_err(|_: &BusError| {
        core.audience_peers.forget();
        core.sharded_peers.forget();
    })?;
    for (peers, members) in takers {
        let ids: HashSet<&str> = members
            .iter()
            .filter_map(|member| Some(member.split_once(' ')?.0))
            .collect();
        let all_take = others.iter().all(|other| ids.contains(&*other.id));
        if peers.note(others.len(), all_take) {
            tracing::warn!(
                "an instance of the release before, or without redis.sharded_pubsub, is live: it may have missed messages, and all clients are told to sync"
            );
            core.classic.publisher.note_loss();
        }
    }
    core.count_segments();
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

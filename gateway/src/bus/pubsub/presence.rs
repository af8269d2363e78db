//! Which instances are live: each renews an entry in one sorted set, and one that stops doing so is forgotten.
//!
//! Age is measured by the server's clock alone. Each step is one script on one key.

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

/// Renews the entry of this instance.
pub(super) async fn announce(core: &PubSubCore) -> Result<(), BusError> {
    let mut cmd = script(ANNOUNCE, &core.names.instances);
    cmd.arg(core.member())
        .arg(core.timing.live.as_millis() as u64);
    core.query::<i64>(&cmd).await.map(drop)
}

/// Removes the entry of this instance.
pub(super) async fn withdraw(core: &PubSubCore) -> Result<(), BusError> {
    let mut cmd = redis::cmd("ZREM");
    cmd.arg(&core.names.instances).arg(core.member());
    core.query::<i64>(&cmd).await.map(drop)
}

/// Lists the other live instances.
pub(super) async fn others(core: &PubSubCore) -> Result<Vec<Instance>, BusError> {
    let mut cmd = script(LIVE, &core.names.instances);
    cmd.arg(core.timing.live.as_millis() as u64)
        .arg(MAX_INSTANCES);
    let members: Vec<String> = core.query(&cmd).await?;
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

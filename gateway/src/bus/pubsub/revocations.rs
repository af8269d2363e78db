//! Revocations where the release before keeps them: one sorted set, by the time they may be forgotten.
//!
//! The database is where they are kept. This release writes the set for instances of the release before, which run beside it during an upgrade or come
//! back after one, and takes over what they wrote. The release after this one needs neither.

use signal_contract::Object;

use super::PubSubCore;
use super::lease::script;
use crate::bus::BusError;
use crate::revocation::Revocation;

/// Most revocations in the set.
const MOST: usize = 100_000;
/// Clocks of instances differ: an entry stays this long past its end, in milliseconds.
const SLACK_MS: i64 = 300_000;

/// KEYS: the set. ARGV: before this all are forgotten, the most that are kept, the end of this one, this one, slack.
const STORE: &str = "\
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[1])
if not redis.call('ZSCORE', KEYS[1], ARGV[4]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last + ARGV[5]))
return 1";

pub(super) async fn share(core: &PubSubCore, revocation: &Revocation) -> Result<(), BusError> {
    let member = serde_json::to_string(revocation)
        .map_err(|error| BusError::Unavailable(error.to_string()))?;
    let mut cmd = script(STORE, &core.names.revocations);
    cmd.arg(core.clock.now_ms() - SLACK_MS)
        .arg(MOST)
        .arg(revocation.until_ms)
        .arg(member)
        .arg(SLACK_MS);
    if core.query(&cmd).await? {
        Ok(())
    } else {
        Err(BusError::Full)
    }
}

pub(super) async fn shared(core: &PubSubCore) -> Result<Vec<Revocation>, BusError> {
    let mut cmd = redis::cmd("ZRANGEBYSCORE");
    cmd.arg(&core.names.revocations)
        .arg(format!("({}", core.clock.now_ms()))
        .arg("+inf")
        .arg("LIMIT")
        .arg(0)
        .arg(MOST);
    let members: Vec<String> = core.query(&cmd).await?;
    let read = members
        .iter()
        .filter_map(|member| match serde_json::from_str(member) {
            Ok(Object(revocation)) => Some(revocation),
            Err(error) => {
                tracing::error!(%error, "a revocation in Redis cannot be read and is skipped");
                None
            }
        });
    Ok(read.collect())
}

//! What must hold among the live settings, beyond their types.

use std::path::Path;

use signal_contract::prefixes_collide;

use super::check::{Checks, check_redis_tls};
use super::{
    Live, MAX_MESSAGE_BYTES, MIN_MESSAGE_BYTES, RedisLocation, RedisMode, Source, SourcePreset,
};

/// Most claims of `subject_claims`, and the longest of them and of `subject_prefix` in bytes.
const MAX_CLAIMS: usize = 8;
const MAX_NAME_BYTES: usize = 64;

/// Adds everything that is wrong with the live settings.
pub(super) fn check_live(live: &Live, problems: &mut Vec<String>) {
    let mut checks = Checks(problems);
    check_limits(live, &mut checks);
    check_jwks(live, &mut checks);
    check_requests(live, &mut checks);
    let sources = &live.jwks.sources;
    for (at, source) in sources.iter().enumerate() {
        check_source(source, &sources[..at], at, &mut checks);
        check_subjects(source, &sources[..at], at, &mut checks);
    }
    check_locations(live, &mut checks);
}

fn check_limits(live: &Live, checks: &mut Checks<'_>) {
    let limits = &live.limits;
    checks.positive([
        (
            "limits.connections_per_pod",
            limits.connections_per_pod as u64,
        ),
        (
            "limits.accepts_per_second",
            u64::from(limits.accepts_per_second),
        ),
        ("limits.accept_burst", u64::from(limits.accept_burst)),
        (
            "limits.http_connections_per_pod",
            limits.http_connections_per_pod as u64,
        ),
        (
            "limits.http_connections_per_network",
            limits.http_connections_per_network as u64,
        ),
        ("limits.frame_bytes", limits.frame_bytes as u64),
        ("limits.send_queue.bytes", limits.send_queue.bytes as u64),
        ("limits.send_queue.frames", limits.send_queue.frames as u64),
        (
            "limits.send_queue.total_bytes",
            limits.send_queue.total_bytes as u64,
        ),
        (
            "rooms.max_per_connection",
            live.rooms.max_per_connection as u64,
        ),
        (
            "limits.send_queue.write_timeout_ms",
            limits.send_queue.write_timeout_ms,
        ),
    ]);
    checks.need(
        limits.frame_bytes <= 16 << 20,
        "limits.frame_bytes",
        "must be at most 16777216",
    );
    checks.need(
        (MIN_MESSAGE_BYTES..=MAX_MESSAGE_BYTES).contains(&limits.message_bytes),
        "limits.message_bytes",
        "must be from 65536 to 33554432",
    );
    let total = limits.send_queue.total_bytes;
    for (name, bytes) in [
        ("limits.send_queue.bytes", limits.send_queue.bytes),
        ("limits.message_bytes", limits.message_bytes),
        ("limits.frame_bytes", limits.frame_bytes),
    ] {
        let what = format!("must not be less than {name} ({bytes})");
        checks.need(total >= bytes, "limits.send_queue.total_bytes", &what);
    }
}

fn check_jwks(live: &Live, checks: &mut Checks<'_>) {
    let jwks = &live.jwks;
    checks.positive([
        ("jwks.refresh_interval_secs", jwks.refresh_interval_secs),
        ("jwks.max_stale_secs", jwks.max_stale_secs),
        ("jwks.request_timeout_ms", jwks.request_timeout_ms),
        ("jwks.max_bytes", jwks.max_bytes as u64),
    ]);
    checks.need(
        live.auth.clock_skew_secs <= 300,
        "auth.clock_skew_secs",
        "must be at most 300",
    );
    checks.need(
        (1..=86_400).contains(&jwks.managed.cache_age_secs),
        "jwks.managed.cache_age_secs",
        "must be from 1 to 86400",
    );
    checks.need(
        jwks.revoked_sources.len() <= 64,
        "jwks.revoked_sources",
        "must be at most 64",
    );
    checks.need(
        jwks.revoked_sources.iter().all(|name| !name.is_empty()),
        "jwks.revoked_sources",
        "a name must not be empty",
    );
    checks.need(
        jwks.sources.len() <= 16,
        "jwks.sources",
        "must be at most 16",
    );
}

fn check_requests(live: &Live, checks: &mut Checks<'_>) {
    checks.need(
        live.observability
            .log_filter
            .parse::<tracing_subscriber::EnvFilter>()
            .is_ok(),
        "observability.log_filter",
        "is not a filter, such as \"info\" or \"info,signal_gateway=debug\"",
    );
    for origin in &live.allowed_origins {
        checks.need(
            signal_contract::is_allowed_origin(origin),
            "allowed_origins",
            &format!(
                "{origin:?} is not scheme://host[:port] (http and https with *. in front of the host at most), null or loopback"
            ),
        );
    }
}

fn check_source(source: &Source, earlier: &[Source], at: usize, checks: &mut Checks<'_>) {
    let has = |path: &Path| !path.as_os_str().is_empty();
    let scheme = source.url.as_ref().map_or("https", |url| url.scheme());
    for (ok, text) in [
        (!source.name.is_empty(), "name must not be empty"),
        (
            !source.issuer.is_empty() || source.waives_issuer(),
            "issuer must not be empty, or say skip_issuer_check = true",
        ),
        (
            !source.audiences.is_empty() || source.waives_audience(),
            "audiences must not be empty, or say skip_audience_check = true",
        ),
        (
            !source.algorithms.is_empty(),
            "algorithms must name at least one",
        ),
        (
            source.url.is_some() != has(&source.keys_file),
            "must have either url or keys_file",
        ),
        (
            !has(&source.ca_file) || source.url.is_some(),
            "ca_file is for url",
        ),
        (
            scheme == "https" || (scheme == "http" && source.allow_insecure_http),
            "url must be https, or say allow_insecure_http = true",
        ),
        (
            !earlier.iter().any(|other| other.name == source.name),
            "name is taken by an earlier source",
        ),
    ] {
        checks.need(ok, &format!("jwks.sources[{at}]"), text);
    }
}

/// Checks from which claims a source has its subjects, and that no other issuer has the same ones (authorization.md 2.8).
fn check_subjects(source: &Source, earlier: &[Source], at: usize, checks: &mut Checks<'_>) {
    let name = format!("jwks.sources[{at}]");
    let is_name = |claim: &String| {
        (1..=MAX_NAME_BYTES).contains(&claim.len()) && !claim.contains(char::is_control)
    };
    checks.need(
        source.subject_claims.len() <= MAX_CLAIMS && source.subject_claims.iter().all(is_name),
        &name,
        "subject_claims must be at most 8 names of 1 to 64 bytes",
    );
    let prefix = &source.subject_prefix;
    checks.need(
        prefix.len() <= MAX_NAME_BYTES && !prefix.contains(char::is_control),
        &name,
        "subject_prefix must be at most 64 bytes without control characters",
    );
    checks.need(
        source.application_secret_file.path().is_none() || source.preset == SourcePreset::Ignis,
        &name,
        "application_secret_file is for preset = \"ignis\"",
    );
    for earlier in earlier {
        checks.need(
            source.shares_subjects_with(earlier)
                || !prefixes_collide(prefix, &earlier.subject_prefix),
            &name,
            &format!(
                "subject_prefix {prefix:?} collides with {:?} of {}: of two issuers neither may begin the other, and only one may have none, or subjects \
                 of one would be taken for the other's",
                earlier.subject_prefix, earlier.name
            ),
        );
    }
}

fn check_locations(live: &Live, checks: &mut Checks<'_>) {
    for (section, location) in [
        ("redis", &live.redis),
        ("redis_previous", &live.redis_previous),
    ] {
        if let Some(location) = location {
            check_location(location, section, checks);
        }
    }
    if let (Some(redis), Some(previous)) = (&live.redis, &live.redis_previous) {
        checks.need(
            !redis.is_same_server(previous),
            "redis_previous",
            "names the same server as redis",
        );
    }
}

fn check_location(location: &RedisLocation, section: &str, checks: &mut Checks<'_>) {
    checks.need(
        location.mode != RedisMode::None,
        &format!("{section}.mode"),
        "must be standalone, sentinel or cluster: using no Redis needs a restart",
    );
    let nodes = format!("{section}.nodes");
    checks.need(
        !location.nodes.is_empty(),
        &nodes,
        "must name at least one host:port",
    );
    check_redis_tls(&location.tls, section, checks);
    for node in &location.nodes {
        let port = node
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .and_then(|(_, port)| port.parse::<u16>().ok());
        checks.need(
            port.is_some(),
            &nodes,
            &format!("{node:?} is not host:port"),
        );
    }
}

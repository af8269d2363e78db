//! What must hold among the live settings, beyond their types.

use std::path::Path;

use super::check::Checks;
use super::{BusMode, BusPlace, Live, Source};

/// Adds everything that is wrong with the live settings.
pub(super) fn check_live(live: &Live, problems: &mut Vec<String>) {
    let mut checks = Checks(problems);
    check_limits(live, &mut checks);
    check_keys(live, &mut checks);
    check_requests(live, &mut checks);
    for (at, source) in live.sources.iter().enumerate() {
        check_source(source, &live.sources[..at], at, &mut checks);
    }
    check_places(live, &mut checks);
}

fn check_limits(live: &Live, checks: &mut Checks<'_>) {
    let limits = &live.limits;
    checks.positive([
        ("limits.max_connections", limits.max_connections as u64),
        (
            "limits.accepts_per_second",
            u64::from(limits.accepts_per_second),
        ),
        ("limits.accept_burst", u64::from(limits.accept_burst)),
        ("limits.max_frame_bytes", limits.max_frame_bytes as u64),
        ("limits.outbox_bytes", limits.outbox_bytes as u64),
        ("limits.outbox_frames", limits.outbox_frames as u64),
        (
            "limits.total_outbox_bytes",
            limits.total_outbox_bytes as u64,
        ),
        (
            "limits.rooms_per_connection",
            limits.rooms_per_connection as u64,
        ),
        ("limits.write_timeout_ms", limits.write_timeout_ms),
    ]);
    checks.need(
        limits.max_frame_bytes <= 16 << 20,
        "limits.max_frame_bytes",
        "must be at most 16777216",
    );
}

fn check_keys(live: &Live, checks: &mut Checks<'_>) {
    let keys = &live.keys;
    checks.positive([
        ("keys.refresh_secs", keys.refresh_secs),
        ("keys.max_stale_secs", keys.max_stale_secs),
        ("keys.request_timeout_ms", keys.request_timeout_ms),
        ("keys.max_bytes", keys.max_bytes as u64),
    ]);
    checks.need(
        keys.leeway_secs <= 300,
        "keys.leeway_secs",
        "must be at most 300",
    );
    checks.need(
        (1..=86_400).contains(&live.jwks_max_age_secs),
        "jwks_max_age_secs",
        "must be from 1 to 86400",
    );
    checks.need(
        live.revoked_sources.len() <= 64,
        "revoked_sources",
        "must be at most 64",
    );
    checks.need(
        live.revoked_sources.iter().all(|name| !name.is_empty()),
        "revoked_sources",
        "a name must not be empty",
    );
    checks.need(live.sources.len() <= 16, "sources", "must be at most 16");
}

fn check_requests(live: &Live, checks: &mut Checks<'_>) {
    checks.need(
        live.log_filter
            .parse::<tracing_subscriber::EnvFilter>()
            .is_ok(),
        "log_filter",
        "is not a filter, such as \"info\" or \"info,signal_gateway=debug\"",
    );
    for origin in &live.allowed_origins {
        let good = origin.split_once("://").is_some_and(|(scheme, host)| {
            matches!(scheme, "http" | "https")
                && !host.is_empty()
                && !host.contains('/')
                && !host.trim_start_matches("*.").contains('*')
        });
        checks.need(
            good,
            "allowed_origins",
            &format!(
                "{origin:?} is not scheme://host[:port], with *. in front of the host at most"
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
            !source.issuer.is_empty() || source.skip_issuer_check,
            "issuer must not be empty, or say skip_issuer_check = true",
        ),
        (
            !source.audiences.is_empty() || source.skip_audience_check,
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
        checks.need(ok, &format!("sources[{at}]"), text);
    }
}

fn check_places(live: &Live, checks: &mut Checks<'_>) {
    for (section, place) in [("bus", &live.bus), ("bus_previous", &live.bus_previous)] {
        if let Some(place) = place {
            check_place(place, section, checks);
        }
    }
    if let (Some(bus), Some(previous)) = (&live.bus, &live.bus_previous) {
        checks.need(
            !bus.is_same_server(previous),
            "bus_previous",
            "names the same server as bus",
        );
    }
}

fn check_place(place: &BusPlace, section: &str, checks: &mut Checks<'_>) {
    checks.need(
        place.mode != BusMode::Local,
        &format!("{section}.mode"),
        "must not be local: going to or from a bus without Redis needs a restart",
    );
    let nodes = format!("{section}.nodes");
    checks.need(
        !place.nodes.is_empty(),
        &nodes,
        "must name at least one host:port",
    );
    for node in &place.nodes {
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

//! `gateway.toml`, which a gateway reads as it starts, and `live.toml`, which it follows.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
pub use signal_contract::revision;
use signal_crds::data::{KafkaMechanism, KafkaProtocol, Migrations, OffsetReset};
use signal_crds::gateway::{ClientFrames, EncryptionMode, Unmatched};
use signal_crds::jwks::Algorithm;
use signal_crds::pod::LogFormat;
use signal_crds::status::SourceStage;
use toml::{Table, Value};

use super::credentials::ADMIN_TOKEN;
use crate::names::{CATALOG_DIR, Children, LIVE_DIR, RECORD};
use crate::plan::record::{Record, RecordedRedis, RecordedSource};
use crate::plan::validate::{
    BASIC_USERS, DATABASE_URL, KAFKA_CA, KAFKA_PASSWORD, POLICY_URL, ValidCluster,
};

/// Key of the static ConfigMap.
pub const GATEWAY_TOML: &str = "gateway.toml";
/// Key of the live ConfigMap.
pub const LIVE_TOML: &str = "live.toml";
/// Key of the live ConfigMap with the public set of the managed keys.
pub const JWKS_JSON: &str = "jwks.json";

/// Where the database of a pod without one of its own is.
pub(super) const DATA_DIR: &str = "/var/lib/signal";
/// Redis as the static settings name it: where it is stands in the live file, so that a move changes no pod template.
const REDIS_IN_LIVE_FILE: &str = "named-by-the-live-file.invalid:6379";

/// The path of a file of the projected volume; empty for none.
fn live_path(file: Option<&str>) -> String {
    file.map(|file| format!("{LIVE_DIR}/{file}"))
        .unwrap_or_default()
}

fn millis(duration: signal_crds::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn secs(duration: signal_crds::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Table(
        entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

fn texts(texts: &[String]) -> Value {
    Value::Array(
        texts
            .iter()
            .map(|text| Value::from(text.as_str()))
            .collect(),
    )
}

fn write(table: &Table) -> String {
    toml::to_string(table).expect("a table of plain values")
}

/// `gateway.toml`. Sections in alphabetical order; the same settings are the same text.
pub fn gateway_toml(cluster: &ValidCluster) -> String {
    let spec = &cluster.spec;
    let (gateway, auth) = (&spec.gateway, &spec.gateway.auth);
    let file = |name: &'static str| live_path(cluster.files.contains_key(name).then_some(name));
    let mut whole = Table::new();
    let mut add = |section: &str, value: Value| whole.insert(section.to_owned(), value);
    add("live_file", live_path(Some(LIVE_TOML)).into());
    add(
        "server",
        table([
            (
                "public_address",
                format!("0.0.0.0:{}", gateway.public_port).into(),
            ),
            (
                "admin_address",
                format!("0.0.0.0:{}", gateway.admin_port).into(),
            ),
            ("admin_token_file", live_path(Some(ADMIN_TOKEN)).into()),
        ]),
    );
    add(
        "session",
        table([
            (
                "authenticate_timeout_ms",
                millis(auth.connect_timeout).into(),
            ),
            ("verify_timeout_ms", millis(auth.finish_timeout).into()),
            (
                "heartbeat_timeout_ms",
                millis(gateway.heartbeat.timeout).into(),
            ),
            (
                "ping_interval_ms",
                millis(gateway.heartbeat.ping_interval).into(),
            ),
            ("expiring_lead_secs", secs(auth.expiring_lead).into()),
        ]),
    );
    let mode = match gateway.encryption.mode {
        EncryptionMode::Disabled => "disabled",
        EncryptionMode::Optional => "optional",
        EncryptionMode::Required => "required",
    };
    let client_frames = match gateway.encryption.client_frames {
        ClientFrames::Any => "any",
        ClientFrames::Encrypted => "encrypted",
    };
    add(
        "encryption",
        table([
            ("mode", mode.into()),
            ("client_frames", client_frames.into()),
        ]),
    );
    add("bus", bus(cluster));
    add("kafka", kafka(cluster));
    add("database", database(cluster));
    add(
        "policy",
        table([
            ("url_file", file(POLICY_URL).into()),
            ("cache_secs", secs(spec.policy.cache).into()),
            ("always_allow_roles", texts(&spec.policy.always_allow_roles)),
        ]),
    );
    add("basic", table([("users_file", file(BASIC_USERS).into())]));
    let unmatched = match gateway.rooms.unmatched {
        Unmatched::Deny => "deny",
        Unmatched::Allow => "allow",
    };
    add("rooms", table([("unmatched", unmatched.into())]));
    let catalogs = if spec.notifications.catalog_ref.is_some() {
        CATALOG_DIR
    } else {
        ""
    };
    add(
        "notifications",
        table([
            (
                "default_locale",
                spec.notifications.default_locale.as_str().into(),
            ),
            ("catalog_dir", catalogs.into()),
        ]),
    );
    add(
        "drain",
        table([
            (
                "endpoint_propagation_ms",
                millis(spec.drain.endpoint_propagation).into(),
            ),
            ("window_ms", millis(spec.drain.window).into()),
            (
                "batch_interval_ms",
                millis(spec.drain.batch_interval).into(),
            ),
            ("min_batch", i64::from(spec.drain.min_batch).into()),
        ]),
    );
    let tracing = spec.observability.tracing.as_ref();
    let format = match spec.observability.log_format {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    };
    add(
        "telemetry",
        table([
            ("log_format", format.into()),
            (
                "otlp_endpoint",
                tracing
                    .map_or("", |tracing| tracing.endpoint.as_str())
                    .into(),
            ),
            (
                "sampling_ratio",
                tracing
                    .map_or(0.0, |tracing| f64::from(tracing.samples_per_million) / 1e6)
                    .into(),
            ),
        ]),
    );
    write(&whole)
}

/// With Redis, only that there is one and its timing; `[bus]` of the live file says the rest.
fn bus(cluster: &ValidCluster) -> Value {
    match &cluster.spec.redis {
        None => table([("mode", "local".into())]),
        Some(redis) => table([
            ("mode", "standalone".into()),
            ("nodes", texts(&[REDIS_IN_LIVE_FILE.to_owned()])),
            (
                "self_ping_interval_ms",
                millis(redis.self_ping_interval).into(),
            ),
            ("deaf_after_ms", millis(redis.deaf_after).into()),
        ]),
    }
}

fn kafka(cluster: &ValidCluster) -> Value {
    let Some(kafka) = &cluster.spec.kafka else {
        return table([("enabled", false.into())]);
    };
    let file = |name: &'static str| live_path(cluster.files.contains_key(name).then_some(name));
    let security = match kafka.security.protocol {
        KafkaProtocol::Plaintext => "plaintext",
        KafkaProtocol::Ssl => "ssl",
        KafkaProtocol::SaslPlaintext => "sasl_plaintext",
        KafkaProtocol::SaslSsl => "sasl_ssl",
    };
    let mechanism = match kafka
        .security
        .auth
        .as_ref()
        .map(|auth| auth.mechanism)
        .unwrap_or_default()
    {
        KafkaMechanism::Plain => "PLAIN",
        KafkaMechanism::ScramSha256 => "SCRAM-SHA-256",
        KafkaMechanism::ScramSha512 => "SCRAM-SHA-512",
    };
    let reset = match kafka.offset_reset {
        OffsetReset::Earliest => "earliest",
        OffsetReset::Latest => "latest",
    };
    table([
        ("enabled", true.into()),
        ("brokers", texts(&kafka.brokers)),
        ("group_id", kafka.group_id.as_str().into()),
        ("topics", texts(&kafka.topics)),
        ("offset_reset", reset.into()),
        (
            "dead_letter_suffix",
            kafka.dead_letter_suffix.as_str().into(),
        ),
        ("concurrency", i64::from(kafka.concurrency).into()),
        ("security", security.into()),
        ("sasl_mechanism", mechanism.into()),
        ("username", cluster.kafka_username.as_str().into()),
        ("password_file", file(KAFKA_PASSWORD).into()),
        ("tls_ca_file", file(KAFKA_CA).into()),
    ])
}

fn database(cluster: &ValidCluster) -> Value {
    let Some(database) = &cluster.spec.database else {
        return table([
            ("url", format!("sqlite://{DATA_DIR}/signal.db").into()),
            ("migrate", true.into()),
        ]);
    };
    table([
        ("url_file", live_path(Some(DATABASE_URL)).into()),
        (
            "max_connections",
            i64::from(database.max_connections).into(),
        ),
        (
            "migrate",
            matches!(database.migrations, Migrations::Startup).into(),
        ),
        ("retention_days", (secs(database.retention) / 86_400).into()),
    ])
}

/// `live.toml`. With `managed`, or while the record still names a source of the managed keys, gateways publish their public set.
pub fn live_toml(cluster: &ValidCluster, record: &Record, managed: bool) -> String {
    let spec = &cluster.spec;
    let (limits, queue, jwks) = (&spec.limits, &spec.limits.send_queue, &spec.jwks);
    let mut whole = Table::new();
    let mut add = |section: &str, value: Value| whole.insert(section.to_owned(), value);
    add("allowed_origins", texts(&spec.gateway.allowed_origins));
    add("trusted_proxies", texts(&spec.gateway.trusted_proxies));
    add("log_filter", spec.observability.log_filter.as_str().into());
    if managed || names_managed(record) {
        add("well_known_jwks_file", live_path(Some(JWKS_JSON)).into());
        let age = jwks
            .managed
            .as_ref()
            .map_or(signal_crds::Duration::secs(300), |managed| {
                managed.cache_age
            });
        add("jwks_max_age_secs", secs(age).into());
    }
    if !record.revoked_sources.is_empty() {
        add("revoked_sources", texts(&record.revoked_sources));
    }
    add(
        "limits",
        table([
            (
                "max_connections",
                i64::from(limits.connections_per_pod).into(),
            ),
            (
                "connections_per_user",
                i64::from(limits.connections_per_user).into(),
            ),
            (
                "accepts_per_second",
                i64::from(limits.accepts_per_second).into(),
            ),
            // Gateways count a burst of none as no connection at all.
            ("accept_burst", i64::from(limits.accept_burst.max(1)).into()),
            ("max_frame_bytes", i64::from(limits.frame_bytes).into()),
            (
                "inbound_frames_per_second",
                i64::from(limits.inbound_frames_per_second).into(),
            ),
            ("inbound_burst", i64::from(limits.inbound_burst).into()),
            ("outbox_bytes", i64::from(queue.bytes).into()),
            ("outbox_frames", i64::from(queue.frames).into()),
            (
                "total_outbox_bytes",
                i64::try_from(queue.total_bytes).unwrap_or(i64::MAX).into(),
            ),
            ("write_timeout_ms", millis(queue.write_timeout).into()),
            (
                "rooms_per_connection",
                i64::from(spec.gateway.rooms.max_per_connection).into(),
            ),
        ]),
    );
    add(
        "keys",
        table([
            ("refresh_secs", secs(jwks.refresh_interval).into()),
            ("min_refresh_secs", secs(jwks.min_refresh_interval).into()),
            ("max_stale_secs", secs(jwks.max_stale).into()),
            ("request_timeout_ms", millis(jwks.request_timeout).into()),
            ("leeway_secs", secs(spec.gateway.auth.clock_skew).into()),
        ]),
    );
    if let Some(redis) = &record.redis {
        add("bus", live_bus(redis));
    }
    // Other credentials for the same server are no other server, and gateways refuse to be told so.
    if let Some(redis) = record.redis_previous.as_ref().filter(|before| {
        !record
            .redis
            .as_ref()
            .is_some_and(|redis| is_same_server(redis, before))
    }) {
        add("bus_previous", live_bus(redis));
    }
    add(
        "sources",
        Value::Array(record.sources.iter().map(source).collect()),
    );
    write(&whole)
}

/// Whether gateways are still told of the managed keys.
fn names_managed(record: &Record) -> bool {
    record
        .sources
        .iter()
        .any(|source| source.definition.url.is_none())
}

fn is_same_server(one: &RecordedRedis, other: &RecordedRedis) -> bool {
    let place = |redis: &RecordedRedis| {
        let mut nodes = redis.nodes.clone();
        nodes.sort();
        (
            redis.mode.clone(),
            nodes,
            redis.sentinel_master.clone(),
            redis.database,
            redis.prefix.clone(),
        )
    };
    place(one) == place(other)
}

fn live_bus(redis: &RecordedRedis) -> Value {
    table([
        ("mode", redis.mode.as_str().into()),
        ("nodes", texts(&redis.nodes)),
        ("sentinel_master", redis.sentinel_master.as_str().into()),
        ("database", i64::from(redis.database).into()),
        ("username", redis.username.as_str().into()),
        (
            "password_file",
            live_path(redis.password_file.as_deref()).into(),
        ),
        (
            "sentinel_password_file",
            live_path(redis.sentinel_password_file.as_deref()).into(),
        ),
        ("tls", redis.tls.into()),
        ("tls_ca_file", live_path(redis.ca_file.as_deref()).into()),
        ("prefix", redis.prefix.as_str().into()),
    ])
}

fn source(source: &RecordedSource) -> Value {
    let definition = &source.definition;
    let keys = match &definition.url {
        Some(url) => ("url", Value::from(url.as_str())),
        None => ("keys_file", live_path(Some(JWKS_JSON)).into()),
    };
    let state = match source.stage {
        SourceStage::Prepared => "prepared",
        SourceStage::Trusted => "trusted",
        SourceStage::Retiring => "retiring",
    };
    let algorithms = definition
        .algorithms
        .iter()
        .map(|algorithm| Value::from(algorithm_name(*algorithm)))
        .collect();
    table([
        ("name", source.name.as_str().into()),
        ("issuer", definition.issuer.as_str().into()),
        keys,
        ("audiences", texts(&definition.audiences)),
        ("algorithms", Value::Array(algorithms)),
        ("subject_prefix", definition.subject_prefix.as_str().into()),
        ("trust_roles", definition.trust_roles.into()),
        ("ca_file", live_path(definition.ca_file.as_deref()).into()),
        ("allow_insecure_http", definition.allow_insecure_http.into()),
        ("state", state.into()),
    ])
}

fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::ES256 => "ES256",
        Algorithm::ES384 => "ES384",
        Algorithm::RS256 => "RS256",
        Algorithm::RS384 => "RS384",
        Algorithm::RS512 => "RS512",
        Algorithm::PS256 => "PS256",
        Algorithm::PS384 => "PS384",
        Algorithm::PS512 => "PS512",
        Algorithm::EdDSA => "EdDSA",
    }
}

/// The ConfigMap of a `gateway.toml`.
pub(super) fn static_config(
    cluster: &ValidCluster,
    children: &Children,
    text: String,
) -> ConfigMap {
    ConfigMap {
        metadata: super::meta(cluster, &children.static_config),
        data: Some([(GATEWAY_TOML.to_owned(), text)].into()),
        ..ConfigMap::default()
    }
}

/// The ConfigMap of `live.toml`, with the record that it was made from. `jwks` is the public set of the managed keys now; while the record names
/// them and there is none, the one in the cluster stays.
pub(super) fn live_config(
    cluster: &ValidCluster,
    children: &Children,
    record: &Record,
    jwks: Option<&str>,
    current: Option<&ConfigMap>,
) -> ConfigMap {
    let mut data: BTreeMap<String, String> = [(
        LIVE_TOML.to_owned(),
        live_toml(cluster, record, jwks.is_some()),
    )]
    .into();
    let kept = || {
        current
            .filter(|_| names_managed(record))
            .and_then(|map| map.data.as_ref()?.get(JWKS_JSON).cloned())
    };
    if let Some(jwks) = jwks.map(str::to_owned).or_else(kept) {
        data.insert(JWKS_JSON.into(), jwks);
    }
    let mut metadata = super::meta(cluster, &children.live_config);
    let text = serde_json::to_string(record).expect("a record is plain data");
    metadata.annotations = Some([(RECORD.to_owned(), text)].into());
    ConfigMap {
        metadata,
        data: Some(data),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests;

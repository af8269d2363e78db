//! What must hold among the static settings, beyond their types.

use signal_contract::{MAX_STREAM_PATHS, is_stream_path, is_subprotocol};

use super::{
    Config, KafkaMechanism, KafkaProtocol, KafkaRegistry, KafkaSecurity, Policy, RedisMode,
    RedisTls,
};

/// Collects problems, each with the name of its setting.
pub(super) struct Checks<'a>(pub(super) &'a mut Vec<String>);

impl Checks<'_> {
    /// Reports `text` about the setting `name` unless `ok`.
    pub(super) fn need(&mut self, ok: bool, name: &str, text: &str) {
        if !ok {
            self.0.push(format!("{name}: {text}"));
        }
    }

    /// Reports each of these settings that is zero.
    pub(super) fn positive<const N: usize>(&mut self, settings: [(&str, u64); N]) {
        for (name, value) in settings {
            self.need(value > 0, name, "must be at least 1");
        }
    }
}

/// Adds everything that is wrong with the static settings.
pub(super) fn check(config: &Config, problems: &mut Vec<String>) {
    let mut checks = Checks(problems);
    check_process(config, &mut checks);
    check_stream(config, &mut checks);
    check_session(config, &mut checks);
    check_redis(config, &mut checks);
    check_kafka(config, &mut checks);
    check_database(config, &mut checks);
    check_policy(&config.policy, &mut checks);
}

fn check_process(config: &Config, checks: &mut Checks<'_>) {
    let server = &config.server;
    checks.need(
        server.max_header_bytes >= 8192,
        "server.max_header_bytes",
        "must be at least 8192",
    );
    checks.positive([
        ("server.max_headers", server.max_headers as u64),
        ("server.max_body_bytes", server.max_body_bytes as u64),
        (
            "server.header_read_timeout_secs",
            server.header_read_timeout_secs,
        ),
        (
            "server.keep_alive_timeout_secs",
            server.keep_alive_timeout_secs,
        ),
        (
            "workers.control_threads",
            config.workers.control_threads as u64,
        ),
        ("drain.batch_interval_ms", config.drain.batch_interval_ms),
        ("drain.min_batch", config.drain.min_batch as u64),
    ]);
    let tls = &server.tls;
    checks.need(
        tls.enabled()
            || (tls.key_file.path().is_none() && tls.client_ca_file.as_os_str().is_empty()),
        "server.tls.certificate_file",
        "must be set with server.tls.key_file and server.tls.client_ca_file",
    );
    checks.need(
        !tls.enabled() || tls.key_file.path().is_some(),
        "server.tls.key_file",
        "must be set with server.tls.certificate_file",
    );
    checks.need(
        (1..=65_535).contains(&server.listen_backlog),
        "server.listen_backlog",
        "must be from 1 to 65535",
    );
    checks.need(
        config.workers.shards <= 256,
        "workers.shards",
        "must be at most 256",
    );
    checks.need(
        (1..=3660).contains(&config.revocations.token_life_days),
        "revocations.token_life_days",
        "must be from 1 to 3660",
    );
    let ids = &config.ids;
    checks.need(
        u32::from(ids.worker_base) + u32::from(ids.worker_count) <= 1024 && ids.worker_count > 0,
        "ids.worker_count",
        "worker_base + worker_count must lie within 1 to 1024",
    );
    checks.need(
        !config.notifications.default_locale.is_empty(),
        "notifications.default_locale",
        "must name a locale",
    );
    checks.need(
        config.observability.tracing.samples_per_million <= 1_000_000,
        "observability.tracing.samples_per_million",
        "must be at most 1000000",
    );
}

fn check_stream(config: &Config, checks: &mut Checks<'_>) {
    let server = &config.server;
    let paths = &server.stream_paths;
    checks.need(
        (1..=MAX_STREAM_PATHS).contains(&paths.len()),
        "server.stream_paths",
        "must be 1 to 16 paths",
    );
    for path in paths {
        checks.need(
            is_stream_path(path),
            "server.stream_paths",
            &format!("{path:?} is not a path of letters, digits and -._~/, or belongs to REST"),
        );
    }
    for name in &server.subprotocols {
        checks.need(
            is_subprotocol(name),
            "server.subprotocols",
            &format!("{name:?} is not the name of a subprotocol"),
        );
    }
}

fn check_session(config: &Config, checks: &mut Checks<'_>) {
    let (auth, heartbeat) = (&config.auth, &config.heartbeat);
    checks.positive([
        ("auth.connect_timeout_ms", auth.connect_timeout_ms),
        ("auth.finish_timeout_ms", auth.finish_timeout_ms),
        ("heartbeat.sweep_interval_ms", heartbeat.sweep_interval_ms),
        ("session.close_timeout_ms", config.session.close_timeout_ms),
    ]);
    checks.need(
        heartbeat.timeout_ms > 2 * heartbeat.ping_interval_ms,
        "heartbeat.timeout_ms",
        "must exceed two ping intervals, or a live connection is taken for dead",
    );
}

fn check_redis(config: &Config, checks: &mut Checks<'_>) {
    let redis = &config.redis;
    checks.need(
        redis.mode == RedisMode::None || !redis.nodes.is_empty(),
        "redis.nodes",
        "must name at least one host:port in this mode",
    );
    checks.need(
        redis.auth.username.is_empty() || redis.auth.username_file.path().is_none(),
        "redis.auth.username",
        "excludes redis.auth.username_file",
    );
    check_redis_tls(&redis.tls, "redis", checks);
    checks.need(
        redis.stalled_after_ms > redis.self_ping_interval_ms,
        "redis.stalled_after_ms",
        "must exceed redis.self_ping_interval_ms",
    );
    checks.positive([
        ("redis.self_ping_interval_ms", redis.self_ping_interval_ms),
        ("redis.publish_queue", redis.publish_queue as u64),
    ]);
}

/// Of the static settings and of a location in the live ones.
pub(super) fn check_redis_tls(tls: &RedisTls, section: &str, checks: &mut Checks<'_>) {
    let has_certificate = !tls.certificate_file.as_os_str().is_empty();
    checks.need(
        has_certificate == tls.key_file.path().is_some(),
        &format!("{section}.tls.certificate_file"),
        &format!("must be set with {section}.tls.key_file"),
    );
    checks.need(
        tls.enabled || !has_certificate,
        &format!("{section}.tls.certificate_file"),
        &format!("needs {section}.tls.enabled"),
    );
}

fn check_kafka(config: &Config, checks: &mut Checks<'_>) {
    let kafka = &config.kafka;
    checks.need(
        !kafka.enabled || !kafka.brokers.is_empty(),
        "kafka.brokers",
        "must name at least one host:port when kafka.enabled",
    );
    checks.need(
        !kafka.enabled || !kafka.topics.is_empty(),
        "kafka.topics",
        "must name at least one topic when kafka.enabled",
    );
    checks.need(
        !kafka.dead_letter_suffix.is_empty(),
        "kafka.dead_letter_suffix",
        "must not be empty, or dead letters would be consumed again",
    );
    check_kafka_security(&kafka.security, checks);
    check_registry(&kafka.registry, &kafka.topics, checks);
    checks.positive([
        ("kafka.batch_records", kafka.batch_records as u64),
        ("kafka.batch_rows", kafka.batch_rows as u64),
        ("kafka.partition_queue", kafka.partition_queue as u64),
        ("kafka.concurrency", kafka.concurrency as u64),
        ("kafka.max_recipients", kafka.max_recipients as u64),
    ]);
    checks.need(
        (16 << 20..=1 << 40).contains(&kafka.memory_bytes),
        "kafka.memory_bytes",
        "must be from 16777216 to 1099511627776",
    );
    checks.need(
        kafka.retry_initial_ms > 0 && kafka.retry_initial_ms <= kafka.retry_max_ms,
        "kafka.retry_initial_ms",
        "must be at least 1 and at most retry_max_ms",
    );
    checks.need(
        (5..=3600).contains(&kafka.stuck_after_secs),
        "kafka.stuck_after_secs",
        "must be 5 to 3600",
    );
}

fn check_kafka_security(security: &KafkaSecurity, checks: &mut Checks<'_>) {
    let auth = &security.auth;
    let (is_sasl, is_tls) = match security.protocol {
        KafkaProtocol::Plaintext => (false, false),
        KafkaProtocol::Ssl => (false, true),
        KafkaProtocol::SaslPlaintext => (true, false),
        KafkaProtocol::SaslSsl => (true, true),
    };
    checks.need(
        !is_sasl
            || (auth.username.is_empty() == auth.username_file.path().is_some()
                && auth.password_file.path().is_some()),
        "kafka.security.auth.username",
        "SASL needs kafka.security.auth.username or username_file, and kafka.security.auth.password_file",
    );
    let is_token = auth.mechanism == KafkaMechanism::OAuthBearer;
    checks.need(
        !is_sasl || !is_token || is_http(&auth.token_url),
        "kafka.security.auth.token_url",
        "must be an http or https URL without a user, with OAUTHBEARER",
    );
    checks.need(
        is_token
            || (auth.token_url.is_empty()
                && auth.scope.is_empty()
                && auth.token_ca_file.as_os_str().is_empty()),
        "kafka.security.auth.mechanism",
        "token_url, scope and token_ca_file belong to OAUTHBEARER",
    );
    let has_certificate = !security.certificate_file.as_os_str().is_empty();
    checks.need(
        has_certificate == security.key_file.path().is_some(),
        "kafka.security.certificate_file",
        "must be set with kafka.security.key_file",
    );
    checks.need(
        is_tls || !has_certificate,
        "kafka.security.protocol",
        "a certificate needs SSL or SASL_SSL",
    );
}

fn check_registry(registry: &KafkaRegistry, topics: &[String], checks: &mut Checks<'_>) {
    checks.need(
        registry.url.is_empty() || is_http(&registry.url),
        "kafka.registry.url",
        "must be an http or https URL without a user",
    );
    checks.need(
        registry.url.is_empty() == registry.topics.is_empty(),
        "kafka.registry.topics",
        "must be set with kafka.registry.url",
    );
    for topic in &registry.topics {
        checks.need(
            topics.contains(topic),
            "kafka.registry.topics",
            &format!("{topic:?} is none of kafka.topics"),
        );
    }
    let has_password = registry.password_file.path().is_some();
    checks.need(
        match registry.username_file.path() {
            Some(_) => has_password && registry.username.is_empty(),
            None => has_password != registry.username.is_empty(),
        },
        "kafka.registry.username",
        "must be set, it or username_file, with kafka.registry.password_file",
    );
    checks.need(
        !has_password || registry.token_file.path().is_none(),
        "kafka.registry.token_file",
        "excludes kafka.registry.password_file",
    );
}

/// An address without credentials, which would be printed with the settings.
fn is_http(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    })
}

fn check_database(config: &Config, checks: &mut Checks<'_>) {
    let database = &config.database;
    let url = database.url.expose();
    checks.need(
        database.url_file.path().is_some()
            || url.starts_with("postgres://")
            || url.starts_with("postgresql://")
            || url.starts_with("sqlite:"),
        "database.url",
        "must begin with postgres:// or sqlite:",
    );
    checks.positive([
        (
            "database.max_connections",
            u64::from(database.max_connections),
        ),
        ("database.acquire_timeout_ms", database.acquire_timeout_ms),
        (
            "database.statement_timeout_ms",
            database.statement_timeout_ms,
        ),
        (
            "database.tombstone_days",
            u64::from(database.tombstone_days),
        ),
    ]);
}

/// Longest name of a table or a column (PostgreSQL 18, section 4.1.1).
const MAX_IDENTIFIER: usize = 63;
/// Longest word for a kind.
const MAX_KIND: usize = 64;
/// The kind of the people whom activities are for.
const USER: &str = "User";

fn check_policy(policy: &Policy, checks: &mut Checks<'_>) {
    let (tables, columns, kinds) = (&policy.tables, &policy.columns, &policy.kinds);
    for (name, table) in [
        ("policy.tables.policy_definition", &tables.policy_definition),
        ("policy.tables.permission", &tables.permission),
    ] {
        let parts: Vec<&str> = table.split('.').collect();
        checks.need(
            parts.len() <= 2 && parts.iter().all(|part| is_identifier(part)),
            name,
            "must be a name, or a schema and a name with a dot between them, of letters, digits and underscores",
        );
    }
    for (name, column) in [
        ("policy.columns.id", &columns.id),
        ("policy.columns.variant", &columns.variant),
        ("policy.columns.subject_type", &columns.subject_type),
        ("policy.columns.subject_id", &columns.subject_id),
        ("policy.columns.target_type", &columns.target_type),
        ("policy.columns.target_id", &columns.target_id),
        ("policy.columns.action", &columns.action),
        ("policy.columns.effect", &columns.effect),
        ("policy.columns.domain", &columns.domain),
        ("policy.columns.code", &columns.code),
    ] {
        checks.need(
            is_identifier(column),
            name,
            "must be a name of letters, digits and underscores",
        );
    }
    checks.need(
        columns.deleted_at.is_empty() || is_identifier(&columns.deleted_at),
        "policy.columns.deleted_at",
        "must be empty, or a name of letters, digits and underscores",
    );
    let named = [
        ("policy.kinds.role", &kinds.role),
        ("policy.kinds.permission", &kinds.permission),
        ("policy.kinds.merchant", &kinds.merchant),
        ("policy.kinds.organizer", &kinds.organizer),
    ];
    for (at, (name, kind)) in named.iter().enumerate() {
        checks.need(
            is_kind(kind),
            name,
            "must have 1 to 64 letters, digits and hyphens",
        );
        checks.need(
            **kind != USER && named[..at].iter().all(|(_, other)| other != kind),
            name,
            "must differ from User and from the other kinds",
        );
    }
    checks.need(
        policy.bare_domain_kind.is_empty() || is_kind(&policy.bare_domain_kind),
        "policy.bare_domain_kind",
        "must be empty, or have 1 to 64 letters, digits and hyphens",
    );
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= MAX_IDENTIFIER
        && bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Without an underscore, which ends the kind in `Merchant_42`.
fn is_kind(kind: &str) -> bool {
    (1..=MAX_KIND).contains(&kind.len())
        && kind
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

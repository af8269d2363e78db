//! The settings of a SignalCluster's gateways: what its spec and its record say, as the values of the contract.
//!
//! Every setting starts at the contract's default, and only what differs from it is written, so that the image may be one release older.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use signal_contract::{
    Config, KafkaAuth, KafkaRegistry, KafkaSecurity, Live, ManagedJwks, PolicyColumns, PolicyKinds,
    PolicyTables, RedisAuth, RedisLocation, RedisMode, RedisTls, Secret, SecretFile, SendQueue,
    Sentinel, ServerTls, Source, Tracing, prefixes_collide,
};
use signal_crds::data::{Database, Kafka, Migrations, Policy};
use signal_crds::gateway::AddressFamilies;

use super::config_map::{DATA_DIR, JWKS_JSON, LIVE_TOML};
use super::credentials::ADMIN_TOKEN;
use crate::names::{CATALOG_DIR, LIVE_DIR};
use crate::plan::record::{Record, RecordedRedis, RecordedSource};
use crate::plan::validate::{
    BASIC_USERS, DATABASE_URL, KAFKA_CA, KAFKA_CERTIFICATE, KAFKA_KEY, KAFKA_PASSWORD,
    KAFKA_TOKEN_CA, KAFKA_USERNAME, POLICY_URL, REGISTRY_CA, REGISTRY_PASSWORD, REGISTRY_TOKEN,
    REGISTRY_USERNAME, TLS_CERTIFICATE, TLS_CLIENT_CA, TLS_KEY, ValidCluster,
};

/// Redis as the static settings name it: its location stands in the live file, so that a switch changes no pod template.
const REDIS_IN_LIVE_FILE: &str = "named-by-the-live-file.invalid:6379";

/// The path of a file of the projected volume.
fn mounted(file: &str) -> String {
    format!("{LIVE_DIR}/{file}")
}

fn secret_file(file: Option<&str>) -> SecretFile {
    file.map(|file| SecretFile::new(mounted(file)))
        .unwrap_or_default()
}

/// The same for what is no secret.
fn path(file: Option<&str>) -> PathBuf {
    file.map(|file| mounted(file).into()).unwrap_or_default()
}

/// Whole milliseconds, at most what TOML can write.
fn millis(duration: signal_crds::Duration) -> u64 {
    duration.as_millis().min(i64::MAX.unsigned_abs())
}

fn size(number: u32) -> usize {
    usize::try_from(number).expect("a pod has 64 bits")
}

/// The static settings.
pub(super) fn static_settings(cluster: &ValidCluster) -> Config {
    let mut config = Config::defaults();
    config.live_file = mounted(LIVE_TOML).into();
    gateway(cluster, &mut config);
    if let Some(redis) = &cluster.spec.redis {
        config.redis.mode = RedisMode::Standalone;
        config.redis.nodes = vec![REDIS_IN_LIVE_FILE.to_owned()];
        config.redis.self_ping_interval_ms = millis(redis.self_ping_interval);
        config.redis.stalled_after_ms = millis(redis.stalled_after);
        config.redis.sharded_pubsub = redis.sharded_pubsub;
    }
    if let Some(spec) = &cluster.spec.kafka {
        kafka(cluster, spec, &mut config.kafka);
    }
    database(cluster.spec.database.as_ref(), &mut config.database);
    surroundings(cluster, &mut config);
    config
}

/// The file of this name, where the spec refers to a Secret for it.
fn referenced(cluster: &ValidCluster, name: &'static str) -> SecretFile {
    secret_file(cluster.files.contains_key(name).then_some(name))
}

/// The same for what is no secret.
fn public_file(cluster: &ValidCluster, name: &'static str) -> PathBuf {
    let file = referenced(cluster, name);
    file.path().map(Into::into).unwrap_or_default()
}

fn gateway(cluster: &ValidCluster, config: &mut Config) {
    let gateway = &cluster.spec.gateway;
    let any: IpAddr = match gateway.address_families {
        AddressFamilies::IPv4 => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamilies::DualStack => Ipv6Addr::UNSPECIFIED.into(),
    };
    config.server.public_address = (any, gateway.public_port).into();
    config.server.admin_address = (any, gateway.admin_port).into();
    if let Some(tls) = &gateway.tls {
        config.server.tls = ServerTls {
            certificate_file: mounted(TLS_CERTIFICATE).into(),
            key_file: secret_file(Some(TLS_KEY)),
            client_ca_file: public_file(cluster, TLS_CLIENT_CA),
            min_version: tls.min_version.into(),
        };
    }
    config.server.listen_backlog = gateway.listen_backlog;
    config.server.header_read_timeout_secs = gateway.header_read_timeout.as_secs();
    config.server.keep_alive_timeout_secs = gateway.keep_alive_timeout.as_secs();
    config.server.stream_paths = gateway.stream_paths.clone();
    config.server.subprotocols = gateway.subprotocols.clone();
    config.server.admin_token_file = secret_file(Some(ADMIN_TOKEN));
    config.auth.connect_timeout_ms = millis(gateway.auth.connect_timeout);
    config.auth.finish_timeout_ms = millis(gateway.auth.finish_timeout);
    config.auth.expiring_lead_secs = gateway.auth.expiring_lead.as_secs();
    config.auth.basic_users_file = referenced(cluster, BASIC_USERS);
    config.heartbeat.ping_interval_ms = millis(gateway.heartbeat.ping_interval);
    config.heartbeat.timeout_ms = millis(gateway.heartbeat.timeout);
    config.encryption.mode = gateway.encryption.mode.into();
    config.encryption.client_frames = gateway.encryption.client_frames.into();
    config.rooms.unmatched = gateway.rooms.unmatched.into();
}

fn kafka(cluster: &ValidCluster, spec: &Kafka, kafka: &mut signal_contract::Kafka) {
    kafka.enabled = true;
    kafka.brokers.clone_from(&spec.brokers);
    kafka.group_id.clone_from(&spec.group_id);
    kafka.topics.clone_from(&spec.topics);
    kafka.offset_reset = spec.offset_reset.into();
    kafka
        .dead_letter_suffix
        .clone_from(&spec.dead_letter_suffix);
    kafka.concurrency = size(spec.concurrency);
    kafka.memory_bytes = usize::try_from(spec.memory_bytes).expect("a pod has 64 bits");
    kafka.stuck_after_secs = spec.stuck_after.as_secs();
    kafka.stuck_is_unready = spec.stuck_is_unready;
    let auth = spec.security.auth.as_ref();
    let username = auth.and_then(|auth| auth.username.clone());
    let user = spec.security.user.as_ref();
    let user = user.filter(|_| spec.security.protocol.is_sasl());
    let user = user.map(|user| user.username.as_ref().unwrap_or(&user.secret_name));
    kafka.security = KafkaSecurity {
        protocol: spec.security.protocol.into(),
        auth: KafkaAuth {
            mechanism: auth.map(|auth| auth.mechanism).unwrap_or_default().into(),
            username: username.or(user.cloned()).unwrap_or_default(),
            username_file: referenced(cluster, KAFKA_USERNAME),
            password_file: referenced(cluster, KAFKA_PASSWORD),
            token_url: auth
                .and_then(|auth| auth.token_url.clone())
                .unwrap_or_default(),
            scope: auth.map(|auth| auth.scope.clone()).unwrap_or_default(),
            token_ca_file: public_file(cluster, KAFKA_TOKEN_CA),
        },
        ca_file: public_file(cluster, KAFKA_CA),
        certificate_file: public_file(cluster, KAFKA_CERTIFICATE),
        key_file: referenced(cluster, KAFKA_KEY),
    };
    if let Some(registry) = &spec.registry {
        kafka.registry = KafkaRegistry {
            url: registry.url.clone(),
            topics: registry.topics.clone(),
            username: String::new(),
            username_file: referenced(cluster, REGISTRY_USERNAME),
            password_file: referenced(cluster, REGISTRY_PASSWORD),
            token_file: referenced(cluster, REGISTRY_TOKEN),
            ca_file: public_file(cluster, REGISTRY_CA),
        };
    }
}

fn database(spec: Option<&Database>, database: &mut signal_contract::Database) {
    let Some(spec) = spec else {
        database.url = Secret::new(format!("sqlite://{DATA_DIR}/signal.db"));
        return;
    };
    database.url_file = secret_file(Some(DATABASE_URL));
    database.max_connections = spec.max_connections;
    database.migrate = matches!(spec.migrations, Migrations::Startup);
    database.retention_days = u32::try_from(spec.retention.as_secs() / 86_400).unwrap_or(u32::MAX);
}

fn policy(spec: &Policy, policy: &mut signal_contract::Policy) {
    let (tables, columns, kinds) = (&spec.tables, &spec.columns, &spec.kinds);
    policy.cache_secs = spec.cache.as_secs();
    policy.always_allow_roles = spec.always_allow_roles.clone();
    policy.bare_domain_kind = spec.bare_domain_kind.clone();
    policy.tables = PolicyTables {
        policy_definition: tables.policy_definition.clone(),
        permission: tables.permission.clone(),
    };
    policy.columns = PolicyColumns {
        id: columns.id.clone(),
        deleted_at: columns.deleted_at.clone(),
        variant: columns.variant.clone(),
        subject_type: columns.subject_type.clone(),
        subject_id: columns.subject_id.clone(),
        target_type: columns.target_type.clone(),
        target_id: columns.target_id.clone(),
        action: columns.action.clone(),
        effect: columns.effect.clone(),
        domain: columns.domain.clone(),
        code: columns.code.clone(),
    };
    policy.kinds = PolicyKinds {
        role: kinds.role.clone(),
        permission: kinds.permission.clone(),
        merchant: kinds.merchant.clone(),
        organizer: kinds.organizer.clone(),
    };
}

fn surroundings(cluster: &ValidCluster, config: &mut Config) {
    let spec = &cluster.spec;
    config.policy.url_file = referenced(cluster, POLICY_URL);
    policy(&spec.policy, &mut config.policy);
    config.notifications.default_locale = spec.notifications.default_locale.clone();
    if spec.notifications.catalog_ref.is_some() {
        config.notifications.catalog_dir = CATALOG_DIR.into();
    }
    config.drain.endpoint_propagation_ms = millis(spec.drain.endpoint_propagation);
    config.drain.window_ms = millis(spec.drain.window);
    config.drain.batch_interval_ms = millis(spec.drain.batch_interval);
    config.drain.min_batch = size(spec.drain.min_batch);
    config.observability.log_format = spec.observability.log_format.into();
    if let Some(tracing) = &spec.observability.tracing {
        config.observability.tracing = Tracing {
            endpoint: tracing.endpoint.clone(),
            samples_per_million: tracing.samples_per_million,
        };
    }
}

/// The live settings. With `managed`, or while the record still names a source of the managed keys, gateways publish their public set.
pub(super) fn live_settings(cluster: &ValidCluster, record: &Record, managed: bool) -> Live {
    let spec = &cluster.spec;
    let mut live = Live::defaults();
    live.allowed_origins = spec.gateway.allowed_origins.clone();
    let networks = spec.gateway.trusted_proxies.iter();
    live.trusted_proxies = networks
        .map(|network| network.parse().expect("validated"))
        .collect();
    let networks = spec.gateway.proxy_protocol_from.iter();
    live.proxy_protocol_from = networks
        .map(|network| network.parse().expect("validated"))
        .collect();
    live.auth.clock_skew_secs = spec.gateway.auth.clock_skew.as_secs();
    live.observability.log_filter = spec.observability.log_filter.clone();
    live.rooms.max_per_connection = size(spec.gateway.rooms.max_per_connection);
    limits(&spec.limits, &mut live.limits);
    live.jwks.refresh_interval_secs = spec.jwks.refresh_interval.as_secs();
    live.jwks.min_refresh_interval_secs = spec.jwks.min_refresh_interval.as_secs();
    live.jwks.max_stale_secs = spec.jwks.max_stale.as_secs();
    live.jwks.request_timeout_ms = millis(spec.jwks.request_timeout);
    live.jwks.revoked_sources = record.jwks.revoked_sources.clone();
    live.jwks.sources = record.jwks.sources.iter().map(source).collect();
    share_subjects(cluster, &record.jwks.sources, &mut live.jwks.sources);
    if managed || record.names_managed() {
        live.jwks.managed = ManagedJwks {
            jwks_file: mounted(JWKS_JSON).into(),
            ..live.jwks.managed
        };
        if let Some(managed) = &spec.jwks.managed {
            live.jwks.managed.cache_age_secs = managed.cache_age.as_secs();
        }
    }
    live.redis = record.redis.current.as_ref().map(location);
    let previous = record.redis.previous.as_ref().map(location);
    // Other credentials for the same server are no other server, and gateways refuse such a pair.
    live.redis_previous = previous.filter(|previous| {
        !live
            .redis
            .as_ref()
            .is_some_and(|redis| redis.is_same_server(previous))
    });
    live
}

fn limits(spec: &signal_crds::gateway::Limits, limits: &mut signal_contract::Limits) {
    limits.connections_per_pod = size(spec.connections_per_pod);
    limits.connections_per_user = size(spec.connections_per_user);
    limits.accepts_per_second = spec.accepts_per_second;
    // A gateway reads a burst of 0 as no connection at all.
    limits.accept_burst = spec.accept_burst.max(1);
    limits.http_connections_per_pod = size(spec.http_connections_per_pod);
    limits.http_connections_per_network = size(spec.http_connections_per_network);
    limits.frame_bytes = size(spec.frame_bytes);
    limits.message_bytes = size(spec.message_bytes);
    limits.inbound_frames_per_second = spec.inbound_frames_per_second;
    limits.inbound_burst = spec.inbound_burst;
    let queue = &spec.send_queue;
    let total_bytes = queue.total_bytes.min(i64::MAX.unsigned_abs());
    limits.send_queue = SendQueue {
        bytes: size(queue.bytes),
        frames: size(queue.frames),
        total_bytes: usize::try_from(total_bytes).expect("a pod has 64 bits"),
        write_timeout_ms: millis(queue.write_timeout),
    };
}

fn location(redis: &RecordedRedis) -> RedisLocation {
    let mut sentinel = Sentinel::default();
    if redis.mode == RedisMode::Sentinel {
        sentinel = Sentinel {
            master_name: redis.sentinel_master.clone(),
            password_file: secret_file(redis.sentinel_password_file.as_deref()),
        };
    }
    RedisLocation {
        mode: redis.mode,
        nodes: redis.nodes.clone(),
        sentinel,
        database: redis.database.into(),
        auth: RedisAuth {
            username: redis.username.clone(),
            username_file: secret_file(redis.username_file.as_deref()),
            password_file: secret_file(redis.password_file.as_deref()),
        },
        tls: RedisTls {
            enabled: redis.tls,
            ca_file: path(redis.ca_file.as_deref()),
            certificate_file: path(redis.certificate_file.as_deref()),
            key_file: secret_file(redis.key_file.as_deref()),
        },
        channel_prefix: redis.prefix.clone(),
    }
}

/// While a source is replaced, gateways have it twice: with two issuers or without any, and with the same people. Sources that the spec names side by side
/// are never made one.
fn share_subjects(cluster: &ValidCluster, recorded: &[RecordedSource], sources: &mut [Source]) {
    let is_wanted = |source: &RecordedSource| {
        let mut wanted = cluster.sources.iter();
        wanted
            .any(|(name, definition)| *name == source.declared && *definition == source.definition)
    };
    let is_declared = |source: &RecordedSource| {
        let mut wanted = cluster.sources.iter();
        wanted.any(|(name, _)| *name == source.declared)
    };
    // Another version of the same source, or a source that the spec does not name any more.
    let is_replaced = |one: &RecordedSource, other: &RecordedSource| {
        !is_wanted(one) && (one.declared == other.declared || !is_declared(one))
    };
    for at in 1..sources.len() {
        for earlier in 0..at {
            let (one, other) = (&recorded[at], &recorded[earlier]);
            let collide = !sources[at].shares_subjects_with(&sources[earlier])
                && prefixes_collide(
                    &one.definition.subject_prefix,
                    &other.definition.subject_prefix,
                );
            if collide && (is_replaced(one, other) || is_replaced(other, one)) {
                let name = sources[earlier].name.clone();
                sources[at].same_subjects_as.push(name);
            }
        }
    }
}

fn source(source: &RecordedSource) -> Source {
    let definition = &source.definition;
    Source {
        name: source.name.clone(),
        issuer: definition.issuer.clone(),
        // A URL was validated before it was recorded. A source without one has its keys from the managed set.
        url: definition.url.as_deref().and_then(|url| url.parse().ok()),
        keys_file: match definition.url {
            Some(_) => Default::default(),
            None => mounted(JWKS_JSON).into(),
        },
        audiences: definition.audiences.clone(),
        algorithms: definition.algorithms.iter().map(|a| (*a).into()).collect(),
        preset: definition.preset,
        subject_claims: definition.subject_claims.clone(),
        application_secret_file: secret_file(definition.application_secret_file.as_deref()),
        subject_prefix: definition.subject_prefix.clone(),
        trust_roles: definition.trust_roles,
        ca_file: path(definition.ca_file.as_deref()),
        allow_insecure_http: definition.allow_insecure_http,
        state: source.stage.into(),
        ..Source::default()
    }
}

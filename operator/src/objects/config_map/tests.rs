//! The settings that the operator writes are settings that a gateway reads.

use std::io::Write as _;

use signal_crds::data::{KafkaMechanism, KafkaRegistry};
use signal_crds::reference::SecretKey;
use signal_crds::status::SourceStage;
use signal_gateway::config::{self, RedisMode, SourceState};
use signal_services::{Authority, PrivateKey};

use super::*;
use crate::fixture::{EXAMPLES, changed, example, observed, settled};
use crate::observe::observed::Observed;
use crate::plan::record::RecordedRedis;
use crate::plan::validate::validate;

fn load(observed: &Observed) -> config::Config {
    let cluster = validate(observed).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(gateway_toml(&cluster).as_bytes()).unwrap();
    config::load(Some(file.path()), std::iter::empty()).unwrap()
}

#[test]
fn a_gateway_loads_the_static_settings_of_every_example() {
    for (name, text) in EXAMPLES {
        let observed = observed(text);
        let config = load(&observed);
        assert_eq!(
            config.server.public_address.port(),
            observed.cluster.spec.gateway.public_port,
            "{name}"
        );
    }
}

fn with_every_login_of_kafka() -> Observed {
    let key = |name: &str, key: &str| SecretKey {
        name: name.into(),
        key: key.into(),
    };
    changed("production", |cluster| {
        let kafka = cluster.spec.kafka.as_mut().unwrap();
        kafka.security.certificate_secret_ref = Some(key("client", "user.crt"));
        kafka.security.key_secret_ref = Some(key("client", "user.key"));
        let auth = kafka.security.auth.as_mut().unwrap();
        auth.mechanism = KafkaMechanism::OAuthBearer;
        auth.token_url = Some("https://id.example.com/token".into());
        auth.scope = "kafka".into();
        auth.token_ca_secret_ref = Some(key("authorities", "ca.crt"));
        kafka.registry = Some(KafkaRegistry {
            url: "https://registry:8081".into(),
            topics: kafka.topics.clone(),
            username_secret_ref: Some(key("kafka", "user")),
            password_secret_ref: Some(key("kafka", "pass")),
            token_secret_ref: None,
            ca_secret_ref: Some(key("authorities", "ca.crt")),
        });
    })
}

#[test]
fn logins_and_the_registry_of_kafka_arrive_with_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let ip = std::net::Ipv4Addr::LOCALHOST;
    authority.issue("user", ip, PrivateKey::Pkcs8).unwrap();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let mut observed = with_every_login_of_kafka();
    let mut data = [
        ("user.crt".to_owned(), read("user.pem")),
        ("user.key".to_owned(), read("user.key")),
    ];
    let secrets = &mut observed.secrets;
    secrets.insert("client".into(), Some(data.clone().into()));
    let kafka = load(&observed).kafka;
    let security = &kafka.security;
    let files = [
        &security.certificate_file,
        security.key_file.path().unwrap(),
        &security.auth.token_ca_file,
        security.auth.username_file.path().unwrap(),
        kafka.registry.username_file.path().unwrap(),
        kafka.registry.password_file.path().unwrap(),
        &kafka.registry.ca_file,
    ]
    .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    assert_eq!(
        files,
        [
            "kafka-client.crt",
            "kafka-client.key",
            "kafka-token-ca.crt",
            "kafka-username",
            "kafka-registry-username",
            "kafka-registry-password",
            "kafka-registry-ca.crt"
        ]
    );
    let cluster = validate(&observed).unwrap();
    assert!(files.iter().all(|file| cluster.files.contains_key(file)));
    let texts = [
        &security.auth.token_url,
        &security.auth.scope,
        &kafka.registry.url,
    ];
    assert_eq!(
        texts,
        [
            "https://id.example.com/token",
            "kafka",
            "https://registry:8081"
        ]
    );
    assert_eq!(kafka.registry.topics, kafka.topics);

    authority.issue("other", ip, PrivateKey::Pkcs8).unwrap();
    data[1].1 = read("other.key");
    let secrets = &mut observed.secrets;
    secrets.insert("client".into(), Some(data.into()));
    let problems = validate(&observed).unwrap_err();
    assert_eq!(
        problems[0].message,
        "spec.kafka.security.certificateSecretRef: Secret client: user.key does not belong to the certificate in user.crt"
    );
}

#[test]
fn static_settings_arrive_in_their_units() {
    let config = load(&example("production"));
    assert_eq!(
        config.live_file,
        std::path::Path::new("/etc/signal/live/live.toml")
    );
    assert_eq!(
        (config.drain.endpoint_propagation_ms, config.drain.window_ms),
        (8_000, 90_000)
    );
    assert_eq!(
        (config.auth.expiring_lead_secs, config.heartbeat.timeout_ms),
        (60, 90_000)
    );
    assert_eq!(
        (
            config.policy.cache_secs,
            config.database.retention_days,
            config.database.migrate
        ),
        (60, 180, false)
    );
    assert_ne!(config.redis.mode, RedisMode::None);
    let username = config.kafka.security.auth.username_file;
    assert!(username.path().unwrap().ends_with("kafka-username"));
    assert_eq!(config.observability.tracing.samples_per_million, 2500);
    let config = load(&example("development"));
    assert!(config.database.migrate);
    assert_eq!(
        (config.drain.batch_interval_ms, config.drain.min_batch),
        (500, 1)
    );
    assert_eq!(load(&example("minimal")).redis.mode, RedisMode::None);
}

#[test]
fn a_gateway_loads_live_settings_of_one_pod_alone() {
    let cluster = validate(&example("minimal")).unwrap();
    let mut record = settled(&cluster);
    record.jwks.sources[0].stage = SourceStage::Retiring;
    let live = config::load_live(&live_toml(&cluster, &record, false)).unwrap();
    assert_eq!(live.jwks.sources[0].state, SourceState::Retiring);
    assert_eq!(
        (
            live.limits.connections_per_pod,
            live.jwks.max_stale_secs,
            live.auth.clock_skew_secs
        ),
        (50_000, 43_200, 30)
    );
    config::load_live(&live_toml(&cluster, &Record::default(), false)).unwrap();
}

#[test]
fn bounds_at_their_least_are_settings_that_a_gateway_takes() {
    let observed = changed("minimal", |cluster| {
        let limits = &mut cluster.spec.limits;
        limits.accept_burst = 0;
        limits.connections_per_user = 0;
        limits.inbound_frames_per_second = 0;
        limits.inbound_burst = 0;
        cluster.spec.gateway.heartbeat.ping_interval = signal_crds::Duration::default();
        cluster.spec.policy.cache = signal_crds::Duration::default();
        cluster.spec.jwks.min_refresh_interval = signal_crds::Duration::default();
    });
    load(&observed);
    let cluster = validate(&observed).unwrap();
    config::load_live(&live_toml(&cluster, &settled(&cluster), false)).unwrap();
}

#[test]
fn texts_of_users_cannot_leave_their_quotes() {
    let observed = changed("minimal", |cluster| {
        cluster.spec.jwks.sources[0].issuer = "a\"\n[server]\npublic_address = \"b".into();
        cluster.spec.policy.always_allow_roles = vec!["x\"]\n".into()];
    });
    assert_eq!(load(&observed).policy.always_allow_roles, ["x\"]\n"]);
    let cluster = validate(&observed).unwrap();
    let live = config::load_live(&live_toml(&cluster, &settled(&cluster), false)).unwrap();
    assert_eq!(live.jwks.sources[0].issuer, cluster.sources[0].1.issuer);
}

#[test]
fn a_gateway_loads_managed_keys_and_revoked_sources() {
    let cluster = validate(&changed("production", |cluster| cluster.spec.redis = None)).unwrap();
    let mut record = settled(&cluster);
    record.jwks.revoked_sources = vec!["old".into()];
    let live = config::load_live(&live_toml(&cluster, &record, true)).unwrap();
    let jwks = std::path::Path::new("/etc/signal/live/jwks.json");
    assert_eq!(
        (
            live.jwks.managed.jwks_file.as_path(),
            live.jwks.managed.cache_age_secs
        ),
        (jwks, 300)
    );
    assert_eq!(live.jwks.revoked_sources, ["old"]);
    let keys: Vec<_> = live
        .jwks
        .sources
        .iter()
        .map(|source| (source.url.is_some(), source.keys_file == jwks))
        .collect();
    assert_eq!(keys, [(true, false), (true, false), (false, true)]);
    for (setting, file) in live.files() {
        let name = file
            .strip_prefix(crate::names::LIVE_DIR)
            .unwrap()
            .to_str()
            .unwrap();
        assert!(
            name == JWKS_JSON || cluster.files.contains_key(name),
            "{setting} names {name}"
        );
    }
}

#[test]
fn a_gateway_loads_a_source_of_preset_ignis() {
    let cluster = validate(&changed("production", |cluster| {
        let source = &mut cluster.spec.jwks.sources[0];
        source.preset = signal_crds::jwks::SourcePreset::Ignis;
        (source.issuer, source.audiences) = (String::new(), vec![]);
        source.subject_claims = vec!["userId".into()];
        source.application_secret_ref = Some(signal_crds::reference::SecretKey {
            name: "redis".into(),
            key: "pass".into(),
        });
    }))
    .unwrap();
    let live = config::load_live(&live_toml(&cluster, &settled(&cluster), false)).unwrap();
    let source = &live.jwks.sources[0];
    assert_eq!(source.preset, config::SourcePreset::Ignis);
    assert!(source.waives_issuer() && source.waives_audience());
    assert_eq!(source.subject_claims().collect::<Vec<_>>(), ["userId"]);
    let secret = source.application_secret_file.path().unwrap();
    let name = secret.strip_prefix(crate::names::LIVE_DIR).unwrap();
    assert!(cluster.files.contains_key(name.to_str().unwrap()));
    let mut record = settled(&cluster);
    assert_eq!(Record::read(&record.write()).unwrap(), record);
    assert!(record.files().any(|file| name.to_str() == Some(file)));

    // Another secret is another source: during the overlap both are accepted, and have the same people.
    let mut older = record.jwks.sources[0].clone();
    older.name = "main-older".into();
    older.definition.application_secret_file = Some("source-main-secret-00000000".into());
    record.jwks.sources.push(older);
    let live = config::load_live(&live_toml(&cluster, &record, false)).unwrap();
    assert_eq!(live.jwks.sources[3].same_subjects_as, ["main"]);
}

#[test]
fn a_gateway_loads_a_source_and_the_one_that_replaces_it() {
    let cluster = validate(&changed("production", |cluster| {
        cluster.spec.jwks.sources[0].name = "renamed".into();
        cluster.spec.jwks.sources[0].issuer = "https://other.example.com/".into();
    }))
    .unwrap();
    let before = settled(&validate(&example("production")).unwrap());
    let mut record = settled(&cluster);
    record
        .jwks
        .sources
        .insert(0, before.jwks.sources[0].clone());
    let live = config::load_live(&live_toml(&cluster, &record, false)).unwrap();
    assert_eq!(live.jwks.sources[1].same_subjects_as, ["main"]);

    // Two sources that exchange their prefixes are not made one: a gateway keeps the settings that it has.
    let cluster = validate(&changed("production", |cluster| {
        cluster.spec.jwks.sources[0].subject_prefix = "p:".into();
        cluster.spec.jwks.sources[1].subject_prefix = String::new();
    }))
    .unwrap();
    let mut record = settled(&cluster);
    for mut source in before.jwks.sources.into_iter().take(2) {
        source.name = format!("{}-older", source.name);
        record.jwks.sources.push(source);
    }
    config::load_live(&live_toml(&cluster, &record, false)).unwrap_err();
}

#[test]
fn a_gateway_loads_the_current_and_the_previous_redis() {
    let cluster = validate(&changed("production", |cluster| {
        cluster.spec.jwks.managed = None;
        cluster.spec.notifications.catalog_ref = None;
    }))
    .unwrap();
    let mut record = settled(&cluster);
    let before = RecordedRedis {
        nodes: vec!["old:26379".into()],
        password_file: None,
        ..record.redis.current.clone().unwrap()
    };
    record.redis.previous = Some(before);
    let live = config::load_live(&live_toml(&cluster, &record, false)).unwrap();
    let (redis, previous) = (live.redis.unwrap(), live.redis_previous.unwrap());
    assert_eq!(
        (
            redis.mode,
            redis.nodes.len(),
            redis.sentinel.master_name.as_str(),
            redis.auth.username.as_str()
        ),
        (RedisMode::Sentinel, 3, "mymaster", "")
    );
    assert_eq!(previous.nodes, ["old:26379"]);
    assert!(previous.auth.password_file.path().is_none());
    let named: Vec<_> = redis
        .files()
        .map(|(_, file)| {
            file.strip_prefix(crate::names::LIVE_DIR)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert!(
        named.len() == 4 && named.iter().all(|name| cluster.files.contains_key(name)),
        "{named:?}"
    );

    // Another password of the same server is no switch: a gateway refuses two locations that are one server.
    record.redis.previous = record.redis.current.clone().map(|redis| RecordedRedis {
        password_file: None,
        ..redis
    });
    assert!(
        config::load_live(&live_toml(&cluster, &record, false))
            .unwrap()
            .redis_previous
            .is_none()
    );
}

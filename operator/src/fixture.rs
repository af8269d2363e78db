//! Where tests start: a SignalCluster and the objects it refers to, read from YAML as if they had been observed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Deserialize as _;
use serde_yaml_ng::Value;
use signal_contract::StatusReport;
use signal_crds::SignalCluster;
use signal_crds::data::KafkaProtocol;
use signal_crds::reference::SecretKey;
use signal_crds::secrets::DatabaseConnection;
use signal_crds::status::SourceStage;
use signal_services::{Authority, PrivateKey};

use crate::decide::{ClusterMemory, ClusterPlan, decide};
use crate::observe::fleet::{Fleet, Pod};
use crate::observe::observed::{KindAccess, Kinds, Observed, PodAllowances};
use crate::plan::record::{Record, RecordedSource, RedisRecord, SigningRecord, SourcesRecord};
use crate::plan::validate::ValidCluster;

/// The examples, by name.
pub(crate) const EXAMPLES: [(&str, &str); 3] = [
    ("minimal", include_str!("../golden/minimal.yaml")),
    ("production", include_str!("../golden/production.yaml")),
    ("development", include_str!("../golden/development.yaml")),
];

/// One of the examples.
pub(crate) fn example(name: &str) -> Observed {
    observed(EXAMPLES.iter().find(|(known, _)| *known == name).unwrap().1)
}

/// What is decided of it at first, with nothing remembered.
pub(crate) fn plan_of(observed: &Observed, now: DateTime<Utc>) -> ClusterPlan {
    let mut random = StdRng::seed_from_u64(7);
    decide(
        observed,
        &mut ClusterMemory::default(),
        None,
        &mut random,
        now,
    )
}

/// A pod that is ready, and whose report says nothing.
pub(crate) fn pod(name: &str) -> Pod {
    Pod {
        name: name.into(),
        uid: name.into(),
        resource_version: "1".into(),
        ip: Some([10, 0, 0, 1].into()),
        admin_port: 9090,
        readiness_lag: std::time::Duration::from_secs(13),
        node: Some("node".into()),
        ready: true,
        terminating: false,
        draining_since: None,
        restarts: 0,
        asked_to_drain: false,
        deletion_cost: None,
        template_hash: "1".into(),
        created: DateTime::UNIX_EPOCH,
        problem: None,
        changes_at: None,
        report: Ok(StatusReport::default()),
    }
}

/// The observation of a cluster with only these objects and every optional kind.
pub(crate) fn observed(yaml: &str) -> Observed {
    let mut cluster: Option<SignalCluster> = None;
    let mut secrets = BTreeMap::new();
    let mut maps = BTreeMap::new();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let value = Value::deserialize(document).unwrap();
        match value["kind"].as_str().unwrap() {
            "SignalCluster" => cluster = Some(serde_yaml_ng::from_value(value).unwrap()),
            "Secret" => {
                let secret: Secret = serde_yaml_ng::from_value(value).unwrap();
                let data = secret
                    .string_data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, text)| (key, text.into_bytes()))
                    .collect();
                secrets.insert(secret.metadata.name.unwrap(), Some(data));
            }
            "ConfigMap" => {
                let map: ConfigMap = serde_yaml_ng::from_value(value).unwrap();
                maps.insert(map.metadata.name.clone().unwrap(), map);
            }
            other => panic!("{other}"),
        }
    }
    let cluster = Arc::new(cluster.expect("a SignalCluster"));
    let catalogs = cluster
        .spec
        .notifications
        .catalog_ref
        .as_ref()
        .map(|named| maps.remove(&named.name));
    Observed {
        cluster,
        replicas_named: true,
        secrets,
        catalogs,
        deployment: None,
        revisions: Vec::new(),
        template_hashes: BTreeSet::new(),
        live_config: None,
        credentials: None,
        signing_keys: None,
        jobs: Vec::new(),
        migration_pods: Vec::new(),
        hpa: None,
        owned: Vec::new(),
        gateways: Vec::new(),
        fleet: Fleet::default(),
        kinds: Kinds {
            http_route: KindAccess::Usable,
            ingress: KindAccess::Usable,
            service_monitor: KindAccess::Usable,
            prometheus_rule: KindAccess::Usable,
        },
        unread: Vec::new(),
        allowed: PodAllowances {
            extra_containers: true,
            ..PodAllowances::default()
        },
    }
}

/// The example after `change`.
pub(crate) fn changed(name: &str, change: impl FnOnce(&mut SignalCluster)) -> Observed {
    let mut observed = example(name);
    change(Arc::make_mut(&mut observed.cluster));
    observed
}

/// The record of a cluster in which no change is in progress.
pub(crate) fn settled(cluster: &ValidCluster) -> Record {
    let sources = cluster
        .sources
        .iter()
        .map(|(declared, definition)| RecordedSource {
            name: declared.clone(),
            declared: declared.clone(),
            definition: definition.clone(),
            stage: SourceStage::Trusted,
            since: chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
            retire_after: None,
        });
    Record {
        jwks: SourcesRecord {
            sources: sources.collect(),
            ..SourcesRecord::default()
        },
        redis: RedisRecord {
            current: cluster.redis.clone(),
            ..RedisRecord::default()
        },
        signing: SigningRecord::default(),
    }
}

/// The production example on a Kafka of Strimzi, a PostgreSQL of CloudNativePG, and a Redis that asks for a certificate of cert-manager: their Secrets as
/// those operators write them, with fresh keys.
#[expect(clippy::too_many_lines, reason = "one Secret after another")]
pub(crate) fn with_secrets_of_operators(protocol: KafkaProtocol) -> Observed {
    let key = |name: &str, key: &str| {
        Some(SecretKey {
            name: name.into(),
            key: key.into(),
        })
    };
    let mut observed = changed("production", |cluster| {
        let spec = &mut cluster.spec;
        let tls = spec.redis.as_mut().unwrap().tls.as_mut().unwrap();
        tls.certificate_secret_ref = key("redis-client", "tls.crt");
        tls.key_secret_ref = key("redis-client", "tls.key");
        let user = serde_json::json!({"protocol": "SSL", "user": {"secretName": "signal"}});
        let security = &mut spec.kafka.as_mut().unwrap().security;
        *security = serde_json::from_value(user).unwrap();
        security.protocol = protocol;
        security.ca_secret_ref = key("kafka-cluster-ca-cert", "ca.crt");
        let connection = serde_json::json!({"secretName": "db-app"});
        let connection: Option<DatabaseConnection> = serde_json::from_value(connection).unwrap();
        let database = spec.database.as_mut().unwrap();
        database.url_secret_ref = None;
        database.connection = connection.clone();
        database.ca_secret_ref = key("db-ca", "ca.crt");
        spec.policy.url_secret_ref = None;
        spec.policy.connection = connection;
        spec.policy.ca_secret_ref = key("db-ca", "ca.crt");
    });
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    for name in ["signal", "redis"] {
        let ip = std::net::Ipv4Addr::LOCALHOST;
        authority.issue(name, ip, PrivateKey::Pkcs8).unwrap();
    }
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let (ca, ca_key) = (read("ca.pem"), read("ca.key"));
    let (certificate, private) = (read("signal.pem"), read("signal.key"));
    let user: &[(&str, &str)] = match protocol.is_sasl() {
        true => &[
            ("password", "strimzi:pass word"),
            ("sasl.jaas.config", "ScramLoginModule required;"),
        ],
        false => &[
            ("ca.crt", &ca),
            ("user.crt", &certificate),
            ("user.key", &private),
            ("user.p12", "PKCS12"),
            ("user.password", "of-the-p12"),
        ],
    };
    let password = "a/b:c@d %2Fé+";
    let app = [
        ("dbname", "app"),
        ("host", "db-rw"),
        ("jdbc-uri", "jdbc:postgresql://db-rw.realtime:5432/app"),
        ("password", password),
        ("pgpass", "db-rw:5432:app:app:secret"),
        ("port", "5432"),
        ("uri", "postgresql://app:secret@db-rw.realtime:5432/app"),
        ("user", "app"),
        ("username", "app"),
    ];
    let (redis_certificate, redis_key) = (read("redis.pem"), read("redis.key"));
    for (name, data) in [
        ("signal", user),
        (
            "kafka-cluster-ca-cert",
            &[("ca.crt", &ca), ("ca.password", "of-the-p12")],
        ),
        ("db-app", &app),
        ("db-ca", &[("ca.crt", &ca), ("ca.key", &ca_key)]),
        (
            "redis-client",
            &[
                ("ca.crt", &ca),
                ("tls.crt", &redis_certificate),
                ("tls.key", &redis_key),
            ],
        ),
    ] as [(&str, &[(&str, &str)]); 5]
    {
        let data = data.iter();
        let data = data.map(|(key, text)| ((*key).to_owned(), text.as_bytes().to_vec()));
        observed.secrets.insert(name.into(), Some(data.collect()));
    }
    for name in ["kafka", "database"] {
        observed.secrets.remove(name);
    }
    observed
}

//! Everything that can be wrong, by field and object.

use std::sync::Arc;

use serde_json::json;
use signal_crds::Duration;

use super::*;
use crate::fixture::{EXAMPLES, changed, example, observed};
use crate::observe::observed::PodRevision;

/// The only problem.
fn problem(observed: &Observed) -> Problem {
    let mut problems = validate(observed).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

fn with_secret(name: &str, key: &str, content: Option<&str>) -> Observed {
    let mut observed = example("production");
    let data = observed.secrets.get_mut(name).unwrap().as_mut().unwrap();
    match content {
        Some(content) => data.insert(key.into(), content.into()),
        None => data.remove(key),
    };
    observed
}

#[test]
fn the_examples_are_valid() {
    for (name, text) in EXAMPLES {
        validate(&observed(text)).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
    }
}

#[test]
fn a_secret_that_is_absent_or_lacks_a_key_is_named_with_the_field() {
    let mut absent = example("production");
    absent.secrets.insert("kafka".into(), None);
    let problems = validate(&absent).unwrap_err();
    assert_eq!(problems.len(), 2);
    assert!(
        problems
            .iter()
            .all(|problem| problem.reason == "SecretMissing"
                && problem.kind == ProblemKind::Reference)
    );
    assert_eq!(
        problems[0].message,
        "spec.kafka.security.auth.usernameSecretRef: Secret kafka does not exist"
    );

    for (content, reason) in [
        (None, "SecretKeyMissing"),
        (Some(" \n"), "SecretValueEmpty"),
        (Some("a\nb"), "SecretValueInvalid"),
    ] {
        let found = problem(&with_secret("redis", "pass", content));
        assert_eq!(found.reason, reason);
        assert!(
            found.message.contains("spec.redis.auth.passwordSecretRef")
                && found.message.contains("redis")
                && found.message.contains("pass")
        );
    }
}

#[test]
fn secrets_of_a_wrong_kind_are_refused_without_being_told() {
    for (secret, key, content, reason, fields) in [
        (
            "database",
            "url",
            "mysql://u:hunter2@h/d",
            "DatabaseURLInvalid",
            1,
        ),
        ("database", "platform", "hunter2", "DatabaseURLInvalid", 1),
        (
            "users",
            "users.json",
            "{\"hunter2\": 1}",
            "BasicUsersInvalid",
            1,
        ),
        ("users", "users.json", "hunter2", "BasicUsersInvalid", 1),
        ("authorities", "ca.crt", "hunter2", "AuthorityInvalid", 4),
        (
            "authorities",
            "ca.crt",
            "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n",
            "AuthorityInvalid",
            4,
        ),
    ] {
        let problems = validate(&with_secret(secret, key, Some(content))).unwrap_err();
        assert_eq!(problems.len(), fields, "{content}: {problems:?}");
        for problem in problems {
            assert_eq!(problem.reason, reason, "{content}");
            assert!(
                problem.message.starts_with("spec.")
                    && problem.message.contains(secret)
                    && problem.message.contains(key)
            );
            assert!(
                !problem.message.contains("hunter2") && !problem.message.contains("aHVu"),
                "{}",
                problem.message
            );
        }
    }
}

#[test]
fn files_are_named_by_their_content_where_the_live_settings_name_them() {
    let cluster = validate(&example("production")).unwrap();
    let redis = cluster.redis.unwrap();
    let password = redis.password_file.unwrap();
    assert!(
        password.starts_with("redis-password-") && password.len() == "redis-password-".len() + 8
    );
    assert_eq!(cluster.files[&password], b"redis-secret");
    let username = redis.username_file.unwrap();
    assert!(redis.username.is_empty() && username.starts_with("redis-username-"));
    assert_eq!(cluster.files[&username], b"signal");
    let other = validate(&with_secret("redis", "pass", Some("another")))
        .unwrap()
        .redis
        .unwrap();
    assert_ne!(other.password_file.unwrap(), password);
    let names: Vec<_> = cluster
        .sources
        .iter()
        .map(|(name, definition)| (name.as_str(), definition.url.is_some()))
        .collect();
    assert_eq!(
        names,
        [("main", true), ("partner", true), (MANAGED_SOURCE, false)]
    );
    assert!(
        cluster
            .files
            .contains_key(cluster.sources[0].1.ca_file.as_ref().unwrap())
    );
    assert_eq!(cluster.files[KAFKA_USERNAME], b"signal");
}

#[test]
fn a_pod_template_that_is_no_pod_spec_is_refused_with_its_path() {
    for (spec, path) in [
        (
            json!({"containers": "many"}),
            "spec.podTemplate.spec.containers",
        ),
        (
            json!({"containers": [{"name": "gateway", "env": [{"name": 5}]}]}),
            "spec.podTemplate.spec.containers[0].env[0].name",
        ),
        (
            json!({"tolerationz": [{"key": "a"}]}),
            "spec.podTemplate.spec.tolerationz",
        ),
        (
            json!({"containers": [{"name": "gateway", "resources": {"request": {"cpu": "1"}}}]}),
            "spec.podTemplate.spec.containers[0].resources.request",
        ),
    ] {
        let found = problem(&changed("minimal", |cluster| {
            cluster.spec.pod_template.spec = spec.as_object().unwrap().clone()
        }));
        assert_eq!(
            (found.kind, found.reason),
            (ProblemKind::Spec, ConditionReason::InvalidSpec)
        );
        assert!(
            found.message.starts_with(&format!("{path}:")),
            "{}",
            found.message
        );
    }
    let numbers = json!({"containers": [{"name": "gateway", "resources": {"requests": {"cpu": 2}}}], "volumes": []});
    validate(&changed("minimal", |cluster| {
        cluster.spec.pod_template.spec = numbers.as_object().unwrap().clone()
    }))
    .unwrap();
}

#[test]
fn parts_of_other_kinds_are_read_as_those_kinds() {
    let wrong = json!({"podSelectors": {"matchLabels": {"a": "b"}}})
        .as_object()
        .unwrap()
        .clone();
    for (at, observed) in [
        (
            "spec.networkPolicy.publicFrom[0].podSelectors",
            changed("minimal", |c| {
                c.spec.network_policy.public_from = vec![wrong.clone()]
            }),
        ),
        (
            "spec.networkPolicy.adminFrom[0].podSelectors",
            changed("minimal", |c| {
                c.spec.network_policy.admin_from = vec![wrong.clone()]
            }),
        ),
        (
            "spec.autoscaling.extraMetrics[0].podSelectors",
            changed("production", |c| {
                c.spec.autoscaling.as_mut().unwrap().extra_metrics = Some(vec![wrong.clone()])
            }),
        ),
    ] {
        let found = problem(&observed);
        assert!(
            found.message.starts_with(&format!("{at}:")),
            "{}",
            found.message
        );
    }
}

#[test]
fn catalogs_are_there_and_named_by_locale() {
    assert_eq!(
        validate(&example("production")).unwrap().locales,
        ["en", "fr"]
    );
    let mut absent = example("production");
    absent.catalogs = Some(None);
    assert_eq!(
        problem(&absent).message,
        "spec.notifications.catalogRef: ConfigMap texts does not exist"
    );
    for key in ["readme.md", "x.ftl", "en_GB.ftl", "en-.ftl", ".ftl"] {
        let mut odd = example("production");
        odd.catalogs
            .as_mut()
            .unwrap()
            .as_mut()
            .unwrap()
            .data
            .as_mut()
            .unwrap()
            .insert(key.into(), String::new());
        assert_eq!(problem(&odd).reason, "CatalogsInvalid", "{key}");
    }
    for key in ["en-GB.ftl", "zh-Hant-TW.ftl", "es-419.ftl", "fil.ftl"] {
        let mut good = example("production");
        good.catalogs
            .as_mut()
            .unwrap()
            .as_mut()
            .unwrap()
            .data
            .as_mut()
            .unwrap()
            .insert(key.into(), String::new());
        validate(&good).unwrap();
    }
}

type Change = fn(&mut SignalClusterSpec);

fn each_is_named(cases: &[(&str, Change)]) {
    for (field, change) in cases {
        let found = problem(&changed("production", |cluster| change(&mut cluster.spec)));
        assert_eq!(
            (found.kind, found.reason),
            (ProblemKind::Spec, ConditionReason::InvalidSpec),
            "{field}"
        );
        assert!(
            found.message.starts_with(&format!("spec.{field}: ")),
            "{field}: {}",
            found.message
        );
    }
}

#[test]
fn each_field_of_the_listener_that_the_api_server_cannot_check_is_named() {
    let cases: [(&str, Change); 5] = [
        ("gateway.allowedOrigins", |s| {
            s.gateway.allowed_origins = vec!["shop.example.com".into()]
        }),
        ("gateway.allowedOrigins", |s| {
            s.gateway.allowed_origins = vec!["https://a.*.example.com".into()]
        }),
        ("gateway.streamPaths", |s| {
            s.gateway.stream_paths = vec!["/notifications/live".into()]
        }),
        ("gateway.proxyProtocolFrom", |s| {
            s.gateway.proxy_protocol_from = vec!["10.0.0.0/33".into()]
        }),
        ("gateway.trustedProxies", |s| {
            s.gateway.trusted_proxies = vec!["10.0.0.0/33".into()]
        }),
    ];
    each_is_named(&cases);
}

fn registry(url: &str) -> signal_crds::data::KafkaRegistry {
    signal_crds::data::KafkaRegistry {
        url: url.into(),
        topics: vec!["activity-notification".into()],
        username_secret_ref: None,
        password_secret_ref: None,
        token_secret_ref: None,
        ca_secret_ref: None,
    }
}

#[test]
fn each_field_that_the_api_server_cannot_check_is_named() {
    let cases: [(&str, Change); 24] = [
        ("gateway.adminPort", |s| {
            s.gateway.admin_port = s.gateway.public_port
        }),
        ("gateway.auth.clockSkew", |s| {
            s.gateway.auth.clock_skew = Duration::secs(301)
        }),
        ("gateway.auth.expiringLead", |s| {
            s.gateway.auth.expiring_lead = Duration::millis(1500)
        }),
        ("gateway.auth.connectTimeout", |s| {
            s.gateway.auth.connect_timeout = Duration::default()
        }),
        ("limits.sendQueue.totalBytes", |s| {
            s.limits.send_queue.total_bytes = u64::from(s.limits.message_bytes) - 1
        }),
        ("limits.sendQueue.writeTimeout", |s| {
            s.limits.send_queue.write_timeout = Duration::default()
        }),
        ("redis.nodes", |s| {
            s.redis.as_mut().unwrap().nodes = vec!["redis:70000".into()]
        }),
        ("redis.selfPingInterval", |s| {
            s.redis.as_mut().unwrap().self_ping_interval = Duration::default()
        }),
        ("kafka.brokers", |s| {
            s.kafka.as_mut().unwrap().brokers = vec!["kafka".into()]
        }),
        ("kafka.topics", |s| {
            s.kafka.as_mut().unwrap().topics = vec!["a".into(), "a.dlq".into()]
        }),
        ("kafka.topics", |s| {
            s.kafka.as_mut().unwrap().topics = vec!["^a.*".into()]
        }),
        ("kafka.security.auth.tokenUrl", |s| {
            let kafka = s.kafka.as_mut().unwrap();
            kafka.security.auth.as_mut().unwrap().token_url = Some("https://u:p@id/token".into())
        }),
        ("kafka.registry.url", |s| {
            s.kafka.as_mut().unwrap().registry = Some(registry("registry:8081"))
        }),
        ("kafka.registry.topics", |s| {
            let kafka = s.kafka.as_mut().unwrap();
            kafka.topics = vec!["other".into()];
            kafka.registry = Some(registry("https://registry"))
        }),
        ("database.retention", |s| {
            s.database.as_mut().unwrap().retention = Duration::secs(90_000)
        }),
        ("jwks.sources[1].url", |s| {
            s.jwks.sources[1].url = "https://".into()
        }),
        ("jwks.sources[0].name", |s| {
            s.jwks.sources[0].name = MANAGED_SOURCE.into()
        }),
        ("jwks.sources[1].subjectPrefix", |s| {
            s.jwks.sources[1].subject_prefix = String::new()
        }),
        ("jwks.managed.subjectPrefix", |s| {
            s.jwks.managed.as_mut().unwrap().subject_prefix = "p:e:".into()
        }),
        ("jwks.sources[0].subjectPrefix", |s| {
            s.jwks.sources[0].subject_prefix = "\n".into()
        }),
        ("jwks.managed.cacheAge", |s| {
            s.jwks.managed.as_mut().unwrap().cache_age = Duration::secs(90_000)
        }),
        ("observability.logFilter", |s| {
            s.observability.log_filter = "info,[".into()
        }),
        ("observability.tracing.endpoint", |s| {
            s.observability.tracing.as_mut().unwrap().endpoint = "collector:4318".into()
        }),
        ("rollout.progressDeadline", |s| {
            s.rollout.progress_deadline = Duration::secs(10)
        }),
    ];
    each_is_named(&cases);
}

#[test]
fn a_source_of_preset_ignis_has_its_secret_as_a_file_named_by_its_content() {
    let ignis = changed("production", |cluster| {
        let source = &mut cluster.spec.jwks.sources[0];
        source.preset = signal_crds::jwks::SourcePreset::Ignis;
        source.application_secret_ref = Some(signal_crds::reference::SecretKey {
            name: "redis".into(),
            key: "pass".into(),
        });
        source.algorithms = vec![Algorithm::Ed25519, Algorithm::ESP256, Algorithm::RS256];
    });
    let cluster = validate(&ignis).unwrap();
    let definition = &cluster.sources[0].1;
    let file = definition.application_secret_file.as_ref().unwrap();
    assert!(file.starts_with("source-main-secret-"), "{file}");
    assert_eq!(cluster.files[file], b"redis-secret");
    assert_eq!(
        definition.algorithms,
        [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256],
        "names that every release reads"
    );
    let missing = changed("production", |cluster| {
        let source = &mut cluster.spec.jwks.sources[0];
        source.application_secret_ref = Some(signal_crds::reference::SecretKey {
            name: "redis".into(),
            key: "none".into(),
        });
    });
    let found = problem(&missing);
    assert_eq!(found.reason, "SecretKeyMissing");
    assert!(
        found
            .message
            .starts_with("spec.jwks.sources[0].applicationSecretRef: ")
    );
}

#[test]
fn all_that_is_wrong_is_told_together() {
    let mut observed = changed("production", |cluster| {
        cluster.spec.gateway.allowed_origins = vec!["x".into()]
    });
    observed.secrets.insert("redis".into(), None);
    Arc::make_mut(&mut observed.cluster)
        .spec
        .observability
        .log_filter = "[".into();
    assert_eq!(validate(&observed).unwrap_err().len(), 5);
}

#[test]
fn inherited_names_that_kubernetes_would_refuse_or_that_are_taken_are_refused() {
    let with = |name: &str, value: &str| {
        changed("minimal", |cluster| {
            let labels = &mut cluster.spec.inherited_metadata.labels;
            labels.insert(name.into(), value.into());
        })
    };
    for (name, value) in [
        ("team", "edge"),
        ("example.com/team", ""),
        ("a.b-c.io/X_y.z", "a-B_1.c"),
    ] {
        validate(&with(name, value)).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
    }
    for (name, value, text) in [
        ("", "x", "is no name such as"),
        ("-team", "x", "is no name such as"),
        ("Example.com/team", "x", "is no name such as"),
        ("a..b/team", "x", "is no name such as"),
        ("team", "two words", "the value of `team` is not of letters"),
        (
            "app.kubernetes.io/instance",
            "x",
            "belongs to Kubernetes or to the operator",
        ),
        ("signal.dev/applied", "x", "belongs to Kubernetes"),
        ("k8s.io/x", "x", "belongs to Kubernetes"),
    ] {
        let found = problem(&with(name, value));
        assert_eq!(found.reason, "InvalidSpec");
        assert!(
            found.message.starts_with("spec.inheritedMetadata.labels: ")
                && found.message.contains(text),
            "{}",
            found.message
        );
    }
    // `notk8s.io` is somebody's own domain.
    validate(&with("notk8s.io/x", "x")).unwrap();
}

#[test]
fn a_restart_stays_when_its_annotation_goes_and_is_taken_back_while_its_pods_come() {
    let restarted_at = |observed: &Observed| validate(observed).unwrap().restarted_at;
    let of = |text: Option<&str>, created: i64| PodRevision {
        pods: 1,
        created: chrono::DateTime::from_timestamp(created, 0).unwrap(),
        restarted_at: text.map(str::to_owned),
        ..PodRevision::default()
    };
    let mut observed = changed("minimal", |_| {});
    assert_eq!(restarted_at(&observed), None);
    observed.revisions = vec![of(Some("one"), 1)];
    assert_eq!(restarted_at(&observed).as_deref(), Some("one"));
    // One of a past rollout has no pod any more.
    observed.revisions.push(PodRevision {
        pods: 0,
        ..of(None, 0)
    });
    assert_eq!(restarted_at(&observed).as_deref(), Some("one"));
    // The pods of another restart still come: without its annotation they need not.
    observed.revisions.push(of(Some("two"), 2));
    assert_eq!(restarted_at(&observed).as_deref(), Some("one"));
    observed.revisions.remove(0);
    assert_eq!(restarted_at(&observed).as_deref(), Some("two"));
    // Without a pod the Deployment tells.
    observed.revisions.clear();
    let deployment = serde_json::json!({"spec": {"selector": {}, "template": {"metadata": {"annotations": {RESTARTED_AT: "three"}}}}});
    observed.deployment = Some(serde_json::from_value(deployment).unwrap());
    assert_eq!(restarted_at(&observed).as_deref(), Some("three"));
    let cluster = Arc::make_mut(&mut observed.cluster);
    let annotations = cluster.metadata.annotations.get_or_insert_default();
    annotations.insert(RESTARTED_AT.into(), "four".into());
    assert_eq!(restarted_at(&observed).as_deref(), Some("four"));
}

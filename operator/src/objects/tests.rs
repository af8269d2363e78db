//! YAML in, every object out; and what holds beyond the examples.

mod exposure;
mod operators;
mod tls;

use chrono::TimeDelta;
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

use super::*;
use crate::fixture::{EXAMPLES, changed, example, settled};
use crate::names::{EVICTABLE_VOLUMES, LIVE_DIR, RECORD, RESTART_HASH, STATIC_HASH};
use crate::plan::validate::{DATABASE_CA, validate};
use crate::time::to_k8s;

const JWKS: &str = r#"{"keys":[]}"#;

fn keys() -> ManagedKeys {
    ManagedKeys {
        jwks: JWKS.into(),
        data: [("ring.json".to_owned(), b"{}".to_vec())].into(),
    }
}

fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(365)
}

/// All objects of what was observed, once all changes have come to an end.
fn make(observed: &Observed) -> Desired {
    let cluster = validate(observed).unwrap();
    make_with(observed, &cluster, &settled(&cluster))
}

fn make_with(observed: &Observed, cluster: &ValidCluster, record: &Record) -> Desired {
    let keys = keys();
    let managed = cluster.spec.jwks.managed.is_some();
    let replicas = if cluster.spec.stopped {
        0
    } else {
        cluster.spec.replicas
    };
    let input = DesiredInput {
        keys: managed.then_some(&keys),
        replicas,
        observed,
        operator_namespace: Some("signal-system"),
        entropy: [0xab; 32],
        now: now(),
    };
    desired(cluster, record, input)
}

/// What was observed, with the migration Job of this spec complete.
fn migrated(mut observed: Observed) -> Observed {
    let cluster = validate(&observed).unwrap();
    observed.jobs = make(&observed)
        .migration
        .into_iter()
        .map(|job| ended(job, "Complete"))
        .collect();
    assert_eq!(
        observed.jobs.len(),
        usize::from(job_name(&cluster, &observed).is_some() && !cluster.spec.stopped)
    );
    observed
}

fn ended(mut job: Job, kind: &str) -> Job {
    let condition = JobCondition {
        type_: kind.into(),
        status: "True".into(),
        message: Some("why".into()),
        last_transition_time: Some(to_k8s(now())),
        ..JobCondition::default()
    };
    job.status = Some(JobStatus {
        conditions: Some(vec![condition]),
        ..JobStatus::default()
    });
    job
}

fn documents(all: Desired) -> String {
    // Without `..`: a further kind belongs into the snapshots.
    let Desired {
        deployment,
        service,
        admin_service,
        static_config,
        static_secret,
        kept_revisions: _,
        held: _,
        live_config,
        credentials,
        signing_keys,
        service_account,
        pdb,
        hpa,
        network_policy,
        migration,
        ingress,
        http_route,
        redirect_route,
        service_monitor,
        prometheus_rule,
    } = all;
    let mut text = String::from(
        "# Written by SIGNAL_UPDATE_GOLDEN=1 cargo test -p signal-operator; not edited by hand.\n",
    );
    let mut add = |object: Option<Value>| {
        if let Some(object) = object {
            text += "---\n";
            text += &serde_yaml_ng::to_string(&object).unwrap();
        }
    };
    add(json(deployment));
    add(json(Some(service)));
    add(json(Some(admin_service)));
    add(json(static_config));
    add(json(static_secret));
    add(json(Some(live_config)));
    add(json(Some(credentials)));
    add(json(signing_keys));
    add(json(Some(service_account)));
    add(json(pdb));
    add(json(hpa));
    add(json(network_policy));
    add(json(migration));
    add(json(ingress));
    add(json(http_route));
    add(json(redirect_route));
    add(json(service_monitor));
    add(json(prometheus_rule));
    text
}

fn json<T: Serialize>(object: Option<T>) -> Option<Value> {
    object.map(|object| serde_json::to_value(object).unwrap())
}

fn template(desired: &Desired) -> Value {
    json(desired.deployment.as_ref()).unwrap()["spec"]["template"].take()
}

#[test]
fn every_object_of_the_examples_is_as_committed() {
    for (name, _) in EXAMPLES {
        let text = documents(make(&migrated(example(name))));
        let path = format!("{}/golden/{name}.desired.yaml", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("SIGNAL_UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "{name}: SIGNAL_UPDATE_GOLDEN=1 cargo test -p signal-operator rewrites it; check the difference"
        );
    }
}

#[test]
fn nothing_depends_on_the_version_of_the_operator() {
    for (name, _) in EXAMPLES {
        let text = documents(make(&migrated(example(name))));
        assert!(
            !text.contains(env!("CARGO_PKG_VERSION")),
            "{name} names the version of the operator"
        );
    }
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/objects")).unwrap();
    for file in sources
        .map(|file| file.unwrap().path())
        .filter(|path| path.is_file() && !path.ends_with("tests.rs"))
    {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            !text.contains("CARGO_PKG"),
            "{} reads the version of the operator",
            file.display()
        );
    }
}

/// Paths of all values that contain one of these texts.
fn paths_with(value: &Value, texts: &[&str], path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| paths_with(value, texts, format!("{path}/{name}"), found)),
        Value::Array(values) => values
            .iter()
            .for_each(|value| paths_with(value, texts, format!("{path}/[]"), found)),
        value if texts.iter().any(|text| value.to_string().contains(text)) => found.push(path),
        _ => {}
    }
}

#[test]
fn every_other_object_fits_pods_of_the_old_ports_and_of_the_new_ones() {
    let observed = changed("production", |cluster| {
        cluster.spec.gateway.public_port = 18_123;
        cluster.spec.gateway.admin_port = 19_456;
    });
    let mut found = Vec::new();
    for document in documents(make(&migrated(observed))).split("---\n").skip(1) {
        let object: Value = serde_yaml_ng::from_str(document).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap();
        let path = format!("{} {name} ", object["kind"].as_str().unwrap());
        paths_with(&object, &["18123", "19456"], path, &mut found);
    }
    // A pod reads its own settings, and the port of a headless Service is translated for nobody.
    found.retain(|path| {
        !path.starts_with("Deployment ") && !path.starts_with("ConfigMap edge-static-")
    });
    assert_eq!(found, ["Service edge-admin /spec/ports/[]/port"]);
    let policy = make(&migrated(example("production")))
        .network_policy
        .unwrap();
    let rules = policy.spec.unwrap().ingress.unwrap();
    let ports = rules.into_iter().flat_map(|rule| rule.ports.unwrap());
    let names: Vec<_> = ports.map(|port| port.port.unwrap()).collect();
    assert_eq!(
        names,
        ["public", "admin"].map(|name| IntOrString::String(name.into()))
    );
}

/// The selectors of everything by which a template places its pods.
fn placing_selectors(pod: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for constraint in list(&pod["topologySpreadConstraints"]) {
        all.push(constraint["labelSelector"].clone());
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = &pod["affinity"][kind];
        for term in list(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]) {
            all.push(term["labelSelector"].clone());
        }
        for term in list(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]) {
            all.push(term["podAffinityTerm"]["labelSelector"].clone());
        }
    }
    all
}

#[test]
fn pods_of_every_shipped_example_are_spread_over_zones_and_nodes() {
    let shipped = [
        include_str!("../../../charts/examples/minimal.yaml"),
        include_str!("../../../charts/examples/production.yaml"),
    ];
    let constraint = serde_json::json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}]);
    for text in shipped {
        let document: Value = serde_yaml_ng::Deserializer::from_str(text)
            .next()
            .map(|first| serde::Deserialize::deserialize(first).unwrap())
            .unwrap();
        let shipped: signal_crds::SignalCluster = serde_json::from_value(document).unwrap();
        // Also with a constraint that lacks its selector.
        for constraints in [None, Some(constraint.clone())] {
            let mut cluster = validate(&example("production")).unwrap();
            let mut given = shipped.spec.pod_template.clone();
            given
                .spec
                .extend(constraints.map(|it| ("topologySpreadConstraints".to_owned(), it)));
            cluster.spec.pod_template = given;
            let children = Children::of(&cluster.name);
            let template = deployment::pod_template(&cluster, &children, "");
            let labels = template.metadata.as_ref().unwrap().labels.clone().unwrap();
            let pod = serde_json::to_value(template.spec).unwrap();
            let keys: Vec<_> = pod["topologySpreadConstraints"]
                .as_array()
                .unwrap()
                .iter()
                .map(|constraint| constraint["topologyKey"].clone())
                .collect();
            assert_eq!(keys, ["topology.kubernetes.io/zone"]);
            let selectors = placing_selectors(&pod);
            assert!(selectors.len() >= 2, "zones and nodes");
            for selector in selectors {
                let wanted = selector["matchLabels"].as_object().unwrap();
                assert!(!wanted.is_empty());
                let selects = wanted.iter().all(|(name, value)| labels[name] == *value);
                assert!(selects, "{selector} does not select {labels:?}");
            }
        }
    }
}

#[test]
fn live_settings_and_secrets_restart_no_pod() {
    let before = template(&make(&migrated(example("production"))));
    let mut live = changed("production", |cluster| {
        let spec = &mut cluster.spec;
        spec.gateway.allowed_origins = vec!["https://other.example.com".into()];
        spec.limits.connections_per_pod = 7;
        spec.observability.log_filter = "warn".into();
        spec.jwks.sources.pop();
        spec.jwks.managed = None;
        spec.redis.as_mut().unwrap().nodes = vec!["t-0:26379".into()];
        spec.replicas = 9;
        spec.autoscaling = None;
        spec.service.port = 8443;
    });
    for (secret, key) in [
        ("redis", "pass"),
        ("redis", "sentinel"),
        ("redis", "user"),
        ("kafka", "user"),
        ("kafka", "pass"),
        ("users", "users.json"),
    ] {
        let content = if key == "users.json" { "[]" } else { "another" };
        live.secrets
            .get_mut(secret)
            .unwrap()
            .as_mut()
            .unwrap()
            .insert(key.into(), content.into());
    }
    let database = live.secrets.get_mut("database").unwrap().as_mut().unwrap();
    database.insert("url".into(), "postgres://signal:another@db2/signal".into());
    database.insert(
        "platform".into(),
        "postgres://signal:another@db2/platform".into(),
    );
    assert_eq!(template(&make(&migrated(live))), before);
}

#[test]
fn a_node_of_pods_that_keep_nothing_may_be_removed_by_the_cluster_autoscaler() {
    let named = |example: &str, given: Option<&str>| {
        let observed = changed(example, |cluster| {
            let annotations = &mut cluster.spec.pod_template.metadata.annotations;
            annotations.extend(given.map(|given| (EVICTABLE_VOLUMES.into(), given.into())));
        });
        template(&make(&migrated(observed)))["metadata"]["annotations"][EVICTABLE_VOLUMES].clone()
    };
    assert_eq!(named("production", None), "tmp");
    assert_eq!(
        named("development", None),
        "tmp",
        "its database is in the pod"
    );
    assert_eq!(named("production", Some("cache, tmp")), "cache,tmp");
    assert_eq!(named("development", Some("data")), "data,tmp");
}

#[test]
fn static_settings_and_authorities_that_are_read_at_the_start_roll_the_pods() {
    let hash = |observed: &Observed, name: &str| {
        template(&make(&migrated(observed.clone())))["metadata"]["annotations"][name].clone()
    };
    let before = example("production");
    let after = changed("production", |cluster| cluster.spec.drain.min_batch += 1);
    assert_ne!(hash(&before, STATIC_HASH), hash(&after, STATIC_HASH));
    assert_eq!(hash(&before, RESTART_HASH), hash(&after, RESTART_HASH));
    let sharded = changed("production", |cluster| {
        cluster.spec.redis.as_mut().unwrap().sharded_pubsub = true
    });
    assert_ne!(hash(&before, STATIC_HASH), hash(&sharded, STATIC_HASH));
    let without = changed("production", |cluster| {
        cluster.spec.kafka.as_mut().unwrap().security.ca_secret_ref = None
    });
    assert_ne!(hash(&before, RESTART_HASH), hash(&without, RESTART_HASH));
}

#[test]
fn the_grace_period_covers_the_whole_way_down() {
    let observed = changed("production", |cluster| {
        cluster.spec.drain.endpoint_propagation = signal_crds::Duration::millis(7_500)
    });
    assert_eq!(grace_period(&validate(&observed).unwrap()), 98 + 60);
}

#[test]
fn without_a_migrated_schema_no_pod_starts_and_what_runs_stays_but_may_be_scaled() {
    let first = make(&example("production"));
    assert!(first.deployment.is_none() && first.migration.is_some());

    let mut observed = migrated(example("production"));
    let old = make(&observed);
    observed.deployment = old.deployment.clone();
    assert!(old.static_config.is_some() && old.held.is_none());
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    cluster.spec.image.digest = Some(format!("sha256:{}", "2".repeat(64)));
    cluster.spec.kafka.as_mut().unwrap().concurrency = 3;
    cluster.spec.replicas = 5;
    let held = make(&observed);
    assert_eq!(template(&held), template(&old));
    assert_eq!(
        (&held.static_config, &held.held),
        (&None, &Some(Held::Migration))
    );
    assert_eq!(
        held.deployment
            .as_ref()
            .unwrap()
            .spec
            .as_ref()
            .unwrap()
            .replicas,
        Some(5)
    );
    let job = held.migration.unwrap();
    assert_ne!(Some(&job), old.migration.as_ref());
    let valid = validate(&observed).unwrap();
    let name = job.metadata.name.clone().unwrap();
    assert_eq!(
        migration(&valid, &observed),
        Migration::Pending { job: name.clone() }
    );

    let mut failed = ended(job.clone(), "Failed");
    observed.jobs.push(failed.clone());
    let again_at = now() + TimeDelta::minutes(1);
    assert_eq!(
        migration(&valid, &observed),
        Migration::Failed {
            job: name.clone(),
            message: "why".into(),
            again_at
        }
    );
    let held = make(&observed);
    assert!(held.migration.is_some(), "it is left to be looked at");
    assert_eq!(template(&held), template(&old));

    failed.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].last_transition_time =
        Some(to_k8s(now() - TimeDelta::minutes(1)));
    *observed.jobs.last_mut().unwrap() = failed;
    let held = make(&observed);
    assert!(held.migration.is_none(), "and then another takes its place");
    assert_eq!(template(&held), template(&old));

    *observed.jobs.last_mut().unwrap() = ended(job, "Complete");
    let Migration::Complete(done) = migration(&valid, &observed) else {
        panic!("it is complete")
    };
    assert_eq!(
        (done.image, done.version),
        (valid.spec.image.reference(), None)
    );
    let new = make(&observed);
    assert_ne!(template(&new), template(&old));
    assert_ne!(new.static_config, old.static_config);
}

#[test]
fn a_stopped_cluster_starts_no_job_and_has_neither_budget_nor_autoscaler() {
    let stopped = changed("production", |cluster| cluster.spec.stopped = true);
    let all = make(&stopped);
    assert!(
        all.migration.is_none()
            && all.pdb.is_none()
            && all.hpa.is_none()
            && all.deployment.is_none()
    );
    let mut kept = stopped;
    kept.jobs = migrated(example("production")).jobs;
    let all = make(&kept);
    assert!(
        all.migration.is_some(),
        "a Job that is there is the record of what was done"
    );
    assert_eq!(all.deployment.unwrap().spec.unwrap().replicas, Some(0));
}

#[test]
fn kinds_that_the_cluster_does_not_have_are_not_wanted() {
    let mut observed = migrated(example("production"));
    observed.kinds = crate::observe::observed::Kinds::default();
    let all = make(&observed);
    assert!(
        all.ingress.is_none()
            && all.http_route.is_none()
            && all.service_monitor.is_none()
            && all.prometheus_rule.is_none()
    );
}

#[test]
fn the_admin_token_is_made_once() {
    let mut observed = example("minimal");
    let first = make(&observed).credentials;
    assert_eq!(
        first.data.as_ref().unwrap()[ADMIN_TOKEN],
        ByteString("ab".repeat(32).into_bytes())
    );
    let mut kept = first;
    kept.data
        .as_mut()
        .unwrap()
        .insert(ADMIN_TOKEN.into(), ByteString(b"old".to_vec()));
    observed.credentials = Some(kept);
    assert_eq!(
        make(&observed).credentials.data.unwrap()[ADMIN_TOKEN],
        ByteString(b"old".to_vec())
    );
}

#[test]
fn files_of_before_stay_until_every_ready_pod_holds_settings_without_them() {
    let mut observed = example("production");
    let old = make(&observed);
    let addressed = |secret: &Secret| -> Vec<String> {
        secret
            .data
            .as_ref()
            .unwrap()
            .keys()
            .filter(|key| key.starts_with("redis-password-"))
            .cloned()
            .collect()
    };
    let before = addressed(&old.credentials);
    observed.credentials = Some(old.credentials);
    observed.live_config = Some(old.live_config);
    observed
        .secrets
        .get_mut("redis")
        .unwrap()
        .as_mut()
        .unwrap()
        .insert("pass".into(), "another".into());
    let new = make(&observed);
    assert_eq!(
        addressed(&new.credentials).len(),
        2,
        "the live file in the cluster still names the old one"
    );

    let text = new.live_config.data.as_ref().unwrap()[LIVE_TOML].clone();
    observed.live_config = Some(new.live_config);
    observed.credentials = Some(new.credentials);
    observed.fleet.pods = vec![pod("a", &revision(&text)), pod("b", "sha256:old")];
    assert_eq!(
        addressed(&make(&observed).credentials).len(),
        2,
        "pod b has not acknowledged"
    );
    observed.fleet.pods[1] = pod("b", &revision(&text));
    let last = addressed(&make(&observed).credentials);
    assert_eq!(last.len(), 1);
    assert_ne!(last, before);

    let cluster = validate(&observed).unwrap();
    let mut record = settled(&cluster);
    record.redis.previous =
        record
            .redis
            .current
            .clone()
            .map(|redis| crate::plan::record::RecordedRedis {
                password_file: before.first().cloned(),
                ..redis
            });
    let live = live_toml(&cluster, &record, true);
    observed
        .live_config
        .as_mut()
        .unwrap()
        .data
        .as_mut()
        .unwrap()
        .insert(LIVE_TOML.into(), live.clone());
    observed.fleet.pods = vec![pod("a", &revision(&live))];
    assert_eq!(
        addressed(&make_with(&observed, &cluster, &record).credentials).len(),
        2,
        "the record names both"
    );
}

fn pod(name: &str, revision: &str) -> crate::observe::fleet::Pod {
    crate::observe::fleet::Pod {
        ip: None,
        node: None,
        template_hash: "1".into(),
        created: chrono::DateTime::UNIX_EPOCH,
        report: Ok(signal_contract::StatusReport {
            live_revision: revision.into(),
            ..signal_contract::StatusReport::default()
        }),
        ..crate::fixture::pod(name)
    }
}

#[test]
fn the_record_is_written_with_the_live_settings_it_describes() {
    let observed = example("production");
    let cluster = validate(&observed).unwrap();
    let record = settled(&cluster);
    let map = make(&observed).live_config;
    assert_eq!(
        serde_json::from_str::<Record>(&map.metadata.annotations.unwrap()[RECORD]).unwrap(),
        record
    );
    assert_eq!(
        map.data.unwrap()[LIVE_TOML],
        live_toml(&cluster, &record, true)
    );
}

#[test]
fn the_public_keys_stay_while_live_settings_name_them() {
    let mut observed = changed("production", |cluster| cluster.spec.jwks.managed = None);
    let before = make(&example("production"));
    observed.live_config = Some(before.live_config);
    let cluster = validate(&observed).unwrap();
    let record = settled(&validate(&example("production")).unwrap());
    let data = make_with(&observed, &cluster, &record)
        .live_config
        .data
        .unwrap();
    assert_eq!(data[JWKS_JSON], JWKS);
    assert!(data[LIVE_TOML].contains("keys_file") && data[LIVE_TOML].contains("jwks_file = "));
    let data = make_with(&observed, &cluster, &settled(&cluster))
        .live_config
        .data
        .unwrap();
    assert!(!data.contains_key(JWKS_JSON) && !data[LIVE_TOML].contains("jwks.json"));
}

#[test]
fn authorities_of_the_database_are_named_in_its_url_unless_it_names_some() {
    let url = |text: &str| {
        let mut observed = example("production");
        observed
            .secrets
            .get_mut("database")
            .unwrap()
            .as_mut()
            .unwrap()
            .insert("url".into(), text.into());
        String::from_utf8(
            validate(&observed).unwrap().files[crate::plan::validate::DATABASE_URL].clone(),
        )
        .unwrap()
    };
    let named = format!("sslrootcert={LIVE_DIR}/{DATABASE_CA}");
    assert_eq!(
        url("postgres://u:p@h/d\n"),
        format!("postgres://u:p@h/d?{named}")
    );
    assert_eq!(
        url("postgres://u:p@h/d?sslmode=verify-full"),
        format!("postgres://u:p@h/d?sslmode=verify-full&{named}")
    );
    assert_eq!(
        url("postgres://u:p@h/d?sslrootcert=/x"),
        "postgres://u:p@h/d?sslrootcert=/x"
    );
    // Several hosts, as libpq reads them.
    assert_eq!(
        url("postgres://u:p@one:5432,two:5433/d?target_session_attrs=read-write"),
        format!("postgres://u:p@one:5432,two:5433/d?target_session_attrs=read-write&{named}")
    );
}

#[test]
fn requests_are_added_only_where_the_user_says_nothing() {
    let resources = |given: Value| {
        let observed = changed("minimal", |cluster| {
            let spec = json!({"containers": [{"name": "gateway", "resources": given}]});
            cluster.spec.pod_template.spec = spec.as_object().unwrap().clone();
        });
        template(&make(&observed))["spec"]["containers"][0]["resources"].clone()
    };
    assert_eq!(
        resources(json!({})),
        json!({"requests": {"cpu": "100m", "memory": "128Mi"}})
    );
    assert_eq!(
        resources(json!({"limits": {"memory": "1Gi"}})),
        json!({"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}})
    );
}

#[test]
fn pods_meet_the_restricted_standard_whatever_the_user_asks() {
    let observed = changed("minimal", |cluster| {
        let spec = json!({
            "securityContext": {"runAsNonRoot": false, "runAsUser": 1234, "seccompProfile": {"type": "Unconfined"}},
            "automountServiceAccountToken": true,
            "containers": [{"name": "gateway", "securityContext": {"privileged": true, "allowPrivilegeEscalation": true, "capabilities": {"drop": []}}}],
        });
        cluster.spec.pod_template.spec = spec.as_object().unwrap().clone();
    });
    let spec = template(&make(&observed))["spec"].clone();
    let pod = &spec["securityContext"];
    assert_eq!(
        (
            &pod["runAsNonRoot"],
            &pod["runAsUser"],
            &pod["seccompProfile"]["type"]
        ),
        (&json!(true), &json!(1234), &json!("RuntimeDefault"))
    );
    assert_eq!(spec["automountServiceAccountToken"], json!(false));
    let container = &spec["containers"][0]["securityContext"];
    for (field, wanted) in [
        ("privileged", json!(false)),
        ("allowPrivilegeEscalation", json!(false)),
        ("readOnlyRootFilesystem", json!(true)),
        ("capabilities", json!({"drop": ["ALL"]})),
    ] {
        assert_eq!(container[field], wanted, "{field}");
    }
}

#[test]
fn every_object_is_owned_and_labelled() {
    for document in
        serde_yaml_ng::Deserializer::from_str(&documents(make(&migrated(example("production")))))
    {
        let object = <Value as serde::Deserialize>::deserialize(document).unwrap();
        if object.is_null() {
            continue;
        }
        let meta = &object["metadata"];
        let owner = &meta["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["name"], &owner["controller"]),
            (&json!("SignalCluster"), &json!("edge"), &json!(true)),
            "{object}"
        );
        assert_eq!(meta["labels"]["app.kubernetes.io/instance"], json!("edge"));
        assert_eq!(
            meta["labels"]["app.kubernetes.io/managed-by"],
            json!("signal-operator")
        );
        assert_eq!(meta["namespace"], json!("realtime"));
    }
}

#[test]
fn every_object_inherits_labels_and_annotations_and_no_pod_does() {
    let plain = make(&migrated(example("production")));
    let mut inherited = plain.clone();
    inherited.inherit(&InheritedMetadata {
        labels: [
            ("team".into(), "edge".into()),
            ("app.kubernetes.io/instance".into(), "another".into()),
        ]
        .into(),
        annotations: [("example.com/cost".into(), "17".into())].into(),
    });
    let mut count = 0;
    for document in serde_yaml_ng::Deserializer::from_str(&documents(inherited.clone())) {
        let object = <Value as serde::Deserialize>::deserialize(document).unwrap();
        if object.is_null() {
            continue;
        }
        count += 1;
        let meta = &object["metadata"];
        assert_eq!(meta["labels"]["team"], json!("edge"), "{object}");
        assert_eq!(meta["annotations"]["example.com/cost"], json!("17"));
        // What the operator finds its objects by stays.
        assert_eq!(meta["labels"]["app.kubernetes.io/instance"], json!("edge"));
    }
    assert!(count >= 14, "{count} objects");
    let template = |desired: &Desired| desired.deployment.clone().unwrap().spec.unwrap().template;
    assert_eq!(template(&inherited), template(&plain));
}

#[test]
fn alerts_rest_on_metrics_that_gateways_have() {
    let metrics = include_str!("../../../gateway/src/metrics.rs");
    let rule = make(&migrated(example("production")))
        .prometheus_rule
        .unwrap();
    let mut seen = 0;
    for alert in rule.data["spec"]["groups"][0]["rules"].as_array().unwrap() {
        let expression = alert["expr"].as_str().unwrap();
        for rest in expression.split("signal_").skip(1) {
            let end = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap();
            let name = rest[..end].trim_end_matches("_total");
            assert!(
                metrics.contains(&format!("\"{name}\"")),
                "{} reads signal_{name}",
                alert["alert"]
            );
            seen += 1;
        }
    }
    assert!(seen >= 10);
}

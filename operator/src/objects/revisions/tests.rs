//! What a revision of the pods needs stays as long as it may be needed, and an operator of another version restarts nothing.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::{DynamicObject, TypeMeta};
use signal_crds::SignalClusterSpec;

use chrono::{DateTime, TimeDelta, Utc};

use super::*;
use crate::act::apply::{Wanted, wanted};
use crate::fixture::{changed, example, settled};
use crate::names::EVICTABLE_VOLUMES;
use crate::objects::{Desired, DesiredInput, desired};
use crate::observe::observed::PodRevision;
use crate::plan::validate::validate;
use crate::time::to_k8s;

fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(365)
}

fn make(observed: &Observed) -> Desired {
    let cluster = validate(observed).unwrap();
    let keys = crate::objects::ManagedKeys {
        jwks: "{}".into(),
        data: Default::default(),
    };
    let input = DesiredInput {
        keys: Some(&keys),
        replicas: 3,
        observed,
        operator_namespace: None,
        entropy: [7; 32],
        now: now(),
    };
    desired(&cluster, &settled(&cluster), input)
}

/// The production example, migrated, with the Deployment that this operator makes of it.
fn running() -> Observed {
    let mut observed = example("production");
    let mut job = make(&observed).migration.unwrap();
    let complete = JobCondition {
        type_: "Complete".into(),
        status: "True".into(),
        ..JobCondition::default()
    };
    job.status = Some(JobStatus {
        conditions: Some(vec![complete]),
        ..JobStatus::default()
    });
    observed.jobs = vec![job];
    let mut deployment = make(&observed).deployment.unwrap();
    mark(&mut deployment);
    observed.deployment = Some(deployment);
    observed
}

/// Writes the template's hash, as an apply does.
fn mark(deployment: &mut Deployment) {
    let template = serde_json::to_value(&deployment.spec.as_ref().unwrap().template).unwrap();
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.insert(TEMPLATE_HASH.into(), compare::hash(&template));
}

/// As if another version of the operator had made the Deployment: its template lacks something that this one has.
fn of_another_operator(observed: &mut Observed) {
    let deployment = observed.deployment.as_mut().unwrap();
    let pod = deployment.spec.as_mut().unwrap().template.spec.as_mut();
    pod.unwrap().containers[0].termination_message_policy = None;
    mark(deployment);
}

fn change(observed: &mut Observed, change: impl FnOnce(&mut SignalClusterSpec)) {
    let cluster = Arc::make_mut(&mut observed.cluster);
    change(&mut cluster.spec);
    cluster.metadata.generation = cluster.metadata.generation.map(|number| number + 1);
}

/// Both halves of what only a start reads, by name.
fn names(desired: &Desired) -> [String; 2] {
    [
        desired.static_config.as_ref().unwrap().name_any(),
        desired.static_secret.as_ref().unwrap().name_any(),
    ]
}

#[test]
fn what_only_a_start_reads_never_changes_and_is_named_by_its_content() {
    let observed = running();
    let first = make(&observed);
    let map = first.static_config.as_ref().unwrap();
    assert_eq!(map.immutable, Some(true));
    let secret = first.static_secret.as_ref().unwrap();
    assert_eq!(secret.immutable, Some(true));
    let files: Vec<&String> = secret.data.as_ref().unwrap().keys().collect();
    assert_eq!(files, [DATABASE_CA, KAFKA_CA]);
    let pod = first.deployment.as_ref().unwrap().spec.as_ref().unwrap();
    let mounts = Mounts::of(pod.template.spec.as_ref().unwrap());
    let [map, secret] = names(&first);
    assert!(mounts.config_maps.contains(&map) && mounts.secrets.contains(&secret));

    let mut other = observed.clone();
    change(&mut other, |spec| spec.drain.min_batch += 1);
    let next = make(&other);
    assert_ne!(names(&next)[0], map, "another text is another object");
    assert_eq!(names(&next)[1], secret);
    assert_eq!(
        names(&make(&observed)),
        [map, secret],
        "and the same is the same"
    );
}

/// An object of an earlier revision, created so long ago.
fn old(kind: Owned, name: &str, age: TimeDelta) -> DynamicObject {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.into());
    map.metadata.creation_timestamp = Some(to_k8s(now() - age));
    DynamicObject {
        types: Some(TypeMeta {
            api_version: "v1".into(),
            kind: kind.kind.into(),
        }),
        metadata: map.metadata,
        data: Value::Null,
    }
}

#[test]
fn objects_of_a_revision_stay_while_a_replica_set_may_start_a_pod_with_them() {
    let mut observed = running();
    let hour = TimeDelta::hours(1);
    let mounts = |maps: &[&str], secrets: &[&str]| Mounts {
        config_maps: maps.iter().map(|name| (*name).to_owned()).collect(),
        secrets: secrets.iter().map(|name| (*name).to_owned()).collect(),
    };
    observed.owned = vec![
        old(CONFIG_MAP, "edge-static", hour),
        old(CONFIG_MAP, "edge-static-aa", hour),
        old(SECRET, "edge-static-aa", hour),
        old(CONFIG_MAP, "edge-static-bb", hour),
        old(SECRET, "edge-statical", hour),
    ];
    // One that still has a pod, of an operator that overwrote the ConfigMap; one that wants a pod and has none; one of a past rollout.
    observed.revisions = vec![
        PodRevision {
            pods: 1,
            mounts: mounts(&["edge-static", "edge-live"], &["edge-credentials"]),
            ..PodRevision::default()
        },
        PodRevision {
            wanted: 1,
            mounts: mounts(&["edge-static-aa"], &[]),
            ..PodRevision::default()
        },
        PodRevision {
            mounts: mounts(&["edge-static-bb"], &["edge-static-aa"]),
            ..PodRevision::default()
        },
    ];
    let kept = |observed: &Observed| make(observed).kept_revisions;
    let expected = [
        (CONFIG_MAP, "edge-static".to_owned()),
        (CONFIG_MAP, "edge-static-aa".to_owned()),
    ];
    assert_eq!(kept(&observed), expected);

    observed.revisions[0].pods = 0;
    observed.revisions[1].wanted = 0;
    assert_eq!(kept(&observed), [], "then they are pruned");

    // A ReplicaSet may still come for a template that was applied in between.
    observed.deployment.as_mut().unwrap().metadata.generation = Some(4);
    let more = |at: i64| {
        old(
            CONFIG_MAP,
            &format!("edge-static-{at:04}"),
            TimeDelta::minutes(at),
        )
    };
    observed.owned.extend((0..20).map(more));
    let newest: Vec<String> = kept(&observed).into_iter().map(|(_, name)| name).collect();
    assert_eq!(newest.len(), MAX_UNSEEN);
    assert_eq!(
        (newest[0].as_str(), newest[9].as_str()),
        ("edge-static-0000", "edge-static-0009")
    );
}

#[test]
fn a_revision_that_the_deployment_still_names_stays_and_is_wanted_once() {
    let mut observed = running();
    let desired = make(&observed);
    let [map, secret] = names(&desired);
    let hour = TimeDelta::hours(1);
    observed.owned = vec![old(CONFIG_MAP, &map, hour), old(SECRET, &secret, hour)];
    let all = make(&observed);
    assert_eq!(all.kept_revisions.len(), 2, "no ReplicaSet was seen yet");
    let objects = wanted(all).unwrap();
    let of_name = objects.iter().filter(|wanted| match wanted {
        Wanted::Object(kind, object) => *kind == CONFIG_MAP && object.name_any() == map,
        Wanted::Kept(kind, name) => *kind == CONFIG_MAP && *name == map,
    });
    assert_eq!(of_name.count(), 1);
}

/// An operator of the first form wrote them down.
fn in_the_first_form(observed: &mut Observed) {
    let inputs = INPUTS_FORMS[1].inputs(&validate(observed).unwrap());
    assert!(inputs.starts_with("v1:"));
    let annotations = observed.deployment.as_mut().unwrap().annotations_mut();
    annotations.insert(TEMPLATE_INPUTS.into(), inputs);
}

#[test]
fn inputs_of_an_older_form_restart_nothing_and_a_change_is_still_seen() {
    let mut observed = running();
    change(&mut observed, |spec| {
        spec.inherited_metadata
            .labels
            .insert("team".into(), "edge".into());
        spec.gateway.proxy_protocol_from = vec!["10.0.0.0/8".into()];
    });
    observed.deployment = make(&observed).deployment;
    of_another_operator(&mut observed);
    in_the_first_form(&mut observed);
    let held = make(&observed);
    assert!(
        matches!(held.held, Some(Held::Update(_))),
        "{:?}",
        held.held
    );
    // With the newest form in the cluster, what restarts nobody takes nothing over.
    let next = held.deployment.unwrap();
    let written = annotation(&next, TEMPLATE_INPUTS).unwrap();
    assert!(written.starts_with("v2:"), "{written}");
    let mut later = observed.clone();
    later.deployment = Some(next);
    change(&mut later, |spec| {
        spec.inherited_metadata.labels.clear();
        spec.gateway.proxy_protocol_from.clear();
    });
    assert!(matches!(make(&later).held, Some(Held::Update(_))));
    // Whatever the form, another template of a changed spec rolls out.
    for mut changed in [observed, later] {
        change(&mut changed, |spec| spec.drain.min_batch += 1);
        assert_eq!(make(&changed).held, None);
    }
}

/// Hashes of the first form are those that earlier operators wrote.
#[test]
fn the_first_form_hashes_as_it_did() {
    let inputs = INPUTS_FORMS[1].inputs(&validate(&example("production")).unwrap());
    assert_eq!(
        inputs,
        "v1:sha256:64a36fcaf1ab86fab920465aa5f51fbdf40cb83685fa866772e1c854488746b5"
    );
}

#[test]
fn an_operator_of_another_version_waits_for_a_change_of_the_spec_or_a_restart() {
    let mut observed = running();
    assert_eq!(make(&observed).held, None);
    of_another_operator(&mut observed);
    let held = make(&observed);
    let Some(Held::Update(parts)) = &held.held else {
        panic!("{:?}", held.held)
    };
    assert_eq!(
        parts,
        &["/spec/containers[gateway]/terminationMessagePolicy"]
    );
    let template = |deployment: &Option<Deployment>| {
        deployment.as_ref().unwrap().spec.clone().unwrap().template
    };
    assert_eq!(template(&held.deployment), template(&observed.deployment));
    assert!(held.static_config.is_none() && held.static_secret.is_none());
    // The number of pods, live settings, metadata, and fields of a newer definition with their defaults are no reason.
    let mut live = observed.clone();
    change(&mut live, |spec| {
        spec.inherited_metadata
            .labels
            .insert("team".into(), "edge".into());
        spec.gateway.proxy_protocol_from = vec!["10.0.0.0/8".into()];
        spec.replicas = 9;
        spec.jwks.sources.pop();
        spec.limits.connections_per_pod = 7;
        spec.gateway.allowed_origins.clear();
    });
    assert!(matches!(make(&live).held, Some(Held::Update(_))));

    let mut other = observed.clone();
    change(&mut other, |spec| {
        spec.image.digest = Some(format!("sha256:{}", "2".repeat(64)))
    });
    other.jobs = running_jobs(&other);
    assert_eq!(make(&other).held, None, "another image");
    let mut other = observed.clone();
    let authorities = other.secrets.get_mut("authorities").unwrap().as_mut();
    let content = authorities.unwrap().get_mut("ca.crt").unwrap();
    content.push(b'\n');
    other.jobs = running_jobs(&other);
    assert_eq!(make(&other).held, None, "another authority");
    let mut restarted = observed.clone();
    let annotations = Arc::make_mut(&mut restarted.cluster).annotations_mut();
    annotations.insert(RESTARTED_AT.into(), "2026-01-01".into());
    let restarted = make(&restarted);
    assert_eq!(restarted.held, None);
    let template = template(&restarted.deployment);
    assert_eq!(
        template.metadata.unwrap().annotations.unwrap()[RESTARTED_AT],
        "2026-01-01"
    );
}

/// Jobs that have migrated this spec.
#[test]
fn an_operator_that_makes_no_list_of_evictable_volumes_is_followed_without_a_restart() {
    let mut observed = running();
    let deployment = observed.deployment.as_mut().unwrap();
    let metadata = deployment.spec.as_mut().unwrap().template.metadata.as_mut();
    let annotations = metadata.unwrap().annotations.as_mut().unwrap();
    assert!(annotations.remove(EVICTABLE_VOLUMES).is_some());
    mark(deployment);
    let template = deployment.spec.as_ref().unwrap().template.clone();
    let made = make(&observed);
    let Some(Held::Update(parts)) = &made.held else {
        panic!("{:?}", made.held)
    };
    assert_eq!(parts.len(), 1, "{parts:?}");
    assert!(
        parts[0].contains("safe-to-evict-local-volumes"),
        "{parts:?}"
    );
    assert_eq!(made.deployment.unwrap().spec.unwrap().template, template);
}

fn running_jobs(observed: &Observed) -> Vec<k8s_openapi::api::batch::v1::Job> {
    let mut jobs = observed.jobs.clone();
    let name = crate::objects::job_name(&validate(observed).unwrap(), observed);
    jobs[0].metadata.name = name;
    jobs
}

/// What a former operator, which did not write the inputs down, said of this generation.
fn said(observed: &mut Observed, kinds: &[&str]) {
    let cluster = Arc::make_mut(&mut observed.cluster);
    let generation = cluster.metadata.generation;
    let status = cluster.status.get_or_insert_default();
    status.observed_generation = generation;
    status.conditions = kinds
        .iter()
        .map(|kind| Condition {
            type_: (*kind).into(),
            status: "True".into(),
            observed_generation: generation,
            last_transition_time: to_k8s(now()),
            message: String::new(),
            reason: "Accepted".into(),
        })
        .collect();
}

#[test]
fn a_deployment_of_an_operator_that_wrote_no_inputs_waits_only_if_its_spec_was_carried_out() {
    const ALL: [&str; 3] = ["SpecAccepted", "SecretsResolved", "DatabaseMigrated"];
    let mut observed = running();
    of_another_operator(&mut observed);
    let annotations = observed
        .deployment
        .as_mut()
        .unwrap()
        .metadata
        .annotations
        .as_mut();
    annotations.unwrap().remove(TEMPLATE_INPUTS);
    assert_eq!(make(&observed).held, None, "nobody knows");
    said(&mut observed, &ALL);
    let held = make(&observed);
    assert!(matches!(held.held, Some(Held::Update(_))));
    let annotations = held.deployment.unwrap().metadata.annotations.unwrap();
    assert!(
        annotations[TEMPLATE_INPUTS].starts_with(INPUTS_FORMS[0].prefix),
        "from now on it is known"
    );
    said(&mut observed, &ALL[..2]);
    assert_eq!(make(&observed).held, None, "its migration was waited for");
    said(&mut observed, &ALL);
    change(&mut observed, |_| {});
    assert_eq!(make(&observed).held, None, "another generation");
}

#[test]
fn no_part_that_is_left_out_of_the_inputs_changes_a_template() {
    let full = serde_json::to_value(&example("production").cluster.spec).unwrap();
    let small = serde_json::to_value(&example("minimal").cluster.spec).unwrap();
    let of = |path: &str, from: &Value| {
        let mut spec = full.clone();
        let (parent, field) = path.rsplit_once('/').unwrap();
        let members = spec.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match from.pointer(path) {
            Some(other) => members.insert(field.into(), other.clone()),
            None => members.remove(field),
        };
        let spec: SignalClusterSpec = serde_json::from_value(spec).unwrap();
        let observed = changed("production", |cluster| cluster.spec = spec);
        let cluster = validate(&observed).unwrap();
        let template = super::super::deployment::deployment(
            &cluster,
            &Children::of("edge"),
            &crate::objects::gateway_toml(&cluster),
            1,
        );
        (template.spec.unwrap().template, template_inputs(&cluster))
    };
    let mut other = small;
    for (path, value) in [
        ("/stopped", json!(true)),
        ("/paused", json!(true)),
        ("/rebalance", json!({"enabled": true})),
        ("/disruption", json!({"enabled": false})),
        ("/rollout", json!({"maxSurge": 3})),
    ] {
        *other.pointer_mut(path).unwrap() = value;
    }
    for path in NOT_IN_TEMPLATE {
        assert_eq!(of(path, &other), of(path, &full), "{path}");
    }
    assert_ne!(of("/drain", &other).1, of("/drain", &full).1);
}

#[test]
fn a_field_that_a_newer_definition_adds_with_a_default_is_no_other_input() {
    let schema = json!({"properties": {
        "old": {"properties": {"a": {}, "new": {"default": 3}}, "default": {}},
        "new": {"properties": {"b": {"default": "x"}}, "default": {}},
        "list": {"items": {"properties": {"c": {"default": true}}}},
        "chosen": {"properties": {}},
    }});
    let before = json!({"old": {"a": 1}, "list": [{"d": 1}], "chosen": {}});
    let mut after = json!({"old": {"a": 1, "new": 3}, "new": {"b": "x"}, "list": [{"d": 1, "c": true}], "chosen": {}});
    remove_defaults(&mut after, &schema);
    remove_empty(&mut after, &schema);
    assert_eq!(after, before);
}

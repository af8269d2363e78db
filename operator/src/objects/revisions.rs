//! What belongs to one revision of the pods: the objects that only a start reads, how long they stay, and whether a new template waits. Pure.
//!
//! A pod of an older revision whose container restarts must find what it started with: such objects never change, are named by their content, and stay
//! while a ReplicaSet that may start a pod mounts them. What gateways follow while they run (live settings, logins, keys) is one object for all revisions.
//!
//! A template waits until the database is migrated for it; and one that another version of the operator makes of the same spec waits until the spec
//! changes or a restart is asked for.

use std::cmp::Reverse;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResourceExt as _, ResourceExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use signal_crds::SignalCluster;
use signal_crds::scaling::RolloutStrategy;

use super::compare;
use crate::names::{CANARY, Children, RESTART_HASH, RESTARTED_AT, TEMPLATE_HASH, TEMPLATE_INPUTS};
use crate::observe::observed::{Mounts, Observed};
use crate::observe::resources::{CONFIG_MAP, Owned, SECRET};
use crate::plan::canary::{Canary, CanaryInput, CanaryState};
use crate::plan::rollout::Rollout;
use crate::plan::validate::{DATABASE_CA, Files, KAFKA_CA, ValidCluster};
use crate::time::from_k8s;

/// Most objects that stay although nothing mounts them.
const MAX_UNSEEN: usize = 10;
/// A way of hashing the inputs, which the hash begins with. A hash is compared with one of its own form alone, so that a new operator, whose form is
/// another one, restarts nothing.
#[derive(Debug, Clone, Copy)]
struct InputsForm {
    prefix: &'static str,
    /// Parts of the spec that are no input.
    without: &'static [&'static str],
}

/// Newest first: what is written.
const INPUTS_FORMS: [InputsForm; 2] = [
    InputsForm {
        prefix: "v2:",
        without: NOT_IN_TEMPLATE,
    },
    // It counted the last two.
    InputsForm {
        prefix: "v1:",
        without: NOT_IN_TEMPLATE.split_at(19).0,
    },
];
/// Parts of a spec that no pod template depends on: they are followed while pods run, or belong to other objects.
const NOT_IN_TEMPLATE: &[&str] = &[
    "/replicas",
    "/paused",
    "/stopped",
    "/autoscaling",
    "/rollout",
    "/rebalance",
    "/disruption",
    "/service",
    "/adminService",
    "/exposure",
    "/networkPolicy",
    "/jwks",
    "/limits",
    "/gateway/allowedOrigins",
    "/gateway/trustedProxies",
    "/gateway/rooms/maxPerConnection",
    "/observability/logFilter",
    "/observability/serviceMonitor",
    "/observability/prometheusRule",
    "/inheritedMetadata",
    "/gateway/proxyProtocolFrom",
];

/// Why the pods keep the template that they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// The database is not migrated for the new one.
    Migration,
    /// Only the operator is another one: the parts that it makes differently.
    Update(Vec<String>),
    /// Nobody has approved the new one.
    Approval {
        /// Its revision.
        revision: String,
        /// The parts that differ.
        parts: Vec<String>,
    },
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of an object with this content.
pub(super) fn static_name(children: &Children, content: &[u8]) -> String {
    let hash = hex(&Sha256::digest(content)[..5]);
    format!("{}-{hash}", children.static_prefix)
}

/// The files that a gateway reads only as it starts.
pub(super) fn read_at_start(files: &Files) -> impl Iterator<Item = (&'static str, &[u8])> {
    [DATABASE_CA, KAFKA_CA]
        .into_iter()
        .filter_map(|name| Some((name, files.get(name)?.as_slice())))
}

/// The hash of these files.
pub(super) fn restart_hash(files: &Files) -> String {
    let mut hash = Sha256::new();
    for (name, content) in read_at_start(files) {
        hash.update(name);
        hash.update(Sha256::digest(content));
    }
    format!("sha256:{}", hex(&hash.finalize()))
}

/// The name of the Secret with these files; `None` where there are none.
pub(super) fn static_secret_name(cluster: &ValidCluster, children: &Children) -> Option<String> {
    read_at_start(&cluster.files).next()?;
    let hash = restart_hash(&cluster.files);
    Some(static_name(children, hash.as_bytes()))
}

/// The objects of other revisions that stay: those that a ReplicaSet mounts which has pods, and those of the Deployment's template. While the Deployment's
/// controller has not seen the newest template, a ReplicaSet may come for one that was applied in between: then the newest others stay, too.
pub(super) fn kept(observed: &Observed, children: &Children) -> Vec<(Owned, String)> {
    let active = observed.revisions.iter().filter(|it| it.is_active());
    let deployment = observed.deployment.as_ref();
    let template =
        deployment.and_then(|deployment| deployment.spec.as_ref()?.template.spec.as_ref());
    let mounted: Vec<Mounts> = active
        .map(|revision| revision.mounts.clone())
        .chain(template.map(Mounts::of))
        .collect();
    let is_mounted = |kind: Owned, name: &String| {
        mounted.iter().any(|mounts| match kind {
            CONFIG_MAP => mounts.config_maps.contains(name),
            _ => mounts.secrets.contains(name),
        })
    };
    let mut kept = Vec::new();
    let mut others = Vec::new();
    for object in &observed.owned {
        let (Some(kind), name) = (Owned::of(object), object.name_any()) else {
            continue;
        };
        let rest = name.strip_prefix(&children.static_prefix);
        let is_static = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        if !is_static || (kind != CONFIG_MAP && kind != SECRET) {
            continue;
        }
        if is_mounted(kind, &name) {
            kept.push((kind, name));
        } else {
            let created = object.metadata.creation_timestamp.as_ref().map(from_k8s);
            others.push((Reverse(created), kind, name));
        }
    }
    let is_seen = deployment.is_none_or(|deployment| {
        let status = deployment.status.as_ref();
        status.and_then(|status| status.observed_generation) >= deployment.metadata.generation
    });
    if !is_seen {
        others.sort_by(|one, other| (one.0, &one.2).cmp(&(other.0, &other.2)));
        let newest = others.into_iter().take(MAX_UNSEEN);
        kept.extend(newest.map(|(_, kind, name)| (kind, name)));
    }
    kept
}

/// The hash of everything that decides about a pod template but for the operator's version: the spec without its defaults, locales, files that only a start
/// reads, and the restart that was asked for.
pub(super) fn template_inputs(cluster: &ValidCluster) -> String {
    let [newest, ..] = INPUTS_FORMS;
    newest.inputs(cluster)
}

impl InputsForm {
    fn inputs(self, cluster: &ValidCluster) -> String {
        static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
            let definition = serde_json::to_value(SignalCluster::crd()).expect("plain data");
            definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
                .clone()
        });
        let mut spec = serde_json::to_value(&cluster.spec).expect("a spec is plain data");
        remove_defaults(&mut spec, &SCHEMA);
        for path in self.without {
            let (parent, field) = path.rsplit_once('/').unwrap_or_default();
            let parent = spec.pointer_mut(parent).and_then(Value::as_object_mut);
            parent.map(|members| members.remove(field));
        }
        remove_empty(&mut spec, &SCHEMA);
        let inputs = json!([
            spec,
            cluster.locales,
            restart_hash(&cluster.files),
            cluster.restarted_at
        ]);
        format!("{}{}", self.prefix, compare::hash(&inputs))
    }
}

/// Leaves what somebody has chosen: a field that a newer definition adds with a default is no change of the spec.
fn remove_defaults(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                remove_defaults(member, member_schema(schema, name));
            }
            members.retain(|name, member| {
                let default = &member_schema(schema, name)["default"];
                !member.is_null() && (default.is_null() || member != default)
            });
        }
        Value::Array(elements) => {
            let schema = &schema["items"];
            elements
                .iter_mut()
                .for_each(|element| remove_defaults(element, schema));
        }
        _ => {}
    }
}

/// Removes objects with nothing left in them, where the definition fills in the object itself: elsewhere an empty one says something.
fn remove_empty(value: &mut Value, schema: &Value) {
    let Value::Object(members) = value else {
        return;
    };
    for (name, member) in members.iter_mut() {
        remove_empty(member, member_schema(schema, name));
    }
    members.retain(|name, member| {
        let is_empty = member.as_object().is_some_and(serde_json::Map::is_empty);
        !is_empty || member_schema(schema, name)["default"].is_null()
    });
}

fn member_schema<'a>(schema: &'a Value, name: &str) -> &'a Value {
    let of = &schema["properties"][name];
    match of.is_null() {
        true => &schema["additionalProperties"],
        false => of,
    }
}

fn annotation<'a>(deployment: &'a Deployment, name: &str) -> Option<&'a String> {
    deployment.metadata.annotations.as_ref()?.get(name)
}

fn template(deployment: &Deployment) -> Option<Value> {
    let spec = deployment.spec.as_ref()?;
    Some(serde_json::to_value(&spec.template).expect("a template is plain data"))
}

fn differing(new: &Value, old: &Value) -> Vec<String> {
    let differences = compare::differences(new, old).into_iter();
    let mut paths: Vec<String> = differences.map(|found| found.path).collect();
    paths.sort();
    paths
}

/// The name of a template for people: the first ten digits of its hash.
fn revision_of(template: &Value) -> String {
    revision_name(&compare::hash(template))
}

/// The same of a template with this hash.
pub fn revision_name(hash: &str) -> String {
    hash.trim_start_matches("sha256:")
        .chars()
        .take(10)
        .collect()
}

/// What the Deployment says about the canary of its template.
pub fn canary_of(deployment: &Deployment) -> Option<Canary> {
    serde_json::from_str(annotation(deployment, CANARY)?).ok()
}

/// Keeps a rollout at one pod while its canary is looked at or has failed. The Deployment's controller brings up one pod more, and never takes it for
/// available, so that no old one goes; it does not count that as a rollout without progress.
pub(super) fn limit_to_canary(
    cluster: &ValidCluster,
    observed: &Observed,
    deployment: &mut Deployment,
    held: Option<&Held>,
    now: DateTime<Utc>,
) {
    let current = observed.deployment.as_ref();
    let mark = current.and_then(|current| annotation(current, TEMPLATE_HASH));
    let (RolloutStrategy::Canary, Some(applied)) =
        (cluster.spec.rollout.strategy, template(deployment))
    else {
        return;
    };
    // A template that is held back is the observed one, with the API server's defaults.
    let hash = match (held, mark) {
        (Some(_), Some(mark)) => mark.clone(),
        _ => compare::hash(&applied),
    };
    let rollout = Rollout::of(current, &observed.fleet);
    let step = CanaryInput {
        template: &hash,
        current: mark.map(String::as_str),
        recorded: current.and_then(canary_of).as_ref(),
        is_approved: cluster.approved_revision == Some(revision_name(&hash)),
        settings: &cluster.spec.rollout,
        rollout: &rollout,
        fleet: &observed.fleet,
    }
    .step(now);
    let Some(canary) = step else {
        return;
    };
    let text = serde_json::to_string(&canary).expect("plain data");
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.insert(CANARY.to_owned(), text);
    if let Some(spec) = deployment
        .spec
        .as_mut()
        .filter(|_| canary.state != CanaryState::Passed)
    {
        spec.strategy = Some(DeploymentStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(1)),
                max_unavailable: Some(IntOrString::Int(0)),
            }),
        });
        spec.min_ready_seconds = Some(i32::MAX - 1);
        spec.progress_deadline_seconds = Some(i32::MAX);
    }
}

/// Why the new template waits for a person; `None` where it does not.
pub(super) fn unapproved(
    cluster: &ValidCluster,
    observed: &Observed,
    wanted: &Deployment,
) -> Option<Held> {
    let current = observed.deployment.as_ref()?;
    let (new, old) = (template(wanted)?, template(current)?);
    let revision = revision_of(&new);
    let is_free = cluster.spec.rollout.strategy != RolloutStrategy::Supervised
        || cluster.approved_revision.as_ref() == Some(&revision)
        || annotation(current, TEMPLATE_HASH)? == &compare::hash(&new);
    (!is_free).then(|| Held::Approval {
        revision,
        parts: differing(&new, &old),
    })
}

/// The parts of the template that another version of the operator makes differently of the same spec; `None` where nothing has to wait.
pub(super) fn waiting_update(
    cluster: &ValidCluster,
    observed: &Observed,
    wanted: &Deployment,
) -> Option<Vec<String>> {
    let current = observed.deployment.as_ref()?;
    let (new, old) = (template(wanted)?, template(current)?);
    let written = annotation(current, TEMPLATE_INPUTS);
    let form = INPUTS_FORMS
        .into_iter()
        .find(|form| written.is_some_and(|inputs| inputs.starts_with(form.prefix)));
    let is_same_inputs = match form {
        Some(form) => written == Some(&form.inputs(cluster)),
        None => was_carried_out(cluster, observed, &new, &old),
    };
    if !is_same_inputs || annotation(current, TEMPLATE_HASH) == Some(&compare::hash(&new)) {
        return None;
    }
    Some(differing(&new, &old))
}

/// Whether an operator that did not write down the inputs has carried out this generation of the spec: it looked at it, and nothing kept it from rolling
/// out.
fn was_carried_out(cluster: &ValidCluster, observed: &Observed, new: &Value, old: &Value) -> bool {
    let Some(status) = &observed.cluster.status else {
        return false;
    };
    let holds = |kind: &str| {
        let conditions = &mut status.conditions.iter();
        conditions.any(|one| {
            let is_of_it = one.observed_generation == Some(cluster.generation);
            one.type_ == kind && one.status == "True" && is_of_it
        })
    };
    let same = |path: &str| new.pointer(path) == old.pointer(path);
    let same_annotation =
        |name: &str| new["metadata"]["annotations"][name] == old["metadata"]["annotations"][name];
    status.observed_generation == Some(cluster.generation)
        && ["SpecAccepted", "SecretsResolved", "DatabaseMigrated"]
            .into_iter()
            .all(holds)
        && same("/spec/containers/0/image")
        && same_annotation(RESTART_HASH)
        && same_annotation(RESTARTED_AT)
}

/// The Deployment while its template is held back: running pods keep their template, only the number of pods changes. `None` if none runs.
pub(super) fn held_back(
    wanted: Deployment,
    current: Option<&Deployment>,
    held: &Held,
) -> Option<Deployment> {
    let current = current?;
    let template = current.spec.as_ref()?.template.clone();
    let mut kept = wanted;
    if let Some(spec) = &mut kept.spec {
        spec.template = template;
    }
    if !matches!(held, Held::Update(_)) {
        // They belong to the template.
        let annotations = kept.metadata.annotations.get_or_insert_default();
        annotations.remove(TEMPLATE_INPUTS);
        let inputs = annotation(current, TEMPLATE_INPUTS).cloned();
        annotations.extend(inputs.map(|inputs| (TEMPLATE_INPUTS.to_owned(), inputs)));
    }
    Some(kept)
}

#[cfg(test)]
mod tests;

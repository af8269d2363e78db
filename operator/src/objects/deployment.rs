//! The gateways' Deployment and its pod template.
//!
//! The template depends on the spec and on secret content that a gateway reads only at start: nothing else restarts a pod.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::{Value, json};
use signal_crds::pod::{Mesh, Platform, PullPolicy};

use super::config_map::{DATA_DIR, GATEWAY_TOML, revision};
use super::merge::lay_over;
use super::revisions::{restart_hash, static_name, static_secret_name, template_inputs};
use crate::names::{
    ADMIN_PORT, CATALOG_DIR, CONTAINER, Children, EVICTABLE_VOLUMES, LIVE_DIR, PUBLIC_PORT,
    RESTART_HASH, RESTARTED_AT, STATIC_DIR, STATIC_HASH, TEMPLATE_INPUTS, labels, selector,
};
use crate::plan::validate::ValidCluster;

/// How long a gateway may need to stop after endpoint propagation and the window, in seconds: 25 for records in work, 5 to flush, 10 for its shards to
/// end, 10 to close Redis and the database, 10 spare.
pub const STOP_MARGIN_SECS: u64 = 60;

/// The volume for temporary files.
const TMP: &str = "tmp";

/// The user and group of the image.
const USER: i64 = 65532;

/// The pods' grace period in seconds.
pub fn grace_period(cluster: &ValidCluster) -> i64 {
    let drain = &cluster.spec.drain;
    let millis = drain.endpoint_propagation.as_millis() + drain.window.as_millis();
    i64::try_from(millis.div_ceil(1000) + STOP_MARGIN_SECS).unwrap_or(i64::MAX)
}

pub(super) fn deployment(
    cluster: &ValidCluster,
    children: &Children,
    gateway_toml: &str,
    replicas: i32,
) -> Deployment {
    let rollout = &cluster.spec.rollout;
    let secs =
        |duration: signal_crds::Duration| i32::try_from(duration.as_secs()).unwrap_or(i32::MAX);
    let mut metadata = super::meta(cluster, &children.name);
    metadata.annotations = Some([(TEMPLATE_INPUTS.to_owned(), template_inputs(cluster))].into());
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some(selector(&cluster.name)),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(rollout.max_surge.clone()),
                    max_unavailable: Some(rollout.max_unavailable.clone()),
                }),
            }),
            min_ready_seconds: Some(secs(rollout.min_ready)),
            progress_deadline_seconds: Some(secs(rollout.progress_deadline)),
            revision_history_limit: Some(5),
            template: pod_template(cluster, children, gateway_toml),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

/// The pods' template: the user's parts over defaults, and what the operator needs over both.
pub(super) fn pod_template(
    cluster: &ValidCluster,
    children: &Children,
    gateway_toml: &str,
) -> PodTemplateSpec {
    let given = &cluster.spec.pod_template;
    let mut labels_of_pod = given.metadata.labels.clone();
    labels_of_pod.append(&mut labels(&cluster.name));
    let mut annotations = given.metadata.annotations.clone();
    annotations.insert(
        "kubectl.kubernetes.io/default-container".into(),
        CONTAINER.into(),
    );
    if let Some(mesh) = cluster.spec.mesh {
        leave_to_pod(&mut annotations, mesh, cluster.spec.gateway.admin_port);
    }
    let evictable = annotations.entry(EVICTABLE_VOLUMES.into()).or_default();
    *evictable = with_own_volume(evictable);
    annotations.insert(STATIC_HASH.into(), revision(gateway_toml));
    annotations.insert(RESTART_HASH.into(), restart_hash(&cluster.files));
    annotations.remove(RESTARTED_AT);
    if let Some(at) = &cluster.restarted_at {
        annotations.insert(RESTARTED_AT.into(), at.clone());
    }
    let user = lay_over(
        defaults(cluster, children),
        Value::Object(given.spec.clone()),
    );
    let mut whole = lay_over(user, pod_spec(cluster, children, gateway_toml));
    default_requests(&mut whole);
    restrict_further_containers(&mut whole, CONTAINER);
    select_own_pods(&mut whole, &cluster.name);
    let spec: PodSpec = serde_json::from_value(whole).expect("validated to be a PodSpec");
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels_of_pod),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

/// Has a sidecar pass this port on as it comes. Ports that the user excludes stay excluded.
fn leave_to_pod(annotations: &mut BTreeMap<String, String>, mesh: Mesh, port: u16) {
    let name = match mesh {
        // Istio, "Resource annotations"; Linkerd, "Proxy configuration".
        Mesh::Istio => "traffic.sidecar.istio.io/excludeInboundPorts",
        Mesh::Linkerd => "config.linkerd.io/skip-inbound-ports",
    };
    let given = annotations.get(name).map(|given| given.trim());
    let ports = match given.filter(|given| !given.is_empty()) {
        Some(given) if given.split(',').any(|one| one.trim() == port.to_string()) => return,
        Some(given) => format!("{given},{port}"),
        None => port.to_string(),
    };
    annotations.insert(name.into(), ports);
}

/// User and groups of a pod: OpenShift refuses a pod that names any beyond the range of its namespace, and gives each one of that.
pub(super) fn user_and_groups(cluster: &ValidCluster) -> Value {
    match cluster.spec.platform {
        Some(Platform::OpenShift) => json!({}),
        Some(Platform::Kubernetes) | None => {
            json!({"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER})
        }
    }
}

/// The local volumes that may be lost: those that the user names, and the one for temporary files, without which no node with a gateway on it would ever be
/// removed. Not the one with the database of a pod that has none outside: it holds notifications.
fn with_own_volume(given: &str) -> String {
    let named = given.split(',').map(str::trim);
    let others = named.filter(|name| !name.is_empty() && *name != TMP);
    others.chain([TMP]).collect::<Vec<_>>().join(",")
}

/// Defaults that the user may override.
fn defaults(cluster: &ValidCluster, children: &Children) -> Value {
    let mut security = user_and_groups(cluster);
    security["fsGroupChangePolicy"] = "OnRootMismatch".into();
    json!({
        "serviceAccountName": children.name,
        "securityContext": security,
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(&cluster.name)},
            "matchLabelKeys": ["pod-template-hash"],
        }],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": selector(&cluster.name)}},
        }]}},
    })
}

/// Adds requests for CPU and memory if the user sets neither request nor limit: pods without them are evicted first.
fn default_requests(pod: &mut Value) {
    let containers = pod.get_mut("containers").and_then(Value::as_array_mut);
    let Some(gateway) = containers
        .into_iter()
        .flatten()
        .find(|container| container["name"] == CONTAINER)
    else {
        return;
    };
    for (resource, amount) in [("cpu", "100m"), ("memory", "128Mi")] {
        let resources = &gateway["resources"];
        if resources["requests"].get(resource).is_none()
            && resources["limits"].get(resource).is_none()
        {
            gateway["resources"]["requests"][resource] = amount.into();
        }
    }
}

/// Puts what the restricted Pod Security standard demands of a container under what the user gives further ones.
pub(super) fn restrict_further_containers(pod: &mut Value, own: &str) {
    for list in ["containers", "initContainers"] {
        let containers = pod.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if container["name"] == own {
                continue;
            }
            let given = container["securityContext"].take();
            let restricted =
                json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
            container["securityContext"] = match given {
                Value::Null => restricted,
                given => lay_over(restricted, given),
            };
        }
    }
}

/// Completes spread constraints without a selector: they would count no pod at all (Kubernetes, "Pod Topology Spread Constraints").
fn select_own_pods(pod: &mut Value, name: &str) {
    let constraints = pod.get_mut("topologySpreadConstraints");
    for constraint in constraints
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if constraint["labelSelector"].is_null() {
            constraint["labelSelector"] = json!({"matchLabels": selector(name)});
        }
    }
}

/// What the operator sets itself, within the restricted Pod Security standard.
fn pod_spec(cluster: &ValidCluster, children: &Children, gateway_toml: &str) -> Value {
    let spec = &cluster.spec;
    let mut live = vec![
        json!({"configMap": {"name": children.live_config}}),
        json!({"secret": {"name": children.credentials}}),
    ];
    // The last one that has a file counts: credentials hold the newest authorities, for who reads them whenever it connects.
    live.extend(
        static_secret_name(cluster, children).map(|name| json!({"secret": {"name": name}})),
    );
    let static_config = static_name(children, gateway_toml.as_bytes());
    let mut volumes = vec![
        json!({"name": "static", "configMap": {"name": static_config, "defaultMode": 0o440}}),
        json!({"name": "live", "projected": {"defaultMode": 0o440, "sources": live}}),
        json!({"name": TMP, "emptyDir": {}}),
    ];
    let mut mounts = vec![
        json!({"name": "static", "mountPath": STATIC_DIR, "readOnly": true}),
        json!({"name": "live", "mountPath": LIVE_DIR, "readOnly": true}),
        json!({"name": TMP, "mountPath": "/tmp"}),
    ];
    if let Some(catalogs) = &spec.notifications.catalog_ref {
        // A gateway reads one folder per locale, which needs an item per key: a new locale restarts the pods, a changed text does not.
        let items: Vec<_> = cluster
            .locales
            .iter()
            .map(|locale| json!({"key": format!("{locale}.ftl"), "path": format!("{locale}/{locale}.ftl")}))
            .collect();
        volumes.push(json!({"name": "catalogs", "configMap": {"name": catalogs.name, "items": items, "defaultMode": 0o440}}));
        mounts.push(json!({"name": "catalogs", "mountPath": CATALOG_DIR, "readOnly": true}));
    }
    if spec.database.is_none() {
        volumes.push(json!({"name": "data", "emptyDir": {}}));
        mounts.push(json!({"name": "data", "mountPath": DATA_DIR}));
    }
    let probe = |path: &str, period: u32, failures: u32| json!({"httpGet": {"path": path, "port": ADMIN_PORT, "scheme": "HTTP"}, "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures});
    json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": grace_period(cluster),
        "imagePullSecrets": pull_secrets(cluster),
        "securityContext": pod_security(),
        "containers": [{
            "name": CONTAINER,
            "image": spec.image.reference(),
            "imagePullPolicy": pull_policy(cluster),
            "args": ["serve", "--config", format!("{STATIC_DIR}/{GATEWAY_TOML}")],
            "ports": [
                {"name": PUBLIC_PORT, "containerPort": spec.gateway.public_port, "protocol": "TCP"},
                {"name": ADMIN_PORT, "containerPort": spec.gateway.admin_port, "protocol": "TCP"},
            ],
            "env": [{"name": "SIGNAL__SERVER__INSTANCE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            // Two minutes to start: the first connection to a database that fails over may take long.
            "startupProbe": probe("/livez", 2, 60),
            "livenessProbe": probe("/livez", 10, 3),
            "readinessProbe": probe("/readyz", 5, 2),
            // The last lines of a container that ends badly reach the status of the SignalCluster.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": container_security(),
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    })
}

/// `null` for none: the API server drops an empty list, which would look like a difference.
pub(super) fn pull_secrets(cluster: &ValidCluster) -> Value {
    let names = &cluster.spec.image.pull_secrets;
    if names.is_empty() {
        Value::Null
    } else {
        names.iter().map(|name| json!({"name": name})).collect()
    }
}

pub(super) fn pull_policy(cluster: &ValidCluster) -> &'static str {
    match cluster.spec.image.pull_policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

pub(super) fn pod_security() -> Value {
    json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}})
}

pub(super) fn container_security() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "privileged": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}})
}

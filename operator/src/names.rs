//! Names of child objects, labels and annotations, in one place.

use std::collections::BTreeMap;

/// Field manager of every write, and `app.kubernetes.io/managed-by` of every object.
pub const MANAGER: &str = "signal-operator";
/// Label that names the manager.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Label that names the SignalCluster.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// Component label of the migration Job's pods: it keeps Services from selecting them.
pub const MIGRATION: &str = "migration";
/// Label of pods that drain at scale-in; the Deployment does not select by it, `status.selector` leaves such pods out.
pub const DRAINING: &str = "signal.dev/draining";
/// Annotation of pods that drain: since when, RFC 3339.
pub const DRAINING_SINCE: &str = "signal.dev/draining-since";
/// Annotation by which the ReplicaSet chooses which pod to delete first (Kubernetes' own).
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Annotation of a pod by which a person has it drained and replaced, whatever its text.
pub const DRAIN: &str = "signal.dev/drain";
/// Annotation of pods: the local volumes that may be lost when the cluster autoscaler removes a node, by their names (Kubernetes' autoscaler, FAQ).
pub const EVICTABLE_VOLUMES: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";
/// Annotation of applied objects: the hash of what was applied.
pub const APPLIED: &str = "signal.dev/applied";
/// Annotation of a SignalCluster by which a person has the signing key rotated: once for each value.
pub const ROTATE_NOW: &str = "signal.dev/rotate-now";
/// Annotation of the live ConfigMap: the record of stages as JSON. The Secret of credentials has a copy.
pub const RECORD: &str = "signal.dev/record";
/// Annotation of the pod template: the hash of the static configuration.
pub const STATIC_HASH: &str = "signal.dev/static-config";
/// Annotation of the pod template: the hash of secret content that a gateway reads only as it starts.
pub const RESTART_HASH: &str = "signal.dev/restart-secrets";

/// Annotation of the Deployment: the hash of what the spec and its Secrets say about the pod template, whatever an operator makes of it.
pub const TEMPLATE_INPUTS: &str = "signal.dev/template-inputs";
/// Annotation of a SignalCluster, and of its pods: another text restarts them.
pub const RESTARTED_AT: &str = "signal.dev/restarted-at";
/// Annotation of a SignalCluster: the revision of the pod template that a person approves (`rollout.strategy: Supervised` and `Canary`).
pub const APPROVE_ROLLOUT: &str = "signal.dev/approve-rollout";
/// Annotation of the Deployment: how the first pod of its template does (`rollout.strategy: Canary`), as JSON.
pub const CANARY: &str = "signal.dev/canary";
/// Annotation of the Deployment: the hash of its pod template, which separates a change of it from the API server's defaults.
pub const TEMPLATE_HASH: &str = "signal.dev/template";

/// Where the projected volume of `live.toml` and all credentials is mounted.
pub const LIVE_DIR: &str = "/etc/signal/live";
/// Where the static configuration is mounted.
pub const STATIC_DIR: &str = "/etc/signal/static";
/// Where catalogs are mounted.
pub const CATALOG_DIR: &str = "/etc/signal/catalogs";
/// Name of the gateway's container, and of its ports.
pub const CONTAINER: &str = "gateway";
/// Name of the public container port.
pub const PUBLIC_PORT: &str = "public";
/// Name of the admin container port.
pub const ADMIN_PORT: &str = "admin";

/// Names of the objects of one SignalCluster. Each begins with its name, which the API server bounds to 40 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Children {
    /// Deployment, public Service, ServiceAccount, PodDisruptionBudget, HorizontalPodAutoscaler, NetworkPolicy, Ingress, HTTPRoute, monitors.
    pub name: String,
    /// Headless Service of the admin port.
    pub admin_service: String,
    /// Begins the names of what only a start reads, one object for each content: ConfigMaps with `gateway.toml`, Secrets with authorities.
    pub static_prefix: String,
    /// ConfigMap with `live.toml`.
    pub live_config: String,
    /// Secret with every credential the gateways read.
    pub credentials: String,
    /// Secret with the keys that the operator makes.
    pub signing_keys: String,
    /// HTTPRoute that redirects to HTTPS.
    pub redirect_route: String,
}

impl Children {
    /// Of the SignalCluster of this name.
    pub fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            admin_service: format!("{name}-admin"),
            static_prefix: format!("{name}-static"),
            live_config: format!("{name}-live"),
            credentials: format!("{name}-credentials"),
            signing_keys: format!("{name}-signing-keys"),
            redirect_route: format!("{name}-redirect"),
        }
    }

    /// Whether the operator gives an object this name, of whatever kind and content.
    pub fn include(&self, object: &str) -> bool {
        let fixed = [
            &self.name,
            &self.admin_service,
            &self.static_prefix,
            &self.live_config,
            &self.credentials,
            &self.signing_keys,
            &self.redirect_route,
        ];
        let is_hash = |rest: &str| {
            let digits = rest.strip_prefix('-').unwrap_or_default();
            !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        };
        let by_content = [self.static_prefix.clone(), format!("{}-migrate", self.name)];
        fixed.into_iter().any(|name| name == object)
            || by_content
                .iter()
                .any(|prefix| object.strip_prefix(&**prefix).is_some_and(is_hash))
    }
}

/// The Deployment's selector of pods; never changes.
pub fn selector(name: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "signal-gateway"),
        (INSTANCE_LABEL, name),
        ("app.kubernetes.io/component", "gateway"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// The recommended labels of every object of a SignalCluster.
pub fn labels(name: &str) -> BTreeMap<String, String> {
    let mut labels = selector(name);
    labels.insert("app.kubernetes.io/part-of".into(), "signal".into());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGER.into());
    labels
}

/// Selects the pods that stay; the value of `status.selector`.
pub fn staying_selector(name: &str) -> String {
    let mut parts: Vec<String> = selector(name)
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    // kubectl cannot read `!=` in the selector of a scale subresource.
    parts.push(format!("!{DRAINING}"));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_operator_gives_are_told_from_those_of_copies() {
        let children = Children::of("edge");
        for name in [
            "edge",
            "edge-admin",
            "edge-live",
            "edge-credentials",
            "edge-signing-keys",
            "edge-redirect",
            "edge-static",
            "edge-static-17d36cb135",
            "edge-migrate-593d33e0",
        ] {
            assert!(children.include(name), "{name}");
        }
        for name in [
            "edge-signing-keys-backup",
            "edge-signing-keys-2026",
            "edge-static-17d36cb135-old",
            "edge-static-",
            "edge-migrate-before",
            "other",
        ] {
            assert!(!children.include(name), "{name}");
        }
    }
}

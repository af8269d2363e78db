//! Everything that one reconcile observed: plain data, read once, the input of the pure steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Secret};
use kube::core::DynamicObject;
use signal_crds::{SignalCluster, SignalClusterSpec};

use crate::observe::fleet::{Fleet, PodProblem};
use crate::observe::resources::{HTTP_ROUTE, INGRESS, Owned, PROMETHEUS_RULE, SERVICE_MONITOR};

/// Data of every Secret that the spec names; `None`: it does not exist.
pub type Secrets = BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>;

/// What one reconcile observed.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The SignalCluster.
    pub cluster: Arc<SignalCluster>,
    /// Whether somebody wrote `spec.replicas`.
    pub replicas_named: bool,
    /// Every Secret that the spec names.
    pub secrets: Secrets,
    /// The ConfigMap of catalogs; `Some(None)`: the spec names it and it does not exist.
    pub catalogs: Option<Option<ConfigMap>>,
    /// The gateways.
    pub deployment: Option<Deployment>,
    /// ConfigMap with `live.toml` and the record.
    pub live_config: Option<ConfigMap>,
    /// Secret with what the gateways read.
    pub credentials: Option<Secret>,
    /// Secret with the keys that the operator makes.
    pub signing_keys: Option<Secret>,
    /// The Deployment's ReplicaSets.
    pub revisions: Vec<PodRevision>,
    /// Hashes of the pod templates that the Deployment's controller works on: it copies the Deployment's annotations to the newest ReplicaSet.
    pub template_hashes: BTreeSet<String>,
    /// Migration Jobs, of this and of earlier images.
    pub jobs: Vec<Job>,
    /// What keeps pods of Jobs that have not completed from their work, by the pod's name; the youngest first.
    pub migration_pods: Vec<(String, PodProblem)>,
    /// The HorizontalPodAutoscaler.
    pub hpa: Option<HorizontalPodAutoscaler>,
    /// All other objects with the labels and the owner reference of this SignalCluster.
    pub owned: Vec<DynamicObject>,
    /// Gateways that the HTTPRoute names, as far as they may be read.
    pub gateways: Vec<DynamicObject>,
    /// The pods.
    pub fleet: Fleet,
    /// Optional kinds that the API server knows.
    pub kinds: Kinds,
    /// What `spec.podTemplate` may have beyond the restricted standard.
    pub allowed: PodAllowances,
    /// What could not be read although a plan needs it: kind or name, and the API server's answer. The Deployment and its pods are always observed.
    pub unread: Vec<String>,
}

/// A ReplicaSet of the Deployment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodRevision {
    /// Its name.
    pub name: String,
    /// `pod-template-hash` of its pods.
    pub template_hash: String,
    /// Pods that it wants.
    pub wanted: i32,
    /// Pods that it has.
    pub pods: i32,
    /// When it was created.
    pub created: DateTime<Utc>,
    /// What its pods mount.
    pub mounts: Mounts,
    /// Why it cannot create a pod, as its controller says.
    pub failure: Option<String>,
    /// The restart that its pods came by, if any.
    pub restarted_at: Option<String>,
}

impl Observed {
    /// Puts what the API server returned of writes since then in the place of what was listed, and adds what was not there.
    pub fn update(&mut self, returned: impl IntoIterator<Item = DynamicObject>) {
        for object in returned {
            let is_same = |other: &DynamicObject| {
                other.metadata.name == object.metadata.name
                    && Owned::of(other) == Owned::of(&object)
            };
            self.owned.retain(|other| !is_same(other));
            self.owned.push(object);
        }
    }

    /// The object of this kind and name among [`Observed::owned`].
    pub fn find_owned(&self, kind: Owned, name: &str) -> Option<&DynamicObject> {
        self.owned.iter().find(|object| {
            object.metadata.name.as_deref() == Some(name) && Owned::of(object) == Some(kind)
        })
    }
}

impl PodRevision {
    /// Whether it may start a pod: one without pods does only after the Deployment's template became its own again.
    pub fn is_active(&self) -> bool {
        self.wanted > 0 || self.pods > 0
    }
}

/// Names of the ConfigMaps and Secrets in the volumes of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mounts {
    /// ConfigMaps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
}

impl Mounts {
    /// Those of a pod.
    pub fn of(pod: &PodSpec) -> Self {
        let mut mounts = Self::default();
        for volume in pod.volumes.iter().flatten() {
            mounts
                .config_maps
                .extend(volume.config_map.iter().map(|map| map.name.clone()));
            let secret = volume.secret.as_ref();
            mounts
                .secrets
                .extend(secret.and_then(|secret| secret.secret_name.clone()));
            let projected = volume.projected.as_ref();
            for source in projected
                .and_then(|of| of.sources.as_ref())
                .into_iter()
                .flatten()
            {
                mounts
                    .config_maps
                    .extend(source.config_map.iter().map(|map| map.name.clone()));
                mounts
                    .secrets
                    .extend(source.secret.iter().map(|secret| secret.name.clone()));
            }
        }
        mounts
    }
}

/// What `spec.podTemplate` may have beyond the restricted Pod Security standard, by the operator's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodAllowances {
    /// Other accounts than the one that the operator makes, and tokens of them.
    pub service_accounts: bool,
    /// Other Secrets than the one that the operator makes, as volumes and variables.
    pub secret_volumes: bool,
    /// Further containers and init containers.
    pub extra_containers: bool,
    /// Privileges, capabilities, and the node's namespaces, ports and folders.
    pub host_access: bool,
}

/// Optional kinds by the namespace in which the operator works; `None`: in all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KindsByNamespace(pub BTreeMap<Option<String>, Kinds>);

impl KindsByNamespace {
    /// Those of a namespace.
    pub fn of(&self, namespace: &str) -> Kinds {
        let own = self.0.get(&Some(namespace.to_owned()));
        own.or_else(|| self.0.get(&None))
            .copied()
            .unwrap_or_default()
    }
}

/// Whether the operator can make objects of an optional kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KindAccess {
    /// The API server has not said yet.
    #[default]
    Unknown,
    /// It can.
    Usable,
    /// The API server does not know the kind.
    Missing,
    /// The API server does not let the operator list it.
    Forbidden,
}

/// Optional kinds, and whether the API server knows them and the operator may use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds {
    /// `gateway.networking.k8s.io/v1` HTTPRoute.
    pub http_route: KindAccess,
    /// `networking.k8s.io/v1` Ingress.
    pub ingress: KindAccess,
    /// `monitoring.coreos.com/v1` ServiceMonitor.
    pub service_monitor: KindAccess,
    /// `monitoring.coreos.com/v1` PrometheusRule.
    pub prometheus_rule: KindAccess,
}

impl Kinds {
    /// What is known of a kind; the API server always has those that are not optional.
    pub fn access(&self, kind: Owned) -> KindAccess {
        match kind {
            HTTP_ROUTE => self.http_route,
            INGRESS => self.ingress,
            SERVICE_MONITOR => self.service_monitor,
            PROMETHEUS_RULE => self.prometheus_rule,
            kind if kind.optional => KindAccess::Unknown,
            _ => KindAccess::Usable,
        }
    }

    /// Whether objects of this kind can be made.
    pub fn has(&self, kind: Owned) -> bool {
        self.access(kind) == KindAccess::Usable
    }

    /// Says whether objects of an optional kind can be made.
    pub fn set(&mut self, kind: Owned, access: KindAccess) {
        match kind {
            HTTP_ROUTE => self.http_route = access,
            INGRESS => self.ingress = access,
            SERVICE_MONITOR => self.service_monitor = access,
            PROMETHEUS_RULE => self.prometheus_rule = access,
            _ => {}
        }
    }

    /// Whether a spec asks for an optional kind that cannot be made.
    pub fn lack(&self, spec: &SignalClusterSpec) -> bool {
        let (exposure, observability) = (&spec.exposure, &spec.observability);
        exposure.http_route.is_some() && !self.has(HTTP_ROUTE)
            || exposure.ingress.is_some() && !self.has(INGRESS)
            || observability.service_monitor.is_some() && !self.has(SERVICE_MONITOR)
            || observability.prometheus_rule.is_some() && !self.has(PROMETHEUS_RULE)
    }
}

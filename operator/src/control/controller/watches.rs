//! The watches that request reconciles. They watch metadata only and keep none of it: each change is mapped to the SignalClusters it concerns.
//!
//! A HorizontalPodAutoscaler is watched as a whole: its controller writes its status every quarter of a minute, and only what conditions say of it counts.
//! ReplicaSets are not watched: the Deployment's status and pods change with them.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{
    ApiResource, DynamicObject, DynamicResourceScope, GroupVersionKind, PartialObjectMeta,
};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use signal_crds::SignalCluster;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::control::clusters::{Clusters, Scope};
use crate::metrics::{Metrics, Source};
use crate::names::{INSTANCE_LABEL, MANAGED_BY_LABEL, MANAGER, MIGRATION};
use crate::observe::observed::KindsByNamespace;
use crate::observe::owner::is_managed;
use crate::observe::resources::{self, AUTOSCALER, CONFIG_MAP, Owned, SECRET};
use crate::reconcile::spoils::{Spoils, WatchKey};

/// Names of SignalClusters to be reconciled.
pub(super) type Requests = mpsc::Sender<ObjectRef<SignalCluster>>;

/// Everything the watches need.
#[derive(Clone)]
pub(super) struct Watches {
    pub(super) client: Client,
    pub(super) clusters: Clusters,
    pub(super) kinds: watch::Receiver<KindsByNamespace>,
    pub(super) metrics: Metrics,
    pub(super) requests: Requests,
    /// Asks for a look at the optional kinds.
    pub(super) doubted: Arc<Notify>,
    /// Told of every event.
    pub(super) spoils: Spoils,
}

/// What is watched of one kind.
#[derive(Debug, Clone)]
struct Watched {
    resource: ApiResource,
    labels: Option<String>,
    /// Only where the API server knows it.
    optional: Option<Owned>,
}

impl Watched {
    fn key(&self, scope: &Scope) -> WatchKey {
        WatchKey {
            namespace: scope.namespace().cloned(),
            kind: self.resource.kind.clone(),
        }
    }
}

/// The watch of SignalClusters themselves.
fn clusters_key() -> WatchKey {
    WatchKey {
        namespace: None,
        kind: SignalCluster::kind(&()).into_owned(),
    }
}

/// Every kind once. Secrets and ConfigMaps are watched without a label: a spec may name some that the operator does not own.
fn watched() -> Vec<Watched> {
    let managed = format!("{MANAGED_BY_LABEL}={MANAGER}");
    let owned = resources::ALL.into_iter().map(|kind| Watched {
        resource: kind.resource(),
        labels: (kind != SECRET && kind != CONFIG_MAP).then(|| managed.clone()),
        optional: kind.optional.then_some(kind),
    });
    let pods = Watched {
        resource: ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("", "v1", "Pod"),
            "pods",
        ),
        labels: Some(format!(
            "app.kubernetes.io/name=signal-gateway,app.kubernetes.io/component in (gateway, {MIGRATION})"
        )),
        optional: None,
    };
    owned.chain([pods]).collect()
}

impl Watches {
    /// Starts all watches; they end with the set.
    pub(super) fn start(&self, scopes: &[Scope]) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        // The store was listed before anybody leads.
        self.spoils.starts(clusters_key());
        self.spoils.listed(&clusters_key());
        tasks.spawn(self.clone().follow_clusters());
        for scope in scopes {
            for watched in watched() {
                if watched.optional.is_none() {
                    self.spoils.starts(watched.key(scope));
                }
                tasks.spawn(self.clone().follow(scope.clone(), watched));
            }
        }
        tasks
    }

    async fn request(
        &self,
        source: &'static str,
        clusters: impl IntoIterator<Item = ObjectRef<SignalCluster>>,
    ) {
        for cluster in clusters {
            self.metrics
                .triggers
                .get_or_create(&Source { source })
                .inc();
            self.spoils.spoil(&cluster);
            // Without a receiver the controller is stopping, and no request is needed.
            let _ = self.requests.send(cluster).await;
        }
    }

    /// Requests all SignalClusters of the store, then each that changes.
    async fn follow_clusters(self) {
        let mut changes = self.clusters.changes();
        let mut broken = self.clusters.broken();
        self.request("cluster", self.clusters.all(&Scope::All))
            .await;
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                Ok(()) = broken.changed() => {
                    self.spoils.broke(&clusters_key());
                    continue;
                }
            };
            match change {
                Ok(cluster) => self.request("cluster", [cluster]).await,
                Err(RecvError::Lagged(_)) => {
                    self.request("cluster", self.clusters.all(&Scope::All))
                        .await
                }
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// Watches one kind in one scope while the API server knows it.
    async fn follow(self, scope: Scope, watched: Watched) {
        let mut kinds = self.kinds.clone();
        let mut without = self.kinds.clone();
        loop {
            let Some(kind) = watched.optional else {
                return self.pump(&scope, &watched).await;
            };
            let has = |kinds: &KindsByNamespace| scope.kinds(kinds).has(kind);
            if kinds.wait_for(has).await.is_err() {
                // The sender is gone: the process ends.
                return std::future::pending().await;
            }
            self.spoils.starts(watched.key(&scope));
            tokio::select! {
                () = self.pump(&scope, &watched) => {}
                // Without a sender nothing changes any more.
                Ok(_) = without.wait_for(|kinds| !has(kinds)) => {}
            }
            self.spoils.ends(&watched.key(&scope));
        }
    }

    async fn pump(&self, scope: &Scope, watched: &Watched) {
        if watched.resource.kind == AUTOSCALER.kind {
            self.pump_of::<DynamicObject>(scope, watched, autoscaler)
                .await;
        } else {
            let all = |_: &PartialObjectMeta<DynamicObject>| None;
            self.pump_of(scope, watched, all).await;
        }
    }

    /// `relevant` returns what counts of an object: a change of something else is none. `None`: everything counts.
    async fn pump_of<K>(
        &self,
        scope: &Scope,
        watched: &Watched,
        relevant: impl Fn(&K) -> Option<String>,
    ) where
        K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        let api: Api<K> = scope.api(&self.client, &watched.resource);
        let config = watcher::Config {
            label_selector: watched.labels.clone(),
            ..watcher::Config::default()
        };
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut known = HashMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => {
                    let name = (object.meta().namespace.clone(), object.meta().name.clone());
                    let counts = relevant(&object);
                    if counts.is_some() && known.insert(name, counts.clone()) == Some(counts) {
                        continue;
                    }
                    self.changed(watched, object.meta()).await;
                }
                Ok(watcher::Event::Delete(object)) => {
                    known.remove(&(object.meta().namespace.clone(), object.meta().name.clone()));
                    self.changed(watched, object.meta()).await;
                }
                // Objects may have changed or gone between the last event and this list.
                Ok(watcher::Event::InitDone) => {
                    self.spoils.listed(&watched.key(scope));
                    self.request("relist", self.clusters.all(scope)).await
                }
                Ok(watcher::Event::Init) => known.clear(),
                Ok(watcher::Event::InitApply(_)) => {}
                Err(error) => {
                    self.metrics.watch_errors.inc();
                    self.spoils.broke(&watched.key(scope));
                    // Its definition may have been removed.
                    if watched.optional.is_some() {
                        self.doubted.notify_one();
                    }
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        kind = watched.resource.kind,
                        ?scope,
                        "watch broke; restarting it"
                    );
                }
            }
        }
    }

    async fn changed(&self, watched: &Watched, metadata: &ObjectMeta) {
        self.request("owned", self.owning(watched, metadata)).await;
        self.request("named", self.naming(watched, metadata)).await;
    }

    /// The SignalClusters that an object belongs to: by its owner; or by its label, where that is watched (pods are owned by others), or of an object of ours
    /// without an owner, as from a backup.
    fn owning(&self, watched: &Watched, metadata: &ObjectMeta) -> Vec<ObjectRef<SignalCluster>> {
        let Some(namespace) = &metadata.namespace else {
            return Vec::new();
        };
        let owners = metadata
            .owner_references
            .as_deref()
            .unwrap_or_default()
            .iter();
        let mut owning: Vec<ObjectRef<SignalCluster>> = owners
            .filter(|owner| {
                owner.kind == SignalCluster::kind(&())
                    && owner.api_version == SignalCluster::api_version(&())
            })
            .map(|owner| ObjectRef::new(&owner.name).within(namespace))
            .collect();
        if owning.is_empty() && (watched.labels.is_some() || is_managed(metadata)) {
            let instance = metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(INSTANCE_LABEL));
            owning.extend(instance.map(|instance| ObjectRef::new(instance).within(namespace)));
        }
        // A label may name a SignalCluster that does not exist.
        owning.retain(|cluster| self.clusters.store().get(cluster).is_some());
        owning
    }

    /// The SignalClusters whose spec names an object.
    fn naming(&self, watched: &Watched, metadata: &ObjectMeta) -> Vec<ObjectRef<SignalCluster>> {
        match (&metadata.namespace, &metadata.name) {
            (Some(namespace), Some(name)) => {
                self.clusters
                    .naming(&watched.resource.kind, namespace, name)
            }
            _ => Vec::new(),
        }
    }
}

/// What counts of a HorizontalPodAutoscaler: everything but the numbers and times in its status.
fn autoscaler(object: &DynamicObject) -> Option<String> {
    let metadata = &object.metadata;
    let conditions = object.data.pointer("/status/conditions");
    let conditions = conditions.and_then(Value::as_array).into_iter().flatten();
    let conditions: Vec<[&Value; 4]> = conditions
        .map(|it| [&it["type"], &it["status"], &it["reason"], &it["message"]])
        .collect();
    let of = (
        (&metadata.uid, &metadata.deletion_timestamp),
        (
            &metadata.labels,
            &metadata.annotations,
            &metadata.owner_references,
        ),
        (&object.data["spec"], conditions),
    );
    serde_json::to_string(&of).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_conditions_say_of_an_autoscaler_counts_in_its_status() {
        let hpa = |replicas: i32, limited: &str, max: i32| {
            let object = json!({
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "edge", "namespace": "a", "resourceVersion": replicas.to_string()},
                "spec": {"maxReplicas": max},
                "status": {"currentReplicas": replicas, "conditions": [
                    {"type": "ScalingLimited", "status": limited, "reason": "r", "message": "m", "lastTransitionTime": replicas.to_string()},
                ]},
            });
            autoscaler(&serde_json::from_value(object).unwrap())
        };
        let known = hpa(1, "False", 5);
        assert!(known.is_some());
        assert_eq!(hpa(2, "False", 5), known, "numbers and times");
        assert_ne!(hpa(1, "True", 5), known);
        assert_ne!(hpa(1, "False", 6), known);
    }
}

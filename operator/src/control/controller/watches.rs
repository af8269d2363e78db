//! The watches that request reconciles. They watch metadata only and keep none of it: each change is mapped to the SignalClusters it concerns.

use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _};
use signal_crds::SignalCluster;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::control::clusters::{Clusters, Scope};
use crate::metrics::{Metrics, Source};
use crate::names::{INSTANCE_LABEL, MANAGED_BY_LABEL, MANAGER, MIGRATION};
use crate::observe::observed::KindsByNamespace;
use crate::observe::resources::{self, CONFIG_MAP, Owned, SECRET};

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
}

/// What is watched of one kind.
#[derive(Debug, Clone)]
struct Watched {
    resource: ApiResource,
    labels: Option<String>,
    /// Only where the API server knows it.
    optional: Option<Owned>,
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
        tasks.spawn(self.clone().follow_clusters());
        for scope in scopes {
            for watched in watched() {
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
            // Without a receiver the controller is stopping, and no request is needed.
            let _ = self.requests.send(cluster).await;
        }
    }

    /// Requests all SignalClusters of the store, then each that changes.
    async fn follow_clusters(self) {
        let mut changes = self.clusters.changes();
        self.request("cluster", self.clusters.all(&Scope::All))
            .await;
        loop {
            match changes.recv().await {
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
            tokio::select! {
                () = self.pump(&scope, &watched) => {}
                _ = without.wait_for(|kinds| !has(kinds)) => {}
            }
        }
    }

    async fn pump(&self, scope: &Scope, watched: &Watched) {
        let api: Api<PartialObjectMeta<DynamicObject>> = scope.api(&self.client, &watched.resource);
        let config = watcher::Config {
            label_selector: watched.labels.clone(),
            ..watcher::Config::default()
        };
        let mut events = pin!(watcher(api, config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object)) => {
                    self.request("owned", self.owning(watched, &object)).await;
                    self.request("named", self.naming(watched, &object)).await;
                }
                // Objects may have changed or gone between the last event and this list.
                Ok(watcher::Event::InitDone) => {
                    self.request("relist", self.clusters.all(scope)).await
                }
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Err(error) => {
                    self.metrics.watch_errors.inc();
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

    /// The SignalClusters that an object belongs to: by its owner, or by its label where that is watched (pods are owned by others).
    fn owning(
        &self,
        watched: &Watched,
        object: &PartialObjectMeta<DynamicObject>,
    ) -> Vec<ObjectRef<SignalCluster>> {
        let metadata = &object.metadata;
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
        if owning.is_empty() && watched.labels.is_some() {
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
    fn naming(
        &self,
        watched: &Watched,
        object: &PartialObjectMeta<DynamicObject>,
    ) -> Vec<ObjectRef<SignalCluster>> {
        match (&object.metadata.namespace, &object.metadata.name) {
            (Some(namespace), Some(name)) => {
                self.clusters
                    .naming(&watched.resource.kind, namespace, name)
            }
            _ => Vec::new(),
        }
    }
}

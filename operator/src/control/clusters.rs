//! The store of all SignalClusters: one for all namespaces, kept up to date by every process, leader or standby.
//!
//! The leader's controller follows its changes; the external scaler only reads.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use kube::core::DynamicResourceScope;
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use signal_crds::SignalCluster;
use tokio::sync::broadcast;

use crate::metrics::Metrics;
use crate::observe::references::references;

/// Changes that a controller may be behind before it requests all SignalClusters instead.
const BEHIND: usize = 1024;

/// Where SignalClusters are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// In every namespace; needs a ClusterRole.
    All,
    /// In this one.
    Namespace(String),
}

impl Scope {
    /// The scopes of these namespaces; none means all.
    pub fn of(namespaces: &[String]) -> Vec<Self> {
        let distinct: BTreeSet<&String> = namespaces
            .iter()
            .filter(|namespace| !namespace.is_empty())
            .collect();
        if distinct.is_empty() {
            return vec![Scope::All];
        }
        distinct
            .into_iter()
            .cloned()
            .map(Scope::Namespace)
            .collect()
    }

    /// Objects of this kind in it.
    pub fn api<K>(&self, client: &Client, kind: &K::DynamicType) -> Api<K>
    where
        K: Resource<Scope = DynamicResourceScope>,
    {
        match self {
            Scope::All => Api::all_with(client.clone(), kind),
            Scope::Namespace(namespace) => Api::namespaced_with(client.clone(), namespace, kind),
        }
    }

    /// Whether an object of this namespace is in it.
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Namespace(own) => own == namespace,
        }
    }
}

/// The SignalClusters that were listed or watched.
#[derive(Clone)]
pub struct Clusters {
    store: Store<SignalCluster>,
    changes: broadcast::Sender<ObjectRef<SignalCluster>>,
}

/// What all watches write to.
struct StoreUpdates {
    writer: Writer<SignalCluster>,
    changes: broadcast::Sender<ObjectRef<SignalCluster>>,
    /// Scopes that have not been listed yet.
    unlisted: usize,
    metrics: Metrics,
}

impl Clusters {
    /// A store, and one future for each scope that keeps it up to date and never ends.
    pub fn watch(
        client: &Client,
        scopes: &[Scope],
        metrics: &Metrics,
    ) -> (Self, Vec<impl Future<Output = ()> + Send + 'static>) {
        let writer = Writer::<SignalCluster>::default();
        let (changes, _) = broadcast::channel(BEHIND);
        let clusters = Self {
            store: writer.as_reader(),
            changes: changes.clone(),
        };
        let updates = Arc::new(Mutex::new(StoreUpdates {
            writer,
            changes,
            unlisted: scopes.len(),
            metrics: metrics.clone(),
        }));
        let follow = scopes
            .iter()
            .map(|scope| {
                follow(
                    client.clone(),
                    scope.clone(),
                    clusters.store.clone(),
                    updates.clone(),
                )
            })
            .collect();
        (clusters, follow)
    }

    /// For readers.
    pub fn store(&self) -> &Store<SignalCluster> {
        &self.store
    }

    /// What changes from now on: spec, labels, annotations, deletion; not the status alone.
    pub fn changes(&self) -> broadcast::Receiver<ObjectRef<SignalCluster>> {
        self.changes.subscribe()
    }

    /// All of a scope.
    pub fn all(&self, scope: &Scope) -> Vec<ObjectRef<SignalCluster>> {
        let clusters = self.store.state();
        clusters
            .iter()
            .filter(|cluster| {
                scope.covers(cluster.metadata.namespace.as_deref().unwrap_or_default())
            })
            .map(|cluster| ObjectRef::from_obj(&**cluster))
            .collect()
    }

    /// Those whose spec names this Secret or ConfigMap.
    pub fn naming(&self, kind: &str, namespace: &str, name: &str) -> Vec<ObjectRef<SignalCluster>> {
        let clusters = self.store.state();
        let named = clusters
            .iter()
            .filter(|cluster| cluster.metadata.namespace.as_deref() == Some(namespace))
            .filter(|cluster| {
                let references = references(&cluster.spec);
                match kind {
                    "Secret" => references.secrets.contains(name),
                    "ConfigMap" => references.config_maps.contains(name),
                    _ => false,
                }
            });
        named
            .map(|cluster| ObjectRef::from_obj(&**cluster))
            .collect()
    }
}

/// Keeps one scope of the store up to date; never ends.
async fn follow(
    client: Client,
    scope: Scope,
    store: Store<SignalCluster>,
    updates: Arc<Mutex<StoreUpdates>>,
) {
    let api: Api<SignalCluster> = match &scope {
        Scope::All => Api::all(client),
        Scope::Namespace(namespace) => Api::namespaced(client, namespace),
    };
    let watch = watcher(api, watcher::Config::default()).default_backoff();
    let mut watch = std::pin::pin!(watch.modify(|cluster| cluster.metadata.managed_fields = None));
    let mut listed = false;
    let mut listing = HashSet::new();
    while let Some(event) = watch.next().await {
        match event {
            Ok(watcher::Event::Init) => listing.clear(),
            Ok(watcher::Event::InitApply(cluster)) => {
                listing.insert(ObjectRef::from_obj(&cluster));
                updates.lock().put(&store, cluster);
            }
            Ok(watcher::Event::InitDone) => {
                // What is not in the list was deleted while the watch was broken.
                let gone = store.state().into_iter().filter(|cluster| {
                    scope.covers(cluster.metadata.namespace.as_deref().unwrap_or_default())
                        && !listing.contains(&ObjectRef::from_obj(&**cluster))
                });
                for cluster in gone {
                    updates.lock().remove(&store, &cluster);
                }
                listing = HashSet::new();
                if !std::mem::replace(&mut listed, true) {
                    updates.lock().listed(&store);
                }
            }
            Ok(watcher::Event::Apply(cluster)) => updates.lock().put(&store, cluster),
            Ok(watcher::Event::Delete(cluster)) => updates.lock().remove(&store, &cluster),
            Err(error) => {
                updates.lock().metrics.watch_errors.inc();
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    ?scope,
                    "watch of SignalClusters broke; restarting it"
                );
            }
        }
    }
}

impl StoreUpdates {
    fn put(&mut self, store: &Store<SignalCluster>, cluster: SignalCluster) {
        let key = ObjectRef::from_obj(&cluster);
        let changed = store
            .get(&key)
            .is_none_or(|before| relevant(&before) != relevant(&cluster));
        self.writer
            .apply_watcher_event(&watcher::Event::Apply(cluster));
        self.metrics
            .clusters
            .set(i64::try_from(store.len()).unwrap_or(i64::MAX));
        if changed {
            // A standby has no receiver.
            let _ = self.changes.send(key);
        }
    }

    fn remove(&mut self, store: &Store<SignalCluster>, cluster: &SignalCluster) {
        self.writer
            .apply_watcher_event(&watcher::Event::Delete(cluster.clone()));
        self.metrics
            .clusters
            .set(i64::try_from(store.len()).unwrap_or(i64::MAX));
    }

    /// The store is ready once every scope was listed.
    fn listed(&mut self, store: &Store<SignalCluster>) {
        self.unlisted = self.unlisted.saturating_sub(1);
        if self.unlisted > 0 {
            return;
        }
        let all = store.state();
        self.writer.apply_watcher_event(&watcher::Event::Init);
        for cluster in all {
            self.writer
                .apply_watcher_event(&watcher::Event::InitApply((*cluster).clone()));
        }
        self.writer.apply_watcher_event(&watcher::Event::InitDone);
    }
}

/// Everything of a SignalCluster whose change needs a reconcile; not its status.
fn relevant(cluster: &SignalCluster) -> impl PartialEq + use<> {
    let metadata = &cluster.metadata;
    (
        metadata.uid.clone(),
        metadata.generation,
        metadata.labels.clone(),
        metadata.annotations.clone(),
        metadata.deletion_timestamp.clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_namespace_means_all_and_a_namespace_counts_once() {
        assert_eq!(Scope::of(&[]), [Scope::All]);
        let scopes = Scope::of(&["b".into(), "a".into(), "b".into()]);
        assert_eq!(
            scopes,
            [Scope::Namespace("a".into()), Scope::Namespace("b".into())]
        );
        assert!(scopes[0].covers("a") && !scopes[0].covers("b") && Scope::All.covers("b"));
    }

    fn cluster(name: &str, generation: i64, secret: &str) -> SignalCluster {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "a", "name": name, "uid": name, "generation": generation},
            "spec": {
                "image": {"repository": "r", "tag": "1"},
                "jwks": {"sources": [{"name": "main", "issuer": "https://i/", "url": "https://i/", "audiences": ["a"], "caSecretRef": {"name": secret, "key": "k"}}]},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_status_alone_is_no_change_and_a_secret_leads_to_the_clusters_that_name_it() {
        let writer = Writer::<SignalCluster>::default();
        let (changes, mut changed) = broadcast::channel(8);
        let clusters = Clusters {
            store: writer.as_reader(),
            changes: changes.clone(),
        };
        let mut updates = StoreUpdates {
            writer,
            changes,
            unlisted: 1,
            metrics: Metrics::default(),
        };
        updates.put(&clusters.store, cluster("one", 1, "x"));
        updates.put(&clusters.store, cluster("two", 1, "y"));
        assert_eq!(
            (
                changed.try_recv().unwrap().name,
                changed.try_recv().unwrap().name
            ),
            ("one".into(), "two".into())
        );
        let mut reported = cluster("one", 1, "x");
        reported.status = Some(signal_crds::Status {
            replicas: 3,
            ..Default::default()
        });
        updates.put(&clusters.store, reported);
        assert!(changed.try_recv().is_err(), "a status alone is no change");
        updates.put(&clusters.store, cluster("one", 2, "x"));
        assert_eq!(changed.try_recv().unwrap().name, "one");

        let names = |kind, namespace, name| {
            clusters
                .naming(kind, namespace, name)
                .into_iter()
                .map(|found| found.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("Secret", "a", "y"), ["two"]);
        assert!(
            names("Secret", "b", "y").is_empty()
                && names("ConfigMap", "a", "y").is_empty()
                && names("Secret", "a", "z").is_empty()
        );
        updates.remove(&clusters.store, &cluster("two", 1, "y"));
        assert!(names("Secret", "a", "y").is_empty());
        assert_eq!(updates.metrics.clusters.get(), 1);
    }
}

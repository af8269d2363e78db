//! The store of all SignalClusters: one for all namespaces, kept up to date by every process, leader or standby.
//!
//! The leader's controller follows its changes; the external scaler only reads. A SignalCluster that this release cannot read is not in the store.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject, DynamicResourceScope};
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use signal_crds::SignalCluster;
use tokio::sync::{broadcast, watch};

use crate::metrics::{Metrics, ScopeLabel};
use crate::observe::definition::{UnreadableCluster, read_cluster};
use crate::observe::observed::{Kinds, KindsByNamespace};
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

    /// Its namespace; `None` for all.
    pub fn namespace(&self) -> Option<&String> {
        match self {
            Scope::All => None,
            Scope::Namespace(namespace) => Some(namespace),
        }
    }

    /// Optional kinds that can be used in it.
    pub fn kinds(&self, all: &KindsByNamespace) -> Kinds {
        all.of(self.namespace().map_or("", String::as_str))
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

/// Why SignalClusters of some scopes cannot be watched; each scope stands for itself.
#[derive(Debug, Clone, Default)]
pub struct ScopeHealth(Arc<Mutex<BTreeMap<String, String>>>);

impl ScopeHealth {
    fn set(&self, scope: &Scope, failure: Option<String>, metrics: &Metrics) {
        let namespace = scope.namespace().cloned().unwrap_or_default();
        let label = ScopeLabel {
            namespace: namespace.clone(),
        };
        let failing = i64::from(failure.is_some());
        metrics.scopes_failing.get_or_create(&label).set(failing);
        let mut all = self.0.lock();
        match failure {
            Some(failure) => drop(all.insert(namespace, failure)),
            None => drop(all.remove(&namespace)),
        }
    }

    /// One line per scope that fails.
    pub fn lines(&self) -> Vec<String> {
        let all = self.0.lock();
        let line = |(namespace, failure): (&String, &String)| match namespace.as_str() {
            "" => format!("signalclusters: {failure}"),
            namespace => format!("signalclusters in namespace {namespace}: {failure}"),
        };
        all.iter().map(line).collect()
    }
}

/// The SignalClusters that were listed or watched.
#[derive(Clone)]
pub struct Clusters {
    store: Store<SignalCluster>,
    unreadable: Unreadable,
    changes: broadcast::Sender<ObjectRef<SignalCluster>>,
    broken: watch::Receiver<()>,
}

/// Those that this release cannot read.
type Unreadable = Arc<Mutex<HashMap<ObjectRef<SignalCluster>, Arc<UnreadableCluster>>>>;

/// What all watches write to.
struct StoreUpdates {
    unreadable: Unreadable,
    writer: Writer<SignalCluster>,
    changes: broadcast::Sender<ObjectRef<SignalCluster>>,
    breaks: watch::Sender<()>,
    /// Scopes that have neither been listed nor failed yet.
    unanswered: usize,
    /// Whether some scope was listed.
    listed: bool,
    /// Whether the store is ready.
    ready: bool,
    scopes: ScopeHealth,
    metrics: Metrics,
}

impl Clusters {
    /// A store, and one future for each scope that keeps it up to date and never ends. The store is ready once each scope was listed or has failed, and
    /// one was listed: a namespace that is gone stops no other. A SignalCluster whose labels do not match `selector` does not exist for this process.
    pub fn watch(
        client: &Client,
        scopes: &[Scope],
        selector: &str,
        metrics: &Metrics,
        scope_health: &ScopeHealth,
    ) -> (Self, Vec<impl Future<Output = ()> + Send + 'static>) {
        let writer = Writer::<SignalCluster>::default();
        let (changes, _) = broadcast::channel(BEHIND);
        let (breaks, broken) = watch::channel(());
        let clusters = Self {
            store: writer.as_reader(),
            unreadable: Unreadable::default(),
            changes: changes.clone(),
            broken,
        };
        let updates = Arc::new(Mutex::new(StoreUpdates {
            unreadable: clusters.unreadable.clone(),
            writer,
            changes,
            breaks,
            unanswered: scopes.len(),
            listed: false,
            ready: false,
            scopes: scope_health.clone(),
            metrics: metrics.clone(),
        }));
        let follow = scopes
            .iter()
            .map(|scope| {
                follow(
                    client.clone(),
                    scope.clone(),
                    watcher::Config::default().labels(selector),
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

    /// What changes from now on: spec, labels, annotations, deletion, and what is gone; not the status alone.
    pub fn changes(&self) -> broadcast::Receiver<ObjectRef<SignalCluster>> {
        self.changes.subscribe()
    }

    /// Tells each time that a watch of them breaks.
    pub fn broken(&self) -> watch::Receiver<()> {
        self.broken.clone()
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

    /// Those of a scope that this release cannot read.
    pub fn unreadable(&self, scope: &Scope) -> Vec<ObjectRef<SignalCluster>> {
        let all = self.unreadable.lock();
        let is_in = |cluster: &&ObjectRef<SignalCluster>| {
            scope.covers(cluster.namespace.as_deref().unwrap_or_default())
        };
        all.keys().filter(is_in).cloned().collect()
    }

    /// What is known of one that this release cannot read; `None` for all others.
    pub fn why_unreadable(
        &self,
        cluster: &ObjectRef<SignalCluster>,
    ) -> Option<Arc<UnreadableCluster>> {
        self.unreadable.lock().get(cluster).cloned()
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
    config: watcher::Config,
    store: Store<SignalCluster>,
    updates: Arc<Mutex<StoreUpdates>>,
) {
    let kind = ApiResource::erase::<SignalCluster>(&());
    let api: Api<DynamicObject> = scope.api(&client, &kind);
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut answered = false;
    let mut listing = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listing.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                listing.insert(key(&object.metadata));
                updates.lock().put(&store, object);
            }
            Ok(watcher::Event::InitDone) => {
                // What is not in the list was deleted while the watch was broken.
                let mut updates = updates.lock();
                for gone in updates.known(&store, &scope) {
                    if !listing.contains(&gone) {
                        updates.remove(&store, &gone);
                    }
                }
                listing = HashSet::new();
                updates.listed = true;
                let first = !std::mem::replace(&mut answered, true);
                updates.answered(&store, &scope, first, None);
            }
            Ok(watcher::Event::Apply(object)) => updates.lock().put(&store, object),
            Ok(watcher::Event::Delete(object)) => {
                updates.lock().remove(&store, &key(&object.metadata))
            }
            Err(error) => {
                let first = !std::mem::replace(&mut answered, true);
                let mut updates = updates.lock();
                updates.metrics.watch_errors.inc();
                updates.breaks.send_replace(());
                updates.answered(&store, &scope, first, Some(error.to_string()));
                drop(updates);
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
    /// Everything of a scope, readable or not.
    fn known(&self, store: &Store<SignalCluster>, scope: &Scope) -> Vec<ObjectRef<SignalCluster>> {
        let readable = store.state().into_iter();
        let readable = readable.map(|cluster| ObjectRef::from_obj(&*cluster));
        let unreadable = self.unreadable.lock().keys().cloned().collect::<Vec<_>>();
        readable
            .chain(unreadable)
            .filter(|cluster| scope.covers(cluster.namespace.as_deref().unwrap_or_default()))
            .collect()
    }

    fn put(&mut self, store: &Store<SignalCluster>, object: DynamicObject) {
        let key = key(&object.metadata);
        let changed = match read_cluster(object) {
            Ok(cluster) => {
                self.unreadable.lock().remove(&key);
                let before = store.get(&key);
                let changed = before.is_none_or(|before| relevant(&before) != relevant(&cluster));
                self.writer
                    .apply_watcher_event(&watcher::Event::Apply(cluster));
                changed
            }
            Err(unreadable) => {
                // Its last readable form is not what anybody wants now.
                self.forget(store, &key);
                let generation = unreadable.metadata.generation;
                let before = self
                    .unreadable
                    .lock()
                    .insert(key.clone(), unreadable.into());
                before.is_none_or(|before| before.metadata.generation != generation)
            }
        };
        self.count(store);
        if changed {
            // A standby has no receiver.
            let _ = self.changes.send(key);
        }
    }

    fn remove(&mut self, store: &Store<SignalCluster>, cluster: &ObjectRef<SignalCluster>) {
        self.unreadable.lock().remove(cluster);
        self.forget(store, cluster);
        self.count(store);
        // Whoever remembers something of it drops it.
        let _ = self.changes.send(cluster.clone());
    }

    fn forget(&mut self, store: &Store<SignalCluster>, cluster: &ObjectRef<SignalCluster>) {
        if let Some(known) = store.get(cluster) {
            self.writer
                .apply_watcher_event(&watcher::Event::Delete((*known).clone()));
        }
    }

    fn count(&self, store: &Store<SignalCluster>) {
        self.metrics
            .clusters
            .set(i64::try_from(store.len()).unwrap_or(i64::MAX));
    }

    /// A scope was listed, or failed; `first`: for the first time.
    fn answered(
        &mut self,
        store: &Store<SignalCluster>,
        scope: &Scope,
        first: bool,
        failure: Option<String>,
    ) {
        self.scopes.set(scope, failure, &self.metrics);
        self.unanswered -= usize::from(first);
        if self.unanswered > 0 || !self.listed || self.ready {
            return;
        }
        self.ready = true;
        let all = store.state();
        self.writer.apply_watcher_event(&watcher::Event::Init);
        for cluster in all {
            self.writer
                .apply_watcher_event(&watcher::Event::InitApply((*cluster).clone()));
        }
        self.writer.apply_watcher_event(&watcher::Event::InitDone);
    }
}

fn key(metadata: &ObjectMeta) -> ObjectRef<SignalCluster> {
    ObjectRef::new(metadata.name.as_deref().unwrap_or_default())
        .within(metadata.namespace.as_deref().unwrap_or_default())
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

    fn cluster(name: &str, generation: i64, secret: &str) -> DynamicObject {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster",
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
            unreadable: Unreadable::default(),
            changes: changes.clone(),
            broken: watch::channel(()).1,
        };
        let mut updates = StoreUpdates {
            unreadable: clusters.unreadable.clone(),
            writer,
            changes,
            breaks: watch::channel(()).0,
            unanswered: 2,
            listed: false,
            ready: false,
            scopes: ScopeHealth::default(),
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
        reported.data["status"] = serde_json::json!({"replicas": 3});
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
        updates.remove(&clusters.store, &key(&cluster("two", 1, "y").metadata));
        assert!(names("Secret", "a", "y").is_empty());
        assert_eq!(updates.metrics.clusters.get(), 1);
        assert_eq!(changed.try_recv().unwrap().name, "two", "it is told");

        let mut newer = cluster("one", 3, "x");
        newer.data["spec"]["image"]["tag"] = serde_json::json!({"of": "another release"});
        updates.put(&clusters.store, newer);
        let one = changed.try_recv().unwrap();
        assert!(clusters.why_unreadable(&one).is_some());
        assert!(clusters.store.get(&one).is_none() && names("Secret", "a", "x").is_empty());
        updates.put(&clusters.store, cluster("one", 4, "x"));
        assert_eq!(changed.try_recv().unwrap(), one);
        assert!(clusters.why_unreadable(&one).is_none() && clusters.store.get(&one).is_some());
    }

    #[test]
    fn a_scope_that_fails_keeps_no_other_from_being_ready_and_is_named() {
        let writer = Writer::<SignalCluster>::default();
        let store = writer.as_reader();
        let scopes = ScopeHealth::default();
        let mut updates = StoreUpdates {
            unreadable: Unreadable::default(),
            writer,
            changes: broadcast::channel(8).0,
            breaks: watch::channel(()).0,
            unanswered: 2,
            listed: false,
            ready: false,
            scopes: scopes.clone(),
            metrics: Metrics::default(),
        };
        let [gone, there] = ["gone", "there"].map(|name| Scope::Namespace(name.into()));
        updates.answered(&store, &gone, true, Some("403".into()));
        assert!(!updates.ready, "nothing was listed");
        updates.listed = true;
        updates.answered(&store, &there, true, None);
        assert!(updates.ready);
        assert_eq!(scopes.lines(), ["signalclusters in namespace gone: 403"]);
        let text = updates.metrics.text();
        for line in [r#"{namespace="gone"} 1"#, r#"{namespace="there"} 0"#] {
            let line = format!("signal_operator_scopes_failing{line}");
            assert!(text.contains(&line), "{text}");
        }
        updates.answered(&store, &gone, false, None);
        assert!(scopes.lines().is_empty());
    }
}

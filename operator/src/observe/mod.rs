//! Reads everything that one reconcile needs: the SignalCluster, what its spec names, what it owns, and the status of each pod. Holds a client.
//!
//! Everything is read from the API server and nothing from a cache: a stage that ends because of an old answer would drop connections. What was read may be
//! kept to see whether there is something to do (`reconcile::kept`), and is read again before it is done.
//!
//! Objects of an earlier SignalCluster of the same name are excluded by owner and uid. `admin_client` and `polls` ask pods. The other modules are plain data.

pub mod admin_client;
pub mod bounded;
pub mod definition;
pub mod fleet;
pub mod observed;
pub mod owner;
mod pods;
pub mod polls;
mod problems;
pub mod references;
pub mod resources;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod as KubePod, Secret};
use kube::api::{Api, ListParams};
use kube::core::{ApiResource, DynamicObject, NamespaceResourceScope, TypeMeta};
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use signal_crds::{SignalCluster, SignalClusterSpec};
use tokio::sync::watch;

use crate::names::{
    self, Children, INSTANCE_LABEL, MANAGED_BY_LABEL, MANAGER, RESTARTED_AT, TEMPLATE_HASH,
};
use crate::observe::definition::{names_replicas, read_cluster};
use crate::observe::fleet::{Fleet, Pod, PodProblem};
use crate::observe::observed::{
    Kinds, KindsByNamespace, Mounts, Observed, PodAllowances, PodRevision, Secrets,
};
use crate::observe::owner::Owner;
use crate::observe::pods::pod;
use crate::observe::polls::{Polls, Turn};
use crate::observe::problems::problem;
use crate::observe::references::references;
use crate::observe::resources::{
    AUTOSCALER, CONFIG_MAP, DEPLOYMENT, GATEWAY, HTTP_ROUTE, JOB, Owned, SECRET,
};
use crate::time::{from_k8s, now};

pub use polls::Poll;

/// Longest time for one answer of the API server.
const READ_LIMIT: Duration = Duration::from_secs(15);
/// Key of the credentials Secret with the token of `/status`.
pub const ADMIN_TOKEN: &str = "admin-token";

/// What an observation needs.
#[derive(Clone)]
pub struct Reader {
    /// The API server.
    pub client: Client,
    /// Optional kinds, from the last discovery.
    pub kinds: watch::Receiver<KindsByNamespace>,
    /// The pods.
    pub polls: Polls,
    /// What `spec.podTemplate` may have beyond the restricted standard.
    pub allowed: PodAllowances,
}

/// Why nothing was observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The SignalCluster is not there any more.
    #[error("the SignalCluster is gone")]
    Gone,
    /// This release cannot read the SignalCluster. The watch of SignalClusters sees it too, and reports it.
    #[error("the SignalCluster cannot be read: {0}")]
    Unreadable(String),
    /// The API server refused, or did not answer.
    #[error("read {what}")]
    Read {
        /// Kind, or kind and name.
        what: String,
        /// The API server's answer.
        source: Box<kube::Error>,
    },
}

async fn read<T>(
    what: impl Into<String>,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ObserveError> {
    let answer = tokio::time::timeout(READ_LIMIT, request)
        .await
        .unwrap_or_else(|late| Err(kube::Error::Service(late.into())));
    answer.map_err(|source| ObserveError::Read {
        what: what.into(),
        source: Box::new(source),
    })
}

/// The answer, or nothing and a line more of what could not be read.
fn or_unread<T: Default>(answer: Result<T, ObserveError>, unread: &mut Vec<String>) -> T {
    answer.unwrap_or_else(|error| {
        let source = std::error::Error::source(&error);
        let why = source.map(|source| format!(": {source}"));
        unread.push(format!("{error}{}", why.unwrap_or_default()));
        T::default()
    })
}

/// The SignalCluster as it is now, and whether whoever declared it names the number of replicas: the watched object may be older than our own last write of
/// the status, or than a scale.
async fn current(
    reader: &Reader,
    namespace: &str,
    name: &str,
) -> Result<(SignalCluster, bool), ObserveError> {
    let kind = ApiResource::erase::<SignalCluster>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(reader.client.clone(), namespace, &kind);
    let cluster = read(format!("SignalCluster {name}"), api.get_opt(name))
        .await?
        .ok_or(ObserveError::Gone)?;
    let replicas_named = names_replicas(&cluster.metadata);
    let cluster =
        read_cluster(cluster).map_err(|unreadable| ObserveError::Unreadable(unreadable.why))?;
    Ok((cluster, replicas_named))
}

/// Everything that one reconcile looks at. What cannot be read is in [`Observed::unread`].
///
/// # Errors
/// When the SignalCluster is gone, or it, its Deployment or its pods could not be read. An absent object is no error.
pub async fn observe(reader: &Reader, cluster: &SignalCluster) -> Result<Observed, ObserveError> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let (cluster, replicas_named) = current(reader, &namespace, &name).await?;
    let scope = Scope {
        kinds: reader.kinds.borrow().of(&namespace),
        client: &reader.client,
        owner: Owner {
            uid: cluster.uid().unwrap_or_default(),
            name,
            namespace,
        },
    };
    let named = references(&cluster.spec);
    let (deployments, config_maps, secrets, jobs, autoscalers, owned, used, catalogs, gateways) = tokio::join!(
        scope.typed::<Deployment>(DEPLOYMENT),
        scope.typed::<ConfigMap>(CONFIG_MAP),
        scope.typed::<Secret>(SECRET),
        scope.typed::<Job>(JOB),
        scope.typed::<HorizontalPodAutoscaler>(AUTOSCALER),
        scope.others(),
        scope.secrets(named.secrets),
        scope.catalogs(named.config_maps.into_iter().next()),
        scope.gateways(&cluster.spec),
    );
    let mut deployments = deployments?;
    let mut unread = Vec::new();
    let mut config_maps = or_unread(config_maps, &mut unread);
    let mut secrets = or_unread(secrets, &mut unread);
    let jobs = or_unread(jobs, &mut unread);
    let used = or_unread(used, &mut unread);
    let catalogs = or_unread(catalogs, &mut unread);
    let mut autoscalers = autoscalers.unwrap_or_else(|error| scope.without(AUTOSCALER, &error));
    let children = Children::of(&scope.owner.name);
    let deployment = scope
        .named(DEPLOYMENT, &mut deployments, &children.name)
        .await?;
    let name = &children.live_config;
    let live_config = scope.named(CONFIG_MAP, &mut config_maps, name).await;
    let live_config = or_unread(live_config, &mut unread);
    let credentials = scope
        .named(SECRET, &mut secrets, &children.credentials)
        .await;
    let credentials = or_unread(credentials, &mut unread);
    let signing_keys = if cluster.spec.jwks.managed.is_some() {
        let name = &children.signing_keys;
        scope.named(SECRET, &mut secrets, name).await
    } else {
        Ok(take(&mut secrets, &children.signing_keys))
    };
    let signing_keys = or_unread(signing_keys, &mut unread);
    let hpa = take(&mut autoscalers, &children.name);
    // What pods mount, of every revision, and names that this version does not use.
    let rest = rest(&deployments, &config_maps, &secrets, &autoscalers);
    let migration_pods = scope.migration_pods(&jobs).await;
    let token = credentials.as_ref().and_then(admin_token);
    let (fleet, revisions) = match &deployment {
        Some(deployment) => scope.fleet(deployment, token, reader).await?,
        None => Default::default(),
    };
    Ok(Observed {
        replicas_named,
        secrets: used,
        catalogs,
        deployment,
        template_hashes: revisions.iter().filter_map(|it| it.1.clone()).collect(),
        revisions: revisions.into_iter().map(|it| it.0).collect(),
        live_config,
        credentials,
        signing_keys,
        jobs,
        migration_pods,
        hpa,
        owned: owned.into_iter().chain(rest).collect(),
        gateways,
        fleet,
        kinds: scope.kinds,
        unread,
        allowed: reader.allowed,
        cluster: Arc::new(cluster),
    })
}

fn take<K: Resource>(objects: &mut Vec<K>, name: &str) -> Option<K> {
    let at = objects
        .iter()
        .position(|object| object.meta().name.as_deref() == Some(name))?;
    Some(objects.swap_remove(at))
}

fn rest(
    deployments: &[Deployment],
    config_maps: &[ConfigMap],
    secrets: &[Secret],
    autoscalers: &[HorizontalPodAutoscaler],
) -> Vec<DynamicObject> {
    bare(DEPLOYMENT, deployments)
        .chain(whole(CONFIG_MAP, config_maps))
        .chain(whole(SECRET, secrets))
        .chain(bare(AUTOSCALER, autoscalers))
        .collect()
}

/// Objects of a kind without their content.
fn bare<K>(kind: Owned, objects: &[K]) -> impl Iterator<Item = DynamicObject>
where
    K: Resource<DynamicType = ()>,
{
    objects.iter().map(move |object| DynamicObject {
        types: Some(types(kind)),
        metadata: object.meta().clone(),
        data: serde_json::Value::Null,
    })
}

/// Objects of a kind with their content, to be compared with what is wanted.
fn whole<K>(kind: Owned, objects: &[K]) -> impl Iterator<Item = DynamicObject>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    bare(kind, objects).zip(objects).map(|(mut whole, object)| {
        whole.data = serde_json::to_value(object).expect("an object is plain data");
        let members = whole.data.as_object_mut();
        members.map(|members| members.remove("metadata"));
        whole
    })
}

fn types(kind: Owned) -> TypeMeta {
    TypeMeta {
        api_version: kind.api_version(),
        kind: kind.kind.into(),
    }
}

/// The token of the pods' admin listener.
pub fn admin_token(credentials: &Secret) -> Option<Arc<str>> {
    let token = &credentials.data.as_ref()?.get(ADMIN_TOKEN)?.0;
    Some(std::str::from_utf8(token).ok()?.trim().into())
}

/// The part of the API server that belongs to one SignalCluster.
struct Scope<'a> {
    client: &'a Client,
    owner: Owner,
    kinds: Kinds,
}

impl Scope<'_> {
    fn selector(&self) -> ListParams {
        ListParams::default().labels(&format!(
            "{MANAGED_BY_LABEL}={MANAGER},{INSTANCE_LABEL}={}",
            self.owner.name
        ))
    }

    async fn typed<K>(&self, kind: Owned) -> Result<Vec<K>, ObserveError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let params = self.selector();
        let mut objects = read(kind.kind, api.list(&params)).await?.items;
        objects.retain(|object| self.owner.owns(object.meta()));
        objects
            .iter_mut()
            .for_each(|object| object.meta_mut().managed_fields = None);
        Ok(objects)
    }

    /// The object of this name, from the list or by its name. What is only planned from may not look absent because somebody changed its labels: it would
    /// be made again, without the keys, the token or the number of pods that only it holds.
    async fn named<K>(
        &self,
        kind: Owned,
        listed: &mut Vec<K>,
        name: &str,
    ) -> Result<Option<K>, ObserveError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        if let Some(found) = take(listed, name) {
            return Ok(Some(found));
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let found = read(format!("{} {name}", kind.kind), api.get_opt(name)).await?;
        Ok(found
            .filter(|found| self.owner.owns(found.meta()))
            .map(|mut found| {
                found.meta_mut().managed_fields = None;
                found
            }))
    }

    /// Goes on without the objects of a kind that only `apply` needs: it reads each by name, and prunes none.
    fn without<T: Default>(&self, kind: Owned, error: &ObserveError) -> T {
        tracing::debug!(
            error = error as &dyn std::error::Error,
            kind = kind.kind,
            namespace = self.owner.namespace,
            name = self.owner.name,
            "objects of a kind were not read; going on without them"
        );
        T::default()
    }

    /// Objects of the kinds that only `apply` needs.
    async fn others(&self) -> Vec<DynamicObject> {
        let typed = [DEPLOYMENT, CONFIG_MAP, SECRET, JOB, AUTOSCALER];
        let kinds = resources::ALL
            .into_iter()
            .filter(|kind| !typed.contains(kind) && self.kinds.has(*kind));
        let lists = kinds.map(async |kind| {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &self.owner.namespace, &kind.resource());
            let params = self.selector();
            let list = match read(kind.kind, api.list(&params)).await {
                Ok(list) => list.items,
                // Its definition may have been removed since the last discovery.
                Err(error) => self.without(kind, &error),
            };
            let ours = list
                .into_iter()
                .filter(|object| self.owner.owns(&object.metadata))
                .map(|mut object| {
                    object.metadata.managed_fields = None;
                    object.types = Some(types(kind));
                    object
                });
            ours.collect::<Vec<DynamicObject>>()
        });
        join_all(lists).await.into_iter().flatten().collect()
    }

    /// The Gateways that the HTTPRoute names. They say no more than which scheme their listeners speak, so one that may not be read is left out.
    async fn gateways(&self, spec: &SignalClusterSpec) -> Vec<DynamicObject> {
        let route = spec.exposure.http_route.as_ref();
        let route = route.filter(|_| self.kinds.has(HTTP_ROUTE));
        let named = route.into_iter().flat_map(|route| &route.parent_refs);
        let named: BTreeSet<(&str, &str)> = named
            .map(|parent| {
                let namespace = parent.namespace.as_deref();
                (namespace.unwrap_or(&self.owner.namespace), &*parent.name)
            })
            .collect();
        let asked = named.into_iter().map(async |(namespace, name)| {
            let kind = GATEWAY.resource();
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), namespace, &kind);
            let answer = read(format!("Gateway {namespace}/{name}"), api.get_opt(name)).await;
            answer.unwrap_or_else(|error| self.without(GATEWAY, &error))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// What keeps pods of Jobs from their work. Only Jobs that have not completed are asked for; an answer that does not come is no reason to wait.
    async fn migration_pods(&self, jobs: &[Job]) -> Vec<(String, PodProblem)> {
        let is_open = |job: &&Job| {
            let conditions = job.status.as_ref().and_then(|it| it.conditions.as_ref());
            let mut conditions = conditions.into_iter().flatten();
            !conditions.any(|it| it.type_ == "Complete" && it.status == "True")
        };
        let open: BTreeSet<&str> = jobs
            .iter()
            .filter(is_open)
            .filter_map(|job| job.metadata.uid.as_deref())
            .collect();
        if open.is_empty() {
            return Vec::new();
        }
        let api: Api<KubePod> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let params = ListParams::default().labels(&format!(
            "{INSTANCE_LABEL}={},app.kubernetes.io/component={}",
            self.owner.name,
            names::MIGRATION
        ));
        let list = read("Pod", api.list(&params)).await;
        let mut pods = list.map(|list| list.items).unwrap_or_default();
        pods.sort_by_key(|pod| Reverse(pod.creation_timestamp()));
        let now = now();
        let of_open = |pod: &KubePod| {
            let owners = pod.owner_references();
            owners.iter().any(|owner| open.contains(owner.uid.as_str()))
        };
        pods.iter()
            .filter(|pod| of_open(pod))
            .filter_map(|pod| Some((pod.name_any(), problem(pod, now)?)))
            .collect()
    }

    async fn secrets(&self, names: BTreeSet<String>) -> Result<Secrets, ObserveError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let found = try_join_all(names.into_iter().map(async |name| {
            let secret = read(format!("Secret {name}"), api.get_opt(&name)).await?;
            let data = secret.map(|secret| {
                secret
                    .data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, value)| (key, value.0))
                    .collect()
            });
            Ok::<(String, Option<BTreeMap<String, Vec<u8>>>), ObserveError>((name, data))
        }));
        Ok(found.await?.into_iter().collect())
    }

    async fn catalogs(
        &self,
        name: Option<String>,
    ) -> Result<Option<Option<ConfigMap>>, ObserveError> {
        let Some(name) = name else { return Ok(None) };
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let mut found = read(format!("ConfigMap {name}"), api.get_opt(&name)).await?;
        if let Some(found) = &mut found {
            found.metadata.managed_fields = None;
        }
        Ok(Some(found))
    }

    /// The pods of this Deployment, and its ReplicaSets with the hash of the template that each was made for. A selector alone would also find pods of an earlier Deployment of the same name that is being deleted.
    async fn fleet(
        &self,
        deployment: &Deployment,
        token: Option<Arc<str>>,
        reader: &Reader,
    ) -> Result<(Fleet, Vec<(PodRevision, Option<String>)>), ObserveError> {
        let selector: Vec<String> = names::selector(&self.owner.name)
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let params = ListParams::default().labels(&selector.join(","));
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let pods: Api<KubePod> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let (sets, pods) = tokio::try_join!(
            read("ReplicaSet", sets.list(&params)),
            read("Pod", pods.list(&params))
        )?;
        let owned_by = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
                        uids: &BTreeSet<String>| {
            metadata
                .owner_references
                .as_deref()
                .unwrap_or_default()
                .iter()
                .any(|owner| uids.contains(&owner.uid))
        };
        let deployment: BTreeSet<String> = deployment.metadata.uid.iter().cloned().collect();
        let ours = |set: &&ReplicaSet| owned_by(&set.metadata, &deployment);
        let revisions = sets.items.iter().filter(ours);
        let revisions = revisions
            .map(|set| (revision(set), set.annotations().get(TEMPLATE_HASH).cloned()))
            .collect();
        let sets: BTreeSet<String> = sets
            .items
            .iter()
            .filter(ours)
            .filter_map(|set| set.metadata.uid.clone())
            .collect();
        let now = now();
        let mut pods: Vec<Pod> = pods
            .items
            .iter()
            .filter(|pod| owned_by(&pod.metadata, &sets))
            .filter_map(|it| pod(it, now))
            .collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        reader
            .polls
            .ask(&self.owner.uid, &mut pods, token, Turn::All)
            .await;
        Ok((Fleet { pods }, revisions))
    }
}

fn revision(set: &ReplicaSet) -> PodRevision {
    let (spec, status) = (set.spec.as_ref(), set.status.as_ref());
    let template = spec.and_then(|spec| spec.template.as_ref());
    let annotations = template.and_then(|it| it.metadata.as_ref()?.annotations.as_ref());
    let template = template.and_then(|template| template.spec.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let failure = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True");
    PodRevision {
        name: set.name_any(),
        template_hash: set
            .labels()
            .get("pod-template-hash")
            .cloned()
            .unwrap_or_default(),
        wanted: spec.and_then(|spec| spec.replicas).unwrap_or(1),
        pods: status.map_or(0, |status| status.replicas),
        created: set
            .metadata
            .creation_timestamp
            .as_ref()
            .map(from_k8s)
            .unwrap_or_default(),
        mounts: template.map(Mounts::of).unwrap_or_default(),
        failure: failure.map(|failure| failure.message.clone().unwrap_or_default()),
        restarted_at: annotations.and_then(|all| all.get(RESTARTED_AT).cloned()),
    }
}

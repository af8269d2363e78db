//! Reads everything that one reconcile needs: the SignalCluster, what its spec names, what it owns, and the status of each pod. Holds a client.
//!
//! Everything is read from the API server and nothing from a cache: a stage that ends because of an old answer would drop connections. Objects of an
//! earlier SignalCluster of the same name are excluded by owner and uid. The other modules are plain data: [`observed`], [`fleet`], [`resources`],
//! [`references`], [`owner`].

pub mod admin_client;
pub mod fleet;
pub mod observed;
pub mod owner;
pub mod references;
pub mod resources;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, try_join_all};
use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod as KubePod, Secret};
use kube::api::{Api, ListParams};
use kube::core::{DynamicObject, NamespaceResourceScope, TypeMeta};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use signal_crds::SignalCluster;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::names::{
    self, Children, DELETION_COST, DRAINING, DRAINING_SINCE, INSTANCE_LABEL, MANAGED_BY_LABEL,
    MANAGER,
};
use crate::observe::fleet::{Fleet, Pod, Report};
use crate::observe::observed::{Kinds, Observed, Secrets};
use crate::observe::owner::Owner;
use crate::observe::references::references;
use crate::observe::resources::{AUTOSCALER, CONFIG_MAP, DEPLOYMENT, JOB, Owned, SECRET};
use crate::time::from_k8s;

/// Longest time for one answer of the API server.
const READ_LIMIT: Duration = Duration::from_secs(15);
/// Pods that are polled at the same time.
const POLLS: usize = 64;
/// Key of the credentials Secret with the token of `/status`.
pub const ADMIN_TOKEN: &str = "admin-token";
/// The gateway's own default.
const DEFAULT_ADMIN_PORT: u16 = 9090;

/// Polls the status of one pod: address, port, token.
pub type Poll =
    Arc<dyn Fn(IpAddr, u16, Arc<str>) -> BoxFuture<'static, Result<Report, String>> + Send + Sync>;

/// What an observation needs.
#[derive(Clone)]
pub struct Reader {
    /// The API server.
    pub client: Client,
    /// Optional kinds, from the last discovery.
    pub kinds: watch::Receiver<Kinds>,
    /// The pods.
    pub poll: Poll,
    /// Counts the polls.
    pub metrics: Metrics,
}

/// Why nothing was observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The SignalCluster is not there any more.
    #[error("the SignalCluster is gone")]
    Gone,
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

/// Everything that one reconcile looks at.
///
/// # Errors
/// When the SignalCluster is gone, or something could not be read. An absent object is no error.
pub async fn observe(reader: &Reader, cluster: &SignalCluster) -> Result<Observed, ObserveError> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let api: Api<SignalCluster> = Api::namespaced(reader.client.clone(), &namespace);
    // The watched object may be older than our own last write of the status, or than a scale.
    let mut cluster = read(format!("SignalCluster {name}"), api.get_opt(&name))
        .await?
        .ok_or(ObserveError::Gone)?;
    cluster.metadata.managed_fields = None;
    let scope = Scope {
        client: &reader.client,
        owner: Owner {
            uid: cluster.uid().unwrap_or_default(),
            name,
            namespace,
        },
        kinds: *reader.kinds.borrow(),
    };
    let named = references(&cluster.spec);
    let (mut deployments, config_maps, secrets, jobs, autoscalers, owned, used, catalogs) = tokio::try_join!(
        scope.typed::<Deployment>(DEPLOYMENT),
        scope.typed::<ConfigMap>(CONFIG_MAP),
        scope.typed::<Secret>(SECRET),
        scope.typed::<Job>(JOB),
        scope.typed::<HorizontalPodAutoscaler>(AUTOSCALER),
        scope.others(),
        scope.secrets(named.secrets),
        scope.catalogs(named.config_maps.into_iter().next()),
    )?;
    let children = Children::of(&scope.owner.name);
    let mut rest = Vec::new();
    let deployment = take(&mut deployments, &children.name);
    let mut config_maps = config_maps;
    let (static_config, live_config) = (
        take(&mut config_maps, &children.static_config),
        take(&mut config_maps, &children.live_config),
    );
    let mut secrets = secrets;
    let (credentials, signing_keys) = (
        take(&mut secrets, &children.credentials),
        take(&mut secrets, &children.signing_keys),
    );
    let mut autoscalers = autoscalers;
    let hpa = take(&mut autoscalers, &children.name);
    // Names that this version does not use: to be pruned.
    rest.extend(
        deployments
            .iter()
            .map(|object| bare(DEPLOYMENT, &object.metadata)),
    );
    rest.extend(
        config_maps
            .iter()
            .map(|object| bare(CONFIG_MAP, &object.metadata)),
    );
    rest.extend(secrets.iter().map(|object| bare(SECRET, &object.metadata)));
    rest.extend(
        autoscalers
            .iter()
            .map(|object| bare(AUTOSCALER, &object.metadata)),
    );
    rest.extend(owned);
    let token = credentials.as_ref().and_then(admin_token);
    let fleet = match &deployment {
        Some(deployment) => scope.fleet(deployment, token, reader).await?,
        None => Fleet::default(),
    };
    Ok(Observed {
        secrets: used,
        catalogs,
        deployment,
        static_config,
        live_config,
        credentials,
        signing_keys,
        jobs,
        hpa,
        owned: rest,
        fleet,
        kinds: scope.kinds,
        cluster: Arc::new(cluster),
    })
}

fn take<K: Resource>(objects: &mut Vec<K>, name: &str) -> Option<K> {
    let at = objects
        .iter()
        .position(|object| object.meta().name.as_deref() == Some(name))?;
    Some(objects.swap_remove(at))
}

fn bare(
    kind: Owned,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> DynamicObject {
    DynamicObject {
        types: Some(types(kind)),
        metadata: metadata.clone(),
        data: serde_json::Value::Null,
    }
}

fn types(kind: Owned) -> TypeMeta {
    TypeMeta {
        api_version: kind.api_version(),
        kind: kind.kind.into(),
    }
}

fn admin_token(credentials: &Secret) -> Option<Arc<str>> {
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

    /// Objects of the kinds that only `apply` needs.
    async fn others(&self) -> Result<Vec<DynamicObject>, ObserveError> {
        let typed = [DEPLOYMENT, CONFIG_MAP, SECRET, JOB, AUTOSCALER];
        let kinds = resources::ALL
            .into_iter()
            .filter(|kind| !typed.contains(kind) && self.kinds.has(*kind));
        let lists = kinds.map(async |kind| {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &self.owner.namespace, &kind.resource());
            let params = self.selector();
            let list = match read(kind.kind, api.list(&params)).await {
                // Its definition was removed since the last discovery.
                Err(ObserveError::Read { source, .. })
                    if kind.optional
                        && matches!(&*source, kube::Error::Api(status) if status.code == 404) =>
                {
                    Vec::new()
                }
                list => list?.items,
            };
            let ours = list
                .into_iter()
                .filter(|object| self.owner.owns(&object.metadata))
                .map(|mut object| {
                    object.metadata.managed_fields = None;
                    object.types = Some(types(kind));
                    object
                });
            Ok::<Vec<DynamicObject>, ObserveError>(ours.collect())
        });
        Ok(try_join_all(lists).await?.into_iter().flatten().collect())
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

    /// The pods of this Deployment. A selector alone would also find pods of an earlier Deployment of the same name that is being deleted.
    async fn fleet(
        &self,
        deployment: &Deployment,
        token: Option<Arc<str>>,
        reader: &Reader,
    ) -> Result<Fleet, ObserveError> {
        let selector: Vec<String> = names::selector(&self.owner.name)
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let params = ListParams::default().labels(&selector.join(","));
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let pods: Api<KubePod> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let (sets, pods) = tokio::try_join!(
            read("ReplicaSet", sets.list_metadata(&params)),
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
        let sets: BTreeSet<String> = sets
            .items
            .iter()
            .filter(|set| owned_by(&set.metadata, &deployment))
            .filter_map(|set| set.metadata.uid.clone())
            .collect();
        let mut pods: Vec<Pod> = pods
            .items
            .iter()
            .filter(|pod| owned_by(&pod.metadata, &sets))
            .filter_map(pod)
            .collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        let asked: Vec<BoxFuture<'static, Result<Report, String>>> = pods
            .iter()
            .map(|pod| ask(pod, token.as_ref(), reader))
            .collect();
        let reports: Vec<Result<Report, String>> =
            stream::iter(asked).buffered(POLLS).collect().await;
        for (pod, report) in pods.iter_mut().zip(reports) {
            pod.report = report;
        }
        Ok(Fleet { pods })
    }
}

fn ask(
    pod: &Pod,
    token: Option<&Arc<str>>,
    reader: &Reader,
) -> BoxFuture<'static, Result<Report, String>> {
    let Some(ip) = pod.ip else {
        return Box::pin(std::future::ready(Err("it has no address yet".into())));
    };
    let Some(token) = token else {
        return Box::pin(std::future::ready(
            Err("there is no admin token yet".into()),
        ));
    };
    let answer = (reader.poll)(ip, pod.admin_port, token.clone());
    let polls = reader.metrics.polls.clone();
    Box::pin(async move {
        let answer = answer.await;
        Metrics::count(&polls, if answer.is_ok() { "ok" } else { "error" });
        answer
    })
}

/// A pod as Kubernetes reports it; `None` for one that has ended.
fn pod(pod: &KubePod) -> Option<Pod> {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    if matches!(
        status.and_then(|status| status.phase.as_deref()),
        Some("Succeeded" | "Failed")
    ) {
        return None;
    }
    let gateway = spec.and_then(|spec| {
        spec.containers
            .iter()
            .find(|container| container.name == names::CONTAINER)
    });
    let ports = gateway
        .and_then(|container| container.ports.as_deref())
        .unwrap_or_default();
    let admin_port = ports
        .iter()
        .find(|port| port.name.as_deref() == Some(names::ADMIN_PORT))
        .map(|port| port.container_port);
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let drains = pod.labels().get(DRAINING).map(String::as_str) == Some("true");
    let since = pod
        .annotations()
        .get(DRAINING_SINCE)
        .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
    Some(Pod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        resource_version: pod.resource_version().unwrap_or_default(),
        ip: status
            .and_then(|status| status.pod_ip.as_deref())
            .and_then(|ip| ip.parse().ok()),
        admin_port: admin_port
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(DEFAULT_ADMIN_PORT),
        node: spec.and_then(|spec| spec.node_name.clone()),
        ready: conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        // A mark with an unreadable time counts as old: its deadline has passed.
        draining_since: drains.then(|| since.map_or(chrono::DateTime::UNIX_EPOCH, Into::into)),
        deletion_cost: pod
            .annotations()
            .get(DELETION_COST)
            .and_then(|cost| cost.parse().ok()),
        template_hash: pod
            .labels()
            .get("pod-template-hash")
            .cloned()
            .unwrap_or_default(),
        created: pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map(from_k8s)
            .unwrap_or_default(),
        report: Err("it has not been polled yet".into()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kube_pod(value: serde_json::Value) -> KubePod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_read_with_its_port_its_readiness_and_its_drain() {
        let read = pod(&kube_pod(json!({
            "metadata": {
                "name": "edge-1", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"pod-template-hash": "abc", "signal.dev/draining": "true"},
                "annotations": {"signal.dev/draining-since": "2026-01-01T00:01:00Z", "controller.kubernetes.io/pod-deletion-cost": "-5"},
            },
            "spec": {"nodeName": "n", "containers": [
                {"name": "proxy", "ports": [{"name": "admin", "containerPort": 1}]},
                {"name": "gateway", "ports": [{"name": "public", "containerPort": 8080}, {"name": "admin", "containerPort": 9191}]},
            ]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
        })))
        .unwrap();
        assert_eq!(
            (
                read.admin_port,
                read.ready,
                read.terminating,
                read.deletion_cost
            ),
            (9191, true, false, Some(-5))
        );
        assert_eq!(
            (
                read.ip,
                read.template_hash.as_str(),
                read.created.timestamp()
            ),
            (Some([10, 0, 0, 1].into()), "abc", 1_767_225_600)
        );
        assert_eq!(
            read.draining_since.map(|since| since.timestamp()),
            Some(1_767_225_660)
        );
    }

    #[test]
    fn a_pod_that_has_ended_is_left_out_and_an_annotation_alone_is_no_drain() {
        assert!(
            pod(&kube_pod(
                json!({"metadata": {"name": "a"}, "status": {"phase": "Failed"}})
            ))
            .is_none()
        );
        let annotated = kube_pod(
            json!({"metadata": {"name": "a", "annotations": {"signal.dev/draining-since": "2026-01-01T00:01:00Z"}}}),
        );
        assert_eq!(pod(&annotated).unwrap().draining_since, None);
    }
}

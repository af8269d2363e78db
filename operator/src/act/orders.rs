//! Orders to pods: marks on their objects, drains and sheds over the admin listener; and the number that autoscaling writes.
//!
//! Every order can be repeated without harm. A pod that does not take one gets it again from the next reconcile, so that is no error; a refusal by
//! the API server is one.

use std::net::IpAddr;
use std::time::Duration;

use chrono::SecondsFormat;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::Api;
use kube::api::Patch;
use serde_json::{Value, json};
use signal_crds::SignalCluster;

use crate::act::writer::{WriteError, Writer};
use crate::names::{DELETION_COST, DRAINING, DRAINING_SINCE};
use crate::observe::admin_client::AdminClient;
use crate::observe::fleet::{Fleet, Pod};
use crate::observe::owner::Owner;
use crate::plan::scale::{PodMark, ScaleStep};

/// Pods that are asked at the same time.
const AT_ONCE: usize = 32;

/// What a plan asks of pods and of the scale subresource.
#[derive(Debug, Clone, Copy)]
pub struct Orders<'a> {
    /// Pods to be marked, drained, or to be left alone again.
    pub scale: &'a ScaleStep,
    /// Pods and how many connections each sheds.
    pub shed: &'a [(String, u32)],
    /// The number to be written through the scale subresource.
    pub rescale: Option<i32>,
    /// The observed Deployment and its number, where no Deployment could be applied: pods come and go whatever else fails.
    pub deployment: Option<(&'a Deployment, i32)>,
}

/// Carries out these orders, after the objects were applied. `token` is that of the pods' admin listener; without it no pod is asked.
///
/// # Errors
/// The first mark or number that the API server refuses; all others are carried out. A pod that is gone, or that someone else has just written, is left to
/// the next reconcile.
pub async fn give(
    orders: Orders<'_>,
    fleet: &Fleet,
    owner: &Owner,
    token: Option<&str>,
    pods: &AdminClient,
    writer: &Writer,
) -> Result<(), WriteError> {
    let mut first = Ok(());
    let mut keep = |written: Result<(), WriteError>| {
        if first.is_ok() {
            first = written;
        }
    };
    if let Some((deployment, replicas)) = orders.deployment {
        keep(resize(deployment, replicas, owner, writer).await);
    }
    let api: Api<KubePod> = Api::namespaced(writer.client().clone(), &owner.namespace);
    for mark in &orders.scale.mark {
        keep(tolerate(
            writer.merge(&api, &mark.name, &marked(mark)).await,
        ));
    }
    for mark in &orders.scale.unmark {
        keep(tolerate(
            writer.merge(&api, &mark.name, &unmarked(mark)).await,
        ));
    }
    if let Some(token) = token {
        let pause = |name: &String| {
            let pause = orders.scale.pauses.get(name).copied();
            Order::Drain(pause.unwrap_or_default())
        };
        let drains = orders.scale.drain.iter().chain(&orders.scale.renew);
        let drains = drains.map(|name| (name, pause(name)));
        let undrains = orders
            .scale
            .undrain
            .iter()
            .map(|name| (name, Order::Undrain));
        let sheds = orders
            .shed
            .iter()
            .map(|(name, count)| (name, Order::Shed(*count)));
        let mut requests = Vec::new();
        for (name, order) in drains.chain(undrains).chain(sheds) {
            let pod = fleet.pods.iter().find(|pod| pod.name == *name);
            requests.extend(
                pod.and_then(|pod| Some(send(pod, pod.ip?, order, token, pods, writer).boxed())),
            );
        }
        stream::iter(requests)
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
    }
    if let Some(replicas) = orders.rescale {
        let api: Api<SignalCluster> = Api::namespaced(writer.client().clone(), &owner.namespace);
        let patch = json!({"spec": {"replicas": replicas}});
        let request = async {
            api.patch_scale(&owner.name, &Writer::patch_params(), &Patch::Merge(&patch))
                .await
        };
        let written = writer.write("scale", "SignalCluster", &owner.name, request);
        keep(written.await.map(drop));
    }
    first
}

/// Writes the number of the observed Deployment, and nothing else of it.
async fn resize(
    deployment: &Deployment,
    replicas: i32,
    owner: &Owner,
    writer: &Writer,
) -> Result<(), WriteError> {
    let api: Api<Deployment> = Api::namespaced(writer.client().clone(), &owner.namespace);
    let metadata = &deployment.metadata;
    let patch = json!({
        "metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version},
        "spec": {"replicas": replicas},
    });
    let name = metadata.name.as_deref().unwrap_or_default();
    tolerate(writer.merge(&api, name, &patch).await)
}

fn tolerate<T>(written: Result<T, WriteError>) -> Result<(), WriteError> {
    match written {
        Err(error) if !error.is_gone() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

fn marked(mark: &PodMark) -> Value {
    json!({"metadata": {
        "uid": mark.uid,
        "resourceVersion": mark.resource_version,
        "labels": {DRAINING: "true"},
        "annotations": {
            DRAINING_SINCE: mark.since.to_rfc3339_opts(SecondsFormat::Millis, true),
            DELETION_COST: mark.cost.to_string(),
        },
    }})
}

fn unmarked(mark: &PodMark) -> Value {
    json!({"metadata": {
        "uid": mark.uid,
        "resourceVersion": mark.resource_version,
        "labels": {DRAINING: null},
        "annotations": {DRAINING_SINCE: null, DELETION_COST: null},
    }})
}

/// One request to a pod.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// Let connections go after this pause, and stay.
    Drain(Duration),
    /// The drain is taken back.
    Undrain,
    /// Close so many connections.
    Shed(u32),
}

/// Sends one request; the next reconcile repeats it if it fails.
async fn send(
    pod: &Pod,
    ip: IpAddr,
    order: Order,
    token: &str,
    pods: &AdminClient,
    writer: &Writer,
) {
    // As with writes to the API server, the lease is checked right before.
    if !writer.may_write() {
        return;
    }
    let port = pod.admin_port;
    let sent = match order {
        Order::Drain(pause) => pods.drain_hold(ip, port, token, pause).await,
        Order::Undrain => pods.undrain(ip, port, token).await,
        Order::Shed(count) => pods.shed(ip, port, token, count).await,
    };
    match sent {
        Ok(()) => tracing::debug!(pod = pod.name, ?order, "pod order sent"),
        Err(error) => tracing::warn!(
            pod = pod.name,
            ?order,
            error,
            "pod order failed; the next reconcile repeats it"
        ),
    }
}

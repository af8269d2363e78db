//! What is told to pods: marks on the objects, drains and sheds over the admin listener, and the number that autoscaling writes.
//!
//! Every order may be given again without harm. A pod that does not take one is told again at the next look, so failures here are no errors;
//! only what the API server refuses is.

use std::net::IpAddr;

use chrono::SecondsFormat;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::Api;
use kube::api::Patch;
use serde_json::{Value, json};
use signal_crds::SignalCluster;

use crate::act::writer::{WriteError, Writer};
use crate::decide::ClusterPlan;
use crate::names::{DELETION_COST, DRAINING, DRAINING_SINCE};
use crate::observe::admin_client::AdminClient;
use crate::observe::fleet::{Fleet, Pod};
use crate::observe::owner::Owner;
use crate::plan::scale::PodMark;

/// Pods that are told at the same time.
const AT_ONCE: usize = 32;

/// Gives every order of a plan, after its objects were applied.
///
/// # Errors
/// When the API server refuses a mark or the number. A pod that is gone, or that someone wrote just now, is left to the next look.
pub async fn give(
    plan: &ClusterPlan,
    fleet: &Fleet,
    owner: &Owner,
    token: Option<&str>,
    pods: &AdminClient,
    writer: &Writer,
) -> Result<(), WriteError> {
    let api: Api<KubePod> = Api::namespaced(writer.client().clone(), &owner.namespace);
    if let Some(step) = &plan.scale {
        for mark in &step.mark {
            tolerate(writer.merge(&api, &mark.name, &marked(mark)).await)?;
        }
        for mark in &step.unmark {
            tolerate(writer.merge(&api, &mark.name, &unmarked(mark)).await)?;
        }
    }
    if let Some(token) = token {
        let step = plan.scale.iter();
        let drains = step
            .clone()
            .flat_map(|step| &step.drain)
            .map(|name| (name, Order::Drain));
        let undrains = step
            .flat_map(|step| &step.undrain)
            .map(|name| (name, Order::Undrain));
        let sheds = plan
            .shed
            .iter()
            .map(|(name, count)| (name, Order::Shed(*count)));
        let mut telling = Vec::new();
        for (name, order) in drains.chain(undrains).chain(sheds) {
            let pod = fleet.pods.iter().find(|pod| pod.name == *name);
            telling.extend(
                pod.and_then(|pod| Some(tell(pod, pod.ip?, order, token, pods, writer).boxed())),
            );
        }
        stream::iter(telling)
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
    }
    if let Some(replicas) = plan.rescale {
        let api: Api<SignalCluster> = Api::namespaced(writer.client().clone(), &owner.namespace);
        let patch = json!({"spec": {"replicas": replicas}});
        let request = async {
            api.patch_scale(&owner.name, &Writer::patch_params(), &Patch::Merge(&patch))
                .await
        };
        writer
            .write("scale", "SignalCluster", &owner.name, request)
            .await?;
    }
    Ok(())
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

/// What a pod is told.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// Let connections go, and stay.
    Drain,
    /// The drain is taken back.
    Undrain,
    /// Close so many connections.
    Shed(u32),
}

/// Tells one pod; if it does not listen it is told again at the next look.
async fn tell(
    pod: &Pod,
    ip: IpAddr,
    order: Order,
    token: &str,
    pods: &AdminClient,
    writer: &Writer,
) {
    // The lease is looked at as late as with writes to the API server.
    if !writer.may_write() {
        return;
    }
    let port = pod.admin_port;
    let told = match order {
        Order::Drain => pods.drain_hold(ip, port, token).await,
        Order::Undrain => pods.undrain(ip, port, token).await,
        Order::Shed(count) => pods.shed(ip, port, token, count).await,
    };
    match told {
        Ok(()) => tracing::info!(pod = pod.name, ?order, "a pod was told"),
        Err(error) => tracing::warn!(pod = pod.name, ?order, error, "a pod was not told"),
    }
}

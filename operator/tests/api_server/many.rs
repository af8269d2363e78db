//! Many SignalClusters at once, with controllers that create pods: all objects exist soon, and an operator with nothing to do writes nothing.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use signal_crds::SignalCluster;
use signal_services::{Kubernetes, KubernetesInstallation, Level};

use crate::leadership::Operator;
use crate::{client, define, make_authority, skip, small, until};

const CLUSTERS: usize = 100;
const LIMIT: Duration = Duration::from_secs(120);
const MAX_RESIDENT_KIB: u64 = 100 * 1024;

/// Creates [`CLUSTERS`] SignalClusters.
async fn create_all(clusters: &Api<SignalCluster>) {
    stream::iter(0..CLUSTERS)
        .map(|n| {
            let clusters = clusters.clone();
            async move {
                let object = json!({
                    "apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster", "metadata": {"name": format!("edge-{n}")}, "spec": small(),
                });
                clusters.patch(&format!("edge-{n}"), &PatchParams::apply("test"), &Patch::Apply(&object)).await.unwrap();
            }
        })
        .buffer_unordered(10)
        .collect::<Vec<()>>()
        .await;
}

/// Nothing is asked for any of them, and their metrics say so: less than one request a minute of each is what they may cost.
async fn at_rest(operator: &Operator) -> String {
    // Of the process, however many SignalClusters there are: its lease, and which kinds there are.
    let own = ["leases", "discovery", "verb=\"watch\""];
    let requests = async || {
        let (_, text) = operator.get("/metrics").await.expect("its metrics");
        let lines = text.lines().filter(|line| {
            line.starts_with("signal_operator_api_requests_total")
                && !own.iter().any(|own| line.contains(own))
        });
        let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum::<f64>()
    };
    let before = requests().await;
    let looks = operator.sum("signal_operator_looks_total").await;
    let period = Duration::from_secs(60);
    tokio::time::sleep(period).await;
    let (requests, looks) = (
        requests().await - before,
        operator.sum("signal_operator_looks_total").await - looks,
    );
    assert!(requests < 0.9 * 100.0, "{requests} requests in {period:?}");
    assert!(looks > 0.5 * 100.0, "{looks} looks in {period:?}");
    format!("{requests} requests and {looks} looks in {period:?}")
}

/// Waits until the operator writes nothing: changes of the controllers reach the status for a while.
async fn until_quiet(operator: &Operator) {
    let writes = async || operator.sum("signal_operator_writes_total").await;
    let mut before = writes().await;
    let quiet = Duration::from_secs(10);
    let began = std::time::Instant::now();
    loop {
        tokio::time::sleep(quiet).await;
        let now = writes().await;
        if now == before {
            break;
        }
        assert!(
            began.elapsed() < LIMIT,
            "it continues to write: {before} and then {now}"
        );
        before = now;
    }
}

#[tokio::test]
async fn a_hundred_clusters_have_everything_within_two_minutes_and_then_nothing_is_written() {
    let programs = match KubernetesInstallation::find(Level::B) {
        Ok(programs) => programs,
        Err(error) => {
            return skip(
                "a_hundred_clusters_have_everything_within_two_minutes_and_then_nothing_is_written",
                &format!("{error:#}"),
            );
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let server = Kubernetes::start(&programs, dir.path(), Level::B).unwrap();
    let client = client(&server.kubeconfig()).await;
    define(&client).await;
    make_authority(&client, &server.kubeconfig()).await;
    let operator = Operator::start(&server.kubeconfig(), "default", "one");
    until("it leads", LIMIT, async || operator.leads().await).await;

    let clusters: Api<SignalCluster> = Api::namespaced(client.clone(), "default");
    let made = std::time::Instant::now();
    create_all(&clusters).await;

    // The PodDisruptionBudget is applied last, the status is written last, and the controllers create the Pod.
    let all = async || {
        let written = clusters.list(&ListParams::default()).await.unwrap().items;
        let written = written
            .iter()
            .filter(|cluster| {
                cluster
                    .status
                    .as_ref()
                    .is_some_and(|status| !status.conditions.is_empty())
            })
            .count();
        let there = [
            count::<Deployment>(&client).await,
            count::<PodDisruptionBudget>(&client).await,
            count::<Pod>(&client).await,
        ];
        written == CLUSTERS && there == [CLUSTERS; 3]
    };
    until("all of them have everything", LIMIT, all).await;
    println!(
        "{CLUSTERS} SignalClusters have everything after {:?}",
        made.elapsed()
    );
    let resident = operator.resident_kib();
    assert!(resident < MAX_RESIDENT_KIB, "{resident} KiB resident");

    until_quiet(&operator).await;
    let told = at_rest(&operator).await;
    println!("{CLUSTERS} SignalClusters at rest: {told}");
    // Drift is put back, and is the only thing that is written.
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let patch = json!({"spec": {"minReadySeconds": 77}});
    deployments
        .patch("edge-7", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    until("what someone changed is put back", LIMIT, async || {
        deployments
            .get("edge-7")
            .await
            .unwrap()
            .spec
            .unwrap()
            .min_ready_seconds
            != Some(77)
    })
    .await;
}

/// How many objects of a kind there are.
async fn count<K>(client: &Client) -> usize
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    Api::<K>::namespaced(client.clone(), "default")
        .list_metadata(&ListParams::default())
        .await
        .unwrap()
        .items
        .len()
}

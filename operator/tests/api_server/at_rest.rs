//! What a SignalCluster costs the API server: nothing at rest but watches, and a known number of requests for each stage of a rotation.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::client::ClientBuilder;
use serde_json::json;
use signal_crds::SignalCluster;
use signal_operator::metrics::Metrics;
use signal_operator::requests::CountRequests;
use tokio::time::{Instant, sleep};

use crate::killed::{FIRST, RunningController, SECOND, is_settled, set_spec};
use crate::simulated_pods::{SimulatedPods, edge};
use crate::{Stage, config, until};

/// How long it is watched at rest: each second has a look.
const REST: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(120);

/// The whole controller in this process, with a client that counts.
struct Controller {
    requests: Metrics,
    running: RunningController,
}

impl Controller {
    async fn start(stage: &Stage) -> Self {
        let requests = Metrics::default();
        let config = config(&stage.server.cluster.kubeconfig()).await;
        let client = ClientBuilder::try_from(config)
            .unwrap()
            .with_layer(&CountRequests(requests.clone()))
            .build();
        Self {
            requests,
            running: RunningController::start(stage, client).await,
        }
    }

    /// Requests so far, beside those that begin a watch.
    fn requests(&self) -> f64 {
        self.sum(
            "signal_operator_api_requests_total",
            &self.requests,
            |line| !line.contains("verb=\"watch\""),
        )
    }

    /// Which requests there were so far, for people.
    fn told(&self) -> String {
        let text = self.requests.text();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("signal_operator_api_requests_total"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn looks(&self, at: &str) -> f64 {
        let label = format!("outcome=\"{at}\"");
        self.sum(
            "signal_operator_looks_total",
            &self.running.context.metrics,
            |line| line.contains(&label),
        )
    }

    fn sum(&self, name: &str, metrics: &Metrics, counts: impl Fn(&str) -> bool) -> f64 {
        let text = metrics.text();
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && counts(line));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    async fn end(self) {
        self.running.end().await;
    }
}

/// Until everything is as the spec wants it, and nobody has asked for a while.
async fn until_at_rest(stage: &Stage, controller: &Controller, simulated: &mut SimulatedPods<'_>) {
    let began = Instant::now();
    let (mut quiet, mut before) = (0, controller.requests());
    while quiet < 8 {
        assert!(
            began.elapsed() < LIMIT,
            "it does not come to rest: {}",
            controller.told()
        );
        simulated.advance().await;
        sleep(Duration::from_millis(500)).await;
        let now = controller.requests();
        quiet = match is_settled(stage).await && now == before {
            true => quiet + 1,
            false => 0,
        };
        before = now;
    }
}

#[tokio::test]
async fn a_cluster_at_rest_costs_no_request_and_every_change_is_still_seen() {
    let Some(stage) =
        Stage::new("a_cluster_at_rest_costs_no_request_and_every_change_is_still_seen").await
    else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    let controller = Controller::start(&stage).await;
    set_spec(&stage, (2, FIRST)).await;
    until_at_rest(&stage, &controller, &mut simulated).await;

    let (requests, pods, everything) = (
        controller.requests(),
        controller.looks("pods"),
        controller.looks("everything"),
    );
    sleep(REST).await;
    let looks = controller.looks("pods") - pods;
    assert!(
        looks >= REST.as_secs_f64() / 3.0,
        "pods are looked at: {looks} times"
    );
    assert_eq!(
        controller.looks("everything"),
        everything,
        "nothing is read"
    );
    assert_eq!(controller.requests(), requests, "{}", controller.told());

    // Somebody changes what the operator made.
    let patch = json!({"spec": {"minReadySeconds": 77}});
    let deployments = stage.api::<Deployment>();
    let merge = PatchParams::default();
    deployments
        .patch("edge", &merge, &Patch::Merge(&patch))
        .await
        .unwrap();
    until("what someone changed is put back", LIMIT, async || {
        let spec = deployments.get("edge").await.unwrap().spec.unwrap();
        spec.min_ready_seconds != Some(77)
    })
    .await;

    // Somebody writes the status: it is right again, though nothing else has changed.
    until_at_rest(&stage, &controller, &mut simulated).await;
    let api = stage.api::<SignalCluster>();
    let forged = json!({"status": {"readyReplicas": 77, "conditions": []}});
    api.patch_status("edge", &merge, &Patch::Merge(&forged))
        .await
        .unwrap();
    until(
        "a status of somebody else is put right",
        LIMIT,
        async || {
            let status = api.get("edge").await.unwrap().status.unwrap();
            status.ready_replicas == 2 && is_settled(&stage).await
        },
    )
    .await;

    // A pod is gone that no poll would miss at once.
    until_at_rest(&stage, &controller, &mut simulated).await;
    set_spec(&stage, (3, FIRST)).await;
    until_at_rest(&stage, &controller, &mut simulated).await;
    let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
    assert_eq!(cluster.status.unwrap().ready_replicas, 3);
    controller.end().await;
}

/// The overlap is shortened: it costs nothing, as rest does, so a longer one costs no more.
#[tokio::test]
async fn a_rotation_costs_requests_by_its_stages_and_none_by_its_length() {
    let Some(stage) =
        Stage::new("a_rotation_costs_requests_by_its_stages_and_none_by_its_length").await
    else {
        return;
    };
    const OVERLAP: Duration = Duration::from_secs(40);
    const MOST: f64 = 250.0;
    let mut simulated = SimulatedPods::around(&stage).await;
    let controller = Controller::start(&stage).await;
    set_spec(&stage, (2, FIRST)).await;
    until_at_rest(&stage, &controller, &mut simulated).await;

    let before = controller.requests();
    let mut rotated = edge(2, SECOND);
    rotated["spec"]["jwks"]["rotation"] = json!({"overlap": format!("{}s", OVERLAP.as_secs())});
    let apply = PatchParams::apply("test").force();
    stage
        .api::<SignalCluster>()
        .patch("edge", &apply, &Patch::Apply(&rotated))
        .await
        .unwrap();
    let retires = async || {
        let status = stage
            .api::<SignalCluster>()
            .get("edge")
            .await
            .unwrap()
            .status
            .unwrap();
        status
            .jwks
            .iter()
            .find_map(|source| source.retire_after.clone())
    };
    let began = Instant::now();
    while retires().await.is_none() {
        assert!(began.elapsed() < LIMIT, "{}", controller.told());
        simulated.advance().await;
        sleep(Duration::from_millis(300)).await;
    }
    // Pods take the stage, and then nothing happens until the overlap ends.
    for _ in 0..10 {
        simulated.advance().await;
        sleep(Duration::from_millis(500)).await;
    }
    let waiting = controller.requests();
    sleep(Duration::from_secs(10)).await;
    assert!(retires().await.is_some(), "the overlap lasts");
    assert_eq!(
        controller.requests(),
        waiting,
        "a wait costs nothing: {}",
        controller.told()
    );
    until_at_rest(&stage, &controller, &mut simulated).await;
    let all = controller.requests() - before;
    println!(
        "a rotation costs {all} requests beside watches\n{}",
        controller.told()
    );
    assert!(all <= MOST, "{all} requests: {}", controller.told());
    controller.end().await;
}

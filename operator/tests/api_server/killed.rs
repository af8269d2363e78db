//! An operator is killed after each of its writes in turn, and another one continues: the result is the same, whatever the first one had done.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use http::{Method, Request, Response};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::client::{Body, ClientBuilder};
use kube::{Client, ResourceExt as _};
use serde_json::{Map, Value, json};
use signal_crds::SignalCluster;
use signal_operator::act::events::Events;
use signal_operator::act::fence::Fence;
use signal_operator::act::writer::Writer;
use signal_operator::control::clusters::{Clusters, Scope, ScopeHealth};
use signal_operator::control::{controller, kinds};
use signal_operator::metrics::Metrics;
use signal_operator::observe::Reader;
use signal_operator::observe::admin_client::AdminClient;
use signal_operator::observe::observed::PodAllowances;
use signal_operator::observe::polls::Polls;
use signal_operator::reconcile::context::{Context, Settings};
use signal_operator::reconcile::reconcile;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service as Tower};

use crate::simulated_pods::{SimulatedPods, edge};
use crate::{Stage, config};

/// A scenario that takes more reconciles fails.
const MAX_RECONCILES: usize = 150;

/// Counts answered writes, and drops the lease after the last allowed one: later writes are those that a killed process does not send.
#[derive(Clone)]
struct Kill {
    answered: Arc<AtomicUsize>,
    after: Option<usize>,
    fence: Fence,
}

impl<S> Layer<S> for Kill {
    type Service = Killed<S>;

    fn layer(&self, inner: S) -> Killed<S> {
        Killed {
            inner,
            kill: self.clone(),
        }
    }
}

#[derive(Clone)]
struct Killed<S> {
    inner: S,
    kill: Kill,
}

impl<S, B> Tower<Request<Body>> for Killed<S>
where
    S: Tower<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let counts = request.method() != Method::GET && !request.uri().path().contains("/events");
        let answer = self.inner.call(request);
        let kill = self.kill.clone();
        Box::pin(async move {
            let answer = answer.await;
            if counts && kill.after == Some(kill.answered.fetch_add(1, Ordering::Relaxed) + 1) {
                kill.fence.drop_now();
            }
            answer
        })
    }
}

/// One operator of an operator.
pub(crate) struct TestOperator {
    pub(crate) context: Context,
    kill: Kill,
}

impl TestOperator {
    /// It dies once so many of its writes are answered.
    pub(crate) async fn begin(stage: &Stage, after: Option<usize>) -> Self {
        let fence = Fence::default();
        fence.hold_until(Instant::now() + Duration::from_secs(600));
        let kill = Kill {
            answered: Arc::default(),
            after,
            fence: fence.clone(),
        };
        let config = config(&stage.server.cluster.kubeconfig()).await;
        let client = ClientBuilder::try_from(config)
            .unwrap()
            .with_layer(&kill)
            .build();
        Self {
            context: context(stage, client, fence).await,
            kill,
        }
    }

    pub(crate) fn writes(&self) -> usize {
        self.kill.answered.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        !self.kill.fence.is_held()
    }
}

/// What an operator holds that asks real pods, through this client.
pub(crate) async fn context(stage: &Stage, client: Client, fence: Fence) -> Context {
    let scopes = [Scope::Namespace(stage.namespace.clone())];
    // Nothing changes in it: the sender may go.
    let (_, kinds) = watch::channel(kinds::discover(&client, &scopes).await.unwrap());
    let (metrics, pods) = (Metrics::default(), AdminClient::new().unwrap());
    Context::new(
        Reader {
            client: client.clone(),
            kinds,
            polls: Polls::new(signal_operator::control::run::poll(&pods), metrics.clone()),
            allowed: PodAllowances::default(),
        },
        Writer::new(client.clone(), fence.clone(), metrics.clone()),
        Events::new(client, "test".into(), fence),
        pods,
        metrics,
        None,
        Settings {
            concurrency: 4,
            resync: Duration::from_secs(1),
        },
    )
}

/// The whole controller in this process, with its watches.
pub(crate) struct RunningController {
    pub(crate) context: Arc<Context>,
    stop: CancellationToken,
    controller: JoinHandle<()>,
    follows: JoinSet<()>,
}

impl RunningController {
    /// One that asks through this client.
    pub(crate) async fn start(stage: &Stage, client: Client) -> Self {
        let fence = Fence::default();
        fence.hold_until(Instant::now() + Duration::from_secs(600));
        let context = Arc::new(context(stage, client.clone(), fence).await);
        let scopes = [Scope::Namespace(stage.namespace.clone())];
        let (metrics, health) = (Metrics::default(), ScopeHealth::default());
        let (clusters, follow) = Clusters::watch(&client, &scopes, "", &metrics, &health);
        let (stop, running) = (CancellationToken::new(), context.clone());
        let stopped = stop.clone();
        let run = async move { controller::run(running, &clusters, &scopes, stopped).await };
        Self {
            context,
            stop,
            controller: tokio::spawn(run),
            follows: follow.into_iter().collect(),
        }
    }

    /// Lets what runs come to its end.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        self.controller.await.unwrap();
        self.follows.shutdown().await;
    }
}

/// What people ask for, one after the other; each time everything comes to rest before the next.
type Changes<'a> = &'a [(u32, &'static str)];

pub(crate) const FIRST: &str = "https://id.example/";
pub(crate) const SECOND: &str = "https://id2.example/";

/// Makes the changes; the first operator of the last change ends after so many writes. Returns the writes of the operator that finished it.
pub(crate) async fn live(stage: &Stage, changes: Changes<'_>, after: Option<usize>) -> usize {
    let mut simulated = SimulatedPods::around(stage).await;
    let (last, before) = changes.split_last().unwrap();
    for change in before {
        set_spec(stage, *change).await;
        rest(stage, &mut simulated, None).await;
    }
    set_spec(stage, *last).await;
    rest(stage, &mut simulated, after).await
}

pub(crate) async fn set_spec(stage: &Stage, (replicas, issuer): (u32, &str)) {
    stage
        .api::<SignalCluster>()
        .patch(
            "edge",
            &PatchParams::apply("test").force(),
            &Patch::Apply(&edge(replicas, issuer)),
        )
        .await
        .unwrap();
}

/// Looks until three looks in a row write nothing while every stage is over.
pub(crate) async fn rest(
    stage: &Stage,
    simulated: &mut SimulatedPods<'_>,
    after: Option<usize>,
) -> usize {
    let mut operator = TestOperator::begin(stage, after).await;
    let mut quiet = 0;
    for _ in 0..MAX_RECONCILES {
        simulated.advance().await;
        let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
        let before = operator.writes();
        let outcome = reconcile(&operator.context, &cluster).await;
        if operator.is_over() {
            operator = TestOperator::begin(stage, None).await;
            quiet = 0;
            continue;
        }
        // A pod that was written in the meantime is looked at again.
        let is_over = outcome.is_ok() && is_settled(stage).await;
        quiet = if is_over && operator.writes() == before {
            quiet + 1
        } else {
            0
        };
        if quiet == 3 {
            return operator.writes();
        }
        if !is_over {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
    panic!(
        "it does not come to rest: {}",
        serde_json::to_string_pretty(&cluster.status).unwrap()
    );
}

pub(crate) async fn is_settled(stage: &Stage) -> bool {
    let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
    let Some(status) = cluster.status else {
        return false;
    };
    let has = |kind: &str, state: &str| {
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == kind && condition.status == state)
    };
    let ready = has("Ready", "True") && has("Progressing", "False");
    let sources =
        status.jwks.len() == 1 && status.jwks[0].state == signal_crds::status::SourceStage::Trusted;
    ready
        && sources
        && status.scaling.is_none()
        && status.observed_generation == cluster.metadata.generation
}

/// Everything that matters of what is there.
pub(crate) async fn picture(stage: &Stage) -> Value {
    let mut all = Map::new();
    macro_rules! add {
        ($($kind:ty),*) => {$(
            let api: Api<$kind> = stage.api();
            for object in api.list(&ListParams::default()).await.unwrap().items {
                // Pods have names of chance.
                let kind = <$kind as k8s_openapi::Resource>::KIND;
                let name = if kind == "Pod" { format!("{:?}", object.annotations()) } else { object.name_any() };
                let count = all.keys().filter(|key| key.starts_with(&format!("{kind} {name}"))).count();
                all.insert(format!("{kind} {name} {count}"), plain(serde_json::to_value(object).unwrap(), kind));
            }
        )*};
    }
    add!(
        ConfigMap,
        Deployment,
        HorizontalPodAutoscaler,
        Job,
        NetworkPolicy,
        Pod,
        PodDisruptionBudget,
        Secret,
        Service,
        ServiceAccount
    );
    let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
    all.insert(
        "SignalCluster".into(),
        plain(serde_json::to_value(cluster).unwrap(), "SignalCluster"),
    );
    Value::Object(all)
}

/// Without what each run has of its own: times, uids, addresses, and what is drawn by lot.
fn plain(mut object: Value, kind: &str) -> Value {
    if let Some(record) = object.pointer_mut("/metadata/annotations/signal.dev~1record") {
        *record = serde_json::from_str(record.as_str().unwrap()).unwrap();
    }
    forget(&mut object);
    if kind == "Secret" && object.pointer("/data/admin-token").is_some() {
        object["data"]["admin-token"] = json!("drawn");
    }
    if kind == "Service" {
        object["spec"]["clusterIP"].take();
        object["spec"]["clusterIPs"].take();
    }
    if kind == "Pod" {
        object["status"].take();
        object["metadata"]["name"].take();
    }
    object
}

fn forget(value: &mut Value) {
    const OWN: [&str; 15] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "namespace",
        "generation",
        "observedGeneration",
        "lastTransitionTime",
        "since",
        "refreshedAt",
        "signal.dev/applied",
        "endpoints",
        "startTime",
        "batch.kubernetes.io/controller-uid",
        "controller-uid",
    ];
    match value {
        Value::Object(members) => {
            members.retain(|key, _| !OWN.contains(&key.as_str()));
            members.values_mut().for_each(forget);
        }
        Value::Array(items) => items.iter_mut().for_each(forget),
        _ => {}
    }
}

/// The run that nothing disturbs, then one for each of its writes.
async fn comes_to_the_same_end(test: &str, changes: Changes<'_>) {
    let Some(stage) = Stage::new(test).await else {
        return;
    };
    let writes = live(&stage, changes, None).await;
    let whole = picture(&stage).await;
    assert!(
        writes >= 3,
        "{test} writes {writes} times: there is nothing to disturb"
    );
    for after in 1..=writes {
        let Some(stage) = Stage::new(test).await else {
            return;
        };
        live(&stage, changes, Some(after)).await;
        let end = picture(&stage).await;
        assert_eq!(
            difference(&whole, &end),
            None,
            "killed after write {after} of {writes}"
        );
    }
}

/// The first place where two values differ, with both.
pub(crate) fn difference(a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(some), Value::Object(others)) => {
            some.keys().chain(others.keys()).find_map(|key| {
                Some(format!(
                    "{key}: {}",
                    difference(
                        some.get(key).unwrap_or(&Value::Null),
                        others.get(key).unwrap_or(&Value::Null)
                    )?
                ))
            })
        }
        _ => (a != b).then(|| format!("{a} and {b}")),
    }
}

#[tokio::test]
async fn killed_after_any_write_of_a_creation_it_comes_to_the_same_end() {
    comes_to_the_same_end(
        "killed_after_any_write_of_a_creation_it_comes_to_the_same_end",
        &[(2, FIRST)],
    )
    .await;
}

#[tokio::test]
async fn killed_after_any_write_of_a_scale_in_it_comes_to_the_same_end() {
    comes_to_the_same_end(
        "killed_after_any_write_of_a_scale_in_it_comes_to_the_same_end",
        &[(3, FIRST), (1, FIRST)],
    )
    .await;
}

#[tokio::test]
async fn killed_after_any_write_of_a_rotation_it_comes_to_the_same_end() {
    comes_to_the_same_end(
        "killed_after_any_write_of_a_rotation_it_comes_to_the_same_end",
        &[(2, FIRST), (2, SECOND)],
    )
    .await;
}

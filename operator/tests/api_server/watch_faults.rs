//! Watches that are late, repeat events, or break again and again; a SignalCluster that is deleted and created again; changes that are reverted
//! half-way.

use std::pin::Pin;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use axum::body::Body as Answer;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use http::{Request, Response};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use kube::client::{Body, ClientBuilder};
use signal_crds::SignalCluster;
use signal_operator::control::backoff::ErrorClass;
use signal_operator::reconcile::reconcile;
use tokio::time::{sleep, timeout};
use tower::{BoxError, Layer, Service};

use crate::killed::{
    FIRST, RunningController, SECOND, TestOperator, difference, is_settled, live, picture, rest,
    set_spec,
};
use crate::simulated_pods::SimulatedPods;
use crate::{Stage, config};

/// What happens to the events of a watch.
#[derive(Debug, Clone, Copy)]
enum WatchFault {
    /// Each comes so much later.
    Late(Duration),
    /// Each comes twice.
    Doubled,
    /// The connection breaks after so long, in the middle of an event.
    Broken(Duration),
}

impl<S> Layer<S> for WatchFault {
    type Service = FaultyWatch<S>;

    fn layer(&self, inner: S) -> FaultyWatch<S> {
        FaultyWatch {
            inner,
            fault: *self,
        }
    }
}

#[derive(Clone)]
struct FaultyWatch<S> {
    inner: S,
    fault: WatchFault,
}

impl<S, B> Service<Request<Body>> for FaultyWatch<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, S::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let watches = request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        let (answer, fault) = (self.inner.call(request), self.fault);
        Box::pin(async move {
            let answer = answer.await?.map(Answer::new);
            Ok(if watches {
                answer.map(|body| fault.over(body))
            } else {
                answer
            })
        })
    }
}

impl WatchFault {
    fn over(self, body: Answer) -> Answer {
        let parts = body.into_data_stream();
        match self {
            Self::Late(by) => Answer::from_stream(parts.then(move |part| async move {
                sleep(by).await;
                part
            })),
            Self::Doubled => Answer::from_stream(
                lines(parts).map(|line| line.map(|line| [&line[..], &line[..]].concat())),
            ),
            Self::Broken(after) => {
                let broken = stream::iter([Err(axum::Error::new("the connection broke"))]);
                Answer::from_stream(parts.take_until(sleep(after)).chain(broken))
            }
        }
    }
}

/// Whole lines: one event each.
fn lines(
    parts: impl Stream<Item = Result<Bytes, axum::Error>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send + 'static {
    let state = (Box::pin(parts), BytesMut::new());
    stream::unfold(state, async |(mut parts, mut rest)| {
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end + 1).freeze();
                return Some((Ok(line), (parts, rest)));
            }
            match parts.next().await? {
                Ok(part) => rest.extend_from_slice(&part),
                Err(error) => return Some((Err(error), (parts, rest))),
            }
        }
    })
}

const CHANGES: [(u32, &str); 3] = [(2, FIRST), (3, FIRST), (1, SECOND)];

/// The whole controller with its watches, in this fault.
async fn picture_after(stage: &Stage, fault: WatchFault) -> serde_json::Value {
    let config = config(&stage.server.cluster.kubeconfig()).await;
    let client = ClientBuilder::try_from(config)
        .unwrap()
        .with_layer(&fault)
        .build();
    let running = RunningController::start(stage, client).await;
    let mut simulated = SimulatedPods::around(stage).await;
    for change in CHANGES {
        set_spec(stage, change).await;
        let arrived = async {
            let mut quiet = 0;
            while quiet < 5 {
                simulated.advance().await;
                sleep(Duration::from_millis(200)).await;
                quiet = if is_settled(stage).await {
                    quiet + 1
                } else {
                    0
                };
            }
        };
        if timeout(Duration::from_secs(90), arrived).await.is_err() {
            let status = stage
                .api::<SignalCluster>()
                .get("edge")
                .await
                .unwrap()
                .status;
            panic!(
                "{fault:?}: {change:?} was not applied: {}",
                serde_json::to_string_pretty(&status).unwrap()
            );
        }
    }
    running.end().await;
    picture(stage).await
}

#[tokio::test]
async fn late_doubled_and_broken_watches_come_to_the_same_end() {
    const TEST: &str = "late_doubled_and_broken_watches_come_to_the_same_end";
    let Some(calm) = Stage::new(TEST).await else {
        return;
    };
    live(&calm, &CHANGES, None).await;
    let calm = picture(&calm).await;
    let weathers = [
        WatchFault::Late(Duration::from_secs(2)),
        WatchFault::Doubled,
        WatchFault::Broken(Duration::from_millis(700)),
    ];
    for fault in weathers {
        let Some(stage) = Stage::new(TEST).await else {
            return;
        };
        assert_eq!(
            difference(&calm, &picture_after(&stage, fault).await),
            None,
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_memory_of_one_that_was_created_again_does_no_harm() {
    let Some(stage) = Stage::new("a_memory_of_one_that_was_created_again_does_no_harm").await
    else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    set_spec(&stage, (1, FIRST)).await;
    rest(&stage, &mut simulated, None).await;
    let old = stage.api::<SignalCluster>().get("edge").await.unwrap();

    stage
        .api::<SignalCluster>()
        .delete("edge", &DeleteParams::default())
        .await
        .unwrap();
    let operator = TestOperator::begin(&stage, None).await;
    reconcile(&operator.context, &old).await.unwrap();
    assert_eq!(
        operator.writes(),
        0,
        "nothing is written for one that is gone"
    );

    // Objects of the old one still exist: they are neither taken over nor deleted before the garbage collector deletes them.
    set_spec(&stage, (1, SECOND)).await;
    let refused = reconcile(&operator.context, &old).await.unwrap_err();
    assert_eq!(ErrorClass::of(&refused), ErrorClass::InTheWay, "{refused}");
    collect(&stage, &old.uid().unwrap()).await;
    simulated.forget();
    rest(&stage, &mut simulated, None).await;
    let new = stage.api::<SignalCluster>().get("edge").await.unwrap();
    let deployment = stage.api::<Deployment>().get("edge").await.unwrap();
    assert_eq!(deployment.owner_references()[0].uid, new.uid().unwrap());
    let live = stage
        .api::<ConfigMap>()
        .get("edge-live")
        .await
        .unwrap()
        .data
        .unwrap();
    assert!(
        trusts(&live["live.toml"], SECOND) && !trusts(&live["live.toml"], FIRST),
        "{}",
        live["live.toml"]
    );

    let operator = TestOperator::begin(&stage, None).await;
    reconcile(&operator.context, &old).await.unwrap();
    assert_eq!(
        operator.writes(),
        0,
        "an old memory asks for a look at what is there now"
    );
}

/// Whether the live settings name this issuer.
fn trusts(live: &str, issuer: &str) -> bool {
    live.contains(&format!("issuer = \"{issuer}\""))
}

/// What the collector of orphans does where it runs.
async fn collect(stage: &Stage, owner: &str) {
    macro_rules! collect {
        ($($kind:ty),*) => {$(
            let api = stage.api::<$kind>();
            for object in api.list(&ListParams::default()).await.unwrap().items {
                if object.owner_references().iter().any(|reference| reference.uid == owner) || !["authority", "database"].contains(&&*object.name_any()) {
                    api.delete(&object.name_any(), &DeleteParams::background().grace_period(0)).await.unwrap();
                }
            }
        )*};
    }
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::batch::v1::Job;
    use k8s_openapi::api::core::v1::{Pod, Secret, Service, ServiceAccount};
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    collect!(
        ConfigMap,
        Deployment,
        Job,
        NetworkPolicy,
        Pod,
        PodDisruptionBudget,
        ReplicaSet,
        Secret,
        Service,
        ServiceAccount
    );
}

#[tokio::test]
async fn a_change_that_is_reverted_at_any_point_restores_the_objects() {
    let Some(stage) =
        Stage::new("a_change_that_is_reverted_at_any_point_restores_the_objects").await
    else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    set_spec(&stage, (2, FIRST)).await;
    rest(&stage, &mut simulated, None).await;
    let deployment = stage.api::<Deployment>().get("edge").await.unwrap();
    for looks in 0..6 {
        let operator = TestOperator::begin(&stage, None).await;
        set_spec(&stage, (3, SECOND)).await;
        for _ in 0..looks {
            simulated.advance().await;
            let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
            reconcile(&operator.context, &cluster).await.unwrap();
        }
        set_spec(&stage, (2, FIRST)).await;
        rest(&stage, &mut simulated, None).await;
        let status = stage
            .api::<SignalCluster>()
            .get("edge")
            .await
            .unwrap()
            .status
            .unwrap();
        assert_eq!(
            (status.replicas, status.draining_replicas, status.jwks.len()),
            (2, 0, 1),
            "taken back after {looks} looks"
        );
        let live = stage
            .api::<ConfigMap>()
            .get("edge-live")
            .await
            .unwrap()
            .data
            .unwrap();
        assert!(
            trusts(&live["live.toml"], FIRST) && !trusts(&live["live.toml"], SECOND),
            "taken back after {looks} looks"
        );
    }
    let after = stage.api::<Deployment>().get("edge").await.unwrap();
    assert_eq!(
        after.spec.unwrap().template,
        deployment.spec.unwrap().template,
        "no pod was restarted"
    );
}

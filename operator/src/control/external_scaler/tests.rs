//! A real client over loopback, as KEDA is one.

use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use super::proto::external_scaler_client::ExternalScalerClient;
use super::*;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(20);

struct Served {
    writer: Writer<SignalCluster>,
    client: ExternalScalerClient<Channel>,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

async fn start() -> Served {
    let (store, writer) = kube::runtime::reflector::store();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(store, listener, shutdown.clone()));
    let client = ExternalScalerClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    Served {
        writer,
        client,
        shutdown,
        server,
    }
}

impl Served {
    /// The clusters that the watch has listed.
    fn list(&mut self, clusters: &[SignalCluster]) {
        self.writer.apply_watcher_event(&Event::Init);
        for cluster in clusters {
            self.writer
                .apply_watcher_event(&Event::InitApply(cluster.clone()));
        }
        self.writer.apply_watcher_event(&Event::InitDone);
    }
}

fn cluster(namespace: &str, mode: &str, status: Value) -> SignalCluster {
    serde_json::from_value(json!({
        "apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster",
        "metadata": {"name": "edge", "namespace": namespace},
        "spec": {"image": {"repository": "r", "tag": "t"}, "jwks": {"sources": []},
            "autoscaling": {"mode": mode, "maxReplicas": 9, "targetConnectionsPerPod": 500}},
        "status": status,
    }))
    .unwrap()
}

fn sample(total: i64, reporting: i32, ready: i32) -> Value {
    sampled(total, reporting, ready, 40)
}

/// The same, counted so many seconds ago.
fn sampled(total: i64, reporting: i32, ready: i32, seconds: i64) -> Value {
    let at = (now() - TimeDelta::seconds(seconds)).to_rfc3339();
    json!({"readyReplicas": ready, "connections": {"total": total, "reportingPods": reporting, "sampledAt": at}})
}

fn asker(namespace: &str, name: &str, named: Option<&str>) -> ScaledObjectRef {
    let scaler_metadata = named
        .map(|cluster| (CLUSTER.to_owned(), cluster.to_owned()))
        .into_iter()
        .collect();
    ScaledObjectRef {
        name: name.into(),
        namespace: namespace.into(),
        scaler_metadata,
    }
}

fn request(namespace: &str) -> GetMetricsRequest {
    GetMetricsRequest {
        scaled_object_ref: Some(asker(namespace, "scaled", Some("edge"))),
        metric_name: METRIC.into(),
    }
}

#[tokio::test]
async fn keda_learns_the_target_and_the_connections_of_its_own_namespace() {
    let mut served = start().await;
    served.list(&[
        cluster("a", "External", sample(1234, 3, 3)),
        cluster("b", "External", sample(9, 1, 1)),
    ]);
    let spec = served
        .client
        .get_metric_spec(asker("a", "scaled", Some("edge")))
        .await
        .unwrap()
        .into_inner()
        .metric_specs;
    assert_eq!(
        spec,
        [MetricSpec {
            metric_name: "connections".into(),
            target_size: 500,
            target_size_float: 500.0
        }]
    );
    for (namespace, total, float) in [("a", 1234, 1234.0), ("b", 9, 9.0)] {
        let values = served
            .client
            .get_metrics(request(namespace))
            .await
            .unwrap()
            .into_inner()
            .metric_values;
        assert_eq!(
            values,
            [MetricValue {
                metric_name: "connections".into(),
                metric_value: total,
                metric_value_float: float
            }]
        );
    }
    // Without metadata it is the cluster of the ScaledObject's own name.
    assert!(
        served
            .client
            .is_active(asker("a", "edge", None))
            .await
            .unwrap()
            .into_inner()
            .result
    );
    for other in [
        asker("c", "scaled", Some("edge")),
        asker("a", "scaled", Some("other")),
        asker("a", "scaled", None),
    ] {
        assert_eq!(
            served.client.is_active(other).await.unwrap_err().code(),
            Code::NotFound
        );
    }
}

#[tokio::test]
async fn what_is_not_known_is_an_error_so_that_the_fallback_counts() {
    let mut served = start().await;
    assert_eq!(
        served
            .client
            .get_metrics(request("a"))
            .await
            .unwrap_err()
            .code(),
        Code::Unavailable,
        "not listed yet"
    );
    for status in [json!({}), sample(0, 0, 0), sample(800, 2, 3)] {
        served.list(&[cluster("a", "External", status.clone())]);
        assert_eq!(
            served
                .client
                .get_metrics(request("a"))
                .await
                .unwrap_err()
                .code(),
            Code::FailedPrecondition,
            "{status}"
        );
    }
    for mode in ["Connections", "HPA"] {
        served.list(&[cluster("a", mode, sample(5, 1, 1))]);
        assert_eq!(
            served
                .client
                .get_metrics(request("a"))
                .await
                .unwrap_err()
                .code(),
            Code::FailedPrecondition,
            "{mode}"
        );
        assert_eq!(
            served
                .client
                .get_metric_spec(asker("a", "edge", None))
                .await
                .unwrap_err()
                .code(),
            Code::FailedPrecondition
        );
    }
    let missing = GetMetricsRequest {
        scaled_object_ref: None,
        metric_name: METRIC.into(),
    };
    assert_eq!(
        served.client.get_metrics(missing).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn numbers_that_nobody_keeps_up_to_date_are_an_error() {
    let mut served = start().await;
    let total = async |served: &mut Served, status: Value| {
        served.list(&[cluster("a", "External", status)]);
        let answer = served.client.get_metrics(request("a")).await;
        answer.map(|answer| answer.into_inner().metric_values[0].metric_value)
    };
    assert_eq!(total(&mut served, sampled(5, 1, 1, 80)).await.unwrap(), 5);
    // The clock of the leader may be ahead.
    assert_eq!(total(&mut served, sampled(5, 1, 1, -3)).await.unwrap(), 5);
    let old = total(&mut served, sampled(5, 1, 1, 100)).await.unwrap_err();
    assert_eq!(old.code(), Code::Unavailable);
    assert!(old.message().contains("counted 10"), "{}", old.message());
    let mut without = sample(5, 1, 1);
    let connections = without["connections"].as_object_mut().unwrap();
    connections.remove("sampledAt");
    let unknown = total(&mut served, without).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "of an older operator");
}

#[tokio::test]
async fn a_stream_tells_at_once_then_each_change_and_ends_with_the_cluster_or_the_server() {
    let mut served = start().await;
    let running = cluster("a", "External", sample(0, 1, 1));
    let mut stopped = running.clone();
    stopped.spec.stopped = true;
    served.list(std::slice::from_ref(&running));
    let mut stream = served
        .client
        .stream_is_active(asker("a", "edge", None))
        .await
        .unwrap()
        .into_inner();
    let answer = tokio::time::timeout(LIMIT, stream.message())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        answer,
        Some(IsActiveResponse { result: true }),
        "active without a connection"
    );
    served.list(&[stopped]);
    let answer = tokio::time::timeout(LIMIT, stream.message())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, Some(IsActiveResponse { result: false }));
    served.list(&[]);
    let over = tokio::time::timeout(LIMIT, stream.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(over.code(), Code::NotFound);

    served.list(&[running]);
    let mut stream = served
        .client
        .stream_is_active(asker("a", "edge", None))
        .await
        .unwrap()
        .into_inner();
    tokio::time::timeout(LIMIT, stream.message())
        .await
        .unwrap()
        .unwrap();
    served.shutdown.cancel();
    assert_eq!(
        tokio::time::timeout(LIMIT, stream.message())
            .await
            .unwrap()
            .unwrap(),
        None
    );
    drop(stream);
    tokio::time::timeout(LIMIT, served.server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_message_of_empty_entries_is_refused_before_it_is_decoded() {
    let mut served = start().await;
    served.list(&[cluster("a", "External", sample(9, 1, 1))]);
    let mut many = asker("a", "edge", None);
    let entry = |at: usize| (at.to_string(), String::new());
    many.scaler_metadata.extend((0..20_000).map(entry));
    let refused = served.client.is_active(many).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    let usual = served.client.is_active(asker("a", "edge", None)).await;
    assert!(usual.unwrap().into_inner().result);
}

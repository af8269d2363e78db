//! KEDA's external scaler: connections per pod for a `ScaledObject` whose target is a SignalCluster, without Prometheus in between.
//!
//! Answers come from the watched SignalClusters and nothing is written, so every replica of the operator answers, leader or standby. A
//! `ScaledObject` sees only SignalClusters in its own namespace: `cluster` in the trigger's metadata names one; the default is the name of the
//! `ScaledObject`. If the number of connections is unknown or old the answer is an error, so that KEDA uses its `fallback`.

use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{FutureExt, Stream, stream};
use kube::runtime::reflector::{ObjectRef, Store};
use signal_crds::SignalCluster;
use signal_crds::scaling::{Autoscaling, AutoscalingMode};
use signal_crds::status::Connections;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::time::{from_k8s, now};

use proto::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};

/// The protocol as generated: messages, the server's trait, and the client that tests use.
pub mod proto {
    #![expect(clippy::allow_attributes, clippy::too_many_lines, reason = "generated")]
    tonic::include_proto!("externalscaler");
}

/// The one metric.
pub const METRIC: &str = "connections";
/// Key of the trigger's metadata that names the SignalCluster.
pub const CLUSTER: &str = "cluster";
/// How often an open stream checks for a change.
const STREAM_INTERVAL: Duration = Duration::from_secs(2);
/// Oldest number that is answered: pods are asked every 10 s, the status has it within 30 s, and a new leader needs up to that long again.
const MAX_SAMPLE_AGE: TimeDelta = TimeDelta::seconds(90);
/// Longest message of KEDA: it names a `ScaledObject` and the metadata of one trigger.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// Streams and calls at once on one of KEDA's connections.
const MAX_STREAMS: u32 = 1000;

/// Serves until `shutdown`; open streams end with it.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    store: Store<SignalCluster>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let scaler = Scaler {
        store,
        shutdown: shutdown.clone(),
    };
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(ExternalScalerServer::new(scaler).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), shutdown.cancelled_owned())
        .await
}

struct Scaler {
    store: Store<SignalCluster>,
    shutdown: CancellationToken,
}

/// The SignalCluster that a `ScaledObject` refers to.
fn find(
    store: &Store<SignalCluster>,
    asker: &ScaledObjectRef,
) -> Result<std::sync::Arc<SignalCluster>, Status> {
    if store.wait_until_ready().now_or_never().is_none() {
        return Err(Status::unavailable(
            "SignalClusters have not been listed yet",
        ));
    }
    let name = asker.scaler_metadata.get(CLUSTER).unwrap_or(&asker.name);
    store
        .get(&ObjectRef::new(name).within(&asker.namespace))
        .ok_or_else(|| {
            Status::not_found(format!(
                "there is no SignalCluster {name} in namespace {}",
                asker.namespace
            ))
        })
}

/// Its autoscaling settings, if the mode lets others set the number.
fn external(cluster: &SignalCluster) -> Result<&Autoscaling, Status> {
    match &cluster.spec.autoscaling {
        Some(autoscaling) if autoscaling.mode == AutoscalingMode::External => Ok(autoscaling),
        _ => Err(Status::failed_precondition(
            "spec.autoscaling.mode is not External: KEDA would not be the only one to set the number of pods",
        )),
    }
}

fn check_age(sample: &Connections, now: DateTime<Utc>) -> Result<(), Status> {
    let at = sample.sampled_at.as_ref().ok_or_else(|| {
        Status::unavailable("the status does not say when the connections were counted")
    })?;
    let age = now - from_k8s(at);
    match age <= MAX_SAMPLE_AGE {
        true => Ok(()),
        false => Err(Status::unavailable(format!(
            "the connections were counted {} s ago: no leading operator keeps the status up to date",
            age.num_seconds()
        ))),
    }
}

/// Its connections, if every ready pod was counted a short time ago.
fn connections(cluster: &SignalCluster, now: DateTime<Utc>) -> Result<i64, Status> {
    let status = cluster.status.as_ref();
    let sample = status.and_then(|status| status.connections.as_ref());
    sample.map_or(Ok(()), |sample| check_age(sample, now))?;
    let ready = status.map_or(0, |status| status.ready_replicas);
    match sample {
        Some(sample) if sample.reporting_pods > 0 && sample.reporting_pods >= ready => {
            Ok(sample.total)
        }
        Some(sample) => Err(Status::failed_precondition(format!(
            "{} of {ready} ready pods report their connections",
            sample.reporting_pods
        ))),
        None => Err(Status::failed_precondition(
            "no pod has reported its connections yet",
        )),
    }
}

/// Whether it should have pods; also without connections, because the first client needs a pod to connect to.
fn active(store: &Store<SignalCluster>, asker: &ScaledObjectRef) -> Result<bool, Status> {
    let cluster = find(store, asker)?;
    external(&cluster)?;
    Ok(!cluster.spec.stopped)
}

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let result = active(&self.store, request.get_ref())?;
        Ok(Response::new(IsActiveResponse { result }))
    }

    type StreamIsActiveStream =
        Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let asker = request.into_inner();
        active(&self.store, &asker)?;
        let changes = Changes {
            store: self.store.clone(),
            asker,
            sent: None,
            over: false,
            shutdown: self.shutdown.clone(),
        };
        Ok(Response::new(Box::pin(stream::unfold(
            changes,
            Changes::next,
        ))))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let cluster = find(&self.store, request.get_ref())?;
        let target = external(&cluster)?.target_connections_per_pod;
        let spec = MetricSpec {
            metric_name: METRIC.into(),
            target_size: i64::from(target),
            target_size_float: f64::from(target),
        };
        Ok(Response::new(GetMetricSpecResponse {
            metric_specs: vec![spec],
        }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let request = request.into_inner();
        let asker = request
            .scaled_object_ref
            .ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?;
        let cluster = find(&self.store, &asker)?;
        external(&cluster)?;
        let total = connections(&cluster, now())?;
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 connections")]
        let value = MetricValue {
            metric_name: METRIC.into(),
            metric_value: total,
            metric_value_float: total as f64,
        };
        Ok(Response::new(GetMetricsResponse {
            metric_values: vec![value],
        }))
    }
}

/// One open stream.
struct Changes {
    store: Store<SignalCluster>,
    asker: ScaledObjectRef,
    sent: Option<bool>,
    over: bool,
    shutdown: CancellationToken,
}

impl Changes {
    /// The first answer at once, each further one when it differs; an error ends the stream, and KEDA opens another.
    async fn next(mut self) -> Option<(Result<IsActiveResponse, Status>, Self)> {
        while !self.over {
            match active(&self.store, &self.asker) {
                Ok(result) if self.sent != Some(result) => {
                    self.sent = Some(result);
                    return Some((Ok(IsActiveResponse { result }), self));
                }
                Ok(_) => {}
                Err(status) => {
                    self.over = true;
                    return Some((Err(status), self));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(STREAM_INTERVAL) => {}
                () = self.shutdown.cancelled() => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;

//! Follows SignalClusters that this release cannot read, and has each of them say so.

use std::sync::Arc;

use kube::runtime::reflector::ObjectRef;
use signal_crds::SignalCluster;
use tokio::sync::broadcast::error::RecvError;

use crate::control::clusters::{Clusters, Scope};
use crate::reconcile::context::Context;
use crate::reconcile::unreadable::report_unreadable;

/// Reports all that are there, then each that comes; never ends.
pub(super) async fn follow(context: Arc<Context>, clusters: Clusters) {
    let mut changes = clusters.changes();
    report_all(&context, &clusters).await;
    loop {
        match changes.recv().await {
            Ok(cluster) => report(&context, &clusters, &cluster).await,
            Err(RecvError::Lagged(_)) => report_all(&context, &clusters).await,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

async fn report_all(context: &Context, clusters: &Clusters) {
    for cluster in clusters.unreadable(&Scope::All) {
        report(context, clusters, &cluster).await;
    }
}

async fn report(context: &Context, clusters: &Clusters, cluster: &ObjectRef<SignalCluster>) {
    if let Some(unreadable) = clusters.why_unreadable(cluster) {
        report_unreadable(context, &unreadable).await;
    }
}

//! Discovers which optional kinds the API server knows, and whether it knows SignalCluster; refreshed every half minute.

use std::time::Duration;

use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::control::clusters::Scope;
use crate::metrics::Metrics;
use crate::observe::observed::{KindAccess, Kinds, KindsByNamespace};
use crate::observe::resources::{
    self, HTTP_ROUTE, INGRESS, Owned, PROMETHEUS_RULE, SERVICE_MONITOR,
};
use crate::time::about;

/// Between two discoveries.
const REFRESH: Duration = Duration::from_secs(30);
/// Longest time for one answer.
const LIMIT: Duration = Duration::from_secs(10);

/// The API group and version of SignalCluster.
pub const SIGNAL: &str = "signal.dev/v1alpha1";

/// Whether the API server knows SignalCluster.
///
/// # Errors
/// When it does not answer.
pub async fn knows_signal_cluster(client: &Client) -> kube::Result<bool> {
    Ok(plurals(client, SIGNAL)
        .await?
        .iter()
        .any(|plural| plural == "signalclusters"))
}

/// Which optional kinds the API server knows and the operator may use, by scope. A scope whose namespace does not answer is left out: it says nothing of
/// the others.
///
/// # Errors
/// When the API server does not answer.
pub async fn discover(client: &Client, scopes: &[Scope]) -> kube::Result<KindsByNamespace> {
    let mut known = Vec::new();
    for kind in resources::ALL.into_iter().filter(|kind| kind.optional) {
        let plurals = plurals(client, &kind.api_version()).await?;
        if plurals.iter().any(|plural| plural == kind.plural) {
            known.push(kind);
        }
    }
    let mut found = KindsByNamespace::default();
    for scope in scopes {
        match usable(client, scope, &known).await {
            Ok(kinds) => drop(found.0.insert(scope.namespace().cloned(), kinds)),
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                ?scope,
                "discovery of optional kinds failed in a scope"
            ),
        }
    }
    Ok(found)
}

/// Which of these kinds the operator may list in a scope: an installation may leave out those rights, and a namespace may be gone with them.
async fn usable(client: &Client, scope: &Scope, known: &[Owned]) -> kube::Result<Kinds> {
    let access = async |kind: Owned| {
        if !known.contains(&kind) {
            return Ok(KindAccess::Missing);
        }
        let api: Api<DynamicObject> = scope.api(client, &kind.resource());
        let answer =
            tokio::time::timeout(LIMIT, api.list_metadata(&ListParams::default().limit(1))).await;
        match answer.map_err(|late| kube::Error::Service(late.into()))? {
            Ok(_) => Ok(KindAccess::Usable),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(KindAccess::Forbidden),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(KindAccess::Missing),
            Err(error) => Err(error),
        }
    };
    Ok(Kinds {
        http_route: access(HTTP_ROUTE).await?,
        ingress: access(INGRESS).await?,
        service_monitor: access(SERVICE_MONITOR).await?,
        prometheus_rule: access(PROMETHEUS_RULE).await?,
    })
}

/// The resources of one group and version; empty where there is no such group.
async fn plurals(client: &Client, api_version: &str) -> kube::Result<Vec<String>> {
    let answer = tokio::time::timeout(LIMIT, client.list_api_group_resources(api_version)).await;
    match answer.map_err(|late| kube::Error::Service(late.into()))? {
        Ok(list) => Ok(list
            .resources
            .into_iter()
            .map(|resource| resource.name)
            .collect()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Keeps `kinds` and the gauge of the CRD up to date; both stay as they are while the API server does not answer.
pub async fn follow(
    client: Client,
    scopes: Vec<Scope>,
    kinds: watch::Sender<KindsByNamespace>,
    metrics: Metrics,
) {
    loop {
        tokio::time::sleep(about(REFRESH)).await;
        match discover(&client, &scopes).await {
            Ok(found) => {
                let changed = kinds.send_if_modified(|kinds| {
                    let before = kinds.clone();
                    // A scope that did not answer keeps what was known of it.
                    kinds.0.extend(found.0);
                    *kinds != before
                });
                if changed {
                    tracing::info!(found = ?*kinds.borrow(), "optional kinds changed");
                }
            }
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "discovery of optional kinds failed; keeping the last result"
            ),
        }
        if let Ok(present) = knows_signal_cluster(&client).await {
            metrics.crd_present.set(present.into());
        }
    }
}

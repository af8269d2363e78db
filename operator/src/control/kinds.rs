//! Discovers which optional kinds the API server knows, and whether it knows SignalCluster; refreshed every half minute.

use std::time::Duration;

use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::control::clusters::Scope;
use crate::metrics::Metrics;
use crate::observe::observed::Kinds;
use crate::observe::resources::{HTTP_ROUTE, INGRESS, Owned, PROMETHEUS_RULE, SERVICE_MONITOR};
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

/// Which optional kinds the API server knows and the operator may use in these scopes.
///
/// # Errors
/// When it does not answer.
pub async fn discover(client: &Client, scopes: &[Scope]) -> kube::Result<Kinds> {
    Ok(Kinds {
        http_route: is_usable(client, scopes, HTTP_ROUTE).await?,
        ingress: is_usable(client, scopes, INGRESS).await?,
        service_monitor: is_usable(client, scopes, SERVICE_MONITOR).await?,
        prometheus_rule: is_usable(client, scopes, PROMETHEUS_RULE).await?,
    })
}

/// Whether the API server knows a kind and the operator may list it: an installation may leave out those rights.
async fn is_usable(client: &Client, scopes: &[Scope], kind: Owned) -> kube::Result<bool> {
    if !plurals(client, &kind.api_version())
        .await?
        .iter()
        .any(|plural| plural == kind.plural)
    {
        return Ok(false);
    }
    for scope in scopes {
        let api: Api<DynamicObject> = scope.api(client, &kind.resource());
        let answer =
            tokio::time::timeout(LIMIT, api.list_metadata(&ListParams::default().limit(1))).await;
        match answer.map_err(|late| kube::Error::Service(late.into()))? {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
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
    kinds: watch::Sender<Kinds>,
    metrics: Metrics,
) {
    loop {
        tokio::time::sleep(about(REFRESH)).await;
        match discover(&client, &scopes).await {
            Ok(found) => {
                if kinds.send_replace(found) != found {
                    tracing::info!(?found, "optional kinds changed");
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

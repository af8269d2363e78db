//! Discovers which optional kinds the API server knows, and whether it knows SignalCluster.
//!
//! Each group is looked at again after a delay of its own, which grows while nothing changes: from half a minute to ten minutes. A SignalCluster that asks for
//! a kind, and a watch of one that breaks, begin it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::{Api, Client};
use rand::Rng as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::control::clusters::Scope;
use crate::metrics::Metrics;
use crate::observe::observed::{KindAccess, KindsByNamespace};
use crate::observe::resources::{self, Owned};
use crate::time::growing;

/// Between the first two looks at a group.
const FIRST: Duration = Duration::from_secs(30);
/// Between two looks at a group that does not change.
const LONGEST: Duration = Duration::from_secs(600);
/// Between two looks at a group that is doubted.
const LEAST: Duration = Duration::from_secs(5);
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
    let mut found = KindsByNamespace::default();
    for group in groups() {
        look(client, scopes, &group, &mut found).await?;
    }
    Ok(found)
}

/// Optional kinds by group and version.
fn groups() -> Vec<Vec<Owned>> {
    let mut groups: BTreeMap<String, Vec<Owned>> = BTreeMap::new();
    for kind in resources::ALL.into_iter().filter(|kind| kind.optional) {
        groups.entry(kind.api_version()).or_default().push(kind);
    }
    groups.into_values().collect()
}

/// Looks which kinds of one group can be used.
async fn look(
    client: &Client,
    scopes: &[Scope],
    group: &[Owned],
    found: &mut KindsByNamespace,
) -> kube::Result<()> {
    let version = group.first().map(Owned::api_version).unwrap_or_default();
    let plurals = plurals(client, &version).await?;
    let is_known = |kind: &Owned| plurals.iter().any(|plural| plural == kind.plural);
    let known: Vec<Owned> = group.iter().copied().filter(is_known).collect();
    for scope in scopes {
        match usable(client, scope, group, &known).await {
            Ok(usable) => {
                let kinds = found.0.entry(scope.namespace().cloned()).or_default();
                for (kind, access) in usable {
                    kinds.set(kind, access);
                }
            }
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                ?scope,
                "discovery of optional kinds failed in a scope"
            ),
        }
    }
    Ok(())
}

/// Which of these kinds the operator may list in a scope: an installation may leave out those rights, and a namespace may be gone with them.
async fn usable(
    client: &Client,
    scope: &Scope,
    group: &[Owned],
    known: &[Owned],
) -> kube::Result<Vec<(Owned, KindAccess)>> {
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
    let mut all = Vec::new();
    for kind in group {
        all.push((*kind, access(*kind).await?));
    }
    Ok(all)
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

/// When one group is looked at.
struct Turn {
    /// Empty: the group of SignalCluster.
    group: Vec<Owned>,
    /// Looks in a row that found no change.
    unchanged: u32,
    last: Instant,
    next: Instant,
}

impl Turn {
    fn new(group: Vec<Owned>, now: Instant) -> Self {
        let mut turn = Self {
            group,
            unchanged: 0,
            last: now,
            next: now,
        };
        turn.looked(false, now);
        turn
    }

    /// After a look; one that failed has found no change.
    fn looked(&mut self, changed: bool, now: Instant) {
        self.unchanged = match changed {
            true => 1,
            false => self.unchanged.saturating_add(1),
        };
        self.last = now;
        let chance = rand::rng().random_range(0.0..1.0);
        self.next = now + growing(FIRST, LONGEST, self.unchanged, chance);
    }

    /// It may have changed.
    fn doubt(&mut self) {
        self.unchanged = 0;
        self.next = self.next.min(self.last + LEAST);
    }
}

/// Keeps `kinds` and the gauge of the CRD up to date; both stay as they are while the API server does not answer. `doubted` asks for a look soon.
pub async fn follow(
    client: Client,
    scopes: Vec<Scope>,
    kinds: watch::Sender<KindsByNamespace>,
    doubted: Arc<Notify>,
    metrics: Metrics,
) {
    let now = Instant::now();
    let mut turns: Vec<Turn> = groups()
        .into_iter()
        .chain([Vec::new()])
        .map(|group| Turn::new(group, now))
        .collect();
    loop {
        let next = turns.iter().map(|turn| turn.next).min().unwrap_or(now);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = doubted.notified() => turns.iter_mut().for_each(Turn::doubt),
        }
        let now = Instant::now();
        for turn in turns.iter_mut().filter(|turn| turn.next <= now) {
            let changed = if turn.group.is_empty() {
                look_at_signal_cluster(&client, &metrics).await
            } else {
                look_again(&client, &scopes, &turn.group, &kinds).await
            };
            turn.looked(changed, Instant::now());
        }
    }
}

/// Returns whether the gauge has changed.
async fn look_at_signal_cluster(client: &Client, metrics: &Metrics) -> bool {
    match knows_signal_cluster(client).await {
        Ok(present) => metrics.crd_present.set(present.into()) != i64::from(present),
        Err(_) => false,
    }
}

/// Returns whether the kinds of this group have changed.
async fn look_again(
    client: &Client,
    scopes: &[Scope],
    group: &[Owned],
    kinds: &watch::Sender<KindsByNamespace>,
) -> bool {
    // A scope that does not answer keeps what is known of it.
    let mut found = kinds.borrow().clone();
    if let Err(error) = look(client, scopes, group, &mut found).await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "discovery of optional kinds failed; keeping the last result"
        );
        return false;
    }
    let changed = kinds.send_if_modified(|kinds| {
        let changed = *kinds != found;
        kinds.clone_from(&found);
        changed
    });
    if changed {
        tracing::info!(?found, "optional kinds changed");
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_looked_at_less_and_less_often_until_it_changes_or_is_doubted() {
        let begin = Instant::now();
        let mut turn = Turn::new(Vec::new(), begin);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pauses.push(turn.next - turn.last);
            turn.looked(false, turn.next);
        }
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST, "{pauses:?}");
        let last = pauses[7];
        assert!(last >= LONGEST / 2 && last <= LONGEST, "{pauses:?}");
        turn.doubt();
        assert_eq!(turn.next, turn.last + LEAST);
        turn.looked(false, turn.next);
        assert!(turn.next - turn.last <= FIRST, "the delay begins again");
        turn.looked(true, turn.next);
        assert!(turn.next - turn.last <= FIRST);
    }

    #[test]
    fn every_optional_kind_is_in_one_group_with_those_of_its_version() {
        let groups = groups();
        let optional = resources::ALL.into_iter().filter(|kind| kind.optional);
        assert_eq!(groups.iter().flatten().count(), optional.count());
        assert_eq!(
            groups.len(),
            3,
            "two kinds of Prometheus's operator are one group"
        );
    }
}

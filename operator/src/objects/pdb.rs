//! How many pods a node drain may evict at once.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::names::{Children, selector};
use crate::plan::validate::ValidCluster;

/// A budget of unavailable pods. Pods that drain at scale-in count against it, because they are not ready.
///
/// Unready pods are evicted only within the budget (Kubernetes' default): without Redis no pod is ready, and each still holds its connections.
pub(super) fn pdb(cluster: &ValidCluster, children: &Children) -> Option<PodDisruptionBudget> {
    let disruption = &cluster.spec.disruption;
    (disruption.enabled && !cluster.spec.stopped).then(|| PodDisruptionBudget {
        metadata: super::meta(cluster, &children.name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(disruption.max_unavailable)),
            selector: Some(LabelSelector {
                match_labels: Some(selector(&cluster.name)),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

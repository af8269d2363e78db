//! Which objects belong to one SignalCluster, and not to an earlier one of the same name.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;
use signal_crds::SignalCluster;

use crate::names::{INSTANCE_LABEL, MANAGED_BY_LABEL, MANAGER};
use crate::observe::observed::Observed;

/// Whose objects are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Name of the SignalCluster.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
}

impl Owner {
    /// The SignalCluster of this reconcile.
    pub fn of(observed: &Observed) -> Self {
        let metadata = &observed.cluster.metadata;
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// The owner reference that makes an object be deleted with the SignalCluster.
    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: SignalCluster::api_version(&()).into_owned(),
            kind: SignalCluster::kind(&()).into_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Whether an object belongs to this SignalCluster: it has the owner reference; or it has the labels and no owner, as after a deletion that
    /// orphaned its objects, or from a backup that was restored without owners.
    pub fn owns(&self, metadata: &ObjectMeta) -> bool {
        match controller(metadata) {
            Some(owner) => owner.uid == self.uid,
            None => {
                let labels = metadata.labels.as_ref();
                let instance = labels.and_then(|labels| labels.get(INSTANCE_LABEL));
                is_managed(metadata) && instance == Some(&self.name)
            }
        }
    }
}

/// Whether the labels of an object say that an operator made it, for whatever SignalCluster.
pub(crate) fn is_managed(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    let manager = labels.and_then(|labels| labels.get(MANAGED_BY_LABEL));
    manager.is_some_and(|manager| manager == MANAGER)
}

/// The controlling owner of an object.
pub(crate) fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata
        .owner_references
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|owner| owner.controller == Some(true))
}

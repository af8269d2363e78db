//! Which objects belong to one SignalCluster, and not to an earlier one of the same name.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;
use signal_crds::SignalCluster;

use crate::names::{Children, INSTANCE_LABEL, MANAGED_BY_LABEL, MANAGER};
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

    /// Whether an object belongs to this SignalCluster: it has the owner reference; or it has a name that the operator gives, the labels and no owner, as after a
    /// deletion that orphaned its objects, or from a backup that was restored without owners. A copy that a person keeps under another name is theirs.
    pub fn owns(&self, metadata: &ObjectMeta) -> bool {
        match controller(metadata) {
            Some(owner) => owner.uid == self.uid,
            None => {
                let name = metadata.name.as_deref().unwrap_or_default();
                is_labelled(metadata, &self.name) && Children::of(&self.name).include(name)
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

/// Whether an object has the labels by which those of this SignalCluster are listed.
pub(crate) fn is_labelled(metadata: &ObjectMeta, name: &str) -> bool {
    let labels = metadata.labels.as_ref();
    let instance = labels.and_then(|labels| labels.get(INSTANCE_LABEL));
    is_managed(metadata) && instance.is_some_and(|instance| instance == name)
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

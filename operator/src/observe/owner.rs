//! Which objects belong to one SignalCluster, and not to an earlier one of the same name.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

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

    /// Whether an object belongs to this SignalCluster: it has the owner reference; or it has the labels and no owner, as after a deletion that
    /// orphaned its objects.
    pub fn owns(&self, metadata: &ObjectMeta) -> bool {
        match controller(metadata) {
            Some(owner) => owner.uid == self.uid,
            None => {
                let label = |key: &str| {
                    metadata
                        .labels
                        .as_ref()
                        .and_then(|labels| labels.get(key))
                        .map(String::as_str)
                };
                label(MANAGED_BY_LABEL) == Some(MANAGER)
                    && label(INSTANCE_LABEL) == Some(&self.name)
            }
        }
    }
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

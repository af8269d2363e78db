//! An object of the API server -> SignalCluster, read tolerantly: the API server has validated it, perhaps by a definition of another release.
//!
//! Fields that this release does not know are left out. An object that cannot be read all the same, because a known field has a form of another release,
//! concerns nobody but itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::core::DynamicObject;
use serde_json::Value;
use signal_crds::SignalCluster;

/// A SignalCluster that this release cannot read.
#[derive(Debug, Clone, PartialEq)]
pub struct UnreadableCluster {
    /// Whose it is.
    pub metadata: ObjectMeta,
    /// What an operator wrote before, as far as it can be read.
    pub conditions: Vec<Condition>,
    /// Which field, and why.
    pub why: String,
}

/// Reads a SignalCluster.
///
/// # Errors
/// When its spec has a form that this release does not know. A status of such a form is left out: what counts of it is written again.
pub fn read_cluster(object: DynamicObject) -> Result<SignalCluster, Box<UnreadableCluster>> {
    let DynamicObject {
        mut metadata, data, ..
    } = object;
    metadata.managed_fields = None;
    let field = |name: &str| data.get(name).cloned().unwrap_or_default();
    let (spec, status) = (field("spec"), field("status"));
    let conditions = status.get("conditions").cloned().unwrap_or_default();
    match serde_json::from_value(spec) {
        Ok(spec) => Ok(SignalCluster {
            metadata,
            spec,
            status: read_status(status),
        }),
        Err(error) => Err(Box::new(UnreadableCluster {
            metadata,
            conditions: serde_json::from_value(conditions).unwrap_or_default(),
            why: error.to_string(),
        })),
    }
}

fn read_status(status: Value) -> Option<signal_crds::Status> {
    serde_json::from_value(status).unwrap_or_else(|error| {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "status of another release left out"
        );
        None
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(change: impl FnOnce(&mut Value)) -> DynamicObject {
        let mut object = json!({
            "apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster", "metadata": {"name": "edge", "generation": 3},
            "spec": {
                "image": {"repository": "r", "tag": "1"},
                "jwks": {"sources": [{"name": "main", "issuer": "https://i/", "url": "https://i/", "audiences": ["a"]}]},
            },
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn fields_of_another_release_are_left_out_wherever_they_are() {
        let plain = read_cluster(object(|_| {})).unwrap();
        let newer = object(|object| {
            object["spec"]["future"] = json!({"a": 1});
            object["spec"]["image"]["future"] = json!(1);
            object["spec"]["gateway"] = json!({"future": true, "auth": {"future": []}});
            object["spec"]["jwks"]["sources"][0]["future"] = json!("x");
            object["status"] = json!({"replicas": 2, "future": {}});
        });
        let newer = read_cluster(newer).unwrap();
        assert_eq!(newer.spec, plain.spec);
        assert_eq!(newer.status.unwrap().replicas, 2);
    }

    #[test]
    fn a_form_of_another_release_makes_that_one_object_unreadable() {
        let newer = object(|object| {
            object["spec"]["autoscaling"] = json!({"mode": "Predictive", "maxReplicas": 3});
            object["status"] = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "AllPodsReady", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        });
        let unreadable = read_cluster(newer).unwrap_err();
        assert!(unreadable.why.contains("Predictive"), "{}", unreadable.why);
        assert_eq!(unreadable.conditions[0].type_, "Ready");
    }

    #[test]
    fn a_status_of_another_release_is_left_out() {
        let newer = object(|object| {
            object["status"] = json!({"replicas": 2, "scaling": {"state": "Predicting"}});
        });
        assert_eq!(read_cluster(newer).unwrap().status, None);
    }
}

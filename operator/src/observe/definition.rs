//! An object of the API server -> SignalCluster, read tolerantly: the API server has validated it, perhaps by a definition of another release.
//!
//! Fields that this release does not know are left out. An object that cannot be read all the same, because a known field has a form of another release,
//! concerns nobody but itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry, ObjectMeta};
use kube::core::DynamicObject;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use signal_crds::SignalCluster;

use crate::observe::bounded;

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
    // Parts of it, such as the pod template, have no bound in the definition.
    let bounded = bounded::count_value(&spec);
    match bounded.and_then(|()| serde_json::from_value(spec)) {
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

/// Annotation in which `kubectl apply` without `--server-side` keeps what was applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Its field manager.
const CLIENT_SIDE: &str = "kubectl-client-side-apply";

/// What is used of it.
#[derive(Deserialize)]
struct LastApplied {
    spec: LastAppliedSpec,
}

#[derive(Deserialize)]
struct LastAppliedSpec {
    replicas: Option<IgnoredAny>,
}

/// Whether somebody wrote `spec.replicas`, by the object's field managers (Kubernetes, "Server-Side Apply: Field management"). After the field was removed
/// the API server fills in its default: in server-side apply nobody owns that; in client-side apply the default counts as written by who removed it, and
/// only the annotation tells.
pub(crate) fn names_replicas(metadata: &ObjectMeta) -> bool {
    let Some(managed) = &metadata.managed_fields else {
        return true;
    };
    let owns = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
    };
    let last_applied = || {
        let text = metadata.annotations.as_ref()?.get(LAST_APPLIED)?;
        let applied: LastApplied = serde_json::from_str(text).ok()?;
        Some(applied.spec.replicas.is_some())
    };
    managed.iter().filter(owns).any(|entry| {
        entry.manager.as_deref() != Some(CLIENT_SIDE) || last_applied().unwrap_or(true)
    })
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
    fn a_spec_of_thousands_of_values_is_unreadable() {
        let many = object(|object| {
            let empty = vec![json!({}); bounded::MAX_VALUES];
            object["spec"]["podTemplate"] = json!({"spec": {"volumes": empty}});
        });
        let unreadable = read_cluster(many).unwrap_err();
        let why = &unreadable.why;
        assert!(why.contains("more than 4096 values"), "{why}");
    }

    #[test]
    fn a_number_is_somebodys_if_a_manager_owns_it_and_kubectl_has_applied_it() {
        let metadata = |managers: &[&str], applied: Option<&str>| {
            let entry = |manager: &&str| json!({"manager": manager, "fieldsV1": {"f:spec": {"f:replicas": {}}}});
            let mut managed: Vec<Value> = managers.iter().map(entry).collect();
            managed.push(json!({"manager": "other", "fieldsV1": {"f:spec": {"f:image": {}}}}));
            let annotations = applied.map(|text| json!({LAST_APPLIED: text}));
            serde_json::from_value::<ObjectMeta>(
                json!({"managedFields": managed, "annotations": annotations}),
            )
            .unwrap()
        };
        let (with, without) = (Some("{\"spec\":{\"replicas\":2}}"), Some("{\"spec\":{}}"));
        assert!(!names_replicas(&metadata(&[], None)));
        assert!(!names_replicas(&metadata(&[CLIENT_SIDE], without)));
        assert!(names_replicas(&metadata(&[CLIENT_SIDE], with)));
        assert!(names_replicas(&metadata(&["flux"], without)));
        assert!(names_replicas(&metadata(
            &[CLIENT_SIDE, "signal-operator"],
            without
        )));
        assert!(names_replicas(&ObjectMeta::default()), "nothing is known");
    }

    #[test]
    fn a_status_of_another_release_is_left_out() {
        let newer = object(|object| {
            object["status"] = json!({"replicas": 2, "scaling": {"state": "Predicting"}});
        });
        assert_eq!(read_cluster(newer).unwrap().status, None);
    }
}

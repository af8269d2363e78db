//! What kstatus says of an object of a kind that it does not know (`sigs.k8s.io/cli-utils`, `pkg/kstatus/status`: `Compute`), by the steps of that code.

use serde_json::Value;

/// Status of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kstatus {
    Current,
    InProgress,
    Failed,
    Terminating,
}

pub(crate) fn compute(object: &Value) -> Kstatus {
    if object["metadata"]["deletionTimestamp"].is_string() {
        return Kstatus::Terminating;
    }
    if has_generation_lag(object) {
        return Kstatus::InProgress;
    }
    let no_conditions = Vec::new();
    let conditions = object["status"]["conditions"].as_array();
    let conditions = conditions.unwrap_or(&no_conditions);
    // The first that is met decides.
    for condition in conditions.iter().filter(|one| one["status"] == "True") {
        match condition["type"].as_str() {
            Some("Reconciling") => return Kstatus::InProgress,
            Some("Stalled") => return Kstatus::Failed,
            _ => {}
        }
    }
    // "Ready conditions do not adhere to the Kubernetes design recommendations, but they are pretty widely used".
    match conditions.iter().find(|one| one["type"] == "Ready") {
        Some(ready) if ready["status"] != "True" => Kstatus::InProgress,
        // "we assume that the absence of any known conditions means the resource is current".
        _ => Kstatus::Current,
    }
}

/// Whether the status is about another generation. Both must be there: a status without `observedGeneration` is believed.
pub(crate) fn has_generation_lag(object: &Value) -> bool {
    let generation = object["metadata"]["generation"].as_i64();
    let observed = object["status"]["observedGeneration"].as_i64();
    matches!((generation, observed), (Some(newest), Some(observed)) if newest != observed)
}

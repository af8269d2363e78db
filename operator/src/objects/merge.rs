//! Merges one pod template over another, like a strategic merge: objects field by field, lists of named elements by name.

use serde_json::{Map, Value};

/// Lists whose elements are identified by a key.
fn key_of(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "initContainers" | "volumes" | "env" | "ports" | "imagePullSecrets" => {
            Some("name")
        }
        "volumeMounts" => Some("mountPath"),
        _ => None,
    }
}

/// `over` merged over `under`: if both have a value, that of `over` counts. In a list of named elements those of `over` come first, each merged over
/// the one of the same name; every other list of `over` replaces that of `under`.
pub(super) fn lay_over(under: Value, over: Value) -> Value {
    merge("", under, over)
}

/// Fields with one of several forms: the API server refuses two of them together.
fn is_one_of_many(name: &str) -> bool {
    matches!(
        name,
        "livenessProbe" | "readinessProbe" | "startupProbe" | "valueFrom"
    )
}

fn merge(name: &str, under: Value, over: Value) -> Value {
    match (under, over) {
        (_, over) if is_one_of_many(name) && !over.is_null() => over,
        (Value::Object(under), Value::Object(over)) => Value::Object(merge_objects(under, over)),
        (Value::Array(under), Value::Array(over)) => match key_of(name) {
            Some(key) => Value::Array(merge_lists(name, key, under, over)),
            None => Value::Array(over),
        },
        (under, Value::Null) => under,
        (_, over) => over,
    }
}

fn merge_objects(mut under: Map<String, Value>, over: Map<String, Value>) -> Map<String, Value> {
    // An environment variable has one of the two: the API server refuses both together.
    for (one, other) in [("value", "valueFrom"), ("valueFrom", "value")] {
        if over.contains_key(one) && over.contains_key("name") {
            under.remove(other);
        }
    }
    for (name, value) in over {
        let merged = match under.remove(&name) {
            Some(below) => merge(&name, below, value),
            None => value,
        };
        under.insert(name, merged);
    }
    under
}

fn merge_lists(name: &str, key: &str, mut under: Vec<Value>, over: Vec<Value>) -> Vec<Value> {
    let mut merged = Vec::with_capacity(under.len() + over.len());
    for item in over {
        let same = under
            .iter()
            .position(|below| below.get(key).is_some() && below.get(key) == item.get(key));
        merged.push(match same {
            // A volume has one of many sources.
            Some(at) if name == "volumes" => {
                under.remove(at);
                item
            }
            Some(at) => merge("", under.remove(at), item),
            None => item,
        });
    }
    merged.append(&mut under);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_merge_and_the_upper_one_counts() {
        let merged = lay_over(
            json!({"a": 1, "b": {"c": 1, "d": 2}}),
            json!({"b": {"c": 3}, "e": null}),
        );
        assert_eq!(merged, json!({"a": 1, "b": {"c": 3, "d": 2}, "e": null}));
    }

    #[test]
    fn named_things_merge_by_name_and_others_follow() {
        let user = json!({"containers": [{"name": "sidecar"}, {"name": "gateway", "image": "theirs", "env": [{"name": "A", "value": "1"}]}]});
        let ours = json!({"containers": [{"name": "gateway", "image": "ours", "env": [{"name": "B", "value": "2"}]}]});
        assert_eq!(
            lay_over(user, ours),
            json!({"containers": [
                {"name": "gateway", "image": "ours", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}]},
                {"name": "sidecar"},
            ]})
        );
    }

    #[test]
    fn mounts_merge_by_path_so_that_one_volume_may_be_mounted_twice() {
        let user = json!({"volumeMounts": [{"name": "x", "mountPath": "/a"}, {"name": "x", "mountPath": "/b"}]});
        let ours = json!({"volumeMounts": [{"name": "live", "mountPath": "/a"}]});
        assert_eq!(
            lay_over(user, ours),
            json!({"volumeMounts": [{"name": "live", "mountPath": "/a"}, {"name": "x", "mountPath": "/b"}]})
        );
    }

    #[test]
    fn volumes_and_probes_are_never_of_two_forms() {
        let user = json!({"volumes": [{"name": "live", "emptyDir": {}}], "livenessProbe": {"exec": {"command": ["true"]}}});
        let ours = json!({"volumes": [{"name": "live", "secret": {}}], "livenessProbe": {"httpGet": {"port": 1}}});
        assert_eq!(lay_over(user, ours.clone()), ours);
    }

    #[test]
    fn a_variable_keeps_one_source_and_other_lists_are_replaced() {
        let user = json!({"env": [{"name": "A", "value": "1"}], "args": ["theirs"]});
        let ours = json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}], "args": ["serve"]});
        assert_eq!(
            lay_over(user, ours),
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}], "args": ["serve"]})
        );
    }
}

//! Compares a wanted object with the live one, so that a reconcile without changes writes nothing. Pure.
//!
//! A live object may have more than the wanted one: the API server adds defaults, and others add their own fields (an injected container, an
//! annotation). A field that is not wanted any more shows in the hash of the applied object ([`hash`]), not in this comparison.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A place where the live object is not as wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// `/spec/template/spec/containers[gateway]/image`
    pub path: String,
    /// The live value.
    pub live: Option<Value>,
}

/// Keys that identify the elements of a list; the first one that all of them have counts.
const LIST_KEYS: [&str; 4] = ["name", "mountPath", "uid", "topologyKey"];
/// Fields whose values are quantities, and those whose members are.
const QUANTITIES: [&str; 4] = ["sizeLimit", "averageValue", "divisor", "storage"];
const QUANTITY_MAPS: [&str; 2] = ["requests", "limits"];

/// `sha256:` and the hash of this object, whatever the order of its keys.
pub fn hash(object: &Value) -> String {
    let mut hasher = Sha256::new();
    feed(&mut hasher, object);
    let mut text = String::from("sha256:");
    for byte in hasher.finalize() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn feed(hasher: &mut Sha256, value: &Value) {
    match value {
        Value::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort();
            hasher.update(b"{");
            for key in keys {
                feed(hasher, &Value::String(key.clone()));
                hasher.update(b":");
                feed(hasher, &members[key]);
                hasher.update(b",");
            }
            hasher.update(b"}");
        }
        Value::Array(elements) => {
            hasher.update(b"[");
            for element in elements {
                feed(hasher, element);
                hasher.update(b",");
            }
            hasher.update(b"]");
        }
        plain => hasher.update(plain.to_string()),
    }
}

/// Every place where `live` is not as `wanted`.
pub fn differences(wanted: &Value, live: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    walk(wanted, Some(live), "", false, &mut found);
    found
}

fn walk(
    wanted: &Value,
    live: Option<&Value>,
    path: &str,
    quantity: bool,
    found: &mut Vec<Difference>,
) {
    let mut differs = || {
        found.push(Difference {
            path: path.to_owned(),
            live: live.cloned(),
        })
    };
    match (wanted, live) {
        // The API server omits empty values.
        (Value::Null, None | Some(Value::Null)) => {}
        (Value::Object(members), None | Some(Value::Null)) if members.is_empty() => {}
        (Value::Array(elements), None | Some(Value::Null)) if elements.is_empty() => {}
        (Value::Object(members), Some(Value::Object(there))) => {
            let of_quantities = path
                .rsplit('/')
                .next()
                .is_some_and(|last| QUANTITY_MAPS.contains(&last));
            for (key, value) in members {
                let quantity = of_quantities || QUANTITIES.contains(&key.as_str());
                walk(
                    value,
                    there.get(key),
                    &format!("{path}/{key}"),
                    quantity,
                    found,
                );
            }
        }
        (Value::Array(elements), Some(Value::Array(there))) => {
            walk_list(elements, there, path, live, found)
        }
        (wanted, Some(there))
            if wanted == there
                || same_number(wanted, there)
                || (quantity && same_quantity(wanted, there)) => {}
        _ => differs(),
    }
}

fn walk_list(
    wanted: &[Value],
    there: &[Value],
    path: &str,
    live: Option<&Value>,
    found: &mut Vec<Difference>,
) {
    let key = LIST_KEYS
        .into_iter()
        .find(|key| !wanted.is_empty() && wanted.iter().all(|element| element.get(key).is_some()));
    if let Some(key) = key {
        for element in wanted {
            let name = &element[key];
            let same = there.iter().find(|other| other.get(key) == Some(name));
            walk(
                element,
                same,
                &format!("{path}[{}]", name.as_str().unwrap_or_default()),
                false,
                found,
            );
        }
    } else if wanted.len() == there.len() {
        for (at, (element, other)) in wanted.iter().zip(there).enumerate() {
            walk(element, Some(other), &format!("{path}[{at}]"), false, found);
        }
    } else {
        found.push(Difference {
            path: path.to_owned(),
            live: live.cloned(),
        });
    }
}

fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

fn same_quantity(a: &Value, b: &Value) -> bool {
    matches!((quantity(a), quantity(b)), (Some(a), Some(b)) if (a - b).abs() <= f64::EPSILON * a.abs().max(b.abs()))
}

/// The value of a Kubernetes quantity: `100m`, `1.5Gi`, `2`, `1e3`.
fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::String(text) => text.as_str(),
        other => return other.as_f64(),
    };
    if let Ok(plain) = text.parse::<f64>() {
        return plain.is_finite().then_some(plain);
    }
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split].parse().ok()?;
    let factor = match &text[split..] {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024f64,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        _ => return None,
    };
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(wanted: &Value, live: &Value) -> Vec<String> {
        differences(wanted, live)
            .into_iter()
            .map(|difference| difference.path)
            .collect()
    }

    #[test]
    fn defaults_of_the_server_and_fields_of_others_are_no_difference() {
        let wanted = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "gateway", "image": "x:1", "env": []}]}});
        let live = json!({
            "metadata": {"labels": {"a": "1", "theirs": "2"}, "uid": "u"},
            "spec": {"containers": [{"name": "proxy", "image": "p"}, {"name": "gateway", "image": "x:1", "imagePullPolicy": "Always"}], "dnsPolicy": "ClusterFirst"},
        });
        assert_eq!(paths(&wanted, &live), Vec::<String>::new());
    }

    #[test]
    fn a_changed_or_removed_field_is_named() {
        let wanted = json!({"spec": {"containers": [{"name": "gateway", "image": "x:1"}], "automountServiceAccountToken": false, "args": ["a", "b"]}});
        let live =
            json!({"spec": {"containers": [{"name": "gateway", "image": "x:2"}], "args": ["a"]}});
        let mut found = paths(&wanted, &live);
        found.sort();
        assert_eq!(
            found,
            [
                "/spec/args",
                "/spec/automountServiceAccountToken",
                "/spec/containers[gateway]/image"
            ]
        );
    }

    #[test]
    fn a_missing_element_of_a_named_list_is_a_difference() {
        let wanted =
            json!({"ports": [{"name": "public", "port": 80}, {"name": "admin", "port": 90}]});
        assert_eq!(
            paths(&wanted, &json!({"ports": [{"name": "public", "port": 80}]})),
            ["/ports[admin]"]
        );
    }

    #[test]
    fn quantities_are_compared_by_value_and_only_where_quantities_are() {
        let wanted = json!({"resources": {"requests": {"cpu": "1000m", "memory": "1Gi"}, "limits": {"cpu": 2}}, "emptyDir": {"sizeLimit": "1024Ki"}});
        let live = json!({"resources": {"requests": {"cpu": "1", "memory": "1024Mi"}, "limits": {"cpu": "2"}}, "emptyDir": {"sizeLimit": "1Mi"}});
        assert_eq!(paths(&wanted, &live), Vec::<String>::new());
        assert_eq!(
            paths(
                &json!({"env": [{"name": "A", "value": "1000m"}]}),
                &json!({"env": [{"name": "A", "value": "1"}]})
            ),
            ["/env[A]/value"]
        );
        assert_eq!(
            paths(
                &json!({"requests": {"cpu": "1"}}),
                &json!({"requests": {"cpu": "1100m"}})
            ),
            ["/requests/cpu"]
        );
    }

    #[test]
    fn whole_numbers_are_the_same_however_they_are_written() {
        assert_eq!(
            paths(&json!({"replicas": 1.0}), &json!({"replicas": 1})),
            Vec::<String>::new()
        );
        assert_eq!(
            paths(&json!({"replicas": 1}), &json!({"replicas": 2})),
            ["/replicas"]
        );
    }

    #[test]
    fn the_hash_depends_on_the_content_and_not_on_the_order() {
        let one: Value = serde_json::from_str(r#"{"a":1,"b":{"c":[1,2],"d":"x"}}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"b":{"d":"x","c":[1,2]},"a":1}"#).unwrap();
        assert_eq!(hash(&one), hash(&other));
        assert_ne!(
            hash(&one),
            hash(&json!({"a": 1, "b": {"c": [2, 1], "d": "x"}}))
        );
        assert_ne!(hash(&json!(["1"])), hash(&json!([1])));
    }
}

//! The Secrets and ConfigMaps that a spec names: a change of one of them reconciles the SignalCluster.

use std::collections::BTreeSet;

use signal_crds::SignalClusterSpec;
use signal_crds::reference::SecretKey;

/// Names of objects in the namespace of the SignalCluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Secrets.
    pub secrets: BTreeSet<String>,
    /// ConfigMaps.
    pub config_maps: BTreeSet<String>,
}

/// Every object that the operator reads for this spec.
pub fn references(spec: &SignalClusterSpec) -> References {
    let redis = spec.redis.as_ref();
    let redis_auth = redis.and_then(|redis| redis.auth.as_ref());
    let kafka = spec.kafka.as_ref().map(|kafka| &kafka.security);
    let kafka_auth = kafka.and_then(|security| security.auth.as_ref());
    let database = spec.database.as_ref();
    let tls = spec.gateway.tls.as_ref();
    let registry = spec
        .kafka
        .as_ref()
        .and_then(|kafka| kafka.registry.as_ref());
    let optional: [Option<&SecretKey>; 22] = [
        tls.and_then(|tls| tls.client_ca_secret_ref.as_ref()),
        spec.gateway.auth.basic_users_secret_ref.as_ref(),
        redis.and_then(|redis| redis.sentinel.as_ref()?.password_secret_ref.as_ref()),
        redis_auth.and_then(|auth| auth.username_secret_ref.as_ref()),
        redis_auth.map(|auth| &auth.password_secret_ref),
        redis.and_then(|redis| redis.tls.as_ref()?.ca_secret_ref.as_ref()),
        redis.and_then(|redis| redis.tls.as_ref()?.certificate_secret_ref.as_ref()),
        redis.and_then(|redis| redis.tls.as_ref()?.key_secret_ref.as_ref()),
        kafka_auth.and_then(|auth| auth.username_secret_ref.as_ref()),
        kafka_auth.map(|auth| &auth.password_secret_ref),
        kafka_auth.and_then(|auth| auth.token_ca_secret_ref.as_ref()),
        kafka.and_then(|security| security.ca_secret_ref.as_ref()),
        kafka.and_then(|security| security.certificate_secret_ref.as_ref()),
        kafka.and_then(|security| security.key_secret_ref.as_ref()),
        registry.and_then(|registry| registry.username_secret_ref.as_ref()),
        registry.and_then(|registry| registry.password_secret_ref.as_ref()),
        registry.and_then(|registry| registry.token_secret_ref.as_ref()),
        registry.and_then(|registry| registry.ca_secret_ref.as_ref()),
        database.and_then(|database| database.url_secret_ref.as_ref()),
        database.and_then(|database| database.ca_secret_ref.as_ref()),
        spec.policy.url_secret_ref.as_ref(),
        spec.policy.ca_secret_ref.as_ref(),
    ];
    let connections = [
        database.and_then(|database| database.connection.as_ref()),
        spec.policy.connection.as_ref(),
    ];
    let kafka_user = kafka.and_then(|security| security.user.as_ref());
    let whole = connections
        .into_iter()
        .flatten()
        .map(|connection| &connection.secret_name)
        .chain(kafka_user.map(|user| &user.secret_name))
        .chain(tls.map(|tls| &tls.secret_name));
    let of_sources = spec
        .jwks
        .sources
        .iter()
        .flat_map(|source| [&source.ca_secret_ref, &source.application_secret_ref])
        .filter_map(Option::as_ref);
    References {
        secrets: optional
            .into_iter()
            .flatten()
            .chain(of_sources)
            .map(|key| &key.name)
            .chain(whole)
            .cloned()
            .collect(),
        config_maps: spec
            .notifications
            .catalog_ref
            .iter()
            .map(|reference| reference.name.clone())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Fills each reference of the schema with a name of its own.
    fn fill(
        schema: &Value,
        path: &str,
        names: &mut (BTreeSet<String>, BTreeSet<String>),
    ) -> Option<Value> {
        let name = path
            .to_lowercase()
            .replace('/', "-")
            .trim_start_matches('-')
            .to_owned();
        let properties = schema.get("properties").and_then(Value::as_object);
        if path.ends_with("SecretRef") {
            names.0.insert(name.clone());
            return Some(json!({"name": name, "key": "k"}));
        }
        if path.ends_with("/secretName") {
            names.0.insert(name.clone());
            return Some(json!(name));
        }
        if path.ends_with("catalogRef") {
            names.1.insert(name.clone());
            return Some(json!({"name": name}));
        }
        if let Some(properties) = properties {
            let required: Vec<&str> = schema
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let members: serde_json::Map<String, Value> = properties
                .iter()
                .filter_map(|(key, inner)| {
                    let inner_path = format!("{path}/{key}");
                    let filled = fill(inner, &inner_path, names)
                        .or_else(|| required.contains(&key.as_str()).then(|| plain(inner)))?;
                    Some((key.clone(), filled))
                })
                .collect();
            return (!members.is_empty()).then_some(Value::Object(members));
        }
        let items = schema.get("items")?;
        Some(json!([fill(items, &format!("{path}/item"), names)?]))
    }

    fn plain(schema: &Value) -> Value {
        if let Some(value) = schema.get("enum").and_then(|values| values.get(0)) {
            return value.clone();
        }
        if let Some(value) = schema.get("default") {
            return value.clone();
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("string") => json!("x"),
            Some("integer") => json!(1),
            Some("boolean") => json!(false),
            Some("array") => json!([plain(&schema["items"])]),
            _ => json!({}),
        }
    }

    #[test]
    fn every_reference_of_the_schema_is_found() {
        let crd =
            serde_json::to_value(<signal_crds::SignalCluster as kube::CustomResourceExt>::crd())
                .unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut names = (BTreeSet::new(), BTreeSet::new());
        let spec = fill(schema, "", &mut names).unwrap();
        assert!(
            names.0.len() >= 24 && names.1.len() == 1,
            "the schema was not walked: {names:?}"
        );
        let spec: SignalClusterSpec = serde_json::from_value(spec).unwrap();
        let found = references(&spec);
        assert_eq!(
            found,
            References {
                secrets: names.0,
                config_maps: names.1
            }
        );
    }
}

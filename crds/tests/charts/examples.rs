//! The examples: read by the types, accepted by the API server, with the Secrets they name beside them; and the README's file names.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::Value;
use signal_crds::SignalCluster;

use crate::{documents, root, server};

const EXAMPLES: [&str; 3] = ["development", "minimal", "production"];

fn path(name: &str) -> PathBuf {
    root().join(format!("charts/examples/{name}.yaml"))
}

fn cluster(name: &str) -> SignalCluster {
    let text = std::fs::read_to_string(path(name)).unwrap();
    let read: SignalCluster =
        serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    // The types leave out what they do not know.
    let written: Value = serde_yaml_ng::from_str(&text).unwrap();
    let known = serde_json::to_value(&read.spec).unwrap();
    assert_eq!(unknown(&written["spec"], &known), None, "{name}");
    read
}

/// The first field that is written and not known.
fn unknown(written: &Value, known: &Value) -> Option<String> {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            written
                .iter()
                .find_map(|(field, value)| match known.get(field) {
                    Some(known) => unknown(value, known).map(|within| format!("{field}.{within}")),
                    None => Some(field.clone()),
                })
        }
        (Value::Array(written), Value::Array(known)) => written
            .iter()
            .zip(known)
            .find_map(|(written, known)| unknown(written, known)),
        _ => None,
    }
}

fn secrets(name: &str) -> Vec<Value> {
    std::fs::read_to_string(path(&format!("{name}-secrets")))
        .map(|text| documents(&text))
        .unwrap_or_default()
}

/// Every `...SecretRef` of a spec: the Secret's name and the key.
fn references(value: &Value, into: &mut BTreeSet<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                if field.ends_with("SecretRef") && value.is_object() {
                    into.insert((
                        value["name"].as_str().unwrap().to_owned(),
                        value["key"].as_str().unwrap().to_owned(),
                    ));
                }
                references(value, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

#[test]
fn every_secret_that_an_example_names_is_in_its_folder() {
    for name in EXAMPLES {
        let mut wanted = BTreeSet::new();
        references(
            &serde_json::to_value(&cluster(name).spec).unwrap(),
            &mut wanted,
        );
        let given: BTreeSet<(String, String)> = secrets(name)
            .iter()
            .flat_map(|secret| {
                let of = secret["metadata"]["name"].as_str().unwrap();
                secret["stringData"]
                    .as_object()
                    .unwrap()
                    .keys()
                    .map(move |key| (of.to_owned(), key.clone()))
            })
            .collect();
        assert_eq!(wanted, given, "{name}");
    }
}

#[test]
fn no_example_has_both_a_replicas_field_and_an_autoscaler() {
    for name in EXAMPLES {
        let example = &documents(&std::fs::read_to_string(path(name)).unwrap())[0];
        let spec = &example["spec"];
        assert!(
            spec.get("replicas").is_some() != spec.get("autoscaling").is_some(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_api_server_accepts_every_example_and_says_what_is_wrong_with_a_broken_one() {
    let Some(client) = server::client().await else {
        return;
    };
    define(&client).await;
    let clusters: Api<SignalCluster> = Api::namespaced(client.clone(), "default");
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for name in EXAMPLES {
        clusters
            .create(&dry, &cluster(name))
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        for secret in secrets(name) {
            let secret: DynamicObject = serde_json::from_value(secret).unwrap();
            let kind = kube::api::ApiResource::erase::<k8s_openapi::api::core::v1::Secret>(&());
            Api::<DynamicObject>::namespaced_with(client.clone(), "default", &kind)
                .create(&dry, &secret)
                .await
                .unwrap();
        }
    }
    let mut broken = cluster("minimal");
    broken.spec.redis = None;
    let refusal = clusters
        .create(&dry, &broken)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refusal.contains("spec.redis") && refusal.contains("more than one replica needs redis"),
        "{refusal}"
    );
}

/// Installs the definition, or finds it there, and waits until it is served.
async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition: CustomResourceDefinition =
        serde_yaml_ng::from_str(&signal_crds::crd_yaml()).unwrap();
    let name = definition.name_any();
    definitions
        .patch(
            &name,
            &PatchParams::apply("signal-tests").force(),
            &Patch::Apply(&definition),
        )
        .await
        .unwrap();
    let served = await_condition(definitions, &name, is_crd_established());
    tokio::time::timeout(Duration::from_secs(20), served)
        .await
        .expect("the definition is served in 20 s")
        .unwrap();
    assert_eq!(SignalCluster::group(&()), "signal.dev");
}

#[test]
fn every_file_that_the_readme_names_is_there() {
    let text = std::fs::read_to_string(root().join("charts/README.md")).unwrap();
    let words = text.split(|c: char| c.is_whitespace() || "()`,;".contains(c));
    let named: BTreeSet<&str> = words
        .filter(|word| {
            ["charts/", "deploy/", "crds/", "docs/"]
                .iter()
                .any(|at| word.starts_with(at))
        })
        .collect();
    assert!(named.len() > 5, "{named:?}");
    for name in named {
        assert!(root().join(name.trim_end_matches('.')).exists(), "{name}");
    }
}

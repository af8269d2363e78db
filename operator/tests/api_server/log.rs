//! Nothing out of a Secret is in the log: not at the most verbose level, not while a cluster comes up, and not where a Secret cannot be used.

use std::fs::File;
use std::time::{Duration, Instant};

use base64_simd::STANDARD;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use serde::Deserialize as _;
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use tokio::time::sleep;

use crate::Stage;
use crate::examples::example;
use crate::leadership::{Operator, SLACK};
use crate::simulated_pods::SimulatedPods;

const PLANTED: &str = "planted";
const LIMIT: Duration = Duration::from_secs(90);

/// The production example with a value of its own in every key of every Secret that may have any.
fn planted() -> String {
    let text = include_str!("../../golden/production.yaml");
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let mut value = Value::deserialize(document).unwrap();
        // Pods that only the operator's arguments would allow.
        if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("podTemplate");
        }
        let name = value["metadata"]["name"].as_str().unwrap().to_owned();
        let data = value.get_mut("stringData");
        let data = data.and_then(Value::as_object_mut);
        for (key, content) in data.into_iter().flatten() {
            let text = content.as_str().unwrap();
            let value = format!("{PLANTED}-{name}-{key}");
            *content = match text {
                certificate if certificate.starts_with("-----BEGIN ") => continue,
                users if users.starts_with('[') => {
                    users.replace("\"ops\"", &json!(value).to_string())
                }
                url if url.contains("://") => format!("postgres://{value}:{value}@db:5432/signal"),
                _ => value,
            }
            .into();
        }
        documents.push(serde_yaml_ng::to_string(&value).unwrap());
    }
    documents.join("---\n")
}

/// Every text of a JSON value.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::Object(members) => members.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// What no line may have: what was planted, and what the operator made itself, each also as the API server sends it.
async fn private(stage: &Stage) -> Vec<String> {
    let secrets = stage.api::<Secret>().list(&ListParams::default()).await;
    let live = stage.api::<ConfigMap>().get("edge-live").await.unwrap();
    let public = serde_json::to_string(&live.data).unwrap();
    let mut found = vec![PLANTED.to_owned()];
    for secret in secrets.unwrap() {
        for content in secret.data.clone().unwrap_or_default().into_values() {
            let text = String::from_utf8(content.0.clone()).unwrap();
            if text.contains("-----BEGIN CERTIFICATE") {
                continue;
            }
            found.push(STANDARD.encode_to_string(&content.0));
            if !secret.name_any().starts_with("edge-") {
                continue;
            }
            found.extend(match serde_json::from_str::<Value>(&text) {
                Ok(value) => texts(&value),
                // Of a PEM file, each line.
                Err(_) => text.lines().map(str::to_owned).collect(),
            });
        }
    }
    found.retain(|text| {
        let is_whole = text == PLANTED || text.len() >= 24 && !text.contains("-----");
        is_whole && !text.contains("://") && !public.contains(text.as_str())
    });
    found
}

#[tokio::test]
async fn no_line_of_the_log_has_anything_out_of_a_secret() {
    let Some(stage) = Stage::new("no_line_of_the_log_has_anything_out_of_a_secret").await else {
        return;
    };
    let mut simulated = SimulatedPods::around(&stage).await;
    example(&stage, &planted()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let kubeconfig = stage.server.cluster.kubeconfig();
    let mut command = Operator::command(&kubeconfig, &stage.namespace, "one");
    let log = File::create(&path).unwrap();
    command.command.args(["--log-filter", "trace"]);
    command.command.stdout(log.try_clone().unwrap()).stderr(log);
    let operator = command.start();
    let condition = async |kind: &str| {
        let cluster = stage.api::<SignalCluster>().get("edge").await.unwrap();
        let mut conditions = cluster.status.into_iter().flat_map(|it| it.conditions);
        conditions
            .find(|one| one.type_ == kind)
            .map(|one| one.status)
            .unwrap_or_default()
    };
    let began = Instant::now();
    while condition("JWKSHealthy").await != "True" {
        assert!(began.elapsed() < LIMIT, "pods are asked");
        simulated.advance().await;
        sleep(Duration::from_millis(200)).await;
    }
    let private = private(&stage).await;
    assert!(private.len() > 12, "{} values", private.len());

    // It has to say what is wrong with these.
    let unusable = json!({"stringData": {"pass": format!("{PLANTED}\n{PLANTED}"), "user": ""}});
    let api = stage.api::<Secret>();
    api.patch("redis", &PatchParams::default(), &Patch::Merge(unusable))
        .await
        .unwrap();
    crate::until("it says what is wrong", SLACK, async || {
        condition("SecretsResolved").await == "False"
    })
    .await;
    drop(operator);
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(
        log.contains("objects applied") && log.contains("TRACE"),
        "{log}"
    );
    for line in log.lines() {
        let found = private.iter().find(|text| line.contains(text.as_str()));
        assert_eq!(found, None, "{line}");
    }
}

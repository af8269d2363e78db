//! Two operators share a namespace: each reconciles the SignalClusters that its selector chooses.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use signal_crds::SignalCluster;

use crate::leadership::{Operator, SLACK};
use crate::{Stage, small, until};

#[tokio::test]
async fn each_operator_reconciles_what_its_selector_chooses() {
    let Some(stage) = Stage::new("each_operator_reconciles_what_its_selector_chooses").await else {
        return;
    };
    let kubeconfig = stage.server.cluster.kubeconfig();
    let clusters: Api<SignalCluster> = Api::namespaced(stage.client.clone(), &stage.namespace);
    let deployments: Api<Deployment> = Api::namespaced(stage.client.clone(), &stage.namespace);
    let apply = async |name: &str, operator: Option<&str>, tag: &str| {
        let mut spec = small();
        spec["image"]["tag"] = json!(tag);
        // Nobody fetches it here.
        let source = spec["jwks"]["sources"][0].as_object_mut().unwrap();
        source.remove("caSecretRef");
        let labels = match operator {
            Some(operator) => json!({"signal.dev/operator": operator}),
            None => json!({}),
        };
        let object = json!({
            "apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster",
            "metadata": {"name": name, "labels": labels}, "spec": spec,
        });
        let params = PatchParams::apply("test").force();
        clusters
            .patch(name, &params, &Patch::Apply(&object))
            .await
            .unwrap();
    };
    let runs = async |name: &str, tag: &str| {
        let image = format!("example/signal-gateway:{tag}");
        until(&format!("{name} runs {image}"), SLACK, async || {
            let found = deployments.get_opt(name).await.unwrap();
            let spec = found.and_then(|deployment| deployment.spec?.template.spec);
            spec.is_some_and(|spec| spec.containers[0].image.as_ref() == Some(&image))
        })
        .await;
    };
    let start = |name: &str, selector: &str| {
        let arguments = ["--selector", selector, "--lease-name", name];
        Operator::start_with(&kubeconfig, &stage.namespace, name, &arguments)
    };

    let canary = start("canary", "signal.dev/operator=canary");
    apply("plain", None, "1").await;
    apply("tried", Some("canary"), "1").await;
    runs("tried", "1").await;
    // What it does not choose it does not touch, however long it looks.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(deployments.get_opt("plain").await.unwrap(), None);
    let plain = clusters.get("plain").await.unwrap();
    let known = plain.status.and_then(|status| status.observed_generation);
    assert_eq!(known, Some(-1), "what the definition gives");

    let stable = start("stable", "!signal.dev/operator");
    runs("plain", "1").await;
    until("both lead", SLACK, async || {
        canary.leads().await && stable.leads().await
    })
    .await;
    drop(canary);
    apply("tried", Some("canary"), "2").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    runs("tried", "1").await;
    // Handed over by its label.
    apply("tried", None, "2").await;
    runs("tried", "2").await;
    let version = clusters.get("tried").await.unwrap().status.unwrap();
    assert_eq!(
        version.operator_version.as_deref(),
        Some(env!("CARGO_PKG_VERSION"))
    );
}

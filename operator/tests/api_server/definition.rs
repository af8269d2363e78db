//! A definition of another release: the operator reads what it knows, one SignalCluster that it cannot read concerns no other, and going back loses nothing.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Client, CustomResourceExt as _};
use serde_json::{Value, json};
use signal_crds::SignalCluster;

use crate::leadership::Operator;
use crate::{Server, define, make_authority, skip, small, until};

const LIMIT: Duration = Duration::from_secs(60);

fn schema(definition: &mut Value) -> &mut Value {
    &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
}

/// This release's definition after a change.
async fn install(client: &Client, change: impl FnOnce(&mut Value)) {
    let mut definition = serde_json::to_value(SignalCluster::crd()).unwrap();
    change(&mut definition);
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    api.patch(
        "signalclusters.signal.dev",
        &PatchParams::apply("test").force(),
        &Patch::Apply(&definition),
    )
    .await
    .unwrap();
}

/// Applies a SignalCluster, as soon as the API server accepts it.
async fn apply(client: &Client, name: &str, change: impl Fn(&mut Value)) {
    let mut spec = small();
    change(&mut spec);
    let object = json!({"apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster", "metadata": {"name": name}, "spec": spec});
    until(&format!("{name} is accepted"), LIMIT, async || {
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply("test").force()
        };
        clusters(client)
            .patch(name, &params, &Patch::Apply(&object))
            .await
            .is_ok()
    })
    .await;
}

fn clusters(client: &Client) -> Api<DynamicObject> {
    Api::default_namespaced_with(client.clone(), &ApiResource::erase::<SignalCluster>(&()))
}

/// Waits for the image of the Deployment.
async fn runs(client: &Client, name: &str, tag: &str) {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let image = format!("example/signal-gateway:{tag}");
    until(&format!("{name} runs {image}"), LIMIT, async || {
        let deployment = deployments.get_opt(name).await.unwrap();
        let spec = deployment.and_then(|deployment| deployment.spec?.template.spec);
        spec.is_some_and(|spec| spec.containers[0].image.as_ref() == Some(&image))
    })
    .await;
}

fn tagged(tag: &str) -> impl Fn(&mut Value) {
    move |spec| spec["image"]["tag"] = json!(tag)
}

async fn reason(client: &Client, name: &str, kind: &str) -> Option<String> {
    let object = clusters(client).get(name).await.unwrap();
    let conditions = object.data["status"]["conditions"].as_array()?.clone();
    let found = conditions.into_iter().find(|one| one["type"] == kind)?;
    Some(found["reason"].as_str()?.to_owned())
}

#[tokio::test]
async fn a_definition_of_another_release_blinds_no_operator() {
    let server = match Server::start() {
        Ok(server) => server,
        Err(reason) => {
            return skip(
                "a_definition_of_another_release_blinds_no_operator",
                &reason,
            );
        }
    };
    let client = server.client().await;
    define(&client).await;
    make_authority(&client, &server.cluster.kubeconfig()).await;
    let operator = Operator::start(&server.cluster.kubeconfig(), "default", "one");
    until("it leads", LIMIT, async || operator.leads().await).await;
    apply(&client, "plain", tagged("1")).await;
    runs(&client, "plain", "1").await;

    // One field ahead, and one value ahead.
    install(&client, |definition| {
        let spec = schema(definition);
        spec["gateway"]["properties"]["future"] = json!({"type": "string", "default": "x"});
        let mode = &mut spec["gateway"]["properties"]["encryption"]["properties"]["mode"];
        mode["enum"].as_array_mut().unwrap().push(json!("Future"));
    })
    .await;
    apply(&client, "ahead", |spec| {
        tagged("1")(spec);
        spec["gateway"] = json!({"future": "y"});
    })
    .await;
    runs(&client, "ahead", "1").await;
    apply(&client, "unreadable", |spec| {
        tagged("1")(spec);
        spec["gateway"] = json!({"encryption": {"mode": "Future"}});
    })
    .await;
    until("it says so itself", LIMIT, async || {
        reason(&client, "unreadable", "Ready").await.as_deref() == Some("SpecUnreadable")
            && reason(&client, "unreadable", "SpecAccepted")
                .await
                .as_deref()
                == Some("SpecUnreadable")
    })
    .await;
    for name in ["plain", "ahead"] {
        apply(&client, name, tagged("2")).await;
        runs(&client, name, "2").await;
    }
    // A new process lists all of them, and none is in the way of the others.
    drop(operator);
    let operator = Operator::start(&server.cluster.kubeconfig(), "default", "two");
    until("another one leads", LIMIT, async || operator.leads().await).await;
    apply(&client, "plain", tagged("3")).await;
    runs(&client, "plain", "3").await;
    apply(&client, "unreadable", tagged("3")).await;
    runs(&client, "unreadable", "3").await;

    // Back to this release, as `helm rollback` does, and then one field behind it.
    install(&client, |_| {}).await;
    apply(&client, "ahead", tagged("4")).await;
    runs(&client, "ahead", "4").await;
    install(&client, |definition| {
        let spec = schema(definition).as_object_mut().unwrap();
        spec.remove("rebalance");
        spec.remove("limits");
    })
    .await;
    for name in ["plain", "ahead", "unreadable"] {
        apply(&client, name, tagged("5")).await;
        runs(&client, name, "5").await;
    }
}

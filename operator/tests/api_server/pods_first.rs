//! Pods and people come first: whatever else fails, the number of pods follows the spec, drains end, and the status says what is wrong.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::networking::v1::Ingress;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_operator::reconcile::reconcile;

use crate::killed::{FIRST, TestOperator};
use crate::simulated_pods::{SimulatedPods, edge};
use crate::{Stage, until};

/// Enough for a scale-in: each turn takes a drain of one second a bit further.
const TURNS: usize = 80;

struct Scene<'a> {
    stage: &'a Stage,
    simulated: SimulatedPods<'a>,
    operator: TestOperator,
}

impl<'a> Scene<'a> {
    async fn new(stage: &'a Stage) -> Self {
        Self {
            stage,
            simulated: SimulatedPods::around(stage).await,
            operator: TestOperator::begin(stage, None).await,
        }
    }

    async fn apply(&self, replicas: u32, tag: &str) {
        let mut cluster = edge(replicas, FIRST);
        cluster["spec"]["image"]["tag"] = json!(tag);
        cluster["spec"]["exposure"] = json!({"ingress": {"host": "rt.example"}});
        self.stage
            .api::<SignalCluster>()
            .patch(
                "edge",
                &PatchParams::apply("test").force(),
                &Patch::Apply(&cluster),
            )
            .await
            .unwrap();
    }

    /// Reconciles until this holds; a reconcile may fail.
    async fn until(&mut self, what: &str, holds: impl AsyncFn(&Stage, &SignalCluster) -> bool) {
        for _ in 0..TURNS {
            self.simulated.advance().await;
            let cluster = self.stage.api::<SignalCluster>().get("edge").await.unwrap();
            let _ = reconcile(&self.operator.context, &cluster).await;
            let cluster = self.stage.api::<SignalCluster>().get("edge").await.unwrap();
            if holds(self.stage, &cluster).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let cluster = self.stage.api::<SignalCluster>().get("edge").await.unwrap();
        panic!("{what}: {:#?}", cluster.status);
    }
}

/// State and reason of a condition, if it is about this generation.
fn says(cluster: &SignalCluster, kind: &str, state: &str, reason: &str) -> bool {
    let status = cluster.status.as_ref();
    let conditions = status.map(|status| &status.conditions);
    conditions.into_iter().flatten().any(|condition| {
        (condition.type_.as_str(), condition.status.as_str()) == (kind, state)
            && condition.reason == reason
            && condition.observed_generation == cluster.metadata.generation
    })
}

async fn deployment(stage: &Stage) -> Option<(i32, String)> {
    let deployment = stage.api::<Deployment>().get_opt("edge").await.unwrap()?;
    let spec = deployment.spec?;
    let container = spec.template.spec?.containers.remove(0);
    Some((spec.replicas?, container.image?))
}

/// Has the API server ask a webhook that is down about every write of a kind in the stage's namespace, and waits until it does.
async fn break_writes(stage: &Stage, (group, plural): (&str, &str), probe: Value) {
    let name = format!("{plural}.{}.example.com", stage.namespace);
    let configuration = json!({
        "metadata": {"name": name},
        "webhooks": [{
            "name": name, "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 1, "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://127.0.0.1:1/"},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": stage.namespace}},
            "rules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [plural]}],
        }],
    });
    Api::<ValidatingWebhookConfiguration>::all(stage.client.clone())
        .create(
            &PostParams::default(),
            &serde_json::from_value(configuration).unwrap(),
        )
        .await
        .unwrap();
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    until(
        "the API server asks the webhook",
        Duration::from_secs(20),
        async || match plural {
            "configmaps" => {
                let object = serde_json::from_value(probe.clone()).unwrap();
                let api = stage.api::<ConfigMap>();
                api.create(&dry, &object).await.is_err()
            }
            _ => {
                let object = serde_json::from_value(probe.clone()).unwrap();
                stage.api::<Ingress>().create(&dry, &object).await.is_err()
            }
        },
    )
    .await;
}

async fn mend_writes(stage: &Stage, plural: &str) {
    let name = format!("{plural}.{}.example.com", stage.namespace);
    Api::<ValidatingWebhookConfiguration>::all(stage.client.clone())
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
}

fn ingress() -> Value {
    let service = json!({"name": "a", "port": {"number": 80}});
    json!({"metadata": {"name": "probe"}, "spec": {"defaultBackend": {"service": service}}})
}

#[tokio::test]
async fn neither_a_missing_secret_nor_a_webhook_that_is_down_stops_scaling_or_a_drain() {
    let Some(stage) =
        Stage::new("neither_a_missing_secret_nor_a_webhook_that_is_down_stops_scaling_or_a_drain")
            .await
    else {
        return;
    };
    break_writes(&stage, ("networking.k8s.io", "ingresses"), ingress()).await;
    let mut scene = Scene::new(&stage).await;
    scene.apply(2, "1").await;
    scene
        .until("pods serve without the Ingress", async |_, cluster| {
            says(cluster, "Exposed", "False", "ApplyFailed")
                && says(cluster, "Degraded", "False", "AsExpected")
                && says(cluster, "Ready", "True", "AllPodsReady")
        })
        .await;

    let secrets = stage.api::<Secret>();
    let database = secrets.get("database").await.unwrap();
    secrets
        .delete("database", &DeleteParams::default())
        .await
        .unwrap();
    scene.apply(4, "1").await;
    scene
        .until("more pods without the Secret", async |_, cluster| {
            let ready = cluster.status.as_ref().unwrap().ready_replicas;
            ready == 4 && says(cluster, "SecretsResolved", "False", "SecretMissing")
        })
        .await;
    scene.apply(1, "1").await;
    scene
        .until("fewer pods without the Secret", async |stage, cluster| {
            let status = cluster.status.as_ref().unwrap();
            deployment(stage).await.unwrap().0 == 1
                && (status.replicas, status.draining_replicas) == (1, 0)
        })
        .await;
    let restored = json!({"metadata": {"name": "database"}, "data": database.data});
    secrets
        .create(
            &PostParams::default(),
            &serde_json::from_value(restored).unwrap(),
        )
        .await
        .unwrap();

    let probe = json!({"metadata": {"name": "probe"}});
    break_writes(&stage, ("", "configmaps"), probe).await;
    // The template needs static settings that cannot be written.
    let mut cluster = edge(3, FIRST);
    cluster["spec"]["image"]["tag"] = json!("2");
    cluster["spec"]["drain"]["window"] = json!("2s");
    stage
        .api::<SignalCluster>()
        .patch(
            "edge",
            &PatchParams::apply("test").force(),
            &Patch::Apply(&cluster),
        )
        .await
        .unwrap();
    scene
        .until("more pods of the old template", async |stage, cluster| {
            deployment(stage).await.unwrap().0 == 3
                && says(cluster, "Degraded", "True", "ApplyFailed")
        })
        .await;
    let (_, image) = deployment(&stage).await.unwrap();
    assert_eq!(
        image, "example/signal-gateway:1",
        "a template without its settings is not applied"
    );
    mend_writes(&stage, "configmaps").await;
    scene
        .until("the rest follows", async |stage, _| {
            deployment(stage).await == Some((3, "example/signal-gateway:2".into()))
        })
        .await;
}

//! A revision of the pods stays whole while its ReplicaSet may start a pod, and an operator of another version restarts none.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_operator::names::{APPROVE_ROLLOUT, RESTARTED_AT, TEMPLATE_HASH};
use signal_operator::reconcile::reconcile;

use crate::Stage;
use crate::examples::migrate;
use crate::killed::{FIRST, TestOperator};
use crate::simulated_pods::{SimulatedPods, edge};

struct Scene<'a> {
    stage: &'a Stage,
    operator: TestOperator,
}

impl<'a> Scene<'a> {
    /// With the Secrets that [`edge`] names.
    async fn begin(stage: &'a Stage) -> Self {
        SimulatedPods::around(stage).await;
        let operator = TestOperator::begin(stage, None).await;
        Self { stage, operator }
    }

    async fn apply(&self, change: impl FnOnce(&mut Value)) {
        let mut cluster = edge(1, FIRST);
        let authorities = json!({"name": "authority", "key": "ca.crt"});
        cluster["spec"]["database"]["caSecretRef"] = authorities;
        change(&mut cluster);
        let api = self.stage.api::<SignalCluster>();
        let params = PatchParams::apply("test").force();
        api.patch("edge", &params, &Patch::Apply(&cluster))
            .await
            .unwrap();
        self.reconcile().await;
    }

    /// Two rounds: one may wait for its migration.
    async fn reconcile(&self) {
        for _ in 0..2 {
            let cluster = self.stage.api::<SignalCluster>().get("edge").await.unwrap();
            reconcile(&self.operator.context, &cluster).await.unwrap();
            migrate(self.stage).await;
        }
        let cluster = self.stage.api::<SignalCluster>().get("edge").await.unwrap();
        reconcile(&self.operator.context, &cluster).await.unwrap();
    }

    async fn deployment(&self) -> Deployment {
        self.stage.api().get("edge").await.unwrap()
    }

    /// As its controller does: it has seen the newest generation, and makes a ReplicaSet for it.
    async fn control(&self, set: &str) {
        let deployment = self.deployment().await;
        let mut template =
            serde_json::to_value(&deployment.spec.as_ref().unwrap().template).unwrap();
        template["metadata"]["labels"]["pod-template-hash"] = json!(set);
        let labels = template["metadata"]["labels"].clone();
        let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "edge", "uid": deployment.metadata.uid, "controller": true});
        let mut hashes = deployment.annotations().clone();
        hashes.retain(|name, _| name == TEMPLATE_HASH);
        let object = json!({
            "metadata": {"name": set, "labels": labels, "annotations": hashes, "ownerReferences": [owner]},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        });
        let object = serde_json::from_value(object).unwrap();
        self.stage
            .api::<ReplicaSet>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
        self.see().await;
    }

    async fn see(&self) {
        let generation = self.deployment().await.metadata.generation;
        let status = json!({"status": {"observedGeneration": generation}});
        self.stage
            .api::<Deployment>()
            .patch_status("edge", &PatchParams::default(), &Patch::Merge(&status))
            .await
            .unwrap();
    }

    /// Names of what only a start reads: ConfigMaps and Secrets.
    async fn statics(&self) -> (Vec<String>, Vec<String>) {
        let all = ListParams::default();
        let maps = self.stage.api::<ConfigMap>().list(&all).await.unwrap();
        let secrets = self.stage.api::<Secret>().list(&all).await.unwrap();
        let is_static = |name: &String| name.starts_with("edge-static-");
        (
            maps.iter()
                .map(ConfigMap::name_any)
                .filter(is_static)
                .collect(),
            secrets
                .iter()
                .map(Secret::name_any)
                .filter(is_static)
                .collect(),
        )
    }

    async fn condition(&self) -> (String, String) {
        let pending = self.condition_of("UpdatePending").await;
        (pending.status, pending.message)
    }

    async fn condition_of(&self, kind: &str) -> Condition {
        let cluster = self.stage.api::<SignalCluster>().get("edge").await.unwrap();
        let mut conditions = cluster.status.unwrap().conditions.into_iter();
        conditions.find(|one| one.type_ == kind).unwrap()
    }

    async fn annotate(&self, name: &str, text: &str) {
        let patch = json!({"metadata": {"annotations": {name: text}}});
        let api = self.stage.api::<SignalCluster>();
        api.patch("edge", &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .unwrap();
        self.reconcile().await;
    }
}

#[tokio::test]
async fn a_revision_stays_while_its_replica_set_may_start_a_pod_and_is_pruned_then() {
    let Some(stage) = Stage::new("revisions").await else {
        return;
    };
    let scene = Scene::begin(&stage).await;
    scene.apply(|_| {}).await;
    scene.control("edge-a").await;
    let (first, secrets) = scene.statics().await;
    assert_eq!((first.len(), secrets.len()), (1, 1));
    let overwrite = json!({"data": {"gateway.toml": "other"}});
    let api = stage.api::<ConfigMap>();
    let (params, overwrite) = (PatchParams::default(), Patch::Merge(&overwrite));
    let overwritten = api.patch(&first[0], &params, &overwrite).await;
    assert!(overwritten.is_err(), "it is immutable");
    let text = api.get(&first[0]).await.unwrap().data.unwrap();
    assert!(text["gateway.toml"].starts_with("live_file"), "{text:?}");

    // The rollout is stuck: both ReplicaSets want pods.
    scene
        .apply(|cluster| cluster["spec"]["drain"]["minBatch"] = json!(7))
        .await;
    scene.control("edge-b").await;
    scene.reconcile().await;
    let (both, secrets) = scene.statics().await;
    assert_eq!((both.len(), secrets.len()), (2, 1));
    assert_eq!(api.get(&first[0]).await.unwrap().data.unwrap(), text);

    // It goes on: the old one has no pod any more.
    let none = json!({"spec": {"replicas": 0}});
    stage
        .api::<ReplicaSet>()
        .patch("edge-a", &PatchParams::default(), &Patch::Merge(&none))
        .await
        .unwrap();
    scene.reconcile().await;
    let (last, secrets) = scene.statics().await;
    assert_eq!((last.len(), secrets.len()), (1, 1));
    assert_ne!(last, first);
}

#[tokio::test]
async fn an_operator_of_another_version_restarts_no_pod_until_it_is_asked_to() {
    let Some(stage) = Stage::new("update_pending").await else {
        return;
    };
    let scene = Scene::begin(&stage).await;
    scene.apply(|_| {}).await;
    scene.see().await;
    // As if another version had made it: a further field, and the hash of that template.
    let manager = PatchParams::apply("signal-operator").force();
    let mut other = scene.deployment().await;
    other.metadata.managed_fields = None;
    other.metadata.resource_version = None;
    other.status = None;
    let annotations = other.metadata.annotations.as_mut().unwrap();
    annotations.insert(TEMPLATE_HASH.into(), "sha256:other".into());
    annotations.insert("signal.dev/applied".into(), "sha256:other".into());
    let mut other = serde_json::to_value(other).unwrap();
    other["apiVersion"] = json!("apps/v1");
    other["kind"] = json!("Deployment");
    other["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["serve", "--other"]);
    stage
        .api::<Deployment>()
        .patch("edge", &manager, &Patch::Apply(&other))
        .await
        .unwrap();
    scene.see().await;
    let before = scene.deployment().await;

    scene.reconcile().await;
    // The number and live settings change meanwhile.
    scene
        .apply(|cluster| {
            cluster["spec"]["replicas"] = json!(2);
            cluster["spec"]["limits"] = json!({"connectionsPerPod": 7});
        })
        .await;
    let held = scene.deployment().await;
    let spec = |deployment: &Deployment| deployment.spec.clone().unwrap();
    assert_eq!(spec(&held).template, spec(&before).template);
    assert_eq!(spec(&held).replicas, Some(2));
    let (state, message) = scene.condition().await;
    assert_eq!(state, "True");
    assert!(
        message.contains("/spec/containers[gateway]/args"),
        "{message}"
    );

    let restart = json!({"metadata": {"annotations": {RESTARTED_AT: "now"}}});
    stage
        .api::<SignalCluster>()
        .patch("edge", &PatchParams::default(), &Patch::Merge(&restart))
        .await
        .unwrap();
    scene.reconcile().await;
    let template = spec(&scene.deployment().await).template;
    let args = &template.spec.unwrap().containers[0].args;
    assert!(!args.as_ref().unwrap().contains(&"--other".to_owned()));
    assert_eq!(
        template.metadata.unwrap().annotations.unwrap()[RESTARTED_AT],
        "now"
    );
    assert_eq!(scene.condition().await.0, "False");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn a_supervised_template_waits_with_its_migration_until_its_revision_is_approved() {
    let Some(stage) = Stage::new("approval").await else {
        return;
    };
    let scene = Scene::begin(&stage).await;
    let image = |tag: &'static str| {
        move |cluster: &mut Value| {
            cluster["spec"]["rollout"] = json!({"strategy": "Supervised"});
            cluster["spec"]["image"]["tag"] = json!(tag);
        }
    };
    scene.apply(image("1")).await;
    scene.see().await;
    let jobs = async || {
        let jobs = stage.api::<Job>().list(&ListParams::default()).await;
        let jobs = jobs.unwrap().items.into_iter();
        let images = jobs.map(|job| {
            let pod = job.spec.unwrap().template.spec.unwrap();
            pod.containers[0].image.clone().unwrap()
        });
        images.collect::<Vec<_>>()
    };
    let template = async || scene.deployment().await.spec.unwrap().template;
    let first = template().await;
    assert_eq!(
        scene.condition().await.0,
        "False",
        "the first one needs nobody"
    );

    scene.apply(image("2")).await;
    assert_eq!(template().await, first);
    assert!(
        !jobs()
            .await
            .contains(&"example/signal-gateway:2".to_owned())
    );
    let pending = scene.condition_of("UpdatePending").await;
    assert_eq!(
        (pending.status.as_str(), pending.reason.as_str()),
        ("True", "AwaitingApproval")
    );
    assert!(
        pending.message.contains("/spec/containers[gateway]/image"),
        "{}",
        pending.message
    );
    for kind in ["Ready", "Progressing"] {
        assert_eq!(scene.condition_of(kind).await.reason, "AwaitingApproval");
    }
    let message = pending.message.clone();
    let revision = message.split(' ').nth(1).unwrap();
    assert_eq!(revision.len(), 10, "{message}");

    // The number of pods follows the spec meanwhile, and another approval is none.
    scene
        .apply(|cluster| {
            image("2")(cluster);
            cluster["spec"]["replicas"] = json!(2);
        })
        .await;
    scene.annotate(APPROVE_ROLLOUT, "0123456789").await;
    let held = scene.deployment().await.spec.unwrap();
    assert_eq!((held.replicas, &held.template), (Some(2), &first));
    assert_eq!(
        scene.condition().await.1,
        message,
        "the number is no part of the revision"
    );

    scene.annotate(APPROVE_ROLLOUT, revision).await;
    let image_of = |template: &k8s_openapi::api::core::v1::PodTemplateSpec| {
        template.spec.as_ref().unwrap().containers[0].image.clone()
    };
    assert_eq!(
        image_of(&template().await).as_deref(),
        Some("example/signal-gateway:2")
    );
    assert!(
        jobs()
            .await
            .contains(&"example/signal-gateway:2".to_owned())
    );
    assert_eq!(scene.condition().await.0, "False");

    // The next one waits again; setting the field back leaves nothing to approve.
    scene.see().await;
    scene.apply(image("3")).await;
    assert_eq!(scene.condition().await.0, "True");
    scene.apply(image("2")).await;
    assert_eq!(scene.condition().await.0, "False");
}

#[tokio::test]
async fn a_rollout_stays_at_one_pod_until_its_canary_is_approved() {
    let Some(stage) = Stage::new("canary").await else {
        return;
    };
    let scene = Scene::begin(&stage).await;
    let image = |tag: &'static str| {
        move |cluster: &mut Value| {
            cluster["spec"]["rollout"] = json!({"strategy": "Canary", "canary": {"soak": "1h"}});
            cluster["spec"]["image"]["tag"] = json!(tag);
        }
    };
    let pace = async || {
        let spec = scene.deployment().await.spec.unwrap();
        let rolling = spec.strategy.unwrap().rolling_update.unwrap();
        let text = serde_json::to_string(&[rolling.max_surge, rolling.max_unavailable]);
        (
            text.unwrap(),
            spec.min_ready_seconds,
            spec.progress_deadline_seconds,
        )
    };
    let usual = (r#"["25%",0]"#.to_owned(), Some(10), Some(600));
    scene.apply(image("1")).await;
    scene.see().await;
    assert_eq!(pace().await, usual, "the first template has no canary");

    scene.apply(image("2")).await;
    scene.see().await;
    scene.reconcile().await;
    let held = (r#"[1,0]"#.to_owned(), Some(i32::MAX - 1), Some(i32::MAX));
    assert_eq!(pace().await, held);
    let template = scene
        .deployment()
        .await
        .spec
        .unwrap()
        .template
        .spec
        .unwrap();
    assert_eq!(
        template.containers[0].image.as_deref(),
        Some("example/signal-gateway:2")
    );
    let progressing = scene.condition_of("Progressing").await;
    assert_eq!(progressing.reason, "CanaryObserved");
    let words: Vec<&str> = progressing.message.split(' ').collect();
    let at = words.iter().position(|word| *word == "revision").unwrap() + 1;
    let revision = words[at].trim_end_matches(',');

    scene.annotate(APPROVE_ROLLOUT, revision).await;
    assert_eq!(pace().await, usual);
    let text = &scene.deployment().await.annotations()["signal.dev/canary"].clone();
    assert!(text.contains("Passed"), "{text}");
}

//! Observing and applying: nothing is written twice, what changed is put back, and what belongs to others stays.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_operator::act::apply::{Applied, ApplyError, Wanted, apply};
use signal_operator::act::fence::Fence;
use signal_operator::act::writer::{WriteError, Writer};
use signal_operator::control::backoff::ErrorClass;
use signal_operator::control::clusters::Scope;
use signal_operator::control::kinds;
use signal_operator::metrics::Metrics;
use signal_operator::names;
use signal_operator::observe::observed::{Observed, PodAllowances};
use signal_operator::observe::polls::Polls;
use signal_operator::observe::resources::{
    self, AUTOSCALER, CONFIG_MAP, DEPLOYMENT, HTTP_ROUTE, INGRESS, PROMETHEUS_RULE, SERVICE_MONITOR,
};
use signal_operator::observe::{Reader, observe};
use signal_operator::reconcile::context::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Stage, no_pods};

/// A reader and a writer that may write for the whole test.
pub(crate) struct Harness {
    reader: Reader,
    pub(crate) writer: Writer,
    fence: Fence,
}

impl Harness {
    pub(crate) async fn of(stage: &Stage) -> Self {
        let scopes = [Scope::Namespace(stage.namespace.clone())];
        // Nothing changes in it: the sender may go.
        let (_, kinds) = watch::channel(kinds::discover(&stage.client, &scopes).await.unwrap());
        let metrics = Metrics::default();
        let fence = Fence::default();
        fence.hold_until(Instant::now() + Duration::from_secs(600));
        Self {
            reader: Reader {
                client: stage.client.clone(),
                kinds,
                polls: Polls::new(no_pods(), metrics.clone()),
                allowed: PodAllowances::default(),
            },
            writer: Writer::new(stage.client.clone(), fence.clone(), metrics),
            fence,
        }
    }

    pub(crate) async fn look(&self, cluster: &SignalCluster) -> Observed {
        observe(&self.reader, cluster).await.unwrap()
    }

    /// Looks and applies.
    async fn bring(
        &self,
        cluster: &SignalCluster,
        wanted: Vec<Wanted>,
    ) -> Result<Applied, ApplyError> {
        apply(wanted, &self.look(cluster).await, &self.writer).await
    }
}

fn wanted(cluster: &SignalCluster, kind: (&str, &str), name: &str, rest: Value) -> Wanted {
    let mut object = json!({
        "apiVersion": kind.0,
        "kind": kind.1,
        "metadata": {
            "name": name,
            "namespace": cluster.namespace(),
            "labels": names::labels(&cluster.name_any()),
            "ownerReferences": [cluster.controller_owner_ref(&())],
        },
    });
    for (key, value) in rest.as_object().unwrap() {
        object[key] = value.clone();
    }
    Wanted::dynamic(serde_json::from_value(object).unwrap()).unwrap()
}

fn deployment(cluster: &SignalCluster, image: &str) -> Wanted {
    let labels = names::selector("edge");
    wanted(
        cluster,
        ("apps/v1", "Deployment"),
        "edge",
        json!({"spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": false,
                    "hostNetwork": false,
                    "containers": [{
                        "name": "gateway", "image": image, "args": ["serve"],
                        "ports": [{"name": "admin", "containerPort": 9090}],
                        "resources": {"requests": {"cpu": "1000m", "memory": "0.5Gi"}},
                        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    }],
                    "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1024Mi"}}],
                },
            },
        }}),
    )
}

/// One of every kind that every API server has.
fn everything(cluster: &SignalCluster) -> Vec<Wanted> {
    let labels = names::selector("edge");
    vec![
        deployment(cluster, "example/gateway:1"),
        wanted(
            cluster,
            ("v1", "ServiceAccount"),
            "edge",
            json!({"automountServiceAccountToken": false}),
        ),
        wanted(
            cluster,
            ("v1", "ConfigMap"),
            "edge-live",
            json!({"data": {"live.toml": "a = 1\n"}}),
        ),
        wanted(
            cluster,
            ("v1", "Secret"),
            "edge-credentials",
            json!({"type": "Opaque", "data": {"admin-token": "eA=="}}),
        ),
        wanted(
            cluster,
            ("v1", "Service"),
            "edge",
            json!({"spec": {"selector": labels, "ports": [{"name": "public", "port": 8080, "targetPort": "public"}]}}),
        ),
        wanted(
            cluster,
            ("networking.k8s.io/v1", "NetworkPolicy"),
            "edge",
            json!({"spec": {"podSelector": {"matchLabels": labels}, "ingress": [{"ports": [{"port": 8080}]}]}}),
        ),
        wanted(
            cluster,
            ("networking.k8s.io/v1", "Ingress"),
            "edge",
            json!({"spec": {"rules": [{"host": "rt.example", "http": {"paths": [
            {"path": "/stream", "pathType": "Prefix", "backend": {"service": {"name": "edge", "port": {"name": "public"}}}}]}}]}}),
        ),
        wanted(
            cluster,
            ("policy/v1", "PodDisruptionBudget"),
            "edge",
            json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}}}),
        ),
        wanted(
            cluster,
            ("autoscaling/v2", "HorizontalPodAutoscaler"),
            "edge",
            json!({"spec": {
                "minReplicas": 2, "maxReplicas": 4, "scaleTargetRef": {"apiVersion": "signal.dev/v1alpha1", "kind": "SignalCluster", "name": "edge"},
                "metrics": [{"type": "Pods", "pods": {"metric": {"name": "signal_connections"}, "target": {"type": "AverageValue", "averageValue": "20000"}}}],
            }}),
        ),
        wanted(
            cluster,
            ("batch/v1", "Job"),
            "edge-migrate-1",
            json!({"spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "migrate", "image": "example/gateway:1"}]}}}}),
        ),
    ]
}

#[tokio::test]
async fn an_object_that_is_as_wanted_is_not_written_again() {
    let Some(stage) = Stage::new("an_object_that_is_as_wanted_is_not_written_again").await else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    let first = harness.bring(&cluster, everything(&cluster)).await.unwrap();
    assert_eq!((first.writes(), first.objects.len()), (10, 10));
    let order: Vec<&str> = first
        .objects
        .iter()
        .map(|applied| applied.kind.kind)
        .collect();
    assert_eq!(
        order,
        [
            "ServiceAccount",
            "ConfigMap",
            "Secret",
            "Job",
            "Deployment",
            "NetworkPolicy",
            "Service",
            "PodDisruptionBudget",
            "HorizontalPodAutoscaler",
            "Ingress"
        ]
    );
    let second = harness.bring(&cluster, everything(&cluster)).await.unwrap();
    assert_eq!(second.writes(), 0);
    assert_eq!(
        second.get::<Deployment>("edge").unwrap().uid(),
        first.get::<Deployment>("edge").unwrap().uid()
    );
    // Another process knows nothing of what this one learnt; it writes at most what the API server leaves out, once.
    let other = Harness::of(&stage).await;
    let rewritten = other.bring(&cluster, everything(&cluster)).await.unwrap();
    let names: Vec<&str> = rewritten
        .objects
        .iter()
        .filter(|applied| applied.written)
        .map(|applied| applied.kind.kind)
        .collect();
    assert_eq!(
        names,
        ["Deployment"],
        "`hostNetwork: false` is what the API server leaves out"
    );
    assert_eq!(
        other
            .bring(&cluster, everything(&cluster))
            .await
            .unwrap()
            .writes(),
        0
    );
    assert_eq!(
        rewritten
            .get::<Deployment>("edge")
            .unwrap()
            .resource_version(),
        first.get::<Deployment>("edge").unwrap().resource_version()
    );
}

#[tokio::test]
async fn what_someone_changed_is_put_back_and_what_someone_added_stays() {
    let Some(stage) =
        Stage::new("what_someone_changed_is_put_back_and_what_someone_added_stays").await
    else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    harness.bring(&cluster, everything(&cluster)).await.unwrap();
    let patch = json!({"metadata": {"annotations": {"theirs": "1"}}, "spec": {"template": {"spec": {"containers": [
        {"name": "gateway", "image": "evil:1"}, {"name": "proxy", "image": "proxy:1"}]}}}});
    stage
        .api::<Deployment>()
        .patch("edge", &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .unwrap();
    stage
        .api::<Service>()
        .delete("edge", &DeleteParams::default())
        .await
        .unwrap();
    let applied = harness.bring(&cluster, everything(&cluster)).await.unwrap();
    let written: Vec<&str> = applied
        .objects
        .iter()
        .filter(|applied| applied.written)
        .map(|applied| applied.kind.kind)
        .collect();
    assert_eq!(written, ["Deployment", "Service"]);
    let live = stage.api::<Deployment>().get("edge").await.unwrap();
    let images: Vec<Option<String>> = live
        .spec
        .as_ref()
        .unwrap()
        .template
        .spec
        .as_ref()
        .unwrap()
        .containers
        .iter()
        .map(|c| c.image.clone())
        .collect();
    assert_eq!(
        images,
        [Some("example/gateway:1".into()), Some("proxy:1".into())]
    );
    assert_eq!(
        live.annotations().get("theirs").map(String::as_str),
        Some("1")
    );
    assert_eq!(
        harness
            .bring(&cluster, everything(&cluster))
            .await
            .unwrap()
            .writes(),
        0
    );
}

#[tokio::test]
async fn an_object_that_is_changed_back_each_time_is_not_fought_over() {
    let Some(stage) =
        Stage::new("an_object_that_is_changed_back_each_time_is_not_fought_over").await
    else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    harness.bring(&cluster, everything(&cluster)).await.unwrap();
    let accounts = stage.api::<ServiceAccount>();
    let patch = json!({"automountServiceAccountToken": true});
    let mut writes = 0;
    let error = loop {
        accounts
            .patch("edge", &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .unwrap();
        match harness.bring(&cluster, everything(&cluster)).await {
            Ok(applied) => writes += applied.writes(),
            Err(error) => break error,
        }
        assert!(writes < 20, "it goes on for ever");
    };
    assert_eq!(writes, 4);
    assert!(matches!(error, ApplyError::Contested { .. }), "{error}");
    assert!(
        error
            .to_string()
            .ends_with(": /automountServiceAccountToken"),
        "{error}"
    );
    // What comes after it is applied all the same.
    let mut others = everything(&cluster);
    let config = json!({"data": {"live.toml": "a = 2\n"}});
    others[2] = wanted(&cluster, ("v1", "ConfigMap"), "edge-live", config);
    harness.bring(&cluster, others).await.unwrap_err();
    let live = stage.api::<ConfigMap>().get("edge-live").await.unwrap();
    assert_eq!(live.data.unwrap()["live.toml"], "a = 2\n");
}

#[tokio::test]
async fn a_field_that_is_wanted_no_longer_goes() {
    let Some(stage) = Stage::new("a_field_that_is_wanted_no_longer_goes").await else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    let config = |data: Value| {
        vec![wanted(
            &cluster,
            ("v1", "ConfigMap"),
            "edge-live",
            json!({"data": data}),
        )]
    };
    harness
        .bring(
            &cluster,
            config(json!({"live.toml": "a", "jwks.json": "b"})),
        )
        .await
        .unwrap();
    assert_eq!(
        harness
            .bring(&cluster, config(json!({"live.toml": "a"})))
            .await
            .unwrap()
            .writes(),
        1
    );
    let live = stage.api::<ConfigMap>().get("edge-live").await.unwrap();
    assert_eq!(
        live.data.unwrap().into_keys().collect::<Vec<_>>(),
        ["live.toml"]
    );
}

#[tokio::test]
async fn what_is_not_wanted_any_more_is_pruned_and_what_is_kept_is_not() {
    let Some(stage) =
        Stage::new("what_is_not_wanted_any_more_is_pruned_and_what_is_kept_is_not").await
    else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    harness.bring(&cluster, everything(&cluster)).await.unwrap();
    let foreign = serde_json::from_value(
        json!({"metadata": {"name": "theirs", "labels": {"app.kubernetes.io/instance": "edge"}}, "data": {"a": "b"}}),
    )
    .unwrap();
    stage
        .api::<ConfigMap>()
        .create(&PostParams::default(), &foreign)
        .await
        .unwrap();
    let fewer: Vec<Wanted> = everything(&cluster)
        .into_iter()
        .filter(
            |wanted| !matches!(wanted, Wanted::Object(kind, _) if ["HorizontalPodAutoscaler", "Job", "Deployment"].contains(&kind.kind)),
        )
        .chain([Wanted::Kept(DEPLOYMENT, "edge".into())])
        .collect();
    let applied = harness.bring(&cluster, fewer).await.unwrap();
    assert_eq!(
        applied.pruned,
        [
            ("HorizontalPodAutoscaler", "edge".to_owned()),
            ("Job", "edge-migrate-1".to_owned())
        ]
    );
    assert_eq!(applied.writes(), 2);
    assert!(applied.get::<Deployment>("edge").is_some());
    assert!(
        stage
            .api::<HorizontalPodAutoscaler>()
            .get_opt("edge")
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        stage
            .api::<Deployment>()
            .get_opt("edge")
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        stage
            .api::<ConfigMap>()
            .get_opt("theirs")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn what_a_backup_restored_without_owners_is_adopted_or_pruned() {
    let Some(stage) =
        Stage::new("what_a_backup_restored_without_owners_is_adopted_or_pruned").await
    else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    harness.bring(&cluster, everything(&cluster)).await.unwrap();
    let objects = async || {
        let mut objects = Vec::new();
        let extensions = [HTTP_ROUTE, SERVICE_MONITOR, PROMETHEUS_RULE];
        for kind in resources::ALL {
            if extensions.contains(&kind) {
                continue;
            }
            let api: Api<DynamicObject> =
                Api::namespaced_with(stage.client.clone(), &stage.namespace, &kind.resource());
            let params = ListParams::default().labels("app.kubernetes.io/instance=edge");
            for object in api.list(&params).await.unwrap().items {
                objects.push((kind, object));
            }
        }
        objects
    };
    for (kind, object) in objects().await {
        let api: Api<DynamicObject> =
            Api::namespaced_with(stage.client.clone(), &stage.namespace, &kind.resource());
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": null}}));
        let name = object.name_any();
        let stripped = api.patch(&name, &PatchParams::default(), &patch).await;
        assert!(stripped.unwrap().owner_references().is_empty());
    }
    // The Deployment and the ConfigMap stay as they are, the autoscaler is not wanted any more.
    let kept = [(DEPLOYMENT, "edge"), (CONFIG_MAP, "edge-live")];
    let wanted = everything(&cluster).into_iter().filter(|wanted| {
        !matches!(wanted, Wanted::Object(kind, _) if [AUTOSCALER, DEPLOYMENT, CONFIG_MAP].contains(kind))
    });
    let wanted: Vec<Wanted> = wanted
        .chain(kept.map(|(kind, name)| Wanted::Kept(kind, name.into())))
        .collect();
    let applied = harness.bring(&cluster, wanted.clone()).await.unwrap();
    assert_eq!(
        applied.pruned,
        [("HorizontalPodAutoscaler", "edge".to_owned())]
    );
    let left = objects().await;
    assert_eq!(left.len(), everything(&cluster).len() - 1);
    let uid = cluster.uid().unwrap();
    for (kind, object) in left {
        let owners = object.owner_references();
        let [owner] = owners else {
            panic!("{}: {owners:?}", kind.kind)
        };
        assert_eq!((&owner.uid, owner.controller), (&uid, Some(true)));
    }
    let again = harness.bring(&cluster, wanted.clone()).await.unwrap();
    assert_eq!(again.writes(), 0);

    // A copy that a person keeps has the labels of what it is a copy of.
    let secrets = stage.api::<Secret>();
    let mut copy = secrets.get("edge-credentials").await.unwrap();
    copy.metadata = ObjectMeta {
        name: Some("edge-credentials-backup".into()),
        labels: copy.metadata.labels,
        ..ObjectMeta::default()
    };
    secrets.create(&PostParams::default(), &copy).await.unwrap();
    let again = harness.bring(&cluster, wanted).await.unwrap();
    assert_eq!(again.writes(), 0, "{:?}", again.pruned);
    let copy = secrets.get("edge-credentials-backup").await.unwrap();
    assert!(copy.owner_references().is_empty());
}

#[tokio::test]
async fn a_job_is_made_once_and_never_changed() {
    let Some(stage) = Stage::new("a_job_is_made_once_and_never_changed").await else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    let job = |image: &str| {
        let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "migrate", "image": image}]}});
        vec![wanted(
            &cluster,
            ("batch/v1", "Job"),
            "edge-migrate-1",
            json!({"spec": {"template": template}}),
        )]
    };
    harness.bring(&cluster, job("a:1")).await.unwrap();
    let again = harness.bring(&cluster, job("a:2")).await.unwrap();
    assert_eq!(
        (again.writes(), again.get::<Job>("edge-migrate-1").is_some()),
        (0, true)
    );
    // Without its labels it is not listed, so nobody would see it complete.
    let patch = json!({"metadata": {"labels": null}});
    let jobs = stage.api::<Job>();
    jobs.patch(
        "edge-migrate-1",
        &PatchParams::default(),
        &Patch::Merge(patch),
    )
    .await
    .unwrap();
    assert!(harness.look(&cluster).await.jobs.is_empty());
    harness.bring(&cluster, job("a:2")).await.unwrap();
    let [found] = &harness.look(&cluster).await.jobs[..] else {
        panic!("it is not listed")
    };
    let pod = &found.spec.as_ref().unwrap().template.spec;
    assert_eq!(
        pod.as_ref().unwrap().containers[0].image.as_deref(),
        Some("a:1")
    );
}

#[tokio::test]
async fn an_object_of_someone_else_is_never_taken_over() {
    let Some(stage) = Stage::new("an_object_of_someone_else_is_never_taken_over").await else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    let theirs = serde_json::from_value(
        json!({"metadata": {"name": "edge-live"}, "data": {"live.toml": "theirs"}}),
    )
    .unwrap();
    stage
        .api::<ConfigMap>()
        .create(&PostParams::default(), &theirs)
        .await
        .unwrap();
    let error = harness
        .bring(&cluster, everything(&cluster))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            ApplyError::Occupied {
                kind: "ConfigMap",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(ErrorClass::of(&Error::from(error)), ErrorClass::InTheWay);
    assert_eq!(
        stage
            .api::<ConfigMap>()
            .get("edge-live")
            .await
            .unwrap()
            .data
            .unwrap()["live.toml"],
        "theirs"
    );
}

#[tokio::test]
async fn an_outdated_observation_changes_nothing() {
    let Some(stage) = Stage::new("an_outdated_observation_changes_nothing").await else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    let config = |text: &str| {
        vec![wanted(
            &cluster,
            ("v1", "ConfigMap"),
            "edge-live",
            json!({"data": {"live.toml": text}}),
        )]
    };
    harness.bring(&cluster, config("1")).await.unwrap();
    let old = harness.look(&cluster).await;
    harness.bring(&cluster, config("2")).await.unwrap();
    let error = apply(config("1b"), &old, &harness.writer)
        .await
        .unwrap_err();
    assert_eq!(ErrorClass::of(&Error::from(error)), ErrorClass::Conflict);
    let error = apply(Vec::new(), &old, &harness.writer).await.unwrap_err();
    assert_eq!(
        ErrorClass::of(&Error::from(error)),
        ErrorClass::Conflict,
        "nor does it prune"
    );
    assert_eq!(
        stage
            .api::<ConfigMap>()
            .get("edge-live")
            .await
            .unwrap()
            .data
            .unwrap()["live.toml"],
        "2"
    );
}

#[tokio::test]
async fn nothing_is_written_without_the_lease() {
    let Some(stage) = Stage::new("nothing_is_written_without_the_lease").await else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    harness.fence.drop_now();
    let error = harness
        .bring(&cluster, everything(&cluster))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ApplyError::Write(WriteError::NotHeld)),
        "{error}"
    );
    assert!(
        stage
            .api::<Secret>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn a_signal_cluster_created_again_waits_for_the_objects_of_the_one_before() {
    let Some(stage) =
        Stage::new("a_signal_cluster_created_again_waits_for_the_objects_of_the_one_before").await
    else {
        return;
    };
    let before = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    harness.bring(&before, everything(&before)).await.unwrap();
    // No garbage collector runs here, so what it owned stays for now.
    stage
        .api::<SignalCluster>()
        .delete("edge", &DeleteParams::default())
        .await
        .unwrap();
    let recreated = stage.cluster("edge").await;
    let observed = harness.look(&recreated).await;
    assert!(
        observed.deployment.is_none()
            && observed.live_config.is_none()
            && observed.owned.is_empty()
            && observed.jobs.is_empty()
    );
    let error = apply(everything(&recreated), &observed, &harness.writer)
        .await
        .unwrap_err();
    assert!(matches!(error, ApplyError::Leaving { .. }), "{error}");
    let waits = "is still being deleted: the garbage collector has not deleted it yet";
    assert!(error.to_string().ends_with(waits), "{error}");
    // A deletion that leaves its objects behind takes their owner references away: then they are taken on.
    let patch = json!({"metadata": {"ownerReferences": null}});
    stage
        .api::<ConfigMap>()
        .patch("edge-live", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    let observed = harness.look(&recreated).await;
    assert!(observed.live_config.is_some());
    let config = vec![wanted(
        &recreated,
        ("v1", "ConfigMap"),
        "edge-live",
        json!({"data": {"live.toml": "a = 1\n"}}),
    )];
    let applied = apply(config, &observed, &harness.writer).await.unwrap();
    assert_eq!(
        applied
            .get::<ConfigMap>("edge-live")
            .unwrap()
            .owner_references()[0]
            .uid,
        recreated.uid().unwrap()
    );
}

#[tokio::test]
async fn secrets_that_the_spec_names_are_read_or_known_to_be_absent() {
    let Some(stage) =
        Stage::new("secrets_that_the_spec_names_are_read_or_known_to_be_absent").await
    else {
        return;
    };
    let cluster = stage.cluster("edge").await;
    let harness = Harness::of(&stage).await;
    assert_eq!(
        harness.look(&cluster).await.secrets.get("authority"),
        Some(&None)
    );
    let secret = serde_json::from_value(
        json!({"metadata": {"name": "authority"}, "stringData": {"ca.crt": "PEM"}}),
    )
    .unwrap();
    stage
        .api::<Secret>()
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let found = harness.look(&cluster).await.secrets;
    assert_eq!(found["authority"].as_ref().unwrap()["ca.crt"], b"PEM");
    assert!(
        harness.look(&cluster).await.kinds.has(INGRESS)
            && !harness.look(&cluster).await.kinds.has(HTTP_ROUTE)
    );
}

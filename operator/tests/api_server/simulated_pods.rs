//! Simulates what an API server alone lacks: the controllers that create the pods of a Deployment, and the pods, each a small server that answers
//! like a gateway.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use signal_operator::names::{DELETION_COST, selector};
use signal_operator::objects::LIVE_TOML;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::examples::migrate;
use crate::{Stage, authority};

/// The SignalCluster of the simulation: its waiting times are as short as possible.
pub(crate) fn edge(replicas: u32, issuer: &str) -> Value {
    json!({
        "apiVersion": "signal.dev/v1alpha1",
        "kind": "SignalCluster",
        "metadata": {"name": "edge"},
        "spec": {
            "replicas": replicas,
            "image": {"repository": "example/signal-gateway", "tag": "1"},
            "redis": {"mode": "Standalone", "nodes": ["redis:6379"]},
            "database": {"urlSecretRef": {"name": "database", "key": "url"}},
            "drain": {"endpointPropagation": "0s", "window": "1s"},
            "jwks": {
                "rotation": {"overlap": "1s"},
                "sources": [{"name": "main", "issuer": issuer, "url": "https://id.example/jwks", "audiences": ["signal"],
                    "caSecretRef": {"name": "authority", "key": "ca.crt"}}],
            },
        },
    })
}

/// The state of a simulated gateway.
#[derive(Default)]
struct Gateway {
    live: String,
    draining: bool,
}

type SharedGateway = Arc<Mutex<Gateway>>;

/// Controllers and pods of the SignalCluster `edge` of a stage.
pub(crate) struct SimulatedPods<'a> {
    stage: &'a Stage,
    pods: BTreeMap<String, Running>,
}

struct Running {
    gateway: SharedGateway,
    _tasks: JoinSet<()>,
}

/// Each pod of this process has an address of its own in 127.64.0.0/16.
fn next_address() -> IpAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64, high, low))
}

impl<'a> SimulatedPods<'a> {
    /// Creates the Secrets that [`edge`] names; no pod runs yet.
    pub(crate) async fn around(stage: &'a Stage) -> Self {
        for (name, data) in [
            (
                "authority",
                json!({"ca.crt": authority(&stage.server.cluster.kubeconfig())}),
            ),
            ("database", json!({"url": "postgres://database/signal"})),
        ] {
            let secret: Secret =
                serde_json::from_value(json!({"metadata": {"name": name}, "stringData": data}))
                    .unwrap();
            stage
                .api::<Secret>()
                .create(&PostParams::default(), &secret)
                .await
                .unwrap();
        }
        Self {
            stage,
            pods: BTreeMap::new(),
        }
    }

    /// Completes migrations, creates and deletes pods as the Deployment asks, and lets every gateway read its live settings.
    pub(crate) async fn advance(&mut self) {
        migrate(self.stage).await;
        let Some(deployment) = self
            .stage
            .api::<Deployment>()
            .get_opt("edge")
            .await
            .unwrap()
        else {
            return;
        };
        let set = self.replica_set(&deployment).await;
        let wanted = usize::try_from(deployment.spec.as_ref().unwrap().replicas.unwrap()).unwrap();
        let labels: Vec<String> = selector("edge")
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let mut there = self
            .stage
            .api::<Pod>()
            .list(&ListParams::default().labels(&labels.join(",")))
            .await
            .unwrap()
            .items;
        // Kubernetes deletes the lowest cost first.
        there.sort_by_key(|pod| {
            pod.annotations()
                .get(DELETION_COST)
                .map_or(0, |cost| cost.parse::<i32>().unwrap())
        });
        for pod in there.drain(..there.len().saturating_sub(wanted)) {
            self.stage
                .api::<Pod>()
                .delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
                .await
                .unwrap();
            self.pods.remove(&pod.name_any());
        }
        for _ in there.len()..wanted {
            self.start_pod(&deployment, &set).await;
        }
        let live = self
            .stage
            .api::<ConfigMap>()
            .get("edge-live")
            .await
            .unwrap()
            .data
            .unwrap()
            .remove(LIVE_TOML)
            .unwrap();
        for (name, running) in &self.pods {
            let draining = {
                let mut gateway = running.gateway.lock();
                gateway.live.clone_from(&live);
                gateway.draining
            };
            self.set_status(name, json!({"conditions": [condition("Ready", !draining)]}))
                .await;
        }
        let count = wanted;
        let status = json!({"status": {
            "observedGeneration": deployment.metadata.generation, "replicas": count, "updatedReplicas": count, "readyReplicas": count,
            "availableReplicas": count,
        }});
        self.stage
            .api::<Deployment>()
            .patch_status("edge", &PatchParams::default(), &Patch::Merge(&status))
            .await
            .unwrap();
    }

    /// Drops all pods.
    pub(crate) fn forget(&mut self) {
        self.pods.clear();
    }

    /// The one ReplicaSet: no scenario changes the template.
    async fn replica_set(&self, deployment: &Deployment) -> ReplicaSet {
        if let Some(set) = self
            .stage
            .api::<ReplicaSet>()
            .get_opt("edge-1")
            .await
            .unwrap()
        {
            return set;
        }
        let mut template =
            serde_json::to_value(&deployment.spec.as_ref().unwrap().template).unwrap();
        template["metadata"]["labels"]["pod-template-hash"] = json!("1");
        let labels = template["metadata"]["labels"].clone();
        let set = json!({
            "metadata": {"name": "edge-1", "labels": labels, "ownerReferences": [owner("apps/v1", "Deployment", "edge", &deployment.metadata.uid)]},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
        });
        self.stage
            .api()
            .create(
                &PostParams::default(),
                &serde_json::from_value(set).unwrap(),
            )
            .await
            .unwrap()
    }

    async fn set_status(&self, pod: &str, status: Value) {
        let patch = json!({"status": status});
        self.stage
            .api::<Pod>()
            .patch_status(pod, &PatchParams::default(), &Patch::Strategic(&patch))
            .await
            .unwrap();
    }

    async fn start_pod(&mut self, deployment: &Deployment, set: &ReplicaSet) {
        let template = set.spec.as_ref().unwrap().template.clone().unwrap();
        let mut pod = serde_json::to_value(template).unwrap();
        pod["metadata"]["generateName"] = json!("edge-1-");
        pod["spec"]["nodeName"] = json!("somewhere");
        // A drain waits until the probe has made the pod unready, and nobody probes here.
        let probe = &mut pod["spec"]["containers"][0]["readinessProbe"];
        for field in ["periodSeconds", "timeoutSeconds", "failureThreshold"] {
            probe[field] = json!(1);
        }
        pod["metadata"]["ownerReferences"] =
            json!([owner("apps/v1", "ReplicaSet", "edge-1", &set.metadata.uid)]);
        let pod = self
            .stage
            .api::<Pod>()
            .create(
                &PostParams::default(),
                &serde_json::from_value(pod).unwrap(),
            )
            .await
            .unwrap();
        let ports = deployment
            .spec
            .as_ref()
            .unwrap()
            .template
            .spec
            .as_ref()
            .unwrap()
            .containers[0]
            .ports
            .as_ref()
            .unwrap();
        let port = ports
            .iter()
            .find(|port| port.name.as_deref() == Some("admin"))
            .unwrap()
            .container_port;
        let address = next_address();
        let gateway = SharedGateway::default();
        let mut tasks = JoinSet::new();
        let listener = TcpListener::bind(SocketAddr::new(address, u16::try_from(port).unwrap()))
            .await
            .unwrap();
        let routes = Router::new()
            .route("/status", get(status))
            .route(
                "/drain",
                post(async |State(gateway): State<SharedGateway>| gateway.lock().draining = true),
            )
            .route(
                "/drain",
                axum::routing::delete(async |State(gateway): State<SharedGateway>| {
                    gateway.lock().draining = false
                }),
            )
            .with_state(Arc::clone(&gateway));
        tasks.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let running = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.set_status(&pod.name_any(), running).await;
        self.pods.insert(
            pod.name_any(),
            Running {
                gateway,
                _tasks: tasks,
            },
        );
    }
}

fn condition(kind: &str, holds: bool) -> Value {
    json!({"type": kind, "status": if holds { "True" } else { "False" }})
}

fn owner(version: &str, kind: &str, name: &str, uid: &Option<String>) -> Value {
    json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true})
}

/// The status of a gateway that has fetched every source and drains at once.
async fn status(State(gateway): State<SharedGateway>) -> axum::Json<Value> {
    let (live, draining) = {
        let gateway = gateway.lock();
        (gateway.live.clone(), gateway.draining)
    };
    let table: toml::Table = live.parse().unwrap();
    let sources = table
        .get("jwks")
        .and_then(|jwks| jwks.get("sources"))
        .and_then(toml::Value::as_array)
        .cloned()
        .unwrap_or_default();
    let sources = sources.iter().map(|source| {
        let state = source.get("state").and_then(toml::Value::as_str).unwrap_or("trusted");
        json!({"name": source["name"].as_str(), "state": state, "keys": ["one"], "refreshedAt": "2026-01-01T00:00:00Z"})
    });
    axum::Json(json!({
        "version": "1", "ready": !draining,
        "redis": {"mode": "standalone", "nodes": table["redis"]["nodes"], "subscribed": true}, "database": {"version": 1},
        "drain": {"draining": draining, "held": draining, "remaining": 0},
        "liveRevision": signal_operator::objects::revision(&live), "keySources": sources.collect::<Vec<_>>(),
    }))
}

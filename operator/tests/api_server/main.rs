//! The operator against a real API server: its defaults, pruning, refusals and preconditions cannot be imitated.
//!
//! One server for the whole binary; each test has a namespace of its own. Without the server's programs every test reports that it is skipped.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot continue reports where"
)]

mod apply;
mod at_rest;
mod definition;
mod drains;
mod examples;
mod gateway;
mod gitops;
mod killed;
#[path = "../../../crds/tests/charts/kstatus.rs"]
mod kstatus;
mod labels;
mod leadership;
mod log;
mod many;
mod operators;
mod optional;
mod pods_first;
mod problems;
mod replicas;
mod revisions;
mod rights;
mod selectors;
mod services;
mod simulated_pods;
mod watch_faults;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, CustomResourceExt as _};
use serde_json::{Value, json};
use signal_crds::SignalCluster;
use signal_services::{Kubernetes, KubernetesInstallation, Level};

/// Reports why a test was skipped; bypasses the test runner's capture, so that it is seen when the test passes.
fn skip(name: &str, reason: &str) {
    let _ = writeln!(std::io::stdout(), "skipped: {name}: {reason}");
}

/// An API server in a folder that is removed with it.
struct Server {
    cluster: Kubernetes,
    _dir: tempfile::TempDir,
}

impl Server {
    /// A server of its own; `Err`: why there is none.
    fn start() -> Result<Self, String> {
        let programs =
            KubernetesInstallation::find(Level::A).map_err(|error| format!("{error:#}"))?;
        let dir = tempfile::tempdir().unwrap();
        let cluster = Kubernetes::start(&programs, dir.path(), Level::A).unwrap();
        Ok(Self { cluster, _dir: dir })
    }

    async fn client(&self) -> Client {
        client(&self.cluster.kubeconfig()).await
    }
}

async fn client(kubeconfig: &Path) -> Client {
    Client::try_from(config(kubeconfig).await).unwrap()
}

/// The configuration of a client.
async fn config(kubeconfig: &Path) -> Config {
    // Every test comes by here; the first one is enough.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap()
}

/// A certificate that stands for an authority: the server's own.
fn authority(kubeconfig: &Path) -> String {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let path = kubeconfig.clusters[0]
        .cluster
        .as_ref()
        .and_then(|cluster| cluster.certificate_authority.as_ref());
    std::fs::read_to_string(path.expect("an authority in the kubeconfig")).unwrap()
}

/// Makes the Secret `authority` that [`small`] names.
async fn make_authority(client: &Client, kubeconfig: &Path) {
    let secret =
        json!({"metadata": {"name": "authority"}, "stringData": {"ca.crt": authority(kubeconfig)}});
    Api::<Secret>::default_namespaced(client.clone())
        .create(
            &PostParams::default(),
            &serde_json::from_value(secret).unwrap(),
        )
        .await
        .unwrap();
}

/// The spec of a small SignalCluster.
fn small() -> Value {
    json!({
        "replicas": 1,
        "image": {"repository": "example/signal-gateway", "tag": "1"},
        "jwks": {"sources": [{"name": "main", "issuer": "https://id.example/", "url": "https://id.example/jwks", "audiences": ["signal"],
            "caSecretRef": {"name": "authority", "key": "ca.crt"}}]},
    })
}

/// Stops with the process: a static is not dropped, but the guard of the server ends it with its parent.
static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
static NEXT_NAMESPACE: Mutex<u32> = Mutex::new(0);

/// A namespace of its own on the shared server.
struct Stage {
    client: Client,
    namespace: String,
    server: &'static Server,
}

impl Stage {
    async fn new(test: &str) -> Option<Self> {
        let server = match SERVER.get_or_init(Server::start) {
            Ok(server) => server,
            Err(reason) => {
                skip(test, reason);
                return None;
            }
        };
        let client = server.client().await;
        define(&client).await;
        let namespace = {
            let mut turn = NEXT_NAMESPACE.lock().unwrap();
            *turn += 1;
            format!("test-{turn}")
        };
        let object =
            serde_json::from_value::<Namespace>(json!({"metadata": {"name": namespace}})).unwrap();
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
        Some(Self {
            client,
            namespace,
            server,
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A small SignalCluster.
    async fn cluster(&self, name: &str) -> SignalCluster {
        let object = serde_json::from_value(json!({
            "apiVersion": "signal.dev/v1alpha1",
            "kind": "SignalCluster",
            "metadata": {"name": name},
            "spec": small(),
        }))
        .unwrap();
        self.api::<SignalCluster>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }
}

/// Installs the CustomResourceDefinition and waits until it is served.
async fn define(client: &Client) {
    let crd = SignalCluster::crd();
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    until(
        "the API server serves SignalCluster",
        Duration::from_secs(40),
        async || {
            // A server that was just started does not listen yet.
            api.patch(
                "signalclusters.signal.dev",
                &PatchParams::apply("test").force(),
                &Patch::Apply(&crd),
            )
            .await
            .is_ok()
                && signal_operator::control::kinds::knows_signal_cluster(client)
                    .await
                    .is_ok_and(|knows| knows)
        },
    )
    .await;
}

/// Waits for a condition, within a limit.
async fn until(what: &str, limit: Duration, condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Changes the object of this name, or creates it.
async fn touch<K>(stage: &Stage, name: &str)
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let when = format!("{:?}", Instant::now());
    let object = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name, "annotations": {"touched": when}}});
    stage
        .api::<K>()
        .patch(
            name,
            &PatchParams::apply("test").force(),
            &Patch::Apply(&object),
        )
        .await
        .unwrap();
}

/// No pod answers: level A has no pods.
fn no_pods() -> signal_operator::observe::Poll {
    Arc::new(|_, _, _| Box::pin(std::future::ready(Err("no pods here".into()))))
}

/// Sends a signal to a process of ours.
fn signal(pid: u32, name: &str) {
    assert!(
        Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

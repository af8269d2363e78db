//! What a network plugin does about NetworkPolicies, for the test cluster, whose own plugin does nothing about them.
//!
//! It watches policies, pods and namespaces at the API server, and gives each node one nftables table, which is replaced as a whole.

mod table;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Config};
use parking_lot::Mutex;
use signal_services::{Kubernetes, Level};
use signal_tests::cluster::OwnCluster;
use tokio::sync::{Notify, oneshot};

use table::{Objects, TABLE, table};

/// How long changes are gathered before tables are written.
const GATHERED: Duration = Duration::from_millis(20);
/// How often tables are written although nothing has changed: a node that was booted again has none.
const REPEATED: Duration = Duration::from_secs(5);
/// Until a watch that failed begins again.
const PAUSE: Duration = Duration::from_millis(300);
/// How long the first tables may take.
const FIRST: Duration = Duration::from_secs(30);

/// Enforces NetworkPolicies on all nodes of a cluster, until it is dropped.
pub(crate) struct Enforcer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    failures: Arc<Mutex<BTreeMap<usize, String>>>,
}

impl Enforcer {
    /// Starts, and waits until every node has its table. A pod is isolated a moment after it has its address, as with other plugins.
    ///
    /// # Errors
    /// When the kernel cannot filter what passes over a bridge, or a node refuses its table.
    pub(crate) fn start(cluster: &OwnCluster) -> Result<Self> {
        let bridged = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
        if !bridged.exists() {
            bail!(
                "the kernel's module br_netfilter is not loaded: traffic between pods of a node would pass unseen"
            );
        }
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let failures = Arc::default();
        let worker = Worker {
            cluster: cluster.clone(),
            written: BTreeMap::new(),
            failures: Arc::clone(&failures),
        };
        // The switch reaches the API server whichever network the caller stands in.
        let outside = cluster.outside_network();
        let thread = std::thread::spawn(move || {
            let ended = outside.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_all().build().context("a runtime");
                runtime?.block_on(worker.run(&ready, stopped))
            });
            if let Err(error) = ended.and_then(|ended| ended) {
                let _ = ready.send(Err(error));
            }
        });
        let enforcer = Self {
            stop: Some(stop),
            thread: Some(thread),
            failures,
        };
        let begun = is_ready.recv_timeout(FIRST);
        begun.context("no tables within the limit")??;
        Ok(enforcer)
    }

    /// By node, why its newest table could not be written, if so. A node that is down has none.
    pub(crate) fn failures(&self) -> BTreeMap<usize, String> {
        self.failures.lock().clone()
    }
}

impl Drop for Enforcer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    cluster: OwnCluster,
    /// By node: the table that it has, and since when.
    written: BTreeMap<usize, (String, Instant)>,
    failures: Arc<Mutex<BTreeMap<usize, String>>>,
}

impl Worker {
    async fn run(
        mut self,
        ready: &mpsc::Sender<Result<()>>,
        mut stopped: oneshot::Receiver<()>,
    ) -> Result<()> {
        // Every client comes by here; the first one is enough.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(self.cluster.kubeconfig_outside())?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let changed = Arc::new(Notify::new());
        let policies: Store<NetworkPolicy> = watch(&client, &changed);
        let pods: Store<Pod> = watch(&client, &changed);
        let namespaces: Store<Namespace> = watch(&client, &changed);
        policies.wait_until_ready().await?;
        pods.wait_until_ready().await?;
        namespaces.wait_until_ready().await?;
        let mut is_first = true;
        loop {
            self.write(&Objects {
                policies: policies.state(),
                pods: pods.state(),
                namespaces: namespaces.state(),
            });
            if std::mem::take(&mut is_first) {
                let failed = self
                    .failures
                    .lock()
                    .first_key_value()
                    .map(|(_, why)| why.clone());
                let _ = ready.send(failed.map_or(Ok(()), |why| Err(anyhow::Error::msg(why))));
            }
            tokio::select! {
                _ = &mut stopped => break,
                () = changed.notified() => tokio::time::sleep(GATHERED).await,
                () = tokio::time::sleep(REPEATED) => {}
            }
        }
        for node in 1..=nodes(&self.cluster) {
            let _ = nft(&self.cluster, node, &format!("delete table ip {TABLE}\n"));
        }
        Ok(())
    }

    /// Gives each node its table where it is another one, or may be gone.
    fn write(&mut self, objects: &Objects) {
        for node in 1..=nodes(&self.cluster) {
            let text = table(objects, &format!("node{node}"));
            let has =
                |(written, at): &(String, Instant)| *written == text && at.elapsed() < REPEATED;
            if self.written.get(&node).is_some_and(has) {
                continue;
            }
            let result = nft(&self.cluster, node, &text);
            let mut failures = self.failures.lock();
            match result {
                Ok(()) => {
                    self.written.insert(node, (text, Instant::now()));
                    failures.remove(&node);
                }
                Err(error) => {
                    self.written.remove(&node);
                    failures.insert(node, format!("{error:#}"));
                }
            }
        }
    }
}

fn nodes(cluster: &Kubernetes) -> usize {
    match cluster.level() {
        Level::C { nodes } => nodes,
        Level::A | Level::B => 0,
    }
}

/// What the API server has of a kind, kept up to date.
fn watch<K>(client: &Client, changed: &Arc<Notify>) -> Store<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + k8s_openapi::serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let changed = Arc::clone(changed);
    let events = watcher(Api::all(client.clone()), watcher::Config::default()).reflect(writer);
    tokio::spawn(async move {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    });
    store
}

fn nft(cluster: &Kubernetes, node: usize, text: &str) -> Result<()> {
    let mut command = cluster.in_node(node, "nft");
    command.args(["-f", "-"]).stdin(Stdio::piped());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.context("cannot run nft")?;
    // Its end is what nft waits for. One that has ended says why.
    let _ = child
        .stdin
        .take()
        .context("a pipe")?
        .write_all(text.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("node {node} refuses its table: {}\n{text}", said.trim());
    }
    Ok(())
}

//! Kubernetes for one test: the API that `cargo xtask test` started or `SIGNAL_TEST_KUBECONFIG` names, or a cluster of the
//! test's own. Where neither is possible the test is skipped by name and reason, as with the other servers.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use signal_services::{Kubernetes, KubernetesInstallation, Level, Network};
use tempfile::TempDir;

use crate::services::{environment, scratch, skip};

/// A cluster of a test's own, and its folder.
#[derive(Clone)]
pub struct OwnCluster {
    cluster: Arc<Kubernetes>,
    _dir: Arc<TempDir>,
}

impl std::ops::Deref for OwnCluster {
    type Target = Kubernetes;

    fn deref(&self) -> &Kubernetes {
        &self.cluster
    }
}

impl OwnCluster {
    /// Does something that takes a while to a cluster (stops a component, kills a node, boots it) without holding up the runtime.
    ///
    /// # Panics
    /// When it fails.
    pub async fn does(&self, act: impl FnOnce(&Kubernetes) -> anyhow::Result<()> + Send + 'static) {
        let cluster = Arc::clone(&self.cluster);
        tokio::task::spawn_blocking(move || act(&cluster))
            .await
            .expect("no panic")
            .expect("the cluster obeys");
    }

    /// The cluster's switch, to start servers at.
    pub fn outside_network(&self) -> Network {
        self.cluster.outside()
    }

    /// Runs a future at the cluster's switch: what it connects to is what the cluster's outside clients see.
    pub async fn outside<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        inside(self.cluster.outside(), work).await
    }
}

/// Runs a future inside a network, on threads and a runtime of its own. Its tasks and sockets stay there.
///
/// # Panics
/// When the network cannot be entered, or the future does.
pub async fn inside<T, F>(network: Network, work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let run = move || {
        // Its threads inherit the network. Tasks go on while the future itself waits for a program.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(work())
    };
    let entered = tokio::task::spawn_blocking(move || network.run(run));
    match entered.await {
        Ok(result) => result.expect("the network can be entered"),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A cluster of the test's own, to be broken. Those with nodes wait for each other.
pub async fn own_cluster(level: Level) -> Option<OwnCluster> {
    let installation = installation(level)?;
    let started = tokio::task::spawn_blocking(move || {
        let dir = scratch();
        Kubernetes::start(&installation, &dir.path().join("cluster"), level)
            .map(|cluster| (cluster, dir))
    });
    let (cluster, dir) = started
        .await
        .expect("no panic")
        .expect("the cluster starts");
    Some(OwnCluster {
        cluster: Arc::new(cluster),
        _dir: Arc::new(dir),
    })
}

/// The kubeconfig of an API with controllers and without nodes that tests share; namespaces are each test's own.
///
/// # Panics
/// When it does not start.
pub async fn api() -> Option<PathBuf> {
    if let Some(file) = environment("SIGNAL_TEST_KUBECONFIG") {
        return Some(file.into());
    }
    let installation = installation(Level::B)?;
    // It ends with the process, although statics are never dropped: whoever ends clusters waits for that.
    static SHARED: OnceLock<(Kubernetes, TempDir)> = OnceLock::new();
    let started = tokio::task::spawn_blocking(move || {
        let (cluster, _) = SHARED.get_or_init(|| {
            let dir = scratch();
            (
                Kubernetes::start(&installation, &dir.path().join("cluster"), Level::B)
                    .expect("the shared cluster starts"),
                dir,
            )
        });
        cluster.kubeconfig()
    });
    Some(started.await.expect("the shared cluster starts"))
}

fn installation(level: Level) -> Option<KubernetesInstallation> {
    KubernetesInstallation::find(level)
        .map_err(|reason| skip(&format!("{reason:#}")))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn the_shared_api_makes_a_default_account_in_a_new_namespace() {
        let Some(kubeconfig) = api().await else {
            return;
        };
        let Some(installation) = installation(Level::B) else {
            return;
        };
        let name = crate::services::unique("test").replace('_', "-");
        let kubectl = |arguments: &[&str]| {
            let output = Command::new(installation.kubectl())
                .arg("--kubeconfig")
                .arg(&kubeconfig)
                .args(arguments)
                .output()
                .unwrap();
            (
                output.status.success(),
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            )
        };
        let (made, said) = kubectl(&["create", "namespace", &name]);
        assert!(made, "{said}");
        crate::until("the account", async || {
            kubectl(&["get", "serviceaccount", "default", "-n", &name])
                .0
                .then_some(())
        })
        .await;
    }
    #[tokio::test]
    async fn an_async_client_outside_talks_to_a_server_outside() {
        let Some(cluster) = own_cluster(Level::C { nodes: 1 }).await else {
            return;
        };
        if !signal_services::Redis::is_installed() {
            return skip("redis-server is not installed");
        }
        let dir = scratch();
        let server =
            signal_services::Redis::start_in(&cluster.outside_network(), dir.path(), &[]).unwrap();
        let url = format!("redis://{}", server.address());
        let pong = cluster.outside(async move || {
            let mut connection = redis::Client::open(url)
                .unwrap()
                .get_multiplexed_async_connection()
                .await
                .unwrap();
            redis::cmd("PING")
                .query_async::<String>(&mut connection)
                .await
                .unwrap()
        });
        assert_eq!(crate::wait::within("an answer", pong).await, "PONG");
    }
}

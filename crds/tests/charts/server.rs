//! The API server of the run.

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::skip;

/// A client of the cluster that `SIGNAL_TEST_KUBECONFIG` names.
pub(crate) async fn client() -> Option<Client> {
    let Some(path) = std::env::var_os("SIGNAL_TEST_KUBECONFIG").filter(|path| !path.is_empty())
    else {
        skip("SIGNAL_TEST_KUBECONFIG names no cluster");
        return None;
    };
    let config = Config::from_custom_kubeconfig(
        Kubeconfig::read_from(path).unwrap(),
        &KubeConfigOptions::default(),
    )
    .await
    .unwrap();
    Some(Client::try_from(config).unwrap())
}

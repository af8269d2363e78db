//! The Kubernetes resources of Signal: `SignalCluster` of `signal.dev/v1alpha1`.
//!
//! The types are the source: field docs become the schema's descriptions, and ranges, enums and CEL rules let the API server refuse a wrong
//! spec before anything acts on it. `signalclusters.yaml` beside this crate is written from them (`signal-operator crd`), and a test compares.

#![expect(
    unreachable_pub,
    reason = "KubeSchema repeats each type, with its visibility, inside a function"
)]

mod cluster;
mod contract;
pub mod data;
mod duration;
pub mod exposure;
pub mod gateway;
pub mod jwks;
pub mod pod;
pub mod reference;
pub mod scaling;
pub mod secrets;
pub mod status;

use kube::CustomResourceExt;

pub use cluster::{SignalCluster, SignalClusterSpec};
pub use duration::{Duration, NotADuration};
pub use status::Status;

/// The CustomResourceDefinition as YAML, ready to be applied.
pub fn crd_yaml() -> String {
    let crd = SignalCluster::crd();
    let mut text = String::from("# Written by `signal-operator crd`; not edited by hand.\n");
    text.push_str(&serde_yaml_ng::to_string(&crd).expect("a CRD is plain data"));
    text
}

#[cfg(test)]
mod tests;

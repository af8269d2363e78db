//! What a reconcile does to the cluster: objects, pods, the number of replicas. Holds a client.

pub mod apply;
pub mod orders;
pub mod writer;

//! What a reconcile changes: objects, pods, the number of replicas, Events. Holds a client.
//!
//! Every write goes through [`writer::Writer`] and asks the [`fence::Fence`] first.

pub mod apply;
pub mod events;
pub mod fence;
pub mod orders;
mod repeats;
pub mod writer;

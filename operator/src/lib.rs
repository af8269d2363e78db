//! Reconciles `SignalCluster` resources: gateways that scale, route over Redis and rotate their trust without dropping people.
//!
//! One reconcile runs through the folders in this order: `observe` -> `decide` (`plan`, then `objects`) -> `act` -> `status`. `control` starts
//! reconciles, `reconcile` calls the steps. Only `control`, `reconcile`, `observe` and `act` hold a client; the others are pure.

pub mod act;
pub mod args;
pub mod control;
pub mod decide;
#[cfg(test)]
mod fixture;
pub mod healthcheck;
pub mod metrics;
pub mod names;
pub mod objects;
pub mod observe;
pub mod plan;
pub mod reasons;
pub mod reconcile;
pub mod requests;
pub mod status;
pub mod time;

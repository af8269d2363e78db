//! Reconciles `SignalCluster` resources: gateways that scale, route over Redis and rotate their trust without dropping people.
//!
//! A reconcile reads as its steps, and only the first and the last three hold a client:
//! `observe` -> `validate` -> plans (`jwks`, `signing`, `routing`, `scale`, `autoscale`, `rebalance`) -> `desired` -> `apply` -> `orders` -> `status`.

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
pub mod status;
pub mod time;

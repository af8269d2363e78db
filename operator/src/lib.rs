//! Reconciles `SignalCluster` resources: gateways that scale, route over Redis and rotate their trust without dropping people.
//!
//! A reconcile reads as its steps, and only the first and the last three hold a client:
//! `observe` -> `validate` -> plans (`jwks`, `signing`, `routing`, `scale`, `autoscale`, `rebalance`) -> `desired` -> `apply` -> `orders` -> `status`.

pub mod admin;
pub mod admin_client;
pub mod apply;
pub mod args;
pub mod autoscale;
pub mod backoff;
pub mod clusters;
pub mod compare;
pub mod conditions;
pub mod controller;
pub mod desired;
pub mod events;
pub mod external_scaler;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod healthcheck;
pub mod judge;
pub mod jwks;
pub mod kinds;
pub mod lease;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod observed;
pub mod orders;
pub mod plan;
pub mod rebalance;
pub mod reconcile;
pub mod record;
pub mod references;
pub mod resources;
pub mod rollout;
pub mod routing;
pub mod run;
pub mod scale;
pub mod signing;
pub mod status;
pub mod time;
pub mod validate;
pub mod writer;

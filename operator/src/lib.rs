//! Reconciles `SignalCluster` resources: gateways that scale, route over Redis and rotate their trust without dropping people.
//!
//! A reconcile reads as its steps, and only the first and the last three hold a client:
//! `observe` -> `validate` -> plans (`jwks`, `signing`, `routing`, `scale`, `autoscale`, `rebalance`) -> `desired` -> `apply` -> `orders` -> `status`.

pub mod autoscale;
pub mod conditions;
pub mod desired;
pub mod external_scaler;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod healthcheck;
pub mod names;
pub mod observed;
pub mod plan;
pub mod rebalance;
pub mod record;
pub mod rollout;
pub mod scale;
pub mod time;
pub mod validate;

//! The process: leads by a Lease, watches, and decides when to look at what. Holds a client.

pub mod admin;
pub mod backoff;
pub mod clusters;
pub mod controller;
pub mod events;
pub mod external_scaler;
pub mod judge;
pub mod kinds;
pub mod lease;
pub mod reconcile;
pub mod run;

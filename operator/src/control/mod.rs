//! The process: leads by a Lease, watches, and decides when to reconcile what. Holds a client.

pub mod admin;
pub mod backoff;
pub mod clusters;
pub mod controller;
pub mod external_scaler;
pub mod kinds;
pub mod lease;
pub mod run;
